//! Packets to somebody inside the host, and packets that the host sends itself.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod world;

use std::sync::atomic::Ordering;
use std::time::Duration;

use ilp_connector::{LedgerAccount, SpendLimit};
use ilp_packet::ErrorCode;
use world::{Behaviour, Taking, World, fulfill, other_condition};

#[tokio::test(start_paused = true)]
async fn a_receiver_is_paid_before_the_fulfill_leaves() {
    let (world, _, _) = World::new();
    let reply = world.send("a", "test.host.host.token~tag", 300).await;
    assert_eq!(reply, Ok(fulfill()));
    assert_eq!(world.balance("a"), 700);
    assert_eq!(world.ledger.balance("lease"), 300);
    assert_eq!(world.ledger.balance("ledger:a"), -300);
}

#[tokio::test(start_paused = true)]
async fn a_receiver_must_keep_its_contract() {
    for (taking, code, balance, lease) in [
        (Taking::Reject, ErrorCode::FinalApplicationError, 1000, 0),
        (
            Taking::FulfillWithoutCredit,
            ErrorCode::InternalError,
            1000,
            0,
        ),
        (Taking::Sleep, ErrorCode::TransferTimedOut, 1000, 0),
        // What the ledger has is what counts, even where the receiver lost its mind.
        (
            Taking::CreditThenReject,
            ErrorCode::FinalApplicationError,
            900,
            100,
        ),
        (
            Taking::CreditThenWrongFulfill,
            ErrorCode::WrongCondition,
            900,
            100,
        ),
    ] {
        let world = World::empty();
        world.child("a", 1000, Behaviour::Fulfill);
        world.receiver("host", taking);
        assert_eq!(world.code("a", "test.host.host.x", 100).await, code);
        assert_eq!(world.balance("a"), balance);
        assert_eq!(world.ledger.balance("lease"), lease);
        assert_eq!(world.connector.is_stopped(&"a".into()), Some(false));
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_packet_needs_no_credit() {
    let world = World::empty();
    world.child("a", 0, Behaviour::Fulfill);
    world.receiver("host", Taking::FulfillWithoutCredit);
    world.send("a", "test.host.host", 0).await.unwrap();
    let mut packet = world.packet("test.host.host", 0);
    packet.condition = other_condition();
    let reject = world
        .connector
        .prepare(&"a".into(), packet)
        .await
        .unwrap_err();
    assert_eq!(reject.code, ErrorCode::WrongCondition);
    assert_eq!(world.ledger.row_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_expiry_during_the_write_does_not_undo_it() {
    let (world, _, _) = World::new();
    world.ledger.waits.store(true, Ordering::SeqCst);
    let mut reply =
        world
            .connector
            .dispatch(&"a".into(), None, world.packet("test.host.host.x", 100));
    let early = tokio::time::timeout(Duration::from_secs(60), &mut reply).await;
    assert!(
        early.is_err(),
        "the packet is long expired, but being recorded"
    );
    world.ledger.go_on.notify_one();
    reply.await.unwrap();
    assert_eq!(world.balance("a"), 900);
    assert_eq!(world.ledger.balance("lease"), 100);
}

#[tokio::test(start_paused = true)]
async fn a_failed_write_stops_the_payer() {
    let (world, _, _) = World::new();
    world.ledger.fails.store(true, Ordering::SeqCst);
    assert_eq!(
        world.code("a", "test.host.host.x", 100).await,
        ErrorCode::InternalError
    );
    world.ledger.fails.store(false, Ordering::SeqCst);
    assert_eq!(
        world.code("a", "test.host.host.x", 100).await,
        ErrorCode::InternalError
    );
    assert_eq!(world.connector.is_stopped(&"a".into()), Some(true));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_the_ledger_stops_nobody() {
    let (world, _, _) = World::new();
    world.ledger.refuses.store(true, Ordering::SeqCst);
    assert_eq!(
        world.code("a", "test.host.host.x", 100).await,
        ErrorCode::FinalApplicationError
    );
    world.ledger.refuses.store(false, Ordering::SeqCst);
    world.send("a", "test.host.host.x", 100).await.unwrap();
    assert_eq!(world.balance("a"), 900);
}

#[tokio::test(start_paused = true)]
async fn a_refund_is_bounded_by_its_limit() {
    let (world, _, b) = World::new();
    let lease = LedgerAccount::new("lease");
    let limit = SpendLimit::new(100);
    let pay = |amount| {
        world
            .connector
            .originate(&lease, &limit, world.packet("test.host.b.x", amount))
    };
    let (first, second) = (pay(60), pay(41));
    assert_eq!(limit.remaining(), 40);
    assert_eq!(
        second.await.unwrap_err().code,
        ErrorCode::InsufficientLiquidity
    );
    first.await.unwrap();
    assert_eq!((limit.spent(), limit.remaining()), (60, 40));
    assert_eq!(world.ledger.balance("lease"), -60);
    assert_eq!(world.balance("b"), 60);
    *b.behaviour.lock().unwrap() = Behaviour::Reject(ErrorCode::TemporaryApplicationError);
    pay(40).await.unwrap_err();
    assert_eq!(limit.remaining(), 40, "a rejected packet gives it back");
    *b.behaviour.lock().unwrap() = Behaviour::Fulfill;
    pay(40).await.unwrap();
    assert_eq!((limit.spent(), limit.remaining()), (100, 0));
    assert_eq!(world.ledger.balance("ledger:b"), 100);
}

#[tokio::test(start_paused = true)]
async fn the_host_keeps_the_whole_time_of_its_own_packets() {
    let (world, _, b) = World::new();
    let lease = LedgerAccount::new("lease");
    let packet = world.packet("test.host.b", 1);
    world
        .connector
        .originate(&lease, &SpendLimit::unlimited(), packet.clone())
        .await
        .unwrap();
    assert_eq!(b.seen()[0].expires_at, packet.expires_at);
}

#[tokio::test(start_paused = true)]
async fn a_refund_in_doubt_counts_as_spent() {
    let (world, _, _) = World::new();
    world.ledger.fails.store(true, Ordering::SeqCst);
    let limit = SpendLimit::new(100);
    let packet = world.packet("test.host.b", 30);
    let reply = world
        .connector
        .originate(&LedgerAccount::new("lease"), &limit, packet)
        .await;
    assert_eq!(reply.unwrap_err().code, ErrorCode::InternalError);
    assert_eq!((limit.spent(), limit.remaining()), (30, 70));
}
