//! The end of a lease before its time, at its owner's wish.
//!
//! ```text
//! is it his? ── no ──▶ refused
//!     │ yes
//! starting? ── yes ──▶ refused: nothing is charged until it runs
//!     │ no
//!     ▼
//! settled: earned + due ──▶ its pod is stopped ──▶ (the caller sends what is his)
//! ```
//!
//! What is due is claimed before the lease ends and until the caller has sent it: neither the queue of
//! refunds nor his next upload uses what is on its way. Whoever is killed in between leaves the money
//! where the books say: due to him.

use std::sync::Arc;

use codius_ledger::{Account, Lease, LeaseState, RefundId, Settlement};
use codius_manifest::ManifestHash;
use codius_signature::KeyId;
use codius_store::{LeaseOrigin, StoreError, StoredLease};
use thiserror::Error;

use super::{End, Leases, refund::Due};

/// A lease that is over.
pub(crate) struct Ending {
    /// What it has cost in its whole life.
    pub(crate) used: u64,
    /// Where what its owner has not used is.
    pub(crate) refund: Option<RefundId>,
    /// What of it may be sent to him now: none if there is nothing, or it is being sent already.
    pub(crate) due: Option<Due>,
}

/// How much of what a lease has not used is due to its payer: what was paid for it. What was owed to its
/// program when it began was used first; what is left of that is of others, whom nobody knows. All of it
/// is, if nobody knows its payer either.
pub(super) fn due(ended: &Lease, settled: Settlement, origin: &LeaseOrigin) -> u64 {
    if origin.refund.is_none() {
        return 0;
    }
    let of_others = origin.carried.saturating_sub(ended.parts().charged);
    settled.refund.saturating_sub(of_others)
}

/// Why a lease was not stopped. Nothing has changed, except where said.
#[derive(Debug, Error)]
pub(crate) enum StopError {
    #[error("there is no lease of this manifest")]
    Unknown,
    /// It was created by a request that nobody signed.
    #[error("nobody owns this lease")]
    Unowned,
    #[error("this lease belongs to another key")]
    NotOwner,
    /// Its pod is on its way, and its money is not touched.
    #[error("this lease is being started")]
    Starting,
    /// Unless it was not running any more, it is over; it is settled as soon as there is room to write.
    #[error("the host could not record the end of the lease")]
    Store(#[from] StoreError),
}

impl Leases {
    /// Whether a key owns the lease of a hash, running or not.
    pub(crate) async fn owned(
        &self,
        hash: &ManifestHash,
        key: &KeyId,
    ) -> Result<StoredLease, StopError> {
        let stored = self.store.lease(*hash).await?.ok_or(StopError::Unknown)?;
        match stored.origin.owner {
            None => Err(StopError::Unowned),
            Some(owner) if owner == *key.as_bytes() => Ok(stored),
            Some(_) => Err(StopError::NotOwner),
        }
    }

    /// Ends a lease, if this key owns it. One that is over stays as it is.
    pub(crate) async fn stop(
        self: &Arc<Self>,
        hash: ManifestHash,
        key: &KeyId,
    ) -> Result<Ending, StopError> {
        let slot = self.slot(hash);
        let mut lock = match Arc::clone(&slot.state).try_lock_owned() {
            Ok(lock) => lock,
            Err(_) => {
                // Somebody starts it, which takes minutes, or does something short with it.
                let stored = self.owned(&hash, key).await?;
                if self.shown(&hash).is_none() && !stored.lease.is_ended() {
                    return Err(StopError::Starting);
                }
                Arc::clone(&slot.state).lock_owned().await
            }
        };
        let before = self.owned(&hash, key).await?;
        let refund = before.origin.refund;
        let claim = if lock.is_some() {
            self.end_locked(&slot, &mut lock, End::Stopped).await?.1
        } else {
            let claim = self.claim(refund);
            match before.lease.state() {
                LeaseState::Ended { .. } => {}
                LeaseState::Starting
                | LeaseState::Running(_)
                | LeaseState::Paused
                | LeaseState::Frozen(_) => {
                    self.settle_leftover(hash).await?;
                }
            }
            claim
        };
        let after = self.owned(&hash, key).await?;
        Ok(Ending {
            used: after.lease.parts().charged,
            refund,
            due: self.due_of(claim).await?,
        })
    }

    /// Ends the lease of a program of the host's own; what is left is owed to it.
    pub(crate) async fn stop_own(self: &Arc<Self>, hash: &ManifestHash) -> Result<(), StoreError> {
        let slot = self.slot(*hash);
        let mut state = slot.state.lock().await;
        let (_, _): (Settlement, _) = self.end_locked(&slot, &mut state, End::HostStopped).await?;
        Ok(())
    }

    /// What the host owes after a lease: to its owner, and to whoever runs this manifest next.
    pub(crate) async fn owed(
        &self,
        hash: ManifestHash,
        refund: Option<RefundId>,
    ) -> Result<u64, StoreError> {
        let mut owed = self.balance(&Account::Owed(hash)).await?;
        if let Some(refund) = refund {
            owed = owed.saturating_add(self.balance(&Account::Refund(refund)).await?);
        }
        Ok(owed)
    }
}

#[cfg(test)]
mod tests {
    use codius_ledger::{Asset, BootId, EndReason, Millis, Rate};

    use super::*;

    /// A lease of a unit a second that has run so long of what it had.
    fn ended(seconds: u64, balance: u64) -> (Lease, Settlement) {
        let asset = Asset::new("XRP", 6).unwrap();
        let rate = Rate::per_month("2.628".parse().unwrap(), &asset).unwrap();
        let mut lease = Lease::new(ManifestHash::from_bytes([1; 32]), 0, rate);
        lease.begin(BootId([1; 16]), Millis(0)).unwrap();
        let now = Millis(seconds * 1000);
        let settled = lease.end(now, balance, EndReason::Lost).unwrap();
        (lease, settled)
    }

    fn of(carried: u64, is_known: bool) -> LeaseOrigin {
        LeaseOrigin {
            owner: None,
            carried,
            refund: is_known.then_some(RefundId::from_bytes([1; 32])),
            ..LeaseOrigin::default()
        }
    }

    #[test]
    fn what_was_owed_to_the_program_is_used_first_and_is_due_to_nobody() {
        for (seconds, carried, expected) in [
            (0, 0, 300),
            (0, 100, 200),
            (30, 100, 200),
            (100, 100, 200),
            (150, 100, 150),
            (300, 100, 0),
            (0, 300, 0),
            (400, 300, 0),
        ] {
            let (lease, settled) = ended(seconds, 300);
            assert_eq!(settled.earned + settled.refund, 300);
            let due = due(&lease, settled, &of(carried, true));
            assert_eq!(due, expected, "{seconds} s, {carried} carried");
            assert!(due <= settled.refund);
        }
    }

    #[test]
    fn nothing_is_due_to_a_payer_whom_nobody_knows() {
        let (lease, settled) = ended(30, 300);
        assert_eq!(due(&lease, settled, &of(0, false)), 0);
    }
}
