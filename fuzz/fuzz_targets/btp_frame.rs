//! BTP frames (RFC 23): what decodes encodes again, and what uses all of the input has no other
//! encoding.
#![no_main]

use bytes::Bytes;
use ilp_btp::{Credentials, Frame, MAX_PROTOCOLS};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let bytes = Bytes::copy_from_slice(input);
    let Ok(frame) = Frame::decode(&bytes) else {
        return;
    };
    assert!(frame.protocol_data().len() <= MAX_PROTOCOLS);
    let encoded = frame.encode().expect("what was read keeps the limits");
    assert_eq!(Frame::decode(&encoded).as_ref(), Ok(&frame));
    assert!(encoded.len() <= input.len());
    if encoded.len() == input.len() {
        assert_eq!(encoded, bytes);
    }
    if let Frame::Error { refusal, .. } = &frame {
        let _ = (refusal.to_string(), refusal.text());
    }
    if let Ok(credentials) = Credentials::from_frame(&frame) {
        let message = credentials.message(frame.request_id());
        assert_eq!(Credentials::from_frame(&message), Ok(credentials));
    }
});
