//! What is special about clones: that they are as different from each other as two booted machines, and what
//! becomes of templates.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::{fs, time::Duration};

use codius_pod::{Driver, PodEvent};
use support::{Recorder, TestHost, fetch, stop_all};

/// What a program could take for its own: each of these must differ between two pods.
const IDENTITY: &str = "echo random=$(od -An -N16 -tx1 /dev/urandom | tr -d ' '); \
    echo uuid=$(cat /proc/sys/kernel/random/uuid); \
    echo boot=$(cat /proc/sys/kernel/random/boot_id); \
    echo host=$(hostname); \
    echo address=$(ifconfig eth0 | grep -o 'addr:[0-9.]*'); \
    echo stack=$(grep stack /proc/self/maps | cut -d- -f1); \
    echo canary=$(od -An -tx1 -j 0 -N 400 /proc/self/auxv | md5sum); \
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

#[tokio::test]
async fn two_clones_share_nothing_that_a_program_could_take_for_its_own() {
    let host = TestHost::cloning();
    let driver = host.open().await;
    let mut told = Vec::new();
    for number in [1, 2] {
        let recorder = Recorder::new();
        let pod = host.pod(number, None, &[IDENTITY]);
        driver.start(pod, recorder.clone()).await.unwrap();
        told.push(identity(&recorder).await);
        assert_eq!(cloned_machines(&host), usize::from(number));
    }
    for name in [
        "random", "uuid", "boot", "host", "address", "stack", "canary",
    ] {
        let (one, two) = (value(&told[0], name), value(&told[1], name));
        assert!(!one.is_empty(), "{name} is empty");
        assert_ne!(one, two, "{name} is the same in both");
    }
    // The clock is the host's, not that of the template.
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    for told in &told {
        let clock: u64 = value(told, "clock").parse().unwrap();
        assert!(
            clock.abs_diff(now) <= support::PATIENCE.as_secs(),
            "{clock}, not {now}"
        );
    }
    stop_all(&driver).await;
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
    let templates = host.config.state_dir.join("templates");
    let dir = fs::read_dir(&templates)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let made = fs::metadata(dir.join("memory"))
        .unwrap()
        .modified()
        .unwrap();
    // Half of another one, of a daemon that was killed.
    fs::create_dir(dir.with_extension("new")).unwrap();
    let driver = host.open().await;
    let kept = fs::metadata(dir.join("memory"))
        .unwrap()
        .modified()
        .unwrap();
    assert_eq!(made, kept, "it was made again");
    assert!(!dir.with_extension("new").exists());
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
