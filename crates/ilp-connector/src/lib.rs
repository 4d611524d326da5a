//! An ILPv4 connector: accounts, routing and balances. A Prepare goes in, a Fulfill or a Reject
//! comes out (RFC 27; the roles are those of RFC 1).
//!
//! ```text
//! link ──▶ Connector::prepare ──▶ Core::admit ──▶ link of the next hop ──▶ Fulfill, condition checked
//!            (one task a packet)   hold, route      or Receiver in here          │
//!                                                                                ▼
//!          Fulfill to the source ◀── Core settles ◀── Ledger::record is durable ◀┘
//! ```
//!
//! The decisions are in `core` and `route`, plain code under one lock that is never held across an
//! await. [`Connector`] performs them on tokio. The outside is behind four small traits: [`Link`]
//! (a neighbour), [`Receiver`] (somebody inside the host who is paid), [`Ledger`] (the durable
//! record) and [`Clock`].
//!
//! What is deliberately absent: exchange rates (one asset everywhere), a routing protocol (our
//! address decides, everything else goes to the parent), and the cache of identical packets that
//! the JavaScript connector has.
//!
//! Traps
//! - Money moves in the ledger before the Fulfill is returned, never after.
//! - A packet runs in a task of its own, so a caller that goes away cannot undo half a packet.
//! - A write that fails leaves a balance in doubt. Both accounts are stopped then and answer T00
//!   until they are closed and opened again with a balance read from the ledger.

#![forbid(unsafe_code)]

mod account;
mod clock;
mod connector;
mod core;
mod ledger;
mod link;
mod receiver;
mod route;
mod spending;

pub use account::{
    AccountConfig, AccountError, AccountId, AccountStatistics, LedgerAccount, Relation,
};
pub use clock::{Clock, SystemClock};
pub use connector::{Connector, ConnectorConfig, Dispatch};
pub use ledger::{Ledger, LedgerError, Movement};
pub use link::{Attachment, Link, LinkError};
pub use receiver::{Commit, CommitError, Receiver};
pub use spending::SpendLimit;
