//! What waits to be written to one socket.

use std::collections::VecDeque;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::{Sink, SinkExt};
use tokio_tungstenite::tungstenite::{Error as WebSocketError, Message};

/// The queue of a socket, and whether its WebSocket still has something to flush.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    queue: VecDeque<Message>,
    bytes: usize,
    dirty: bool,
    written: u64,
}

impl Outbox {
    /// The number of bytes that wait.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.bytes
    }

    /// Whether [`Self::poll_write`] has something to do.
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Number of messages handed to the WebSocket so far; tells progress from a stall.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Queues a BTP frame.
    pub(crate) fn push(&mut self, frame: Bytes) {
        self.bytes += frame.len();
        self.queue.push_back(Message::Binary(frame));
        self.dirty = true;
    }

    /// Queues a WebSocket ping.
    pub(crate) fn ping(&mut self) {
        self.queue.push_back(Message::Ping(Bytes::new()));
        self.dirty = true;
    }

    /// Asks for a flush, for what the WebSocket queued by itself (a pong).
    pub(crate) fn flush_later(&mut self) {
        self.dirty = true;
    }

    /// Hands everything to the WebSocket and flushes it; what is not handed over stays in the queue.
    pub(crate) fn poll_write<K>(
        &mut self,
        sink: &mut K,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), WebSocketError>>
    where
        K: Sink<Message, Error = WebSocketError> + Unpin,
    {
        while !self.queue.is_empty() {
            ready!(sink.poll_ready_unpin(context))?;
            let Some(message) = self.queue.pop_front() else {
                break;
            };
            if let Message::Binary(frame) = &message {
                self.bytes -= frame.len();
            }
            self.written += 1;
            sink.start_send_unpin(message)?;
        }
        ready!(sink.poll_flush_unpin(context))?;
        self.dirty = false;
        Poll::Ready(Ok(()))
    }
}
