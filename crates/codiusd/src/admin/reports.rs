//! What the admin API answers. Members of the original are in camelCase as it has them; what is ours is
//! in snake_case. Amounts are decimal text, in smallest units.

use std::{collections::BTreeMap, net::SocketAddr};

use codius_api::UnixMillis;
use codius_ledger::{Asset, Millis};
use codius_manifest::ManifestHash;
use codius_peers::PeerOverview;
use ilp_connector::{AccountOverview, Relation};
use serde::{Deserialize, Serialize};

use crate::leases::Shown;

/// `GET /getPods`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Pods {
    pub(super) running: Vec<String>,
}

/// `GET /getPodInfo`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodReport {
    pub(super) id: String,
    pub(super) running: bool,
    /// When its lease was made.
    pub(super) start: UnixMillis,
    pub(super) expiry: UnixMillis,
    /// MiB.
    pub(super) memory: u64,
    /// For how many seconds it is paid in all.
    pub(super) total_uptime: u64,
    /// Of a pod that visitors reach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ip: Option<String>,
}

impl PodReport {
    pub(super) fn of(
        hash: &ManifestHash,
        shown: &Shown,
        address: Option<SocketAddr>,
        now: Millis,
    ) -> Self {
        Self {
            id: hash.to_string(),
            running: true,
            start: shown.created_at(),
            expiry: shown.expires_at,
            memory: shown.size.machine.memory_mib.into(),
            total_uptime: shown.paid_for(now).0,
            port: address.map(|address| address.port()),
            ip: address.map(|address| address.ip().to_string()),
        }
    }
}

/// `GET /getAllUptime`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Uptime {
    /// Seconds that the pods which run are paid for, as text.
    pub(super) aggregate_pod_uptime: String,
    /// In whole units of the asset, by its code.
    pub(super) aggregate_earnings: BTreeMap<String, String>,
}

impl Uptime {
    pub(super) fn of(secs: u64, asset: &Asset, earned: u64) -> Self {
        Self {
            aggregate_pod_uptime: secs.to_string(),
            aggregate_earnings: BTreeMap::from([(asset.code().to_owned(), asset.in_whole(earned))]),
        }
    }
}

/// `GET /accounts`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct AccountsReport {
    pub(super) accounts: Vec<AccountReport>,
}

/// An Interledger account. What is counted is counted since it was opened; `from` is what the
/// neighbour sent, `to` is what was sent to it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct AccountReport {
    pub(super) id: String,
    /// `parent` or `child`.
    pub(super) relation: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) address: Option<String>,
    pub(super) connected: bool,
    /// A write that failed has stopped it.
    pub(super) stopped: bool,
    /// What the host owes the neighbour; negative: what it is owed.
    pub(super) balance: String,
    pub(super) in_flight: u32,
    pub(super) prepares_from: u64,
    pub(super) fulfills_from: u64,
    pub(super) rejects_from: u64,
    pub(super) insufficient_from: u64,
    pub(super) limited_from: u64,
    pub(super) amount_from: String,
    pub(super) prepares_to: u64,
    pub(super) fulfills_to: u64,
    pub(super) amount_to: String,
    pub(super) wrong_fulfills_to: u64,
    pub(super) timeouts_to: u64,
    pub(super) unexpected_replies_to: u64,
}

impl From<AccountOverview> for AccountReport {
    fn from(account: AccountOverview) -> Self {
        let counted = account.statistics;
        Self {
            id: account.id.to_string(),
            relation: match account.relation {
                Relation::Parent => "parent",
                Relation::Child => "child",
            }
            .to_owned(),
            address: account.address.map(|address| address.to_string()),
            connected: account.connected,
            stopped: account.stopped,
            balance: account.balance.to_string(),
            in_flight: account.in_flight,
            prepares_from: counted.prepares_from,
            fulfills_from: counted.fulfills_from,
            rejects_from: counted.rejects_from,
            insufficient_from: counted.insufficient_from,
            limited_from: counted.limited_from,
            amount_from: counted.amount_from.to_string(),
            prepares_to: counted.prepares_to,
            fulfills_to: counted.fulfills_to,
            amount_to: counted.amount_to.to_string(),
            wrong_fulfills_to: counted.wrong_fulfills_to,
            timeouts_to: counted.timeouts_to,
            unexpected_replies_to: counted.unexpected_replies_to,
        }
    }
}

/// `GET /peers`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PeersReport {
    pub(super) peers: Vec<PeerReport>,
}

/// Another host.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PeerReport {
    pub(super) url: String,
    /// It answers as itself, and others are told of it.
    pub(super) listed: bool,
    /// It is in the configuration.
    pub(super) bootstrap: bool,
    /// In a row.
    pub(super) failures: u32,
    /// How long ago it last answered as itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) seen_secs_ago: Option<u64>,
    pub(super) next_check_secs: u64,
}

impl From<PeerOverview> for PeerReport {
    fn from(peer: PeerOverview) -> Self {
        Self {
            url: peer.url.to_string(),
            listed: peer.is_listed,
            bootstrap: peer.is_bootstrap,
            failures: peer.failures,
            seen_secs_ago: peer.seen.map(|ago| ago.as_secs()),
            next_check_secs: peer.next_check.as_secs(),
        }
    }
}
