//! One end of a BTP session with a model beside it that knows where every ticket is.

use std::collections::BTreeSet;

use bytes::Bytes;
use ilp_btp::{
    Credentials, Event, Frame, MAX_FRAME_BYTES, Moment, Phase, RefusalCode, RequestId, SendError,
    Session, SessionLimits,
};
use ilp_packet::{ErrorCode, Fulfill, Fulfillment, Packet, Reject, Timestamp};

use crate::{Choices, START};

/// Small, so that the fuzzer reaches them.
const LIMITS: SessionLimits = SessionLimits {
    max_pending: 8,
    max_unreadable: 4,
};

/// One end.
#[derive(Debug)]
pub struct End {
    session: Session<u64>,
    elapsed_ms: u64,
    next_ticket: u64,
    /// Tickets that the session has.
    given: BTreeSet<u64>,
    /// Requests of the peer that wait for us.
    asked: Vec<RequestId>,
}

impl End {
    /// A server before anything was said.
    pub fn server() -> Self {
        Self::new(Session::server(LIMITS))
    }

    /// A client, and the frame that introduces it.
    pub fn client(request_id: RequestId) -> (Self, Bytes) {
        let credentials = Credentials {
            username: "alice".into(),
            token: "secret".into(),
        };
        let (session, frame) = Session::client(LIMITS, request_id, &credentials)
            .expect("short credentials fit a frame");
        (Self::new(session), frame)
    }

    fn new(session: Session<u64>) -> Self {
        Self {
            session,
            elapsed_ms: 0,
            next_ticket: 0,
            given: BTreeSet::new(),
            asked: Vec::new(),
        }
    }

    /// Where the session stands.
    pub fn phase(&self) -> Phase {
        self.session.phase()
    }

    fn now(&self) -> Moment {
        Moment {
            elapsed_ms: self.elapsed_ms,
            wall: START.plus_millis(self.elapsed_ms),
        }
    }

    /// A frame arrives. Returns what is to be written.
    pub fn receive(&mut self, message: &Bytes) -> Option<Bytes> {
        let before = self.phase();
        let event = self.session.handle_message(self.now(), message);
        match event {
            Event::Introduced(_) => {
                assert_eq!(before, Phase::Silent);
                assert!(matches!(self.phase(), Phase::Deciding(_)));
                None
            }
            Event::Opened => {
                assert!(matches!(before, Phase::Greeting(_)));
                assert_eq!(self.phase(), Phase::Open);
                None
            }
            Event::Refused(_) => {
                assert!(matches!(before, Phase::Greeting(_)));
                assert_eq!(self.phase(), Phase::Closed);
                None
            }
            Event::Request(id, _) => {
                assert_eq!(before, Phase::Open);
                assert!(!self.asked.contains(&id), "{id} is asked while it is open");
                self.asked.push(id);
                None
            }
            Event::Reply(ticket, _) | Event::RequestRefused(ticket, _) => {
                assert_eq!(before, Phase::Open);
                self.came_back(ticket);
                None
            }
            Event::Answer(frame) => Some(frame),
            Event::Hangup(frame, _) => {
                assert_eq!(self.phase(), Phase::Closed);
                frame
            }
            Event::Ignored(_) => {
                assert_eq!(before, self.phase());
                None
            }
        }
    }

    /// Sends a request. Returns what is to be written.
    pub fn request(&mut self, choices: &mut Choices<'_>) -> Option<Bytes> {
        let packet = packet(choices);
        let (random, deadline_ms) = (choices.byte(), self.elapsed_ms + choices.integer() % 0xffff);
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let (full, phase) = (self.given.len() >= LIMITS.max_pending, self.phase());
        match self
            .session
            .request(u32::from(random), deadline_ms, packet, ticket)
        {
            Ok(frame) => {
                assert!(!full && phase == Phase::Open);
                self.given.insert(ticket);
                Some(frame)
            }
            Err((error, back)) => {
                assert_eq!(back, ticket);
                match error {
                    SendError::NotOpen => assert_ne!(phase, Phase::Open),
                    SendError::TooManyPending => assert!(full),
                    SendError::Encode(error) => panic!("a short packet does not fit: {error}"),
                }
                None
            }
        }
    }

    /// Answers a request of the peer, or one that is not open. Returns what is to be written.
    pub fn answer(&mut self, choices: &mut Choices<'_>) -> Option<Bytes> {
        let which = choices.below(self.asked.len() + 1);
        let open = which < self.asked.len() && self.phase() != Phase::Closed;
        let id = if open {
            self.asked.swap_remove(which)
        } else {
            self.asked.get(which).copied().unwrap_or(RequestId(1 << 31))
        };
        let frame = match choices.below(4) {
            0 => self
                .session
                .refuse_request(self.now(), id, RefusalCode::NotAccepted, "no"),
            1 => {
                let huge = Bytes::from(vec![0; MAX_FRAME_BYTES]);
                if self.session.respond(id, huge).is_err() {
                    assert!(open);
                    // The request stays open.
                    self.asked.push(id);
                    return None;
                }
                None
            }
            _ => {
                let packet = packet(choices);
                self.session.respond(id, packet).expect("it is short")
            }
        };
        assert_eq!(frame.is_some(), open);
        frame
    }

    /// Accepts the client that introduced itself, if there is one.
    pub fn accept(&mut self) -> Option<Bytes> {
        let waiting = matches!(self.phase(), Phase::Deciding(_));
        let frame = self.session.accept();
        assert_eq!(frame.is_some(), waiting);
        frame
    }

    /// Refuses the client that introduced itself, if there is one.
    pub fn refuse(&mut self) -> Option<Bytes> {
        let waiting = matches!(self.phase(), Phase::Deciding(_));
        let frame = self.session.refuse(self.now(), "no");
        assert_eq!(frame.is_some(), waiting);
        frame
    }

    /// Moves the clock.
    pub fn time(&mut self, elapsed_ms: u64) {
        self.elapsed_ms = elapsed_ms;
        for ticket in self.session.handle_timeout(elapsed_ms) {
            self.came_back(ticket);
        }
        let next = self.session.next_deadline_ms();
        assert!(next.is_none_or(|deadline| deadline > elapsed_ms));
    }

    /// Closes the session.
    pub fn close(&mut self) {
        let open = self.session.close();
        for (_, _, ticket) in open.pending {
            self.came_back(ticket);
        }
        let asked = open.answering;
        assert!(asked.iter().all(|id| self.asked.contains(id)));
        self.asked.clear();
        assert!(self.given.is_empty(), "tickets are lost: {:?}", self.given);
        assert_eq!(self.phase(), Phase::Closed);
    }

    /// The connection was lost, and a new one goes on with what is open.
    pub fn reconnect(&mut self) {
        let (next, _) = Self::client(RequestId(7));
        let open = std::mem::replace(&mut self.session, next.session).close();
        self.asked.clone_from(&open.answering);
        self.session.adopt(open);
        let welcome = Frame::empty_response(RequestId(7)).encode();
        self.receive(&welcome.expect("it is short"));
        assert_eq!(self.phase(), Phase::Open);
    }

    fn came_back(&mut self, ticket: u64) {
        assert!(self.given.remove(&ticket), "ticket {ticket} comes twice");
    }

    /// What always holds.
    pub fn check(&self) {
        assert_eq!(self.session.pending(), self.given.len());
        assert_eq!(self.session.answering(), self.asked.len());
        assert!(self.given.len() <= LIMITS.max_pending);
        assert_eq!(
            self.session.next_deadline_ms().is_some(),
            !self.given.is_empty()
        );
    }

    /// The end of every session: nothing is left.
    pub fn finish(mut self) {
        self.close();
        self.check();
    }
}

/// What travels: mostly an ILP packet.
fn packet(choices: &mut Choices<'_>) -> Bytes {
    match choices.below(4) {
        0 => Bytes::copy_from_slice(choices.chunk()),
        1 => ilp_packet::ildcp::request(Timestamp::MAX).encode().into(),
        2 => Packet::Fulfill(Fulfill {
            fulfillment: Fulfillment([choices.byte(); 32]),
            data: Bytes::new(),
        })
        .encode()
        .into(),
        _ => Packet::Reject(Reject::new(ErrorCode::Unreachable, None, ""))
            .encode()
            .into(),
    }
}
