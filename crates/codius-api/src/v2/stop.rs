//! `POST /api/v2/leases/{hash}/stop`: the end of a lease before its time, and its unused money back.

use codius_manifest::ManifestHash;
use serde::{Deserialize, Serialize};

use crate::Units;

/// Body of `POST /api/v2/leases/{hash}/stop`; no body at all is the same as `{}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    /// Where the unused money shall go. Without it the host sends it to the lease's payment pointer, if
    /// there is one; else it keeps it until its owner runs the manifest again, or draws it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refund: Option<RefundTo>,
}

/// A STREAM server (RFC 29) that the client has opened for its refund.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefundTo {
    /// Interledger address.
    pub destination_account: String,
    /// 32 bytes, base64.
    pub shared_secret: String,
}

/// Without the secret.
impl std::fmt::Debug for RefundTo {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("RefundTo")
            .field("destination_account", &self.destination_account)
            .finish_non_exhaustive()
    }
}

/// 200 of `POST /api/v2/leases/{hash}/stop`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopReply {
    pub manifest_hash: ManifestHash,
    /// What the lease has cost in its whole life.
    pub used: Units,
    /// What has arrived at `refund.destination_account` by this request.
    pub refunded: Units,
    /// What the host still owes: to this owner for this lease, and to whoever runs the same manifest
    /// next, as payers who have not said who they are left it.
    pub owed: Units,
}
