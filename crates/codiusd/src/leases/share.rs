//! Whose money is left of a lease: the parts of it that came over one connection, and the way back.
//!
//! The money of a lease is used in the order in which it came. Each packet therefore has its place in all
//! that was ever paid for the lease, and what lies behind what was used by the end is not used:
//!
//! ```text
//!  0            used                      paid
//!  ├─────────────┼──────┬─────┬────┬───────┤
//!                  ours   his  ours  order        ours goes back over our connection, his over his
//! ```
//!
//! So nobody gets back what somebody else has paid, however much he has paid before. What was paid by a
//! request, or over a connection that is closed by now, has no way back here: it stays owed.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use async_trait::async_trait;
use codius_ledger::Account;
use codius_manifest::ManifestHash;
use futures_util::future::join_all;

/// Parts that are kept of one connection. A payer is a few seconds ahead, with a packet a second; of one
/// who sends more and smaller packets than that the oldest are forgotten, and stay owed.
const MAX_PARTS: usize = 1024;
/// How long the rest of a lease may take to go back to one payer.
pub(crate) const GIVE_BACK_PATIENCE: Duration = Duration::from_secs(5);

/// What came over one connection for one lease and is not used yet, as far as it is known.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Share {
    /// When the lease was created: a later one of the same hash begins anew.
    lease: u64,
    /// From where to where in all that was paid for the lease; rising, and not touching each other.
    parts: VecDeque<(u64, u64)>,
}

impl Share {
    /// Adds a packet: the lease was created then, `before` had been paid for it until then, and `used` of
    /// that is used for certain.
    pub(crate) fn add(&mut self, lease: u64, before: u64, amount: u64, used: u64) {
        if lease != self.lease {
            self.lease = lease;
            self.parts.clear();
        }
        while self.parts.front().is_some_and(|(_, end)| *end <= used) {
            self.parts.pop_front();
        }
        let end = before.saturating_add(amount);
        match self.parts.back_mut() {
            Some((_, last)) if *last == before => *last = end,
            _ => self.parts.push_back((before, end)),
        }
        if self.parts.len() > MAX_PARTS {
            self.parts.pop_front();
        }
    }

    /// How much of it is not used when `used` of the lease is.
    pub(crate) fn unused(&self, lease: u64, used: u64) -> u64 {
        if lease != self.lease {
            return 0;
        }
        let left = |(start, end): &(u64, u64)| end.saturating_sub(used.max(*start));
        self.parts.iter().map(left).sum()
    }
}

/// A connection by which leases are paid.
#[async_trait]
pub(crate) trait Payer: Send + Sync {
    /// What came over it.
    fn share(&self) -> Share;

    /// Sends back at most so much from an account, ends the connection, and says how much has left.
    async fn give_back(&self, from: &Account, amount: u64) -> u64;
}

/// The connections that are open, by the lease that they pay.
#[derive(Default)]
pub(crate) struct Payers(Mutex<HashMap<ManifestHash, Vec<Weak<dyn Payer>>>>);

impl Payers {
    /// A connection has brought its first packet.
    pub(crate) fn add(&self, hash: ManifestHash, payer: Weak<dyn Payer>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let payers = all.entry(hash).or_default();
        payers.retain(|payer| payer.strong_count() > 0);
        payers.push(payer);
    }

    /// Forgets those that are closed.
    pub(crate) fn tidy(&self, hash: &ManifestHash) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(payers) = all.get_mut(hash) {
            payers.retain(|payer| payer.strong_count() > 0);
            if payers.is_empty() {
                all.remove(hash);
            }
        }
    }

    /// Sends back to all who still can be reached what is theirs of a lease that is over, all at the same
    /// time: at most `rest`, which is in `from`. Says how much has left.
    pub(crate) async fn give_back(
        &self,
        hash: ManifestHash,
        lease: u64,
        used: u64,
        from: &Account,
        rest: u64,
    ) -> u64 {
        let payers: Vec<Arc<dyn Payer>> = {
            let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let known = all.get(&hash).into_iter().flatten();
            known.filter_map(Weak::upgrade).collect()
        };
        let mut left = rest;
        let mut under_way = Vec::new();
        for payer in &payers {
            // Together they are never more than the rest; it is bounded all the same.
            let amount = payer.share().unused(lease, used).min(left);
            left -= amount;
            if amount > 0 {
                under_way.push(payer.give_back(from, amount));
            }
        }
        join_all(under_way).await.into_iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_his_who_has_paid_it() {
        let (mut ours, mut his) = (Share::default(), Share::default());
        // An order of 100, then by turns.
        ours.add(1, 100, 10, 0);
        his.add(1, 110, 1000, 0);
        ours.add(1, 1110, 10, 0);
        ours.add(1, 1120, 5, 0);
        assert_eq!((ours.unused(1, 0), his.unused(1, 0)), (25, 1000));
        assert_eq!((ours.unused(1, 105), his.unused(1, 105)), (20, 1000));
        assert_eq!((ours.unused(1, 610), his.unused(1, 610)), (15, 500));
        assert_eq!((ours.unused(1, 1118), his.unused(1, 1118)), (7, 0));
        assert_eq!((ours.unused(1, 1125), his.unused(1, 9999)), (0, 0));
    }

    #[test]
    fn what_is_used_is_forgotten_and_an_earlier_lease_counts_for_nothing() {
        let mut share = Share::default();
        for second in 0..100_000_u64 {
            // Somebody else pays a unit between any two of ours.
            share.add(7, second * 11, 10, second.saturating_sub(12) * 11);
            assert!(share.parts.len() <= 14);
        }
        assert!(share.unused(7, 0) > 0);
        assert_eq!(share.unused(8, 0), 0);
        share.add(8, 5, 2, 0);
        assert_eq!((share.unused(7, 0), share.unused(8, 0)), (0, 2));
    }

    #[test]
    fn dust_takes_no_more_than_its_place() {
        let mut share = Share::default();
        for packet in 0..10_000_u64 {
            share.add(1, packet * 2, 1, 0);
        }
        assert_eq!(share.parts.len(), MAX_PARTS);
        assert_eq!(share.unused(1, 0), MAX_PARTS as u64);
    }
}
