//! Hosts that hosts know of: `GET /peers`, a few at a time, until there are enough or no more.
//!
//! As the original does it: up to 15 rounds, each asking 4 random hosts, 30 s for an answer. The six
//! hosts that it began with are not asked unless somebody says so: none has answered for years, and who
//! owns their names now, nobody knows.

use std::{collections::BTreeSet, time::Duration};

use codius_client::HostClient;
use futures_util::future::join_all;
use rand::seq::IndexedRandom;

use crate::{failure::Failure, hosts_file, key};

/// Stands for [`ORIGINAL`] in `--bootstrap`.
pub(crate) const ORIGINAL_NAME: &str = "original";
/// Where the first Codius began.
const ORIGINAL: [&str; 6] = [
    "https://codius.justmoon.com",
    "https://codius.andros-connector.com",
    "https://codius.risky.business",
    "https://codius.feraltc.com",
    "https://codius.tinypolarbear.com",
    "https://x1.codiushost.com",
];
const ROUNDS: usize = 15;
const ASKED_AT_ONCE: usize = 4;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Enough to choose from, whatever is wanted.
pub(crate) const ENOUGH: usize = 50;
/// More than this of one answer is not looked at.
const MAX_PEERS: usize = 1000;
/// `bootstrap.json` in the configuration directory has the shape of `codiushosts.json`.
const BOOTSTRAP_FILE: &str = "bootstrap.json";

/// Where to begin: what was said, else what the configuration says.
pub(crate) fn bootstrap(said: &[String]) -> Result<Vec<String>, Failure> {
    if said.is_empty() {
        let file = key::configuration_directory().map(|directory| directory.join(BOOTSTRAP_FILE));
        return match file.filter(|file| file.is_file()) {
            Some(file) => hosts_file::read(&file),
            None => Ok(Vec::new()),
        };
    }
    let hosts = said.iter().flat_map(|host| match host.as_str() {
        ORIGINAL_NAME => ORIGINAL.iter().map(|host| (*host).to_owned()).collect(),
        host => vec![host.to_owned()],
    });
    Ok(hosts.collect())
}

/// All hosts that are found, those to begin with first.
pub(crate) async fn discover(bootstrap: &[String], enough: usize) -> Result<Vec<String>, Failure> {
    let mut known = Vec::new();
    for host in bootstrap {
        let origin = HostClient::new(host)?.origin().to_owned();
        if !known.contains(&origin) {
            known.push(origin);
        }
    }
    // A host of one's own machine may name others there; strangers only name hosts with TLS.
    let plain = known.iter().any(|host| host.starts_with("http://"));
    let mut asked = BTreeSet::new();
    for _ in 0..ROUNDS {
        let left: Vec<_> = known.iter().filter(|host| !asked.contains(*host)).collect();
        let sample: Vec<String> = left
            .sample(&mut rand::rng(), ASKED_AT_ONCE)
            .map(|host| (*host).clone())
            .collect();
        if sample.is_empty() || known.len() >= enough {
            break;
        }
        let answers = join_all(sample.iter().map(|host| peers(host))).await;
        asked.extend(sample);
        for peer in answers.into_iter().flatten() {
            let Ok(peer) = HostClient::new(&peer).map(|host| host.origin().to_owned()) else {
                continue;
            };
            if (plain || peer.starts_with("https://")) && !known.contains(&peer) {
                known.push(peer);
            }
        }
    }
    Ok(known)
}

/// What a host that does not answer knows is nothing.
async fn peers(host: &str) -> Vec<String> {
    let Ok(host) = HostClient::new(host) else {
        return Vec::new();
    };
    let asking = host.answering_within(ANSWER_TIMEOUT);
    let mut peers = asking.peers().await.unwrap_or_default();
    peers.truncate(MAX_PEERS);
    peers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_of_the_original_are_asked_only_by_name() {
        let said = ["https://a.example".to_owned(), ORIGINAL_NAME.to_owned()];
        let hosts = bootstrap(&said).unwrap();
        assert_eq!(hosts.len(), 7);
        assert_eq!(hosts[0], "https://a.example");
        assert!(hosts.contains(&"https://codius.justmoon.com".to_owned()));
    }
}
