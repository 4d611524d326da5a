//! The main job: uploaded, paid, run, reached, extended, over.

mod support;

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use codius_bench::tap::Tap;
use codius_client::{Receipt, Wallet};
use serde_json::{Value, json};
use support::{Settings, World, document, hash_of, shell};

const PRICE_LIMIT: u64 = 1_000_000_000;
/// What the host is held by (`src/privileges.rs`): chown, dac_override, fowner, kill, setgid, setuid, setpcap,
/// net_bind_service, net_admin, sys_ptrace, sys_admin.
const HELD: [(&str, &str); 6] = [
    ("CapInh", "0000000000000000"),
    ("CapPrm", "00000000002815eb"),
    ("CapEff", "00000000002815eb"),
    ("CapBnd", "00000000002815eb"),
    ("CapAmb", "0000000000000000"),
    ("NoNewPrivs", "1"),
];

fn assert_held(process: u32) -> Result<()> {
    let mut threads = 0;
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        // It may have ended.
        let Ok(status) = fs::read_to_string(thread?.path().join("status")) else {
            continue;
        };
        threads += 1;
        for (field, value) in HELD {
            let found = status.lines().find_map(|line| line.strip_prefix(field));
            let found = found.map(|rest| rest.trim_start_matches(':').trim());
            ensure!(found == Some(value), "{field}: {found:?}");
        }
    }
    ensure!(threads > 1, "{threads} threads were looked at");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_with_two_containers_lives_for_as_long_as_it_was_paid_for() -> Result<()> {
    life(false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_with_two_containers_lives_for_as_long_as_it_was_paid_for() -> Result<()> {
    life(true).await
}

async fn life(warm: bool) -> Result<()> {
    let mut world = World::start(Settings {
        warm,
        ..Settings::default()
    })?;
    world.warmed().await?;
    let (hello, busybox) = (world.hello().await?, world.busybox().await?);
    let wallet = world.wallet().await?;
    let client = world.client();
    // The second container finds the first on localhost, and sees neither its files nor its processes.
    let look = "until wget -q -O /dev/null http://127.0.0.1:8080/health; do sleep 0.1; done; echo found; \
                ls /hello 2>&1; ps -o comm | grep -c '^hello'; echo looked; sleep 1000";
    let containers = json!([
        { "id": "web", "image": hello, "environment": { "PORT": "8080" } },
        shell("side", &busybox, look),
    ]);
    let upload = document("life", Some(8080), containers);
    let hash = hash_of(&upload);

    // Quotes are free and say what an upload costs.
    let quote = client.quote(&upload, 15).await?;
    ensure!(quote.manifest_hash == hash);
    let first = client.upload(&upload, 15, &wallet, PRICE_LIMIT).await?;
    ensure!(
        first.receipt
            == Receipt {
                paid: quote.price.0,
                refunded: 0
            },
        "{:?}",
        first.receipt
    );
    assert_held(world.process_id()?)?;
    ensure!(
        first.reply.url
            == format!(
                "http://{hash}.localhost:{}/",
                world.api.rsplit(':').next().unwrap_or_default()
            )
    );
    ensure!(world.log().contains(&format!("cloned={warm}")));

    // Reached by its hash in any case; the program knows its own name and its Interledger address.
    let (status, facts) = world
        .visit(&hash.to_string().to_uppercase(), "/facts")
        .await?;
    ensure!(status == 200, "{facts}");
    let mut facts: Value = serde_json::from_str(&facts)?;
    ensure!(facts["manifest_hash"] == hash.to_string(), "{facts}");
    for _ in 0..50 {
        if facts["interledger"]
            .to_string()
            .contains(&format!("private.codius.pod.{hash}"))
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        facts = serde_json::from_str(&world.visit(&hash.to_string(), "/facts").await?.1)?;
    }
    ensure!(
        facts["interledger"]
            .to_string()
            .contains(&format!("private.codius.pod.{hash}")),
        "{facts}"
    );

    // Another upload of the same manifest is more time, and so is an extension.
    let second = client.upload(&upload, 3, &wallet, PRICE_LIMIT).await?;
    let third = client.extend(&hash, 2, &wallet, PRICE_LIMIT).await?;
    ensure!(
        second
            .reply
            .expiry
            .get()
            .abs_diff(first.reply.expiry.get() + 3000)
            <= 50,
        "{first:?} {second:?}"
    );
    ensure!(
        third
            .reply
            .expiry
            .get()
            .abs_diff(second.reply.expiry.get() + 2000)
            <= 50,
        "{second:?} {third:?}"
    );
    ensure!(
        world
            .remains()
            .iter()
            .filter(|name| name.starts_with("process"))
            .count()
            == 1
    );

    // What it writes can be read, because its manifest says `debug`.
    let logs = loop {
        let logs = client.logs(&hash, false).await?.text().await?;
        if logs.contains("looked") {
            break logs;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    ensure!(logs.contains("_side stdout found"), "{logs}");
    ensure!(
        logs.contains("/hello: No such file"),
        "it sees the other container's files:\n{logs}"
    );
    ensure!(
        logs.contains("_side stdout 0"),
        "it sees the other container's processes:\n{logs}"
    );
    let shown = client.pod(&hash).await?;
    ensure!(shown.expiry.get().abs_diff(third.reply.expiry.get()) <= 50);
    ensure!(shown.manifest["name"] == "life" && shown.manifest.get("private").is_none());

    // At its end it is gone, at once and with everything that belonged to it.
    let now = || {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default()
    };
    let left = Duration::from_millis(third.reply.expiry.get()).saturating_sub(now());
    tokio::time::sleep(left.saturating_sub(Duration::from_secs(1))).await;
    ensure!(
        world.visit(&hash.to_string(), "/health").await?.0 == 200,
        "it ended early"
    );
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let (status, body) = world.visit(&hash.to_string(), "/health").await?;
    ensure!(
        status == 404 && body.contains(&format!("no pod with that hash found. hash={hash}")),
        "{status} {body}"
    );
    world.nothing_remains().await?;

    // All that was paid was earned; the books are balanced.
    let paid = first.receipt.paid + second.receipt.paid + third.receipt.paid;
    world.stop()?;
    let balances = world.balances().await?;
    let paid = i64::try_from(paid)?;
    ensure!(
        balances
            == [
                ("local:clients".to_owned(), -paid),
                ("earned".to_owned(), paid)
            ],
        "{balances:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_uploads_at_once_start_one_pod_and_both_buy_time() -> Result<()> {
    let mut world = World::start(Settings::default())?;
    let busybox = world.busybox().await?;
    let serve = "mkdir -p /www && echo hi > /www/index.html && exec httpd -f -p 8080 -h /www";
    let upload = document("race", Some(8080), json!([shell("web", &busybox, serve)]));
    let client = world.client();
    let (one, two) = (world.wallet().await?, world.wallet().await?);
    let (one, two) = tokio::join!(
        client.upload(&upload, 60, &one, PRICE_LIMIT),
        client.upload(&upload, 60, &two, PRICE_LIMIT),
    );
    let (one, two) = (one?, two?);
    ensure!(one.reply.url == two.reply.url);
    let difference = one.reply.expiry.get().abs_diff(two.reply.expiry.get());
    ensure!(difference.abs_diff(60_000) <= 100, "{one:?} {two:?}");
    ensure!(
        world
            .remains()
            .iter()
            .filter(|name| name.starts_with("process"))
            .count()
            == 1
    );
    ensure!(world.visit(&hash_of(&upload).to_string(), "/").await? == (200, "hi\n".to_owned()));

    let tap = Tap::start(world.interledger.trim_start_matches("btp+ws://").parse()?)?;
    let wallet = Wallet::connect(&format!("btp+ws://{}", tap.address())).await?;
    let more = client
        .extend(&hash_of(&upload), 10, &wallet, PRICE_LIMIT)
        .await?;

    // A host that is told to end settles what was not used.
    world.stop()?;
    // The question for the wallet's address, the stream, the money, the end.
    let prepares = tap.prepares();
    ensure!(prepares.len() == 4, "{prepares:?}");
    ensure!(world.remains().is_empty(), "{:?}", world.remains());
    let balances = world.balances().await?;
    let of = |name: &str| {
        balances
            .iter()
            .filter(|(account, _)| account.starts_with(name))
            .map(|(_, b)| b)
            .sum::<i64>()
    };
    let paid = i64::try_from(one.receipt.paid + two.receipt.paid + more.receipt.paid)?;
    ensure!(
        of("local:") == -paid && of("earned") + of("owed:") == paid && of("owed:") > 0,
        "{balances:?}"
    );
    ensure!(of("lease:") == 0 && of("order:") == 0, "{balances:?}");
    Ok(())
}
