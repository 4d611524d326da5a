//! One neighbour over time: what waits to be sent to it and what is open with it, whichever socket it
//! is connected by.
//!
//! ```text
//! connector ──Link, ReplySink──▶ commands ──▶ the socket in charge ──▶ neighbour
//!
//! socket 1 ──occupy──▶ in charge ──vacate──▶ what is open is carried ──occupy──▶ socket 2
//!                          └─ socket 2 wants in: socket 1 is closed, then vacates
//! ```
//! A neighbour that connects again after a broken connection goes on where it was: it gets the replies
//! that it still waits for, and it may still answer what it was asked. Its word is money, in both
//! directions. A client that says goodbye has nothing more to say; a parent is asked again even then.
//!
//! Trap: an answer or reply that is dropped comes back to the connector at once. Nothing is dropped
//! under the lock.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use ilp_btp::{OpenRequests, RequestId};
use ilp_connector::{Answer, Link, LinkError, ReplySink};
use ilp_packet::{Prepare, Reply};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Requests that may wait to be taken up by the socket's task.
const MAX_REQUESTS: usize = 1024;
/// With so much waiting to be written, requests of ours are refused with T02.
const BUSY_QUEUE_BYTES: usize = 1024 * 1024;
/// Data in replies that is kept for a neighbour that is not connected; replies beyond that are lost.
const MAX_KEPT_BYTES: usize = 64 * 1024;

/// Whether what is open is kept when a socket leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Nobody will connect again.
    Nothing,
    /// The neighbour may come back until the packets expire, unless it has said goodbye.
    UnlessGoodbye,
    /// We connect again, whatever the neighbour said.
    Always,
}

/// A neighbour. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Peer(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// The task of the socket in charge.
    waker: AtomicWaker,
    /// A socket has left.
    vacated: Notify,
    /// Bytes that wait to be written, as the socket says.
    queued_bytes: AtomicUsize,
    /// The clock of all deadlines.
    started: Instant,
}

#[derive(Default)]
struct State {
    commands: VecDeque<Command>,
    /// How many of the commands are requests.
    requests: usize,
    /// Closes the socket that came last.
    newest: Option<CancellationToken>,
    occupied: bool,
    carried: OpenRequests<Answer>,
    /// Data in the replies that wait while nobody is connected.
    kept_bytes: usize,
}

/// Something for the socket to do.
pub(crate) enum Command {
    /// Ask the neighbour, and complete the answer.
    Send { packet: Bytes, answer: Answer },
    /// Answer the neighbour.
    Reply { request_id: RequestId, reply: Reply },
}

impl Peer {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Shared {
            state: Mutex::default(),
            waker: AtomicWaker::new(),
            vacated: Notify::new(),
            queued_bytes: AtomicUsize::new(0),
            started: Instant::now(),
        }))
    }

    /// The clock that deadlines in [`OpenRequests`] are on, in milliseconds.
    pub(crate) fn elapsed_ms(&self) -> u64 {
        self.millis(Instant::now())
    }

    /// The same for another moment.
    pub(crate) fn millis(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.0.started);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// The moment of a reading of that clock.
    pub(crate) fn instant(&self, millis: u64) -> Instant {
        self.0.started + std::time::Duration::from_millis(millis)
    }

    /// Where the connector sends replies to requests of this neighbour.
    pub(crate) fn sink(&self) -> Arc<dyn ReplySink> {
        self.0.clone()
    }

    /// Makes the socket that `cancel` closes the one in charge, and gives it what is open. An older
    /// socket is closed first. `None` if a newer one came meanwhile.
    pub(crate) async fn occupy(&self, cancel: &CancellationToken) -> Option<OpenRequests<Answer>> {
        let before = self.lock().newest.replace(cancel.clone());
        if let Some(before) = before {
            before.cancel();
        }
        loop {
            let vacated = self.0.vacated.notified();
            tokio::pin!(vacated);
            vacated.as_mut().enable();
            if cancel.is_cancelled() {
                return None;
            }
            {
                let mut state = self.lock();
                if !state.occupied {
                    state.occupied = true;
                    state.kept_bytes = 0;
                    return Some(std::mem::take(&mut state.carried));
                }
            }
            tokio::select! {
                () = vacated => {}
                () = cancel.cancelled() => return None,
            }
        }
    }

    /// The socket in charge leaves. What it leaves open is carried to the next as far as `keep` says;
    /// the rest is given up.
    pub(crate) fn vacate(&self, open: OpenRequests<Answer>, keep: Keep) {
        let mut dropped = Vec::new();
        {
            let mut state = self.lock();
            state.occupied = false;
            match keep {
                Keep::UnlessGoodbye | Keep::Always => state.carried = open,
                Keep::Nothing => {
                    dropped.extend(open.pending.into_iter().map(|(_, _, answer)| answer));
                }
            }
            let commands = std::mem::take(&mut state.commands);
            state.requests = 0;
            for command in commands {
                match command {
                    // Never sent: nothing is lost by saying so.
                    Command::Send { answer, .. } => dropped.push(answer),
                    reply @ Command::Reply { .. } => state.keep_reply(reply),
                }
            }
        }
        self.0.queued_bytes.store(0, Ordering::Relaxed);
        self.0.vacated.notify_waiters();
        drop(dropped);
    }

    /// Gives up the carried requests whose deadline has come, and says when the next one's does.
    pub(crate) fn expire_carried(&self) -> Option<Instant> {
        let now = self.elapsed_ms();
        let (expired, next) = {
            let mut state = self.lock();
            let pending = &mut state.carried.pending;
            let expired: Vec<_> = pending
                .extract_if(.., |(_, deadline_ms, _)| *deadline_ms <= now)
                .collect();
            let next = pending.iter().map(|(_, deadline_ms, _)| *deadline_ms).min();
            (expired, next)
        };
        for (_, _, answer) in expired {
            answer.complete(Err(LinkError::TimedOut));
        }
        next.map(|millis| self.instant(millis))
    }

    /// Gives up everything that is carried.
    pub(crate) fn give_up(&self) {
        let carried = std::mem::take(&mut self.lock().carried);
        drop(carried);
    }

    /// Returns when nothing is carried that we wait for: it has expired, or a new socket has it.
    pub(crate) async fn settled(&self) {
        while let Some(at) = self.expire_carried() {
            tokio::time::sleep_until(at).await;
        }
    }

    /// Whether nobody is connected and nothing is open with the neighbour.
    pub(crate) fn is_done(&self) -> bool {
        let state = self.lock();
        !state.occupied && state.carried.answering.is_empty() && state.carried.pending.is_empty()
    }

    /// Closes the socket in charge.
    pub(crate) fn close(&self) {
        if let Some(newest) = &self.lock().newest {
            newest.cancel();
        }
    }

    /// Wakes this task when there is a command. To be called before [`Self::take`] looks.
    pub(crate) fn register(&self, context: &std::task::Context<'_>) {
        self.0.waker.register(context.waker());
    }

    /// Takes all commands into an empty queue. False if there are none.
    pub(crate) fn take(&self, into: &mut VecDeque<Command>) -> bool {
        let mut state = self.lock();
        if state.commands.is_empty() {
            return false;
        }
        state.requests = 0;
        std::mem::swap(&mut state.commands, into);
        true
    }

    /// Says how many bytes wait to be written.
    pub(crate) fn set_queued_bytes(&self, bytes: usize) {
        self.0.queued_bytes.store(bytes, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

impl State {
    fn keep_reply(&mut self, command: Command) {
        let Command::Reply { reply, request_id } = &command else {
            return;
        };
        let size = match reply {
            Ok(fulfill) => fulfill.data.len(),
            Err(reject) => reject.data.len() + reject.message.len(),
        };
        // Whoever keeps asking and never comes back must not fill our memory.
        if self.carried.answering.contains(request_id) && self.kept_bytes + size <= MAX_KEPT_BYTES {
            self.kept_bytes += size;
            self.commands.push_back(command);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link for Peer {
    fn send(&self, prepare: Prepare, answer: Answer) {
        if self.0.queued_bytes.load(Ordering::Relaxed) > BUSY_QUEUE_BYTES {
            return answer.complete(Err(LinkError::Busy));
        }
        let packet = prepare.encode().into();
        let refused = {
            let mut state = self.lock();
            if !state.occupied {
                Some((answer, LinkError::Closed))
            } else if state.requests >= MAX_REQUESTS {
                Some((answer, LinkError::Busy))
            } else {
                state.requests += 1;
                state.commands.push_back(Command::Send { packet, answer });
                None
            }
        };
        match refused {
            Some((answer, error)) => answer.complete(Err(error)),
            None => self.0.waker.wake(),
        }
    }
}

impl ReplySink for Shared {
    fn reply(&self, token: u64, reply: Reply) {
        // Cannot fail: the token is the id that the socket gave.
        let request_id = RequestId(u32::try_from(token).unwrap_or_default());
        let command = Command::Reply { request_id, reply };
        {
            let mut state = self.lock();
            if state.occupied {
                state.commands.push_back(command);
            } else {
                state.keep_reply(command);
            }
        }
        self.waker.wake();
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("connected", &self.lock().occupied)
            .finish_non_exhaustive()
    }
}
