//! What has happened and could not be written, because the disk was full for example: it is written as
//! soon as it can be. Until then the books say what was true before.
//!
//! Who ends before that leaves it to the next start (`recovery.rs`), which knows less: it gives back the
//! time that was not counted.

use std::{sync::Arc, time::Duration};

use codius_store::{Batch, StoreError};
use tokio::{sync::watch, time::Instant};

use super::{Leases, Slot};

/// How often it is tried.
pub(super) const TRY_EVERY: Duration = Duration::from_secs(2);

/// Since when nothing can be written that must be.
#[derive(Debug)]
pub(crate) struct Unwritten(watch::Sender<Option<Instant>>);

impl Unwritten {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    pub(super) fn failed(&self) {
        self.0.send_if_modified(|since| {
            let begins = since.is_none();
            since.get_or_insert_with(Instant::now);
            begins
        });
    }

    pub(super) fn is_over(&self) {
        self.0.send_if_modified(|since| since.take().is_some());
    }

    /// Waits until it has lasted so long.
    pub(crate) async fn lasts(&self, patience: Duration) {
        let mut since = self.0.subscribe();
        loop {
            let begun = *since.borrow_and_update();
            let lasted = async {
                match begun {
                    Some(begun) => tokio::time::sleep_until(begun + patience).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = since.changed() => changed.expect("the sender is `self`"),
                () = lasted => return,
            }
        }
    }
}

impl Leases {
    /// Writes what must be written, however long it takes: to the end of the host, or until the store says
    /// that it will never be.
    pub(crate) async fn commit_at_last(&self, batch: Batch) -> Result<(), StoreError> {
        loop {
            let error = match self.store.commit(batch.clone()).await {
                Err(error) if error.may_pass() => error,
                done => {
                    self.unwritten.is_over();
                    return done;
                }
            };
            self.unwritten.failed();
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

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_write_is_told_when_it_fails_for_long() {
        let unwritten = Unwritten::new();
        let began = Instant::now();
        unwritten.failed();
        tokio::time::sleep(Duration::from_secs(10)).await;
        unwritten.failed();
        unwritten.lasts(PATIENCE).await;
        assert_eq!(began.elapsed(), PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn it_begins_anew_once_something_was_written() {
        let unwritten = Unwritten::new();
        let began = Instant::now();
        unwritten.failed();
        let written_between = async {
            tokio::time::sleep(Duration::from_secs(20)).await;
            unwritten.is_over();
            tokio::time::sleep(Duration::from_secs(20)).await;
            unwritten.failed();
        };
        tokio::join!(unwritten.lasts(PATIENCE), written_between);
        assert_eq!(began.elapsed(), Duration::from_secs(70));
    }
}
