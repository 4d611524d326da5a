//! `cargo xtask bench ledger`: how many durable commits a second, and what a ledger of a million entries
//! and ten thousand past leases costs a host that starts or works with it.
//!
//! A commit is one transfer between two accounts; it counts when it is durable. The yardstick is the
//! same disk and the same SQLite with one `fsync` for each commit (one caller), so that the ratio is
//! what group commit gives. Beside the large ledger stands a small one, in the same run and in turn.
//! Prints one JSON line a figure.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on stops")]

use std::{
    path::Path,
    time::{Duration, Instant},
};

use codius_ledger::{
    Account, EndReason, Lease, Millis, Order, OrderId, OrderKind, OrderState, Rate, Reason,
    RequestDigest, Seconds, StoredResponse, Transaction,
};
use codius_manifest::ManifestHash;
use codius_store::{Batch, Store, StoredUpload};

const RUN_TIME: Duration = Duration::from_millis(1500);
/// Transactions, of two postings each.
const ENTRIES: u64 = 1_000_000;
const PAST_LEASES: u64 = 10_000;
/// Entries that nobody has added up yet when a host starts: what ten pods are charged in more than an
/// hour, many times over.
const UNSEEN: u64 = 100_000;
/// The most that a start may take, in seconds.
const START_LIMIT: f64 = 2.0;
/// Charges and questions in one run.
const STEPS: u64 = 200;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let after = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1)
    };
    let runs = after("--runs").map_or(7, |runs| runs.parse().unwrap());
    let dir = after("--dir").map_or_else(std::env::temp_dir, Into::into);
    let dir = tempfile::tempdir_in(dir).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    runtime.block_on(commits(dir.path(), runs));
    runtime.block_on(size(dir.path(), runs));
}

/// Alternating, so that whatever else the machine does meets all of them.
async fn commits(dir: &Path, runs: usize) {
    let mut rates = [Vec::new(), Vec::new(), Vec::new()];
    for run in 0..runs {
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

/// Start-up, a charge and a status question with much history against the same with little.
async fn size(dir: &Path, runs: usize) {
    let paths = [dir.join("small.db"), dir.join("large.db")];
    fill(&paths[0], 1000, 100).await;
    fill(&paths[1], ENTRIES, PAST_LEASES).await;

    let [mut starts, mut charges, mut questions] = [const { [Vec::new(), Vec::new()] }; 3];
    let (mut unseen, mut full) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let mut stores = Vec::new();
        for (path, times) in paths.iter().zip(&mut starts) {
            let (store, time) = start(path).await;
            times.push(time);
            stores.push(store);
        }
        // One after the other, so that a slow moment of the disk meets both.
        let mut times = [const { [Vec::new(), Vec::new()] }; 2];
        for number in 0..STEPS {
            for (at, store) in stores.iter().enumerate() {
                let mut lease = store
                    .lease(hash(number % RUNNING))
                    .await
                    .unwrap()
                    .unwrap()
                    .lease;
                lease.extend(Seconds(1)).unwrap();
                let begun = Instant::now();
                let batch = Batch::from(paid(Account::Lease(lease.hash()), Account::Earned));
                store.commit(batch.lease(lease)).await.unwrap();
                times[0][at].push(begun.elapsed().as_secs_f64());

                let begun = Instant::now();
                store.lease(hash(number % RUNNING)).await.unwrap();
                store.balance(&Account::Earned).await.unwrap();
                times[1][at].push(begun.elapsed().as_secs_f64());
            }
        }
        let [charge, question] = times;
        for (at, values) in charge.into_iter().enumerate() {
            charges[at].push(median(values));
        }
        for (at, values) in question.into_iter().enumerate() {
            questions[at].push(median(values));
        }
        let begun = Instant::now();
        stores[1].check_all().await.unwrap();
        full.push(begun.elapsed().as_secs_f64());
        for store in stores {
            store.close().await;
        }

        // As after a crash: much was written that nobody has added up yet.
        let store = Store::open(&paths[1]).unwrap();
        entries(&store, UNSEEN).await;
        store.close().await;
        let (store, time) = start(&paths[1]).await;
        unseen.push(time);
        store.close().await;
    }
    let ratio = pairs(&starts[1], &starts[0]);
    let time = median(starts[1].clone());
    line(
        "ledger/start-1m-entries",
        time,
        ratio,
        "< 2 s",
        time < START_LIMIT,
    );
    let ratio = pairs(&unseen, &starts[0]);
    let time = median(unseen);
    line(
        "ledger/start-100k-unseen-entries",
        time,
        ratio,
        "< 2 s",
        time < START_LIMIT,
    );
    let ratio = pairs(&charges[1], &charges[0]);
    let time = median(charges[1].clone());
    line(
        "ledger/charge-1m-entries",
        time,
        ratio,
        "ratio <= 1.5",
        ratio <= 1.5,
    );
    let ratio = pairs(&questions[1], &questions[0]);
    let time = median(questions[1].clone());
    line(
        "ledger/status-1m-entries",
        time,
        ratio,
        "ratio <= 1.5",
        ratio <= 1.5,
    );
    let ratio = pairs(&full, &starts[1]);
    let time = median(full);
    line(
        "ledger/add-up-1m-entries",
        time,
        ratio,
        "< 10 s, beside the work",
        time < 10.0,
    );
}

/// As a host starts: opened, loaded, added up as far as it is new.
async fn start(path: &Path) -> (Store, f64) {
    let begun = Instant::now();
    let store = Store::open(path).unwrap();
    store.load().await.unwrap();
    store.check().await.unwrap();
    let time = begun.elapsed().as_secs_f64();
    (store, time)
}

/// The median of the ratios of what was measured in turn.
fn pairs(ours: &[f64], theirs: &[f64]) -> f64 {
    median(
        ours.iter()
            .zip(theirs)
            .map(|(ours, theirs)| ours / theirs)
            .collect(),
    )
}

fn hash(number: u64) -> ManifestHash {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    ManifestHash::from_bytes(bytes)
}

/// Leases that still run.
const RUNNING: u64 = 50;

async fn fill(path: &Path, transactions: u64, leases: u64) {
    let store = Store::open(path).unwrap();
    entries(&store, transactions).await;
    for chunk in (0..leases).step_by(100) {
        let mut batch = Batch::new();
        for number in chunk..chunk + 100 {
            let mut lease = Lease::new(hash(number), number, Rate::FREE);
            lease.extend(Seconds(60)).unwrap();
            let upload = StoredUpload {
                upload_json: "{}".into(),
                images_json: "[]".into(),
            };
            batch = batch.new_lease(lease, upload);
            // Paid and answered, so that there are as many orders and accounts.
            let mut order = Order {
                id: OrderId::of_token(&number.to_be_bytes()),
                request: RequestDigest::from_bytes([1; 32]),
                hash: hash(number),
                kind: OrderKind::Upload,
                duration: Seconds(60),
                price: 1_000_000,
                state: OrderState::Open,
                payer: None,
                created_at_unix_ms: number,
            };
            let account = Account::Order(order.id);
            let response = StoredResponse {
                status: 200,
                body: "{}".into(),
            };
            order.complete(response).unwrap();
            let amount = 1_000_000;
            let paid =
                |from, to| Transaction::transfer(0, Reason::Payment, from, to, amount).unwrap();
            batch = batch
                .order(order)
                .transaction(paid(Account::Parent, account.clone()))
                .transaction(paid(account, Account::Lease(hash(number))));
            if number >= RUNNING {
                let _ = lease.end(Millis(0), 0, EndReason::Expired).unwrap();
                batch = batch
                    .lease(lease)
                    .transaction(paid(Account::Lease(hash(number)), Account::Earned));
            }
        }
        store.commit(batch).await.unwrap();
    }
    store.check_all().await.unwrap();
    store.close().await;
}

/// Writes so many transactions, of two postings each.
async fn entries(store: &Store, transactions: u64) {
    for chunk in (0..transactions).step_by(500) {
        let mut batch = Batch::new();
        for number in chunk..chunk + 500 {
            let account = Account::Local((number % 5000).to_string().parse().unwrap());
            batch = batch.transaction(paid(account, Account::Earned));
        }
        store.commit(batch).await.unwrap();
    }
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
