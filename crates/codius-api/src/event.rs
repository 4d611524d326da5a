//! `GET /api/v2/leases/{hash}/events`: what happens to a lease, as server-sent events.
//!
//! Each event's `data` is one line of JSON. A client that comes late is first told the present
//! phase. The stream ends after [`LeaseEventKind::Failed`] and [`LeaseEventKind::Ended`].
//!
//! ```text
//! resolving → pulling* → building → booting → starting → waiting_for_port → running ⇄ frozen → ended
//!     └───────────┴──────────┴─────────┴──────────┴─────────────┴──▶ failed
//! ```
//!
//! `container`, `draining` and `drain_undone` may come between, at any time.
//!
//! Phases that have nothing to do (an image that is here already, a pod without a port) are skipped.

use serde::{Deserialize, Serialize};

use crate::{FailureCause, Units, UnixMillis, v2::ContainerReply};

/// Something happened to a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseEvent {
    #[serde(flatten)]
    pub kind: LeaseEventKind,
    pub at: UnixMillis,
    /// Since the upload was accepted, by a clock that does not jump.
    pub elapsed_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum LeaseEventKind {
    /// The lease has come to another phase, or further in the one that it is in.
    Phase(Phase),
    /// The pod could not be started. What was paid is in `refunded` and `owed`.
    Failed {
        cause: FailureCause,
        /// For people.
        message: String,
        #[serde(default)]
        refunded: Units,
        #[serde(default)]
        owed: Units,
    },
    /// The pod runs, and is paid for until then. Told some times before the end, as the host is set.
    Expiring { expires_at: UnixMillis },
    /// The money is used up and the pod is held still; if nobody pays it ends then. If somebody does, the
    /// next event is that it runs.
    Frozen { ends_at: UnixMillis },
    /// The operator empties the host: nothing more can be bought here. What is paid runs on, at most
    /// until `ends_at` if there is one.
    Draining {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ends_at: Option<UnixMillis>,
    },
    /// The operator has changed his mind: time is sold again.
    DrainUndone,
    /// A container's program has ended, or was started again. Of several in a row about one container only
    /// the latest is told to those who come late.
    Container(ContainerReply),
    /// The pod ran, and does not any more.
    Ended { reason: EndReason },
}

impl LeaseEventKind {
    /// Nothing comes after it.
    pub fn is_last(&self) -> bool {
        match self {
            Self::Phase(_)
            | Self::Expiring { .. }
            | Self::Frozen { .. }
            | Self::Container(_)
            | Self::Draining { .. }
            | Self::DrainUndone => false,
            Self::Failed { .. } | Self::Ended { .. } => true,
        }
    }
}

/// Where a lease is on its way to a running pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    /// Asking registries what the image references mean.
    Resolving,
    /// Fetching layers: compressed bytes, of all images together.
    Pulling { bytes: u64, of: u64 },
    /// Making the block image.
    Building,
    /// The virtual machine starts.
    Booting,
    /// The containers start.
    Starting,
    /// The programs run; none has opened the port yet.
    WaitingForPort { port: u16 },
    /// The program answers at `url`.
    Running { expires_at: UnixMillis, url: String },
}

/// Why a pod that ran has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// The money was used up.
    Expired,
    /// Its owner stopped it.
    Stopped,
    /// Its programs ended.
    Exited,
    /// Its machine was lost.
    Lost,
    /// The operator or a shutdown of the host ended it.
    HostStopped,
    /// A reason that this version does not know.
    #[serde(untagged)]
    Other(String),
}
