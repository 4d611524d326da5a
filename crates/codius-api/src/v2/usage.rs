//! `/api/v2/leases/{hash}/usage`: what a pod has used of its host.

use std::collections::BTreeMap;

use codius_manifest::ManifestHash;
use serde::{Deserialize, Serialize};

/// 200 of `GET /api/v2/leases/{hash}/usage`, for the owner. Counted since the pod was started, which may be
/// later than the lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageReply {
    pub manifest_hash: ManifestHash,
    pub network: NetworkUsage,
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
