//! The connector's money in the books: every fulfilled packet is recorded before its fulfillment
//! leaves.
//!
//! ```text
//! Ledger::record ──▶ Tray ──(the writer, with its next group)──▶ Sums ──▶ one transaction a pair of
//!                                                                         accounts, one fsync
//! ```
//! Nobody waits in a task for a packet: the writer's thread completes it. How many packets may lie in
//! the tray is bounded by what the connector's accounts may have in flight.

use std::{
    collections::HashMap,
    mem,
    sync::{Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use codius_ledger::{Account, Reason, Transaction, TransactionError};
use ilp_connector::{Ledger, LedgerAccount, LedgerError, Movement, Recorded};

use crate::{Store, StoreError};

/// Ledger accounts whose names were read; all are forgotten when there are more.
const MAX_NAMES: usize = 100_000;

impl Ledger for Store {
    fn record(&self, movement: Movement, recorded: Recorded) {
        self.record_packet(Packet { movement, recorded });
    }
}

/// A fulfilled packet that waits to be written.
#[derive(Debug)]
pub(crate) struct Packet {
    pub(crate) movement: Movement,
    pub(crate) recorded: Recorded,
}

impl Packet {
    /// Says how it went.
    pub(crate) fn complete(self, result: &Result<(), StoreError>) {
        self.recorded.complete(match result {
            Ok(()) => Ok(()),
            Err(error @ (StoreError::Overdraft { .. } | StoreError::Refused { .. })) => {
                Err(LedgerError::Refused(error.to_string()))
            }
            Err(error) => Err(LedgerError::Failed(Box::new(error.clone()))),
        });
    }
}

/// Where packets lie until the writer takes them.
#[derive(Debug, Default)]
pub(crate) struct Tray(Mutex<Lying>);

#[derive(Debug, Default)]
struct Lying {
    packets: Vec<Packet>,
    closed: bool,
}

/// What became of a packet that was put down.
#[derive(Debug)]
pub(crate) enum Put {
    /// The writer has to be told, as nobody else has told it.
    First,
    /// The writer was told by whoever put one down before.
    Later,
    /// There is no writer any more.
    Closed(Packet),
}

impl Tray {
    pub(crate) fn put(&self, packet: Packet) -> Put {
        let mut lying = self.lock();
        if lying.closed {
            return Put::Closed(packet);
        }
        lying.packets.push(packet);
        if lying.packets.len() == 1 {
            Put::First
        } else {
            Put::Later
        }
    }

    /// Takes what lies there, and leaves an empty vector (whose room is used again).
    pub(crate) fn take(&self, into: &mut Vec<Packet>) {
        debug_assert!(into.is_empty(), "packets would wait for the next write");
        mem::swap(&mut self.lock().packets, into);
    }

    /// Takes what lies there for the last time.
    pub(crate) fn close(&self) -> Vec<Packet> {
        let mut lying = self.lock();
        lying.closed = true;
        mem::take(&mut lying.packets)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Lying> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Packets of one write, added up by who pays whom.
#[derive(Debug, Default)]
pub(crate) struct Sums {
    places: HashMap<(LedgerAccount, LedgerAccount), usize>,
    sums: Vec<Sum>,
    names: HashMap<LedgerAccount, Account>,
}

#[derive(Debug)]
struct Sum {
    from: Account,
    to: Account,
    amount: u64,
    packets: u64,
    reference: [u8; 32],
}

impl Sums {
    /// Adds a packet.
    pub(crate) fn add(&mut self, movement: &Movement) -> Result<(), StoreError> {
        let pair = (movement.debit.clone(), movement.credit.clone());
        if let Some(sum) = self.places.get(&pair).and_then(|at| self.sums.get_mut(*at))
            && let Some(amount) = sum.amount.checked_add(movement.amount)
            && i64::try_from(amount).is_ok()
        {
            sum.amount = amount;
            sum.packets += 1;
            return Ok(());
        }
        let sum = Sum {
            from: self.account(&movement.debit)?,
            to: self.account(&movement.credit)?,
            amount: movement.amount,
            packets: 1,
            reference: movement.reference,
        };
        self.places.insert(pair, self.sums.len());
        self.sums.push(sum);
        Ok(())
    }

    /// The transactions of all packets that were added since the last time.
    pub(crate) fn drain(
        &mut self,
    ) -> impl Iterator<Item = Result<Transaction, TransactionError>> + use<'_> {
        self.places.clear();
        let now = wall_now();
        self.sums.drain(..).map(move |sum| sum.transaction(now))
    }

    fn account(&mut self, name: &LedgerAccount) -> Result<Account, StoreError> {
        if let Some(account) = self.names.get(name) {
            return Ok(account.clone());
        }
        let account: Account = name
            .as_str()
            .parse()
            .map_err(|_| StoreError::refused(format!("no ledger account {name}")))?;
        if self.names.len() >= MAX_NAMES {
            self.names.clear();
        }
        self.names.insert(name.clone(), account.clone());
        Ok(account)
    }
}

impl Sum {
    fn transaction(self, now: u64) -> Result<Transaction, TransactionError> {
        // What a host gives back to a payer is a refund in its books, however it travels.
        let reason = match self.from {
            Account::Order(_) | Account::Owed(_) | Account::Refund(_) => Reason::Refund,
            // The host earns by packets only what it is given; all else it charges.
            _ if self.to == Account::Earned => Reason::Gift,
            Account::Parent
            | Account::Local(_)
            | Account::Pod(_)
            | Account::Lease(_)
            | Account::Earned => Reason::Packet,
        };
        let transaction = Transaction::transfer(now, reason, self.from, self.to, self.amount)?;
        Ok(if self.packets == 1 {
            transaction.with_reference(self.reference)
        } else {
            transaction.with_packets(self.packets)
        })
    }
}

/// For people; the order of transactions is the store's.
fn wall_now() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn movement(from: &str, to: &str, amount: u64) -> Movement {
        Movement {
            debit: from.into(),
            credit: to.into(),
            amount,
            reference: [u8::try_from(amount % 251).unwrap(); 32],
        }
    }

    fn added(movements: &[Movement]) -> Vec<(i64, u64, bool)> {
        let mut sums = Sums::default();
        for movement in movements {
            sums.add(movement).unwrap();
        }
        let transactions = sums.drain().map(Result::unwrap);
        let all = transactions.map(|transaction| {
            let amount = transaction.postings()[1].amount;
            (
                amount,
                transaction.packets(),
                transaction.reference().is_some(),
            )
        });
        all.collect()
    }

    #[test]
    fn packets_of_the_same_pair_and_direction_are_one_transaction() {
        let found = added(&[
            movement("local:a", "local:b", 5),
            movement("local:b", "local:a", 1),
            movement("local:a", "local:b", 7),
            movement("parent", "local:b", 9),
        ]);
        assert_eq!(found, [(12, 2, false), (1, 1, true), (9, 1, true)]);
    }

    #[test]
    fn a_sum_that_does_not_fit_is_two_transactions() {
        let most = u64::try_from(i64::MAX).unwrap();
        let found = added(&[
            movement("local:a", "local:b", most),
            movement("local:a", "local:b", 3),
            movement("local:a", "local:b", 4),
        ]);
        assert_eq!(found, [(i64::MAX, 1, true), (7, 2, false)]);
    }

    #[test]
    fn a_name_of_no_account_is_refused() {
        let mut sums = Sums::default();
        let error = sums.add(&movement("nobody", "local:b", 1)).unwrap_err();
        assert!(error.is_of_batch(), "{error}");
        assert_eq!(sums.drain().count(), 0);
    }
}
