//! The store through its public face: what is committed is there, what is refused leaves nothing.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{collections::BTreeMap, os::unix::fs::PermissionsExt, path::PathBuf};

use codius_ledger::{
    Account, Asset, BootId, EndReason, Lease, Millis, Order, OrderId, OrderKind, OrderState, Rate,
    Reason, RequestDigest, Seconds, StoredResponse, Transaction,
};
use codius_manifest::{Machine, ManifestHash, Size};
use codius_store::{
    Batch, LeaseOrigin, MAX_BATCH_ITEMS, Pruned, Store, StoreError, StoredUpload, Verified,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tempfile::TempDir;

const BOOT: BootId = BootId([1; 16]);

fn place() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("codius.db");
    (dir, path)
}

fn hash(number: u8) -> ManifestHash {
    ManifestHash::from_bytes([number; 32])
}

fn rate() -> Rate {
    Rate::per_month("10".parse().unwrap(), &Asset::new("XRP", 9).unwrap()).unwrap()
}

fn upload(text: &str) -> StoredUpload {
    StoredUpload {
        upload_json: text.into(),
        images_json: "[]".into(),
    }
}

fn moved(from: Account, to: Account, amount: u64) -> Transaction {
    Transaction::transfer(1_700_000_000_000, Reason::Packet, from, to, amount).unwrap()
}

fn order(token: &[u8]) -> Order {
    Order {
        id: OrderId::of_token(token),
        request: RequestDigest::of("POST", "/pods", "duration=600", b"{}"),
        hash: hash(1),
        kind: OrderKind::Upload,
        duration: Seconds(600),
        price: 2284,
        state: OrderState::Open,
        payer: Some("local:alice".into()),
        created_at_unix_ms: 1000,
    }
}

async fn reopen(store: Store, path: &std::path::Path) -> Store {
    store.close().await;
    Store::open(path).unwrap()
}

#[tokio::test]
async fn an_order_is_paid_run_and_settled_and_all_of_it_survives_a_restart() {
    let (_dir, path) = place();
    let store = Store::open(&path).unwrap();
    let alice = Account::Local("alice".parse().unwrap());
    let (mut order, lease_account) = (order(b"token"), Account::Lease(hash(1)));
    let order_account = Account::Order(order.id);

    // Given an order that was paid by packets,
    store
        .commit(Batch::new().order(order.clone()))
        .await
        .unwrap();
    for amount in [2000, 284] {
        let condition = [u8::try_from(amount % 251).unwrap(); 32];
        let packet = moved(alice.clone(), order_account.clone(), amount).with_reference(condition);
        store.commit(packet).await.unwrap();
    }
    // when it becomes a lease,
    let mut lease = Lease::new(hash(1), 1000, rate());
    lease.begin(BOOT, Millis(50_000)).unwrap();
    let response = StoredResponse {
        status: 200,
        body: r#"{"url":"…"}"#.into(),
    };
    order.complete(response.clone()).unwrap();
    let batch = Batch::new()
        .transaction(moved(order_account.clone(), lease_account.clone(), 2284))
        .new_lease(lease, upload(r#"{"manifest":{},"private":{}}"#))
        .order(order.clone())
        .meta("clean_shutdown", Some(vec![0]))
        .secret("host", [9; 32]);
    store.commit(batch).await.unwrap();

    // then after a restart it is all there.
    let store = reopen(store, &path).await;
    let snapshot = store.load().await.unwrap();
    assert_eq!(
        snapshot.balances,
        BTreeMap::from([(alice.clone(), -2284), (lease_account.clone(), 2284)])
    );
    assert_eq!(snapshot.leases.len(), 1);
    assert_eq!(snapshot.leases[0].lease, lease);
    let stored = snapshot.leases[0].upload.clone().unwrap();
    assert_eq!(stored.upload_json, r#"{"manifest":{},"private":{}}"#);
    assert!(
        !format!("{stored:?}").contains("manifest"),
        "private variables are not shown"
    );
    assert!(snapshot.open_orders.is_empty());
    assert_eq!(snapshot.meta["clean_shutdown"], [0]);
    assert_eq!(snapshot.secrets["host"], [9; 32]);
    assert_eq!(store.order(order.id).await.unwrap(), Some(order.clone()));

    // When the lease ends, what was not used is owed, and the private variables are gone.
    let settled = lease.end(Millis(50_100), 2284, EndReason::Stopped).unwrap();
    assert_eq!((settled.earned, settled.refund), (380, 1904));
    let batch = Batch::new()
        .transaction(moved(
            lease_account.clone(),
            Account::Earned,
            settled.earned,
        ))
        .transaction(moved(
            lease_account.clone(),
            Account::Owed(hash(1)),
            settled.refund,
        ))
        .lease(lease)
        .meta("clean_shutdown", None);
    store.commit(batch).await.unwrap();
    assert_eq!(store.earned_total().await.unwrap(), 380);
    assert_eq!(store.balance(&Account::Owed(hash(1))).await.unwrap(), 1904);
    assert_eq!(store.balance(&lease_account).await.unwrap(), 0);
    let ended = store.lease(hash(1)).await.unwrap().unwrap();
    assert_eq!((ended.lease, ended.upload), (lease, None));
    let snapshot = store.load().await.unwrap();
    assert!(snapshot.leases.is_empty() && snapshot.meta.is_empty());

    // The account's history is told newest first.
    let entries = store.entries(&order_account, 10).await.unwrap();
    let told: Vec<_> = entries
        .iter()
        .map(|entry| (entry.transaction, entry.amount, entry.reference))
        .collect();
    assert_eq!(
        told,
        [
            (3, -2284, None),
            (2, 284, Some([33; 32])),
            (1, 2000, Some([243; 32]))
        ]
    );
    assert_eq!(entries[0].at_unix_ms, 1_700_000_000_000);
    assert_eq!(
        store.entries(&order_account, 2).await.unwrap(),
        entries[..2]
    );
    assert_eq!(
        store.verify().await.unwrap(),
        Verified {
            accounts: 5,
            transactions: 5,
            packets: 5,
            postings: 10
        }
    );
}

#[tokio::test]
async fn nothing_of_a_refused_batch_is_kept_and_its_neighbours_are() {
    let (_dir, path) = place();
    let store = Store::open(&path).unwrap();
    let pod = Account::Pod(hash(1));
    store
        .commit(moved(Account::Parent, pod.clone(), 100))
        .await
        .unwrap();

    // Many at once, so that they are written as one group: each third wants more than there is.
    let results: Vec<_> = {
        let tasks: Vec<_> = (0..90u64)
            .map(|number| {
                let (store, pod) = (store.clone(), pod.clone());
                let amount = if number % 3 == 2 { 1000 } else { 1 };
                let batch = Batch::from(moved(pod.clone(), Account::Earned, 1))
                    .meta(&format!("written {number}"), Some(vec![1]))
                    .transaction(moved(pod, Account::Parent, amount));
                tokio::spawn(async move { store.commit(batch).await })
            })
            .collect();
        let mut results = Vec::new();
        for task in tasks {
            results.push(task.await.unwrap());
        }
        results
    };
    let mut written = 0;
    for (number, result) in results.iter().enumerate() {
        match result {
            Ok(()) => written += 1,
            Err(StoreError::Overdraft { account, .. }) => assert_eq!(*account, pod),
            Err(other) => panic!("batch {number}: {other}"),
        }
        assert!(
            number % 3 != 2 || result.is_err(),
            "batch {number} spent what is not there"
        );
    }
    // 100 units are enough for 50 batches of two.
    assert_eq!(written, 50);
    let snapshot = store.load().await.unwrap();
    assert_eq!(snapshot.meta.len(), 50);
    assert_eq!(
        snapshot.balances,
        BTreeMap::from([(Account::Parent, -50), (Account::Earned, 50)])
    );
    store.verify().await.unwrap();
}

#[tokio::test]
async fn every_account_but_those_of_others_stops_at_zero() {
    let (_dir, path) = place();
    let store = Store::open(&path).unwrap();
    for account in [
        Account::Pod(hash(1)),
        Account::Order(OrderId::of_token(b"x")),
        Account::Lease(hash(1)),
        Account::Owed(hash(1)),
        Account::Earned,
    ] {
        store
            .commit(moved(Account::Parent, account.clone(), 5))
            .await
            .unwrap();
        let error = store
            .commit(moved(account.clone(), Account::Parent, 6))
            .await
            .unwrap_err();
        assert!(
            matches!(
                &error,
                StoreError::Overdraft {
                    balance: 5,
                    amount: -6,
                    ..
                }
            ),
            "{account}: {error}"
        );
        store
            .commit(moved(account.clone(), Account::Parent, 5))
            .await
            .unwrap();
        assert_eq!(store.balance(&account).await.unwrap(), 0);
    }
    let local = Account::Local("bob".parse().unwrap());
    store
        .commit(moved(local.clone(), Account::Parent, 7))
        .await
        .unwrap();
    store
        .commit(moved(Account::Parent, local, 20))
        .await
        .unwrap();
    store.verify().await.unwrap();
}

#[tokio::test]
async fn balances_do_not_overflow() {
    let (_dir, path) = place();
    let store = Store::open(&path).unwrap();
    let most = u64::try_from(i64::MAX).unwrap();
    store
        .commit(moved(Account::Parent, Account::Earned, most))
        .await
        .unwrap();
    let error = store
        .commit(moved(
            Account::Local("a".parse().unwrap()),
            Account::Earned,
            1,
        ))
        .await;
    assert!(
        matches!(error, Err(StoreError::Refused { .. })),
        "{error:?}"
    );
    assert_eq!(store.earned_total().await.unwrap(), i64::MAX);
    store.verify().await.unwrap();
}

#[tokio::test]
async fn a_program_has_one_lease_at_a_time_and_an_ended_one_is_final() {
    let (_dir, path) = place();
    let store = Store::open(&path).unwrap();
    let first = Lease::new(hash(1), 1000, rate());
    let error = store.commit(Batch::new().lease(first)).await.unwrap_err();
    assert!(error.to_string().contains("without its upload"), "{error}");
    store
        .commit(Batch::new().new_lease(first, upload("first")))
        .await
        .unwrap();

    // Two uploads race: the second loses.
    let second = Lease::new(hash(1), 2000, rate());
    let error = store
        .commit(Batch::new().new_lease(second, upload("second")))
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }), "{error}");

    let mut ended = first;
    let _ = ended.end(Millis(0), 0, EndReason::StartFailed).unwrap();
    store.commit(Batch::new().lease(ended)).await.unwrap();
    let error = store
        .commit(Batch::new().new_lease(first, upload("again")))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("has ended"), "{error}");

    store
        .commit(Batch::new().new_lease(second, upload("second")))
        .await
        .unwrap();
    let found = store.lease(hash(1)).await.unwrap().unwrap();
    assert_eq!(found.lease, second);
    assert_eq!(found.upload, Some(upload("second")));
    assert_eq!(store.lease(hash(2)).await.unwrap(), None);

    let mut ended = second;
    let _ = ended.end(Millis(0), 0, EndReason::Lost).unwrap();
    store.commit(Batch::new().lease(ended)).await.unwrap();
    assert_eq!(store.lease(hash(1)).await.unwrap().unwrap().lease, ended);
}

#[tokio::test]
async fn the_owner_of_a_lease_stays_to_its_end_and_beyond() {
    let (_dir, path) = place();
    let mut store = Store::open(&path).unwrap();
    let mut lease = Lease::new(hash(1), 1000, rate());
    let origin = LeaseOrigin {
        owner: Some([7; 32]),
        carried: 500,
        refund: None,
        size: Size {
            name: "huge".parse().unwrap(),
            machine: Machine {
                vcpus: 8,
                memory_mib: 16_384,
                scratch_mib: u32::MAX,
            },
        },
    };
    let batch = Batch::new().new_lease_from(lease, upload("x"), origin);
    store.commit(batch).await.unwrap();
    let steps: [fn(&mut Lease); 2] = [
        |lease| lease.begin(BOOT, Millis(5)).unwrap(),
        |lease| {
            let _ = lease.end(Millis(9), 0, EndReason::Stopped).unwrap();
        },
    ];
    for step in steps {
        step(&mut lease);
        store.commit(Batch::new().lease(lease)).await.unwrap();
        store = reopen(store, &path).await;
        let stored = store.lease(hash(1)).await.unwrap().unwrap();
        assert_eq!((stored.lease, stored.origin), (lease, origin));
    }
    // The next lease of the same program is another's.
    let next = Lease::new(hash(1), 2000, rate());
    let batch = Batch::new().new_lease(next, upload("x"));
    store.commit(batch).await.unwrap();
    let snapshot = store.load().await.unwrap();
    assert_eq!(snapshot.leases[0].origin, LeaseOrigin::default());
}

#[tokio::test]
async fn every_state_of_a_lease_comes_back() {
    let (_dir, path) = place();
    let mut store = Store::open(&path).unwrap();
    let mut lease = Lease::new(hash(1), 1000, rate());
    store
        .commit(Batch::new().new_lease(lease, upload("x")))
        .await
        .unwrap();
    let steps: [fn(&mut Lease); 6] = [
        |lease| lease.extend(Seconds(60)).unwrap(),
        |lease| lease.begin(BOOT, Millis(5)).unwrap(),
        |lease| assert_eq!(lease.charge(Millis(1005), 10_000).amount, 3805),
        |lease| lease.pause(Millis(2005)).unwrap(),
        |lease| lease.resume(BootId([2; 16]), Millis(1)).unwrap(),
        |lease| assert!(lease.end(Millis(2), 6195, EndReason::HostStopped).is_ok()),
    ];
    for step in steps {
        step(&mut lease);
        store.commit(Batch::new().lease(lease)).await.unwrap();
        store = reopen(store, &path).await;
        assert_eq!(store.lease(hash(1)).await.unwrap().unwrap().lease, lease);
    }
}

#[tokio::test]
async fn an_answered_order_is_final_and_open_ones_are_found_again() {
    let (_dir, path) = place();
    let store = Store::open(&path).unwrap();
    let (mut first, second) = (order(b"first"), order(b"second"));
    store
        .commit(Batch::new().order(first.clone()).order(second.clone()))
        .await
        .unwrap();
    first
        .fail(StoredResponse {
            status: 500,
            body: "{}".into(),
        })
        .unwrap();
    store
        .commit(Batch::new().order(first.clone()))
        .await
        .unwrap();

    let mut other = order(b"first");
    other
        .complete(StoredResponse {
            status: 200,
            body: "{}".into(),
        })
        .unwrap();
    let error = store.commit(Batch::new().order(other)).await.unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }), "{error}");
    // The token of one request cannot be turned to another.
    let other = Order {
        price: 0,
        ..second.clone()
    };
    store.commit(Batch::new().order(other)).await.unwrap_err();

    let store = reopen(store, &path).await;
    assert_eq!(store.load().await.unwrap().open_orders, [second]);
    assert_eq!(store.order(first.id).await.unwrap(), Some(first));
    assert_eq!(store.order(OrderId::of_token(b"none")).await.unwrap(), None);
}

#[tokio::test]
async fn what_is_old_and_settled_is_pruned_and_the_ledger_is_not() {
    let (_dir, path) = place();
    let store = Store::open(&path).unwrap();
    let answer = || StoredResponse {
        status: 200,
        body: "{}".into(),
    };
    let mut batch = Batch::new();
    for (token, age, answered) in [
        ("old", 10, true),
        ("open", 10, false),
        ("unsettled", 10, true),
        ("new", 1000, true),
    ] {
        let mut order = Order {
            created_at_unix_ms: age,
            ..order(token.as_bytes())
        };
        if answered {
            order.complete(answer()).unwrap();
        }
        batch = batch.order(order);
    }
    let unsettled = Account::Order(OrderId::of_token(b"unsettled"));
    batch = batch.transaction(moved(Account::Parent, unsettled, 3));
    for (number, age, ended) in [(1, 10, true), (2, 10, false), (3, 1000, true)] {
        let mut lease = Lease::new(hash(number), age, rate());
        batch = batch.new_lease(lease, upload("x"));
        if ended {
            let _ = lease.end(Millis(0), 0, EndReason::Expired).unwrap();
            batch = batch.lease(lease);
        }
    }
    store.commit(batch).await.unwrap();
    assert_eq!(
        store.prune(10, 100).await.unwrap(),
        Pruned {
            leases: 0,
            orders: 0
        }
    );
    assert_eq!(
        store.prune(11, 100).await.unwrap(),
        Pruned {
            leases: 1,
            orders: 1
        }
    );
    assert_eq!(
        store.prune(11, 100).await.unwrap(),
        Pruned {
            leases: 0,
            orders: 0
        }
    );
    assert!(
        store
            .order(OrderId::of_token(b"old"))
            .await
            .unwrap()
            .is_none()
    );
    for token in ["open", "unsettled", "new"] {
        assert!(
            store
                .order(OrderId::of_token(token.as_bytes()))
                .await
                .unwrap()
                .is_some()
        );
    }
    let leases = [1, 2, 3].map(hash);
    let mut there = Vec::new();
    for lease in leases {
        there.push(store.lease(lease).await.unwrap().is_some());
    }
    assert_eq!(there, [false, true, true]);
    assert_eq!(
        store.prune(u64::MAX, 100).await.unwrap(),
        Pruned {
            leases: 1,
            orders: 1
        }
    );
    assert_eq!(store.verify().await.unwrap().transactions, 1);
}

#[tokio::test]
async fn batches_are_bounded_and_secrets_do_not_change() {
    let (_dir, path) = place();
    let store = Store::open(&path).unwrap();
    let mut batch = Batch::new();
    for number in 0..=MAX_BATCH_ITEMS {
        batch = batch.meta(&number.to_string(), Some(vec![]));
    }
    let error = store.commit(batch).await.unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }), "{error}");
    assert!(store.load().await.unwrap().meta.is_empty());

    store
        .commit(Batch::new().secret("host", [1; 32]))
        .await
        .unwrap();
    store
        .commit(Batch::new().secret("host", [2; 32]))
        .await
        .unwrap();
    assert_eq!(store.load().await.unwrap().secrets["host"], [1; 32]);
}

#[tokio::test]
async fn the_file_is_its_owners_alone_and_one_process_has_it() {
    let (dir, path) = place();
    std::fs::write(&path, b"").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let store = Store::open(&path).unwrap();
    store
        .commit(Batch::new().meta("x", Some(vec![1])))
        .await
        .unwrap();
    let mut files = 0;
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", entry.path().display());
        files += 1;
    }
    assert_eq!(files, 4, "database, log, shared memory, lock");

    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    store.close().await;
    let error = store.commit(Batch::new()).await.unwrap_err();
    assert!(matches!(error, StoreError::Closed), "{error}");
    assert!(matches!(store.load().await, Err(StoreError::Closed)));
    let error = store.verify().await;
    assert!(matches!(error, Err(StoreError::Closed)), "{error:?}");
    Store::open(&path).unwrap().close().await;
}

#[tokio::test]
async fn files_of_others_are_left_alone() {
    let (_dir, path) = place();
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE theirs (x)").unwrap();
    drop(other);
    assert!(matches!(
        Store::open(&path),
        Err(StoreError::NotOurs { .. })
    ));

    let before = "not a database, and long enough to look like none ".repeat(20);
    std::fs::write(&path, &before).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::NotOurs { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), before);

    let nowhere = path.join("codius.db");
    assert!(matches!(
        Store::open(&nowhere),
        Err(StoreError::Open { .. })
    ));
}

#[tokio::test]
async fn verify_finds_what_was_changed_by_hand() {
    for (change, finding) in [
        (
            "UPDATE accounts SET balance = balance + 1 WHERE name = 'earned'",
            "the balance of earned",
        ),
        (
            "UPDATE postings SET amount = amount + 1; UPDATE accounts SET balance = balance + 1",
            "sums to 2",
        ),
        (
            "PRAGMA foreign_keys = OFF; DELETE FROM transactions",
            "refers to one that is not there",
        ),
    ] {
        let (_dir, path) = place();
        let store = Store::open(&path).unwrap();
        store
            .commit(moved(Account::Parent, Account::Earned, 5))
            .await
            .unwrap();
        store.verify().await.unwrap();
        let operator = rusqlite::Connection::open(&path).unwrap();
        operator.execute_batch(change).unwrap();
        let error = store.verify().await.unwrap_err();
        assert!(error.to_string().contains(finding), "{change}: {error}");
    }
}

#[tokio::test]
async fn rows_changed_by_hand_into_nonsense_are_reported() {
    for change in [
        "UPDATE leases SET rate = 'cheap'",
        "UPDATE leases SET hash = 'x'",
        "UPDATE leases SET charged = 999999",
        "DELETE FROM uploads",
    ] {
        let (_dir, path) = place();
        let store = Store::open(&path).unwrap();
        let lease = Lease::new(hash(1), 1000, rate());
        store
            .commit(Batch::new().new_lease(lease, upload("x")))
            .await
            .unwrap();
        let operator = rusqlite::Connection::open(&path).unwrap();
        operator.execute_batch(change).unwrap();
        let error = store.load().await.unwrap_err();
        assert!(
            matches!(error, StoreError::Inconsistent { .. }),
            "{change}: {error}"
        );
    }
}

#[tokio::test]
async fn a_lock_of_another_program_makes_the_store_wait_and_then_go_on() {
    let (_dir, path) = place();
    let store = Store::open(&path).unwrap();
    let operator = rusqlite::Connection::open(&path).unwrap();
    operator.execute_batch("BEGIN IMMEDIATE").unwrap();
    let commit = tokio::spawn({
        let store = store.clone();
        async move {
            store
                .commit(moved(Account::Parent, Account::Earned, 5))
                .await
        }
    });
    // Reading goes on meanwhile.
    assert_eq!(store.earned_total().await.unwrap(), 0);
    operator.execute_batch("COMMIT").unwrap();
    commit.await.unwrap().unwrap();
    assert_eq!(store.earned_total().await.unwrap(), 5);
}

/// Random transfers between a few accounts against a plain map.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn balances_are_those_of_a_simple_model() {
    for seed in 0..6u64 {
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let (_dir, path) = place();
        let mut store = Store::open(&path).unwrap();
        let accounts: Vec<_> = [Account::Parent, Account::Earned]
            .into_iter()
            .chain((0..4).map(|number| Account::Pod(hash(number))))
            .chain((0..2).map(|number: u8| Account::Local(number.to_string().parse().unwrap())))
            .collect();
        let mut model: BTreeMap<Account, i64> = BTreeMap::new();
        for round in 0..300 {
            // A few transfers as one batch: all or nothing.
            let mut after = model.clone();
            let mut batch = Batch::new();
            let mut possible = true;
            for _ in 0..random.random_range(1..4) {
                let from = accounts[random.random_range(0..accounts.len())].clone();
                let to = accounts[random.random_range(0..accounts.len())].clone();
                let amount = random.random_range(1..50i64);
                if from == to {
                    continue;
                }
                *after.entry(from.clone()).or_default() -= amount;
                *after.entry(to.clone()).or_default() += amount;
                possible &= from.may_be_negative() || after[&from] >= 0;
                batch = batch.transaction(moved(from, to, u64::try_from(amount).unwrap()));
            }
            let result = store.commit(batch).await;
            assert_eq!(
                result.is_ok(),
                possible,
                "seed {seed}, round {round}: {result:?}"
            );
            if possible {
                model = after;
            }
            if round % 100 == 99 {
                store = reopen(store, &path).await;
            }
        }
        model.retain(|_, balance| *balance != 0);
        assert_eq!(store.balances().await.unwrap(), model, "seed {seed}");
        store.verify().await.unwrap();
    }
}
