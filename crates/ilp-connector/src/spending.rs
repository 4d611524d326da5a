//! A bound on what the host itself sends, such as the refund of one lease.

use std::sync::{Arc, Mutex, PoisonError};

/// At most so much may leave by packets that share this limit. Cheap to clone; clones share it.
///
/// An amount counts from the moment its packet is sent. It is given back when the packet is
/// rejected, and kept when it is fulfilled.
#[derive(Debug, Clone)]
pub struct SpendLimit(Arc<Mutex<Spending>>);

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
        Self(Arc::new(Mutex::new(Spending {
            limit,
            spent: 0,
            reserved: 0,
        })))
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
        self.with(|spending| spending.reserved -= amount);
    }

    pub(crate) fn spend(&self, amount: u64) {
        self.with(|spending| {
            spending.reserved -= amount;
            spending.spent += amount;
        });
    }

    // Invariant: spent + reserved <= limit, so none of the sums above can wrap.
    fn with<R>(&self, work: impl FnOnce(&mut Spending) -> R) -> R {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
