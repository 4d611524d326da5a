//! What a connection is told when it is made, and the limits it keeps.

use ilp_packet::Address;

/// Largest stream id that the other end may use at first (RFC 29 section 3.3 says 20). It grows by
/// two with each stream of the other end that is closed, so at most ten are open at a time.
pub(super) const INITIAL_MAX_STREAM_ID: u64 = 20;
/// Bytes of data that the other end may be ahead of our application on the whole connection.
pub(super) const CONNECTION_DATA_WINDOW: u64 = 65_534;
/// Bytes of data that the other end may be ahead of our application on one stream.
pub(super) const STREAM_DATA_WINDOW: u64 = 16_384;
/// Bytes of data that our application may have handed to one stream and the other end not yet taken.
pub(super) const MAX_SEND_BUFFER: usize = 1 << 20;
/// Bytes of data that ride in one reply. They are repeated in every reply until a Prepare of ours
/// that carries them is fulfilled.
pub(super) const REPLY_DATA: usize = 4_096;
/// Prepares that may be accepted and neither committed nor refused at one time.
pub(super) const MAX_PENDING: usize = 256;
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

/// Units that must arrive for units that are sent: `numerator / denominator`.
///
/// The receiver refuses a packet that arrives with less. Rounding is always down: to the disadvantage
/// of what must arrive, never above what the other end takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Units of the receiver.
    pub numerator: u64,
    /// Units of the sender. Zero is taken for one.
    pub denominator: u64,
}

impl Rate {
    /// Both ends use the same asset and nobody on the way takes a part.
    pub const ONE: Self = Self {
        numerator: 1,
        denominator: 1,
    };

    /// The least that must arrive when `amount` is sent.
    pub fn arriving(self, amount: u64) -> u64 {
        scale(amount, self.numerator, self.denominator)
    }

    /// The most that can be sent if at most `amount` may arrive.
    pub fn sendable(self, amount: u64) -> u64 {
        scale(amount, self.denominator, self.numerator)
    }
}

/// `amount * times / by`, rounded down, at most [`u64::MAX`].
pub(super) fn scale(amount: u64, times: u64, by: u64) -> u64 {
    let scaled = u128::from(amount) * u128::from(times) / u128::from(by.max(1));
    u64::try_from(scaled).unwrap_or(u64::MAX)
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
    pub rate: Rate,
    /// A Prepare of ours expires this long after it was made, milliseconds.
    pub packet_timeout_millis: u64,
    /// The connection ends after this long without an authentic packet, milliseconds.
    pub idle_timeout_millis: u64,
    /// While the other end takes no more money, it is asked again this often, milliseconds, so that
    /// one lost packet cannot stop a payment. Zero never asks.
    pub ask_again_millis: u64,
    /// Most Prepares of ours on their way at one time.
    pub max_in_flight: usize,
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
            rate: Rate::ONE,
            packet_timeout_millis: 30_000,
            idle_timeout_millis: 60_000,
            ask_again_millis: 2_000,
            max_in_flight: 32,
            max_packet_amount: u64::MAX,
            receive_tolerance_permille: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// What is sent because of a limit never demands more than the limit.
        #[test]
        fn sendable_never_arrives_above_the_limit(
            limit: u64, numerator in 1_u64.., denominator in 1_u64..,
        ) {
            let rate = Rate { numerator, denominator };
            let amount = rate.sendable(limit);
            prop_assert!(amount == u64::MAX || rate.arriving(amount) <= limit);
        }
    }
}
