//! The books for their owner: sums, leases and every posting, in pages of a bounded size.
//!
//! A page says where the next one begins ([`LeaseRow::id`], [`EntryRow::transaction`]), so that a
//! million entries are read in little memory and no reader keeps the database's log from being folded
//! in. [`Summary::through`] is the last transaction there was: who reads the entries up to it has
//! entries that sum to zero, whatever is written meanwhile.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use codius_ledger::{Account, Lease, Reason};
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params};

use crate::{
    Checked, Store, StoreError,
    lease_money::{LeaseMoney, money_of},
    query::BALANCES,
    row::{LEASE_COLUMNS, lease_of, parsed, unsigned},
    schema,
    verify::verify,
};

/// The most rows that are asked for at once. A page of entries has those of so many transactions.
pub const MAX_PAGE: usize = 2000;

/// A database that is only read.
#[derive(Debug)]
pub struct Books {
    connection: Connection,
}

/// From then on, and before then, by the wall clock in milliseconds since 1970; without a bound if
/// none is given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Period {
    pub since_unix_ms: Option<u64>,
    pub until_unix_ms: Option<u64>,
}

/// Sums, of one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The last transaction.
    pub through: u64,
    /// What the operator has earned in all.
    pub earned: i128,
    /// The same in the period, by why.
    pub earned_in_period: BTreeMap<Reason, i128>,
    /// By kind of account, as in the names of the accounts before the colon.
    pub kinds: BTreeMap<String, KindSum>,
    /// Of all accounts; zero.
    pub sum: i128,
}

/// Accounts of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KindSum {
    /// Those that are not at zero.
    pub accounts: u64,
    pub balance: i128,
}

/// A lease with its money.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRow {
    /// Leases that were created later have larger ones.
    pub id: i64,
    pub lease: Lease,
    /// How much of `paid` was owed to its program before.
    pub carried: u64,
    pub money: LeaseMoney,
}

/// Which postings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EntryFilter {
    pub account: Option<Account>,
    pub period: Period,
    /// Up to this transaction.
    pub through: u64,
}

/// A posting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryRow {
    /// Number of the transaction; later ones are larger.
    pub transaction: u64,
    pub at_unix_ms: u64,
    pub reason: Reason,
    pub account: Account,
    /// Positive: a gain of the account's holder.
    pub amount: i64,
    pub packets: u64,
    pub reference: Option<[u8; 32]>,
}

impl Store {
    /// Reads the books on a connection of its own, beside the work.
    pub async fn books<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Books) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.read_apart(move |connection| question(&Books { connection }))
            .await
    }
}

impl Books {
    /// Opens a file to read it, whether or not a host works with it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let connection = open_to_read(path)?;
        schema::expect_current(&connection, path)?;
        Ok(Self { connection })
    }

    /// A row of `meta`.
    pub fn meta(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let value = self
            .connection
            .prepare_cached("SELECT value FROM meta WHERE key = ?1")?
            .query_row([key], |row| row.get(0))
            .optional()?;
        Ok(value)
    }

    pub fn summary(&self, period: Period) -> Result<Summary, StoreError> {
        let moment = self.connection.unchecked_transaction()?;
        let mut summary = Summary {
            through: last_transaction(&moment)?,
            earned: 0,
            earned_in_period: BTreeMap::new(),
            kinds: BTreeMap::new(),
            sum: 0,
        };
        let mut select = moment.prepare_cached(BALANCES)?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let name: String = row.get(0)?;
            let balance = i128::from(row.get::<_, i64>(1)?);
            let (kind, _) = name.split_once(':').unwrap_or((&name, ""));
            let sum = summary.kinds.entry(kind.to_owned()).or_default();
            sum.accounts += 1;
            sum.balance += balance;
            summary.sum += balance;
        }
        if let Some(earned) = summary.kinds.get("earned") {
            summary.earned = earned.balance;
        }
        let [since, until] = period.bounds();
        let mut select = moment.prepare_cached(EARNED)?;
        let mut rows = select.query([since, until])?;
        while let Some(row) = rows.next()? {
            let reason: Reason = parsed("reason", &row.get::<_, String>(0)?)?;
            let amount = i128::from(row.get::<_, i64>(1)?);
            *summary.earned_in_period.entry(reason).or_default() += amount;
        }
        Ok(summary)
    }

    /// Leases in the order of their creation, after `after`.
    pub fn leases(&self, after: i64, limit: usize) -> Result<Vec<LeaseRow>, StoreError> {
        let moment = self.connection.unchecked_transaction()?;
        let mut select = moment.prepare_cached(&leases_query())?;
        let mut rows = select.query(params![after, page(limit)])?;
        let mut leases = Vec::new();
        let mut known = BTreeMap::new();
        while let Some(row) = rows.next()? {
            let lease = lease_of(row)?;
            let (id, carried): (i64, i64) = (row.get("id")?, row.get("carried")?);
            let hash = lease.hash().to_string();
            if !known.contains_key(&hash) {
                known.insert(hash.clone(), money_of(&moment, &lease.hash())?);
            }
            let money = known.get(&hash).and_then(|leases| leases.get(&id)).copied();
            leases.push(LeaseRow {
                id,
                lease,
                carried: unsigned("carried amount", carried)?,
                money: money.unwrap_or_default(),
            });
        }
        Ok(leases)
    }

    /// Postings in the order in which they were written, after the transaction `after`; those of one
    /// transaction are never on two pages.
    pub fn entries(
        &self,
        after: u64,
        filter: &EntryFilter,
        limit: usize,
    ) -> Result<Vec<EntryRow>, StoreError> {
        let [since, until] = filter.period.bounds();
        let [after, through] =
            [after, filter.through].map(|id| i64::try_from(id).unwrap_or(i64::MAX));
        let mut entries = Vec::new();
        match &filter.account {
            None => {
                let mut select = self.connection.prepare_cached(ENTRIES)?;
                let mut rows = select.query(params![after, through, since, until, page(limit)])?;
                while let Some(row) = rows.next()? {
                    entries.push(entry_of(row)?);
                }
            }
            Some(account) => {
                let mut select = self.connection.prepare_cached(ENTRIES_OF_ACCOUNT)?;
                let mut rows = select.query(params![
                    after,
                    through,
                    since,
                    until,
                    page(limit),
                    account.to_string()
                ])?;
                while let Some(row) = rows.next()? {
                    entries.push(entry_of(row)?);
                }
            }
        }
        Ok(entries)
    }

    /// Adds all of it up.
    pub fn verify(&self) -> Result<Checked, StoreError> {
        let checkpoint = verify(&self.connection)?;
        Ok(Checked {
            totals: checkpoint.totals,
            full_at_unix_ms: checkpoint.full_at_unix_ms,
            added_up: checkpoint.totals.postings,
        })
    }
}

impl Period {
    fn bounds(self) -> [i64; 2] {
        let bound = |moment: Option<u64>, without: i64| {
            moment.map_or(without, |moment| i64::try_from(moment).unwrap_or(i64::MAX))
        };
        [
            bound(self.since_unix_ms, 0),
            bound(self.until_unix_ms, i64::MAX),
        ]
    }
}

pub(crate) const EARNED: &str = "SELECT reason, sum(amount) FROM accounts
     CROSS JOIN postings ON postings.account = accounts.id
     CROSS JOIN transactions ON transactions.id = postings.transaction_id
     WHERE accounts.name = 'earned' AND at_unix_ms >= ?1 AND at_unix_ms < ?2
     GROUP BY reason";

pub(crate) const ENTRIES: &str =
    "SELECT moved.id, at_unix_ms, reason, name, amount, packets, reference
     FROM (SELECT * FROM transactions WHERE id > ?1 AND id <= ?2
             AND at_unix_ms >= ?3 AND at_unix_ms < ?4 ORDER BY id LIMIT ?5) AS moved
     CROSS JOIN postings ON postings.transaction_id = moved.id
     CROSS JOIN accounts ON accounts.id = postings.account
     ORDER BY moved.id, amount";

pub(crate) const ENTRIES_OF_ACCOUNT: &str =
    "SELECT moved.id, at_unix_ms, reason, name, amount, packets, reference
     FROM accounts
     CROSS JOIN postings ON postings.account = accounts.id
     CROSS JOIN transactions AS moved ON moved.id = postings.transaction_id
     WHERE accounts.name = ?6 AND postings.transaction_id > ?1 AND postings.transaction_id <= ?2
       AND at_unix_ms >= ?3 AND at_unix_ms < ?4
     ORDER BY postings.transaction_id LIMIT ?5";

pub(crate) fn leases_query() -> String {
    format!(
        "SELECT {LEASE_COLUMNS}, leases.id AS id, leases.carried AS carried FROM leases
         WHERE leases.id > ?1 ORDER BY leases.id LIMIT ?2"
    )
}

fn entry_of(row: &Row<'_>) -> Result<EntryRow, StoreError> {
    Ok(EntryRow {
        transaction: unsigned("transaction", row.get(0)?)?,
        at_unix_ms: unsigned("time", row.get(1)?)?,
        reason: parsed("reason", &row.get::<_, String>(2)?)?,
        account: parsed("account", &row.get::<_, String>(3)?)?,
        amount: row.get(4)?,
        packets: unsigned("packets", row.get(5)?)?,
        reference: row.get(6)?,
    })
}

fn last_transaction(connection: &Connection) -> Result<u64, StoreError> {
    let last =
        connection.query_row("SELECT coalesce(max(id), 0) FROM transactions", [], |row| {
            row.get(0)
        })?;
    unsigned("transaction", last)
}

fn page(limit: usize) -> i64 {
    i64::try_from(limit.min(MAX_PAGE)).unwrap_or(i64::MAX)
}

/// A connection that cannot write to the database.
pub(crate) fn open_to_read(path: &Path) -> Result<Connection, StoreError> {
    // Otherwise SQLite says no more than that it cannot open it.
    std::fs::File::open(path).map_err(|source| StoreError::Open {
        path: path.to_owned(),
        source: Arc::new(source),
    })?;
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    schema::prepare(&connection)?;
    schema::expect_ours(&connection, path)?;
    Ok(connection)
}
