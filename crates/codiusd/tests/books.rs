//! What the operator does with the books of a real host: reads them, empties the host, copies it.

mod support;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use codius_api::{ErrorBody, FailureCause, LeaseEventKind, Trouble};
use codius_client::ClientError;
use codius_ledger::{Account, LeaseState};
use codius_store::Store;
use serde_json::{Value, json};
use support::{Settings, World, document, hash_of, shell};

const PRICE_LIMIT: u64 = 1_000_000_000;
const PATIENCE: Duration = Duration::from_secs(60);

fn codiusd(data_dir: &Path, arguments: &[&str]) -> Result<Output> {
    let output = Command::new(env!("CARGO_BIN_EXE_codiusd"))
        .args(arguments)
        .arg("--data-dir")
        .arg(data_dir)
        .output()?;
    Ok(output)
}

/// What it prints, if it did what it was asked.
fn said(data_dir: &Path, arguments: &[&str]) -> Result<String> {
    let output = codiusd(data_dir, arguments)?;
    ensure!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Why it did not.
fn refused(data_dir: &Path, arguments: &[&str]) -> Result<String> {
    let output = codiusd(data_dir, arguments)?;
    ensure!(!output.status.success(), "{arguments:?} was done");
    Ok(String::from_utf8(output.stderr)?)
}

fn amount(value: &Value) -> Result<i128> {
    Ok(value.as_str().context("an amount is text")?.parse()?)
}

/// The balance of a kind of account, zero if there is none.
fn balance(summary: &Value, kind: &str) -> Result<i128> {
    match &summary["balances"][kind]["balance"] {
        Value::Null => Ok(0),
        found => amount(found),
    }
}

fn summary(data_dir: &Path) -> Result<Value> {
    Ok(serde_json::from_str(&said(
        data_dir,
        &["ledger", "--json"],
    )?)?)
}

fn lines(text: &str) -> Result<Vec<Value>> {
    text.lines()
        .map(|line| Ok(serde_json::from_str(line)?))
        .collect()
}

fn trouble(error: &ClientError) -> Option<(u16, Trouble)> {
    match error {
        ClientError::Refused { body, .. } => match &**body {
            ErrorBody {
                status_code,
                cause: Some(FailureCause::Known(trouble)),
                ..
            } => Some((*status_code, *trouble)),
            ErrorBody { .. } => None,
        },
        _ => None,
    }
}

async fn info(world: &World) -> Result<Value> {
    Ok(reqwest::get(format!("{}/info", world.api))
        .await?
        .json()
        .await?)
}

/// Given a host with a lease that runs and one that could not be started, when the operator reads the
/// books, then they say what was paid, and say the same whether the host runs or not.
#[tokio::test(flavor = "multi_thread")]
async fn the_books_say_where_all_money_is() -> Result<()> {
    let mut world = World::start(Settings {
        port_timeout_secs: 6,
        on_shutdown: "leave",
        ..Settings::default()
    })?;
    let busybox = world.busybox().await?;
    let program = document("runs", None, json!([shell("app", &busybox, "sleep 1000")]));
    let wallet = world.wallet().await?;
    world
        .client()
        .upload(&program, 600, &wallet, PRICE_LIMIT)
        .await?;
    let first = wallet.moved();
    let broken = document(
        "broken",
        Some(8080),
        json!([shell("app", &busybox, "exit 3")]),
    );
    let failed = world
        .client()
        .upload(&broken, 60, &wallet, PRICE_LIMIT)
        .await;
    ensure!(failed.is_err());
    let second = wallet.moved();

    let data = world.data_dir();
    let books = summary(&data)?;
    ensure!(
        books["asset"] == json!({ "code": "XRP", "scale": 9 }),
        "{books}"
    );
    ensure!(books["sum"] == "0", "{books}");
    let spent: i128 = [first, second]
        .iter()
        .map(|moved| i128::from(moved.paid) - i128::from(moved.refunded))
        .sum();
    ensure!(
        balance(&books, "local")? == -spent,
        "{books}, {first:?}, {second:?}"
    );
    let held = balance(&books, "lease")? + balance(&books, "owed")? + balance(&books, "order")?;
    ensure!(held + amount(&books["earned"])? == spent, "{books}");
    let text = said(&data, &["ledger"])?;
    ensure!(
        text.contains("sums to zero") && text.contains("10^-9 XRP"),
        "{text}"
    );

    // Each lease: what came in is what it cost, what was taken out, and what is left.
    let leases = lines(&said(&data, &["ledger", "leases", "--json"])?)?;
    ensure!(leases.len() == 2, "{leases:?}");
    for lease in &leases {
        let sum =
            amount(&lease["charged"])? + amount(&lease["unused"])? + amount(&lease["balance"])?;
        ensure!(amount(&lease["paid"])? == sum, "{lease}");
    }
    ensure!(
        leases[0]["manifest_hash"] == hash_of(&program).to_string(),
        "{leases:?}"
    );
    ensure!(leases[0]["state"] == "running" && leases[1]["end_reason"] == "start_failed");
    let table = said(&data, &["ledger", "leases"])?;
    ensure!(table.contains("ended: start_failed"), "{table}");

    // Every posting, and by account.
    let entries = lines(&said(&data, &["ledger", "entries", "--json"])?)?;
    let sum: i128 = entries
        .iter()
        .map(|entry| amount(&entry["amount"]))
        .sum::<Result<i128>>()?;
    ensure!(sum == 0 && entries.len() > 4, "{entries:?}");
    let csv = said(
        &data,
        &["ledger", "entries", "--account", "local:clients", "--csv"],
    )?;
    let mut rows = csv.split("\r\n");
    ensure!(
        rows.next()
            == Some(
                "transaction,at,account,reason,amount_units,packets,reference,asset_code,asset_scale"
            ),
        "{csv}"
    );
    let of_clients: i128 = rows
        .filter(|row| !row.is_empty())
        .map(|row| {
            let columns: Vec<&str> = row.split(',').collect();
            ensure!(
                columns[2] == "local:clients" && columns[7..] == ["XRP", "9"],
                "{row}"
            );
            Ok(columns[4].parse::<i128>()?)
        })
        .sum::<Result<i128>>()?;
    ensure!(of_clients == -spent, "{csv}");
    let period = said(
        &data,
        &[
            "ledger",
            "--csv",
            "--since",
            "2000-01-01",
            "--until",
            "2001-01-01",
        ],
    )?;
    ensure!(!period.contains("in_period"), "{period}");
    ensure!(said(&data, &["ledger", "verify"])?.contains("adds up"));
    ensure!(refused(&data, &["ledger", "--since", "yesterday"])?.contains("2026-11-28T18:00:00Z"));

    // The same with no host there.
    world.stop()?;
    let still = summary(&data)?;
    ensure!(
        still["sum"] == "0" && balance(&still, "local")? == -spent,
        "{still}"
    );
    ensure!(lines(&said(&data, &["ledger", "leases", "--json"])?)?.len() == 2);
    ensure!(said(&data, &["ledger", "verify"])?.contains("adds up"));
    let nowhere = refused(&data.join("nowhere"), &["ledger"])?;
    ensure!(nowhere.contains("--data-dir"), "{nowhere}");
    world.run()?;
    world.stop()
}

/// Given a running lease, when the host is drained, then nothing is sold, owners are told, it holds
/// over a restart, and at the end the rest is owed.
#[tokio::test(flavor = "multi_thread")]
async fn a_drained_host_sells_nothing_and_owes_the_rest() -> Result<()> {
    let mut world = World::start(Settings {
        on_shutdown: "leave",
        ..Settings::default()
    })?;
    let busybox = world.busybox().await?;
    let program = document("runs", None, json!([shell("app", &busybox, "sleep 1000")]));
    let other = document("other", None, json!([shell("app", &busybox, "sleep 1000")]));
    let hash = hash_of(&program);
    let wallet = world.wallet().await?;
    let client = world.client();
    client.upload(&program, 600, &wallet, PRICE_LIMIT).await?;
    let data = world.data_dir();
    ensure!(said(&data, &["drain", "--status"])?.starts_with("Not draining; 1 lease"));
    ensure!(info(&world).await?["acceptingUploads"] == true);

    let text = said(&data, &["drain"])?;
    ensure!(
        text.starts_with("Draining since") && text.contains("1 lease has not"),
        "{text}"
    );
    ensure!(info(&world).await?["acceptingUploads"] == false);
    let v2: Value = reqwest::get(format!("{}/api/v2/host", world.api))
        .await?
        .json()
        .await?;
    ensure!(v2["capacity"]["accepting_uploads"] == false, "{v2}");
    let paid = wallet.moved().paid;
    let expected = Some((503, Trouble::HostDraining));
    let error = client.upload(&other, 60, &wallet, PRICE_LIMIT).await.err();
    ensure!(error.as_ref().and_then(trouble) == expected, "{error:?}");
    let error = client
        .upload(&program, 60, &wallet, PRICE_LIMIT)
        .await
        .err();
    ensure!(error.as_ref().and_then(trouble) == expected, "{error:?}");
    let error = client.extend(&hash, 60, &wallet, PRICE_LIMIT).await.err();
    ensure!(error.as_ref().and_then(trouble) == expected, "{error:?}");
    ensure!(wallet.moved().paid == paid, "nothing was taken");
    let logs = client.logs(&hash, false).await?.text().await?;
    ensure!(logs.contains("this host is being drained"), "{logs}");

    // It holds over a restart, and the pod goes on.
    let machines = world.machines();
    world.stop()?;
    world.run()?;
    ensure!(world.machines() == machines);
    let client = world.client();
    let wallet = world.wallet().await?;
    let error = client.upload(&other, 60, &wallet, PRICE_LIMIT).await.err();
    ensure!(error.as_ref().and_then(trouble) == expected, "{error:?}");
    ensure!(summary(&data)?["draining"]["since"].is_string());

    // Undone, with another lease; then to an end.
    ensure!(said(&data, &["drain", "--undo"])?.starts_with("Not draining"));
    client.upload(&other, 600, &wallet, PRICE_LIMIT).await?;
    let mut events = client.events(&hash).await?;
    let text = said(&data, &["drain", "--at", "2026-01-01T00:00:00Z", "--wait"])?;
    ensure!(text.contains("No lease is left"), "{text}");
    let mut told = Vec::new();
    while let Some(event) = tokio::time::timeout(PATIENCE, events.next()).await? {
        told.push(event.kind);
    }
    ensure!(
        told.iter()
            .any(|kind| matches!(kind, LeaseEventKind::Draining { ends_at: Some(_) })),
        "{told:?}"
    );
    ensure!(
        told.last()
            == Some(&LeaseEventKind::Ended {
                reason: codius_api::EndReason::HostStopped
            }),
        "{told:?}"
    );
    world.nothing_remains().await?;
    let books = summary(&data)?;
    ensure!(
        balance(&books, "lease")? == 0 && balance(&books, "owed")? > 0,
        "{books}"
    );
    world.stop()?;

    // What is owed did not become the operator's.
    let balances: std::collections::BTreeMap<_, _> = world.balances().await?.into_iter().collect();
    let owed: i64 = [hash, hash_of(&other)]
        .iter()
        .map(|hash| {
            balances
                .get(&Account::Owed(*hash).to_string())
                .copied()
                .unwrap_or(0)
        })
        .sum();
    let spent = -balances["local:clients"];
    ensure!(
        owed + balances.get("earned").copied().unwrap_or(0) == spent,
        "{balances:?}"
    );
    Ok(())
}

/// Given a backup of a working host, when it is restored elsewhere and started there, then it is the
/// same host with the same money, and its lease goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_the_host_in_another_place() -> Result<()> {
    let mut world = World::start(Settings {
        on_shutdown: "leave",
        ..Settings::default()
    })?;
    let busybox = world.busybox().await?;
    let program = document("runs", None, json!([shell("app", &busybox, "sleep 1000")]));
    let hash = hash_of(&program);
    let wallet = world.wallet().await?;
    world
        .client()
        .upload(&program, 600, &wallet, PRICE_LIMIT)
        .await?;
    let place = tempfile::tempdir()?;
    let copy = place.path().join("backup.db");
    let file = copy.to_str().context("a path is text")?;
    let text = said(&world.data_dir(), &["backup", file])?;
    ensure!(text.contains("add up"), "{text}");
    ensure!(refused(&world.data_dir(), &["backup", file])?.contains("--force"));
    let text = refused(&world.data_dir(), &["restore", file])?;
    ensure!(text.contains("in use"), "{text}");

    // The first host is gone, with its pods.
    world.settings.on_shutdown = "stop";
    world.stop()?;
    world.run()?;
    world.stop()?;
    world.nothing_remains().await?;
    let elsewhere = world.data_dir();
    let first = place.path().join("first");
    fs::rename(&elsewhere, &first)?;
    let text = said(&elsewhere, &["restore", file])?;
    ensure!(text.contains("never start both"), "{text}");
    let (secret, before) = {
        let store = Store::open(&elsewhere.join("codius.db"))?;
        let snapshot = store.load().await?;
        let lease = snapshot.leases.first().context("no lease")?;
        ensure!(matches!(lease.lease.state(), LeaseState::Running(_)));
        store.close().await;
        (snapshot.secrets["host"], snapshot.balances)
    };
    let first = Store::open(&first.join("codius.db"))?;
    ensure!(first.load().await?.secrets["host"] == secret);
    first.close().await;

    // Started again by itself.
    world.run()?;
    let deadline = Instant::now() + PATIENCE;
    while world.client().pod(&hash).await.is_err() {
        if Instant::now() > deadline {
            bail!("the lease does not go on:\n{}", world.log());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ensure!(world.machines().len() == 1);
    world.logged("is started again", 0).await?;
    world.stop()?;
    let after: std::collections::BTreeMap<_, _> = world.balances().await?.into_iter().collect();
    let of = |account: &Account| before.get(account).copied().unwrap_or(0);
    let clients: Account = "local:clients".parse()?;
    ensure!(after["local:clients"] == of(&clients), "{after:?}");
    // Time without the pod was not charged: 3805.2 units a second, for less than a minute since.
    let earned = after.get("earned").copied().unwrap_or(0) - of(&Account::Earned);
    ensure!((0..3806 * 120).contains(&earned), "{after:?}");
    Ok(())
}
