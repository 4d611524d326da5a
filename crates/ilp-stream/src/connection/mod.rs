//! The machine of one STREAM connection, for both roles (RFC 29 section 4).
//!
//! The contract is that of a sans-I/O machine: nothing here waits, sends or asks for the time.
//!
//! * Packets that arrive go into [`Connection::handle_prepare`]; what it accepts must come back
//!   through [`Connection::commit`] (after the amounts are durable) or [`Connection::refuse`].
//! * After every call, send what [`Connection::poll_transmit`] gives until it gives nothing, take
//!   the events from [`Connection::poll_event`], and come back with [`Connection::handle_timeout`]
//!   no later than [`Connection::poll_timeout`] says.
//! * Every transmitted Prepare gets exactly one [`Connection::handle_reply`].
//!
//! ```text
//!          first authentic packet            close, violation, F0x
//! Fresh ──────────────────────────▶ Connected ────────────────────▶ Closing ──told──▶ Closed
//!   └── idle ───────────────────────────┴── idle, ConnectionClose of the other end ──────▲
//! ```
//!
//! Traps that shaped the code:
//!
//! * Frames of the other end are also read from replies, and our news also ride in replies: a server
//!   may have no way to send packets of its own.
//! * An `F99` without data makes the JavaScript sender repeat its packet at once and for ever; every
//!   `F99` here carries a sealed answer.
//! * An amount is spent when the fulfillment is valid, even if the answer sealed next to it cannot be
//!   read: our connector has debited us.
//! * Packets are accepted in parallel, so amounts that wait for the ledger count against
//!   `receive_max`.

mod config;
mod congestion;
mod data;
mod event;
mod frames;
mod incoming;
mod outgoing;
mod replay;
mod stream;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use bytes::Bytes;
use ilp_packet::{Address, ErrorCode, Timestamp};

pub use config::{AssetDetails, Config, Rate, Role};
pub use event::{Accepted, CloseReason, CommandError, Event, Incoming, Transmit};

use crate::frame::{StreamErrorCode, StreamId};
use crate::seal::{Entropy, Keys, SharedSecret};
use config::{
    CONNECTION_DATA_WINDOW, INITIAL_MAX_STREAM_ID, MAX_CLOSE_MESSAGE, MAX_FINISHED,
    MAX_SEND_BUFFER, MAX_SEQUENCE,
};
use congestion::Congestion;
use outgoing::InFlight;
use replay::ReplayWindow;
use stream::{Phase, Stream};

/// One connection.
pub struct Connection {
    role: Role,
    config: Config,
    keys: Keys,
    entropy: Box<dyn Entropy + Send>,
    state: State,

    remote_address: Option<Address>,
    remote_asset: Option<AssetDetails>,
    /// The other end has answered a packet that carried our address.
    remote_knows_us: bool,
    connected_unreported: bool,
    closed_unreported: bool,
    last_heard: Timestamp,
    last_reject: Option<ErrorCode>,

    streams: BTreeMap<StreamId, Stream>,
    /// Streams with something to report.
    noteworthy: BTreeSet<StreamId>,
    /// Totals (sent, received) of the streams that were closed last.
    finished: VecDeque<(StreamId, u64, u64)>,
    next_local_stream: u64,
    next_remote_stream: u64,
    local_max_stream_id: u64,
    remote_max_stream_id: u64,

    total_sent: u64,
    total_received: u64,
    total_delivered: u64,

    replay: ReplayWindow,
    pending_packets: usize,

    next_sequence: u64,
    in_flight: BTreeMap<u64, InFlight>,
    congestion: Congestion,
    /// There is news that no packet on its way carries.
    news: bool,
    ask_again_at: Timestamp,
    shortfalls: u32,

    /// Sum over all streams, of streams that are gone too.
    data_received: u64,
    data_read: u64,
    /// What we last said we take on the whole connection.
    data_advertised: u64,
    data_sent: u64,
    remote_max_data: u64,
}

/// How far the connection is.
#[derive(Debug)]
enum State {
    /// Nothing authentic arrived yet.
    Fresh,
    /// The other end exists.
    Connected,
    /// The close has still to be told.
    Closing {
        reason: CloseReason,
        code: StreamErrorCode,
        message: String,
        in_flight: bool,
    },
    /// It is over. Late replies are still counted.
    Closed { reason: CloseReason },
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("role", &self.role)
            .field("state", &self.state)
            .field("streams", &self.streams.len())
            .field("in_flight", &self.in_flight.len())
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// The client's end: it knows where the server receives.
    pub fn client(
        now: Timestamp,
        config: Config,
        shared_secret: &SharedSecret,
        server: Address,
        entropy: Box<dyn Entropy + Send>,
    ) -> Self {
        Self::new(
            Role::Client,
            now,
            config,
            shared_secret,
            Some(server),
            entropy,
        )
    }

    /// The server's end: it learns where the client receives from the client's packets.
    pub fn server(
        now: Timestamp,
        config: Config,
        shared_secret: &SharedSecret,
        entropy: Box<dyn Entropy + Send>,
    ) -> Self {
        Self::new(Role::Server, now, config, shared_secret, None, entropy)
    }

    fn new(
        role: Role,
        now: Timestamp,
        config: Config,
        shared_secret: &SharedSecret,
        remote_address: Option<Address>,
        entropy: Box<dyn Entropy + Send>,
    ) -> Self {
        let (local, remote) = match role {
            Role::Client => (1, 2),
            Role::Server => (2, 1),
        };
        Self {
            role,
            keys: Keys::new(&shared_secret.0),
            entropy,
            state: State::Fresh,
            remote_address,
            remote_asset: None,
            // A server's client knows where it sends to.
            remote_knows_us: role == Role::Server,
            connected_unreported: false,
            closed_unreported: false,
            last_heard: now,
            last_reject: None,
            streams: BTreeMap::new(),
            noteworthy: BTreeSet::new(),
            finished: VecDeque::new(),
            next_local_stream: local,
            next_remote_stream: remote,
            local_max_stream_id: INITIAL_MAX_STREAM_ID,
            remote_max_stream_id: INITIAL_MAX_STREAM_ID,
            total_sent: 0,
            total_received: 0,
            total_delivered: 0,
            replay: ReplayWindow::default(),
            pending_packets: 0,
            next_sequence: 1,
            in_flight: BTreeMap::new(),
            congestion: Congestion::new(config.max_in_flight, config.max_packet_amount),
            // A client introduces itself; a server waits to be spoken to.
            news: role == Role::Client,
            ask_again_at: now,
            shortfalls: 0,
            data_received: 0,
            data_read: 0,
            data_advertised: CONNECTION_DATA_WINDOW,
            data_sent: 0,
            remote_max_data: CONNECTION_DATA_WINDOW,
            config,
        }
    }

    // ---- commands -------------------------------------------------------------------------------

    /// Opens a stream. The other end hears of it with the next packet.
    pub fn open_stream(&mut self) -> Result<StreamId, CommandError> {
        self.check_alive()?;
        if self.next_local_stream > self.remote_max_stream_id {
            return Err(CommandError::TooManyStreams);
        }
        let id = StreamId(self.next_local_stream);
        self.next_local_stream += 2;
        self.streams.insert(id, Stream::new(id));
        self.news = true;
        Ok(id)
    }

    /// Sets how much may be sent on a stream in all, in our units. It is sent as soon and as far as
    /// the other end takes it.
    pub fn set_send_max(&mut self, stream: StreamId, send_max: u64) -> Result<(), CommandError> {
        let rate = self.config.rate;
        let state = self.open_stream_mut(stream)?;
        let least = state.total_sent + state.held;
        if send_max < least {
            return Err(CommandError::LimitTooLow {
                wanted: send_max,
                least,
            });
        }
        state.send_max = send_max;
        if state.is_money_blocked(rate) {
            self.news = true;
        }
        Ok(())
    }

    /// Sets how much is taken on a stream in all, in our units. It can only be raised (RFC 29
    /// section 4.4.4).
    pub fn set_receive_max(
        &mut self,
        stream: StreamId,
        receive_max: u64,
    ) -> Result<(), CommandError> {
        let state = self.open_stream_mut(stream)?;
        if receive_max < state.receive_max {
            let least = state.receive_max;
            return Err(CommandError::LimitTooLow {
                wanted: receive_max,
                least,
            });
        }
        if receive_max > state.receive_max {
            state.receive_max = receive_max;
            self.news = true;
        }
        Ok(())
    }

    /// Appends data to a stream.
    pub fn write(&mut self, stream: StreamId, data: Bytes) -> Result<(), CommandError> {
        let state = self.open_stream_mut(stream)?;
        if state.outgoing.len() + data.len() > MAX_SEND_BUFFER {
            return Err(CommandError::BufferFull);
        }
        state.outgoing.push(data);
        Ok(())
    }

    /// Closes a stream. Data that was written, and money that the other end takes, still goes out
    /// first.
    pub fn close_stream(
        &mut self,
        stream: StreamId,
        code: StreamErrorCode,
        message: &str,
    ) -> Result<(), CommandError> {
        let message = shortened(message);
        let state = self.open_stream_mut(stream)?;
        state.phase = Phase::Closing {
            close_in_flight: false,
        };
        state.note_closing(code, message);
        self.news = true;
        Ok(())
    }

    /// Closes the connection. Money that waits is not sent any more; what is on its way is counted.
    pub fn close(&mut self, code: StreamErrorCode, message: &str) {
        let reason = CloseReason::Local {
            code,
            message: shortened(message),
        };
        self.end(reason, code, message);
    }

    // ---- questions ------------------------------------------------------------------------------

    /// Which end this is.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Where the other end receives.
    pub fn remote_address(&self) -> Option<&Address> {
        self.remote_address.as_ref()
    }

    /// The asset of the other end.
    pub fn remote_asset(&self) -> Option<&AssetDetails> {
        self.remote_asset.as_ref()
    }

    /// Whether an authentic packet of the other end has arrived and the connection is not closed.
    pub fn is_connected(&self) -> bool {
        matches!(self.state, State::Connected)
    }

    /// Why the connection is over, if it is. It may still have to tell the other end.
    pub fn close_reason(&self) -> Option<&CloseReason> {
        match &self.state {
            State::Fresh | State::Connected => None,
            State::Closing { reason, .. } | State::Closed { reason } => Some(reason),
        }
    }

    /// Whether nothing is left to do: the connection is closed, every packet was answered, every
    /// event was taken.
    pub fn is_drained(&self) -> bool {
        matches!(self.state, State::Closed { .. })
            && self.in_flight.is_empty()
            && self.pending_packets == 0
            && !self.closed_unreported
            && self.noteworthy.is_empty()
    }

    /// Sent on a stream so far, in our units; also of the streams that were closed last.
    pub fn stream_sent(&self, stream: StreamId) -> Option<u64> {
        let open = self.streams.get(&stream).map(|state| state.total_sent);
        open.or_else(|| {
            self.finished
                .iter()
                .find(|it| it.0 == stream)
                .map(|it| it.1)
        })
    }

    /// Received on a stream so far; also of the streams that were closed last.
    pub fn stream_received(&self, stream: StreamId) -> Option<u64> {
        let open = self.streams.get(&stream).map(|state| state.total_received);
        open.or_else(|| {
            self.finished
                .iter()
                .find(|it| it.0 == stream)
                .map(|it| it.2)
        })
    }

    /// What we take on a stream in all.
    pub fn receive_max(&self, stream: StreamId) -> Option<u64> {
        self.streams.get(&stream).map(|state| state.receive_max)
    }

    /// What the other end takes on a stream in all, in its units; zero if it has not said so.
    pub fn remote_receive_max(&self, stream: StreamId) -> Option<u64> {
        self.streams
            .get(&stream)
            .map(|state| state.remote_receive_max)
    }

    /// Sent on a stream and not answered yet, in our units.
    pub fn stream_held(&self, stream: StreamId) -> Option<u64> {
        self.streams.get(&stream).map(|state| state.held)
    }

    /// Bytes that were written to a stream and that the other end has not confirmed.
    pub fn unconfirmed_data(&self, stream: StreamId) -> Option<usize> {
        self.streams.get(&stream).map(|state| state.outgoing.len())
    }

    /// Sent over all streams, in our units.
    pub fn total_sent(&self) -> u64 {
        self.total_sent
    }

    /// Received over all streams.
    pub fn total_received(&self) -> u64 {
        self.total_received
    }

    /// What the other end says has arrived, in its units.
    pub fn total_delivered(&self) -> u64 {
        self.total_delivered
    }

    /// The streams that are not closed.
    pub fn open_streams(&self) -> impl Iterator<Item = StreamId> {
        self.streams
            .values()
            .filter(|state| state.is_open())
            .map(|state| state.id)
    }

    // ---- events and time ------------------------------------------------------------------------

    /// The next thing that the owner should know.
    pub fn poll_event(&mut self) -> Option<Event> {
        if std::mem::take(&mut self.connected_unreported) {
            return Some(Event::Connected {
                remote_address: self.remote_address.clone(),
                remote_asset: self.remote_asset.clone(),
            });
        }
        while let Some(id) = self.noteworthy.first().copied() {
            let Some(stream) = self.streams.get_mut(&id) else {
                self.noteworthy.remove(&id);
                continue;
            };
            if let Some(event) = stream.poll_event() {
                if let Event::Data { data, .. } = &event {
                    self.data_read = self.data_read.saturating_add(data.len() as u64);
                    // Say so before the other end has used up what we told it.
                    let half = CONNECTION_DATA_WINDOW / 2;
                    if self.data_received.saturating_add(half) > self.data_advertised
                        || stream.incoming.received_to() + config::STREAM_DATA_WINDOW / 2
                            > stream.max_data()
                    {
                        self.news = true;
                    }
                }
                return Some(event);
            }
            self.noteworthy.remove(&id);
            self.remove_if_over(id);
        }
        if std::mem::take(&mut self.closed_unreported)
            && let Some(reason) = self.close_reason()
        {
            return Some(Event::Closed {
                reason: reason.clone(),
            });
        }
        None
    }

    /// When [`Connection::handle_timeout`] has to be called at the latest.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        if matches!(self.state, State::Closed { .. }) {
            return None;
        }
        let mut next = self.last_heard.plus_millis(self.config.idle_timeout_millis);
        if self.wants_to_ask() {
            next = next.min(self.ask_again_at.max(self.congestion.pause_until()));
        }
        if self.has_something_to_send() && self.in_flight.len() < self.congestion.window() {
            next = next.min(self.congestion.pause_until());
        }
        Some(next)
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        let idle_at = self.last_heard.plus_millis(self.config.idle_timeout_millis);
        if now >= idle_at && !matches!(self.state, State::Closed { .. }) {
            self.closed(CloseReason::Idle {
                last_reject: self.last_reject,
            });
        }
        if now >= self.ask_again_at && self.wants_to_ask() {
            self.news = true;
        }
    }

    // ---- shared by the parts --------------------------------------------------------------------

    /// Money waits only because the other end does not take it.
    fn wants_to_ask(&self) -> bool {
        let rate = self.config.rate;
        self.config.ask_again_millis > 0
            && matches!(self.state, State::Connected)
            && self.remote_address.is_some()
            && self.in_flight.is_empty()
            && self
                .streams
                .values()
                .any(|stream| stream.is_money_blocked(rate))
    }

    fn check_alive(&self) -> Result<(), CommandError> {
        match self.state {
            State::Fresh | State::Connected => Ok(()),
            State::Closing { .. } | State::Closed { .. } => Err(CommandError::Closed),
        }
    }

    fn open_stream_mut(&mut self, id: StreamId) -> Result<&mut Stream, CommandError> {
        self.check_alive()?;
        let stream = self.streams.get_mut(&id).filter(|stream| stream.is_open());
        stream.ok_or(CommandError::NoStream(id))
    }

    /// An authentic packet of the other end arrived.
    fn heard(&mut self, now: Timestamp) {
        self.last_heard = self.last_heard.max(now);
        self.congestion.on_answer();
        if matches!(self.state, State::Fresh) {
            self.state = State::Connected;
            self.connected_unreported = true;
        }
    }

    /// The connection ends and the other end is to be told.
    fn end(&mut self, reason: CloseReason, code: StreamErrorCode, message: &str) {
        if self.check_alive().is_err() {
            return;
        }
        if self.remote_address.is_none() {
            // There is only the next reply to say it in.
            self.closed(reason);
            return;
        }
        let message = shortened(message);
        self.state = State::Closing {
            reason,
            code,
            message,
            in_flight: false,
        };
        self.finish_streams();
    }

    /// The connection is over.
    fn closed(&mut self, reason: CloseReason) {
        match &self.state {
            State::Closed { .. } => return,
            // The first reason is the one that matters.
            State::Closing { reason, .. } => {
                self.state = State::Closed {
                    reason: reason.clone(),
                }
            }
            State::Fresh | State::Connected => self.state = State::Closed { reason },
        }
        self.closed_unreported = true;
        self.connected_unreported = false;
        self.finish_streams();
    }

    fn finish_streams(&mut self) {
        for (id, stream) in &mut self.streams {
            stream.finish(StreamErrorCode::NoError, String::new());
            self.noteworthy.insert(*id);
        }
    }

    fn remove_if_over(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get(&id).filter(|stream| stream.is_removable()) else {
            return;
        };
        self.finished
            .push_back((id, stream.total_sent, stream.total_received));
        if self.finished.len() > MAX_FINISHED {
            self.finished.pop_front();
        }
        self.streams.remove(&id);
        if !self.is_local(id) {
            self.local_max_stream_id = self.local_max_stream_id.saturating_add(2);
            self.news = true;
        }
    }

    fn is_local(&self, id: StreamId) -> bool {
        id.is_client_initiated() == (self.role == Role::Client)
    }

    fn iv(&mut self) -> [u8; 12] {
        let mut iv = [0; 12];
        self.entropy.fill(&mut iv);
        iv
    }

    /// Sequence of the next Prepare; none when the keys of the connection are used up.
    fn take_sequence(&mut self) -> Option<u64> {
        let sequence = self.next_sequence;
        if sequence >= MAX_SEQUENCE {
            return None;
        }
        self.next_sequence += 1;
        Some(sequence)
    }
}

fn shortened(message: &str) -> String {
    let mut end = message.len().min(MAX_CLOSE_MESSAGE);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message[..end].to_owned()
}
