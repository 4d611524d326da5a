//! Two connections, a clock that only the test moves, and a network between them that loses, delays,
//! repeats, reorders and rejects packets. Everything follows from one seed.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ilp_packet::{Address, AmountTooLarge, ErrorCode, Prepare, Reject, Reply, Timestamp};
use ilp_stream::{
    Accepted, AssetDetails, Config, Connection, Entropy, Event, Incoming, SharedSecret, StreamId,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

pub(crate) const START: Timestamp = Timestamp::from_millis(1_800_000_000_000);
pub(crate) const SECRET: SharedSecret = SharedSecret([42; 32]);

pub(crate) struct SeededEntropy(pub StdRng);

impl Entropy for SeededEntropy {
    fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill(bytes);
    }
}

pub(crate) fn entropy(seed: u64) -> Box<SeededEntropy> {
    Box::new(SeededEntropy(StdRng::seed_from_u64(seed)))
}

pub(crate) fn address(text: &str) -> Address {
    text.parse().unwrap()
}

pub(crate) fn config(address_of_end: &str) -> Config {
    Config {
        local_address: Some(address(address_of_end)),
        asset: Some(AssetDetails {
            code: "XRP".to_owned(),
            scale: 9,
        }),
        ..Config::default()
    }
}

/// What can go wrong on the way. Chances are in percent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weather {
    pub(crate) delay_millis: (u64, u64),
    pub(crate) lose_prepare: u32,
    pub(crate) lose_reply: u32,
    pub(crate) repeat: u32,
    pub(crate) reject_temporarily: u32,
    /// The receiver's ledger fails.
    pub(crate) refuse: u32,
    /// Time until the receiver's ledger has written.
    pub(crate) commit_millis: (u64, u64),
    pub(crate) max_packet_amount: u64,
    /// The path takes this many thousandths.
    pub(crate) spread_permille: u64,
}

pub(crate) const FAIR: Weather = Weather {
    delay_millis: (10, 10),
    lose_prepare: 0,
    lose_reply: 0,
    repeat: 0,
    reject_temporarily: 0,
    refuse: 0,
    commit_millis: (0, 0),
    max_packet_amount: u64::MAX,
    spread_permille: 0,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    Client,
    Server,
}

impl Side {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

enum Step {
    Arrive {
        to: Side,
        id: u64,
        prepare: Prepare,
        repeated: bool,
    },
    Commit {
        at: Side,
        id: u64,
        accepted: Accepted,
        repeated: bool,
    },
    Answer {
        to: Side,
        id: u64,
        reply: Reply,
    },
    Expire {
        of: Side,
        id: u64,
    },
}

pub(crate) struct End {
    pub(crate) connection: Connection,
    pub(crate) events: Vec<Event>,
    pub(crate) data: BTreeMap<StreamId, Vec<u8>>,
    /// Prepares that this end has sent.
    pub(crate) prepares: u64,
    /// Amounts that the other end has taken while our Fulfill for them was lost.
    pub(crate) lost: u64,
    waiting: BTreeSet<u64>,
}

impl End {
    fn new(connection: Connection) -> Self {
        Self {
            connection,
            events: Vec::new(),
            data: BTreeMap::new(),
            prepares: 0,
            lost: 0,
            waiting: BTreeSet::new(),
        }
    }

    pub(crate) fn data(&self, stream: u64) -> &[u8] {
        self.data.get(&StreamId(stream)).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn saw(&self, wanted: impl Fn(&Event) -> bool) -> bool {
        self.events.iter().any(wanted)
    }
}

pub(crate) struct Pair {
    pub(crate) now: Timestamp,
    pub(crate) client: End,
    pub(crate) server: End,
    pub(crate) weather: Weather,
    rng: StdRng,
    steps: BTreeMap<(Timestamp, u64), Step>,
    next_step: u64,
}

impl Pair {
    pub(crate) fn new(seed: u64, weather: Weather) -> Self {
        Self::with(
            seed,
            weather,
            config("test.client"),
            config("test.server.token"),
        )
    }

    pub(crate) fn with(seed: u64, weather: Weather, client: Config, server: Config) -> Self {
        let server_address = address("test.server.token");
        let client = Connection::client(
            START,
            client,
            &SECRET,
            server_address,
            entropy(seed ^ 0xc11e),
        );
        let server = Connection::server(START, server, &SECRET, entropy(seed ^ 0x5e4e));
        Self {
            now: START,
            client: End::new(client),
            server: End::new(server),
            weather,
            rng: StdRng::seed_from_u64(seed),
            steps: BTreeMap::new(),
            next_step: 0,
        }
    }

    pub(crate) fn end(&mut self, side: Side) -> &mut End {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_ratio(percent, 100)
    }

    fn delay(&mut self, (min, max): (u64, u64)) -> u64 {
        self.rng.random_range(min..=max)
    }

    fn later(&mut self, millis: u64, step: Step) {
        self.next_step += 1;
        self.steps
            .insert((self.now.plus_millis(millis), self.next_step), step);
    }

    /// Sends and reports what there is, now.
    pub(crate) fn drive(&mut self) {
        for side in [Side::Client, Side::Server] {
            let now = self.now;
            loop {
                let end = self.end(side);
                let Some(transmit) = end.connection.poll_transmit(now) else {
                    break;
                };
                end.prepares += 1;
                assert!(end.waiting.insert(transmit.id), "an id is used once");
                self.depart(side, transmit.id, transmit.prepare);
            }
            let end = self.end(side);
            while let Some(event) = end.connection.poll_event() {
                if let Event::Readable { stream } = event
                    && let Some(data) = end.connection.read(stream)
                {
                    end.data.entry(stream).or_default().extend_from_slice(&data);
                }
                end.events.push(event);
            }
        }
    }

    fn depart(&mut self, from: Side, id: u64, mut prepare: Prepare) {
        let weather = self.weather;
        self.later(
            prepare.expires_at.millis_since(self.now),
            Step::Expire { of: from, id },
        );
        let delay = self.delay(weather.delay_millis);
        if prepare.amount > weather.max_packet_amount {
            let data = AmountTooLarge {
                received: prepare.amount,
                maximum: weather.max_packet_amount,
            };
            let mut reject = Reject::new(ErrorCode::AmountTooLarge, None, "");
            reject.data = data.encode().into();
            return self.later(
                delay,
                Step::Answer {
                    to: from,
                    id,
                    reply: Err(reject),
                },
            );
        }
        if self.chance(weather.reject_temporarily) {
            let codes = [
                ErrorCode::InternalError,
                ErrorCode::ConnectorBusy,
                ErrorCode::InsufficientLiquidity,
                ErrorCode::RateLimited,
                ErrorCode::InsufficientTimeout,
            ];
            let code = codes[self.rng.random_range(0..codes.len())];
            let reply = Err(Reject::new(code, None, "bad weather"));
            return self.later(
                delay,
                Step::Answer {
                    to: from,
                    id,
                    reply,
                },
            );
        }
        let kept = u128::from(prepare.amount) * u128::from(1_000 - weather.spread_permille) / 1_000;
        prepare.amount = u64::try_from(kept).unwrap();
        let to = from.other();
        if self.chance(weather.repeat) {
            let again = self.delay(weather.delay_millis) + delay;
            let prepare = prepare.clone();
            self.later(
                again,
                Step::Arrive {
                    to,
                    id,
                    prepare,
                    repeated: true,
                },
            );
        }
        if !self.chance(weather.lose_prepare) {
            self.later(
                delay,
                Step::Arrive {
                    to,
                    id,
                    prepare,
                    repeated: false,
                },
            );
        }
    }

    /// Moves the clock to the next thing that happens, at most to `until`. False if nothing does.
    pub(crate) fn step(&mut self, until: Timestamp) -> bool {
        self.drive();
        let timeouts = [
            self.client.connection.poll_timeout(),
            self.server.connection.poll_timeout(),
        ];
        let step_at = self.steps.keys().next().map(|(at, _)| *at);
        let Some(next) = timeouts.into_iter().flatten().chain(step_at).min() else {
            return false;
        };
        if next > until {
            self.now = until;
            return false;
        }
        self.now = self.now.max(next);
        let now = self.now;
        if step_at.is_some_and(|at| at <= now)
            && let Some((_, step)) = self.steps.pop_first()
        {
            self.happen(step);
        } else {
            self.client.connection.handle_timeout(now);
            self.server.connection.handle_timeout(now);
        }
        self.drive();
        true
    }

    fn happen(&mut self, step: Step) {
        let now = self.now;
        match step {
            Step::Arrive {
                to,
                id,
                prepare,
                repeated,
            } => match self.end(to).connection.handle_prepare(now, &prepare) {
                Incoming::Reject(reject) => {
                    if !repeated {
                        self.reply(to.other(), id, Err(reject));
                    }
                }
                Incoming::Accept(accepted) => {
                    let millis = self.delay(self.weather.commit_millis);
                    self.later(
                        millis,
                        Step::Commit {
                            at: to,
                            id,
                            accepted,
                            repeated,
                        },
                    );
                }
            },
            Step::Commit {
                at,
                id,
                accepted,
                repeated,
            } => {
                let amount = accepted.amount();
                let refuse = self.chance(self.weather.refuse);
                let connection = &mut self.end(at).connection;
                let reply = if refuse {
                    Err(connection.refuse(accepted, ErrorCode::InternalError))
                } else {
                    Ok(connection.commit(accepted))
                };
                // The reply to a repetition goes to whoever repeated the packet.
                if repeated {
                    if reply.is_ok() {
                        self.end(at.other()).lost += amount;
                    }
                    return;
                }
                self.reply_with_amount(at.other(), id, reply, amount);
            }
            Step::Answer { to, id, reply } => {
                let end = self.end(to);
                if end.waiting.remove(&id) {
                    end.connection.handle_reply(now, id, reply);
                }
            }
            Step::Expire { of, id } => {
                let end = self.end(of);
                if end.waiting.remove(&id) {
                    let reject = Reject::new(ErrorCode::TransferTimedOut, None, "packet expired.");
                    end.connection.handle_reply(now, id, Err(reject));
                }
            }
        }
    }

    fn reply(&mut self, to: Side, id: u64, reply: Reply) {
        self.reply_with_amount(to, id, reply, 0);
    }

    fn reply_with_amount(&mut self, to: Side, id: u64, reply: Reply, amount: u64) {
        let gone = self.chance(self.weather.lose_reply) || !self.end(to).waiting.contains(&id);
        if gone {
            if reply.is_ok() {
                self.end(to).lost += amount;
            }
            return;
        }
        let delay = self.delay(self.weather.delay_millis);
        self.later(delay, Step::Answer { to, id, reply });
    }

    /// Runs for so long, or until nothing happens any more.
    pub(crate) fn run_for(&mut self, millis: u64) {
        let until = self.now.plus_millis(millis);
        while self.step(until) {}
    }

    /// Runs until something is true; panics if it is not within a virtual hour.
    pub(crate) fn run_until(&mut self, what: &str, mut wanted: impl FnMut(&mut Self) -> bool) {
        let until = self.now.plus_millis(3_600_000);
        self.drive();
        while !wanted(self) {
            assert!(
                self.step(until),
                "{what} never happens\nclient {:?}\nserver {:?}",
                self.client.connection,
                self.server.connection
            );
        }
    }

    /// A stream of the client on which it would send `send_max`, known to the server.
    pub(crate) fn open_stream(&mut self, send_max: u64) -> StreamId {
        let stream = self.client.connection.open_stream().unwrap();
        self.client
            .connection
            .set_send_max(stream, send_max)
            .unwrap();
        self.run_until("the server knows the stream", |pair| {
            pair.server.connection.receive_max(stream).is_some()
        });
        stream
    }
}

pub(crate) fn bytes(len: usize) -> Bytes {
    (0..len)
        .map(|at| u8::try_from(at * 7 % 251).unwrap())
        .collect::<Vec<_>>()
        .into()
}
