//! `/api/v2/leases/{hash}/usage`: what a pod has used of its host.

use std::collections::BTreeMap;

use codius_manifest::ManifestHash;
use serde::{Deserialize, Serialize};

use super::MachineSize;

/// 200 of `GET /api/v2/leases/{hash}/usage`, for the owner. Counted since the pod's machine was started, which
/// may be later than the lease: one that is started again begins anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageReply {
    pub manifest_hash: ManifestHash,
    /// What its pod is. This and what follows: `None` of a host that counts network traffic only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineSize>,
    /// Time of the host's processors, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryUsage>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskUsage>,
    pub network: NetworkUsage,
}

/// Memory of the host: that of the machine, with the guest's own system and the emulator. So it can be more
/// than the machine has for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryUsage {
    /// Now.
    pub bytes: u64,
    /// The most that it had.
    pub peak_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUsage {
    /// What the writable disk takes now.
    pub bytes: u64,
    /// From the host's disks; what the host had in memory is not counted.
    pub read_bytes: u64,
    /// To the host's disks.
    pub written_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkUsage {
    /// With the internet.
    pub internet: Exchanged,
    /// With visitors, whom the host's proxy stands for.
    pub visitors: Exchanged,
    /// What did not pass, by reason. A client has to expect reasons that it does not know.
    pub refused: BTreeMap<String, Packets>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchanged {
    /// By the pod.
    pub sent: Packets,
    /// By the pod.
    pub received: Packets,
}

/// Packets, and their bytes with IP headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packets {
    pub packets: u64,
    pub bytes: u64,
}
