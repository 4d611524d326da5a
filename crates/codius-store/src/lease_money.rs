//! What each lease of a program was paid and what became of it, from the postings.
//!
//! Money is kept by program (`lease:HASH`, `owed:HASH`), and leases of one program follow each other:
//! a new one begins with an empty `lease:HASH` and with a payment into it. That is how the postings
//! are told apart here, with the time of the lease's creation. Two leases of one program between which
//! the wall clock was set back may have what belongs to the other; the sums of the program are right.

use std::collections::BTreeMap;

use codius_ledger::{Account, Reason};
use codius_manifest::ManifestHash;
use rusqlite::{Connection, Rows};

use crate::{
    StoreError,
    row::{parsed, unsigned},
};

/// The money of one lease, in smallest units: `paid` = `charged` + `unused` + `balance`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeaseMoney {
    /// What came into it, by orders, by top-ups, and from what was owed to its program.
    pub paid: i128,
    /// What it has cost.
    pub charged: i128,
    /// What was taken out of it at its end, to be owed to its program or to the order that failed.
    pub unused: i128,
    /// What was sent back of what is owed to its program, until its next lease.
    pub refunded: i128,
    /// What is left on it.
    pub balance: i128,
    /// When its money last moved.
    pub moved_at_unix_ms: Option<u64>,
}

/// A movement of `lease:HASH` or `owed:HASH`.
struct Movement {
    transaction: i64,
    amount: i64,
    at_unix_ms: u64,
    reason: Reason,
}

/// The money of every lease of a program, by the lease's row.
pub(crate) fn money_of(
    connection: &Connection,
    hash: &ManifestHash,
) -> Result<BTreeMap<i64, LeaseMoney>, StoreError> {
    let mut select = connection.prepare_cached(LEASES_OF_PROGRAM)?;
    let leases: Vec<(i64, i64)> = select
        .query_map([hash.to_string()], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let mut money: BTreeMap<i64, LeaseMoney> = BTreeMap::new();
    let mut coming = leases.into_iter().peekable();
    let mut current: Option<i64> = None;
    let mut left = 0i128;

    // Two statements, because a statement is one walk through its rows.
    let mut of_lease = connection.prepare(MOVEMENTS)?;
    let mut of_lease = of_lease.query([Account::Lease(*hash).to_string()])?;
    let mut owed = connection.prepare(MOVEMENTS)?;
    let mut owed = owed.query([Account::Owed(*hash).to_string()])?;
    let (mut in_lease, mut in_owed) = (next(&mut of_lease)?, next(&mut owed)?);
    loop {
        let lease_first = match (&in_lease, &in_owed) {
            (None, None) => break,
            (Some(lease), Some(owed)) => lease.transaction <= owed.transaction,
            (lease, _) => lease.is_some(),
        };
        if lease_first {
            let Some(movement) = in_lease.take() else {
                break;
            };
            in_lease = next(&mut of_lease)?;
            let began = |created: i64| {
                u64::try_from(created).is_ok_and(|created| created <= movement.at_unix_ms)
            };
            let is_beginning =
                left == 0 && movement.amount > 0 && movement.reason == Reason::Payment;
            while is_beginning && let Some((id, _)) = coming.next_if(|(_, created)| began(*created))
            {
                current = Some(id);
            }
            left += i128::from(movement.amount);
            let Some(id) = current else { continue };
            money.entry(id).or_default().add(&movement);
        } else {
            let Some(movement) = in_owed.take() else {
                break;
            };
            in_owed = next(&mut owed)?;
            let Some(id) = current else { continue };
            if movement.reason == Reason::Refund && movement.amount < 0 {
                let lease = money.entry(id).or_default();
                lease.refunded -= i128::from(movement.amount);
                lease.moved_at_unix_ms = lease.moved_at_unix_ms.max(Some(movement.at_unix_ms));
            }
        }
    }
    Ok(money)
}

impl LeaseMoney {
    fn add(&mut self, movement: &Movement) {
        let amount = i128::from(movement.amount);
        match movement.reason {
            Reason::Charge => self.charged -= amount,
            _ if amount > 0 => self.paid += amount,
            _ => self.unused -= amount,
        }
        self.balance += amount;
        self.moved_at_unix_ms = self.moved_at_unix_ms.max(Some(movement.at_unix_ms));
    }
}

pub(crate) const LEASES_OF_PROGRAM: &str =
    "SELECT id, created_at_unix_ms FROM leases WHERE hash = ?1 ORDER BY id";

pub(crate) const MOVEMENTS: &str = "SELECT postings.transaction_id, amount, at_unix_ms, reason
     FROM accounts
     CROSS JOIN postings ON postings.account = accounts.id
     CROSS JOIN transactions ON transactions.id = postings.transaction_id
     WHERE accounts.name = ?1 ORDER BY postings.transaction_id";

fn next(rows: &mut Rows<'_>) -> Result<Option<Movement>, StoreError> {
    let Some(row) = rows.next()? else {
        return Ok(None);
    };
    Ok(Some(Movement {
        transaction: row.get(0)?,
        amount: row.get(1)?,
        at_unix_ms: unsigned("time", row.get(2)?)?,
        reason: parsed("reason", &row.get::<_, String>(3)?)?,
    }))
}
