//! What waits to be sent to the host: messages, which are never dropped and are few, and program
//! output, of which the oldest is dropped when there is too much.

use std::collections::VecDeque;

use codius_guest_protocol::{AgentMessage, LogStream, MAX_CONTAINERS, MAX_LOG_BYTES};

/// The most program output that waits.
pub(crate) const MAX_WAITING_BYTES: usize = 256 * 1024;

#[derive(Debug)]
enum Item {
    Message(AgentMessage),
    Log {
        container: u16,
        stream: LogStream,
        data: Vec<u8>,
    },
}

/// A queue in the order of sending.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    queue: VecDeque<Item>,
    waiting_bytes: usize,
    /// Bytes dropped and not yet reported, per container.
    dropped: [u64; MAX_CONTAINERS],
}

impl Outbox {
    /// Queues a message behind everything.
    pub(crate) fn push(&mut self, message: AgentMessage) {
        self.queue.push_back(Item::Message(message));
    }

    /// Replaces all waiting messages by these, which go first: a new host needs to hear them before
    /// the output of the time when nobody listened, and hears in them all that the others said.
    pub(crate) fn restart(&mut self, messages: Vec<AgentMessage>) {
        self.queue.retain(|item| matches!(item, Item::Log { .. }));
        for message in messages.into_iter().rev() {
            self.queue.push_front(Item::Message(message));
        }
    }

    /// Queues output. Small pieces are joined, so that the number of items is bounded too.
    pub(crate) fn push_log(&mut self, container: u16, stream: LogStream, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if let Some(Item::Log {
                container: last,
                stream: same,
                data,
            }) = self.queue.back_mut()
                && (*last, *same) == (container, stream)
                && data.len() < MAX_LOG_BYTES
            {
                let piece = bytes.len().min(MAX_LOG_BYTES - data.len());
                data.extend_from_slice(&bytes[..piece]);
                self.waiting_bytes += piece;
                bytes = &bytes[piece..];
            } else {
                self.queue.push_back(Item::Log {
                    container,
                    stream,
                    data: Vec::new(),
                });
            }
        }
        while self.waiting_bytes > MAX_WAITING_BYTES {
            self.drop_oldest();
        }
    }

    /// Whether more output can be queued without dropping any.
    pub(crate) fn has_room(&self) -> bool {
        self.waiting_bytes + MAX_LOG_BYTES <= MAX_WAITING_BYTES
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.dropped == [0; MAX_CONTAINERS]
    }

    pub(crate) fn pop(&mut self) -> Option<AgentMessage> {
        if matches!(self.queue.front(), Some(Item::Message(_))) {
            let Some(Item::Message(message)) = self.queue.pop_front() else {
                return None;
            };
            return Some(message);
        }
        if let Some(container) = self.dropped.iter().position(|&bytes| bytes > 0) {
            let bytes = std::mem::take(&mut self.dropped[container]);
            let container = u16::try_from(container).expect("there are few containers");
            return Some(AgentMessage::LogDropped { container, bytes });
        }
        match self.queue.pop_front()? {
            Item::Message(message) => Some(message),
            Item::Log {
                container,
                stream,
                data,
            } => {
                self.waiting_bytes -= data.len();
                Some(AgentMessage::Log {
                    container,
                    stream,
                    data,
                })
            }
        }
    }

    fn drop_oldest(&mut self) {
        let oldest = self
            .queue
            .iter()
            .position(|item| matches!(item, Item::Log { .. }));
        let Some(Item::Log {
            container, data, ..
        }) = oldest.and_then(|oldest| self.queue.remove(oldest))
        else {
            return;
        };
        self.waiting_bytes -= data.len();
        self.dropped[usize::from(container)] += u64::try_from(data.len()).unwrap_or(u64::MAX);
    }
}

#[cfg(test)]
mod tests {
    use codius_guest_protocol::ContainerExit;

    use super::*;

    fn drain(outbox: &mut Outbox) -> Vec<AgentMessage> {
        std::iter::from_fn(|| outbox.pop()).collect()
    }

    #[test]
    fn single_bytes_are_joined_and_streams_kept_apart() {
        let mut outbox = Outbox::default();
        for byte in b"hello" {
            outbox.push_log(0, LogStream::Stdout, &[*byte]);
        }
        outbox.push_log(0, LogStream::Stderr, b"!");
        outbox.push_log(1, LogStream::Stderr, b"?");
        let log = |container, stream, data: &[u8]| AgentMessage::Log {
            container,
            stream,
            data: data.to_vec(),
        };
        assert_eq!(
            drain(&mut outbox),
            [
                log(0, LogStream::Stdout, b"hello"),
                log(0, LogStream::Stderr, b"!"),
                log(1, LogStream::Stderr, b"?"),
            ]
        );
        assert!(outbox.is_empty());
    }

    #[test]
    fn the_oldest_output_is_dropped_and_counted_and_messages_stay() {
        let mut outbox = Outbox::default();
        outbox.push(AgentMessage::Started);
        let exit = AgentMessage::Exited {
            container: 0,
            exit: ContainerExit::Code(0),
        };
        let total = MAX_WAITING_BYTES + 5 * MAX_LOG_BYTES;
        let bytes: Vec<u8> = (0..total)
            .map(|index| u8::try_from(index / 4096 % 256).unwrap())
            .collect();
        for piece in bytes.chunks(1000) {
            outbox.push_log(3, LogStream::Stdout, piece);
        }
        outbox.push(exit.clone());
        assert!(!outbox.has_room());
        let messages = drain(&mut outbox);
        assert_eq!(messages[0], AgentMessage::Started);
        let AgentMessage::LogDropped {
            container: 3,
            bytes: dropped,
        } = messages[1]
        else {
            panic!("{:?}", messages[1]);
        };
        let mut kept = Vec::new();
        for message in &messages[2..messages.len() - 1] {
            let AgentMessage::Log {
                container: 3,
                stream: LogStream::Stdout,
                data,
            } = message
            else {
                panic!("{message:?}");
            };
            assert!(data.len() <= MAX_LOG_BYTES);
            kept.extend_from_slice(data);
        }
        assert_eq!(messages.last(), Some(&exit));
        assert!(
            kept.len() <= MAX_WAITING_BYTES && kept.len() > MAX_WAITING_BYTES - 2 * MAX_LOG_BYTES
        );
        assert_eq!(usize::try_from(dropped).unwrap() + kept.len(), total);
        assert_eq!(kept, bytes[total - kept.len()..]);
        assert!(outbox.has_room() && outbox.is_empty());
    }

    #[test]
    fn a_new_host_hears_the_hello_first_and_old_messages_no_more() {
        let mut outbox = Outbox::default();
        outbox.push_log(0, LogStream::Stdout, b"early");
        outbox.push(AgentMessage::Pong { id: 1 });
        outbox.restart(vec![AgentMessage::Started, AgentMessage::Listening]);
        let messages = drain(&mut outbox);
        assert_eq!(
            messages[..2],
            [AgentMessage::Started, AgentMessage::Listening]
        );
        assert!(matches!(messages[2], AgentMessage::Log { .. }));
        assert_eq!(messages.len(), 3);
    }
}
