//! What waits to be written to one socket.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::ready;

use bytes::Bytes;
use futures_util::{Sink, SinkExt};
use tokio_tungstenite::tungstenite::{Error as WebSocketError, Message};

/// The queue of a socket, and whether its WebSocket still has something to flush.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    queue: VecDeque<Message>,
    bytes: Arc<AtomicUsize>,
    dirty: bool,
    written: u64,
}

impl Outbox {
    /// The number of bytes that wait, readable from other tasks.
    pub(crate) fn bytes(&self) -> Arc<AtomicUsize> {
        self.bytes.clone()
    }

    /// The number of bytes that wait.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether [`Self::write`] has something to do.
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Number of messages handed to the WebSocket so far; tells progress from a stall.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Queues a BTP frame.
    pub(crate) fn push(&mut self, frame: Bytes) {
        self.bytes.fetch_add(frame.len(), Ordering::Relaxed);
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

    /// Hands everything to the WebSocket and flushes it. May be dropped at any time: what was not
    /// handed over is still in the queue.
    pub(crate) async fn write<K>(&mut self, sink: &mut K) -> Result<(), WebSocketError>
    where
        K: Sink<Message, Error = WebSocketError> + Unpin,
    {
        std::future::poll_fn(|context| {
            while !self.queue.is_empty() {
                ready!(sink.poll_ready_unpin(context))?;
                let Some(message) = self.queue.pop_front() else {
                    break;
                };
                if let Message::Binary(frame) = &message {
                    self.bytes.fetch_sub(frame.len(), Ordering::Relaxed);
                }
                self.written += 1;
                sink.start_send_unpin(message)?;
            }
            ready!(sink.poll_flush_unpin(context))?;
            self.dirty = false;
            std::task::Poll::Ready(Ok(()))
        })
        .await
    }
}
