//! BTP over WebSocket, as server and as client.
//!
//! ```text
//! program ──BTP──▶ BtpServer ──Gate: whose account?──▶ Connector ──Link──▶ socket of the payee
//! host    ──────── BtpClient / Uplink ──────────────▶ parent
//! ```
//! - [`BtpServer`] takes connections through a [`Gate`]: [`PodGate`] for the programs of one pod,
//!   [`LocalGate`] for programs on the host's own machine.
//! - [`BtpClient`] is one connection to a server, [`Uplink`] one that is made again.
//!
//! Trap: who a client is depends on the gate it came through, never on its user name or token.

#![forbid(unsafe_code)]

mod btp_url;
mod client;
mod client_name;
mod gate;
mod handler;
mod outbox;
mod peer;
mod server;
mod socket;
pub mod stream;
mod transport;
mod uplink;

pub use btp_url::{BtpUrl, BtpUrlError};
pub use client::{BtpClient, ConfigurationError, ConnectError};
pub use client_name::ClientName;
pub use gate::{Gate, GateError, LocalGate, PodGate, Seat};
pub use handler::{RefuseRequests, RequestHandler};
pub use ilp_btp::Credentials;
pub use server::{BtpServer, DEFAULT_PORT, bind_loopback};
pub use socket::SessionEnd;
pub use uplink::{Uplink, UplinkState};
