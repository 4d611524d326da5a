//! Our own Prepares and what comes back for them.

use bytes::Bytes;
use ilp_packet::{
    Address, Condition, ErrorClass, ErrorCode, Fulfill, Prepare, Reject, Reply, Timestamp,
};

use super::config::{MAX_SHORTFALLS, scale};
use super::event::{CloseReason, Transmit};
use super::stream::Phase;
use super::{Connection, State};
use crate::frame::{Frame, StreamErrorCode, StreamId};
use crate::packet::{PacketType, StreamPacket};
use crate::seal::MAX_PLAINTEXT;

/// Bytes of a packet that are left free for its header.
const HEADER_ROOM: usize = 40;

/// What has to be remembered of a Prepare until its reply.
#[derive(Debug)]
pub(super) struct InFlight {
    condition: Condition,
    amount: u64,
    minimum: u64,
    money: Vec<Part>,
    data: Vec<(StreamId, u64)>,
    closes: Vec<StreamId>,
    introduces_us: bool,
    closes_connection: bool,
}

#[derive(Debug)]
struct Part {
    stream: StreamId,
    amount: u64,
    arriving: u64,
}

impl Connection {
    /// The next Prepare to be sent now, if there is one.
    pub fn poll_transmit(&mut self, now: Timestamp) -> Option<Transmit> {
        let destination = self.remote_address.clone()?;
        if let State::Closing {
            code,
            message,
            in_flight: false,
            ..
        } = &self.state
        {
            let close = Frame::ConnectionClose {
                code: *code,
                message: message.clone(),
            };
            return self.transmit_close(now, destination, close);
        }
        if self.check_alive().is_err()
            || self.in_flight.len() >= self.congestion.window()
            || now < self.congestion.pause_until()
            || !self.has_something_to_send()
        {
            return None;
        }
        let Some(sequence) = self.take_sequence() else {
            let message = "this connection has sent all the packets it may".to_owned();
            self.closed(CloseReason::Local {
                code: StreamErrorCode::NoError,
                message,
            });
            return None;
        };
        let mut frames = Vec::new();
        let introduces_us = !self.remote_knows_us;
        if introduces_us {
            frames.extend(self.introduction());
        }
        frames.extend(self.limit_frames());
        let money = self.load_money(&mut frames);
        let closes = self.load_closes(&mut frames);
        let data = self.load_data(&mut frames);
        self.news = false;
        self.ask_again_at = now.plus_millis(self.config.ask_again_millis);

        let amount = money.iter().map(|part| part.amount).sum();
        let minimum = self.config.rate.arriving(amount);
        let (prepare, condition) =
            self.seal_prepare(now, destination, sequence, amount, minimum, frames)?;
        self.in_flight.insert(
            sequence,
            InFlight {
                condition,
                amount,
                minimum,
                money,
                data,
                closes,
                introduces_us,
                closes_connection: false,
            },
        );
        Some(Transmit {
            id: sequence,
            prepare,
        })
    }

    /// The reply to a transmitted Prepare. A second reply to the same one has no effect.
    pub fn handle_reply(&mut self, now: Timestamp, id: u64, reply: Reply) {
        let Some(sent) = self.in_flight.remove(&id) else {
            return;
        };
        match reply {
            Ok(fulfill) => self.handle_fulfill(now, id, sent, &fulfill),
            Err(reject) => self.handle_reject(now, id, sent, &reject),
        }
        if let State::Closing {
            reason,
            in_flight: true,
            ..
        } = &self.state
            && !self.in_flight.values().any(|sent| sent.closes_connection)
        {
            // The close was answered in whatever way.
            let reason = reason.clone();
            self.closed(reason);
        }
    }

    /// Whether a packet would carry anything that is not on its way already.
    pub(super) fn has_something_to_send(&self) -> bool {
        if self.remote_address.is_none() {
            return false;
        }
        let rate = self.config.rate;
        let data_room = self.data_room();
        match self.state {
            State::Fresh | State::Connected => {
                self.news
                    || self.streams.values().any(|stream| {
                        let data = stream.outgoing.next_offset().is_some_and(|offset| {
                            offset < stream.remote_max_data
                                && (data_room > 0 || offset < stream.outgoing.sent_to())
                        });
                        data || stream.sendable(rate) > 0 || stream.is_ready_to_close(rate)
                    })
            }
            State::Closing { in_flight, .. } => !in_flight,
            State::Closed { .. } => false,
        }
    }

    fn transmit_close(
        &mut self,
        now: Timestamp,
        destination: Address,
        close: Frame,
    ) -> Option<Transmit> {
        if let State::Closing { in_flight, .. } = &mut self.state {
            *in_flight = true;
        }
        // With the keys used up or the frame too long, the other end has to find out by itself.
        let sent = self.take_sequence().and_then(|sequence| {
            let sealed = self.seal_prepare(now, destination, sequence, 0, 0, vec![close]);
            sealed.map(|(prepare, condition)| (sequence, prepare, condition))
        });
        let Some((sequence, prepare, condition)) = sent else {
            if let State::Closing { reason, .. } = &self.state {
                let reason = reason.clone();
                self.closed(reason);
            }
            return None;
        };
        self.in_flight.insert(
            sequence,
            InFlight {
                condition,
                amount: 0,
                minimum: 0,
                money: Vec::new(),
                data: Vec::new(),
                closes: Vec::new(),
                introduces_us: false,
                closes_connection: true,
            },
        );
        Some(Transmit {
            id: sequence,
            prepare,
        })
    }

    fn introduction(&self) -> Vec<Frame> {
        let mut frames = Vec::new();
        if let Some(address) = &self.config.local_address {
            frames.push(Frame::ConnectionNewAddress {
                address: address.clone(),
            });
        }
        if let Some(asset) = &self.config.asset {
            let (code, scale) = (asset.code.clone(), asset.scale);
            frames.push(Frame::ConnectionAssetDetails { code, scale });
        }
        frames
    }

    /// Takes as much money as one packet may carry.
    fn load_money(&mut self, frames: &mut Vec<Frame>) -> Vec<Part> {
        let rate = self.config.rate;
        let mut left = self.congestion.max_amount();
        let mut parts: Vec<Part> = Vec::new();
        for stream in self.streams.values_mut() {
            let amount = stream.sendable(rate).min(left);
            if amount > 0 {
                // Rounded up: what is on its way may arrive rounded in favour of any stream.
                let arriving = rate
                    .arriving(amount)
                    .saturating_add(u64::from(rate != super::Rate::ONE));
                stream.hold(amount, arriving);
                left -= amount;
                frames.push(Frame::StreamMoney {
                    stream: stream.id,
                    shares: amount,
                });
                parts.push(Part {
                    stream: stream.id,
                    amount,
                    arriving,
                });
            }
            if stream.is_money_blocked(rate) {
                frames.push(Frame::StreamMoneyBlocked {
                    stream: stream.id,
                    send_max: stream.send_max,
                    total_sent: stream.total_sent,
                });
            }
        }
        parts
    }

    fn load_closes(&mut self, frames: &mut Vec<Frame>) -> Vec<StreamId> {
        let rate = self.config.rate;
        let mut closes = Vec::new();
        for stream in self
            .streams
            .values_mut()
            .filter(|stream| stream.is_ready_to_close(rate))
        {
            let (code, message) = stream.close_reason();
            frames.push(Frame::StreamClose {
                stream: stream.id,
                code,
                message,
            });
            stream.phase = Phase::Closing {
                close_in_flight: true,
            };
            closes.push(stream.id);
        }
        closes
    }

    /// Bytes that the other end still takes on the whole connection.
    fn data_room(&self) -> u64 {
        self.remote_max_data.saturating_sub(self.data_sent)
    }

    /// Fills the rest of the packet with data.
    fn load_data(&mut self, frames: &mut Vec<Frame>) -> Vec<(StreamId, u64)> {
        let used = StreamPacket {
            packet_type: PacketType::Prepare,
            sequence: 0,
            prepare_amount: 0,
            frames: frames.clone(),
        };
        let mut left = MAX_PLAINTEXT.saturating_sub(used.encode().len() + HEADER_ROOM);
        let mut sent = Vec::new();
        for stream in self.streams.values_mut() {
            while let Some(offset) = stream.outgoing.next_offset() {
                let overhead = Frame::data_frame_len(stream.id, offset, left) - left;
                let Some(max) = left.checked_sub(overhead).filter(|max| *max > 0) else {
                    break;
                };
                // Bytes that were sent before do not count again.
                let before = stream.outgoing.sent_to();
                let room = self.remote_max_data.saturating_sub(self.data_sent);
                let limit = stream.remote_max_data.min(before.saturating_add(room));
                let Some((offset, data)) = stream.outgoing.take(max, limit) else {
                    break;
                };
                self.data_sent += stream.outgoing.sent_to() - before;
                left -= (overhead + data.len()).min(left);
                sent.push((stream.id, offset));
                frames.push(Frame::StreamData {
                    stream: stream.id,
                    offset,
                    data,
                });
            }
            if let Some(offset) = stream.outgoing.next_offset()
                && offset >= stream.remote_max_data
            {
                let max_offset = stream.outgoing.end();
                frames.push(Frame::StreamDataBlocked {
                    stream: stream.id,
                    max_offset,
                });
                left = left.saturating_sub(16);
            }
        }
        sent
    }

    fn seal_prepare(
        &mut self,
        now: Timestamp,
        destination: Address,
        sequence: u64,
        amount: u64,
        minimum: u64,
        frames: Vec<Frame>,
    ) -> Option<(Prepare, Condition)> {
        let packet = StreamPacket {
            packet_type: PacketType::Prepare,
            sequence,
            prepare_amount: minimum,
            frames,
        };
        let iv = self.iv();
        let data: Bytes = self.keys.seal(iv, &packet.encode()).ok()?.into();
        let condition = self.keys.condition(&data);
        let expires_at = now.plus_millis(self.config.packet_timeout_millis);
        Some((
            Prepare {
                amount,
                expires_at,
                condition,
                destination,
                data,
            },
            condition,
        ))
    }

    /// The sealed answer that came with a reply, if it is really the answer to this packet. Nobody
    /// on the way can make one, but somebody could move one.
    fn open_answer(&self, id: u64, packet_type: PacketType, data: &[u8]) -> Option<StreamPacket> {
        let plaintext = self.keys.open(data).ok()?;
        let answer = StreamPacket::decode(plaintext.into()).ok()?;
        (answer.sequence == id && answer.packet_type == packet_type).then_some(answer)
    }

    fn handle_fulfill(&mut self, now: Timestamp, id: u64, sent: InFlight, fulfill: &Fulfill) {
        if fulfill.fulfillment.condition() != sent.condition {
            // Our own connector let a wrong fulfillment pass. It is not a payment.
            self.give_back(&sent);
            self.congestion.on_loss(now, id, self.next_sequence);
            return;
        }
        let answer = self.open_answer(id, PacketType::Fulfill, &fulfill.data);
        // A receiver that fulfils has got the minimum, whatever became of its answer.
        let arrived = answer
            .as_ref()
            .map_or(sent.minimum, |answer| answer.prepare_amount)
            .max(sent.minimum);
        for part in &sent.money {
            if let Some(stream) = self.streams.get_mut(&part.stream) {
                stream.release(part.amount, part.arriving);
                stream.sent(part.amount, scale(arrived, part.amount, sent.amount));
                self.noteworthy.insert(part.stream);
            }
        }
        self.total_sent = self.total_sent.saturating_add(sent.amount);
        if sent.amount > 0 {
            self.total_delivered = self.total_delivered.saturating_add(arrived);
        }
        for (stream, offset) in &sent.data {
            if let Some(stream) = self.streams.get_mut(stream) {
                stream.outgoing.acknowledge(*offset);
            }
        }
        for id in &sent.closes {
            if let Some(stream) = self.streams.get_mut(id) {
                let (code, message) = stream.close_reason();
                stream.finish(code, message);
                self.noteworthy.insert(*id);
            }
        }
        self.congestion.on_fulfill(sent.amount);
        self.shortfalls = 0;
        self.last_reject = None;
        self.heard(now);
        if sent.introduces_us {
            self.remote_knows_us = true;
        }
        if let Some(answer) = answer {
            self.take_frames(&answer.frames);
        }
    }

    fn handle_reject(&mut self, now: Timestamp, id: u64, sent: InFlight, reject: &Reject) {
        self.give_back(&sent);
        self.last_reject = Some(reject.code);
        if sent.closes_connection {
            return;
        }
        let answer = self.open_answer(id, PacketType::Reject, &reject.data);
        if let Some(answer) = &answer {
            self.heard(now);
            if sent.introduces_us {
                self.remote_knows_us = true;
            }
            let limits_before = self.limits_of(&sent);
            self.take_frames(&answer.frames);
            let shortfall = sent.amount > 0 && answer.prepare_amount < sent.minimum;
            if shortfall {
                self.shortfalls += 1;
                if self.shortfalls >= MAX_SHORTFALLS {
                    let (minimum, arrived) = (sent.minimum, answer.prepare_amount);
                    let reason = CloseReason::BadRate { minimum, arrived };
                    self.end(
                        reason,
                        StreamErrorCode::ApplicationError,
                        "exchange rate is too low",
                    );
                    return;
                }
            }
            // Without a reason that will keep us from repeating it, the packet waits its turn.
            if shortfall || limits_before == self.limits_of(&sent) {
                self.congestion.pause(now);
            }
            return;
        }
        // Nobody knows what the other end has read of the packet.
        self.news = true;
        match reject.code {
            ErrorCode::AmountTooLarge => {
                if sent.amount > 0 && self.congestion.on_too_large(sent.amount, &reject.data) {
                    return;
                }
                self.rejected(reject);
            }
            // An answer that cannot be read, or a hop that is not satisfied for the moment.
            ErrorCode::FinalApplicationError | ErrorCode::InsufficientDestinationAmount => {
                self.congestion.pause(now);
            }
            ErrorCode::InsufficientLiquidity => {
                self.congestion.on_no_liquidity(sent.amount);
                self.congestion.on_loss(now, id, self.next_sequence);
            }
            code => match code.class() {
                ErrorClass::Temporary | ErrorClass::Relative => {
                    self.congestion.on_loss(now, id, self.next_sequence);
                }
                ErrorClass::Final => self.rejected(reject),
            },
        }
    }

    fn rejected(&mut self, reject: &Reject) {
        self.closed(CloseReason::Rejected {
            code: reject.code,
            by: reject
                .triggered_by
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            message: super::shortened(&reject.message),
        });
    }

    /// The limits that stopped a packet: what the streams can send now.
    fn limits_of(&self, sent: &InFlight) -> Vec<u64> {
        let rate = self.config.rate;
        let streams = sent
            .money
            .iter()
            .filter_map(|part| self.streams.get(&part.stream));
        streams.map(|stream| stream.sendable(rate)).collect()
    }

    /// Nothing of the packet arrived as far as we know.
    fn give_back(&mut self, sent: &InFlight) {
        for part in &sent.money {
            if let Some(stream) = self.streams.get_mut(&part.stream) {
                stream.release(part.amount, part.arriving);
                self.noteworthy.insert(part.stream);
            }
        }
        for (stream, offset) in &sent.data {
            if let Some(stream) = self.streams.get_mut(stream) {
                stream.outgoing.lost(*offset);
            }
        }
        for id in &sent.closes {
            if let Some(stream) = self.streams.get_mut(id)
                && stream.phase != Phase::Over
            {
                stream.phase = Phase::Closing {
                    close_in_flight: false,
                };
            }
        }
    }
}
