//! ILPv4 packets and ILDCP against `ilp-packet` 3.1.3 and `ilp-protocol-ildcp` 2.2.3: what is written
//! is the same byte for byte, and what is read, from good and from damaged bytes, is the same or is
//! refused by both. Where the two differ on purpose, [`Difference`] says why.
#![expect(clippy::unwrap_used, reason = "a test may panic on its own mistakes")]

mod javascript;

use ilp_packet::ildcp::{self, IldcpError, IldcpResponse, MAX_ASSET_CODE};
use ilp_packet::oer::OerError;
use ilp_packet::{
    Address, Condition, ErrorCode, Fulfill, Fulfillment, MAX_DATA, MAX_MESSAGE, Packet,
    PacketError, Prepare, Reject, Timestamp,
};
use javascript::{Random, Tally, ask, bytes, cases, hex};
use serde_json::{Value, json};

fn packet(random: &mut Random) -> Packet {
    let data = random.data(MAX_DATA).into();
    match random.below(3) {
        0 => Packet::Prepare(Prepare {
            amount: random.uint(),
            expires_at: Timestamp::from_millis(random.millis()),
            condition: Condition(random.array()),
            destination: random.address().parse().unwrap(),
            data,
        }),
        1 => Packet::Fulfill(Fulfill {
            fulfillment: Fulfillment(random.array()),
            data,
        }),
        _ => {
            let codes = [*b"F00", *b"F08", *b"F99", *b"T04", *b"R00", *b"X7~"];
            Packet::Reject(Reject {
                code: ErrorCode::from_bytes(codes[random.below(codes.len())]),
                triggered_by: (!random.one_in(4)).then(|| random.address().parse().unwrap()),
                message: random.text(MAX_MESSAGE),
                data,
            })
        }
    }
}

/// A packet as the peer says it.
fn fields(packet: &Packet) -> Value {
    match packet {
        Packet::Prepare(prepare) => json!({
            "type": 12,
            "amount": prepare.amount.to_string(),
            "expires": prepare.expires_at.as_millis(),
            "condition": hex(&prepare.condition.0),
            "destination": prepare.destination.as_str(),
            "data": hex(&prepare.data),
        }),
        Packet::Fulfill(fulfill) => json!({
            "type": 13,
            "fulfillment": hex(&fulfill.fulfillment.0),
            "data": hex(&fulfill.data),
        }),
        Packet::Reject(reject) => json!({
            "type": 14,
            "code": reject.code.to_string(),
            "triggeredBy": reject.triggered_by.as_ref().map_or("", Address::as_str),
            "message": reject.message,
            "data": hex(&reject.data),
        }),
    }
}

/// Where we differ from the JavaScript library, and what makes ours right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Difference {
    /// JavaScript takes any sizes. RFC 27 allows 32,767 bytes of data and 8,191 of message, and RFC 15
    /// addresses of 1,023 bytes; how far above that we still read is ours to say.
    Size,
    /// JavaScript counts on from dates that do not exist, such as the 32nd of a month, and takes signs
    /// and spaces for digits. RFC 30, "Fixed-length Timestamps", says that they are invalid.
    Date,
    /// JavaScript cuts the highest bit off each byte of an address. RFC 15 knows ASCII only.
    HighBit,
    /// JavaScript takes lengths of five and six bytes with leading zeros. RFC 30, "Length
    /// determinant", forbids leading zeros.
    Length,
    /// JavaScript refuses a Reject whose `triggeredBy` is no address. RFC 27 says what it should hold,
    /// and not that a reply is to be thrown away: its sender would wait until the packet expires.
    TriggeredBy,
    /// JavaScript takes the first millisecond of 1970 for an error. RFC 30 does not.
    Epoch,
    /// JavaScript cuts the highest bit off each byte of a code. RFC 27 says three ASCII characters,
    /// and we keep what is there.
    Code,
}

/// Says why JavaScript read `read` where we refuse with `error`; none if there is no good reason.
fn why_laxer(error: PacketError, read: &Value) -> Option<Difference> {
    match error {
        PacketError::Malformed(OerError::TooLong { .. }) => {
            let data = read["data"].as_str().unwrap().len() / 2;
            let message = read["message"].as_str().map_or(0, str::len);
            let by = read["triggeredBy"].as_str().map_or(0, str::len);
            let long = data > MAX_DATA || message > MAX_MESSAGE || by > 1_023;
            long.then_some(Difference::Size)
        }
        PacketError::Malformed(OerError::BadLength) => Some(Difference::Length),
        PacketError::Malformed(
            OerError::Truncated | OerError::BadInteger | OerError::IntegerTooLarge,
        )
        | PacketError::UnknownType(_)
        | PacketError::UnexpectedType(_) => None,
        PacketError::Destination(_) => {
            // Without its high bits it is an address, or JavaScript would have refused it too.
            let masked: Result<Address, _> = read["destination"].as_str().unwrap().parse();
            masked.is_ok().then_some(Difference::HighBit)
        }
        PacketError::Expiry(_) => Some(Difference::Date),
    }
}

/// Says why JavaScript refuses with `error` what we read; none if there is no good reason.
fn why_stricter(packet: &Packet, error: &str) -> Option<Difference> {
    match packet {
        Packet::Prepare(prepare) => (error == "invalid date"
            && prepare.expires_at.as_millis() == 0)
            .then_some(Difference::Epoch),
        Packet::Fulfill(_) => None,
        Packet::Reject(reject) => (error == "Invalid triggeredBy ILP address"
            && reject.triggered_by.is_none())
        .then_some(Difference::TriggeredBy),
    }
}

/// Compares what both sides read. Text says what became of it.
fn compare(encoded: &[u8], answer: &Value) -> Result<&'static str, Difference> {
    let context = || format!("{} {answer}", hex(encoded));
    match Packet::decode(encoded.to_vec().into()) {
        Ok(packet) => {
            if let Some(error) = answer["error"].as_str() {
                return Err(why_stricter(&packet, error).unwrap_or_else(|| panic!("{}", context())));
            }
            let (mut ours, theirs) = (fields(&packet), &answer["read"]);
            if let Packet::Reject(reject) = &packet {
                let code = reject.code.to_bytes();
                let masked: String = code.iter().map(|byte| char::from(byte & 0x7f)).collect();
                if !code.is_ascii() {
                    assert_eq!(theirs["code"], json!(masked), "{}", context());
                    return Err(Difference::Code);
                }
                ours["code"] = json!(masked);
                if reject.triggered_by.is_none() && theirs["triggeredBy"] != json!("") {
                    // Only high bits make that possible.
                    let by: Result<Address, _> = theirs["triggeredBy"].as_str().unwrap().parse();
                    assert!(by.is_ok() && !encoded.is_ascii(), "{}", context());
                    return Err(Difference::HighBit);
                }
            }
            assert_eq!(ours, *theirs, "{}", context());
            Ok("read by both")
        }
        Err(_) if answer["read"].is_null() => Ok("refused by both"),
        Err(error) => Err(why_laxer(error, &answer["read"])
            .unwrap_or_else(|| panic!("we refuse: {error:?} {}", context()))),
    }
}

#[test]
fn packets_are_written_and_read_as_by_ilp_packet() {
    let mut random = Random::new();
    let packets: Vec<Packet> = (0..cases()).map(|_| packet(&mut random)).collect();
    let questions: Vec<Value> = packets
        .iter()
        .map(|packet| {
            json!({"protocol": "ilp", "write": fields(packet), "read": hex(&packet.encode())})
        })
        .collect();
    for (packet, answer) in packets.iter().zip(ask(&questions)) {
        assert_eq!(bytes(&answer["written"]), packet.encode(), "{packet:?}");
        assert_eq!(answer["read"], fields(packet), "{packet:?}");
    }
}

#[test]
fn damaged_packets_are_read_or_refused_as_by_ilp_packet() {
    let mut random = Random::new();
    let damaged: Vec<Vec<u8>> = (0..cases())
        .map(|_| {
            let encoded = packet(&mut random).encode();
            random.damaged(encoded)
        })
        .collect();
    let questions: Vec<Value> = damaged
        .iter()
        .map(|encoded| json!({"protocol": "ilp", "read": hex(encoded)}))
        .collect();
    let mut tally = Tally::default();
    for (encoded, answer) in damaged.iter().zip(ask(&questions)) {
        tally.count(match compare(encoded, &answer) {
            Ok(what) => what,
            Err(Difference::Size) => "size",
            Err(Difference::Date) => "date",
            Err(Difference::HighBit) => "high bit",
            Err(Difference::Length) => "length",
            Err(Difference::TriggeredBy) => "triggered by",
            Err(Difference::Epoch) => "epoch",
            Err(Difference::Code) => "code",
        });
    }
    tally.check(
        damaged.len(),
        &["read by both", "refused by both", "triggered by"],
    );
}

/// One packet for each difference, and what each side does with it.
#[test]
fn every_known_difference_to_ilp_packet_is_what_we_think() {
    let mut good = Random::new();
    let prepare = |expiry: &[u8; 17], destination: &[u8], data: &[u8]| {
        let mut contents = vec![0; 8];
        contents.extend(expiry);
        contents.extend([7; 32]);
        contents.extend(sized(destination));
        contents.extend(sized(data));
        let mut packet = vec![12];
        packet.extend(sized(&contents));
        packet
    };
    let reject = |code: &[u8; 3], by: &[u8], message: &[u8]| {
        let contents = [&code[..], &sized(by), &sized(message), &[0]].concat();
        [&[14], &sized(&contents)[..]].concat()
    };
    let expiry = Timestamp::from_millis(good.millis()).encode();
    let mut long_length = prepare(&expiry, b"g.a", b"");
    long_length.splice(1..2, [0x85, 0, 0, 0, 0, long_length[1] | 0x80]);
    long_length.extend([0; 128]);
    let cases = [
        (prepare(b"20171324161432200", b"g.a", b""), Difference::Date),
        (prepare(b"20161231235960852", b"g.a", b""), Difference::Date),
        (prepare(b"2017122416143227 ", b"g.a", b""), Difference::Date),
        (prepare(b"19691231235959999", b"g.a", b""), Difference::Date),
        (
            prepare(b"19700101000000000", b"g.a", b""),
            Difference::Epoch,
        ),
        (prepare(&expiry, b"g.\xe1", b""), Difference::HighBit),
        (prepare(&expiry, b"g.a", &[0; 40_000]), Difference::Size),
        (long_length, Difference::Length),
        (reject(b"F00", b"x.y", b""), Difference::TriggeredBy),
        (reject(b"F00", b"g.\xe1", b""), Difference::HighBit),
        (reject(b"F\xb00", b"g.a", b""), Difference::Code),
        (reject(b"F00", b"g.a", &[b'm'; 8_192]), Difference::Size),
    ];
    let questions: Vec<Value> = cases
        .iter()
        .map(|(encoded, _)| json!({"protocol": "ilp", "read": hex(encoded)}))
        .collect();
    for ((encoded, difference), answer) in cases.iter().zip(ask(&questions)) {
        assert_eq!(compare(encoded, &answer), Err(*difference), "{answer}");
    }
}

/// Bytes with their length in front.
fn sized(bytes: &[u8]) -> Vec<u8> {
    let mut writer = ilp_packet::oer::Writer::new();
    writer.var_octets(bytes);
    writer.into_vec()
}

#[test]
fn ildcp_is_written_and_read_as_by_ilp_protocol_ildcp() {
    let mut random = Random::new();
    let responses: Vec<IldcpResponse> = (0..cases())
        .map(|_| IldcpResponse {
            client_address: random.address().parse().unwrap(),
            asset_scale: random.byte(),
            asset_code: random.text(MAX_ASSET_CODE),
        })
        .collect();
    let questions: Vec<Value> = responses
        .iter()
        .map(|response| {
            let packet = response.fulfill().encode();
            json!({"protocol": "ildcp", "write": ildcp_fields(response), "read": hex(&packet)})
        })
        .collect();
    for (response, answer) in responses.iter().zip(ask(&questions)) {
        assert_eq!(bytes(&answer["written"]), response.fulfill().encode());
        assert_eq!(answer["read"], ildcp_fields(response));
    }

    let expiries: Vec<u64> = (0..100).map(|_| random.millis()).collect();
    let questions: Vec<Value> = expiries
        .iter()
        .map(|expiry| json!({"protocol": "ildcpRequest", "write": {"expires": expiry}}))
        .collect();
    for (expiry, answer) in expiries.iter().zip(ask(&questions)) {
        let request = ildcp::request(Timestamp::from_millis(*expiry));
        assert_eq!(bytes(&answer["written"]), request.encode());
    }
}

fn ildcp_fields(response: &IldcpResponse) -> Value {
    json!({
        "clientAddress": response.client_address.as_str(),
        "assetScale": response.asset_scale,
        "assetCode": response.asset_code,
    })
}

/// Differences in a damaged answer: JavaScript takes asset codes of any length and with replaced
/// bytes, addresses without their high bits, and lengths with leading zeros. RFC 31 says that the code
/// is UTF-8; the bound on its length is ours.
#[test]
fn damaged_ildcp_is_read_or_refused_as_by_ilp_protocol_ildcp() {
    let mut random = Random::new();
    let damaged: Vec<Vec<u8>> = (0..cases())
        .map(|_| {
            let response = IldcpResponse {
                client_address: random.address().parse().unwrap(),
                asset_scale: random.byte(),
                asset_code: random.text(80),
            };
            random.damaged(response.encode())
        })
        .collect();
    let questions: Vec<Value> = damaged
        .iter()
        .map(|data| {
            let fulfill = Fulfill {
                fulfillment: ildcp::FULFILLMENT,
                data: data.clone().into(),
            };
            json!({"protocol": "ildcp", "read": hex(&fulfill.encode())})
        })
        .collect();
    let mut tally = Tally::default();
    for (data, answer) in damaged.iter().zip(ask(&questions)) {
        let (read, refused) = (&answer["read"], answer["read"].is_null());
        let context = format!("{} {answer}", hex(data));
        match IldcpResponse::decode(data) {
            Ok(response) => {
                assert_eq!(*read, ildcp_fields(&response), "{context}");
                tally.count("read by both");
            }
            Err(_) if refused => tally.count("refused by both"),
            Err(IldcpError::AssetCode) => {
                let code = read["assetCode"].as_str().unwrap();
                let replaced = code.contains(char::REPLACEMENT_CHARACTER);
                assert!(code.len() > MAX_ASSET_CODE || replaced, "{context}");
                tally.count("asset code");
            }
            Err(IldcpError::Address(_)) => {
                let address: Result<Address, _> = read["clientAddress"].as_str().unwrap().parse();
                assert!(address.is_ok() && !data.is_ascii(), "{context}");
                tally.count("high bit");
            }
            Err(IldcpError::Malformed(OerError::BadLength)) => tally.count("length"),
            Err(IldcpError::Malformed(error)) => panic!("we refuse: {error} {context}"),
        }
    }
    tally.check(
        damaged.len(),
        &["read by both", "refused by both", "asset code"],
    );
}
