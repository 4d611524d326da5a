//! Lines of the guest protocol: however the bytes are cut, the same lines come out, and every message
//! is written and read again.
#![no_main]

use codius_fuzz::Choices;
use codius_guest_protocol::{AgentMessage, HostMessage, Line, LineReader, encode};
use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};

/// Small, so that the fuzzer reaches it.
const LIMIT: usize = 512;

fn check<M>(choices: &mut Choices<'_>)
where
    M: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let cuts = choices.chunk();
    let whole = choices.bytes(usize::MAX);
    let mut at_once: Vec<Line<M>> = Vec::new();
    LineReader::new(LIMIT).push(whole, |line| at_once.push(line));
    let (mut in_pieces, mut rest) = (Vec::new(), whole);
    let mut reader = LineReader::new(LIMIT);
    for cut in cuts {
        let (piece, behind) = rest.split_at(usize::from(*cut).min(rest.len()));
        rest = behind;
        reader.push(piece, |line| in_pieces.push(line));
    }
    reader.push(rest, |line| in_pieces.push(line));
    assert_eq!(at_once, in_pieces);
    for line in at_once {
        let Line::Message(message) = line else {
            continue;
        };
        let mut again = Vec::new();
        LineReader::new(usize::MAX).push(&encode(&message), |line| again.push(line));
        assert_eq!(again, [Line::Message(message)]);
    }
}

fuzz_target!(|input: &[u8]| {
    let mut choices = Choices::new(input);
    if choices.coin() {
        check::<AgentMessage>(&mut choices);
    } else {
        check::<HostMessage>(&mut choices);
    }
});
