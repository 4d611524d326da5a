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
    /// Of a small pod.
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

/// What a pod costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Price {
    /// Smallest units of the asset per second, exactly, as decimal text.
    pub per_second: String,
    /// Whole units of the asset per month of 2,628,000 s, exactly, as decimal text.
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
    /// Memory for programs.
    pub memory_mib: u64,
    /// The writable disk. This and what follows: `None` of a host that knows one size only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_mib: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<Price>,
    /// Whether there is room for another such pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub has_room: Option<bool>,
}

/// A size as it was sold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSize {
    /// As the manifest's `machine` has it.
    pub name: String,
    pub vcpus: u32,
    /// Memory for programs.
    pub memory_mib: u64,
    /// The writable disk.
    pub disk_mib: u64,
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
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Capacity {
    /// It has room for another small pod, and is not being shut down.
    pub accepting_uploads: bool,
    /// Bytes that can still be given to pods.
    pub free_memory_bytes: u64,
    /// `None` if the host does not tell.
    pub running_pods: Option<u64>,
    /// Bytes of disk that can still be given to pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_disk_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processors: Option<Processors>,
}

/// How many virtual processors are sold, and for how many real ones. Memory and disk are never sold twice.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Processors {
    pub cores: u64,
    /// To the pods that there are.
    pub sold: u64,
    pub sold_per_core: f64,
    /// The most that the operator sells; `None`: no limit.
    pub most_sold_per_core: Option<f64>,
}
