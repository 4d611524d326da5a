//! The root directory of a machine's process: which files of the host it holds, and at which places.
//!
//! It holds what QEMU is made of and nothing else: the program, its loader and shared libraries, the firmware of the
//! `microvm` machine, three devices at most, and a `/proc` that shows QEMU to itself. Everything of the pod comes as
//! descriptors, which QEMU opens again below `/proc/self/fd`.
//!
//! Traps:
//! * The libraries are what the loader itself lists. They change with upgrades of the distribution while this process
//!   runs, so each start looks whether they are still the files that were listed.
//! * A library may lie where only the loader's cache tells (`/etc/ld.so.cache`, which is not in the root). All of them
//!   are put into the directory of the C library, where every loader looks.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CString,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    limits::{MAX_LIBRARY_LIST_BYTES, PROGRAM_DEADLINE},
    programs::output,
};

/// The loader, at the place that the ABI of x86-64 gives it.
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";
const C_LIBRARY: &str = "libc.so.6";
/// Where distributions keep the parts of QEMU that it loads when it needs them, below what its own `bin` is in. Debian's
/// first.
const MODULE_DIRS: [&str; 3] = ["lib/x86_64-linux-gnu/qemu", "lib64/qemu", "lib/qemu"];
/// The only such part that a machine needs.
const EMULATION_MODULE: &str = "accel-tcg-x86_64.so";
const FIRMWARE_DIR: &str = "share/qemu";
/// The firmware of a `microvm` machine; what starts an ELF kernel; what starts a bzImage.
const FIRMWARE: [&str; 3] = ["bios-microvm.bin", "pvh.bin", "linuxboot_dma.bin"];
const DEVICES: [&str; 2] = ["/dev/null", "/dev/urandom"];
const KVM_DEVICE: &str = "/dev/kvm";

/// A file of the host and where it is in the root.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    /// Without symbolic links.
    source: PathBuf,
    place: PathBuf,
    stamp: Stamp,
}

/// Tells a file from the one that replaces it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// The files of QEMU on this host.
#[derive(Debug)]
pub(super) struct Root {
    qemu: PathBuf,
    listed: Mutex<Arc<Listed>>,
}

#[derive(Debug)]
struct Listed {
    entries: Vec<Entry>,
    emulated: Plan,
    accelerated: Plan,
}

/// What the process that is going to be QEMU has to make: all memory it needs for that, allocated.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// In an order in which each is made after the one that it is in. Relative to the root, as all places.
    pub(super) directories: Vec<CString>,
    /// Files and devices, as empty files that something is mounted over.
    pub(super) places: Vec<CString>,
    pub(super) files: Vec<Mount>,
    pub(super) devices: Vec<Mount>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) source: CString,
    pub(super) place: CString,
}

impl Root {
    /// Lists what is there. Blocks.
    pub(super) fn of(qemu: &Path) -> io::Result<Self> {
        // QEMU takes the place where it really is for its own.
        let qemu = qemu.canonicalize()?;
        let listed = Mutex::new(Arc::new(list(&qemu)?));
        Ok(Self { qemu, listed })
    }

    /// The program, in the root as on the host.
    pub(super) fn program(&self) -> &Path {
        &self.qemu
    }

    /// What is there now, for a machine with or without KVM. Blocks.
    pub(super) fn plan<T>(&self, kvm: bool, use_it: impl FnOnce(&Plan) -> T) -> io::Result<T> {
        let mut listed = Arc::clone(&self.listed.lock().unwrap_or_else(PoisonError::into_inner));
        if !listed.is_current() {
            tracing::info!("QEMU or a library of it has been replaced");
            listed = Arc::new(list(&self.qemu)?);
            *self.listed.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&listed);
        }
        Ok(use_it(if kvm {
            &listed.accelerated
        } else {
            &listed.emulated
        }))
    }
}

impl Listed {
    fn is_current(&self) -> bool {
        self.entries
            .iter()
            .all(|entry| Stamp::of(&entry.source).is_ok_and(|stamp| stamp == entry.stamp))
    }
}

fn list(qemu: &Path) -> io::Result<Listed> {
    // QEMU looks for its parts beside the directory that it is in itself, whatever that is, so all but the libraries
    // stay at their places.
    let prefix = qemu.parent().and_then(Path::parent).unwrap_or(qemu);
    let emulation = MODULE_DIRS
        .iter()
        .map(|dir| prefix.join(dir).join(EMULATION_MODULE))
        .find(|path| path.is_file());
    let mut places: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    let firmware = FIRMWARE.map(|name| prefix.join(FIRMWARE_DIR).join(name));
    let stay = [qemu.to_owned(), PathBuf::from(LOADER)]
        .into_iter()
        .chain(firmware.into_iter().filter(|path| path.is_file()))
        .chain(emulation.clone());
    places.extend(stay.map(|path| (path.clone(), path)));
    let mut libraries = BTreeMap::new();
    for program in [Some(qemu), emulation.as_deref()].into_iter().flatten() {
        let listing = output(
            Path::new(LOADER),
            &["--list".as_ref(), program.as_os_str()],
            PROGRAM_DEADLINE,
            MAX_LIBRARY_LIST_BYTES,
        )?;
        libraries.extend(parse_libraries(&listing)?);
    }
    let missing = || io::Error::other(format!("{} uses no {C_LIBRARY}", qemu.display()));
    let library_dir = libraries
        .get(C_LIBRARY)
        .and_then(|path| path.parent())
        .ok_or_else(missing)?
        .to_owned();
    places.extend(
        libraries
            .into_iter()
            .map(|(name, path)| (library_dir.join(name), path)),
    );

    let entries = places
        .into_iter()
        .map(|(place, path)| {
            let source = path.canonicalize()?;
            let stamp = Stamp::of(&source)?;
            Ok(Entry {
                source,
                place,
                stamp,
            })
        })
        .collect::<io::Result<Vec<_>>>()?;
    let emulated = plan(&entries, &DEVICES)?;
    let without_emulation: Vec<Entry> = entries
        .iter()
        .filter(|entry| Some(&entry.place) != emulation.as_ref())
        .cloned()
        .collect();
    let [null, random] = DEVICES;
    let accelerated = plan(&without_emulation, &[null, random, KVM_DEVICE])?;
    Ok(Listed {
        entries,
        emulated,
        accelerated,
    })
}

fn plan(entries: &[Entry], devices: &[&str]) -> io::Result<Plan> {
    let mut directories = BTreeSet::from([PathBuf::from("proc")]);
    let mut places = Vec::new();
    let mut mount = |source: &Path, place: &Path| -> io::Result<Mount> {
        let relative = place.strip_prefix("/").map_err(io::Error::other)?;
        let parents = relative.ancestors().skip(1);
        directories.extend(
            parents
                .filter(|dir| !dir.as_os_str().is_empty())
                .map(Path::to_owned),
        );
        places.push(c_path(relative)?);
        Ok(Mount {
            source: c_path(source)?,
            place: c_path(relative)?,
        })
    };
    let files = entries
        .iter()
        .map(|entry| mount(&entry.source, &entry.place))
        .collect::<io::Result<_>>()?;
    let devices = devices
        .iter()
        .map(|device| mount(Path::new(device), Path::new(device)))
        .collect::<io::Result<_>>()?;
    Ok(Plan {
        // Sorted: a directory comes before what is in it.
        directories: directories
            .iter()
            .map(|dir| c_path(dir))
            .collect::<io::Result<_>>()?,
        places,
        files,
        devices,
    })
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Names and paths of shared libraries, as `ld.so --list` has them:
///
/// ```text
///         linux-vdso.so.1 (0x00007f53ef4ca000)
///         libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f53ef2cd000)
///         /lib64/ld-linux-x86-64.so.2 (0x00007f53ef4cc000)
/// ```
fn parse_libraries(listing: &str) -> io::Result<BTreeMap<String, PathBuf>> {
    let mut libraries = BTreeMap::new();
    for line in listing.lines() {
        let Some((name, path)) = line.trim().split_once(" => ") else {
            // The kernel's part, and the loader itself.
            continue;
        };
        let path = path
            .rsplit_once(" (0x")
            .map(|(path, _)| Path::new(path))
            .filter(|path| path.is_absolute() && !name.contains('/'))
            .ok_or_else(|| io::Error::other(format!("the library {name} is {path}")))?;
        libraries.insert(name.to_owned(), path.to_owned());
    }
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_the_loaders_list() {
        let listing = "\tlinux-vdso.so.1 (0x00007f53ef4ca000)\n\
            \tlibz.so.1 => /opt/odd place/libz.so.1 (0x00007f53ef2cd000)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f53ef2cd000)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f53ef4cc000)\n";
        let libraries = parse_libraries(listing).unwrap();
        assert_eq!(libraries.len(), 2);
        assert_eq!(
            libraries["libz.so.1"],
            Path::new("/opt/odd place/libz.so.1")
        );
        let error = parse_libraries("\tlibodd.so.3 => not found\n").unwrap_err();
        assert_eq!(error.to_string(), "the library libodd.so.3 is not found");
    }

    #[test]
    fn a_plan_makes_each_directory_after_its_parent_and_each_place_once() {
        let stamp = Stamp::of(Path::new("/")).unwrap();
        let entry = |source: &str, place: &str| Entry {
            source: source.into(),
            place: place.into(),
            stamp: stamp.clone(),
        };
        let entries = [
            entry("/opt/libz.so.1.2", "/lib/x86_64-linux-gnu/libz.so.1"),
            entry("/usr/bin/qemu", "/usr/bin/qemu"),
        ];
        let plan = plan(&entries, &["/dev/null"]).unwrap();
        let text = |paths: &[CString]| -> Vec<String> {
            paths
                .iter()
                .map(|path| path.to_str().unwrap().to_owned())
                .collect()
        };
        assert_eq!(
            text(&plan.directories),
            [
                "dev",
                "lib",
                "lib/x86_64-linux-gnu",
                "proc",
                "usr",
                "usr/bin"
            ]
        );
        assert_eq!(
            text(&plan.places),
            ["lib/x86_64-linux-gnu/libz.so.1", "usr/bin/qemu", "dev/null"]
        );
        assert_eq!(plan.files[0].source.to_str(), Ok("/opt/libz.so.1.2"));
        assert_eq!((plan.files.len(), plan.devices.len()), (2, 1));
    }

    #[test]
    fn a_program_that_is_replaced_is_listed_again() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        };
        // A program of the distribution that uses the C library, as QEMU does, in a directory as an operator's own
        // QEMU is, under another name.
        let program = at("opt/bin/qemu-system-x86_64");
        fs::copy("/usr/bin/env", &program).unwrap();
        fs::write(at("opt/share/qemu/pvh.bin"), "firmware").unwrap();
        let name = at("bin/qemu");
        std::os::unix::fs::symlink(&program, &name).unwrap();
        let root = Root::of(&name).unwrap();
        assert_eq!(root.program(), program);
        let places = |plan: &Plan| plan.places.clone();
        let first = root.plan(false, places).unwrap();
        let before = Arc::as_ptr(&root.listed.lock().unwrap());
        for part in [program.clone(), at("opt/share/qemu/pvh.bin"), LOADER.into()] {
            let place = c_path(part.strip_prefix("/").unwrap()).unwrap();
            assert!(
                first.contains(&place),
                "{} is not in {first:?}",
                part.display()
            );
        }
        root.plan(true, |plan| {
            let kvm = plan.devices.last().map(|device| device.source.to_str());
            assert_eq!(kvm, Some(Ok("/dev/kvm")));
        })
        .unwrap();
        assert_eq!(before, Arc::as_ptr(&root.listed.lock().unwrap()));
        let new = at("new");
        fs::copy("/usr/bin/sort", &new).unwrap();
        fs::rename(&new, &program).unwrap();
        root.plan(false, |_| ()).unwrap();
        assert_ne!(before, Arc::as_ptr(&root.listed.lock().unwrap()));
    }
}
