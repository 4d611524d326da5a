//! The SQLite file that holds everything the host must not forget: the ledger, leases with what was
//! uploaded for them, orders, and the host's secrets.
//!
//! - One thread writes. It takes what has queued up, writes it in one SQLite transaction, waits for
//!   one `fsync`, and then answers everyone ([`Store::commit`]): durable when it returns.
//! - Reading goes through a second connection in a thread of its own and sees what was committed.
//! - The file can be read with `sqlite3` in an incident: ids are text, tables are `STRICT`.
//!
//! - What is there is added up again at each start, as far as it is new, and in full now and then
//!   ([`Store::check`], `checkpoint.rs`).
//! - [`Books`] reads it all for the operator, [`backup`] and [`restore`] copy it.
//!
//! Traps:
//! - A [`Batch`] is all or nothing; different batches are independent even if they are written in the
//!   same SQLite transaction.
//! - Dropping the future of `commit` does not take the batch back: it may still become durable.
//! - The file holds private variables of uploaders in clear text (mode 0600, removed when the lease
//!   ends).

mod backup;
mod bank;
mod batch;
mod books;
mod checkpoint;
mod error;
mod lease_money;
mod lock;
mod query;
mod refund;
mod row;
mod schema;
#[cfg(feature = "simulation")]
pub mod simulated;
mod store;
mod verify;
mod writer;

pub use backup::{Copied, backup, restore};
pub use batch::{Batch, LeaseOrigin, LeaseRecord, RefundRecord, RefundStep, StoredUpload};
pub use books::{Books, EntryFilter, EntryRow, KindSum, LeaseRow, MAX_PAGE, Period, Summary};
pub use error::StoreError;
pub use query::{Entry, Snapshot, StoredLease};
pub use refund::StoredRefund;
pub use store::{MAX_ENTRIES, QUEUE_LEN, Store};
pub use verify::{Checked, Verified};
pub use writer::{MAX_BATCH_ITEMS, MAX_GROUP, Pruned};
