//! What can be read.

use std::collections::BTreeMap;

use codius_ledger::{Account, Lease, Order, OrderId, Reason};
use codius_manifest::{Machine, ManifestHash, Size};
use rusqlite::{Connection, OptionalExtension, Row};

use crate::{
    LeaseOrigin, StoreError, StoredUpload,
    row::{LEASE_COLUMN_COUNT, LEASE_COLUMNS, ORDER_COLUMNS, lease_of, order_of, parsed, unsigned},
};

/// All that a starting host needs to know, of one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Accounts that are not at zero.
    pub balances: BTreeMap<Account, i64>,
    /// Leases that have not ended, oldest first.
    pub leases: Vec<StoredLease>,
    /// Orders without an answer.
    pub open_orders: Vec<Order>,
    pub meta: BTreeMap<String, Vec<u8>>,
    pub secrets: BTreeMap<String, [u8; 32]>,
}

/// A lease with what it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredLease {
    pub lease: Lease,
    /// `None` once the lease has ended.
    pub upload: Option<StoredUpload>,
    pub origin: LeaseOrigin,
}

/// A posting, as the holder of the account sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Number of the transaction; later ones are larger.
    pub transaction: u64,
    pub at_unix_ms: u64,
    pub reason: Reason,
    pub reference: Option<[u8; 32]>,
    /// How many packets it stands for.
    pub packets: u64,
    pub amount: i64,
}

/// What a [`StoredLease`] has beside its lease.
const ORIGIN_COLUMNS: &str = "uploads.upload, uploads.images, leases.owner, leases.carried, leases.refund, \
     leases.machine, leases.vcpus, leases.memory_mib, leases.disk_mib";

pub(crate) fn snapshot(connection: &Connection) -> Result<Snapshot, StoreError> {
    // One read transaction, so that everything is of one moment.
    let connection = connection.unchecked_transaction()?;
    let mut snapshot = Snapshot {
        balances: balances(&connection)?,
        ..Snapshot::default()
    };

    let mut select = connection.prepare(&live_leases())?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        snapshot.leases.push(stored_lease_of(row)?);
    }

    let mut select = connection.prepare(&open_orders())?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        snapshot.open_orders.push(order_of(row)?);
    }

    let mut select = connection.prepare("SELECT key, value FROM meta")?;
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    snapshot.meta = rows.collect::<Result<_, _>>()?;
    let mut select = connection.prepare("SELECT name, value FROM secrets")?;
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    snapshot.secrets = rows.collect::<Result<_, _>>()?;
    Ok(snapshot)
}

/// Accounts that are not at zero.
pub(crate) const BALANCES: &str =
    "SELECT name, balance FROM accounts INDEXED BY accounts_with_money WHERE balance <> 0";

pub(crate) fn balances(connection: &Connection) -> Result<BTreeMap<Account, i64>, StoreError> {
    let mut select = connection.prepare_cached(BALANCES)?;
    let mut rows = select.query([])?;
    let mut balances = BTreeMap::new();
    while let Some(row) = rows.next()? {
        balances.insert(parsed("account", &row.get::<_, String>(0)?)?, row.get(1)?);
    }
    Ok(balances)
}

pub(crate) fn balance(connection: &Connection, account: &Account) -> Result<i64, StoreError> {
    let balance = connection
        .prepare_cached(BALANCE)?
        .query_row([account.to_string()], |row| row.get(0))
        .optional()?;
    Ok(balance.unwrap_or(0))
}

/// The lease of a hash that has not ended, else the last one that has.
pub(crate) fn lease(
    connection: &Connection,
    hash: &ManifestHash,
) -> Result<Option<StoredLease>, StoreError> {
    let mut select = connection.prepare_cached(&lease_of_program())?;
    let mut rows = select.query([hash.to_string()])?;
    rows.next()?.map(stored_lease_of).transpose()
}

fn stored_lease_of(row: &Row<'_>) -> Result<StoredLease, StoreError> {
    let lease = lease_of(row)?;
    let upload: Option<String> = row.get(LEASE_COLUMN_COUNT)?;
    let upload = match upload {
        Some(upload_json) => Some(StoredUpload {
            upload_json,
            images_json: row.get(LEASE_COLUMN_COUNT + 1)?,
        }),
        None if lease.is_ended() => None,
        None => {
            return Err(StoreError::wrong(format!(
                "lease {} without its upload",
                lease.hash()
            )));
        }
    };
    let origin = LeaseOrigin {
        owner: row.get(LEASE_COLUMN_COUNT + 2)?,
        carried: unsigned("carried amount", row.get(LEASE_COLUMN_COUNT + 3)?)?,
        refund: match row.get::<_, Option<String>>(LEASE_COLUMN_COUNT + 4)? {
            Some(id) => Some(parsed("refund", &id)?),
            None => None,
        },
        size: Size {
            name: parsed("machine", &row.get::<_, String>(LEASE_COLUMN_COUNT + 5)?)?,
            machine: Machine {
                vcpus: row.get(LEASE_COLUMN_COUNT + 6)?,
                memory_mib: row.get(LEASE_COLUMN_COUNT + 7)?,
                scratch_mib: row.get(LEASE_COLUMN_COUNT + 8)?,
            },
        },
    };
    Ok(StoredLease {
        lease,
        upload,
        origin,
    })
}

pub(crate) fn order(connection: &Connection, id: &OrderId) -> Result<Option<Order>, StoreError> {
    let mut select = connection.prepare_cached(&order_of_token())?;
    let mut rows = select.query([id.to_string()])?;
    rows.next()?.map(order_of).transpose()
}

/// The newest postings of an account, newest first.
pub(crate) fn entries(
    connection: &Connection,
    account: &Account,
    limit: usize,
) -> Result<Vec<Entry>, StoreError> {
    let mut select = connection.prepare_cached(NEWEST_ENTRIES)?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut rows = select.query((account.to_string(), limit))?;
    let mut entries = Vec::new();
    while let Some(row) = rows.next()? {
        entries.push(Entry {
            transaction: unsigned("transaction", row.get(0)?)?,
            at_unix_ms: unsigned("time", row.get(1)?)?,
            reason: parsed("reason", &row.get::<_, String>(2)?)?,
            reference: row.get(3)?,
            amount: row.get(4)?,
            packets: unsigned("packets", row.get(5)?)?,
        });
    }
    Ok(entries)
}

/// Leases that have not ended. The index has those only.
fn live_leases() -> String {
    format!(
        "SELECT {LEASE_COLUMNS}, {ORIGIN_COLUMNS}
         FROM leases INDEXED BY one_lease_per_program
         LEFT JOIN uploads ON uploads.lease = leases.id
         WHERE leases.state <> 'ended' ORDER BY leases.id"
    )
}

fn open_orders() -> String {
    format!(
        "SELECT {ORDER_COLUMNS} FROM orders INDEXED BY open_orders
         WHERE state = 'open' ORDER BY id"
    )
}

fn lease_of_program() -> String {
    format!(
        "SELECT {LEASE_COLUMNS}, {ORIGIN_COLUMNS}
         FROM leases LEFT JOIN uploads ON uploads.lease = leases.id
         WHERE leases.hash = ?1
         ORDER BY leases.state = 'ended', leases.id DESC LIMIT 1"
    )
}

fn order_of_token() -> String {
    format!("SELECT {ORDER_COLUMNS} FROM orders WHERE id = ?1")
}

const BALANCE: &str = "SELECT balance FROM accounts WHERE name = ?1";

const NEWEST_ENTRIES: &str =
    "SELECT transactions.id, at_unix_ms, reason, reference, amount, packets
     FROM accounts
     JOIN postings ON postings.account = accounts.id
     JOIN transactions ON transactions.id = postings.transaction_id
     WHERE accounts.name = ?1
     ORDER BY postings.transaction_id DESC LIMIT ?2";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{books, checkpoint, lease_money, writer};

    /// What grows with the age of a host, and may therefore not be gone through from end to end.
    const GROWING: [&str; 6] = [
        "accounts",
        "transactions",
        "postings",
        "leases",
        "orders",
        "refunds",
    ];
    /// Indexes that hold only what is going on, however old the host is.
    const BOUNDED: [&str; 3] = [
        "accounts_with_money",
        "one_lease_per_program",
        "open_orders",
    ];

    /// The steps of a statement that go through the whole of something that grows.
    fn scans(statement: &str) -> Vec<String> {
        let path = std::path::Path::new("x");
        let mut connection = Connection::open_in_memory().unwrap();
        crate::schema::open_for_test(&mut connection, path);
        let mut explain = connection
            .prepare(&format!("EXPLAIN QUERY PLAN {statement}"))
            .unwrap();
        // A parameter without a value is NULL: the plan is the same.
        let mut rows = explain.raw_query();
        let mut scans = Vec::new();
        while let Some(row) = rows.next().unwrap() {
            let step: String = row.get(3).unwrap();
            let mut words = step.split(' ');
            let is_scan = words.next() == Some("SCAN");
            let table = words.next().unwrap_or_default();
            let in_bounds = BOUNDED
                .iter()
                .any(|index| step.ends_with(&format!("INDEX {index}")));
            if is_scan && GROWING.contains(&table) && !in_bounds {
                scans.push(step);
            }
        }
        scans
    }

    #[test]
    fn no_statement_of_a_working_host_goes_through_what_grows() {
        let statements = [
            BALANCES.to_owned(),
            BALANCE.to_owned(),
            NEWEST_ENTRIES.to_owned(),
            live_leases(),
            open_orders(),
            lease_of_program(),
            order_of_token(),
            checkpoint::WRONG_TRANSACTION.to_owned(),
            checkpoint::MOVED.to_owned(),
            checkpoint::TAIL.to_owned(),
            books::EARNED.to_owned(),
            books::ENTRIES.to_owned(),
            books::ENTRIES_OF_ACCOUNT.to_owned(),
            books::leases_query(),
            lease_money::LEASES_OF_PROGRAM.to_owned(),
            lease_money::MOVEMENTS.to_owned(),
            lease_money::REFUND_MOVEMENTS.to_owned(),
            writer::FIND_ACCOUNT.to_owned(),
            writer::OLD_LEASES.to_owned(),
            writer::OLD_ORDERS.to_owned(),
        ];
        for statement in &statements {
            let scans = scans(statement);
            assert!(scans.is_empty(), "{statement}: {scans:?}");
        }
        // And the look at the plans can see one.
        for bad in [
            "SELECT name FROM accounts WHERE balance = 5",
            "SELECT * FROM orders WHERE payer = ?1",
            "SELECT sum(amount) FROM postings",
            "SELECT hash FROM leases WHERE owner = ?1",
        ] {
            assert_eq!(scans(bad).len(), 1, "{bad}");
        }
    }
}
