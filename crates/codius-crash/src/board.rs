//! What clients and the one who kills tell each other: where the host is, who does what, and when to
//! hold still.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, RwLock, RwLockReadGuard, RwLockWriteGuard, watch};

use crate::plan::Doing;

/// Where a host that is up is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Up {
    pub(crate) api: String,
    pub(crate) interledger: String,
}

pub(crate) struct Board {
    up: watch::Sender<Option<Up>>,
    /// Held for reading by each client that does something.
    stage: RwLock<()>,
    doing: Mutex<HashMap<Doing, u32>>,
    began: Notify,
    over: AtomicBool,
}

/// Something that is being done, until it is dropped.
pub(crate) struct Activity {
    board: Arc<Board>,
    doing: Doing,
}

impl Board {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            up: watch::Sender::new(None),
            stage: RwLock::new(()),
            doing: Mutex::default(),
            began: Notify::new(),
            over: AtomicBool::new(false),
        })
    }

    pub(crate) fn show(&self, up: Option<Up>) {
        self.up.send_replace(up);
    }

    /// Waits for a host that is up.
    pub(crate) async fn up(&self) -> Up {
        let mut up = self.up.subscribe();
        loop {
            if let Some(up) = up.borrow_and_update().clone() {
                return up;
            }
            // The sender is ours.
            let _ = up.changed().await;
        }
    }

    /// Clients end with their next turn.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// A client's turn; waits while all have to hold still.
    pub(crate) async fn turn(&self) -> RwLockReadGuard<'_, ()> {
        self.stage.read().await
    }

    /// Waits until every client has ended its turn; none begins another as long as this is held.
    pub(crate) async fn still(&self) -> RwLockWriteGuard<'_, ()> {
        self.stage.write().await
    }

    pub(crate) fn begin(self: &Arc<Self>, doing: Doing) -> Activity {
        *self.lock().entry(doing).or_default() += 1;
        self.began.notify_waiters();
        Activity {
            board: Arc::clone(self),
            doing,
        }
    }

    /// Waits until somebody does this; `false` if nobody has begun within `patience`.
    pub(crate) async fn during(&self, doing: Doing, patience: Duration) -> bool {
        let waiting = async {
            loop {
                let began = self.began.notified();
                tokio::pin!(began);
                // From here on nothing that begins is missed.
                began.as_mut().enable();
                if self.lock().get(&doing).is_some_and(|count| *count > 0) {
                    return;
                }
                began.await;
            }
        };
        tokio::time::timeout(patience, waiting).await.is_ok()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Doing, u32>> {
        self.doing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        if let Some(count) = self.board.lock().get_mut(&self.doing) {
            *count = count.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_moment_is_found_while_it_lasts() {
        let board = Board::new();
        let short = Duration::from_millis(20);
        assert!(!board.during(Doing::Paying, short).await);
        let activity = board.begin(Doing::Paying);
        assert!(board.during(Doing::Paying, short).await);
        assert!(!board.during(Doing::Stopping, short).await);
        drop(activity);
        assert!(!board.during(Doing::Paying, short).await);
    }
}
