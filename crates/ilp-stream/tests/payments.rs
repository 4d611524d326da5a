//! Two connections pay each other and talk, in fair weather and in storms.

#![expect(clippy::unwrap_used, reason = "a test may panic on its own mistakes")]

mod pair;

use bytes::Bytes;
use ilp_packet::{ErrorCode, Fulfillment, Reject};
use ilp_stream::{
    CloseReason, CommandError, Config, Event, Incoming, ReceiptKey, StreamErrorCode, StreamId,
};
use pair::{FAIR, Pair, Side, Weather, bytes, config};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

#[test]
fn the_payment_of_an_order_takes_four_packets() {
    let mut pair = Pair::new(1, FAIR);
    // The client opens a stream, is ready to pay 5000, and waits for a byte.
    let stream = pair.open_stream(5_000);
    pair.server
        .connection
        .write(stream, Bytes::from_static(b"\xff"))
        .unwrap();
    pair.run_until("the client sees the byte", |pair| {
        !pair.client.data(1).is_empty()
    });
    pair.run_for(1_000);
    assert_eq!(
        pair.server.connection.total_received(),
        0,
        "no money before it is asked for"
    );
    assert!(pair.server.saw(|event| matches!(
        event,
        Event::MoneyBlocked {
            send_max: 5_000,
            total_sent: 0,
            ..
        }
    )));
    // The order arrives, and the server asks for its price.
    pair.server
        .connection
        .set_receive_max(stream, 1_234)
        .unwrap();
    pair.run_until("the price is paid", |pair| {
        pair.client.connection.total_sent() == 1_234
    });
    assert_eq!(pair.server.connection.total_received(), 1_234);
    assert_eq!(pair.client.connection.total_delivered(), 1_234);
    assert_eq!(pair.client.prepares + pair.server.prepares, 4);
    pair.run_for(50_000);
    assert_eq!(
        pair.client.connection.total_sent(),
        1_234,
        "never more than was asked for"
    );
}

#[test]
fn both_ends_know_each_other_after_the_first_packet() {
    let mut pair = Pair::new(2, FAIR);
    pair.run_for(100);
    for end in [&pair.client, &pair.server] {
        assert!(end.connection.is_connected());
        assert_eq!(end.connection.remote_asset().unwrap().code, "XRP");
        assert!(end.saw(|event| matches!(event, Event::Connected { .. })));
    }
    assert_eq!(
        pair.server.connection.remote_address().unwrap().as_str(),
        "test.client"
    );
    assert_eq!((pair.client.prepares, pair.server.prepares), (1, 0));
}

#[test]
fn a_refund_goes_back_on_the_same_stream() {
    let mut pair = Pair::new(3, FAIR);
    let stream = pair.open_stream(1_000);
    pair.client
        .connection
        .set_receive_max(stream, 1_000)
        .unwrap();
    pair.server
        .connection
        .set_receive_max(stream, 1_000)
        .unwrap();
    pair.run_until("paid", |pair| pair.client.connection.total_sent() == 1_000);
    pair.server.connection.set_send_max(stream, 400).unwrap();
    pair.run_until("refunded", |pair| {
        pair.server.connection.total_sent() == 400
    });
    assert_eq!(pair.client.connection.stream_received(stream), Some(400));
    assert!(
        pair.client
            .saw(|event| matches!(event, Event::MoneyReceived { amount: 400, .. }))
    );
}

#[test]
fn large_payments_are_split_at_the_largest_packet_of_the_path() {
    let mut pair = Pair::new(
        4,
        Weather {
            max_packet_amount: 300,
            ..FAIR
        },
    );
    let stream = pair.open_stream(10_000);
    pair.server
        .connection
        .set_receive_max(stream, u64::MAX)
        .unwrap();
    pair.run_until("paid", |pair| pair.client.connection.total_sent() == 10_000);
    assert_eq!(pair.server.connection.total_received(), 10_000);
    let least = 10_000_u64.div_ceil(300);
    assert!(
        pair.client.prepares <= least + 4,
        "{} packets",
        pair.client.prepares
    );
    // With several on their way, it takes far less than a round trip each.
    assert!(pair.now.millis_since(pair::START) < least * 20 / 2);
}

#[test]
fn a_path_that_takes_too_much_is_given_up() {
    let mut pair = Pair::new(
        5,
        Weather {
            spread_permille: 10,
            ..FAIR
        },
    );
    let stream = pair.open_stream(10_000);
    pair.server
        .connection
        .set_receive_max(stream, u64::MAX)
        .unwrap();
    pair.run_until("closed", |pair| {
        pair.client.connection.close_reason().is_some()
    });
    assert_eq!(
        pair.client.connection.close_reason(),
        Some(&CloseReason::BadRate {
            minimum: 10_000,
            arrived: 9_900
        })
    );
    assert_eq!(pair.client.connection.total_sent(), 0);
    assert_eq!(pair.server.connection.total_received(), 0);
}

#[test]
fn a_path_that_takes_its_part_is_used_if_the_rate_allows_it() {
    let rate = ilp_stream::Rate {
        numerator: 98,
        denominator: 100,
    };
    let client = Config {
        rate: rate.into(),
        ..config("test.client")
    };
    let weather = Weather {
        spread_permille: 20,
        max_packet_amount: 777,
        ..FAIR
    };
    let mut pair = Pair::with(6, weather, client, config("test.server.token"));
    let stream = pair.open_stream(100_000);
    pair.server
        .connection
        .set_receive_max(stream, 9_800)
        .unwrap();
    pair.run_for(30_000);
    let received = pair.server.connection.total_received();
    assert!((9_780..=9_800).contains(&received), "{received}");
    assert_eq!(pair.client.connection.total_delivered(), received);
}

#[test]
fn data_flows_both_ways_in_order_and_beyond_the_windows() {
    let mut pair = Pair::new(
        7,
        Weather {
            delay_millis: (1, 30),
            ..FAIR
        },
    );
    let stream = pair.open_stream(0);
    let (up, down) = (bytes(300_000), bytes(150_000));
    pair.client.connection.write(stream, up.clone()).unwrap();
    pair.server.connection.write(stream, down.clone()).unwrap();
    pair.run_until("all data is there", |pair| {
        pair.server.data(1).len() == up.len() && pair.client.data(1).len() == down.len()
    });
    assert_eq!(pair.server.data(1), up);
    assert_eq!(pair.client.data(1), down);
    pair.run_for(1_000);
    assert_eq!(pair.client.connection.unconfirmed_data(stream), Some(0));
}

#[test]
fn a_client_without_an_address_gets_data_and_limits_in_replies() {
    let client = Config {
        local_address: None,
        ..config("test.client")
    };
    let mut pair = Pair::with(8, FAIR, client, config("test.server.token"));
    let stream = pair.open_stream(500);
    pair.server
        .connection
        .write(stream, Bytes::from_static(b"ready"))
        .unwrap();
    pair.server.connection.set_receive_max(stream, 200).unwrap();
    pair.run_until("paid", |pair| pair.client.connection.total_sent() == 200);
    assert_eq!(pair.client.data(1), b"ready");
    assert_eq!(pair.server.prepares, 0);
    pair.server
        .connection
        .close_stream(stream, StreamErrorCode::NoError, "done")
        .unwrap();
    pair.run_until("closed", |pair| {
        pair.client
            .saw(|event| matches!(event, Event::StreamClosed { .. }))
    });
}

#[test]
fn a_closed_stream_makes_room_for_another_one_and_its_totals_stay_known() {
    let mut pair = Pair::new(9, FAIR);
    for number in 0..30_u64 {
        let stream = pair.open_stream(number);
        assert_eq!(stream, StreamId(number * 2 + 1));
        pair.server
            .connection
            .set_receive_max(stream, number)
            .unwrap();
        pair.run_until("paid", |pair| {
            pair.client.connection.stream_sent(stream) == Some(number)
        });
        pair.client
            .connection
            .close_stream(stream, StreamErrorCode::NoError, "")
            .unwrap();
        pair.run_for(60);
        assert_eq!(
            pair.server.connection.stream_received(stream),
            Some(number),
            "{number}"
        );
        assert_eq!(pair.client.connection.open_streams().count(), 0);
        assert_eq!(
            pair.client.connection.set_send_max(stream, 99),
            Err(CommandError::NoStream(stream))
        );
    }
}

#[test]
fn more_streams_than_allowed_cannot_be_opened() {
    let mut pair = Pair::new(10, FAIR);
    for _ in 0..10 {
        pair.client.connection.open_stream().unwrap();
    }
    assert_eq!(
        pair.client.connection.open_stream(),
        Err(CommandError::TooManyStreams)
    );
    pair.run_for(100);
    assert_eq!(pair.server.connection.open_streams().count(), 10);
}

#[test]
fn a_lost_announcement_of_the_price_is_asked_for_again() {
    let mut pair = Pair::new(13, FAIR);
    let stream = pair.open_stream(900);
    pair.run_for(500);
    pair.weather.lose_prepare = 100;
    pair.server.connection.set_receive_max(stream, 900).unwrap();
    pair.run_for(100);
    pair.weather.lose_prepare = 0;
    pair.run_until("paid", |pair| pair.client.connection.total_sent() == 900);
    assert!(pair.now.millis_since(pair::START) < 5_000);
}

#[test]
fn what_is_lost_is_not_sent_again_once_sending_has_stopped() {
    let mut pair = Pair::new(26, FAIR);
    let stream = pair.open_stream(900);
    pair.run_for(500);
    let held = |pair: &Pair| pair.client.connection.stream_held(stream);
    pair.server
        .connection
        .set_receive_max(stream, 1_800)
        .unwrap();
    // Given money whose answer is lost, and a sender who wants no more of it.
    pair.run_until("money leaves", |pair| held(pair) == Some(900));
    pair.weather.lose_reply = 100;
    pair.client.connection.stop_sending(stream).unwrap();
    pair.run_until("nobody answers", |pair| held(pair) == Some(0));
    pair.weather = FAIR;
    pair.run_for(60_000);
    assert_eq!(pair.client.connection.total_sent(), 0);
    assert_eq!(pair.server.connection.total_received(), 900);
    // Until it does.
    let again = pair.client.connection.set_send_max(stream, 900);
    again.unwrap();
    pair.run_until("paid", |pair| pair.client.connection.total_sent() == 900);
}

#[test]
fn a_ledger_that_fails_delays_the_payment_and_counts_nothing_twice() {
    let mut pair = Pair::new(
        14,
        Weather {
            refuse: 100,
            ..FAIR
        },
    );
    // Even packets without money are refused now; the stream is opened all the same.
    let stream = pair.open_stream(700);
    pair.server.connection.set_receive_max(stream, 700).unwrap();
    pair.run_for(3_000);
    assert_eq!(pair.client.connection.total_sent(), 0);
    assert_eq!(pair.server.connection.total_received(), 0);
    pair.weather.refuse = 0;
    pair.run_until("paid", |pair| pair.client.connection.total_sent() == 700);
    assert_eq!(pair.server.connection.total_received(), 700);
}

#[test]
fn packets_in_parallel_do_not_overshoot_while_the_ledger_writes() {
    let weather = Weather {
        commit_millis: (50, 200),
        max_packet_amount: 10,
        ..FAIR
    };
    let mut pair = Pair::new(15, weather);
    let stream = pair.open_stream(10_000);
    pair.server.connection.set_receive_max(stream, 333).unwrap();
    pair.run_until("paid", |pair| pair.client.connection.total_sent() == 333);
    pair.run_for(10_000);
    assert_eq!(pair.server.connection.total_received(), 333);
}

#[test]
fn an_unreachable_server_is_reported_by_its_code() {
    let mut pair = Pair::new(16, FAIR);
    let transmit = pair.client.connection.poll_transmit(pair.now).unwrap();
    let reject = Reject::new(ErrorCode::Unreachable, None, "no route");
    pair.client
        .connection
        .handle_reply(pair.now, transmit.id, Err(reject));
    pair.drive();
    assert!(pair.client.saw(|event| matches!(
        event,
        Event::Closed {
            reason: CloseReason::Rejected {
                code: ErrorCode::Unreachable,
                ..
            },
        }
    )));
    assert!(pair.client.connection.is_drained());
}

#[test]
fn only_a_valid_fulfillment_is_a_payment_and_it_is_one_without_a_readable_answer() {
    let mut pair = Pair::new(17, FAIR);
    let stream = pair.open_stream(100);
    pair.run_for(100);
    pair.server.connection.set_receive_max(stream, 100).unwrap();
    // The client is told the limit by hand, so that its packet can be taken here.
    let told = pair.server.connection.poll_transmit(pair.now).unwrap();
    let Incoming::Accept(accepted) = pair
        .client
        .connection
        .handle_prepare(pair.now, &told.prepare)
    else {
        panic!("rejected")
    };
    let fulfill = pair.client.connection.commit(accepted);
    pair.server
        .connection
        .handle_reply(pair.now, told.id, Ok(fulfill));

    let money = pair.client.connection.poll_transmit(pair.now).unwrap();
    assert_eq!(money.prepare.amount, 100);
    assert_eq!(pair.client.connection.stream_held(stream), Some(100));
    let wrong = ilp_packet::Fulfill {
        fulfillment: Fulfillment([1; 32]),
        data: Bytes::new(),
    };
    pair.client
        .connection
        .handle_reply(pair.now, money.id, Ok(wrong));
    assert_eq!(pair.client.connection.total_sent(), 0);
    assert_eq!(pair.client.connection.stream_held(stream), Some(0));

    // Again, and the answer beside a valid fulfillment is destroyed on the way.
    pair.now = pair.now.plus_millis(1_000);
    let money = pair.client.connection.poll_transmit(pair.now).unwrap();
    let Incoming::Accept(accepted) = pair
        .server
        .connection
        .handle_prepare(pair.now, &money.prepare)
    else {
        panic!("rejected")
    };
    let mut fulfill = pair.server.connection.commit(accepted);
    fulfill.data = Bytes::from_static(b"garbage");
    pair.client
        .connection
        .handle_reply(pair.now, money.id, Ok(fulfill.clone()));
    assert_eq!(pair.client.connection.total_sent(), 100);
    pair.client
        .connection
        .handle_reply(pair.now, money.id, Ok(fulfill));
    assert_eq!(
        pair.client.connection.total_sent(),
        100,
        "a second reply counts nothing"
    );
}

/// Somebody on the way can move sealed answers between replies, but not make them.
#[test]
fn an_answer_that_belongs_to_another_packet_is_discarded() {
    let mut pair = Pair::new(18, FAIR);
    let stream = pair.client.connection.open_stream().unwrap();
    let first = pair.client.connection.poll_transmit(pair.now).unwrap();
    let mut unfulfillable = first.prepare.clone();
    unfulfillable.condition.0[0] ^= 1;
    // The frames of a packet count even if it cannot be fulfilled; the stream is known after it.
    let Incoming::Reject(reject) = pair
        .server
        .connection
        .handle_prepare(pair.now, &unfulfillable)
    else {
        panic!("accepted")
    };
    let without_data = Reject {
        data: Bytes::new(),
        ..reject.clone()
    };
    pair.client
        .connection
        .handle_reply(pair.now, first.id, Err(without_data));
    assert!(!pair.client.connection.is_connected());

    pair.now = pair.now.plus_millis(1_000);
    let second = pair.client.connection.poll_transmit(pair.now).unwrap();
    pair.server.connection.set_receive_max(stream, 100).unwrap();
    let Incoming::Accept(accepted) = pair
        .server
        .connection
        .handle_prepare(pair.now, &second.prepare)
    else {
        panic!("rejected")
    };
    let fulfill = pair.server.connection.commit(accepted);
    // The answer to the first packet, and the right answer in the wrong kind of reply.
    let moved = Reject {
        data: fulfill.data.clone(),
        ..reject.clone()
    };
    pair.client
        .connection
        .handle_reply(pair.now, second.id, Err(moved));
    assert_eq!(pair.client.connection.remote_receive_max(stream), Some(0));
    pair.now = pair.now.plus_millis(1_000);
    let third = pair.client.connection.poll_transmit(pair.now).unwrap();
    pair.client
        .connection
        .handle_reply(pair.now, third.id, Err(reject));
    assert!(!pair.client.connection.is_connected());
}

/// One storm: streams in both directions with money and data, bad weather for a while, then fair
/// weather until everything has settled.
fn storm(seed: u64) {
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed ^ 0x0057_0a6d);
    let weather = Weather {
        delay_millis: (1, rng.random_range(1..400)),
        lose_prepare: rng.random_range(0..15),
        lose_reply: rng.random_range(0..15),
        repeat: rng.random_range(0..30),
        reject_temporarily: rng.random_range(0..25),
        refuse: rng.random_range(0..15),
        commit_millis: (0, rng.random_range(0..100)),
        max_packet_amount: rng.random_range(50..2_000),
        spread_permille: 0,
    };
    // Long enough to outlive a row of lost packets.
    let end = |name| Config {
        idle_timeout_millis: 3_600_000,
        packet_timeout_millis: 3_000,
        data_in_replies: seed.is_multiple_of(2),
        ..config(name)
    };
    let mut pair = Pair::with(seed, weather, end("test.client"), end("test.server.token"));

    let mut plans = Vec::new();
    for side in [Side::Client, Side::Server] {
        for number in 0..rng.random_range(1..3_u64) {
            let first = if side == Side::Client { 1 } else { 2 };
            let stream = StreamId(first + 2 * number);
            if side == Side::Client {
                assert_eq!(pair.client.connection.open_stream(), Ok(stream));
            } else {
                assert_eq!(pair.server.connection.open_stream(), Ok(stream));
            }
            plans.push((
                side,
                stream,
                rng.random_range(0..20_000_u64),
                rng.random_range(0..25_000_u64),
            ));
        }
    }
    let mut written = Vec::new();
    for (side, stream, send_max, receive_max) in &plans {
        pair.run_until("both ends know the stream", |pair| {
            pair.client.connection.receive_max(*stream).is_some()
                && pair.server.connection.receive_max(*stream).is_some()
        });
        // Both directions of each stream are used.
        for (from, send_max, receive_max) in [
            (*side, *send_max, *receive_max),
            (side.other(), *receive_max / 2, *send_max),
        ] {
            let data = bytes(rng.random_range(0..40_000));
            pair.end(from)
                .connection
                .write(*stream, data.clone())
                .unwrap();
            pair.end(from)
                .connection
                .set_send_max(*stream, send_max)
                .unwrap();
            pair.end(from.other())
                .connection
                .set_receive_max(*stream, receive_max)
                .unwrap();
            written.push((from, *stream, data, send_max, receive_max));
        }
    }

    let check = |pair: &mut Pair| {
        for (from, stream, data, send_max, receive_max) in &written {
            let sender = &pair.end(*from).connection;
            let out = sender.stream_sent(*stream).unwrap() + sender.stream_held(*stream).unwrap();
            assert!(out <= *send_max, "sent {out} of {send_max}");
            let receiver = pair.end(from.other());
            let received = receiver.connection.stream_received(*stream).unwrap();
            assert!(
                received <= *receive_max,
                "received {received} of {receive_max}"
            );
            assert!(
                data.starts_with(receiver.data(stream.0)),
                "data is not what was written"
            );
        }
    };
    let until = pair.now.plus_millis(rng.random_range(5_000..120_000));
    while pair.step(until) {
        check(&mut pair);
    }
    pair.weather = Weather {
        max_packet_amount: weather.max_packet_amount,
        ..FAIR
    };
    pair.run_for(120_000);
    check(&mut pair);

    for side in [Side::Client, Side::Server] {
        let lost = pair.end(side).lost;
        let sent = pair.end(side).connection.total_sent();
        let received = pair.end(side.other()).connection.total_received();
        assert_eq!(received, sent + lost, "money is conserved");
    }
    for (from, stream, data, send_max, receive_max) in &written {
        let sent = pair.end(*from).connection.stream_sent(*stream).unwrap();
        let receiver = pair.end(from.other());
        let received = receiver.connection.stream_received(*stream).unwrap();
        assert!(
            sent == *send_max || received == *receive_max,
            "stuck: sent {sent} of {send_max}, received {received} of {receive_max}"
        );
        assert_eq!(receiver.data(stream.0), data, "data is missing");
    }
}

#[test]
fn storms_lose_no_money_and_no_data() {
    for seed in 0..200 {
        storm(seed);
    }
}

#[test]
fn receipts_prove_the_total_of_each_stream() {
    let key = ReceiptKey {
        nonce: [1; 16],
        secret: [2; 32],
    };
    let server = Config {
        receipts: Some(key.clone()),
        ..config("test.server.token")
    };
    let weather = Weather {
        max_packet_amount: 100,
        delay_millis: (1, 50),
        ..FAIR
    };
    let mut pair = Pair::with(25, weather, config("test.client"), server);
    let streams = [pair.open_stream(1_000), pair.open_stream(500)];
    for stream in streams {
        pair.server
            .connection
            .set_receive_max(stream, 5_000)
            .unwrap();
    }
    pair.run_until("paid", |pair| pair.client.connection.total_sent() == 1_500);
    for (stream, total) in streams.into_iter().zip([1_000, 500]) {
        let receipt = pair.client.connection.receipt(stream).unwrap();
        assert!(key.verify(receipt));
        assert_eq!(
            (receipt.stream(), receipt.total_received()),
            (stream, total)
        );
        assert!(pair.client.saw(
            |event| matches!(event, Event::Receipt { stream: of, total_received } if *of == stream && *total_received == total)
        ));
    }
}

#[test]
fn data_that_was_lost_with_its_stream_uses_up_no_window() {
    let mut pair = Pair::new(26, FAIR);
    for _ in 0..10 {
        let stream = pair.open_stream(0);
        pair.run_for(1_000);
        // The data is lost, and before that shows the server closes the stream.
        pair.weather.lose_prepare = 100;
        pair.client.connection.write(stream, bytes(10_000)).unwrap();
        pair.drive();
        pair.weather.lose_prepare = 0;
        pair.server
            .connection
            .close_stream(stream, StreamErrorCode::NoError, "")
            .unwrap();
        pair.run_until("the stream is over", |pair| {
            pair.client.connection.unconfirmed_data(stream).is_none()
        });
        assert!(!pair.server.data.contains_key(&stream));
    }
    let stream = pair.open_stream(0);
    pair.client.connection.write(stream, bytes(10_000)).unwrap();
    pair.run_until("the data is there", |pair| {
        pair.server
            .data
            .get(&stream)
            .is_some_and(|data| data.len() == 10_000)
    });
}
