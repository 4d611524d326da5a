//! One STREAM connection on a runtime: the machine of `ilp-stream`, driven.
//!
//! ```text
//! commands, incoming Prepares ──▶ Connection (behind one lock) ──▶ pump task ──▶ PacketSender
//!                                        ▲                             │
//!                                        └── replies, timers ◀─────────┘
//! ```
//! The lock is held for single steps and never across an await. One task sends what the machine has to
//! send and wakes those who wait for something to become true ([`StreamConnection::until`]). The
//! packets on their way run in tasks of their own and always give their reply back.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use ilp_connector::Clock;
use ilp_packet::{ErrorCode, Prepare, Reject, Reply};
use ilp_stream::{
    Accepted, CloseReason, Connection, Entropy, Event, Incoming, StreamErrorCode, StreamId,
};
use tokio::sync::{Notify, watch};
use tracing::Instrument;

/// Data that is kept of one stream until somebody takes it; what comes after that is dropped and the
/// connection closed.
const MAX_UNREAD: usize = 64 * 1024;

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
    /// Bytes that nobody has taken yet, by stream.
    pub data: BTreeMap<StreamId, Vec<u8>>,
    /// Streams that the other end has opened, in order.
    pub opened: Vec<StreamId>,
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
        let now = self.0.clock.now();
        let incoming = self.0.lock().connection.handle_prepare(now, prepare);
        let reply = match incoming {
            Incoming::Reject(reject) => Err(reject),
            Incoming::Accept(accepted) => {
                let mut held = Held {
                    shared: &self.0,
                    accepted: Some(accepted),
                };
                let recorded = record().await;
                held.settle(recorded)
            }
        };
        self.0.work.notify_one();
        reply
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
        let connection = &mut self.shared.lock().connection;
        match recorded {
            Ok(()) => Ok(connection.commit(accepted)),
            Err(code) => Err(connection.refuse(accepted, code)),
        }
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

/// Sends what there is to send, until the connection is over and everything is answered.
async fn pump(shared: Arc<Shared>, sender: Arc<dyn PacketSender>) {
    loop {
        let (transmits, wake_at, drained) = {
            let mut state = shared.lock();
            let now = shared.clock.now();
            state.connection.handle_timeout(now);
            let transmits: Vec<_> =
                std::iter::from_fn(|| state.connection.poll_transmit(now)).collect();
            while let Some(event) = state.connection.poll_event() {
                observe(&mut state, event);
            }
            (
                transmits,
                state.connection.poll_timeout(),
                state.connection.is_drained(),
            )
        };
        shared
            .changes
            .send_modify(|count| *count = count.wrapping_add(1));
        for transmit in transmits {
            let (shared, sender) = (Arc::clone(&shared), Arc::clone(&sender));
            let sending = async move {
                let reply = sender.send(transmit.prepare).await;
                let now = shared.clock.now();
                shared
                    .lock()
                    .connection
                    .handle_reply(now, transmit.id, reply);
                shared.work.notify_one();
            };
            tokio::spawn(sending.in_current_span());
        }
        if drained {
            return;
        }
        let sleep = async {
            match wake_at {
                Some(at) => tokio::time::sleep(at.since(shared.clock.now())).await,
                None => std::future::pending().await,
            }
        };
        // Nothing is lost if either is dropped: the machine is asked anew.
        tokio::select! {
            () = shared.work.notified() => {}
            () = sleep => {}
        }
    }
}

fn observe(state: &mut State, event: Event) {
    let State {
        connection,
        observed,
    } = state;
    match event {
        Event::StreamOpened { stream } => observed.opened.push(stream),
        Event::Data { stream, data } => {
            let unread = observed.data.entry(stream).or_default();
            if unread.len() + data.len() > MAX_UNREAD {
                connection.close(StreamErrorCode::FlowControlError, "nobody reads this data");
            } else {
                unread.extend_from_slice(&data);
            }
        }
        Event::MoneyBlocked {
            stream,
            send_max,
            total_sent,
        } => {
            observed.blocked.insert(stream, (send_max, total_sent));
        }
        Event::Closed { reason } => observed.closed = Some(reason),
        Event::Connected { .. }
        | Event::MoneyReceived { .. }
        | Event::MoneySent { .. }
        | Event::RemoteMaxMoney { .. }
        | Event::StreamClosed { .. } => {}
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
                if money {
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
        let clock = Arc::new(SystemClock);
        let address = |text: &str| text.parse::<Address>().unwrap();
        let config = |text| Config {
            local_address: Some(address(text)),
            ..Config::default()
        };
        let (to_client, to_server) = (Arc::new(OnceLock::new()), Arc::new(OnceLock::new()));
        let wire = |other: &Arc<OnceLock<StreamConnection>>, patience_millis| {
            Arc::new(Wire {
                other: Arc::clone(other),
                record_millis: 20,
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
}
