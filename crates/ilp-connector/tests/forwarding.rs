//! From one neighbour to another: what passes, what is refused, and what it does to balances.
//! The cases are those that were measured on the JavaScript connector (moneyd 4.3.0).

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod world;

use std::sync::atomic::Ordering;
use std::time::Duration;

use ilp_connector::{AccountError, AccountId, LinkError};
use ilp_packet::{AmountTooLarge, ErrorCode, ildcp};
use world::{Behaviour, Neighbour, World, address, child, fulfill, other_condition};

#[tokio::test(start_paused = true)]
async fn a_fulfilled_packet_moves_the_amount() {
    let (world, _, b) = World::new();
    let reply = world.send("a", "test.host.b.sub", 400).await;
    assert_eq!(reply, Ok(fulfill()));
    assert_eq!(world.balances(), (600, 400));
    assert_eq!(world.ledger.balance("ledger:a"), -400);
    assert_eq!(world.ledger.balance("ledger:b"), 400);
    let seen = b.seen();
    let sent = world.packet("test.host.b.sub", 400);
    assert_eq!((seen[0].amount, &seen[0].data), (400, &sent.data));
    assert_eq!(seen[0].condition, sent.condition);
    let statistics = world.connector.statistics(&"a".into()).unwrap();
    assert_eq!((statistics.prepares_from, statistics.fulfills_from), (1, 1));
    assert_eq!(statistics.amount_from, 400);
    let statistics = world.connector.statistics(&"b".into()).unwrap();
    assert_eq!((statistics.prepares_to, statistics.fulfills_to), (1, 1));
    assert_eq!(statistics.amount_to, 400);
}

#[tokio::test(start_paused = true)]
async fn the_expiry_is_lowered_by_a_second_and_clamped() {
    let (world, _, b) = World::new();
    let mut packet = world.packet("test.host.b", 1);
    let now = world
        .packet("test.host.b", 1)
        .expires_at
        .minus_millis(10_000);
    world
        .connector
        .prepare(&"a".into(), packet.clone())
        .await
        .unwrap();
    packet.expires_at = now.plus_millis(600_000);
    world.connector.prepare(&"a".into(), packet).await.unwrap();
    let seen = b.seen();
    assert_eq!(seen[0].expires_at, now.plus_millis(9_000));
    assert_eq!(seen[1].expires_at, now.plus_millis(30_000));
}

#[tokio::test(start_paused = true)]
async fn too_little_time_is_r02() {
    let (world, _, b) = World::new();
    let now = world
        .packet("test.host.b", 1)
        .expires_at
        .minus_millis(10_000);
    for (left, passes) in [(0, false), (1_000, false), (1_999, false), (2_000, true)] {
        let mut packet = world.packet("test.host.b", 1);
        packet.expires_at = now.plus_millis(left);
        let reply = world.connector.prepare(&"a".into(), packet.clone()).await;
        assert_eq!(reply.is_ok(), passes, "{left} ms left");
        if let Err(reject) = reply {
            assert_eq!(reject.code, ErrorCode::InsufficientTimeout);
            assert_eq!(reject.triggered_by, Some(address("test.host")));
        }
        packet.expires_at = now.minus_millis(1);
        assert!(world.connector.prepare(&"a".into(), packet).await.is_err());
    }
    assert_eq!(b.seen().len(), 1);
    assert_eq!(world.balances(), (999, 1));
}

#[tokio::test(start_paused = true)]
async fn a_rejected_packet_changes_nothing_and_passes_unchanged() {
    let world = World::empty();
    world.child("a", 1000, Behaviour::Fulfill);
    world.child("b", 0, Behaviour::Reject(ErrorCode::FinalApplicationError));
    let reject = world.send("a", "test.host.b", 400).await.unwrap_err();
    assert_eq!(reject.code, ErrorCode::FinalApplicationError);
    assert_eq!(reject.triggered_by, Some(address("test.far.away")));
    assert_eq!(reject.message, "no");
    assert_eq!(world.balances(), (1000, 0));
    assert_eq!(world.ledger.row_count(), 0);
    world.send("a", "test.host.b", 1000).await.unwrap_err();
    assert_eq!(
        world
            .connector
            .statistics(&"a".into())
            .unwrap()
            .rejects_from,
        2
    );
}

#[tokio::test(start_paused = true)]
async fn a_wrong_fulfillment_is_f05_and_costs_the_next_hop_the_money() {
    let world = World::empty();
    world.child("a", 1000, Behaviour::Fulfill);
    world.child("b", 0, Behaviour::WrongFulfill);
    let reject = world.send("a", "test.host.b", 400).await.unwrap_err();
    assert_eq!(reject.code, ErrorCode::WrongCondition);
    assert_eq!(reject.triggered_by, Some(address("test.host")));
    assert_eq!(world.balances(), (1000, 0));
    assert_eq!(
        world
            .connector
            .statistics(&"b".into())
            .unwrap()
            .wrong_fulfills_to,
        1
    );
}

#[tokio::test(start_paused = true)]
async fn silence_is_r00_at_the_expiry_and_releases_the_hold() {
    let world = World::empty();
    world.child("a", 1000, Behaviour::Fulfill);
    let b = world.child("b", 0, Behaviour::Silent);
    let before = tokio::time::Instant::now();
    let reject = world.send("a", "test.host.b", 1000).await.unwrap_err();
    assert_eq!(reject.code, ErrorCode::TransferTimedOut);
    // The next hop had 9 of the 10 seconds. The runtime's timer counts whole milliseconds.
    let waited = before.elapsed().as_millis();
    assert!((9_000..=9_002).contains(&waited), "{waited} ms");
    assert_eq!(
        world.connector.statistics(&"b".into()).unwrap().timeouts_to,
        1
    );
    *b.behaviour.lock().unwrap() = Behaviour::Fulfill;
    world.send("a", "test.host.b", 1000).await.unwrap();
    assert_eq!(world.balances(), (0, 1000));
}

#[tokio::test(start_paused = true)]
async fn an_answer_counts_only_before_the_expiry() {
    for (wait, passes) in [(8_990, true), (9_000, false), (9_010, false)] {
        let world = World::empty();
        world.child("a", 1000, Behaviour::Fulfill);
        world.child("b", 0, Behaviour::FulfillAfter(Duration::from_millis(wait)));
        let reply = world.send("a", "test.host.b", 10).await;
        assert_eq!(reply.is_ok(), passes, "{wait} ms");
        let expected = if passes { (990, 10) } else { (1000, 0) };
        assert_eq!(world.balances(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_prepaid_account_spends_what_it_has_with_packets_in_flight_counted() {
    let world = World::empty();
    world.child("a", 1000, Behaviour::Fulfill);
    world.child("b", 0, Behaviour::FulfillAfter(Duration::from_secs(1)));
    let first = world
        .connector
        .dispatch(&"a".into(), None, world.packet("test.host.b", 700));
    let second = world
        .connector
        .dispatch(&"a".into(), None, world.packet("test.host.b", 301));
    let third = world
        .connector
        .dispatch(&"a".into(), None, world.packet("test.host.b", 300));
    assert_eq!(
        second.await.unwrap_err().code,
        ErrorCode::InsufficientLiquidity
    );
    first.await.unwrap();
    third.await.unwrap();
    assert_eq!(world.balances(), (0, 1000));
    assert_eq!(
        world.code("a", "test.host.b", 1).await,
        ErrorCode::InsufficientLiquidity
    );
    world.send("a", "test.host.b", 0).await.unwrap();
    assert_eq!(world.ledger.row_count(), 2, "an empty packet needs no row");
}

#[tokio::test(start_paused = true)]
async fn floor_and_ceiling() {
    let world = World::empty();
    let mut config = child("credit");
    config.balance_floor = Some(50);
    world.connector.open_account(config).unwrap();
    world
        .connector
        .open_account(child("free").unlimited())
        .unwrap();
    let mut config = child("b");
    config.balance_ceiling = Some(60);
    world.connector.open_account(config).unwrap();
    let b = Neighbour::new(Behaviour::Fulfill);
    world.connector.attach_link(&"b".into(), b).unwrap();
    assert_eq!(
        world.code("credit", "test.host.b", 51).await,
        ErrorCode::InsufficientLiquidity
    );
    world.send("credit", "test.host.b", 50).await.unwrap();
    assert_eq!(world.balance("credit"), -50);
    assert_eq!(
        world.code("free", "test.host.b", 11).await,
        ErrorCode::InsufficientLiquidity
    );
    world.send("free", "test.host.b", 10).await.unwrap();
    assert_eq!(world.balance("b"), 60);
}

#[tokio::test(start_paused = true)]
async fn play_money_reaches_the_largest_amount() {
    let world = World::empty();
    world
        .connector
        .open_account(child("free").unlimited())
        .unwrap();
    world.child("b", 0, Behaviour::Fulfill);
    for _ in 0..3 {
        world.send("free", "test.host.b", u64::MAX).await.unwrap();
    }
    assert_eq!(world.balance("free"), -3 * i128::from(u64::MAX));
    assert_eq!(world.balance("b"), 3 * i128::from(u64::MAX));
}

#[tokio::test(start_paused = true)]
async fn too_large_an_amount_is_f08_with_both_numbers() {
    let world = World::empty();
    let mut config = child("a").unlimited();
    config.max_packet_amount = 500;
    world.connector.open_account(config).unwrap();
    let mut config = child("b");
    config.max_packet_amount = 300;
    world.connector.open_account(config).unwrap();
    world
        .connector
        .attach_link(&"b".into(), Neighbour::new(Behaviour::Fulfill))
        .unwrap();
    for (amount, maximum) in [(501, 500), (500, 300), (301, 300)] {
        let reject = world.send("a", "test.host.b", amount).await.unwrap_err();
        assert_eq!(reject.code, ErrorCode::AmountTooLarge);
        assert_eq!(reject.data.len(), 16);
        let data = AmountTooLarge::decode(&reject.data).unwrap();
        assert_eq!((data.received, data.maximum), (amount, maximum));
    }
    world.send("a", "test.host.b", 300).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn addresses_without_a_way() {
    let (world, _, _) = World::new();
    world.connector.open_account(child("away")).unwrap();
    for (destination, code) in [
        ("test.host.nobody", ErrorCode::Unreachable),
        ("test.host.bb", ErrorCode::Unreachable),
        ("test.other", ErrorCode::Unreachable),
        ("g.somewhere", ErrorCode::Unreachable),
        ("test.host", ErrorCode::InvalidPacket),
        ("peer.other", ErrorCode::InvalidPacket),
        ("test.host.away", ErrorCode::PeerUnreachable),
        ("test.host.a", ErrorCode::Unreachable),
        ("test.host.a.deeper", ErrorCode::Unreachable),
    ] {
        assert_eq!(world.code("a", destination, 0).await, code, "{destination}");
    }
    assert_eq!(
        world.code("stranger", "test.host.b", 0).await,
        ErrorCode::Unreachable
    );
}

#[tokio::test(start_paused = true)]
async fn what_links_report_becomes_a_reject_of_ours() {
    for (error, code) in [
        (LinkError::Closed, ErrorCode::PeerUnreachable),
        (LinkError::Busy, ErrorCode::PeerBusy),
        (LinkError::NoDestination, ErrorCode::Unreachable),
        (LinkError::NotIlp("?".into()), ErrorCode::Unreachable),
        (LinkError::Unencodable, ErrorCode::InvalidPacket),
        (LinkError::TimedOut, ErrorCode::TransferTimedOut),
    ] {
        let world = World::empty();
        world.child("a", 1000, Behaviour::Fulfill);
        world.child("b", 0, Behaviour::Fail(error));
        let reject = world.send("a", "test.host.b", 5).await.unwrap_err();
        assert_eq!(reject.code, code);
        assert_eq!(reject.triggered_by, Some(address("test.host")));
        assert_eq!(world.balances(), (1000, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn everything_that_is_not_ours_goes_to_the_parent() {
    let (world, _, _) = World::new();
    let parent = world.parent(Behaviour::Fulfill);
    world.send("a", "g.far.away", 10).await.unwrap();
    assert_eq!(parent.seen().len(), 1);
    assert_eq!(world.balance("parent"), 10, "we owe it to the parent");
    assert_eq!(
        world.code("a", "test.host.nobody", 1).await,
        ErrorCode::Unreachable
    );
    world.send("parent", "test.host.b", 25).await.unwrap();
    assert_eq!(world.balance("parent"), -15);
    assert_eq!(world.balances(), (990, 25));
    for destination in ["g.far.away", "test.other"] {
        assert_eq!(
            world.code("parent", destination, 0).await,
            ErrorCode::Unreachable,
            "loop"
        );
    }
    assert_eq!(parent.seen().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn programs_of_one_account_may_pay_each_other() {
    let (world, a, _) = World::new();
    let send = |sub: &'static str, destination: &'static str| {
        let packet = world.packet(destination, 10);
        world.connector.dispatch(&"a".into(), Some(sub), packet)
    };
    send("one", "test.host.a.two.x").await.unwrap();
    assert_eq!(a.seen().len(), 1);
    assert_eq!(world.balance("a"), 1000, "it stays in the account");
    assert_eq!(world.ledger.row_count(), 0);
    for destination in ["test.host.a.one", "test.host.a.one.x", "test.host.a"] {
        let reject = send("one", destination).await.unwrap_err();
        assert_eq!(reject.code, ErrorCode::Unreachable, "{destination}");
    }
}

#[tokio::test(start_paused = true)]
async fn children_learn_address_and_asset() {
    let (world, _, _) = World::new();
    world.parent(Behaviour::Fulfill);
    let mut broke = child("broke");
    broke.max_in_flight_packets = 0;
    world.connector.open_account(broke).unwrap();
    for (account, sub, expected) in [
        ("a", None, "test.host.a"),
        ("broke", Some("u-alice"), "test.host.broke.u-alice"),
    ] {
        // The expiry does not matter: nothing is held.
        let request = ildcp::request(world::START);
        let fulfill = world
            .connector
            .dispatch(&account.into(), sub, request)
            .await
            .unwrap();
        assert_eq!(fulfill.fulfillment, ildcp::FULFILLMENT);
        let response = ildcp::IldcpResponse::decode(&fulfill.data).unwrap();
        assert_eq!(response.client_address, address(expected));
        assert_eq!(
            (response.asset_code.as_str(), response.asset_scale),
            ("XRP", 9)
        );
    }
    let mut bad = ildcp::request(world::START);
    bad.condition = other_condition();
    let mut paid = ildcp::request(world::START);
    paid.amount = 1;
    for (account, request) in [
        ("a", bad),
        ("a", paid),
        ("parent", ildcp::request(world::START)),
    ] {
        let reject = world
            .connector
            .prepare(&account.into(), request)
            .await
            .unwrap_err();
        assert_eq!(reject.code, ErrorCode::BadRequest);
    }
    assert_eq!(
        world
            .connector
            .statistics(&"a".into())
            .unwrap()
            .prepares_from,
        0
    );
}

#[tokio::test(start_paused = true)]
async fn too_many_packets_in_flight_are_t03() {
    let world = World::empty();
    let mut config = child("a").unlimited();
    config.max_in_flight_packets = 2;
    world.connector.open_account(config).unwrap();
    world.child("b", 0, Behaviour::FulfillAfter(Duration::from_secs(1)));
    let one = world
        .connector
        .dispatch(&"a".into(), None, world.packet("test.host.b", 0));
    let two = world
        .connector
        .dispatch(&"a".into(), None, world.packet("test.host.b", 0));
    assert_eq!(
        world.code("a", "test.host.b", 0).await,
        ErrorCode::ConnectorBusy
    );
    one.await.unwrap();
    two.await.unwrap();
    world.send("a", "test.host.b", 0).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_fulfill_waits_for_the_ledger() {
    let (world, _, _) = World::new();
    world.ledger.waits.store(true, Ordering::SeqCst);
    let mut reply = world
        .connector
        .dispatch(&"a".into(), None, world.packet("test.host.b", 5));
    let early = tokio::time::timeout(Duration::from_secs(60), &mut reply).await;
    assert!(
        early.is_err(),
        "nothing is told before the row is durable, not even R00"
    );
    assert_eq!(world.balances(), (1000, 0));
    world.ledger.go_on.notify_one();
    reply.await.unwrap();
    assert_eq!(world.balances(), (995, 5));
}

#[tokio::test(start_paused = true)]
async fn a_failed_write_stops_both_accounts() {
    let (world, _, _) = World::new();
    world.child("c", 50, Behaviour::Fulfill);
    world.ledger.fails.store(true, Ordering::SeqCst);
    assert_eq!(
        world.code("a", "test.host.b", 5).await,
        ErrorCode::InternalError
    );
    world.ledger.fails.store(false, Ordering::SeqCst);
    for (from, to) in [
        ("a", "test.host.c"),
        ("b", "test.host.c"),
        ("c", "test.host.a"),
    ] {
        assert_eq!(
            world.code(from, to, 0).await,
            ErrorCode::InternalError,
            "{from} to {to}"
        );
    }
    world.send("c", "test.host.host", 5).await.unwrap();
    let a = AccountId::new("a");
    assert_eq!(world.connector.is_stopped(&a), Some(true));
    assert_eq!(world.balances(), (1000, 0));
    // Closing and opening it with the ledger's balance is the way back.
    world.connector.close_account(&a).unwrap();
    world
        .connector
        .open_account(child("a").with_balance(995))
        .unwrap();
    world.send("a", "test.host.host", 995).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn dropping_the_reply_does_not_stop_the_packet() {
    let world = World::empty();
    world.child("a", 1000, Behaviour::Fulfill);
    world.child("b", 0, Behaviour::FulfillAfter(Duration::from_secs(1)));
    drop(
        world
            .connector
            .dispatch(&"a".into(), None, world.packet("test.host.b", 5)),
    );
    world.connector.drain().await;
    assert_eq!(world.balances(), (995, 5));
    assert_eq!(
        world.code("a", "test.host.b", 5).await,
        ErrorCode::ConnectorBusy,
        "it is closed"
    );
}

#[tokio::test(start_paused = true)]
async fn a_closed_account_settles_what_is_in_flight() {
    let world = World::empty();
    world.child("a", 1000, Behaviour::Fulfill);
    world.child("b", 0, Behaviour::FulfillAfter(Duration::from_secs(1)));
    let reply = world
        .connector
        .dispatch(&"a".into(), None, world.packet("test.host.b", 5));
    let (a, b) = (AccountId::new("a"), AccountId::new("b"));
    world.connector.close_account(&a).unwrap();
    world.connector.close_account(&b).unwrap();
    assert_eq!(world.connector.balance(&a), None);
    assert_eq!(
        world.connector.close_account(&a),
        Err(AccountError::NoAccount(a.clone()))
    );
    assert_eq!(
        world.code("a", "test.host.b", 0).await,
        ErrorCode::Unreachable
    );
    // Revived while the packet is in flight: the balance goes on, the new one is not used.
    world
        .connector
        .open_account(child("a").with_balance(77))
        .unwrap();
    assert_eq!(world.balance("a"), 1000);
    reply.await.unwrap();
    assert_eq!(world.balance("a"), 995);
    assert_eq!(world.ledger.balance("ledger:b"), 5);
    // `b` was closed for good, so a new one starts from what the ledger says.
    world
        .connector
        .open_account(child("b").with_balance(5))
        .unwrap();
    assert_eq!(world.balance("b"), 5);
}

#[tokio::test]
async fn names_and_segments_are_given_once() {
    let (world, _, _) = World::new();
    let open = |config| world.connector.open_account(config);
    assert_eq!(open(child("a")), Err(AccountError::AlreadyOpen("a".into())));
    let mut other = child("other");
    other.segment = "host".into();
    assert_eq!(
        open(other.clone()),
        Err(AccountError::SegmentTaken("host".into()))
    );
    for bad in ["", "a b", "x..y", "a.b.c.d.e"] {
        other.segment = bad.into();
        assert_eq!(
            open(other.clone()),
            Err(AccountError::BadSegment(bad.into()))
        );
    }
    other.segment = "x".repeat(1020).into();
    assert!(matches!(open(other), Err(AccountError::BadSegment(_))));
    world.parent(Behaviour::Fulfill);
    let second = ilp_connector::AccountConfig::parent("second", "ledger");
    assert_eq!(open(second), Err(AccountError::SecondParent));
}

#[tokio::test(start_paused = true)]
async fn an_old_link_cannot_detach_a_new_one() {
    let (world, _, _) = World::new();
    let b = AccountId::new("b");
    let old = world
        .connector
        .attach_link(&b, Neighbour::new(Behaviour::Silent))
        .unwrap();
    let new = world
        .connector
        .attach_link(&b, Neighbour::new(Behaviour::Fulfill))
        .unwrap();
    assert!(!world.connector.detach_link(&b, old));
    world.send("a", "test.host.b", 1).await.unwrap();
    assert!(world.connector.detach_link(&b, new));
    assert_eq!(
        world.code("a", "test.host.b", 1).await,
        ErrorCode::PeerUnreachable
    );
}
