//! A pod whose money is used up is held still, and goes on for whoever pays in time.

mod support;

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use codius_api::{LeaseEventKind, Phase, v2::LeaseState};
use codius_manifest::ManifestHash;
use serde_json::{Value, json};
use support::{Settings, World, document, hash_of, shell};
use tokio::time::{Instant, sleep, timeout};

const PRICE_LIMIT: u64 = 1_000_000_000;
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_without_money_is_held_still_and_goes_on_for_who_pays() -> Result<()> {
    held_still(false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_without_money_is_held_still_and_goes_on_for_who_pays() -> Result<()> {
    held_still(true).await
}

async fn held_still(warm: bool) -> Result<()> {
    let mut world = World::start(Settings {
        warm,
        grace_secs: 25,
        on_shutdown: "leave",
        ..Settings::default()
    })?;
    let busybox = world.busybox().await?;
    let wallet = world.wallet().await?;
    let serve = "mkdir -p /www && cat /proc/sys/kernel/random/uuid > /www/id && \
                 ln -s /dev/codius/lease.json /www/lease && exec httpd -f -p 8080 -h /www";
    let upload = document("frozen", Some(8080), json!([shell("web", &busybox, serve)]));
    let hash = hash_of(&upload);

    // Given a program that is paid for some seconds, and told so.
    world.warmed().await?;
    let client = world.client();
    let first = client.upload(&upload, 8, &wallet, PRICE_LIMIT).await?;
    let mut events = client.events(&hash).await?;
    let (status, id) = world.visit(&hash.to_string(), "/id").await?;
    ensure!(status == 200, "{status} {id}");
    let lease = told(&world, &hash, first.reply.expiry.get()).await?;
    ensure!(lease.is_some(), "the pod is not told until when it is paid");
    let machines = world.machines();
    ensure!(machines.len() == 1);
    ensure!(world.log().contains(&format!("cloned={warm}")));

    // When the money is used up, it is announced, and the pod is held still.
    until(&mut events, |kind| {
        matches!(kind, LeaseEventKind::Expiring { .. })
    })
    .await?;
    until(&mut events, |kind| {
        matches!(kind, LeaseEventKind::Frozen { .. })
    })
    .await?;
    let shown = client.lease(&hash).await?;
    ensure!(
        shown.state == LeaseState::Frozen && shown.frozen_until.is_some() && shown.url.is_none(),
        "{shown:?}"
    );
    ensure!(state_of(machines[0])? == 'T', "its machine runs unpaid");
    let (status, body) = world.visit(&hash.to_string(), "/id").await?;
    ensure!(status == 503 && body.contains("used up"), "{status} {body}");
    let logs = client.logs(&hash, false).await?.text().await?;
    ensure!(
        logs.contains("[codius] paid until") && logs.contains("the pod is held still"),
        "{logs}"
    );

    // A host that is killed finds it so, and neither runs it nor forgets it.
    world.kill()?;
    world.run()?;
    let client = world.client();
    ensure!(client.lease(&hash).await?.state == LeaseState::Frozen);
    ensure!(state_of(machines[0])? == 'T', "its machine runs unpaid");

    // Who pays lets it go on: the same pod.
    let mut events = client.events(&hash).await?;
    let wallet = world.wallet().await?;
    let second = client.extend(&hash, 30, &wallet, PRICE_LIMIT).await?;
    until(&mut events, |kind| {
        matches!(kind, LeaseEventKind::Phase(Phase::Running { .. }))
    })
    .await?;
    let deadline = Instant::now() + PATIENCE;
    let again = loop {
        match world.visit(&hash.to_string(), "/id").await? {
            (200, again) => break again,
            (status, body) => ensure!(Instant::now() < deadline, "{status} {body}"),
        }
        sleep(Duration::from_millis(100)).await;
    };
    ensure!(
        again == id && world.machines() == machines,
        "it was started anew"
    );
    ensure!(client.lease(&hash).await?.state == LeaseState::Running);
    let deadline = Instant::now() + PATIENCE;
    while told(&world, &hash, second.reply.expiry.get())
        .await?
        .is_none()
    {
        ensure!(Instant::now() < deadline, "the pod is not told the new end");
        sleep(Duration::from_millis(100)).await;
    }

    // Nobody pays any more: after the grace it is gone, and all that was paid was earned.
    let mut events = client.events(&hash).await?;
    until(&mut events, |kind| {
        matches!(kind, LeaseEventKind::Frozen { .. })
    })
    .await?;
    until(&mut events, |kind| {
        matches!(kind, LeaseEventKind::Ended { .. })
    })
    .await?;
    world.nothing_remains().await?;
    world.stop()?;
    let paid = i64::try_from(first.receipt.paid + second.receipt.paid)?;
    let balances = world.balances().await?;
    let of = |kind: &str| -> i64 {
        let of_kind = balances.iter().filter(|(name, _)| name.starts_with(kind));
        of_kind.map(|(_, balance)| balance).sum()
    };
    // Each of the two prices was rounded up; what is too little for a millisecond is owed.
    ensure!(
        of("local:") == -paid && of("earned") + of("owed:") == paid && of("owed:") <= 3,
        "{balances:?}"
    );
    Ok(())
}

/// What the pod knows of its expiry, if that is right.
async fn told(world: &World, hash: &ManifestHash, expiry: u64) -> Result<Option<u64>> {
    let (status, text) = world.visit(&hash.to_string(), "/lease").await?;
    ensure!(status == 200, "{status} {text}");
    let lease: Value = serde_json::from_str(&text)?;
    let told = lease["expires_at_unix_ms"].as_u64().context("no expiry")?;
    // The time that the pod was held still moves the expiry, and clocks are read one after the other.
    Ok((told.abs_diff(expiry) < 2000).then_some(told))
}

async fn until(
    events: &mut codius_client::Events,
    wanted: impl Fn(&LeaseEventKind) -> bool,
) -> Result<()> {
    let come = async {
        while let Some(event) = events.next().await {
            if wanted(&event.kind) {
                return true;
            }
        }
        false
    };
    ensure!(
        timeout(Duration::from_secs(60), come).await?,
        "the events ended too early"
    );
    Ok(())
}

/// As `ps` shows it; `T` is stopped.
fn state_of(process: u32) -> Result<char> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, after_name) = stat.rsplit_once(')').context("no name")?;
    after_name.trim_start().chars().next().context("no state")
}
