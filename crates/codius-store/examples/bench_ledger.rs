//! `cargo run --release -p codius-store --example bench_ledger`: how many durable commits a second,
//! and what a ledger of a million entries costs.
//!
//! A commit is one transfer between two accounts; it counts when it is durable. The yardstick is the
//! same disk and the same SQLite with one `fsync` for each commit (one caller), so that the ratio is
//! what group commit gives. Prints one JSON line a figure.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on stops")]

use std::{
    path::Path,
    time::{Duration, Instant},
};

use codius_ledger::{Account, EndReason, Lease, Millis, Rate, Reason, Seconds, Transaction};
use codius_manifest::ManifestHash;
use codius_store::{Batch, Store, StoredUpload};

const RUNS: usize = 7;
const RUN_TIME: Duration = Duration::from_millis(1500);
const ENTRIES: u64 = 1_000_000;
const PAST_LEASES: u64 = 10_000;

fn main() {
    let dir = std::env::args()
        .nth(1)
        .map_or_else(std::env::temp_dir, Into::into);
    let dir = tempfile::tempdir_in(dir).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    runtime.block_on(commits(dir.path()));
    runtime.block_on(size(dir.path()));
}

/// Alternating, so that whatever else the machine does meets all of them.
async fn commits(dir: &Path) {
    let mut rates = [Vec::new(), Vec::new(), Vec::new()];
    for run in 0..RUNS {
        for (rates, callers) in rates.iter_mut().zip([1, 64, 512]) {
            let path = dir.join(format!("{run}-{callers}.db"));
            let store = Store::open(&path).unwrap();
            rates.push(commits_per_second(&store, callers).await);
            store.verify().await.unwrap();
            store.close().await;
        }
    }
    let [one, many, most] = rates.map(median);
    eprintln!("one caller, one fsync for each commit: {one:.0} commits a second");
    line(
        "ledger/commits-64-callers",
        many,
        many / one,
        ">= 5",
        many / one >= 5.0,
    );
    line(
        "ledger/commits-512-callers",
        most,
        most / one,
        ">= 25000 a second",
        most >= 25_000.0,
    );
}

async fn commits_per_second(store: &Store, callers: u16) -> f64 {
    let until = Instant::now() + RUN_TIME;
    let start = Instant::now();
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let store = store.clone();
            let account = Account::Local(caller.to_string().parse().unwrap());
            tokio::spawn(async move {
                let mut done = 0u32;
                while Instant::now() < until {
                    store
                        .commit(paid(account.clone(), Account::Earned))
                        .await
                        .unwrap();
                    done += 1;
                }
                done
            })
        })
        .collect();
    let mut done = 0;
    for task in tasks {
        done += task.await.unwrap();
    }
    f64::from(done) / start.elapsed().as_secs_f64()
}

fn paid(from: Account, to: Account) -> Transaction {
    Transaction::transfer(0, Reason::Packet, from, to, 1)
        .unwrap()
        .with_reference([7; 32])
}

/// Start-up, a charge and a status question with much history against the same with none.
async fn size(dir: &Path) {
    let small = dir.join("small.db");
    Store::open(&small).unwrap().close().await;
    let large = dir.join("large.db");
    fill(&large).await;

    let mut times = [const { [Vec::new(), Vec::new(), Vec::new()] }; 2];
    let mut verify = Vec::new();
    for _ in 0..RUNS {
        let mut stores = Vec::new();
        for (path, times) in [&small, &large].into_iter().zip(&mut times) {
            let start = Instant::now();
            let store = Store::open(path).unwrap();
            store.load().await.unwrap();
            times[0].push(start.elapsed().as_secs_f64());
            stores.push(store);
        }
        // One after the other, so that a slow moment of the disk meets both.
        for number in 0..200 {
            for (store, times) in stores.iter().zip(&mut times) {
                let start = Instant::now();
                store
                    .commit(paid(Account::Parent, Account::Earned))
                    .await
                    .unwrap();
                times[1].push(start.elapsed().as_secs_f64());

                let start = Instant::now();
                store.lease(hash(number)).await.unwrap();
                store.balance(&Account::Earned).await.unwrap();
                times[2].push(start.elapsed().as_secs_f64());
            }
        }
        let start = Instant::now();
        stores[1].verify().await.unwrap();
        verify.push(start.elapsed().as_secs_f64());
        for store in stores {
            store.close().await;
        }
    }
    let [
        [start_small, charge_small, status_small],
        [start, charge, status],
    ] = times.map(|times| times.map(median));
    line(
        "ledger/start-1m-entries",
        start,
        start / start_small,
        "< 2 s",
        start < 2.0,
    );
    let verify = median(verify);
    line(
        "ledger/verify-1m-entries",
        verify,
        verify / start,
        "< 5 s",
        verify < 5.0,
    );
    let ratio = charge / charge_small;
    line(
        "ledger/charge-1m-entries",
        charge,
        ratio,
        "<= 1.5",
        ratio <= 1.5,
    );
    let ratio = status / status_small;
    line(
        "ledger/status-1m-entries",
        status,
        ratio,
        "<= 2",
        ratio <= 2.0,
    );
}

fn hash(number: u64) -> ManifestHash {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    ManifestHash::from_bytes(bytes)
}

async fn fill(path: &Path) {
    let store = Store::open(path).unwrap();
    for chunk in 0..ENTRIES / 2000 {
        let mut batch = Batch::new();
        for number in chunk * 2000..(chunk + 1) * 2000 {
            let account = Account::Local((number % 5000).to_string().parse().unwrap());
            batch = batch.transaction(paid(account, Account::Earned));
        }
        store.commit(batch).await.unwrap();
    }
    for chunk in 0..PAST_LEASES / 1000 {
        let mut batch = Batch::new();
        for number in chunk * 1000..(chunk + 1) * 1000 {
            let mut lease = Lease::new(hash(number), number, Rate::FREE);
            lease.extend(Seconds(60)).unwrap();
            let upload = StoredUpload {
                upload_json: "{}".into(),
                images_json: "[]".into(),
            };
            batch = batch.new_lease(lease, upload);
            // A hundred of them still run.
            if number >= 100 {
                let _ = lease.end(Millis(0), 0, EndReason::Expired).unwrap();
                batch = batch.lease(lease);
            }
        }
        store.commit(batch).await.unwrap();
    }
    store.close().await;
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn line(name: &str, median: f64, ratio: f64, aim: &str, met: bool) {
    println!(
        r#"{{"name":"{name}","median":{median:.6},"ratio":{ratio:.3},"aim":"{aim}","met":{met}}}"#
    );
}
