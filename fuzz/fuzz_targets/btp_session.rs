//! One BTP session (RFC 23) against a peer that sends what it likes: no ticket is lost or comes back
//! twice, and limits hold.
#![no_main]

use bytes::Bytes;
use codius_fuzz::btp::End;
use codius_fuzz::{Choices, START};
use ilp_btp::{ContentType, Credentials, Frame, ProtocolData, Refusal, RefusalCode, RequestId};
use libfuzzer_sys::fuzz_target;

/// A frame that mostly is almost right.
fn frame(choices: &mut Choices<'_>) -> Bytes {
    const NAMES: [&str; 4] = ["ilp", "auth", "auth_token", "auth_username"];
    let request_id = RequestId(u32::from(choices.byte()));
    let kind = choices.below(6);
    if kind == 5 {
        return Bytes::copy_from_slice(choices.chunk());
    }
    let mut protocol_data = Vec::new();
    for name in NAMES.iter().take(choices.below(5)) {
        protocol_data.push(ProtocolData {
            name: (*name).into(),
            content_type: ContentType::from(choices.byte() & 3),
            data: Bytes::copy_from_slice(choices.chunk()),
        });
    }
    let frame = match kind {
        0 => Frame::Response {
            request_id,
            protocol_data,
        },
        1 => Frame::Error {
            request_id,
            refusal: Refusal::new(RefusalCode::NotAccepted, START, "no"),
            protocol_data,
        },
        2 => Frame::Transfer {
            request_id,
            amount: choices.integer(),
            protocol_data,
        },
        _ => Frame::Message {
            request_id,
            protocol_data,
        },
    };
    frame.encode().expect("few and short entries fit a frame")
}

fuzz_target!(|input: &[u8]| {
    let mut choices = Choices::new(input);
    let mut end = if choices.coin() {
        End::server()
    } else {
        End::client(RequestId(7)).0
    };
    // Most of what there is to find comes after the introduction.
    if choices.coin() {
        let introduction = Credentials::default().message(RequestId(7));
        let answer = Frame::empty_response(RequestId(7));
        end.receive(&introduction.encode().expect("it is short"));
        end.accept();
        end.receive(&answer.encode().expect("it is short"));
    }
    let mut elapsed_ms = 0;
    while !choices.is_empty() {
        match choices.below(8) {
            0 => drop(end.request(&mut choices)),
            1 => drop(end.answer(&mut choices)),
            2 => {
                elapsed_ms += choices.integer() & 0xffff;
                end.time(elapsed_ms);
            }
            3 => drop(end.accept()),
            4 if choices.below(8) == 0 => drop(end.refuse()),
            5 if choices.below(16) == 0 => end.close(),
            5 if choices.below(16) == 1 => end.reconnect(),
            _ => drop(end.receive(&frame(&mut choices))),
        }
        end.check();
    }
    end.finish();
});
