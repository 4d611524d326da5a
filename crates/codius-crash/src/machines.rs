//! The machines of a host, as the process table shows them, and how long each has lived.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

/// Length of a clock tick of `/proc/PID/stat` (`sysconf(_SC_CLK_TCK)` is 100 on Linux).
pub const TICK_MS: u64 = 10;

/// Which process, for as long as the machine is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId {
    pub pid: i32,
    /// In ticks since the boot.
    pub start_ticks: u64,
}

/// A QEMU process of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    pub process: ProcessId,
    pub slot: u16,
    /// As `proc_pid_stat(5)` has it: `R`, `S`, `T` if it is stopped.
    pub state: char,
}

/// What the host has noted of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodNote {
    pub hash: String,
    pub slot: u16,
    pub process: Option<ProcessId>,
}

/// All machines whose name begins with `prefix`.
pub fn machines(prefix: &str) -> Vec<Machine> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(command) = fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let Some(slot) = slot_of(&command, prefix) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let Some((state, start_ticks)) = state_and_start(&stat) else {
            continue;
        };
        // A zombie holds nothing any more.
        if state == 'Z' || state == 'X' {
            continue;
        }
        found.push(Machine {
            process: ProcessId { pid, start_ticks },
            slot,
            state,
        });
    }
    found
}

fn slot_of(command_line: &[u8], prefix: &str) -> Option<u16> {
    let mut words = command_line.split(|&byte| byte == 0);
    let program = std::str::from_utf8(words.next()?).ok()?;
    if !program.contains("qemu-system") {
        return None;
    }
    let name = words.skip_while(|word| *word != b"-name").nth(1)?;
    std::str::from_utf8(name)
        .ok()?
        .strip_prefix(prefix)?
        .parse()
        .ok()
}

/// The name in parentheses may hold anything.
fn state_and_start(stat: &str) -> Option<(char, u64)> {
    let (_, after) = stat.rsplit_once(')')?;
    let mut fields = after.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let start = fields.nth(18)?.parse().ok()?;
    Some((state, start))
}

/// What is noted below the pods' directory.
pub fn notes(pods_dir: &Path) -> Vec<PodNote> {
    let files = fs::read_dir(pods_dir.join("records"));
    let paths = files.into_iter().flatten().flatten();
    paths.filter_map(|file| note(&file.path())).collect()
}

fn note(path: &PathBuf) -> Option<PodNote> {
    if path.extension()? != "json" {
        return None;
    }
    let note: Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let process = || {
        let process = note.get("process")?;
        Some(ProcessId {
            pid: i32::try_from(process.get("pid")?.as_i64()?).ok()?,
            start_ticks: process.get("start_time")?.as_u64()?,
        })
    };
    Some(PodNote {
        hash: note["hash"].as_str()?.to_owned(),
        slot: u16::try_from(note["slot"].as_u64()?).ok()?,
        process: process(),
    })
}

/// How long the machines of each program have lived, as somebody saw who looked often.
///
/// A host that is stopped (SIGSTOP) cannot see that a machine ends; it charges for it until it goes on.
/// So a machine that ends meanwhile counts as alive until then.
#[derive(Debug, Default)]
pub struct Lives {
    /// Whether the host is stopped.
    pub host_stopped: bool,
    machines: BTreeMap<ProcessId, Life>,
}

#[derive(Debug)]
struct Life {
    hash: Option<String>,
    /// Until when it was alive at most; none while it is.
    gone_ms: Option<u64>,
    /// When it was last seen held still, if it was when it was last seen.
    still_at_ms: Option<u64>,
    /// For how long it was surely held still: from one look that found it so to the next.
    still_ms: u64,
}

impl Lives {
    /// Takes in what there is at a moment (milliseconds since the boot).
    pub fn see(&mut self, now_ms: u64, machines: &[Machine], notes: &[PodNote]) {
        for machine in machines {
            let life = self.machines.entry(machine.process).or_insert(Life {
                hash: None,
                gone_ms: None,
                still_at_ms: None,
                still_ms: 0,
            });
            let is_still = machine.state == 'T';
            if is_still && let Some(since) = life.still_at_ms {
                life.still_ms += now_ms.saturating_sub(since);
            }
            life.still_at_ms = is_still.then_some(now_ms);
            if life.hash.is_none() {
                let noted = notes
                    .iter()
                    .find(|note| note.process == Some(machine.process));
                life.hash = noted.map(|note| note.hash.clone());
            }
        }
        for (process, life) in &mut self.machines {
            let there = machines.iter().any(|machine| machine.process == *process);
            if !there && life.gone_ms.is_none() && !self.host_stopped {
                life.gone_ms = Some(now_ms);
            }
        }
    }

    /// The most that all machines of a program can have run until now, in milliseconds.
    pub fn most_ms(&self, hash: &str, now_ms: u64) -> u64 {
        let of_hash = self
            .machines
            .iter()
            .filter(|(_, life)| life.hash.as_deref() == Some(hash));
        of_hash
            .map(|(process, life)| {
                let end = life.gone_ms.unwrap_or(now_ms);
                let lived = end.saturating_sub(process.start_ticks * TICK_MS);
                lived.saturating_sub(life.still_ms)
            })
            .sum()
    }
}

/// Milliseconds since the boot, by the clock of the process table.
pub fn since_boot_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let millis = u64::try_from(now.tv_nsec / 1_000_000).unwrap_or(0);
    seconds * 1000 + millis
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(pid: i32, start_ticks: u64, slot: u16) -> Machine {
        Machine {
            process: ProcessId { pid, start_ticks },
            slot,
            state: 'S',
        }
    }

    #[test]
    fn a_machine_is_known_by_its_name() {
        let line = b"/usr/bin/qemu-system-x86_64\0-name\0cdab12-3\0-m\0";
        assert_eq!(slot_of(line, "cdab12-"), Some(3));
        assert_eq!(slot_of(line, "cdab13-"), None);
        assert_eq!(slot_of(b"/usr/bin/vim\0-name\0cdab12-3\0", "cdab12-"), None);
        let stat = "7 (a) b (c) T 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1 1";
        assert_eq!(state_and_start(stat), Some(('T', 4242)));
    }

    #[test]
    fn a_machine_that_is_held_still_does_not_run() {
        let mut lives = Lives::default();
        let note = PodNote {
            hash: "h".into(),
            slot: 0,
            process: Some(machine(7, 100, 0).process),
        };
        for (now_ms, state) in [
            (2_000, 'S'),
            (3_000, 'T'),
            (4_000, 'T'),
            (4_500, 'T'),
            (5_000, 'R'),
        ] {
            let mut machine = machine(7, 100, 0);
            machine.state = state;
            lives.see(now_ms, &[machine], std::slice::from_ref(&note));
        }
        // Born at 1000, and surely still from 3000 to 4500.
        assert_eq!(lives.most_ms("h", 6_000), 5_000 - 1_500);
    }

    #[test]
    fn lives_of_one_program_are_added_up() {
        let mut lives = Lives::default();
        let (first, second) = (machine(7, 100, 0), machine(8, 400, 1));
        let note = |machine: &Machine| PodNote {
            hash: "h".into(),
            slot: machine.slot,
            process: Some(machine.process),
        };
        lives.see(1_100, std::slice::from_ref(&first), &[]);
        // Its process is noted a moment later.
        lives.see(1_200, std::slice::from_ref(&first), &[note(&first)]);
        lives.see(3_000, &[], &[]);
        assert_eq!(lives.most_ms("h", 9_000), 2_000);
        lives.see(5_000, std::slice::from_ref(&second), &[note(&second)]);
        assert_eq!(lives.most_ms("h", 6_000), 2_000 + 2_000);
        assert_eq!(lives.most_ms("other", 6_000), 0);
        // The same id again is another machine.
        // One that ends while the host is stopped may be charged until it goes on.
        lives.host_stopped = true;
        lives.see(6_000, &[], &[]);
        lives.host_stopped = false;
        lives.see(6_500, &[], &[]);
        assert_eq!(lives.most_ms("h", 6_800), 2_000 + 2_500);
        lives.see(7_000, &[machine(7, 650, 0)], &[note(&machine(7, 650, 0))]);
        assert_eq!(lives.most_ms("h", 7_500), 2_000 + 2_500 + 1_000);
    }
}
