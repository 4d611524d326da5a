//! The bytes of one stream: what waits to be sent, and what arrived out of order.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use ilp_packet::Timestamp;

/// Bytes that our application wrote and the other end has not confirmed.
#[derive(Debug, Default)]
pub(super) struct SendBuffer {
    /// Pieces to be sent, by offset. They do not overlap.
    waiting: BTreeMap<u64, Bytes>,
    /// Pieces on their way, by offset.
    in_flight: BTreeMap<u64, Bytes>,
    /// Pieces on their way in a reply, which nobody confirms.
    in_replies: Vec<InReply>,
    /// Where the next written byte goes.
    end: u64,
    /// The highest offset that was ever sent; flow control counts it.
    sent_to: u64,
    len: usize,
}

/// A piece that rode in a reply.
#[derive(Debug)]
struct InReply {
    offset: u64,
    end: u64,
    /// When it is taken for lost.
    lost_at: Timestamp,
}

impl SendBuffer {
    pub(super) fn push(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        let at = self.end;
        self.end += data.len() as u64;
        self.len += data.len();
        self.waiting.insert(at, data);
    }

    /// Bytes that are held.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_drained(&self) -> bool {
        self.len == 0
    }

    /// Highest offset that was sent.
    pub(super) fn sent_to(&self) -> u64 {
        self.sent_to
    }

    /// Offset behind the last byte written.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Offset of the next piece to be sent.
    pub(super) fn next_offset(&self) -> Option<u64> {
        self.waiting.keys().next().copied()
    }

    /// Takes the next piece: at most `max` bytes, and not beyond the offset `limit`.
    pub(super) fn take(&mut self, max: usize, limit: u64) -> Option<(u64, Bytes)> {
        let (&offset, data) = self.waiting.iter().next()?;
        let room = usize::try_from(limit.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = data.len().min(max).min(room);
        if len == 0 {
            return None;
        }
        let mut piece = self.waiting.remove(&offset)?;
        let rest = piece.split_off(len);
        let end = offset + len as u64;
        if !rest.is_empty() {
            self.waiting.insert(end, rest);
        }
        self.sent_to = self.sent_to.max(end);
        self.in_flight.insert(offset, piece.clone());
        Some((offset, piece))
    }

    /// The other end took a piece.
    pub(super) fn acknowledge(&mut self, offset: u64) {
        if let Some(data) = self.in_flight.remove(&offset) {
            self.len -= data.len();
        }
    }

    /// A piece did not arrive and is sent again.
    pub(super) fn lost(&mut self, offset: u64) {
        if let Some(data) = self.in_flight.remove(&offset) {
            self.waiting.insert(offset, data);
        }
    }

    /// Takes at most `max` bytes that were never sent, and not beyond the offset `limit`, into a reply.
    /// They are sent again at `lost_at` unless it turns out that they were read.
    pub(super) fn take_into_reply(
        &mut self,
        max: usize,
        limit: u64,
        lost_at: Timestamp,
    ) -> Vec<(u64, Bytes)> {
        let mut left = max;
        let mut taken = Vec::new();
        while self.next_offset().is_some_and(|at| at >= self.sent_to)
            && let Some((offset, data)) = self.take(left, limit)
        {
            left -= data.len();
            let end = offset + data.len() as u64;
            self.in_replies.push(InReply {
                offset,
                end,
                lost_at,
            });
            taken.push((offset, data));
        }
        taken
    }

    /// The other end has read everything below an offset.
    pub(super) fn was_read(&mut self, read_to: u64) {
        let mut read = Vec::new();
        self.in_replies.retain(|piece| {
            let keep = piece.end > read_to;
            if !keep {
                read.push(piece.offset);
            }
            keep
        });
        for offset in read {
            self.acknowledge(offset);
        }
    }

    /// When the next piece that rode in a reply is taken for lost.
    pub(super) fn next_loss_at(&self) -> Option<Timestamp> {
        self.in_replies.iter().map(|piece| piece.lost_at).min()
    }

    /// Pieces that rode in replies and show no sign of having been read are sent again.
    pub(super) fn lose_replies(&mut self, now: Timestamp) {
        let mut lost = Vec::new();
        self.in_replies.retain(|piece| {
            let keep = piece.lost_at > now;
            if !keep {
                lost.push(piece.offset);
            }
            keep
        });
        for offset in lost {
            self.lost(offset);
        }
    }

    /// Everything is given up.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.in_flight.clear();
        self.in_replies.clear();
        self.len = 0;
    }

    /// The first `max` unconfirmed bytes below the offset `limit`, to be repeated in a reply.
    pub(super) fn repeat(&mut self, max: usize, limit: u64) -> Vec<(u64, Bytes)> {
        let mut pieces: Vec<_> = self
            .in_flight
            .iter()
            .chain(&self.waiting)
            .map(|(at, data)| (*at, data))
            .collect();
        pieces.sort_unstable_by_key(|(at, _)| *at);
        let mut left = max;
        let mut taken = Vec::new();
        for (at, data) in pieces {
            let room = usize::try_from(limit.saturating_sub(at)).unwrap_or(usize::MAX);
            let len = data.len().min(left).min(room);
            if len == 0 {
                break;
            }
            left -= len;
            self.sent_to = self.sent_to.max(at + len as u64);
            taken.push((at, data.slice(..len)));
        }
        taken
    }
}

/// Bytes that arrived.
#[derive(Debug, Default)]
pub(super) struct ReceiveBuffer {
    /// Pieces that cannot be read yet or were not read yet, by offset. They do not overlap.
    pieces: BTreeMap<u64, Bytes>,
    /// Everything below was handed to the application.
    read_to: u64,
    /// Highest offset that arrived.
    received_to: u64,
}

impl ReceiveBuffer {
    pub(super) fn read_to(&self) -> u64 {
        self.read_to
    }

    pub(super) fn received_to(&self) -> u64 {
        self.received_to
    }

    /// Keeps what is new of a piece. The caller has checked that it is within the window.
    pub(super) fn insert(&mut self, offset: u64, data: &Bytes) {
        let end = offset.saturating_add(data.len() as u64);
        self.received_to = self.received_to.max(end);
        let mut at = offset.max(self.read_to);
        // What lies between the pieces that we already have is new, the rest is a repetition.
        while at < end {
            let covered_to = self
                .pieces
                .range(..=at)
                .next_back()
                .map(|(start, piece)| start + piece.len() as u64)
                .filter(|covered| *covered > at);
            if let Some(covered) = covered_to {
                at = covered;
                continue;
            }
            let gap_end = self
                .pieces
                .range(at..)
                .next()
                .map_or(end, |(start, _)| end.min(*start));
            let from = usize::try_from(at - offset)
                .unwrap_or(usize::MAX)
                .min(data.len());
            let to = usize::try_from(gap_end - offset)
                .unwrap_or(usize::MAX)
                .min(data.len());
            // A copy, so that one small piece does not keep a whole packet alive.
            self.pieces
                .insert(at, Bytes::copy_from_slice(&data[from..to]));
            at = gap_end;
        }
    }

    pub(super) fn is_readable(&self) -> bool {
        self.pieces
            .first_key_value()
            .is_some_and(|(at, _)| *at == self.read_to)
    }

    /// The next bytes in order.
    pub(super) fn read(&mut self) -> Option<Bytes> {
        let mut whole = BytesMut::new();
        while let Some(piece) = self.pieces.remove(&self.read_to) {
            self.read_to += piece.len() as u64;
            if whole.is_empty() && !self.is_readable() {
                return Some(piece);
            }
            whole.extend_from_slice(&piece);
        }
        (!whole.is_empty()).then(|| whole.freeze())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(len: usize) -> Vec<u8> {
        (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect()
    }

    proptest! {
        /// Pieces may overlap, repeat and come in any order: each byte is read once, in order.
        #[test]
        fn overlapping_pieces_are_read_once_and_in_order(
            cuts in prop::collection::vec((0_usize..200, 1_usize..60), 0..60),
        ) {
            let whole = text(260);
            let mut buffer = ReceiveBuffer::default();
            let mut read = Vec::new();
            let mut seen = [false; 260];
            for (from, len) in cuts {
                buffer.insert(from as u64, &Bytes::copy_from_slice(&whole[from..from + len]));
                seen[from..from + len].fill(true);
                while let Some(piece) = buffer.read() {
                    read.extend_from_slice(&piece);
                }
                let contiguous = seen.iter().take_while(|seen| **seen).count();
                prop_assert_eq!(&read, &whole[..contiguous]);
                let held: usize = buffer.pieces.values().map(Bytes::len).sum();
                prop_assert_eq!(held, seen.iter().filter(|seen| **seen).count() - contiguous);
            }
        }

        /// However pieces are cut, lost and confirmed, the other end can put them together.
        #[test]
        fn lost_pieces_are_sent_again(
            writes in prop::collection::vec(1_usize..100, 1..8),
            steps in prop::collection::vec((1_usize..50, any::<bool>()), 0..200),
        ) {
            let whole = text(writes.iter().sum());
            let (mut sender, mut receiver) = (SendBuffer::default(), ReceiveBuffer::default());
            let mut from = 0;
            for len in writes {
                sender.push(Bytes::copy_from_slice(&whole[from..from + len]));
                from += len;
            }
            let mut read = Vec::new();
            for (max, arrives) in steps.into_iter().chain(std::iter::repeat_n((64, true), 900)) {
                let Some((offset, piece)) = sender.take(max, u64::MAX) else { break };
                if arrives {
                    receiver.insert(offset, &piece);
                    sender.acknowledge(offset);
                } else {
                    sender.lost(offset);
                }
                read.extend(receiver.read().unwrap_or_default());
            }
            prop_assert!(sender.is_drained());
            prop_assert_eq!(read, whole);
        }
    }

    #[test]
    fn what_rode_in_a_reply_is_sent_again_unless_it_was_read() {
        let at = Timestamp::from_millis;
        let mut buffer = SendBuffer::default();
        buffer.push(Bytes::from_static(b"hello"));
        buffer.push(Bytes::from_static(b" world"));
        assert_eq!(buffer.take_into_reply(100, 8, at(50)).len(), 2);
        assert_eq!(buffer.next_loss_at(), Some(at(50)));
        assert_eq!(buffer.take_into_reply(100, 8, at(60)), []);
        // A part of the second piece is not the piece.
        buffer.was_read(6);
        assert_eq!(buffer.len(), 6);
        buffer.lose_replies(at(49));
        assert_eq!(buffer.next_offset(), Some(8));
        buffer.lose_replies(at(50));
        assert_eq!(buffer.next_loss_at(), None);
        // In a reply it rides only once.
        assert_eq!(buffer.take_into_reply(100, 100, at(90)), []);
        assert_eq!(buffer.take(100, 100), Some((5, Bytes::from_static(b" wo"))));
        // The Prepare that repeats it decides now.
        buffer.was_read(100);
        assert_eq!(buffer.len(), 6);
        buffer.acknowledge(5);
        assert_eq!(buffer.len(), 3);
    }

    #[test]
    fn flow_control_stops_a_piece_at_the_limit() {
        let mut buffer = SendBuffer::default();
        buffer.push(Bytes::from_static(b"hello world"));
        assert_eq!(buffer.take(100, 5), Some((0, Bytes::from_static(b"hello"))));
        assert_eq!(buffer.take(100, 5), None);
        assert_eq!(buffer.take(3, 100), Some((5, Bytes::from_static(b" wo"))));
        assert_eq!(
            buffer.repeat(7, 100),
            vec![
                (0, Bytes::from_static(b"hello")),
                (5, Bytes::from_static(b" w")),
            ]
        );
        assert_eq!(buffer.len(), 11);
    }
}
