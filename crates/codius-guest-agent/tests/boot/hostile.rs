//! The hostile program (`examples/hostile`) in a pod: what it sees and can do is exactly what is written down
//! here, and what it takes, it takes from nobody else.
//!
//! A line that changes here is a change of what strangers may do in a pod. Think twice, then say in
//! `docs/threat-model.md` why.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Instant,
};

use codius_guest_protocol::{AgentMessage, ContainerConfig, ContainerExit, HostMessage};

use super::{free_port, is_started, is_stopped};
use crate::vm::{DEADLINE, Image, Options, Vm, pod, shell};

const ROOT: &str = include_str!("hostile.root");
const USER: &str = include_str!("hostile.user");

fn hostile(id: &str, arguments: &[&str]) -> ContainerConfig {
    ContainerConfig {
        args: ["/bin/hostile"]
            .iter()
            .chain(arguments)
            .map(|argument| (*argument).to_owned())
            .collect(),
        ..shell(id, "")
    }
}

fn image() -> Image {
    let image = Image::busybox();
    image.hostile("bin/hostile", 0o755);
    image.hostile("bin/hostile-as-root", 0o4755);
    image.mode("tmp", 0o1777);
    image.file("other-owner", 0o644, "root's\n");
    image
}

/// Both, line by line, so that a difference is seen at once.
#[track_caller]
fn assert_report(said: &str, expected: &str) {
    let (said, expected): (Vec<_>, Vec<_>) = (said.lines().collect(), expected.lines().collect());
    let differences: Vec<String> = said
        .iter()
        .filter(|line| !expected.contains(line))
        .map(|line| format!("+ {line}"))
        .chain(
            expected
                .iter()
                .filter(|line| !said.contains(line))
                .map(|line| format!("- {line}")),
        )
        .collect();
    assert!(differences.is_empty(), "\n{}", differences.join("\n"));
    assert_eq!(said, expected, "the same lines in another order");
}

#[test]
fn a_program_sees_and_can_do_exactly_this_and_no_more() {
    let image = image();
    let mut vm = Vm::boot(&Options {
        images: &[&image],
        ..Options::default()
    });
    let as_user = |container: ContainerConfig| ContainerConfig {
        user: "app".into(),
        ..container
    };
    let set_user_id = ContainerConfig {
        args: vec!["/bin/hostile-as-root".into(), "who".into()],
        ..as_user(shell("set-user-id", ""))
    };
    vm.configure(pod(vec![
        hostile("root", &["report"]),
        as_user(hostile("user", &["report"])),
        set_user_id,
    ]));
    for container in 0..3 {
        vm.wait_for_exit(container);
    }
    if let Some(directory) = std::env::var_os("CODIUS_HOSTILE_REPORTS") {
        // For whoever changes what a pod may do: to be read, and then copied.
        let directory = std::path::PathBuf::from(directory);
        std::fs::write(directory.join("hostile.root"), vm.stdout(0)).unwrap();
        std::fs::write(directory.join("hostile.user"), vm.stdout(1)).unwrap();
    }
    assert_report(&vm.stdout(0), ROOT);
    assert_report(&vm.stdout(1), USER);
    let first: Vec<&str> = USER.lines().take(8).collect();
    assert_report(&vm.stdout(2), &first.join("\n"));
}

/// What runs before the program: paths that the image or the manifest choose, while the process is not yet what it
/// will be.
#[test]
fn no_path_of_an_image_leads_to_what_the_agent_holds() {
    let image = image();
    image.link("/proc/self/exe", "bin/agent");
    image.file("bin/by-agent", 0o755, "#!/proc/self/exe\n");
    let mut vm = Vm::boot(&Options {
        images: &[&image],
        ..Options::default()
    });
    let in_descriptor = (3..14).map(|number| ContainerConfig {
        workdir: format!("/proc/self/fd/{number}"),
        ..shell("descriptor", "ls -a; ls -a ..; sleep 1000")
    });
    let started = |program: &str| ContainerConfig {
        args: vec![program.into()],
        ..shell("agent", "")
    };
    let mut containers: Vec<ContainerConfig> = in_descriptor.collect();
    let through_links = ["/bin/agent", "/bin/by-agent", "/proc/1/exe"].map(started);
    containers.extend(through_links);
    let count = containers.len();
    vm.configure(pod(containers));
    // None of them starts, each for a reason that is told.
    let refused = |heard: &[AgentMessage]| {
        heard
            .iter()
            .filter(|message| matches!(message, AgentMessage::Failed { .. }))
            .count()
    };
    vm.wait_until(|heard| refused(heard) == count);
    vm.send(&HostMessage::Stop { grace_ms: 0 });
    vm.wait_for(is_stopped);
    for container in 0..u16::try_from(count).unwrap() {
        assert_eq!(vm.stdout(container), "", "container {container}");
    }
}

/// Each container takes all it can of one thing; one looks for the others; one is an honest server.
#[test]
fn a_neighbour_is_neither_seen_nor_starved_and_the_agent_answers() {
    let visitors = free_port();
    let image = image();
    let mut vm = Vm::boot(&Options {
        images: &[&image],
        network: format!(",hostfwd=tcp:127.0.0.1:{visitors}-10.0.2.15:8080"),
        ..Options::default()
    });
    let honest = ContainerConfig {
        env: vec![("WORD".into(), "sesame".into())],
        ..shell(
            "honest",
            "mkdir /private; echo secret >/private/sesame; echo secret >/dev/shm/sesame; \
             sleep 100000 & exec httpd -f -p 8080 -h /www",
        )
    };
    let bounded = |container: ContainerConfig| ContainerConfig {
        memory_bytes: 48 << 20,
        ..container
    };
    vm.configure({
        let mut config = pod(vec![
            honest,
            hostile("processes", &["processes"]),
            bounded(hostile("memory", &["memory"])),
            bounded(hostile("shared-memory", &["files", "/dev/shm"])),
            hostile("disk", &["files", "/tmp"]),
            hostile("flood", &["flood"]),
            hostile("nonsense", &["nonsense"]),
            shell(
                "hunter",
                "touch /tmp/own-sesame; OWN=sesame sleep 100000 & \
                 until test -e /pod/hunt; do sleep 0.5; done; exec /bin/hostile hunt sesame",
            ),
            shell("signal", "sleep 8; touch /pod/hunt; sleep 1000"),
        ]);
        config.port = Some(8080);
        config
    });
    vm.wait_for(is_started);
    vm.wait_for(|message| *message == AgentMessage::Listening);
    // Everything hostile has hit its limit and goes on.
    vm.wait_for_output(1, "no more processes");
    assert_eq!(vm.wait_for_exit(2), ContainerExit::OutOfMemory);
    assert_eq!(vm.wait_for_exit(3), ContainerExit::OutOfMemory);
    let began = Instant::now();
    let mut pages = 0;
    for id in 0.. {
        vm.send(&HostMessage::Ping { id });
        vm.wait_for(|message| *message == AgentMessage::Pong { id });
        let mut visitor = TcpStream::connect(("127.0.0.1", visitors)).unwrap();
        visitor.set_read_timeout(Some(DEADLINE)).unwrap();
        visitor.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut page = String::new();
        visitor.read_to_string(&mut page).unwrap();
        assert!(page.ends_with("a page\n"), "{page}");
        pages += 1;
        if vm.stdout(7).contains("looked at") && pages >= 3 {
            break;
        }
        assert!(began.elapsed() < 2 * DEADLINE, "the hunt does not end");
    }
    // It finds what it has put there itself, and nothing else.
    let hunted = vm.stdout(7);
    let hunted: Vec<&str> = hunted.lines().collect();
    assert_eq!(hunted.len(), 3, "{hunted:?}");
    assert_eq!(hunted[0], "found: /tmp/own-sesame");
    assert!(
        hunted[1].starts_with("found: /proc/") && hunted[1].ends_with("/environ"),
        "{hunted:?}"
    );
    assert_eq!(hunted[2], "looked at: many files");
    // What was forged on the outputs is output.
    let exits = vm
        .heard
        .iter()
        .filter(|message| matches!(message, AgentMessage::Failed { .. } | AgentMessage::Stopped));
    assert_eq!(exits.count(), 0);
    vm.send(&HostMessage::Stop { grace_ms: 500 });
    vm.wait_for(is_stopped);
}
