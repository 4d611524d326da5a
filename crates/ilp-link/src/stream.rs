//! One STREAM connection on a runtime: the machine of `ilp-stream`, driven.
//!
//! ```text
//! commands, incoming Prepares ──▶ Connection (behind one lock) ──▶ pump task ──▶ PacketSender
//!                                        ▲                             │
//!                                        └── replies, timers ◀─────────┘
//! ```
//! The lock is held for single steps and never across an await. One task sends what the machine has to
//! send, waits for the replies, and wakes those who wait for something to become true
//! ([`StreamConnection::until`]).
//!
//! Traps that shaped the code:
//!
//! * At thousands of packets a second a task, a timer or a wake-up for each is most of the work. The
//!   packets on their way are futures of the pump, replies that are there are handled together, the
//!   timer is only set again when it has to fire earlier, and a packet that arrives wakes the pump only
//!   if there is something to send because of it.
//! * Data stays in the machine, whose sender stops after a while, when nobody takes it from here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    future::Future,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use ilp_connector::Clock;
use ilp_packet::{ErrorCode, Prepare, Reject, Reply, Timestamp};
use ilp_stream::{
    Accepted, CloseReason, Connection, Entropy, Event, Incoming, StreamErrorCode, StreamId,
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tracing::Instrument;

/// Data that is kept of one connection until somebody takes it, bytes, beside what the windows of its
/// streams let the machine hold. The other end has to wait when it is reached.
const MAX_UNREAD: usize = 64 * 1024;
/// Streams that the other end has opened and nobody has taken from the list; with more the connection
/// is closed.
const MAX_OPENED: usize = 1_024;
/// Streams that are over and whose reasons are kept.
const MAX_ENDED: usize = 64;
/// Replies that are handled before anything else gets its turn.
const MAX_BATCH: usize = 256;

/// Sends the packets of a connection.
#[async_trait]
pub trait PacketSender: Send + Sync {
    /// Sends a Prepare and gives its reply; one of its own making if there is none.
    async fn send(&self, prepare: Prepare) -> Reply;
}

/// Randomness of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&mut self, bytes: &mut [u8]) {
        rand::fill(bytes);
    }
}

/// What a connection has told so far.
#[derive(Debug, Default)]
pub struct Observed {
    /// Bytes that nobody has taken yet, by stream. While much is here, the other end may send no more:
    /// whoever expects a lot of data has to take it.
    pub data: BTreeMap<StreamId, Vec<u8>>,
    /// Streams that the other end has opened, in order.
    pub opened: Vec<StreamId>,
    /// Why streams are over, of those that ended last.
    pub ended: BTreeMap<StreamId, (StreamErrorCode, String)>,
    /// What the other end last said that it wants to send in all and has sent, by stream.
    pub blocked: BTreeMap<StreamId, (u64, u64)>,
    /// Why it is over.
    pub closed: Option<CloseReason>,
}

/// A handle of a connection; clones are handles of the same one. The connection ends when it is
/// closed, or idle for too long, not when its handles are dropped.
#[derive(Clone)]
pub struct StreamConnection(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    clock: Arc<dyn Clock>,
    /// There may be something to send.
    work: Notify,
    /// Counts changes, so that those who wait look again.
    changes: watch::Sender<u64>,
}

struct State {
    connection: Connection,
    observed: Observed,
    /// Streams whose machine holds data.
    readable: BTreeSet<StreamId>,
    /// When the pump looks at the machine by itself.
    pump_wakes_at: Option<Timestamp>,
}

impl StreamConnection {
    /// Drives a connection in a task of its own.
    pub fn spawn(
        connection: Connection,
        sender: Arc<dyn PacketSender>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                connection,
                observed: Observed::default(),
                readable: BTreeSet::new(),
                pump_wakes_at: None,
            }),
            clock,
            work: Notify::new(),
            changes: watch::Sender::new(0),
        });
        let pump = pump(Arc::clone(&shared), sender);
        tokio::spawn(pump.instrument(tracing::debug_span!("stream")));
        Self(shared)
    }

    /// Looks at the connection or gives it a command.
    pub fn with<R>(&self, work: impl FnOnce(&mut Connection, &mut Observed) -> R) -> R {
        let result = {
            let mut state = self.0.lock();
            let State {
                connection,
                observed,
                ..
            } = &mut *state;
            work(connection, observed)
        };
        self.0.work.notify_one();
        result
    }

    /// Waits until `look` finds what it looks for. It is asked again after every change; a connection
    /// that is over changes no more, so it must look at [`Observed::closed`]. Safe to drop.
    pub async fn until<T>(
        &self,
        mut look: impl FnMut(&mut Connection, &mut Observed) -> Option<T>,
    ) -> T {
        let mut changes = self.0.changes.subscribe();
        loop {
            changes.mark_unchanged();
            let found = {
                let mut state = self.0.lock();
                let State {
                    connection,
                    observed,
                    ..
                } = &mut *state;
                look(connection, observed)
            };
            if let Some(found) = found {
                self.0.work.notify_one();
                return found;
            }
            // Cannot fail: the sender lives as long as we hold the connection.
            let _ = changes.changed().await;
        }
    }

    /// Answers a Prepare that came for this connection. `record` makes its amount durable; only then is
    /// it fulfilled. If this future is dropped while `record` runs, the amount is not taken: nobody may
    /// drop it once the amount can have become durable.
    pub async fn incoming<R>(&self, prepare: &Prepare, record: impl FnOnce() -> R) -> Reply
    where
        R: Future<Output = Result<(), ErrorCode>>,
    {
        self.incoming_with(prepare, |_, _| {}, record).await
    }

    /// The same; `react` sees what the packet has told before it is answered. What it has to say to that
    /// rides in the answer, unless that is a Reject, which is made before.
    pub async fn incoming_with<R>(
        &self,
        prepare: &Prepare,
        react: impl FnOnce(&mut Connection, &mut Observed),
        record: impl FnOnce() -> R,
    ) -> Reply
    where
        R: Future<Output = Result<(), ErrorCode>>,
    {
        let now = self.0.clock.now();
        let accepted = {
            let mut state = self.0.lock();
            let incoming = state.connection.handle_prepare(now, prepare);
            state.observe();
            {
                let State {
                    connection,
                    observed,
                    ..
                } = &mut *state;
                react(connection, observed);
            }
            match incoming {
                Incoming::Accept(accepted) if accepted.amount() > 0 => accepted,
                // There is nothing to record.
                Incoming::Accept(accepted) => {
                    let fulfill = state.connection.commit(accepted);
                    self.0.stepped(state, now);
                    return Ok(fulfill);
                }
                Incoming::Reject(reject) => {
                    self.0.stepped(state, now);
                    return Err(reject);
                }
            }
        };
        let mut held = Held {
            shared: &self.0,
            accepted: Some(accepted),
        };
        let recorded = record().await;
        held.settle(recorded)
    }

    /// Closes the connection and waits until the other end has been told, as far as it can be.
    pub async fn close(&self, code: StreamErrorCode, message: &str) {
        self.with(|connection, _| connection.close(code, message));
        self.until(|connection, _| connection.is_drained().then_some(()))
            .await;
    }
}

impl fmt::Debug for StreamConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StreamConnection")
            .field(&self.0.lock().connection)
            .finish()
    }
}

/// An accepted packet that waits for its record. Its amount counts against the limits of its stream,
/// so it must not be forgotten when the wait is broken off.
struct Held<'a> {
    shared: &'a Shared,
    accepted: Option<Accepted>,
}

impl Held<'_> {
    fn settle(&mut self, recorded: Result<(), ErrorCode>) -> Reply {
        let Some(accepted) = self.accepted.take() else {
            return Err(Reject::new(ErrorCode::InternalError, None, ""));
        };
        let mut state = self.shared.lock();
        let reply = match recorded {
            Ok(()) => Ok(state.connection.commit(accepted)),
            Err(code) => Err(state.connection.refuse(accepted, code)),
        };
        let now = self.shared.clock.now();
        self.shared.stepped(state, now);
        reply
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // After `settle` there is nothing left to refuse.
        if self.accepted.is_some() {
            let _nobody_waits = self.settle(Err(ErrorCode::InternalError));
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// The machine has taken a step outside of the pump.
    fn stepped(&self, mut state: MutexGuard<'_, State>, now: Timestamp) {
        state.observe();
        let due = state.connection.poll_timeout();
        let earlier = due.is_some_and(|due| state.pump_wakes_at.is_none_or(|at| due < at));
        let wake =
            earlier || state.connection.wants_to_transmit(now) || state.connection.is_drained();
        drop(state);
        if wake {
            self.work.notify_one();
        }
        self.tell();
    }

    /// Those who wait look again.
    fn tell(&self) {
        if self.changes.receiver_count() > 0 {
            self.changes
                .send_modify(|count| *count = count.wrapping_add(1));
        }
    }
}

/// Sends what there is to send, until the connection is over and everything is answered.
async fn pump(shared: Arc<Shared>, sender: Arc<dyn PacketSender>) {
    let mut on_their_way = FuturesUnordered::new();
    let mut replies = Vec::new();
    let mut transmits = Vec::new();
    let mut alarm = pin!(tokio::time::sleep_until(Instant::now()));
    let mut alarm_at = None;
    loop {
        let (now, wake_at, drained) = {
            let mut state = shared.lock();
            let now = shared.clock.now();
            for (id, reply) in replies.drain(..) {
                state.connection.handle_reply(now, id, reply);
            }
            state.connection.handle_timeout(now);
            transmits.extend(std::iter::from_fn(|| state.connection.poll_transmit(now)));
            state.observe();
            let wake_at = state.connection.poll_timeout();
            state.pump_wakes_at = wake_at;
            (now, wake_at, state.connection.is_drained())
        };
        shared.tell();
        if drained {
            return;
        }
        for transmit in transmits.drain(..) {
            let sender = &sender;
            on_their_way.push(async move { (transmit.id, sender.send(transmit.prepare).await) });
        }
        // An alarm that rings too early does no harm; setting it for every packet would cost more.
        if let Some(at) = wake_at
            && alarm_at.is_none_or(|set| at < set)
        {
            alarm.as_mut().reset(Instant::now() + at.since(now));
            alarm_at = Some(at);
        }
        // Nothing is lost if any of them is dropped: packets stay where they are, and the machine is
        // asked anew. New packets are sent when they are first polled, so they come first.
        tokio::select! {
            biased;
            Some(reply) = on_their_way.next() => {
                replies.push(reply);
                while replies.len() < MAX_BATCH
                    && let Some(Some(reply)) = on_their_way.next().now_or_never()
                {
                    replies.push(reply);
                }
            }
            () = shared.work.notified() => {}
            () = alarm.as_mut(), if alarm_at.is_some() => alarm_at = None,
        }
    }
}

impl State {
    /// Takes what the machine has to tell.
    fn observe(&mut self) {
        while let Some(event) = self.connection.poll_event() {
            self.take(event);
        }
        if !self.readable.is_empty() {
            self.take_readable();
            // A stream is over only when its data was read.
            while let Some(event) = self.connection.poll_event() {
                self.take(event);
            }
        }
    }

    fn take(&mut self, event: Event) {
        let observed = &mut self.observed;
        match event {
            Event::StreamOpened { stream } => {
                if observed.opened.len() < MAX_OPENED {
                    observed.opened.push(stream);
                } else {
                    let message = "nobody takes these streams";
                    self.connection
                        .close(StreamErrorCode::EndpointBusy, message);
                }
            }
            Event::Readable { stream } => {
                self.readable.insert(stream);
            }
            Event::MoneyBlocked {
                stream,
                send_max,
                total_sent,
            } => {
                observed.blocked.insert(stream, (send_max, total_sent));
            }
            Event::StreamClosed {
                stream,
                code,
                message,
            } => {
                observed.blocked.remove(&stream);
                observed.ended.insert(stream, (code, message));
                if observed.ended.len() > MAX_ENDED {
                    observed.ended.pop_first();
                }
            }
            Event::Closed { reason } => observed.closed = Some(reason),
            Event::Connected { .. }
            | Event::RateKnown { .. }
            | Event::MoneyReceived { .. }
            | Event::MoneySent { .. }
            | Event::Undeliverable { .. }
            | Event::Receipt { .. }
            | Event::RemoteMaxMoney { .. } => {}
        }
    }

    /// Takes data out of the machine as long as there is room. When the connection is over, all of it:
    /// nothing follows.
    fn take_readable(&mut self) {
        let observed = &mut self.observed;
        let mut unread: usize = observed.data.values().map(Vec::len).sum();
        let connection = &mut self.connection;
        self.readable.retain(|stream| {
            while unread < MAX_UNREAD || observed.closed.is_some() {
                let Some(data) = connection.read(*stream) else {
                    return false;
                };
                unread += data.len();
                observed
                    .data
                    .entry(*stream)
                    .or_default()
                    .extend_from_slice(&data);
            }
            true
        });
    }
}

impl StreamConnection {
    /// Takes what has arrived on a stream.
    pub fn take_data(&self, stream: StreamId) -> Bytes {
        self.with(|_, observed| observed.data.remove(&stream).unwrap_or_default().into())
    }
}

#[cfg(test)]
mod tests {
    use ilp_connector::SystemClock;
    use ilp_packet::Address;
    use ilp_stream::{Config, SharedSecret};
    use std::sync::OnceLock;
    use std::time::Duration;

    use super::*;

    const SECRET: SharedSecret = SharedSecret([5; 32]);
    const STREAM: StreamId = StreamId(1);

    /// Gives packets to the other end, whose ledger takes `record_millis`, and drops the future of the
    /// other end after `patience_millis`, as a connector does when a packet expires.
    struct Wire {
        other: Arc<OnceLock<StreamConnection>>,
        record_millis: u64,
        patience_millis: Mutex<Vec<u64>>,
    }

    #[async_trait]
    impl PacketSender for Wire {
        async fn send(&self, prepare: Prepare) -> Reply {
            let expired = || Err(Reject::new(ErrorCode::TransferTimedOut, None, ""));
            let Some(other) = self.other.get() else {
                return expired();
            };
            let money = prepare.amount > 0;
            let patience = if money {
                self.patience_millis.lock().unwrap().pop()
            } else {
                None
            };
            let record = || async {
                if money && self.record_millis > 0 {
                    tokio::time::sleep(Duration::from_millis(self.record_millis)).await;
                }
                Ok(())
            };
            let patience = Duration::from_millis(patience.unwrap_or(1_000));
            let reply = tokio::time::timeout(patience, other.incoming(&prepare, record)).await;
            reply.unwrap_or_else(|_| expired())
        }
    }

    fn pair(patience_millis: Vec<u64>) -> (StreamConnection, StreamConnection) {
        pair_with(patience_millis, 20, u64::MAX)
    }

    fn pair_with(
        patience_millis: Vec<u64>,
        record_millis: u64,
        max_packet_amount: u64,
    ) -> (StreamConnection, StreamConnection) {
        let clock = Arc::new(SystemClock);
        let address = |text: &str| text.parse::<Address>().unwrap();
        let config = |text| Config {
            local_address: Some(address(text)),
            max_packet_amount,
            ..Config::default()
        };
        let (to_client, to_server) = (Arc::new(OnceLock::new()), Arc::new(OnceLock::new()));
        let wire = |other: &Arc<OnceLock<StreamConnection>>, patience_millis| {
            Arc::new(Wire {
                other: Arc::clone(other),
                record_millis,
                patience_millis: Mutex::new(patience_millis),
            })
        };
        let machine = Connection::server(
            clock.now(),
            config("test.server.a"),
            &SECRET,
            Box::new(SystemEntropy),
        );
        let server = StreamConnection::spawn(
            machine,
            wire(&to_client, Vec::new()),
            Arc::clone(&clock) as _,
        );
        to_server.set(server.clone()).unwrap();
        let machine = Connection::client(
            clock.now(),
            config("test.client"),
            &SECRET,
            address("test.server.a"),
            Box::new(SystemEntropy),
        );
        let client = StreamConnection::spawn(machine, wire(&to_server, patience_millis), clock);
        to_client.set(client.clone()).unwrap();
        (client, server)
    }

    #[tokio::test]
    async fn a_payment_whose_record_was_broken_off_is_not_held_for_ever() {
        // The first packet with money is dropped after 5 ms, before its record at 20 ms.
        let (client, server) = pair(vec![5]);
        client.with(|machine, _| {
            machine.open_stream().unwrap();
            machine.set_send_max(STREAM, 100).unwrap();
        });
        server
            .until(|_, observed| observed.opened.first().copied())
            .await;
        server.with(|machine, _| machine.set_receive_max(STREAM, 100).unwrap());
        let paid = client.until(|machine, _| (machine.total_sent() == 100).then_some(()));
        tokio::time::timeout(Duration::from_secs(10), paid)
            .await
            .expect("the amount of the dropped packet still counts");
        server.with(|machine, _| assert_eq!(machine.total_received(), 100));
    }

    #[tokio::test]
    async fn closing_ends_both_ends() {
        let (client, server) = pair(Vec::new());
        client.with(|machine, _| machine.open_stream().unwrap());
        server
            .until(|_, observed| observed.opened.first().copied())
            .await;
        client.close(StreamErrorCode::NoError, "bye").await;
        let reason = server.until(|_, observed| observed.closed.clone()).await;
        assert!(
            matches!(&reason, CloseReason::Remote { message, .. } if message == "bye"),
            "{reason}"
        );
    }

    /// More than anything here takes on a busy machine.
    const PATIENCE: Duration = Duration::from_secs(60);

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn thousands_of_packets_pass_on_several_streams_in_both_directions() {
        let (client, server) = pair_with(Vec::new(), 0, 10);
        let streams = [1, 3, 5].map(StreamId);
        client.with(|machine, _| {
            for stream in streams {
                assert_eq!(machine.open_stream(), Ok(stream));
                machine.set_send_max(stream, 10_000).unwrap();
                machine.set_receive_max(stream, 5_000).unwrap();
            }
        });
        let opened = server.until(|machine, seen| {
            (seen.opened == streams).then(|| {
                for stream in streams {
                    machine.set_send_max(stream, 5_000).unwrap();
                    machine.set_receive_max(stream, 10_000).unwrap();
                }
            })
        });
        tokio::time::timeout(PATIENCE, opened).await.unwrap();
        for (end, sent, received) in [(&client, 30_000, 15_000), (&server, 15_000, 30_000)] {
            let done = end.until(|machine, seen| {
                assert_eq!(seen.closed, None);
                let totals = (machine.total_sent(), machine.total_received());
                (totals == (sent, received)).then_some(())
            });
            tokio::time::timeout(PATIENCE, done).await.unwrap();
        }
        client.with(|machine, _| {
            for stream in streams {
                assert_eq!(machine.stream_sent(stream), Some(10_000));
                assert_eq!(machine.stream_received(stream), Some(5_000));
            }
        });
    }

    #[tokio::test]
    async fn data_that_nobody_takes_stops_its_sender() {
        let (client, server) = pair(Vec::new());
        let whole: Vec<u8> = (0..500_000_u32).map(|at| at.to_be_bytes()[3]).collect();
        client.with(|machine, _| {
            machine.open_stream().unwrap();
            machine.write(STREAM, whole.clone().into()).unwrap();
        });
        let filled = server.until(|_, seen| {
            let held = seen.data.get(&STREAM).map_or(0, Vec::len);
            (held >= MAX_UNREAD).then_some(())
        });
        tokio::time::timeout(PATIENCE, filled).await.unwrap();
        // Everything that is allowed has arrived when the sender has nothing on its way.
        let stopped = client.until(|machine, _| (machine.packets_in_flight() == 0).then_some(()));
        tokio::time::timeout(PATIENCE, stopped).await.unwrap();
        let (held, left) = (
            server.with(|_, seen| seen.data.get(&STREAM).map_or(0, Vec::len)),
            client.with(|machine, _| machine.unconfirmed_data(STREAM).unwrap()),
        );
        assert!(held < MAX_UNREAD + 16_384, "{held}");
        assert!(left > whole.len() - MAX_UNREAD - 3 * 16_384, "{left}");
        let mut read = Vec::new();
        while read.len() < whole.len() {
            let some = server.until(|_, seen| seen.data.remove(&STREAM));
            read.extend(tokio::time::timeout(PATIENCE, some).await.unwrap());
        }
        assert_eq!(read, whole);
    }

    #[tokio::test]
    async fn an_error_closes_both_ends_and_their_streams() {
        let (client, server) = pair(Vec::new());
        client.with(|machine, _| machine.open_stream().unwrap());
        server
            .until(|_, observed| observed.opened.first().copied())
            .await;
        server
            .close(StreamErrorCode::ApplicationError, "out of order")
            .await;
        let reason = client.until(|_, observed| observed.closed.clone()).await;
        let CloseReason::Remote { code, message } = reason else {
            panic!("{reason}");
        };
        assert_eq!(code, StreamErrorCode::ApplicationError);
        assert_eq!(message, "out of order");
        client
            .until(|_, observed| observed.ended.contains_key(&STREAM).then_some(()))
            .await;
    }
}
