//! Adding everything up again.

use rusqlite::{Connection, OptionalExtension};

use crate::{StoreError, row::unsigned};

/// How much was added up, and found right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    pub accounts: u64,
    pub transactions: u64,
    /// How many packets the transactions stand for; each that is no packet counts as one.
    pub packets: u64,
    pub postings: u64,
}

/// Every balance is the sum of its postings, every transaction sums to zero, no account is below zero
/// that may not be, and no row hangs in the air.
pub(crate) fn verify(connection: &Connection) -> Result<Verified, StoreError> {
    let connection = connection.unchecked_transaction()?;
    let wrong_account: Option<(String, i64, i64)> = connection
        .query_row(
            "SELECT name, balance, total FROM accounts
             LEFT JOIN (SELECT account, sum(amount) AS total FROM postings GROUP BY account)
               ON account = id
             WHERE balance <> coalesce(total, 0) LIMIT 1",
            [],
            |row| {
                Ok((
                    row.get(0)?,
                    row.get(1)?,
                    row.get::<_, Option<i64>>(2)?.unwrap_or(0),
                ))
            },
        )
        .optional()?;
    if let Some((name, balance, total)) = wrong_account {
        return Err(StoreError::wrong(format!(
            "the balance of {name} is {balance}, but its postings sum to {total}"
        )));
    }
    let wrong_transaction: Option<(i64, i64)> = connection
        .query_row(
            "SELECT transaction_id, sum(amount) FROM postings
             GROUP BY transaction_id HAVING sum(amount) <> 0 LIMIT 1",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()?;
    if let Some((id, sum)) = wrong_transaction {
        return Err(StoreError::wrong(format!("transaction {id} sums to {sum}")));
    }
    for account in crate::query::balances(&connection)? {
        if account.1 < 0 && !account.0.may_be_negative() {
            return Err(StoreError::wrong(format!(
                "{} is at {}",
                account.0, account.1
            )));
        }
    }
    let orphan: Option<String> = connection
        .query_row("PRAGMA foreign_key_check", [], |row| row.get(0))
        .optional()?;
    if let Some(table) = orphan {
        return Err(StoreError::wrong(format!(
            "a row of {table} refers to one that is not there"
        )));
    }
    let count = |table: &str| -> Result<u64, StoreError> {
        let rows = format!("SELECT count(*) FROM {table}");
        unsigned("count", connection.query_row(&rows, [], |row| row.get(0))?)
    };
    Ok(Verified {
        accounts: count("accounts")?,
        transactions: count("transactions")?,
        packets: unsigned(
            "packets",
            connection.query_row(
                "SELECT coalesce(sum(packets), 0) FROM transactions",
                [],
                |row| row.get(0),
            )?,
        )?,
        postings: count("postings")?,
    })
}
