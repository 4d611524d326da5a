//! One BTP session, without I/O: who may speak, which requests are open, which replies are due.
//!
//! ```text
//! server   Silent ──auth──▶ Deciding ──accept──▶ Open ──▶ Closed
//!             │                 └─────refuse──────────────▶ ▲
//!             └────────────────anything else────────────────┘
//! client   Greeting ──Response──▶ Open ──▶ Closed
//!             └──────Error──────────────────▶
//! ```
//!
//! After the opening both ends are equal: either may send requests, and several may be open in
//! each direction. A request of ours carries a ticket of the caller's type `T` that comes back with
//! the reply or with the time-out, exactly once.
//!
//! Traps
//! - A reply to a request that is not open (late, repeated or invented) has no effect. It is
//!   reported as [`Event::Ignored`] so that it can be counted, and it is never answered.
//! - Time is the caller's: `elapsed_ms` of [`Moment`] must never run backwards.

use std::collections::{BTreeSet, HashMap, HashSet};

use bytes::Bytes;
use ilp_packet::{Timestamp, kind};

use crate::auth::Credentials;
use crate::frame::{DecodeError, EncodeError, Frame, RequestId};
use crate::refusal::{Refusal, RefusalCode};

/// The time, read twice: for deadlines and for what we tell the peer.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Milliseconds on the caller's monotonic clock, from any start.
    pub elapsed_ms: u64,
    /// Wall-clock time. Only written into Error frames.
    pub wall: Timestamp,
}

/// How much one session may hold.
#[derive(Debug, Clone, Copy)]
pub struct SessionLimits {
    /// Most requests of ours that may wait for a reply.
    pub max_pending: usize,
    /// Most unreadable frames before the session closes.
    pub max_unreadable: u32,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            max_pending: 4096,
            max_unreadable: 32,
        }
    }
}

/// Where a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Server: nothing has been received yet.
    Silent,
    /// Server: credentials were received and the caller has to accept or refuse them.
    Deciding(RequestId),
    /// Client: credentials are on their way.
    Greeting(RequestId),
    /// Both sides may send requests.
    Open,
    /// Nothing more happens.
    Closed,
}

/// What a received frame means to the caller.
#[derive(Debug)]
pub enum Event<T> {
    /// A client introduced itself. Call [`Session::accept`] or [`Session::refuse`].
    Introduced(Credentials),
    /// Our credentials were accepted; requests may be sent.
    Opened,
    /// Our credentials were refused; the session is closed.
    Refused(Refusal),
    /// The peer asks us to handle an ILP packet, still encoded. Call [`Session::respond`] or
    /// [`Session::refuse_request`] with the id.
    Request(RequestId, Bytes),
    /// A request of ours was answered with an encoded ILP packet (`None`: the reply had none).
    Reply(T, Option<Bytes>),
    /// A request of ours was refused on the level of BTP.
    RequestRefused(T, Refusal),
    /// Write this frame; nothing else is to be done.
    Answer(Bytes),
    /// Write the frame if there is one, then close the connection.
    Hangup(Option<Bytes>, &'static str),
    /// The frame had no effect.
    Ignored(Ignored),
}

/// Why a frame had no effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ignored {
    /// It could not be read.
    Unreadable(DecodeError),
    /// It replies to no open request.
    UnexpectedReply(RequestId),
    /// It repeats the id of a request that we are still working on.
    RepeatedRequest(RequestId),
    /// The session is closed.
    Closed,
}

/// Why a request was not sent. It has no effect; the ticket comes back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The session is not open yet, or not any more.
    #[error("session is not open")]
    NotOpen,
    /// As many requests as allowed wait for replies. Trying later helps.
    #[error("too many requests wait for replies")]
    TooManyPending,
    /// The packet does not fit into a frame.
    #[error("packet does not fit into a frame")]
    Encode(#[from] EncodeError),
}

#[derive(Debug)]
struct Pending<T> {
    ticket: T,
    deadline_ms: u64,
}

/// What is open in a session, in both directions. A peer that connects again may still answer, and
/// may still wait: its next session can go on with it.
#[derive(Debug)]
pub struct OpenRequests<T> {
    /// Requests of ours that wait for a reply: id, deadline on the clock of `elapsed_ms`, ticket.
    pub pending: Vec<(RequestId, u64, T)>,
    /// Requests of the peer that we have not answered.
    pub answering: Vec<RequestId>,
}

impl<T> Default for OpenRequests<T> {
    fn default() -> Self {
        Self {
            pending: Vec::new(),
            answering: Vec::new(),
        }
    }
}

/// The state of one BTP session. `T` is the caller's ticket for a request.
#[derive(Debug)]
pub struct Session<T> {
    phase: Phase,
    limits: SessionLimits,
    pending: HashMap<RequestId, Pending<T>>,
    /// The pending requests again, in the order of their deadlines.
    deadlines: BTreeSet<(u64, RequestId)>,
    /// Requests of the peer that we have not answered yet.
    answering: HashSet<RequestId>,
    unreadable: u32,
}

impl<T> Session<T> {
    /// The session of a server: the client has to introduce itself.
    #[must_use]
    pub fn server(limits: SessionLimits) -> Self {
        Self::new(Phase::Silent, limits)
    }

    /// The session of a client, and the frame that introduces it.
    ///
    /// # Errors
    /// If the credentials do not fit into a frame.
    pub fn client(
        limits: SessionLimits,
        request_id: RequestId,
        credentials: &Credentials,
    ) -> Result<(Self, Bytes), EncodeError> {
        let frame = credentials.message(request_id).encode()?;
        Ok((Self::new(Phase::Greeting(request_id), limits), frame))
    }

    fn new(phase: Phase, limits: SessionLimits) -> Self {
        Self {
            phase,
            limits,
            pending: HashMap::new(),
            deadlines: BTreeSet::new(),
            answering: HashSet::new(),
            unreadable: 0,
        }
    }

    /// Where the session stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Number of requests of ours that wait for a reply.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Number of requests of the peer that we have not answered yet.
    #[must_use]
    pub fn answering(&self) -> usize {
        self.answering.len()
    }

    /// Takes one received WebSocket message.
    pub fn handle_message(&mut self, now: Moment, message: &Bytes) -> Event<T> {
        if self.phase == Phase::Closed {
            return Event::Ignored(Ignored::Closed);
        }
        let frame = match Frame::decode(message) {
            Ok(frame) => frame,
            Err(error) => return self.handle_unreadable(error),
        };
        match self.phase {
            Phase::Silent => self.handle_introduction(now, &frame),
            Phase::Deciding(_) => {
                // The client must wait for our answer; one that does not is no BTP client.
                self.phase = Phase::Closed;
                Event::Hangup(None, "request before the authentication was answered")
            }
            Phase::Greeting(id) => self.handle_greeting_reply(id, frame),
            Phase::Open => self.handle_open(now, frame),
            Phase::Closed => Event::Ignored(Ignored::Closed),
        }
    }

    /// Accepts the client that introduced itself. The frame answers it; `None` if none is waiting.
    pub fn accept(&mut self) -> Option<Bytes> {
        let Phase::Deciding(request_id) = self.phase else {
            return None;
        };
        self.phase = Phase::Open;
        Frame::empty_response(request_id).encode().ok()
    }

    /// Refuses the client that introduced itself and closes the session. The frame tells it why.
    pub fn refuse(&mut self, now: Moment, text: &str) -> Option<Bytes> {
        let Phase::Deciding(request_id) = self.phase else {
            return None;
        };
        self.phase = Phase::Closed;
        let refusal = Refusal::new(RefusalCode::NotAccepted, now.wall, text);
        Frame::error(request_id, refusal).encode().ok()
    }

    /// Starts a request with an encoded ILP packet. Returns the frame to write.
    ///
    /// `random` is where its id starts from; if a request with that id is still open, the next free
    /// one is taken.
    ///
    /// # Errors
    /// If the session is not open or a limit is reached. The ticket comes back with the error.
    pub fn request(
        &mut self,
        random: u32,
        deadline_ms: u64,
        packet: Bytes,
        ticket: T,
    ) -> Result<Bytes, (SendError, T)> {
        if self.phase != Phase::Open {
            return Err((SendError::NotOpen, ticket));
        }
        if self.pending.len() >= self.limits.max_pending {
            return Err((SendError::TooManyPending, ticket));
        }
        // Ends: there are far fewer pending requests than ids.
        let mut request_id = RequestId(random);
        while self.pending.contains_key(&request_id) {
            request_id = RequestId(request_id.0.wrapping_add(1));
        }
        match Frame::ilp_request(request_id, packet).encode() {
            Ok(frame) => {
                self.pending.insert(
                    request_id,
                    Pending {
                        ticket,
                        deadline_ms,
                    },
                );
                self.deadlines.insert((deadline_ms, request_id));
                Ok(frame)
            }
            Err(error) => Err((SendError::Encode(error), ticket)),
        }
    }

    /// Answers a request of the peer with an encoded ILP packet. Returns the frame to write; `None`
    /// if the request is not open (already answered, or the session is closed).
    ///
    /// # Errors
    /// If the packet does not fit into a frame. The request stays open.
    pub fn respond(
        &mut self,
        request_id: RequestId,
        packet: Bytes,
    ) -> Result<Option<Bytes>, EncodeError> {
        if self.phase == Phase::Closed || !self.answering.contains(&request_id) {
            return Ok(None);
        }
        let frame = Frame::ilp_response(request_id, packet).encode()?;
        self.answering.remove(&request_id);
        Ok(Some(frame))
    }

    /// Refuses a request of the peer on the level of BTP, for requests that cannot be answered by
    /// an ILP packet. `None` if the request is not open.
    pub fn refuse_request(
        &mut self,
        now: Moment,
        request_id: RequestId,
        code: RefusalCode,
        text: &str,
    ) -> Option<Bytes> {
        if self.phase == Phase::Closed || !self.answering.remove(&request_id) {
            return None;
        }
        Frame::error(request_id, Refusal::new(code, now.wall, text))
            .encode()
            .ok()
    }

    /// When [`Self::handle_timeout`] has to be called, on the clock of `elapsed_ms`.
    #[must_use]
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.deadlines.first().map(|(deadline_ms, _)| *deadline_ms)
    }

    /// Gives up the requests whose deadline has come. Their tickets come back; a reply that arrives
    /// later is ignored.
    pub fn handle_timeout(&mut self, elapsed_ms: u64) -> Vec<T> {
        let mut given_up = Vec::new();
        while let Some(&(deadline_ms, request_id)) = self.deadlines.first() {
            if deadline_ms > elapsed_ms {
                break;
            }
            self.deadlines.pop_first();
            if let Some(pending) = self.pending.remove(&request_id) {
                given_up.push(pending.ticket);
            }
        }
        given_up
    }

    /// Closes the session. Everything that is open comes back.
    pub fn close(&mut self) -> OpenRequests<T> {
        self.phase = Phase::Closed;
        self.deadlines.clear();
        let pending = self.pending.drain();
        OpenRequests {
            pending: pending
                .map(|(id, pending)| (id, pending.deadline_ms, pending.ticket))
                .collect(),
            answering: self.answering.drain().collect(),
        }
    }

    /// Goes on with what an earlier session with the same peer has left open. To be called before
    /// anything is sent; deadlines are on the clock of this session's `elapsed_ms`.
    pub fn adopt(&mut self, open: OpenRequests<T>) {
        for (request_id, deadline_ms, ticket) in open.pending {
            let pending = Pending {
                ticket,
                deadline_ms,
            };
            self.pending.insert(request_id, pending);
            self.deadlines.insert((deadline_ms, request_id));
        }
        self.answering.extend(open.answering);
    }

    fn handle_unreadable(&mut self, error: DecodeError) -> Event<T> {
        self.unreadable = self.unreadable.saturating_add(1);
        if self.phase == Phase::Open && self.unreadable <= self.limits.max_unreadable {
            return Event::Ignored(Ignored::Unreadable(error));
        }
        self.phase = Phase::Closed;
        Event::Hangup(None, "unreadable frames")
    }

    fn handle_introduction(&mut self, now: Moment, frame: &Frame) -> Event<T> {
        match Credentials::from_frame(frame) {
            Ok(credentials) => {
                self.phase = Phase::Deciding(frame.request_id());
                Event::Introduced(credentials)
            }
            Err(error) => {
                self.phase = Phase::Closed;
                let refusal = Refusal::new(RefusalCode::NotAccepted, now.wall, &error.to_string());
                let answer = match frame {
                    Frame::Message { request_id, .. } | Frame::Transfer { request_id, .. } => {
                        Frame::error(*request_id, refusal).encode().ok()
                    }
                    Frame::Response { .. } | Frame::Error { .. } => None,
                };
                Event::Hangup(answer, "no authentication")
            }
        }
    }

    fn handle_greeting_reply(&mut self, expected: RequestId, frame: Frame) -> Event<T> {
        match frame {
            Frame::Response { request_id, .. } if request_id == expected => {
                self.phase = Phase::Open;
                Event::Opened
            }
            Frame::Error {
                request_id,
                refusal,
                ..
            } if request_id == expected => {
                self.phase = Phase::Closed;
                Event::Refused(refusal)
            }
            Frame::Response { request_id, .. } | Frame::Error { request_id, .. } => {
                Event::Ignored(Ignored::UnexpectedReply(request_id))
            }
            Frame::Message { .. } | Frame::Transfer { .. } => {
                self.phase = Phase::Closed;
                Event::Hangup(None, "request before the authentication was answered")
            }
        }
    }

    fn handle_open(&mut self, now: Moment, frame: Frame) -> Event<T> {
        let request_id = frame.request_id();
        let packet = frame.ilp().cloned();
        let ilp_kind = packet.as_ref().and_then(|packet| packet.first().copied());
        match frame {
            Frame::Message { .. } => match packet {
                Some(packet)
                    if matches!(ilp_kind, Some(kind::FULFILL | kind::REJECT))
                        && self.pending.contains_key(&request_id) =>
                {
                    // A peer with swapped frame types; see the module documentation of the crate.
                    self.handle_reply(request_id, Some(packet))
                }
                Some(packet) => self.handle_request(request_id, packet),
                None => Self::not_accepted(now, request_id, "message carries no ILP packet"),
            },
            Frame::Response { .. } => match packet {
                Some(packet) if ilp_kind == Some(kind::PREPARE) => {
                    self.handle_request(request_id, packet)
                }
                packet => self.handle_reply(request_id, packet),
            },
            Frame::Error { refusal, .. } => match self.take(request_id) {
                Some(ticket) => Event::RequestRefused(ticket, refusal),
                None => Event::Ignored(Ignored::UnexpectedReply(request_id)),
            },
            Frame::Transfer { .. } => {
                Self::not_accepted(now, request_id, "transfers are not supported")
            }
        }
    }

    fn handle_request(&mut self, request_id: RequestId, packet: Bytes) -> Event<T> {
        if self.answering.insert(request_id) {
            Event::Request(request_id, packet)
        } else {
            Event::Ignored(Ignored::RepeatedRequest(request_id))
        }
    }

    fn handle_reply(&mut self, request_id: RequestId, packet: Option<Bytes>) -> Event<T> {
        match self.take(request_id) {
            Some(ticket) => Event::Reply(ticket, packet),
            None => Event::Ignored(Ignored::UnexpectedReply(request_id)),
        }
    }

    fn take(&mut self, request_id: RequestId) -> Option<T> {
        let pending = self.pending.remove(&request_id)?;
        self.deadlines.remove(&(pending.deadline_ms, request_id));
        Some(pending.ticket)
    }

    fn not_accepted(now: Moment, request_id: RequestId, text: &str) -> Event<T> {
        let refusal = Refusal::new(RefusalCode::NotAccepted, now.wall, text);
        match Frame::error(request_id, refusal).encode() {
            Ok(frame) => Event::Answer(frame),
            Err(_) => Event::Ignored(Ignored::UnexpectedReply(request_id)),
        }
    }
}
