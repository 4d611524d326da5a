//! A lease from its creation to its refund.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use codius_api::v2::{LeaseReply, LeaseState, StopReply};
use codius_manifest::ManifestHash;
use serde_json::{Value, json};

use crate::{
    account::Account,
    caller::{Call, Caller, Reply},
    document::conforms,
    support::{Settings, World, shell},
};

/// Writes a line every fifth of a second.
const TALK: &str = "i=0; while true; do echo line $i; i=$((i+1)); sleep 0.2; done";

/// A body that creates a lease; its manifest does not say `debug`.
fn wanted(name: &str, containers: Value, duration_seconds: u64) -> Value {
    let manifest =
        json!({ "name": name, "version": "1", "machine": "small", "containers": containers });
    json!({ "manifest": manifest, "private": {}, "duration_seconds": duration_seconds })
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

fn stopped_of(reply: &Reply) -> Result<StopReply> {
    ensure!(reply.status == 200, "{reply:?}");
    conforms("Stopped", &reply.json()?)?;
    Ok(serde_json::from_str(&reply.text)?)
}

fn status(reply: &Reply, expected: u16) -> Result<()> {
    ensure!(reply.status == expected, "not {expected}: {reply:?}");
    Ok(())
}

fn balance_of(balances: &[(String, i64)], name: &str) -> i64 {
    let found = balances.iter().find(|(account, _)| account == name);
    found.map_or(0, |it| it.1)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_creates_reads_extends_and_stops_a_lease_and_gets_the_rest_back() -> Result<()> {
    let mut world = World::start(Settings {
        on_shutdown: "leave",
        ..Settings::default()
    })?;
    let (hello, busybox) = (world.hello().await?, world.busybox().await?);
    let owner = Caller::new(&world, 1)?;
    let stranger = Caller::new(&world, 2)?;
    let account = Account::open(&world).await?;
    let containers = json!([
        { "id": "web", "image": hello, "environment": { "PORT": "8080" } },
        shell("talk", &busybox, TALK),
    ]);
    let mut body = wanted("owned", containers, 600);
    body["manifest"]["port"] = json!("8080");
    let hash = hash_of(&body);
    let path = format!("/api/v2/leases/{hash}");

    // Given a lease that was created by a signed request,
    let creation = Call::post("/api/v2/leases", &body).with_token();
    let created = owner.paid(&account, &creation, true).await?;
    let lease = lease_of(&created)?;
    ensure!(
        lease.owner == Some(owner.key.id().to_string()) && lease.state == LeaseState::Running,
        "{lease:?}"
    );
    let url = lease.url.clone().context("no URL")?;
    ensure!(url.contains(&hash.to_string()), "{url}");
    ensure!(
        world.visit(&hash.to_string(), "/health").await?.0 == 200,
        "{url}"
    );
    // the same request with the same token has the same answer,
    let again = owner.signed(creation).await?;
    ensure!(again.text == created.text, "{again:?}");
    // and everybody may look at it.
    let shown = lease_of(
        &stranger
            .send(&Call::get(
                path.to_uppercase()
                    .replace("/API/V2/LEASES", "/api/v2/leases"),
            ))
            .await?,
    )?;
    ensure!(
        shown.balance <= lease.balance && shown.manifest == Some(body["manifest"].clone()),
        "{shown:?}"
    );
    let price = account.paid().to_string();
    let quote = stranger
        .send(&Call::post("/api/v2/quotes", &body))
        .await?
        .json()?;
    ensure!(
        quote["runs"] == true && quote["price"].as_str() == Some(&price),
        "{quote}"
    );

    // What is told of it by the other ways is as the document says.
    let events = Call::get(format!("{path}/events"));
    let events = stranger.beginning(&events, 300).await?;
    let told: Vec<&str> = events
        .text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .collect();
    ensure!(told.len() > 1, "{events:?}");
    for event in told {
        conforms("LeaseEvent", &serde_json::from_str(event)?)?;
    }
    let old = Call::get(format!("/pods?manifestHash={hash}"));
    conforms("PodStatusV1", &stranger.send(&old).await?.json()?)?;

    // Its logs are for its owner.
    let logs = |query: &str| Call::get(format!("{path}/logs{query}"));
    status(&stranger.send(&logs("")).await?, 401)?;
    status(&stranger.signed(logs("")).await?, 403)?;
    let signed = owner.sign(logs("?container=talk"))?;
    let first = owner.send(&signed).await?;
    let lines = first.events()?;
    for (at, (_, line)) in lines.iter().enumerate() {
        conforms("LogLine", line)?;
        ensure!(
            line["text"] == format!("line {at}") && line["container"] == "talk",
            "{line}"
        );
    }
    ensure!(
        !lines.is_empty() && lines.is_sorted_by(|one, other| one.0 < other.0),
        "{first:?}"
    );
    // A request that somebody has listened to is good for nothing,
    status(&stranger.send(&signed).await?, 401)?;
    // one who was cut off goes on where he was, and hears what comes.
    let (last, _) = lines.last().context("no line")?;
    let call = logs("?follow=true&container=talk").header("Last-Event-ID", last.to_string());
    let more = owner.beginning(&owner.sign(call)?, 400).await?;
    let (next, line) = more.events()?.into_iter().next().context("no line")?;
    ensure!(
        next > *last && line["text"] == format!("line {}", lines.len()),
        "{more:?}"
    );
    let none = owner.signed(logs("?since=2999-01-01T00:00:00Z")).await?;
    ensure!(none.status == 200 && none.text.is_empty(), "{none:?}");
    for query in ["?container=none", "?since=never", "?tail=1"] {
        status(&owner.signed(logs(query)).await?, 400)?;
    }

    // So is what it has sent: of visitors there was one, at least.
    let usage = Call::get(format!("{path}/usage"));
    status(&stranger.send(&usage).await?, 401)?;
    status(&stranger.signed(usage.clone()).await?, 403)?;
    let used = owner.signed(usage.clone()).await?;
    status(&used, 200)?;
    conforms("Usage", &used.json()?)?;
    let visitors = &used.json()?["network"]["visitors"];
    ensure!(
        visitors["sent"]["packets"].as_u64() > Some(1)
            && visitors["received"]["bytes"].as_u64() > Some(100),
        "{used:?}"
    );

    // Anyone may pay for more time.
    let extension = Call::post(format!("{path}/extend"), &json!({ "duration_seconds": 60 }));
    let before = lease_of(&owner.send(&Call::get(&path)).await?)?;
    let extended = stranger
        .paid(&account, &extension.with_token(), false)
        .await?;
    let extended = lease_of(&extended)?;
    let moved = extended.expires_at.zip(before.expires_at);
    let moved = moved.map(|(after, before)| after.get() - before.get());
    ensure!(
        moved.is_some_and(|moved| moved.abs_diff(60_000) <= 50),
        "{extended:?}"
    );
    ensure!(extended.owner == lease.owner, "{extended:?}");

    // A host that was killed knows whose it is.
    let paid = account.paid();
    drop(account);
    world.kill()?;
    world.run()?;
    let (owner, stranger) = (Caller::new(&world, 1)?, Caller::new(&world, 2)?);
    let after = Account::open(&world).await?;
    let lease = lease_of(&owner.send(&Call::get(&path)).await?)?;
    ensure!(lease.owner == Some(owner.key.id().to_string()), "{lease:?}");
    status(&owner.signed(Call::get(format!("{path}/logs"))).await?, 200)?;
    status(&owner.signed(usage.clone()).await?, 200)?;

    // When its owner stops it, and nobody else,
    let stop = |body: &Value| Call::post(format!("{path}/stop"), body);
    let refund = after.listen(u64::MAX)?;
    let body = json!({ "refund": refund.to });
    status(&stranger.send(&stop(&body)).await?, 401)?;
    status(&stranger.signed(stop(&body)).await?, 403)?;
    let stopped = stopped_of(&owner.signed(stop(&body)).await?)?;
    // then what was not used is his again, to the unit,
    ensure!(
        stopped.refunded.0 == refund.received() && stopped.refunded.0 > 0 && stopped.owed.0 == 0,
        "{stopped:?} {}",
        refund.received()
    );
    ensure!(
        stopped.used.0 + stopped.refunded.0 == paid,
        "{stopped:?} of {paid}"
    );
    let ended = lease_of(&owner.send(&Call::get(&path)).await?)?;
    ensure!(
        ended.state == LeaseState::Ended && ended.url.is_none() && ended.balance.0 == 0,
        "{ended:?}"
    );
    ensure!(
        serde_json::to_value(&ended.ended)? == json!({ "reason": "stopped" }),
        "{ended:?}"
    );
    // and a second time changes nothing.
    let twice = stopped_of(&owner.signed(stop(&body)).await?)?;
    ensure!(
        twice.used == stopped.used && twice.refunded.0 == 0,
        "{twice:?}"
    );
    status(&owner.signed(Call::get(format!("{path}/logs"))).await?, 409)?;
    status(&owner.signed(usage).await?, 409)?;
    let late = Call::post(format!("{path}/extend"), &json!({ "duration_seconds": 60 }));
    status(&owner.send(&late.with_token()).await?, 409)?;

    world.nothing_remains().await?;
    world.stop()?;
    let balances = world.balances().await?;
    let of = |name: &str| {
        balances
            .iter()
            .find(|(account, _)| account == name)
            .map_or(0, |it| it.1)
    };
    let used = i64::try_from(stopped.used.0)?;
    ensure!(
        of("earned") == used && of("local:clients") == -used,
        "{balances:?}"
    );
    ensure!(balances.len() == 2, "somebody else has money: {balances:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_refund_could_not_send_stays_owed_even_if_the_host_is_killed_over_it() -> Result<()>
{
    let mut world = World::start(Settings::default())?;
    let busybox = world.busybox().await?;
    let owner = Caller::new(&world, 1)?;
    let account = Account::open(&world).await?;
    let containers = json!([shell("app", &busybox, "sleep 1000")]);
    let body = wanted("cut-off", containers, 600);
    let hash = hash_of(&body);
    let path = format!("/api/v2/leases/{hash}");
    let creation = Call::post("/api/v2/leases", &body).with_token();
    lease_of(&owner.paid(&account, &creation, true).await?)?;
    let paid = account.paid();

    // Given a payee that takes half of the price and no more, a refund waits for it;
    let refund = account.listen(paid / 2)?;
    let stop = owner.sign(Call::post(
        format!("{path}/stop"),
        &json!({ "refund": refund.to }),
    ))?;
    let killed = async {
        while refund.received() < paid / 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // it has not given up yet.
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    tokio::select! {
        reply = owner.send(&stop) => ensure!(false, "it was not killed in time: {reply:?}"),
        () = killed => {}
    }
    drop(owner);
    drop(account);
    world.kill()?;

    // then what left is the payee's, and all the rest is due to the owner, and nothing is anywhere twice.
    let (mut used, mut owed) = (0, 0);
    for (account, balance) in world.balances().await? {
        match account.as_str() {
            "local:clients" => ensure!(
                balance == i64::try_from(paid / 2)? - i64::try_from(paid)?,
                "{balance}"
            ),
            "earned" => used = u64::try_from(balance)?,
            other => {
                ensure!(other.starts_with("refund:"), "{other} has {balance}");
                owed = u64::try_from(balance)?;
            }
        }
    }
    ensure!(
        used + owed + paid / 2 == paid && owed > 0,
        "{used} {owed} of {paid}"
    );

    // The next process of the host says the same, sends the rest to whoever takes it, and nothing twice.
    world.run()?;
    let owner = Caller::new(&world, 1)?;
    let account = Account::open(&world).await?;
    let again = account.listen(u64::MAX)?;
    let stop = Call::post(format!("{path}/stop"), &json!({ "refund": again.to }));
    let stopped = stopped_of(&owner.signed(stop).await?)?;
    ensure!(
        (stopped.used.0, stopped.refunded.0, stopped.owed.0) == (used, owed, 0),
        "{stopped:?}"
    );
    ensure!(again.received() == owed);
    world.nothing_remains().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_is_its_owners_or_runs_the_program_if_nobody_knows_whose_it_is() -> Result<()>
{
    let mut world = World::start(Settings::default())?;
    let busybox = world.busybox().await?;
    let (first, second) = (Caller::new(&world, 1)?, Caller::new(&world, 2)?);
    let account = Account::open(&world).await?;
    let containers = json!([shell("app", &busybox, "sleep 1000")]);
    let mut body = wanted("passed-on", containers, 600);
    body["manifest"]["debug"] = json!(true);
    let hash = hash_of(&body);
    let path = format!("/api/v2/leases/{hash}");
    let stop = |body: &Value| Call::post(format!("{path}/stop"), body);

    // A lease that is being started is not stopped.
    let creation = Call::post("/api/v2/leases", &body).with_token();
    let (created, early) = tokio::try_join!(first.paid(&account, &creation, true), async {
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let shown = first.send(&Call::get(&path)).await?;
            if shown.status == 200 {
                return first.signed(stop(&json!({}))).await;
            }
        }
    })?;
    let lease = lease_of(&created)?;
    ensure!(lease.url.is_none(), "it has no port: {lease:?}");
    status(&early, 409)?;
    ensure!(!early.header("retry-after").is_empty(), "{early:?}");

    // Without a place to send it to, the rest stays its owner's,
    let paid = account.paid();
    let stopped = stopped_of(&first.signed(stop(&json!({}))).await?)?;
    ensure!(
        stopped.refunded.0 == 0 && stopped.owed.0 + stopped.used.0 == paid,
        "{stopped:?} of {paid}"
    );

    // and runs nothing for somebody else,
    let kept = stopped.owed.0;
    let mut short = body.clone();
    short["duration_seconds"] = json!(60);
    let creation = Call::post("/api/v2/leases", &short).with_token();
    let lease = lease_of(&second.paid(&account, &creation, true).await?)?;
    ensure!(
        lease.owner == Some(second.key.id().to_string()),
        "{lease:?}"
    );
    let price = account.paid() - paid;
    ensure!(lease.balance.0 <= price && price < kept, "{lease:?}");
    status(&first.signed(stop(&json!({}))).await?, 403)?;
    let refund = account.listen(u64::MAX)?;
    let stopped = stopped_of(&second.signed(stop(&json!({ "refund": refund.to }))).await?)?;
    ensure!(
        stopped.refunded.0 + stopped.used.0 == price && stopped.owed.0 == 0,
        "{stopped:?} of {price}"
    );
    // but runs it for himself, and what is left of both comes back.
    let before = account.paid();
    let creation = Call::post("/api/v2/leases", &short).with_token();
    let lease = lease_of(&first.paid(&account, &creation, true).await?)?;
    ensure!(lease.balance.0 > kept, "{lease:?} {kept}");
    let his = account.listen(u64::MAX)?;
    let stopped = stopped_of(&first.signed(stop(&json!({ "refund": his.to }))).await?)?;
    let price = account.paid() - before;
    ensure!(
        stopped.refunded.0 + stopped.used.0 == kept + price
            && his.received() == stopped.refunded.0
            && stopped.owed.0 == 0,
        "{stopped:?} of {kept} + {price}"
    );

    // A lease that nobody has signed for is nobody's,
    let creation = Call::post("/api/v2/leases", &short).with_token();
    let lease = lease_of(&second.paid(&account, &creation, false).await?)?;
    ensure!(lease.owner.is_none(), "{lease:?}");
    status(&second.signed(stop(&json!({}))).await?, 403)?;
    // its logs are everybody's, since its manifest says so,
    let logs = second.send(&Call::get(format!("{path}/logs"))).await?;
    ensure!(
        logs.status == 200 && logs.header("content-type") == "text/event-stream",
        "{logs:?}"
    );
    // and one that runs keeps the owner that it has, or has not.
    let creation = Call::post("/api/v2/leases", &short).with_token();
    let lease = lease_of(&first.paid(&account, &creation, true).await?)?;
    ensure!(lease.owner.is_none(), "{lease:?}");

    // What is left of it runs the program for whoever is next, and is never sent to him.
    world.stop()?;
    let paid = account.paid();
    drop(account);
    let left = balance_of(&world.balances().await?, &format!("owed:{hash}"));
    ensure!(left > 0, "nothing is left");
    world.run()?;
    let (second, account) = (Caller::new(&world, 2)?, Account::open(&world).await?);
    let creation = Call::post("/api/v2/leases", &short).with_token();
    let lease = lease_of(&second.paid(&account, &creation, true).await?)?;
    ensure!(i64::try_from(lease.balance.0)? > left, "{lease:?} {left}");
    let last = account.listen(u64::MAX)?;
    let stopped = stopped_of(&second.signed(stop(&json!({ "refund": last.to }))).await?)?;
    ensure!(
        stopped.refunded.0 == account.paid() && last.received() == stopped.refunded.0,
        "{stopped:?}"
    );
    ensure!(
        i64::try_from(stopped.owed.0 + stopped.used.0)? == left,
        "{stopped:?} {left}"
    );

    world.stop()?;
    let balances = world.balances().await?;
    let of = |name: &str| balance_of(&balances, name);
    let received = i64::try_from(refund.received() + his.received())?;
    ensure!(
        of("local:clients") == received - i64::try_from(paid)?,
        "{paid} {received} {balances:?}"
    );
    ensure!(
        of("earned") + of(&format!("owed:{hash}")) == -of("local:clients"),
        "{balances:?}"
    );
    Ok(())
}
