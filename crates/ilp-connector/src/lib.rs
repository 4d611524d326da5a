//! An ILPv4 connector: accounts, routing and balances. A Prepare goes in, a Fulfill or a Reject
//! comes out (RFC 27; the roles are those of RFC 1).
//!
//! ```text
//! socket ──▶ Connector::handle ──▶ Core::admit ──▶ Link of the next hop ──▶ Answer, condition checked
//!                                  hold, route      or Receiver in here          │
//!                                                                                ▼
//!          ReplyTo the source ◀── Core::finish ◀── Ledger::record is durable ◀──┘
//! ```
//!
//! The decisions are in `core` and `route`, plain code under one lock that is never held across an
//! await. A packet to a neighbour has no task of its own: each step is made where its cause arrives,
//! so that many packets share one wake-up, one write and one lock. The outside is behind small
//! traits: [`Link`] (a neighbour), [`ReplySink`] (who asked), [`Receiver`] (somebody inside the host
//! who is paid), [`Ledger`] (the durable record) and [`Clock`].
//!
//! What is deliberately absent: exchange rates (one asset everywhere), a routing protocol (our
//! address decides, everything else goes to the parent), and the cache of identical packets that
//! the JavaScript connector has.
//!
//! Traps
//! - Money moves in the ledger before the Fulfill is returned, never after.
//! - A packet belongs to nobody who waits for it: a caller that goes away cannot undo half a packet.
//! - The lock of the core is never held while a link, a ledger or a reply is called or dropped: each
//!   of them may come back to the connector at once.
//! - A write that fails leaves a balance in doubt. Both accounts are stopped then and answer T00
//!   until they are closed and opened again with a balance read from the ledger.

#![forbid(unsafe_code)]

mod account;
mod answer;
mod clock;
mod connector;
mod core;
mod ledger;
mod limiter;
mod link;
mod passage;
mod receiver;
mod reception;
mod reply;
mod route;
mod spending;

pub use account::{
    AccountConfig, AccountError, AccountId, AccountOverview, AccountStatistics, LedgerAccount,
    Relation,
};
pub use answer::Answer;
pub use clock::{Clock, SystemClock};
pub use connector::{Connector, ConnectorConfig};
pub use ledger::{Ledger, LedgerError, Movement, Recorded};
pub use link::{Attachment, Link, LinkError};
pub use receiver::{Commit, CommitError, Receiver};
pub use reply::{Dispatch, ReplySink, ReplyTo};
pub use spending::SpendLimit;
