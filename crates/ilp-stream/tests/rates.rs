//! Paths that deliver less than they are given: probed, quoted, paid through, or given up.

#![expect(clippy::unwrap_used, reason = "a test may panic on its own mistakes")]

mod pair;

use ilp_packet::ErrorCode;
use ilp_stream::{CloseReason, Config, Event, RatePolicy, StreamErrorCode};
use pair::{FAIR, Pair, Weather, config};

fn probing(slippage_ppm: u32, max_amount: u64) -> Config {
    Config {
        rate: RatePolicy::Probed {
            slippage_ppm,
            max_amount,
        },
        ..config("test.client")
    }
}

#[test]
fn a_quote_moves_no_money() {
    let weather = Weather {
        spread_permille: 20,
        max_packet_amount: 70_000,
        ..FAIR
    };
    let server = config("test.server.token");
    let mut pair = Pair::with(20, weather, probing(10_000, 1_000_000), server);
    pair.run_until("the rate is known", |pair| {
        pair.client
            .saw(|event| matches!(event, Event::RateKnown { .. }))
    });
    let quote = pair.client.connection.quote().unwrap();
    assert_eq!(quote.max_packet_amount, 70_000);
    assert_eq!(quote.estimate.arriving(1_000), 980);
    assert_eq!(quote.minimum.arriving(100_000), 97_020);
    assert_eq!(pair.client.connection.remote_asset().unwrap().code, "XRP");
    pair.client.connection.close(StreamErrorCode::NoError, "");
    pair.run_until("drained", |pair| pair.client.connection.is_drained());
    assert_eq!(pair.server.connection.total_received(), 0);
    // Three amounts, the largest that passes, and the close.
    assert_eq!(pair.client.prepares, 5);
}

#[test]
fn a_probed_path_is_paid_through_to_the_last_unit() {
    let weather = Weather {
        spread_permille: 500,
        max_packet_amount: 777,
        ..FAIR
    };
    let server = config("test.server.token");
    let mut pair = Pair::with(21, weather, probing(10_000, u64::MAX), server);
    let stream = pair.open_stream(100_000);
    assert_eq!(pair.client.connection.total_sent(), 0);
    pair.server
        .connection
        .set_receive_max(stream, 4_321)
        .unwrap();
    pair.run_until("all that is wanted has arrived", |pair| {
        pair.server.connection.total_received() == 4_321
    });
    pair.run_for(1_000);
    // Each packet of an odd amount loses half a unit to rounding on the way.
    let sent = pair.client.connection.total_sent();
    assert!((8_642..=8_700).contains(&sent), "{sent}");
}

#[test]
fn a_path_that_delivers_nothing_is_given_up_without_money() {
    let weather = Weather {
        spread_permille: 1_000,
        ..FAIR
    };
    let server = config("test.server.token");
    let mut pair = Pair::with(22, weather, probing(10_000, 1_000), server);
    pair.run_until("closed", |pair| {
        pair.client.connection.close_reason().is_some()
    });
    assert_eq!(
        pair.client.connection.close_reason(),
        Some(&CloseReason::NoRate {
            sent: 1_000,
            last_reject: Some(ErrorCode::FinalApplicationError)
        })
    );
}

#[test]
fn dust_is_reported_and_not_sent() {
    let rate = ilp_stream::Rate {
        numerator: 1,
        denominator: 100,
    };
    let client = Config {
        rate: rate.into(),
        ..config("test.client")
    };
    let weather = Weather {
        spread_permille: 990,
        ..FAIR
    };
    let mut pair = Pair::with(23, weather, client, config("test.server.token"));
    let stream = pair.open_stream(99);
    pair.server
        .connection
        .set_receive_max(stream, 1_000)
        .unwrap();
    pair.run_for(20_000);
    assert!(
        pair.client
            .saw(|event| matches!(event, Event::Undeliverable { amount: 99, .. }))
    );
    assert_eq!(pair.client.connection.total_sent(), 0);
    assert!(pair.client.prepares < 5, "{}", pair.client.prepares);
    pair.client.connection.set_send_max(stream, 100).unwrap();
    pair.run_until("one unit arrives", |pair| {
        pair.server.connection.total_received() == 1
    });
}

#[test]
fn packets_too_small_to_deliver_anything_end_the_connection() {
    let rate = ilp_stream::Rate {
        numerator: 1,
        denominator: 100,
    };
    let client = Config {
        rate: rate.into(),
        ..config("test.client")
    };
    let weather = Weather {
        spread_permille: 990,
        max_packet_amount: 60,
        ..FAIR
    };
    let mut pair = Pair::with(24, weather, client, config("test.server.token"));
    let stream = pair.open_stream(10_000);
    pair.server
        .connection
        .set_receive_max(stream, 1_000)
        .unwrap();
    pair.run_until("closed", |pair| {
        pair.client.connection.close_reason().is_some()
    });
    assert_eq!(
        pair.client.connection.close_reason(),
        Some(&CloseReason::PacketsTooSmall {
            maximum: 60,
            least: 100
        })
    );
}
