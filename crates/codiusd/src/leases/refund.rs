//! Money of leases that have ended, by whose it is.
//!
//! ```text
//!                    ┌─ his, who signed or named a pointer ──▶ refund:ID ──▶ him (refund/queue.rs, a draw)
//! lease:HASH ──end───┤                                            └──▶ his next lease, if it names no pointer
//!                    └─ of others, whom nobody knows ────────▶ owed:HASH ──▶ the next lease, whosever it is
//! ```
//! What is somebody's has an account of its own, so the books themselves refuse to give it out twice. Each
//! one is claimed (`refund/claims.rs`) while it is sent or moved.

use codius_ledger::{Account, Reason, RefundId};
use codius_manifest::ManifestHash;
use codius_signature::KeyId;
use codius_store::{Batch, RefundStep, StoreError, StoredRefund};

use super::Leases;
use crate::refund::{Claim, PaymentPointer};

/// Money that is due to somebody, and nobody else is at.
pub(crate) struct Due {
    claim: Claim,
    pub(crate) amount: u64,
}

impl Due {
    pub(crate) fn account(&self) -> Account {
        Account::Refund(self.claim.id)
    }
}

impl Leases {
    /// What is due to an owner and kept for his program: it goes nowhere by itself.
    pub(super) async fn kept(
        &self,
        hash: ManifestHash,
        owner: Option<KeyId>,
    ) -> Result<Vec<Due>, StoreError> {
        let Some(owner) = owner else {
            return Ok(Vec::new());
        };
        let due = self.due_to(hash, &owner).await?;
        let kept = due.into_iter().filter(|it| it.record.destination.is_none());
        self.claimed(kept.map(|refund| refund.record.id)).await
    }

    /// What is due to an owner for his leases of a program that have ended, and for orders that failed.
    pub(crate) async fn due_to(
        &self,
        hash: ManifestHash,
        owner: &KeyId,
    ) -> Result<Vec<StoredRefund>, StoreError> {
        let mut refunds = self.store.refunds_of(hash).await?;
        refunds.retain(|refund| refund.record.owner == Some(*owner.as_bytes()));
        refunds.truncate(MAX_AT_ONCE);
        Ok(refunds)
    }

    /// Claims refunds, and then reads what is due of them. Those that somebody else is at are left out.
    async fn claimed(
        &self,
        ids: impl IntoIterator<Item = RefundId>,
    ) -> Result<Vec<Due>, StoreError> {
        let mut claimed = Vec::new();
        for id in ids {
            let Some(claim) = self.claims.take(id) else {
                continue;
            };
            let amount = self.balance(&Account::Refund(id)).await?;
            if amount > 0 {
                claimed.push(Due { claim, amount });
            }
        }
        Ok(claimed)
    }

    /// Puts everything that is due to an owner, and that nobody is at, into one of its refunds, so that it
    /// can be sent over one connection. None if there is nothing, or all of it is being sent already.
    pub(crate) async fn gather(
        &self,
        hash: ManifestHash,
        owner: &KeyId,
    ) -> Result<Option<Due>, StoreError> {
        let due = self.due_to(hash, owner).await?;
        let ids = due.into_iter().map(|refund| refund.record.id);
        let mut others = self.claimed(ids).await?;
        let Some(mut one) = others.pop() else {
            return Ok(None);
        };
        let mut batch = Batch::new();
        for other in &others {
            self.transfer(
                &mut batch,
                Reason::Return,
                other.account(),
                one.account(),
                other.amount,
            );
            one.amount = one.amount.saturating_add(other.amount);
            batch = batch.refund_step(other.claim.id, RefundStep::Settled);
        }
        if !batch.is_empty() {
            self.store.commit(batch).await?;
        }
        Ok(Some(one))
    }

    /// Sends everything that is due to an owner to a pointer from now on.
    pub(crate) async fn redirect(
        &self,
        hash: ManifestHash,
        owner: &KeyId,
        to: &PaymentPointer,
    ) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        for refund in self.due_to(hash, owner).await? {
            let step = RefundStep::Redirected {
                destination: to.to_string(),
                at_unix_ms: self.clock.wall(),
            };
            batch = batch.refund_step(refund.record.id, step);
        }
        if batch.is_empty() {
            return Ok(());
        }
        self.store.commit(batch).await?;
        self.claims.wake();
        Ok(())
    }

    /// Claims the refund of a lease that ends or has ended. None if there is none, or somebody is at it.
    pub(super) fn claim(&self, refund: Option<RefundId>) -> Option<Claim> {
        self.claims.take(refund?)
    }

    /// What is due of a refund that the caller has claimed.
    pub(super) async fn due_of(&self, claim: Option<Claim>) -> Result<Option<Due>, StoreError> {
        let Some(claim) = claim else {
            return Ok(None);
        };
        let amount = self.balance(&Account::Refund(claim.id)).await?;
        Ok((amount > 0).then_some(Due { claim, amount }))
    }
}

/// Refunds of one owner and program that are moved at once; there are more only if he has let so many
/// leases of it end without taking anything.
const MAX_AT_ONCE: usize = 256;
