//! The one thread that writes.
//!
//! ```text
//! queue, tray ─▶ group ─▶ BEGIN, every batch, packets added up, COMMIT (one fsync) ─▶ answer all
//!                           └─ something is refused ─▶ ROLLBACK, again with a SAVEPOINT for each
//! ```
//!
//! Refusals are rare, so the first try does without savepoints. Balances of accounts in use are kept
//! in memory and written once per group; whatever is rolled back empties that memory.

use std::{collections::HashMap, sync::Arc};

use codius_ledger::{Account, Transaction};
use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    Batch, StoreError,
    bank::{Packet, Sums, Tray},
    lock::Lock,
    refund,
    row::{signed, write_lease, write_order},
};

/// Batches of one SQLite transaction: a bound for how long the first of them waits.
pub const MAX_GROUP: usize = 1024;
/// Things in one batch.
pub const MAX_BATCH_ITEMS: usize = 4096;
/// Accounts whose balance is kept in memory.
const MAX_CACHED_ACCOUNTS: usize = 100_000;
/// Statements that are kept prepared.
const STATEMENT_CACHE: usize = 40;

pub(crate) type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// What can be asked of the writer.
#[derive(Debug)]
pub(crate) enum Job {
    Commit(Batch, Answer<()>),
    /// There is something in the tray.
    Packets,
    Prune {
        before_unix_ms: u64,
        limit: usize,
        answer: Answer<Pruned>,
    },
    Close(oneshot::Sender<()>),
}

/// What [`crate::Store::prune`] has removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    pub leases: usize,
    pub orders: usize,
}

#[derive(Debug)]
pub(crate) struct Writer {
    connection: Connection,
    tray: Arc<Tray>,
    sums: Sums,
    accounts: HashMap<Account, Cached>,
    /// Accounts whose balance in memory is not in the database yet.
    dirty: Vec<Account>,
    poisoned: watch::Sender<bool>,
}

/// How a group was written.
pub(crate) enum Written {
    Alike(Result<(), StoreError>),
    /// The batches, then the packets.
    Each(Vec<Result<(), StoreError>>),
}

impl Written {
    /// Answers everyone.
    pub(crate) fn tell(self, group: &mut Vec<(Batch, Answer<()>)>, packets: &mut Vec<Packet>) {
        let result_of = |at: usize| match &self {
            Self::Alike(result) => result.clone(),
            Self::Each(results) => results[at].clone(),
        };
        let batches = group.len();
        for (at, (_, answer)) in group.drain(..).enumerate() {
            // The asker may have gone away; the batch is durable all the same.
            let _ = answer.send(result_of(at));
        }
        for (at, packet) in packets.drain(..).enumerate() {
            packet.complete(&result_of(batches + at));
        }
    }
}

#[cfg(feature = "simulation")]
impl Writer {
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(crate) fn into_connection(self) -> Connection {
        self.connection
    }

    /// As after a write that has failed so that nobody knows what is on the disk.
    pub(crate) fn poison(&mut self) {
        self.poisoned.send_replace(true);
    }
}

#[derive(Debug)]
struct Cached {
    id: i64,
    balance: i64,
    dirty: bool,
}

impl Writer {
    pub(crate) fn new(connection: Connection, tray: Arc<Tray>) -> Self {
        connection.set_prepared_statement_cache_capacity(STATEMENT_CACHE);
        Self {
            connection,
            tray,
            sums: Sums::default(),
            accounts: HashMap::new(),
            dirty: Vec::new(),
            poisoned: watch::Sender::new(false),
        }
    }

    /// Tells whether nothing is written any more, now and later.
    pub(crate) fn poisoned(&self) -> watch::Receiver<bool> {
        self.poisoned.subscribe()
    }

    fn is_poisoned(&self) -> bool {
        *self.poisoned.borrow()
    }

    /// Works until it is told to close or nobody is left to tell it anything.
    pub(crate) fn run(mut self, mut jobs: mpsc::Receiver<Job>, lock: Lock) {
        let (mut group, mut packets) = (Vec::new(), Vec::new());
        let mut next = jobs.blocking_recv();
        let mut closers = Vec::new();
        while let Some(job) = next.take() {
            match job {
                job @ (Job::Commit(..) | Job::Packets) => {
                    let mut job = Some(job);
                    while let Some(one) = job.take() {
                        match one {
                            Job::Commit(batch, answer) => group.push((batch, answer)),
                            Job::Packets => {}
                            other @ (Job::Prune { .. } | Job::Close(_)) => {
                                next = Some(other);
                                break;
                            }
                        }
                        if group.len() < MAX_GROUP {
                            job = jobs.try_recv().ok();
                        }
                    }
                    self.tray.take(&mut packets);
                    self.commit(&mut group, &mut packets);
                }
                Job::Prune {
                    before_unix_ms,
                    limit,
                    answer,
                } => {
                    // Nobody is hurt if the asker has gone away.
                    let _ = answer.send(self.prune(before_unix_ms, limit));
                }
                Job::Close(closed) => {
                    // What was queued before is written; what comes now is refused.
                    jobs.close();
                    closers.push(closed);
                }
            }
            if next.is_none() {
                next = jobs.blocking_recv();
            }
        }
        packets = self.tray.close();
        self.commit(&mut group, &mut packets);
        if !self.is_poisoned()
            && let Err(error) =
                self.connection
                    .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| {
                        row.get::<_, i64>(0)
                    })
        {
            // The log is read again at the next start; nothing is lost.
            tracing::warn!(%error, "the database's log could not be folded into it");
        }
        drop(self);
        // Only now may another process open the file.
        drop(lock);
        for closed in closers {
            let _ = closed.send(());
        }
    }

    fn commit(&mut self, group: &mut Vec<(Batch, Answer<()>)>, packets: &mut Vec<Packet>) {
        if group.is_empty() && packets.is_empty() {
            return;
        }
        self.write(group, packets).tell(group, packets);
    }

    pub(crate) fn write(&mut self, group: &[(Batch, Answer<()>)], packets: &[Packet]) -> Written {
        if self.is_poisoned() {
            return Written::Alike(Err(StoreError::Poisoned));
        }
        let error = match self.write_all(group, packets) {
            Ok(()) => return Written::Alike(Ok(())),
            Err(error) => self.roll_back(error),
        };
        if self.is_poisoned() || !error.is_of_batch() || group.len() + packets.len() == 1 {
            return Written::Alike(Err(error));
        }
        match self.write_each(group, packets) {
            Ok(results) => Written::Each(results),
            Err(error) => Written::Alike(Err(self.roll_back(error))),
        }
    }

    fn write_all(
        &mut self,
        group: &[(Batch, Answer<()>)],
        packets: &[Packet],
    ) -> Result<(), StoreError> {
        self.begin()?;
        for (batch, _) in group {
            self.apply(batch)?;
        }
        self.apply_packets(packets)?;
        self.write_balances()?;
        self.end()?;
        self.forget_some_accounts();
        Ok(())
    }

    /// So that a batch or packet that is refused does not take the others with it.
    fn write_each(
        &mut self,
        group: &[(Batch, Answer<()>)],
        packets: &[Packet],
    ) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        self.begin()?;
        let mut results = Vec::with_capacity(group.len() + packets.len());
        for (batch, _) in group {
            results.push(self.apply_alone(|writer| writer.apply(batch))?);
        }
        for packet in packets.chunks(1) {
            results.push(self.apply_alone(|writer| writer.apply_packets(packet))?);
        }
        self.end()?;
        Ok(results)
    }

    /// What is refused leaves nothing behind; any other failure is that of the whole write.
    fn apply_alone(
        &mut self,
        apply: impl FnOnce(&mut Self) -> Result<(), StoreError>,
    ) -> Result<Result<(), StoreError>, StoreError> {
        self.connection.execute_batch("SAVEPOINT alone")?;
        let result = apply(self).and_then(|()| self.write_balances());
        match result {
            Ok(()) => {}
            Err(ref error) if error.is_of_batch() => {
                self.forget_accounts();
                self.connection.execute_batch("ROLLBACK TO alone")?;
            }
            Err(error) => return Err(error),
        }
        self.connection.execute_batch("RELEASE alone")?;
        Ok(result)
    }

    fn begin(&self) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("BEGIN IMMEDIATE")?
            .execute([])?;
        Ok(())
    }

    fn end(&self) -> Result<(), StoreError> {
        self.connection.prepare_cached("COMMIT")?.execute([])?;
        Ok(())
    }

    /// Undoes everything since `BEGIN`, and decides whether the store can go on.
    fn roll_back(&mut self, error: StoreError) -> StoreError {
        self.forget_accounts();
        // SQLite may have rolled back by itself.
        let undone =
            self.connection.is_autocommit() || self.connection.execute_batch("ROLLBACK").is_ok();
        if error.poisons() || !undone {
            tracing::error!(%error, "a write to the database has failed; no more is written");
            self.poisoned.send_replace(true);
        }
        error
    }

    fn apply(&mut self, batch: &Batch) -> Result<(), StoreError> {
        if batch.len() > MAX_BATCH_ITEMS {
            return Err(StoreError::refused(format!(
                "a batch of more than {MAX_BATCH_ITEMS}"
            )));
        }
        for transaction in &batch.transactions {
            self.apply_transaction(transaction)?;
        }
        for refund in &batch.refunds {
            refund::write(&self.connection, refund)?;
        }
        for (id, step) in &batch.refund_steps {
            refund::step(&self.connection, id, step)?;
        }
        for order in &batch.orders {
            write_order(&self.connection, order)?;
        }
        for lease in &batch.leases {
            write_lease(&self.connection, lease)?;
        }
        for (key, value) in &batch.meta {
            match value {
                Some(value) => self
                    .connection
                    .prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)")?
                    .execute(params![key, value])?,
                None => self
                    .connection
                    .prepare_cached("DELETE FROM meta WHERE key = ?1")?
                    .execute([key])?,
            };
        }
        for (name, value) in &batch.secrets {
            self.connection
                .prepare_cached(
                    "INSERT INTO secrets (name, value) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
                )?
                .execute(params![name, value])?;
        }
        Ok(())
    }

    /// Packets between the same two accounts become one transaction.
    fn apply_packets(&mut self, packets: &[Packet]) -> Result<(), StoreError> {
        let mut sums = std::mem::take(&mut self.sums);
        let added = packets
            .iter()
            .try_for_each(|packet| sums.add(&packet.movement));
        // Emptied in any case, so that nothing of this write is left for the next.
        let transactions: Vec<_> = sums.drain().collect();
        self.sums = sums;
        added?;
        for transaction in transactions {
            let transaction =
                transaction.map_err(|error| StoreError::refused(error.to_string()))?;
            self.apply_transaction(&transaction)?;
        }
        Ok(())
    }

    fn apply_transaction(&mut self, transaction: &Transaction) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "INSERT INTO transactions (at_unix_ms, reason, reference, packets)
                 VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![
                signed("time", transaction.at_unix_ms())?,
                transaction.reason().as_str(),
                transaction.reference(),
                signed("packets", transaction.packets())?,
            ])?;
        let id = self.connection.last_insert_rowid();
        for posting in transaction.postings() {
            let (account, amount) = (&posting.account, posting.amount);
            if !self.accounts.contains_key(account) {
                let cached = self.load_account(account)?;
                self.accounts.insert(account.clone(), cached);
            }
            let cached = self.accounts.get_mut(account).expect("it was put there");
            let Some(balance) = cached.balance.checked_add(amount) else {
                return Err(StoreError::refused(format!(
                    "the balance of {account} is too large"
                )));
            };
            if balance < 0 && amount < 0 && !account.may_be_negative() {
                let balance = cached.balance;
                return Err(StoreError::Overdraft {
                    account: account.clone(),
                    balance,
                    amount,
                });
            }
            cached.balance = balance;
            if !cached.dirty {
                cached.dirty = true;
                self.dirty.push(account.clone());
            }
            self.connection
                .prepare_cached(
                    "INSERT INTO postings (account, transaction_id, amount) VALUES (?1, ?2, ?3)",
                )?
                .execute([cached.id, id, amount])?;
        }
        Ok(())
    }

    fn load_account(&self, account: &Account) -> Result<Cached, StoreError> {
        let name = account.to_string();
        let known = self
            .connection
            .prepare_cached(FIND_ACCOUNT)?
            .query_row([&name], |row| {
                Ok(Cached {
                    id: row.get(0)?,
                    balance: row.get(1)?,
                    dirty: false,
                })
            })
            .optional()?;
        if let Some(cached) = known {
            return Ok(cached);
        }
        self.connection
            .prepare_cached("INSERT INTO accounts (name, balance) VALUES (?1, 0)")?
            .execute([&name])?;
        Ok(Cached {
            id: self.connection.last_insert_rowid(),
            balance: 0,
            dirty: false,
        })
    }

    fn write_balances(&mut self) -> Result<(), StoreError> {
        let mut update = self
            .connection
            .prepare_cached("UPDATE accounts SET balance = ?2 WHERE id = ?1")?;
        for account in self.dirty.drain(..) {
            let cached = self
                .accounts
                .get_mut(&account)
                .expect("dirty accounts are in memory");
            update.execute([cached.id, cached.balance])?;
            cached.dirty = false;
        }
        Ok(())
    }

    fn forget_accounts(&mut self) {
        self.accounts.clear();
        self.dirty.clear();
    }

    fn forget_some_accounts(&mut self) {
        if self.accounts.len() > MAX_CACHED_ACCOUNTS {
            self.forget_accounts();
        }
    }

    /// Leases that have ended and orders that are answered, created before then and with no money
    /// left on them. The ledger is kept.
    pub(crate) fn prune(
        &mut self,
        before_unix_ms: u64,
        limit: usize,
    ) -> Result<Pruned, StoreError> {
        if self.is_poisoned() {
            return Err(StoreError::Poisoned);
        }
        self.prune_rows(before_unix_ms, limit)
            .map_err(|error| self.roll_back(error))
    }

    fn prune_rows(&mut self, before_unix_ms: u64, limit: usize) -> Result<Pruned, StoreError> {
        let before = i64::try_from(before_unix_ms).unwrap_or(i64::MAX);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.connection.execute_batch("BEGIN IMMEDIATE")?;
        let leases = self.connection.execute(OLD_LEASES, [before, limit])?;
        let orders = self.connection.execute(OLD_ORDERS, [before, limit])?;
        refund::prune(&self.connection, before, limit)?;
        self.connection.execute_batch("COMMIT")?;
        Ok(Pruned { leases, orders })
    }
}

pub(crate) const FIND_ACCOUNT: &str = "SELECT id, balance FROM accounts WHERE name = ?1";

pub(crate) const OLD_LEASES: &str = "DELETE FROM leases WHERE id IN
       (SELECT id FROM leases INDEXED BY ended_leases_by_age
        WHERE state = 'ended' AND created_at_unix_ms < ?1
        ORDER BY created_at_unix_ms LIMIT ?2)";

pub(crate) const OLD_ORDERS: &str = "DELETE FROM orders WHERE id IN
       (SELECT id FROM orders INDEXED BY orders_by_age
        WHERE state <> 'open' AND created_at_unix_ms < ?1
        AND NOT EXISTS (SELECT 1 FROM accounts
                        WHERE name = 'order:' || orders.id AND balance <> 0)
        ORDER BY created_at_unix_ms LIMIT ?2)";
