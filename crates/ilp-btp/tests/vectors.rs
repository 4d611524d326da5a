//! Frames that other implementations produced, byte for byte.

use bytes::Bytes;
use data_encoding::HEXLOWER;
use ilp_btp::{
    ContentType, Credentials, CredentialsError, DecodeError, Frame, ProtocolData, Refusal,
    RefusalCode, RequestId,
};
use ilp_packet::{Packet, Timestamp};
use serde_json::Value;

fn hex(text: &str) -> Bytes {
    let digits: String = text.split_whitespace().collect();
    HEXLOWER
        .decode(digits.as_bytes())
        .expect("hexadecimal")
        .into()
}

/// 2026-11-23 15:26:55.841 UTC.
const CAPTURED_AT: Timestamp = Timestamp::from_millis(1_795_447_615_841);

#[test]
fn every_captured_message_survives_a_round_trip() {
    let file: Value = serde_json::from_str(include_str!("data/captured_messages.json")).unwrap();
    let messages = file["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 36);
    for message in messages {
        let bytes = hex(message["hex"].as_str().unwrap());
        let frame = Frame::decode(&bytes).unwrap();
        assert_eq!(frame.encode().unwrap(), bytes);
        assert_eq!(
            u64::from(frame.request_id().0),
            message["request_id"].as_u64().unwrap()
        );
        let kind = match frame {
            Frame::Response { .. } => 1,
            Frame::Error { .. } => 2,
            Frame::Message { .. } => 6,
            Frame::Transfer { .. } => 7,
        };
        assert_eq!(kind, message["type"].as_u64().unwrap());
        let ilp = frame
            .ilp()
            .map(|packet| Packet::decode(packet.clone()).unwrap().kind());
        assert_eq!(ilp.map(u64::from), message["ilp_type"].as_u64());
    }
}

#[test]
fn authentication_of_ilp_plugin_btp() {
    let bytes = hex("06 757666a0 32 0103 04 61757468 00 00
         0d 617574685f757365726e616d65 01 00
         0a 617574685f746f6b656e 01 0c 636c69656e74736563726574");
    let credentials = Credentials {
        username: String::new(),
        token: "clientsecret".into(),
    };
    let request_id = RequestId(0x7576_66a0);
    assert_eq!(credentials.message(request_id).encode().unwrap(), bytes);
    let frame = Frame::decode(&bytes).unwrap();
    assert_eq!(Credentials::from_frame(&frame).unwrap(), credentials);
    assert_eq!(
        Frame::empty_response(request_id).encode().unwrap(),
        hex("01 757666a0 02 0100"),
        "the answer of moneyd"
    );
}

#[test]
fn authentication_error_of_mini_accounts() {
    // The 54 bytes of text are not in our notes; any text of that length makes the same frame.
    let text = "x".repeat(54);
    let refusal = Refusal::new(RefusalCode::NotAccepted, CAPTURED_AT, &text);
    let frame = Frame::error(RequestId(7), refusal);
    let mut expected = hex("02 00000007 61 463030 10 4e6f7441636365707465644572726f72
         13 32303236313132333135323635352e3834315a 36")
    .to_vec();
    expected.extend_from_slice(text.as_bytes());
    expected.extend_from_slice(&[1, 0]);
    assert_eq!(frame.encode().unwrap(), expected);
    assert_eq!(Frame::decode(&expected.into()).unwrap(), frame);
}

#[test]
fn message_of_interledger_rs() {
    // interledger-rs, crates/interledger-btp/src/packet.rs.
    let bytes = hex("06 00000002 17 0102 04 74657374 00 02 ffff 04 74657874 01 05 68656c6c6f");
    let frame = Frame::Message {
        request_id: RequestId(2),
        protocol_data: vec![
            ProtocolData {
                name: "test".into(),
                content_type: ContentType::OctetStream,
                data: Bytes::from_static(&[0xff, 0xff]),
            },
            ProtocolData::text("text", "hello"),
        ],
    };
    assert_eq!(frame.encode().unwrap(), bytes);
    assert_eq!(Frame::decode(&bytes).unwrap(), frame);
}

#[test]
fn bytes_behind_the_known_fields_are_ignored() {
    // One more byte inside the body, and one behind it (RFC 30, "Extensibility").
    let frame = Frame::decode(&hex("01 757666a0 03 0100 aa bb")).unwrap();
    assert_eq!(frame, Frame::empty_response(RequestId(0x7576_66a0)));
}

#[test]
fn malformed_frames_are_refused() {
    for (bytes, name) in [
        ("", "empty"),
        ("06", "no id"),
        ("06 00000001", "no body"),
        ("06 00000001 05 0100", "body is cut off"),
        ("06 00000001 02 0101", "entry is missing"),
        ("06 00000001 09 0101 04 74657374 00 02", "data is cut off"),
        ("06 00000001 8102 0100", "long form of a short length"),
        ("07 00000001 02 0100", "transfer without an amount"),
        ("02 00000001 05 463030 00", "error without its fields"),
    ] {
        let error = Frame::decode(&hex(bytes)).unwrap_err();
        assert!(matches!(error, DecodeError::Field(_)), "{name}: {error:?}");
    }
    for kind in [0, 3, 4, 5, 8, 255] {
        let bytes = [kind, 0, 0, 0, 1, 2, 1, 0];
        let decoded = Frame::decode(&Bytes::copy_from_slice(&bytes));
        assert_eq!(decoded, Err(DecodeError::UnknownType(kind)));
    }
}

#[test]
fn limits_of_the_protocol_list() {
    assert_eq!(
        Frame::decode(&hex("06 00000001 02 0111")),
        Err(DecodeError::TooManyProtocols(17)),
    );
    let repeated = hex("06 00000001 10 0102 04 74657374 00 00 04 74657374 00 00");
    assert_eq!(Frame::decode(&repeated), Err(DecodeError::RepeatedProtocol));
    assert_eq!(
        Frame::decode(&hex("06 00000001 05 0101 00 00 00")),
        Err(DecodeError::ProtocolName),
        "empty name"
    );
    assert_eq!(
        Frame::decode(&hex("06 00000001 06 0101 01 20 00 00")),
        Err(DecodeError::ProtocolName),
        "a space"
    );
    assert_eq!(
        Frame::decode(&Bytes::from(vec![6; ilp_btp::MAX_FRAME_BYTES + 1])),
        Err(DecodeError::TooLong(ilp_btp::MAX_FRAME_BYTES + 1)),
    );
}

#[test]
fn first_messages_that_are_no_authentication() {
    let request_id = RequestId(1);
    let message = |protocol_data| Frame::Message {
        request_id,
        protocol_data,
    };
    let cases = [
        (Frame::empty_response(request_id), CredentialsError::NotAuth),
        (message(vec![]), CredentialsError::NotAuth),
        (
            message(vec![
                ProtocolData::text("auth_token", "t"),
                ProtocolData::empty("auth"),
            ]),
            CredentialsError::NotAuth,
        ),
        (
            message(vec![ProtocolData::empty("auth")]),
            CredentialsError::NoToken,
        ),
        (
            message(vec![
                ProtocolData::empty("auth"),
                ProtocolData::text("auth_token", &"x".repeat(1025)),
            ]),
            CredentialsError::TooLong,
        ),
        (
            message(vec![
                ProtocolData::empty("auth"),
                ProtocolData {
                    name: "auth_token".into(),
                    content_type: ContentType::TextPlain,
                    data: Bytes::from_static(&[0xff]),
                },
            ]),
            CredentialsError::NotText,
        ),
    ];
    for (frame, error) in cases {
        assert_eq!(Credentials::from_frame(&frame), Err(error), "{frame:?}");
    }
}
