//! STREAM: money and data between two parties over Interledger packets (RFC 29).
//!
//! Pure code in four layers, each usable alone:
//!
//! * [`Frame`] and [`StreamPacket`] are what is said;
//! * [`Keys`] seals it, and makes conditions and fulfillments from what was sealed;
//! * [`Connection`] is the machine of one connection, for both roles, without I/O and clock;
//! * [`server`] gives out addresses and secrets without keeping state.
//!
//! Time is an argument. Randomness is asked of the caller through [`Entropy`].
#![forbid(unsafe_code)]

mod connection;
mod frame;
mod packet;
mod receipt;
mod seal;
pub mod server;

pub use connection::{
    Accepted, AssetDetails, CloseReason, CommandError, Config, Connection, Event, Incoming,
    MAX_IN_FLIGHT, Quote, Rate, RatePolicy, Role, Transmit,
};
pub use frame::{Frame, FrameError, StreamErrorCode, StreamId};
pub use packet::{MAX_FRAMES, PacketType, StreamPacket};
pub use receipt::{RECEIPT_LEN, Receipt, ReceiptKey};
pub use seal::{Entropy, Keys, MAX_PLAINTEXT, SEAL_OVERHEAD, SealError, SharedSecret};
