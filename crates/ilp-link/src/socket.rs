//! One BTP session on one WebSocket: the loop that reads, writes, and waits.
//!
//! A single task owns the socket. It never waits for the neighbour to read before it reads itself, so
//! two ends that both have much to send cannot block each other. What waits to be written is
//! bounded: requests of ours are refused early (T02), and a neighbour that lets replies pile up is
//! disconnected.
//!
//! Each turn takes what is ready from both sides. Before it writes, it lets every other task that is
//! ready run once: they have more for it, and one write carries all of that.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Future, SinkExt, Stream, StreamExt};
use ilp_btp::{
    Credentials, Event, Ignored, Moment, OpenRequests, RefusalCode, RequestId, SendError, Session,
};
use ilp_connector::{Answer, Clock, LinkError, ReplySink};
use ilp_packet::{ErrorCode, Packet, PacketError, Reply};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Interval, MissedTickBehavior, Sleep};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WebSocketError, Message};
use tokio_util::sync::CancellationToken;

use crate::handler::Inbound;
use crate::outbox::Outbox;
use crate::peer::{Command, Keep, Peer};

/// Requests of the neighbour that may be open at once; more get T03.
const MAX_ANSWERING: usize = 1024;
/// With so much waiting to be written, the neighbour is disconnected.
const MAX_QUEUE_BYTES: usize = 4 * 1024 * 1024;
/// Messages read before the loop gives the writer a turn.
const MAX_BATCH: usize = 128;
/// How long a request of ours may stay open, whatever its packet says.
const MAX_WAIT: Duration = Duration::from_secs(35);
/// How often the loop looks after pings and stalls.
const TICK: Duration = Duration::from_secs(1);
/// Ticks between two pings.
const PING_TICKS: u32 = 25;
/// A neighbour that is silent for so long is dead.
const DEAD_AFTER: Duration = Duration::from_secs(60);
/// A neighbour that takes nothing of what waits for it during so many ticks is dead.
const STALLED_TICKS: u32 = 30;
/// How long the goodbye may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Sizes for the WebSocket. Its buffers are per connection, so they are small.
pub(crate) fn websocket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(16 * 1024)
        .write_buffer_size(32 * 1024)
        .max_message_size(Some(ilp_btp::MAX_FRAME_BYTES))
        .max_frame_size(Some(ilp_btp::MAX_FRAME_BYTES))
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionEnd {
    /// The WebSocket handshake failed. No session came about.
    #[error("websocket handshake failed")]
    Handshake(#[source] WebSocketError),
    /// The peer did not authenticate in time. No session came about.
    #[error("authentication took too long")]
    HandshakeTimeout,
    /// Our credentials were refused. No session came about; the configuration has to change.
    #[error("authentication refused: {0}")]
    Refused(String),
    /// The peer said that it closes the connection.
    #[error("peer said goodbye")]
    Goodbye,
    /// The peer closed the connection without a word.
    #[error("peer closed the connection")]
    PeerClosed,
    /// We closed it: at shutdown, or because a newer socket has the same name.
    #[error("connection was closed here")]
    ClosedHere,
    /// The peer sent what BTP does not allow.
    #[error("peer broke the protocol: {0}")]
    Protocol(&'static str),
    /// The peer has been silent, or has read nothing, for too long.
    #[error("peer does not answer")]
    Dead,
    /// The connection broke.
    #[error("connection failed")]
    Io(#[source] WebSocketError),
    /// There are too many connections already. No session came about.
    #[error("too many connections")]
    TooMany,
}

impl SessionEnd {
    fn from_websocket(error: WebSocketError) -> Self {
        match error {
            WebSocketError::ConnectionClosed | WebSocketError::AlreadyClosed => Self::PeerClosed,
            other => Self::Io(other),
        }
    }
}

/// A WebSocket with its session. Its task owns it.
pub(crate) struct Socket<S> {
    websocket: WebSocketStream<S>,
    session: Session<Answer>,
    clock: Arc<dyn Clock>,
    cancel: CancellationToken,
    outbox: Outbox,
}

/// An open session at work.
struct Serving<'a, S> {
    socket: &'a mut Socket<S>,
    peer: &'a Peer,
    inbound: &'a Inbound,
    sink: Arc<dyn ReplySink>,
    commands: VecDeque<Command>,
    ticks: Interval,
    ticks_seen: u32,
    stalled_ticks: u32,
    written_before: u64,
    last_heard: Instant,
    /// The others have had their turn; now it is written.
    waited: bool,
    /// Rings at the earliest deadline, or before.
    alarm: Pin<Box<Sleep>>,
    alarm_ms: u64,
    ignored: u64,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// A socket whose WebSocket handshake is done. `cancel` closes it.
    pub(crate) fn new(
        websocket: WebSocketStream<S>,
        session: Session<Answer>,
        clock: Arc<dyn Clock>,
        cancel: CancellationToken,
    ) -> Self {
        Self {
            websocket,
            session,
            clock,
            cancel,
            outbox: Outbox::default(),
        }
    }

    /// Server: waits for the client's credentials. The caller sets the deadline.
    pub(crate) async fn introduced(&mut self) -> Result<Credentials, SessionEnd> {
        loop {
            let Some(message) = self.next_binary().await? else {
                continue;
            };
            let moment = self.moment();
            match self.session.handle_message(moment, &message) {
                Event::Introduced(credentials) => return Ok(credentials),
                Event::Hangup(answer, reason) => {
                    self.hang_up(answer).await;
                    return Err(SessionEnd::Protocol(reason));
                }
                _ => {}
            }
        }
    }

    /// Server: lets the client in.
    pub(crate) fn accept(&mut self) {
        if let Some(frame) = self.session.accept() {
            self.outbox.push(frame);
        }
    }

    /// Server: turns the client away.
    pub(crate) async fn refuse(&mut self, reason: &str) {
        let frame = self.session.refuse(self.moment(), reason);
        self.hang_up(frame).await;
    }

    /// Client: sends the credentials and waits for the answer. The caller sets the deadline.
    pub(crate) async fn introduce(&mut self, credentials: Bytes) -> Result<(), SessionEnd> {
        let sent = self.websocket.send(Message::Binary(credentials)).await;
        sent.map_err(SessionEnd::from_websocket)?;
        loop {
            let Some(message) = self.next_binary().await? else {
                continue;
            };
            let moment = self.moment();
            match self.session.handle_message(moment, &message) {
                Event::Opened => return Ok(()),
                Event::Refused(refusal) => return Err(SessionEnd::Refused(refusal.to_string())),
                Event::Hangup(answer, reason) => {
                    self.hang_up(answer).await;
                    return Err(SessionEnd::Protocol(reason));
                }
                _ => {}
            }
        }
    }

    /// Runs the open session until it ends, going on with what an earlier socket of the same
    /// neighbour left open. If this is dropped, what is open is given up.
    pub(crate) async fn run(
        mut self,
        peer: &Peer,
        inbound: &Inbound,
        open: OpenRequests<Answer>,
        keep: Keep,
    ) -> SessionEnd {
        self.session.adopt(open);
        let mut tenure = Tenure {
            peer,
            keep,
            open: Some(OpenRequests::default()),
        };
        let mut serving = Serving::new(&mut self, peer, inbound);
        let cancel = serving.socket.cancel.clone();
        let cancelled = cancel.cancelled();
        tokio::pin!(cancelled);
        let end = poll_fn(|context| {
            if cancelled.as_mut().poll(context).is_ready() {
                return Poll::Ready(SessionEnd::ClosedHere);
            }
            serving.poll(context)
        })
        .await;
        tracing::debug!(end = %end, ignored = serving.ignored, "BTP session ended");
        drop(serving);
        if matches!(end, SessionEnd::Goodbye) && keep == Keep::UnlessGoodbye {
            tenure.keep = Keep::Nothing;
        }
        // The next socket may be waiting for this.
        tenure.open = Some(self.session.close());
        drop(tenure);
        self.hang_up(None).await;
        end
    }

    fn moment(&self) -> Moment {
        Moment {
            elapsed_ms: 0,
            wall: self.clock.now(),
        }
    }

    /// The next binary message; `None` for a control frame.
    async fn next_binary(&mut self) -> Result<Option<Bytes>, SessionEnd> {
        match self.websocket.next().await {
            Some(Ok(Message::Binary(message))) => Ok(Some(message)),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Ok(None),
            Some(Ok(Message::Text(_))) => Err(SessionEnd::Protocol("text message")),
            Some(Ok(Message::Close(_))) => Err(SessionEnd::Goodbye),
            None => Err(SessionEnd::PeerClosed),
            Some(Err(error)) => Err(SessionEnd::from_websocket(error)),
        }
    }

    /// Writes a last frame if there is one, and says goodbye. Best effort, with a deadline.
    async fn hang_up(&mut self, last: Option<Bytes>) {
        if let Some(last) = last {
            self.outbox.push(last);
        }
        let Self {
            websocket, outbox, ..
        } = self;
        let goodbye = async {
            poll_fn(|context| outbox.poll_write(websocket, context)).await?;
            SinkExt::close(websocket).await
        };
        // The connection ends either way.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, goodbye).await;
    }
}

/// Gives the peer up when the session ends, however it ends.
struct Tenure<'a> {
    peer: &'a Peer,
    keep: Keep,
    open: Option<OpenRequests<Answer>>,
}

impl Drop for Tenure<'_> {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            self.peer.vacate(open, self.keep);
        }
    }
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Serving<'a, S> {
    fn new(socket: &'a mut Socket<S>, peer: &'a Peer, inbound: &'a Inbound) -> Self {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            socket,
            peer,
            inbound,
            sink: peer.sink(),
            commands: VecDeque::new(),
            ticks,
            ticks_seen: 0,
            stalled_ticks: 0,
            written_before: 0,
            last_heard: Instant::now(),
            waited: false,
            alarm: Box::pin(tokio::time::sleep(MAX_WAIT)),
            // Set for the first deadline, whenever that is.
            alarm_ms: u64::MAX,
            ignored: 0,
        }
    }

    /// One turn after another, until there is nothing to do or the session is over.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<SessionEnd> {
        self.peer.register(context);
        loop {
            match self.turn(context) {
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(end) => return Poll::Ready(end),
            }
        }
    }

    /// Says whether anything was done.
    fn turn(&mut self, context: &mut Context<'_>) -> Result<bool, SessionEnd> {
        let mut busy = false;
        let mut commands = std::mem::take(&mut self.commands);
        if self.peer.take(&mut commands) {
            busy = true;
            for command in commands.drain(..) {
                self.handle_command(command);
            }
        }
        self.commands = commands;
        for _ in 0..MAX_BATCH {
            match Pin::new(&mut self.socket.websocket).poll_next(context) {
                Poll::Ready(message) => {
                    busy = true;
                    self.handle_websocket(message)?;
                }
                Poll::Pending => break,
            }
        }
        if self.socket.outbox.is_dirty() && !std::mem::replace(&mut self.waited, true) {
            // Puts this task behind all others that are ready.
            context.waker().wake_by_ref();
        } else if self.socket.outbox.is_dirty() {
            let Socket {
                websocket, outbox, ..
            } = &mut *self.socket;
            let written = outbox.poll_write(websocket, context);
            self.waited = outbox.is_dirty();
            self.peer
                .set_queued_bytes(self.socket.outbox.waiting_bytes());
            match written {
                Poll::Ready(Ok(())) => busy = true,
                Poll::Ready(Err(error)) => return Err(SessionEnd::from_websocket(error)),
                Poll::Pending if self.socket.outbox.waiting_bytes() > MAX_QUEUE_BYTES => {
                    return Err(SessionEnd::Dead);
                }
                Poll::Pending => {}
            }
        }
        while self.ticks.poll_tick(context).is_ready() {
            busy = true;
            self.tick()?;
        }
        Ok(self.look_at_deadlines(context) || busy)
    }

    fn look_at_deadlines(&mut self, context: &mut Context<'_>) -> bool {
        let Some(next) = self.socket.session.next_deadline_ms() else {
            return false;
        };
        if next < self.alarm_ms {
            self.alarm_ms = next;
            self.alarm.as_mut().reset(self.peer.instant(next));
        }
        if self.alarm.as_mut().poll(context).is_pending() {
            return false;
        }
        // Rings early if the request that it was set for is answered by now; then it is set anew.
        self.alarm_ms = u64::MAX;
        let now = self.peer.elapsed_ms();
        for answer in self.socket.session.handle_timeout(now) {
            answer.complete(Err(LinkError::TimedOut));
        }
        true
    }

    fn tick(&mut self) -> Result<(), SessionEnd> {
        self.ticks_seen = self.ticks_seen.wrapping_add(1);
        let outbox = &mut self.socket.outbox;
        let moved = !outbox.is_dirty() || outbox.written() != self.written_before;
        self.written_before = outbox.written();
        self.stalled_ticks = if moved { 0 } else { self.stalled_ticks + 1 };
        if self.stalled_ticks >= STALLED_TICKS || self.last_heard.elapsed() >= DEAD_AFTER {
            return Err(SessionEnd::Dead);
        }
        if self.ticks_seen.is_multiple_of(PING_TICKS) {
            outbox.ping();
        }
        Ok(())
    }

    fn handle_websocket(
        &mut self,
        message: Option<Result<Message, WebSocketError>>,
    ) -> Result<(), SessionEnd> {
        match message {
            Some(Ok(Message::Binary(message))) => {
                self.last_heard = Instant::now();
                self.handle_message(&message)
            }
            Some(Ok(Message::Ping(_))) => {
                self.last_heard = Instant::now();
                // The WebSocket has queued the pong; a flush sends it.
                self.socket.outbox.flush_later();
                Ok(())
            }
            Some(Ok(Message::Pong(_) | Message::Frame(_))) => {
                self.last_heard = Instant::now();
                Ok(())
            }
            Some(Ok(Message::Text(_))) => Err(SessionEnd::Protocol("text message")),
            Some(Ok(Message::Close(_))) => Err(SessionEnd::Goodbye),
            None => Err(SessionEnd::PeerClosed),
            Some(Err(error)) => Err(SessionEnd::from_websocket(error)),
        }
    }

    fn handle_message(&mut self, message: &Bytes) -> Result<(), SessionEnd> {
        let moment = self.moment();
        match self.socket.session.handle_message(moment, message) {
            Event::Request(request_id, packet) => self.handle_request(request_id, packet),
            Event::Reply(answer, packet) => answer.complete(read_reply(packet)),
            Event::RequestRefused(answer, refusal) => {
                answer.complete(Err(LinkError::NotIlp(refusal.to_string())));
            }
            Event::Answer(frame) => self.socket.outbox.push(frame),
            Event::Hangup(answer, reason) => {
                self.enqueue(answer);
                return Err(SessionEnd::Protocol(reason));
            }
            Event::Ignored(ignored) => {
                self.ignored += 1;
                tracing::debug!(?ignored, "BTP frame without effect");
                if matches!(ignored, Ignored::UnexpectedReply(_)) {
                    self.inbound.note_unexpected_reply();
                }
            }
            // Only before the session is open, and it is.
            Event::Introduced(_) | Event::Opened | Event::Refused(_) => {}
        }
        Ok(())
    }

    fn handle_request(&mut self, request_id: RequestId, packet: Bytes) {
        let reject = match Packet::decode(packet) {
            Ok(Packet::Prepare(prepare)) if self.socket.session.answering() <= MAX_ANSWERING => {
                return self.inbound.start(request_id, prepare, &self.sink);
            }
            Ok(Packet::Prepare(_)) => self
                .inbound
                .reject(ErrorCode::ConnectorBusy, "too many requests at once"),
            Ok(Packet::Fulfill(_) | Packet::Reject(_)) => self
                .inbound
                .reject(ErrorCode::InvalidPacket, "a request must be a Prepare"),
            Err(PacketError::Destination(_)) => self
                .inbound
                .reject(ErrorCode::BadRequest, "invalid destination address"),
            Err(error) => {
                // Without a readable packet there is nothing that an ILP reply could answer.
                let text = format!("unreadable ILP packet: {error}");
                let now = self.moment();
                let code = RefusalCode::NotAccepted;
                let session = &mut self.socket.session;
                let frame = session.refuse_request(now, request_id, code, &text);
                return self.enqueue(frame);
            }
        };
        self.answer(request_id, &Packet::Reject(reject));
    }

    fn answer(&mut self, request_id: RequestId, reply: &Packet) {
        let session = &mut self.socket.session;
        let frame = match session.respond(request_id, reply.encode().into()) {
            Ok(frame) => frame,
            Err(error) => {
                tracing::warn!(%error, "reply does not fit into a BTP frame");
                let code = RefusalCode::NotAccepted;
                let moment = self.moment();
                self.socket
                    .session
                    .refuse_request(moment, request_id, code, "reply is too large")
            }
        };
        self.enqueue(frame);
    }

    fn handle_command(&mut self, command: Command) {
        let (packet, answer) = match command {
            Command::Send { packet, answer } => (packet, answer),
            Command::Reply { request_id, reply } => return self.answer(request_id, &reply.into()),
        };
        // A millisecond more, because the clock of deadlines drops what is less than one.
        let deadline_ms = self.peer.millis(answer.deadline()).saturating_add(1);
        let longest_ms = self.peer.millis(Instant::now() + MAX_WAIT);
        let request = self.socket.session.request(
            rand::random(),
            deadline_ms.min(longest_ms),
            packet,
            answer,
        );
        match request {
            Ok(frame) => self.socket.outbox.push(frame),
            Err((error, answer)) => answer.complete(Err(match error {
                SendError::NotOpen => LinkError::Closed,
                SendError::TooManyPending => LinkError::Busy,
                SendError::Encode(_) => LinkError::Unencodable,
            })),
        }
    }

    fn moment(&self) -> Moment {
        Moment {
            elapsed_ms: self.peer.elapsed_ms(),
            wall: self.socket.clock.now(),
        }
    }

    fn enqueue(&mut self, frame: Option<Bytes>) {
        if let Some(frame) = frame {
            self.socket.outbox.push(frame);
        }
    }
}

fn read_reply(packet: Option<Bytes>) -> Result<Reply, LinkError> {
    let Some(packet) = packet else {
        return Err(LinkError::NotIlp("response without an ILP packet".into()));
    };
    match Packet::decode(packet) {
        Ok(packet) => packet
            .into_reply()
            .ok_or_else(|| LinkError::NotIlp("a Prepare came back as the reply".into())),
        Err(error) => Err(LinkError::NotIlp(error.to_string())),
    }
}
