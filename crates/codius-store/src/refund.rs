//! Refunds as rows.
//!
//! The money is in the ledger: the row only says whose it is, where it goes and when it is tried. So a row
//! can be wrong about nothing that matters: what is due is the balance of `refund:ID`.

use codius_ledger::{Account, RefundId};
use codius_manifest::ManifestHash;
use rusqlite::{Connection, Row, params};

use crate::{
    RefundRecord, RefundStep, StoreError,
    row::{parsed, signed, unsigned},
};

/// A refund with what is due of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRefund {
    pub record: RefundRecord,
    /// Tries in a row that moved nothing.
    pub tries: u32,
    /// Why the last of them did not.
    pub trouble: Option<String>,
    /// When it is sent (again); none if it has no destination, or nothing is due.
    pub next_try_unix_ms: Option<u64>,
    /// What the host still owes: the balance of its account.
    pub due: u64,
    /// What has been sent back by packets, ever.
    pub sent: u64,
}

impl StoredRefund {
    pub fn account(&self) -> Account {
        Account::Refund(self.record.id)
    }
}

const COLUMNS: &str = "refunds.id, refunds.hash, refunds.owner, refunds.destination, \
     refunds.created_at_unix_ms, refunds.tries, refunds.trouble, refunds.next_try_unix_ms, \
     coalesce(accounts.balance, 0), \
     (SELECT coalesce(-sum(amount), 0) FROM postings \
      JOIN transactions ON transactions.id = postings.transaction_id \
      WHERE postings.account = accounts.id AND amount < 0 AND reason = 'refund')";
const TABLES: &str = "refunds LEFT JOIN accounts ON accounts.name = 'refund:' || refunds.id";

fn refund_of(row: &Row<'_>) -> Result<StoredRefund, StoreError> {
    let next_try: Option<i64> = row.get(7)?;
    Ok(StoredRefund {
        record: RefundRecord {
            id: parsed("refund", &row.get::<_, String>(0)?)?,
            hash: parsed("hash of a refund", &row.get::<_, String>(1)?)?,
            owner: row.get(2)?,
            destination: row.get(3)?,
            created_at_unix_ms: unsigned("creation", row.get(4)?)?,
        },
        tries: row.get(5)?,
        trouble: row.get(6)?,
        next_try_unix_ms: next_try.map(|at| unsigned("time", at)).transpose()?,
        due: unsigned("balance of a refund", row.get(8)?)?,
        sent: unsigned("sent of a refund", row.get(9)?)?,
    })
}

fn select(
    connection: &Connection,
    which: &str,
    parameters: impl rusqlite::Params,
) -> Result<Vec<StoredRefund>, StoreError> {
    let text = format!("SELECT {COLUMNS} FROM {which}");
    let mut select = connection.prepare_cached(&text)?;
    let mut rows = select.query(parameters)?;
    let mut refunds = Vec::new();
    while let Some(row) = rows.next()? {
        refunds.push(refund_of(row)?);
    }
    Ok(refunds)
}

fn most(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

pub(crate) fn one(
    connection: &Connection,
    id: &RefundId,
) -> Result<Option<StoredRefund>, StoreError> {
    let which = format!("{TABLES} WHERE refunds.id = ?1");
    Ok(select(connection, &which, [id.to_string()])?.pop())
}

pub(crate) fn of_program(
    connection: &Connection,
    hash: &ManifestHash,
    limit: usize,
) -> Result<Vec<StoredRefund>, StoreError> {
    let which = format!(
        "{TABLES} WHERE refunds.hash = ?1 AND accounts.balance > 0
         ORDER BY refunds.created_at_unix_ms, refunds.id LIMIT ?2"
    );
    select(connection, &which, params![hash.to_string(), most(limit)])
}

pub(crate) fn to_send(
    connection: &Connection,
    limit: usize,
) -> Result<Vec<StoredRefund>, StoreError> {
    let which = format!(
        "{TABLES} WHERE refunds.next_try_unix_ms IS NOT NULL
         ORDER BY refunds.next_try_unix_ms LIMIT ?1"
    );
    select(connection, &which, [most(limit)])
}

/// By the accounts, which are few that are not at zero, and not by the refunds, which are many.
pub(crate) fn due(connection: &Connection, limit: usize) -> Result<Vec<StoredRefund>, StoreError> {
    let which = "accounts JOIN refunds ON accounts.name = 'refund:' || refunds.id
         WHERE accounts.name >= 'refund:' AND accounts.name < 'refund;' AND accounts.balance > 0
         ORDER BY refunds.created_at_unix_ms, refunds.id LIMIT ?1";
    select(connection, which, [most(limit)])
}

pub(crate) fn write(connection: &Connection, record: &RefundRecord) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT INTO refunds (id, hash, owner, destination, created_at_unix_ms)
             VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING",
        )?
        .execute(params![
            record.id.to_string(),
            record.hash.to_string(),
            record.owner,
            record.destination,
            signed("creation", record.created_at_unix_ms)?,
        ])?;
    Ok(())
}

pub(crate) fn step(
    connection: &Connection,
    id: &RefundId,
    step: &RefundStep,
) -> Result<(), StoreError> {
    let id_text = id.to_string();
    let written = match step {
        RefundStep::Due { at_unix_ms } => connection
            .prepare_cached(
                "UPDATE refunds SET next_try_unix_ms =
                     CASE WHEN destination IS NULL THEN NULL ELSE ?2 END
                 WHERE id = ?1",
            )?
            .execute(params![id_text, signed("time", *at_unix_ms)?])?,
        RefundStep::Redirected {
            destination,
            at_unix_ms,
        } => connection
            .prepare_cached(
                "UPDATE refunds SET destination = ?2, next_try_unix_ms = ?3, tries = 0,
                     trouble = NULL WHERE id = ?1",
            )?
            .execute(params![id_text, destination, signed("time", *at_unix_ms)?])?,
        RefundStep::Waiting {
            tries,
            trouble,
            next_try_unix_ms,
        } => connection
            .prepare_cached(
                "UPDATE refunds SET tries = ?2, trouble = ?3, next_try_unix_ms =
                     CASE WHEN destination IS NULL THEN NULL ELSE ?4 END
                 WHERE id = ?1",
            )?
            .execute(params![
                id_text,
                tries,
                trouble,
                signed("time", *next_try_unix_ms)?
            ])?,
        RefundStep::Settled => connection
            .prepare_cached(
                "UPDATE refunds SET tries = 0, trouble = NULL, next_try_unix_ms = NULL
                 WHERE id = ?1",
            )?
            .execute([id_text])?,
    };
    if written == 0 {
        return Err(StoreError::refused(format!("there is no refund {id}")));
    }
    Ok(())
}

/// Those of which nothing is due and that nothing refers to any more. `before` is in Unix milliseconds.
pub(crate) fn prune(connection: &Connection, before: i64, limit: i64) -> Result<usize, StoreError> {
    Ok(connection.execute(
        "DELETE FROM refunds WHERE id IN
           (SELECT id FROM refunds WHERE created_at_unix_ms < ?1
            AND NOT EXISTS (SELECT 1 FROM leases WHERE leases.refund = refunds.id)
            AND NOT EXISTS (SELECT 1 FROM orders WHERE orders.id = refunds.id)
            AND NOT EXISTS (SELECT 1 FROM accounts
                            WHERE name = 'refund:' || refunds.id AND balance <> 0)
            LIMIT ?2)",
        [before, limit],
    )?)
}
