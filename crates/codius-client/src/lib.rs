//! A typed client of the HTTP API of a Codius host, version 1 and what is new, that can pay.
//!
//! ```text
//! HostClient ──HTTP──▶ host
//!     │  402, Pay: interledger-stream ADDRESS SECRET PRICE
//!     ▼
//! Wallet ──BTP──▶ connector ──▶ host's STREAM server
//! ```
//! Nothing is paid that was not asked for: a payment has a limit that is set before the connection is
//! opened, and that the host cannot raise.

#![forbid(unsafe_code)]

mod error;
mod events;
mod exec;
mod flow;
mod host;
mod listen;
mod payment;
pub mod scale;
mod setting;
mod signing;
mod sse;
mod v2;
mod wallet;
mod wallet_check;

pub use codius_signature::{Key, KeyId};
pub use error::{ClientError, PaidThen};
pub use events::Events;
pub use exec::{SessionCut, SessionEvent, SessionReader, SessionWriter};
pub use flow::Flow;
pub use host::{Answer, HostClient, PaidAnswer};
pub use listen::Listener;
pub use payment::{PayToken, Receipt};
/// The answer that a log is read from, as it comes.
pub use reqwest::Response as LogResponse;
pub use setting::{Source, default_url, setting};
pub use signing::Signer;
pub use sse::Cut;
pub use v2::{LogEvents, LogQuery};
pub use wallet::Wallet;
