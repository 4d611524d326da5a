//! Money is neither made nor lost, whatever neighbours, receivers and the ledger do.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod world;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ilp_connector::{AccountId, LedgerAccount, LinkError, SpendLimit};
use ilp_packet::{ErrorCode, Reply};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;
use world::{Behaviour, Neighbour, Taking, World, child};

const CHILDREN: [&str; 4] = ["a", "b", "c", "d"];
const START_BALANCE: i128 = 10_000;

#[test]
fn the_sum_of_all_balances_never_changes() {
    let first_seed: u64 = std::env::var("SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(0);
    for seed in first_seed..first_seed + 40 {
        // The runtime starts with a paused clock of its own for every seed.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let fulfilled = runtime.block_on(run(seed));
        assert!(
            fulfilled > 0,
            "seed {seed}: nothing was fulfilled, so nothing was tested"
        );
    }
}

fn behaviour(random: &mut StdRng) -> Behaviour {
    match random.random_range(0..10) {
        0..=3 => Behaviour::Fulfill,
        4 => Behaviour::WrongFulfill,
        5 => Behaviour::Reject(ErrorCode::FinalApplicationError),
        6 => Behaviour::Silent,
        7 => Behaviour::Fail(LinkError::Closed),
        _ => Behaviour::FulfillAfter(Duration::from_millis(random.random_range(0..12_000))),
    }
}

async fn run(seed: u64) -> usize {
    let mut random = StdRng::seed_from_u64(seed);
    let world = World::empty();
    let neighbours: Vec<Arc<Neighbour>> = CHILDREN
        .iter()
        .map(|name| world.child(name, START_BALANCE, Behaviour::Fulfill))
        .collect();
    let parent = world.parent(Behaviour::Fulfill);
    world.receiver("host", Taking::CreditThenFulfill);
    let funds = LedgerAccount::new("funds");
    let limit = SpendLimit::new(5_000);
    let mut replies: JoinSet<Reply> = JoinSet::new();
    let mut ever_failed = false;

    for _ in 0..300 {
        for neighbour in neighbours.iter().chain([&parent]) {
            *neighbour.behaviour.lock().unwrap() = behaviour(&mut random);
        }
        // Writes fail now and then, late in the run, as they stop accounts for good.
        let fails = random.random_range(0..200) == 0;
        ever_failed |= fails;
        world.ledger.fails.store(fails, Ordering::SeqCst);
        let amount = random.random_range(0..4_000);
        let to = ["a.x", "b.x", "c.x", "d.x", "host.x", "nobody"][random.random_range(0..6)];
        let mut destination = format!("test.host.{to}");
        if random.random_range(0..6) == 0 {
            destination = "g.elsewhere".into();
        }
        let packet = world.packet(&destination, amount);
        let from = random.random_range(0..6);
        let dispatch = match CHILDREN.get(from) {
            Some(name) => world
                .connector
                .dispatch(&AccountId::new(*name), Some("y"), packet),
            None if from == 4 => world.connector.dispatch(&"parent".into(), None, packet),
            None => world.connector.originate(&funds, &limit, packet),
        };
        if random.random_range(0..10) == 0 {
            drop(dispatch);
        } else {
            replies.spawn(dispatch);
        }
        for name in CHILDREN {
            let balance = world.balance(name);
            assert!(balance >= 0, "seed {seed}: {name} fell to {balance}");
        }
        let wait = random.random_range(0..500);
        tokio::time::sleep(Duration::from_millis(wait)).await;
    }
    // Drop guards and timers finish whatever is left.
    world.connector.drain().await;
    let fulfilled = replies
        .join_all()
        .await
        .into_iter()
        .filter(Result::is_ok)
        .count();

    let mut sum = world.ledger.balance("lease") + world.ledger.balance("funds");
    for name in CHILDREN {
        let recorded = START_BALANCE + world.ledger.balance(&format!("ledger:{name}"));
        assert_eq!(
            world.balance(name),
            recorded,
            "seed {seed}: {name} differs from the ledger"
        );
        sum += world.balance(name);
    }
    assert_eq!(
        world.balance("parent"),
        world.ledger.balance("ledger:parent"),
        "seed {seed}"
    );
    sum += world.balance("parent");
    assert_eq!(sum, 4 * START_BALANCE, "seed {seed}");
    let refunded: u64 = (world.ledger.rows.lock().unwrap().iter())
        .filter(|row| row.debit == funds)
        .map(|row| row.amount)
        .sum();
    assert!(refunded <= limit.spent(), "seed {seed}");
    assert!(
        ever_failed || refunded == limit.spent(),
        "seed {seed}: spent and not recorded"
    );
    for name in CHILDREN {
        // Nothing is held for ever: a closed account is gone at once and starts afresh.
        world.connector.close_account(&name.into()).unwrap();
        world
            .connector
            .open_account(child(name).with_balance(1))
            .unwrap();
        assert_eq!(
            world.balance(name),
            1,
            "seed {seed}: a hold was left on {name}"
        );
    }
    fulfilled
}
