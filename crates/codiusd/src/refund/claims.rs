//! Who is at a refund now. The books refuse to give out money twice, but a packet that has arrived and
//! cannot be recorded is lost to the host: so only one at a time sends from a refund, or moves it.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use codius_ledger::RefundId;
use tokio::sync::Notify;

/// The refunds that somebody is at; clones are handles of the same set.
#[derive(Clone, Default)]
pub(crate) struct Claims(Arc<Shared>);

#[derive(Default)]
struct Shared {
    taken: Mutex<HashSet<RefundId>>,
    /// Somebody has let go of one, or one has become due.
    changed: Notify,
}

/// The right to move the money of a refund, until it is dropped.
pub(crate) struct Claim {
    pub(crate) id: RefundId,
    claims: Claims,
}

impl Claims {
    /// None if somebody else is at it.
    pub(crate) fn take(&self, id: RefundId) -> Option<Claim> {
        let is_free = self.taken().insert(id);
        is_free.then(|| Claim {
            id,
            claims: self.clone(),
        })
    }

    /// Tells whoever sends refunds to look again.
    pub(crate) fn wake(&self) {
        self.0.changed.notify_one();
    }

    /// Waits for that. One waits, or nobody.
    pub(crate) async fn woken(&self) {
        self.0.changed.notified().await;
    }

    fn taken(&self) -> MutexGuard<'_, HashSet<RefundId>> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.taken().remove(&self.id);
        self.claims.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_is_at_a_refund() {
        let claims = Claims::default();
        let (one, other) = (RefundId::from_bytes([1; 32]), RefundId::from_bytes([2; 32]));
        let first = claims.take(one).unwrap();
        assert!(claims.clone().take(one).is_none());
        assert!(claims.take(other).is_some());
        drop(first);
        claims.woken().await;
        assert!(claims.take(one).is_some());
    }
}
