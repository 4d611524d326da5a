//! What holds the process of a machine, read from outside of it: `/proc` and the control groups. Everything is compared
//! with what is written here, so that whatever changes about the wall changes a line of this file.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    process::Command,
};

use codius_microvm::MicrovmConfig;

/// What a machine began with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Booted,
    Cloned,
}

/// `/proc/PID/status`, for all threads. SLOT is the user of the pod's slot.
const STATUS: &[(&str, &str)] = &[
    ("Uid", "SLOT SLOT SLOT SLOT"),
    ("Gid", "SLOT SLOT SLOT SLOT"),
    ("Groups", ""),
    ("CapInh", "0000000000000000"),
    ("CapPrm", "0000000000000000"),
    ("CapEff", "0000000000000000"),
    ("CapBnd", "0000000000000000"),
    ("CapAmb", "0000000000000000"),
    ("NoNewPrivs", "1"),
    ("Seccomp", "2"),
];
/// System call filters: QEMU's own, and in a clone the one that keeps it from making holes in the template.
const FILTERS: [(Origin, &str); 2] = [(Origin::Booted, "1"), (Origin::Cloned, "2")];
/// Namespaces of `/proc/PID/ns`; of users there is one, because no capability is left to have in another.
const OWN_NAMESPACES: &[&str] = &["cgroup", "ipc", "mnt", "net", "pid", "uts"];
const SHARED_NAMESPACES: &[&str] = &["time", "user"];
/// Mounts that are no files of QEMU: place, file system, options.
const MOUNTS: &[(&str, &str, &str)] = &[
    ("/", "tmpfs", "ro,nosuid,nodev,noexec"),
    ("/proc", "proc", "ro,nosuid,nodev,noexec"),
];
const DEVICES: &[&str] = &["/dev/null", "/dev/urandom"];
/// Beside the libraries, which `ldd` names.
const FILES: &[&str] = &[
    "/lib64/ld-linux-x86-64.so.2",
    "/usr/bin/qemu-system-x86_64",
    "/usr/lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so",
    "/usr/share/qemu/bios-microvm.bin",
    "/usr/share/qemu/linuxboot_dma.bin",
    "/usr/share/qemu/pvh.bin",
];
/// What `/proc` shows of it: itself.
const PROC: &[&str] = &["1", "self", "thread-self"];
/// `/proc/PID/limits`, soft and hard.
const LIMITS: &[(&str, &str)] = &[
    ("Max core file size", "0"),
    ("Max open files", "256"),
    // The larger of memory (128 MiB and 64 of the kernel's) and scratch disk (64 MiB).
    ("Max file size", "201326592"),
];
/// Open descriptors: what they are of, and whether they can be written to. Of a disk that can be written to QEMU wants
/// both. The template's memory is open for writing and sealed against it (`tests/templates.rs`).
const DESCRIPTORS: &[(&str, bool)] = &[
    ("/dev/net/tun", true),
    ("/dev/null", false),
    ("anon_inode:[eventfd]", true),
    ("anon_inode:[signalfd]", true),
    ("busybox.squashfs", false),
    ("console.log", true),
    ("scratch.img", false),
    ("scratch.img", true),
    // The agent's and the monitor's listener, and the connection to the agent.
    ("socket:", true),
];
const DESCRIPTORS_OF_ITS_ORIGIN: &[(Origin, &str, bool)] = &[
    (Origin::Booted, "initramfs.cpio", false),
    (Origin::Booted, "memfd:memory-backend-memfd", true),
    (Origin::Booted, "vmlinux", false),
    (Origin::Cloned, "memfd:template", true),
];

/// Control groups: file in version 1, in version 2, what is in it. Memory: 192 MiB of the machine, 1 for page
/// tables, 384 for QEMU, 8 for its processor.
const GROUPS: &[(&str, &str, &str)] = &[
    ("memory/memory.limit_in_bytes", "memory.max", "613416960"),
    ("memory/memory.swappiness", "memory.swap.max", "0"),
    ("cpu/cpu.cfs_quota_us", "", "125000"),
    ("cpu/cpu.cfs_period_us", "", "100000"),
    ("cpu/cpu.shares", "", "1280"),
    ("", "cpu.max", "125000 100000"),
    ("", "cpu.weight", "125"),
    ("pids/pids.max", "pids.max", "97"),
    ("blkio/blkio.throttle.read_bps_device", "", "DISK 268435456"),
    (
        "blkio/blkio.throttle.write_bps_device",
        "",
        "DISK 268435456",
    ),
    ("blkio/blkio.throttle.read_iops_device", "", "DISK 10000"),
    ("blkio/blkio.throttle.write_iops_device", "", "DISK 10000"),
    (
        "",
        "io.max",
        "DISK rbps=268435456 wbps=268435456 riops=10000 wiops=10000",
    ),
];

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The machine with this process id is locked in, in every respect.
pub fn assert_locked_in(machine: i32, origin: Origin) {
    let cmdline = read(&format!("/proc/{machine}/cmdline"));
    let name = cmdline.split('\0').nth(2).expect("a name").to_owned();
    let slot: u32 = name
        .split('-')
        .nth(1)
        .expect("a slot")
        .parse()
        .expect("a number");
    let user = (MicrovmConfig::DEFAULT_UID_BASE + slot).to_string();

    for thread in fs::read_dir(format!("/proc/{machine}/task")).expect("threads") {
        let thread = thread.expect("a thread").path();
        // It may have ended.
        let Ok(status) = fs::read_to_string(thread.join("status")) else {
            continue;
        };
        let filters = FILTERS
            .iter()
            .find(|(of, _)| *of == origin)
            .expect("it is listed");
        let expected = STATUS
            .iter()
            .copied()
            .chain([("Seccomp_filters", filters.1)]);
        for (field, value) in expected {
            let value = value.replace("SLOT", &user);
            assert_eq!(
                words(&status, field),
                value,
                "{field} of {}",
                thread.display()
            );
        }
    }
    let status = read(&format!("/proc/{machine}/status"));
    assert_eq!(words(&status, "NSpid"), format!("{machine} 1"));
    namespaces(machine, &name);
    files(machine);
    descriptors(machine, origin);

    let limits = read(&format!("/proc/{machine}/limits"));
    for (limit, value) in LIMITS {
        let line = limits.lines().find(|line| line.starts_with(limit));
        let found: Vec<&str> = line.expect(limit)[limit.len()..]
            .split_whitespace()
            .take(2)
            .collect();
        assert_eq!(found, [*value, *value], "{limit}");
    }
    assert_eq!(read(&format!("/proc/{machine}/environ")), "");
    assert_eq!(
        read(&format!("/proc/{machine}/oom_score_adj")).trim(),
        "500"
    );
    let stat = read(&format!("/proc/{machine}/stat"));
    let fields = stat.rsplit_once(')').expect("a name").1;
    let session = fields.split_whitespace().nth(3).expect("a session");
    assert_eq!(session, machine.to_string(), "it has a session of its own");
    control_groups(machine, &name);
}

/// A field's words with one blank between them.
fn words(status: &str, field: &str) -> String {
    let prefix = format!("{field}:");
    let line = status.lines().find_map(|line| line.strip_prefix(&prefix));
    let line = line.unwrap_or_else(|| panic!("no {field} in {status}"));
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn namespaces(machine: i32, name: &str) {
    let link = |of: &str, kind: &str| {
        fs::read_link(format!("/proc/{of}/ns/{kind}"))
            .unwrap_or_else(|error| panic!("{kind}: {error}"))
    };
    let machine = machine.to_string();
    for kind in OWN_NAMESPACES {
        assert_ne!(link(&machine, kind), link("self", kind), "{kind}");
    }
    for kind in SHARED_NAMESPACES {
        assert_eq!(link(&machine, kind), link("self", kind), "{kind}");
    }
    let known: BTreeSet<String> = fs::read_dir(format!("/proc/{machine}/ns"))
        .expect("namespaces")
        .map(|entry| {
            entry
                .expect("one")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .filter(|kind| !kind.ends_with("_for_children"))
        .collect();
    let listed: BTreeSet<String> = OWN_NAMESPACES
        .iter()
        .chain(SHARED_NAMESPACES)
        .map(|kind| (*kind).to_owned())
        .collect();
    assert_eq!(
        known, listed,
        "a kind of namespace that nobody has thought of"
    );
    let network = fs::metadata(format!("/run/netns/{name}")).expect("the pod's network");
    let own = fs::metadata(format!("/proc/{machine}/ns/net")).expect("its network");
    assert_eq!(network.ino(), own.ino(), "it is in the network of its pod");
    // The host's name is not told.
    let host_name = Command::new("nsenter")
        .args(["--target", &machine, "--uts", "hostname"])
        .output()
        .expect("nsenter runs");
    assert_eq!(String::from_utf8_lossy(&host_name.stdout), "pod\n");
}

/// What is mounted, and that nothing is there beside it.
fn files(machine: i32) {
    let listing = Command::new("ldd")
        .arg("/usr/bin/qemu-system-x86_64")
        .output()
        .expect("ldd runs");
    let listing = String::from_utf8(listing.stdout).expect("text");
    let libraries = listing.lines().filter_map(|line| {
        let (_, path) = line.split_once(" => ")?;
        path.split_whitespace().next()
    });
    let mut expected: BTreeMap<String, (Option<&str>, &str)> = BTreeMap::new();
    for file in FILES.iter().copied().chain(libraries) {
        expected.insert(file.to_owned(), (None, "ro,nosuid,nodev"));
    }
    for device in DEVICES {
        expected.insert((*device).to_owned(), (None, "ro,nosuid,noexec"));
    }
    for (place, kind, options) in MOUNTS {
        expected.insert((*place).to_owned(), (Some(kind), options));
    }
    let mountinfo = read(&format!("/proc/{machine}/mountinfo"));
    let mut found = BTreeMap::new();
    for line in mountinfo.lines() {
        let (before, after) = line.split_once(" - ").expect("a mount");
        let fields: Vec<&str> = before.split(' ').collect();
        let options: Vec<&str> = fields[5]
            .split(',')
            .filter(|option| !option.contains("atime"))
            .collect();
        // Nothing that is mounted by the host later appears in it.
        assert_eq!(fields.len(), 6, "{line} is shared with somebody");
        let kind = after.split(' ').next().expect("a kind");
        let place = fields[4].to_owned();
        let kind = expected
            .get(&place)
            .and_then(|(known, _)| known.map(|_| kind));
        assert!(
            found.insert(place, (kind, options.join(","))).is_none(),
            "two mounts: {line}"
        );
    }
    let expected: BTreeMap<String, (Option<&str>, String)> = expected
        .into_iter()
        .map(|(place, (kind, options))| (place, (kind, options.to_owned())))
        .collect();
    assert_eq!(found, expected);

    let root = PathBuf::from(format!("/proc/{machine}/root"));
    let mut seen = BTreeSet::new();
    walk(&root, Path::new("/"), &mut seen);
    let mounts: BTreeSet<String> = expected
        .into_keys()
        .filter(|place| place != "/" && place != "/proc")
        .collect();
    assert_eq!(seen, mounts, "files that are no mounts");
    let proc: BTreeSet<String> = names(&root.join("proc")).collect();
    assert_eq!(proc, PROC.iter().map(|name| (*name).to_owned()).collect());
    let cwd = fs::read_link(format!("/proc/{machine}/cwd")).expect("a directory");
    assert_eq!(cwd, Path::new("/"));
}

fn names(dir: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    entries.map(|entry| {
        entry
            .expect("an entry")
            .file_name()
            .to_string_lossy()
            .into_owned()
    })
}

/// All that is no directory, but what is in `/proc`.
fn walk(root: &Path, dir: &Path, seen: &mut BTreeSet<String>) {
    let at = root.join(dir.strip_prefix("/").expect("it is absolute"));
    let metadata = fs::metadata(&at).expect("a directory");
    assert_eq!(
        (metadata.uid(), metadata.mode() & 0o7777),
        (0, 0o755),
        "{}",
        dir.display()
    );
    for name in names(&at) {
        let path = dir.join(&name);
        if path == Path::new("/proc") {
            continue;
        }
        if fs::symlink_metadata(at.join(&name))
            .expect("an entry")
            .is_dir()
        {
            walk(root, &path, seen);
        } else {
            seen.insert(path.display().to_string());
        }
    }
}

/// What is open is of the pod, and of nothing else.
fn descriptors(machine: i32, origin: Origin) {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{machine}/fd")).expect("descriptors") {
        let path = entry.expect("a descriptor").path();
        // It may be closed meanwhile.
        let Ok(of) = fs::read_link(&path) else {
            continue;
        };
        let of = of.display().to_string();
        let number = path
            .file_name()
            .expect("a number")
            .to_string_lossy()
            .into_owned();
        let info = read(&format!("/proc/{machine}/fdinfo/{number}"));
        let flags = u32::from_str_radix(&words(&info, "flags"), 8).expect("flags");
        let is_device =
            fs::metadata(&path).is_ok_and(|metadata| metadata.file_type().is_char_device());
        let kind = match of.split_once(':') {
            Some(("socket", _)) => "socket:".to_owned(),
            _ if is_device || of.starts_with("anon_inode:") => of,
            _ => {
                let file = of.trim_end_matches(" (deleted)");
                file.rsplit('/').next().unwrap_or_default().to_owned()
            }
        };
        found.insert((kind, flags & 3 != 0));
    }
    let of_its_origin = DESCRIPTORS_OF_ITS_ORIGIN
        .iter()
        .filter(|(of, ..)| *of == origin)
        .map(|(_, kind, writable)| (*kind, *writable));
    let expected: BTreeSet<(String, bool)> = DESCRIPTORS
        .iter()
        .copied()
        .chain(of_its_origin)
        .map(|(kind, writable)| (kind.to_owned(), writable))
        .collect();
    assert_eq!(found, expected, "{origin:?}");
}

/// It is in groups of its own, with the limits of what is sold.
fn control_groups(machine: i32, name: &str) {
    let memberships = read(&format!("/proc/{machine}/cgroup"));
    let mut checked = BTreeSet::new();
    for line in memberships.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, group) = (
            fields.next().expect("names"),
            fields.next().expect("a path"),
        );
        let version_two = controllers.is_empty();
        let mount = if version_two {
            ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
                .into_iter()
                .find(|mount| Path::new(mount).join("cgroup.controllers").exists())
                .map(PathBuf::from)
        } else {
            Some(Path::new("/sys/fs/cgroup").join(controllers))
        };
        let Some(dir) = mount.map(|mount| mount.join(group.trim_start_matches('/'))) else {
            continue;
        };
        for (one, two, value) in GROUPS {
            let file = if version_two {
                two
            } else {
                match one.split_once('/') {
                    Some((controller, file))
                        if controllers.split(',').any(|known| known == controller) =>
                    {
                        file
                    }
                    _ => continue,
                }
            };
            if file.is_empty() || (version_two && !dir.join(file).exists()) {
                continue;
            }
            let text = read(&dir.join(file).display().to_string());
            // The number of the disk is this machine's.
            let text = text.trim();
            let found = match value.strip_prefix("DISK ") {
                Some(_) => format!(
                    "DISK {}",
                    text.split_once(' ').map_or(text, |(_, rest)| rest)
                ),
                None => text.to_owned(),
            };
            assert_eq!(found, *value, "{}", dir.join(file).display());
            assert_eq!(group.rsplit('/').next(), Some(name), "{line}");
            assert!(
                read(&dir.join("cgroup.procs").display().to_string()).trim() == machine.to_string()
            );
            checked.insert(file.split('.').next().expect("a controller").to_owned());
        }
    }
    let disk = if checked.contains("blkio") {
        "blkio"
    } else {
        "io"
    };
    let all = ["memory", "cpu", "pids", disk].map(str::to_owned);
    assert_eq!(
        checked,
        BTreeSet::from(all),
        "not every limit could be looked at: {memberships}"
    );
}
