//! What this machine has for pods.

use std::{fs, os::unix::fs::MetadataExt, path::Path, thread};

use anyhow::{Context, Result};
use codius_pod::Capacity;

use crate::config::Pods;

const MIB: u64 = 1 << 20;
/// What a file takes on disk is told in blocks of this size (`stat(2)`).
const BLOCK_BYTES: u64 = 512;

/// What pods may be promised.
pub(crate) fn of(pods: &Pods, data_dir: &Path) -> Result<Capacity> {
    let memory_mib = match pods.memory_mib {
        0 => part(memory_mib()?, pods.memory_fraction),
        set => set,
    };
    let disk_mib = match pods.disk_mib {
        0 => part(disk_mib(data_dir)?, pods.disk_fraction),
        set => set,
    };
    let vcpus = if pods.max_cpu_overcommit > 0.0 {
        part(cores(), pods.max_cpu_overcommit).max(1)
    } else {
        u64::MAX
    };
    Ok(Capacity {
        memory_mib,
        disk_mib,
        vcpus,
        pods: u64::try_from(pods.max_pods).unwrap_or(u64::MAX),
    })
}

/// Processors that this process may use.
pub(crate) fn cores() -> u64 {
    thread::available_parallelism().map_or(1, |cores| u64::try_from(cores.get()).unwrap_or(1))
}

/// How many virtual processors there are for each core.
#[expect(clippy::cast_precision_loss, reason = "no machine has 2^52 of them")]
pub(crate) fn ratio(vcpus: u64, cores: u64) -> f64 {
    vcpus as f64 / cores.max(1) as f64
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a positive part of what a machine has"
)]
fn part(whole: u64, fraction: f64) -> u64 {
    (whole as f64 * fraction) as u64
}

fn memory_mib() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")
        .context("cannot read this machine's memory; set pods.memory_mib")?;
    let total = text.lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?
            .trim()
            .strip_suffix(" kB")?
            .parse::<u64>()
            .ok()
    });
    let total_kib = total.context("cannot read this machine's memory; set pods.memory_mib")?;
    Ok(total_kib / 1024)
}

/// What is free, with what the disks of pods that run have taken of it.
fn disk_mib(data_dir: &Path) -> Result<u64> {
    let disk = rustix::fs::statvfs(data_dir)
        .context("cannot see how much room is on the disk; set pods.disk_mib")?;
    let free_bytes = disk.f_bavail.saturating_mul(disk.f_frsize);
    Ok(free_bytes.saturating_add(taken_bytes(&data_dir.join("pods/pods"))) / MIB)
}

/// What the files two levels below a directory take; what is not there takes nothing.
fn taken_bytes(pods: &Path) -> u64 {
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten();
    entries(pods)
        .flat_map(|pod| entries(&pod.path()))
        .filter_map(|file| file.metadata().ok())
        .map(|metadata| metadata.blocks().saturating_mul(BLOCK_BYTES))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_counts_and_else_what_the_machine_has() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let set = Pods {
            memory_mib: 5,
            disk_mib: 6,
            max_cpu_overcommit: 2.5,
            max_pods: 7,
            ..Pods::default()
        };
        let capacity = of(&set, dir.path())?;
        assert_eq!(
            (capacity.memory_mib, capacity.disk_mib, capacity.pods),
            (5, 6, 7)
        );
        assert_eq!(capacity.vcpus, cores() * 5 / 2);

        let found = of(&Pods::default(), dir.path())?;
        assert!(found.memory_mib > 0 && found.disk_mib > 0, "{found:?}");
        assert_eq!(found.vcpus, u64::MAX, "no limit");
        Ok(())
    }

    #[test]
    fn disks_of_pods_are_part_of_what_pods_have() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let pod = dir.path().join("pods/pods/hash");
        fs::create_dir_all(&pod)?;
        fs::write(pod.join("scratch.img"), vec![1; 3 << 20])?;
        let taken = taken_bytes(&dir.path().join("pods/pods"));
        assert!((3 << 20..4 << 20).contains(&taken), "{taken}");
        assert_eq!(taken_bytes(&dir.path().join("nowhere")), 0);
        Ok(())
    }
}
