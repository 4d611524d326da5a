//! The end of a lease before its time, at its owner's wish.
//!
//! ```text
//! is it his? ── no ──▶ refused
//!     │ yes
//! starting? ── yes ──▶ refused: nothing is charged until it runs
//!     │ no
//!     ▼
//! settled: earned + owed ──▶ its pod is stopped ──▶ (the caller sends what is his)
//! ```
//!
//! The lock of the hash is held until the caller has sent the money: no upload of the same manifest
//! uses what is on its way. Whoever is killed in between leaves the money where the books say: owed.

use std::sync::Arc;

use codius_ledger::{Account, LeaseState, Settlement};
use codius_manifest::ManifestHash;
use codius_signature::KeyId;
use codius_store::{StoreError, StoredLease};
use thiserror::Error;
use tokio::sync::OwnedMutexGuard;

use super::{End, Leases, Running};

/// A lease that is over.
pub(crate) struct Ending {
    /// What it has cost in its whole life.
    pub(crate) used: u64,
    /// How much of what is owed to its program may be sent to its owner: what was paid for this lease
    /// and not used. Nothing if it was over already.
    pub(crate) refundable: u64,
    /// Held until the money has been sent.
    _lock: OwnedMutexGuard<Option<Running>>,
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
        let mut unused = 0;
        if lock.is_some() {
            unused = self
                .end_locked(&slot, &mut lock, End::Stopped)
                .await?
                .refund;
        } else {
            match before.lease.state() {
                LeaseState::Ended { .. } => {}
                LeaseState::Starting
                | LeaseState::Running(_)
                | LeaseState::Paused
                | LeaseState::Frozen(_) => {
                    self.settle_leftover(hash).await?;
                }
            }
        }
        let after = self.owned(&hash, key).await?;
        let used = after.lease.parts().charged;
        // What was owed to the program when the lease began was used first.
        let of_others = after.origin.carried.saturating_sub(used);
        Ok(Ending {
            used,
            refundable: unused.saturating_sub(of_others),
            _lock: lock,
        })
    }

    /// Ends the lease of a program of the host's own; what is left is owed to it.
    pub(crate) async fn stop_own(self: &Arc<Self>, hash: &ManifestHash) -> Result<(), StoreError> {
        let slot = self.slot(*hash);
        let mut state = slot.state.lock().await;
        let _: Settlement = self.end_locked(&slot, &mut state, End::HostStopped).await?;
        Ok(())
    }

    /// What is owed to whoever runs this manifest next.
    pub(crate) async fn owed(&self, hash: ManifestHash) -> Result<u64, StoreError> {
        self.balance(&Account::Owed(hash)).await
    }
}
