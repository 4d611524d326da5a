//! Real machines: what is started, lost, found again and removed.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::{fs, process::Command, time::Duration};

use codius_guest_protocol::ContainerExit;
use codius_microvm::{MicrovmDriver, OpenError};
use codius_pod::{Driver, DriverError, Isolation, PodEvent};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};
use support::{
    Recorder, TestHost, fetch,
    jail::{Origin, assert_locked_in},
    stop_all,
};

const SERVER: &str = "echo serving; exec httpd -f -p 8080 -h /www";
const GRACE: Duration = Duration::from_secs(1);

fn kill_9(pid: i32) {
    assert!(
        Command::new("kill")
            .args(["-9", &pid.to_string()])
            .status()
            .unwrap()
            .success()
    );
}

both_ways!(
    a_pod_is_started_serves_and_leaves_nothing,
    a_killed_machine_is_lost_and_leaves_nothing,
    a_guest_that_hangs_is_lost_and_leaves_nothing,
    pods_outlive_their_driver,
    a_pod_that_is_held_still_goes_on_and_can_be_stopped,
    what_a_killed_host_has_left_is_removed,
    a_pod_that_cannot_start_says_why_and_leaves_nothing,
    a_start_that_is_given_up_leaves_nothing,
    one_instance_has_one_driver,
);

async fn a_pod_is_started_serves_and_leaves_nothing(host: TestHost) {
    let driver = host.open().await;
    assert_eq!(
        driver.isolation() == Isolation::Kvm,
        driver.isolation_reason().contains("shown to work")
    );
    let recorder = Recorder::new();
    let pod = host.pod(1, Some(8080), &[SERVER, "echo one; echo two >&2; exit 7"]);

    let running = driver.start(pod.clone(), recorder.clone()).await.unwrap();
    assert_eq!(recorder.events()[0], PodEvent::Booted);
    assert_eq!(driver.list().await.unwrap(), [pod.hash]);
    recorder.wait_event(PodEvent::Listening).await;
    let page = fetch(running.address.unwrap()).await.unwrap();
    assert!(page.ends_with("hello from the pod\n"), "{page}");
    recorder
        .wait_event(PodEvent::Exited {
            container: 1,
            exit: ContainerExit::Code(7),
        })
        .await;
    recorder
        .wait_for("output", |recorder| {
            recorder.output(0).contains("serving").then_some(())
        })
        .await;
    assert!(recorder.output(1).contains("one\n") && recorder.output(1).contains("two\n"));

    // The same pod does not run twice, and the attempt does not harm it.
    assert!(matches!(
        driver.start(pod.clone(), recorder.clone()).await,
        Err(DriverError::Host { .. })
    ));
    fetch(running.address.unwrap()).await.unwrap();

    let origin = match host.config.warm {
        Some(_) => Origin::Cloned,
        None => Origin::Booted,
    };
    assert_locked_in(host.machines()[0], origin);

    driver.stop(&pod.hash, GRACE).await.unwrap();
    host.assert_no_traces();
    assert!(
        !recorder
            .events()
            .iter()
            .any(|event| matches!(event, PodEvent::Lost { .. }))
    );
    driver.stop(&pod.hash, GRACE).await.unwrap();
    stop_all(&driver).await;
}

async fn a_killed_machine_is_lost_and_leaves_nothing(host: TestHost) {
    let driver = host.open().await;
    let recorder = Recorder::new();
    let pod = host.pod(1, Some(8080), &[SERVER]);
    driver.start(pod.clone(), recorder.clone()).await.unwrap();
    kill_9(host.machines()[0]);
    let reason = recorder.wait_lost().await;
    assert!(!reason.is_empty());
    host.assert_no_traces();
    assert!(matches!(
        driver.attach(&pod.hash, recorder).await,
        Err(DriverError::NotRunning)
    ));
    stop_all(&driver).await;
}

async fn a_guest_that_hangs_is_lost_and_leaves_nothing(host: TestHost) {
    let driver = host.open().await;
    let recorder = Recorder::new();
    let pod = host.pod(1, None, &["sleep 1000"]);
    driver.start(pod, recorder.clone()).await.unwrap();
    // The process lives and its socket is open, but nothing answers any more.
    let machine = host.machines()[0].to_string();
    assert!(
        Command::new("kill")
            .args(["-STOP", &machine])
            .status()
            .unwrap()
            .success()
    );
    let reason = recorder.wait_lost().await;
    assert!(reason.contains("does not answer"), "{reason}");
    host.assert_no_traces();
    stop_all(&driver).await;
}

async fn pods_outlive_their_driver(host: TestHost) {
    let driver = host.open().await;
    let pod = host.pod(
        1,
        Some(8080),
        &["sleep 1000 & exec httpd -f -p 8080 -h /www", "exit 3"],
    );
    let first = Recorder::new();
    let started = driver.start(pod.clone(), first.clone()).await.unwrap();
    first.wait_event(PodEvent::Listening).await;
    first
        .wait_event(PodEvent::Exited {
            container: 1,
            exit: ContainerExit::Code(3),
        })
        .await;
    let machines = host.machines();

    drop(driver);
    let driver = host.open().await;
    assert_eq!(driver.list().await.unwrap(), [pod.hash]);
    // Nobody looks after it yet, and it serves all the same.
    fetch(started.address.unwrap()).await.unwrap();
    let second = Recorder::new();
    let attached = driver.attach(&pod.hash, second.clone()).await.unwrap();
    assert_eq!(attached, started);
    assert_eq!(host.machines(), machines);
    second
        .wait_event(PodEvent::Exited {
            container: 1,
            exit: ContainerExit::Code(3),
        })
        .await;
    fetch(started.address.unwrap()).await.unwrap();

    // And once more, with a machine that dies in between.
    drop(driver);
    let ended = pidfd_open(Pid::from_raw(machines[0]).unwrap(), PidfdFlags::empty()).unwrap();
    kill_9(machines[0]);
    // A dying process is taken for a living one until all of it has ended.
    poll(&mut [PollFd::new(&ended, PollFlags::IN)], None).unwrap();
    let driver = host.open().await;
    host.assert_no_traces();
    assert!(matches!(
        driver.attach(&pod.hash, second).await,
        Err(DriverError::NotRunning)
    ));
    stop_all(&driver).await;
}

async fn a_pod_that_is_held_still_goes_on_and_can_be_stopped(host: TestHost) {
    let driver = host.open().await;
    let pod = host.pod(1, Some(8080), &[SERVER]);
    let running = driver.start(pod.clone(), Recorder::new()).await.unwrap();
    let recorder = Recorder::new();
    let (address, machines) = (running.address.unwrap(), host.machines());
    driver.freeze(&pod.hash).await.unwrap();
    assert_eq!(state_of(machines[0]), 'T');

    // The next driver finds it so, and lets it go on.
    drop(driver);
    let driver = host.open().await;
    let taken_up = driver.attach(&pod.hash, recorder.clone()).await.unwrap();
    assert!(taken_up.frozen && state_of(machines[0]) == 'T');
    driver.thaw(&pod.hash).await.unwrap();
    recorder.wait_event(PodEvent::Listening).await;
    assert!(fetch(address).await.is_ok());
    assert_eq!(host.machines(), machines);

    // It need not go on to be stopped.
    driver.freeze(&pod.hash).await.unwrap();
    driver.stop(&pod.hash, GRACE).await.unwrap();
    host.assert_no_traces();
    stop_all(&driver).await;
}

/// As `proc_pid_stat(5)` has it.
fn state_of(pid: i32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    rest.chars().next().unwrap()
}

async fn what_a_killed_host_has_left_is_removed(host: TestHost) {
    let driver = host.open().await;
    let pod = host.pod(1, None, &["sleep 1000"]);
    driver.start(pod.clone(), Recorder::new()).await.unwrap();
    drop(driver);

    // As if it had been killed while it started the pod, before it had noted the process.
    let path = host
        .config
        .state_dir
        .join(format!("records/{}.json", pod.hash));
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(record["phase"], "running");
    record["phase"] = "starting".into();
    record["process"] = serde_json::Value::Null;
    fs::write(&path, record.to_string()).unwrap();
    assert_eq!(host.machines().len(), 1);
    let driver = host.open().await;
    host.assert_no_traces();

    // A machine without any record.
    driver.start(pod, Recorder::new()).await.unwrap();
    drop(driver);
    fs::remove_file(&path).unwrap();
    assert_eq!(host.machines().len(), 1);
    let driver = host.open().await;
    host.assert_no_traces();
    stop_all(&driver).await;
}

async fn a_pod_that_cannot_start_says_why_and_leaves_nothing(host: TestHost) {
    let driver = host.open().await;
    let mut pod = host.pod(1, None, &["exit 0", "exit 0"]);
    pod.containers[1].args = vec!["/bin/nothing-of-that-name".into()];
    let error = driver
        .start(pod.clone(), Recorder::new())
        .await
        .unwrap_err();
    let DriverError::Container { container, reason } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(container, "c1");
    assert!(reason.contains("nothing-of-that-name"), "{reason}");
    host.assert_no_traces();

    // Refused before anything is made.
    pod.containers[1].args.clear();
    let error = driver
        .start(pod.clone(), Recorder::new())
        .await
        .unwrap_err();
    assert!(
        matches!(error, DriverError::Unsupported { .. }),
        "{error:?}"
    );

    // An image that is not there is the host's fault.
    pod.containers.truncate(1);
    pod.containers[0].image.block_image = "/nowhere/image".into();
    let error = driver.start(pod, Recorder::new()).await.unwrap_err();
    assert!(matches!(error, DriverError::Host { .. }), "{error:?}");
    host.assert_no_traces();
    stop_all(&driver).await;
}

async fn a_start_that_is_given_up_leaves_nothing(host: TestHost) {
    let driver = host.open().await;
    // At different points: before, while and after the machine is started.
    for millis in [0, 5, 20, 50, 100, 400] {
        let pod = host.pod(1, None, &["sleep 1000"]);
        let start = driver.start(pod.clone(), Recorder::new());
        let given_up = tokio::time::timeout(Duration::from_millis(millis), start).await;
        // A clone may be there that soon.
        assert!(
            given_up.is_err() || host.config.warm.is_some(),
            "it was started in {millis} ms"
        );
        // Waits for what is going on.
        driver.stop(&pod.hash, GRACE).await.unwrap();
        host.assert_no_traces();
    }

    // A stop while it starts is the other way of giving up.
    let pod = host.pod(1, None, &["sleep 1000"]);
    let (started, stopped) = tokio::join!(driver.start(pod.clone(), Recorder::new()), async {
        let patience = if host.config.warm.is_some() { 30 } else { 300 };
        tokio::time::sleep(Duration::from_millis(patience)).await;
        driver.stop(&pod.hash, GRACE).await
    });
    assert!(
        matches!(started, Err(DriverError::Boot { .. })),
        "{started:?}"
    );
    stopped.unwrap();
    host.assert_no_traces();
    stop_all(&driver).await;
}

async fn one_instance_has_one_driver(host: TestHost) {
    let driver = host.open().await;
    let second = MicrovmDriver::open(host.config.clone()).await;
    assert!(matches!(second, Err(OpenError::InUse { .. })), "{second:?}");
    stop_all(&driver).await;
    drop(driver);

    let mut config = host.config.clone();
    config.guest_dir = config.state_dir.clone();
    let error = MicrovmDriver::open(config).await.unwrap_err().to_string();
    assert!(
        error.contains("vmlinux") && error.contains("cargo xtask guest"),
        "{error}"
    );
}
