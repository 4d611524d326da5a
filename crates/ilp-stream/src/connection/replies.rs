//! What comes back for our Prepares.

use ilp_packet::{ErrorClass, ErrorCode, Fulfill, Reject, Reply, Timestamp};

use super::config::{MAX_CLOSE_ATTEMPTS, MAX_SHORTFALLS};
use super::event::CloseReason;
use super::outgoing::{InFlight, Part, Purpose};
use super::probe::Outcome;
use super::rate::{PathRate, RatePolicy, scale};
use super::stream::Phase;
use super::{Connection, State};
use crate::frame::{StreamErrorCode, StreamId};
use crate::packet::{PacketType, StreamPacket};

impl Connection {
    /// The reply to a transmitted Prepare. A second reply to the same one has no effect.
    pub fn handle_reply(&mut self, now: Timestamp, id: u64, reply: Reply) {
        let Some(sent) = self.in_flight.remove(&id) else {
            return;
        };
        match reply {
            Ok(fulfill) => self.handle_fulfill(now, id, &sent, &fulfill),
            Err(reject) => self.handle_reject(now, id, &sent, &reject),
        }
        if let Some(rate) = self.rate {
            for part in &sent.money {
                if let Some(stream) = self.streams.get_mut(&part.stream)
                    && stream.check_deliverable(rate)
                {
                    self.noteworthy.insert(part.stream);
                }
            }
        }
        if let State::Closing {
            reason,
            in_flight: true,
            ..
        } = &self.state
            && !self
                .in_flight
                .values()
                .any(|sent| sent.purpose == Purpose::Close)
        {
            // The close was answered in whatever way, or too often in none.
            let reason = reason.clone();
            self.closed(reason);
        }
    }

    /// The sealed answer that came with a reply, if it is really the answer to this packet. Nobody
    /// on the way can make one, but somebody could move one.
    fn open_answer(&self, id: u64, packet_type: PacketType, data: &[u8]) -> Option<StreamPacket> {
        let plaintext = self.keys.open(data).ok()?;
        let answer = StreamPacket::decode(plaintext.into()).ok()?;
        (answer.sequence == id && answer.packet_type == packet_type).then_some(answer)
    }

    fn handle_fulfill(&mut self, now: Timestamp, id: u64, sent: &InFlight, fulfill: &Fulfill) {
        if fulfill.fulfillment.condition() != sent.condition {
            // Our own connector let a wrong fulfillment pass. It is not a payment.
            self.give_back(sent);
            self.lost(now, id, sent);
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
            if let Some(stream) = self.streams.get(id) {
                let (code, message) = stream.close_reason();
                self.finish_stream(*id, code, message);
            }
        }
        self.congestion
            .on_fulfill(id, sent.amount, sent.sent_at, now, self.next_sequence);
        self.shortfalls = 0;
        self.last_reject = None;
        if let Some(answer) = answer {
            self.take_answer(now, sent, &answer);
        } else {
            self.heard(now);
        }
        if sent.introduces_us {
            self.remote_knows_us = true;
        }
    }

    /// Acts on a sealed answer.
    fn take_answer(&mut self, now: Timestamp, sent: &InFlight, answer: &StreamPacket) {
        self.heard(now);
        if sent.introduces_us {
            self.remote_knows_us = true;
        }
        if sent.amount > 0
            && let Some(rate) = &mut self.rate
        {
            rate.observe(sent.amount, answer.prepare_amount);
        }
        self.take_frames(&answer.frames);
    }

    fn handle_reject(&mut self, now: Timestamp, id: u64, sent: &InFlight, reject: &Reject) {
        self.give_back(sent);
        self.last_reject = Some(reject.code);
        let answer = self.open_answer(id, PacketType::Reject, &reject.data);
        match (sent.purpose, answer) {
            (Purpose::Close, Some(_)) => {}
            (Purpose::Close, None) => self.handle_close_failure(now, reject),
            (Purpose::Test, answer) => self.handle_test_reject(now, sent, reject, answer),
            (Purpose::Payload, Some(answer)) => self.handle_refusal(now, id, sent, &answer),
            (Purpose::Payload, None) => self.handle_failure(now, id, sent, reject),
        }
    }

    /// The other end did not take the packet, and says what it knows.
    fn handle_refusal(&mut self, now: Timestamp, id: u64, sent: &InFlight, answer: &StreamPacket) {
        let limits_before = self.limits_of(sent);
        self.take_answer(now, sent, answer);
        let shortfall = sent.amount > 0 && answer.prepare_amount < sent.minimum;
        if shortfall && id >= self.shortfall_until {
            self.shortfall_until = self.next_sequence;
            self.shortfalls += 1;
            if self.shortfalls >= MAX_SHORTFALLS {
                let (minimum, arrived) = (sent.minimum, answer.prepare_amount);
                let reason = CloseReason::BadRate { minimum, arrived };
                let code = StreamErrorCode::ApplicationError;
                self.end(reason, code, "exchange rate is too low");
                return;
            }
        }
        // Without a reason that will keep us from repeating it, the packet waits its turn.
        if shortfall || limits_before == self.limits_of(sent) {
            self.congestion.pause(now);
        }
    }

    /// The packet did not get to the other end, or its answer cannot be read.
    fn handle_failure(&mut self, now: Timestamp, id: u64, sent: &InFlight, reject: &Reject) {
        // Nobody knows what the other end has read of the packet.
        self.news = true;
        match reject.code {
            ErrorCode::AmountTooLarge => {
                if sent.amount == 0 || !self.congestion.on_too_large(sent.amount, &reject.data) {
                    self.rejected(reject);
                }
            }
            // An answer that cannot be read, or a hop that is not satisfied for the moment.
            ErrorCode::FinalApplicationError | ErrorCode::InsufficientDestinationAmount => {
                self.congestion.pause(now);
            }
            ErrorCode::InsufficientLiquidity => {
                let least = self.rate.and_then(|rate| rate.least_amount());
                self.congestion
                    .on_no_liquidity(sent.amount, least.unwrap_or(1));
                self.lost(now, id, sent);
            }
            code => match code.class() {
                ErrorClass::Temporary | ErrorClass::Relative => self.lost(now, id, sent),
                ErrorClass::Final => self.rejected(reject),
            },
        }
    }

    /// The other end may not have heard that the connection is over.
    fn handle_close_failure(&mut self, now: Timestamp, reject: &Reject) {
        let passing = match reject.code.class() {
            ErrorClass::Temporary | ErrorClass::Relative => true,
            ErrorClass::Final => false,
        };
        if let State::Closing {
            in_flight,
            attempts,
            ..
        } = &mut self.state
            && passing
            && *attempts < MAX_CLOSE_ATTEMPTS
        {
            *in_flight = false;
            self.congestion.pause(now);
        }
    }

    fn handle_test_reject(
        &mut self,
        now: Timestamp,
        sent: &InFlight,
        reject: &Reject,
        answer: Option<StreamPacket>,
    ) {
        if let Some(answer) = answer {
            self.take_answer(now, sent, &answer);
            if let Some(probe) = &mut self.probe {
                probe.on_arrived(sent.amount, answer.prepare_amount);
            }
        } else {
            self.news = true;
            let smaller = reject.code == ErrorCode::InsufficientLiquidity;
            match reject.code {
                ErrorCode::AmountTooLarge => {
                    if !self.congestion.on_too_large(sent.amount, &reject.data) {
                        self.rejected(reject);
                        return;
                    }
                    let maximum = self.congestion.path_max();
                    if let Some(probe) = &mut self.probe {
                        probe.on_too_large(sent.amount, maximum);
                    }
                }
                ErrorCode::FinalApplicationError | ErrorCode::InsufficientDestinationAmount => {
                    self.test_failed(now, sent, false);
                }
                code => match code.class() {
                    ErrorClass::Temporary | ErrorClass::Relative => {
                        self.test_failed(now, sent, smaller);
                    }
                    ErrorClass::Final => {
                        self.rejected(reject);
                        return;
                    }
                },
            }
        }
        self.settle_probe();
    }

    fn test_failed(&mut self, now: Timestamp, sent: &InFlight, smaller: bool) {
        if let Some(probe) = &mut self.probe {
            probe.on_failure(now, sent.amount, smaller);
        }
    }

    /// Money can move once the path has answered.
    fn settle_probe(&mut self) {
        let (Some(probe), RatePolicy::Probed { slippage_ppm, .. }) =
            (&self.probe, self.config.rate)
        else {
            return;
        };
        match probe.outcome() {
            Outcome::Pending => {}
            Outcome::Known { sent, received } => {
                let rate = PathRate::measured(sent, received, slippage_ppm);
                self.rate = Some(rate);
                self.rate_unreported = true;
                self.probe = None;
                for (id, stream) in &mut self.streams {
                    if stream.check_deliverable(rate) {
                        self.noteworthy.insert(*id);
                    }
                    // What the other end does not take yet, it should know of.
                    self.news = self.news || stream.is_money_blocked(Some(rate));
                }
            }
            Outcome::NoRate { sent } => {
                self.probe = None;
                let last_reject = self.last_reject;
                let reason = CloseReason::NoRate { sent, last_reject };
                let code = StreamErrorCode::ApplicationError;
                self.end(reason, code, "path has no usable exchange rate");
            }
        }
    }

    /// A packet was lost, or refused by somebody on the way who is overloaded.
    fn lost(&mut self, now: Timestamp, id: u64, sent: &InFlight) {
        if sent.purpose == Purpose::Test {
            self.test_failed(now, sent, false);
            self.settle_probe();
            return;
        }
        self.congestion.on_loss(id, self.next_sequence);
        // Who waited for the expiry has waited enough.
        if now < sent.expires_at {
            self.congestion.pause(now);
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
        let streams = sent
            .money
            .iter()
            .filter_map(|part| self.streams.get(&part.stream));
        streams
            .map(|stream| stream.sendable(self.rate, u64::MAX))
            .collect()
    }

    /// Nothing of the packet arrived as far as we know.
    fn give_back(&mut self, sent: &InFlight) {
        self.give_back_parts(&sent.money, &sent.data, &sent.closes);
    }

    pub(super) fn give_back_parts(
        &mut self,
        money: &[Part],
        data: &[(StreamId, u64)],
        closes: &[StreamId],
    ) {
        for part in money {
            if let Some(stream) = self.streams.get_mut(&part.stream) {
                stream.release(part.amount, part.arriving);
                self.noteworthy.insert(part.stream);
            }
        }
        for (stream, offset) in data {
            if let Some(stream) = self.streams.get_mut(stream) {
                stream.outgoing.lost(*offset);
            }
        }
        for id in closes {
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
