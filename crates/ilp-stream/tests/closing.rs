//! How a connection ends, and how the other end hears of it.

#![expect(clippy::unwrap_used, reason = "a test may panic on its own mistakes")]

mod pair;

use ilp_stream::{CloseReason, CommandError, Event, StreamErrorCode};
use pair::{FAIR, Pair};

/// After so long nobody waits for a reply any more, in which an end would be told.
const IDLE_MILLIS: u64 = 500;

#[test]
fn closing_tells_the_other_end_why() {
    let mut pair = Pair::new(11, FAIR);
    pair.open_stream(10);
    pair.server
        .connection
        .close(StreamErrorCode::ApplicationError, "out of order");
    pair.run_until("both are closed", |pair| {
        pair.client.connection.is_drained() && pair.server.connection.is_drained()
    });
    assert!(pair.client.saw(|event| matches!(event, Event::Closed {
        reason: CloseReason::Remote { code: StreamErrorCode::ApplicationError, message },
    } if message == "out of order")));
    assert_eq!(
        pair.client.connection.open_stream(),
        Err(CommandError::Closed)
    );
    let last = pair.server.events.last();
    assert!(
        matches!(
            last,
            Some(Event::Closed {
                reason: CloseReason::Local { .. }
            })
        ),
        "{last:?}"
    );
}

#[test]
fn the_streams_of_a_connection_end_with_it_in_one_packet() {
    let mut pair = Pair::new(29, FAIR);
    let stream = pair.open_stream(10);
    pair.server
        .connection
        .close_stream(stream, StreamErrorCode::NoError, "sold out")
        .unwrap();
    pair.run_for(IDLE_MILLIS);
    let before = pair.server.prepares;
    pair.server.connection.close(StreamErrorCode::NoError, "");
    pair.run_until("both are closed", |pair| {
        pair.client.connection.is_drained() && pair.server.connection.is_drained()
    });
    assert_eq!(pair.server.prepares, before + 1);
    assert!(
        pair.client
            .saw(|event| matches!(event, Event::StreamClosed {
        code: StreamErrorCode::NoError, message, ..
    } if message == "sold out"))
    );
}

#[test]
fn the_end_of_a_connection_is_told_again_while_the_path_fails() {
    let mut pair = Pair::new(30, FAIR);
    pair.open_stream(10);
    pair.run_for(IDLE_MILLIS);
    pair.weather.reject_temporarily = 100;
    let before = pair.server.prepares;
    pair.server.connection.close(StreamErrorCode::NoError, "");
    pair.run_for(50);
    pair.weather = FAIR;
    pair.run_until("both are closed", |pair| {
        pair.client.connection.is_drained() && pair.server.connection.is_drained()
    });
    assert_eq!(pair.server.prepares, before + 2);
    // Not for ever.
    let mut pair = Pair::new(31, FAIR);
    pair.open_stream(10);
    pair.run_for(IDLE_MILLIS);
    pair.weather.reject_temporarily = 100;
    let before = pair.server.prepares;
    pair.server.connection.close(StreamErrorCode::NoError, "");
    pair.run_until("the server gives up", |pair| {
        pair.server.connection.is_drained()
    });
    assert_eq!(pair.server.prepares, before + 3);
}

#[test]
fn a_silent_connection_ends() {
    let mut pair = Pair::new(12, FAIR);
    pair.run_for(1_000);
    pair.weather.lose_prepare = 100;
    let start = pair.now;
    pair.run_until("both are closed", |pair| {
        pair.client.connection.is_drained() && pair.server.connection.is_drained()
    });
    assert!(pair.now.millis_since(start) <= 60_000);
    assert_eq!(
        pair.server.connection.close_reason(),
        Some(&CloseReason::Idle { last_reject: None })
    );
}
