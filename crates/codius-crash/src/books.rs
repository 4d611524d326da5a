//! The books of a host, read from its database by SQL of our own: what is checked must not be read by
//! what is to be checked.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result};
use rusqlite::{Connection, OpenFlags};

/// How long to wait for the host's own writes.
const BUSY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// One consistent reading.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Books {
    /// The balances as they are kept.
    pub balances: BTreeMap<String, i64>,
    /// The balances as the postings say.
    pub sums: BTreeMap<String, i64>,
    /// Transactions whose postings do not sum to zero, and by how much.
    pub unbalanced: Vec<(i64, i64)>,
    /// What has moved from one account to another in all.
    pub flows: BTreeMap<(String, String), i64>,
    pub leases: Vec<LeaseRow>,
    pub orders: Vec<OrderRow>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRow {
    pub hash: String,
    pub state: String,
    pub end_reason: Option<String>,
    /// Its money is used up, and its pod is held still for a grace; the state is `paused`.
    pub frozen: bool,
    /// Units per second, decimal text.
    pub rate: String,
    pub run_ms: u64,
    pub charged: u64,
}

impl LeaseRow {
    pub fn has_ended(&self) -> bool {
        self.state == "ended"
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderRow {
    pub id: String,
    pub hash: String,
    pub state: String,
}

impl Books {
    /// Reads all of it in one transaction, while the host writes or when it is gone.
    pub fn read(path: &Path) -> Result<Self> {
        // Not read-only: the log of a host that was killed has to be read, too.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update(None, "query_only", true)?;
        let connection = connection.transaction()?;
        let mut books = Self::default();
        let mut accounts = connection.prepare("SELECT name, balance FROM accounts")?;
        let mut rows = accounts.query([])?;
        while let Some(row) = rows.next()? {
            let name: String = row.get(0)?;
            books.balances.insert(name, row.get(1)?);
        }
        let mut sums = connection.prepare(
            "SELECT name, coalesce(sum(amount), 0) FROM accounts
             LEFT JOIN postings ON postings.account = accounts.id GROUP BY accounts.id",
        )?;
        let mut rows = sums.query([])?;
        while let Some(row) = rows.next()? {
            books.sums.insert(row.get(0)?, row.get(1)?);
        }
        let mut unbalanced = connection.prepare(
            "SELECT transaction_id, sum(amount) FROM postings
             GROUP BY transaction_id HAVING sum(amount) <> 0",
        )?;
        let mut rows = unbalanced.query([])?;
        while let Some(row) = rows.next()? {
            books.unbalanced.push((row.get(0)?, row.get(1)?));
        }
        let mut flows = connection.prepare(
            "SELECT payer.name, payee.name, sum(gain.amount)
             FROM postings AS loss
             JOIN postings AS gain ON gain.transaction_id = loss.transaction_id AND gain.amount > 0
             JOIN accounts AS payer ON payer.id = loss.account
             JOIN accounts AS payee ON payee.id = gain.account
             WHERE loss.amount < 0 GROUP BY payer.id, payee.id",
        )?;
        let mut rows = flows.query([])?;
        while let Some(row) = rows.next()? {
            books.flows.insert((row.get(0)?, row.get(1)?), row.get(2)?);
        }
        let mut leases = connection.prepare(
            "SELECT hash, state, end_reason, rate, run_ms, charged, frozen_ms IS NOT NULL
             FROM leases ORDER BY id",
        )?;
        let mut rows = leases.query([])?;
        while let Some(row) = rows.next()? {
            books.leases.push(LeaseRow {
                hash: row.get(0)?,
                state: row.get(1)?,
                end_reason: row.get(2)?,
                rate: row.get(3)?,
                run_ms: unsigned(row.get(4)?)?,
                charged: unsigned(row.get(5)?)?,
                frozen: row.get(6)?,
            });
        }
        let mut orders = connection.prepare("SELECT id, hash, state FROM orders")?;
        let mut rows = orders.query([])?;
        while let Some(row) = rows.next()? {
            books.orders.push(OrderRow {
                id: row.get(0)?,
                hash: row.get(1)?,
                state: row.get(2)?,
            });
        }
        Ok(books)
    }

    pub fn balance(&self, account: &str) -> i64 {
        self.balances.get(account).copied().unwrap_or(0)
    }

    /// What has moved to an account in all, from those that `from` names.
    pub fn into_account(&self, account: &str, from: impl Fn(&str) -> bool) -> i64 {
        self.flows
            .iter()
            .filter(|((payer, payee), _)| payee == account && from(payer))
            .map(|(_, amount)| amount)
            .sum()
    }

    /// What has moved from an account in all, to those that `to` names.
    pub fn out_of_account(&self, account: &str, to: impl Fn(&str) -> bool) -> i64 {
        self.flows
            .iter()
            .filter(|((payer, payee), _)| payer == account && to(payee))
            .map(|(_, amount)| amount)
            .sum()
    }

    /// The lease of a hash that has not ended.
    pub fn live(&self, hash: &str) -> Option<&LeaseRow> {
        self.leases
            .iter()
            .find(|lease| lease.hash == hash && !lease.has_ended())
    }
}

fn unsigned(value: i64) -> Result<u64> {
    u64::try_from(value).with_context(|| format!("{value} is below zero"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn books_are_read_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("codius.db");
        let connection = Connection::open(&path).unwrap();
        connection
            .execute_batch(
                "CREATE TABLE accounts (id INTEGER PRIMARY KEY, name TEXT, balance INTEGER);
                 CREATE TABLE postings (account INTEGER, transaction_id INTEGER, amount INTEGER);
                 CREATE TABLE leases (id INTEGER PRIMARY KEY, hash TEXT, state TEXT, end_reason TEXT,
                     rate TEXT, run_ms INTEGER, charged INTEGER, frozen_ms INTEGER);
                 CREATE TABLE orders (id TEXT, hash TEXT, state TEXT);
                 INSERT INTO accounts VALUES (1, 'local:clients', -7), (2, 'lease:h', 7), (3, 'earned', 0);
                 INSERT INTO postings VALUES (1, 1, -5), (2, 1, 5), (1, 2, -2), (2, 2, 2), (3, 3, 1);
                 INSERT INTO leases VALUES (1, 'h', 'running', NULL, '0.5', 10, 0, NULL);
                 INSERT INTO orders VALUES ('o', 'h', 'open');",
            )
            .unwrap();
        let books = Books::read(&path).unwrap();
        assert_eq!(books.balance("local:clients"), -7);
        assert_eq!(books.sums["earned"], 1);
        assert_eq!(books.unbalanced, [(3, 1)]);
        assert_eq!(
            books.into_account("lease:h", |from| from == "local:clients"),
            7
        );
        assert_eq!(books.live("h").map(|lease| lease.run_ms), Some(10));
        assert_eq!(books.orders.len(), 1);
    }
}
