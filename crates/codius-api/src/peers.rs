//! `/peers`: how hosts tell each other of hosts.

use serde::{Deserialize, Serialize};

/// 200 of `GET /peers`: URLs in random order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeersReply {
    pub peers: Vec<String>,
}

/// Body of `POST /peers/discover`. Other members are refused, as by the original.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiscoverRequest {
    pub peers: Vec<String>,
    /// From 1 to 1000; checked by the host, and otherwise ignored, as by the original.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u16>,
}

/// 200 of `POST /peers/discover`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiscoverReply {
    pub name: String,
    pub version: String,
    pub peers: Vec<String>,
}
