//! What a connection is told when it is made, and the limits it keeps.

use ilp_packet::Address;

use super::rate::{Rate, RatePolicy};
use crate::receipt::ReceiptKey;

/// Largest stream id that the other end may use at first (RFC 29 section 3.3 says 20). It grows by
/// two with each stream of the other end that is closed, so at most ten are open at a time.
pub(super) const INITIAL_MAX_STREAM_ID: u64 = 20;
/// Bytes of data that the other end may be ahead of our application on the whole connection.
pub(super) const CONNECTION_DATA_WINDOW: u64 = 65_534;
/// Bytes of data that the other end may be ahead of our application on one stream.
pub(super) const STREAM_DATA_WINDOW: u64 = 16_384;
/// Bytes of data that our application may have handed to one stream and the other end not yet taken.
pub(super) const MAX_SEND_BUFFER: usize = 1 << 20;
/// Bytes of data that ride in one reply. While we have no way to send packets they are repeated in
/// every reply, because nobody confirms them.
pub(super) const REPLY_DATA: usize = 4_096;
/// Data that rode in a reply goes out in a Prepare when nothing has shown for this long that it was
/// read, milliseconds.
pub(super) const REPLY_DATA_MILLIS: u64 = 1_000;
/// Streams that are told of their end beside that of their connection.
pub(super) const MAX_CLOSING_STREAMS: usize = 32;
/// Prepares that tell of the end of a connection while the path fails for the moment.
pub(super) const MAX_CLOSE_ATTEMPTS: u32 = 3;
/// Most Prepares of ours on their way at one time: at 17,000 packets a second this fills a path with a
/// round trip of 60 ms.
pub const MAX_IN_FLIGHT: usize = 1_024;
/// Prepares that may be accepted and neither committed nor refused at one time. No lower than what a
/// sender of ours may have on its way.
pub(super) const MAX_PENDING: usize = MAX_IN_FLIGHT;
/// Sequence numbers below the highest one by more than this are taken for replays.
pub(super) const REPLAY_WINDOW: u64 = 4_096;
/// A connection ends after this many packets of one end (RFC 29 section 5.1.3).
pub(super) const MAX_SEQUENCE: u64 = 1 << 31;
/// First pause after a temporary error, milliseconds; doubled with each further one.
pub(super) const BACKOFF_MIN_MILLIS: u64 = 100;
/// Longest pause after temporary errors, milliseconds.
pub(super) const BACKOFF_MAX_MILLIS: u64 = 5_000;
/// Packets in a row that deliver less than their minimum before we give the path up.
pub(super) const MAX_SHORTFALLS: u32 = 5;
/// A test packet expires no later than this, milliseconds: nothing is lost with it but time.
pub(super) const PROBE_TIMEOUT_MILLIS: u64 = 10_000;
/// Longest message of a close that we send, bytes.
pub(super) const MAX_CLOSE_MESSAGE: usize = 512;
/// Streams that were closed and whose totals can still be asked for.
pub(super) const MAX_FINISHED: usize = 64;

/// Which end of the connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The end that was given an address and a secret; opens odd streams.
    Client,
    /// The end that gave them out; opens even streams.
    Server,
}

/// The asset of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssetDetails {
    /// For example `XRP`.
    pub code: String,
    /// Amounts are in units of 10^-scale.
    pub scale: u8,
}

/// Settings of one connection.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where this end receives packets; told to the other end. Without it the other end can only
    /// reply, and never send money or news of its own.
    pub local_address: Option<Address>,
    /// The asset of our account; told to the other end.
    pub asset: Option<AssetDetails>,
    /// What must arrive of what we send.
    pub rate: RatePolicy,
    /// With this, each Fulfill proves to a third party what its streams have received.
    pub receipts: Option<ReceiptKey>,
    /// A Prepare of ours expires this long after it was made, milliseconds.
    pub packet_timeout_millis: u64,
    /// The connection ends after this long without an authentic packet, milliseconds.
    pub idle_timeout_millis: u64,
    /// While the other end takes no more money, data or streams, it is asked again this often,
    /// milliseconds, so that one lost packet cannot stop a payment. Zero never asks.
    pub ask_again_millis: u64,
    /// Most Prepares of ours on their way at one time, at most [`MAX_IN_FLIGHT`]. How many there are
    /// below that is decided by what the path carries.
    pub max_in_flight: usize,
    /// Data that waits when a Prepare of the other end is answered rides in the answer, once, and is
    /// repeated in a Prepare of ours only if nothing shows that it was read. This saves a packet, but
    /// `ilp-protocol-stream` 2.7.2-alpha.3 never reads past a piece of data that it has got twice, so
    /// it is for streams on which nothing follows. Without an address of the other end data rides in
    /// replies anyway.
    pub data_in_replies: bool,
    /// Largest amount of one Prepare of ours.
    pub max_packet_amount: u64,
    /// How far above `receive_max` a packet may go, in thousandths of what is left, rounded up.
    /// Zero is exact. A sender with another asset cannot always hit the limit, because amounts are
    /// whole numbers; the JavaScript implementation allows 10 for that reason.
    pub receive_tolerance_permille: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            local_address: None,
            asset: None,
            rate: RatePolicy::Fixed(Rate::ONE),
            receipts: None,
            packet_timeout_millis: 30_000,
            idle_timeout_millis: 60_000,
            ask_again_millis: 2_000,
            max_in_flight: MAX_IN_FLIGHT,
            data_in_replies: false,
            max_packet_amount: u64::MAX,
            receive_tolerance_permille: 0,
        }
    }
}
