//! `POST /api/v2/leases/{hash}/refund`: what is owed to an owner after a lease, and how far it is.

use codius_manifest::ManifestHash;
use serde::{Deserialize, Serialize};

use super::RefundTo;
use crate::{Units, UnixMillis};

/// Body of `POST /api/v2/leases/{hash}/refund`: one of the two.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefundRequest {
    /// A STREAM server that listens now: what is due is sent before the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refund: Option<RefundTo>,
    /// A payment pointer: what is due is sent there, and sent again until it has arrived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refund_to: Option<String>,
}

/// 200 of `POST /api/v2/leases/{hash}/refund`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefundReply {
    pub manifest_hash: ManifestHash,
    /// What has arrived at `refund.destination_account` by this request.
    pub refunded: Units,
    /// What is still owed to this owner for leases of the manifest that have ended.
    pub owed: Units,
}

/// The refund of a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefundState {
    /// The payment pointer that it is sent to, as a URL; told to the lease's owner alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// What the host still owes.
    pub due: Units,
    /// What has arrived.
    pub sent: Units,
    /// When it is tried (again); `None` if nothing is due, or no pointer is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try: Option<UnixMillis>,
    /// Why the last try did not bring all of it; told to the lease's owner alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}
