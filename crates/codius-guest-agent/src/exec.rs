//! Sessions of `exec`: programs that the owner of a pod runs in its containers beside their own.
//!
//! ```text
//! Start ─▶ starting ── the report closes empty ─▶ running ── reaped ─▶ output read ─▶ Ended
//!             └─────── it closes with a text ─── reaped ─▶ Failed
//! Kill, a new host, no host ─▶ dying ── reaped ─▶ gone, without a word
//! ```
//! A session's program becomes what the container's own is, by the same steps (`program`, `privileges`,
//! `seccomp`), in the container's namespaces, and in a control group below the container's: so its limits
//! are the container's, and all that it has started can be ended with it.
//!
//! Traps. Until its program runs, the process is the agent's and among programs of strangers: it is not
//! dumpable, so that `/proc` shows nothing of it, and it has left the agent's files before the image decides
//! about a path. Its terminal is opened in the container's own `devpts`, after the container's root was
//! entered, because from outside a link could lead anywhere; its other end comes back over a socket.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut, Write},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use codius_guest_protocol::{
    AgentMessage, ContainerConfig, EXEC_MIN_COST_BYTES, EXEC_WINDOW_BYTES, ExecAnswer, ExecAsk,
    LogStream, MAX_EXEC_PIECE_BYTES, MAX_EXEC_SESSIONS, WindowSize, exec_cost,
};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fcntl_setfl, fstat, open, openat2},
    io::{Errno, read, write},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    },
    pipe::{PipeFlags, pipe_with},
    process::{DumpableBehavior, Pid, WaitStatus, ioctl_tiocsctty, set_dumpable_behavior, setsid},
    termios::{Winsize, tcsetwinsize},
};

use crate::{
    cgroup::Cgroup,
    container::{Container, exit},
    outbox::Outbox,
    pod::Pod,
    program::{self, NOT_EXECUTABLE, NotRun},
    sys::{self, Forked},
};

/// Beside those that the host may have, some whose processes have not been reaped yet.
const PLACES: usize = 2 * MAX_EXEC_SESSIONS;
/// The longest text that a failed start is heard with.
const MAX_REPORT_BYTES: usize = 4096;

/// One of the descriptors of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Report,
    Input,
    Output(usize),
}

impl Part {
    pub(crate) fn number(self) -> u64 {
        match self {
            Self::Report => 0,
            Self::Input => 1,
            Self::Output(output) => 2 + u64::from(output > 0),
        }
    }

    pub(crate) fn from_number(number: u64) -> Self {
        match number {
            0 => Self::Report,
            1 => Self::Input,
            2 => Self::Output(0),
            _ => Self::Output(1),
        }
    }
}

/// A descriptor, and whether it is in the epoll set.
#[derive(Debug)]
struct Watched {
    descriptor: OwnedFd,
    in_set: bool,
}

impl From<OwnedFd> for Watched {
    fn from(descriptor: OwnedFd) -> Self {
        Self {
            descriptor,
            in_set: false,
        }
    }
}

#[derive(Debug)]
struct Session {
    id: u32,
    pid: Pid,
    cgroup: Cgroup,
    /// Kills for want of memory in the whole container, before it began.
    oom_kills: u64,
    container_cgroup: Cgroup,
    /// Open until the program runs or has failed to.
    report: Option<Watched>,
    said: Vec<u8>,
    /// Of a terminal, once it is there.
    terminal: bool,
    input: Option<Watched>,
    waiting: VecDeque<u8>,
    /// The costs of the pieces in `waiting`, with their bytes.
    costs: VecDeque<(usize, u32)>,
    input_ends: bool,
    outputs: [Option<Watched>; 2],
    /// What may be sent of its output.
    credit: u32,
    ended: Option<WaitStatus>,
    /// The host has let go of it.
    dying: bool,
}

/// All sessions, each at its place.
#[derive(Debug)]
pub(crate) struct Sessions {
    places: [Option<Session>; PLACES],
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            places: [const { None }; PLACES],
        }
    }
}

impl Sessions {
    /// Does what the host asks. Fails only if the agent itself cannot go on.
    pub(crate) fn obey(
        &mut self,
        id: u32,
        ask: ExecAsk,
        pod: Option<&Pod>,
        outbox: &mut Outbox,
    ) -> io::Result<()> {
        match ask {
            ExecAsk::Start {
                container,
                args,
                env,
                input,
                terminal,
            } => {
                let wanted = Wanted {
                    args,
                    env,
                    input,
                    terminal,
                };
                if let Err(message) = self.start(id, container, wanted, pod)? {
                    let code = NOT_EXECUTABLE;
                    say(outbox, id, ExecAnswer::Failed { code, message });
                }
            }
            ExecAsk::Input { data } => {
                if let Some(session) = self.find(id) {
                    session.take_input(&data, outbox);
                }
            }
            ExecAsk::EndOfInput => {
                if let Some(session) = self.find(id) {
                    session.input_ends = true;
                    session.write_input(outbox);
                }
            }
            ExecAsk::Resize(size) => {
                if let Some(session) = self.find(id)
                    && session.terminal
                    && let Some(terminal) = &session.outputs[0]
                {
                    // A terminal that is gone has no size.
                    let _ = tcsetwinsize(&terminal.descriptor, winsize(size));
                }
            }
            ExecAsk::Credit { bytes } => {
                if let Some(session) = self.find(id) {
                    let credit = session.credit.saturating_add(bytes);
                    session.credit = credit.min(EXEC_WINDOW_BYTES);
                }
            }
            ExecAsk::Kill => {
                if let Some(session) = self.find(id) {
                    session.kill();
                }
            }
        }
        Ok(())
    }

    /// Ends all: whoever wanted them is gone.
    pub(crate) fn kill_all(&mut self) {
        self.places.iter_mut().flatten().for_each(Session::kill);
    }

    /// A process that is no container's has ended.
    pub(crate) fn reaped(&mut self, pid: Pid, status: WaitStatus) {
        for place in &mut self.places {
            let Some(session) = place.as_mut().filter(|session| session.pid == pid) else {
                continue;
            };
            session.ended = Some(status);
            // What it has started ends with it.
            let _ = session.cgroup.kill();
            if session.dying {
                *place = None;
            }
            return;
        }
    }

    /// A descriptor can be read or written.
    pub(crate) fn ready(&mut self, place: u8, part: Part, outbox: &mut Outbox) {
        let Some(session) = self
            .places
            .get_mut(usize::from(place))
            .and_then(Option::as_mut)
        else {
            return;
        };
        match part {
            Part::Report => session.hear(outbox),
            Part::Input => session.write_input(outbox),
            Part::Output(output) => {
                session.read_output(output, outbox);
            }
        }
    }

    /// Tells the end of those whose program has ended and whose output was read.
    pub(crate) fn finish(&mut self, outbox: &mut Outbox) {
        for place in &mut self.places {
            let Some(session) = place.as_mut() else {
                continue;
            };
            let Some(status) = session.ended else {
                continue;
            };
            if session.dying {
                *place = None;
                continue;
            }
            session.hear(outbox);
            // The report is open for as long as there may be something in it.
            session.report = None;
            if !session.drain(outbox) {
                continue;
            }
            let answer = if session.said.is_empty() {
                let oom_kills = session.container_cgroup.oom_kills() > session.oom_kills;
                ExecAnswer::Ended(exit(status, oom_kills))
            } else {
                ExecAnswer::Failed {
                    code: status.exit_status().unwrap_or(NOT_EXECUTABLE),
                    message: String::from_utf8_lossy(&session.said).into_owned(),
                }
            };
            say(outbox, session.id, answer);
            *place = None;
        }
    }

    /// Has each descriptor put into the epoll set, or taken out, as it is of use now.
    pub(crate) fn watch(
        &mut self,
        mut set: impl FnMut(u8, Part, BorrowedFd<'_>, bool) -> io::Result<()>,
    ) -> io::Result<()> {
        for (place, session) in (0..).zip(&mut self.places) {
            let Some(session) = session else { continue };
            let can_send = session.credit >= EXEC_MIN_COST_BYTES;
            let has_input = !session.waiting.is_empty();
            let parts = [
                (Part::Report, true, &mut session.report),
                (Part::Input, has_input, &mut session.input),
            ];
            let outputs = session.outputs.iter_mut().enumerate();
            let outputs = outputs.map(|(index, output)| (Part::Output(index), can_send, output));
            for (part, wanted, watched) in parts.into_iter().chain(outputs) {
                if let Some(watched) = watched.as_mut().filter(|watched| watched.in_set != wanted) {
                    set(place, part, watched.descriptor.as_fd(), wanted)?;
                    watched.in_set = wanted;
                }
            }
        }
        Ok(())
    }

    fn find(&mut self, id: u32) -> Option<&mut Session> {
        let mut sessions = self.places.iter_mut().flatten();
        sessions.find(|session| session.id == id && !session.dying)
    }

    /// The inner error is for the user.
    fn start(
        &mut self,
        id: u32,
        container: u16,
        wanted: Wanted,
        pod: Option<&Pod>,
    ) -> io::Result<Result<(), String>> {
        if self.find(id).is_some() {
            return Ok(Err("this session runs already".to_owned()));
        }
        let Some(place) = self.places.iter().position(Option::is_none) else {
            return Ok(Err("there are too many sessions".to_owned()));
        };
        let mut containers = pod.into_iter().flat_map(Pod::containers);
        let Some(container) = containers.find(|one| one.number == container) else {
            return Ok(Err("there is no such container".to_owned()));
        };
        let hostname = pod.map_or("", Pod::hostname);
        Ok(match start(id, place, container, &wanted, hostname)? {
            Ok(session) => {
                self.places[place] = Some(session);
                Ok(())
            }
            Err(message) => Err(message),
        })
    }
}

fn say(outbox: &mut Outbox, session: u32, answer: ExecAnswer) {
    outbox.push(AgentMessage::Exec { session, answer });
}

fn winsize(size: WindowSize) -> Winsize {
    Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

impl Session {
    fn kill(&mut self) {
        self.dying = true;
        self.report = None;
        self.input = None;
        self.outputs = [None, None];
        // One that has not come so far yet is in the group in a moment, or was never the user's program.
        let _ = self.cgroup.kill();
        if self.ended.is_none() {
            let _ = rustix::process::kill_process(self.pid, rustix::process::Signal::KILL);
        }
    }

    /// Reads from the report: the other end of the terminal, and why the program could not be started.
    fn hear(&mut self, outbox: &mut Outbox) {
        let Some(report) = self.report.take() else {
            return;
        };
        let mut buffer = [0; 1024];
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut attached = RecvAncillaryBuffer::new(&mut space);
            let received = recvmsg(
                &report.descriptor,
                &mut [IoSliceMut::new(&mut buffer)],
                &mut attached,
                RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
            );
            let terminal = attached.drain().find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
                _ => None,
            });
            match received.map(|received| received.bytes) {
                Ok(0) => break,
                // The byte that a descriptor comes with means nothing.
                Ok(_) if terminal.is_some() => {
                    if let Some(terminal) = terminal {
                        self.give_terminal(terminal);
                    }
                }
                Ok(length) if self.said.len() < MAX_REPORT_BYTES => {
                    self.said.extend_from_slice(&buffer[..length]);
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.report = Some(report);
                    return;
                }
                Err(_) => break,
            }
        }
        if self.said.is_empty() {
            say(outbox, self.id, ExecAnswer::Started);
        }
    }

    fn give_terminal(&mut self, terminal: OwnedFd) {
        if fcntl_setfl(&terminal, OFlags::RDWR | OFlags::NONBLOCK).is_err() {
            return;
        }
        // Twice in the epoll set, for reading and for writing.
        self.input = terminal.try_clone().ok().map(Watched::from);
        self.outputs[0] = Some(terminal.into());
    }

    fn take_input(&mut self, data: &[u8], outbox: &mut Outbox) {
        let cost = exec_cost(data.len());
        let on_the_way: u32 = self.costs.iter().map(|(_, cost)| cost).sum();
        // The host keeps to the window; a piece beyond it would be lost memory.
        if on_the_way.saturating_add(cost) > EXEC_WINDOW_BYTES {
            return self.kill();
        }
        self.waiting.extend(data);
        self.costs.push_back((data.len(), cost));
        self.write_input(outbox);
    }

    /// Gives the program what it takes of its input.
    fn write_input(&mut self, outbox: &mut Outbox) {
        // A terminal's input comes when the terminal does.
        if self.report.is_some() && self.input.is_none() {
            return;
        }
        let mut taken = 0;
        while !self.waiting.is_empty() {
            let Some(input) = &self.input else {
                // Nobody reads it any more.
                taken += self.waiting.len();
                self.waiting.clear();
                break;
            };
            let (piece, _) = self.waiting.as_slices();
            match write(&input.descriptor, piece) {
                Ok(length) => {
                    taken += length;
                    self.waiting.drain(..length);
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(_) => self.input = None,
            }
        }
        let mut paid_back = 0;
        while let Some((bytes, cost)) = self.costs.front_mut() {
            if *bytes > taken {
                *bytes -= taken;
                break;
            }
            taken -= *bytes;
            paid_back += *cost;
            self.costs.pop_front();
        }
        if paid_back > 0 {
            say(outbox, self.id, ExecAnswer::Taken { bytes: paid_back });
        }
        if self.input_ends && self.waiting.is_empty() && !self.terminal {
            self.input = None;
        }
    }

    /// Sends one piece of output. False if there is nothing more now, or it may not be sent.
    fn read_output(&mut self, output: usize, outbox: &mut Outbox) -> bool {
        let Some(watched) = &self.outputs[output] else {
            return false;
        };
        if self.credit < EXEC_MIN_COST_BYTES {
            return false;
        }
        let most = usize::try_from(self.credit).unwrap_or(usize::MAX);
        let mut buffer = vec![0; most.min(MAX_EXEC_PIECE_BYTES)];
        match read(&watched.descriptor, &mut buffer) {
            Err(Errno::AGAIN | Errno::INTR) => false,
            // A terminal that nobody has open any more answers with an error.
            Ok(0) | Err(_) => {
                self.outputs[output] = None;
                false
            }
            Ok(length) => {
                self.credit -= exec_cost(length).min(self.credit);
                buffer.truncate(length);
                let stream = match output {
                    0 => LogStream::Stdout,
                    _ => LogStream::Stderr,
                };
                let data = buffer;
                say(outbox, self.id, ExecAnswer::Output { stream, data });
                true
            }
        }
    }

    /// Reads what an ended program has left behind; false if that has to wait for credit.
    fn drain(&mut self, outbox: &mut Outbox) -> bool {
        for output in 0..self.outputs.len() {
            while self.read_output(output, outbox) {}
            if self.outputs[output].is_some() && self.credit < EXEC_MIN_COST_BYTES {
                return false;
            }
        }
        true
    }
}

/// What is to be run.
struct Wanted {
    args: Vec<String>,
    env: Vec<(String, String)>,
    input: bool,
    terminal: Option<WindowSize>,
}

/// What the child has of the agent.
struct Ends {
    report: OwnedFd,
    /// Input and outputs, if they are no terminal.
    streams: Option<[OwnedFd; 3]>,
}

/// Starts the process. The outer error ends the agent, the inner one is for the user.
fn start(
    id: u32,
    place: usize,
    container: &Container,
    wanted: &Wanted,
    hostname: &str,
) -> io::Result<Result<Session, String>> {
    let prepared = container.descriptor().and_then(|descriptor| {
        let cgroup = container.cgroup.below(&format!("x{place}"));
        let cgroup = cgroup.map_err(|error| format!("no control group: {error}"))?;
        // What the last session here has left behind.
        let _ = cgroup.kill();
        let pipes = pipes(wanted).map_err(|error| format!("no pipe: {error}"))?;
        Ok((descriptor, cgroup, pipes))
    });
    let (descriptor, cgroup, (ours, ends)) = match prepared {
        Ok(prepared) => prepared,
        Err(message) => return Ok(Err(message)),
    };
    let pid = match sys::fork_into(&descriptor)? {
        Err(error) => return Ok(Err(format!("no process: {error}"))),
        Ok(Forked::Child) => {
            let Ends { report, streams } = ends;
            let not_run = match enter(wanted, &descriptor, &cgroup, streams, &report) {
                Ok(()) => become_program(container, wanted, hostname),
                Err(message) => message.into(),
            };
            let _ = std::fs::File::from(report).write_all(not_run.message.as_bytes());
            sys::exit(not_run.code);
        }
        Ok(Forked::Parent(pid)) => pid,
    };
    let Some(pid) = Pid::from_raw(pid) else {
        return Ok(Err("no process".to_owned()));
    };
    let [input, stdout, stderr] = ours.streams;
    Ok(Ok(Session {
        id,
        pid,
        cgroup,
        oom_kills: container.cgroup.oom_kills(),
        container_cgroup: container.cgroup.clone(),
        report: Some(ours.report.into()),
        said: Vec::new(),
        terminal: wanted.terminal.is_some(),
        input: input.map(Watched::from),
        waiting: VecDeque::new(),
        costs: VecDeque::new(),
        input_ends: false,
        outputs: [stdout.map(Watched::from), stderr.map(Watched::from)],
        credit: EXEC_WINDOW_BYTES,
        ended: None,
        dying: false,
    }))
}

/// The agent's ends.
struct Ours {
    report: OwnedFd,
    /// Input, standard output, standard error.
    streams: [Option<OwnedFd>; 3],
}

fn pipes(wanted: &Wanted) -> rustix::io::Result<(Ours, Ends)> {
    let (report, child_report) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    if wanted.terminal.is_some() {
        let ours = Ours {
            report,
            streams: [const { None }; 3],
        };
        let ends = Ends {
            report: child_report,
            streams: None,
        };
        return Ok((ours, ends));
    }
    let pipe = || pipe_with(PipeFlags::CLOEXEC);
    let ((stdout, child_stdout), (stderr, child_stderr)) = (pipe()?, pipe()?);
    let (input, child_input) = if wanted.input {
        let (child_input, input) = pipe()?;
        fcntl_setfl(&input, OFlags::NONBLOCK)?;
        (Some(input), child_input)
    } else {
        let null = open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        (None, null)
    };
    for end in [&stdout, &stderr] {
        fcntl_setfl(end, OFlags::NONBLOCK)?;
    }
    let ours = Ours {
        report,
        streams: [input, Some(stdout), Some(stderr)],
    };
    let ends = Ends {
        report: child_report,
        streams: Some([child_input, child_stdout, child_stderr]),
    };
    Ok((ours, ends))
}

/// In the new process. Returns only the reason why that failed.
fn become_program(container: &Container, wanted: &Wanted, hostname: &str) -> NotRun {
    let config = ContainerConfig {
        args: wanted.args.clone(),
        env: merged(&container.config.env, &wanted.env),
        ..container.config.clone()
    };
    program::run(&config, hostname)
}

fn merged(container: &[(String, String)], session: &[(String, String)]) -> Vec<(String, String)> {
    let replaced = |name: &String| session.iter().any(|(other, _)| other == name);
    let kept = container.iter().filter(|(name, _)| !replaced(name));
    kept.chain(session).cloned().collect()
}

/// In the new process: into the container, with nothing of the agent's left but the report.
fn enter(
    wanted: &Wanted,
    descriptor: &OwnedFd,
    cgroup: &Cgroup,
    streams: Option<[OwnedFd; 3]>,
    report: &OwnedFd,
) -> Result<(), String> {
    let said = |error: Errno| format!("standard streams: {error}");
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| format!("the process cannot be hidden: {error}"))?;
    cgroup
        .enter()
        .and_then(|()| std::fs::write("/proc/self/oom_score_adj", "0"))
        .map_err(|error| format!("control group: {error}"))?;
    let namespaces =
        libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP;
    sys::enter_namespaces(descriptor, namespaces)
        .map_err(|error| format!("the container cannot be entered: {error}"))?;
    if let Some([input, stdout, stderr]) = streams {
        rustix::stdio::dup2_stdin(input).map_err(said)?;
        rustix::stdio::dup2_stdout(stdout).map_err(said)?;
        rustix::stdio::dup2_stderr(stderr).map_err(said)?;
    }
    setsid().map_err(said)?;
    if let Some(size) = wanted.terminal {
        make_terminal(size, report).map_err(|error| format!("no terminal: {error}"))?;
    }
    sys::close_descriptors_but(report)
        .map_err(|error| format!("the agent's files stay open: {error}"))
}

/// Opens a terminal of the container and makes it this process's; its other end goes to the agent.
fn make_terminal(size: WindowSize, report: &OwnedFd) -> io::Result<()> {
    let ours = openat2(
        CWD,
        "/dev/pts/ptmx",
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )?;
    if FileType::from_raw_mode(fstat(&ours)?.st_mode) != FileType::CharacterDevice {
        return Err(io::Error::other("/dev/pts/ptmx is something else"));
    }
    let terminal = sys::peer_of_terminal(&ours)?;
    tcsetwinsize(&ours, winsize(size))?;
    let descriptors = [ours.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut attached = SendAncillaryBuffer::new(&mut space);
    attached.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(
        report,
        &[IoSlice::new(&[0])],
        &mut attached,
        SendFlags::NOSIGNAL,
    )?;
    ioctl_tiocsctty(&terminal)?;
    rustix::stdio::dup2_stdin(&terminal)?;
    rustix::stdio::dup2_stdout(&terminal)?;
    rustix::stdio::dup2_stderr(&terminal)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sessions_variables_take_the_place_of_the_containers() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let container = [pair("TERM", "dumb"), pair("A", "1")];
        let session = [pair("TERM", "xterm")];
        let expected = [pair("A", "1"), pair("TERM", "xterm")];
        assert_eq!(merged(&container, &session), expected);
    }
}
