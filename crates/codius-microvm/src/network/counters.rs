//! What the tables have counted, as `nft` tells it.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
    path::Path,
    process::{Command, Stdio},
};

use codius_pod::{Count, Refusal, Traffic};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Deserialize;

use super::{firewall, namespace::inside};
use crate::{
    limits::{MAX_COUNTERS_BYTES, PROGRAM_DEADLINE},
    process::wait_readable,
};

/// The counters by name. Those of a name in several tables are added up.
pub(super) type Counters = BTreeMap<String, Count>;

/// Reads all counters of the tables of a namespace. Blocks for at most [`PROGRAM_DEADLINE`].
pub(super) fn in_namespace(nft: &Path, namespace: &OwnedFd) -> io::Result<Counters> {
    inside(namespace, || read(nft, &["-j", "list", "counters"]))
}

/// Reads the counters of one table of the host.
pub(super) fn of_host(nft: &Path, table: &str) -> io::Result<Counters> {
    read(nft, &["-j", "list", "counters", "table", "inet", table])
}

fn read(nft: &Path, arguments: &[&str]) -> io::Result<Counters> {
    let mut child = Command::new(nft)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    // The answer is far shorter than what the pipe holds.
    if !wait_readable(pidfd.as_fd(), PROGRAM_DEADLINE)? {
        child.kill()?;
    }
    let status = child.wait()?;
    let mut json = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_COUNTERS_BYTES).read_to_end(&mut json)?;
    }
    if !status.success() {
        return Err(io::Error::other(format!(
            "{} could not list counters: {status}",
            nft.display()
        )));
    }
    parse(&json)
}

fn parse(json: &[u8]) -> io::Result<Counters> {
    #[derive(Deserialize)]
    struct Listing {
        nftables: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        counter: Option<Counter>,
    }
    #[derive(Deserialize)]
    struct Counter {
        name: String,
        packets: u64,
        bytes: u64,
    }
    let listing: Listing = serde_json::from_slice(json)?;
    let mut counters = Counters::new();
    for counter in listing
        .nftables
        .into_iter()
        .filter_map(|entry| entry.counter)
    {
        let sum = counters.entry(counter.name).or_default();
        sum.packets = sum.packets.saturating_add(counter.packets);
        sum.bytes = sum.bytes.saturating_add(counter.bytes);
    }
    Ok(counters)
}

/// What the counters of a pod's namespace say.
pub(super) fn traffic(counters: &Counters) -> Traffic {
    let of = |name: &str| counters.get(name).copied().unwrap_or_default();
    Traffic {
        sent: of(firewall::SENT),
        received: of(firewall::RECEIVED),
        visitors_sent: of(firewall::VISITORS_SENT),
        visitors_received: of(firewall::VISITORS_RECEIVED),
        refused: Refusal::ALL
            .into_iter()
            .map(|refusal| (refusal, of(&firewall::counter_of(refusal))))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_one_name_are_added_up() {
        let json = br#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
            {"counter": {"family": "netdev", "name": "refused_spoofed", "table": "pod", "handle": 1, "packets": 2, "bytes": 84}},
            {"counter": {"family": "inet", "name": "refused_spoofed", "table": "pod", "handle": 1, "packets": 1, "bytes": 60}},
            {"counter": {"family": "inet", "name": "sent", "table": "pod", "handle": 2, "packets": 5, "bytes": 300}}]}"#;
        let traffic = traffic(&parse(json).unwrap());
        assert_eq!((traffic.sent.packets, traffic.sent.bytes), (5, 300));
        let spoofed = traffic.refused[&Refusal::Spoofed];
        assert_eq!((spoofed.packets, spoofed.bytes), (3, 144));
        assert_eq!(traffic.refused.len(), Refusal::ALL.len());
        assert!(parse(b"{").is_err());
    }
}
