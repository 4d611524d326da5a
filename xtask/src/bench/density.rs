//! What idle pods cost the host, booted and cloned: memory beyond the program, processor time, and what comes
//! back when a program frees memory.
//!
//! Memory is the proportional set size (PSS) of every QEMU of the host, with the template's memory in it once:
//! pages that N clones map count for a share each. The translation cache of the emulator, which KVM has
//! not, is named apart: QEMU's anonymous memory that is mapped executable, and its heap. A pod's program is the
//! `hello` of the demo, in one container; what it uses itself is within the guest's part.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use codius_testkit::Registry;
use serde_json::json;

use super::{figure::Figure, start::host_machines};
use crate::{
    build, demo,
    demo::{Host, Variant},
    guest, packages,
};

/// How many pods are aimed at on a machine of 24 GiB.
const PODS: u32 = 100;
/// Long enough for all pods to be started and measured.
const LEASE_SECS: u64 = 3600;
/// Until what programs and kernels do after a start has ended, and unused memory was given back.
const SETTLE: Duration = Duration::from_secs(15);
/// How long processor time is counted.
const IDLE: Duration = Duration::from_secs(20);

/// `USER_HZ`, which is 100 on every Linux that this runs on.
pub(super) const TICKS_PER_SECOND: f64 = 100.0;

/// Prints the figures for `pods` pods of each kind.
pub(super) fn run(pods: u32, yes: bool) -> Result<()> {
    packages::require_root("this benchmark")?;
    packages::ensure(&[packages::HOST], yes)?;
    let programs = build::programs(super::profile())?;
    let guest_dir = guest::default_dir();
    guest::build(&guest_dir, &guest::Options::default())?;
    let hello = guest::build_static(&guest_dir, "codius-example-hello")?;
    let place = tempfile::Builder::new().prefix("codius-bench-").tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let interrupted = runtime.spawn(async { tokio::signal::ctrl_c().await });
    let registry = Registry::start()?;
    let image = demo::push_hello(&runtime, &registry, &hello)?;

    for (kind, variant, memory_aim) in [
        ("cold", Variant::COLD.crowded(), 90.0),
        ("cloned", Variant::WARM.crowded(), 45.0),
    ] {
        let dir = place.path().join(kind);
        fs::create_dir(&dir)?;
        let mut host = Host::start_as(&programs.codiusd, &dir, &guest_dir, 0, &registry, variant)?;
        if kind == "cloned" {
            host.wait_for_template()?;
        }
        let codius_json = dir.join("codius.json");
        let before = available_mib()?;
        for number in 0..pods {
            ensure!(!interrupted.is_finished(), "interrupted");
            fs::write(&codius_json, codius_file(&format!("idle-{number}"), &image))?;
            demo::upload(&programs.codius, &host, &codius_json, LEASE_SECS)?;
        }
        std::thread::sleep(SETTLE);
        let machines = host_machines(host.process_id())?;
        ensure!(
            machines.len() == usize::try_from(pods)?,
            "{} of {pods} pods run",
            machines.len()
        );
        let after = available_mib()?;
        let all = || -> Result<f64> {
            let processes = machines.iter().copied().chain([host.process_id()]);
            processes.map(cpu_ticks).sum()
        };
        let (begin, ticks) = (Instant::now(), all()?);
        std::thread::sleep(IDLE);
        let used = all()? - ticks;
        let percent = used / begin.elapsed().as_secs_f64() * 100.0 / TICKS_PER_SECOND;

        let mut sum = Memory::default();
        for &machine in &machines {
            sum.add(machine)?;
        }
        let each = |kib: u64| kib as f64 / 1024.0 / f64::from(pods);
        eprintln!("{kind}: {sum:?}");
        Figure::new(
            &format!("density/memory-{kind}"),
            "MiB",
            &[each(sum.total())],
        )
        .limit("aim", memory_aim)
        .at_most(1.0)
        .print();
        for (part, kib) in [
            ("guest", sum.guest),
            ("translations", sum.translations),
            ("heap", sum.heap),
            ("files", sum.files),
            ("rest", sum.rest),
        ] {
            Figure::new(
                &format!("density/memory-{kind}-{part}"),
                "MiB",
                &[each(kib)],
            )
            .print();
        }
        let drop = (before - after) / f64::from(pods);
        Figure::new(&format!("density/available-{kind}"), "MiB", &[drop]).print();
        Figure::new(
            &format!("density/idle-{kind}"),
            "percent of a core for 100 pods, and the host",
            &[percent * f64::from(PODS) / f64::from(pods)],
        )
        .limit("20 % of a core", 20.0)
        .at_most(1.0)
        .print();
        host.stop()?;
    }
    Ok(())
}

fn codius_file(name: &str, image: &str) -> String {
    let container = json!({ "id": "app", "image": image, "environment": { "PORT": "8080" } });
    let file = json!({ "manifest": {
        "name": name, "version": "1.0.0", "machine": "small", "port": "8080", "containers": [container],
    } });
    format!("{file:#}\n")
}

/// PSS in KiB, by what it is.
#[derive(Debug, Default)]
struct Memory {
    /// The guest's memory.
    guest: u64,
    /// The emulator's translations, and its tables of them.
    translations: u64,
    heap: u64,
    /// Programs and libraries.
    files: u64,
    rest: u64,
}

impl Memory {
    fn total(&self) -> u64 {
        self.guest + self.translations + self.heap + self.files + self.rest
    }

    fn add(&mut self, pid: u32) -> Result<()> {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps"))
            .context("a pod has ended while it was measured")?;
        for (mapping, pss) in mappings(&text) {
            let part = match mapping.name {
                name if name.contains("memfd:") || name.contains("memory-backend") => {
                    &mut self.guest
                }
                "[heap]" => &mut self.heap,
                "" if mapping.executable => &mut self.translations,
                name if name.starts_with('/') => &mut self.files,
                _ => &mut self.rest,
            };
            *part += pss;
        }
        Ok(())
    }
}

struct Mapping<'a> {
    name: &'a str,
    executable: bool,
}

/// Every mapping of an `smaps` file with its PSS in KiB.
fn mappings(text: &str) -> Vec<(Mapping<'_>, u64)> {
    let mut found = Vec::new();
    let mut current = None;
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else {
            continue;
        };
        if !first.ends_with(':') {
            current = Some((words.nth(3).unwrap_or_default(), second.contains('x')));
        } else if first == "Pss:"
            && let (Some((name, executable)), Ok(kib)) = (current, second.parse())
        {
            found.push((Mapping { name, executable }, kib));
        }
    }
    found
}

fn available_mib() -> Result<f64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: f64 = line
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .context("no MemAvailable in /proc/meminfo")?
        .parse()?;
    Ok(kib / 1024.0)
}

/// Processor time that a process has used, in clock ticks.
pub(super) fn cpu_ticks(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat
        .rsplit_once(')')
        .context("unknown form of /proc/PID/stat")?;
    let mut ticks = 0.0;
    for word in rest.split_ascii_whitespace().skip(11).take(2) {
        ticks += word.parse::<f64>()?;
    }
    Ok(ticks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_have_their_names() {
        let text = "7f00-7f01 rw-p 00000000 00:01 5   /memfd:template (deleted)\nSize: 4 kB\nPss:  12 kB\n\
            7f02-7f03 rwxp 00000000 00:00 0\nPss: 3 kB\nPss_Dirty: 9 kB\n";
        let found: Vec<(&str, bool, u64)> = mappings(text)
            .into_iter()
            .map(|(mapping, pss)| (mapping.name, mapping.executable, pss))
            .collect();
        assert_eq!(found, [("/memfd:template", false, 12), ("", true, 3)]);
        let mut memory = Memory::default();
        memory.add(std::process::id()).unwrap();
        assert!(memory.total() > 0 && memory.files > 0);
    }
}
