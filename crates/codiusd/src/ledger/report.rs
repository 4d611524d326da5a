//! The books as they are told. Amounts are decimal text in the smallest unit of the asset, because JSON
//! numbers of other programs end at 2^53.

use std::collections::BTreeMap;

use codius_api::{AssetInfo, UnixMillis};
use codius_ledger::{Asset, LeaseState};
use codius_manifest::ManifestHash;
use codius_store::{Books, Checked, EntryFilter, EntryRow, LeaseRow, Period, StoreError};
use serde::{Deserialize, Serialize};

use crate::{drain::Draining, standing::Standing};

/// Rows of one page.
const PAGE: usize = 1000;

/// `GET /ledger`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Summary {
    /// None of a host that has not found out yet.
    pub(super) asset: Option<AssetInfo>,
    /// The last transaction that is in these sums.
    pub(super) through: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) since: Option<UnixMillis>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) until: Option<UnixMillis>,
    pub(super) earned: String,
    /// By reason, between `since` and `until`.
    pub(super) earned_in_period: BTreeMap<String, String>,
    /// By kind of account.
    pub(super) balances: BTreeMap<String, KindSum>,
    /// Of all balances; 0.
    pub(super) sum: String,
    /// The host takes no new pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) draining: Option<Draining>,
}

/// Accounts of one kind that are not at zero.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KindSum {
    pub(super) accounts: u64,
    pub(super) balance: String,
}

/// A lease of `GET /ledger/leases`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LeaseLine {
    /// Where the next page begins.
    pub(super) id: i64,
    pub(super) manifest_hash: ManifestHash,
    pub(super) created_at: UnixMillis,
    /// `starting`, `running`, `paused`, `frozen` or `ended`.
    pub(super) state: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) end_reason: Option<String>,
    /// Of an ended lease that has cost something: its end, or when the last of it was sent back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) money_moved_at: Option<UnixMillis>,
    pub(super) ran_ms: u64,
    /// Smallest units a second, exactly.
    pub(super) price_per_second: String,
    pub(super) paid: String,
    /// The part of `paid` that was owed to its program when it began.
    pub(super) carried: String,
    pub(super) charged: String,
    pub(super) unused: String,
    pub(super) refunded: String,
    pub(super) balance: String,
}

/// A posting of `GET /ledger/entries`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EntryLine {
    /// Where the next page begins.
    pub(super) transaction: u64,
    pub(super) at: UnixMillis,
    pub(super) account: String,
    pub(super) reason: String,
    pub(super) amount: String,
    pub(super) packets: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reference: Option<String>,
}

/// `POST /ledger/verify`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct VerifiedReport {
    pub(super) accounts: u64,
    pub(super) transactions: u64,
    pub(super) packets: u64,
    pub(super) postings: u64,
}

pub(super) fn summary(books: &Books, period: Period) -> Result<Summary, StoreError> {
    let summary = books.summary(period)?;
    let standing = books.meta(Standing::meta_key())?;
    let asset = standing
        .and_then(|json| serde_json::from_slice::<Standing>(&json).ok())
        .and_then(|standing| standing.asset().ok());
    let draining = books.meta(Draining::meta_key())?;
    let kind_sum = |sum: codius_store::KindSum| KindSum {
        accounts: sum.accounts,
        balance: sum.balance.to_string(),
    };
    Ok(Summary {
        asset: asset.as_ref().map(info),
        through: summary.through,
        since: period.since_unix_ms.map(UnixMillis::new),
        until: period.until_unix_ms.map(UnixMillis::new),
        earned: summary.earned.to_string(),
        earned_in_period: summary
            .earned_in_period
            .into_iter()
            .map(|(reason, amount)| (reason.to_string(), amount.to_string()))
            .collect(),
        balances: summary
            .kinds
            .into_iter()
            .map(|(kind, sum)| (kind, kind_sum(sum)))
            .collect(),
        sum: summary.sum.to_string(),
        draining: draining.and_then(|json| serde_json::from_slice(&json).ok()),
    })
}

pub(super) fn leases(books: &Books, after: i64) -> Result<Vec<LeaseLine>, StoreError> {
    let rows = books.leases(after, PAGE)?;
    Ok(rows.iter().map(LeaseLine::of).collect())
}

pub(super) fn entries(
    books: &Books,
    after: u64,
    filter: &EntryFilter,
) -> Result<Vec<EntryLine>, StoreError> {
    let rows = books.entries(after, filter, PAGE)?;
    Ok(rows.iter().map(EntryLine::of).collect())
}

fn info(asset: &Asset) -> AssetInfo {
    AssetInfo {
        code: asset.code().to_owned(),
        scale: asset.scale(),
    }
}

impl LeaseLine {
    fn of(row: &LeaseRow) -> Self {
        let (parts, money) = (row.lease.parts(), row.money);
        let (state, end_reason) = match parts.state {
            LeaseState::Starting => ("starting", None),
            LeaseState::Running(_) => ("running", None),
            LeaseState::Paused => ("paused", None),
            LeaseState::Frozen(_) => ("frozen", None),
            LeaseState::Ended { reason } => ("ended", Some(reason.to_string())),
        };
        let moved = money.moved_at_unix_ms.filter(|_| row.lease.is_ended());
        Self {
            id: row.id,
            manifest_hash: parts.hash,
            created_at: UnixMillis::new(parts.created_at_unix_ms),
            state: state.to_owned(),
            end_reason,
            money_moved_at: moved.map(UnixMillis::new),
            ran_ms: parts.run_ms,
            price_per_second: parts.rate.to_string(),
            paid: money.paid.to_string(),
            carried: row.carried.to_string(),
            charged: money.charged.to_string(),
            unused: money.unused.to_string(),
            refunded: money.refunded.to_string(),
            balance: money.balance.to_string(),
        }
    }

    /// Whether it was created in a period.
    pub(super) fn is_of(&self, period: Period) -> bool {
        let created = self.created_at.get();
        period.since_unix_ms.is_none_or(|since| created >= since)
            && period.until_unix_ms.is_none_or(|until| created < until)
    }
}

impl EntryLine {
    fn of(row: &EntryRow) -> Self {
        Self {
            transaction: row.transaction,
            at: UnixMillis::new(row.at_unix_ms),
            account: row.account.to_string(),
            reason: row.reason.to_string(),
            amount: row.amount.to_string(),
            packets: row.packets,
            reference: row
                .reference
                .map(|reference| data_encoding::HEXLOWER.encode(&reference)),
        }
    }
}

impl From<Checked> for VerifiedReport {
    fn from(checked: Checked) -> Self {
        let totals = checked.totals;
        Self {
            accounts: totals.accounts,
            transactions: totals.transactions,
            packets: totals.packets,
            postings: totals.postings,
        }
    }
}
