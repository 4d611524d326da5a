//! A future beside a busy one, polled only when it has something to say.
//!
//! A task that serves requests is polled for each of them, and so would be whatever it also waits
//! for, although that happens once in a life. Here the inner future has a waker of its own; while
//! that was not called, a poll is one comparison and one load.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

pub(crate) struct Rarely<F> {
    inner: F,
    flag: Arc<Flag>,
    /// The task as last seen, to notice a move to another one.
    task: Option<Waker>,
}

struct Flag {
    called: AtomicBool,
    task: Mutex<Option<Waker>>,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.called.store(true, Ordering::Release);
        let task = self
            .task
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl<F: Future + Unpin> Rarely<F> {
    pub(crate) fn new(inner: F) -> Self {
        Self {
            inner,
            flag: Arc::new(Flag {
                called: AtomicBool::new(true),
                task: Mutex::default(),
            }),
            task: None,
        }
    }
}

impl<F: Future + Unpin> Future for Rarely<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        if !this
            .task
            .as_ref()
            .is_some_and(|task| task.will_wake(cx.waker()))
        {
            let task = Some(cx.waker().clone());
            this.flag
                .task
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone_from(&task);
            this.task = task;
            // A call between the last poll and now went to the task before.
            this.flag.called.store(true, Ordering::Release);
        }
        if !this.flag.called.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        let waker = Waker::from(Arc::clone(&this.flag));
        Pin::new(&mut this.inner).poll(&mut Context::from_waker(&waker))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn is_polled_again_only_when_called() {
        let (tell, mut told) = tokio::sync::oneshot::channel::<()>();
        let mut polls = 0;
        let inner = std::future::poll_fn(|cx| {
            polls += 1;
            Pin::new(&mut told).poll(cx)
        });
        let mut rarely = Rarely::new(inner);
        for _ in 0..5 {
            std::future::poll_fn(|cx| {
                assert!(Pin::new(&mut rarely).poll(cx).is_pending());
                Poll::Ready(())
            })
            .await;
        }
        let both = async {
            tokio::task::yield_now().await;
            tell.send(()).unwrap();
        };
        let (ended, ()) = tokio::join!(&mut rarely, both);
        ended.unwrap();
        drop(rarely);
        assert_eq!(polls, 2);
    }
}
