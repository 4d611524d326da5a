//! Sessions of `exec`: a program beside a container's own one, with its input and output.
//!
//! ```text
//! host ──▶ Start             ◀── Started, or Failed: there is no such program
//!      ──▶ Input, EndOfInput ◀── Taken: so much of the input has reached the program
//!      ──▶ Resize            ◀── Output
//!      ──▶ Credit              the output has been read
//!      ──▶ Kill              ◀── Ended: nothing comes after it, nor after Failed
//! ```
//!
//! Both directions are credited, because they share one channel with logs and heartbeats. Each begins with
//! [`EXEC_WINDOW_BYTES`]; a piece costs [`exec_cost`] of it, and `Taken` and `Credit` give costs back. So a
//! reader that is slow makes the program wait, and a session never has more than its window on the way.
//!
//! A session is killed with everything that it has started by `Kill`, by the end of its program, by an
//! `Attach`, and when the host closes the port.

use serde::{Deserialize, Serialize};

use crate::{ContainerExit, LogStream, message::base64_bytes};

/// Sessions of one pod at the same time.
pub const MAX_EXEC_SESSIONS: usize = 8;
/// What one direction of a session may have on the way.
pub const EXEC_WINDOW_BYTES: u32 = 64 * 1024;
/// What a piece costs at least, so that tiny ones are bounded, too.
pub const EXEC_MIN_COST_BYTES: u32 = 512;
/// The most bytes of one piece.
pub const MAX_EXEC_PIECE_BYTES: usize = 16 * 1024;
/// Bytes of a command, all words together.
pub const MAX_EXEC_COMMAND_BYTES: usize = 64 * 1024;
/// Words of a command.
pub const MAX_EXEC_WORDS: usize = 256;

/// What a piece of so many bytes costs of its window.
pub fn exec_cost(bytes: usize) -> u32 {
    u32::try_from(bytes)
        .unwrap_or(u32::MAX)
        .max(EXEC_MIN_COST_BYTES)
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowSize {
    pub columns: u16,
    pub rows: u16,
}

/// What the host wants of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecAsk {
    /// Begins the session. The program becomes what the container's own is: its user, directory,
    /// environment, root, limits and privileges.
    Start {
        container: u16,
        /// Program and arguments; never empty.
        args: Vec<String>,
        /// Beside the container's variables.
        env: Vec<(String, String)>,
        /// Whether the program has an input; without, it reads nothing.
        input: bool,
        /// A terminal of this size; all output comes as `Stdout` then.
        terminal: Option<WindowSize>,
    },
    Input {
        #[serde(with = "base64_bytes")]
        data: Vec<u8>,
    },
    /// The input is closed when the program has read what was sent. Without effect on a terminal, whose
    /// programs go by what is typed.
    EndOfInput,
    Resize(WindowSize),
    /// Output that has been read, as its cost.
    Credit {
        bytes: u32,
    },
    Kill,
}

/// What a session says to the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecAnswer {
    Started,
    /// The program could not be started; the text is for the user, the code as shells give it.
    Failed {
        code: i32,
        message: String,
    },
    Output {
        stream: LogStream,
        #[serde(with = "base64_bytes")]
        data: Vec<u8>,
    },
    /// Input that the program has been given, as its cost.
    Taken {
        bytes: u32,
    },
    /// The program has ended, and all that it wrote was sent.
    Ended(ContainerExit),
}
