//! `codius exec`: a program that the owner runs in a container of a pod, with this terminal as its own.
//!
//! The exit code is the program's; 128 and the number of the signal that has ended it; 126 or 127 if it could
//! not be started.
//!
//! Trap: a terminal in raw mode has to be given back on every way out: by a return, by a signal, and by a
//! panic, which in a release ends the process at once.

use std::{
    io::{IsTerminal, Read, Write},
    os::fd::AsFd,
};

use codius_api::v2::{ContainerExit, ExecReply, ExecRequest, ExecStart, ExitReason, TerminalSize};
use codius_client::{HostClient, SessionEvent, SessionReader, SessionWriter};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

use crate::{
    command::ExecArguments,
    failure::{Failure, UNREACHABLE, USAGE, one_line},
    key::Key,
    pod_address::PodAddress,
};

const READ_BYTES: usize = 16 * 1024;
/// What was read of standard input and not sent yet, in pieces.
const MAX_WAITING_PIECES: usize = 4;
/// What shells add to the number of a signal.
const SIGNAL_CODE: i32 = 128;
const SIGKILL: i32 = 9;
/// A terminal that does not tell its size has this one.
const USUAL_SIZE: TerminalSize = TerminalSize {
    columns: 80,
    rows: 24,
};

pub(crate) async fn exec(arguments: ExecArguments) -> Result<(), Failure> {
    let said: Vec<_> = arguments.host.iter().cloned().collect();
    let address = PodAddress::known(&arguments.hash, &said)?;
    let host = HostClient::new(address.only_host()?)?;
    if arguments.terminal && !std::io::stdin().is_terminal() {
        return Err(
            Failure::new(USAGE, "--tty needs a terminal, and standard input is none")
                .note("Next: leave --tty out; --interactive alone passes standard input on."),
        );
    }
    let signer = Key::open(arguments.key.key_file.as_deref())?.signer();
    let (mut writer, mut reader) = host.session(&address.hash, &signer).await?;
    let terminal = arguments.terminal.then(window_size);
    let start = ExecStart {
        container: arguments.container,
        command: arguments.command,
        input: arguments.interactive,
        terminal,
        term: terminal.and_then(|_| std::env::var("TERM").ok()),
    };
    let asked = writer.ask(&ExecRequest::Start(start)).await;
    asked.map_err(|cut| Failure::new(UNREACHABLE, cut.to_string()))?;
    match reader.next().await {
        Ok(SessionEvent::Said(ExecReply::Started)) => {}
        Ok(SessionEvent::Said(reply)) => return end(reply),
        Ok(SessionEvent::Stdout(_) | SessionEvent::Stderr(_)) => {}
        Err(cut) => return Err(Failure::new(UNREACHABLE, cut.to_string())),
    }
    let raw = (arguments.terminal && arguments.interactive)
        .then(RawTerminal::set)
        .transpose()
        .map_err(|error| Failure::new(1, format!("the terminal cannot be set: {error}")))?;
    let outcome = carry(writer, reader, arguments.interactive, terminal.is_some()).await;
    // Before anything is said on it.
    drop(raw);
    match outcome? {
        Over::Said(reply) => end(reply),
        Over::Signal(number) => Err(Failure::silent(code(SIGNAL_CODE + number))),
    }
}

/// How a session came to its end.
enum Over {
    Said(ExecReply),
    /// This process was told to end.
    Signal(i32),
}

async fn carry(
    mut writer: SessionWriter,
    mut reader: SessionReader,
    interactive: bool,
    terminal: bool,
) -> Result<Over, Failure> {
    let failed = |error: std::io::Error| Failure::new(1, format!("signals: {error}"));
    let mut resized = signal(SignalKind::window_change()).map_err(failed)?;
    let mut told_to_end = signal(SignalKind::terminate()).map_err(failed)?;
    let mut hung_up = signal(SignalKind::hangup()).map_err(failed)?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(failed)?;
    let inward = async {
        let mut pieces = interactive.then(standard_input);
        loop {
            let sent = tokio::select! {
                piece = next_piece(&mut pieces) => match piece {
                    Some(piece) => writer.write(&piece).await,
                    None => {
                        pieces = None;
                        writer.ask(&ExecRequest::EndOfInput).await
                    }
                },
                () = next_signal(&mut resized), if terminal => {
                    writer.ask(&ExecRequest::Resize(window_size())).await
                }
            };
            if sent.is_err() {
                // What has happened is heard on the other side.
                std::future::pending::<()>().await;
            }
        }
    };
    let outward = async {
        loop {
            match reader.next().await {
                Ok(SessionEvent::Stdout(data)) => write(&mut std::io::stdout(), &data)?,
                Ok(SessionEvent::Stderr(data)) => write(&mut std::io::stderr(), &data)?,
                Ok(SessionEvent::Said(ExecReply::Started)) => {}
                Ok(SessionEvent::Said(reply)) => return Ok(Over::Said(reply)),
                Err(cut) => return Err(Failure::new(UNREACHABLE, cut.to_string())),
            }
        }
    };
    tokio::select! {
        over = outward => over,
        () = inward => unreachable!("it waits for the end"),
        () = next_signal(&mut told_to_end) => Ok(Over::Signal(SignalKind::terminate().as_raw_value())),
        () = next_signal(&mut hung_up) => Ok(Over::Signal(SignalKind::hangup().as_raw_value())),
        () = next_signal(&mut interrupted) => Ok(Over::Signal(SignalKind::interrupt().as_raw_value())),
    }
}

async fn next_signal(signal: &mut Signal) {
    if signal.recv().await.is_none() {
        std::future::pending::<()>().await;
    }
}

/// The next piece of standard input; `None` at its end. Waits for ever if nobody reads it.
async fn next_piece(pieces: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match pieces {
        Some(pieces) => pieces.recv().await,
        None => std::future::pending().await,
    }
}

/// Reads standard input in a thread of its own, which ends with this process: a read that was begun cannot be
/// given up.
fn standard_input() -> mpsc::Receiver<Vec<u8>> {
    let (sender, pieces) = mpsc::channel(MAX_WAITING_PIECES);
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        let mut buffer = vec![0; READ_BYTES];
        while let Ok(length @ 1..) = input.read(&mut buffer) {
            if sender.blocking_send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    pieces
}

fn write(to: &mut impl Write, data: &[u8]) -> Result<(), Failure> {
    let written = to.write_all(data).and_then(|()| to.flush());
    // As a program that writes to a closed pipe: whoever read us has enough.
    written.map_err(|_| Failure::silent(code(SIGNAL_CODE + 13)))
}

fn window_size() -> TerminalSize {
    let size = [
        tcgetwinsize(std::io::stdout()),
        tcgetwinsize(std::io::stdin()),
    ];
    let size = size.into_iter().flatten().find(|size| size.ws_col > 0);
    size.map_or(USUAL_SIZE, |size| TerminalSize {
        columns: size.ws_col,
        rows: size.ws_row,
    })
}

fn end(reply: ExecReply) -> Result<(), Failure> {
    match reply {
        ExecReply::Exited(exit) => match exit_code(exit) {
            0 => Ok(()),
            other => Err(Failure::silent(code(other))),
        },
        ExecReply::Failed {
            code: None,
            message,
        } => Err(Failure::new(UNREACHABLE, one_line(&message))),
        ExecReply::Failed {
            code: Some(number),
            message,
        } => Err(Failure::new(code(number), one_line(&message))),
        ExecReply::Started => Ok(()),
    }
}

/// As shells give it.
fn exit_code(exit: ContainerExit) -> i32 {
    match exit.reason {
        ExitReason::ExitCode => exit.code.unwrap_or_default(),
        ExitReason::Signal => SIGNAL_CODE + exit.signal.unwrap_or_default().clamp(0, 127),
        ExitReason::OutOfMemory => SIGNAL_CODE + SIGKILL,
    }
}

/// The lowest byte is what a process can say.
fn code(number: i32) -> u8 {
    number.to_le_bytes()[0]
}

/// This process's terminal in raw mode, until it is dropped.
struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    fn set() -> std::io::Result<Self> {
        let input = std::io::stdin();
        let before = tcgetattr(input.as_fd())?;
        let mut raw = before.clone();
        raw.make_raw();
        let at_panic = before.clone();
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            give_back(&at_panic);
            hook(panic);
        }));
        tcsetattr(input.as_fd(), OptionalActions::Drain, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        give_back(&self.before);
    }
}

fn give_back(before: &Termios) {
    // A terminal that is gone needs nothing.
    let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, before);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_what_a_shell_would_say() {
        let exit = |reason, code, signal| ContainerExit {
            reason,
            code,
            signal,
        };
        for (exit, expected) in [
            (exit(ExitReason::ExitCode, Some(7), None), 7),
            (exit(ExitReason::ExitCode, Some(256), None), 0),
            (exit(ExitReason::Signal, None, Some(15)), 143),
            (exit(ExitReason::Signal, None, Some(i32::MAX)), 255),
            (exit(ExitReason::OutOfMemory, None, None), 137),
        ] {
            assert_eq!(code(exit_code(exit)), expected, "{exit:?}");
        }
    }
}
