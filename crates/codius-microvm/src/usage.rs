//! What pods have used of the host, read from `/proc` of their QEMU processes and from their files: a few
//! short files a pod, no program.
//!
//! Traps:
//! - A process id is used again: what was read counts only if the process is the one of the record.
//! - A clone shares memory with its template. What is resident counts it in full, as if it were its own.

use std::{collections::BTreeMap, fs, io, os::unix::fs::MetadataExt};

use codius_manifest::ManifestHash;
use codius_pod::PodUsage;

use crate::{
    process::{ProcessIdentity, boot_id},
    remains::Places,
    start::scratch_path,
};

const KIB: u64 = 1024;
/// What a file takes on disk is told in blocks of this size (`stat(2)`).
const BLOCK_BYTES: u64 = 512;
/// Times in `/proc` are told in these (`USER_HZ`: 100 in a second on x86-64 and arm64, whatever the kernel counts
/// by).
const MILLIS_PER_TICK: u64 = 10;

/// Of those that run. Blocks, for about a tenth of a millisecond a pod.
pub(crate) fn of(places: &Places, pods: &[ManifestHash]) -> BTreeMap<ManifestHash, PodUsage> {
    let read = |hash: &ManifestHash| {
        let record = places.records.read(hash).ok()??;
        let process = record.process?;
        let disk = fs::metadata(scratch_path(&places.pod_dir(hash)));
        let disk_bytes = disk.map_or(0, |disk| disk.blocks().saturating_mul(BLOCK_BYTES));
        // It may end at any moment, and then it has no usage.
        let usage = of_process(&process).ok()??;
        Some((
            *hash,
            PodUsage {
                disk_bytes,
                ..usage
            },
        ))
    };
    pods.iter().filter_map(read).collect()
}

/// What the kernel says of one process; `None` if it is another one, or is over.
fn of_process(process: &ProcessIdentity) -> io::Result<Option<PodUsage>> {
    if process.boot_id != boot_id()? {
        return Ok(None);
    }
    let read = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", process.pid));
    let (status, io) = (read("status")?, read("io")?);
    // Last: if this is the process then what was read before was its, too.
    let Some(stat) = Stat::parse(&read("stat")?) else {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    };
    if stat.start_time != process.start_time {
        return Ok(None);
    }
    let kib = |name| number_after(&status, name).map(|kib| kib.saturating_mul(KIB));
    let (Some(memory_bytes), Some(memory_peak_bytes)) = (kib("VmRSS:"), kib("VmHWM:")) else {
        // A process that has ended and was not waited for has no memory.
        return Ok(None);
    };
    Ok(Some(PodUsage {
        cpu_ms: stat.ticks.saturating_mul(MILLIS_PER_TICK),
        memory_bytes,
        memory_peak_bytes: memory_peak_bytes.max(memory_bytes),
        disk_bytes: 0,
        disk_read_bytes: number_after(&io, "read_bytes:").unwrap_or_default(),
        disk_written_bytes: number_after(&io, "\nwrite_bytes:").unwrap_or_default(),
    }))
}

/// `proc_pid_stat(5)`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    /// In user and kernel mode, of all threads: in clock ticks (fields 14 and 15).
    ticks: u64,
    /// Field 22.
    start_time: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name in parentheses may hold anything.
        let (_, after_name) = text.rsplit_once(')')?;
        let fields: Vec<&str> = after_name.split_ascii_whitespace().take(20).collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            ticks: field(14)?.checked_add(field(15)?)?,
            start_time: field(22)?,
        })
    }
}

/// The number behind the first occurrence of a name.
fn number_after(text: &str, name: &str) -> Option<u64> {
    let (_, after) = text.split_once(name)?;
    after.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_behind_a_nasty_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 9 9 20 0 1 0 4242 1 1 1";
        assert_eq!(
            Stat::parse(stat),
            Some(Stat {
                ticks: 300,
                start_time: 4242
            })
        );
        assert_eq!(Stat::parse("7 (x) S 1"), None);
    }

    #[test]
    fn numbers_are_found_by_their_names() {
        let io =
            "rchar: 1\nwchar: 2\nread_bytes: 4096\nwrite_bytes: 8192\ncancelled_write_bytes: 7\n";
        assert_eq!(number_after(io, "read_bytes:"), Some(4096));
        assert_eq!(number_after(io, "\nwrite_bytes:"), Some(8192));
        assert_eq!(number_after("VmRSS:\t  123 kB\n", "VmRSS:"), Some(123));
        assert_eq!(number_after(io, "VmRSS:"), None);
    }

    #[test]
    fn a_process_is_measured_and_another_one_of_its_id_is_not() {
        let own = ProcessIdentity::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        let usage = of_process(&own).unwrap().unwrap();
        assert!(usage.memory_bytes > 0 && usage.memory_peak_bytes >= usage.memory_bytes);
        let other = ProcessIdentity {
            start_time: own.start_time + 1,
            ..own.clone()
        };
        assert_eq!(of_process(&other).unwrap(), None);
        let of_another_boot = ProcessIdentity {
            boot_id: "another".to_owned(),
            ..own
        };
        assert_eq!(of_process(&of_another_boot).unwrap(), None);
    }
}
