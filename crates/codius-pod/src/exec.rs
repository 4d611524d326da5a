//! Sessions of `exec`: a program that the owner of a pod runs in one of its containers, seen from the host.
//!
//! ```text
//! begun ─▶ Started ─▶ Output … ─▶ Ended
//!    └───▶ Failed        │
//!                        └─▶ no more events: the pod, or its driver, has ended
//! ```
//! Dropping [`ExecOutput`] kills the program. A reader that does not read makes the program wait, as does a
//! program that does not read make [`ExecInput::write`] wait.

use std::sync::Arc;

use codius_guest_protocol::{
    ContainerExit, EXEC_MIN_COST_BYTES, EXEC_WINDOW_BYTES, LogStream, MAX_EXEC_PIECE_BYTES,
    WindowSize, exec_cost,
};
use thiserror::Error;
use tokio::sync::{Semaphore, mpsc};

/// Events of a session that wait at most: a window of the smallest pieces, and the few others.
const MAX_EVENTS: usize = (EXEC_WINDOW_BYTES / EXEC_MIN_COST_BYTES) as usize + 4;
/// What has been read is told to the driver in so large pieces.
const PAY_BACK_BYTES: u32 = EXEC_WINDOW_BYTES / 4;

/// A program to run in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecStart {
    /// Its place in [`PodStart::containers`](crate::PodStart::containers).
    pub container: usize,
    /// Program and arguments; never empty.
    pub args: Vec<String>,
    /// Beside the container's variables.
    pub env: Vec<(String, String)>,
    /// Whether it has an input.
    pub input: bool,
    /// A terminal of this size.
    pub terminal: Option<WindowSize>,
}

/// Why there is no session. Nothing has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ExecError {
    #[error("the pod is not running")]
    NotRunning,
    /// It goes on when somebody pays.
    #[error("the pod is held still")]
    Frozen,
    #[error("the pod has as many sessions as it may have")]
    TooMany,
    /// It was started by an earlier version of the host, or its driver has no sessions.
    #[error("this pod carries no sessions")]
    NotOffered,
}

/// What a session says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    Started,
    /// The program could not be started; the code is as shells give it.
    Failed {
        code: i32,
        message: String,
    },
    Output {
        stream: LogStream,
        data: Vec<u8>,
    },
    Ended(ContainerExit),
}

/// What is wanted of a session, for its driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecWish {
    Input(Vec<u8>),
    EndOfInput,
    Resize(WindowSize),
    /// Output of this cost has been read.
    Read(u32),
}

/// The session has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the session has ended")]
pub struct SessionOver;

/// A session that was begun.
#[derive(Debug)]
pub struct ExecSession {
    pub input: ExecInput,
    pub output: ExecOutput,
}

/// What goes to the program.
#[derive(Debug, Clone)]
pub struct ExecInput {
    session: u32,
    wishes: mpsc::Sender<(u32, ExecWish)>,
    window: Arc<Semaphore>,
}

impl ExecInput {
    /// Sends input; waits while as much is on the way as may be.
    pub async fn write(&self, data: &[u8]) -> Result<(), SessionOver> {
        for piece in data.chunks(MAX_EXEC_PIECE_BYTES) {
            let cost = exec_cost(piece.len());
            let room = self.window.acquire_many(cost).await;
            room.map_err(|_| SessionOver)?.forget();
            self.wish(ExecWish::Input(piece.to_vec())).await?;
        }
        Ok(())
    }

    pub async fn end(&self) -> Result<(), SessionOver> {
        self.wish(ExecWish::EndOfInput).await
    }

    pub async fn resize(&self, size: WindowSize) -> Result<(), SessionOver> {
        self.wish(ExecWish::Resize(size)).await
    }

    async fn wish(&self, wish: ExecWish) -> Result<(), SessionOver> {
        let sent = self.wishes.send((self.session, wish)).await;
        sent.map_err(|_| SessionOver)
    }
}

/// What comes from the program.
#[derive(Debug)]
pub struct ExecOutput {
    session: u32,
    wishes: mpsc::Sender<(u32, ExecWish)>,
    events: mpsc::Receiver<ExecEvent>,
    /// Read, and not told yet.
    read: u32,
    dropped: mpsc::UnboundedSender<u32>,
}

impl ExecOutput {
    /// The next event; `None` when nothing comes any more. Safe to drop while waiting.
    pub async fn next(&mut self) -> Option<ExecEvent> {
        if self.read >= PAY_BACK_BYTES
            && let Ok(place) = self.wishes.reserve().await
        {
            place.send((self.session, ExecWish::Read(self.read)));
            self.read = 0;
        }
        let event = self.events.recv().await;
        if let Some(ExecEvent::Output { data, .. }) = &event {
            self.read = self.read.saturating_add(exec_cost(data.len()));
        }
        event
    }
}

impl Drop for ExecOutput {
    fn drop(&mut self) {
        // Without a driver there is nothing to be killed.
        let _ = self.dropped.send(self.session);
    }
}

/// The driver's end of a session.
#[derive(Debug)]
pub struct ExecDriven {
    events: mpsc::Sender<ExecEvent>,
    window: Arc<Semaphore>,
    /// Cost of the input that the program has not been given.
    on_the_way: u32,
    /// What the guest may still send of output.
    credit: u32,
}

impl ExecDriven {
    /// A session of this number. What is wanted of it, and that nobody wants it any more, comes through the
    /// channels.
    pub fn new(
        session: u32,
        wishes: mpsc::Sender<(u32, ExecWish)>,
        dropped: mpsc::UnboundedSender<u32>,
    ) -> (Self, ExecSession) {
        let (sender, events) = mpsc::channel(MAX_EVENTS);
        let window = Arc::new(Semaphore::new(EXEC_WINDOW_BYTES as usize));
        let driven = Self {
            events: sender,
            window: Arc::clone(&window),
            on_the_way: 0,
            credit: EXEC_WINDOW_BYTES,
        };
        let session = ExecSession {
            input: ExecInput {
                session,
                wishes: wishes.clone(),
                window,
            },
            output: ExecOutput {
                session,
                wishes,
                events,
                read: 0,
                dropped,
            },
        };
        (driven, session)
    }

    /// Input goes to the guest.
    pub fn sends(&mut self, bytes: usize) {
        self.on_the_way = self.on_the_way.saturating_add(exec_cost(bytes));
    }

    /// The guest may send so much more.
    pub fn gives(&mut self, cost: u32) {
        self.credit = self.credit.saturating_add(cost).min(EXEC_WINDOW_BYTES);
    }

    /// The program has been given input of this cost. False: more than was on the way.
    pub fn taken(&mut self, cost: u32) -> bool {
        let Some(left) = self.on_the_way.checked_sub(cost) else {
            return false;
        };
        self.on_the_way = left;
        self.window.add_permits(cost as usize);
        true
    }

    /// Passes an event on. False: the guest does not keep to its credit.
    pub fn tell(&mut self, event: ExecEvent) -> bool {
        if let ExecEvent::Output { data, .. } = &event {
            let Some(credit) = self.credit.checked_sub(exec_cost(data.len())) else {
                return false;
            };
            self.credit = credit;
        }
        // One that is closed was dropped just now.
        !matches!(
            self.events.try_send(event),
            Err(mpsc::error::TrySendError::Full(_))
        )
    }
}

impl Drop for ExecDriven {
    fn drop(&mut self) {
        self.window.close();
    }
}
