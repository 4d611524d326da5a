//! Payment pointers with the unmodified JavaScript payer (ilp-protocol-spsp 3.0.0): top-ups of a lease
//! by its hash, and gifts to the host. One pod for all of it.

mod support;

use std::{
    net::TcpListener,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use codius_api::{LeaseEventKind, Phase};
use codius_ledger::{Account, Asset, Rate, Reason, Seconds};
use codius_manifest::ManifestHash;
use codius_testkit::{Background, Listen};
use data_encoding::BASE64;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use support::{PAYER, Settings, World, document, hash_of, shell};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

/// Above the payer's own patience of 60 s.
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(90);
const PRICE_LIMIT: u64 = 1_000_000_000;
/// How long it may take until all payers are refused. Below the 35 s for which they wait for an
/// answer that does not come.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(10);
/// 16 bytes.
const NONCE: &str = "AAAAAAAAAAAAAAAAAAAAAA==";
const SPSP: &str = "application/spsp4+json, application/spsp+json";
/// Between two readings of clocks that are not the same, and a request in between.
const CLOCKS_MS: u64 = 50;
/// The most that may be paid ahead.
const AHEAD_SECS: u64 = 600;

/// A JavaScript payer at work.
struct Payer {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Payer {
    fn start(world: &World, modules: &Path, arguments: &[&str]) -> Result<Self> {
        let mut process = Command::new("node")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node/spsp_payer.js"))
            .args(arguments)
            .env("NODE_PATH", modules)
            .env("ILP_BTP_SERVER", &world.interledger)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("node cannot be started; install the Debian package `nodejs`")?;
        let output = process.stdout.take().context("no standard output")?;
        let lines = BufReader::new(output).lines();
        Ok(Self { process, lines })
    }

    async fn line(&mut self) -> Result<Value> {
        let line = timeout(SCRIPT_TIMEOUT, self.lines.next_line()).await;
        let line = line.context("the payer says nothing")??;
        Ok(serde_json::from_str(
            &line.context("the payer has ended without an answer")?,
        )?)
    }

    /// Reads until it has sent so much.
    async fn until_sent(&mut self, amount: u64) -> Result<u64> {
        loop {
            let line = self.line().await?;
            ensure!(line["errors"].is_null(), "{line}");
            let sent = units(&line["sent"])?;
            if sent >= amount {
                return Ok(sent);
            }
        }
    }

    /// Reads to the end: what was sent, and why each of its connections ended.
    async fn end(mut self) -> Result<(u64, Vec<String>)> {
        let deadline = Instant::now() + REFUSAL_TIMEOUT;
        loop {
            let line = self.line().await?;
            ensure!(Instant::now() < deadline, "it takes too long: {line}");
            if let Some(errors) = line["errors"].as_array() {
                let errors = errors.iter().map(ToString::to_string).collect();
                return Ok((units(&line["sent"])?, errors));
            }
        }
    }

    /// What it has said that nobody has read yet, when it does not go on.
    async fn kill(mut self) -> Result<Option<u64>> {
        self.process.kill().await?;
        let mut last = None;
        while let Some(line) = self.lines.next_line().await? {
            // The last line may have been cut off.
            if let Ok(line) = serde_json::from_str::<Value>(&line) {
                last = Some(units(&line["sent"])?);
            }
        }
        Ok(last)
    }
}

/// `ilp-protocol-spsp`'s `pay`: what it sent, and its error.
async fn pay(
    world: &World,
    modules: &Path,
    pointer: &str,
    amount: u64,
) -> Result<(u64, Option<String>)> {
    let arguments = ["pay", pointer, &amount.to_string()];
    let line = Payer::start(world, modules, &arguments)?.line().await?;
    let error = line["error"].as_str().map(str::to_owned);
    Ok((units(&line["sent"])?, error))
}

fn units(value: &Value) -> Result<u64> {
    let text = value.as_str().context("no amount")?;
    text.parse()
        .with_context(|| format!("{text} is not an amount"))
}

async fn ask(method: Method, url: &str, accept: Option<&str>) -> Result<Response> {
    let mut request = reqwest::Client::new().request(method, url);
    if let Some(accept) = accept {
        request = request.header("Accept", accept);
    }
    Ok(request.timeout(Duration::from_secs(20)).send().await?)
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    let value = response.headers().get(name);
    value
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

async fn is_refused(url: &str, headers: &[(&'static str, &str)], says: &str) -> Result<()> {
    let mut request = reqwest::Client::new().get(url).header("Accept", SPSP);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.send().await?;
    ensure!(
        response.status() == 400 && header(&response, "content-type") == "application/spsp4+json",
        "{response:?}"
    );
    let body: Value = response.json().await?;
    ensure!(
        body["id"] == "InvalidRequestError" && body["message"] == says,
        "{body}"
    );
    Ok(())
}

/// A good answer to a query.
async fn query(url: &str, accept: &str) -> Result<(String, String)> {
    let response = ask(Method::GET, url, Some(accept)).await?;
    ensure!(response.status() == 200, "{url}: {response:?}");
    ensure!(
        header(&response, "content-type") == "application/spsp4+json"
            && header(&response, "cache-control") == "no-cache"
            && header(&response, "access-control-allow-origin") == "*"
            && header(&response, "vary") == "accept",
        "{response:?}"
    );
    let body: Value = response.json().await?;
    let text = |name: &str| body[name].as_str().map(str::to_owned).context("not there");
    Ok((text("destination_account")?, text("shared_secret")?))
}

async fn is_no_receiver(url: &str) -> Result<()> {
    let response = ask(Method::GET, url, Some(SPSP)).await?;
    ensure!(
        response.status() == 404
            && header(&response, "content-type") == "application/spsp4+json"
            && header(&response, "access-control-allow-origin") == "*",
        "{response:?}"
    );
    let body: Value = response.json().await?;
    ensure!(
        body["id"] == "InvalidReceiverError" && body["message"].is_string(),
        "{body}"
    );
    Ok(())
}

async fn pointers_are_answered(api: &str, hash: &ManifestHash) -> Result<()> {
    let lease = format!("{api}/{hash}");
    let upper = format!("{api}/{}", hash.to_string().to_uppercase());
    let host = format!("{api}/.well-known/pay");
    let any = "text/html;q=0.9, application/spsp+json;q=0.5, */*;q=0.1";
    let mut secrets = Vec::new();
    for (url, accept) in [(&lease, SPSP), (&lease, any), (&upper, SPSP), (&host, SPSP)] {
        let (address, secret) = query(url, accept).await?;
        ensure!(address.starts_with("private.codius.spsp."), "{address}");
        ensure!(secret.len() == 44, "not 32 bytes with padding: {secret}");
        ensure!(
            !address.contains(&hash.to_string()),
            "the address tells who is paid"
        );
        secrets.push((address, secret));
    }
    secrets.sort();
    secrets.dedup_by(|one, other| one.0 == other.0 || one.1 == other.1);
    ensure!(secrets.len() == 4, "a secret was given out twice");

    // People and programs that know nothing of it see what they saw before.
    for url in [&lease, &host] {
        for accept in [Some("text/html"), Some("*/*"), None] {
            let page = ask(Method::GET, url, accept).await?;
            ensure!(page.status() == 200, "{page:?}");
            ensure!(
                header(&page, "content-type").starts_with("text/html"),
                "{page:?}"
            );
        }
        let head = ask(Method::HEAD, url, Some(SPSP)).await?;
        ensure!(
            head.status() == 200 && header(&head, "content-type") == "application/spsp4+json",
            "{head:?}"
        );
        let preflight = ask(Method::OPTIONS, url, None).await?;
        ensure!(
            preflight.status() == 204
                && header(&preflight, "access-control-allow-origin") == "*"
                && header(&preflight, "access-control-allow-methods").contains("GET"),
            "{preflight:?}"
        );
        for method in [Method::POST, Method::PUT, Method::DELETE] {
            let refused = ask(method, url, Some(SPSP)).await?;
            ensure!(
                refused.status() == 405 && header(&refused, "allow").contains("GET"),
                "{refused:?}"
            );
        }
        let with_query = format!("{url}?amount=5");
        is_refused(&with_query, &[], "a payment pointer has no query string").await?;
        let alone = "Receipt-Nonce is there without Receipt-Secret; receipts need both";
        is_refused(url, &[("Receipt-Nonce", NONCE)], alone).await?;
        let short = [("Receipt-Nonce", NONCE), ("Receipt-Secret", NONCE)];
        let too_short = "Receipt-Secret is 16 bytes long and has to be 32";
        is_refused(url, &short, too_short).await?;
        let typed = [
            ("Receipt-Nonce", "typed by hand"),
            ("Receipt-Secret", NONCE),
        ];
        is_refused(url, &typed, "Receipt-Nonce is not base64").await?;
    }
    ensure!(
        ask(Method::POST, &format!("{api}/favicon.ico"), None)
            .await?
            .status()
            == 404
    );
    is_no_receiver(&format!("{api}/favicon.ico")).await?;
    is_no_receiver(&format!("{api}/{}", ManifestHash::from_bytes([9; 32]))).await
}

/// A real verifier stands between payer and host: what it counts is what was paid, and it counts that
/// once.
async fn receipts_are_proof(world: &World, modules: &Path, pointer: &str) -> Result<u64> {
    const AMOUNT: u64 = 50_000;
    let free = || Ok::<_, std::io::Error>(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port());
    let (api, proxy) = (free()?, free()?);
    let mut node = std::process::Command::new("node");
    node.arg(modules.join("@coil/receipt-verifier/dist/index.js"))
        .env("SPSP_ENDPOINT", pointer)
        // In its own memory.
        .env("REDIS_URI", "mock")
        .env("VERIFIER_PORT", api.to_string())
        .env("SPSP_PROXY_PORT", proxy.to_string());
    let verifier = Background::start(&node, Listen::Output)?;
    for _ in ["its API", "its pointer"] {
        verifier.line_with("listening on port", SCRIPT_TIMEOUT)?;
    }

    let url = format!("http://127.0.0.1:{proxy}/");
    let arguments = ["prove", &url, &AMOUNT.to_string()];
    let proof = Payer::start(world, modules, &arguments)?.line().await?;
    let sent = units(&proof["sent"])?;
    ensure!(proof["enabled"] == true && sent == AMOUNT, "{proof}");
    let receipt = proof["receipt"].as_str().context("no receipt")?;
    let credit = async |receipt: String| -> Result<(u16, String)> {
        let url = format!("http://127.0.0.1:{api}/balances/payer:creditReceipt");
        let request = reqwest::Client::new().post(url).body(receipt);
        let response = request.timeout(SCRIPT_TIMEOUT).send().await?;
        Ok((response.status().as_u16(), response.text().await?))
    };
    // Byte 25 is the last one of the amount.
    let mut more = BASE64.decode(receipt.as_bytes())?;
    more[25] += 1;
    let forged = credit(BASE64.encode(&more)).await?;
    ensure!(forged == (400, "invalid hmac".to_owned()), "{forged:?}");
    let credited = credit(receipt.to_owned()).await?;
    ensure!(credited == (200, AMOUNT.to_string()), "{credited:?}");
    let again = credit(receipt.to_owned()).await?;
    ensure!(again == (400, "expired receipt".to_owned()), "{again:?}");
    Ok(sent)
}

/// Compares how far an expiry has moved with the time that so much money pays for.
fn moved(before: u64, after: u64, funded_ms: u64) -> Result<()> {
    let by = after.saturating_sub(before);
    ensure!(
        by.abs_diff(funded_ms) <= CLOCKS_MS,
        "the expiry moved by {by} ms and not by {funded_ms}"
    );
    Ok(())
}

/// Each payer has heard why, and of the end of its connection not twice: the answer to its payment says so,
/// and one who hears it before is gone when the answer comes.
fn refused_in_answers(errors: &[String], payers: usize, why: &str) -> Result<()> {
    ensure!(errors.len() == payers, "{errors:?}");
    for error in errors {
        let closes = error.matches("Remote connection error").count();
        ensure!(error.contains(why) && closes <= 1, "{error}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn anyone_adds_to_a_lease_by_its_hash_and_not_a_unit_is_lost() -> Result<()> {
    let mut world = World::start(Settings {
        max_duration_secs: AHEAD_SECS,
        ..Settings::default()
    })?;
    let npm = PAYER.install(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    let npm = npm.as_path();
    let busybox = world.busybox().await?;
    let rate = Rate::per_month("10".parse()?, &Asset::new("XRP", 9)?)?;
    let mut paid = Vec::new();

    // Its first visitor is its last one: so the test decides when its lease is over.
    let once = "echo bye | nc -l -p 8080";
    let upload = document("spsp", Some(8080), json!([shell("once", &busybox, once)]));
    let hash = hash_of(&upload);
    let api = |world: &World| world.api.replace("localhost", "127.0.0.1");
    let pointer = |world: &World| format!("{}/{hash}", api(world));
    is_no_receiver(&pointer(&world)).await?;
    // Nothing is taken for what is not there; the payer is told before it opens a connection.
    let (sent, error) = pay(&world, npm, &pointer(&world), 1000).await?;
    ensure!(sent == 0 && error.is_some_and(|error| error.contains("status=404")));

    let wallet = world.wallet().await?;
    let client = world.client();
    let bought = client.upload(&upload, 120, &wallet, PRICE_LIMIT).await?;
    paid.push(bought.receipt.paid);
    let mut funded = rate.funded_ms(bought.receipt.paid).context("free")?;
    pointers_are_answered(&api(&world), &hash).await?;

    // A top-up moves the expiry by the time that it pays for, for all who look at it.
    let mut expiry = bought.reply.expiry.get();
    let mut events = client.events(&hash).await?;
    for amount in [1, 100_000, 7] {
        let (sent, error) = pay(&world, npm, &pointer(&world), amount).await?;
        ensure!(sent == amount && error.is_none(), "{sent} {error:?}");
        paid.push(sent);
        let now_funded = rate.funded_ms(paid.iter().sum()).context("free")?;
        let now = client.pod(&hash).await?.expiry.get();
        moved(expiry, now, now_funded - funded)?;
        (expiry, funded) = (now, now_funded);
    }
    let told = async {
        while let Some(event) = events.next().await {
            if let LeaseEventKind::Phase(Phase::Running { expires_at, .. }) = event.kind
                && expires_at.get().abs_diff(expiry) <= CLOCKS_MS
            {
                return Ok(());
            }
        }
        bail!("the events do not tell the new expiry")
    };
    timeout(Duration::from_secs(20), told).await??;

    // The host itself is given something.
    let (gift, error) = pay(&world, npm, &api(&world), 4321).await?;
    ensure!(gift == 4321 && error.is_none(), "{gift} {error:?}");

    paid.push(receipts_are_proof(&world, npm, &pointer(&world)).await?);
    let now_funded = rate.funded_ms(paid.iter().sum()).context("free")?;
    let now = client.pod(&hash).await?.expiry.get();
    moved(expiry, now, now_funded - funded)?;
    (expiry, funded) = (now, now_funded);

    // Killed in the middle of a payment: what the payer has proof of is counted.
    const DROP: u64 = 1000;
    let arguments = ["drip", &pointer(&world), &DROP.to_string(), "1"];
    let mut payer = Payer::start(&world, npm, &arguments)?;
    let mut proven = payer.until_sent(20 * DROP).await?;
    world.kill()?;
    proven = payer.kill().await?.unwrap_or(proven);
    world.run()?;
    let client = world.client();
    let now = client.pod(&hash).await?.expiry.get();
    let total = |more: u64| rate.funded_ms(paid.iter().sum::<u64>() + more);
    let least = total(proven).context("free")? - funded;
    // One packet may have been recorded whose Fulfill did not leave any more.
    let most = total(proven + DROP).context("free")? - funded;
    let by = now.saturating_sub(expiry);
    ensure!(
        (least.saturating_sub(CLOCKS_MS)..=most + CLOCKS_MS).contains(&by),
        "the expiry moved by {by} ms, and {proven} units pay for {least} ms"
    );

    // Nobody pays further ahead than the host takes money for: not four payers together, each of whom
    // alone would have room for its payments,
    let arguments = ["drip", &pointer(&world), "50000", "4"];
    let payers = Payer::start(&world, npm, &arguments)?;
    let (filled, errors) = payers.end().await?;
    ensure!(filled > 0, "nothing was taken: {errors:?}");
    refused_in_answers(&errors, 4, "paid as far ahead as this host takes money for")?;
    paid.push(filled);
    // nor one that wants to pay a lot.
    let (filled, error) = pay(&world, npm, &pointer(&world), 1_000_000_000_000).await?;
    ensure!(filled > 0 && error.is_some(), "{filled} {error:?}");
    paid.push(filled);
    let wall_ms = u64::try_from(
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)?
            .as_millis(),
    )?;
    let expiry = client.pod(&hash).await?.expiry.get();
    let ahead = Seconds(AHEAD_SECS).millis();
    ensure!(
        expiry <= wall_ms + ahead + CLOCKS_MS && expiry + 60_000 > wall_ms + ahead,
        "{expiry} at {wall_ms}"
    );

    // It ends while eight payers pay. Each hears of it, and none has paid for nothing.
    // The lease is full, and takes only what its time makes room for: 3,805 units a second. A unit a
    // packet is about as much as eight of these payers can send, and room has grown while they start.
    let arguments = ["drip", &pointer(&world), "1", "8"];
    let mut payers = Payer::start(&world, npm, &arguments)?;
    payers.until_sent(40).await?;
    // Whatever it answers, it ends.
    let _ = world.visit(&hash.to_string(), "/").await?;
    let (dripped, errors) = payers.end().await?;
    refused_in_answers(&errors, 8, "does not run here")?;
    paid.push(dripped);
    world.nothing_remains().await?;
    is_no_receiver(&pointer(&world)).await?;
    ensure!(
        query(&format!("{}/.well-known/pay", api(&world)), SPSP)
            .await
            .is_ok()
    );

    // Everything that was paid is in the books, where it belongs.
    world.stop()?;
    let balances = world.balances().await?;
    let of = |name: &str| {
        let (_, balance) = balances.iter().find(|(account, _)| account == name)?;
        Some(*balance)
    };
    let (owed, earned) = (of(&format!("owed:{hash}")), of("earned"));
    let (owed, earned) = (
        owed.context("nothing is owed")?,
        earned.context("nothing is earned")?,
    );
    ensure!(
        balances.len() == 3 && of("local:clients") == Some(-owed - earned),
        "{balances:?}"
    );
    let known = i64::try_from(paid.iter().sum::<u64>() + gift + proven)?;
    let in_doubt = owed + earned - known;
    ensure!(
        in_doubt == 0 || in_doubt == i64::try_from(DROP)?,
        "{in_doubt} too much: {balances:?}, paid {paid:?}, gift {gift}, before the kill {proven}"
    );
    let gifts = world.entries(&Account::Earned).await?;
    let gifts: Vec<_> = gifts
        .iter()
        .filter(|entry| entry.reason == Reason::Gift)
        .collect();
    ensure!(
        gifts.iter().map(|entry| entry.amount).sum::<i64>() == i64::try_from(gift)?,
        "{gifts:?}"
    );
    Ok(())
}
