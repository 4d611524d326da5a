//! Looks after the books while the host works: adds them up, and removes what is old.
//!
//! ```text
//! start ─▶ what is new was added up ─▶ every hour: what is new, and old leases and orders removed
//!                                      every day:  all of it
//!                                         └─ wrong ─▶ the host ends
//! ```
//! Books that are wrong cannot be told from stolen money, so nothing goes on by them. The ledger
//! itself is never cut.

use std::time::Duration;

use anyhow::Context;
use codius_store::{Checked, Store, StoreError};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;

/// How often what is new is added up, so that a start after a crash has little to do.
const CHECK_INTERVAL: Duration = Duration::from_secs(3600);
/// How old the last look at all of it may be, in milliseconds of the wall clock.
const FULL_INTERVAL_MS: u64 = 24 * 3600 * 1000;
/// How long a host that has just started is left alone before all of it is looked at.
const SETTLING: Duration = Duration::from_secs(30);
/// Leases, and orders, that are removed in one write: others wait that long.
const PRUNE_STEP: usize = 200;
/// Between two of them.
const PRUNE_PAUSE: Duration = Duration::from_millis(50);
const DAY_MS: u64 = 24 * 3600 * 1000;

pub(crate) struct Bookkeeper {
    store: Store,
    clock: Clock,
    /// How long leases that have ended, and orders that are answered, are kept; 0: for ever.
    keep_days: u64,
}

impl Bookkeeper {
    pub(crate) fn new(store: Store, clock: Clock, keep_days: u64) -> Self {
        Self {
            store,
            clock,
            keep_days,
        }
    }

    /// Works until the host ends. Returns an error if the books are wrong: then the host has to end.
    pub(crate) async fn run(
        self,
        closing: CancellationToken,
        mut checked: Checked,
    ) -> anyhow::Result<()> {
        let mut wait = SETTLING;
        loop {
            tokio::select! {
                () = closing.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
            }
            wait = CHECK_INTERVAL;
            // Also when the clock was set back.
            let age_ms = self.clock.wall().abs_diff(checked.full_at_unix_ms);
            let result = if age_ms >= FULL_INTERVAL_MS {
                self.store.check_all().await
            } else {
                self.store.check().await
            };
            match result {
                Ok(found) => {
                    tracing::debug!(added_up = found.added_up, "the ledger adds up");
                    checked = found;
                }
                Err(StoreError::Closed) => return Ok(()),
                Err(error @ StoreError::Inconsistent { .. }) => {
                    return Err(error).context("the ledger does not add up; restore a backup");
                }
                // The disk is full, for example: looked at again in an hour.
                Err(error) => tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the ledger could not be added up"
                ),
            }
            self.prune(&closing).await;
        }
    }

    /// Removes what is older than it is kept, a little at a time.
    async fn prune(&self, closing: &CancellationToken) {
        if self.keep_days == 0 {
            return;
        }
        let kept_ms = self.keep_days.saturating_mul(DAY_MS);
        let before = self.clock.wall().saturating_sub(kept_ms);
        let (mut leases, mut orders) = (0, 0);
        while !closing.is_cancelled() {
            match self.store.prune(before, PRUNE_STEP).await {
                Ok(pruned) => {
                    leases += pruned.leases;
                    orders += pruned.orders;
                    if pruned.leases < PRUNE_STEP && pruned.orders < PRUNE_STEP {
                        break;
                    }
                }
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "old leases and orders could not be removed"
                    );
                    break;
                }
            }
            tokio::time::sleep(PRUNE_PAUSE).await;
        }
        if leases + orders > 0 {
            tracing::info!(
                leases,
                orders,
                days = self.keep_days,
                "removed what is older"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use codius_ledger::{Account, EndReason, Lease, Millis, Rate, Reason, Transaction};
    use codius_manifest::ManifestHash;
    use codius_store::{Batch, StoredUpload};

    use super::*;

    #[tokio::test]
    async fn what_is_old_is_removed_and_the_ledger_and_what_is_owed_stay() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let store = Store::open(&dir.path().join("codius.db"))?;
        let clock = Clock::system();
        let hash = |number: u16| {
            let mut bytes = [0; 32];
            bytes[..2].copy_from_slice(&number.to_be_bytes());
            ManifestHash::from_bytes(bytes)
        };
        let upload = StoredUpload {
            upload_json: "{}".into(),
            images_json: "[]".into(),
        };
        // More than one step, all of two days ago; one of now; each has left something that is owed.
        let old = clock.wall() - 2 * DAY_MS;
        let count = u16::try_from(PRUNE_STEP)? + 5;
        for number in 0..=count {
            let created = if number == count { clock.wall() } else { old };
            let mut lease = Lease::new(hash(number), created, Rate::FREE);
            let batch = Batch::new().new_lease(lease, upload.clone());
            store.commit(batch).await?;
            let _ = lease.end(Millis(0), 0, EndReason::Expired)?;
            let owed = Account::Owed(hash(number));
            let moved = Transaction::transfer(created, Reason::Return, Account::Parent, owed, 3)?;
            store.commit(Batch::from(moved).lease(lease)).await?;
        }
        let keeper = Bookkeeper::new(store.clone(), clock, 1);
        keeper.prune(&CancellationToken::new()).await;
        assert!(store.lease(hash(0)).await?.is_none());
        assert!(store.lease(hash(count - 1)).await?.is_none());
        assert!(store.lease(hash(count)).await?.is_some());
        assert_eq!(store.balance(&Account::Owed(hash(0))).await?, 3);
        assert_eq!(store.earned_total().await?, 0, "nothing owed is earned");
        assert_eq!(
            store.check_all().await?.totals.transactions,
            u64::from(count) + 1
        );
        store.close().await;
        Ok(())
    }
}
