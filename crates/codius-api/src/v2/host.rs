//! `GET /api/v2/host`: what a host says of itself.

use serde::{Deserialize, Serialize};

use crate::AssetInfo;

/// 200 of `GET /api/v2/host`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostReply {
    /// Which program this is.
    pub name: String,
    /// Version of the host program.
    pub version: String,
    /// Public address of this host, without a slash at its end.
    pub uri: String,
    pub asset: AssetInfo,
    pub price: Price,
    pub duration: DurationRange,
    /// What a pod can be; a manifest names one of them.
    pub machines: Vec<MachineInfo>,
    pub isolation: IsolationInfo,
    pub capacity: Capacity,
    /// Load average of one minute, divided by the number of cores.
    pub load_1m_per_core: f64,
    /// Since the host program started.
    pub uptime_seconds: u64,
    /// What anyone can pay to, as a gift to the operator: `$HOST`.
    pub payment_pointer: String,
    /// How many other hosts it knows; `GET /peers` names them.
    pub peers: u64,
}

/// The price of a small pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Price {
    /// Smallest units of the asset per second, exactly, as decimal text.
    pub per_second: String,
    /// Whole units of the asset per month of 2,628,000 s, as the operator wrote it.
    pub per_month: String,
}

/// How much time can be bought at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DurationRange {
    pub min_seconds: u64,
    pub max_seconds: u64,
}

/// A size of pods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineInfo {
    /// As a manifest's `machine` has it.
    pub name: String,
    pub vcpus: u32,
    pub memory_mib: u64,
}

/// What holds a pod back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IsolationInfo {
    /// `kvm` (hardware), `gvisor` (a user-space kernel) or `tcg` (an emulated machine: for development
    /// and tests).
    pub kind: String,
    /// One sentence for people: why it is this and not better.
    pub reason: String,
}

/// What the host has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// It has room for another pod, and is not being shut down.
    pub accepting_uploads: bool,
    /// Bytes that can still be given to pods.
    pub free_memory_bytes: u64,
    pub running_pods: u64,
}
