//! ILDCP (RFC 31): the answer of a parent, bare and in its Fulfill, and the request of a child.
#![no_main]

use bytes::Bytes;
use ilp_packet::ildcp::{self, IldcpResponse, MAX_ASSET_CODE};
use ilp_packet::{MAX_ADDRESS_LEN, Packet};
use libfuzzer_sys::fuzz_target;

fn answer(data: &[u8]) {
    let Ok(response) = IldcpResponse::decode(data) else {
        return;
    };
    assert!(response.asset_code.len() <= MAX_ASSET_CODE);
    assert!(response.client_address.as_bytes().len() <= MAX_ADDRESS_LEN);
    let encoded = response.encode();
    assert_eq!(IldcpResponse::decode(&encoded), Ok(response.clone()));
    assert!(data.starts_with(&encoded));
    let fulfill = Packet::Fulfill(response.fulfill());
    let Ok(Packet::Fulfill(read)) = Packet::decode(fulfill.encode().into()) else {
        panic!("our own answer is a Fulfill")
    };
    assert_eq!(read.fulfillment.condition(), ildcp::CONDITION);
    assert_eq!(IldcpResponse::decode(&read.data), Ok(response));
}

fuzz_target!(|input: &[u8]| {
    answer(input);
    match Packet::decode(Bytes::copy_from_slice(input)) {
        Ok(Packet::Prepare(prepare)) => {
            let is_request = prepare.destination.as_str() == "peer.config";
            assert_eq!(ildcp::is_request(&prepare), is_request);
            assert!(ildcp::is_request(&ildcp::request(prepare.expires_at)));
        }
        Ok(Packet::Fulfill(fulfill)) => answer(&fulfill.data),
        Ok(Packet::Reject(_)) | Err(_) => {}
    }
});
