//! A host below the real moneyd: it is paid through it, pays back through it, and finds it again.

mod support;

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use codius_client::{ClientError, Wallet};
use codius_testkit::{
    Moneyd, NetworkNamespace, Packages,
    moneyd::{MONEYD, MONEYD_OVERRIDE},
};
use serde_json::json;
use support::{Settings, World, bridge::Bridge, document, shell};

const PRICE_LIMIT: u64 = 1_000_000_000;

fn balance(balances: &[(String, i64)], account: &str) -> i64 {
    let found = balances.iter().find(|(name, _)| name == account);
    found.map_or(0, |(_, balance)| *balance)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_below_the_real_moneyd() -> Result<()> {
    let place = tempfile::Builder::new()
        .prefix("codius-uplink-")
        .tempdir()?;
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let packages = Packages {
        packages: &[MONEYD],
        overrides: &[MONEYD_OVERRIDE],
    };
    let modules = packages.install(cache)?;
    let network = NetworkNamespace::new()?;
    let moneyd = Moneyd::local(&network, &modules)?;
    let bridge = Bridge::to(&network, place.path()).await?;

    let mut world = World::start(Settings {
        parent: Some(bridge.url()),
        ..Settings::default()
    })?;
    world.logged("uplink is up", 0).await?;
    ensure!(
        world.log().contains("private.moneyd.local."),
        "moneyd gives the address:\n{}",
        world.log()
    );
    let busybox = world.busybox().await?;
    let upload = |name: &str, script: &str| {
        document(name, Some(8080), json!([shell("app", &busybox, script)]))
    };

    // Paid through moneyd, and paid back through it.
    let wallet = Wallet::connect(&bridge.url()).await?;
    let failing = upload("failing", "exit 3");
    let paid = match world
        .client()
        .upload(&failing, 60, &wallet, PRICE_LIMIT)
        .await
    {
        Err(ClientError::Refused { paid, .. }) => paid,
        other => bail!("it should have been refused: {other:?}"),
    };
    ensure!(
        paid.paid > 0 && paid.refunded == paid.paid,
        "all of it comes back: {paid:?}\n{}",
        world.log()
    );

    // The connection breaks; the host finds it again, and goes on.
    let ups = world.log().matches("uplink is up").count();
    bridge.cut();
    world.logged("uplink ended", 0).await?;
    bridge.mend();
    world.logged("uplink is up", ups).await?;
    let wallet = Wallet::connect(&bridge.url()).await?;
    let serving =
        "mkdir /www; echo paid through moneyd > /www/index.html; httpd -f -p 8080 -h /www";
    let good = upload("serving", serving);
    let answer = world
        .client()
        .upload(&good, 3600, &wallet, PRICE_LIMIT)
        .await
        .with_context(|| world.log())?;
    let price = wallet.moved().paid;
    let hash = answer.reply.manifest_hash.to_string();
    let (status, page) = world.visit(&hash, "/").await?;
    ensure!(
        status == 200 && page == "paid through moneyd\n",
        "{status}: {page}"
    );

    // moneyd ends: pods go on, and a restarted host does not wait for it.
    drop(moneyd);
    world.settings.on_shutdown = "leave";
    world.kill()?;
    world.run()?;
    ensure!(world.visit(&hash, "/").await?.0 == 200, "the pod goes on");
    let moneyd = Moneyd::local(&network, &modules)?;
    let ups = world.log().matches("uplink is up").count();
    world.logged("uplink is up", ups - 1).await?;
    // What its configuration said when it started is what it does: the pod ends with the next one.
    world.settings.on_shutdown = "stop";
    world.stop()?;
    world.run()?;
    world.stop()?;
    world.nothing_remains().await?;
    drop(moneyd);

    // What came in and stayed is what the parent owes us, to the unit.
    let balances = world.balances().await?;
    let price = i64::try_from(price)?;
    ensure!(
        balance(&balances, "parent") == -price,
        "price {price}, books {balances:?}"
    );
    let earned = balance(&balances, "earned");
    let rest: i64 = balances
        .iter()
        .filter(|(name, _)| name.starts_with("owed:") || name.starts_with("lease:"))
        .map(|(_, balance)| balance)
        .sum();
    ensure!(
        earned + rest == price,
        "earned {earned}, rest {rest}, books {balances:?}"
    );

    // Real money does not become play money.
    world.settings.parent = None;
    let error = world.run().unwrap_err().to_string();
    ensure!(error.contains("data_dir"), "{error}");
    Ok(())
}
