//! `pods.json` in the data directory: which programs this person has on which hosts. State files lie in
//! many directories, and some commands write none; this one file lets `codius pods` find all.
//!
//! ```text
//! { "pods": [ { "manifest_hash", "name", "version", "hosts": [ … ], "changed_at" } ] }
//! ```
//! It holds nothing that a host does not tell everyone. Losing it loses nothing that runs, so that
//! trouble with it is told and never stops a command. Runs at the same time take turns by a lock.

use std::{
    env,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use codius_api::UnixMillis;
use codius_manifest::ManifestHash;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::whole_file;

const FILE: &str = "pods.json";
/// The pods that were bought longest ago are forgotten.
const MAX_PODS: usize = 1000;

/// One program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pod {
    pub(crate) manifest_hash: ManifestHash,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) hosts: Vec<String>,
    /// When time was bought last.
    pub(crate) changed_at: UnixMillis,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Content {
    pods: Vec<Pod>,
}

impl Pod {
    /// Of what is posted.
    pub(crate) fn of(document: &Value, hash: ManifestHash, hosts: Vec<String>) -> Self {
        let text = |member: &str| {
            let text = document["manifest"][member].as_str().unwrap_or_default();
            crate::failure::one_line(text)
        };
        Self {
            manifest_hash: hash,
            name: text("name"),
            version: text("version"),
            hosts,
            changed_at: now(),
        }
    }
}

/// Notes that time was bought for a program.
pub(crate) fn bought(pod: Pod) {
    told(change(|pods| {
        let old = take(pods, &pod.manifest_hash);
        let mut hosts = old.map_or_else(Vec::new, |old| old.hosts);
        hosts.extend(pod.hosts.iter().cloned());
        let hosts = distinct(hosts);
        pods.push(Pod { hosts, ..pod });
        let surplus = pods.len().saturating_sub(MAX_PODS);
        pods.drain(..surplus);
    }));
}

/// Notes that a program has ended at a host.
pub(crate) fn ended(hash: &ManifestHash, host: &str) {
    told(change(|pods| {
        let Some(mut pod) = take(pods, hash) else {
            return;
        };
        pod.hosts.retain(|one| one != host);
        if !pod.hosts.is_empty() {
            pods.push(pod);
        }
    }));
}

/// All that are noted, those bought last first. Nothing if there is no such file, or none that can be
/// read: then that is told.
pub(crate) fn all() -> Vec<Pod> {
    let Some(directory) = directory() else {
        return Vec::new();
    };
    let mut pods = read(&directory.join(FILE)).unwrap_or_else(|error| {
        told(Err(error));
        Vec::new()
    });
    pods.reverse();
    pods
}

fn now() -> UnixMillis {
    let millis = u64::try_from(Timestamp::now().as_millisecond());
    UnixMillis::new(millis.unwrap_or_default())
}

/// Each text once, in the order in which they were first said.
pub(crate) fn distinct(texts: Vec<String>) -> Vec<String> {
    let mut seen = Vec::new();
    for text in texts {
        if !seen.contains(&text) {
            seen.push(text);
        }
    }
    seen
}

fn take(pods: &mut Vec<Pod>, hash: &ManifestHash) -> Option<Pod> {
    let place = pods.iter().position(|pod| pod.manifest_hash == *hash)?;
    Some(pods.remove(place))
}

fn told(outcome: io::Result<()>) {
    if let Err(error) = outcome {
        eprintln!("codius: the record of pods, {FILE}, is left out: {error}");
    }
}

/// Reads, changes and writes under a lock, so that no run undoes what another has noted.
fn change(change: impl FnOnce(&mut Vec<Pod>)) -> io::Result<()> {
    let directory =
        directory().ok_or_else(|| io::Error::other("neither XDG_DATA_HOME nor HOME is set"))?;
    change_in(&directory, change)
}

fn change_in(directory: &Path, change: impl FnOnce(&mut Vec<Pod>)) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    // A file of its own: the other one is replaced. The lock ends with it.
    let lock = File::create(directory.join(".pods.lock"))?;
    lock.lock()?;
    let path = directory.join(FILE);
    let mut pods = read(&path)?;
    change(&mut pods);
    let text = serde_json::to_string_pretty(&Content { pods })? + "\n";
    whole_file::write(&path, text.as_bytes(), whole_file::PRIVATE)
}

fn read(path: &Path) -> io::Result<Vec<Pod>> {
    match whole_file::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice::<Content>(&bytes)?.pods),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// `$XDG_DATA_HOME/codius`, or `~/.local/share/codius`.
fn directory() -> Option<PathBuf> {
    let named = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let data = named("XDG_DATA_HOME").or_else(|| Some(named("HOME")?.join(".local/share")))?;
    Some(data.join("codius"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(letter: char) -> ManifestHash {
        std::iter::repeat_n(letter, 52)
            .collect::<String>()
            .parse()
            .unwrap()
    }

    #[test]
    fn changes_of_many_runs_are_all_kept() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("codius");
        std::thread::scope(|scope| {
            for number in 0..8 {
                let directory = &directory;
                scope.spawn(move || {
                    change_in(directory, |pods| {
                        pods.push(Pod {
                            manifest_hash: hash('a'),
                            name: format!("{number}"),
                            version: String::new(),
                            hosts: Vec::new(),
                            changed_at: UnixMillis::default(),
                        });
                    })
                    .unwrap();
                });
            }
        });
        assert_eq!(read(&directory.join(FILE)).unwrap().len(), 8);
    }

    #[test]
    fn a_file_that_is_not_ours_is_not_overwritten() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join(FILE);
        fs::write(&path, "mine").unwrap();
        assert!(change_in(place.path(), |pods| pods.clear()).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }
}
