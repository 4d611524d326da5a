//! How people name a program that runs: its hash with `--host`, `HASH.host`, or its URL.

use std::path::Path;

use codius_manifest::ManifestHash;

use crate::{
    candidates,
    failure::{Failure, USAGE},
    pods,
    state_file::StateFile,
};

/// A program, and the hosts that run it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodAddress {
    pub(crate) hash: ManifestHash,
    pub(crate) hosts: Vec<String>,
}

impl PodAddress {
    /// From what was written and `--host`, which goes before the host in it.
    pub(crate) fn new(text: &str, said: &[String]) -> Result<Self, Failure> {
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (scheme, rest),
            None => ("https", text),
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (label, host) = match authority.split_once('.') {
            Some((label, host)) => (label, Some(host)),
            None => (authority, None),
        };
        let hash = label.to_ascii_lowercase().parse().map_err(|_| {
            Failure::new(USAGE, format!("{text} does not begin with a manifest hash"))
                .note("Next: give the 52 letters and digits that codius upload has shown, or the program's URL.")
        })?;
        let hosts = match (said, host) {
            ([], Some(host)) => vec![format!("{scheme}://{host}")],
            ([], None) => {
                return Err(
                    Failure::new(USAGE, "a hash alone does not say where it runs")
                        .note("Next: give --host, or HASH.host, or the program's URL."),
                );
            }
            (said, _) => said.to_vec(),
        };
        Ok(Self {
            hash,
            hosts: candidates::origins(&hosts)?,
        })
    }

    /// The same; of a hash alone, the hosts that it was uploaded to.
    pub(crate) fn known(text: &str, said: &[String]) -> Result<Self, Failure> {
        let hash: Option<ManifestHash> = text.to_ascii_lowercase().parse().ok();
        if let ([], Some(hash)) = (said, hash) {
            let hosts = candidates::origins(&pods::hosts_of(&hash))?;
            if !hosts.is_empty() {
                return Ok(Self { hash, hosts });
            }
        }
        Self::new(text, said)
    }

    /// The program that was named, or without a name that of the state file.
    pub(crate) fn named_or_saved(
        text: Option<&str>,
        said: &[String],
        state_file: &Path,
    ) -> Result<Self, Failure> {
        if let Some(text) = text {
            return Self::known(text, said);
        }
        let state = StateFile::open(state_file)?;
        let hosts = match said {
            [] => state.hosts(),
            said => said.to_vec(),
        };
        Ok(Self {
            hash: state.hash(),
            hosts: candidates::origins(&hosts)?,
        })
    }

    /// Where there can only be one host.
    pub(crate) fn only_host(&self) -> Result<&str, Failure> {
        match self.hosts.as_slice() {
            [one] => Ok(one),
            _ => Err(Failure::new(USAGE, "this command takes one --host")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "iqjw7i2vwntyuekgvulpp2det2kpwt6cd7tx5ayqybqpmhfk76fa";

    #[test]
    fn a_program_is_named_in_the_ways_of_the_original() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let host = ["http://localhost:3000".to_owned()];
        for (text, said, hosts) in [
            (HASH.to_owned(), &host[..], "http://localhost:3000"),
            (format!("{HASH}.host.example"), &[], "https://host.example"),
            (
                format!("https://{HASH}.host.example/"),
                &[],
                "https://host.example",
            ),
            (
                format!("http://{HASH}.localhost:3000/x?y"),
                &[],
                "http://localhost:3000",
            ),
            (
                format!("{HASH}.host.example"),
                &host,
                "http://localhost:3000",
            ),
        ] {
            let address = PodAddress::new(&text, said).unwrap();
            assert_eq!(address.hash.to_string(), HASH);
            assert_eq!(address.hosts, [hosts], "{text}");
        }
        for text in [HASH, "", "x.host.example", "https://host.example"] {
            assert!(PodAddress::new(text, &[]).is_err(), "{text}");
        }
    }
}
