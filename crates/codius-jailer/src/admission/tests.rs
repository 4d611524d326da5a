//! Each request of a hostile host, and what is said to it.

use std::{
    fs::File,
    os::unix::net::{UnixDatagram, UnixListener, UnixStream},
    path::Path,
};

use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};

use super::*;

const ALLOWANCE: Allowance = Allowance {
    slots: 32,
    vcpus: 4,
    memory_mib: 1024,
    scratch_mib: 2048,
    disks: 8,
};

fn launch(origin: OriginKind) -> LaunchRequest {
    LaunchRequest {
        slot: 3,
        vcpus: 1,
        memory_mib: 512,
        scratch_mib: 1024,
        origin,
        disks: vec![DiskKind::Scratch, DiskKind::Image, DiskKind::Empty],
        yields: false,
    }
}

fn reading(path: &Path) -> OwnedFd {
    File::open(path).unwrap().into()
}

fn both(path: &Path) -> OwnedFd {
    let options = File::options().read(true).write(true).open(path);
    options.unwrap().into()
}

fn appending(path: &Path) -> OwnedFd {
    File::options().append(true).open(path).unwrap().into()
}

fn memory(seals: SealFlags) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = memfd_create("memory", flags).unwrap();
    ftruncate(&memory, 4096).unwrap();
    fcntl_add_seals(&memory, seals).unwrap();
    memory
}

const SEALED: SealFlags = SealFlags::WRITE
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// What such a machine needs.
fn descriptors(dir: &Path, origin: OriginKind) -> Vec<OwnedFd> {
    let path = |name: &str| {
        let path = dir.join(name);
        if !path.exists() {
            std::fs::write(&path, name).unwrap();
        }
        path
    };
    let socket = |name: &str| {
        let _ = std::fs::remove_file(dir.join(name));
        OwnedFd::from(UnixListener::bind(dir.join(name)).unwrap())
    };
    let mut all = vec![
        appending(&path("console")),
        socket("agent"),
        socket("monitor"),
    ];
    match origin {
        OriginKind::Clone => all.extend([memory(SEALED), reading(&path("state"))]),
        OriginKind::Boot | OriginKind::Template => {
            all.extend([reading(&path("kernel")), reading(&path("initramfs"))]);
        }
    }
    if origin == OriginKind::Template {
        all.push(memory(SealFlags::empty()));
    }
    all.extend([
        reading(&path("scratch")),
        both(&path("scratch")),
        reading(&path("image")),
    ]);
    all
}

#[test]
fn a_machine_of_each_origin_is_admitted() {
    let dir = tempfile::tempdir().unwrap();
    for origin in [OriginKind::Boot, OriginKind::Template, OriginKind::Clone] {
        let request = Request::Launch(Box::new(launch(origin)));
        let admitted = ALLOWANCE.admit(request, descriptors(dir.path(), origin));
        let Ok(Admitted::Launch {
            origin: files,
            disks,
            ..
        }) = admitted
        else {
            panic!("{origin:?}: {admitted:?}")
        };
        assert_eq!(files.len(), origin.descriptors());
        assert_eq!(disks.len(), 3);
    }
}

#[test]
fn only_the_operators_slots_are_served() {
    let admit = |request| ALLOWANCE.admit(request, Vec::new());
    for slot in [32, 1000, u16::MAX] {
        for request in [
            Request::OpenNetwork { slot },
            Request::ConnectNetwork { slot },
        ] {
            assert_eq!(admit(request).unwrap_err(), Refusal::Slot(slot));
        }
    }
    let signal = Signal::Kill;
    assert!(admit(Request::Signal { slot: 31, signal }).is_ok());
    assert!(admit(Request::Signal { slot: 32, signal }).is_err());
    // What makes a template is ended, too.
    assert!(admit(Request::Remove { slot: u16::MAX - 1 }).is_ok());
    assert!(admit(Request::Remove { slot: u16::MAX - 2 }).is_err());
    assert!(admit(Request::List {}).is_ok());
    // A pod has a network; it does not get a slot that has none.
    let mut outside = launch(OriginKind::Clone);
    outside.slot = u16::MAX - 1;
    let refused = admit(Request::Launch(Box::new(outside))).unwrap_err();
    assert_eq!(refused, Refusal::Slot(u16::MAX - 1));
}

#[test]
fn a_machine_beyond_the_operators_bounds_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let change: [(&str, fn(&mut LaunchRequest)); 6] = [
        ("0 processors", |launch| launch.vcpus = 0),
        ("5 processors", |launch| launch.vcpus = 5),
        ("0 MiB of memory", |launch| launch.memory_mib = 0),
        ("1025 MiB of memory", |launch| launch.memory_mib = 1025),
        ("4294967295 MiB of disk", |launch| {
            launch.scratch_mib = u32::MAX
        }),
        ("9 disks", |launch| launch.disks = vec![DiskKind::Empty; 9]),
    ];
    for (what, change) in change {
        let mut request = launch(OriginKind::Boot);
        change(&mut request);
        let given = descriptors(dir.path(), OriginKind::Boot);
        let refused = ALLOWANCE.admit(Request::Launch(Box::new(request)), given);
        let Err(Refusal::Size {
            what: unit, asked, ..
        }) = refused
        else {
            panic!("{what}: {refused:?}")
        };
        assert_eq!(format!("{asked} {unit}"), what);
    }
}

#[test]
fn each_descriptor_is_what_it_is_said_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let other = at("other");
    std::fs::write(&other, "x").unwrap();
    let (stream, _peer) = UnixStream::pair().unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let by_path = rustix::fs::open(&other, OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    // Of a clone: console, agent, monitor, memory, state, scratch disk twice, image.
    let wrong: Vec<(usize, &str, OwnedFd)> = vec![
        (0, "console", both(&other)),
        (0, "console", reading(Path::new("/dev/null"))),
        (1, "agent", reading(&other)),
        (1, "agent", stream.into()),
        (1, "agent", tcp.into()),
        (2, "monitor", UnixDatagram::unbound().unwrap().into()),
        (3, "memory", memory(SealFlags::empty())),
        (3, "memory", memory(SealFlags::WRITE)),
        (3, "memory", both(&other)),
        (4, "state", both(&other)),
        (4, "state", by_path),
        (5, "scratch disk", reading(Path::new("/"))),
        (5, "scratch disk", reading(&other)),
        (6, "scratch disk", appending(&other)),
        (7, "image", both(&other)),
        (7, "image", reading(Path::new("/dev/zero"))),
    ];
    for (place, of, descriptor) in wrong {
        let mut given = descriptors(dir.path(), OriginKind::Clone);
        given[place] = descriptor;
        let request = Request::Launch(Box::new(launch(OriginKind::Clone)));
        let refused = ALLOWANCE.admit(request, given);
        assert!(
            matches!(&refused, Err(Refusal::Descriptor { of: found, .. }) if *found == of),
            "{place}: {refused:?}"
        );
    }
}

#[test]
fn descriptors_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    for change in [-1, 1] {
        let mut given = descriptors(dir.path(), OriginKind::Boot);
        let wanted = given.len();
        if change < 0 {
            given.pop();
        } else {
            given.push(reading(&dir.path().join("image")));
        }
        let came = given.len();
        let request = Request::Launch(Box::new(launch(OriginKind::Boot)));
        let refused = ALLOWANCE.admit(request, given).unwrap_err();
        assert_eq!(refused, Refusal::Count { came, wanted });
    }
    let beside = vec![reading(&dir.path().join("image"))];
    let refused = ALLOWANCE.admit(Request::List {}, beside).unwrap_err();
    assert_eq!(refused, Refusal::Count { came: 1, wanted: 0 });
}
