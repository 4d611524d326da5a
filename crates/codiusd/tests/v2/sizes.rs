//! Pods of more than one size: what they have, what they cost, and what they use.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use codius_api::v2::{LeaseReply, LeaseState, UsageReply};
use codius_ledger::{Account as LedgerAccount, Asset, Rate, Seconds};
use codius_manifest::{ManifestHash, ManifestVersion, Upload};
use serde_json::{Value, json};

use crate::{
    account::Account,
    caller::{Call, Caller, Reply},
    document::conforms,
    support::{Settings, World, shell},
};

/// What is bought: long enough for everything here, however slow the machine is.
const BOUGHT_SECS: u64 = 900;
/// What the program writes to its disk.
const WRITTEN_MIB: u64 = 24;
/// Twice a small one in every way, and at a price of its own that no other way leads to.
const SIZES: &str = "[sizes.medium]\nvcpus = 2\nmemory_mib = 1024\ndisk_mib = 2048\ncost_per_month = \"31.4\"\n\
                     [sizes.vast]\nvcpus = 1\nmemory_mib = 65536\ndisk_mib = 1024\n";

fn wanted(machine: &str, containers: Value) -> Value {
    let manifest =
        json!({ "name": machine, "version": "1", "machine": machine, "containers": containers });
    json!({ "manifest": manifest, "private": {}, "duration_seconds": BOUGHT_SECS })
}

fn hash_of(wanted: &Value) -> Result<ManifestHash> {
    let posted = json!({ "manifest": wanted["manifest"], "private": {} }).to_string();
    Ok(Upload::parse_as(ManifestVersion::V2, posted.as_bytes())?.hash())
}

fn lease_of(reply: &Reply) -> Result<LeaseReply> {
    ensure!(reply.status == 200, "{reply:?}");
    conforms("Lease", &reply.json()?)?;
    Ok(serde_json::from_str(&reply.text)?)
}

fn rate(per_month: &str) -> Result<Rate> {
    Ok(Rate::per_month(per_month.parse()?, &Asset::new("XRP", 9)?)?)
}

/// What the pod has used, once that is enough.
async fn usage(
    owner: &Caller,
    hash: &ManifestHash,
    enough: impl Fn(&UsageReply) -> bool,
) -> Result<UsageReply> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let call = Call::get(format!("/api/v2/leases/{hash}/usage"));
        let reply = owner.signed(call).await?;
        ensure!(reply.status == 200, "{reply:?}");
        conforms("Usage", &reply.json()?)?;
        let usage: UsageReply = serde_json::from_str(&reply.text)?;
        if enough(&usage) {
            return Ok(usage);
        }
        ensure!(Instant::now() < deadline, "it stays {usage:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// A counter of the operator's.
async fn metric(world: &World, name: &str) -> Result<f64> {
    let text = metrics(world).await?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(line
        .with_context(|| format!("no {name} in\n{text}"))?
        .parse()?)
}

async fn metrics(world: &World) -> Result<String> {
    let client = reqwest::Client::builder()
        .unix_socket(world.data_dir().join("admin.sock"))
        .build()?;
    let response = client.get("http://localhost/metrics").send().await?;
    Ok(response.text().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_medium_pod_has_what_it_was_sold_costs_its_price_and_keeps_both_over_kill_9() -> Result<()>
{
    let mut world = World::start(Settings {
        on_shutdown: "leave",
        memory_mib: 2200,
        more: SIZES.to_owned(),
        ..Settings::default()
    })?;
    let busybox = world.busybox().await?;
    let owner = Caller::new(&world, 1)?;
    let account = Account::open(&world).await?;
    let look = format!(
        "echo cpus=$(grep -c ^processor /proc/cpuinfo); \
         echo memory=$(($(sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo) / 1024)); \
         dd if=/dev/urandom of=/file bs=1M count={WRITTEN_MIB} 2>/dev/null; sync; echo written; \
         exec sleep 10000"
    );
    let body = wanted("medium", json!([shell("look", &busybox, &look)]));
    let hash = hash_of(&body)?;
    let path = format!("/api/v2/leases/{hash}");
    let medium = json!({ "name": "medium", "vcpus": 2, "memory_mib": 1024, "disk_mib": 2048 });

    // Given a host that sells three sizes, of which it has no room for one,
    let host = owner.send(&Call::get("/api/v2/host")).await?.json()?;
    conforms("Host", &host)?;
    let told = host["machines"].as_array().context("no machines")?.iter();
    let told: Vec<_> = told
        .map(|it| {
            (
                it["name"].clone(),
                it["price"]["per_month"].clone(),
                it["has_room"].clone(),
            )
        })
        .collect();
    let expected = [
        ("small", "10", true),
        ("medium", "31.4", true),
        ("vast", "1280", false),
    ];
    let expected = expected.map(|(name, price, room)| (json!(name), json!(price), json!(room)));
    ensure!(told == expected, "{told:?}");
    ensure!(host["capacity"]["processors"]["sold"] == 0, "{host}");

    // then version 1 knows nothing of it,
    let v1 = reqwest::Client::new();
    let posted = json!({ "manifest": body["manifest"], "private": {} });
    for method in [reqwest::Method::OPTIONS, reqwest::Method::POST] {
        let request = v1.request(method, format!("{}/pods?duration=60", world.api));
        let refused = request.json(&posted).send().await?;
        ensure!(refused.status() == 400, "{refused:?}");
        let text = refused.text().await?;
        ensure!(text.contains("Invalid request payload input"), "{text}");
    }
    // a size that nobody sells, or that there is no room for, is refused before there is any money,
    let sold = Call::post(
        "/api/v2/quotes",
        &wanted("huge", body["manifest"]["containers"].clone()),
    );
    let unknown = owner.send(&sold).await?;
    ensure!(unknown.status == 422, "{unknown:?}");
    ensure!(unknown.text.contains("small, medium, vast"), "{unknown:?}");
    let vast = wanted("vast", body["manifest"]["containers"].clone());
    let full = owner
        .send(&Call::post("/api/v2/leases", &vast).with_token())
        .await?;
    ensure!(
        full.status == 503 && full.text.contains("memory"),
        "{full:?}"
    );
    // and a medium one is quoted at its own price.
    let quote = owner
        .send(&Call::post("/api/v2/quotes", &body))
        .await?
        .json()?;
    conforms("Quote", &quote)?;
    let rate = rate("31.4")?;
    let price = rate.price(Seconds(BOUGHT_SECS))?;
    let asked = price.to_string();
    ensure!(
        quote["price"] == asked && quote["machine"] == medium,
        "{quote}"
    );

    // When it is paid, it has what it was sold, seen from inside.
    let creation = Call::post("/api/v2/leases", &body).with_token();
    let lease = lease_of(&owner.paid(&account, &creation, true).await?)?;
    ensure!(json!(lease.machine) == medium, "{lease:?}");
    ensure!(lease.price_per_second == rate.to_string(), "{lease:?}");
    ensure!(account.paid() == price, "{}", account.paid());
    let before = usage(&owner, &hash, |usage| {
        usage
            .disk
            .is_some_and(|disk| disk.bytes >= WRITTEN_MIB << 20)
    })
    .await?;
    let logs = owner.signed(Call::get(format!("{path}/logs"))).await?.text;
    ensure!(logs.contains("cpus=2"), "{logs}");
    let memory = logs.split("memory=").nth(1).context("it says no memory")?;
    let digits: String = memory.chars().take_while(char::is_ascii_digit).collect();
    let seen_mib: u64 = digits.parse()?;
    ensure!((1024..1024 + 64).contains(&seen_mib), "{seen_mib} MiB");

    // Its usage is what it did, and within what was promised for it.
    ensure!(json!(before.machine) == medium, "{before:?}");
    let (memory, disk) = (
        before.memory.context("no memory")?,
        before.disk.context("no disk")?,
    );
    let promised = metric(&world, "codius_host_memory_promised_bytes").await?;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 bytes")]
    let peak = memory.peak_bytes as f64;
    ensure!(
        memory.bytes > 32 << 20 && memory.peak_bytes >= memory.bytes && peak <= promised,
        "{memory:?}, {promised} promised"
    );
    println!("used: {before:?}, promised: {promised} bytes");
    ensure!(disk.bytes <= 2048 << 20, "{disk:?}");
    ensure!(before.cpu_ms.is_some_and(|ms| ms > 0), "{before:?}");
    for (name, at_least) in [
        (
            format!("codius_pod_cpu_seconds_total{{pod=\"{hash}\"}}"),
            0.01,
        ),
        (format!("codius_pod_disk_bytes{{pod=\"{hash}\"}}"), 24e6),
        ("codius_host_vcpus_sold".to_owned(), 2.0),
        (
            "codius_host_disk_promised_bytes".to_owned(),
            2.147_483_648e9,
        ),
        ("codius_host_cpu_overcommit_ratio".to_owned(), 0.001),
    ] {
        let found = metric(&world, &name).await?;
        ensure!(found >= at_least, "{name} is {found}");
    }

    // After kill -9 it is the same pod at the same price, with its room, and its counters go on; although the
    // operator sells another thing by that name, for more.
    world.kill()?;
    world.settings.more = SIZES
        .replace("vcpus = 2", "vcpus = 3")
        .replace("31.4", "99");
    world.run()?;
    let account = Account::open(&world).await?;
    let owner = Caller::new(&world, 1)?;
    let after = lease_of(&owner.send(&Call::get(&path)).await?)?;
    ensure!(
        after.state == LeaseState::Running
            && json!(after.machine) == medium
            && after.price_per_second == rate.to_string(),
        "{after:?}"
    );
    ensure!(metric(&world, "codius_host_vcpus_sold").await? >= 2.0);
    ensure!(
        (metric(&world, "codius_host_memory_promised_bytes").await? - promised).abs() < 1.0,
        "it keeps its room"
    );
    let later = usage(&owner, &hash, |_| true).await?;
    ensure!(later.cpu_ms >= before.cpu_ms, "{before:?} {later:?}");
    ensure!(
        later
            .disk
            .is_some_and(|it| it.written_bytes >= disk.written_bytes),
        "{before:?} {later:?}"
    );
    // More time is at its rate.
    let more = Call::post(
        format!("{path}/extend"),
        &json!({ "duration_seconds": 100 }),
    )
    .with_token();
    lease_of(&owner.paid(&account, &more, false).await?)?;
    let second = rate.price(Seconds(100))?;
    ensure!(account.paid() == second, "{}", account.paid());

    // If its machine is lost with the host, the next one starts the same size again.
    world.kill()?;
    for machine in world.machines() {
        std::process::Command::new("kill")
            .args(["-9", &machine.to_string()])
            .status()?;
    }
    world.run()?;
    let owner = Caller::new(&world, 1)?;
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let lease = lease_of(&owner.send(&Call::get(&path)).await?)?;
        ensure!(json!(lease.machine) == medium, "{lease:?}");
        if lease.state == LeaseState::Running {
            break;
        }
        ensure!(Instant::now() < deadline, "{lease:?}\n{}", world.log());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    loop {
        let logs = owner.signed(Call::get(format!("{path}/logs"))).await?.text;
        if logs.contains("cpus=") {
            ensure!(logs.contains("cpus=2"), "{logs}");
            break;
        }
        ensure!(Instant::now() < deadline, "{logs}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    // What it ran before was not written when its machine was lost, and is not charged.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    // Stopped, it was charged by its rate to the unit: what was paid is used or comes back, and what was used is
    // what its time costs.
    let stopped = owner
        .signed(Call::post(format!("{path}/stop"), &json!({})))
        .await?;
    ensure!(stopped.status == 200, "{stopped:?}");
    world.nothing_remains().await?;
    ensure!(metric(&world, "codius_host_vcpus_sold").await? < 1.0);
    world.stop()?;
    let lease = world.lease(hash).await?;
    let (run_ms, charged) = (lease.parts().run_ms, lease.parts().charged);
    ensure!(charged == rate.earned(run_ms), "{:?}", lease.parts());
    ensure!(run_ms >= 1500, "{run_ms} ms");
    let entries = world.entries(&LedgerAccount::Earned).await?;
    let earned: i64 = entries.iter().map(|entry| entry.amount).sum();
    ensure!(earned == i64::try_from(charged)?, "{earned} of {charged}");
    let balances = world.balances().await?;
    let paid = balances.iter().find(|(name, _)| name == "local:clients");
    ensure!(
        paid.is_some_and(|(_, paid)| -paid == i64::try_from(price + second).unwrap_or_default()),
        "{balances:?}"
    );
    Ok(())
}
