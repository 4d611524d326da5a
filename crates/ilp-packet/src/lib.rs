//! ILPv4 packets, addresses, error codes and ILDCP over OER.
//!
//! This crate is pure: bytes in, values out. It has no sockets, no clock and no randomness, so that
//! the same code runs in the host, in the command-line tool, in the simulation and under a fuzzer.
//!
//! * [`oer`] is the subset of the Octet Encoding Rules that Interledger uses (RFC 30).
//! * [`Prepare`], [`Fulfill`], [`Reject`] and [`Packet`] are ILPv4 (RFC 27).
//! * [`Address`] is RFC 15, [`Timestamp`] is the fixed-length timestamp of RFC 30.
//! * [`ildcp`] is how a child learns its address and asset from its parent (RFC 31).
//!
//! Everything that arrives from the network is hostile: decoding never panics, and never allocates
//! because of a length that was only claimed.
#![forbid(unsafe_code)]

mod address;
mod code;
mod condition;
pub mod ildcp;
pub mod oer;
mod packet;
mod timestamp;

pub use address::{Address, AddressError, MAX_ADDRESS_LEN};
pub use code::{AmountTooLarge, ErrorClass, ErrorCode};
pub use condition::{Condition, Fulfillment};
pub use packet::{
    Fulfill, MAX_DATA, MAX_DATA_READ, MAX_MESSAGE, MAX_PACKET, Packet, PacketError, Prepare,
    Reject, Reply, kind,
};
pub use timestamp::{TIMESTAMP_LEN, Timestamp, TimestampError};

/// An amount in the smallest unit of the asset of the account it moves over (RFC 27).
///
/// A plain integer on purpose: the asset belongs to the account, not to the packet. Sums of amounts
/// can exceed it; add with checked arithmetic or in 128 bits.
pub type Amount = u64;
