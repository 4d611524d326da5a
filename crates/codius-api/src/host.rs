//! `/info`, `/memory`, `/version`: what a host says of itself.

use serde::{Deserialize, Deserializer, Serialize, de};

/// 200 of `GET /version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Which program this is; the original says `Codiusd (JavaScript)`.
    pub name: String,
    pub version: String,
}

/// 200 of `GET /memory`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Bytes that can still be given to pods.
    #[serde(rename = "freeMem", deserialize_with = "whole")]
    pub free_mem: u64,
}

/// 200 of `GET /info`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Info {
    /// No room for another pod.
    pub full_mem: bool,
    pub accepting_uploads: bool,
    /// Bytes. (The original subtracts MiB from bytes; this host does not.)
    #[serde(deserialize_with = "whole")]
    pub server_free_memory: u64,
    /// Seconds since the machine started.
    #[serde(deserialize_with = "whole")]
    pub server_uptime: u64,
    /// Seconds since the host program started.
    #[serde(deserialize_with = "whole")]
    pub service_uptime: u64,
    /// Load average of one minute, divided by the number of cores.
    pub avg_load: f64,
    pub num_peers: u64,
    /// Asset code.
    pub currency: String,
    /// In whole assets (not in the smallest unit), as the operator wrote it.
    pub cost_per_month: serde_json::Number,
    /// Public address of this host.
    pub uri: String,
    pub self_test_success: bool,
    /// Only of hosts that publish it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running_contracts: Option<u64>,
    /// Only if asked for by `?requestPeers=true`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<Vec<String>>,
    /// What this host says beyond version 1; hosts of other makers do not.
    #[serde(flatten)]
    pub host: Option<HostInfo>,
}

/// What version 2 adds to [`Info`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInfo {
    /// What holds a pod back: `kvm` (hardware), `gvisor` (a user-space kernel) or `tcg` (an emulated
    /// machine: for development and tests).
    pub isolation: String,
    /// One sentence for people: why it is this and not better.
    pub isolation_reason: String,
    pub asset: AssetInfo,
    /// Smallest units per second, exactly, as decimal text.
    pub price_per_second: String,
    /// Version of the host program.
    pub version: String,
}

/// The money of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssetInfo {
    pub code: String,
    /// The smallest unit is 10^-scale of the asset.
    pub scale: u8,
}

/// Takes numbers with a fraction too, as JavaScript hosts write them, and rounds down.
fn whole<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let number = serde_json::Number::deserialize(from)?;
    if let Some(whole) = number.as_u64() {
        return Ok(whole);
    }
    match number.as_f64() {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "rounding down is meant; not negative is checked, and `as` saturates"
        )]
        Some(number) if number >= 0.0 => Ok(number as u64),
        _ => Err(de::Error::custom("expected a number that is not negative")),
    }
}
