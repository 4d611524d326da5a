//! The session machine, phase by phase: what is done and what is refused.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use bytes::Bytes;
use ilp_btp::{
    Credentials, Event, Frame, Ignored, Moment, Phase, ProtocolData, Refusal, RefusalCode,
    RequestId, SendError, Session, SessionLimits,
};
use ilp_packet::Timestamp;

const PREPARE: &[u8] = &[12, 0];
const FULFILL: &[u8] = &[13, 0];

fn at(elapsed_ms: u64) -> Moment {
    Moment {
        elapsed_ms,
        wall: Timestamp::from_millis(1_700_000_000_000),
    }
}

fn credentials() -> Credentials {
    Credentials {
        username: "alice".into(),
        token: "secret".into(),
    }
}

/// A client and a server that have opened a session with each other.
fn pair(limits: SessionLimits) -> (Session<&'static str>, Session<&'static str>) {
    let (mut client, hello) = Session::client(limits, RequestId(1), &credentials()).unwrap();
    let mut server = Session::server(limits);
    let Event::Introduced(seen) = server.handle_message(at(0), &hello) else {
        panic!("no introduction");
    };
    assert_eq!(seen, credentials());
    let welcome = server.accept().unwrap();
    assert!(matches!(
        client.handle_message(at(0), &welcome),
        Event::Opened
    ));
    (client, server)
}

#[test]
fn a_request_is_answered_in_each_direction() {
    let (mut client, mut server) = pair(SessionLimits::default());
    for _ in 0..2 {
        let request = client.request(7, 100, PREPARE.into(), "ticket").unwrap();
        let Event::Request(id, packet) = server.handle_message(at(1), &request) else {
            panic!("no request");
        };
        assert_eq!(packet, PREPARE);
        assert_eq!(server.answering(), 1);
        let reply = server.respond(id, FULFILL.into()).unwrap().unwrap();
        assert_eq!(server.answering(), 0);
        let Event::Reply("ticket", Some(packet)) = client.handle_message(at(2), &reply) else {
            panic!("no reply");
        };
        assert_eq!(packet, FULFILL);
        assert_eq!(client.pending(), 0);
        std::mem::swap(&mut client, &mut server);
    }
}

#[test]
fn both_ends_may_use_the_same_id_at_once() {
    let (mut client, mut server) = pair(SessionLimits::default());
    let from_client = client.request(7, 100, PREPARE.into(), "c").unwrap();
    let from_server = server.request(7, 100, PREPARE.into(), "s").unwrap();
    assert!(matches!(
        server.handle_message(at(0), &from_client),
        Event::Request(..)
    ));
    assert!(matches!(
        client.handle_message(at(0), &from_server),
        Event::Request(..)
    ));
    let reply = server
        .respond(RequestId(7), FULFILL.into())
        .unwrap()
        .unwrap();
    assert!(matches!(
        client.handle_message(at(0), &reply),
        Event::Reply("c", _)
    ));
    let reply = client
        .respond(RequestId(7), FULFILL.into())
        .unwrap()
        .unwrap();
    assert!(matches!(
        server.handle_message(at(0), &reply),
        Event::Reply("s", _)
    ));
}

#[test]
fn late_and_repeated_replies_have_no_effect() {
    let (mut client, mut server) = pair(SessionLimits::default());
    let request = client.request(7, 100, PREPARE.into(), "ticket").unwrap();
    server.handle_message(at(1), &request);
    let reply = server
        .respond(RequestId(7), FULFILL.into())
        .unwrap()
        .unwrap();
    assert_eq!(client.next_deadline_ms(), Some(100));
    assert!(client.handle_timeout(99).is_empty());
    assert_eq!(client.handle_timeout(100), ["ticket"]);
    for _ in 0..2 {
        let event = client.handle_message(at(101), &reply);
        assert!(
            matches!(
                event,
                Event::Ignored(Ignored::UnexpectedReply(RequestId(7)))
            ),
            "{event:?}"
        );
    }
    assert_eq!(
        server.respond(RequestId(7), FULFILL.into()).unwrap(),
        None,
        "answered already"
    );
}

#[test]
fn an_answered_request_leaves_no_deadline_behind() {
    let (mut client, mut server) = pair(SessionLimits::default());
    let request = client.request(7, 100, PREPARE.into(), "first").unwrap();
    server.handle_message(at(1), &request);
    let reply = server
        .respond(RequestId(7), FULFILL.into())
        .unwrap()
        .unwrap();
    client.handle_message(at(2), &reply);
    assert_eq!(client.next_deadline_ms(), None);
    // The next request with the same id has its own time.
    client.request(7, 200, PREPARE.into(), "second").unwrap();
    assert!(client.handle_timeout(150).is_empty());
    assert_eq!(client.handle_timeout(200), ["second"]);
}

#[test]
fn a_repeated_request_is_taken_once() {
    let (mut client, mut server) = pair(SessionLimits::default());
    let request = client.request(7, 100, PREPARE.into(), "ticket").unwrap();
    assert!(matches!(
        server.handle_message(at(0), &request),
        Event::Request(..)
    ));
    assert!(matches!(
        server.handle_message(at(0), &request),
        Event::Ignored(Ignored::RepeatedRequest(RequestId(7)))
    ));
}

#[test]
fn transfers_and_messages_without_ilp_get_f00() {
    let (_, mut server) = pair(SessionLimits::default());
    let request_id = RequestId(9);
    let frames = [
        Frame::Transfer {
            request_id,
            amount: 5,
            protocol_data: vec![],
        },
        Frame::Message {
            request_id,
            protocol_data: vec![],
        },
        Frame::Message {
            request_id,
            protocol_data: vec![ProtocolData::text("chat", "hi")],
        },
    ];
    for frame in frames {
        let event = server.handle_message(at(0), &frame.encode().unwrap());
        let Event::Answer(answer) = event else {
            panic!("{event:?}")
        };
        let Frame::Error {
            request_id: answered,
            refusal,
            ..
        } = Frame::decode(&answer).unwrap()
        else {
            panic!("no error");
        };
        assert_eq!(answered, request_id);
        assert_eq!(refusal.code, RefusalCode::NotAccepted);
        assert_eq!(refusal.name, "NotAcceptedError");
        assert_eq!(refusal.triggered_at, "20231114221320.000Z");
    }
    assert_eq!(server.answering(), 0);
}

#[test]
fn a_peer_with_swapped_frame_types_is_understood() {
    let (mut client, _) = pair(SessionLimits::default());
    client.request(7, 100, PREPARE.into(), "ticket").unwrap();
    let reply = Frame::ilp_request(RequestId(7), FULFILL.into())
        .encode()
        .unwrap();
    assert!(matches!(
        client.handle_message(at(0), &reply),
        Event::Reply("ticket", Some(_))
    ));
    let request = Frame::ilp_response(RequestId(8), PREPARE.into())
        .encode()
        .unwrap();
    assert!(matches!(
        client.handle_message(at(0), &request),
        Event::Request(RequestId(8), _)
    ));
    let answer = client
        .respond(RequestId(8), FULFILL.into())
        .unwrap()
        .unwrap();
    assert!(
        matches!(Frame::decode(&answer).unwrap(), Frame::Response { .. }),
        "strict in writing"
    );
}

#[test]
fn nothing_is_served_before_authentication() {
    for frame in [
        Frame::ilp_request(RequestId(1), PREPARE.into()),
        Frame::empty_response(RequestId(1)),
        Frame::Transfer {
            request_id: RequestId(1),
            amount: 1,
            protocol_data: vec![],
        },
    ] {
        let is_request = !matches!(frame, Frame::Response { .. });
        let mut server: Session<()> = Session::server(SessionLimits::default());
        let event = server.handle_message(at(0), &frame.encode().unwrap());
        let Event::Hangup(answer, _) = event else {
            panic!("{event:?}")
        };
        assert_eq!(answer.is_some(), is_request, "replies are never answered");
        assert_eq!(server.phase(), Phase::Closed);
        assert!(server.accept().is_none());
    }
}

#[test]
fn a_client_must_wait_for_the_answer_to_its_authentication() {
    let (_, hello) =
        Session::<()>::client(SessionLimits::default(), RequestId(1), &credentials()).unwrap();
    let mut server: Session<()> = Session::server(SessionLimits::default());
    server.handle_message(at(0), &hello);
    let early = Frame::ilp_request(RequestId(2), PREPARE.into())
        .encode()
        .unwrap();
    assert!(matches!(
        server.handle_message(at(0), &early),
        Event::Hangup(None, _)
    ));
    assert_eq!(server.phase(), Phase::Closed);
}

#[test]
fn a_refused_client_learns_why() {
    let (mut client, hello) =
        Session::<()>::client(SessionLimits::default(), RequestId(1), &credentials()).unwrap();
    let mut server: Session<()> = Session::server(SessionLimits::default());
    server.handle_message(at(0), &hello);
    let refusal = server.refuse(at(0), "too many clients").unwrap();
    assert_eq!(server.phase(), Phase::Closed);
    let Event::Refused(refusal) = client.handle_message(at(0), &refusal) else {
        panic!("not refused");
    };
    assert_eq!(refusal.text(), "too many clients");
    assert_eq!(client.phase(), Phase::Closed);
    let (error, ()) = client.request(1, 1, PREPARE.into(), ()).unwrap_err();
    assert_eq!(error, SendError::NotOpen);
}

#[test]
fn a_server_may_not_ask_before_it_answers_the_authentication() {
    let (mut client, _) =
        Session::<()>::client(SessionLimits::default(), RequestId(1), &credentials()).unwrap();
    let other = Frame::empty_response(RequestId(2)).encode().unwrap();
    assert!(matches!(
        client.handle_message(at(0), &other),
        Event::Ignored(_)
    ));
    let error = Refusal::new(RefusalCode::NotAccepted, at(0).wall, "");
    let other = Frame::error(RequestId(3), error).encode().unwrap();
    assert!(matches!(
        client.handle_message(at(0), &other),
        Event::Ignored(_)
    ));
    let request = Frame::ilp_request(RequestId(2), PREPARE.into())
        .encode()
        .unwrap();
    assert!(matches!(
        client.handle_message(at(0), &request),
        Event::Hangup(None, _)
    ));
}

#[test]
fn limits_are_kept() {
    let limits = SessionLimits {
        max_pending: 2,
        max_unreadable: 3,
    };
    let (mut client, _) = pair(limits);
    client.request(1, 100, PREPARE.into(), "one").unwrap();
    client.request(1, 100, PREPARE.into(), "two").unwrap();
    let (error, ticket) = client.request(1, 100, PREPARE.into(), "three").unwrap_err();
    assert_eq!((error, ticket), (SendError::TooManyPending, "three"));
    let garbage = Bytes::from_static(b"garbage");
    for _ in 0..3 {
        let event = client.handle_message(at(0), &garbage);
        assert!(
            matches!(event, Event::Ignored(Ignored::Unreadable(_))),
            "{event:?}"
        );
    }
    assert!(matches!(
        client.handle_message(at(0), &garbage),
        Event::Hangup(None, _)
    ));
    let mut tickets: Vec<_> = client
        .close()
        .pending
        .into_iter()
        .map(|(_, _, ticket)| ticket)
        .collect();
    tickets.sort_unstable();
    assert_eq!(tickets, ["one", "two"]);
}

#[test]
fn a_packet_that_does_not_fit_gives_the_ticket_back() {
    let (mut client, mut server) = pair(SessionLimits::default());
    let huge = Bytes::from(vec![12; ilp_btp::MAX_FRAME_BYTES]);
    let (error, ticket) = client.request(1, 100, huge.clone(), "ticket").unwrap_err();
    assert!(matches!(error, SendError::Encode(_)));
    assert_eq!((ticket, client.pending()), ("ticket", 0));
    let request = client.request(1, 100, PREPARE.into(), "ticket").unwrap();
    server.handle_message(at(0), &request);
    assert!(server.respond(RequestId(1), huge).is_err());
    let code = RefusalCode::NotAccepted;
    let refusal = server
        .refuse_request(at(0), RequestId(1), code, "too large")
        .unwrap();
    assert!(matches!(
        client.handle_message(at(0), &refusal),
        Event::RequestRefused("ticket", _)
    ));
}

#[test]
fn the_next_session_goes_on_with_what_the_last_one_left_open() {
    let (mut before, mut peer) = pair(SessionLimits::default());
    let ours = before.request(7, 1_000, PREPARE.into(), "ours").unwrap();
    peer.handle_message(at(0), &ours);
    let theirs = peer.request(9, 1_000, PREPARE.into(), "theirs").unwrap();
    before.handle_message(at(0), &theirs);
    let (mut after, mut peer_after) = pair(SessionLimits::default());
    after.adopt(before.close());
    peer_after.adopt(peer.close());
    let reply = peer_after
        .respond(RequestId(7), FULFILL.into())
        .unwrap()
        .unwrap();
    assert!(matches!(
        after.handle_message(at(0), &reply),
        Event::Reply("ours", Some(_))
    ));
    let reply = after
        .respond(RequestId(9), FULFILL.into())
        .unwrap()
        .unwrap();
    assert!(matches!(
        peer_after.handle_message(at(0), &reply),
        Event::Reply("theirs", Some(_))
    ));
    assert_eq!((after.pending(), after.answering()), (0, 0));
}

#[test]
fn what_is_carried_over_still_expires() {
    let (mut before, _) = pair(SessionLimits::default());
    before.request(7, 1_000, PREPARE.into(), "ticket").unwrap();
    let (mut after, _) = pair(SessionLimits::default());
    after.adopt(before.close());
    assert_eq!(after.next_deadline_ms(), Some(1_000));
    assert!(after.handle_timeout(999).is_empty());
    assert_eq!(after.handle_timeout(1_000), ["ticket"]);
}

/// Found by the fuzz target `btp_session`: a session that the peer's garbage had closed still answered.
#[test]
fn a_session_that_hung_up_answers_nothing() {
    let (mut client, mut server) = pair(SessionLimits {
        max_unreadable: 0,
        ..SessionLimits::default()
    });
    for deadline_ms in [100, 200] {
        let request = client.request(7, deadline_ms, PREPARE.into(), "t").unwrap();
        assert!(matches!(
            server.handle_message(at(0), &request),
            Event::Request(..)
        ));
    }
    assert!(matches!(
        server.handle_message(at(1), &Bytes::from_static(b"garbage")),
        Event::Hangup(None, _)
    ));
    assert_eq!(server.respond(RequestId(7), FULFILL.into()).unwrap(), None);
    let code = RefusalCode::NotAccepted;
    assert_eq!(
        server.refuse_request(at(2), RequestId(8), code, "too late"),
        None
    );
    // They stay what they are: open, for whoever closes the session.
    assert_eq!(server.answering(), 2);
}
