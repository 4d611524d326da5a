//! `/pods`: quotes, uploads, extensions and what runs.

use codius_manifest::ManifestHash;
use serde::{Deserialize, Serialize};

use crate::{Units, UnixMillis};

/// 200 of `OPTIONS /pods`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuoteReply {
    #[serde(rename = "manifestHash")]
    pub manifest_hash: ManifestHash,
    /// What the asked duration costs.
    pub price: Units,
}

/// 200 of `POST /pods` and `PUT /pods`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodReply {
    /// Where the program answers, with a slash at the end.
    pub url: String,
    #[serde(rename = "manifestHash")]
    pub manifest_hash: ManifestHash,
    pub expiry: UnixMillis,
}

/// 200 of `GET /pods`. Anyone may ask, so `manifest` is the public part only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatusReply {
    pub url: String,
    #[serde(rename = "manifestHash")]
    pub manifest_hash: ManifestHash,
    pub expiry: UnixMillis,
    pub manifest: serde_json::Value,
}
