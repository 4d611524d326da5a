//! A server's end against packets made by hand: those of a real JavaScript client, and those of
//! somebody who breaks the rules.

#![expect(clippy::unwrap_used, reason = "a test may panic on its own mistakes")]

use bytes::Bytes;
use ilp_packet::{Condition, ErrorCode, Fulfill, Fulfillment, Packet, Prepare, Reject, Timestamp};
use ilp_stream::{
    Accepted, AssetDetails, CloseReason, Config, Connection, Entropy, Event, Frame, Incoming, Keys,
    PacketType, SharedSecret, StreamErrorCode, StreamId, StreamPacket,
};
use serde_json::Value;

const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);
const SECRET: [u8; 32] = [7; 32];

/// Counts: enough where nothing has to be unpredictable.
struct Counter(u64);

impl Entropy for Counter {
    fn fill(&mut self, bytes: &mut [u8]) {
        self.0 += 1;
        for (to, from) in bytes.iter_mut().zip(self.0.to_be_bytes().iter().cycle()) {
            *to = *from;
        }
    }
}

fn server(now: Timestamp, secret: [u8; 32]) -> Connection {
    server_with(now, secret, Config::default())
}

fn server_with(now: Timestamp, secret: [u8; 32], config: Config) -> Connection {
    let config = Config {
        local_address: Some("test.server.token".parse().unwrap()),
        asset: Some(AssetDetails {
            code: "XRP".to_owned(),
            scale: 9,
        }),
        ..config
    };
    Connection::server(now, config, &SharedSecret(secret), Box::new(Counter(0)))
}

/// A client whose every packet is written by the test.
struct Client {
    keys: Keys,
    server: Connection,
    sequence: u64,
}

impl Client {
    fn new() -> Self {
        Self {
            keys: Keys::new(&SECRET),
            server: server(NOW, SECRET),
            sequence: 0,
        }
    }

    fn sealed(&mut self, amount: u64, minimum: u64, frames: Vec<Frame>) -> Prepare {
        self.sequence += 1;
        let packet = StreamPacket {
            packet_type: PacketType::Prepare,
            sequence: self.sequence,
            prepare_amount: minimum,
            frames,
        };
        self.carrying(amount, &packet)
    }

    fn carrying(&self, amount: u64, packet: &StreamPacket) -> Prepare {
        let mut iv = [0xcc; 12];
        iv[..8].copy_from_slice(&self.sequence.to_be_bytes());
        let data: Bytes = self.keys.seal(iv, &packet.encode()).unwrap().into();
        Prepare {
            amount,
            expires_at: NOW.plus_millis(30_000),
            condition: self.keys.condition(&data),
            destination: "test.server.token".parse().unwrap(),
            data,
        }
    }

    fn deliver(&mut self, prepare: &Prepare) -> Result<Accepted, Reject> {
        match self.server.handle_prepare(NOW, prepare) {
            Incoming::Accept(accepted) => Ok(accepted),
            Incoming::Reject(reject) => Err(reject),
        }
    }

    fn send(&mut self, amount: u64, minimum: u64, frames: Vec<Frame>) -> Result<Accepted, Reject> {
        let prepare = self.sealed(amount, minimum, frames);
        self.deliver(&prepare)
    }

    /// Opens a stream on which the server takes so much.
    fn open(&mut self, stream: u64, receive_max: u64) {
        let accepted = self.send(0, 0, vec![max_money(stream)]).unwrap();
        self.commit(accepted);
        self.server
            .set_receive_max(StreamId(stream), receive_max)
            .unwrap();
    }

    fn commit(&mut self, accepted: Accepted) -> Fulfill {
        self.server.commit(accepted)
    }

    /// What an F99 says; it must say something, and about this packet.
    fn answer(&self, reject: &Reject) -> StreamPacket {
        assert_eq!(reject.code, ErrorCode::FinalApplicationError);
        let answer = self.keys.open(&reject.data).unwrap();
        let answer = StreamPacket::decode(answer.into()).unwrap();
        assert_eq!(
            (answer.packet_type, answer.sequence),
            (PacketType::Reject, self.sequence)
        );
        answer
    }

    fn closed_with(&mut self) -> StreamErrorCode {
        match self.server.close_reason() {
            Some(CloseReason::Local { code, .. }) => *code,
            other => panic!("not closed by the server but {other:?}"),
        }
    }
}

fn max_money(stream: u64) -> Frame {
    Frame::StreamMaxMoney {
        stream: StreamId(stream),
        receive_max: 0,
        total_received: 0,
    }
}

fn money(stream: u64, shares: u64) -> Frame {
    Frame::StreamMoney {
        stream: StreamId(stream),
        shares,
    }
}

fn data(stream: u64, offset: u64, data: &'static [u8]) -> Frame {
    Frame::StreamData {
        stream: StreamId(stream),
        offset,
        data: Bytes::from_static(data),
    }
}

/// The Prepares that an unmodified ilp-protocol-stream client sent while it paid a request, given to
/// our server: five test packets, 5000 too early, the price, and news.
#[test]
fn a_captured_javascript_client_can_pay() {
    let captured: Value = serde_json::from_str(include_str!("data/captured_stream.json")).unwrap();
    let hex = |text: &str| data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap();
    let secret: [u8; 32] = hex(captured["shared_secret_hex"].as_str().unwrap())
        .try_into()
        .unwrap();
    let keys = Keys::new(&secret);
    let now = Timestamp::decode(b"20261123152300000").unwrap();
    let mut server = server(now, secret);
    let stream = StreamId(1);
    let (mut tests, mut too_early, mut news, mut paid) = (0, 0, 0, 0);
    for packet in captured["packets"].as_array().unwrap() {
        if packet["direction"] != "client->connector" {
            continue;
        }
        let bytes = Bytes::from(hex(packet["packet_hex"].as_str().unwrap()));
        // Its replies to its own server are of no interest here.
        let Packet::Prepare(prepare) = Packet::decode(bytes).unwrap() else {
            continue;
        };
        let fulfillable = keys.condition(&prepare.data) == prepare.condition;
        match server.handle_prepare(now, &prepare) {
            Incoming::Reject(reject) => {
                assert_eq!(reject.code, ErrorCode::FinalApplicationError);
                let plaintext = keys.open(&reject.data).unwrap();
                let answer = StreamPacket::decode(plaintext.into()).unwrap();
                assert_eq!(answer.prepare_amount, prepare.amount);
                if fulfillable {
                    too_early += 1;
                    assert_eq!(prepare.amount, 5_000);
                    let limit = Frame::StreamMaxMoney {
                        stream,
                        receive_max: 0,
                        total_received: 0,
                    };
                    assert!(answer.frames.contains(&limit));
                    // The retry of the request has arrived.
                    server.set_receive_max(stream, 1_000).unwrap();
                } else {
                    tests += 1;
                    let asset = Frame::ConnectionAssetDetails {
                        code: "XRP".to_owned(),
                        scale: 9,
                    };
                    assert!(answer.frames.contains(&asset));
                }
            }
            Incoming::Accept(accepted) => {
                assert!(fulfillable);
                if accepted.amount() == 0 {
                    news += 1;
                } else {
                    paid += accepted.amount();
                    assert_eq!(accepted.streams(), [(stream, 1_000)]);
                }
                let fulfill = server.commit(accepted);
                assert_eq!(fulfill.fulfillment.condition(), prepare.condition);
            }
        }
    }
    assert_eq!((tests, too_early, news, paid), (5, 1, 2, 1_000));
    assert_eq!(server.total_received(), 1_000);
    assert!(
        server
            .remote_address()
            .unwrap()
            .as_str()
            .starts_with("private.moneyd.local.")
    );
}

#[test]
fn what_is_not_sealed_for_the_connection_is_unexpected_and_leaves_nothing() {
    let mut client = Client::new();
    let good = client.sealed(5, 0, vec![max_money(1)]);
    let mut changed = good.data.to_vec();
    changed[30] ^= 1;
    for data in [Bytes::new(), Bytes::from_static(b"short"), changed.into()] {
        let reject = client
            .deliver(&Prepare {
                data,
                ..good.clone()
            })
            .unwrap_err();
        assert_eq!(
            (reject.code, reject.message.as_str()),
            (ErrorCode::UnexpectedPayment, "")
        );
        assert!(reject.data.is_empty() && reject.triggered_by.is_none());
    }
    // Sealed for a Fulfill, moved into a Prepare by somebody on the way.
    let moved = StreamPacket {
        packet_type: PacketType::Fulfill,
        sequence: 9,
        prepare_amount: 0,
        frames: Vec::new(),
    };
    let reject = client.deliver(&client.carrying(0, &moved)).unwrap_err();
    assert_eq!(reject.code, ErrorCode::UnexpectedPayment);
    assert!(!client.server.is_connected());
    assert_eq!(client.server.poll_event(), None);
}

#[test]
fn a_repeated_packet_is_not_fulfilled_again() {
    let mut client = Client::new();
    client.open(1, 100);
    let prepare = client.sealed(10, 10, vec![money(1, 1)]);
    let accepted = client.deliver(&prepare).unwrap();
    // While the first waits for the ledger, and after.
    let reject = client.deliver(&prepare).unwrap_err();
    assert!(client.answer(&reject).frames.is_empty());
    client.commit(accepted);
    client.deliver(&prepare).unwrap_err();
    assert_eq!(client.server.total_received(), 10);
}

#[test]
fn an_expired_packet_is_not_fulfilled() {
    let mut client = Client::new();
    client.open(1, 100);
    let prepare = Prepare {
        expires_at: NOW,
        ..client.sealed(10, 10, vec![money(1, 1)])
    };
    assert_eq!(
        client.deliver(&prepare).unwrap_err().code,
        ErrorCode::TransferTimedOut
    );
}

#[test]
fn less_than_the_minimum_and_a_strange_condition_are_answered_but_not_fulfilled() {
    let mut client = Client::new();
    client.open(1, 100);
    let reject = client.send(9, 10, vec![money(1, 1)]).unwrap_err();
    assert_eq!(client.answer(&reject).prepare_amount, 9);
    let mut prepare = client.sealed(10, 10, vec![money(1, 1)]);
    prepare.condition = Condition([1; 32]);
    let reject = client.deliver(&prepare).unwrap_err();
    assert_eq!(client.answer(&reject).prepare_amount, 10);
    assert_eq!(client.server.total_received(), 0);
}

#[test]
fn held_amounts_count_against_the_limit_until_they_are_refused() {
    let mut client = Client::new();
    client.open(1, 100);
    let first = client.send(60, 0, vec![money(1, 1)]).unwrap();
    let reject = client.send(41, 0, vec![money(1, 1)]).unwrap_err();
    let limit = Frame::StreamMaxMoney {
        stream: StreamId(1),
        receive_max: 100,
        total_received: 0,
    };
    assert!(client.answer(&reject).frames.contains(&limit));
    let second = client.send(40, 0, vec![money(1, 1)]).unwrap();
    let reject = client.server.refuse(first, ErrorCode::InternalError);
    assert_eq!(reject.code, ErrorCode::InternalError);
    client.commit(second);
    let third = client.send(60, 0, vec![money(1, 1)]).unwrap();
    client.commit(third);
    assert_eq!(client.server.stream_received(StreamId(1)), Some(100));
    client.send(1, 0, vec![money(1, 1)]).unwrap_err();
}

#[test]
fn tolerance_allows_a_little_more_than_the_limit() {
    let mut client = Client::new();
    let config = Config {
        receive_tolerance_permille: 10,
        ..Config::default()
    };
    client.server = Connection::server(NOW, config, &SharedSecret(SECRET), Box::new(Counter(0)));
    client.open(1, 150);
    // One in a hundred of 150, rounded up.
    client.send(153, 0, vec![money(1, 1)]).unwrap_err();
    let accepted = client.send(152, 0, vec![money(1, 1)]).unwrap();
    client.commit(accepted);
    client.send(1, 0, vec![money(1, 1)]).unwrap_err();
}

/// The example of RFC 29 section 5.3.8, and what rounding leaves.
#[test]
fn amounts_are_split_by_shares() {
    let mut client = Client::new();
    for stream in [1, 3, 5] {
        client.open(stream, 1_000);
    }
    let amounts = |client: &mut Client, amount, shares: [u64; 3]| {
        let frames = vec![
            money(5, shares[2]),
            money(1, shares[0]),
            money(3, shares[1]),
        ];
        let accepted = client.send(amount, 0, frames).unwrap();
        let amounts: Vec<_> = accepted
            .streams()
            .iter()
            .map(|(id, part)| (id.0, *part))
            .collect();
        client.commit(accepted);
        amounts
    };
    assert_eq!(
        amounts(&mut client, 100, [5, 15, 30]),
        [(1, 10), (3, 30), (5, 60)]
    );
    assert_eq!(
        amounts(&mut client, 100, [1, 1, 1]),
        [(1, 34), (3, 33), (5, 33)]
    );
    assert_eq!(amounts(&mut client, 2, [0, 1, 1]), [(3, 1), (5, 1)]);
    let huge = u64::MAX / 3;
    assert_eq!(
        amounts(&mut client, 9, [huge, huge, huge]),
        [(1, 3), (3, 3), (5, 3)]
    );
    assert_eq!(client.server.total_received(), 211);
}

#[test]
fn money_that_belongs_to_no_stream_is_not_taken() {
    let mut client = Client::new();
    client.open(1, 1_000);
    for frames in [
        vec![],
        vec![money(1, 0)],
        vec![money(1, u64::MAX), money(1, 1)],
    ] {
        let reject = client.send(10, 0, frames).unwrap_err();
        client.answer(&reject);
    }
    assert!(client.server.close_reason().is_none());
}

#[test]
fn money_for_a_closed_stream_is_not_taken() {
    let mut client = Client::new();
    client.open(1, 1_000);
    let close = Frame::StreamClose {
        stream: StreamId(1),
        code: StreamErrorCode::NoError,
        message: String::new(),
    };
    let accepted = client.send(0, 0, vec![close]).unwrap();
    client.commit(accepted);
    while client.server.poll_event().is_some() {}
    let reject = client.send(10, 0, vec![money(1, 1)]).unwrap_err();
    assert!(client.answer(&reject).frames.iter().any(|frame| matches!(
        frame,
        Frame::StreamClose {
            code: StreamErrorCode::StreamStateError,
            ..
        }
    )));
    assert!(client.server.close_reason().is_none());
}

#[test]
fn money_that_was_accepted_before_its_stream_closed_is_counted() {
    let mut client = Client::new();
    client.open(1, 1_000);
    let accepted = client.send(10, 0, vec![money(1, 1)]).unwrap();
    client.server.close(StreamErrorCode::NoError, "");
    while client.server.poll_event().is_some() {}
    client.commit(accepted);
    assert_eq!(client.server.stream_received(StreamId(1)), Some(10));
    let events: Vec<_> = std::iter::from_fn(|| client.server.poll_event()).collect();
    assert!(
        matches!(
            events[..],
            [
                Event::MoneyReceived {
                    amount: 10,
                    total: 10,
                    ..
                },
                Event::StreamClosed { .. },
            ]
        ),
        "{events:?}"
    );
}

/// The JavaScript client leaves when it is told that the connection is over, and never gets a reply that
/// comes later.
#[test]
fn who_waits_for_a_reply_is_told_of_the_end_in_it_and_not_before() {
    let over = StreamErrorCode::ApplicationError;
    let told = |frames: &[Frame]| {
        let closes =
            |frame: &&Frame| matches!(frame, Frame::ConnectionClose { code, .. } if *code == over);
        frames.iter().filter(closes).count() == 1
    };
    let connected = || {
        let mut client = Client::new();
        let address = "test.client".parse().unwrap();
        let hello = vec![Frame::ConnectionNewAddress { address }];
        let accepted = client.send(0, 0, hello).unwrap();
        client.commit(accepted);
        client.open(1, 1_000);
        while client.server.poll_transmit(NOW).is_some() {}
        client
    };

    let mut client = connected();
    let first = client.send(10, 0, vec![money(1, 1)]).unwrap();
    let second = client.send(10, 0, vec![money(1, 1)]).unwrap();
    client.server.close(over, "full");
    assert!(!client.server.wants_to_transmit(NOW));
    assert!(client.server.poll_transmit(NOW).is_none());
    let fulfill = client.commit(first);
    let opened = client.keys.open(&fulfill.data).unwrap();
    assert!(told(&StreamPacket::decode(opened.into()).unwrap().frames));
    let reject = client
        .server
        .refuse(second, ErrorCode::FinalApplicationError);
    assert!(told(&client.answer(&reject).frames));
    assert!(client.server.poll_transmit(NOW).is_none());
    while client.server.poll_event().is_some() {}
    assert_eq!(client.server.stream_received(StreamId(1)), Some(10));

    // A reply that is not sealed says nothing of it; then there is nothing to come before.
    let mut client = connected();
    let accepted = client.send(10, 0, vec![money(1, 1)]).unwrap();
    client.server.close(over, "full");
    assert!(client.server.poll_transmit(NOW).is_none());
    let _ = client.server.refuse(accepted, ErrorCode::InternalError);
    assert!(client.server.wants_to_transmit(NOW));
    assert!(client.server.poll_transmit(NOW).is_some());
    assert!(client.server.poll_transmit(NOW).is_none());

    // Who does not wait is told at once.
    let mut client = connected();
    client.server.close(over, "full");
    assert!(client.server.poll_transmit(NOW).is_some());
}

#[test]
fn whoever_breaks_the_rules_is_told_and_closed() {
    let asset = |code: &str| Frame::ConnectionAssetDetails {
        code: code.to_owned(),
        scale: 9,
    };
    for (expected, frames) in [
        (StreamErrorCode::ProtocolViolation, vec![max_money(2)]),
        (StreamErrorCode::ProtocolViolation, vec![max_money(0)]),
        (
            StreamErrorCode::ProtocolViolation,
            vec![asset("XRP"), asset("USD")],
        ),
        (StreamErrorCode::StreamIdError, vec![max_money(21)]),
        (
            StreamErrorCode::FlowControlError,
            vec![data(1, 16_384, b"x")],
        ),
        (
            StreamErrorCode::FlowControlError,
            vec![data(1, u64::MAX, b"x")],
        ),
    ] {
        let mut client = Client::new();
        let reject = client.send(5, 0, frames).unwrap_err();
        let said = client.answer(&reject).frames;
        assert!(
            matches!(said[..], [Frame::ConnectionClose { code, .. }] if code == expected),
            "{said:?}"
        );
        assert_eq!(client.closed_with(), expected);
    }
}

#[test]
fn a_sequence_beyond_the_life_of_the_keys_closes_the_connection() {
    let mut client = Client::new();
    client.sequence = (1 << 31) - 2;
    let _ = client.send(0, 0, vec![]).unwrap();
    let _ = client.send(0, 0, vec![]).unwrap();
    assert_eq!(client.closed_with(), StreamErrorCode::ProtocolViolation);
}

#[test]
fn data_is_bounded_on_the_whole_connection() {
    static PIECE: [u8; 16_000] = [1; 16_000];
    let mut client = Client::new();
    for stream in [1, 3, 5, 7] {
        let _ = client.send(0, 0, vec![data(stream, 0, &PIECE)]).unwrap();
    }
    assert!(client.server.close_reason().is_none());
    let _ = client.send(0, 0, vec![data(9, 0, &PIECE)]).unwrap();
    assert_eq!(client.closed_with(), StreamErrorCode::FlowControlError);
}

#[test]
fn too_many_packets_before_the_ledger_are_turned_away_for_a_while() {
    let mut client = Client::new();
    client.open(1, u64::MAX);
    let mut waiting = Vec::new();
    let reject = loop {
        match client.send(1, 0, vec![money(1, 1)]) {
            Ok(accepted) => waiting.push(accepted),
            Err(reject) => break reject,
        }
    };
    assert_eq!(waiting.len(), ilp_stream::MAX_IN_FLIGHT);
    assert_eq!(reject.code, ErrorCode::TemporaryApplicationError);
    let accepted = waiting.pop().unwrap();
    client.commit(accepted);
    let _ = client.send(1, 0, vec![money(1, 1)]).unwrap();
}

#[test]
fn a_fulfill_answers_with_the_amount_and_the_totals() {
    let mut client = Client::new();
    client.open(1, 50);
    let prepare = client.sealed(30, 30, vec![money(1, 1)]);
    let accepted = client.deliver(&prepare).unwrap();
    let fulfill = client.commit(accepted);
    assert_eq!(fulfill.fulfillment, client.keys.fulfillment(&prepare.data));
    assert_ne!(fulfill.fulfillment, Fulfillment([0; 32]));
    let answer = client.keys.open(&fulfill.data).unwrap();
    let answer = StreamPacket::decode(answer.into()).unwrap();
    assert_eq!(
        (answer.packet_type, answer.prepare_amount),
        (PacketType::Fulfill, 30)
    );
    assert!(answer.frames.contains(&Frame::StreamMaxMoney {
        stream: StreamId(1),
        receive_max: 50,
        total_received: 30
    }));
}

/// A client that introduces itself and opens stream 1, to a server that writes a byte and takes 1000
/// before it answers.
fn introduced() -> (Client, StreamPacket) {
    let config = Config {
        data_in_replies: true,
        ..Config::default()
    };
    let mut client = Client {
        server: server_with(NOW, SECRET, config),
        ..Client::new()
    };
    let frames = vec![
        Frame::ConnectionNewAddress {
            address: "test.client".parse().unwrap(),
        },
        max_money(1),
        max_data(16_384),
        Frame::StreamMoneyBlocked {
            stream: StreamId(1),
            send_max: 1_000,
            total_sent: 0,
        },
    ];
    let accepted = client.send(0, 0, frames).unwrap();
    let server = &mut client.server;
    server
        .write(StreamId(1), Bytes::from_static(b"\xff"))
        .unwrap();
    server.set_receive_max(StreamId(1), 1_000).unwrap();
    let fulfill = client.commit(accepted);
    let answer = client.keys.open(&fulfill.data).unwrap();
    (client, StreamPacket::decode(answer.into()).unwrap())
}

fn max_data(max_offset: u64) -> Frame {
    Frame::StreamMaxData {
        stream: StreamId(1),
        max_offset,
    }
}

impl Client {
    /// Frames of the Prepares that the server sends now.
    fn sent(&mut self, now: Timestamp) -> Vec<Frame> {
        self.server.handle_timeout(now);
        let transmits = std::iter::from_fn(|| self.server.poll_transmit(now));
        let frames = transmits.flat_map(|it| {
            let plaintext = self.keys.open(&it.prepare.data).unwrap();
            StreamPacket::decode(plaintext.into()).unwrap().frames
        });
        frames.collect()
    }
}

#[test]
fn the_answer_to_an_introduction_says_it_all() {
    let (mut client, answer) = introduced();
    assert!(answer.frames.contains(&data(1, 0, b"\xff")), "{answer:?}");
    assert!(answer.frames.contains(&Frame::StreamMaxMoney {
        stream: StreamId(1),
        receive_max: 1_000,
        total_received: 0
    }));
    assert_eq!(client.sent(NOW), []);
    // The next packet shows that the byte was read.
    let accepted = client
        .send(1_000, 1_000, vec![money(1, 1), max_data(16_385)])
        .unwrap();
    let fulfill = client.commit(accepted);
    let answer = client.keys.open(&fulfill.data).unwrap();
    let answer = StreamPacket::decode(answer.into()).unwrap();
    assert!(!answer.frames.contains(&data(1, 0, b"\xff")), "{answer:?}");
    assert_eq!(client.server.unconfirmed_data(StreamId(1)), Some(0));
    assert_eq!(client.sent(NOW.plus_millis(10_000)), []);
}

#[test]
fn data_of_an_answer_that_may_be_lost_comes_again_once_and_in_a_packet() {
    let (mut client, _) = introduced();
    // Whoever has read nothing shows nothing.
    let accepted = client.send(0, 0, vec![max_data(16_384)]).unwrap();
    let fulfill = client.commit(accepted);
    let answer = client.keys.open(&fulfill.data).unwrap();
    let answer = StreamPacket::decode(answer.into()).unwrap();
    assert!(!answer.frames.contains(&data(1, 0, b"\xff")), "{answer:?}");
    let due = client.server.poll_timeout().unwrap();
    assert_eq!(due, NOW.plus_millis(1_000));
    assert_eq!(client.sent(NOW.plus_millis(999)), []);
    assert!(client.sent(due).contains(&data(1, 0, b"\xff")));
    assert_eq!(client.sent(due.plus_millis(10)), []);
}

#[test]
fn a_limit_that_was_never_told_before_proves_nothing() {
    let config = Config {
        data_in_replies: true,
        ..Config::default()
    };
    let mut client = Client {
        server: server_with(NOW, SECRET, config),
        ..Client::new()
    };
    let address = "test.client".parse().unwrap();
    let frames = vec![Frame::ConnectionNewAddress { address }, max_money(1)];
    let accepted = client.send(0, 0, frames).unwrap();
    let byte = Bytes::from_static(b"\xff");
    client.server.write(StreamId(1), byte).unwrap();
    client.commit(accepted);
    // Its window is just larger than ours is.
    let accepted = client.send(0, 0, vec![max_data(65_536)]).unwrap();
    client.commit(accepted);
    assert_eq!(client.server.unconfirmed_data(StreamId(1)), Some(1));
}
