//! `codiusd keep`: holds the listeners of a host, so that its process can be replaced while visitors wait.
//!
//! ```text
//!             ┌──────────── SIGHUP: the old one ends and leaves its pods ────────────┐
//!             ▼                                                                      │
//! open ──▶ start the program ──▶ Starting ──READY=1──▶ Ready ────────────────────────┘
//! listeners   ▲                     │ it ended            │ it ended
//!             └──── wait (restarts.rs) ◀──────────────────┘        SIGTERM, SIGINT: passed on; the end
//! ```
//!
//! It does what systemd does with a `.socket` unit, where there is no systemd: it opens the listeners that the
//! configuration names, passes them on as `sd_listen_fds(3)` describes, and accepts nothing itself. A
//! connection that is made while no host runs waits in the queue of the listener ([`crate::listeners`]).
//!
//! Traps:
//! - It reads nothing from outside: signals, the end of its child, and one word from the child by a socket file
//!   in the data directory, which only the host's user can reach.
//! - The program is looked up anew at each start, by the path that was found when this process began. A program
//!   that cannot even say its version is not swapped in.
//! - The listeners are those of the configuration as it was at the beginning. A host that is to listen
//!   elsewhere needs a new `codiusd keep`.
//! - If this process is killed, its child goes on, and ends with SIGTERM as any other host.

mod restarts;

use std::{
    ffi::OsString,
    fs, io,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command as StdCommand, ExitCode, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use command_fds::{CommandFdExt, FdMapping};
use rustix::process::{Pid, Signal as ToChild, kill_process};
use sd_notify::NotifyState;
use tokio::{
    net::UnixDatagram,
    process::{Child, Command},
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};

use self::restarts::{MAX_FAILED_STARTS, Restarts};
use crate::{
    config::Config,
    daemon::{make_private_dir, shutdown_timeout},
    listeners::{Held, Listeners, Purpose},
};

/// Where the protocol of socket activation begins to count.
const FIRST_FD: i32 = 3;
/// Beyond the time that a host gives itself to end.
const END_MARGIN: Duration = Duration::from_secs(10);
/// A program that is to be swapped in says its version within this.
const VERSION_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of a notice from the host that are read.
const MAX_NOTICE_BYTES: usize = 4096;
/// The exit code of a wrong usage or configuration.
const WRONG_USAGE: i32 = 2;

/// Holds the listeners of `config` and runs `program` with `arguments`, until it is told to end. The exit code
/// is the host's.
pub(crate) async fn run(
    program: PathBuf,
    arguments: Vec<OsString>,
    config: &Config,
    held: Held,
) -> Result<ExitCode> {
    // From here on no signal is missed, whenever it comes.
    let signals = Signals::new()?;
    let listeners = Listeners::open(config, held)?.into_held()?;
    for (purpose, listener) in &listeners {
        let address = listener.local_addr()?;
        tracing::info!(%address, "holding the listener `{}`", purpose.name());
    }
    make_private_dir(&config.data_dir)?;
    let notices = Notices::open(&config.data_dir)?;
    let keeper = Keeper {
        program,
        arguments,
        listeners,
        notices,
        signals,
        end_timeout: shutdown_timeout(config) + END_MARGIN,
        restarts: Restarts::default(),
        was_ready: false,
    };
    keeper.run().await
}

struct Keeper {
    program: PathBuf,
    arguments: Vec<OsString>,
    listeners: Vec<(Purpose, TcpListener)>,
    notices: Notices,
    signals: Signals,
    end_timeout: Duration,
    restarts: Restarts,
    /// Whether any start has succeeded.
    was_ready: bool,
}

/// What became of one process of the host.
enum Outcome {
    /// It was told to end, and this process is to end with it.
    Told(ExitStatus),
    HandedOver,
    /// It ended by itself, or was killed.
    Died {
        status: ExitStatus,
        ready_for: Option<Duration>,
    },
}

impl Keeper {
    async fn run(mut self) -> Result<ExitCode> {
        loop {
            let ready_for = match self.start() {
                Ok(child) => match self.attend(child).await? {
                    Outcome::Told(status) => return Ok(exit_code(status)),
                    Outcome::HandedOver => continue,
                    Outcome::Died { status, ready_for } => {
                        if !self.was_ready && status.code() == Some(WRONG_USAGE) {
                            return Ok(exit_code(status));
                        }
                        tracing::error!(%status, "the host ended; its pods go on");
                        ready_for
                    }
                },
                Err(error) => {
                    tracing::error!("{error:#}");
                    None
                }
            };
            let Some(wait) = self.restarts.after(ready_for) else {
                bail!(
                    "the host was started {MAX_FAILED_STARTS} times and never became ready; its log says \
                     why. Nobody listens any more; its pods go on, and the next start takes them up"
                );
            };
            tracing::info!(?wait, "it is started again");
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                signal = self.signals.next() => if signal != ToChild::HUP {
                    return Ok(ExitCode::SUCCESS);
                }
            }
        }
    }

    fn start(&mut self) -> Result<Child> {
        let mut command = StdCommand::new(&self.program);
        command
            .args(&self.arguments)
            .stdin(Stdio::null())
            .env("NOTIFY_SOCKET", &self.notices.path);
        let mut names = Vec::new();
        let mut mappings = Vec::new();
        for ((purpose, listener), child_fd) in self.listeners.iter().zip(FIRST_FD..) {
            names.push(purpose.name());
            mappings.push(FdMapping {
                parent_fd: listener.try_clone()?.into(),
                child_fd,
            });
        }
        // Without LISTEN_PID, which cannot be known before the fork: the host takes that for itself.
        command
            .env_remove("LISTEN_PID")
            .env("LISTEN_FDS", names.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"));
        command.fd_mappings(mappings)?;
        // What an earlier one has said is not this one's word.
        self.notices.forget();
        let child = Command::from(command)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        tracing::info!(
            process = child.id(),
            program = %self.program.display(),
            "host started; SIGHUP to process {} replaces it",
            std::process::id()
        );
        Ok(child)
    }

    /// Stays with one process of the host to its end.
    async fn attend(&mut self, mut child: Child) -> Result<Outcome> {
        let mut ready_at = None;
        loop {
            tokio::select! {
                status = child.wait() => {
                    let ready_for = ready_at.map(|ready_at: Instant| ready_at.elapsed());
                    return Ok(Outcome::Died { status: status?, ready_for });
                }
                () = self.notices.ready(), if ready_at.is_none() => {
                    ready_at = Some(Instant::now());
                    self.was_ready = true;
                    tracing::info!("host ready");
                    tell_own_keeper(NotifyState::Ready);
                }
                signal = self.signals.next() => {
                    if signal != ToChild::HUP {
                        tell_own_keeper(NotifyState::Stopping);
                        return Ok(Outcome::Told(self.end(child, signal).await?));
                    }
                    if let Err(error) = self.check_program().await {
                        tracing::error!("the host is not replaced: {error:#}");
                        continue;
                    }
                    let status = self.end(child, signal).await?;
                    tracing::info!(%status, "the host has left its pods to its successor");
                    return Ok(Outcome::HandedOver);
                }
            }
        }
    }

    /// Tells the host to end and waits for it, though not for ever.
    async fn end(&self, mut child: Child, signal: ToChild) -> io::Result<ExitStatus> {
        // Nobody has waited for it yet, so the id is still its own.
        if let Some(pid) = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw)
        {
            kill_process(pid, signal)?;
        }
        if let Ok(status) = timeout(self.end_timeout, child.wait()).await {
            return status;
        }
        tracing::error!("the host does not end and is killed; its pods go on");
        child.start_kill()?;
        child.wait().await
    }

    /// Whether there is a program to swap in.
    async fn check_program(&self) -> Result<()> {
        let mut command = Command::new(&self.program);
        command
            .arg("--version")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = timeout(VERSION_DEADLINE, command.output())
            .await
            .with_context(|| format!("{} hangs", self.program.display()))?
            .with_context(|| format!("{} cannot be started", self.program.display()))?;
        ensure!(
            output.status.success(),
            "{} --version: {}",
            self.program.display(),
            output.status
        );
        let version = String::from_utf8_lossy(&output.stdout);
        tracing::info!(version = version.trim(), "replacing the host");
        Ok(())
    }
}

/// The exit code of this process for the end of the host.
fn exit_code(status: ExitStatus) -> ExitCode {
    status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from)
}

/// This process may have a holder itself. Without one nothing happens.
fn tell_own_keeper(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "who started this process cannot be told how it is");
    }
}

/// Where the host says that it is ready (`sd_notify(3)`).
struct Notices {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Notices {
    fn open(data_dir: &Path) -> Result<Self> {
        let path = fs::canonicalize(data_dir)?.join("keep.sock");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
        let socket = UnixDatagram::bind(&path)
            .with_context(|| format!("cannot make the socket file {}", path.display()))?;
        Ok(Self { socket, path })
    }

    /// Waits until the host says that it is ready. Nothing is lost if this is dropped.
    async fn ready(&self) {
        let mut buffer = [0; MAX_NOTICE_BYTES];
        loop {
            match self.socket.recv(&mut buffer).await {
                Ok(length) if is_ready(&buffer[..length]) => return,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "the host's notices cannot be read");
                    return std::future::pending().await;
                }
            }
        }
    }

    fn forget(&self) {
        let mut buffer = [0; MAX_NOTICE_BYTES];
        while self.socket.try_recv(&mut buffer).is_ok() {}
    }
}

impl Drop for Notices {
    fn drop(&mut self) {
        // At the next start it is removed all the same.
        let _ = fs::remove_file(&self.path);
    }
}

fn is_ready(notice: &[u8]) -> bool {
    notice
        .split(|&byte| byte == b'\n')
        .any(|line| line == b"READY=1")
}

/// The signals that are heeded. What comes while nobody waits is not lost.
struct Signals {
    hangup: Signal,
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> ToChild {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => ToChild::TERM,
            _ = self.interrupt.recv() => ToChild::INT,
            _ = self.hangup.recv() => ToChild::HUP,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_line_says_ready() {
        assert!(is_ready(b"READY=1"));
        assert!(is_ready(b"STATUS=well\nREADY=1\n"));
        for other in [&b""[..], b"READY=10", b"STATUS=READY=1", b"STOPPING=1"] {
            assert!(!is_ready(other));
        }
    }
}
