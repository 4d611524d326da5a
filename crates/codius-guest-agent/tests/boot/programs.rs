//! Programs that are started again, and those that an owner runs beside them.

use codius_guest_protocol::{
    AgentMessage, ContainerConfig, ContainerExit, ContainerStanding, ContainerStatus,
    EXEC_WINDOW_BYTES, ExecAnswer, ExecAsk, HostMessage, LogStream, MAX_EXEC_SESSIONS,
    RestartPolicy, Standing, WindowSize, exec_cost,
};

use crate::{
    is_started,
    vm::{Image, Options, Vm, pod, shell},
};

fn standings(heard: &[AgentMessage], container: u16) -> Vec<ContainerStanding> {
    let standings = heard.iter().filter_map(|message| match message {
        AgentMessage::Standing(standing) if standing.container == container => Some(*standing),
        _ => None,
    });
    standings.collect()
}

fn runs_again(heard: &[AgentMessage], container: u16, restarts: u32) -> bool {
    standings(heard, container)
        .iter()
        .any(|standing| standing.now == Standing::Running && standing.restarts >= restarts)
}

/// Given one container for each policy, when their programs end, then each is started again as its policy says,
/// in the files that it has left, and a host that comes later hears how each stands.
#[test]
fn programs_are_started_again_as_their_policies_say() {
    let image = Image::busybox();
    let mut vm = Vm::boot(&Options {
        images: &[&image],
        ..Options::default()
    });
    let with = |restart, container| ContainerConfig {
        restart,
        ..container
    };
    let count = "echo run >>/runs; n=$(wc -l </runs); echo \"run $n as $(id -u)\"";
    let containers = vec![
        // Ends well at its third run.
        with(
            RestartPolicy::OnFailure,
            shell("job", &format!("{count}; test $n = 3 || exit 4")),
        ),
        // Crashes for ever.
        with(
            RestartPolicy::Always,
            ContainerConfig {
                memory_bytes: 24 << 20,
                ..shell(
                    "crash",
                    "test -e /seen || { touch /seen; exec tail /dev/zero; }; exit 6",
                )
            },
        ),
        // Removes its own program.
        with(
            RestartPolicy::Always,
            shell("gone", "echo first; rm /bin/sh; exit 0"),
        ),
        with(RestartPolicy::No, shell("plain", "exit 5")),
    ];
    vm.configure(pod(containers));
    vm.wait_for(is_started);

    assert_eq!(vm.wait_for_exit(3), ContainerExit::Code(5));
    assert_eq!(vm.wait_for_exit(0), ContainerExit::Code(0));
    assert_eq!(vm.stdout(0), "run 1 as 0\nrun 2 as 0\nrun 3 as 0\n");
    let job = standings(&vm.heard, 0);
    let told: Vec<_> = job
        .iter()
        .map(|standing| (standing.restarts, standing.last_exit))
        .collect();
    let failed = Some(ContainerExit::Code(4));
    assert_eq!(told, [(0, failed), (1, failed), (1, failed), (2, failed)]);
    assert!(matches!(job[0].now, Standing::Waiting { next_ms } if next_ms <= 1000));
    assert!(matches!(job[2].now, Standing::Waiting { next_ms } if next_ms > 1000));

    vm.wait_until(|heard| runs_again(heard, 1, 2));
    let crash = standings(&vm.heard, 1);
    assert_eq!(crash[0].last_exit, Some(ContainerExit::OutOfMemory));
    // A kill for want of memory counts for the program that it has hit.
    let second = crash
        .iter()
        .find(|standing| standing.restarts == 2)
        .unwrap();
    assert_eq!(second.last_exit, Some(ContainerExit::Code(6)));

    vm.wait_until(|heard| {
        let gone = standings(heard, 2);
        gone.iter()
            .any(|standing| standing.last_exit == Some(ContainerExit::Code(127)))
    });
    assert!(
        vm.stderr(2).contains("no program \"/bin/sh\""),
        "{}",
        vm.stderr(2)
    );

    vm.attach("second");
    let AgentMessage::Hello { containers, .. } = vm.heard[0].clone() else {
        panic!("{:?}", vm.heard)
    };
    assert_eq!(
        containers[0],
        ContainerStatus::Exited(ContainerExit::Code(0))
    );
    assert!(!matches!(containers[1], ContainerStatus::Exited(_)));
    assert!(!matches!(containers[2], ContainerStatus::Exited(_)));
    vm.wait_until(|heard| (0..4).all(|container| !standings(heard, container).is_empty()));
    assert_eq!(standings(&vm.heard, 0)[0].now, Standing::Exited);
    assert_eq!(standings(&vm.heard, 0)[0].restarts, 2);

    // A stop ends what waits, and starts nothing again.
    vm.send(&HostMessage::Stop { grace_ms: 20_000 });
    vm.wait_for(|message| *message == AgentMessage::Stopped);
}

/// What was heard of one session.
struct Heard {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    end: Option<ExecAnswer>,
    cost: u32,
    taken: u32,
}

fn session(heard: &[AgentMessage], wanted: u32) -> Heard {
    let mut all = Heard {
        stdout: Vec::new(),
        stderr: Vec::new(),
        end: None,
        cost: 0,
        taken: 0,
    };
    for message in heard {
        let AgentMessage::Exec { session, answer } = message else {
            continue;
        };
        if *session != wanted {
            continue;
        }
        assert_eq!(all.end, None, "{answer:?} after the end");
        match answer {
            ExecAnswer::Started => {}
            ExecAnswer::Output { stream, data } => {
                all.cost += exec_cost(data.len());
                match stream {
                    LogStream::Stdout => all.stdout.extend(data),
                    LogStream::Stderr => all.stderr.extend(data),
                }
            }
            ExecAnswer::Taken { bytes } => all.taken += bytes,
            end @ (ExecAnswer::Ended(_) | ExecAnswer::Failed { .. }) => {
                all.end = Some(end.clone());
            }
        }
    }
    all
}

impl Vm {
    fn ask(&mut self, session: u32, ask: ExecAsk) {
        self.send(&HostMessage::Exec { session, ask });
    }

    fn exec(&mut self, session: u32, container: u16, script: &str) {
        self.start_exec(session, container, &["/bin/sh", "-c", script], None);
    }

    fn start_exec(
        &mut self,
        session: u32,
        container: u16,
        args: &[&str],
        terminal: Option<WindowSize>,
    ) {
        let start = ExecAsk::Start {
            container,
            args: args.iter().map(|&word| word.to_owned()).collect(),
            env: vec![("TERM".to_owned(), "xterm".to_owned())],
            input: true,
            terminal,
        };
        self.ask(session, start);
    }

    fn type_in(&mut self, session: u32, text: &str) {
        let data = text.as_bytes().to_vec();
        self.ask(session, ExecAsk::Input { data });
    }

    /// Waits for the end of a session.
    fn ended(&mut self, wanted: u32) -> Heard {
        self.wait_until(|heard| session(heard, wanted).end.is_some());
        session(&self.heard, wanted)
    }

    fn wait_for_session(&mut self, wanted: u32, text: &str) {
        self.wait_until(|heard| {
            String::from_utf8_lossy(&session(heard, wanted).stdout).contains(text)
        });
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Given two containers, when their owner runs programs in them, then each is in its container as the
/// container's own program is, with input, output, exit code, terminal, and no more power.
#[test]
fn an_owner_runs_programs_in_a_container() {
    let image = Image::busybox();
    let mut vm = Vm::boot(&Options {
        images: &[&image],
        ..Options::default()
    });
    let status = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; cat /proc/self/cgroup; \
                  ulimit -n; id; pwd; ls -l /proc/self/fd | wc -l; echo end";
    let own = ContainerConfig {
        user: "app".into(),
        workdir: "/pod".into(),
        env: vec![("MODE".into(), "fast".into())],
        ..shell(
            "app",
            &format!("echo mine >/pod/file; {status}; exec sleep 1000"),
        )
    };
    let root = shell("root", &format!("{status}; while :; do sleep 1; done"));
    let plain = shell("plain", "exit 0");
    vm.configure(pod(vec![own, root, plain]));
    vm.wait_for(is_started);

    // As the container's own program in all that it may do.
    for container in [0, 1] {
        vm.exec(u32::from(container), container, status);
        let heard = vm.ended(u32::from(container));
        assert_eq!(heard.end, Some(ExecAnswer::Ended(ContainerExit::Code(0))));
        let lines = |text: &str| -> Vec<String> {
            let differs = |line: &&str| !line.starts_with("0::/");
            text.lines().filter(differs).map(str::to_owned).collect()
        };
        vm.wait_for_output(container, "end\n");
        let own = lines(&vm.stdout(container));
        let session = lines(&text(&heard.stdout));
        assert_eq!(session, own, "container {container}");
        assert!(
            text(&heard.stdout).contains("0::/x"),
            "{}",
            text(&heard.stdout)
        );
    }

    // Among the container's processes and files, with its variables and the session's.
    vm.exec(10, 0, "echo $MODE $TERM $HOME; cat /pod/file; ls -d /proc/[0-9]* | wc -l; tr '\\0' ' ' </proc/1/cmdline; echo bad >&2; exit 7");
    let heard = vm.ended(10);
    assert_eq!(heard.end, Some(ExecAnswer::Ended(ContainerExit::Code(7))));
    assert_eq!(
        text(&heard.stdout).lines().collect::<Vec<_>>(),
        ["fast xterm /home/app", "mine", "4", "sleep 1000 "]
    );
    assert_eq!(text(&heard.stderr), "bad\n");

    // Input, its end, and a signal.
    vm.start_exec(11, 1, &["cat"], None);
    vm.type_in(11, "two\nlines\n");
    vm.ask(11, ExecAsk::EndOfInput);
    let heard = vm.ended(11);
    assert_eq!(text(&heard.stdout), "two\nlines\n");
    assert_eq!(heard.taken, exec_cost(10));
    vm.exec(12, 1, "kill -TERM $$");
    let killed = ExecAnswer::Ended(ContainerExit::Signal(15));
    assert_eq!(vm.ended(12).end, Some(killed));

    // What cannot be run, as shells say it.
    let mut refused = |session, container, program: &str| {
        vm.start_exec(session, container, &[program], None);
        match vm.ended(session).end {
            Some(ExecAnswer::Failed { code, message }) => (code, message),
            other => panic!("{other:?}"),
        }
    };
    let (code, message) = refused(20, 0, "nothing-like-this");
    assert!(
        code == 127 && message.contains("no program"),
        "{code} {message}"
    );
    let (code, message) = refused(21, 0, "/bin/not-executable");
    assert!(
        code == 126 && message.contains("not executable"),
        "{code} {message}"
    );
    let (code, message) = refused(22, 2, "true");
    assert!(
        code == 126 && message.contains("does not run"),
        "{code} {message}"
    );
    let (code, message) = refused(23, 9, "true");
    assert!(
        code == 126 && message.contains("no such container"),
        "{code} {message}"
    );

    // A terminal: its size, a change of it, a key, its end.
    let size = |columns, rows| WindowSize { columns, rows };
    let script = "tty; stty size; trap 'stty size' WINCH; read word; echo \"<$word>\"; \
                  while :; do sleep 0.1; done";
    vm.start_exec(30, 1, &["/bin/sh", "-c", script], Some(size(91, 33)));
    vm.type_in(30, "typed\n");
    vm.wait_for_session(30, "<typed>\r\n");
    vm.ask(30, ExecAsk::Resize(size(120, 44)));
    vm.wait_for_session(30, "44 120\r\n");
    vm.type_in(30, "\u{3}");
    let heard = vm.ended(30);
    let shown = text(&heard.stdout);
    for part in ["/dev/pts/0\r\n", "33 91\r\n", "^C"] {
        assert!(shown.contains(part), "{part:?} in {shown:?}");
    }
    let interrupted = ExecAnswer::Ended(ContainerExit::Signal(2));
    assert_eq!(heard.end, Some(interrupted));
}

/// Given sessions that flood, do not read, and start what outlives them, when nobody reads them and when they
/// are let go, then the channel carries everything else, and nothing of them is left.
#[test]
fn sessions_are_bounded_and_leave_nothing_behind() {
    let image = Image::busybox();
    let mut vm = Vm::boot(&Options {
        images: &[&image],
        ..Options::default()
    });
    let ticks = "while :; do echo tick; sleep 0.2; done";
    vm.configure(pod(vec![shell("app", ticks)]));
    vm.wait_for(is_started);
    vm.wait_for_output(0, "tick");

    // All that may be, each without a reader.
    let sessions = u32::try_from(MAX_EXEC_SESSIONS).unwrap();
    for session in 0..sessions {
        vm.start_exec(
            session,
            0,
            &["yes", "a long line of nothing but words"],
            None,
        );
    }
    vm.wait_until(|heard| {
        (0..sessions).all(|wanted| session(heard, wanted).cost > EXEC_WINDOW_BYTES - 512)
    });
    // The host is answered, and the log goes on.
    let before = vm.stdout(0).len();
    vm.send(&HostMessage::Ping { id: 7 });
    vm.wait_for(|message| *message == AgentMessage::Pong { id: 7 });
    let deadline = std::time::Instant::now() + crate::vm::DEADLINE;
    while vm.stdout(0).len() <= before {
        assert!(std::time::Instant::now() < deadline, "the log stands still");
        vm.hear(false);
    }
    for wanted in 0..sessions {
        assert!(session(&vm.heard, wanted).cost <= EXEC_WINDOW_BYTES);
    }
    // One is read: it goes on by what was read, and no more.
    vm.ask(0, ExecAsk::Credit { bytes: 20_000 });
    vm.wait_until(|heard| session(heard, 0).cost > EXEC_WINDOW_BYTES + 20_000 - 512);
    assert!(session(&vm.heard, 0).cost <= EXEC_WINDOW_BYTES + 20_000);

    // They are let go: their processes end.
    for session in 0..sessions {
        vm.ask(session, ExecAsk::Kill);
    }
    vm.exec(
        100,
        0,
        "while pidof yes; do sleep 0.1; done; (setsid sleep 4000 &) ; echo clean",
    );
    let heard = vm.ended(100);
    assert!(text(&heard.stdout).ends_with("clean\n"));
    // What a session has started in the background ended with it.
    vm.exec(
        101,
        0,
        "while pgrep -f '[s]leep 4000' >/dev/null; do sleep 0.1; done; echo gone",
    );
    assert_eq!(text(&vm.ended(101).stdout), "gone\n");

    // A program that does not read takes no more than a window, and a pipe.
    vm.start_exec(102, 0, &["sleep", "3000"], None);
    let piece = "x".repeat(16 * 1024);
    for _ in 0..4 {
        vm.type_in(102, &piece);
    }
    vm.wait_until(|heard| session(heard, 102).taken >= exec_cost(piece.len()) * 3);
    // Another host comes: the sessions of the last one are gone.
    vm.attach("second");
    vm.exec(
        200,
        0,
        "while pgrep -f '[s]leep 3000' >/dev/null; do sleep 0.1; done; echo none",
    );
    assert_eq!(text(&vm.ended(200).stdout), "none\n");
}
