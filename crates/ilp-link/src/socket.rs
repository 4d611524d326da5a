//! One BTP session on one WebSocket: the loop that reads, writes, and waits.
//!
//! A single task owns the socket. It never waits for the peer to read before it reads itself, so
//! two ends that both have much to send cannot block each other. What waits to be written is
//! bounded: requests of ours are refused early (T02), and a peer that lets replies pile up is
//! disconnected.
//!
//! Frames are queued and written together, with one flush for whatever is ready at the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, SplitSink, SplitStream};
use futures_util::{FutureExt, SinkExt, StreamExt};
use ilp_btp::{Credentials, Event, Moment, RefusalCode, RequestId, SendError, Session};
use ilp_connector::{Clock, Link, LinkError};
use ilp_packet::{ErrorCode, Packet, PacketError, Prepare, Reply};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WebSocketError, Message};
use tokio_util::sync::CancellationToken;

use crate::handler::{Answering, Inbound};
use crate::outbox::Outbox;

/// Requests that may wait to be taken up by the socket's task.
const MAX_COMMANDS: usize = 1024;
/// Requests of the peer that may be open at once; more get T03.
const MAX_ANSWERING: usize = 1024;
/// With so much waiting to be written, requests of ours are refused with T02.
const BUSY_QUEUE_BYTES: usize = 1024 * 1024;
/// With so much waiting to be written, the peer is disconnected.
const MAX_QUEUE_BYTES: usize = 4 * 1024 * 1024;
/// Events handled before the loop gives the writer a turn.
const MAX_BATCH: usize = 128;
/// How long a request of ours may stay open, whatever its packet says.
const MAX_WAIT: Duration = Duration::from_secs(35);
/// How often the loop looks after deadlines, pings and stalls.
const TICK: Duration = Duration::from_secs(1);
/// Ticks between two pings.
const PING_TICKS: u32 = 25;
/// A peer that is silent for so long is dead.
const DEAD_AFTER: Duration = Duration::from_secs(60);
/// A peer that takes nothing of what waits for it during so many ticks is dead.
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
    /// The peer closed the connection.
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

type Ticket = oneshot::Sender<Result<Reply, LinkError>>;

/// A request on its way to the socket's task.
struct Command {
    packet: Bytes,
    wait: Duration,
    ticket: Ticket,
}

/// The sending side of one socket. Clones are the same socket.
#[derive(Clone)]
pub struct SocketLink {
    commands: mpsc::Sender<Command>,
    queued_bytes: Arc<AtomicUsize>,
    cancel: CancellationToken,
    clock: Arc<dyn Clock>,
}

impl SocketLink {
    /// Closes the socket. Requests that are open end with [`LinkError::Closed`].
    pub fn close(&self) {
        self.cancel.cancel();
    }

    /// Whether the socket is gone, or about to go.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.cancel.is_cancelled() || self.commands.is_closed()
    }

    /// Returns when the socket is gone.
    pub async fn closed(&self) {
        self.commands.closed().await;
    }
}

#[async_trait]
impl Link for SocketLink {
    async fn send(&self, prepare: Prepare) -> Result<Reply, LinkError> {
        if self.queued_bytes.load(Ordering::Relaxed) > BUSY_QUEUE_BYTES {
            return Err(LinkError::Busy);
        }
        let wait = prepare.expires_at.since(self.clock.now()).min(MAX_WAIT);
        let (ticket, reply) = oneshot::channel();
        let command = Command {
            packet: prepare.encode().into(),
            wait,
            ticket,
        };
        self.commands
            .try_send(command)
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => LinkError::Busy,
                mpsc::error::TrySendError::Closed(_) => LinkError::Closed,
            })?;
        // The task drops the ticket when the connection closes.
        reply.await.unwrap_or(Err(LinkError::Closed))
    }
}

impl std::fmt::Debug for SocketLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SocketLink")
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

/// A socket and everything its task owns.
pub(crate) struct Socket<S> {
    sink: SplitSink<WebSocketStream<S>, Message>,
    stream: SplitStream<WebSocketStream<S>>,
    commands: mpsc::Receiver<Command>,
    cancel: CancellationToken,
    state: State,
}

/// The part of a socket that handles events without waiting.
struct State {
    session: Session<Ticket>,
    clock: Arc<dyn Clock>,
    started: Instant,
    last_heard: Instant,
    outbox: Outbox,
    answering: FuturesUnordered<Answering>,
    ignored: u64,
    late_replies: u64,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// A socket whose WebSocket handshake is done, and the link that sends over it.
    pub(crate) fn new(
        websocket: WebSocketStream<S>,
        session: Session<Ticket>,
        clock: Arc<dyn Clock>,
        cancel: CancellationToken,
    ) -> (Self, SocketLink) {
        let (sink, stream) = websocket.split();
        let (sender, commands) = mpsc::channel(MAX_COMMANDS);
        let outbox = Outbox::default();
        let link = SocketLink {
            commands: sender,
            queued_bytes: outbox.bytes(),
            cancel: cancel.clone(),
            clock: clock.clone(),
        };
        let now = Instant::now();
        let state = State {
            session,
            clock,
            started: now,
            last_heard: now,
            outbox,
            answering: FuturesUnordered::new(),
            ignored: 0,
            late_replies: 0,
        };
        (
            Self {
                sink,
                stream,
                commands,
                cancel,
                state,
            },
            link,
        )
    }

    /// Server: waits for the client's credentials. The caller sets the deadline.
    pub(crate) async fn introduced(&mut self) -> Result<Credentials, SessionEnd> {
        loop {
            let Some(message) = self.next_binary().await? else {
                continue;
            };
            match self
                .state
                .session
                .handle_message(self.state.moment(), &message)
            {
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
        let frame = self.state.session.accept();
        self.state.enqueue(frame);
    }

    /// Server: turns the client away.
    pub(crate) async fn refuse(&mut self, reason: &str) {
        let frame = self.state.session.refuse(self.state.moment(), reason);
        self.hang_up(frame).await;
    }

    /// Client: sends the credentials and waits for the answer. The caller sets the deadline.
    pub(crate) async fn introduce(&mut self, credentials: Bytes) -> Result<(), SessionEnd> {
        let sent = self.sink.send(Message::Binary(credentials)).await;
        sent.map_err(SessionEnd::from_websocket)?;
        loop {
            let Some(message) = self.next_binary().await? else {
                continue;
            };
            match self
                .state
                .session
                .handle_message(self.state.moment(), &message)
            {
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

    /// Runs the open session until it ends. With `until_unused`, it ends when the last clone of the
    /// link is dropped.
    pub(crate) async fn run(mut self, inbound: Inbound, until_unused: bool) -> SessionEnd {
        let end = self.serve(&inbound, until_unused).await;
        // Open requests end with `Closed`; their tickets are dropped here.
        drop(self.state.session.close());
        self.hang_up(None).await;
        tracing::debug!(
            end = %end,
            ignored = self.state.ignored,
            late_replies = self.state.late_replies,
            "BTP session ended"
        );
        end
    }

    // Everything awaited in the `select!` may be dropped at any time: nothing is lost that is not
    // in `self`.
    async fn serve(&mut self, inbound: &Inbound, until_unused: bool) -> SessionEnd {
        let Self {
            sink,
            stream,
            commands,
            cancel,
            state,
        } = self;
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ticks_seen: u32 = 0;
        let mut stalled_ticks: u32 = 0;
        let mut written_before = 0;
        let mut commands_open = true;
        loop {
            let handled = tokio::select! {
                () = cancel.cancelled() => Err(SessionEnd::ClosedHere),
                message = stream.next() => state.handle_websocket(inbound, message),
                command = commands.recv(), if commands_open => match command {
                    Some(command) => {
                        state.handle_command(command);
                        Ok(())
                    }
                    None if until_unused => Err(SessionEnd::ClosedHere),
                    None => {
                        // Nobody here can send any more, but the peer still may.
                        commands_open = false;
                        Ok(())
                    }
                },
                Some((id, reply)) = state.answering.next(), if !state.answering.is_empty() => {
                    state.answer(id, &reply.into());
                    Ok(())
                }
                written = state.outbox.write(sink), if state.outbox.is_dirty() => {
                    written.map_err(SessionEnd::from_websocket)
                }
                _ = ticks.tick() => {
                    ticks_seen = ticks_seen.wrapping_add(1);
                    let written = state.outbox.written();
                    let moved = !state.outbox.is_dirty() || written != written_before;
                    written_before = written;
                    stalled_ticks = if moved { 0 } else { stalled_ticks + 1 };
                    let ping = ticks_seen.is_multiple_of(PING_TICKS);
                    if stalled_ticks < STALLED_TICKS { state.tick(ping) } else { Err(SessionEnd::Dead) }
                }
            };
            if let Err(end) = handled.and_then(|()| state.drain(inbound, stream, commands)) {
                return end;
            }
        }
    }

    /// The next binary message; `None` for a control frame.
    async fn next_binary(&mut self) -> Result<Option<Bytes>, SessionEnd> {
        match self.stream.next().await {
            Some(Ok(Message::Binary(message))) => Ok(Some(message)),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Ok(None),
            Some(Ok(Message::Text(_))) => Err(SessionEnd::Protocol("text message")),
            Some(Ok(Message::Close(_))) | None => Err(SessionEnd::PeerClosed),
            Some(Err(error)) => Err(SessionEnd::from_websocket(error)),
        }
    }

    /// Writes a last frame if there is one, and says goodbye. Best effort, with a deadline.
    async fn hang_up(&mut self, last: Option<Bytes>) {
        self.state.enqueue(last);
        let goodbye = async {
            self.state.outbox.write(&mut self.sink).await?;
            self.sink.close().await
        };
        // The connection ends either way.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, goodbye).await;
    }
}

impl State {
    fn moment(&self) -> Moment {
        Moment {
            elapsed_ms: self.elapsed_ms(),
            wall: self.clock.now(),
        }
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Handles what else is ready already, so that it is written together.
    fn drain<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        inbound: &Inbound,
        stream: &mut SplitStream<WebSocketStream<S>>,
        commands: &mut mpsc::Receiver<Command>,
    ) -> Result<(), SessionEnd> {
        for _ in 0..MAX_BATCH {
            let mut idle = true;
            if let Some(message) = stream.next().now_or_never() {
                self.handle_websocket(inbound, message)?;
                idle = false;
            }
            if let Ok(command) = commands.try_recv() {
                self.handle_command(command);
                idle = false;
            }
            if let Some(Some((id, reply))) = self.answering.next().now_or_never() {
                self.answer(id, &reply.into());
                idle = false;
            }
            if idle {
                break;
            }
        }
        if self.outbox.waiting_bytes() > MAX_QUEUE_BYTES {
            return Err(SessionEnd::Dead);
        }
        Ok(())
    }

    fn handle_websocket(
        &mut self,
        inbound: &Inbound,
        message: Option<Result<Message, WebSocketError>>,
    ) -> Result<(), SessionEnd> {
        self.last_heard = Instant::now();
        match message {
            Some(Ok(Message::Binary(message))) => self.handle_message(inbound, &message),
            Some(Ok(Message::Ping(_))) => {
                // The WebSocket has queued the pong; a flush sends it.
                self.outbox.flush_later();
                Ok(())
            }
            Some(Ok(Message::Pong(_) | Message::Frame(_))) => Ok(()),
            Some(Ok(Message::Text(_))) => Err(SessionEnd::Protocol("text message")),
            Some(Ok(Message::Close(_))) | None => Err(SessionEnd::PeerClosed),
            Some(Err(error)) => Err(SessionEnd::from_websocket(error)),
        }
    }

    fn handle_message(&mut self, inbound: &Inbound, message: &Bytes) -> Result<(), SessionEnd> {
        match self.session.handle_message(self.moment(), message) {
            Event::Request(request_id, packet) => self.handle_request(inbound, request_id, packet),
            Event::Reply(ticket, packet) => self.settle(ticket, read_reply(packet)),
            Event::RequestRefused(ticket, refusal) => {
                self.settle(ticket, Err(LinkError::NotIlp(refusal.to_string())));
            }
            Event::Answer(frame) => self.enqueue(Some(frame)),
            Event::Hangup(answer, reason) => {
                self.enqueue(answer);
                return Err(SessionEnd::Protocol(reason));
            }
            Event::Ignored(ignored) => {
                self.ignored += 1;
                tracing::debug!(?ignored, "BTP frame without effect");
            }
            // Only before the session is open, and it is.
            Event::Introduced(_) | Event::Opened | Event::Refused(_) => {}
        }
        Ok(())
    }

    fn handle_request(&mut self, inbound: &Inbound, request_id: RequestId, packet: Bytes) {
        let reject = match Packet::decode(packet) {
            Ok(Packet::Prepare(prepare)) if self.session.answering() <= MAX_ANSWERING => {
                self.answering.push(inbound.start(request_id, prepare));
                return;
            }
            Ok(Packet::Prepare(_)) => {
                inbound.reject(ErrorCode::ConnectorBusy, "too many requests at once")
            }
            Ok(Packet::Fulfill(_) | Packet::Reject(_)) => {
                inbound.reject(ErrorCode::InvalidPacket, "a request must be a Prepare")
            }
            Err(PacketError::Destination(_)) => {
                inbound.reject(ErrorCode::BadRequest, "invalid destination address")
            }
            Err(error) => {
                // Without a readable packet there is nothing that an ILP reply could answer.
                let text = format!("unreadable ILP packet: {error}");
                let now = self.moment();
                let code = RefusalCode::NotAccepted;
                let frame = self.session.refuse_request(now, request_id, code, &text);
                self.enqueue(frame);
                return;
            }
        };
        self.answer(request_id, &Packet::Reject(reject));
    }

    fn answer(&mut self, request_id: RequestId, reply: &Packet) {
        let frame = match self.session.respond(request_id, reply.encode().into()) {
            Ok(frame) => frame,
            Err(error) => {
                tracing::warn!(%error, "reply does not fit into a BTP frame");
                let code = RefusalCode::NotAccepted;
                self.session
                    .refuse_request(self.moment(), request_id, code, "reply is too large")
            }
        };
        self.enqueue(frame);
    }

    fn handle_command(&mut self, command: Command) {
        let Command {
            packet,
            wait,
            ticket,
        } = command;
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let deadline_ms = self.elapsed_ms().saturating_add(wait_ms);
        match self
            .session
            .request(rand::random(), deadline_ms, packet, ticket)
        {
            Ok(frame) => self.enqueue(Some(frame)),
            Err((error, ticket)) => {
                let error = match error {
                    SendError::NotOpen => LinkError::Closed,
                    SendError::TooManyPending => LinkError::Busy,
                    SendError::Encode(_) => LinkError::Unencodable,
                };
                self.settle(ticket, Err(error));
            }
        }
    }

    fn settle(&mut self, ticket: Ticket, reply: Result<Reply, LinkError>) {
        // The requester may have given up; then the reply has no effect.
        if ticket.send(reply).is_err() {
            self.late_replies += 1;
        }
    }

    fn tick(&mut self, ping: bool) -> Result<(), SessionEnd> {
        if self.last_heard.elapsed() >= DEAD_AFTER {
            return Err(SessionEnd::Dead);
        }
        for ticket in self.session.handle_timeout(self.elapsed_ms()) {
            self.settle(ticket, Err(LinkError::TimedOut));
        }
        if ping {
            self.outbox.ping();
        }
        Ok(())
    }

    fn enqueue(&mut self, frame: Option<Bytes>) {
        if let Some(frame) = frame {
            self.outbox.push(frame);
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
