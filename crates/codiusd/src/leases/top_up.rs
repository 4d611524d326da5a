//! Money that anyone adds to a running lease, packet by packet.
//!
//! ```text
//! packet ──▶ (lock of the hash) ──▶ runs, is paid, has room? ── no ──▶ refused, nothing recorded
//!                                        │ yes
//!                                        ▼
//!                     recorded for lease:HASH ──▶ balance, expiry ──▶ (lock is let go) ──▶ Fulfill
//! ```
//!
//! The lock is the one under which a lease is charged, extended and ended. So a packet is in the books
//! before the lease is settled, or it finds that there is none: never lost, never counted twice. What
//! was recorded when the daemon is killed is in the balance that the next one reads.
//!
//! Traps:
//! - Nothing may be awaited between the record and the balance: the connector drops a packet's future
//!   when the packet expires, but not any more once it is being recorded.
//! - The lock is held for seconds while a pod starts or stops. Both are seen from what is shown, so
//!   that most packets do not wait for it; those that do are rejected by the connector in time.

use std::sync::{Mutex, PoisonError};

use codius_ledger::{Account, Millis, Seconds};
use codius_manifest::ManifestHash;
use ilp_connector::{Commit, CommitError};
use thiserror::Error;

use super::{Leases, Running, Share};

/// Why a packet was not added to a lease. Except where said, nothing was recorded, and the packet has
/// to be rejected.
#[derive(Debug, Error)]
pub(crate) enum TopUpError {
    /// It is over, or was never there, or is only on its way; the payer keeps the money.
    #[error("this program does not run here")]
    NotRunning,
    /// More would be paid ahead than this host takes money for.
    #[error("this program is paid as far ahead as this host takes money for")]
    NoRoom,
    /// See [`CommitError`]. If writing failed, only the books know whether the money is there; the
    /// lease goes by them.
    #[error(transparent)]
    NotRecorded(#[from] CommitError),
}

impl Leases {
    /// How much a running lease still takes, so that it is paid for at most `price.max_duration_secs`
    /// ahead; none if it does not run. A lease that costs nothing takes nothing.
    pub(crate) fn room(&self, hash: &ManifestHash) -> Option<u64> {
        if self.closing.is_cancelled() || self.drain.is_on() {
            return None;
        }
        let shown = self.shown(hash)?;
        Some(
            shown
                .lease
                .room(self.clock.steady(), shown.balance, self.max_duration),
        )
    }

    /// Waits until nobody starts, changes or ends the lease of a hash: one that is over is settled then, and
    /// what is left of it has gone back.
    pub(crate) async fn at_rest(&self, hash: &ManifestHash) {
        let slot = self.slots().get(hash).and_then(std::sync::Weak::upgrade);
        if let Some(slot) = slot {
            drop(slot.state.lock().await);
        }
    }

    /// Adds a packet to a running lease, and to the share of its payer. It is durable when this returns, and
    /// the expiry has moved.
    pub(crate) async fn top_up(
        &self,
        hash: &ManifestHash,
        commit: Commit,
        share: &Mutex<Share>,
    ) -> Result<(), TopUpError> {
        let slot = self.slots().get(hash).and_then(std::sync::Weak::upgrade);
        let slot = slot.ok_or(TopUpError::NotRunning)?;
        if self.shown(hash).is_none() {
            return Err(TopUpError::NotRunning);
        }
        let mut state = slot.state.lock().await;
        let running = state.as_mut().ok_or(TopUpError::NotRunning)?;
        if self.closing.is_cancelled() {
            return Err(TopUpError::NotRunning);
        }
        // Nothing is sold beyond what is paid.
        if self.drain.is_on() {
            return Err(TopUpError::NoRoom);
        }
        let amount = commit.amount();
        let balance = running.with_more(
            self.clock.steady(),
            amount,
            self.max_duration,
            self.grace_ms(),
        )?;
        let account = Account::Lease(*hash);
        match commit.credit(account.to_string().into()).await {
            Ok(()) => {
                let lease = running.lease.parts();
                let before = lease.charged.saturating_add(running.balance);
                let mut share = share.lock().unwrap_or_else(PoisonError::into_inner);
                share.add(lease.created_at_unix_ms, before, amount, lease.charged);
                running.balance = balance;
            }
            Err(error @ CommitError::Failed(_)) => {
                match self.balance(&account).await {
                    Ok(balance) => running.balance = balance,
                    Err(error) => tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "it is unknown whether a lease got more money"
                    ),
                }
                self.moved(&slot, running);
                return Err(error.into());
            }
            Err(error) => return Err(error.into()),
        }
        self.moved(&slot, running);
        tracing::debug!(pod = %hash, amount, "topped up");
        Ok(())
    }
}

impl Running {
    /// The balance with `amount` more, if the lease may have it.
    fn with_more(
        &self,
        now: Millis,
        amount: u64,
        ahead: Seconds,
        grace_ms: u64,
    ) -> Result<u64, TopUpError> {
        if !self.takes_money(now, grace_ms) {
            return Err(TopUpError::NotRunning);
        }
        if amount > self.lease.room(now, self.balance, ahead) {
            return Err(TopUpError::NoRoom);
        }
        self.balance.checked_add(amount).ok_or(TopUpError::NoRoom)
    }
}
