//! Control groups (version 2): one for the pod, so that the agent keeps some memory whatever the
//! containers do, and below it one per container with the limits of its own.
//!
//! The agent itself stays in the root group, where the pod as a whole cannot starve it: there it
//! competes with the pod as one against one for the processor. The Interledger forward works for the
//! containers, so its threads and the buffers of its connections are in a third group, with limits too.
//!
//! ```text
//! /         the agent
//! ├ pod     all containers: memory, processes
//! │ └ c0 …  one container: memory, processes
//! │   └ x0 … a session of `exec` in it
//! └ forward the Interledger forward: memory, processes
//! ```

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use rustix::mount::{MountFlags, mount};

use crate::forward;

const ROOT: &str = "/sys/fs/cgroup";
/// What the containers together may not have: for the kernel and the agent.
const RESERVED_BYTES: u64 = 24 << 20;
/// Processes and threads of all containers together.
const MAX_POD_PROCESSES: u32 = 16_384;
/// Of the forward: its connections' buffers, mostly. The kernel makes them smaller when it gets close.
const FORWARD_BYTES: u64 = 16 << 20;
/// Two threads for each connection, and those that accept.
const FORWARD_PROCESSES: usize = 2 * forward::MAX_CONNECTIONS + 8;
const CONTROLLERS: &str = "+memory +pids +cpu";

/// Mounts the hierarchy and makes the pod's group.
pub(crate) fn prepare() -> io::Result<()> {
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("cgroup2", ROOT, "cgroup2", plain, None)?;
    let pod = Path::new(ROOT).join("pod");
    fs::write(Path::new(ROOT).join("cgroup.subtree_control"), CONTROLLERS)?;
    fs::create_dir(&pod)?;
    fs::write(pod.join("cgroup.subtree_control"), CONTROLLERS)?;
    let total = memory_total(&fs::read_to_string("/proc/meminfo")?)
        .ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "no MemTotal in /proc/meminfo"))?;
    fs::write(
        pod.join("memory.max"),
        total.saturating_sub(RESERVED_BYTES).to_string(),
    )?;
    fs::write(pod.join("pids.max"), MAX_POD_PROCESSES.to_string())
}

/// Moves the calling process into the group of the forward, which is made by the first.
pub(crate) fn enter_forward() -> io::Result<()> {
    let path = Path::new(ROOT).join("forward");
    match fs::create_dir(&path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::write(path.join("memory.max"), FORWARD_BYTES.to_string())?;
    fs::write(path.join("pids.max"), FORWARD_PROCESSES.to_string())?;
    Cgroup { path }.enter()
}

/// The group of one container.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes the group. A limit of zero is no limit.
    pub(crate) fn create(name: &str, memory_bytes: u64, max_processes: u32) -> io::Result<Self> {
        let path = Path::new(ROOT).join("pod").join(name);
        fs::create_dir(&path)?;
        if memory_bytes > 0 {
            fs::write(path.join("memory.max"), memory_bytes.to_string())?;
        }
        if max_processes > 0 {
            fs::write(path.join("pids.max"), max_processes.to_string())?;
        }
        Ok(Self { path })
    }

    /// Moves the calling process in.
    pub(crate) fn enter(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.procs"), "0")
    }

    /// SIGKILL to every process in it.
    pub(crate) fn kill(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.kill"), "1")
    }

    /// How many processes were killed for want of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        let events = fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        oom_kills(&events)
    }

    /// A group below, within the limits of this one: what is in it can be ended without the rest. It stays,
    /// and is found again.
    pub(crate) fn below(&self, name: &str) -> io::Result<Self> {
        let path = self.path.join(name);
        match fs::create_dir(&path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
            _ => Ok(Self { path }),
        }
    }
}

fn oom_kills(events: &str) -> u64 {
    events
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|count| count.parse().ok())
        .unwrap_or(0)
}

fn memory_total(meminfo: &str) -> Option<u64> {
    let kib = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    kib.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()
        .map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_files_are_read() {
        let events = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n";
        assert_eq!(oom_kills(events), 2);
        assert_eq!(oom_kills("low 0\noom 3\n"), 0);
        assert_eq!(
            memory_total("MemTotal:         480000 kB\nMemFree: 1 kB\n"),
            Some(491_520_000)
        );
        assert_eq!(memory_total("MemFree: 1 kB\n"), None);
        assert!(memory_total(&fs::read_to_string("/proc/meminfo").unwrap()).unwrap() > 1 << 20);
    }
}
