//! Guests that mean no good, from inside (programs that take all there is) and from below (a kernel that says
//! anything to its host): what they do ends in their own pod.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::{
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use codius_microvm::MicrovmDriver;
use codius_pod::{Driver, DriverError, Duplex, PodEvent, PodEvents, PodStart};
use support::{PATIENCE, Recorder, TestHost, fetch, guest_dir, hostile_program, stop_all};
use tokio::io::AsyncReadExt;

const SERVER: &str = "exec httpd -f -p 8080 -h /www";
/// What the driver reads of a guest in a second, and at once (`limits.rs`).
const GUEST_BYTES_PER_SEC: u64 = 8 << 20;
/// Connections of one pod to the Interledger port (`limits.rs`).
const MAX_CONNECTIONS: usize = 64;
/// What QEMU needs at most beside the machine's memory: translated code (32 MiB) and what it notes of it, itself and
/// its libraries. That makes about 125 MiB when six programs have kept it busy for a while.
const QEMU_MIB: u64 = 160;
/// What the agent and the kernel get on top of what is sold (`limits.rs`).
const KERNEL_MIB: u64 = 64;

/// Keeps no output, so that its own memory says something about the driver's.
#[derive(Default)]
struct Counter {
    output_bytes: AtomicU64,
    lost: Mutex<Option<String>>,
    connections: Arc<AtomicUsize>,
    most_connections: AtomicUsize,
    all_connections: AtomicUsize,
}

impl Counter {
    async fn lost(&self) -> String {
        let begin = Instant::now();
        loop {
            if let Some(reason) = self.lost.lock().unwrap().clone() {
                return reason;
            }
            assert!(begin.elapsed() < PATIENCE, "the pod goes on and on");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl PodEvents for Counter {
    fn event(&self, event: PodEvent) {
        match event {
            PodEvent::Log { data, .. } => {
                self.output_bytes
                    .fetch_add(data.len() as u64, Ordering::Relaxed);
            }
            PodEvent::Lost { reason } => *self.lost.lock().unwrap() = Some(reason),
            _ => {}
        }
    }

    /// Reads and throws away, as slowly as a server with much to do.
    fn interledger(&self, mut connection: Box<dyn Duplex>) {
        let now = self.connections.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_connections.fetch_max(now, Ordering::Relaxed);
        self.all_connections.fetch_add(1, Ordering::Relaxed);
        let open = Arc::clone(&self.connections);
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok(1..) = connection.read(&mut buffer).await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

fn resident_mib(process: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() / 1024
}

/// The guest of this workspace with the hostile program in place of the agent: a later file of the same name
/// in an initramfs takes the place of an earlier one.
fn hostile_guest(dir: &Path) {
    let guest = guest_dir();
    fs::create_dir(dir).unwrap();
    symlink(guest.join("vmlinux"), dir.join("vmlinux")).unwrap();
    let mut initramfs = fs::read(guest.join("initramfs.cpio")).unwrap();
    initramfs.resize(initramfs.len().next_multiple_of(512), 0);
    for (name, mode, content) in [
        ("init", 0o100_755, fs::read(hostile_program()).unwrap()),
        ("TRAILER!!!", 0, Vec::new()),
    ] {
        // The "newc" form of cpio(5): thirteen numbers, then the name and the content, each to a multiple of four.
        let mut header = format!("070701{:08x}{mode:08x}", 1);
        for number in [0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0] {
            header.push_str(&format!("{number:08x}"));
        }
        header.push_str(name);
        header.push('\0');
        initramfs.extend(header.bytes());
        initramfs.resize(initramfs.len().next_multiple_of(4), 0);
        initramfs.extend(content);
        initramfs.resize(initramfs.len().next_multiple_of(4), 0);
    }
    fs::write(dir.join("initramfs.cpio"), initramfs).unwrap();
}

/// A pod whose guest does this.
fn misbehaving(host: &TestHost, number: u8, how: &str) -> PodStart {
    let mut pod = host.pod(number, None, &[""]);
    pod.containers[0].args = vec![how.to_owned()];
    pod
}

/// Why a pod ended, or was not started.
async fn end_of(driver: &MicrovmDriver, pod: PodStart) -> String {
    let counter = Arc::new(Counter::default());
    match driver.start(pod, counter.clone()).await {
        Ok(_) => counter.lost().await,
        Err(DriverError::Boot { reason }) => reason,
        Err(error) => panic!("{error:?}"),
    }
}

#[tokio::test]
async fn a_guest_that_keeps_to_no_protocol_ends_only_its_own_pod() {
    let mut host = TestHost::booting();
    let dir = tempfile::tempdir().unwrap();
    host.config.guest_dir = dir.path().join("guest");
    hostile_guest(&host.config.guest_dir);
    let driver = host.open().await;
    let neighbour = Recorder::new();
    let honest = misbehaving(&host, 100, "honest");
    driver
        .start(honest.clone(), neighbour.clone())
        .await
        .unwrap();
    let before_mib = resident_mib("self");

    // Before the pod counts as started: the start fails, and says why.
    let early = [
        ("early-noise", "does not keep to the protocol"),
        ("early-failed", "no such thing y"),
    ];
    // Later: the pod is lost, and says why.
    let late = [
        ("noise", "does not keep to the protocol"),
        ("deep", "does not keep to the protocol"),
        ("ghost", "speaks of container 999 of 1"),
        ("large-output", "bytes of output at once"),
        ("failed", "no such thing y"),
        ("stopped", "stopped by itself"),
    ];
    // Those that are only found out by their silence, meanwhile.
    let silent = async |number, how| {
        let reason = end_of(&driver, misbehaving(&host, number, how)).await;
        assert!(
            reason.contains("does not answer any more"),
            "{how}: {reason}"
        );
    };
    let loud = async {
        for (number, (how, expected)) in (1..).zip(early.into_iter().chain(late)) {
            let reason = end_of(&driver, misbehaving(&host, number, how)).await;
            assert!(reason.contains(expected), "{how}: {reason}");
            assert!(reason.len() < 1000 && !reason.chars().any(char::is_control));
        }
    };
    tokio::join!(
        silent(30, "deaf"),
        silent(31, "endless-line"),
        silent(32, "empty-lines"),
        loud
    );
    assert_eq!(driver.list().await.unwrap(), [honest.hash]);

    // What an agent might say, but too much of it: slowed, and the host goes on.
    for (number, how) in (50..).zip(["fast-output", "disorder", "wide"]) {
        let counter = Arc::new(Counter::default());
        let pod = misbehaving(&host, number, how);
        let begin = Instant::now();
        driver.start(pod.clone(), counter.clone()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(4)).await;
        let read = counter.output_bytes.load(Ordering::Relaxed);
        let most = GUEST_BYTES_PER_SEC * (begin.elapsed().as_secs() + 2);
        assert!(read <= most, "{how}: {read} bytes, at most {most}");
        assert_eq!(counter.lost.lock().unwrap().clone(), None, "{how}");
        driver.stop(&pod.hash, Duration::ZERO).await.unwrap();
    }
    let grown = resident_mib("self").saturating_sub(before_mib);
    assert!(grown < 64, "the driver has grown by {grown} MiB");
    assert!(
        !neighbour
            .events()
            .iter()
            .any(|event| matches!(event, PodEvent::Lost { .. }))
    );
    stop_all(&driver).await;
    host.assert_no_traces();
}

#[tokio::test]
async fn programs_that_take_all_there_is_take_it_from_their_own_pod() {
    let program = hostile_program();
    let host = TestHost::with_programs(&[&program]);
    let driver = host.open().await;
    let neighbour = Recorder::new();
    let served = driver
        .start(host.pod(2, Some(8080), &[SERVER]), neighbour.clone())
        .await
        .unwrap();
    neighbour.wait_event(PodEvent::Listening).await;
    let victims = host.machines();

    let counter = Arc::new(Counter::default());
    let mut pod = host.pod(1, None, &["", "", "", "", "", ""]);
    let attacks: [&[&str]; 6] = [
        &["processes"],
        &["memory"],
        &["files", "/tmp"],
        &["files", "/pod"],
        &["flood"],
        &["nonsense"],
    ];
    for (container, attack) in pod.containers.iter_mut().zip(attacks) {
        let arguments = attack.iter().map(|argument| (*argument).to_owned());
        container.args = ["/bin/hostile".to_owned()]
            .into_iter()
            .chain(arguments)
            .collect();
    }
    let (hash, machine) = (pod.hash, pod.machine);
    let begin = Instant::now();
    driver.start(pod, counter.clone()).await.unwrap();
    let attacker = *host
        .machines()
        .iter()
        .find(|machine| !victims.contains(machine))
        .unwrap();
    let place = host.config.state_dir.join("pods").join(hash.to_string());
    // Long enough for each to have hit its limit many times.
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let page = fetch(served.address.unwrap()).await.unwrap();
        assert!(page.ends_with("hello from the pod\n"), "{page}");
        let memory = resident_mib(&attacker.to_string());
        let most = u64::from(machine.memory_mib) + KERNEL_MIB + QEMU_MIB;
        assert!(memory <= most, "QEMU has {memory} MiB, at most {most}");
        let disk = fs::metadata(place.join("scratch.img")).unwrap().blocks() * 512;
        assert!(
            disk >> 20 <= u64::from(machine.scratch_mib),
            "{disk} bytes of disk"
        );
    }
    let read = counter.output_bytes.load(Ordering::Relaxed);
    let most = GUEST_BYTES_PER_SEC * (begin.elapsed().as_secs() + 2);
    assert!(
        0 < read && read <= most,
        "{read} bytes of output, at most {most}"
    );
    let connections = counter.most_connections.load(Ordering::Relaxed);
    assert!(connections <= MAX_CONNECTIONS, "{connections} connections");
    assert!(counter.all_connections.load(Ordering::Relaxed) > 0);
    // It is theirs to ruin: the pod runs, and hears when it is to end.
    assert_eq!(counter.lost.lock().unwrap().clone(), None);
    assert_still_obeys(&driver, hash).await;
    let page = fetch(served.address.unwrap()).await.unwrap();
    assert!(page.ends_with("hello from the pod\n"), "{page}");
    stop_all(&driver).await;
    host.assert_no_traces();
}

async fn assert_still_obeys(driver: &MicrovmDriver, hash: codius_manifest::ManifestHash) {
    driver.stop(&hash, Duration::from_secs(1)).await.unwrap();
    assert!(!driver.list().await.unwrap().contains(&hash));
}
