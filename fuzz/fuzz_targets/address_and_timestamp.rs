//! Addresses (RFC 15) against a second reading of the grammar, and the two timestamps.
#![no_main]

use ilp_packet::{Address, MAX_ADDRESS_LEN, TIMESTAMP_LEN, Timestamp};
use libfuzzer_sys::fuzz_target;

const SCHEMES: [&str; 10] = [
    "g", "private", "example", "peer", "self", "test", "test1", "test2", "test3", "local",
];

/// The grammar of RFC 15, said character by character.
fn is_address(bytes: &[u8]) -> bool {
    let Some(dot) = bytes.iter().position(|byte| *byte == b'.') else {
        return false;
    };
    let mut after_dot = false;
    for byte in &bytes[dot..] {
        match byte {
            b'.' if after_dot => return false,
            b'.' => after_dot = true,
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'~' | b'-' => after_dot = false,
            _ => return false,
        }
    }
    !after_dot
        && bytes.len() <= MAX_ADDRESS_LEN
        && SCHEMES
            .iter()
            .any(|scheme| scheme.as_bytes() == &bytes[..dot])
}

fn addresses(input: &[u8]) {
    let (first, second) = match input.iter().position(|byte| *byte == b' ') {
        Some(at) => (&input[..at], &input[at + 1..]),
        None => (input, &b""[..]),
    };
    let address = Address::try_from(first);
    assert_eq!(address.is_ok(), is_address(first));
    let Ok(address) = address else { return };
    assert_eq!(address.as_bytes(), first);
    assert_eq!(address.as_str().parse(), Ok(address.clone()));
    assert!(address.starts_with_segments(&address));
    assert_eq!(address.segments().next(), Some(address.scheme()));
    assert!(address.segments().skip(1).all(Address::is_segment));
    if let Ok(suffix) = std::str::from_utf8(second)
        && let Ok(below) = address.with_suffix(suffix)
    {
        assert_eq!(below.as_str().parse(), Ok(below.clone()));
        assert_eq!(below.suffix_after(&address), Some(suffix));
        assert_eq!(below.segment_after(&address), suffix.split('.').next());
        assert!(!address.starts_with_segments(&below));
    }
    if let Ok(other) = Address::try_from(second) {
        let below = address.starts_with_segments(&other);
        assert_eq!(below, address.suffix_after(&other).is_some());
        let segments: Vec<_> = other.segments().collect();
        let own: Vec<_> = address.segments().collect();
        assert_eq!(below, own.starts_with(&segments));
    }
}

fn timestamps(input: &[u8]) {
    if let Ok(moment) = Timestamp::decode(input) {
        assert_eq!(moment.encode(), input);
        assert!(moment <= Timestamp::MAX);
    }
    if let Some(millis) = input.first_chunk() {
        let moment = Timestamp::from_millis(u64::from_be_bytes(*millis));
        let digits = moment.encode();
        assert_eq!(digits.len(), TIMESTAMP_LEN);
        assert_eq!(Timestamp::decode(&digits), Ok(moment));
        assert_eq!(moment.to_string().as_bytes(), digits);
        let later = moment.plus_millis(1);
        assert!(later == Timestamp::MAX || later.encode() > digits);
    }
}

fuzz_target!(|input: &[u8]| {
    addresses(input);
    timestamps(input);
});
