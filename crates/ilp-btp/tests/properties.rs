//! What holds for every frame and for every sequence of bytes.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use bytes::Bytes;
use ilp_btp::{
    ContentType, Event, Frame, Moment, ProtocolData, Refusal, RefusalCode, RequestId, Session,
    SessionLimits,
};
use ilp_packet::Timestamp;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

fn protocol_data() -> impl Strategy<Value = Vec<ProtocolData>> {
    let name = "[!-~]{1,20}";
    btree_map(name, (any::<u8>(), vec(any::<u8>(), 0..300)), 0..8).prop_map(|entries| {
        entries
            .into_iter()
            .map(|(name, (content_type, data))| ProtocolData {
                name: name.into(),
                content_type: ContentType::from(content_type),
                data: data.into(),
            })
            .collect()
    })
}

fn frame() -> impl Strategy<Value = Frame> {
    let refusal = (
        any::<[u8; 3]>(),
        "\\PC{0,40}",
        0..4_102_444_800_000_u64,
        "\\PC{0,200}",
    )
        .prop_map(|(code, name, at, text)| Refusal {
            name,
            ..Refusal::new(RefusalCode::from(code), Timestamp::from_millis(at), &text)
        });
    (
        any::<u32>(),
        protocol_data(),
        any::<u64>(),
        refusal,
        0..4_u8,
    )
        .prop_map(|(id, protocol_data, amount, refusal, kind)| {
            let request_id = RequestId(id);
            match kind {
                0 => Frame::Response {
                    request_id,
                    protocol_data,
                },
                1 => Frame::Error {
                    request_id,
                    refusal,
                    protocol_data,
                },
                2 => Frame::Message {
                    request_id,
                    protocol_data,
                },
                _ => Frame::Transfer {
                    request_id,
                    amount,
                    protocol_data,
                },
            }
        })
}

fn now() -> Moment {
    Moment {
        elapsed_ms: 0,
        wall: Timestamp::from_millis(0),
    }
}

fn open_session() -> Session<u32> {
    let mut session = Session::server(SessionLimits::default());
    let hello = ilp_btp::Credentials::default()
        .message(RequestId(1))
        .encode()
        .unwrap();
    assert!(matches!(
        session.handle_message(now(), &hello),
        Event::Introduced(_)
    ));
    session.accept().unwrap();
    session
}

proptest! {
    #[test]
    fn frames_survive_a_round_trip(frame in frame()) {
        let bytes = frame.encode().unwrap();
        prop_assert_eq!(Frame::decode(&bytes).unwrap(), frame);
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in vec(any::<u8>(), 0..300)) {
        let _ = Frame::decode(&Bytes::from(bytes));
    }

    #[test]
    fn a_changed_byte_is_read_or_refused(
        frame in frame(), at in any::<prop::sample::Index>(), byte in any::<u8>()
    ) {
        let mut bytes = frame.encode().unwrap().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(read) = Frame::decode(&bytes.into()) {
            // Whatever was understood can be said again.
            let again = read.encode().unwrap();
            prop_assert_eq!(Frame::decode(&again).unwrap(), read);
        }
    }

    /// The peer answers in any order, more than once, and with ids of its own invention: every
    /// ticket comes back exactly once.
    #[test]
    fn every_ticket_comes_back_once(
        ids in vec(0..8_u32, 1..40),
        replies in vec((0..60_u32, any::<bool>()), 0..80),
        timeout_ms in 0..100_u64,
    ) {
        let mut session = open_session();
        let mut returned = Vec::new();
        let mut sent = Vec::new();
        for (ticket, id) in (0_u32..).zip(&ids) {
            let deadline_ms = u64::from(ticket);
            let packet = Bytes::from_static(&[12]);
            let bytes = session.request(*id, deadline_ms, packet, ticket).unwrap();
            sent.push(Frame::decode(&bytes).unwrap().request_id());
        }
        let distinct: std::collections::HashSet<_> = sent.iter().collect();
        prop_assert_eq!(distinct.len(), sent.len(), "ids of open requests differ");
        for (id, good) in replies {
            let request_id = RequestId(id);
            let frame = if good {
                Frame::ilp_response(request_id, Bytes::from_static(&[13]))
            } else {
                Frame::error(request_id, Refusal::new(RefusalCode::Unreachable, now().wall, ""))
            };
            match session.handle_message(now(), &frame.encode().unwrap()) {
                Event::Reply(ticket, _) | Event::RequestRefused(ticket, _) => returned.push(ticket),
                Event::Ignored(_) => {}
                other => prop_assert!(false, "{:?}", other),
            }
        }
        returned.extend(session.handle_timeout(timeout_ms));
        prop_assert!(session.next_deadline_ms().is_none_or(|deadline| deadline > timeout_ms));
        returned.extend(session.close().pending.into_iter().map(|(_, _, ticket)| ticket));
        returned.sort_unstable();
        let expected: Vec<u32> = (0_u32..).take(ids.len()).collect();
        prop_assert_eq!(returned, expected);
    }
}
