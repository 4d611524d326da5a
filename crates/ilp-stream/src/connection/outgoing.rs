//! Our own Prepares: what they carry and when they go.

use bytes::Bytes;
use ilp_packet::{Address, Condition, Prepare, Timestamp};

use super::config::PROBE_TIMEOUT_MILLIS;
use super::event::{CloseReason, Transmit};
use super::stream::Phase;
use super::{Connection, Rate, Role, State};
use crate::frame::{Frame, StreamErrorCode, StreamId};
use crate::packet::{MAX_HEADER, PacketType, StreamPacket};
use crate::seal::MAX_PLAINTEXT;

/// Bytes that are left free for frames that say why there is not more data in the packet.
const BLOCKED_ROOM: usize = 256;

/// The longest of these frames, bytes.
const MAX_BLOCKED_FRAME: usize = 2 + 2 * 9;

/// What has to be remembered of a Prepare until its reply.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) purpose: Purpose,
    pub(super) condition: Condition,
    pub(super) amount: u64,
    pub(super) minimum: u64,
    pub(super) sent_at: Timestamp,
    pub(super) expires_at: Timestamp,
    pub(super) money: Vec<Part>,
    pub(super) data: Vec<(StreamId, u64)>,
    pub(super) closes: Vec<StreamId>,
    pub(super) introduces_us: bool,
}

/// What a Prepare is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It carries money, data or news.
    Payload,
    /// It asks the path what it delivers, and cannot be fulfilled.
    Test,
    /// It tells that the connection is over.
    Close,
}

/// The money of one stream in a packet.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) stream: StreamId,
    pub(super) amount: u64,
    pub(super) arriving: u64,
}

/// What is put into a packet.
struct Load {
    purpose: Purpose,
    amount: u64,
    minimum: u64,
    frames: Vec<Frame>,
    money: Vec<Part>,
    data: Vec<(StreamId, u64)>,
    closes: Vec<StreamId>,
}

impl Load {
    fn news(purpose: Purpose, amount: u64, frames: Vec<Frame>) -> Self {
        Self {
            purpose,
            amount,
            minimum: 0,
            frames,
            money: Vec::new(),
            data: Vec::new(),
            closes: Vec::new(),
        }
    }
}

impl Connection {
    /// The next Prepare to be sent now, if there is one.
    pub fn poll_transmit(&mut self, now: Timestamp) -> Option<Transmit> {
        let destination = self.remote_address.as_ref()?;
        if let State::Closing { frames, .. } = &self.state
            && self.is_close_due(now)
        {
            let (destination, frames) = (destination.clone(), frames.clone());
            return self.transmit_close(now, destination, frames);
        }
        if self.check_alive().is_err() {
            return None;
        }
        if self.next_test_at().is_some_and(|at| at <= now) {
            return self.transmit_test(now);
        }
        if !self.may_transmit(now) {
            return None;
        }
        if let Some(reason) = self.packets_too_small() {
            let message = reason.to_string();
            self.end(reason, StreamErrorCode::ApplicationError, &message);
            return self.poll_transmit(now);
        }
        let destination = self.remote_address.clone()?;
        let introduces_us = !self.remote_knows_us;
        let mut load = Load::news(Purpose::Payload, 0, self.news_frames());
        self.load_money(&mut load);
        self.load_closes(&mut load);
        self.load_data(&mut load);
        self.news = false;
        self.ask_again_at = now.plus_millis(self.config.ask_again_millis);
        self.transmit(now, destination, load, introduces_us)
    }

    /// Whether [`Connection::poll_transmit`] would give a packet now.
    pub fn wants_to_transmit(&self, now: Timestamp) -> bool {
        match self.state {
            State::Fresh | State::Connected => {
                self.next_test_at().is_some_and(|at| at <= now) || self.may_transmit(now)
            }
            State::Closing { .. } => self.is_close_due(now),
            State::Closed { .. } => false,
        }
    }

    /// The end of the connection has to be told in a packet of ours; for the first time at once, unless
    /// a reply is to come that tells it.
    fn is_close_due(&self, now: Timestamp) -> bool {
        self.pending_packets == 0
            && matches!(self.state, State::Closing { in_flight: false, attempts, .. }
                if attempts == 0 || now >= self.congestion.pause_until())
    }

    fn may_transmit(&self, now: Timestamp) -> bool {
        self.in_flight.len() < self.congestion.window()
            && now >= self.congestion.pause_until()
            && self.has_something_to_send()
    }

    /// Whether a packet would carry anything that is not on its way already.
    pub(super) fn has_something_to_send(&self) -> bool {
        if self.remote_address.is_none() {
            return false;
        }
        match self.state {
            State::Fresh | State::Connected => {
                let (rate, most) = (self.rate, self.congestion.max_amount());
                let data_room = self.data_room();
                self.news
                    || self.streams.values().any(|stream| {
                        stream.sendable(rate, most) > 0
                            || stream.has_data_to_send(data_room)
                            || stream.is_ready_to_close(rate)
                    })
                    || self.packets_too_small().is_some()
            }
            // Who waits for a reply of ours hears it there.
            State::Closing { in_flight, .. } => !in_flight && self.pending_packets == 0,
            State::Closed { .. } => false,
        }
    }

    /// When the next test packet can be sent, if there is one. A client knows whom it asks; a server
    /// asks only when it wants to pay, and no faster than an address allows that somebody only named.
    pub(super) fn next_test_at(&self) -> Option<Timestamp> {
        let at = self.probe.as_ref()?.ready_at()?;
        let wanted = match self.role {
            Role::Client => true,
            Role::Server => {
                self.in_flight.len() < self.congestion.window()
                    && self.streams.values().any(|stream| stream.wants_to_send())
            }
        };
        (wanted && self.remote_address.is_some() && self.check_alive().is_ok()).then_some(at)
    }

    /// The path carries so little in one packet that nothing of it would arrive.
    fn packets_too_small(&self) -> Option<CloseReason> {
        let rate = self.rate?;
        let maximum = self.congestion.path_max();
        let least = rate.least_amount().unwrap_or(u64::MAX);
        let affected =
            maximum < least && self.streams.values().any(|stream| stream.wants_to_send());
        affected.then_some(CloseReason::PacketsTooSmall { maximum, least })
    }

    fn transmit_test(&mut self, now: Timestamp) -> Option<Transmit> {
        let destination = self.remote_address.clone()?;
        let amount = self.probe.as_mut()?.next(now)?;
        let frames = self.news_frames();
        let load = Load::news(Purpose::Test, amount, frames);
        // It says all that there is to say; if it is lost, its Reject makes us say it again.
        self.news = false;
        let introduces_us = !self.remote_knows_us;
        self.transmit(now, destination, load, introduces_us)
    }

    fn transmit_close(
        &mut self,
        now: Timestamp,
        destination: Address,
        frames: Vec<Frame>,
    ) -> Option<Transmit> {
        if let State::Closing {
            in_flight,
            attempts,
            ..
        } = &mut self.state
        {
            *in_flight = true;
            *attempts += 1;
        }
        let load = Load::news(Purpose::Close, 0, frames);
        let transmit = self.transmit(now, destination, load, false);
        // With the keys used up or the frame too long, the other end has to find out by itself.
        if transmit.is_none()
            && let State::Closing { reason, .. } = &self.state
        {
            let reason = reason.clone();
            self.closed(reason);
        }
        transmit
    }

    /// Numbers, seals and remembers a packet.
    fn transmit(
        &mut self,
        now: Timestamp,
        destination: Address,
        load: Load,
        introduces_us: bool,
    ) -> Option<Transmit> {
        let Some(sequence) = self.take_sequence() else {
            self.give_back_parts(&load.money, &load.data, &load.closes);
            let message = "this connection has sent all the packets it may".to_owned();
            self.closed(CloseReason::Local {
                code: StreamErrorCode::NoError,
                message,
            });
            return None;
        };
        let packet = StreamPacket {
            packet_type: PacketType::Prepare,
            sequence,
            prepare_amount: load.minimum,
            frames: load.frames,
        };
        let iv = self.iv();
        let Ok(data) = self.keys.seal(iv, &packet.encode()) else {
            // The loaders leave room, so this is the reason of a close that is too long.
            self.give_back_parts(&load.money, &load.data, &load.closes);
            return None;
        };
        let data = Bytes::from(data);
        let timeout = self.config.packet_timeout_millis;
        let (condition, timeout) = match load.purpose {
            Purpose::Payload | Purpose::Close => (self.keys.condition(&data), timeout),
            Purpose::Test => {
                let mut condition = Condition([0; 32]);
                self.entropy.fill(&mut condition.0);
                (condition, timeout.min(PROBE_TIMEOUT_MILLIS))
            }
        };
        let expires_at = now.plus_millis(timeout);
        self.in_flight.insert(
            sequence,
            InFlight {
                purpose: load.purpose,
                condition,
                amount: load.amount,
                minimum: load.minimum,
                sent_at: now,
                expires_at,
                money: load.money,
                data: load.data,
                closes: load.closes,
                introduces_us,
            },
        );
        Some(Transmit {
            id: sequence,
            prepare: Prepare {
                amount: load.amount,
                expires_at,
                condition,
                destination,
                data,
            },
        })
    }

    /// Who we are, until the other end has seen it, and our limits.
    fn news_frames(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        if !self.remote_knows_us {
            if let Some(address) = &self.config.local_address {
                let address = address.clone();
                frames.push(Frame::ConnectionNewAddress { address });
            }
            if let Some(asset) = &self.config.asset {
                let (code, scale) = (asset.code.clone(), asset.scale);
                frames.push(Frame::ConnectionAssetDetails { code, scale });
            }
        }
        frames.append(&mut self.limit_frames());
        if self.streams_blocked {
            frames.push(Frame::ConnectionStreamIdBlocked {
                max_stream_id: self.next_local_stream,
            });
        }
        frames
    }

    /// Takes as much money as one packet may carry.
    fn load_money(&mut self, load: &mut Load) {
        let rate = self.rate;
        let mut left = self.congestion.max_amount();
        for stream in self.streams.values_mut() {
            // The parts of a packet are rounded down when they arrive, and what that leaves goes to
            // any of its streams. With a unit free in each but the first there is room for it.
            let exact = rate.is_some_and(|rate| rate.estimate == Rate::ONE);
            let spare = u64::from(!exact && !load.money.is_empty());
            let amount = stream.sendable_with_spare(rate, left, spare);
            if amount > 0
                && let Some(rate) = rate
            {
                // Rounded up: what is on its way may arrive rounded in favour of any stream.
                let arriving = rate.estimate.arriving(amount);
                let arriving = arriving.saturating_add(u64::from(rate.estimate != Rate::ONE));
                stream.hold(amount, arriving);
                left -= amount;
                load.frames.push(Frame::StreamMoney {
                    stream: stream.id,
                    shares: amount,
                });
                load.money.push(Part {
                    stream: stream.id,
                    amount,
                    arriving,
                });
            }
            if stream.is_money_blocked(rate) {
                load.frames.push(Frame::StreamMoneyBlocked {
                    stream: stream.id,
                    send_max: stream.send_max,
                    total_sent: stream.total_sent,
                });
            }
        }
        // Cannot overflow: the parts were taken from `left`.
        load.amount = load.money.iter().map(|part| part.amount).sum();
        load.minimum = rate.map_or(0, |rate| rate.minimum_of(load.amount));
    }

    fn load_closes(&mut self, load: &mut Load) {
        let rate = self.rate;
        for stream in self
            .streams
            .values_mut()
            .filter(|stream| stream.is_ready_to_close(rate))
        {
            let (code, message) = stream.close_reason();
            load.frames.push(Frame::StreamClose {
                stream: stream.id,
                code,
                message,
            });
            stream.phase = Phase::Closing {
                close_in_flight: true,
            };
            load.closes.push(stream.id);
        }
    }

    /// Bytes that the other end still takes on the whole connection.
    pub(super) fn data_room(&self) -> u64 {
        self.remote_max_data.saturating_sub(self.data_sent)
    }

    /// Fills the rest of the packet with data.
    fn load_data(&mut self, load: &mut Load) {
        let waits = |stream: &super::Stream| stream.outgoing.next_offset().is_some();
        if !self.streams.values().any(waits) {
            return;
        }
        let used: usize = load.frames.iter().map(Frame::encoded_len).sum();
        let mut left = MAX_PLAINTEXT.saturating_sub(used + MAX_HEADER + BLOCKED_ROOM);
        let mut blocked_room = BLOCKED_ROOM - MAX_BLOCKED_FRAME;
        let mut connection_blocked = false;
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
                    connection_blocked |= room == 0;
                    break;
                };
                self.data_sent += stream.outgoing.sent_to() - before;
                left -= (overhead + data.len()).min(left);
                load.data.push((stream.id, offset));
                load.frames.push(Frame::StreamData {
                    stream: stream.id,
                    offset,
                    data,
                });
            }
            if let Some(offset) = stream.outgoing.next_offset()
                && offset >= stream.remote_max_data
            {
                let max_offset = stream.outgoing.end();
                let frame = Frame::StreamDataBlocked {
                    stream: stream.id,
                    max_offset,
                };
                if let Some(rest) = blocked_room.checked_sub(frame.encoded_len()) {
                    blocked_room = rest;
                    load.frames.push(frame);
                }
            }
        }
        if connection_blocked {
            let waiting = |stream: &super::Stream| {
                stream
                    .outgoing
                    .end()
                    .saturating_sub(stream.outgoing.sent_to())
            };
            let waiting = self.streams.values().map(waiting);
            load.frames.push(Frame::ConnectionDataBlocked {
                max_offset: waiting.fold(self.data_sent, u64::saturating_add),
            });
        }
    }
}
