//! What is written together.

use std::fmt;

use codius_ledger::{Lease, Order, RefundId, Transaction};
use codius_manifest::{ManifestHash, Size};

/// Becomes durable as a whole or not at all. Transactions are applied in their order; none may take
/// an account below zero that may not be there.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    pub transactions: Vec<Transaction>,
    /// Replaces the state and payer of an order with the same id; an answered one is final.
    pub orders: Vec<Order>,
    /// Replaces the lease with the same hash and creation; an ended one is final, and a hash has one
    /// lease that has not ended.
    pub leases: Vec<LeaseRecord>,
    /// New refunds, before the orders and leases that they belong to; one that is there already stays as
    /// it is.
    pub refunds: Vec<RefundRecord>,
    /// What is known of refunds that are there already.
    pub refund_steps: Vec<(RefundId, RefundStep)>,
    /// `None` removes.
    pub meta: Vec<(String, Option<Vec<u8>>)>,
    /// Kept if there is one of the name already: secrets never change.
    pub secrets: Vec<(String, [u8; 32])>,
}

/// A lease to write.
#[derive(Debug, Clone)]
pub struct LeaseRecord {
    pub lease: Lease,
    /// Needed when the lease is new; `None` leaves what is there.
    pub upload: Option<StoredUpload>,
    /// Written when the lease is new, and never changed.
    pub origin: LeaseOrigin,
}

/// Where a lease comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeaseOrigin {
    /// The public key (Ed25519) that may stop it and read its logs.
    pub owner: Option<[u8; 32]>,
    /// How much of its money was owed to its program when it was created, in smallest units.
    pub carried: u64,
    /// Where what it does not use goes; none: to what is owed to its program.
    pub refund: Option<RefundId>,
    /// What its pod is, whatever the host sells by that name now.
    pub size: Size,
}

/// Who may get the unused money of an order, and of the lease that it creates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefundRecord {
    pub id: RefundId,
    pub hash: ManifestHash,
    /// The public key (Ed25519) that may draw it.
    pub owner: Option<[u8; 32]>,
    /// The URL of a payment pointer.
    pub destination: Option<String>,
    pub created_at_unix_ms: u64,
}

/// A step in the life of a refund.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RefundStep {
    /// Money of it has come: it is to be tried at once, if it has a destination.
    Due { at_unix_ms: u64 },
    /// Its owner says where it goes, now.
    Redirected {
        destination: String,
        at_unix_ms: u64,
    },
    /// It is being tried, or was: so many tries in a row have moved nothing.
    Waiting {
        tries: u32,
        trouble: Option<String>,
        next_try_unix_ms: u64,
    },
    /// Nothing is left of it.
    Settled,
}

/// What a lease runs.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredUpload {
    /// Body of the upload, with private variables.
    pub upload_json: String,
    /// The images' digests as they were resolved at the upload.
    pub images_json: String,
}

/// Without the private variables.
impl fmt::Debug for StoredUpload {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("StoredUpload")
            .field(
                "upload_json",
                &format_args!("{} bytes", self.upload_json.len()),
            )
            .field("images_json", &self.images_json)
            .finish()
    }
}

impl Batch {
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn transaction(mut self, transaction: Transaction) -> Self {
        self.transactions.push(transaction);
        self
    }

    #[must_use]
    pub fn order(mut self, order: Order) -> Self {
        self.orders.push(order);
        self
    }

    /// A lease that is stored already.
    #[must_use]
    pub fn lease(mut self, lease: Lease) -> Self {
        self.leases.push(LeaseRecord {
            lease,
            upload: None,
            origin: LeaseOrigin::default(),
        });
        self
    }

    /// A lease of nobody.
    #[must_use]
    pub fn new_lease(self, lease: Lease, upload: StoredUpload) -> Self {
        self.new_lease_from(lease, upload, LeaseOrigin::default())
    }

    #[must_use]
    pub fn new_lease_from(
        mut self,
        lease: Lease,
        upload: StoredUpload,
        origin: LeaseOrigin,
    ) -> Self {
        self.leases.push(LeaseRecord {
            lease,
            upload: Some(upload),
            origin,
        });
        self
    }

    #[must_use]
    pub fn meta(mut self, key: &str, value: Option<Vec<u8>>) -> Self {
        self.meta.push((key.to_owned(), value));
        self
    }

    #[must_use]
    pub fn secret(mut self, name: &str, value: [u8; 32]) -> Self {
        self.secrets.push((name.to_owned(), value));
        self
    }

    #[must_use]
    pub fn refund(mut self, refund: RefundRecord) -> Self {
        self.refunds.push(refund);
        self
    }

    #[must_use]
    pub fn refund_step(mut self, id: RefundId, step: RefundStep) -> Self {
        self.refund_steps.push((id, step));
        self
    }

    /// How many things are in it.
    pub fn len(&self) -> usize {
        self.transactions.len()
            + self.orders.len()
            + self.leases.len()
            + self.refunds.len()
            + self.refund_steps.len()
            + self.meta.len()
            + self.secrets.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<Transaction> for Batch {
    fn from(transaction: Transaction) -> Self {
        Self::new().transaction(transaction)
    }
}
