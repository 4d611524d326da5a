//! Which pod, if any, a request is for (RFC 9112, 3.2).
//!
//! Trap: two parties that read the target of one request differently can be played against each
//! other. So a request that names its host twice, or in two ways, is refused rather than guessed.

use http::header::HOST;
use http::request::Parts;
use http::{Method, Version};

use crate::failure::Failure;

/// Letters of a manifest hash: SHA-256 in base32 without padding.
const LABEL_LEN: usize = 52;

/// A manifest hash as the first label of a host name, in lower case.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Label([u8; LABEL_LEN]);

impl Label {
    /// The label of `host` (a Host header value), if its first label is a manifest hash.
    pub(crate) fn of_host(host: &[u8]) -> Option<Self> {
        let end = host
            .iter()
            .position(|byte| matches!(byte, b'.' | b':'))
            .unwrap_or(host.len());
        let mut label: [u8; LABEL_LEN] = host[..end].try_into().ok()?;
        label.make_ascii_lowercase();
        label
            .iter()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'2'..=b'7'))
            .then_some(Self(label))
    }

    pub(crate) fn as_str(&self) -> &str {
        // Only ASCII letters and digits get in, so this never takes the empty branch.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// The pod that `request` names, or `None` for the API.
pub(crate) fn label_of(request: &Parts) -> Result<Option<Label>, Failure> {
    if request.method == Method::CONNECT {
        return Err(Failure::Connect);
    }
    let mut hosts = request.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Failure::BadHost);
    }
    let Some(host) = host.map(http::HeaderValue::as_bytes) else {
        // HTTP/1.0 had no Host header; such a visitor can only mean the host itself.
        return match (request.version, request.uri.authority()) {
            (Version::HTTP_10, None) => Ok(None),
            _ => Err(Failure::BadHost),
        };
    };
    if !host.iter().all(|byte| is_host_byte(*byte)) {
        return Err(Failure::BadHost);
    }
    if let Some(authority) = request.uri.authority()
        && !authority.as_str().as_bytes().eq_ignore_ascii_case(host)
    {
        return Err(Failure::BadHost);
    }
    Ok(Label::of_host(host))
}

fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']' | b'~')
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "hyd2tb5kkhy2akzfs7bewagcc53dirdlausb5ngulr73xab3cqya";

    fn target(version: Version, uri: &str, hosts: &[&str]) -> Result<Option<String>, Failure> {
        let mut request = http::Request::builder().version(version).uri(uri);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        label_of(&parts).map(|label| label.map(|label| label.as_str().to_owned()))
    }

    #[test]
    fn first_label_in_any_case_names_the_pod() {
        let upper = HASH.to_ascii_uppercase();
        for host in [
            HASH.to_owned(),
            format!("{HASH}.host.example"),
            format!("{HASH}.localhost:8080"),
            format!("{HASH}:8080"),
            format!("{upper}.HOST.example"),
        ] {
            let found = target(Version::HTTP_11, "/", &[&host]).unwrap();
            assert_eq!(found.as_deref(), Some(HASH), "{host}");
        }
    }

    #[test]
    fn everything_else_is_for_the_api() {
        let long = format!("{HASH}a.host");
        let short = format!("{}.host", &HASH[1..]);
        let digit = format!("{}1.host", &HASH[1..]);
        for host in [
            "host.example",
            "",
            "127.0.0.1:3000",
            "[::1]:3000",
            &long,
            &short,
            &digit,
        ] {
            assert_eq!(
                target(Version::HTTP_11, "/", &[host]).unwrap(),
                None,
                "{host}"
            );
        }
        let inner = format!("www.{HASH}.host");
        assert_eq!(target(Version::HTTP_11, "/", &[&inner]).unwrap(), None);
        assert_eq!(target(Version::HTTP_10, "/", &[]).unwrap(), None);
    }

    #[test]
    fn a_host_that_can_be_read_in_two_ways_is_refused() {
        let pod = format!("{HASH}.host");
        for (uri, hosts) in [
            ("/", vec![]),
            ("/", vec!["host", "host"]),
            ("/", vec![pod.as_str(), "host"]),
            ("http://host/", vec![pod.as_str()]),
            ("http://host/", vec![]),
            ("/", vec!["a b"]),
            ("/", vec!["user@host"]),
            ("/", vec!["host/path"]),
            ("/", vec!["a,b"]),
        ] {
            assert!(
                target(Version::HTTP_11, uri, &hosts).is_err(),
                "{uri} {hosts:?}"
            );
        }
        let absolute = format!("http://{pod}/x");
        assert_eq!(
            target(Version::HTTP_11, &absolute, &[&pod])
                .unwrap()
                .as_deref(),
            Some(HASH)
        );
    }
}
