//! Two BTP sessions (RFC 23) that talk through a pipe which loses, repeats, reorders and damages
//! frames.
#![no_main]

use bytes::Bytes;
use codius_fuzz::Choices;
use codius_fuzz::btp::End;
use ilp_btp::{Phase, RequestId};
use libfuzzer_sys::fuzz_target;

/// Frames that may be on their way to one end.
const MAX_QUEUE: usize = 64;

fuzz_target!(|input: &[u8]| {
    let mut choices = Choices::new(input);
    let (client, introduction) = End::client(RequestId(choices.integer() as u32));
    let mut ends = [client, End::server()];
    // Frames on their way to each of them.
    let mut queues = [Vec::new(), vec![introduction]];
    let mut elapsed_ms = 0;
    let honest = choices.coin();
    if honest {
        let introduction = queues[1].remove(0);
        ends[1].receive(&introduction);
        let answer = ends[1].accept().expect("the client waits for an answer");
        ends[0].receive(&answer);
        assert!(ends.iter().all(|end| end.phase() == Phase::Open));
    }
    while !choices.is_empty() {
        let operation = choices.byte();
        let at = usize::from(operation >> 7);
        let frame = match operation & 15 {
            0..=2 => ends[at].request(&mut choices),
            3..=5 => ends[at].answer(&mut choices),
            6 => {
                elapsed_ms += choices.integer() & 0xffff;
                ends[at].time(elapsed_ms);
                None
            }
            7 => ends[at].accept(),
            8 if choices.below(16) == 0 => ends[at].refuse(),
            8 if choices.below(16) == 1 => {
                ends[at].close();
                None
            }
            // The pipe, from here on.
            9 if !queues[at].is_empty() => {
                let which = choices.below(queues[at].len());
                queues[at].remove(which);
                None
            }
            10 if !queues[at].is_empty() && queues[at].len() < MAX_QUEUE => {
                let which = choices.below(queues[at].len());
                let again = Bytes::clone(&queues[at][which]);
                queues[at].push(again);
                None
            }
            11 if !queues[at].is_empty() => {
                let which = choices.below(queues[at].len());
                let mut damaged = queues[at][which].to_vec();
                let byte = choices.below(damaged.len());
                damaged[byte] ^= choices.byte();
                queues[at][which] = damaged.into();
                None
            }
            _ if !queues[at].is_empty() => {
                let which = choices.below(queues[at].len());
                let frame = queues[at].remove(which);
                ends[at].receive(&frame)
            }
            _ => None,
        };
        if let Some(frame) = frame
            && queues[1 - at].len() < MAX_QUEUE
        {
            queues[1 - at].push(frame);
        }
        for end in &ends {
            end.check();
        }
    }
    for end in ends {
        end.finish();
    }
});
