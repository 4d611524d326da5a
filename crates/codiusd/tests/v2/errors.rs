//! How version 2 says no: with RFC 9457's media type, in one sentence and a next step.

use anyhow::{Result, ensure};
use codius_manifest::ManifestHash;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    caller::{Call, Caller, Reply},
    document::conforms,
    support::{Settings, World},
};

/// An error as every error must be.
fn problem(reply: &Reply, status: u16, what: &str) -> Result<Value> {
    ensure!(reply.status == status, "{what}: {reply:?}");
    ensure!(
        reply.header("content-type") == "application/problem+json",
        "{what}: {reply:?}"
    );
    let body = reply.json()?;
    conforms("Problem", &body)?;
    ensure!(body["next"].is_string(), "{what}: no next step: {body}");
    ensure!(
        body["status"] == status && body["statusCode"] == status,
        "{what}: {body}"
    );
    let challenge = reply.header("www-authenticate");
    ensure!(
        challenge == if status == 401 { "Signature" } else { "" },
        "{what}: {challenge:?}"
    );
    Ok(body)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_error_is_a_problem_with_a_next_step() -> Result<()> {
    let world = World::start(Settings::default())?;
    let caller = Caller::new(&world, 1)?;
    let unknown = ManifestHash::from_bytes([7; 32]);
    let lease = format!("/api/v2/leases/{unknown}");
    let manifest = json!({
        "name": "errors", "version": "1", "machine": "small",
        "containers": [{ "id": "app", "image": format!("{}/no/such:1", world.registry.host()) }],
    });
    let wanted = json!({ "manifest": manifest, "duration_seconds": 60 });
    let changed = |member: &str, value: Value| {
        let mut body = wanted.clone();
        body[member] = value;
        body
    };
    let quotes = |body: &Value| Call::post("/api/v2/quotes", body);
    let creation = |body: &Value| Call::post("/api/v2/leases", body).with_token();
    let too_long = "x".repeat(1024 * 1024 + 1);

    for (what, call, status) in [
        ("path", Call::get("/api/v2/nothing"), 404),
        ("path of no version", Call::get("/api/"), 404),
        (
            "method",
            Call::get("/api/v2/host").method(Method::DELETE),
            405,
        ),
        ("method", Call::get(&lease).method(Method::PUT), 405),
        (
            "no body",
            Call::get("/api/v2/quotes").method(Method::POST),
            400,
        ),
        ("no JSON", quotes(&wanted).body("{"), 400),
        ("no object", quotes(&json!([])), 400),
        ("a member more", quotes(&changed("more", json!(1))), 400),
        (
            "no time",
            quotes(&changed("duration_seconds", json!(0))),
            400,
        ),
        (
            "half a second",
            quotes(&changed("duration_seconds", json!(0.5))),
            400,
        ),
        (
            "too much time",
            quotes(&changed("duration_seconds", json!(u64::MAX))),
            400,
        ),
        (
            "no manifest",
            quotes(&json!({ "duration_seconds": 60 })),
            400,
        ),
        (
            "a wrong manifest",
            quotes(&changed("manifest", json!({}))),
            400,
        ),
        ("too long", quotes(&wanted).body(too_long.clone()), 413),
        ("no token", Call::post("/api/v2/leases", &wanted), 400),
        (
            "a wrong token",
            Call::post("/api/v2/leases", &wanted).header("Pay-Token", "x"),
            400,
        ),
        ("an image that is nowhere", creation(&wanted), 422),
        ("a member more", creation(&changed("more", json!(1))), 400),
        ("lease", Call::get(&lease), 404),
        ("no hash", Call::get("/api/v2/leases/x"), 404),
        ("no text", Call::get("/api/v2/leases/%ff"), 404),
        ("events", Call::get(format!("{lease}/events")), 404),
        ("logs", Call::get(format!("{lease}/logs")), 404),
        ("usage, unsigned", Call::get(format!("{lease}/usage")), 401),
        (
            "extension",
            Call::post(format!("{lease}/extend"), &json!({ "duration_seconds": 5 })).with_token(),
            404,
        ),
        (
            "extension without a token",
            Call::post(format!("{lease}/extend"), &json!({ "duration_seconds": 5 })),
            400,
        ),
        (
            "stop, not signed",
            Call::post(format!("{lease}/stop"), &json!({})),
            401,
        ),
    ] {
        let body = problem(&caller.send(&call).await?, status, what)?;
        ensure!(
            !body.to_string().contains("xxxxxxxx"),
            "it gives back what it was sent"
        );
    }

    // A price needs no private values; a program does, and the right ones.
    let mut hidden = wanted.clone();
    let hash = "0".repeat(64);
    hidden["manifest"]["vars"] = json!({ "KEY": { "encoding": "private:sha256", "value": hash } });
    hidden["manifest"]["containers"][0]["environment"] = json!({ "KEY": "$KEY" });
    let reply = caller.send(&quotes(&hidden)).await?;
    ensure!(reply.status == 200, "{reply:?}");
    problem(&caller.send(&creation(&hidden)).await?, 422, "no private")?;
    hidden["private"] = json!({ "vars": { "KEY": { "nonce": "1", "value": "wrong" } } });
    problem(&caller.send(&quotes(&hidden)).await?, 422, "wrong private")?;

    let stop = |body: &Value| Call::post(format!("{lease}/stop"), body);
    let reply = caller.signed(stop(&json!({}))).await?;
    problem(&reply, 404, "stop of nothing")?;
    for body in [
        json!({ "refunds": 1 }),
        json!({ "refund": { "destination_account": "test.a" } }),
    ] {
        let reply = caller.signed(stop(&body)).await?;
        problem(&reply, 400, "stop")?;
    }
    let refund = json!({ "refund": { "destination_account": "x", "shared_secret": "x" } });
    let body = problem(&caller.signed(stop(&refund)).await?, 400, "refund")?;
    ensure!(
        body["message"].to_string().contains("destination_account"),
        "{body}"
    );

    // Signed, and not as it must be.
    for (what, call) in [
        ("old", caller.sign_at(stop(&json!({})), -400)?),
        ("new", caller.sign_at(stop(&json!({})), 60)?),
        ("another body", caller.sign(stop(&json!({})))?.body("{ }")),
        (
            "another method",
            caller
                .sign(stop(&json!({})))?
                .method(Method::PUT)
                .method(Method::POST)
                .header("Content-Digest", "sha-256=:AAAA:"),
        ),
        ("half", stop(&json!({})).header("Signature", "sig1=:AAAA:")),
        (
            "nonsense",
            stop(&json!({}))
                .header("Signature", "?")
                .header("Signature-Input", "?"),
        ),
    ] {
        let reply = caller.send(&call).await?;
        problem(&reply, 401, what)?;
        ensure!(
            !reply.header("date").is_empty(),
            "no clock to set one by: {reply:?}"
        );
    }
    // A creation need not be signed, but if it is, rightly.
    let old = caller.sign_at(creation(&wanted), -400)?;
    problem(&caller.send(&old).await?, 401, "creation")?;

    // A token is for one request, whichever version it is of.
    let image = world.busybox().await?;
    let mut runs = wanted.clone();
    runs["manifest"]["containers"][0]["image"] = json!(image);
    let first = creation(&runs);
    let demand = caller.send(&first).await?;
    ensure!(
        demand.header("pay").starts_with("interledger-stream "),
        "{demand:?}"
    );
    problem(&demand, 402, "demand")?;
    runs["duration_seconds"] = json!(61);
    let other = first.clone().body(runs.to_string());
    let body = problem(
        &caller.send(&other).await?,
        400,
        "another request with its token",
    )?;
    ensure!(body["cause"] == "token_used", "{body}");
    // Signed or not, it is the same request.
    let same = caller.signed(first).await?;
    ensure!(same.header("pay") == demand.header("pay"), "{same:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_no_money_is_answered() -> Result<()> {
    let world = World::start(Settings::default())?;
    let caller = Caller::new(&world, 1)?;
    let host = caller.send(&Call::get("/api/v2/host")).await?.json()?;
    conforms("Host", &host)?;
    ensure!(host["uri"] == world.api, "{host}");
    ensure!(
        host["payment_pointer"] == format!("${}", world.api.trim_start_matches("http://")),
        "{host}"
    );
    let served = caller.send(&Call::get("/api/v2/openapi.json")).await?;
    ensure!(
        served.text == crate::document::TEXT,
        "another document is served"
    );

    // A quote asks no registry.
    let manifest = json!({
        "name": "quote", "version": "1", "machine": "small",
        "containers": [{ "id": "app", "image": "no-such-registry.invalid/a:1" }],
    });
    let wanted = json!({ "manifest": manifest, "duration_seconds": 600 });
    let quote = caller
        .send(&Call::post("/api/v2/quotes", &wanted))
        .await?
        .json()?;
    conforms("Quote", &quote)?;
    ensure!(
        quote["runs"] == false && quote["duration_seconds"] == 600,
        "{quote}"
    );
    // The same as version 1 says.
    let posted = json!({ "manifest": manifest }).to_string();
    let old = world.client().quote(&posted, 600).await?;
    ensure!(
        quote["manifest_hash"] == old.manifest_hash.to_string()
            && quote["price"] == old.price.to_string(),
        "{quote} {old:?}"
    );
    Ok(())
}
