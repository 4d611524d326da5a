//! One container, as the agent sees it: a process that is PID 1 of its own namespace, two pipes, a
//! control group.
//!
//! ```text
//! starting ── the report pipe closes empty ──▶ running ── reaped ──▶ ended ── output read ──▶ exited
//!    │ ▲                                                                              │
//!    │ └──── started again, in the same files and limits ──── waiting ◀── its policy ─┘
//!    └────── it closes with a text: the program could not be started; the text says why
//! ```
//! A program that cannot be started *again* (it may have removed itself) has ended with code 127, as in a
//! shell.

use std::{
    io::Write,
    os::fd::{AsFd, OwnedFd},
    time::Instant,
};

use codius_guest_protocol::{
    ContainerConfig, ContainerExit, ContainerStanding, ContainerStatus, LogStream,
};
use rustix::{
    fs::{Mode, OFlags, fcntl_setfl, open},
    io::{Errno, read},
    pipe::{PipeFlags, pipe_with},
    process::{Pid, PidfdFlags, Signal, WaitStatus, kill_process, pidfd_open, setsid},
};

use crate::{
    cgroup::Cgroup,
    program,
    restart::Restarts,
    root::{self, EtcFiles},
    sys::{self, Forked},
};

/// The longest text that a failed start is heard with.
const MAX_REPORT_BYTES: usize = 4096;
/// Its own of everything but the network, which is the pod's. The control groups follow in `enter`.
const NAMESPACES: libc::c_int =
    libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
/// What shells and we report for a process that was killed: 128 + SIGKILL.
const KILLED_CODE: i32 = 137;
/// As shells say it of a program that could not be started.
const NOT_STARTED_CODE: i32 = 127;

/// One of the two outputs of a container.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) stream: LogStream,
    /// Gone when everything has been read.
    pub(crate) pipe: Option<OwnedFd>,
}

/// What reading an output gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Piece {
    Bytes(usize),
    /// Nothing now.
    Empty,
    /// Nothing ever again.
    End,
}

impl Output {
    pub(crate) fn read(&self, buffer: &mut [u8]) -> Piece {
        let Some(pipe) = &self.pipe else {
            return Piece::End;
        };
        match read(pipe, buffer) {
            Ok(0) => Piece::End,
            Ok(length) => Piece::Bytes(length),
            Err(Errno::AGAIN | Errno::INTR) => Piece::Empty,
            Err(_) => Piece::End,
        }
    }
}

/// A container whose process exists or existed.
#[derive(Debug)]
pub(crate) struct Container {
    /// Its place in the configuration.
    pub(crate) number: u16,
    pub(crate) config: ContainerConfig,
    /// Where its image is mounted.
    image: String,
    pub(crate) cgroup: Cgroup,
    restarts: Restarts,
    pid: Pid,
    /// Open until the program runs or has failed to.
    pub(crate) report_pipe: Option<OwnedFd>,
    report: Vec<u8>,
    pub(crate) outputs: [Output; 2],
    /// Kills for want of memory before this program.
    oom_kills: u64,
    /// How the process ended; told to the host when its output has been read.
    ended: Option<ContainerExit>,
    pub(crate) told: bool,
    /// Its program could not be started.
    failed: bool,
}

/// A new process of a container, with the ends of its pipes that are ours.
struct Launched {
    pid: Pid,
    report_pipe: OwnedFd,
    outputs: [Output; 2],
}

impl Container {
    /// Starts the process of a container. Whether the program runs is heard on `report_pipe`.
    pub(crate) fn start(
        number: u16,
        config: &ContainerConfig,
        image: String,
        etc: &EtcFiles,
        now: Instant,
    ) -> Result<Self, String> {
        let name = format!("c{number}");
        let cgroup = Cgroup::create(&name, config.memory_bytes, config.max_processes)
            .map_err(|error| format!("no control group: {error}"))?;
        let Launched {
            pid,
            report_pipe,
            outputs,
        } = launch(number, config, &image, etc, &cgroup)?;
        Ok(Self {
            number,
            config: config.clone(),
            image,
            cgroup,
            restarts: Restarts::new(config.restart, now),
            pid,
            report_pipe: Some(report_pipe),
            report: Vec::new(),
            outputs,
            oom_kills: 0,
            ended: None,
            told: false,
            failed: false,
        })
    }

    /// Starts the program again that has ended. An error is one more end of it.
    pub(crate) fn start_again(&mut self, etc: &EtcFiles, now: Instant) -> Result<(), String> {
        self.restarts.started_again(now);
        self.oom_kills = self.cgroup.oom_kills();
        self.report.clear();
        let launched = launch(self.number, &self.config, &self.image, etc, &self.cgroup);
        match launched {
            Ok(launched) => {
                self.pid = launched.pid;
                self.report_pipe = Some(launched.report_pipe);
                self.outputs = launched.outputs;
                self.ended = None;
                self.told = false;
                Ok(())
            }
            Err(message) => {
                self.ended = Some(ContainerExit::Code(NOT_STARTED_CODE));
                self.told = false;
                Err(message)
            }
        }
    }

    /// The end of its program has been told to the host, or is now. Says whether it is started again.
    pub(crate) fn ends(&mut self, exit: ContainerExit, now: Instant) -> bool {
        self.told = true;
        for output in &mut self.outputs {
            output.pipe = None;
        }
        self.restarts.ended(exit, now)
    }

    pub(crate) fn restarts(&self) -> &Restarts {
        &self.restarts
    }

    pub(crate) fn standing(&self, now: Instant) -> ContainerStanding {
        self.restarts
            .standing(self.number, self.ended.is_none(), now)
    }

    /// A descriptor of its first process, for as long as that lives.
    pub(crate) fn descriptor(&self) -> Result<OwnedFd, String> {
        if self.ended.is_some() || self.report_pipe.is_some() {
            return Err("the container does not run at the moment".to_owned());
        }
        pidfd_open(self.pid, PidfdFlags::empty()).map_err(|error| format!("no process: {error}"))
    }

    /// Reads from the report pipe. When that is closed, says how the start went.
    pub(crate) fn hear(&mut self) -> Option<Result<(), String>> {
        let pipe = self.report_pipe.as_ref()?;
        let mut buffer = [0; 1024];
        loop {
            match read(pipe, &mut buffer) {
                Ok(0) => break,
                Ok(length) if self.report.len() < MAX_REPORT_BYTES => {
                    self.report.extend_from_slice(&buffer[..length]);
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return None,
                Err(_) => break,
            }
        }
        self.report_pipe = None;
        self.failed = !self.report.is_empty() && self.restarts.count() == 0;
        Some(if self.report.is_empty() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&self.report).into_owned())
        })
    }

    pub(crate) fn is(&self, pid: Pid) -> bool {
        self.pid == pid && self.ended.is_none()
    }

    pub(crate) fn reaped(&mut self, status: WaitStatus) {
        let oom_kills = self.cgroup.oom_kills() > self.oom_kills;
        self.ended = Some(exit(status, oom_kills));
    }

    /// The end of its program has still to be told: it has ended, and how it began is known.
    pub(crate) fn untold_end(&self) -> Option<ContainerExit> {
        self.ended
            .filter(|_| !self.told && !self.failed && self.report_pipe.is_none())
    }

    /// Nothing will be heard of it any more.
    pub(crate) fn is_over(&self) -> bool {
        self.ended.is_some() && (self.told || self.failed)
    }

    /// Asks the program to end. It is not started again.
    pub(crate) fn terminate(&mut self) {
        self.restarts.give_up();
        if self.ended.is_none() {
            // It may have ended just now.
            let _ = kill_process(self.pid, Signal::TERM);
        }
    }

    /// Ends everything in the container.
    pub(crate) fn kill(&self) {
        if self.ended.is_none() && self.cgroup.kill().is_err() {
            // The end of its PID 1 ends the others as well.
            let _ = kill_process(self.pid, Signal::KILL);
        }
    }

    pub(crate) fn status(&self) -> ContainerStatus {
        match self.ended {
            _ if self.failed => ContainerStatus::Waiting,
            // What has ended and is not decided yet is told later.
            Some(_) if self.restarts.next().is_some() || !self.told => ContainerStatus::Waiting,
            Some(exit) => ContainerStatus::Exited(exit),
            None if self.report_pipe.is_some() => ContainerStatus::Waiting,
            None => ContainerStatus::Running,
        }
    }
}

/// Starts a process that becomes the container's program.
fn launch(
    number: u16,
    config: &ContainerConfig,
    image: &str,
    etc: &EtcFiles,
    cgroup: &Cgroup,
) -> Result<Launched, String> {
    let name = &format!("c{number}");
    let said = |what: &'static str| move |error| format!("{what}: {error}");
    let pipe = || pipe_with(PipeFlags::CLOEXEC);
    let (report_pipe, report) = pipe().map_err(said("no pipe"))?;
    let (stdout, child_stdout) = pipe().map_err(said("no pipe"))?;
    let (stderr, child_stderr) = pipe().map_err(said("no pipe"))?;
    for end in [&report_pipe, &stdout, &stderr] {
        fcntl_setfl(end, OFlags::NONBLOCK).map_err(said("no pipe"))?;
    }
    let pid = match sys::fork(NAMESPACES) {
        Err(error) => return Err(format!("no process: {error}")),
        Ok(Forked::Child) => {
            let message = become_container(
                name,
                config,
                image,
                etc,
                cgroup,
                [&child_stdout, &child_stderr],
                &report,
            );
            let _ = std::fs::File::from(report).write_all(message.as_bytes());
            sys::exit(NOT_STARTED_CODE);
        }
        Ok(Forked::Parent(pid)) => pid,
    };
    let output = |stream, pipe| Output {
        stream,
        pipe: Some(pipe),
    };
    Ok(Launched {
        pid: Pid::from_raw(pid).ok_or("no process")?,
        report_pipe,
        outputs: [
            output(LogStream::Stdout, stdout),
            output(LogStream::Stderr, stderr),
        ],
    })
}

pub(crate) fn exit(status: WaitStatus, oom_kills: bool) -> ContainerExit {
    match (status.terminating_signal(), status.exit_status()) {
        (Some(libc::SIGKILL), _) | (_, Some(KILLED_CODE)) if oom_kills => {
            ContainerExit::OutOfMemory
        }
        (Some(signal), _) => ContainerExit::Signal(signal),
        (None, code) => ContainerExit::Code(code.unwrap_or(0)),
    }
}

/// In the new process: everything up to the program. Returns only the reason why that failed.
fn become_container(
    name: &str,
    config: &ContainerConfig,
    image: &str,
    etc: &EtcFiles,
    cgroup: &Cgroup,
    outputs: [&OwnedFd; 2],
    report: &OwnedFd,
) -> String {
    match enter(name, image, etc, cgroup, outputs, report) {
        Ok(()) => program::run(config, &etc.hostname).message,
        Err(message) => message,
    }
}

fn enter(
    name: &str,
    image: &str,
    etc: &EtcFiles,
    cgroup: &Cgroup,
    [stdout, stderr]: [&OwnedFd; 2],
    report: &OwnedFd,
) -> Result<(), String> {
    // The namespace shows the group in which the process is when it is made.
    cgroup
        .enter()
        .and_then(|()| sys::unshare(libc::CLONE_NEWCGROUP))
        .and_then(|()| std::fs::write("/proc/self/oom_score_adj", "0"))
        .map_err(|error| format!("control group: {error}"))?;
    let said = |error: Errno| format!("standard streams: {error}");
    let null = open("/dev/null", OFlags::RDONLY, Mode::empty()).map_err(said)?;
    rustix::stdio::dup2_stdin(null.as_fd()).map_err(said)?;
    rustix::stdio::dup2_stdout(stdout.as_fd()).map_err(said)?;
    rustix::stdio::dup2_stderr(stderr.as_fd()).map_err(said)?;
    drop(null);
    setsid().map_err(said)?;
    // Not only at `execve`: until then the image decides about paths that we take, and through
    // `/proc/self/fd` a directory of the agent's would be a way out.
    sys::close_descriptors_but(report)
        .map_err(|error| format!("the agent's files stay open: {error}"))?;
    root::enter(image, name, etc)
}
