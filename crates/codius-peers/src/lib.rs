//! Whom a host believes to be a host: the table of peers, and what is decided about them. No I/O, no
//! clock, no randomness; all three are passed in.
//!
//! ```text
//!  offer ──▶ Candidate ── answers as itself ──▶ Listed
//!              ▲   │ does not: waits longer       │ fails a check or an exchange
//!              │   │ each time                    │
//!              │   ▼ a day without an answer      │
//!              │  forgotten                       │
//!              └──────────────────────────────────┘
//! ```
//!
//! Strangers name peers, so everything has a bound ([`Limits`]), and a name is worth nothing until its
//! bearer has answered to it. Only listed peers are told to others.

#![forbid(unsafe_code)]

mod limits;
mod table;
mod url;

pub use limits::{Limits, MAX_PEER_URL_BYTES, Pace};
pub use table::{PeerOverview, PeerTable};
pub use url::{InvalidPeerUrl, PeerUrl, Reach};
