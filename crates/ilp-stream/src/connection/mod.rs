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
//!   may have no way to send packets of its own. Data does so only then, or if the owner asks for it.
//! * The JavaScript end leaves when it hears that the connection is over. While it waits for a reply of
//!   ours, the reply is where it hears it, and no packet that could overtake the reply.
//! * An `F99` without data makes the JavaScript sender repeat its packet at once and for ever; every
//!   `F99` here carries a sealed answer.
//! * An amount is spent when the fulfillment is valid, even if the answer sealed next to it cannot be
//!   read: our connector has debited us.
//! * Without a rate no money moves: a connection that probes first knows what a packet must deliver.
//! * What a stream was told it may send is given back to the connection when the stream ends, or the
//!   bytes of streams that are gone would use up the window of the connection for ever.
//! * Packets are accepted in parallel, so amounts that wait for the ledger count against
//!   `receive_max`.

mod commands;
mod config;
mod congestion;
mod data;
mod event;
mod frames;
mod incoming;
mod outgoing;
mod probe;
mod rate;
mod replay;
mod replies;
mod stream;
mod totals;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use ilp_packet::{Address, ErrorCode, Timestamp};

pub use config::{AssetDetails, Config, MAX_IN_FLIGHT, Role};
pub use event::{Accepted, CloseReason, CommandError, Event, Incoming, Transmit};
pub use rate::{Quote, Rate, RatePolicy};

use crate::frame::{Frame, StreamErrorCode, StreamId};
use crate::receipt::Receipt;
use crate::seal::{Entropy, Keys, SharedSecret};
use config::{
    CONNECTION_DATA_WINDOW, INITIAL_MAX_STREAM_ID, MAX_CLOSE_MESSAGE, MAX_FINISHED, MAX_SEQUENCE,
};
use congestion::Congestion;
use outgoing::InFlight;
use probe::Probe;
use rate::PathRate;
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
    /// The streams that were closed last.
    finished: VecDeque<Finished>,
    next_local_stream: u64,
    next_remote_stream: u64,
    local_max_stream_id: u64,
    remote_max_stream_id: u64,
    /// A stream could not be opened because the other end allows no more.
    streams_blocked: bool,

    total_sent: u64,
    total_received: u64,
    total_delivered: u64,

    replay: ReplayWindow,
    pending_packets: usize,

    next_sequence: u64,
    in_flight: BTreeMap<u64, InFlight>,
    congestion: Congestion,
    /// None until the path has been asked.
    rate: Option<PathRate>,
    /// Asks the path.
    probe: Option<Probe>,
    rate_unreported: bool,
    /// There is news that no packet on its way carries.
    news: bool,
    ask_again_at: Timestamp,
    shortfalls: u32,
    /// Packets up to this one were on their way at the last shortfall, which counts once for them all.
    shortfall_until: u64,

    /// Highest offsets that arrived, summed over all streams, of streams that are gone too.
    data_received: u64,
    /// Bytes that were read, or that will never come.
    data_credit: u64,
    /// What we last said we take on the whole connection.
    told_max_data: u64,
    data_sent: u64,
    remote_max_data: u64,
}

/// What is left of a stream.
#[derive(Debug)]
struct Finished {
    id: StreamId,
    sent: u64,
    received: u64,
    receipt: Option<Receipt>,
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
        /// What tells of it: the ends of the streams, and of the connection.
        frames: Vec<Frame>,
        in_flight: bool,
        /// How often it was told and the path failed for the moment.
        attempts: u32,
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
        let (rate, probe) = match config.rate {
            RatePolicy::Fixed(rate) => (Some(PathRate::fixed(rate)), None),
            RatePolicy::Probed { max_amount, .. } => {
                let most = max_amount.min(config.max_packet_amount);
                (None, Some(Probe::new(most)))
            }
        };
        let max_in_flight = config.max_in_flight.min(MAX_IN_FLIGHT);
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
            streams_blocked: false,
            total_sent: 0,
            total_received: 0,
            total_delivered: 0,
            replay: ReplayWindow::default(),
            pending_packets: 0,
            next_sequence: 1,
            in_flight: BTreeMap::new(),
            congestion: Congestion::new(max_in_flight, config.max_packet_amount),
            rate,
            probe,
            rate_unreported: false,
            // A client introduces itself; a server waits to be spoken to.
            news: role == Role::Client,
            ask_again_at: now,
            shortfalls: 0,
            shortfall_until: 0,
            data_received: 0,
            data_credit: 0,
            told_max_data: CONNECTION_DATA_WINDOW,
            data_sent: 0,
            remote_max_data: CONNECTION_DATA_WINDOW,
            config,
        }
    }

    /// The next thing that the owner should know.
    pub fn poll_event(&mut self) -> Option<Event> {
        if std::mem::take(&mut self.connected_unreported) {
            return Some(Event::Connected {
                remote_address: self.remote_address.clone(),
                remote_asset: self.remote_asset.clone(),
            });
        }
        if std::mem::take(&mut self.rate_unreported)
            && let Some(quote) = self.quote()
        {
            return Some(Event::RateKnown { quote });
        }
        while let Some(id) = self.noteworthy.first().copied() {
            let Some(stream) = self.streams.get_mut(&id) else {
                self.noteworthy.remove(&id);
                continue;
            };
            if let Some(event) = stream.poll_event() {
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
        if let Some(at) = self.next_test_at() {
            next = next.min(at);
        }
        if self.wants_to_ask() {
            next = next.min(self.ask_again_at.max(self.congestion.pause_until()));
        }
        if self.has_something_to_send() && self.in_flight.len() < self.congestion.window() {
            next = next.min(self.congestion.pause_until());
        }
        let losses = self.streams.values();
        if let Some(at) = losses.filter_map(|it| it.outgoing.next_loss_at()).min() {
            next = next.min(at);
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
        for stream in self.streams.values_mut() {
            stream.outgoing.lose_replies(now);
        }
    }

    /// Something waits only because the other end does not take it.
    fn wants_to_ask(&self) -> bool {
        self.config.ask_again_millis > 0
            && matches!(self.state, State::Connected)
            && self.remote_address.is_some()
            && self.in_flight.is_empty()
            && self.is_blocked()
    }

    /// The other end takes less money, data or streams than there is.
    fn is_blocked(&self) -> bool {
        let data_room = self.data_room();
        self.streams_blocked
            || self.streams.values().any(|stream| {
                stream.is_money_blocked(self.rate) || stream.is_data_blocked(data_room)
            })
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
        let frames = self.close_frames(code, shortened(message));
        self.state = State::Closing {
            reason,
            frames,
            in_flight: false,
            attempts: 0,
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
        // Late answers of the path are of no use.
        self.probe = None;
        self.rate_unreported = false;
        let ids: Vec<_> = self.streams.keys().copied().collect();
        for id in ids {
            self.finish_stream(id, StreamErrorCode::NoError, String::new());
        }
    }

    /// Nothing more is sent or taken on a stream.
    fn finish_stream(&mut self, id: StreamId, code: StreamErrorCode, message: String) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let received_to = stream.incoming.received_to();
        // An end that closes a stream has sent all of its data before. If we close it, data may be on
        // its way that will not be looked at any more, at most as much as we said we take.
        let sent_to = match stream.phase {
            Phase::Open => received_to,
            Phase::Closing { .. } => received_to.max(stream.told_max_data),
            Phase::Over => return,
        };
        let unread = sent_to.saturating_sub(stream.incoming.read_to());
        self.data_credit = self.data_credit.saturating_add(unread);
        stream.finish(code, message);
        self.noteworthy.insert(id);
    }

    fn remove_if_over(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get(&id).filter(|stream| stream.is_removable()) else {
            return;
        };
        self.finished.push_back(Finished {
            id,
            sent: stream.total_sent,
            received: stream.total_received,
            receipt: stream.receipt.clone(),
        });
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
