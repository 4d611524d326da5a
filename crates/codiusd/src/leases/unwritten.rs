//! What has happened and could not be written, because the disk was full for example: it is written as
//! soon as it can be. Until then the books say what was true before.
//!
//! Who ends before that leaves it to the next start (`recovery.rs`), which knows less: it gives back the
//! time that was not counted.

use std::{sync::Arc, time::Duration};

use codius_store::{Batch, StoreError};

use super::{Leases, Slot};

/// How often it is tried.
pub(super) const TRY_EVERY: Duration = Duration::from_secs(2);

impl Leases {
    /// Writes what must be written, however long it takes: to the end of the host, or until the store says
    /// that it will never be.
    pub(crate) async fn commit_at_last(&self, batch: Batch) -> Result<(), StoreError> {
        loop {
            let error = match self.store.commit(batch.clone()).await {
                Err(error) if error.may_pass() => error,
                done => return done,
            };
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "tried again until there is room"
            );
            tokio::select! {
                biased;
                () = self.closing.cancelled() => return Err(error),
                () = tokio::time::sleep(TRY_EVERY) => {}
            }
        }
    }

    /// Writes the end of a lease whose pod is gone already, in a task of its own. Another lease of the hash
    /// may come first: it settles this one before it begins, and then there is nothing left to write.
    pub(super) fn settle_later(self: &Arc<Self>, slot: Arc<Slot>, settlement: Batch) {
        let leases = Arc::clone(self);
        self.tasks.spawn(async move {
            loop {
                tokio::select! {
                    biased;
                    () = leases.closing.cancelled() => return,
                    () = tokio::time::sleep(TRY_EVERY) => {}
                }
                let state = slot.state.lock().await;
                if state.is_some() {
                    return;
                }
                match leases.store.commit(settlement.clone()).await {
                    Err(error) if error.may_pass() => {}
                    _ => return,
                }
            }
        });
    }
}
