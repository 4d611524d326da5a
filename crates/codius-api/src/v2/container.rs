//! How the containers of a pod are: part of a lease, and of its events.

use serde::{Deserialize, Serialize};

use crate::UnixMillis;

/// One container of a pod that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerReply {
    /// As the manifest names it.
    pub container: String,
    pub state: ContainerState,
    /// Since when; `None` if the host does not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<UnixMillis>,
    /// How often its program was started again since the pod was started.
    pub restarts: u32,
    /// It ends again and again: it is started again at `next_try`, not at once.
    pub crash_loop: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try: Option<UnixMillis>,
    /// How its program ended the last time; `None` if it never has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<ContainerExit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerState {
    Starting,
    Running,
    /// Its program has ended and is started again.
    Waiting,
    /// Its program has ended and is not started again.
    Exited,
}

/// How a program has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerExit {
    pub reason: ExitReason,
    /// With `exit_code`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// With `signal`: its number on Linux.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    ExitCode,
    Signal,
    /// It used more memory than the pod has.
    OutOfMemory,
}

impl std::fmt::Display for ContainerExit {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.reason {
            ExitReason::ExitCode => write!(out, "exit code {}", self.code.unwrap_or_default()),
            ExitReason::Signal => write!(out, "signal {}", self.signal.unwrap_or_default()),
            ExitReason::OutOfMemory => out.write_str("out of memory"),
        }
    }
}
