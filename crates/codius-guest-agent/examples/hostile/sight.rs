//! What the program sees of its cell.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

/// Lines of `/proc/self/status` that say what the process may do.
const POWERS: &[&str] = &[
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
];
/// Files that tell about or change the whole machine.
const TELLTALES: &[&str] = &[
    "/proc/interrupts",
    "/proc/iomem",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/kpageflags",
    "/proc/slabinfo",
    "/proc/timer_list",
    "/proc/vmallocinfo",
];
/// The most that `hunt` looks at, so that a loop in a file system is no trap.
const MOST_FILES: usize = 200_000;

fn line(what: &str, value: &str) {
    println!("{what}: {value}");
}

/// Without counters and whatever else differs from run to run.
pub(crate) fn tell() {
    tell_who();
    line("open files", &names("/proc/self/fd").join(" "));
    line("processes", &processes().join(" "));
    line("devices", &names("/dev").join(" "));
    line("terminals", &names("/dev/pts").join(" "));
    line("told of the lease", &names("/dev/codius").join(" "));
    for mount in mounts() {
        line("mount", &mount);
    }
    for &path in TELLTALES {
        let seen = match fs::read(path) {
            Ok(bytes) if bytes.is_empty() => "empty".to_owned(),
            Ok(_) => "readable".to_owned(),
            Err(error) => format!("{:?}", error.kind()),
        };
        line(path, &seen);
    }
    for directory in ["/sys/firmware", "/sys/kernel/debug", "/sys/kernel/security"] {
        line(directory, &names(directory).join(" "));
    }
}

pub(crate) fn tell_who() {
    let user = rustix::process::geteuid().as_raw();
    let group = rustix::process::getegid().as_raw();
    line("user", &format!("{user}:{group}"));
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    for entry in status.lines() {
        if let Some((name, value)) = entry.split_once(':')
            && POWERS.contains(&name)
        {
            line(name, value.trim());
        }
    }
}

/// Says where the word was found; and how much was looked at, so that nobody takes a short look for a clean one.
pub(crate) fn hunt(word: &str) {
    let mut looked = 0;
    let mut todo = vec![PathBuf::from("/")];
    while let Some(directory) = todo.pop() {
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries.flatten() {
            looked += 1;
            if looked > MOST_FILES {
                break;
            }
            if entry.file_name().to_string_lossy().contains(word) {
                line("found", &entry.path().display().to_string());
            }
            // A directory of files of this very program leads round and round.
            let is_loop = directory.starts_with("/proc") && entry.file_name() == "task";
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !is_loop {
                todo.push(entry.path());
            }
        }
    }
    for process in processes() {
        for name in ["environ", "cmdline"] {
            let path = format!("/proc/{process}/{name}");
            let own = Path::new(&path).starts_with(format!("/proc/{}", std::process::id()));
            let text = fs::read(&path).unwrap_or_default();
            if !own && String::from_utf8_lossy(&text).contains(word) {
                line("found", &path);
            }
        }
    }
    line(
        "looked at",
        if looked > 500 {
            "many files"
        } else {
            "too few files"
        },
    );
}

fn names(directory: &str) -> Vec<String> {
    let found: io::Result<BTreeSet<String>> = fs::read_dir(directory).and_then(|entries| {
        entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    });
    match found {
        // Reading the directory of open files opens one.
        Ok(names) if directory == "/proc/self/fd" => names
            .into_iter()
            .filter(|name| fs::read_link(format!("{directory}/{name}")).is_ok())
            .collect(),
        Ok(names) => names.into_iter().collect(),
        Err(error) => vec![format!("{:?}", error.kind())],
    }
}

fn processes() -> Vec<String> {
    let all = names("/proc");
    all.into_iter()
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .collect()
}

/// Where, of which kind, and whether it is restricted.
fn mounts() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let each = table.lines().filter_map(|line| {
        let (own, rest) = line.split_once(" - ")?;
        let fields: Vec<&str> = own.split(' ').collect();
        let flags: Vec<&str> = fields
            .get(5)?
            .split(',')
            .filter(|flag| ["ro", "rw", "nosuid", "nodev", "noexec"].contains(flag))
            .collect();
        let kind = rest.split(' ').next()?;
        Some(format!("{} {kind} {}", fields.get(4)?, flags.join(",")))
    });
    each.collect()
}
