//! What there is of a pod, and how it is removed: by name, so that it works for what this process has made
//! as well as for what a killed one has left.
//!
//! Order: the process first (it holds all the rest), then its cell, network and files, then the record. Every step is
//! right when it was done before.

use std::{fs, io, path::PathBuf, sync::Arc};

use codius_manifest::ManifestHash;
use tracing::{info, warn};

use crate::{
    Instance,
    jail::Jail,
    network,
    process::ProcessHandle,
    programs::Programs,
    record::{PodRecord, Records},
};

/// What a sweep has removed: for the operator, who reads it in the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Pods that could not go on: half started, or without a living machine.
    pub pods: usize,
    /// Machines without a record.
    pub machines: usize,
    /// Network namespaces and interfaces without a record.
    pub networks: usize,
    /// Directories and files without a record.
    pub files: usize,
}

/// Where the things of this host's pods are.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    pub(crate) programs: Programs,
    pub(crate) jail: Arc<Jail>,
    pub(crate) instance: Instance,
    pub(crate) records: Records,
    pub(crate) pods_dir: PathBuf,
    pub(crate) uid_base: u32,
}

impl Places {
    /// The directory of a pod: socket, scratch disk, console.
    pub(crate) fn pod_dir(&self, hash: &ManifestHash) -> PathBuf {
        self.pods_dir.join(hash.to_string())
    }

    pub(crate) fn uid(&self, slot: u16) -> u32 {
        self.uid_base + u32::from(slot)
    }

    /// Removes everything of a pod. Blocks.
    pub(crate) fn remove_pod(&self, record: &PodRecord) -> io::Result<()> {
        let name = self.instance.pod_name(record.slot);
        if let Some(process) = &record.process
            && let Some(handle) = process.find()?
        {
            let groups = self.jail.groups_of(process.pid, &name);
            handle.kill_and_wait()?;
            self.jail.remove_groups(&groups)?;
        } else if record.process.is_none() {
            // Killed between the start of QEMU and the note of its id.
            let _ = self.kill_strays(|slot| slot == record.slot)?;
        }
        self.jail.forget(&name)?;
        network::remove(&self.programs, &name)?;
        remove_tree(&self.pod_dir(&record.hash))?;
        self.records.remove(&record.hash)
    }

    /// Removes what has no record any more, and the pods that cannot go on: not started to the end, or
    /// without a living machine. Blocks.
    pub(crate) fn sweep(
        &self,
        can_go_on: impl Fn(&PodRecord) -> io::Result<bool>,
    ) -> io::Result<(Vec<PodRecord>, Swept)> {
        let mut kept = Vec::new();
        let mut swept = Swept::default();
        for record in self.records.all()? {
            if can_go_on(&record)? {
                kept.push(record);
            } else {
                info!(pod = %record.hash, "removing what an earlier run has left of a pod");
                self.remove_pod(&record)?;
                swept.pods += 1;
            }
        }
        let has_record = |slot| kept.iter().any(|record: &PodRecord| record.slot == slot);
        swept.machines = self.kill_strays(|slot| !has_record(slot))?;
        for slot in network::slots_in_use(&self.instance)? {
            if !has_record(slot) {
                warn!(slot, "removing a pod network without a pod");
                network::remove(&self.programs, &self.instance.pod_name(slot))?;
                swept.networks += 1;
            }
        }
        let kept_names = || {
            let slots = kept.iter().map(|record| record.slot);
            slots.map(|slot| self.instance.pod_name(slot))
        };
        for name in self.jail.names() {
            if !kept_names().any(|kept| kept == name) {
                // It limits nobody any more, and must not keep the host from starting.
                if let Err(error) = self.jail.forget(&name) {
                    warn!(%error, "a control group without a pod could not be removed");
                }
            }
        }
        for entry in fs::read_dir(&self.pods_dir)? {
            let path = entry?.path();
            if !kept.iter().any(|record| self.pod_dir(&record.hash) == path) {
                warn!(path = %path.display(), "removing files without a pod");
                remove_tree(&path)?;
                swept.files += 1;
            }
        }
        Ok((kept, swept))
    }

    /// Kills QEMU processes of this instance by their name (an argument of ours) and user, and says how
    /// many.
    pub(crate) fn kill_strays(&self, is_stray: impl Fn(u16) -> bool) -> io::Result<usize> {
        let mut killed = 0;
        let prefix = self.instance.pod_prefix();
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            let Some(slot) = self.slot_of_process(pid, &prefix) else {
                continue;
            };
            if !is_stray(slot) {
                continue;
            }
            // The id may have become another's since: look again while holding it.
            if let Some(handle) = ProcessHandle::open(pid)?
                && self.slot_of_process(pid, &prefix) == Some(slot)
            {
                warn!(pid, slot, "ending a virtual machine without a pod");
                let name = self.instance.pod_name(slot);
                let groups = self.jail.groups_of(pid, &name);
                handle.kill_and_wait()?;
                self.jail.remove_groups(&groups)?;
                self.jail.forget(&name)?;
                killed += 1;
            }
        }
        Ok(killed)
    }

    /// The slot of a QEMU process of this instance.
    fn slot_of_process(&self, pid: i32, prefix: &str) -> Option<u16> {
        use std::os::unix::fs::MetadataExt;
        let command_line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let slot: u16 = stray_name(&command_line)?
            .strip_prefix(prefix)?
            .parse()
            .ok()?;
        // Anyone may choose such arguments, but not such a user.
        let uid = fs::metadata(format!("/proc/{pid}")).ok()?.uid();
        (uid == self.uid(slot) || uid == 0).then_some(slot)
    }
}

/// The value of `-name` on a QEMU command line as `/proc/PID/cmdline` has it.
fn stray_name(command_line: &[u8]) -> Option<&str> {
    let mut arguments = command_line.split(|&byte| byte == 0);
    let program = std::str::from_utf8(arguments.next()?).ok()?;
    if !program.rsplit('/').next()?.starts_with("qemu-system-") || arguments.next()? != b"-name" {
        return None;
    }
    std::str::from_utf8(arguments.next()?).ok()
}

/// Whatever is there: a file where a directory should be must not keep the host from starting.
pub(crate) fn remove_tree(path: &std::path::Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_machines_have_a_name() {
        assert_eq!(
            stray_name(b"/usr/bin/qemu-system-x86_64\0-name\0cdab12-3\0-m\0"),
            Some("cdab12-3")
        );
        assert_eq!(stray_name(b"/usr/bin/vim\0-name\0cdab12-3\0"), None);
        assert_eq!(stray_name(b"qemu-system-x86_64\0-m\0x\0"), None);
        assert_eq!(stray_name(b""), None);
    }

    #[test]
    fn whatever_is_there_is_removed_and_nothing_behind_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("pod/inner")).unwrap();
        fs::write(path("pod/inner/scratch.img"), "x").unwrap();
        fs::write(path("file"), "x").unwrap();
        fs::create_dir(path("elsewhere")).unwrap();
        fs::write(path("elsewhere/kept"), "x").unwrap();
        std::os::unix::fs::symlink(path("elsewhere"), path("link")).unwrap();
        for name in ["pod", "file", "link", "nothing"] {
            remove_tree(&path(name)).unwrap();
            assert!(fs::symlink_metadata(path(name)).is_err(), "{name}");
        }
        assert!(path("elsewhere/kept").exists());
    }
}
