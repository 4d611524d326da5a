//! What was answered is there, whatever happens to the process or the disk.
//!
//! Each test starts this same program again as a child, which runs one of the ignored tests below.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use codius_ledger::{Account, BootId, Lease, LeaseState, Millis, Rate, Reason, Transaction};
use codius_manifest::ManifestHash;
use codius_store::{Batch, Store, StoreError, StoredUpload};
use rand::{RngExt, SeedableRng, rngs::StdRng};

const DATABASE: &str = "CODIUS_STORE_TEST_DATABASE";
const BOOT: BootId = BootId([1; 16]);
const KILLS: u64 = 40;
/// Callers at the same time, each with its own account and lease.
const CALLERS: u8 = 16;

fn account(caller: u8) -> Account {
    Account::Local(caller.to_string().parse().unwrap())
}

fn hash(caller: u8) -> ManifestHash {
    ManifestHash::from_bytes([caller; 32])
}

/// A command that runs one of the ignored tests of this program on a database.
fn child(test: &str, database: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--ignored", "--exact", "--nocapture", test])
        .env(DATABASE, database);
    command
}

fn database_of_child() -> PathBuf {
    std::env::var_os(DATABASE)
        .expect("started by the test that needs it")
        .into()
}

/// How far each caller has come by what the database says, if it agrees with itself: one unit moved,
/// one second of run counted and one number written in each batch.
async fn progress(store: &Store) -> BTreeMap<u8, u64> {
    store.verify().await.unwrap();
    let snapshot = store.load().await.unwrap();
    let mut progress = BTreeMap::new();
    for caller in 0..CALLERS {
        let Some(number) = snapshot.meta.get(&format!("caller {caller}")) else {
            continue;
        };
        let number = u64::from_be_bytes(number.as_slice().try_into().unwrap());
        let paid = snapshot
            .balances
            .get(&account(caller))
            .copied()
            .unwrap_or(0);
        assert_eq!(paid, -i64::try_from(number).unwrap(), "caller {caller}");
        let lease = store.lease(hash(caller)).await.unwrap().unwrap().lease;
        assert_eq!(lease.parts().run_ms, number * 1000, "caller {caller}");
        progress.insert(caller, number);
    }
    let total: u64 = progress.values().sum();
    assert_eq!(
        store.earned_total().await.unwrap(),
        i64::try_from(total).unwrap()
    );
    progress
}

#[test]
fn what_was_answered_survives_kill_9() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("codius.db");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let mut answered: BTreeMap<u8, u64> = BTreeMap::new();
    for kill in 0..KILLS {
        let mut committing: Child = child("child_that_commits_until_it_is_killed", &database)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(committing.stdout.take().unwrap());
        let reader = thread::spawn(move || {
            // A last line that was cut off by the kill does not count.
            let mut last: BTreeMap<u8, u64> = BTreeMap::new();
            for line in output.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8(line).unwrap();
                let mut words = line.split(' ');
                if let (Some("answered"), Some(caller), Some(number), Some(".")) =
                    (words.next(), words.next(), words.next(), words.next())
                {
                    last.insert(caller.parse().unwrap(), number.parse().unwrap());
                }
            }
            last
        });
        // From before the first commit to well into them.
        thread::sleep(Duration::from_micros(random.random_range(0..150_000)));
        committing.kill().unwrap();
        committing.wait().unwrap();
        answered.extend(reader.join().unwrap());

        let found = runtime.block_on(async {
            let store = Store::open(&database).unwrap();
            let found = progress(&store).await;
            store.close().await;
            found
        });
        for (caller, number) in &answered {
            let there = found.get(caller).copied().unwrap_or(0);
            // One more may have become durable without its answer being heard.
            assert!(
                there == *number || there == number + 1,
                "seed {seed}, kill {kill}: caller {caller} was answered {number}, found {there}"
            );
        }
        for (caller, number) in found {
            assert!(
                answered.get(&caller).copied().unwrap_or(0) + 1 >= number,
                "seed {seed}, kill {kill}: caller {caller} has {number} without an answer"
            );
            answered.insert(caller, number);
        }
    }
    let commits: u64 = answered.values().sum();
    println!("{KILLS} kills, {commits} commits");
    assert!(commits > KILLS, "the children did commit");
}

#[test]
#[ignore = "the child of what_was_answered_survives_kill_9"]
fn child_that_commits_until_it_is_killed() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    runtime.block_on(async {
        let store = Store::open(&database_of_child()).unwrap();
        let done = progress(&store).await;
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let done = done.get(&caller).copied();
                tokio::spawn(commit_for_ever(store.clone(), caller, done))
            })
            .collect();
        for caller in callers {
            caller.await.unwrap();
        }
    });
}

async fn commit_for_ever(store: Store, caller: u8, done: Option<u64>) {
    let mut lease = Lease::new(hash(caller), 0, Rate::FREE);
    let mut number = 0;
    if let Some(done) = done {
        number = done;
        lease = store.lease(hash(caller)).await.unwrap().unwrap().lease;
        assert!(matches!(lease.state(), LeaseState::Running(_)));
    } else {
        lease.begin(BOOT, Millis(0)).unwrap();
    }
    loop {
        number += 1;
        assert_eq!(lease.charge(Millis(number * 1000), 0).amount, 0);
        let paid =
            Transaction::transfer(number, Reason::Charge, account(caller), Account::Earned, 1);
        let upload = StoredUpload {
            upload_json: "{}".into(),
            images_json: "[]".into(),
        };
        let batch = Batch::from(paid.unwrap()).new_lease(lease, upload).meta(
            &format!("caller {caller}"),
            Some(number.to_be_bytes().to_vec()),
        );
        store.commit(batch).await.unwrap();
        // One write for the line, so that it is whole or not there.
        let line = format!("answered {caller} {number} .\n");
        std::io::stdout().write_all(line.as_bytes()).unwrap();
    }
}

#[test]
fn a_full_disk_is_said_and_goes_away_with_its_cause() {
    let dir = tempfile::tempdir().unwrap();
    // A small file system that only the child sees. Mounting needs root.
    let script = r#"mount -t tmpfs -o size=1m tmpfs "$1" && shift && exec "$@""#;
    let inner = child("child_on_a_small_disk", &dir.path().join("codius.db"));
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(dir.path())
        .arg(inner.get_program())
        .args(inner.get_args())
        .env(DATABASE, dir.path().join("codius.db"))
        .output()
        .expect("unshare is in the package util-linux");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "needs root for `unshare --mount`: {text}"
    );
}

#[test]
#[ignore = "the child of a_full_disk_is_said_and_goes_away_with_its_cause"]
fn child_on_a_small_disk() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let database = database_of_child();
    let ballast = database.with_file_name("ballast");
    runtime.block_on(async {
        let store = Store::open(&database).unwrap();
        std::fs::write(&ballast, vec![0; 300_000]).unwrap();
        let mut written = 0i64;
        let error = loop {
            let paid =
                Transaction::transfer(0, Reason::Packet, Account::Parent, Account::Earned, 1);
            let batch = Batch::from(paid.unwrap())
                .meta(&format!("filler {written}"), Some(vec![1; 10_000]));
            match store.commit(batch).await {
                Ok(()) => written += 1,
                Err(error) => break error,
            }
            assert!(written < 10_000, "the disk is small");
        };
        assert!(matches!(error, StoreError::DiskFull { .. }), "{error:?}");
        assert!(written > 0);
        // Nothing half, nothing lost, and reading goes on.
        assert_eq!(store.earned_total().await.unwrap(), written);
        // With room again, everything goes on without a restart.
        std::fs::remove_file(&ballast).unwrap();
        let paid = Transaction::transfer(0, Reason::Packet, Account::Parent, Account::Earned, 1);
        store.commit(paid.unwrap()).await.unwrap();
        assert_eq!(store.earned_total().await.unwrap(), written + 1);
        store.close().await;
        let store = Store::open(&database).unwrap();
        store.verify().await.unwrap();
        assert_eq!(
            store.load().await.unwrap().meta.len(),
            usize::try_from(written).unwrap()
        );
    });
}

#[test]
fn after_a_write_error_nothing_more_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("codius.db");
    // Writes beyond the limit fail with EFBIG, which SQLite cannot tell from a broken disk.
    let script = r#"trap "" XFSZ && ulimit -f 512 && exec "$@""#;
    let inner = child("child_on_a_broken_disk", &database);
    let output = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(inner.get_program())
        .args(inner.get_args())
        .env(DATABASE, &database)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");

    // A new start finds what is durable.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let store = Store::open(&database).unwrap();
        store.verify().await.unwrap();
        let written = store.earned_total().await.unwrap();
        let fillers = store.load().await.unwrap().meta.len();
        assert_eq!(usize::try_from(written).unwrap(), fillers);
        assert!(written > 0);
    });
}

#[test]
#[ignore = "the child of after_a_write_error_nothing_more_is_written"]
fn child_on_a_broken_disk() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let store = Store::open(&database_of_child()).unwrap();
        let batch = |number: i64| {
            let paid =
                Transaction::transfer(0, Reason::Packet, Account::Parent, Account::Earned, 1);
            Batch::from(paid.unwrap()).meta(&format!("{number}"), Some(vec![1; 10_000]))
        };
        let mut written = 0;
        let error = loop {
            match store.commit(batch(written)).await {
                Ok(()) => written += 1,
                Err(error) => break error,
            }
            assert!(written < 10_000, "the limit is small");
        };
        assert!(matches!(error, StoreError::Failed { .. }), "{error:?}");
        // Who holds it hears of it, however late he asks.
        store.poisoned().await;
        let error = store.commit(Batch::new()).await.unwrap_err();
        assert!(matches!(error, StoreError::Poisoned), "{error}");
        let error = store.prune(0, 1).await.unwrap_err();
        assert!(matches!(error, StoreError::Poisoned), "{error}");
        // What was answered can still be read.
        assert_eq!(store.earned_total().await.unwrap(), written);
    });
}

#[test]
fn a_read_only_file_system_is_said_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("codius.db");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async { Store::open(&database).unwrap().close().await });
    let script = r#"mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@""#;
    let inner = child("child_on_a_read_only_disk", &database);
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(dir.path())
        .arg(inner.get_program())
        .args(inner.get_args())
        .env(DATABASE, &database)
        .output()
        .expect("unshare is in the package util-linux");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "needs root for `unshare --mount`: {text}"
    );
}

#[test]
#[ignore = "the child of a_read_only_file_system_is_said_at_the_start"]
fn child_on_a_read_only_disk() {
    match Store::open(&database_of_child()) {
        Err(StoreError::Open { source, .. }) => {
            assert_eq!(source.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        }
        other => panic!("{other:?}"),
    }
}
