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
use ilp_packet::{ErrorCode, Prepare, Reply};
use ilp_stream::{CloseReason, Connection, Entropy, Event, Incoming, StreamErrorCode, StreamId};
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
    /// it fulfilled. If this future is dropped in the middle, the amount stays held.
    pub async fn incoming<R>(&self, prepare: &Prepare, record: impl FnOnce() -> R) -> Reply
    where
        R: Future<Output = Result<(), ErrorCode>>,
    {
        let now = self.0.clock.now();
        let incoming = self.0.lock().connection.handle_prepare(now, prepare);
        let reply = match incoming {
            Incoming::Reject(reject) => Err(reject),
            Incoming::Accept(accepted) => match record().await {
                Ok(()) => Ok(self.0.lock().connection.commit(accepted)),
                Err(code) => Err(self.0.lock().connection.refuse(accepted, code)),
            },
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
