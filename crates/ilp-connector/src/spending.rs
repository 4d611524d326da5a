//! A bound on what the host itself sends, such as the refund of one lease.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// At most so much may leave by packets that share this limit. Cheap to clone; clones share it.
///
/// An amount counts from the moment its packet is sent. It is given back when the packet is
/// rejected, and kept when it is fulfilled.
#[derive(Debug, Clone)]
pub struct SpendLimit(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    spending: Mutex<Spending>,
    /// Nothing is in flight any more.
    settled: Notify,
}

#[derive(Debug)]
struct Spending {
    limit: u64,
    spent: u64,
    reserved: u64,
}

impl SpendLimit {
    /// A limit of `limit` units of the connector's asset.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self(Arc::new(Shared {
            spending: Mutex::new(Spending {
                limit,
                spent: 0,
                reserved: 0,
            }),
            settled: Notify::new(),
        }))
    }

    /// No bound but that of the type.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::new(u64::MAX)
    }

    /// What was fulfilled so far.
    #[must_use]
    pub fn spent(&self) -> u64 {
        self.with(|spending| spending.spent)
    }

    /// What may still be sent, with the packets in flight taken off.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.with(|spending| spending.limit - spending.spent - spending.reserved)
    }

    /// Waits until no packet is in flight: each has failed, or is in the ledger. Who has sent them may have
    /// given one up before, because it expired while it was being written down.
    pub async fn settled(&self) {
        loop {
            let settled = self.0.settled.notified();
            tokio::pin!(settled);
            settled.as_mut().enable();
            if self.with(|spending| spending.reserved == 0) {
                return;
            }
            settled.await;
        }
    }

    pub(crate) fn reserve(&self, amount: u64) -> bool {
        self.with(|spending| {
            let free = spending.limit - spending.spent - spending.reserved;
            if amount > free {
                return false;
            }
            spending.reserved += amount;
            true
        })
    }

    pub(crate) fn release(&self, amount: u64) {
        self.finish(|spending| spending.reserved -= amount);
    }

    pub(crate) fn spend(&self, amount: u64) {
        self.finish(|spending| {
            spending.reserved -= amount;
            spending.spent += amount;
        });
    }

    fn finish(&self, work: impl FnOnce(&mut Spending)) {
        let settled = self.with(|spending| {
            work(spending);
            spending.reserved == 0
        });
        if settled {
            self.0.settled.notify_waiters();
        }
    }

    // Invariant: spent + reserved <= limit, so none of the sums above can wrap.
    fn with<R>(&self, work: impl FnOnce(&mut Spending) -> R) -> R {
        work(
            &mut self
                .0
                .spending
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_limit_is_settled_when_nothing_is_in_flight() {
        let limit = SpendLimit::new(10);
        limit.settled().await;
        assert!(limit.reserve(4) && limit.reserve(6));
        limit.release(4);
        let settled = timeout(Duration::from_secs(60), limit.settled()).await;
        assert!(settled.is_err(), "six units are in flight");

        let waiting = tokio::spawn({
            let limit = limit.clone();
            async move { limit.settled().await }
        });
        tokio::task::yield_now().await;
        limit.spend(6);
        waiting.await.expect("it is told");
        assert_eq!((limit.spent(), limit.remaining()), (6, 4));
    }
}
