//! `ilp-fetch` 1.4.0, the payer of the original tools, unmodified and on the Node.js of its time, at each
//! route that is paid for; and `api.quote = "stream"`, for which the later tool asks (it is not on npm, but
//! its quote is this request).

mod support;

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use codius_api::ErrorBody;
use codius_testkit::{Background, Listen, NODE, Packages};
use reqwest::Method;
use serde_json::{Value, json};
use support::{Settings, World, document, hash_of, shell};

const FETCH: Packages<'_> = Packages {
    packages: &[("ilp-fetch", "1.4.0"), NODE],
    overrides: &[],
};
const ANSWER_TIMEOUT: Duration = Duration::from_secs(100);
/// How far apart two readings of one expiry are: it is derived from a balance, rounded.
const EXPIRY_SLACK_MS: u64 = 100;
/// Of 600 s and of 60 s at 10 XRP a month, in 10^-9 XRP.
const PRICE: u64 = 2_283_106;
const MINUTE: u64 = 228_311;

struct Payer<'a> {
    world: &'a World,
    modules: PathBuf,
}

/// One request.
struct Ask<'a> {
    method: &'a str,
    path: String,
    body: Option<&'a str>,
    most: Option<u64>,
    token: Option<[u8; 16]>,
}

impl<'a> Ask<'a> {
    fn upload(method: &'a str, body: &'a str, most: Option<u64>) -> Self {
        Self {
            method,
            path: "/pods?duration=600".to_owned(),
            body: Some(body),
            most,
            token: None,
        }
    }
}

impl Payer<'_> {
    /// What the user of `ilp-fetch` sees.
    fn ask(&self, ask: &Ask<'_>) -> Result<Value> {
        let mut options = json!({
            "url": format!("{}{}", self.world.api, ask.path),
            "method": ask.method,
            "headers": { "Content-Type": "application/json" },
        });
        if let Some(body) = ask.body {
            options["body"] = body.into();
        }
        if let Some(most) = ask.most {
            options["maxPrice"] = most.to_string().into();
        }
        if let Some(token) = ask.token {
            options["payToken"] = STANDARD.encode(token).into();
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node/fetch.js");
        let mut node = Command::new(self.modules.join(NODE.0).join("bin/node"));
        node.arg(script)
            .arg(options.to_string())
            .env("NODE_PATH", &self.modules)
            .env("ILP_BTP_SERVER", &self.world.interledger)
            .env_remove("ILP_PLUGIN")
            .env_remove("ILP_CREDENTIALS");
        let running = Background::start(&node, Listen::Output)?;
        Ok(serde_json::from_str(&running.line(ANSWER_TIMEOUT)?)?)
    }
}

/// Checks that a request was answered and exactly the price was paid.
fn paid(answer: &Value, price: u64) -> Result<()> {
    let asset = json!({ "assetCode": "XRP", "assetScale": 9 });
    let price = Value::from(price.to_string());
    ensure!(
        answer["status"] == 200 && answer["paid"] == price && answer["destination"] == asset,
        "{answer}"
    );
    Ok(())
}

/// Checks that too little was offered, and nothing was taken.
fn too_small(answer: &Value, price: u64) -> Result<()> {
    let detail = format!(
        "the price is {price}, and the payer sends at most {}; 0 arrived",
        price - 1
    );
    ensure!(
        answer["status"] == 402
            && answer["paid"] == "0"
            && answer["body"]["message"] == "Failed to get payment before timeout"
            && answer["body"]["cause"] == "payment_too_small"
            && answer["body"]["detail"] == detail,
        "{answer}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn ilp_fetch_pays_for_each_route_or_refuses_to() -> Result<()> {
    let modules = FETCH.install(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    let mut world = World::start(Settings {
        quote: "stream",
        ..Settings::default()
    })?;
    let failing = json!([shell("app", &world.busybox().await?, "exit 3")]);
    let failing = document("failing", None, failing);
    let asked = routes(&world, modules, &failing).await;
    asked.with_context(|| world.log())?;
    world.stop()?;
    let balances = world.balances().await?;
    let owed = (format!("owed:{}", hash_of(&failing)), i64::try_from(PRICE)?);
    let paid = (
        "local:clients".to_owned(),
        -i64::try_from(3 * PRICE + MINUTE)?,
    );
    ensure!(
        balances.contains(&paid) && balances.contains(&owed),
        "{balances:?}"
    );
    Ok(())
}

async fn routes(world: &World, modules: PathBuf, failing: &str) -> Result<()> {
    let payer = Payer { world, modules };
    let upload = document(
        "fetched",
        None,
        json!([shell("app", &world.busybox().await?, "sleep 1000")]),
    );
    let hash = hash_of(&upload);
    let expiry = async || Ok::<_, anyhow::Error>(world.client().pod(&hash).await?.expiry.get());

    // A quote: connected for nothing, told the asset by the connection, and the price by the answer.
    let answer = payer.ask(&Ask::upload("OPTIONS", &upload, Some(0)))?;
    paid(&answer, 0)?;
    let quote = json!({ "manifestHash": hash.to_string(), "price": PRICE.to_string() });
    ensure!(answer["body"] == quote, "{answer}");
    // The tool on npm does not get this far: it is for `quote = "plain"`.
    let answer = payer.ask(&Ask::upload("OPTIONS", &upload, None))?;
    let unwilling = "opts.maxPrice must be specified on paid request";
    ensure!(answer["error"] == unwilling, "{answer}");
    // Who sends no token is answered at once, as always.
    ensure!(world.client().quote(&upload, 600).await?.price.0 == PRICE);
    // The token of a quote is for nothing else, as long as it is not answered.
    let token = STANDARD.encode([7; 16]);
    let raw = |method: Method, query: &str| {
        reqwest::Client::new()
            .request(method, format!("{}/pods?{query}", world.api))
            .header("Pay-Token", &token)
    };
    let asked = raw(Method::OPTIONS, "duration=600").body(upload.clone());
    ensure!(asked.send().await?.status() == 402);
    let posted = raw(Method::POST, "duration=600").body(upload.clone());
    let refused: ErrorBody = posted.send().await?.json().await?;
    ensure!(
        refused.status_code == 400
            && refused.message == "this `Pay-Token` belongs to another request.",
        "{refused:?}"
    );

    // An upload: not without a limit, not below the price; then paid, exactly.
    let answer = payer.ask(&Ask::upload("POST", &upload, None))?;
    ensure!(answer["error"] == unwilling, "{answer}");
    let answer = payer.ask(&Ask::upload("POST", &upload, Some(PRICE - 1)))?;
    too_small(&answer, PRICE)?;
    ensure!(world.client().pod(&hash).await.is_err(), "it runs");
    let answer = payer.ask(&Ask::upload("POST", &upload, Some(PRICE)))?;
    paid(&answer, PRICE)?;
    let first = expiry().await?;
    let answer = payer.ask(&Ask::upload("POST", &upload, Some(10 * PRICE)))?;
    paid(&answer, PRICE)?;
    let second = expiry().await?;
    ensure!(
        second.abs_diff(first + 600_000) <= EXPIRY_SLACK_MS,
        "{first} {second}"
    );

    // More time by the hash alone.
    let extend = |most: u64, token: Option<[u8; 16]>| Ask {
        method: "PUT",
        path: format!("/pods?manifestHash={hash}&duration=60"),
        body: None,
        most: Some(most),
        token,
    };
    too_small(&payer.ask(&extend(MINUTE - 1, None))?, MINUTE)?;
    ensure!(expiry().await?.abs_diff(second) <= EXPIRY_SLACK_MS);
    let token = [9; 16];
    let answer = payer.ask(&extend(MINUTE, Some(token)))?;
    paid(&answer, MINUTE)?;
    let third = expiry().await?;
    ensure!(
        third.abs_diff(second + 60_000) <= EXPIRY_SLACK_MS,
        "{second} {third}"
    );

    // A token pays once. In the original it was good for ever.
    let again = payer.ask(&extend(10 * MINUTE, Some(token)))?;
    ensure!(
        again["status"] == 200 && again["paid"] == "0" && again["body"] == answer["body"],
        "{again}"
    );
    let other = Ask {
        path: format!("/pods?manifestHash={hash}&duration=61"),
        ..extend(10 * MINUTE, Some(token))
    };
    let answer = payer.ask(&other)?;
    ensure!(
        answer["status"] == 400 && answer["body"]["cause"] == "token_used",
        "{answer}"
    );
    ensure!(expiry().await?.abs_diff(third) <= EXPIRY_SLACK_MS);

    // Nobody is asked to pay for what is not there.
    let nobody = "a".repeat(52);
    let answer = payer.ask(&Ask {
        path: format!("/pods?manifestHash={nobody}&duration=60"),
        ..extend(MINUTE, None)
    })?;
    ensure!(
        answer["status"] == 404 && answer["paid"] == "0" && answer["destination"].is_null(),
        "{answer}"
    );

    // What does not come up is not kept. `ilp-fetch` takes nothing back, so it is owed to the program.
    let answer = payer.ask(&Ask::upload("POST", failing, Some(PRICE)))?;
    let price = Value::from(PRICE.to_string());
    ensure!(
        answer["status"] == 422
            && answer["body"]["cause"] == "program_failed"
            && answer["paid"] == price
            && answer["body"]["owed"] == price
            && answer["body"]["refunded"].is_null(),
        "{answer}"
    );
    Ok(())
}
