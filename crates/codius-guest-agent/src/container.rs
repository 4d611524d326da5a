//! One container, as the agent sees it: a process that is PID 1 of its own namespace, two pipes, a
//! control group.
//!
//! ```text
//! starting ── the report pipe closes empty ──▶ running ── reaped ──▶ ended ── output read ──▶ exited
//!     └────── it closes with a text: the program could not be started; the text says why
//! ```

use std::{
    io::Write,
    os::fd::{AsFd, OwnedFd},
};

use codius_guest_protocol::{ContainerConfig, ContainerExit, ContainerStatus, LogStream};
use rustix::{
    fs::{Mode, OFlags, fcntl_setfl, open},
    io::{Errno, read},
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Signal, WaitStatus, kill_process, setsid},
};

use crate::{
    cgroup::Cgroup,
    program,
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
    pid: Pid,
    cgroup: Cgroup,
    /// Open until the program runs or has failed to.
    pub(crate) report_pipe: Option<OwnedFd>,
    report: Vec<u8>,
    pub(crate) outputs: [Output; 2],
    /// How the process ended; told to the host when its output has been read.
    ended: Option<ContainerExit>,
    pub(crate) told: bool,
    /// Its program could not be started.
    failed: bool,
}

impl Container {
    /// Starts the process of a container. Whether the program runs is heard on `report_pipe`.
    pub(crate) fn start(
        number: u16,
        config: &ContainerConfig,
        image: &str,
        etc: &EtcFiles,
    ) -> Result<Self, String> {
        let name = &format!("c{number}");
        let said = |what: &'static str| move |error| format!("{what}: {error}");
        let cgroup = Cgroup::create(name, config.memory_bytes, config.max_processes)
            .map_err(|error| format!("no control group: {error}"))?;
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
                    &cgroup,
                    [&child_stdout, &child_stderr],
                    &report,
                );
                let _ = std::fs::File::from(report).write_all(message.as_bytes());
                sys::exit(127);
            }
            Ok(Forked::Parent(pid)) => pid,
        };
        Ok(Self {
            number,
            pid: Pid::from_raw(pid).ok_or("no process")?,
            cgroup,
            report_pipe: Some(report_pipe),
            report: Vec::new(),
            outputs: [
                Output {
                    stream: LogStream::Stdout,
                    pipe: Some(stdout),
                },
                Output {
                    stream: LogStream::Stderr,
                    pipe: Some(stderr),
                },
            ],
            ended: None,
            told: false,
            failed: false,
        })
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
        self.failed = !self.report.is_empty();
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
        self.ended = Some(exit(status, self.cgroup.has_oom_kills()));
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

    /// Asks the program to end.
    pub(crate) fn terminate(&self) {
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
            Some(exit) => ContainerStatus::Exited(exit),
            None if self.report_pipe.is_some() => ContainerStatus::Waiting,
            None => ContainerStatus::Running,
        }
    }
}

fn exit(status: WaitStatus, oom_kills: bool) -> ContainerExit {
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
        Ok(()) => program::run(config, &etc.hostname),
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
