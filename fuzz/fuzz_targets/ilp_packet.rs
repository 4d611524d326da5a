//! ILPv4 packets (RFC 27): what decodes encodes again, and what uses all of the input has no other
//! encoding.
#![no_main]

use bytes::Bytes;
use ilp_packet::{AmountTooLarge, MAX_DATA_READ, MAX_MESSAGE, Packet, PacketError, Prepare};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let bytes = Bytes::copy_from_slice(input);
    let decoded = Packet::decode(bytes.clone());
    match (&decoded, Prepare::decode(bytes)) {
        (Ok(Packet::Prepare(packet)), prepare) => assert_eq!(prepare.as_ref(), Ok(packet)),
        (Ok(other), prepare) => {
            assert_eq!(prepare, Err(PacketError::UnexpectedType(other.kind())));
        }
        (Err(error), prepare) => assert_eq!(prepare.as_ref(), Err(error)),
    }
    let Ok(packet) = decoded else { return };
    let encoded = packet.encode();
    let mut again = Packet::decode(encoded.clone().into()).expect("what we encode decodes");
    assert_eq!(again.encode(), encoded);
    // Bytes of a message that are no text are replaced when it is read.
    let mut replaced = false;
    let data = match &packet {
        Packet::Prepare(prepare) => &prepare.data,
        Packet::Fulfill(fulfill) => &fulfill.data,
        Packet::Reject(reject) => {
            replaced = reject.message.contains(char::REPLACEMENT_CHARACTER);
            if let Ok(amounts) = AmountTooLarge::decode(&reject.data) {
                assert!(reject.data.starts_with(&amounts.encode()));
            }
            // A replacement is longer than what it replaces, and the message is cut when written.
            if let Packet::Reject(again) = &mut again
                && reject.message.len() > MAX_MESSAGE
            {
                assert!(replaced && reject.message.starts_with(&again.message));
                again.message.clone_from(&reject.message);
            }
            &reject.data
        }
    };
    assert!(data.len() <= MAX_DATA_READ);
    assert_eq!(again, packet);
    if !replaced {
        assert!(encoded.len() <= input.len());
        if encoded.len() == input.len() {
            assert_eq!(encoded, input);
        }
    }
});
