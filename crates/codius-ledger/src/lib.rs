//! Money, decided: prices, double entry, leases and orders. No I/O, no clock, no randomness.
//!
//! - [`Rate`] turns the operator's monthly cost into prices ([`Rate::price`]), times and charges.
//! - [`Transaction`] moves money between [`Account`]s and always sums to zero.
//! - [`Lease`] is the right to run until the money is used up; it says what to charge and when it
//!   ends.
//! - [`Order`] is one paid request; a token pays for exactly one.
//!
//! # Where money is rounded
//!
//! Amounts are integers in the smallest unit of the host's [`Asset`]. There are three places:
//! the rate itself (20 decimals, half up, as the original host does), a price (up, so that a paid
//! duration is always funded in full), and what a lease has used ([`Rate::earned`], down, always of
//! the whole run and never of a piece of it, so that pieces cannot add up to an error). Hence
//! paid − refunded is the rate times the run to within one unit.
//!
//! # How a payment flows
//!
//! ```text
//! local:alice ──Packet──▶ order:… ──Payment──▶ lease:HASH ──Charge──▶ earned
//!                            │ (failed)            │ (ended)
//!                            └───────Return────────┴──▶ owed:HASH ──Refund──▶ local:alice
//! ```

#![forbid(unsafe_code)]

mod account;
mod asset;
mod duration;
mod lease;
mod order;
mod rate;
mod refund;
mod tariff;
mod time;
mod transaction;

pub use account::{Account, AccountName, InvalidAccount};
pub use asset::{Asset, Cost, InvalidAsset, InvalidCost};
pub use duration::{DEFAULT_DURATION, InvalidDuration, MAX_DURATION_TEXT, Seconds, parse_duration};
pub use lease::{
    Charge, EndReason, Frost, Lease, LeaseError, LeaseParts, LeaseState, Segment, Settlement,
};
pub use order::{
    InvalidOrderId, Order, OrderError, OrderId, OrderKind, OrderState, Repeat, RequestDigest,
    StoredResponse,
};
pub use rate::{InvalidRate, Rate, RateError};
pub use refund::{Backoff, RefundId};
pub use tariff::{Tariff, TariffError};
pub use time::{BootId, InvalidBootId, Millis};
pub use transaction::{InvalidReason, Posting, Reason, Transaction, TransactionError};
