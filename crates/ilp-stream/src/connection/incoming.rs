//! Prepares of the other end: check, hold, commit or refuse (RFC 29 sections 4.4.2 and 6).

use bytes::Bytes;
use ilp_packet::{ErrorCode, Fulfill, Prepare, Reject, Timestamp};

use super::Connection;
use super::config::{MAX_PENDING, MAX_SEQUENCE};
use super::event::{Accepted, Incoming};
use super::rate::scale;
use crate::frame::{Frame, StreamErrorCode, StreamId};
use crate::packet::{PacketType, StreamPacket};

impl Connection {
    /// A Prepare arrived for this connection.
    ///
    /// Data, limits and closes that it carries are acted on even when its money is rejected; they
    /// are authentic, and a test packet that nobody can fulfil is how senders introduce themselves.
    pub fn handle_prepare(&mut self, now: Timestamp, prepare: &Prepare) -> Incoming {
        // RFC 29 section 4.2; an empty message, so that nobody learns which connections exist.
        let unexpected = || Incoming::Reject(Reject::new(ErrorCode::UnexpectedPayment, None, ""));
        let Ok(plaintext) = self.keys.open(&prepare.data) else {
            return unexpected();
        };
        let Ok(request) = StreamPacket::decode(plaintext.into()) else {
            return unexpected();
        };
        if request.packet_type != PacketType::Prepare {
            return unexpected();
        }
        if prepare.expires_at <= now {
            let message = "packet expired before it arrived";
            return Incoming::Reject(self.plain_reject(ErrorCode::TransferTimedOut, message));
        }
        let (sequence, amount) = (request.sequence, prepare.amount);
        if sequence < MAX_SEQUENCE && !self.replay.insert(sequence) {
            // Not even its frames are news.
            return Incoming::Reject(self.final_reject(sequence, amount, Vec::new()));
        }
        self.heard(now);
        self.check_sequence(sequence);
        self.take_frames(&request.frames);
        let introduced = request.frames.iter().any(|frame| {
            matches!(
                frame,
                Frame::ConnectionNewAddress { .. } | Frame::ConnectionAssetDetails { .. }
            )
        });

        let fulfillment = self.keys.fulfillment(&prepare.data);
        let can_be_fulfilled =
            fulfillment.condition() == prepare.condition && amount >= request.prepare_amount;
        let alive = self.check_alive().is_ok();
        // The answer to a close that carries no money may be a Fulfill.
        if !can_be_fulfilled || (!alive && amount > 0) {
            let frames = self.reply_frames(introduced);
            return Incoming::Reject(self.final_reject(sequence, amount, frames));
        }
        if self.pending_packets >= MAX_PENDING {
            let message = "too many packets wait to be recorded";
            let code = ErrorCode::TemporaryApplicationError;
            return Incoming::Reject(self.plain_reject(code, message));
        }
        let streams = match self.split(amount, &request.frames) {
            Ok(streams) => streams,
            Err(more) => {
                let mut frames = self.reply_frames(introduced);
                frames.extend(more);
                return Incoming::Reject(self.final_reject(sequence, amount, frames));
            }
        };
        for (id, amount) in &streams {
            if let Some(stream) = self.streams.get_mut(id) {
                stream.pending += amount;
                stream.pending_packets += 1;
            }
        }
        self.pending_packets += 1;
        Incoming::Accept(Accepted {
            sequence,
            amount,
            condition: prepare.condition,
            fulfillment,
            streams,
            introduced,
        })
    }

    /// The amounts are durable: answers with the Fulfill.
    pub fn commit(&mut self, accepted: Accepted) -> Fulfill {
        self.release(&accepted.streams);
        for (id, amount) in &accepted.streams {
            if let Some(stream) = self.streams.get_mut(id) {
                stream.received(*amount);
            }
        }
        self.total_received = self.total_received.saturating_add(accepted.amount);
        let mut frames = self.reply_frames(accepted.introduced);
        // Streams that were closed meanwhile are not among the limits; their total is still told.
        for (id, _) in &accepted.streams {
            if let Some(stream) = self.streams.get(id).filter(|stream| !stream.is_open()) {
                frames.push(Frame::StreamMaxMoney {
                    stream: *id,
                    receive_max: stream.receive_max,
                    total_received: stream.total_received,
                });
            }
        }
        if let Some(key) = &self.config.receipts {
            for (id, _) in &accepted.streams {
                let total = self.streams.get(id).map(|stream| stream.total_received);
                if let Some(receipt) = total.and_then(|total| key.issue(*id, total)) {
                    frames.push(Frame::StreamReceipt {
                        stream: *id,
                        receipt: Bytes::copy_from_slice(receipt.as_bytes()),
                    });
                }
            }
        }
        let data = self.seal(
            PacketType::Fulfill,
            accepted.sequence,
            accepted.amount,
            frames,
        );
        Fulfill {
            fulfillment: accepted.fulfillment,
            data,
        }
    }

    /// The amounts could not be made durable: answers with a Reject of the given code.
    ///
    /// A temporary code makes the sender try again later.
    pub fn refuse(&mut self, accepted: Accepted, code: ErrorCode) -> Reject {
        self.release(&accepted.streams);
        if code == ErrorCode::FinalApplicationError {
            let frames = self.reply_frames(accepted.introduced);
            return self.final_reject(accepted.sequence, accepted.amount, frames);
        }
        self.plain_reject(code, "payment was not taken")
    }

    fn release(&mut self, streams: &[(StreamId, u64)]) {
        self.pending_packets -= 1;
        for (id, amount) in streams {
            if let Some(stream) = self.streams.get_mut(id) {
                stream.pending -= amount;
                stream.pending_packets -= 1;
                self.noteworthy.insert(*id);
            }
        }
    }

    /// Splits an amount over the streams by their shares (RFC 29 section 5.3.8). What rounding leaves
    /// goes to the first of these streams that can take it. Refused with frames that say why.
    fn split(&self, amount: u64, frames: &[Frame]) -> Result<Vec<(StreamId, u64)>, Vec<Frame>> {
        let mut shares: Vec<(StreamId, u64)> = Vec::new();
        let mut total: u64 = 0;
        for frame in frames {
            let Frame::StreamMoney {
                stream,
                shares: these,
            } = frame
            else {
                continue;
            };
            total = total.checked_add(*these).ok_or_else(Vec::new)?;
            match shares.iter_mut().find(|(id, _)| id == stream) {
                Some((_, sum)) => *sum += these,
                None => shares.push((*stream, *these)),
            }
        }
        if amount == 0 {
            return Ok(Vec::new());
        }
        if total == 0 {
            // Money for no stream would have no owner.
            return Err(Vec::new());
        }
        shares.sort_unstable_by_key(|(id, _)| *id);
        let tolerance = self.config.receive_tolerance_permille;
        let mut left = amount;
        let mut amounts = Vec::with_capacity(shares.len());
        for (id, share) in shares {
            let part = scale(amount, share, total);
            let Some(stream) = self.streams.get(&id).filter(|stream| stream.is_open()) else {
                return Err(vec![Frame::StreamClose {
                    stream: id,
                    code: StreamErrorCode::StreamStateError,
                    message: "stream is closed".to_owned(),
                }]);
            };
            let most = stream.receivable(tolerance);
            if part > most {
                // The limits that every reply carries say how much is possible.
                return Err(Vec::new());
            }
            left -= part;
            amounts.push((id, part, most));
        }
        for (_, part, most) in &mut amounts {
            let more = left.min(*most - *part);
            *part += more;
            left -= more;
        }
        if left > 0 {
            return Err(Vec::new());
        }
        Ok(amounts
            .into_iter()
            .map(|(id, part, _)| (id, part))
            .filter(|(_, part)| *part > 0)
            .collect())
    }

    fn plain_reject(&self, code: ErrorCode, message: &str) -> Reject {
        Reject::new(code, self.config.local_address.as_ref(), message)
    }

    /// F99 with a sealed answer.
    fn final_reject(&mut self, sequence: u64, amount: u64, frames: Vec<Frame>) -> Reject {
        let data = self.seal(PacketType::Reject, sequence, amount, frames);
        let mut reject = self.plain_reject(ErrorCode::FinalApplicationError, "");
        reject.data = data;
        reject
    }

    fn seal(
        &mut self,
        packet_type: PacketType,
        sequence: u64,
        prepare_amount: u64,
        frames: Vec<Frame>,
    ) -> Bytes {
        let iv = self.iv();
        let packet = StreamPacket {
            packet_type,
            sequence,
            prepare_amount,
            frames,
        };
        // Limits and repeated data stay far below the longest packet; if they ever did not, an empty
        // answer is still better than none.
        let sealed = self.keys.seal(iv, &packet.encode());
        let sealed = sealed.or_else(|_| {
            self.keys.seal(
                iv,
                &StreamPacket {
                    frames: Vec::new(),
                    ..packet
                }
                .encode(),
            )
        });
        sealed.unwrap_or_default().into()
    }
}
