//! Adding everything up again.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use codius_ledger::Account;
use rusqlite::{Connection, OptionalExtension};

use crate::{
    StoreError,
    checkpoint::{Checkpoint, difference},
    query::balances,
    row::{parsed, unsigned},
};

/// How much was added up, and found right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    pub accounts: u64,
    pub transactions: u64,
    /// How many packets the transactions stand for; each that is no packet counts as one.
    pub packets: u64,
    pub postings: u64,
}

/// Books that were found right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    pub totals: Verified,
    /// When all of it was last added up.
    pub full_at_unix_ms: u64,
    /// Postings that were added up this time.
    pub added_up: u64,
}

/// Every balance is the sum of its postings, every transaction sums to zero, no account is below zero
/// that may not be, and no row hangs in the air.
pub(crate) fn verify(connection: &Connection) -> Result<Checkpoint, StoreError> {
    // One moment of the books, whether or not the caller reads in a transaction already.
    let _moment = connection
        .is_autocommit()
        .then(|| connection.unchecked_transaction())
        .transpose()?;
    let mut added = BTreeMap::new();
    let mut postings = 0;
    {
        let mut select = connection.prepare(
            "SELECT name, total, count FROM
             (SELECT account, sum(amount) AS total, count(*) AS count FROM postings GROUP BY account)
             LEFT JOIN accounts ON id = account",
        )?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            postings += unsigned("count", row.get(2)?)?;
            let total: i64 = row.get(1)?;
            // A posting of no account is found below.
            if let (true, Some(name)) = (total != 0, row.get::<_, Option<String>>(0)?) {
                let account: Account = parsed("account", &name)?;
                added.insert(account, total);
            }
        }
    }
    let found = balances(connection)?;
    if found != added {
        return Err(StoreError::wrong(difference(&found, &added)));
    }
    let wrong_transaction: Option<(i64, i64)> = connection
        .query_row(
            "SELECT transaction_id, sum(amount) FROM postings INDEXED BY postings_by_transaction
             GROUP BY transaction_id HAVING sum(amount) <> 0 LIMIT 1",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()?;
    if let Some((id, sum)) = wrong_transaction {
        return Err(StoreError::wrong(format!("transaction {id} sums to {sum}")));
    }
    forbidden(&found)?;
    let orphan: Option<String> = connection
        .query_row("PRAGMA foreign_key_check", [], |row| row.get(0))
        .optional()?;
    if let Some(table) = orphan {
        return Err(StoreError::wrong(format!(
            "a row of {table} refers to one that is not there"
        )));
    }
    let accounts = connection.query_row("SELECT count(*) FROM accounts", [], |row| row.get(0))?;
    let (transactions, packets, through) = connection.query_row(
        "SELECT count(*), coalesce(sum(packets), 0), coalesce(max(id), 0) FROM transactions",
        [],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )?;
    Ok(Checkpoint {
        through: unsigned("transaction", through)?,
        totals: Verified {
            accounts: unsigned("count", accounts)?,
            transactions: unsigned("count", transactions)?,
            packets: unsigned("packets", packets)?,
            postings,
        },
        full_at_unix_ms: wall_now(),
        balances: found,
    })
}

/// No account is below zero that may not be.
pub(crate) fn forbidden(balances: &BTreeMap<Account, i64>) -> Result<(), StoreError> {
    let wrong = balances
        .iter()
        .find(|(account, balance)| **balance < 0 && !account.may_be_negative());
    match wrong {
        Some((account, balance)) => Err(StoreError::wrong(format!("{account} is at {balance}"))),
        None => Ok(()),
    }
}

/// For people.
fn wall_now() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
