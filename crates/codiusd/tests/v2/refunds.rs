//! What a lease has not used when it ends by itself, and how its payer gets it.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use codius_api::v2::{LeaseReply, LeaseState, RefundReply, RefundState};
use codius_manifest::ManifestHash;
use codius_testkit::{Background, Listen};
use serde_json::{Value, json};

use crate::{
    account::Account,
    caller::{Call, Caller, Reply},
    document::conforms,
    pointer::Pointer,
    support::{PAYER, Settings, World, shell},
};

/// Refunds are tried again soon.
const IMPATIENT: &str = "[refunds]\nretry_secs = 1\nlongest_retry_secs = 2\n";
/// Above all waits between two tries, and the patience of one.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(90);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

fn settings() -> Settings {
    Settings {
        more: IMPATIENT.to_owned(),
        on_shutdown: "leave",
        ..Settings::default()
    }
}

/// A body that creates a lease of a program that ends after some seconds.
fn short_lived(name: &str, busybox: &str, seconds: u32) -> Value {
    let script = format!("sleep {seconds}");
    let manifest = json!({
        "name": name,
        "version": "1",
        "machine": "small",
        "containers": [shell("app", busybox, &script)],
    });
    json!({ "manifest": manifest, "private": {}, "duration_seconds": 3600 })
}

fn hash_of(wanted: &Value) -> ManifestHash {
    let posted = json!({ "manifest": wanted["manifest"], "private": wanted["private"] });
    crate::support::hash_of(&posted.to_string())
}

fn lease_of(reply: &Reply) -> Result<LeaseReply> {
    ensure!(reply.status == 200, "{reply:?}");
    conforms("Lease", &reply.json()?)?;
    Ok(serde_json::from_str(&reply.text)?)
}

fn drawn_of(reply: &Reply) -> Result<RefundReply> {
    ensure!(reply.status == 200, "{reply:?}");
    conforms("Refunded", &reply.json()?)?;
    Ok(serde_json::from_str(&reply.text)?)
}

/// Looks at a lease, as everybody or as its owner, until it is as wanted.
async fn until(
    world: &World,
    caller: &Caller,
    signed: bool,
    hash: &ManifestHash,
    is_wanted: impl Fn(&LeaseReply) -> bool,
) -> Result<LeaseReply> {
    let deadline = Instant::now() + ARRIVAL_TIMEOUT;
    loop {
        let look = Call::get(format!("/api/v2/leases/{hash}"));
        let reply = if signed {
            caller.signed(look).await?
        } else {
            caller.send(&look).await?
        };
        let lease = lease_of(&reply)?;
        if is_wanted(&lease) {
            return Ok(lease);
        }
        ensure!(Instant::now() < deadline, "{lease:?}\n{}", world.log());
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn refund_of(lease: &LeaseReply) -> Result<&RefundState> {
    lease.refund.as_ref().context("no refund is told of")
}

/// All the money that there is, after the host has ended: earned, and what the clients have paid for it.
async fn nobody_else_has_money(world: &World, earned: u64) -> Result<()> {
    let balances = world.balances().await?;
    let earned = i64::try_from(earned)?;
    let expected = [
        ("local:clients".to_owned(), -earned),
        ("earned".to_owned(), earned),
    ];
    ensure!(balances == expected, "{balances:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_used_arrives_once_at_the_pointer_though_that_is_down_at_first() -> Result<()> {
    let mut world = World::start(settings())?;
    let busybox = world.busybox().await?;
    let (owner, stranger) = (Caller::new(&world, 1)?, Caller::new(&world, 2)?);
    let account = Account::open(&world).await?;
    let pointer = Pointer::start().await?;

    // A pointer at a private address that is not this machine's is refused before anything is paid.
    let mut body = short_lived("by-itself", &busybox, 3);
    let hash = hash_of(&body);
    for bad in [
        "$10.0.0.1/alice",
        "http://host.example/",
        "$host.example?x",
        "nowhere",
    ] {
        body["refund_to"] = json!(bad);
        let call = Call::post("/api/v2/leases", &body).with_token();
        let refused = owner.send(&call).await?;
        ensure!(refused.status == 400, "{bad}: {refused:?}");
        conforms("Problem", &refused.json()?)?;
    }
    let old = json!({ "manifest": body["manifest"], "private": {} });
    let old = Call::post("/pods?duration=60", &old).with_token();
    let refused = owner
        .send(&old.header("Refund-To", "http://10.0.0.1/"))
        .await?;
    ensure!(refused.status == 400, "{refused:?}");

    // Given a lease whose program ends by itself, and whose payer's pointer is out of service,
    body["refund_to"] = json!(pointer.url);
    let creation = Call::post("/api/v2/leases", &body).with_token();
    lease_of(&owner.paid(&account, &creation, true).await?)?;
    let paid = account.paid();
    let told = until(&world, &owner, true, &hash, |lease| lease.refund.is_some()).await?;
    ensure!(
        refund_of(&told)?.to.as_deref() == Some(&pointer.url),
        "{told:?}"
    );
    let ended = until(&world, &stranger, false, &hash, |lease| {
        lease.state == LeaseState::Ended
    })
    .await?;

    // then what was not used is due, which everybody may know, and where it goes its owner alone;
    let refund = refund_of(&ended)?.clone();
    ensure!(refund.due.0 > 0 && refund.due.0 < paid, "{ended:?}");
    ensure!(refund.sent.0 == 0 && refund.next_try.is_some(), "{ended:?}");
    ensure!(refund.to.is_none() && refund.trouble.is_none(), "{ended:?}");
    ensure!(ended.owed.map(|owed| owed.0) == Some(0), "{ended:?}");
    let theirs = lease_of(
        &stranger
            .signed(Call::get(format!("/api/v2/leases/{hash}")))
            .await?,
    )?;
    ensure!(refund_of(&theirs)?.to.is_none(), "{theirs:?}");
    let due = refund.due.0;
    let tried = until(&world, &owner, true, &hash, |lease| {
        let refund = lease.refund.as_ref();
        refund.is_some_and(|refund| refund.trouble.is_some())
    })
    .await?;
    ensure!(refund_of(&tried)?.due.0 == due, "{tried:?}");

    // and it is tried again, also by the next process of the host, until the pointer works.
    world.stop()?;
    let before = pointer.asked();
    world.run()?;
    let (owner, account) = (Caller::new(&world, 1)?, Account::open(&world).await?);
    while pointer.asked() <= before + 1 {
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    let payee = account.listen(u64::MAX)?;
    pointer.answer(&payee.to);
    let settled = until(&world, &owner, true, &hash, |lease| {
        let refund = lease.refund.as_ref();
        refund.is_some_and(|refund| refund.due.0 == 0)
    })
    .await?;
    let refund = refund_of(&settled)?;
    ensure!(
        refund.sent.0 == due && payee.received() == due,
        "{settled:?}"
    );
    ensure!(refund.trouble.is_none(), "{settled:?}");

    // It is not sent twice.
    let asked = pointer.asked();
    tokio::time::sleep(Duration::from_secs(4)).await;
    ensure!(pointer.asked() == asked && payee.received() == due);
    world.stop()?;
    nobody_else_has_money(&world, paid - due).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_killed_over_a_refund_sends_the_rest_and_nothing_twice() -> Result<()> {
    let mut world = World::start(settings())?;
    let busybox = world.busybox().await?;
    let payer = Caller::new(&world, 1)?;
    let account = Account::open(&world).await?;
    let pointer = Pointer::start().await?;

    // Given a lease by version 1 that names a payee who takes no more than so much,
    let body = short_lived("cut-off-refund", &busybox, 3);
    let hash = hash_of(&body);
    let posted = json!({ "manifest": body["manifest"], "private": {} });
    let creation = Call::post("/pods?duration=3600", &posted)
        .with_token()
        .header("Refund-To", pointer.url.clone());
    let created = payer.paid(&account, &creation, false).await?;
    ensure!(created.status == 200, "{created:?}");
    let paid = account.paid();
    let half = account.listen(1_000_000)?;
    pointer.answer(&half.to);

    // when the host is killed while it waits for the payee to take the rest,
    let deadline = Instant::now() + ARRIVAL_TIMEOUT;
    while half.received() < 1_000_000 {
        ensure!(
            Instant::now() < deadline,
            "nothing arrives\n{}",
            world.log()
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The last packet is in the books: nothing more is on its way.
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(account);
    world.kill()?;
    ensure!(half.received() == 1_000_000);

    // then the next one sends what the books say is left, and nothing of what has arrived.
    world.run()?;
    let (payer, account) = (Caller::new(&world, 1)?, Account::open(&world).await?);
    let rest = account.listen(u64::MAX)?;
    pointer.answer(&rest.to);
    let settled = until(&world, &payer, false, &hash, |lease| {
        let refund = lease.refund.as_ref();
        lease.state == LeaseState::Ended && refund.is_some_and(|refund| refund.due.0 == 0)
    })
    .await?;
    let sent = refund_of(&settled)?.sent.0;
    ensure!(
        sent == 1_000_000 + rest.received() && sent < paid,
        "{settled:?} {}",
        rest.received()
    );
    world.stop()?;
    nobody_else_has_money(&world, paid - sent).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_draws_what_is_due_to_him_after_his_lease_has_ended_by_itself() -> Result<()> {
    let mut world = World::start(settings())?;
    let busybox = world.busybox().await?;
    let (owner, stranger) = (Caller::new(&world, 1)?, Caller::new(&world, 2)?);
    let account = Account::open(&world).await?;

    // Given two leases of the same program that have ended by themselves, one of them of each of two
    let body = short_lived("drawn", &busybox, 3);
    let hash = hash_of(&body);
    let path = format!("/api/v2/leases/{hash}/refund");
    let mut due = Vec::new();
    for caller in [&owner, &stranger] {
        let creation = Call::post("/api/v2/leases", &body).with_token();
        let created = lease_of(&caller.paid(&account, &creation, true).await?)?;
        // (what the first has left is not used by the second),
        ensure!(created.balance.0 * (due.len() as u64 + 1) <= account.paid());
        let ended = until(&world, caller, false, &hash, |lease| {
            lease.state == LeaseState::Ended
        })
        .await?;
        let refund = refund_of(&ended)?;
        ensure!(refund.next_try.is_none(), "{ended:?}");
        due.push(refund.due.0);
    }
    let paid = account.paid();

    // nobody else draws it,
    let payee = account.listen(u64::MAX)?;
    let draw = |body: &Value| Call::post(&path, body);
    let now = json!({ "refund": payee.to });
    ensure!(owner.send(&draw(&now)).await?.status == 401);
    let third = Caller::new(&world, 3)?;
    ensure!(third.signed(draw(&now)).await?.status == 403);
    for bad in [
        json!({}),
        json!({ "refund": payee.to, "refund_to": "$host.example" }),
        json!({ "refund_to": "$10.0.0.1" }),
        json!({ "to": 1 }),
    ] {
        let refused = owner.signed(draw(&bad)).await?;
        ensure!(refused.status == 400, "{bad}: {refused:?}");
    }
    // and when its owner does, then he gets his own, to the unit and once.
    let drawn = drawn_of(&owner.signed(draw(&now)).await?)?;
    ensure!(
        (drawn.refunded.0, drawn.owed.0) == (due[0], 0) && payee.received() == due[0],
        "{drawn:?} of {due:?}"
    );
    let again = account.listen(u64::MAX)?;
    let twice = owner.signed(draw(&json!({ "refund": again.to }))).await?;
    ensure!(
        // The last lease is the other's; of his own nothing is left.
        twice.status == 403 && again.received() == 0,
        "{twice:?}"
    );

    // The other one names a pointer afterwards.
    let (pointer, theirs) = (Pointer::start().await?, account.listen(u64::MAX)?);
    pointer.answer(&theirs.to);
    let there = json!({ "refund_to": pointer.url });
    let drawn = drawn_of(&stranger.signed(draw(&there)).await?)?;
    ensure!(drawn.refunded.0 == 0, "{drawn:?}");
    until(&world, &stranger, true, &hash, |lease| {
        let refund = lease.refund.as_ref();
        refund.is_some_and(|refund| refund.due.0 == 0 && refund.sent.0 == due[1])
    })
    .await?;
    ensure!(theirs.received() == due[1]);
    world.stop()?;
    nobody_else_has_money(&world, paid - due[0] - due[1]).await
}

/// A receiver in JavaScript answers as its makers wrote it.
#[tokio::test(flavor = "multi_thread")]
async fn an_unmodified_javascript_server_is_paid_what_is_due() -> Result<()> {
    let mut world = World::start(settings())?;
    let busybox = world.busybox().await?;
    let payer = Caller::new(&world, 1)?;
    let account = Account::open(&world).await?;
    let modules = PAYER.install(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    let mut node = Command::new("node");
    node.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node/spsp_server.js"))
        .env("NODE_PATH", modules)
        .env("ILP_BTP_SERVER", &world.interledger);
    let server = Background::start(&node, Listen::Output)?;
    let told: Value = serde_json::from_str(&server.line(ARRIVAL_TIMEOUT)?)?;

    // Given a lease that nobody has signed, and whose payer has named a pointer,
    let mut body = short_lived("javascript", &busybox, 2);
    let hash = hash_of(&body);
    body["refund_to"] = told["url"].clone();
    let creation = Call::post("/api/v2/leases", &body).with_token();
    lease_of(&payer.paid(&account, &creation, false).await?)?;

    // when its program has ended, then what was not used arrives there.
    let settled = until(&world, &payer, false, &hash, |lease| {
        let refund = lease.refund.as_ref();
        lease.state == LeaseState::Ended && refund.is_some_and(|refund| refund.due.0 == 0)
    })
    .await?;
    let sent = refund_of(&settled)?.sent.0;
    let told: Value = serde_json::from_str(&server.line(ARRIVAL_TIMEOUT)?)?;
    let received = told["received"].as_str().context("no total")?;
    ensure!(sent > 0 && received.parse() == Ok(sent), "{told}");
    drop(server);
    let paid = account.paid();
    world.stop()?;
    nobody_else_has_money(&world, paid - sent).await
}
