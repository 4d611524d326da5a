//! `/api/v2/leases`: the right to run a manifest until the money is used up.

use codius_manifest::ManifestHash;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{ContainerReply, MachineSize, RefundState};
use crate::{AssetInfo, EndReason, Units, UnixMillis};

/// Body of `POST /api/v2/leases`.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateLeaseRequest {
    pub manifest: Value,
    /// Values of the manifest's private variables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private: Option<Value>,
    pub duration_seconds: u64,
    /// Where money goes that is not used: a payment pointer (`$host/path`) or the URL it stands for. What
    /// is due is sent there when the lease ends, however it does, and sent again until it has arrived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refund_to: Option<String>,
}

/// Without the private values.
impl std::fmt::Debug for CreateLeaseRequest {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("CreateLeaseRequest")
            .field("manifest", &self.manifest)
            .field("duration_seconds", &self.duration_seconds)
            .field("refund_to", &self.refund_to)
            .finish_non_exhaustive()
    }
}

/// Body of `POST /api/v2/leases/{hash}/extend`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtendLeaseRequest {
    pub duration_seconds: u64,
}

/// 200 of everything that creates, extends or shows a lease. Anyone may ask, so `manifest` is the
/// public part only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LeaseReply {
    pub manifest_hash: ManifestHash,
    pub state: LeaseState,
    /// Where the program answers, with a slash at the end; `None` unless it runs and has a port.
    pub url: Option<String>,
    /// `None` when the lease has ended: what it ran is forgotten then.
    pub manifest: Option<Value>,
    /// What its pod is, for the lease's life; `None` of a host that knows one size only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineSize>,
    pub created_at: UnixMillis,
    /// When the money will be used up if nothing is added; `None` when the lease has ended.
    pub expires_at: Option<UnixMillis>,
    /// While it is frozen: when it ends if nobody pays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_until: Option<UnixMillis>,
    /// What has not been used yet.
    pub balance: Units,
    /// Smallest units per second, exactly, as decimal text; fixed for the lease's life.
    pub price_per_second: String,
    pub asset: AssetInfo,
    /// The key that may stop it and read its logs; `None` if it was not created by a signed request.
    pub owner: Option<String>,
    /// How it ended; `None` while it has not.
    pub ended: Option<Ended>,
    /// When it has ended: what the host owes to whoever runs the same manifest next, as it came from
    /// payers who have not said who they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owed: Option<Units>,
    /// What is his who paid for it: when it has ended, and before to its owner. `None` if he has neither
    /// signed his request nor said where unused money goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refund: Option<RefundState>,
    /// How its containers are, in the manifest's order; nothing unless its pod is there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<ContainerReply>,
}

/// Where a lease is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseState {
    /// Paid; its pod is not ready yet. Nothing is charged.
    Starting,
    Running,
    /// The host cannot run its pod at the moment, and nothing is charged.
    Paused,
    /// Its money is used up: the pod is held still, and goes on if somebody pays before `frozen_until`.
    /// Nothing is charged.
    Frozen,
    Ended,
}

/// The end of a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    pub reason: EndReason,
}
