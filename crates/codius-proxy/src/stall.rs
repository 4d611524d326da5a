//! A deadline that costs nothing while things move.
//!
//! Resetting a timer for every frame of a body is dearer than moving the frame. So progress only
//! sets a flag; when the timer fires and the flag is set, it starts again. A stall is therefore
//! noticed after one to two times the limit, and no timer exists before the first wait.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use thiserror::Error;
use tokio::time::{Instant, Sleep};

/// Nothing moved for the time allowed; the connection is cut, the message is incomplete.
#[derive(Debug, Error)]
#[error("nothing moved for {0:?}")]
pub(crate) struct Stalled(pub(crate) Duration);

#[derive(Debug)]
pub(crate) struct Stall {
    limit: Duration,
    moved: bool,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Stall {
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            limit,
            moved: false,
            timer: None,
        }
    }

    /// Something moved.
    pub(crate) fn moved(&mut self) {
        self.moved = true;
    }

    /// To be polled whenever the caller has to wait; ready when it has waited too long.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Stalled> {
        let limit = self.limit;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        while timer.as_mut().poll(cx).is_ready() {
            if !std::mem::take(&mut self.moved) {
                return Poll::Ready(Stalled(limit));
            }
            timer.as_mut().reset(Instant::now() + limit);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn movement_postpones_the_end_and_silence_brings_it() {
        let limit = Duration::from_secs(10);
        let mut stall = Stall::new(limit);
        let start = Instant::now();
        for _ in 0..8 {
            stall.moved();
            let waited = std::future::poll_fn(|cx| stall.poll(cx));
            assert!(
                tokio::time::timeout(Duration::from_secs(5), waited)
                    .await
                    .is_err()
            );
        }
        std::future::poll_fn(|cx| stall.poll(cx)).await;
        let silent = start
            .elapsed()
            .checked_sub(Duration::from_secs(40))
            .unwrap();
        assert!((limit..=2 * limit).contains(&silent), "{silent:?}");
    }
}
