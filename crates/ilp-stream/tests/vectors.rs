//! STREAM packets that other implementations made, read and written again.

#![expect(clippy::unwrap_used, reason = "a test may panic on its own mistakes")]

use bytes::Bytes;
use ilp_packet::Packet;
use ilp_stream::{Frame, Keys, PacketType, StreamErrorCode, StreamId, StreamPacket};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::Value;

fn hex(text: &str) -> Vec<u8> {
    data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap()
}

fn decode(plaintext: Vec<u8>) -> StreamPacket {
    StreamPacket::decode(Bytes::from(plaintext)).unwrap()
}

/// A packet as the vectors of the RFC describe it.
fn described(packet: &Value) -> StreamPacket {
    let frames = packet["frames"].as_array().unwrap();
    StreamPacket {
        packet_type: match packet["packetType"].as_u64().unwrap() {
            12 => PacketType::Prepare,
            13 => PacketType::Fulfill,
            14 => PacketType::Reject,
            other => panic!("type {other}"),
        },
        sequence: number(packet, "sequence"),
        prepare_amount: number(packet, "amount"),
        frames: frames.iter().map(described_frame).collect(),
    }
}

fn number(of: &Value, name: &str) -> u64 {
    of[name].as_str().unwrap().parse().unwrap()
}

fn text(of: &Value, name: &str) -> String {
    of[name].as_str().unwrap().to_owned()
}

fn described_frame(frame: &Value) -> Frame {
    let stream = || StreamId(number(frame, "streamId"));
    let code =
        || StreamErrorCode::from_byte(u8::try_from(frame["errorCode"].as_u64().unwrap()).unwrap());
    match frame["name"].as_str().unwrap() {
        "ConnectionClose" => Frame::ConnectionClose {
            code: code(),
            message: text(frame, "errorMessage"),
        },
        "ConnectionNewAddress" => Frame::ConnectionNewAddress {
            address: text(frame, "sourceAccount").parse().unwrap(),
        },
        "ConnectionAssetDetails" => Frame::ConnectionAssetDetails {
            code: text(frame, "sourceAssetCode"),
            scale: u8::try_from(frame["sourceAssetScale"].as_u64().unwrap()).unwrap(),
        },
        "ConnectionMaxData" => Frame::ConnectionMaxData {
            max_offset: number(frame, "maxOffset"),
        },
        "ConnectionDataBlocked" => Frame::ConnectionDataBlocked {
            max_offset: number(frame, "maxOffset"),
        },
        "ConnectionMaxStreamId" => Frame::ConnectionMaxStreamId {
            max_stream_id: number(frame, "maxStreamId"),
        },
        "ConnectionStreamIdBlocked" => Frame::ConnectionStreamIdBlocked {
            max_stream_id: number(frame, "maxStreamId"),
        },
        "StreamClose" => Frame::StreamClose {
            stream: stream(),
            code: code(),
            message: text(frame, "errorMessage"),
        },
        "StreamMoney" => Frame::StreamMoney {
            stream: stream(),
            shares: number(frame, "shares"),
        },
        "StreamMaxMoney" => Frame::StreamMaxMoney {
            stream: stream(),
            receive_max: number(frame, "receiveMax"),
            total_received: number(frame, "totalReceived"),
        },
        "StreamMoneyBlocked" => Frame::StreamMoneyBlocked {
            stream: stream(),
            send_max: number(frame, "sendMax"),
            total_sent: number(frame, "totalSent"),
        },
        "StreamData" => Frame::StreamData {
            stream: stream(),
            offset: number(frame, "offset"),
            data: data_encoding::BASE64
                .decode(text(frame, "data").as_bytes())
                .unwrap()
                .into(),
        },
        "StreamMaxData" => Frame::StreamMaxData {
            stream: stream(),
            max_offset: number(frame, "maxOffset"),
        },
        "StreamDataBlocked" => Frame::StreamDataBlocked {
            stream: stream(),
            max_offset: number(frame, "maxOffset"),
        },
        "StreamReceipt" => Frame::StreamReceipt {
            stream: stream(),
            receipt: data_encoding::BASE64
                .decode(text(frame, "receipt").as_bytes())
                .unwrap()
                .into(),
        },
        other => panic!("frame {other}"),
    }
}

/// All vectors of RFC 29.
#[test]
fn packet_vectors_of_rfc_29() {
    let vectors: Vec<Value> =
        serde_json::from_str(include_str!("data/StreamPacketFixtures.json")).unwrap();
    assert_eq!(vectors.len(), 53);
    for vector in &vectors {
        let name = vector["name"].as_str().unwrap();
        let buffer = data_encoding::BASE64
            .decode(text(vector, "buffer").as_bytes())
            .unwrap();
        let expected = described(&vector["packet"]);
        assert_eq!(decode(buffer.clone()), expected, "{name}");
        if vector["decode_only"] != Value::Bool(true) {
            assert_eq!(expected.encode(), buffer, "{name}");
        }
    }
}

#[derive(Deserialize)]
struct Captured {
    shared_secret_hex: String,
    packets: Vec<CapturedPacket>,
}

#[derive(Deserialize)]
struct CapturedPacket {
    packet_hex: String,
    plaintext_hex: String,
}

/// A paid request between the JavaScript implementations: every sealed packet opens, says the same,
/// and seals to the same bytes; every Fulfill fulfils what we would have fulfilled.
#[test]
fn captured_payment_between_javascript_ends() {
    let captured: Captured =
        serde_json::from_str(include_str!("data/captured_stream.json")).unwrap();
    let keys = Keys::new(&hex(&captured.shared_secret_hex));
    let (mut conditions, mut fulfilled) = (Vec::new(), 0);
    for packet in &captured.packets {
        let packet_bytes = hex(&packet.packet_hex);
        let (data, packet_type) = match Packet::decode(packet_bytes.into()).unwrap() {
            Packet::Prepare(prepare) => {
                if keys.condition(&prepare.data) == prepare.condition {
                    conditions.push(prepare.condition);
                }
                (prepare.data, PacketType::Prepare)
            }
            Packet::Fulfill(fulfill) => {
                assert!(conditions.contains(&fulfill.fulfillment.condition()));
                fulfilled += 1;
                (fulfill.data, PacketType::Fulfill)
            }
            Packet::Reject(reject) => (reject.data, PacketType::Reject),
        };
        let plaintext = keys.open(&data).unwrap();
        assert_eq!(plaintext, hex(&packet.plaintext_hex));
        let read = decode(plaintext.clone());
        assert_eq!(read.packet_type, packet_type);
        assert_eq!(read.encode(), plaintext);
        let mut iv = [0; 12];
        iv.copy_from_slice(&data[..12]);
        assert_eq!(keys.seal(iv, &plaintext).unwrap(), data);
    }
    assert_eq!(
        (captured.packets.len(), conditions.len(), fulfilled),
        (32, 6, 5)
    );
}

/// The last packet of the capture that carries money, frame by frame.
#[test]
fn captured_packet_with_money_says_what_was_sent() {
    let plaintext = "010c01080203de01041206010101000100150501010240011105010102\
                     03e8130701010213880100"
        .replace([' ', '\n'], "");
    let stream = StreamId(1);
    let packet = StreamPacket {
        packet_type: PacketType::Prepare,
        sequence: 8,
        prepare_amount: 990,
        frames: vec![
            Frame::StreamMaxMoney {
                stream,
                receive_max: 0,
                total_received: 0,
            },
            Frame::StreamMaxData {
                stream,
                max_offset: 16_385,
            },
            Frame::StreamMoney {
                stream,
                shares: 1_000,
            },
            Frame::StreamMoneyBlocked {
                stream,
                send_max: 5_000,
                total_sent: 0,
            },
        ],
    };
    assert_eq!(decode(hex(&plaintext)), packet);
}

#[test]
fn unknown_frames_and_padding_are_skipped() {
    let packet = StreamPacket {
        packet_type: PacketType::Prepare,
        sequence: 1,
        prepare_amount: 0,
        frames: vec![Frame::ConnectionMaxData { max_offset: 5 }],
    };
    let mut bytes = packet.encode();
    // Two frames more are announced: type 0x7f with three bytes, and one of a later version.
    let count = bytes.len() - 5;
    assert_eq!(bytes[count], 1);
    bytes[count] = 2;
    bytes.extend([0x7f, 3, 1, 2, 3]);
    bytes.extend([0; 100]);
    assert_eq!(decode(bytes), packet);
}

#[test]
fn broken_packets_are_refused_and_allocate_nothing() {
    for plaintext in [
        &b""[..],
        b"\x02\x0c\x01\x00\x01\x00\x01\x00",
        b"\x01\x0b\x01\x00\x01\x00\x01\x00",
        b"\x01\x0c\x01\x00\x01\x00\x01\x01",
        b"\x01\x0c\x01\x00\x01\x00\x08\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x01\x0c\x01\x00\x01\x00\x01\x01\x14\x84\xff\xff\xff\xff",
        b"\x01\x0c\x01\x00\x01\x00\x01\x01\x02\x04\x03x.y",
    ] {
        assert!(
            StreamPacket::decode(Bytes::from_static(plaintext)).is_err(),
            "{plaintext:?}"
        );
    }
}

fn frame() -> impl Strategy<Value = Frame> {
    let stream = any::<u64>().prop_map(StreamId);
    let code = any::<u8>().prop_map(StreamErrorCode::from_byte);
    let message = "\\PC{0,40}";
    let bytes = || prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from);
    prop_oneof![
        (code.clone(), message)
            .prop_map(|(code, message)| Frame::ConnectionClose { code, message }),
        "g(\\.[a-z0-9~_-]{1,9}){1,4}".prop_map(|it| Frame::ConnectionNewAddress {
            address: it.parse().unwrap()
        }),
        any::<u64>().prop_map(|max_offset| Frame::ConnectionMaxData { max_offset }),
        any::<u64>().prop_map(|max_offset| Frame::ConnectionDataBlocked { max_offset }),
        any::<u64>().prop_map(|max_stream_id| Frame::ConnectionMaxStreamId { max_stream_id }),
        any::<u64>().prop_map(|max_stream_id| Frame::ConnectionStreamIdBlocked { max_stream_id }),
        (message, any::<u8>())
            .prop_map(|(code, scale)| Frame::ConnectionAssetDetails { code, scale }),
        (stream.clone(), code, message).prop_map(|(stream, code, message)| Frame::StreamClose {
            stream,
            code,
            message
        }),
        (stream.clone(), any::<u64>())
            .prop_map(|(stream, shares)| Frame::StreamMoney { stream, shares }),
        (stream.clone(), any::<u64>(), any::<u64>()).prop_map(
            |(stream, receive_max, total_received)| Frame::StreamMaxMoney {
                stream,
                receive_max,
                total_received
            }
        ),
        (stream.clone(), any::<u64>(), any::<u64>()).prop_map(|(stream, send_max, total_sent)| {
            Frame::StreamMoneyBlocked {
                stream,
                send_max,
                total_sent,
            }
        }),
        (stream.clone(), any::<u64>(), bytes()).prop_map(|(stream, offset, data)| {
            Frame::StreamData {
                stream,
                offset,
                data,
            }
        }),
        (stream.clone(), any::<u64>())
            .prop_map(|(stream, max_offset)| Frame::StreamMaxData { stream, max_offset }),
        (stream.clone(), any::<u64>())
            .prop_map(|(stream, max_offset)| Frame::StreamDataBlocked { stream, max_offset }),
        (stream, bytes()).prop_map(|(stream, receipt)| Frame::StreamReceipt { stream, receipt }),
    ]
}

proptest! {
    #[test]
    fn every_packet_round_trips(
        packet_type in prop::sample::select(vec![
            PacketType::Prepare, PacketType::Fulfill, PacketType::Reject,
        ]),
        sequence: u64,
        prepare_amount: u64,
        frames in prop::collection::vec(frame(), 0..12),
    ) {
        let packet = StreamPacket { packet_type, sequence, prepare_amount, frames };
        prop_assert_eq!(StreamPacket::decode(packet.encode().into()), Ok(packet));
    }

    #[test]
    fn damaged_packets_never_panic(
        frames in prop::collection::vec(frame(), 0..6),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let packet =
            StreamPacket { packet_type: PacketType::Prepare, sequence: 1, prepare_amount: 1, frames };
        let mut bytes = packet.encode();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(read) = StreamPacket::decode(bytes.into()) {
            prop_assert_eq!(StreamPacket::decode(read.encode().into()), Ok(read));
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = StreamPacket::decode(bytes.clone().into());
        let _ = Keys::new(&[1; 32]).open(&bytes);
    }
}
