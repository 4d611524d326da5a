//! An unmodified Node.js program in a pod: `ilp-plugin` with its defaults takes money through SPSP at the
//! program's own URL, spends it, also on its own time, and finds the rest again after the pod expired and
//! was uploaded anew.

mod support;

use std::{
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use codius_ledger::{Asset, Rate};
use codius_manifest::ManifestHash;
use codius_testkit::{Background, Listen, NODE, Packages, node_program};
use reqwest::Method;
use serde_json::{Value, json};
use support::{Settings, World, document, hash_of};

/// In the pod, on the old interpreter, every library is the last one that was released.
const INSIDE: Packages<'_> = Packages {
    packages: &[
        NODE,
        ("ilp-plugin", "3.5.4"),
        ("ilp-protocol-ildcp", "2.2.3"),
        ("ilp-protocol-stream", "2.7.1"),
    ],
    overrides: &[],
};
/// Of `ilp-protocol-stream`, this is the first that runs on Node.js 18.
const STREAM: (&str, &str) = ("ilp-protocol-stream", "2.7.2-alpha.3");
const OUTSIDE: Packages<'_> = Packages {
    packages: &[
        STREAM,
        ("ilp-plugin", "3.5.4"),
        ("ilp-protocol-spsp", "3.0.0"),
        ("ilp-fetch", "1.4.0"),
    ],
    overrides: &[STREAM],
};
/// The program starts slowly under emulation.
const PORT_TIMEOUT_SECS: u64 = 240;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a payment by the program may take that cannot be completed.
const OVERSPENDING_MS: u64 = 15_000;
/// What is bought at first, and what there must be before anything slow is asked of the program.
const LEASE_SECS: u64 = 45;
const RESERVE_SECS: u64 = 40;
/// What it pays for its own time.
const OWN_RENT: u64 = 50_000;
/// Between two readings of clocks that are not the same, and a request in between.
const CLOCKS_MS: u64 = 50;
const PRICE_LIMIT: u64 = 1_000_000_000;
const BTP_PORT: u16 = 7768;
const PROGRAM_PORT: u16 = 8080;

/// People outside, with the JavaScript libraries.
struct Outside<'a> {
    world: &'a World,
    modules: PathBuf,
}

impl Outside<'_> {
    fn start(&self, words: &[&str]) -> Result<Background> {
        let mut node = Command::new("node");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node/outside.js");
        node.arg(script)
            .args(words)
            .env("NODE_PATH", &self.modules)
            .env_remove("ILP_PLUGIN")
            .env_remove("ILP_CREDENTIALS")
            .env("ILP_BTP_SERVER", &self.world.interledger);
        Background::start(&node, Listen::Output)
    }

    fn run(&self, words: &[&str]) -> Result<Value> {
        let running = self.start(words)?;
        let answer = next(&running)?;
        running.wait(ANSWER_TIMEOUT)?;
        Ok(answer)
    }

    /// Uploads as `ilp-fetch` does, and checks that the price was paid and nothing else.
    fn upload(&self, upload: &str) -> Result<u64> {
        let (seconds, limit) = (LEASE_SECS.to_string(), PRICE_LIMIT.to_string());
        let answer = self.run(&["upload", &self.world.api, &seconds, &limit, upload])?;
        ensure!(
            answer["status"] == 200
                && answer["paid"] == answer["quoted"]["price"]
                && answer["destination"] == json!({ "assetCode": "XRP", "assetScale": 9 }),
            "{answer}"
        );
        amount(&answer["paid"])
    }
}

fn next(running: &Background) -> Result<Value> {
    Ok(serde_json::from_str(&running.line(ANSWER_TIMEOUT)?)?)
}

fn amount(text: &Value) -> Result<u64> {
    let text = text.as_str().with_context(|| format!("{text}"))?;
    Ok(text.parse()?)
}

/// Asks the program something.
async fn ask(
    world: &World,
    hash: &ManifestHash,
    method: Method,
    path: &str,
    query: &[(&str, &str)],
) -> Result<Value> {
    let port = world.api.rsplit(':').next().context("no port")?;
    let request = reqwest::Client::new()
        .request(method, format!("http://127.0.0.1:{port}{path}"))
        .query(query)
        .header("Host", format!("{hash}.localhost:{port}"))
        .timeout(ANSWER_TIMEOUT);
    let response = request.send().await?;
    let (status, body) = (response.status(), response.text().await?);
    ensure!(status == 200, "{path}: {status} {body}");
    Ok(serde_json::from_str(&body)?)
}

/// Buys more time if there is less than is needed on a slow machine, and says what it cost.
async fn reserve(world: &World, hash: &ManifestHash) -> Result<u64> {
    let pod = world.client().pod(hash).await;
    let expiry = pod.context("the lease ended early")?.expiry.get();
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let left_secs = u64::try_from(u128::from(expiry).saturating_sub(now) / 1000)?;
    let missing = RESERVE_SECS.saturating_sub(left_secs);
    if missing == 0 {
        return Ok(0);
    }
    let wallet = world.wallet().await?;
    let bought = world
        .client()
        .extend(hash, missing, &wallet, PRICE_LIMIT)
        .await
        .context("no more time could be bought")?;
    Ok(bought.receipt.paid)
}

async fn send(
    world: &World,
    hash: &ManifestHash,
    shop: &Value,
    amount: &str,
    timeout_ms: u64,
) -> Result<Value> {
    let text = |name: &str| shop[name].as_str().context("no credentials");
    let timeout = timeout_ms.to_string();
    let query = [
        ("to", text("to")?),
        ("secret", text("secret")?),
        ("amount", amount),
        ("timeout", &timeout),
    ];
    ask(world, hash, Method::POST, "/send", &query).await
}

/// The program pays the payment pointer of its own lease, whose address somebody outside has asked for,
/// because a pod does not reach its host's API.
async fn extends_itself(world: &World, hash: &ManifestHash) -> Result<()> {
    let rate = Rate::per_month("10".parse()?, &Asset::new("XRP", 9)?)?;
    let pointer = format!("{}/{hash}", world.api.replace("localhost", "127.0.0.1"));
    let query = reqwest::Client::new().get(pointer);
    let query = query.header("Accept", "application/spsp4+json");
    let found: Value = serde_json::from_str(&query.send().await?.text().await?)?;
    let lease = json!({ "to": found["destination_account"], "secret": found["shared_secret"] });
    let expiry = async || -> Result<u64> { Ok(world.client().pod(hash).await?.expiry.get()) };

    let before = expiry().await?;
    let sent = send(world, hash, &lease, &OWN_RENT.to_string(), 60_000).await?;
    ensure!(
        sent == json!({ "outcome": "sent", "sent": OWN_RENT.to_string() }),
        "{sent}"
    );
    let by = expiry().await?.saturating_sub(before);
    let paid_for = rate.funded_ms(OWN_RENT).context("free")?;
    ensure!(
        by.abs_diff(paid_for) <= CLOCKS_MS,
        "the expiry moved by {by} ms and not by {paid_for}"
    );
    Ok(())
}

/// The balance of the program and what the shop has, once both know of the last packet.
fn last_total(shop: &Background, expected: u64) -> Result<()> {
    loop {
        let total = next(shop)?["received"].as_u64().context("no total")?;
        if total == expected {
            return Ok(());
        }
        ensure!(total < expected, "{total} arrived instead of {expected}");
    }
}

async fn until_gone(world: &World, hash: &ManifestHash) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(2 * RESERVE_SECS + LEASE_SECS);
    while world.visit(&hash.to_string(), "/config").await?.0 != 404 {
        ensure!(Instant::now() < deadline, "the pod does not end");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}

fn reachable(address: Ipv4Addr, port: u16) -> bool {
    let address = SocketAddr::from((address, port));
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}

/// In a pod, everybody is a part of the pod; outside, nobody is.
async fn money_keeps_apart(world: &World, hash: &ManifestHash, own: &str) -> Result<()> {
    let account = format!("private.codius.pod.{hash}");
    let segment = own
        .strip_prefix(&format!("{account}."))
        .with_context(|| format!("{own} is not below {account}"))?;
    ensure!(segment.starts_with("t-") && !segment.contains('.'), "{own}");
    for name in [segment, "shop"] {
        let claimed = ask(world, hash, Method::POST, "/claim", &[("name", name)]).await?;
        ensure!(
            claimed["address"] == format!("{account}.u-{name}"),
            "{claimed}"
        );
    }
    // The addresses of the first pod: its end of the link, its gateway, itself. The host reaches the
    // program's port and no Interledger port.
    let [a, b, c, _] = world.pool().octets();
    let pod = [1, 5, 6].map(|last| Ipv4Addr::new(a, b, c, last));
    let of_port = |port: u16| -> Vec<Ipv4Addr> {
        let addresses = pod.into_iter();
        addresses
            .filter(|address| reachable(*address, port))
            .collect()
    };
    ensure!(
        of_port(PROGRAM_PORT) == [pod[2]],
        "{:?}",
        of_port(PROGRAM_PORT)
    );
    ensure!(of_port(BTP_PORT).is_empty(), "{:?}", of_port(BTP_PORT));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_javascript_program_earns_and_spends_and_finds_its_money_again() -> Result<()> {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (inside, modules) = (INSIDE.install(cache)?, OUTSIDE.install(cache)?);
    let mut world = World::start(Settings {
        port_timeout_secs: PORT_TIMEOUT_SECS,
        ..Settings::default()
    })?;
    let lived = live(&mut world, &inside, modules).await;
    lived.with_context(|| format!("the host said:\n{}", world.log()))
}

async fn live(world: &mut World, inside: &Path, modules: PathBuf) -> Result<()> {
    let image = node_program(inside, include_str!("node/wallet.js"))?
        .push(&world.registry, "test/wallet:1")
        .await?
        .by_digest;
    let upload = document(
        "wallet",
        Some(PROGRAM_PORT),
        json!([{ "id": "wallet", "image": image }]),
    );
    let hash = hash_of(&upload);
    let outside = Outside { world, modules };
    let shop = outside.start(&["shop"])?;
    let till = next(&shop)?;

    let mut rent = outside.upload(&upload)?;
    rent += reserve(world, &hash).await?;
    let own = ask(world, &hash, Method::GET, "/config", &[]).await?;
    ensure!(own["assetCode"] == "XRP" && own["assetScale"] == 9, "{own}");
    let address = own["address"].as_str().context("no address")?;

    // It takes money at its own URL.
    let port = world.api.rsplit(':').next().context("no port")?;
    let url = format!("http://{hash}.localhost:{port}/.well-known/pay");
    let paid = outside.run(&["pay", &url, "57000"])?;
    ensure!(paid["totalSent"] == "57000", "{paid}");
    let destination = paid["destination"].as_str().context("no destination")?;
    ensure!(
        destination.starts_with(&format!("{address}.")),
        "{destination} is not of {address}"
    );
    let received = ask(world, &hash, Method::GET, "/received", &[]).await?;
    ensure!(received["received"] == 57_000, "{received}");

    // It spends a part of it.
    rent += reserve(world, &hash).await?;
    let sent = send(world, &hash, &till, "500", 60_000).await?;
    ensure!(
        sent == json!({ "outcome": "sent", "sent": "500" }),
        "{sent}"
    );
    last_total(&shop, 500)?;
    rent += reserve(world, &hash).await?;
    extends_itself(world, &hash).await?;
    money_keeps_apart(world, &hash, address).await?;

    // Its pod ends; the money stays, and is the program's when it is uploaded again.
    until_gone(world, &hash).await?;
    rent += outside.upload(&upload)?;
    rent += reserve(world, &hash).await?;
    let sent = send(world, &hash, &till, "2500", 60_000).await?;
    ensure!(
        sent == json!({ "outcome": "sent", "sent": "2500" }),
        "{sent}"
    );
    last_total(&shop, 3000)?;

    // More than it has does not go: 4000 are left.
    rent += reserve(world, &hash).await?;
    let sent = send(world, &hash, &till, "9000", OVERSPENDING_MS).await?;
    let last = amount(&sent["sent"])?;
    ensure!(
        sent["outcome"] != "sent" && (1..=4000).contains(&last),
        "{sent}"
    );
    last_total(&shop, 3000 + last)?;

    drop(outside);
    world.stop()?;
    let balances = world.balances().await?;
    let of = |name: &str| -> i64 {
        let of_name = balances
            .iter()
            .filter(|(account, _)| account.starts_with(name));
        of_name.map(|(_, balance)| balance).sum()
    };
    let (rent, last) = (i64::try_from(rent)?, i64::try_from(last)?);
    let own_rent = i64::try_from(OWN_RENT)?;
    ensure!(of(&format!("pod:{hash}")) == 4000 - last, "{balances:?}");
    ensure!(
        of("earned") + of("owed:") == rent + own_rent,
        "{balances:?}"
    );
    ensure!(
        of("local:clients") == -rent - own_rent - 4000 + last,
        "{balances:?}"
    );
    Ok(())
}
