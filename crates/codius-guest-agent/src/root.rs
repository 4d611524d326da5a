//! The file system that a container sees. Everything here runs in the container's own process, in its
//! own mount namespace, before its program starts.
//!
//! ```text
//! /                overlay: image (read-only), a directory of the scratch disk above it
//! /proc /sys       its own processes; read-only settings; what could harm the machine is covered
//! /sys/fs/cgroup   its own control group, read-only
//! /dev             a tmpfs with the harmless devices; /dev/shm and /dev/mqueue of its own;
//!                  /dev/codius read-only: what the pod is told of its lease
//! /pod             the volume that all containers of the pod share, and all that they share but
//!                  the network
//! ```
//! Set-user-ID bits and capabilities of files have no effect anywhere in it.
//!
//! Trap: an image is hostile, and its `/proc` may be a symbolic link to anywhere. So the process first
//! moves into the image's root, from where no path leads out, and only then mounts the rest; what it
//! needs from outside it holds as detached mounts. Device nodes work only in `/dev`, and the capability
//! to make them is dropped.

use std::{
    ffi::CStr,
    fs::{self, Permissions},
    io::ErrorKind,
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    },
    path::Path,
};

use codius_guest_protocol::POD_VOLUME;
use rustix::{
    fs::{CWD, FileType, Mode, makedev, mknodat},
    mount::{
        MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount,
        mount_bind, mount_change, mount_remount, move_mount, open_tree, unmount,
    },
    process::{chdir, pivot_root},
};

use crate::{
    disks::{SCRATCH, volume},
    notice::{NOTICES, SEEN_AT},
};

/// Where the new root is put together; in every mount namespace another one.
const NEW_ROOT: &str = "/run/root";
/// Device nodes of every container: name, major and minor number.
const DEVICES: &[(&str, u32, u32)] = &[
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
/// As much as with Docker.
const SHARED_MEMORY: &CStr = c"mode=1777,size=64m";
const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
];
/// Covered, as Docker does, and some more that only root of the machine has a use for: they tell about or
/// change the whole machine.
const HIDDEN_FILES: &[&str] = &[
    "/proc/interrupts",
    "/proc/iomem",
    "/proc/ioports",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/kpagecgroup",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/latency_stats",
    "/proc/mtrr",
    "/proc/sched_debug",
    "/proc/slabinfo",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/vmallocinfo",
];
const HIDDEN_DIRECTORIES: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/scsi",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/kernel/debug",
    "/sys/kernel/security",
    "/sys/kernel/tracing",
];
/// Readable, not writable, even for root.
const READ_ONLY: &[&str] = &[
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Files that the pod gives to every container instead of those of the image.
#[derive(Debug, Clone)]
pub(crate) struct EtcFiles {
    pub(crate) hostname: String,
    pub(crate) hosts: String,
    pub(crate) resolv_conf: String,
}

/// Puts the root together and moves the process into it. `image` is a mounted image, `name` the
/// container's directory on the scratch disk. The error is for the uploader.
pub(crate) fn enter(image: &str, name: &str, etc: &EtcFiles) -> Result<(), String> {
    let said = |what: &'static str| move |error: rustix::io::Errno| format!("{what}: {error}");
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(said("mounts cannot be made private"))?;
    let volume = detached(&volume()).map_err(said("the shared volume"))?;
    let notices = detached(NOTICES).map_err(said("what the pod is told"))?;

    mount_overlay(image, &format!("{SCRATCH}/{name}"))?;
    chdir(NEW_ROOT).map_err(said("the new root"))?;
    // Both roots at one place, the old one on top; taking it off leaves no way back.
    pivot_root(".", ".").map_err(said("the root cannot be changed"))?;
    unmount(".", UnmountFlags::DETACH).map_err(said("the old root stays"))?;
    chdir("/").map_err(said("the new root"))?;

    mount_kernel_files()?;
    make_devices()?;
    directory(SEEN_AT)?;
    attach(&notices, SEEN_AT)?;
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_remount(SEEN_AT, MountFlags::BIND | MountFlags::RDONLY | plain, c"")
        .map_err(said("what the pod is told"))?;
    directory(POD_VOLUME)?;
    attach(&volume, POD_VOLUME)?;
    let harmless = MountFlags::NOSUID | MountFlags::NODEV;
    mount_remount(POD_VOLUME, MountFlags::BIND | harmless, c"")
        .map_err(said("the shared volume"))?;
    for (path, content) in [
        ("/etc/hostname", &format!("{}\n", etc.hostname)),
        ("/etc/hosts", &etc.hosts),
        ("/etc/resolv.conf", &etc.resolv_conf),
    ] {
        replace(path, content)?;
    }
    Ok(())
}

fn mount_overlay(image: &str, scratch: &str) -> Result<(), String> {
    let (upper, work) = (format!("{scratch}/upper"), format!("{scratch}/work"));
    // A program that is started again finds its files as it has left them; what the last overlay kept beside
    // them says that it was volatile, with which no second one is mounted.
    let again = fs::symlink_metadata(&upper).is_ok();
    let made = if again {
        fs::remove_dir_all(&work)
    } else {
        fs::create_dir(scratch).and_then(|()| fs::create_dir(&upper))
    };
    made.and_then(|()| fs::create_dir(&work))
        .and_then(|()| {
            if again {
                return Ok(());
            }
            // The merged root looks like the upper directory.
            let root = fs::metadata(image)?;
            chown(&upper, Some(root.uid()), Some(root.gid()))?;
            fs::set_permissions(&upper, Permissions::from_mode(root.mode() & 0o7777))
        })
        .map_err(|error| format!("no room on the scratch disk: {error}"))?;
    // The scratch disk does not outlive the VM, so nothing has to be forced out to it ("volatile").
    let options = format!("lowerdir={image},upperdir={upper},workdir={work},volatile\0");
    let options = CStr::from_bytes_with_nul(options.as_bytes())
        .map_err(|_| "the image's serial number has a NUL in it".to_owned())?;
    let harmless = MountFlags::NOSUID | MountFlags::NODEV;
    mount("overlay", NEW_ROOT, "overlay", harmless, options)
        .map_err(|error| format!("the container's root cannot be mounted: {error}"))
}

fn mount_kernel_files() -> Result<(), String> {
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_at("proc", "/proc", plain, c"")?;
    mount_at("sysfs", "/sys", plain | MountFlags::RDONLY, c"")?;
    mount_at("cgroup2", "/sys/fs/cgroup", plain | MountFlags::RDONLY, c"")?;
    for &path in READ_ONLY {
        let covered = mount_bind(path, path)
            .and_then(|()| mount_remount(path, MountFlags::BIND | MountFlags::RDONLY | plain, c""));
        unless_missing(path, covered)?;
    }
    for &path in HIDDEN_DIRECTORIES {
        unless_missing(
            path,
            mount(
                "tmpfs",
                path,
                "tmpfs",
                plain | MountFlags::RDONLY,
                c"size=0",
            ),
        )?;
    }
    Ok(())
}

fn make_devices() -> Result<(), String> {
    let safe = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount_at("tmpfs", "/dev", safe, c"mode=0755,size=64k")?;
    for (name, major, minor) in DEVICES {
        let path = format!("/dev/{name}");
        mknodat(
            CWD,
            &path,
            FileType::CharacterDevice,
            Mode::empty(),
            makedev(*major, *minor),
        )
        .map_err(|error| format!("{path}: {error}"))?;
        fs::set_permissions(&path, Permissions::from_mode(0o666))
            .map_err(|error| format!("{path}: {error}"))?;
    }
    for (target, link) in LINKS {
        symlink(target, link).map_err(|error| format!("{link}: {error}"))?;
    }
    mount_at(
        "devpts",
        "/dev/pts",
        safe,
        c"newinstance,ptmxmode=0666,mode=0620,gid=5",
    )?;
    mount_at("mqueue", "/dev/mqueue", safe | MountFlags::NODEV, c"")?;
    mount_at("tmpfs", "/dev/shm", safe | MountFlags::NODEV, SHARED_MEMORY)?;
    for &path in HIDDEN_FILES {
        unless_missing(path, mount_bind("/dev/null", path))?;
    }
    Ok(())
}

/// A copy of a mount that is not attached anywhere yet.
fn detached(path: &str) -> rustix::io::Result<OwnedFd> {
    open_tree(
        CWD,
        path,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )
}

fn attach(tree: &OwnedFd, path: &str) -> Result<(), String> {
    move_mount(tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|error| format!("{path} cannot be mounted: {error}"))
}

fn mount_at(kind: &str, path: &str, flags: MountFlags, options: &CStr) -> Result<(), String> {
    directory(path)?;
    mount(kind, path, kind, flags, options)
        .map_err(|error| format!("{path} cannot be mounted: {error}"))
}

/// Makes sure that a path is a directory and not a link to one.
fn directory(path: &str) -> Result<(), String> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(format!("the image's {path} is not a directory")),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            fs::create_dir(path).map_err(|error| format!("{path} cannot be made: {error}"))
        }
        Err(error) => Err(format!("{path}: {error}")),
    }
}

/// Replaces a file of the image, whatever it was (often it is a link).
fn replace(path: &str, content: &str) -> Result<(), String> {
    if let Some(parent) = Path::new(path).parent() {
        fs::create_dir_all(parent).map_err(|error| format!("{}: {error}", parent.display()))?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => fs::write(path, content),
    }
    .map_err(|error| format!("{path} cannot be written: {error}"))
}

/// Not every kernel has all of these.
fn unless_missing(path: &str, result: rustix::io::Result<()>) -> Result<(), String> {
    match result {
        Err(error) if error != rustix::io::Errno::NOENT => Err(format!("{path}: {error}")),
        _ => Ok(()),
    }
}
