//! What each lease of a program was paid and what became of it, from the postings.
//!
//! Money is kept by program (`lease:HASH`, `owed:HASH`), and leases of one program follow each other:
//! a new one begins with an empty `lease:HASH` and with a payment into it. That is how the postings
//! are told apart here, with the time of the lease's creation. Two leases of one program between which
//! the wall clock was set back may have what belongs to the other; the sums of the program are right.
//!
//! What has an owner or a pointer is kept apart (`refund:ID`), and `leases.refund` says of which lease it
//! is. When an owner draws, what is due of several leases is put into one of their accounts first
//! ([`sent_of`]), so that account alone does not say whose money was sent.

use std::collections::{BTreeMap, HashMap, VecDeque};

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
    /// What was sent back: of `unused` to him who has paid it, and of what is owed to its program until its
    /// next lease.
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
    let (mut leases, mut by_refund) = (Vec::<(i64, i64)>::new(), HashMap::new());
    let mut rows = select.query([hash.to_string()])?;
    while let Some(row) = rows.next()? {
        let id: i64 = row.get(0)?;
        leases.push((id, row.get(1)?));
        if let Some(refund) = row.get::<_, Option<String>>(2)? {
            // Leases of before there were refunds share one for each program: the last has it.
            by_refund.insert(refund, id);
        }
    }
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
                let sent = Sent {
                    units: -i128::from(movement.amount),
                    at_unix_ms: movement.at_unix_ms,
                };
                money.entry(id).or_default().sent(sent);
            }
        }
    }
    for (refund, sent) in sent_of(connection, hash)? {
        // Else it is of an order that has failed before it was a lease.
        if let Some(id) = by_refund.get(&refund) {
            money.entry(*id).or_default().sent(sent);
        }
    }
    Ok(money)
}

/// What was sent back, and when the last of it was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sent {
    units: i128,
    at_unix_ms: u64,
}

/// What was sent of each refund of a program, by the refund that it was due of first, also if it went
/// through the account of another.
fn sent_of(
    connection: &Connection,
    hash: &ManifestHash,
) -> Result<BTreeMap<String, Sent>, StoreError> {
    let mut select = connection.prepare_cached(REFUND_MOVEMENTS)?;
    let mut rows = select.query([hash.to_string()])?;
    // In the order in which it came, which is the one in which it leaves.
    let mut held: HashMap<String, VecDeque<(String, i128)>> = HashMap::new();
    let mut sent: BTreeMap<String, Sent> = BTreeMap::new();
    // What the transaction has taken out of another refund.
    let mut moving: (i64, Vec<(String, i128)>) = (0, Vec::new());
    while let Some(row) = rows.next()? {
        let transaction: i64 = row.get(0)?;
        let refund: String = row.get(1)?;
        let amount = i128::from(row.get::<_, i64>(2)?);
        let account = held.entry(refund.clone()).or_default();
        if amount > 0 {
            let (from, parts) = std::mem::take(&mut moving);
            if from == transaction && !parts.is_empty() {
                account.extend(parts);
            } else {
                account.push_back((refund, amount));
            }
            continue;
        }
        let parts = take(account, -amount);
        match parsed("reason", &row.get::<_, String>(4)?)? {
            Reason::Refund => {
                let at_unix_ms = unsigned("time", row.get(3)?)?;
                for (refund, units) in parts {
                    let sent = sent.entry(refund).or_default();
                    sent.units += units;
                    sent.at_unix_ms = sent.at_unix_ms.max(at_unix_ms);
                }
            }
            // Into another refund, or into the next lease.
            Reason::Return | Reason::Payment | Reason::Packet | Reason::Charge | Reason::Gift => {
                moving = (transaction, parts);
            }
        }
    }
    Ok(sent)
}

/// Takes so much of what came first.
fn take(account: &mut VecDeque<(String, i128)>, amount: i128) -> Vec<(String, i128)> {
    let (mut parts, mut missing) = (Vec::new(), amount);
    while missing > 0
        && let Some((refund, units)) = account.pop_front()
    {
        let part = units.min(missing);
        if part < units {
            account.push_front((refund.clone(), units - part));
        }
        missing -= part;
        parts.push((refund, part));
    }
    parts
}

impl LeaseMoney {
    fn sent(&mut self, sent: Sent) {
        self.refunded += sent.units;
        self.moved_at_unix_ms = self.moved_at_unix_ms.max(Some(sent.at_unix_ms));
    }

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
    "SELECT id, created_at_unix_ms, refund FROM leases WHERE hash = ?1 ORDER BY id";

pub(crate) const MOVEMENTS: &str = "SELECT postings.transaction_id, amount, at_unix_ms, reason
     FROM accounts
     CROSS JOIN postings ON postings.account = accounts.id
     CROSS JOIN transactions ON transactions.id = postings.transaction_id
     WHERE accounts.name = ?1 ORDER BY postings.transaction_id";

/// Of one transaction what is taken comes before what is given.
pub(crate) const REFUND_MOVEMENTS: &str =
    "SELECT postings.transaction_id, refunds.id, amount, at_unix_ms, reason
     FROM refunds
     CROSS JOIN accounts ON accounts.name = 'refund:' || refunds.id
     CROSS JOIN postings ON postings.account = accounts.id
     CROSS JOIN transactions ON transactions.id = postings.transaction_id
     WHERE refunds.hash = ?1 ORDER BY postings.transaction_id, amount";

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
