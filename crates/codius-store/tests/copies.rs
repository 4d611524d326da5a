//! Copies of a database that is being written, and what is made of them; and how far books are added
//! up at a start.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use codius_ledger::{Account, Lease, Rate, Reason, Transaction};
use codius_manifest::ManifestHash;
use codius_store::{Batch, Books, Store, StoreError, StoredUpload, backup, restore};
use rusqlite::Connection;
use tempfile::TempDir;

fn place() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("codius.db");
    (dir, path)
}

fn paid(amount: u64) -> Transaction {
    Transaction::transfer(7, Reason::Packet, Account::Parent, Account::Earned, amount).unwrap()
}

fn change(path: &Path, statement: &str) {
    let connection = Connection::open(path).unwrap();
    assert!(
        connection.execute(statement, []).unwrap() > 0,
        "{statement}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_database_that_is_being_written_is_of_one_moment() {
    let (dir, path) = place();
    let store = Store::open(&path).unwrap();
    let lease = Lease::new(ManifestHash::from_bytes([1; 32]), 5, Rate::FREE);
    let upload = StoredUpload {
        upload_json: "{\"private\":1}".into(),
        images_json: "[]".into(),
    };
    let batch = Batch::new()
        .new_lease(lease, upload.clone())
        .secret("host", [9; 32]);
    store.commit(batch).await.unwrap();
    let done = Arc::new(AtomicBool::new(false));
    // Each batch moves a unit and counts it in `meta`, so that a torn copy would show.
    let writing: Vec<_> = (0..8)
        .map(|caller| {
            let (store, done) = (store.clone(), Arc::clone(&done));
            tokio::spawn(async move {
                let mut number = 0u64;
                while !done.load(Ordering::Relaxed) {
                    number += 1;
                    let batch = Batch::from(paid(1)).meta(
                        &format!("caller {caller}"),
                        Some(number.to_be_bytes().to_vec()),
                    );
                    store.commit(batch).await.unwrap();
                }
                number
            })
        })
        .collect();
    let mut copies = Vec::new();
    for number in 0..5 {
        let copy = dir.path().join(format!("copy-{number}"));
        let from = path.clone();
        let to = copy.clone();
        let copied = tokio::task::spawn_blocking(move || backup(&from, &to, false));
        let copied = copied.await.unwrap().unwrap();
        assert_eq!(copied.bytes, fs::metadata(&copy).unwrap().len());
        copies.push(copy);
    }
    done.store(true, Ordering::Relaxed);
    for caller in writing {
        assert!(
            caller.await.unwrap() > 0,
            "the writer was not kept from writing"
        );
    }
    store.close().await;

    let mut last = -1;
    for copy in &copies {
        let mode = fs::metadata(copy).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let elsewhere = tempfile::tempdir().unwrap();
        let restored = elsewhere.path().join("codius.db");
        restore(copy, &restored).unwrap();
        let files: Vec<_> = fs::read_dir(elsewhere.path()).unwrap().collect();
        assert_eq!(files.len(), 2, "database and lock: {files:?}");
        assert_eq!(
            fs::metadata(&restored).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let store = Store::open(&restored).unwrap();
        store.verify().await.unwrap();
        let snapshot = store.load().await.unwrap();
        let counted: u64 = snapshot
            .meta
            .iter()
            .filter(|(key, _)| key.starts_with("caller"))
            .map(|(_, value)| u64::from_be_bytes(value.as_slice().try_into().unwrap()))
            .sum();
        let earned = store.earned_total().await.unwrap();
        assert_eq!(earned, i64::try_from(counted).unwrap());
        assert!(earned >= last, "later copies have what earlier ones have");
        last = earned;
        assert_eq!(snapshot.secrets["host"], [9; 32]);
        assert_eq!(snapshot.leases[0].upload.as_ref(), Some(&upload));
        store.close().await;
    }
    let names = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    let parts: Vec<_> = names
        .filter(|name| name.to_string_lossy().contains(".part"))
        .collect();
    assert!(parts.is_empty(), "{parts:?}");
}

#[tokio::test]
async fn nothing_is_overwritten_and_only_a_database_of_ours_is_restored() {
    let (dir, path) = place();
    let store = Store::open(&path).unwrap();
    store.commit(paid(5)).await.unwrap();
    let copy = dir.path().join("copy");
    // What an interrupted copy leaves is replaced.
    fs::write(dir.path().join("copy.part"), "half").unwrap();
    backup(&path, &copy, false).unwrap();
    let error = backup(&path, &copy, false).unwrap_err();
    assert!(matches!(error, StoreError::Exists { .. }), "{error}");
    backup(&path, &copy, true).unwrap();

    // Over a host that runs, or a database that is there, or its log.
    let error = restore(&copy, &path).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    store.close().await;
    let error = restore(&copy, &path).unwrap_err();
    assert!(matches!(error, StoreError::Exists { .. }), "{error}");
    fs::remove_file(&path).unwrap();
    fs::write(dir.path().join("codius.db-wal"), "").unwrap();
    let error = restore(&copy, &path).unwrap_err();
    assert!(error.to_string().contains("codius.db-wal"), "{error}");
    fs::remove_file(dir.path().join("codius.db-wal")).unwrap();

    // What is no copy.
    let text = dir.path().join("text");
    fs::write(
        &text,
        "not a database, but long enough to be looked at ".repeat(100),
    )
    .unwrap();
    let other = dir.path().join("other");
    Connection::open(&other)
        .unwrap()
        .execute_batch("CREATE TABLE a (x)")
        .unwrap();
    for path_of in [&text, &other] {
        let error = restore(path_of, &path).unwrap_err();
        assert!(matches!(error, StoreError::NotOurs { .. }), "{error}");
    }
    let error = restore(&dir.path().join("missing"), &path).unwrap_err();
    assert!(matches!(error, StoreError::Open { .. }), "{error}");

    // What was changed since.
    let wrong = dir.path().join("wrong");
    fs::copy(&copy, &wrong).unwrap();
    change(
        &wrong,
        "UPDATE accounts SET balance = 6 WHERE name = 'earned'",
    );
    let error = restore(&wrong, &path).unwrap_err();
    assert!(matches!(error, StoreError::Inconsistent { .. }), "{error}");
    let newer = dir.path().join("newer");
    fs::copy(&copy, &newer).unwrap();
    Connection::open(&newer)
        .unwrap()
        .pragma_update(None, "user_version", 999)
        .unwrap();
    let error = restore(&newer, &path).unwrap_err();
    assert!(matches!(error, StoreError::TooNew { .. }), "{error}");
    // A page in the middle that the disk has lost.
    let torn = dir.path().join("torn");
    let mut bytes = fs::read(&copy).unwrap();
    let length = bytes.len();
    bytes[length - 4096..].fill(0xa5);
    fs::write(&torn, bytes).unwrap();
    restore(&torn, &path).unwrap_err();
    assert!(!path.exists() && !dir.path().join("codius.db.part").exists());

    restore(&copy, &path).unwrap();
    assert_eq!(Store::open(&path).unwrap().earned_total().await.unwrap(), 5);
}

#[tokio::test]
async fn a_start_adds_up_what_is_new_and_finds_what_is_wrong_in_it() {
    let (_dir, path) = place();
    let store = Store::open(&path).unwrap();
    for amount in 1..=10 {
        store.commit(paid(amount)).await.unwrap();
    }
    // The first time all of it, then what came since.
    let first = store.check().await.unwrap();
    assert_eq!((first.added_up, first.totals.postings), (20, 20));
    store.commit(paid(7)).await.unwrap();
    let second = store.check().await.unwrap();
    assert_eq!((second.added_up, second.totals.postings), (2, 22));
    assert_eq!(second.totals, store.verify().await.unwrap());
    assert_eq!(second.full_at_unix_ms, first.full_at_unix_ms);
    let all = store.check_all().await.unwrap();
    assert_eq!(all.added_up, 22);
    store.commit(paid(3)).await.unwrap();
    store.close().await;

    // Each change behind the program's back, on a copy of its own.
    let wrong = |statement: &str| {
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("codius.db");
        fs::copy(&path, &copy).unwrap();
        change(&copy, statement);
        (dir, copy)
    };
    for statement in [
        // Balances, whenever they were last right.
        "UPDATE accounts SET balance = balance + 1 WHERE name = 'earned'",
        "UPDATE accounts SET balance = 0 WHERE name = 'parent'",
        "INSERT INTO accounts (name, balance) VALUES ('local:new', 4)",
        // What was written since.
        "UPDATE postings SET amount = 4 WHERE transaction_id = 12 AND amount > 0",
        "DELETE FROM postings WHERE transaction_id = 12 AND amount > 0",
        "DELETE FROM postings WHERE transaction_id = 12",
    ] {
        let (_dir, copy) = wrong(statement);
        let store = Store::open(&copy).unwrap();
        let error = store.check().await.unwrap_err();
        assert!(
            matches!(error, StoreError::Inconsistent { .. }),
            "{statement}: {error}"
        );
        store.close().await;
    }
    // What was added up before is found by adding up all of it, and only so.
    let (_dir, copy) =
        wrong("UPDATE postings SET amount = 4 WHERE transaction_id = 3 AND amount > 0");
    let store = Store::open(&copy).unwrap();
    store.check().await.unwrap();
    store.check_all().await.unwrap_err();
    // Which is not forgotten.
    store.check().await.unwrap_err();
    store.close().await;
    Books::open(&copy).unwrap().verify().unwrap_err();
    // Without a note, or with one that cannot be read, all of it is added up.
    for statement in [
        "DELETE FROM meta WHERE key = 'verified'",
        "UPDATE meta SET value = x'00' WHERE key = 'verified'",
    ] {
        let (_dir, copy) = wrong(statement);
        let store = Store::open(&copy).unwrap();
        assert_eq!(store.check().await.unwrap().added_up, 24, "{statement}");
        store.close().await;
    }
}
