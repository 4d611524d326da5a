//! OER (RFC 30): the first part of the input says what is read from the second. What was read is the
//! only encoding of its value, and nothing is read that is not there.
#![no_main]

use codius_fuzz::Choices;
use ilp_packet::oer::{self, OerError, Reader, Writer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut choices = Choices::new(input);
    let reads = choices.chunk();
    let whole = choices.bytes(usize::MAX);
    let mut reader = Reader::new(whole);
    for read in reads {
        let before = reader.rest();
        let mut writer = Writer::new();
        let parameter = usize::from(read >> 4) * 9;
        let result = match read & 15 {
            0 => reader.u8().map(|value| writer.u8(value)),
            1 => reader.u16().map(|value| writer.u16(value)),
            2 => reader.u32().map(|value| writer.u32(value)),
            3 => reader.u64().map(|value| writer.u64(value)),
            4 => reader.array::<17>().map(|value| writer.bytes(&value)),
            5 => reader.bytes(parameter).map(|value| {
                assert_eq!(value.len(), parameter);
                writer.bytes(value);
            }),
            6 | 7 => reader.length().map(|len| {
                writer.length(len);
                assert_eq!(writer.len(), oer::length_len(len));
            }),
            8 | 9 => reader.var_octets().map(|value| {
                writer.var_octets(value);
                assert_eq!(writer.len(), oer::var_octets_len(value.len()));
            }),
            10 | 11 => reader.var_octets_max(parameter).map(|value| {
                assert!(value.len() <= parameter);
                writer.var_octets(value);
            }),
            12 | 13 => reader.var_uint().map(|value| {
                writer.var_uint(value);
                assert_eq!(writer.len(), oer::var_uint_len(value));
            }),
            _ => {
                let exact = reader.clone().var_uint();
                let result = reader.var_uint_saturating();
                match (exact, result) {
                    (Ok(exact), Ok(value)) => assert_eq!(exact, value),
                    (Err(OerError::IntegerTooLarge), Ok(value)) => assert_eq!(value, u64::MAX),
                    (Err(exact), Err(error)) => assert_eq!(exact, error),
                    (exact, result) => panic!("{exact:?} but saturating {result:?}"),
                }
                if exact == Err(OerError::IntegerTooLarge) {
                    // What stands there cannot be written again.
                    continue;
                }
                result.map(|value| writer.var_uint(value))
            }
        };
        assert!(whole.ends_with(reader.rest()));
        match result {
            Ok(()) => {
                let used = before.len() - reader.rest().len();
                assert_eq!(writer.as_slice(), &before[..used]);
            }
            Err(_) => return,
        }
    }
});
