//! BTP frames against `btp-packet` 2.2.1: what is written is the same byte for byte, and what is read,
//! from good and from damaged bytes, is the same or is refused by both. Where the two differ on
//! purpose, [`Difference`] says why.
#![expect(clippy::unwrap_used, reason = "a test may panic on its own mistakes")]

#[path = "../../ilp-packet/tests/javascript/mod.rs"]
mod javascript;

use ilp_btp::{
    ContentType, DecodeError, Frame, MAX_PROTOCOL_NAME_BYTES, MAX_PROTOCOLS, ProtocolData, Refusal,
    RefusalCode, RequestId,
};
use ilp_packet::Timestamp;
use ilp_packet::oer::OerError;
use javascript::{Random, Tally, ask, bytes, cases, hex};
use serde_json::{Value, json};

/// Long enough for an ILP packet, and short enough that two of them fit a frame.
const MAX_ENTRY: usize = 30_000;

fn frame(random: &mut Random) -> Frame {
    const NAMES: [&str; 6] = ["ilp", "auth", "auth_username", "auth_token", "info", "x~1"];
    let request_id = RequestId(u32::try_from(random.uint() & 0xffff_ffff).unwrap());
    let count = match random.below(20) {
        0 => MAX_PROTOCOLS,
        _ => random.below(4),
    };
    let large = random.below(MAX_PROTOCOLS);
    let protocol_data = (0..count)
        .map(|at| ProtocolData {
            name: match NAMES.get(at) {
                Some(name) => (*name).into(),
                None => "n".repeat(MAX_PROTOCOL_NAME_BYTES - at).into(),
            },
            content_type: ContentType::from(if random.one_in(4) {
                random.byte()
            } else {
                random.byte() % 3
            }),
            data: random
                .data(if at == large { MAX_ENTRY } else { 300 })
                .into(),
        })
        .collect();
    match random.below(4) {
        0 => Frame::Response {
            request_id,
            protocol_data,
        },
        1 => Frame::Message {
            request_id,
            protocol_data,
        },
        2 => Frame::Transfer {
            request_id,
            amount: random.uint(),
            protocol_data,
        },
        _ => {
            let codes = [*b"T00", *b"F00", *b"F01", *b"F08", *b"z~9"];
            let code = RefusalCode::from(codes[random.below(codes.len())]);
            let at = Timestamp::from_millis(random.millis());
            let refusal = Refusal::new(code, at, &random.text(2_000));
            Frame::Error {
                request_id,
                refusal,
                protocol_data,
            }
        }
    }
}

/// A frame as the peer says it. The time of an Error is only known if it has the usual form.
fn fields(frame: &Frame) -> Value {
    let protocols: Vec<Value> = frame
        .protocol_data()
        .iter()
        .map(|entry| json!([entry.name, entry.content_type.number(), hex(&entry.data)]))
        .collect();
    let request_id = frame.request_id().0;
    let mut fields = json!({"requestId": request_id, "protocols": protocols});
    match frame {
        Frame::Response { .. } => fields["type"] = json!(1),
        Frame::Message { .. } => fields["type"] = json!(6),
        Frame::Transfer { amount, .. } => {
            fields["type"] = json!(7);
            fields["amount"] = json!(amount.to_string());
        }
        Frame::Error { refusal, .. } => {
            let code = refusal.code.bytes();
            fields["type"] = json!(2);
            fields["code"] = json!(String::from_utf8_lossy(&code));
            fields["name"] = json!(refusal.name);
            fields["text"] = json!(refusal.text());
            fields["triggeredAt"] = json!(millis(&refusal.triggered_at));
        }
    }
    fields
}

/// The moment that `20261123152655.841Z` names.
fn millis(text: &str) -> Option<u64> {
    let (seconds, fraction) = text.split_once('.')?;
    let digits = format!("{seconds}{}", fraction.strip_suffix('Z')?);
    let moment = Timestamp::decode(digits.as_bytes()).ok()?;
    (text.len() == 19 && fraction.len() == 4).then(|| moment.as_millis())
}

/// Where we differ from the JavaScript library, and what makes ours right. RFC 23 counts its entries
/// and names them in ASCII; that names are unique, and all bounds, are ours: two readers of one frame
/// must not disagree about which of two equal names counts, and nothing is allocated without a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Difference {
    /// Names that are empty, longer than our bound, repeated, or no printable ASCII.
    Name,
    /// More entries than our bound.
    TooMany,
    /// The number of entries with leading zeros, which RFC 30 forbids ("Variable-length unsigned
    /// integer").
    Count,
    /// Lengths of five and six bytes with leading zeros, which RFC 30 forbids ("Length determinant").
    Length,
    /// JavaScript cuts the highest bit off each byte of the code and the name of an Error. RFC 23 says
    /// ASCII and UTF-8; what is no text is refused here, what is kept is not changed.
    HighBit,
    /// JavaScript reads times of an Error in many forms, or as no time at all. Nothing is decided by
    /// it, so the text is kept as it is.
    Time,
}

fn why_laxer(error: &DecodeError) -> Option<Difference> {
    match error {
        DecodeError::ProtocolName | DecodeError::RepeatedProtocol => Some(Difference::Name),
        DecodeError::TooManyProtocols(_) => Some(Difference::TooMany),
        DecodeError::ErrorText => Some(Difference::HighBit),
        DecodeError::Field(OerError::BadInteger) => Some(Difference::Count),
        DecodeError::Field(OerError::BadLength) => Some(Difference::Length),
        DecodeError::Field(
            OerError::Truncated | OerError::TooLong { .. } | OerError::IntegerTooLarge,
        )
        | DecodeError::TooLong(_)
        | DecodeError::UnknownType(_) => None,
    }
}

fn compare(encoded: &[u8], answer: &Value) -> Result<&'static str, Difference> {
    let context = || format!("{} {answer}", hex(encoded));
    let theirs = &answer["read"];
    match Frame::decode(&encoded.to_vec().into()) {
        Ok(frame) => {
            assert!(answer["error"].is_null(), "only we read: {}", context());
            let mut ours = fields(&frame);
            if let Frame::Error { refusal, .. } = &frame {
                if !refusal.code.bytes().is_ascii() || !refusal.name.is_ascii() {
                    assert_ne!(ours, *theirs, "{}", context());
                    return Err(Difference::HighBit);
                }
                if ours["triggeredAt"].is_null() {
                    ours["triggeredAt"] = theirs["triggeredAt"].clone();
                    assert_eq!(ours, *theirs, "{}", context());
                    return Err(Difference::Time);
                }
            }
            assert_eq!(ours, *theirs, "{}", context());
            Ok("read by both")
        }
        Err(_) if theirs.is_null() => Ok("refused by both"),
        Err(error) => {
            Err(why_laxer(&error).unwrap_or_else(|| panic!("we refuse: {error:?} {}", context())))
        }
    }
}

#[test]
fn frames_are_written_and_read_as_by_btp_packet() {
    let mut random = Random::new();
    let frames: Vec<Frame> = (0..cases()).map(|_| frame(&mut random)).collect();
    let questions: Vec<Value> = frames
        .iter()
        .map(|frame| {
            let encoded = frame.encode().unwrap();
            json!({"protocol": "btp", "write": fields(frame), "read": hex(&encoded)})
        })
        .collect();
    for (frame, answer) in frames.iter().zip(ask(&questions)) {
        let encoded = frame.encode().unwrap();
        assert_eq!(bytes(&answer["written"]), encoded, "{frame:?}");
        assert_eq!(answer["read"], fields(frame), "{frame:?}");
        assert_eq!(Frame::decode(&encoded).as_ref(), Ok(frame));
    }
}

#[test]
fn damaged_frames_are_read_or_refused_as_by_btp_packet() {
    let mut random = Random::new();
    let damaged: Vec<Vec<u8>> = (0..cases())
        .map(|_| {
            let encoded = frame(&mut random).encode().unwrap();
            random.damaged(encoded.to_vec())
        })
        .collect();
    let questions: Vec<Value> = damaged
        .iter()
        .map(|encoded| json!({"protocol": "btp", "read": hex(encoded)}))
        .collect();
    let mut tally = Tally::default();
    for (encoded, answer) in damaged.iter().zip(ask(&questions)) {
        tally.count(match compare(encoded, &answer) {
            Ok(what) => what,
            Err(Difference::Name) => "name",
            Err(Difference::TooMany) => "too many",
            Err(Difference::Count) => "count",
            Err(Difference::Length) => "length",
            Err(Difference::HighBit) => "high bit",
            Err(Difference::Time) => "time",
        });
    }
    tally.check(damaged.len(), &["read by both", "refused by both"]);
}

/// One frame for each difference, and what each side does with it.
#[test]
fn every_known_difference_to_btp_packet_is_what_we_think() {
    let message = |contents: &[u8]| frame_of(6, contents);
    let error = |code: &[u8], name: &[u8], time: &[u8]| {
        let contents = [code, &sized(name), &sized(time), &[0, 1, 0]].concat();
        frame_of(2, &contents)
    };
    let entries = |names: &[&[u8]]| {
        let mut contents = vec![1, u8::try_from(names.len()).unwrap()];
        for name in names {
            contents.extend(sized(name));
            contents.extend([0, 0]);
        }
        contents
    };
    let time = b"20261123152655.841Z";
    let many: Vec<[u8; 1]> = (b'a'..b'r').map(|name| [name]).collect();
    let many: Vec<&[u8]> = many.iter().map(|name| &name[..]).collect();
    let cases = [
        (message(&entries(&[b""])), Difference::Name),
        (message(&entries(&[b"a b"])), Difference::Name),
        (message(&entries(&[b"\xe1"])), Difference::Name),
        (message(&entries(&[b"a", b"a"])), Difference::Name),
        (message(&entries(&[&[b'n'; 129]])), Difference::Name),
        (message(&entries(&many)), Difference::TooMany),
        (message(&[2, 0, 0]), Difference::Count),
        (
            [
                &[6, 0, 0, 0, 1, 0x85, 0, 0, 0, 0, 0x80, 1, 0][..],
                &[0; 126],
            ]
            .concat(),
            Difference::Length,
        ),
        (error(b"F\xb00", b"name", time), Difference::HighBit),
        (error(b"F00", "nämé".as_bytes(), time), Difference::HighBit),
        (error(b"F00", b"\xff", time), Difference::HighBit),
        (error(b"F00", b"name", b"20261123152655Z"), Difference::Time),
        (error(b"F00", b"name", b"yesterday"), Difference::Time),
    ];
    let questions: Vec<Value> = cases
        .iter()
        .map(|(encoded, _)| json!({"protocol": "btp", "read": hex(encoded)}))
        .collect();
    for ((encoded, difference), answer) in cases.iter().zip(ask(&questions)) {
        assert!(answer["error"].is_null(), "{answer}");
        assert_eq!(compare(encoded, &answer), Err(*difference), "{answer}");
    }
}

fn frame_of(kind: u8, contents: &[u8]) -> Vec<u8> {
    [&[kind, 0, 0, 0, 1], &sized(contents)[..]].concat()
}

/// Bytes with their length in front.
fn sized(bytes: &[u8]) -> Vec<u8> {
    let mut writer = ilp_packet::oer::Writer::new();
    writer.var_octets(bytes);
    writer.into_vec()
}
