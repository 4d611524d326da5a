//! Refunds in the books: nothing due is forgotten, and nobody else's money is taken for it.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::PathBuf;

use codius_ledger::{
    Account, Asset, EndReason, Lease, Millis, OrderId, Rate, Reason, RefundId, Transaction,
};
use codius_manifest::ManifestHash;
use codius_store::{
    Batch, LeaseOrigin, LeaseRow, RefundRecord, RefundStep, Store, StoreError, StoredUpload,
};
use tempfile::TempDir;

const HASH: ManifestHash = ManifestHash::from_bytes([1; 32]);
const POINTER: &str = "https://example.com/.well-known/pay";

fn place() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("codius.db");
    (dir, path)
}

fn id(number: u8) -> RefundId {
    OrderId::of_token(&[number]).into()
}

fn record(number: u8, destination: Option<&str>) -> RefundRecord {
    RefundRecord {
        id: id(number),
        hash: HASH,
        owner: Some([number; 32]),
        destination: destination.map(str::to_owned),
        created_at_unix_ms: u64::from(number) * 10,
    }
}

fn moved(reason: Reason, from: Account, to: Account, amount: u64) -> Transaction {
    Transaction::transfer(1, reason, from, to, amount).unwrap()
}

/// A lease that ends with so much due.
fn ended(number: u8, destination: Option<&str>, due: u64) -> Batch {
    let rate = Rate::per_month("10".parse().unwrap(), &Asset::new("XRP", 9).unwrap()).unwrap();
    let mut lease = Lease::new(HASH, u64::from(number) * 10, rate);
    let origin = LeaseOrigin {
        owner: Some([number; 32]),
        carried: 0,
        refund: Some(id(number)),
        ..LeaseOrigin::default()
    };
    let upload = StoredUpload {
        upload_json: "{}".into(),
        images_json: "[]".into(),
    };
    let batch = Batch::new()
        .refund(record(number, destination))
        .new_lease_from(lease, upload, origin);
    let settled = lease.end(Millis(0), due, EndReason::Lost).unwrap();
    assert_eq!(settled.refund, due);
    batch
        .lease(lease)
        .transaction(moved(
            Reason::Return,
            Account::Parent,
            Account::Refund(id(number)),
            due,
        ))
        .refund_step(id(number), RefundStep::Due { at_unix_ms: 100 })
}

#[tokio::test]
async fn what_is_due_is_listed_after_a_restart_until_it_has_left() {
    let (_dir, path) = place();
    let store = Store::open(&path).unwrap();

    // Given two leases that have ended, one with a pointer,
    store.commit(ended(1, Some(POINTER), 70)).await.unwrap();
    store.commit(ended(2, None, 30)).await.unwrap();
    store.close().await;
    let store = Store::open(&path).unwrap();

    // then both are due, and one waits to be sent,
    let due = store.refunds_due(10).await.unwrap();
    let amounts: Vec<_> = due.iter().map(|it| (it.record.id, it.due)).collect();
    assert_eq!(amounts, [(id(1), 70), (id(2), 30)]);
    assert_eq!(due, store.refunds_of(HASH).await.unwrap());
    assert_eq!(due[0].record, record(1, Some(POINTER)));
    let to_send = store.refunds_to_send(10).await.unwrap();
    assert_eq!(to_send.len(), 1);
    assert_eq!(to_send[0].next_try_unix_ms, Some(100));
    // of the end of a lease it is known which refund is its.
    let origin = store.lease(HASH).await.unwrap().unwrap().origin;
    assert_eq!(origin.refund, Some(id(2)));

    // When a part is sent and the rest has to wait,
    let step = RefundStep::Waiting {
        tries: 3,
        trouble: Some("it cannot be reached".into()),
        next_try_unix_ms: 500,
    };
    let batch = Batch::new()
        .transaction(moved(
            Reason::Refund,
            Account::Refund(id(1)),
            Account::Parent,
            20,
        ))
        .refund_step(id(1), step);
    store.commit(batch).await.unwrap();
    let refund = store.refund(id(1)).await.unwrap().unwrap();
    assert_eq!((refund.due, refund.sent, refund.tries), (50, 20, 3));
    assert_eq!(refund.next_try_unix_ms, Some(500));

    // then no more than the rest can leave,
    let error = store
        .commit(moved(Reason::Refund, refund.account(), Account::Parent, 51))
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Overdraft { .. }), "{error}");
    // and when it has, nothing is due any more.
    let batch = Batch::new()
        .transaction(moved(Reason::Refund, refund.account(), Account::Parent, 50))
        .refund_step(id(1), RefundStep::Settled);
    store.commit(batch).await.unwrap();
    let refund = store.refund(id(1)).await.unwrap().unwrap();
    assert_eq!((refund.due, refund.sent, refund.tries), (0, 70, 0));
    assert_eq!((refund.next_try_unix_ms, refund.trouble), (None, None));
    assert_eq!(store.refunds_due(10).await.unwrap().len(), 1);
    assert!(store.refunds_to_send(10).await.unwrap().is_empty());
    store.verify().await.unwrap();
}

#[tokio::test]
async fn without_a_destination_nothing_waits_to_be_sent_until_there_is_one() {
    let (_dir, path) = place();
    let store = Store::open(&path).unwrap();
    store.commit(ended(1, None, 30)).await.unwrap();
    let waiting = RefundStep::Waiting {
        tries: 1,
        trouble: None,
        next_try_unix_ms: 500,
    };
    store
        .commit(Batch::new().refund_step(id(1), waiting))
        .await
        .unwrap();
    assert!(store.refunds_to_send(10).await.unwrap().is_empty());

    let redirected = RefundStep::Redirected {
        destination: POINTER.into(),
        at_unix_ms: 700,
    };
    store
        .commit(Batch::new().refund_step(id(1), redirected))
        .await
        .unwrap();
    let to_send = store.refunds_to_send(10).await.unwrap();
    assert_eq!(to_send[0].record.destination.as_deref(), Some(POINTER));
    assert_eq!(to_send[0].next_try_unix_ms, Some(700));

    // A refund that is there stays as it is, and one that is not takes no steps.
    store
        .commit(Batch::new().refund(record(1, None)))
        .await
        .unwrap();
    assert_eq!(store.refunds_to_send(10).await.unwrap(), to_send);
    let unknown = Batch::new().refund_step(id(9), RefundStep::Settled);
    let error = store.commit(unknown).await.unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }), "{error}");
}

#[tokio::test]
async fn what_is_due_is_never_pruned() {
    let (_dir, path) = place();
    let store = Store::open(&path).unwrap();
    store.commit(ended(1, Some(POINTER), 70)).await.unwrap();
    store.commit(ended(2, None, 30)).await.unwrap();
    let gone = moved(Reason::Refund, Account::Refund(id(2)), Account::Parent, 30);
    store.commit(gone).await.unwrap();

    let pruned = store.prune(u64::MAX, 100).await.unwrap();
    assert_eq!(pruned.leases, 2);
    // The lease is forgotten; who is owed what, and where it goes, is not.
    let kept = store.refund(id(1)).await.unwrap().unwrap();
    assert_eq!((kept.due, kept.next_try_unix_ms), (70, Some(100)));
    assert_eq!(store.refund(id(2)).await.unwrap(), None);
}

/// What the books say was sent back of each lease, and when the last of it was.
async fn sent_back(store: &Store) -> Vec<(i128, Option<u64>)> {
    let rows = store.books(|books| books.leases(0, 100)).await.unwrap();
    let of = |row: &LeaseRow| (row.money.refunded, row.money.moved_at_unix_ms);
    rows.iter().map(of).collect()
}

#[tokio::test]
async fn the_books_of_leases_count_what_was_sent_back_of_either_kind() {
    let (_dir, path) = place();
    let store = Store::open(&path).unwrap();
    let at = |moment, reason, from, to, amount| {
        Transaction::transfer(moment, reason, from, to, amount).unwrap()
    };

    // Given two leases whose owner has signed, and of one of which a part was sent,
    store.commit(ended(1, None, 70)).await.unwrap();
    store.commit(ended(2, None, 30)).await.unwrap();
    let (first, second) = (Account::Refund(id(1)), Account::Refund(id(2)));
    let part = at(100, Reason::Refund, first.clone(), Account::Parent, 7);
    store.commit(part).await.unwrap();
    // and a lease of the same program whose payer nobody knows, with a debt that was sent back in part,
    let rate = Rate::per_month("10".parse().unwrap(), &Asset::new("XRP", 9).unwrap()).unwrap();
    let mut lease = Lease::new(HASH, 40, rate);
    let upload = StoredUpload {
        upload_json: "{}".into(),
        images_json: "[]".into(),
    };
    let (paid, owed) = (Account::Lease(HASH), Account::Owed(HASH));
    let begun = Batch::new()
        .new_lease_from(lease, upload, LeaseOrigin::default())
        .transaction(at(40, Reason::Payment, Account::Parent, paid.clone(), 40));
    store.commit(begun).await.unwrap();
    let settled = lease.end(Millis(0), 40, EndReason::Lost).unwrap();
    assert_eq!(settled.refund, 40);
    let over = Batch::new()
        .lease(lease)
        .transaction(at(50, Reason::Return, paid, owed.clone(), 40))
        .transaction(at(60, Reason::Refund, owed, Account::Parent, 25));
    store.commit(over).await.unwrap();
    assert_eq!(
        sent_back(&store).await,
        [(7, Some(100)), (0, None), (25, Some(60))]
    );

    // when the owner draws, which puts the rest of one into the other, and a packet brings most of it,
    let drawn = Batch::new()
        .transaction(at(200, Reason::Return, first, second.clone(), 63))
        .transaction(at(210, Reason::Refund, second.clone(), Account::Parent, 80));
    store.commit(drawn).await.unwrap();

    // then it is told of the lease whose it was, the older money first;
    assert_eq!(
        sent_back(&store).await,
        [(57, Some(210)), (30, Some(210)), (25, Some(60))]
    );
    // and what goes into another lease instead was not sent back.
    let used = at(300, Reason::Payment, second, Account::Lease(HASH), 13);
    store.commit(used).await.unwrap();
    let (refunded, _): (Vec<_>, Vec<_>) = sent_back(&store).await.into_iter().unzip();
    assert_eq!(refunded, [57, 30, 25]);
}
