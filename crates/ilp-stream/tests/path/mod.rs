//! A simulated path between two connections: a clock that only the simulation moves, and hops that
//! delay, reorder, lose, repeat, hold, spoil and refuse packets, change amounts and run out of money.
//! Everything follows from one seed. It keeps its own books, which the connections are held to.

use std::collections::{BTreeMap, BTreeSet};

use ilp_packet::{AmountTooLarge, ErrorCode, Prepare, Reject, Reply, Timestamp};
use ilp_stream::{
    Accepted, Connection, Entropy, Event, Incoming, Keys, PacketType, Rate, SharedSecret, StreamId,
    StreamPacket,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

pub(crate) const START: Timestamp = Timestamp::from_millis(1_800_000_000_000);
pub(crate) const SECRET: SharedSecret = SharedSecret([42; 32]);

pub(crate) struct SeededEntropy(pub(crate) StdRng);

impl Entropy for SeededEntropy {
    fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill(bytes);
    }
}

/// What the path does to packets. Chances are in thousandths.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weather {
    pub(crate) delay_millis: (u64, u64),
    pub(crate) lose_prepare: u32,
    pub(crate) lose_reply: u32,
    pub(crate) repeat: u32,
    pub(crate) hold: u32,
    pub(crate) spoil_prepare: u32,
    pub(crate) spoil_reply: u32,
    pub(crate) swap_reply: u32,
    pub(crate) rate_limited: u32,
    pub(crate) refuse: u32,
    pub(crate) commit_millis: (u64, u64),
    /// Units that may pass in a second.
    pub(crate) liquidity: Option<u64>,
    /// Millionths that the rate moves up and down.
    pub(crate) drift_ppm: u32,
    /// Largest amount of one packet and whether it is counted behind the exchange.
    pub(crate) max_packet: (u64, bool),
    pub(crate) rate: Rate,
}

pub(crate) const CLEAR: Weather = Weather {
    delay_millis: (20, 20),
    lose_prepare: 0,
    lose_reply: 0,
    repeat: 0,
    hold: 0,
    spoil_prepare: 0,
    spoil_reply: 0,
    swap_reply: 0,
    rate_limited: 0,
    refuse: 0,
    commit_millis: (0, 0),
    liquidity: None,
    drift_ppm: 0,
    max_packet: (u64::MAX, false),
    rate: Rate::ONE,
};

impl Weather {
    /// The same path without its faults. Amounts change and are limited as before.
    pub(crate) fn healed(self) -> Self {
        Self {
            delay_millis: self.delay_millis,
            commit_millis: self.commit_millis,
            max_packet: self.max_packet,
            rate: self.rate,
            drift_ppm: self.drift_ppm,
            ..CLEAR
        }
    }
}

enum Step {
    Arrive {
        to: usize,
        id: Option<u64>,
        prepare: Prepare,
    },
    Commit {
        at: usize,
        id: Option<u64>,
        accepted: Accepted,
    },
    Answer {
        to: usize,
        id: u64,
        reply: Reply,
    },
    Read {
        at: usize,
        stream: StreamId,
    },
}

/// The books of one end as the path keeps them.
pub(crate) struct End {
    pub(crate) connection: Connection,
    /// Prepares that have no reply yet: amount and condition.
    waiting: BTreeMap<u64, Prepare>,
    /// What the link has paid out for valid fulfillments.
    pub(crate) settled: u64,
    /// What was committed here, by stream.
    pub(crate) committed: BTreeMap<StreamId, u64>,
    fulfilled: BTreeSet<[u8; 32]>,
    /// The highest limit that was set here, by stream.
    pub(crate) receive_max: BTreeMap<StreamId, u64>,
    pub(crate) send_max: BTreeMap<StreamId, u64>,
    pub(crate) written: BTreeMap<StreamId, u64>,
    pub(crate) read: BTreeMap<StreamId, u64>,
    pub(crate) closed_streams: BTreeSet<StreamId>,
    pub(crate) prepares: u64,
    pub(crate) closed_events: u32,
}

pub(crate) struct Path {
    pub(crate) now: Timestamp,
    pub(crate) ends: [End; 2],
    pub(crate) weather: Weather,
    pub(crate) rng: StdRng,
    /// How long the applications let data lie, milliseconds.
    pub(crate) laziness_millis: u64,
    steps: BTreeMap<(Timestamp, u64), Step>,
    next_step: u64,
    keys: Keys,
    liquidity_left: u64,
    liquidity_at: Timestamp,
    last_reply: Option<Reply>,
}

impl Path {
    pub(crate) fn new(seed: u64, weather: Weather, client: Connection, server: Connection) -> Self {
        let end = |connection| End {
            connection,
            waiting: BTreeMap::new(),
            settled: 0,
            committed: BTreeMap::new(),
            fulfilled: BTreeSet::new(),
            receive_max: BTreeMap::new(),
            send_max: BTreeMap::new(),
            written: BTreeMap::new(),
            read: BTreeMap::new(),
            closed_streams: BTreeSet::new(),
            prepares: 0,
            closed_events: 0,
        };
        Self {
            now: START,
            ends: [end(client), end(server)],
            weather,
            rng: StdRng::seed_from_u64(seed),
            laziness_millis: 0,
            steps: BTreeMap::new(),
            next_step: 0,
            keys: Keys::new(&SECRET.0),
            liquidity_left: weather.liquidity.unwrap_or(0),
            liquidity_at: START,
            last_reply: None,
        }
    }

    fn chance(&mut self, permille: u32) -> bool {
        permille > 0 && self.rng.random_ratio(permille, 1_000)
    }

    fn between(&mut self, (least, most): (u64, u64)) -> u64 {
        self.rng.random_range(least..=most)
    }

    fn later(&mut self, millis: u64, step: Step) {
        self.next_step += 1;
        let at = (self.now.plus_millis(millis), self.next_step);
        self.steps.insert(at, step);
    }

    /// Sends and reports what there is, now.
    pub(crate) fn drive(&mut self) {
        for side in 0..2 {
            let now = self.now;
            while let Some(transmit) = self.ends[side].connection.poll_transmit(now) {
                let end = &mut self.ends[side];
                end.prepares += 1;
                assert!(transmit.prepare.expires_at > now, "it expires in future");
                let known = end.waiting.insert(transmit.id, transmit.prepare.clone());
                assert!(known.is_none(), "an id is used once");
                self.depart(side, transmit.id, transmit.prepare);
            }
            while let Some(event) = self.ends[side].connection.poll_event() {
                let end = &mut self.ends[side];
                match event {
                    Event::Readable { stream } => {
                        let millis = self.rng.random_range(0..=self.laziness_millis);
                        self.later(millis, Step::Read { at: side, stream });
                    }
                    Event::StreamClosed { stream, .. } => {
                        assert!(end.closed_streams.insert(stream), "a stream ends once");
                    }
                    Event::Closed { .. } => end.closed_events += 1,
                    // What was on its way when the connection ended is still counted.
                    Event::MoneyReceived { .. } | Event::MoneySent { .. } => {}
                    other => assert_eq!(end.closed_events, 0, "after the close: {other:?}"),
                }
            }
        }
    }

    fn depart(&mut self, from: usize, id: u64, mut prepare: Prepare) {
        let weather = self.weather;
        let reply = Err(Reject::new(ErrorCode::TransferTimedOut, None, "expired"));
        let left = prepare.expires_at.millis_since(self.now);
        self.later(
            left,
            Step::Answer {
                to: from,
                id,
                reply,
            },
        );
        let delay = self.between(weather.delay_millis);
        if let Some(reject) = self.refusal(&mut prepare) {
            let reply = Err(reject);
            return self.later(
                delay * 2,
                Step::Answer {
                    to: from,
                    id,
                    reply,
                },
            );
        }
        let to = 1 - from;
        if self.chance(weather.repeat) {
            let again = self.between((0, 2_000));
            let prepare = prepare.clone();
            self.later(
                again,
                Step::Arrive {
                    to,
                    id: None,
                    prepare,
                },
            );
        }
        if self.chance(weather.lose_prepare) {
            return;
        }
        if self.chance(weather.spoil_prepare) {
            let mut data = prepare.data.to_vec();
            let at = self.rng.random_range(0..data.len());
            data[at] ^= 1 << self.rng.random_range(0..8);
            prepare.data = data.into();
        }
        let held = if self.chance(weather.hold) { left } else { 0 };
        let id = Some(id);
        self.later(delay + held, Step::Arrive { to, id, prepare });
    }

    /// What the hops say to a packet, after they have exchanged its amount.
    fn refusal(&mut self, prepare: &mut Prepare) -> Option<Reject> {
        let weather = self.weather;
        let before = prepare.amount;
        let drift = if weather.drift_ppm > 0 {
            self.rng.random_range(0..=weather.drift_ppm)
        } else {
            0
        };
        let Rate {
            numerator,
            denominator,
        } = weather.rate;
        let after = u128::from(before) * u128::from(numerator) * u128::from(1_000_000 - drift)
            / (u128::from(denominator) * 1_000_000);
        prepare.amount = u64::try_from(after).unwrap_or(u64::MAX);
        let (maximum, behind) = weather.max_packet;
        let received = if behind { prepare.amount } else { before };
        if received > maximum {
            let mut reject = Reject::new(ErrorCode::AmountTooLarge, None, "");
            reject.data = AmountTooLarge { received, maximum }.encode().into();
            return Some(reject);
        }
        if self.chance(weather.rate_limited) {
            let codes = [
                ErrorCode::RateLimited,
                ErrorCode::InternalError,
                ErrorCode::InsufficientTimeout,
            ];
            let code = codes[self.rng.random_range(0..codes.len())];
            return Some(Reject::new(code, None, "later"));
        }
        if let Some(liquidity) = weather.liquidity {
            let millis = self.now.millis_since(self.liquidity_at);
            let more = u128::from(liquidity) * u128::from(millis) / 1_000;
            let filled = u128::from(self.liquidity_left) + more;
            self.liquidity_left = u64::try_from(filled).unwrap_or(u64::MAX).min(liquidity);
            self.liquidity_at = self.now;
            match self.liquidity_left.checked_sub(before) {
                Some(left) => self.liquidity_left = left,
                None => return Some(Reject::new(ErrorCode::InsufficientLiquidity, None, "")),
            }
        }
        None
    }

    /// Moves the clock to the next thing that happens, at most to `until`. False if nothing does.
    pub(crate) fn step(&mut self, until: Timestamp) -> bool {
        self.drive();
        let timeouts = self
            .ends
            .each_ref()
            .map(|end| end.connection.poll_timeout());
        let step_at = self.steps.keys().next().map(|(at, _)| *at);
        let next = timeouts.into_iter().flatten().chain(step_at).min();
        let Some(next) = next.filter(|next| *next <= until) else {
            self.now = self.now.max(until);
            return false;
        };
        if step_at != Some(next) && next <= self.now {
            // A machine that asks for the present must have used the last time it was asked.
            self.now = self.now.plus_millis(1);
        }
        self.now = self.now.max(next);
        let now = self.now;
        if step_at.is_some_and(|at| at <= now)
            && let Some((_, step)) = self.steps.pop_first()
        {
            self.happen(step);
        } else {
            for end in &mut self.ends {
                end.connection.handle_timeout(now);
            }
        }
        self.drive();
        self.check();
        true
    }

    fn happen(&mut self, step: Step) {
        match step {
            Step::Arrive { to, id, prepare } => self.arrive(to, id, &prepare),
            Step::Commit { at, id, accepted } => self.commit(at, id, accepted),
            Step::Answer { to, id, reply } => self.answer(to, id, reply),
            Step::Read { at, stream } => self.read(at, stream),
        }
    }

    fn arrive(&mut self, to: usize, id: Option<u64>, prepare: &Prepare) {
        let now = self.now;
        match self.ends[to].connection.handle_prepare(now, prepare) {
            Incoming::Reject(reject) => self.reply(1 - to, id, Err(reject)),
            Incoming::Accept(accepted) => {
                let opened = self.keys.open(&prepare.data).unwrap();
                let packet = StreamPacket::decode(opened.into()).unwrap();
                assert_eq!(packet.packet_type, PacketType::Prepare);
                assert!(prepare.amount >= packet.prepare_amount, "the minimum");
                assert!(prepare.expires_at > now, "not after its expiry");
                let parts: u64 = accepted.streams().iter().map(|part| part.1).sum();
                assert_eq!(parts, prepare.amount, "all of it, and no more");
                let millis = self.between(self.weather.commit_millis);
                self.later(
                    millis,
                    Step::Commit {
                        at: to,
                        id,
                        accepted,
                    },
                );
            }
        }
    }

    fn commit(&mut self, at: usize, id: Option<u64>, accepted: Accepted) {
        let refuse = self.chance(self.weather.refuse);
        let end = &mut self.ends[at];
        if refuse {
            let reject = end.connection.refuse(accepted, ErrorCode::InternalError);
            return self.reply(1 - at, id, Err(reject));
        }
        for (stream, amount) in accepted.streams() {
            *end.committed.entry(*stream).or_default() += amount;
        }
        let fulfill = end.connection.commit(accepted);
        let new = end.fulfilled.insert(fulfill.fulfillment.0);
        assert!(new, "a packet is fulfilled once");
        self.reply(1 - at, id, Ok(fulfill));
    }

    fn reply(&mut self, to: usize, id: Option<u64>, mut reply: Reply) {
        let weather = self.weather;
        // The reply to a repetition goes to whoever repeated the packet.
        let Some(id) = id else { return };
        if self.chance(weather.lose_reply) {
            return;
        }
        if self.chance(weather.swap_reply)
            && let Some(other) = self.last_reply.replace(reply.clone())
        {
            reply = other;
        }
        if self.chance(weather.spoil_reply) {
            let data = match &mut reply {
                Ok(fulfill) => &mut fulfill.data,
                Err(reject) => &mut reject.data,
            };
            let mut spoiled = data.to_vec();
            if self.rng.random() {
                spoiled.truncate(spoiled.len() / 2);
            } else if let Some(byte) = spoiled.first_mut() {
                *byte ^= 0x10;
            }
            *data = spoiled.into();
        }
        let delay = self.between(weather.delay_millis);
        if self.chance(weather.repeat) {
            let reply = reply.clone();
            self.later(delay * 2, Step::Answer { to, id, reply });
        }
        self.later(delay, Step::Answer { to, id, reply });
    }

    /// The sender's link gives one reply for each packet, and pays for the right fulfillment only.
    fn answer(&mut self, to: usize, id: u64, reply: Reply) {
        let now = self.now;
        let end = &mut self.ends[to];
        if let Some(prepare) = end.waiting.remove(&id)
            && let Ok(fulfill) = &reply
            && fulfill.fulfillment.condition() == prepare.condition
        {
            end.settled += prepare.amount;
        }
        // What comes late or twice goes to the machine too, which must not count it.
        end.connection.handle_reply(now, id, reply);
    }

    fn read(&mut self, at: usize, stream: StreamId) {
        let writer = 1 - at;
        let end = &mut self.ends[at];
        while let Some(data) = end.connection.read(stream) {
            let from = end.read.entry(stream).or_default();
            for byte in &data {
                assert_eq!(*byte, content(writer, stream, *from), "{stream} at {from}");
                *from += 1;
            }
        }
        let (read, written) = (&self.ends[at].read, &self.ends[writer].written);
        assert!(
            read.get(&stream) <= written.get(&stream),
            "bytes out of nowhere"
        );
    }

    /// The connections agree with the books.
    fn check(&self) {
        for (side, end) in self.ends.iter().enumerate() {
            let connection = &end.connection;
            assert_eq!(connection.total_sent(), end.settled, "sent by {side}");
            let committed: u64 = end.committed.values().sum();
            assert_eq!(connection.total_received(), committed, "received by {side}");
            for (stream, committed) in &end.committed {
                let received = connection.stream_received(*stream);
                assert!(
                    received.is_none_or(|it| it == *committed),
                    "{stream} of {side}"
                );
                let most = end.receive_max.get(stream).copied().unwrap_or(0);
                assert!(*committed <= most, "{stream} of {side} takes too much");
            }
            let other: u64 = self.ends[1 - side].committed.values().sum();
            assert!(connection.total_delivered() <= other, "delivered by {side}");
            for (stream, send_max) in &end.send_max {
                let sent = connection.stream_sent(*stream).unwrap_or(0);
                let held = connection.stream_held(*stream).unwrap_or(0);
                assert!(
                    sent + held <= *send_max,
                    "{stream} of {side} sends too much"
                );
            }
            assert!(connection.packets_in_flight() <= ilp_stream::MAX_IN_FLIGHT);
        }
    }

    pub(crate) fn run_for(&mut self, millis: u64) {
        let until = self.now.plus_millis(millis);
        while self.step(until) {}
    }

    /// Runs until something is true, at most so long.
    pub(crate) fn run_until(
        &mut self,
        millis: u64,
        what: &str,
        mut wanted: impl FnMut(&Self) -> bool,
    ) {
        let until = self.now.plus_millis(millis);
        self.drive();
        while !wanted(self) {
            let happened = self.step(until);
            assert!(
                happened || wanted(self),
                "{what} does not happen: {:?} {:?}",
                self.ends[0].connection,
                self.ends[1].connection
            );
        }
    }
}

/// What the application of an end writes at a place of a stream.
pub(crate) fn content(side: usize, stream: StreamId, at: u64) -> u8 {
    let mixed = at * 7 + stream.0 * 17 + u64::try_from(side).unwrap() * 31;
    u8::try_from(mixed % 251).unwrap()
}
