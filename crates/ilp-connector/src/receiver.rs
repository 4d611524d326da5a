//! Somebody inside the host who is paid: the receiving end of a STREAM connection, for example.
//!
//! ```text
//! Commit:  Open ──credit──▶ Recording ──▶ Recorded
//!            │                  └───────▶ Failed (the accounts stop)
//!            └──expiry──▶ Expired
//! ```
//! The timer that rejects an expired packet and the commit race for the first step, so a packet is
//! either rejected for its age or recorded, never both.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use async_trait::async_trait;
use ilp_packet::{Prepare, Reply};

use crate::account::{AccountId, LedgerAccount};
use crate::ledger::{Ledger, LedgerError, Movement, record};

/// Receives packets for one segment below the connector's address.
#[async_trait]
pub trait Receiver: Send + Sync {
    /// Handles a packet. `from` is the account that it came in on; `None` if the host sent it.
    ///
    /// A receiver that fulfills a packet with an amount must have called [`Commit::credit`] and
    /// seen it succeed; otherwise the connector answers T00 instead. Once it did, it must fulfill.
    /// The future may be dropped before `credit` was called, when the packet expires.
    async fn receive(&self, from: Option<&AccountId>, prepare: Prepare, commit: Commit) -> Reply;
}

/// The right to record one packet's amount, once. Dropping it records nothing.
pub struct Commit {
    pub(crate) state: Arc<CommitState>,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) debit: LedgerAccount,
    pub(crate) amount: u64,
    pub(crate) reference: [u8; 32],
}

/// Why the amount was not recorded. The receiver must reject the packet.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The packet expired before the commit. Nothing was written; the sender was told R00.
    #[error("packet has expired")]
    Expired,
    /// The ledger's rules forbid it. Nothing was written.
    #[error("ledger refuses the movement: {0}")]
    Refused(String),
    /// Writing failed; whether the row exists is unknown and the sender's account is stopped.
    #[error("ledger write failed")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Commit {
    /// The amount that the packet brings.
    #[must_use]
    pub fn amount(&self) -> u64 {
        self.amount
    }

    /// Records the amount for `account` and returns when that is durable. An amount of zero, or one
    /// that stays in the same ledger account, needs no row.
    ///
    /// # Errors
    /// If it was too late or the ledger failed. Nothing is owed to the receiver then.
    pub async fn credit(self, account: LedgerAccount) -> Result<(), CommitError> {
        if !self.state.advance(Step::Open, Step::Recording) {
            return Err(CommitError::Expired);
        }
        let movement = Movement {
            debit: self.debit,
            credit: account,
            amount: self.amount,
            reference: self.reference,
        };
        match record(&*self.ledger, movement).await {
            Ok(()) => {
                self.state.set(Step::Recorded);
                Ok(())
            }
            Err(LedgerError::Refused(reason)) => {
                self.state.set(Step::Open);
                Err(CommitError::Refused(reason))
            }
            Err(LedgerError::Failed(source)) => {
                self.state.set(Step::Failed);
                Err(CommitError::Failed(source))
            }
        }
    }
}

impl std::fmt::Debug for Commit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Commit")
            .field("debit", &self.debit)
            .field("amount", &self.amount)
            .finish_non_exhaustive()
    }
}

/// How far the recording of one packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Step {
    Open = 0,
    Expired = 1,
    Recording = 2,
    Recorded = 3,
    Failed = 4,
}

impl Step {
    const ALL: [Self; 5] = [
        Self::Open,
        Self::Expired,
        Self::Recording,
        Self::Recorded,
        Self::Failed,
    ];
}

/// The step, shared between the packet's task and its receiver.
#[derive(Debug, Default)]
pub(crate) struct CommitState(AtomicU8);

impl CommitState {
    pub(crate) fn get(&self) -> Step {
        // Only values of `Step` are ever stored.
        Step::ALL
            .get(usize::from(self.0.load(Ordering::Acquire)))
            .copied()
            .unwrap_or(Step::Failed)
    }

    pub(crate) fn set(&self, step: Step) {
        self.0.store(step as u8, Ordering::Release);
    }

    pub(crate) fn advance(&self, from: Step, to: Step) -> bool {
        self.0
            .compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}
