//! What a program can find out about the place it runs in.

use std::{fs, time::Instant};

use serde::Serialize;

use crate::interledger::{Account, Answer};

/// What does not change while the program runs.
pub(crate) struct Facts {
    started: Instant,
    name: String,
    manifest_hash: Option<String>,
    host: Option<String>,
    kernel: String,
    memory_limit_bytes: Option<u64>,
    processors: usize,
}

/// Everything, at one moment.
#[derive(Serialize)]
pub(crate) struct Snapshot<'a> {
    pub(crate) name: &'a str,
    pub(crate) manifest_hash: Option<&'a str>,
    pub(crate) host: Option<&'a str>,
    pub(crate) kernel: &'a str,
    /// Since the kernel of the pod was started.
    pub(crate) kernel_uptime_secs: Option<u64>,
    pub(crate) program_uptime_secs: u64,
    pub(crate) memory_limit_bytes: Option<u64>,
    pub(crate) processors: usize,
    pub(crate) interledger: Answer,
    /// Of all visitors, this one included.
    pub(crate) requests: u64,
}

impl Facts {
    pub(crate) fn of_this_process() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        Self {
            started: Instant::now(),
            name: variable("CODIUS_MANIFEST")
                .and_then(|manifest| program_name(&manifest))
                .unwrap_or_else(|| "hello".to_owned()),
            manifest_hash: variable("CODIUS_MANIFEST_HASH"),
            host: variable("CODIUS_HOST"),
            kernel: line("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned()),
            memory_limit_bytes: memory_limit(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    pub(crate) fn now(&self, account: &Account, requests: u64) -> Snapshot<'_> {
        Snapshot {
            name: &self.name,
            manifest_hash: self.manifest_hash.as_deref(),
            host: self.host.as_deref(),
            kernel: &self.kernel,
            kernel_uptime_secs: line("/proc/uptime").and_then(|text| whole_seconds(&text)),
            program_uptime_secs: self.started.elapsed().as_secs(),
            memory_limit_bytes: self.memory_limit_bytes,
            processors: self.processors,
            interledger: account.answer(),
            requests,
        }
    }
}

/// The `name` of a manifest.
fn program_name(manifest: &str) -> Option<String> {
    let manifest: serde_json::Value = serde_json::from_str(manifest).ok()?;
    manifest
        .get("name")?
        .as_str()
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
}

fn line(path: &str) -> Option<String> {
    Some(
        fs::read_to_string(path)
            .ok()?
            .lines()
            .next()?
            .trim()
            .to_owned(),
    )
}

/// Of `/proc/uptime`: seconds and hundredths, then the time that processors were idle.
fn whole_seconds(uptime: &str) -> Option<u64> {
    uptime.split(['.', ' ']).next()?.parse().ok()
}

/// The limit of the container, or else the memory of the machine.
fn memory_limit() -> Option<u64> {
    let of_container = line("/sys/fs/cgroup/memory.max").and_then(|text| text.parse().ok());
    of_container.or_else(|| total_memory(&fs::read_to_string("/proc/meminfo").ok()?))
}

/// Of `/proc/meminfo`: `MemTotal:   503040 kB`.
fn total_memory(meminfo: &str) -> Option<u64> {
    let kibibytes = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = kibibytes.trim().strip_suffix(" kB")?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_the_kernel_are_read() {
        assert_eq!(whole_seconds("12.34 56.78"), Some(12));
        assert_eq!(whole_seconds("nonsense"), None);
        assert_eq!(
            total_memory("MemFree: 1 kB\nMemTotal:   2 kB\n"),
            Some(2048)
        );
        assert_eq!(total_memory("MemFree: 1 kB\n"), None);
    }

    #[test]
    fn the_name_is_that_of_the_manifest() {
        assert_eq!(
            program_name(r#"{"name":"a \"b\""}"#).as_deref(),
            Some("a \"b\"")
        );
        for manifest in ["", "{}", r#"{"name":""}"#, r#"{"name":1}"#] {
            assert_eq!(program_name(manifest), None, "{manifest}");
        }
    }
}
