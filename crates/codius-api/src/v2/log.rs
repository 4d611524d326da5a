//! `GET /api/v2/leases/{hash}/logs`: what the programs of a pod write, as server-sent events.
//!
//! Each event's `data` is one [`LogLine`], its `id` a number that a client sends back as
//! `Last-Event-ID` to go on after it.

use serde::{Deserialize, Serialize};

use crate::UnixMillis;

/// One line of output, without its line feed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When the host received it.
    pub at: UnixMillis,
    /// As the manifest names it.
    pub container: String,
    pub stream: LogStreamName,
    /// Bytes that are not UTF-8 are replaced.
    pub text: String,
}

/// Where a program wrote a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogStreamName {
    Stdout,
    Stderr,
}
