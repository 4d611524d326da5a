//! Databases of every earlier schema are opened, brought up to date, and say what they said.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use codius_ledger::{Account, EndReason, LeaseState, OrderId, Reason};
use codius_manifest::{ManifestHash, Size};
use codius_store::{Books, EntryFilter, MAX_PAGE, Period, Store, StoreError};
use rusqlite::Connection;

fn hash(number: u8) -> ManifestHash {
    ManifestHash::from_bytes([number; 32])
}

/// The texts of `tests/released`, by the number of their schema.
fn released() -> Vec<(i64, String)> {
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/released");
    let mut texts: Vec<_> = fs::read_dir(place)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sql"))
        .map(|path| {
            let schema = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
            (schema, fs::read_to_string(path).unwrap())
        })
        .collect();
    texts.sort();
    texts
}

fn make(dir: &Path, text: &str) -> PathBuf {
    let path = dir.join("codius.db");
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch(text).unwrap();
    path
}

fn schema_of(path: &Path) -> i64 {
    let connection = Connection::open(path).unwrap();
    connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .unwrap()
}

/// The schema of a new database.
fn newest() -> i64 {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("codius.db");
    drop(Store::open(&path).unwrap());
    schema_of(&path)
}

#[tokio::test]
async fn every_released_database_is_brought_up_to_date_and_says_what_it_said() {
    let newest = newest();
    let released = released();
    let schemas: Vec<i64> = released.iter().map(|(schema, _)| *schema).collect();
    assert!(schemas.starts_with(&[1, 2, 3]), "{schemas:?}");
    for (schema, text) in released {
        let dir = tempfile::tempdir().unwrap();
        let path = make(dir.path(), &text);
        match Books::open(&path) {
            Ok(_) => assert_eq!(schema, newest),
            Err(StoreError::TooOld { found, .. }) => assert_eq!(found, schema),
            Err(error) => panic!("schema {schema}: {error}"),
        }

        let store = Store::open(&path).unwrap();
        let checked = store.check().await.unwrap();
        assert_eq!(checked.totals.transactions, 14, "schema {schema}");
        assert_eq!(checked.totals.postings, 28, "schema {schema}");
        let packets = if schema == 1 { 14 } else { 30 };
        assert_eq!(checked.totals.packets, packets, "schema {schema}");

        let snapshot = store.load().await.unwrap();
        let expected: Vec<(Account, i64)> = [
            ("local:clients".to_owned(), -2_334_215),
            (format!("lease:{}", hash(1)), 1_902_589),
            ("earned".to_owned(), 380_906),
            (format!("owed:{}", hash(2)), 49_000),
            (format!("pod:{}", hash(1)), 777),
            (format!("order:{}", OrderId::of_token(b"third")), 123),
            (format!("owed:{}", hash(3)), 620),
            ("parent".to_owned(), 200),
        ]
        .into_iter()
        .map(|(name, balance)| (name.parse().unwrap(), balance))
        .collect();
        assert_eq!(snapshot.balances, expected.into_iter().collect());
        assert_eq!(snapshot.secrets["host"], [0x5a; 32]);
        assert!(snapshot.meta.contains_key("interledger") && snapshot.meta.contains_key("price"));
        let [running] = &snapshot.leases[..] else {
            panic!("schema {schema}: {:?}", snapshot.leases);
        };
        let parts = running.lease.parts();
        assert_eq!(
            (parts.hash, parts.run_ms, parts.charged),
            (hash(1), 100_000, 380_517)
        );
        assert!(matches!(parts.state, LeaseState::Running(_)));
        let upload = running.upload.as_ref().unwrap();
        assert_eq!(
            upload.upload_json,
            r#"{"manifest":{"name":"a"},"private":{}}"#
        );
        let owner = (schema >= 3).then_some([7; 32]);
        assert_eq!(running.origin.owner, owner, "schema {schema}");
        let refund = running.origin.refund;
        assert_eq!(refund.is_some(), schema >= 3, "schema {schema}");
        if schema >= 6 {
            let first = OrderId::of_token(b"first");
            assert_eq!(refund, Some(first.into()), "it is what it was");
        }
        // All that older hosts sold was small.
        assert_eq!(running.origin.size, Size::SMALL, "schema {schema}");
        for (number, reason) in [(2, EndReason::StartFailed), (3, EndReason::Stopped)] {
            let ended = store.lease(hash(number)).await.unwrap().unwrap();
            assert_eq!(ended.lease.state(), LeaseState::Ended { reason });
        }
        let [open] = &snapshot.open_orders[..] else {
            panic!("schema {schema}: {:?}", snapshot.open_orders);
        };
        assert_eq!(open.id, OrderId::of_token(b"third"));
        let failed = store
            .order(OrderId::of_token(b"second"))
            .await
            .unwrap()
            .unwrap();
        assert!(!failed.is_open());

        // What the operator reads is of the same books.
        let (leases, entries) = store
            .books(|books| {
                let through = books.summary(Period::default())?.through;
                let filter = EntryFilter {
                    through,
                    ..EntryFilter::default()
                };
                Ok((
                    books.leases(0, MAX_PAGE)?,
                    books.entries(0, &filter, MAX_PAGE)?,
                ))
            })
            .await
            .unwrap();
        assert_eq!(entries.len(), 28);
        assert_eq!(entries[0].reason, Reason::Packet);
        let money: Vec<_> = leases
            .iter()
            .map(|row| {
                let money = row.money;
                (
                    money.paid,
                    money.charged,
                    money.unused,
                    money.refunded,
                    money.balance,
                )
            })
            .collect();
        assert_eq!(
            money,
            [
                (2_283_106, 380_517, 0, 0, 1_902_589),
                (0, 0, 0, 0, 0),
                (1200, 380, 820, 200, 0)
            ]
        );
        store.close().await;

        // It was kept as it was.
        let kept = dir.path().join(format!("codius.db.before-{}", newest));
        assert_eq!(kept.exists(), schema < newest, "schema {schema}");
        if kept.exists() {
            assert_eq!(schema_of(&kept), schema);
        }
        assert_eq!(schema_of(&path), newest);
        let store = Store::open(&path).unwrap();
        assert_eq!(store.check().await.unwrap().added_up, 0, "nothing is new");
        store.close().await;
    }
}

/// The old file is as it was: a statement in the middle of the migration fails.
#[test]
fn a_migration_that_fails_leaves_the_old_database() {
    for (schema, text) in released() {
        if schema == newest() {
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = make(dir.path(), &text);
        let connection = Connection::open(&path).unwrap();
        // A name that the newest schema needs is taken.
        connection
            .execute_batch("ALTER TABLE leases ADD COLUMN disk_mib INTEGER")
            .unwrap();
        drop(connection);
        let before = contents(&path);
        let error = Store::open(&path).unwrap_err();
        assert!(error.to_string().contains("database"), "{error}");
        assert_eq!(contents(&path), before, "schema {schema}");
        assert_eq!(schema_of(&path), schema);

        // With the cause gone it goes on.
        let connection = Connection::open(&path).unwrap();
        connection
            .execute_batch("ALTER TABLE leases DROP COLUMN disk_mib")
            .unwrap();
        drop(connection);
        Store::open(&path).unwrap();
        assert_eq!(schema_of(&path), newest());
    }
}

#[test]
fn a_database_of_a_newer_version_is_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let (_, text) = released().remove(0);
    let path = make(dir.path(), &text);
    let connection = Connection::open(&path).unwrap();
    connection
        .pragma_update(None, "user_version", newest() + 1)
        .unwrap();
    drop(connection);
    let before = contents(&path);
    let error = Store::open(&path).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("was written by a newer version of this program"),
        "{text}"
    );
    assert_eq!(contents(&path), before);
}

/// Given a disk with no room for the copy that is kept, when an older database is opened, then it stays
/// as it is, and with room it is brought up to date.
#[test]
fn without_room_the_old_database_stays() {
    let dir = tempfile::tempdir().unwrap();
    // A small file system that only the child sees. Mounting needs root.
    let script = r#"mount -t tmpfs -o size=300k tmpfs "$1" && shift && exec "$@""#;
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap())
        .args([
            "--ignored",
            "--exact",
            "--nocapture",
            "child_on_a_small_disk",
        ])
        .env(PLACE, dir.path())
        .output()
        .expect("unshare is in the package util-linux");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "needs root for `unshare --mount`: {text}"
    );
}

#[test]
#[ignore = "the child of without_room_the_old_database_stays"]
fn child_on_a_small_disk() {
    let dir = PathBuf::from(std::env::var_os(PLACE).expect("started by the test that needs it"));
    let (schema, text) = released().remove(0);
    let path = make(&dir, &text);
    let before = contents(&path);
    let length = fs::metadata(&path).unwrap().len();
    // Room for SQLite's log and shared memory, and not for a copy.
    let room = 40 * 1024 + length / 2;
    let ballast = usize::try_from(300 * 1024 - length - room).unwrap();
    fs::write(dir.join("ballast"), vec![1; ballast]).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::DiskFull { .. }), "{error:?}");
    assert_eq!((contents(&path), schema_of(&path)), (before, schema));
    let kept = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    let kept: Vec<_> = kept
        .filter(|name| name.to_string_lossy().contains("before"))
        .collect();
    assert!(kept.is_empty(), "{kept:?}");

    fs::remove_file(dir.join("ballast")).unwrap();
    drop(Store::open(&path).unwrap());
    assert!(schema_of(&path) > schema);
}

/// Names the child's directory.
const PLACE: &str = "CODIUS_STORE_TEST_PLACE";

/// Every statement that would make the database again.
fn contents(path: &Path) -> Vec<String> {
    let connection = Connection::open(path).unwrap();
    let texts = |query: &str| -> Vec<String> {
        let mut select = connection.prepare(query).unwrap();
        let rows = select.query_map([], |row| row.get(0)).unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    };
    let mut all = texts("SELECT coalesce(sql, name) FROM sqlite_schema ORDER BY name");
    let tables = texts(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%' ORDER BY name",
    );
    for table in tables {
        let columns = texts(&format!("SELECT name FROM pragma_table_info('{table}')"));
        let quoted: Vec<String> = columns
            .iter()
            .map(|column| format!("quote({column})"))
            .collect();
        all.extend(texts(&format!(
            "SELECT {} FROM {table}",
            quoted.join(" || ',' || ")
        )));
    }
    all
}
