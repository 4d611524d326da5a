//! Packets that other implementations made, read and written again.

#![expect(clippy::unwrap_used, reason = "a test may panic on its own mistakes")]

use bytes::Bytes;
use ilp_packet::ildcp::{self, IldcpError, IldcpResponse};
use ilp_packet::{
    Condition, ErrorCode, Fulfill, Fulfillment, MAX_DATA_READ, Packet, PacketError, Prepare,
    Reject, Timestamp,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Captured {
    packets: Vec<CapturedPacket>,
}

#[derive(Deserialize)]
struct CapturedPacket {
    packet_hex: String,
    #[serde(rename = "type")]
    kind: u8,
    amount: Option<String>,
    expires: Option<String>,
    condition: Option<String>,
    destination: Option<String>,
    fulfillment: Option<String>,
    code: Option<String>,
    triggered_by: Option<String>,
    message: Option<String>,
    data_hex: Option<String>,
}

fn hex(text: &str) -> Vec<u8> {
    data_encoding::HEXLOWER_PERMISSIVE
        .decode(text.as_bytes())
        .unwrap()
}

fn to_hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

fn decode(bytes: Vec<u8>) -> Result<Packet, PacketError> {
    Packet::decode(Bytes::from(bytes))
}

#[test]
fn captured_packets_read_as_the_capture_says_and_write_back_to_the_same_bytes() {
    let captured: Captured =
        serde_json::from_str(include_str!("data/captured_packets.json")).unwrap();
    assert_eq!(captured.packets.len(), 34);
    for expected in &captured.packets {
        let packet = decode(hex(&expected.packet_hex)).unwrap();
        assert_eq!(to_hex(&packet.encode()), expected.packet_hex);
        assert_eq!(packet.kind(), expected.kind);
        match packet {
            Packet::Prepare(prepare) => {
                assert_eq!(Some(prepare.amount.to_string()), expected.amount);
                assert_eq!(Some(prepare.expires_at.to_string()), expected.expires);
                assert_eq!(Some(to_hex(&prepare.condition.0)), expected.condition);
                assert_eq!(Some(prepare.destination.to_string()), expected.destination);
            }
            Packet::Fulfill(fulfill) => {
                assert_eq!(Some(to_hex(&fulfill.fulfillment.0)), expected.fulfillment);
                if let Some(data) = &expected.data_hex {
                    assert_eq!(to_hex(&fulfill.data), *data);
                }
            }
            Packet::Reject(reject) => {
                assert_eq!(Some(reject.code.to_string()), expected.code);
                assert_eq!(
                    Some(
                        reject
                            .triggered_by
                            .map(|by| by.to_string())
                            .unwrap_or_default()
                    ),
                    expected.triggered_by
                );
                assert_eq!(Some(reject.message), expected.message);
            }
        }
    }
}

/// Captured from moneyd 4.3.0.
#[test]
fn ildcp_request_of_ilp_protocol_ildcp() {
    let bytes = hex(concat!(
        "0c4600000000000000003230323631313233313531363531393539",
        "66687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925",
        "0b706565722e636f6e66696700"
    ));
    let prepare = Prepare::decode(Bytes::from(bytes.clone())).unwrap();
    assert!(ildcp::is_request(&prepare));
    let made = ildcp::request(Timestamp::decode(b"20261123151651959").unwrap());
    assert_eq!(made, prepare);
    assert_eq!(made.encode(), bytes);
    assert_eq!(ildcp::FULFILLMENT.condition(), ildcp::CONDITION);
}

/// `ilp-protocol-ildcp/test/index.spec.ts` of interledgerjs.
#[test]
fn ildcp_response_of_interledgerjs() {
    let zeros = "00".repeat(32);
    let bytes = hex(&format!(
        "0d35{zeros}140e6578616d706c652e636c69656e740d0358414d"
    ));
    let response = IldcpResponse {
        client_address: "example.client".parse().unwrap(),
        asset_scale: 13,
        asset_code: "XAM".to_owned(),
    };
    let Packet::Fulfill(fulfill) = decode(bytes.clone()).unwrap() else {
        panic!("not a fulfill")
    };
    assert_eq!(IldcpResponse::decode(&fulfill.data), Ok(response.clone()));
    assert_eq!(response.fulfill().encode(), bytes);
}

/// Captured from moneyd 4.3.0: a child with a hashed name, asset XRP with scale 9.
#[test]
fn ildcp_response_of_moneyd() {
    let address = "private.moneyd.local.Hj7pF30vKCaOb59w2JapcRd0PGCxDhK7qKoFTzvrYm8";
    let mut bytes = hex(&format!("0d67{}4640", "00".repeat(32)));
    bytes.extend_from_slice(address.as_bytes());
    bytes.extend(hex("0903585250"));
    let Packet::Fulfill(fulfill) = decode(bytes.clone()).unwrap() else {
        panic!("not a fulfill")
    };
    let response = IldcpResponse::decode(&fulfill.data).unwrap();
    assert_eq!(response.client_address.as_str(), address);
    assert_eq!(
        (response.asset_scale, response.asset_code.as_str()),
        (9, "XRP")
    );
    assert_eq!(response.fulfill().encode(), bytes);
}

#[test]
fn malformed_ildcp_responses_are_refused() {
    assert!(matches!(
        IldcpResponse::decode(b""),
        Err(IldcpError::Malformed(_))
    ));
    assert!(matches!(
        IldcpResponse::decode(&hex("03612e62090158")),
        Err(IldcpError::Address(_))
    ));
    assert!(matches!(
        IldcpResponse::decode(&hex("03672e6209")),
        Err(IldcpError::Malformed(_))
    ));
    assert_eq!(
        IldcpResponse::decode(&hex("03672e620901ff")),
        Err(IldcpError::AssetCode)
    );
    let long = format!("03672e620941{}", "41".repeat(65));
    assert_eq!(
        IldcpResponse::decode(&hex(&long)),
        Err(IldcpError::AssetCode)
    );
}

fn prepare(data: Vec<u8>) -> Prepare {
    Prepare {
        amount: 107,
        expires_at: Timestamp::decode(b"20171223012134549").unwrap(),
        condition: Condition([7; 32]),
        destination: "example.alice".parse().unwrap(),
        data: data.into(),
    }
}

#[test]
fn data_is_at_most_what_the_javascript_sender_makes() {
    let longest = prepare(vec![1; MAX_DATA_READ]);
    assert_eq!(decode(longest.encode()), Ok(Packet::Prepare(longest)));
    assert!(matches!(
        decode(prepare(vec![1; MAX_DATA_READ + 1]).encode()),
        Err(PacketError::Malformed(_))
    ));
}

#[test]
fn unknown_types_and_wrong_fields_are_refused_by_name() {
    assert_eq!(decode(vec![11, 0]), Err(PacketError::UnknownType(11)));
    assert_eq!(decode(vec![15, 0]), Err(PacketError::UnknownType(15)));
    let good = prepare(Vec::new()).encode();
    let mut bad_destination = good.clone();
    let at = good
        .windows(7)
        .position(|window| window == b"example")
        .unwrap();
    bad_destination[at] = b'E';
    assert!(matches!(
        decode(bad_destination),
        Err(PacketError::Destination(_))
    ));
    let mut bad_expiry = good.clone();
    bad_expiry[10 + 4] = b'9';
    assert!(matches!(decode(bad_expiry), Err(PacketError::Expiry(_))));
    let fulfill = Fulfill {
        fulfillment: Fulfillment([0; 32]),
        data: Bytes::new(),
    };
    assert_eq!(
        Prepare::decode(fulfill.encode().into()),
        Err(PacketError::UnexpectedType(13))
    );
}

#[test]
fn fields_of_a_later_version_and_trailing_bytes_are_ignored() {
    let known = prepare(vec![1, 2, 3]);
    let mut bytes = known.encode();
    // Two bytes more inside the contents, three behind the packet.
    bytes[1] += 2;
    bytes.extend([9; 5]);
    assert_eq!(decode(bytes), Ok(Packet::Prepare(known)));
}

#[test]
fn a_reject_is_read_even_if_its_text_makes_no_sense() {
    let reject = Reject::new(ErrorCode::Unreachable, None, "x.y");
    let mut bytes = reject.encode();
    // The message becomes the bytes ff fe 79.
    let at = bytes
        .windows(3)
        .position(|window| window == b"x.y")
        .unwrap();
    bytes[at] = 0xff;
    bytes[at + 1] = 0xfe;
    let Packet::Reject(read) = decode(bytes).unwrap() else {
        panic!("not a reject")
    };
    assert_eq!(read.message, "\u{fffd}\u{fffd}y");
}

#[test]
fn a_message_is_cut_at_a_character() {
    let reject = Reject::new(ErrorCode::BadRequest, None, "é".repeat(5_000));
    let Packet::Reject(read) = decode(reject.encode()).unwrap() else {
        panic!("not a reject")
    };
    assert_eq!(read.message, "é".repeat(4_095));
}
