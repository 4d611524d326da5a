//! What is special about clones: that they are as different from each other as two booted machines, and what
//! becomes of templates.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use codius_pod::{Driver, Duplex, PodEvent, PodEvents};
use support::{Recorder, TestHost, fetch, stop_all};

/// Older than a clone takes to say what time it is, so that its template's clock is not taken for the host's.
const AGE: Duration = Duration::from_secs(10);

/// What a program could take for its own: each of these must differ between two pods.
const IDENTITY: &str = "echo random=$(od -An -N16 -tx1 /dev/urandom | tr -d ' '); \
    echo uuid=$(cat /proc/sys/kernel/random/uuid); \
    echo boot=$(cat /proc/sys/kernel/random/boot_id); \
    echo host=$(hostname); \
    echo hardware=$(ifconfig eth0 | grep -o 'HWaddr [0-9A-F:]*'); \
    echo address=$(ifconfig eth0 | grep -o 'addr:[0-9.]*'); \
    echo stack=$(grep stack /proc/self/maps | cut -d- -f1); \
    echo canary=$(od -An -tx1 -j 0 -N 400 /proc/self/auxv | md5sum); \
    echo disks=$(grep -c vd /proc/partitions); \
    echo clock=$(date +%s); echo done; exec sleep 1000";

fn value(output: &str, name: &str) -> String {
    let prefix = format!("{name}=");
    let line = output.lines().find_map(|line| line.strip_prefix(&prefix));
    line.unwrap_or_else(|| panic!("no {name} in {output}"))
        .to_owned()
}

async fn identity(recorder: &Recorder) -> String {
    recorder
        .wait_for("its identity", |recorder| {
            let output = recorder.output(0);
            output.contains("done\n").then_some(output)
        })
        .await
}

fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

#[tokio::test]
async fn two_clones_share_nothing_that_a_program_could_take_for_its_own() {
    let host = TestHost::cloning();
    let driver = host.open().await;
    tokio::time::sleep(AGE).await;
    let mut told = Vec::new();
    for number in [1, 2] {
        let recorder = Recorder::new();
        let pod = host.pod(number, None, &[IDENTITY]);
        let before = now();
        driver.start(pod, recorder.clone()).await.unwrap();
        let identity = identity(&recorder).await;
        // The clock is the host's, not that of the template.
        let clock: u64 = value(&identity, "clock").parse().unwrap();
        let range = before - 1..=now() + 1;
        assert!(range.contains(&clock), "{clock} is not in {range:?}");
        // Its image and its scratch disk; the template has one more, which costs it nothing.
        assert_eq!(value(&identity, "disks"), "2");
        told.push(identity);
        assert_eq!(cloned_machines(&host), usize::from(number));
    }
    for name in [
        "random", "uuid", "boot", "host", "hardware", "address", "stack", "canary",
    ] {
        let (one, two) = (value(&told[0], name), value(&told[1], name));
        assert!(!one.is_empty(), "{name} is empty");
        assert_ne!(one, two, "{name} is the same in both");
    }
    stop_all(&driver).await;
}

/// The only template of this host, on disk.
fn template_dir(host: &TestHost) -> PathBuf {
    let mut entries = fs::read_dir(host.config.state_dir.join("templates")).unwrap();
    let dir = entries.next().unwrap().unwrap().path();
    assert!(entries.next().is_none());
    dir
}

/// Whether a program of the distribution says yes.
fn says_yes(program: &str, arguments: &[&str], files: &[&Path]) -> bool {
    let status = Command::new(program).args(arguments).args(files).status();
    match status.unwrap().code() {
        Some(0) => true,
        Some(1) => false,
        other => panic!("{program} {arguments:?} {files:?}: {other:?}"),
    }
}

fn holds(file: &Path, text: &str) -> bool {
    says_yes("grep", &["-aFqe", text], &[file])
}

#[tokio::test]
async fn a_template_holds_nothing_of_the_pods_that_were_cloned_from_it() {
    const SECRET: &str = "squeamish-ossifrage-4711";
    let host = TestHost::cloning();
    let driver = host.open().await;
    let recorder = Recorder::new();
    // The program writes it to its memory, its disk and its output, and the kernel has it in several places.
    let mut pod = host.pod(
        1,
        None,
        &["echo $SECRET > /dev/shm/a; echo $SECRET > /a; sync; echo $SECRET; exec sleep 1000"],
    );
    pod.containers[0].env.push(("SECRET".into(), SECRET.into()));
    let hash = pod.hash.to_string();
    driver.start(pod, recorder.clone()).await.unwrap();
    recorder
        .wait_for("the secret", |recorder| {
            recorder.output(0).contains(SECRET).then_some(())
        })
        .await;
    assert_eq!(cloned_machines(&host), 1);

    // What all clones map, as this one has it open, is what is on disk, and neither knows it.
    let descriptors = fs::read_dir(format!("/proc/{}/fd", host.machines()[0])).unwrap();
    let shared: Vec<PathBuf> = descriptors
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            fs::read_link(path).is_ok_and(|of| of.to_string_lossy().starts_with("/memfd:template"))
        })
        .collect();
    let (memory, state) = {
        let dir = template_dir(&host);
        (dir.join("memory"), dir.join("state"))
    };
    let same = |path: &PathBuf| says_yes("cmp", &["-s"], &[path, &memory]);
    assert!(!shared.is_empty() && shared.iter().all(same), "{shared:?}");
    for stored in [&memory, &state] {
        assert!(!holds(stored, SECRET) && !holds(stored, &hash));
    }
    // It would be found if it were there.
    assert!(holds(&memory, "/sys/bus/virtio"));
    stop_all(&driver).await;
}

/// Kills the first machine of a pod at the moment at which its agent has answered.
struct Killer {
    host: TestHost,
    recorder: Arc<Recorder>,
    killed: Mutex<Option<i32>>,
}

impl PodEvents for Killer {
    fn event(&self, event: PodEvent) {
        let mut killed = self.killed.lock().unwrap();
        if event == PodEvent::Booted && killed.is_none() {
            assert_eq!(cloned_machines(&self.host), 1);
            let pid = self.host.machines()[0];
            let status = Command::new("kill").args(["-9", &pid.to_string()]).status();
            assert!(status.unwrap().success());
            *killed = Some(pid);
        }
        self.recorder.event(event);
    }

    fn interledger(&self, connection: Box<dyn Duplex>) {
        self.recorder.interledger(connection);
    }
}

#[tokio::test]
async fn a_clone_that_dies_when_its_agent_has_answered_is_replaced_by_a_boot() {
    let host = TestHost::cloning();
    let driver = host.open().await;
    let pod = host.pod(1, Some(8080), &["exec httpd -f -p 8080 -h /www"]);
    let killer = Arc::new(Killer {
        host,
        recorder: Recorder::new(),
        killed: Mutex::default(),
    });
    let running = driver.start(pod, killer.clone()).await.unwrap();
    let host = &killer.host;
    assert_eq!((host.machines().len(), cloned_machines(host)), (1, 0));
    assert_ne!(*killer.killed.lock().unwrap(), Some(host.machines()[0]));
    killer.recorder.wait_event(PodEvent::Listening).await;
    fetch(running.address.unwrap()).await.unwrap();
    // The template is not to blame for one failure.
    let second = Recorder::new();
    driver
        .start(host.pod(2, None, &["exec sleep 1000"]), second)
        .await
        .unwrap();
    assert_eq!((host.machines().len(), cloned_machines(host)), (2, 1));
    stop_all(&driver).await;
    host.assert_no_traces();
}

/// Machines that began as clones, by their command lines.
fn cloned_machines(host: &TestHost) -> usize {
    let machines = host.machines();
    let lines = machines.iter().map(|pid| {
        String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/cmdline")).unwrap()).into_owned()
    });
    lines.filter(|line| line.contains("share=off")).count()
}

#[tokio::test]
async fn memory_that_a_clone_frees_goes_back_and_the_template_stays_as_it_is() {
    let host = TestHost::cloning();
    let driver = host.open().await;
    let recorder = Recorder::new();
    // Fills 64 MiB of memory, says so, and frees them when it is told to by a connection.
    let script = "dd if=/dev/urandom of=/dev/shm/a bs=1M count=48 2>/dev/null; echo filled; \
        nc -l -p 8080 >/dev/null; rm /dev/shm/a; echo freed; exec httpd -f -p 8081 -h /www";
    let pod = host.pod(1, Some(8080), &[script]);
    let running = driver.start(pod, recorder.clone()).await.unwrap();
    recorder.wait_event(PodEvent::Listening).await;
    let machine = host.machines()[0];
    let private = || private_kib(machine);
    let filled = private();
    drop(
        tokio::net::TcpStream::connect(running.address.unwrap())
            .await
            .unwrap(),
    );
    recorder
        .wait_for("word that it is freed", |recorder| {
            recorder.output(0).contains("freed").then_some(())
        })
        .await;
    // The guest's kernel reports free memory every two seconds.
    let mut least = filled;
    for _ in 0..120 {
        least = least.min(private());
        if least + 32 * 1024 < filled {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!(least + 32 * 1024 < filled, "{filled} KiB, then {least} KiB");

    // A clone made after that finds the template whole.
    let second = Recorder::new();
    let pod = host.pod(2, Some(8080), &["exec httpd -f -p 8080 -h /www"]);
    let running = driver.start(pod, second.clone()).await.unwrap();
    assert_eq!(cloned_machines(&host), 2);
    second.wait_event(PodEvent::Listening).await;
    let page = fetch(running.address.unwrap()).await.unwrap();
    assert!(page.ends_with("hello from the pod\n"), "{page}");
    stop_all(&driver).await;
}

/// Memory that a process shares with nobody.
fn private_kib(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find(|line| line.starts_with("Private_Dirty:"));
    line.unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}

#[tokio::test]
async fn a_template_outlives_its_driver_and_a_broken_one_is_replaced_by_a_boot() {
    let host = TestHost::cloning();
    drop(host.open().await);
    let dir = template_dir(&host);
    let made = fs::metadata(dir.join("memory"))
        .unwrap()
        .modified()
        .unwrap();
    // Half of another one, of a daemon that was killed.
    fs::create_dir(dir.with_extension("new")).unwrap();
    fs::write(dir.with_extension("file"), "of nobody").unwrap();
    let driver = host.open().await;
    let kept = fs::metadata(dir.join("memory"))
        .unwrap()
        .modified()
        .unwrap();
    assert_eq!(made, kept, "it was made again");
    assert_eq!(template_dir(&host), dir, "something is left");
    drop(driver);

    // Its state is no state: the clone fails, the pod is booted, and nobody notices.
    fs::write(dir.join("state"), "nonsense").unwrap();
    let driver = host.open().await;
    let recorder = Recorder::new();
    let pod = host.pod(1, Some(8080), &["exec httpd -f -p 8080 -h /www"]);
    let running = driver.start(pod, recorder.clone()).await.unwrap();
    assert_eq!((host.machines().len(), cloned_machines(&host)), (1, 0));
    recorder.wait_event(PodEvent::Listening).await;
    fetch(running.address.unwrap()).await.unwrap();
    stop_all(&driver).await;
    drop(driver);

    // Another kernel: another template.
    let mut config = host.config.clone();
    let guest = host.config.state_dir.join("guest");
    fs::create_dir(&guest).unwrap();
    for name in ["vmlinux", "initramfs.cpio"] {
        fs::copy(config.guest_dir.join(name), guest.join(name)).unwrap();
    }
    config.guest_dir = guest;
    let driver = codius_microvm::MicrovmDriver::open(config).await.unwrap();
    driver.warmed().await;
    assert!(
        fs::metadata(dir.join("memory"))
            .unwrap()
            .modified()
            .unwrap()
            > made
    );
    stop_all(&driver).await;
}
