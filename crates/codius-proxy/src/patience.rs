//! Timers of one visitor's connection that are not set anew for every request.
//!
//! A request usually takes less than a millisecond; setting and clearing timers for it would be a
//! good part of its cost. [`Patience`] keeps one coarse timer per connection, and only a request
//! that is still unanswered when it fires gets exact ones. [`Activity`] bounds the time between
//! requests, and the time a request head may take, in the same manner.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// A request unanswered for longer than this (or at most twice this) is slow.
pub(crate) const SLOW: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub(crate) struct Patience {
    timer: Option<Pin<Box<Sleep>>>,
    /// The timer was set during an earlier request.
    stale: bool,
}

impl Patience {
    /// Another request begins.
    pub(crate) fn renew(&mut self) {
        self.stale = true;
    }

    /// Ready when the request at hand is slow.
    pub(crate) fn poll_slow(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let stale = &mut self.stale;
        let timer = self.timer.get_or_insert_with(|| {
            *stale = false;
            Box::pin(tokio::time::sleep(SLOW))
        });
        while timer.as_mut().poll(cx).is_ready() {
            if !std::mem::take(stale) {
                return Poll::Ready(());
            }
            timer.as_mut().reset(Instant::now() + SLOW);
        }
        Poll::Pending
    }
}

/// What a visitor's connection is doing.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    busy: AtomicUsize,
    /// How many requests have begun, and how many have ended.
    requests: AtomicU64,
    last: AtomicBool,
    closing: AtomicBool,
}

impl Activity {
    /// A request head is complete; until the guard is dropped its answer is under way.
    pub(crate) fn begin(self: &Arc<Self>) -> Busy {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    /// Changes whenever a request begins or ends.
    pub(crate) fn moment(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed) > 0
    }

    /// From now on an answer is the last one of the connection.
    pub(crate) fn set_last(&self) {
        self.last.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_last(&self) -> bool {
        self.last.load(Ordering::Relaxed)
    }

    /// From now on the connection is closed when nothing goes on.
    pub(crate) fn set_closing(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }
}

/// Held while a request is answered or a tunnel is open.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The wait for a whole request head.
#[derive(Debug)]
pub(crate) struct HeadWait {
    activity: Arc<Activity>,
    limit: Duration,
    seen: u64,
    timer: Option<Pin<Box<Sleep>>>,
}

impl HeadWait {
    pub(crate) fn new(activity: Arc<Activity>, limit: Duration) -> Self {
        Self {
            activity,
            limit,
            seen: 0,
            timer: None,
        }
    }

    /// To be polled whenever the visitor has sent nothing more; ready when no whole head has come
    /// for one to two times the limit.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let limit = self.limit;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        while timer.as_mut().poll(cx).is_ready() {
            let requests = self.activity.requests.load(Ordering::Relaxed);
            let moved = std::mem::replace(&mut self.seen, requests) != requests;
            if !moved && self.activity.busy.load(Ordering::Relaxed) == 0 {
                return Poll::Ready(());
            }
            timer.as_mut().reset(Instant::now() + limit);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_a_slow_request_is_called_slow() {
        let mut patience = Patience::default();
        for _ in 0..20 {
            patience.renew();
            let slow = poll_fn(|cx| patience.poll_slow(cx));
            assert!(tokio::time::timeout(SLOW / 2, slow).await.is_err());
        }
        patience.renew();
        let start = Instant::now();
        poll_fn(|cx| patience.poll_slow(cx)).await;
        assert!((SLOW..=2 * SLOW).contains(&start.elapsed()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_may_not_take_for_ever_but_an_answer_may() {
        let limit = Duration::from_secs(10);
        let activity = Arc::new(Activity::default());
        let mut wait = HeadWait::new(Arc::clone(&activity), limit);
        let busy = activity.begin();
        let waited = poll_fn(|cx| wait.poll(cx));
        assert!(tokio::time::timeout(10 * limit, waited).await.is_err());
        drop(busy);
        let start = Instant::now();
        poll_fn(|cx| wait.poll(cx)).await;
        assert!((limit..=2 * limit).contains(&start.elapsed()));
    }
}
