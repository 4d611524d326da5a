//! The vectors of the RFCs and of interledgerjs, from the files in `vectors/`, each of which names its
//! source and what of it was left out. What we captured ourselves is in `vectors.rs`.
#![expect(clippy::unwrap_used, reason = "a test may panic on its own mistakes")]

use ilp_packet::ildcp::{self, IldcpResponse};
use ilp_packet::oer::{OerError, Reader, Writer};
use ilp_packet::{Address, Packet, Prepare, Timestamp};
use serde_json::Value;

fn hex(text: &Value) -> Vec<u8> {
    data_encoding::HEXLOWER
        .decode(text.as_str().unwrap().as_bytes())
        .unwrap()
}

fn to_hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

fn base64(bytes: &[u8]) -> String {
    data_encoding::BASE64.encode(bytes)
}

fn list(of: &Value) -> &[Value] {
    of.as_array().unwrap()
}

fn number(text: &Value) -> u64 {
    text.as_str().unwrap().parse().unwrap()
}

/// What an operation of the reader makes of the bytes, as text.
fn read(case: &Value) -> Result<String, OerError> {
    let bytes = hex(&case["hex"]);
    let mut reader = Reader::new(&bytes);
    match case["read"].as_str().unwrap() {
        "uint8" => reader.u8().map(|value| value.to_string()),
        "uint16" => reader.u16().map(|value| value.to_string()),
        "uint32" => reader.u32().map(|value| value.to_string()),
        "uint64" => reader.u64().map(|value| value.to_string()),
        "length" => reader.length().map(|value| value.to_string()),
        "var_uint" => reader.var_uint().map(|value| value.to_string()),
        "var_octets" => reader.var_octets().map(to_hex),
        "octets" => {
            let len = usize::try_from(case["len"].as_u64().unwrap()).unwrap();
            reader.bytes(len).map(to_hex)
        }
        other => panic!("operation {other}"),
    }
}

#[test]
fn oer_is_read_and_written_as_by_oer_utils() {
    let file: Value = serde_json::from_str(include_str!("vectors/oer-utils.json")).unwrap();
    let (reads, writes) = (list(&file["reads"]), list(&file["writes"]));
    assert_eq!((reads.len(), writes.len()), (34, 13));
    for case in reads {
        match case.get("value") {
            Some(value) => assert_eq!(read(case).as_deref(), Ok(value.as_str().unwrap()), "{case}"),
            None => assert!(read(case).is_err(), "{case}"),
        }
    }
    for case in writes {
        let mut writer = Writer::new();
        let value = &case["value"];
        match case["write"].as_str().unwrap() {
            "uint8" => writer.u8(u8::try_from(number(value)).unwrap()),
            "uint16" => writer.u16(u16::try_from(number(value)).unwrap()),
            "uint32" => writer.u32(u32::try_from(number(value)).unwrap()),
            "uint64" => writer.u64(number(value)),
            "var_uint" => writer.var_uint(number(value)),
            "var_octets" => writer.var_octets(&hex(value)),
            other => panic!("operation {other}"),
        }
        assert_eq!(to_hex(writer.as_slice()), case["hex"], "{case}");
    }
}

/// Lengths of six bytes and integers of nine are right, and longer than anything that Interledger has.
#[test]
fn what_is_beyond_our_bounds_is_refused() {
    let file: Value = serde_json::from_str(include_str!("vectors/oer-utils.json")).unwrap();
    let errors: Vec<_> = list(&file["beyond_our_bounds"]).iter().map(read).collect();
    assert_eq!(
        errors,
        [Err(OerError::BadLength), Err(OerError::IntegerTooLarge)]
    );
}

#[test]
fn integers_lengths_and_addresses_of_rfc_30() {
    let file: Value = serde_json::from_str(include_str!("vectors/rfc30.json")).unwrap();
    for case in list(&file["uints"]) {
        let bytes = hex(&case["hex"]);
        let mut reader = Reader::new(&bytes);
        let value = match case["bits"].as_u64().unwrap() {
            8 => u64::from(reader.u8().unwrap()),
            16 => u64::from(reader.u16().unwrap()),
            32 => u64::from(reader.u32().unwrap()),
            64 => reader.u64().unwrap(),
            other => panic!("{other} bits"),
        };
        assert_eq!(value, number(&case["value"]), "{case}");
        assert!(reader.is_empty());
    }
    for case in list(&file["lengths"]) {
        let len = case["value"].as_u64().unwrap();
        assert_eq!(
            Reader::new(&hex(&case["hex"])).length(),
            Ok(usize::try_from(len).unwrap())
        );
        let mut writer = Writer::new();
        writer.length(usize::try_from(len).unwrap());
        assert_eq!(to_hex(writer.as_slice()), case["hex"]);
    }
    for case in list(&file["lengths_beyond_our_bound"]) {
        assert_eq!(
            Reader::new(&hex(&case["hex"])).length(),
            Err(OerError::BadLength)
        );
    }
    let addresses = list(&file["addresses"]);
    assert_eq!(addresses.len(), 2);
    for case in addresses {
        let bytes = hex(&case["hex"]);
        let address = Address::try_from(Reader::new(&bytes).var_octets().unwrap()).unwrap();
        assert_eq!(address.as_str(), case["address"]);
        let mut writer = Writer::new();
        writer.var_octets(address.as_bytes());
        assert_eq!(writer.as_slice(), bytes);
    }
}

#[test]
fn timestamps_of_rfc_30() {
    let file: Value = serde_json::from_str(include_str!("vectors/rfc30.json")).unwrap();
    let (valid, invalid) = (list(&file["timestamps"]), list(&file["invalid_timestamps"]));
    assert_eq!((valid.len(), invalid.len()), (14, 10));
    for case in valid {
        let moment = Timestamp::from_millis(case["millis"].as_u64().unwrap());
        let text = case["text"].as_str().unwrap();
        assert_eq!(Timestamp::decode(text.as_bytes()), Ok(moment), "{case}");
        assert_eq!(moment.to_string(), text);
    }
    for case in list(&file["timestamp_bytes"]) {
        let moment = Timestamp::decode(&hex(&case["hex"])).unwrap();
        assert_eq!(moment.to_string(), case["text"].as_str().unwrap());
        assert_eq!(to_hex(&moment.encode()), case["hex"]);
    }
    for case in invalid {
        let text = case["text"].as_str().unwrap();
        assert!(Timestamp::decode(text.as_bytes()).is_err(), "{case}");
    }
}

#[test]
fn packets_of_ilp_packet() {
    let file: Value = serde_json::from_str(include_str!("vectors/ilp-packet.json")).unwrap();
    let packets = list(&file["packets"]);
    assert_eq!(packets.len(), 3);
    for case in packets {
        let (bytes, json) = (hex(&case["binary"]), &case["json"]);
        let packet = Packet::decode(bytes.clone().into()).unwrap();
        assert_eq!(packet.encode(), bytes);
        match packet {
            Packet::Prepare(prepare) => {
                assert_eq!(prepare.amount.to_string(), json["amount"].as_str().unwrap());
                let digits: String = json["expiresAt"]
                    .as_str()
                    .unwrap()
                    .chars()
                    .filter(char::is_ascii_digit)
                    .collect();
                assert_eq!(prepare.expires_at.to_string(), digits);
                assert_eq!(base64(&prepare.condition.0), json["executionCondition"]);
                assert_eq!(prepare.destination.as_str(), json["destination"]);
                assert_eq!(base64(&prepare.data), json["data"]);
            }
            Packet::Fulfill(fulfill) => {
                assert_eq!(base64(&fulfill.fulfillment.0), json["fulfillment"]);
                assert_eq!(base64(&fulfill.data), json["data"]);
            }
            Packet::Reject(reject) => {
                assert_eq!(reject.code.to_string(), json["code"].as_str().unwrap());
                assert_eq!(reject.triggered_by.unwrap().as_str(), json["triggeredBy"]);
                assert_eq!(reject.message, json["message"].as_str().unwrap());
                assert_eq!(base64(&reject.data), json["data"]);
            }
        }
    }
}

#[test]
fn ildcp_of_ilp_protocol_ildcp() {
    let file: Value =
        serde_json::from_str(include_str!("vectors/ilp-protocol-ildcp.json")).unwrap();
    for case in list(&file["requests"]) {
        let expires_at = Timestamp::from_millis(case["expires_millis"].as_u64().unwrap());
        let prepare = Prepare::decode(hex(&case["hex"]).into()).unwrap();
        assert!(ildcp::is_request(&prepare));
        assert_eq!(prepare, ildcp::request(expires_at));
        assert_eq!(to_hex(&prepare.encode()), case["hex"]);
    }
    let case = &file["response"];
    let response = IldcpResponse {
        client_address: case["client_address"].as_str().unwrap().parse().unwrap(),
        asset_scale: u8::try_from(case["asset_scale"].as_u64().unwrap()).unwrap(),
        asset_code: case["asset_code"].as_str().unwrap().to_owned(),
    };
    assert_eq!(to_hex(&response.fulfill().encode()), case["hex"]);
    let Packet::Fulfill(fulfill) = Packet::decode(hex(&case["hex"]).into()).unwrap() else {
        panic!("not a fulfill")
    };
    assert_eq!(IldcpResponse::decode(&fulfill.data), Ok(response));
    for case in list(&file["rejects"]) {
        let Packet::Reject(reject) = Packet::decode(hex(&case["hex"]).into()).unwrap() else {
            panic!("not a reject")
        };
        assert_eq!(
            reject.triggered_by.as_ref().unwrap().as_str(),
            case["triggered_by"]
        );
        assert_eq!(reject.message, case["message"].as_str().unwrap());
        assert_eq!(to_hex(&Packet::Reject(reject).encode()), case["hex"]);
    }
}

/// Each of the five is a packet of its own and has to be told from the real one by what is wrong.
#[test]
fn malformed_ildcp_of_ilp_protocol_ildcp() {
    let file: Value =
        serde_json::from_str(include_str!("vectors/ilp-protocol-ildcp.json")).unwrap();
    let now = Timestamp::from_millis(file["now_millis"].as_u64().unwrap());
    let malformed = list(&file["malformed"]);
    assert_eq!(malformed.len(), 5);
    for case in malformed {
        let packet = Packet::decode(hex(&case["hex"]).into());
        match (case["name"].as_str().unwrap(), packet) {
            ("wrong destination", Ok(Packet::Prepare(prepare))) => {
                assert!(!ildcp::is_request(&prepare));
            }
            ("wrong condition", Ok(Packet::Prepare(prepare))) => {
                assert!(ildcp::is_request(&prepare));
                assert_ne!(prepare.condition, ildcp::CONDITION);
            }
            ("expired", Ok(Packet::Prepare(prepare))) => assert!(prepare.expires_at < now),
            ("wrong fulfillment", Ok(Packet::Fulfill(fulfill))) => {
                assert_ne!(fulfill.fulfillment.condition(), ildcp::CONDITION);
            }
            ("unrecognized reply", packet) => assert!(packet.is_err()),
            (name, packet) => panic!("{name}: {packet:?}"),
        }
    }
}
