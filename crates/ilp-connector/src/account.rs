//! Accounts: one per neighbour, with the balance that the host owes it.
//!
//! A balance is seen from the neighbour: a child's balance is what it may spend, money that it
//! received and has not spent. The parent's balance is what we owe it, so it rises when we send.

use std::fmt;
use std::sync::Arc;

use ilp_packet::Address;

use crate::limiter::Limiter;
use crate::link::{Attachment, Link};

/// Name of an account in this process, such as `parent`, `local.alice` or `pod.<hash>`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountId(Arc<str>);

/// Name of an account in the ledger. Several connector accounts may share one.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LedgerAccount(pub Arc<str>);

macro_rules! name {
    ($name:ident) => {
        impl $name {
            /// The account with this name.
            #[must_use]
            pub fn new(name: impl Into<Arc<str>>) -> Self {
                Self(name.into())
            }

            /// The name.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(name: &str) -> Self {
                Self::new(name)
            }
        }

        impl From<String> for $name {
            fn from(name: String) -> Self {
                Self::new(name)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

name!(AccountId);
name!(LedgerAccount);

/// What the neighbour is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// Our way to the rest of the network. There is at most one.
    Parent,
    /// Somebody below us, with an address that we gave.
    Child,
}

/// How an account is set up.
#[derive(Debug, Clone)]
pub struct AccountConfig {
    /// Its name.
    pub id: AccountId,
    /// What the neighbour is to us.
    pub relation: Relation,
    /// Where a child is below our address: one to four segments. Empty for the parent.
    pub segment: Arc<str>,
    /// Where its money is recorded.
    pub ledger_account: LedgerAccount,
    /// How far the balance may go below zero. `Some(0)` is prepaid; `None` is without limit (play
    /// money, or a neighbour that we trust).
    pub balance_floor: Option<u64>,
    /// How high the balance may rise; `None` is without limit. On the parent's account this is
    /// the most that we are ready to owe it.
    pub balance_ceiling: Option<u64>,
    /// The balance at the start, as the ledger has it.
    pub balance: i128,
    /// Largest amount in one packet, from or to this account.
    pub max_packet_amount: u64,
    /// Most packets of this account that may wait for their replies.
    pub max_in_flight_packets: u32,
    /// Most packets from this account in a second, with as many at once after a quiet second; `None`
    /// is without limit. Packets that are rejected count, too.
    pub max_packets_per_sec: Option<u32>,
}

impl AccountConfig {
    /// In-flight packets of an account unless said otherwise.
    pub const DEFAULT_MAX_IN_FLIGHT_PACKETS: u32 = 1000;

    /// A prepaid child that starts with nothing and has no packet limit.
    #[must_use]
    pub fn child(
        id: impl Into<AccountId>,
        segment: impl Into<Arc<str>>,
        ledger_account: impl Into<LedgerAccount>,
    ) -> Self {
        Self {
            id: id.into(),
            relation: Relation::Child,
            segment: segment.into(),
            ledger_account: ledger_account.into(),
            balance_floor: Some(0),
            balance_ceiling: None,
            balance: 0,
            max_packet_amount: u64::MAX,
            max_in_flight_packets: Self::DEFAULT_MAX_IN_FLIGHT_PACKETS,
            max_packets_per_sec: None,
        }
    }

    /// The parent, trusted without limit in both directions.
    #[must_use]
    pub fn parent(id: impl Into<AccountId>, ledger_account: impl Into<LedgerAccount>) -> Self {
        Self {
            relation: Relation::Parent,
            segment: "".into(),
            balance_floor: None,
            ..Self::child(id, "", ledger_account)
        }
    }

    /// The same with play money: the balance may fall without limit.
    #[must_use]
    pub fn unlimited(mut self) -> Self {
        self.balance_floor = None;
        self
    }

    /// The same with a balance at the start.
    #[must_use]
    pub fn with_balance(mut self, balance: i128) -> Self {
        self.balance = balance;
        self
    }
}

/// Why an account could not be opened, closed or attached. Nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccountError {
    /// There is an account with this name already.
    #[error("account {0} is open already")]
    AlreadyOpen(AccountId),
    /// There is no account with this name.
    #[error("no account {0}")]
    NoAccount(AccountId),
    /// The segment is taken by another account or receiver.
    #[error("segment {0} is taken")]
    SegmentTaken(Arc<str>),
    /// The segment is no valid part of an address, or too deep.
    #[error("{0:?} cannot be part of an address")]
    BadSegment(Arc<str>),
    /// There is a parent already.
    #[error("there is a parent already")]
    SecondParent,
}

/// What happened on an account since it was opened. `from` is what the neighbour sent, `to` is what
/// was sent to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AccountStatistics {
    /// Prepares that came from it, ILDCP not counted.
    pub prepares_from: u64,
    /// Of these, the fulfilled ones.
    pub fulfills_from: u64,
    /// Of these, the rejected ones, by us or further on.
    pub rejects_from: u64,
    /// Of the rejected ones, those for which its balance was too low (T04).
    pub insufficient_from: u64,
    /// Of the rejected ones, those above a limit of packets, per second (T05) or in flight (T03).
    pub limited_from: u64,
    /// Sum of the fulfilled amounts that came from it.
    pub amount_from: u128,
    /// Prepares that were sent to it.
    pub prepares_to: u64,
    /// Of these, the ones it fulfilled correctly and in time.
    pub fulfills_to: u64,
    /// Sum of the amounts that it fulfilled.
    pub amount_to: u128,
    /// Fulfills of it that did not hash to the condition.
    pub wrong_fulfills_to: u64,
    /// Prepares that it did not answer in time.
    pub timeouts_to: u64,
    /// Replies of it that replied to nothing: late, repeated, or invented. They have no effect.
    pub unexpected_replies_to: u64,
}

/// One open account, for people and for metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountOverview {
    /// Its name.
    pub id: AccountId,
    /// What the neighbour is to us.
    pub relation: Relation,
    /// The address of a child.
    pub address: Option<Address>,
    /// Whether it has a link. A pod's link is there as long as the pod, with or without programs.
    pub connected: bool,
    /// Whether a write that failed has stopped it.
    pub stopped: bool,
    /// What the host owes the neighbour.
    pub balance: i128,
    /// Packets from it that wait for their replies.
    pub in_flight: u32,
    /// What happened since it was opened.
    pub statistics: AccountStatistics,
}

/// An open account.
pub(crate) struct Account {
    pub(crate) config: AccountConfig,
    /// The address of a child; none for the parent.
    pub(crate) address: Option<Address>,
    pub(crate) link: Option<(Attachment, Arc<dyn Link>)>,
    pub(crate) balance: i128,
    /// Sum of the packets from this account that are in flight.
    pub(crate) held_out: u128,
    /// Sum of the packets to this account that are in flight.
    pub(crate) held_in: u128,
    /// Number of packets from this account that are in flight.
    pub(crate) in_flight: u32,
    /// Number of holds that name this account, in either direction.
    pub(crate) holds: u32,
    /// A write failed; the balance is in doubt.
    pub(crate) stopped: bool,
    /// Closed, but kept until the last hold is gone.
    pub(crate) closing: bool,
    pub(crate) limiter: Limiter,
    pub(crate) statistics: AccountStatistics,
}

impl Account {
    pub(crate) fn new(config: AccountConfig, address: Option<Address>) -> Self {
        Self {
            balance: config.balance,
            limiter: Limiter::new(config.max_packets_per_sec),
            config,
            address,
            link: None,
            held_out: 0,
            held_in: 0,
            in_flight: 0,
            holds: 0,
            stopped: false,
            closing: false,
            statistics: AccountStatistics::default(),
        }
    }

    /// Whether `amount` more may leave, with everything in flight taken as paid.
    pub(crate) fn can_pay(&self, amount: u64) -> bool {
        let Some(floor) = self.config.balance_floor else {
            return true;
        };
        let Ok(held) = i128::try_from(self.held_out + u128::from(amount)) else {
            return false;
        };
        self.balance
            .checked_sub(held)
            .is_some_and(|after| after >= -i128::from(floor))
    }

    /// Whether `amount` more may arrive, with everything in flight taken as received.
    pub(crate) fn can_receive(&self, amount: u64) -> bool {
        let Some(ceiling) = self.config.balance_ceiling else {
            return true;
        };
        let Ok(held) = i128::try_from(self.held_in + u128::from(amount)) else {
            return false;
        };
        self.balance
            .checked_add(held)
            .is_some_and(|after| after <= i128::from(ceiling))
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account")
            .field("id", &self.config.id)
            .field("balance", &self.balance)
            .field("held_out", &self.held_out)
            .field("held_in", &self.held_in)
            .field("stopped", &self.stopped)
            .field("closing", &self.closing)
            .finish_non_exhaustive()
    }
}
