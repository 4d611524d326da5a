//! One end of a STREAM connection with a model beside it: the money that must have moved, and the
//! data that must arrive once and in order.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ilp_packet::{
    Address, AmountTooLarge, Condition, ErrorCode, Fulfill, Prepare, Reject, Timestamp,
};
use ilp_stream::{
    Accepted, AssetDetails, CommandError, Config, Connection, Entropy, Event, Incoming, Rate,
    RatePolicy, ReceiptKey, SharedSecret, StreamErrorCode, StreamId,
};

use crate::{Choices, START};

/// The secret of every connection here.
pub const SECRET: SharedSecret = SharedSecret([42; 32]);

/// Test packets of a connection that asks for the rate of its path.
const MAX_TESTS: usize = 8;
/// Most Prepares that one round of polling may give: the widest window, tests and a close.
const MAX_BURST: usize = 16 + MAX_TESTS + 1;

/// No IV is used twice, which is all that matters here.
struct Counter {
    side: u8,
    count: u64,
}

impl Entropy for Counter {
    fn fill(&mut self, bytes: &mut [u8]) {
        self.count += 1;
        bytes.fill(self.side);
        for (to, from) in bytes.iter_mut().zip(self.count.to_be_bytes()) {
            *to = from;
        }
    }
}

/// Where an end receives.
pub fn address(side: usize) -> Address {
    let text = ["test.client", "test.server.token"][side];
    text.parse().expect("it is a valid address")
}

/// What the application of `side` writes at an offset of a stream.
pub fn pattern(side: usize, stream: StreamId, offset: u64) -> u8 {
    (offset.wrapping_mul(7) ^ stream.0.wrapping_mul(13) ^ (side as u64 * 101)).to_le_bytes()[0]
}

/// A piece of it.
pub fn pattern_bytes(side: usize, stream: StreamId, offset: u64, len: usize) -> Bytes {
    (0..len as u64)
        .map(|at| pattern(side, stream, offset.wrapping_add(at)))
        .collect()
}

/// A packet that was sent and not answered.
#[derive(Debug)]
struct Sent {
    condition: Condition,
    amount: u64,
}

/// One end.
#[derive(Debug)]
pub struct End {
    /// The connection.
    pub connection: Connection,
    /// 0 is the client, 1 the server.
    pub side: usize,
    /// What must arrive, if it is known from the start.
    rate: Option<Rate>,
    max_in_flight: usize,
    /// Whether the data that arrives is the other side's [`pattern`].
    pub checks_data: bool,
    /// What was accepted and neither committed nor refused, and the packet it answers.
    pub accepted: Vec<(u64, Accepted)>,
    /// Amount of every packet that was committed, by its condition.
    pub committed: BTreeMap<[u8; 32], u64>,
    holding: BTreeSet<[u8; 32]>,
    sent: BTreeMap<u64, Sent>,
    send_max: BTreeMap<StreamId, u64>,
    receive_max: BTreeMap<StreamId, u64>,
    received: BTreeMap<StreamId, u64>,
    told_received: BTreeMap<StreamId, u64>,
    total_received: u64,
    total_sent: u64,
    written: BTreeMap<StreamId, u64>,
    read: BTreeMap<StreamId, u64>,
    readable: BTreeSet<StreamId>,
    streams: Vec<StreamId>,
    closed_streams: BTreeSet<StreamId>,
    closed: bool,
}

impl End {
    /// An end whose settings come from the input.
    pub fn new(side: usize, rate: RatePolicy, choices: &mut Choices<'_>) -> Self {
        let flags = choices.byte();
        let config = Config {
            local_address: (side == 1 || flags & 1 == 0).then(|| address(side)),
            asset: (flags & 2 == 0).then(|| AssetDetails {
                code: "XRP".to_owned(),
                scale: 9,
            }),
            rate,
            receipts: (flags & 8 == 8).then_some(ReceiptKey {
                nonce: [3; 16],
                secret: [4; 32],
            }),
            max_in_flight: 1 + usize::from(flags >> 4),
            // Two bits that mean other things as well, so that stored inputs keep their meaning.
            data_in_replies: flags & 10 == 10,
            max_packet_amount: match flags & 12 {
                0 => u64::MAX,
                _ => choices.integer(),
            },
            ..Config::default()
        };
        let max_in_flight = config.max_in_flight;
        let entropy = Box::new(Counter {
            side: 1 + u8::from(side == 1),
            count: 0,
        });
        let connection = if side == 0 {
            Connection::client(START, config, &SECRET, address(1), entropy)
        } else {
            Connection::server(START, config, &SECRET, entropy)
        };
        Self {
            connection,
            side,
            rate: match rate {
                RatePolicy::Fixed(rate) => Some(rate),
                RatePolicy::Probed { .. } => None,
            },
            max_in_flight,
            checks_data: true,
            accepted: Vec::new(),
            committed: BTreeMap::new(),
            holding: BTreeSet::new(),
            sent: BTreeMap::new(),
            send_max: BTreeMap::new(),
            receive_max: BTreeMap::new(),
            received: BTreeMap::new(),
            told_received: BTreeMap::new(),
            total_received: 0,
            total_sent: 0,
            written: BTreeMap::new(),
            read: BTreeMap::new(),
            readable: BTreeSet::new(),
            streams: Vec::new(),
            closed_streams: BTreeSet::new(),
            closed: false,
        }
    }

    /// A stream that this end knows, or one that it does not.
    fn stream(&self, choices: &mut Choices<'_>) -> StreamId {
        let which = choices.below(32);
        match self.streams.get(which) {
            Some(stream) => *stream,
            None if self.streams.is_empty() => StreamId(which as u64),
            None => self.streams[which % self.streams.len()],
        }
    }

    /// The application does something.
    pub fn command(&mut self, choices: &mut Choices<'_>) {
        match choices.below(8) {
            0 => {
                if let Ok(stream) = self.connection.open_stream() {
                    assert_eq!(stream.is_client_initiated(), self.side == 0);
                    self.streams.push(stream);
                }
            }
            1 | 2 => {
                let (stream, send_max) = (self.stream(choices), choices.integer());
                if self.connection.set_send_max(stream, send_max).is_ok() {
                    self.send_max.insert(stream, send_max);
                }
            }
            3 | 4 => {
                let (stream, receive_max) = (self.stream(choices), choices.integer());
                if self.connection.set_receive_max(stream, receive_max).is_ok() {
                    self.receive_max.insert(stream, receive_max);
                }
            }
            5 => {
                let stream = self.stream(choices);
                let len = usize::try_from(choices.integer()).unwrap_or(0) & 0x7fff;
                let offset = self.written.get(&stream).copied().unwrap_or(0);
                let data = pattern_bytes(self.side, stream, offset, len);
                match self.connection.write(stream, data) {
                    Ok(()) => *self.written.entry(stream).or_default() += len as u64,
                    Err(CommandError::LimitTooLow { .. } | CommandError::TooManyStreams) => {
                        panic!("writing has no such limit")
                    }
                    Err(
                        CommandError::Closed | CommandError::NoStream(_) | CommandError::BufferFull,
                    ) => {}
                }
            }
            6 => {
                let stream = self.stream(choices);
                let code = StreamErrorCode::from_byte(choices.byte());
                let _ = self.connection.close_stream(stream, code, "done");
            }
            _ if choices.below(8) == 0 => {
                self.connection
                    .close(StreamErrorCode::from_byte(choices.byte()), "bye");
            }
            _ => {}
        }
    }

    /// Everything that is to be sent now.
    pub fn transmit(&mut self, now: Timestamp) -> Vec<(u64, Prepare)> {
        let mut packets = Vec::new();
        while let Some(transmit) = self.connection.poll_transmit(now) {
            let sent = Sent {
                condition: transmit.prepare.condition,
                amount: transmit.prepare.amount,
            };
            assert!(transmit.prepare.expires_at > now);
            // Who waits for a reply is told of the end in it.
            assert!(self.accepted.is_empty() || self.connection.close_reason().is_none());
            let before = self.sent.insert(transmit.id, sent);
            assert!(before.is_none(), "an id is used once");
            assert!(self.sent.len() <= self.max_in_flight + MAX_TESTS + 1);
            packets.push((transmit.id, transmit.prepare));
            assert!(packets.len() <= MAX_BURST);
        }
        packets
    }

    /// Takes all events.
    pub fn events(&mut self) {
        while let Some(event) = self.connection.poll_event() {
            self.event(event);
        }
    }

    fn event(&mut self, event: Event) {
        // Streams with packets on their way, or data to be read, outlive the connection.
        let may_follow = matches!(
            event,
            Event::MoneyReceived { .. } | Event::MoneySent { .. } | Event::StreamClosed { .. }
        );
        assert!(!self.closed || may_follow, "{event:?} follows the end");
        match event {
            Event::Connected { .. } => {}
            Event::StreamOpened { stream } => {
                assert_ne!(stream.is_client_initiated(), self.side == 0);
                assert!(!self.streams.contains(&stream));
                self.streams.push(stream);
            }
            Event::RateKnown { quote } => assert_eq!(self.connection.quote(), Some(quote)),
            Event::Readable { stream } => {
                self.still_open(stream);
                self.readable.insert(stream);
            }
            Event::Undeliverable { stream, .. } => self.still_open(stream),
            Event::Receipt { stream, .. } => {
                self.still_open(stream);
                assert!(self.connection.receipt(stream).is_some());
            }
            Event::MoneyReceived {
                stream,
                amount,
                total,
            } => {
                self.still_open(stream);
                let told = self.told_received.entry(stream).or_default();
                *told += amount;
                assert_eq!(*told, total);
                assert_eq!(Some(&total), self.received.get(&stream));
            }
            Event::MoneySent { stream, total, .. } => {
                self.still_open(stream);
                assert_eq!(self.connection.stream_sent(stream), Some(total));
            }
            Event::RemoteMaxMoney { stream, .. } | Event::MoneyBlocked { stream, .. } => {
                self.still_open(stream);
            }
            Event::StreamClosed { stream, .. } => {
                self.still_open(stream);
                self.closed_streams.insert(stream);
            }
            Event::Closed { .. } => {
                self.closed = true;
            }
        }
    }

    /// The application reads what it was told of.
    pub fn read(&mut self) {
        for stream in std::mem::take(&mut self.readable) {
            while let Some(data) = self.connection.read(stream) {
                let read = self.read.entry(stream).or_default();
                if self.checks_data {
                    let expected = pattern_bytes(1 - self.side, stream, *read, data.len());
                    assert_eq!(data, expected, "stream {stream} at {read}");
                }
                *read += data.len() as u64;
            }
        }
    }

    fn still_open(&self, stream: StreamId) {
        assert!(
            !self.closed_streams.contains(&stream),
            "nothing follows the close of stream {stream}"
        );
        assert!(self.streams.contains(&stream));
    }

    /// A packet arrives. Returns a Reject, or keeps what was accepted.
    pub fn receive(&mut self, now: Timestamp, id: u64, prepare: &Prepare) -> Option<Reject> {
        match self.connection.handle_prepare(now, prepare) {
            Incoming::Reject(reject) => Some(reject),
            Incoming::Accept(accepted) => {
                assert_eq!(accepted.condition(), prepare.condition);
                assert_eq!(accepted.amount(), prepare.amount);
                let parts: u128 = accepted
                    .streams()
                    .iter()
                    .map(|(_, amount)| u128::from(*amount))
                    .sum();
                assert_eq!(parts, u128::from(prepare.amount));
                let new = self.holding.insert(prepare.condition.0);
                assert!(new || prepare.amount == 0, "money is accepted once");
                self.accepted.push((id, accepted));
                None
            }
        }
    }

    /// The amounts of an accepted packet are durable.
    pub fn commit(&mut self, accepted: Accepted) -> Fulfill {
        let (condition, amount) = (accepted.condition(), accepted.amount());
        for (stream, amount) in accepted.streams() {
            *self.received.entry(*stream).or_default() += amount;
        }
        self.total_received = self.total_received.saturating_add(amount);
        let fulfill = self.connection.commit(accepted);
        assert_eq!(fulfill.fulfillment.condition(), condition);
        self.committed.insert(condition.0, amount);
        fulfill
    }

    /// A reply arrives. What it proves is compared with what the other end committed, if that is
    /// known.
    pub fn reply(
        &mut self,
        now: Timestamp,
        id: u64,
        reply: ilp_packet::Reply,
        committed: Option<&BTreeMap<[u8; 32], u64>>,
    ) {
        if let Some(sent) = self.sent.remove(&id)
            && let Ok(fulfill) = &reply
            && fulfill.fulfillment.condition() == sent.condition
        {
            self.total_sent = self.total_sent.saturating_add(sent.amount);
            if let Some(committed) = committed {
                let arrived = committed.get(&sent.condition.0);
                let arrived = arrived.expect("only a committed packet can be fulfilled");
                let least = self.rate.map_or(0, |rate| rate.arriving(sent.amount));
                assert!(*arrived >= least);
            }
        }
        self.connection.handle_reply(now, id, reply);
    }

    /// Packets that wait for their reply.
    pub fn unanswered(&self) -> Vec<u64> {
        self.sent.keys().copied().collect()
    }

    /// What always holds.
    pub fn check(&self) {
        assert_eq!(self.connection.total_received(), self.total_received);
        assert_eq!(self.connection.total_sent(), self.total_sent);
        for stream in &self.streams {
            let received = self.received.get(stream).copied().unwrap_or(0);
            let limit = self.receive_max.get(stream).copied().unwrap_or(0);
            assert!(received <= limit, "stream {stream}: {received} of {limit}");
            if let Some(told) = self.connection.stream_received(*stream) {
                assert_eq!(told, received);
            }
            let sent = self.connection.stream_sent(*stream).unwrap_or(0);
            let held = self.connection.stream_held(*stream).unwrap_or(0);
            let limit = self.send_max.get(stream).copied().unwrap_or(0);
            assert!(
                u128::from(sent) + u128::from(held) <= u128::from(limit),
                "stream {stream}: {sent} sent and {held} on their way of {limit}"
            );
        }
    }

    /// Nothing is left to be sent, told or timed out now, so the next moment to wake up is later.
    pub fn check_rest(&self, now: Timestamp) {
        let wakes = self.connection.poll_timeout();
        assert!(
            wakes.is_none_or(|at| at > now),
            "awake without a reason: {:?}",
            self.connection
        );
    }

    /// What the other end read is the beginning of what was written here.
    pub fn check_data(&self, reader: &Self) {
        for (stream, read) in &reader.read {
            let written = self.written.get(stream).copied().unwrap_or(0);
            assert!(*read <= written, "stream {stream}: {read} of {written}");
        }
    }

    /// The end of every connection: nothing is held, nothing is left.
    pub fn check_end(&self) {
        for stream in &self.streams {
            assert_eq!(self.connection.stream_held(*stream).unwrap_or(0), 0);
        }
        assert!(self.closed, "the application was not told of the end");
        assert!(self.connection.is_drained());
    }
}

/// A Reject that something on the way could send.
pub fn reject_of_path(choices: &mut Choices<'_>, amount: u64) -> Reject {
    const CODES: [ErrorCode; 16] = [
        ErrorCode::AmountTooLarge,
        ErrorCode::InsufficientLiquidity,
        ErrorCode::TransferTimedOut,
        ErrorCode::InternalError,
        ErrorCode::AmountTooLarge,
        ErrorCode::ConnectorBusy,
        ErrorCode::RateLimited,
        ErrorCode::InsufficientTimeout,
        ErrorCode::AmountTooLarge,
        ErrorCode::PeerUnreachable,
        ErrorCode::TemporaryApplicationError,
        ErrorCode::InsufficientSourceAmount,
        ErrorCode::FinalApplicationError,
        ErrorCode::Unreachable,
        ErrorCode::UnexpectedPayment,
        ErrorCode::Other(*b"X77"),
    ];
    let code = CODES[choices.below(CODES.len())];
    let mut reject = Reject::new(code, None, "no way");
    if code == ErrorCode::AmountTooLarge {
        reject.data = match choices.below(4) {
            0 => Bytes::copy_from_slice(choices.chunk()),
            1 => AmountTooLarge {
                received: choices.integer(),
                maximum: choices.integer(),
            }
            .encode()
            .into(),
            _ => AmountTooLarge {
                received: amount,
                maximum: amount / 2,
            }
            .encode()
            .into(),
        };
    }
    reject
}
