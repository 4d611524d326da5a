//! What a connection tells its owner, and what it takes and gives at its edges.

use ilp_packet::{Address, Condition, ErrorCode, Prepare, Reject};

use super::config::AssetDetails;
use super::rate::Quote;
use crate::frame::{StreamErrorCode, StreamId};

/// Something that the owner of the connection may want to act on.
///
/// Amounts are gathered: two packets of money between two polls make one event with the sum. So the
/// number of waiting events is bounded by the number of streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The first authentic packet of the other end arrived.
    Connected {
        /// Where it receives, if it said so.
        remote_address: Option<Address>,
        /// Its asset, if it said so.
        remote_asset: Option<AssetDetails>,
    },
    /// The other end opened a stream.
    StreamOpened {
        /// Which.
        stream: StreamId,
    },
    /// The path has been asked what it delivers. Money can move from now on.
    RateKnown {
        /// The answer; [`Connection::quote`](super::Connection::quote) follows it as it changes.
        quote: Quote,
    },
    /// There is data to be read. It stays where it is, and its sender stops after a while, until
    /// [`Connection::read`](super::Connection::read) takes it.
    Readable {
        /// Which stream.
        stream: StreamId,
    },
    /// Money arrived and was committed.
    MoneyReceived {
        /// Which stream.
        stream: StreamId,
        /// Since the last such event.
        amount: u64,
        /// In all.
        total: u64,
    },
    /// Money was fulfilled by the other end.
    MoneySent {
        /// Which stream.
        stream: StreamId,
        /// Since the last such event, in our units.
        amount: u64,
        /// In all, in our units.
        total: u64,
    },
    /// What is still to be sent on a stream is so little that nothing of it would arrive. It is not
    /// sent; a higher limit makes it worth sending.
    Undeliverable {
        /// Which stream.
        stream: StreamId,
        /// What is left, in our units.
        amount: u64,
    },
    /// The other end has proved, to a third party, what it received.
    Receipt {
        /// Which stream; the receipt is [`Connection::receipt`](super::Connection::receipt).
        stream: StreamId,
        /// What it received on the stream in all, in its units.
        total_received: u64,
    },
    /// The other end takes more money, or confirmed more, than we knew.
    RemoteMaxMoney {
        /// Which stream.
        stream: StreamId,
        /// What it takes in all, in its units.
        receive_max: u64,
        /// What it received so far, in its units.
        total_received: u64,
    },
    /// The other end wants to send more than we take.
    MoneyBlocked {
        /// Which stream.
        stream: StreamId,
        /// What it wants to send in all, in its units.
        send_max: u64,
        /// What it sent so far, in its units.
        total_sent: u64,
    },
    /// The stream is over and its data was read. Nothing follows for it.
    StreamClosed {
        /// Which.
        stream: StreamId,
        /// Why.
        code: StreamErrorCode,
        /// Why, for people; from the network if the other end closed it.
        message: String,
    },
    /// The connection is over. Only streams with packets on their way, or with data that was not read,
    /// have something to tell after this: how that money ended, and that they are closed.
    Closed {
        /// Why.
        reason: CloseReason,
    },
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// Our side closed it, or found the other side to break the protocol.
    #[error("closed here with {code:?}: {message}")]
    Local {
        /// Why, for programs.
        code: StreamErrorCode,
        /// Why, for people.
        message: String,
    },
    /// The other end closed it.
    #[error("closed by the other end with {code:?}: {message}")]
    Remote {
        /// Why, for programs.
        code: StreamErrorCode,
        /// Why, for people; from the network.
        message: String,
    },
    /// Nothing authentic arrived for the idle timeout. The last rejection on the way may say why.
    #[error("nothing was heard from the other end for too long (last rejection: {last_reject:?})")]
    Idle {
        /// Code of the last Reject of one of our packets, if there was one.
        last_reject: Option<ErrorCode>,
    },
    /// A packet of ours was rejected for good.
    #[error("packet was rejected with {code} by {by}: {message}")]
    Rejected {
        /// The code.
        code: ErrorCode,
        /// Who rejected it, or empty.
        by: String,
        /// Why; from the network.
        message: String,
    },
    /// The path was asked and its rate could not be found out, or is zero. No money was sent.
    #[error(
        "the path has no usable rate: nothing arrives of {sent} units (last rejection: {last_reject:?})"
    )]
    NoRate {
        /// The largest amount that was asked with and arrived; zero if none did.
        sent: u64,
        /// Code of the last Reject of one of our packets, if there was one.
        last_reject: Option<ErrorCode>,
    },
    /// Nothing would arrive of the largest packet that the path carries.
    #[error(
        "packets of the path are too small: at most {maximum} units, but {least} are needed for one to arrive"
    )]
    PacketsTooSmall {
        /// The largest amount of one packet.
        maximum: u64,
        /// The smallest amount of which something arrives.
        least: u64,
    },
    /// The path delivers less than the rate demands.
    #[error("only {arrived} of {minimum} units arrive")]
    BadRate {
        /// The least that should have arrived of the last packet.
        minimum: u64,
        /// What arrived.
        arrived: u64,
    },
}

/// Why a command was refused. Nothing was changed; our own caller has to fix it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The connection is closed or closing.
    #[error("connection is closed")]
    Closed,
    /// There is no such stream, or it is closed.
    #[error("stream {0} is not open")]
    NoStream(StreamId),
    /// The other end allows no more streams at the moment.
    #[error("the other end allows no more streams")]
    TooManyStreams,
    /// More data waits on the stream than we are willing to hold.
    #[error("too much data waits to be sent")]
    BufferFull,
    /// A limit can only be raised (`receive_max`), or not be lower than what is already on its way
    /// (`send_max`).
    #[error("limit cannot be lowered to {wanted}, it must be at least {least}")]
    LimitTooLow {
        /// What was asked for.
        wanted: u64,
        /// The lowest possible value.
        least: u64,
    },
}

/// A Prepare to be sent. Exactly one reply has to be given back for it with the same id, if need be
/// one that the caller makes (R00 when the Prepare has expired): until then the amount is held.
#[derive(Debug, Clone)]
pub struct Transmit {
    /// Names the packet in the reply.
    pub id: u64,
    /// The packet.
    pub prepare: Prepare,
}

/// What to do with a Prepare that arrived.
#[derive(Debug)]
#[must_use = "the sender of the Prepare waits for a reply"]
pub enum Incoming {
    /// Send this back.
    Reject(Reject),
    /// The packet can be fulfilled: make the amounts durable, then commit or refuse.
    Accept(Accepted),
}

/// A Prepare that was checked and whose amounts are held.
///
/// It must come back through `commit` or `refuse`; if it is dropped, its amounts stay held and count
/// against the limits for as long as the connection lives.
#[derive(Debug)]
#[must_use = "the amounts stay held until they are committed or refused"]
pub struct Accepted {
    pub(super) sequence: u64,
    pub(super) amount: u64,
    pub(super) condition: Condition,
    pub(super) fulfillment: ilp_packet::Fulfillment,
    pub(super) streams: Vec<(StreamId, u64)>,
    pub(super) introduced: bool,
}

impl Accepted {
    /// Amount of the packet; the sum over its streams. Zero for a packet that only carries news.
    pub fn amount(&self) -> u64 {
        self.amount
    }

    /// What each stream gets.
    pub fn streams(&self) -> &[(StreamId, u64)] {
        &self.streams
    }

    /// Names the packet in a ledger: no two packets have the same condition.
    pub fn condition(&self) -> Condition {
        self.condition
    }
}
