//! STREAM packets and sealing against `ilp-protocol-stream` 2.7.2-alpha.3: what is written is
//! the same byte for byte, and what is read, from good and from damaged bytes, is the same or is
//! refused by both. Where the two differ on purpose, [`Difference`] says why.
#![expect(clippy::unwrap_used, reason = "a test may panic on its own mistakes")]

#[path = "../../ilp-packet/tests/javascript/mod.rs"]
mod javascript;

use bytes::Bytes;
use ilp_packet::oer::OerError;
use ilp_packet::{Address, AddressError};
use ilp_stream::{
    Frame, FrameError, Keys, MAX_PLAINTEXT, PacketType, SealError, StreamErrorCode, StreamId,
    StreamPacket,
};
use javascript::{Random, Tally, ask, bytes, cases, hex};
use serde_json::{Value, json};

/// Longest text of a frame that we read, bytes.
const MAX_TEXT: usize = 4_096;

fn frame(random: &mut Random) -> Frame {
    let stream = StreamId(random.uint());
    let code = StreamErrorCode::from_byte(random.byte() % 12);
    let (first, second) = (random.uint(), random.uint());
    match random.below(15) {
        0 => Frame::ConnectionClose {
            code,
            message: random.text(MAX_TEXT),
        },
        1 => Frame::ConnectionNewAddress {
            address: random.address().parse().unwrap(),
        },
        2 => Frame::ConnectionMaxData { max_offset: first },
        3 => Frame::ConnectionDataBlocked { max_offset: first },
        4 => Frame::ConnectionMaxStreamId {
            max_stream_id: first,
        },
        5 => Frame::ConnectionStreamIdBlocked {
            max_stream_id: first,
        },
        6 => Frame::ConnectionAssetDetails {
            code: random.text(300),
            scale: random.byte(),
        },
        7 => Frame::StreamClose {
            stream,
            code,
            message: random.text(MAX_TEXT),
        },
        8 => Frame::StreamMoney {
            stream,
            shares: first,
        },
        9 => Frame::StreamMaxMoney {
            stream,
            receive_max: first,
            total_received: second,
        },
        10 => Frame::StreamMoneyBlocked {
            stream,
            send_max: first,
            total_sent: second,
        },
        11 => Frame::StreamData {
            stream,
            offset: first,
            data: random.data(8_000).into(),
        },
        12 => Frame::StreamMaxData {
            stream,
            max_offset: first,
        },
        13 => Frame::StreamDataBlocked {
            stream,
            max_offset: first,
        },
        _ => Frame::StreamReceipt {
            stream,
            receipt: random.data(100).into(),
        },
    }
}

fn packet(random: &mut Random) -> StreamPacket {
    let frames = match random.below(50) {
        0 => 128,
        _ => random.below(6),
    };
    StreamPacket {
        packet_type: [PacketType::Prepare, PacketType::Fulfill, PacketType::Reject]
            [random.below(3)],
        sequence: random.uint(),
        prepare_amount: random.uint(),
        frames: (0..frames).map(|_| frame(random)).collect(),
    }
}

/// A packet as the peer says it.
fn fields(packet: &StreamPacket) -> Value {
    json!({
        "type": match packet.packet_type {
            PacketType::Prepare => 12,
            PacketType::Fulfill => 13,
            PacketType::Reject => 14,
        },
        "sequence": packet.sequence.to_string(),
        "amount": packet.prepare_amount.to_string(),
        "frames": packet.frames.iter().map(frame_fields).collect::<Vec<_>>(),
    })
}

fn frame_fields(frame: &Frame) -> Value {
    let text = |number: &u64| number.to_string();
    let kind = frame.kind();
    match frame {
        Frame::ConnectionClose { code, message } => json!([kind, code.to_byte(), message]),
        Frame::ConnectionNewAddress { address } => json!([kind, address.as_str()]),
        Frame::ConnectionMaxData { max_offset: number }
        | Frame::ConnectionDataBlocked { max_offset: number }
        | Frame::ConnectionMaxStreamId {
            max_stream_id: number,
        }
        | Frame::ConnectionStreamIdBlocked {
            max_stream_id: number,
        } => json!([kind, text(number)]),
        Frame::ConnectionAssetDetails { code, scale } => json!([kind, code, scale]),
        Frame::StreamClose {
            stream,
            code,
            message,
        } => json!([kind, text(&stream.0), code.to_byte(), message]),
        Frame::StreamMoney {
            stream,
            shares: number,
        }
        | Frame::StreamMaxData {
            stream,
            max_offset: number,
        }
        | Frame::StreamDataBlocked {
            stream,
            max_offset: number,
        } => json!([kind, text(&stream.0), text(number)]),
        Frame::StreamMaxMoney {
            stream,
            receive_max: limit,
            total_received: total,
        }
        | Frame::StreamMoneyBlocked {
            stream,
            send_max: limit,
            total_sent: total,
        } => json!([kind, text(&stream.0), text(limit), text(total)]),
        Frame::StreamData {
            stream,
            offset,
            data,
        } => json!([kind, text(&stream.0), text(offset), hex(data)]),
        Frame::StreamReceipt { stream, receipt } => json!([kind, text(&stream.0), hex(receipt)]),
    }
}

/// Where we differ from the JavaScript library, and what makes ours right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Difference {
    /// JavaScript takes any number as the type of the ILP packet and compares it later. RFC 29 section
    /// 5.2 names three.
    PacketType,
    /// JavaScript takes any text as an address. RFC 29 section 5.3.2 says that it is one.
    Address,
    /// JavaScript takes integers with leading zeros. RFC 30 forbids them ("Variable-length unsigned
    /// integer").
    Integer,
    /// JavaScript takes lengths of five and six bytes with leading zeros. RFC 30 forbids them ("Length
    /// determinant").
    Length,
    /// Texts and frames above our bounds; RFC 29 leaves them open.
    Bound,
}

fn why_laxer(error: FrameError, read: &Value) -> Option<Difference> {
    match error {
        FrameError::PacketType(kind) => {
            (read["type"] == json!(kind)).then_some(Difference::PacketType)
        }
        FrameError::Address(_) => {
            let frames = read["frames"].as_array().unwrap();
            let bad = |frame: &Value| {
                let address: Result<Address, AddressError> =
                    frame[1].as_str().unwrap_or_default().parse();
                frame[0] == json!(2) && address.is_err()
            };
            frames.iter().any(bad).then_some(Difference::Address)
        }
        FrameError::Malformed(OerError::BadInteger) => Some(Difference::Integer),
        FrameError::Malformed(OerError::BadLength) => Some(Difference::Length),
        FrameError::Malformed(OerError::TooLong { .. }) | FrameError::TooManyFrames => {
            Some(Difference::Bound)
        }
        FrameError::Malformed(OerError::Truncated | OerError::IntegerTooLarge)
        | FrameError::Version(_) => None,
    }
}

fn compare(plaintext: &[u8], answer: &Value) -> Result<&'static str, Difference> {
    let context = || format!("{} {answer}", hex(plaintext));
    let theirs = &answer["read"];
    match StreamPacket::decode(plaintext.to_vec().into()) {
        Ok(packet) => {
            assert_eq!(fields(&packet), *theirs, "{}", context());
            Ok("read by both")
        }
        Err(_) if theirs.is_null() => Ok("refused by both"),
        Err(error) => Err(why_laxer(error, theirs)
            .unwrap_or_else(|| panic!("we refuse: {error:?} {}", context()))),
    }
}

#[test]
fn packets_are_written_and_read_as_by_ilp_protocol_stream() {
    let mut random = Random::new();
    let packets: Vec<StreamPacket> = (0..cases()).map(|_| packet(&mut random)).collect();
    let questions: Vec<Value> = packets
        .iter()
        .map(|packet| {
            json!({"protocol": "stream", "write": fields(packet), "read": hex(&packet.encode())})
        })
        .collect();
    for (packet, answer) in packets.iter().zip(ask(&questions)) {
        assert_eq!(bytes(&answer["written"]), packet.encode(), "{packet:?}");
        assert_eq!(answer["read"], fields(packet), "{packet:?}");
    }
}

#[test]
fn damaged_packets_are_read_or_refused_as_by_ilp_protocol_stream() {
    let mut random = Random::new();
    let damaged: Vec<Vec<u8>> = (0..cases())
        .map(|_| {
            let plaintext = packet(&mut random).encode();
            random.damaged(plaintext)
        })
        .collect();
    let questions: Vec<Value> = damaged
        .iter()
        .map(|plaintext| json!({"protocol": "stream", "read": hex(plaintext)}))
        .collect();
    let mut tally = Tally::default();
    for (plaintext, answer) in damaged.iter().zip(ask(&questions)) {
        tally.count(match compare(plaintext, &answer) {
            Ok(what) => what,
            Err(Difference::PacketType) => "packet type",
            Err(Difference::Address) => "address",
            Err(Difference::Integer) => "integer",
            Err(Difference::Length) => "length",
            Err(Difference::Bound) => "bound",
        });
    }
    tally.check(
        damaged.len(),
        &["read by both", "refused by both", "packet type"],
    );
}

/// One packet for each difference, and what each side does with it.
#[test]
fn every_known_difference_to_ilp_protocol_stream_is_what_we_think() {
    let packet = |kind: u8, frames: &[(u8, &[u8])]| {
        let mut writer = ilp_packet::oer::Writer::new();
        writer.bytes(&[1, kind, 1, 1, 1, 0]);
        writer.var_uint(frames.len() as u64);
        for (kind, contents) in frames {
            writer.u8(*kind);
            writer.var_octets(contents);
        }
        writer.into_vec()
    };
    let long_text = [&[1, 0x82, 0x10, 0x01][..], &[b'm'; 4_097]].concat();
    let long_length = [&[2, 0x85, 0, 0, 0, 0, 0x80][..], &[b'a'; 128]].concat();
    let nothing: (u8, &[u8]) = (0x7f, &[]);
    let cases = [
        (packet(11, &[]), Difference::PacketType),
        (packet(12, &[(2, b"\x03x.y")]), Difference::Address),
        (packet(12, &[(2, b"\x00")]), Difference::Address),
        (packet(12, &[(3, &[2, 0, 1])]), Difference::Integer),
        (
            packet(12, &[(0x12, &[1, 1, 9, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0])]),
            Difference::Integer,
        ),
        (vec![1, 12, 1, 1, 1, 0, 2, 0, 0], Difference::Integer),
        (packet(12, &[(2, &long_length[1..])]), Difference::Length),
        (packet(12, &[(1, &long_text)]), Difference::Bound),
        (packet(12, &[nothing; 1_025]), Difference::Bound),
    ];
    let questions: Vec<Value> = cases
        .iter()
        .map(|(plaintext, _)| json!({"protocol": "stream", "read": hex(plaintext)}))
        .collect();
    for ((plaintext, difference), answer) in cases.iter().zip(ask(&questions)) {
        assert!(answer["error"].is_null(), "{answer}");
        assert_eq!(compare(plaintext, &answer), Err(*difference), "{answer}");
    }
}

/// Each side opens what the other sealed, and both find the same condition and fulfillment. What was
/// damaged on the way opens nowhere.
#[test]
fn sealed_packets_open_on_both_sides() {
    let mut random = Random::new();
    let mut asked = Vec::new();
    let mut questions = Vec::new();
    for _ in 0..cases() {
        let secret = random.array::<32>();
        let mut plaintext = packet(&mut random).encode();
        plaintext.truncate(MAX_PLAINTEXT);
        let mut envelope = Keys::new(&secret).seal(random.array(), &plaintext).unwrap();
        let whole = envelope.clone();
        if random.one_in(3) {
            envelope = random.damaged(envelope);
        }
        let intact = envelope == whole;
        questions.push(json!({
            "protocol": "sealed",
            "secret": hex(&secret),
            "plaintext": hex(&plaintext),
            "envelope": hex(&envelope),
        }));
        asked.push((secret, plaintext, envelope, intact));
    }
    let mut tally = Tally::default();
    for ((secret, plaintext, envelope, intact), answer) in asked.iter().zip(ask(&questions)) {
        let keys = Keys::new(secret);
        let opened = keys.open(envelope);
        if *intact {
            assert_eq!(answer["opened"], hex(plaintext));
            assert_eq!(opened.as_ref(), Ok(plaintext));
            tally.count("intact");
        } else {
            assert!(answer["opened"].is_null(), "{}", hex(envelope));
            assert_eq!(opened, Err(SealError::NotOurs), "{}", hex(envelope));
            tally.count("damaged");
        }
        let fulfillment = keys.fulfillment(envelope);
        assert_eq!(answer["fulfillment"], hex(&fulfillment.0));
        assert_eq!(answer["condition"], hex(&fulfillment.condition().0));
        assert_eq!(keys.condition(envelope), fulfillment.condition());
        assert_eq!(keys.open(&bytes(&answer["sealed"])).unwrap(), *plaintext);
    }
    tally.check(asked.len(), &["intact", "damaged"]);
}

/// What is behind the last frame is padding: the JavaScript sender can make all packets equally long.
#[test]
fn padding_is_ignored_by_both() {
    let mut random = Random::new();
    let packet = packet(&mut random);
    let padded = [packet.encode(), vec![0; 300]].concat();
    let question = json!({"protocol": "stream", "read": hex(&padded)});
    let answer = &ask(&[question])[0];
    assert_eq!(answer["read"], fields(&packet));
    assert_eq!(StreamPacket::decode(Bytes::from(padded)), Ok(packet));
}
