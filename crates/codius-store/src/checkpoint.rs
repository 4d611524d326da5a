//! How far the books were added up, so that a start adds up only what is new.
//!
//! ```text
//! start ──▶ checkpoint? ── no ──▶ all of it (`verify.rs`) ──┐
//!               │ yes                                       ▼
//!               └──▶ what was written since, on top of it ──▶ new checkpoint (row of `meta`)
//! now and then, beside the work: all of it, again ──────────▶ new checkpoint
//! ```
//!
//! A checkpoint is the balance of every account that held money after a certain transaction, as its
//! postings added up to, and how many rows there were. With it a start proves that every later
//! transaction sums to zero and that every balance is the checkpoint's and what came since: it costs
//! as much as there is new. What it cannot see is a row from before the checkpoint that was changed
//! behind the program's back; that is found by adding up all of it, which the host does daily and
//! `codiusd ledger verify` at any time. Nothing is paid out by rows from before a checkpoint: money
//! moves by balances, and those are compared at every start.
//!
//! The text is for people as well: `SELECT CAST(value AS TEXT) FROM meta WHERE key = 'verified'`.

use std::{collections::BTreeMap, fmt::Write};

use codius_ledger::Account;
use rusqlite::{Connection, OptionalExtension};

use crate::{
    Batch, Checked, Store, StoreError, Verified,
    query::balances,
    row::unsigned,
    verify::{forbidden, verify},
};

/// The row of `meta`.
const META_KEY: &str = "verified";
/// Accounts with money in one checkpoint. With more there is none, and every start adds up all of it.
const MAX_ACCOUNTS: usize = 100_000;
/// The first line; another form is another number.
const FORM: &str = "checkpoint 1";

/// The books as they were found right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    /// The last transaction that was added up.
    pub(crate) through: u64,
    /// Rows up to there, but for `accounts`, which are all that there were.
    pub(crate) totals: Verified,
    /// When all of it was last added up.
    pub(crate) full_at_unix_ms: u64,
    /// Accounts that are not at zero.
    pub(crate) balances: BTreeMap<Account, i64>,
}

impl Store {
    /// Adds up what was written since the books were last found right, or all of it if nobody knows
    /// when that was, and notes that they are right. Blocks nobody.
    pub async fn check(&self) -> Result<Checked, StoreError> {
        let found = self
            .read_apart(|connection| {
                let connection = connection.unchecked_transaction()?;
                match read(&connection)? {
                    Some(checkpoint) => after(&connection, checkpoint),
                    None => Ok((verify(&connection)?, None)),
                }
            })
            .await?;
        self.note(found).await
    }

    /// Adds up all of the books and notes that they are right. Blocks nobody, and takes seconds for
    /// some million entries. If they are wrong, every later check adds up all of them, too: a host
    /// that ends because of that does not start again as if nothing had been.
    pub async fn check_all(&self) -> Result<Checked, StoreError> {
        let result = self.read_apart(|connection| verify(&connection)).await;
        match result {
            Ok(checkpoint) => self.note((checkpoint, None)).await,
            Err(error) => {
                if matches!(error, StoreError::Inconsistent { .. }) {
                    let forgotten = self.commit(Batch::new().meta(META_KEY, None)).await;
                    if let Err(error) = forgotten {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "that the books are wrong could not be noted"
                        );
                    }
                }
                Err(error)
            }
        }
    }

    async fn note(
        &self,
        (checkpoint, added): (Checkpoint, Option<u64>),
    ) -> Result<Checked, StoreError> {
        let checked = Checked {
            totals: checkpoint.totals,
            full_at_unix_ms: checkpoint.full_at_unix_ms,
            added_up: added.unwrap_or(checkpoint.totals.postings),
        };
        let text = (checkpoint.balances.len() <= MAX_ACCOUNTS).then(|| text_of(&checkpoint));
        let batch = Batch::new().meta(META_KEY, text.map(String::into_bytes));
        match self.commit(batch).await {
            Ok(()) => {}
            Err(StoreError::Closed) => return Err(StoreError::Closed),
            // The books are right all the same; the next check has more to add up.
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "how far the books were added up could not be noted"
            ),
        }
        Ok(checked)
    }
}

/// What was written after a checkpoint, and how many postings that was.
fn after(
    connection: &Connection,
    old: Checkpoint,
) -> Result<(Checkpoint, Option<u64>), StoreError> {
    let since = i64::try_from(old.through).unwrap_or(i64::MAX);
    let wrong: Option<(i64, i64)> = connection
        .query_row(WRONG_TRANSACTION, [since], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    if let Some((id, sum)) = wrong {
        return Err(StoreError::wrong(format!("transaction {id} sums to {sum}")));
    }
    let mut checkpoint = old;
    let mut added = 0u64;
    {
        let mut select = connection.prepare(MOVED)?;
        let mut rows = select.query([since])?;
        while let Some(row) = rows.next()? {
            let name: Option<String> = row.get(0)?;
            let Some(name) = name else {
                return Err(StoreError::wrong(
                    "a posting of an account that is not there",
                ));
            };
            let account: Account = crate::row::parsed("account", &name)?;
            let moved: i64 = row.get(1)?;
            added += unsigned("count", row.get(2)?)?;
            let balance = checkpoint.balances.entry(account).or_insert(0);
            *balance = balance
                .checked_add(moved)
                .ok_or_else(|| StoreError::wrong(format!("the balance of {name} is too large")))?;
        }
    }
    checkpoint.balances.retain(|_, balance| *balance != 0);
    let found = balances(connection)?;
    if found != checkpoint.balances {
        return Err(StoreError::wrong(difference(&found, &checkpoint.balances)));
    }
    forbidden(&found)?;
    let (transactions, packets, orphans, last): (i64, i64, i64, Option<i64>) = connection
        .query_row(TAIL, [since], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })?;
    if orphans != 0 {
        return Err(StoreError::wrong(
            "a posting of a transaction that is not there",
        ));
    }
    let totals = &mut checkpoint.totals;
    totals.transactions += unsigned("count", transactions)?;
    totals.packets += unsigned("packets", packets)?;
    totals.postings += added;
    let accounts =
        connection.query_row("SELECT coalesce(max(id), 0) FROM accounts", [], |row| {
            row.get(0)
        })?;
    // Accounts are never removed, so that the last one's number is how many there are.
    totals.accounts = unsigned("count", accounts)?;
    if let Some(last) = last {
        checkpoint.through = unsigned("transaction", last)?;
    }
    Ok((checkpoint, Some(added)))
}

pub(crate) const WRONG_TRANSACTION: &str = "SELECT transaction_id, sum(amount) FROM postings
     WHERE transaction_id > ?1
     GROUP BY transaction_id HAVING sum(amount) <> 0 LIMIT 1";

/// By account, what was moved.
pub(crate) const MOVED: &str = "SELECT accounts.name, moved, count FROM
     (SELECT account, sum(amount) AS moved, count(*) AS count
      FROM postings INDEXED BY postings_by_transaction WHERE transaction_id > ?1 GROUP BY account)
     LEFT JOIN accounts ON accounts.id = account";

/// Postings of no transaction beyond the last one can only be at the end.
pub(crate) const TAIL: &str = "SELECT count(*), coalesce(sum(packets), 0),
     (SELECT count(*) FROM postings WHERE transaction_id >
        max(?1, (SELECT coalesce(max(id), 0) FROM transactions))),
     max(id) FROM transactions WHERE id > ?1";

/// The first account of which two sets of balances say different things.
pub(crate) fn difference(found: &BTreeMap<Account, i64>, added: &BTreeMap<Account, i64>) -> String {
    let differs = |account: &&Account| found.get(account) != added.get(account);
    let account = found.keys().chain(added.keys()).find(differs);
    let of = |balances: &BTreeMap<Account, i64>| {
        account
            .and_then(|account| balances.get(account))
            .copied()
            .unwrap_or(0)
    };
    let name = account.map(ToString::to_string).unwrap_or_default();
    format!(
        "the balance of {name} is {}, but its postings sum to {}",
        of(found),
        of(added)
    )
}

fn read(connection: &Connection) -> Result<Option<Checkpoint>, StoreError> {
    let value: Option<Vec<u8>> = connection
        .query_row("SELECT value FROM meta WHERE key = ?1", [META_KEY], |row| {
            row.get(0)
        })
        .optional()?;
    let Some(value) = value else { return Ok(None) };
    let checkpoint = std::str::from_utf8(&value).ok().and_then(parse);
    if checkpoint.is_none() {
        // Of another version: everything is added up instead.
        tracing::warn!("the note of how far the books were added up cannot be read");
    }
    Ok(checkpoint)
}

fn text_of(checkpoint: &Checkpoint) -> String {
    let Checkpoint {
        through,
        totals,
        full_at_unix_ms,
        balances,
    } = checkpoint;
    let Verified {
        accounts,
        transactions,
        packets,
        postings,
    } = totals;
    let mut text = format!(
        "{FORM}\n{through} {accounts} {transactions} {packets} {postings} {full_at_unix_ms}\n"
    );
    for (account, balance) in balances {
        let _ = writeln!(text, "{account} {balance}");
    }
    text
}

fn parse(text: &str) -> Option<Checkpoint> {
    let mut lines = text.lines();
    if lines.next()? != FORM {
        return None;
    }
    let numbers: Option<Vec<u64>> = lines
        .next()?
        .split(' ')
        .map(|word| word.parse().ok())
        .collect();
    let [
        through,
        accounts,
        transactions,
        packets,
        postings,
        full_at_unix_ms,
    ] = numbers?.try_into().ok()?;
    let balances: Option<BTreeMap<Account, i64>> = lines
        .map(|line| {
            let (account, balance) = line.split_once(' ')?;
            Some((account.parse().ok()?, balance.parse().ok()?))
        })
        .collect();
    Some(Checkpoint {
        through,
        totals: Verified {
            accounts,
            transactions,
            packets,
            postings,
        },
        full_at_unix_ms,
        balances: balances?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_read_as_it_was_written_and_another_form_is_none() {
        let checkpoint = Checkpoint {
            through: 7,
            totals: Verified {
                accounts: 3,
                transactions: 7,
                packets: 70,
                postings: 14,
            },
            full_at_unix_ms: 99,
            balances: BTreeMap::from([(Account::Parent, -5), (Account::Earned, 5)]),
        };
        let text = text_of(&checkpoint);
        assert_eq!(parse(&text), Some(checkpoint));
        for wrong in [
            "",
            "checkpoint 2\n",
            "checkpoint 1\n1 2 3\n",
            &format!("{text}x\n"),
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
