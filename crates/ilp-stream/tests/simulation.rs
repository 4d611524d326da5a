//! Random schedules over random paths, all of a seed.
//!
//! Two connections open streams, send money and data both ways, change limits and close, while the
//! path between them does its worst; then the path heals and everything must come to its end. A
//! failure prints its seed. `STREAM_SIM_SEED=n STREAM_SIM_COUNT=1` runs that one again;
//! `STREAM_SIM_COUNT` alone runs more.

#![expect(clippy::unwrap_used, reason = "a test may panic on its own mistakes")]

mod path;

use bytes::Bytes;
use ilp_packet::ErrorCode;
use ilp_stream::{CloseReason, Config, Connection, Rate, RatePolicy, StreamErrorCode, StreamId};
use path::{CLEAR, Path, SECRET, START, SeededEntropy, Weather, content};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Schedules of one test run.
const SCHEDULES: u64 = 2_000;
/// The idle timeout is longer than any storm, so that only a stuck connection is idle.
const IDLE_MILLIS: u64 = 300_000;

/// Says which seed it was when a schedule fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let seed = self.0;
            eprintln!("seed {seed}; again with STREAM_SIM_SEED={seed} STREAM_SIM_COUNT=1");
        }
    }
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn random_weather(rng: &mut StdRng) -> Weather {
    let rates = [
        (1, 1),
        (1, 1),
        (1, 3),
        (997, 1_000),
        (5, 2),
        (1, 1_000),
        (1_234, 7),
    ];
    let (numerator, denominator) = rates[rng.random_range(0..rates.len())];
    let least = rng.random_range(1..=100);
    // Each fault is there in a part of the paths, so that their combinations differ.
    let mut fault = |most: u32| {
        if rng.random_ratio(2, 5) {
            rng.random_range(1..=most)
        } else {
            0
        }
    };
    Weather {
        lose_prepare: fault(150),
        lose_reply: fault(150),
        repeat: fault(150),
        hold: fault(50),
        spoil_prepare: fault(80),
        spoil_reply: fault(80),
        swap_reply: fault(80),
        rate_limited: fault(150),
        refuse: fault(150),
        drift_ppm: fault(4_000),
        commit_millis: (0, u64::from(fault(60))),
        delay_millis: (least, least + u64::from(fault(200))),
        liquidity: fault(60_000)
            .checked_add(4_000)
            .filter(|it| *it > 4_000)
            .map(u64::from),
        max_packet: (rng.random_range(2_000..100_000), rng.random()),
        rate: Rate {
            numerator,
            denominator,
        },
    }
}

fn ends(seed: u64, policy: RatePolicy) -> (Connection, Connection) {
    let config = |address: &str| Config {
        local_address: Some(address.parse().unwrap()),
        rate: policy,
        idle_timeout_millis: IDLE_MILLIS,
        data_in_replies: seed.is_multiple_of(2),
        ..Config::default()
    };
    let entropy = |salt| Box::new(SeededEntropy(StdRng::seed_from_u64(seed ^ salt)));
    let server_address = "test.server.token".parse().unwrap();
    (
        Connection::client(
            START,
            config("test.client"),
            &SECRET,
            server_address,
            entropy(1),
        ),
        Connection::server(START, config("test.server.token"), &SECRET, entropy(2)),
    )
}

/// One random command of one end. Refused commands are part of the schedule.
fn command(path: &mut Path, side: usize) {
    let mut streams: Vec<_> = path.ends[side].connection.open_streams().collect();
    if streams.is_empty() {
        streams.push(StreamId(1));
    }
    let stream = streams[path.rng.random_range(0..streams.len())];
    let kind = path.rng.random_range(0..100);
    let amount = 1_u64 << path.rng.random_range(0..22);
    let amount = path.rng.random_range(0..=amount);
    let end = &mut path.ends[side];
    let connection = &mut end.connection;
    match kind {
        0..20 => {
            let _ = connection.open_stream();
        }
        20..45 => {
            // Lower than before sometimes, which takes the promise back.
            let sent = connection.stream_sent(stream).unwrap_or(0);
            if connection.set_send_max(stream, sent + amount).is_ok() {
                end.send_max.insert(stream, sent + amount);
            }
        }
        45..70 => {
            let most = connection.receive_max(stream).unwrap_or(0) + amount;
            if connection.set_receive_max(stream, most).is_ok() {
                end.receive_max.insert(stream, most);
            }
        }
        70..92 => {
            let written = end.written.entry(stream).or_default();
            let len = amount.min(60_000);
            let data: Vec<u8> = (*written..*written + len)
                .map(|at| content(side, stream, at))
                .collect();
            if connection.write(stream, Bytes::from(data)).is_ok() {
                *written += len;
            }
        }
        92..99 => {
            let code = if amount % 2 == 0 {
                StreamErrorCode::NoError
            } else {
                StreamErrorCode::ApplicationError
            };
            let _ = connection.close_stream(stream, code, "enough");
        }
        _ => connection.close(StreamErrorCode::ApplicationError, "in the middle"),
    }
}

/// Whether nothing is left that could move: data, and money that arrives in whole units.
fn is_complete(path: &Path) -> bool {
    (0..2).all(|side| {
        let (end, other) = (&path.ends[side], &path.ends[1 - side]);
        end.connection.open_streams().all(|stream| {
            let data = end.connection.unconfirmed_data(stream) == Some(0)
                && other.read.get(&stream).copied().unwrap_or(0)
                    == end.written.get(&stream).copied().unwrap_or(0);
            let sent = end.connection.stream_sent(stream).unwrap_or(0);
            let wanted = end.send_max.get(&stream).copied().unwrap_or(0) - sent;
            let most = other.receive_max.get(&stream).copied().unwrap_or(0);
            let room = most - other.committed.get(&stream).copied().unwrap_or(0);
            let money = end.connection.quote().is_none_or(|quote| {
                let rate = quote.estimate;
                let amount = wanted.min(rate.sendable(room));
                rate.arriving(amount) == 0
            });
            let held = end.connection.stream_held(stream) == Some(0);
            let gone = other.closed_streams.contains(&stream);
            gone || (data && held && (money || wanted == 0 || room == 0))
        })
    })
}

fn schedule(seed: u64) {
    let _seed = Seed(seed);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut weather = random_weather(&mut rng);
    let probed = rng.random();
    let policy = if probed {
        let slippage_ppm = rng.random_range(5_000..30_000);
        let max_amount = rng.random_range(2_000..1 << 40);
        RatePolicy::Probed {
            slippage_ppm,
            max_amount,
        }
    } else {
        // A rate that is known is kept exactly.
        weather.drift_ppm = 0;
        RatePolicy::Fixed(weather.rate)
    };
    let (client, server) = ends(seed, policy);
    let mut path = Path::new(seed, weather, client, server);
    path.laziness_millis = if rng.random() { 0 } else { 3_000 };
    for _ in 0..rng.random_range(1..60) {
        let side = rng.random_range(0..2);
        command(&mut path, side);
        path.run_for(rng.random_range(0..1_500));
    }
    path.weather = weather.healed();
    path.run_until(600_000, "the end of all transfers", |path| {
        let over = |end: &path::End| end.connection.close_reason().is_some();
        path.ends.iter().any(over) || is_complete(path)
    });
    for end in &path.ends {
        match end.connection.close_reason() {
            None
            | Some(
                CloseReason::Local {
                    code: StreamErrorCode::ApplicationError,
                    ..
                }
                | CloseReason::Remote { .. },
            ) => {}
            // Single units may be worth less than the rate demands when the rate moves.
            Some(CloseReason::BadRate { minimum, arrived }) => {
                assert!(
                    weather.drift_ppm > 0 && minimum - arrived == 1,
                    "{minimum} {arrived}"
                );
            }
            // What was changed on the way belongs to no connection, says the other end.
            Some(CloseReason::Rejected { code, .. }) => {
                assert!(weather.spoil_prepare > 0 && *code == ErrorCode::UnexpectedPayment);
            }
            // A path that fails again and again while it is asked is given up.
            Some(CloseReason::NoRate { .. }) => assert!(probed),
            Some(reason) => panic!("closed for no good reason: {reason}"),
        }
    }
    path.ends[0]
        .connection
        .close(StreamErrorCode::NoError, "done");
    // An end that was not told finds out by itself.
    path.run_until(2 * IDLE_MILLIS, "both ends are drained", |path| {
        path.ends.iter().all(|end| end.connection.is_drained())
    });
    for end in &path.ends {
        assert_eq!(end.closed_events, 1, "the close is reported once");
    }
}

#[test]
fn every_schedule_ends_with_the_books_right() {
    let first = from_environment("STREAM_SIM_SEED").unwrap_or(1);
    let count = from_environment("STREAM_SIM_COUNT").unwrap_or(SCHEDULES);
    for seed in first..first.saturating_add(count) {
        schedule(seed);
    }
}

#[test]
fn answers_of_the_path_after_the_close_are_not_reported() {
    schedule(21);
}

#[test]
fn streams_that_are_filled_in_one_packet_leave_room_for_its_rounding() {
    schedule(4_250);
}

#[test]
fn a_long_path_is_filled_within_a_handful_of_round_trips() {
    let weather = Weather {
        delay_millis: (100, 100),
        max_packet: (10, false),
        ..CLEAR
    };
    let (client, server) = ends(7, RatePolicy::Fixed(Rate::ONE));
    let mut path = Path::new(7, weather, client, server);
    let stream = path.ends[0].connection.open_stream().unwrap();
    path.run_for(1_000);
    path.ends[1]
        .connection
        .set_receive_max(stream, u64::MAX)
        .unwrap();
    path.ends[1].receive_max.insert(stream, u64::MAX);
    path.run_for(1_000);
    path.ends[0]
        .connection
        .set_send_max(stream, 1_000_000)
        .unwrap();
    path.ends[0].send_max.insert(stream, 1_000_000);
    let begin = path.now;
    path.run_until(60_000, "the window is full", |path| {
        path.ends[0].connection.packets_in_flight() == ilp_stream::MAX_IN_FLIGHT
    });
    let round_trips = path.now.millis_since(begin).div_ceil(200);
    assert!(round_trips <= 9, "{round_trips} round trips");
}
