//! Where the hosts of an upload come from: `--host`, `codiushosts.json`, or discovery.

use std::path::Path;

use codius_client::HostClient;

use crate::{
    choice::Candidates,
    discovery,
    failure::{Failure, USAGE},
    hosts_file::{self, HOSTS_FILE},
};

/// What the person has said.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Said<'a> {
    pub(crate) hosts: &'a [String],
    pub(crate) count: Option<usize>,
    pub(crate) hosts_file: &'a Path,
    pub(crate) bootstrap: &'a [String],
}

/// As the original: all hosts that are named, so many of those in a file if a count is given, else so
/// many (one) of those that are found.
pub(crate) async fn candidates(said: Said<'_>) -> Result<Candidates, Failure> {
    if !said.hosts.is_empty() {
        return Ok(Candidates {
            hosts: origins(said.hosts)?,
            count: None,
        });
    }
    if said.hosts_file.exists() || said.hosts_file != Path::new(HOSTS_FILE) {
        return Ok(Candidates {
            hosts: origins(&hosts_file::read(said.hosts_file)?)?,
            count: said.count,
        });
    }
    let bootstrap = discovery::bootstrap(said.bootstrap)?;
    if bootstrap.is_empty() {
        return Err(Failure::new(USAGE, "no host is known").note(format!(
            "Next: name one with --host, or several in {HOSTS_FILE}, or one that knows others with --bootstrap."
        )));
    }
    let count = said.count.unwrap_or(1);
    eprintln!("Looking for hosts");
    let hosts = discovery::discover(&bootstrap, discovery::ENOUGH.max(count)).await?;
    Ok(Candidates {
        hosts,
        count: Some(count),
    })
}

/// Each host once, as it will be called.
pub(crate) fn origins(hosts: &[String]) -> Result<Vec<String>, Failure> {
    let mut origins: Vec<String> = Vec::new();
    for host in hosts {
        let origin = HostClient::new(host)?.origin().to_owned();
        if !origins.contains(&origin) {
            origins.push(origin);
        }
    }
    Ok(origins)
}
