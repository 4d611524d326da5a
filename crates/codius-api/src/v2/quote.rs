//! `POST /api/v2/quotes`: what a lease would cost. Free, and needs no payment channel.

use codius_manifest::ManifestHash;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::MachineSize;
use crate::{AssetInfo, Units};

/// Body of `POST /api/v2/quotes`.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuoteRequest {
    pub manifest: Value,
    /// Values of the manifest's private variables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private: Option<Value>,
    pub duration_seconds: u64,
}

/// Without the private values.
impl std::fmt::Debug for QuoteRequest {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("QuoteRequest")
            .field("manifest", &self.manifest)
            .field("duration_seconds", &self.duration_seconds)
            .finish_non_exhaustive()
    }
}

/// 200 of `POST /api/v2/quotes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuoteReply {
    pub manifest_hash: ManifestHash,
    pub duration_seconds: u64,
    /// What its pod is; `None` of a host that knows one size only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineSize>,
    /// What the asked duration costs.
    pub price: Units,
    /// Smallest units per second, exactly, as decimal text.
    pub price_per_second: String,
    pub asset: AssetInfo,
    /// A lease of this manifest runs here already; paying makes it longer.
    pub runs: bool,
}
