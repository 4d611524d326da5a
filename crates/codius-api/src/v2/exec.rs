//! `GET /api/v2/leases/{hash}/exec`: a program that the owner runs in a container, over a WebSocket.
//!
//! Text frames are one JSON object each: [`ExecRequest`] from the client, [`ExecReply`] from the host. Binary
//! frames are data after one byte that says which: [`INPUT`] from the client, [`STDOUT`] and [`STDERR`] from the
//! host.

use serde::{Deserialize, Serialize};

use super::ContainerExit;

/// The first byte of data for the program.
pub const INPUT: u8 = 0;
/// The first byte of what the program wrote.
pub const STDOUT: u8 = 1;
pub const STDERR: u8 = 2;

/// From the client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ExecRequest {
    /// The first frame, and no other.
    Start(ExecStart),
    /// The terminal has another size.
    Resize(TerminalSize),
    /// Nothing more comes for the program, which reads an end of file.
    EndOfInput,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecStart {
    /// As the manifest names it; the first one without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Whether the program has an input.
    #[serde(default)]
    pub input: bool,
    /// A terminal of this size; all output is then in one stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
    /// The kind of terminal, for `TERM`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<String>,
}

/// In characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    pub columns: u16,
    pub rows: u16,
}

/// From the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ExecReply {
    Started,
    /// The program has ended; all that it wrote came before.
    Exited(ContainerExit),
    /// There is no session, or no longer. With a code the program could not be started: 127 if there is none,
    /// 126 if it cannot be run.
    Failed {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<i32>,
        /// For people.
        message: String,
    },
}
