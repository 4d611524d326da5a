//! What a pod does in a real virtual machine, as its host and its programs see it. Needs the guest of
//! `cargo xtask guest` and the packages qemu-system-x86, squashfs-tools, e2fsprogs, busybox-static.

#![expect(clippy::unwrap_used, reason = "what goes wrong here fails the test")]

mod hostile;
mod programs;
mod servers;
mod vm;

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::Command,
    time::{Duration, Instant},
};

use codius_guest_protocol::{
    AgentMessage, ContainerConfig, ContainerExit, ContainerStatus, HostMessage,
};
use vm::{Image, Options, Vm, pod, shell};

fn is_started(message: &AgentMessage) -> bool {
    matches!(message, AgentMessage::Started)
}

fn is_stopped(message: &AgentMessage) -> bool {
    matches!(message, AgentMessage::Stopped)
}

fn failure(message: &AgentMessage) -> Option<(Option<u16>, &str)> {
    match message {
        AgentMessage::Failed { container, message } => Some((*container, message)),
        _ => None,
    }
}

/// A port of this machine that nothing uses now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

#[test]
fn containers_share_what_a_pod_shares_and_nothing_else() {
    let image = Image::busybox();
    let mut vm = Vm::boot(&Options {
        images: &[&image],
        ..Options::default()
    });
    let hello = vm.since_launch();
    let web = shell(
        "web",
        "echo mine >/only-mine; echo shared >/pod/note; echo memory >/dev/shm/note; \
         exec httpd -f -p 8080 -h /www",
    );
    let visitor = ContainerConfig {
        user: "app".into(),
        workdir: "/srv/deep".into(),
        env: vec![("GREETING".into(), "two words 'quoted' = é".into())],
        ..shell(
            "visitor",
            "until wget -qO- http://localhost:8080/ 2>/dev/null; do sleep 0.1; done; \
             cat /pod/note; ls /only-mine /dev/shm/note; id; pwd; \
             echo \"$GREETING|$HOME|$HOSTNAME|$PATH\"; \
             tr '\\0' ' ' </proc/1/cmdline | cut -c1-10; ls -d /proc/[0-9]* | wc -l; \
             hostname; cat /etc/hostname /etc/hosts /etc/resolv.conf; date +%Y; \
             grep -c . /proc/net/route; echo named >/dev/stderr; touch /root-only; exit 7",
        )
    };
    let mut config = pod(vec![web, visitor]);
    config.port = Some(8080);
    vm.configure(config);
    vm.wait_for(is_started);
    let started = vm.since_launch();
    vm.wait_for(|message| *message == AgentMessage::Listening);
    let listening = vm.since_launch();
    let [hello, started, listening] = [hello, started, listening].map(|time| time.as_millis());
    println!("launch to hello {hello} ms, started {started} ms, listening {listening} ms");

    assert_eq!(vm.wait_for_exit(1), ContainerExit::Code(7));
    let expected = "a page\nshared\n\
        uid=1000(app) gid=1001(app) groups=44(video),1001(app)\n/srv/deep\n\
        two words 'quoted' = é|/home/app|pod-name|\
        /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
        /bin/sh -c\n2\npod-name\npod-name\n\
        127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n10.0.2.15\tpod-name\n\
        nameserver 10.0.2.3\n2027\n3\n";
    let (stdout, stderr) = (vm.stdout(1), vm.stderr(1));
    // `ls` and `wc` are two processes beside the shell; which of them `ls` sees is a race.
    let stdout = stdout.replace("\n3\npod-name\npod-name", "\n2\npod-name\npod-name");
    assert_eq!(lines(&stdout), lines(expected));
    assert!(stderr.contains("/only-mine: No such file"), "{stderr}");
    assert!(stderr.contains("/dev/shm/note: No such file"), "{stderr}");
    assert!(stderr.contains("named\n"), "{stderr}");
    assert!(stderr.contains("/root-only: Permission denied"), "{stderr}");
}

#[test]
fn root_in_a_container_has_no_power_over_the_machine() {
    let image = Image::busybox();
    let mut vm = Vm::boot(&Options {
        images: &[&image],
        ..Options::default()
    });
    let attempts = [
        ("a device node", "mknod /disk b 254 0"),
        ("a device node in /dev", "mknod /dev/disk b 254 0"),
        ("a mount", "mount -t tmpfs none /tmp"),
        ("a kernel setting", "echo x >/proc/sys/kernel/core_pattern"),
        ("a crash", "echo c >/proc/sysrq-trigger"),
        (
            "the clock",
            "date -s 2030-01-01 >/dev/null; test $(date +%Y) = 2030",
        ),
        ("its own limit", "echo max >/sys/fs/cgroup/memory.max"),
        ("a module", "insmod /bin/busybox"),
        ("kernel memory", "head -c1 /proc/kcore | grep -q ."),
        ("power", "poweroff -f"),
        ("the network", "ifconfig eth0 down"),
        ("its namespaces", "nsenter -t 1 -m true"),
    ];
    let script: String = attempts
        .iter()
        .map(|(what, command)| format!("{command} && echo 'could: {what}'\n"))
        .collect();
    let script = script
        + "grep -c /sys/fs/cgroup /proc/mounts; cat /proc/self/cgroup; cat /sys/fs/cgroup/pids.max\n\
           echo written >/root-file && cat /root-file; ping -c1 127.0.0.1 >/dev/null 2>&1 || echo no raw socket\n\
           kill -9 1; echo still here";
    vm.configure(pod(vec![shell("root", &script)]));
    assert_eq!(
        vm.wait_for_exit(0),
        ContainerExit::Code(0),
        "{}",
        vm.stderr(0)
    );
    assert_eq!(
        lines(&vm.stdout(0)),
        ["1", "0::/", "100", "written", "no raw socket", "still here"]
    );
    vm.send(&HostMessage::Ping { id: 5 });
    vm.wait_for(|message| *message == AgentMessage::Pong { id: 5 });
}

#[test]
fn limits_hold_and_the_agent_answers_all_the_while() {
    let image = Image::busybox();
    let mut vm = Vm::boot(&Options {
        images: &[&image],
        ..Options::default()
    });
    let memory = ContainerConfig {
        memory_bytes: 24 << 20,
        ..shell("memory", "exec tail /dev/zero")
    };
    let child = ContainerConfig {
        memory_bytes: 24 << 20,
        ..shell("child", "tail /dev/zero; echo code $?; exit 3")
    };
    let bomb = ContainerConfig {
        max_processes: 30,
        ..shell(
            "bomb",
            "b() { b | b & }; while true; do b; sleep 0.05; done 2>/dev/null",
        )
    };
    let signal = shell(
        "signal",
        "sh -c 'kill -SEGV $$'; exec sh -c 'trap - USR1; ulimit -c; exit 0'",
    );
    vm.configure(pod(vec![memory, child, bomb, signal]));
    assert_eq!(vm.wait_for_exit(0), ContainerExit::OutOfMemory);
    assert_eq!(vm.wait_for_exit(1), ContainerExit::Code(3));
    assert_eq!(lines(&vm.stdout(1)), ["code 137"]);
    assert_eq!(vm.wait_for_exit(3), ContainerExit::Code(0));
    assert_eq!(lines(&vm.stdout(3)), ["0"]);
    for id in 0..10 {
        let asked = Instant::now();
        vm.send(&HostMessage::Ping { id });
        vm.wait_for(|message| *message == AgentMessage::Pong { id });
        assert!(
            asked.elapsed() < Duration::from_secs(5),
            "pong after {:?}",
            asked.elapsed()
        );
    }
    vm.send(&HostMessage::Stop { grace_ms: 0 });
    vm.wait_for(is_stopped);
    // Its shell may have ended by itself, as one does that cannot fork.
    let bomb = vm.wait_for_exit(2);
    assert!(
        matches!(bomb, ContainerExit::Signal(9) | ContainerExit::Code(2)),
        "{bomb:?}"
    );
}

#[test]
fn a_host_that_goes_away_in_the_middle_of_a_line_finds_the_pod_again() {
    let image = Image::busybox();
    let mut vm = Vm::boot(&Options {
        images: &[&image],
        ..Options::default()
    });
    let chatter = shell("chatter", "seq 1 60000; touch /pod/done; sleep 1000");
    let short = shell(
        "short",
        "until test -e /pod/away; do sleep 0.1; done; exit 9",
    );
    let server = shell("server", "exec httpd -f -p 8080 -h /www");
    let flood = shell(
        "flood",
        "until test -e /pod/done; do sleep 0.1; done; touch /pod/away; yes 0123456789 | head -n 200000; \
         echo the last word; sleep 1000",
    );
    let mut config = pod(vec![chatter, short, server, flood]);
    config.port = Some(8080);
    vm.configure(config);
    vm.wait_for(|message| *message == AgentMessage::Listening);
    // Everything arrives while someone reads, however slowly.
    while !vm.stdout(0).ends_with("\n60000\n") {
        std::thread::sleep(Duration::from_millis(5));
        vm.hear(false);
    }
    let numbers: Vec<String> = (1..=60000).map(|number: u32| number.to_string()).collect();
    assert_eq!(lines(&vm.stdout(0)), numbers);
    assert!(vm.dropped.is_empty(), "{:?}", vm.dropped);

    vm.reconnect(b"{\"type\":\"ping\",\"id", Duration::from_secs(4));
    vm.attach("second");
    let states = [
        ContainerStatus::Running,
        ContainerStatus::Exited(ContainerExit::Code(9)),
        ContainerStatus::Running,
        ContainerStatus::Running,
    ];
    let hello = vm.heard.iter().find_map(|message| match message {
        AgentMessage::Hello {
            configured: true,
            containers,
            ..
        } => Some(containers.clone()),
        _ => None,
    });
    assert_eq!(hello.unwrap(), states);
    vm.wait_for_output(3, "the last word\n");
    assert!(
        vm.heard.contains(&AgentMessage::Started) && vm.heard.contains(&AgentMessage::Listening)
    );
    assert!(vm.dropped[&3] > 0);

    // Again, at once and without having read: neither side may stay out of step.
    for round in 0..3 {
        vm.reconnect(b"\"", Duration::ZERO);
        vm.attach(&format!("round {round}"));
        vm.send(&HostMessage::Ping { id: round });
        vm.wait_for(|message| *message == AgentMessage::Pong { id: round });
    }
    // Configure is accepted once.
    vm.configure(pod(vec![shell("other", "echo other")]));
    vm.send(&HostMessage::Ping { id: 99 });
    vm.wait_for(|message| *message == AgentMessage::Pong { id: 99 });
    assert!(vm.heard.iter().all(|message| failure(message).is_none()));
}

#[test]
fn a_stop_lets_programs_finish_and_keeps_what_they_wrote() {
    let image = Image::busybox();
    let mut vm = Vm::boot(&Options {
        images: &[&image],
        ..Options::default()
    });
    let polite = shell(
        "polite",
        "trap 'echo saved >/pod/state; exit 4' TERM; echo ready; while true; do sleep 0.1; done",
    );
    let deaf = shell(
        "deaf",
        "trap '' TERM; echo ready; while true; do sleep 0.1; done",
    );
    vm.configure(pod(vec![polite, deaf]));
    vm.wait_for_output(0, "ready");
    vm.wait_for_output(1, "ready");
    let asked = Instant::now();
    vm.send(&HostMessage::Stop { grace_ms: 2000 });
    assert_eq!(vm.wait_for_exit(0), ContainerExit::Code(4));
    assert_eq!(vm.wait_for_exit(1), ContainerExit::Signal(9));
    vm.wait_for(is_stopped);
    assert!(
        asked.elapsed() >= Duration::from_secs(2),
        "{:?}",
        asked.elapsed()
    );
    let read = Command::new("debugfs")
        .args(["-R", "cat /volume/state"])
        .arg(vm.path("scratch"))
        .output()
        .expect("install the package e2fsprogs");
    assert_eq!(String::from_utf8(read.stdout).unwrap(), "saved\n");
    // A new host hears it too.
    vm.reconnect(b"", Duration::ZERO);
    vm.attach("again");
    vm.wait_for(is_stopped);
}

#[test]
fn the_port_is_told_when_the_host_can_reach_it_and_7768_leads_to_the_gateway() {
    let gateway = TcpListener::bind("127.0.0.1:0").unwrap();
    let visitors = free_port();
    let image = Image::busybox();
    let mut vm = Vm::boot(&Options {
        images: &[&image],
        network: format!(
            ",hostfwd=tcp:127.0.0.1:{visitors}-10.0.2.15:8080,\
             guestfwd=tcp:10.0.2.100:7768-tcp:{}",
            gateway.local_addr().unwrap()
        ),
        ..Options::default()
    });
    let (mut inside, _) = gateway.accept().unwrap();
    let program = shell(
        "program",
        "(echo question; sleep 2) | nc localhost 7768 & \
         httpd -p 127.0.0.1:8080 -h /www; while ! test -e /pod/go; do sleep 0.1; done; \
         killall httpd; exec httpd -f -p 8080 -h /www",
    );
    let signal = shell("signal", "sleep 5; touch /pod/go; sleep 1000");
    let mut config = pod(vec![program, signal]);
    config.port = Some(8080);
    vm.configure(config);
    let mut question = [0; 9];
    inside.read_exact(&mut question).unwrap();
    assert_eq!(&question, b"question\n");
    inside.write_all(b"answer\n").unwrap();
    vm.wait_for_output(0, "answer\n");
    vm.wait_for(|message| *message == AgentMessage::ListeningOnLoopbackOnly);
    vm.wait_for(|message| *message == AgentMessage::Listening);
    let mut page = String::new();
    let mut visitor = TcpStream::connect(("127.0.0.1", visitors)).unwrap();
    visitor.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    visitor.read_to_string(&mut page).unwrap();
    assert!(page.ends_with("a page\n"), "{page}");
}

/// Each with the container that is at fault and a part of the text.
#[test]
fn what_cannot_start_is_explained() {
    let image = Image::busybox();
    let escape = Image::busybox();
    escape.link("/sys", "proc");
    let program = |name: &str| ContainerConfig {
        args: vec![name.into()],
        ..shell("bad", "")
    };
    let cases: Vec<(ContainerConfig, &str)> = vec![
        (
            program("gone"),
            "the image has no program \"gone\" (looked in /usr/local/sbin:",
        ),
        (
            program("/bin/gone"),
            "the image has no program \"/bin/gone\"",
        ),
        (
            program("not-executable"),
            "the program \"/bin/not-executable\" is not executable",
        ),
        (program("no-interpreter"), "needs an interpreter or loader"),
        (program("no-program"), "cannot run here"),
        (program("/etc"), "the program \"/etc\" is not a file"),
        (
            ContainerConfig {
                user: "nobody".into(),
                ..shell("bad", "true")
            },
            "no user \"nobody\"",
        ),
        (
            ContainerConfig {
                user: "app:none".into(),
                ..shell("bad", "true")
            },
            "no group \"none\"",
        ),
        (
            ContainerConfig {
                workdir: "/etc/passwd".into(),
                ..shell("bad", "true")
            },
            "the working directory \"/etc/passwd\" cannot be used: File exists",
        ),
        (
            ContainerConfig {
                image_serial: "img7".into(),
                ..shell("bad", "true")
            },
            "the image cannot be mounted: the pod has no disk \"img7\"",
        ),
        (
            ContainerConfig {
                image_serial: "scratch".into(),
                ..shell("bad", "true")
            },
            "the image cannot be mounted",
        ),
        (
            ContainerConfig {
                image_serial: "img1".into(),
                ..shell("bad", "true")
            },
            "the image's /proc is not a directory",
        ),
    ];
    let (containers, expected): (Vec<_>, Vec<_>) = cases.into_iter().unzip();
    let mut vm = Vm::boot(&Options {
        images: &[&image, &escape],
        ..Options::default()
    });
    vm.configure(pod([
        vec![shell("good", "echo up; sleep 1000")],
        containers,
    ]
    .concat()));
    vm.wait_until(|heard| {
        let over = |message: &&AgentMessage| failure(message).is_some() || is_started(message);
        heard.iter().filter(over).count() >= expected.len()
    });
    let mut failures: Vec<_> = vm.heard.iter().filter_map(failure).collect();
    failures.sort();
    for ((number, expected), (container, text)) in (1..).zip(expected).zip(failures) {
        assert_eq!(container, Some(number), "{text}");
        assert!(text.contains(expected), "{text:?} is not {expected:?}");
    }
    vm.wait_for_output(0, "up\n");
    vm.attach("again");
    let hello = &vm.heard[0];
    let AgentMessage::Hello { containers, .. } = hello else {
        panic!("{hello:?}")
    };
    assert_eq!(containers[0], ContainerStatus::Running);
    assert!(
        containers[1..]
            .iter()
            .all(|status| *status == ContainerStatus::Waiting)
    );
    vm.send(&HostMessage::Stop { grace_ms: 0 });
    vm.wait_for(is_stopped);
    assert!(!vm.heard.contains(&AgentMessage::Started));
}

#[test]
fn a_pod_without_a_scratch_disk_or_a_network_is_handled() {
    let image = Image::busybox();
    let options = Options {
        images: &[&image],
        scratch: false,
        ..Options::default()
    };
    let mut vm = Vm::boot(&options);
    vm.configure(pod(vec![shell("any", "true")]));
    let message = vm.wait_for(|message| failure(message).is_some());
    assert_eq!(
        failure(&message),
        Some((None, "the pod has no disk \"scratch\""))
    );

    let mut vm = Vm::boot(&Options {
        images: &[&image],
        ..Options::default()
    });
    let mut config = pod(vec![shell(
        "alone",
        "nc -z localhost 7768 || echo none; ifconfig lo | grep -c UP",
    )]);
    config.network = None;
    vm.configure(config);
    assert_eq!(vm.wait_for_exit(0), ContainerExit::Code(0));
    assert_eq!(lines(&vm.stdout(0)), ["none", "1"]);
    vm.send(&HostMessage::Stop { grace_ms: 0 });
    vm.wait_for(is_stopped);
}
