//! Version 1 of the HTTP API in tables: every status, header and text that can be had without a pod, against
//! the real `codiusd`. The tables are in `tests/v1`; `docs/compatibility.md` says where they differ from the
//! original and why. What the original answers was read off the original itself (hapi 17.5, Node.js 10).
//!
//! In the tables, `TOKEN` is a fresh `Pay-Token`, `NOBODY` a hash that nobody has, `IMAGE` an image that is
//! there, `REGISTRY` where it is, and `HALF_PAIR` an escape that JSON tools cannot write. `set` and `remove`
//! change an upload that is accepted, by JSON pointers.

mod support;

use anyhow::{Context, Result, ensure};
use codius_api::reason_phrase;
use codius_client::PayToken;
use reqwest::{Method, header::HeaderMap};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use support::{Settings, World};

/// What the page of the host shows, by the ids that the original's page gave its cells.
const CELLS: [&str; 9] = [
    "uri",
    "numPeers",
    "serverUptime",
    "serviceUptime",
    "avgLoad",
    "currency",
    "costPerMonth",
    "memory",
    "fullMem",
];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    case: String,
    /// Method, path and query; quotes and uploads alike if it is not there.
    request: Option<String>,
    /// Those that are null are not sent.
    #[serde(default)]
    headers: Map<String, Value>,
    /// Text as it is, everything else as JSON.
    body: Option<Value>,
    /// A body of so many spaces.
    spaces: Option<usize>,
    set: Option<Map<String, Value>>,
    #[serde(default)]
    remove: Vec<String>,

    status: u16,
    /// The text of an error.
    message: Option<String>,
    /// Members of the answer, perhaps among others.
    #[serde(default)]
    reply: Map<String, Value>,
    #[serde(default)]
    types: Map<String, Value>,
    #[serde(default)]
    absent: Vec<String>,
    /// What headers of the answer begin with.
    #[serde(default)]
    reply_headers: Map<String, Value>,
    /// It is the page of the host.
    #[serde(default)]
    page: bool,
    /// The place that the answer names.
    at: Option<String>,
    /// The hash is the one of this change.
    same_as: Option<Map<String, Value>>,
}

/// A host and what the tables name.
struct Host {
    world: World,
    image: String,
    http: reqwest::Client,
}

/// What came back.
struct Reply {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Host {
    async fn start(settings: Settings) -> Result<Self> {
        let world = World::start(settings)?;
        let image = world.busybox().await?;
        let http = reqwest::Client::new();
        Ok(Self { world, image, http })
    }

    /// Puts in what the table names.
    fn fill(&self, text: &str) -> String {
        text.replace("TOKEN", &PayToken::random().header())
            .replace("NOBODY", &"a".repeat(52))
            .replace("IMAGE", &self.image)
            .replace("REGISTRY", &self.world.registry.host())
            .replace("HALF_PAIR", "\\ud800")
    }

    /// An upload that is accepted, but for some changes.
    fn upload(&self, set: &Map<String, Value>, remove: &[String]) -> Result<String> {
        let mut upload = json!({ "manifest": {
            "name": "n", "version": "1",
            "containers": [{ "id": "app", "image": "IMAGE" }],
        } });
        for (pointer, value) in set {
            let (place, name) = pointer.rsplit_once('/').context("no pointer")?;
            match upload.pointer_mut(place) {
                Some(Value::Array(list)) => list[name.parse::<usize>()?] = value.clone(),
                Some(place) => place[name] = value.clone(),
                None => anyhow::bail!("{pointer} leads nowhere"),
            }
        }
        for pointer in remove {
            let (place, name) = pointer.rsplit_once('/').context("no pointer")?;
            let removed = upload
                .pointer_mut(place)
                .and_then(Value::as_object_mut)
                .and_then(|place| place.remove(name));
            ensure!(removed.is_some(), "{pointer} leads nowhere");
        }
        Ok(self.fill(&upload.to_string()))
    }

    fn body(&self, case: &Case) -> Result<Option<String>> {
        if let Some(count) = case.spaces {
            return Ok(Some(" ".repeat(count)));
        }
        if let Some(set) = &case.set {
            return self.upload(set, &case.remove).map(Some);
        }
        Ok(case.body.as_ref().map(|body| match body {
            Value::String(text) => text.clone(),
            other => self.fill(&other.to_string()),
        }))
    }

    async fn send(
        &self,
        request: &str,
        headers: &Map<String, Value>,
        body: Option<String>,
    ) -> Result<Reply> {
        let (method, path) = request.split_once(' ').context("no method")?;
        let port = self.world.api.rsplit(':').next().context("no port")?;
        let url = format!("http://127.0.0.1:{port}{}", self.fill(path));
        let mut request = self.http.request(method.parse::<Method>()?, url);
        if let Some(body) = body {
            if !headers.contains_key("Content-Type") {
                request = request.header("Content-Type", "application/json");
            }
            request = request.body(body);
        }
        for (name, value) in headers {
            if let Some(text) = value.as_str() {
                request = request.header(name, self.fill(text));
            }
        }
        let reply = request.send().await?;
        Ok(Reply {
            status: reply.status().as_u16(),
            headers: reply.headers().clone(),
            text: reply.text().await?,
        })
    }

    /// Tries one case, and says what is wrong.
    async fn check(&self, case: &Case) -> Result<()> {
        let requests = match &case.request {
            Some(request) => vec![request.as_str()],
            // What is accepted would be paid for.
            None if case.status == 200 => vec!["OPTIONS /pods"],
            None => vec!["OPTIONS /pods", "POST /pods"],
        };
        for request in requests {
            let mut headers = case.headers.clone();
            if case.request.is_none() {
                headers.insert("Pay-Token".to_owned(), "TOKEN".into());
            }
            let reply = self.send(request, &headers, self.body(case)?).await?;
            let said = format!("{request}: {} {}", reply.status, reply.text);
            ensure!(reply.status == case.status, "{said}");
            if request.starts_with("HEAD") {
                continue;
            }
            if case.page {
                is_page(&reply).with_context(|| said)?;
                continue;
            }
            self.is_json(case, &reply).with_context(|| said)?;
            if let Some(set) = &case.same_as {
                let other = self.upload(set, &[])?;
                let other = self.send(request, &headers, Some(other)).await?;
                ensure!(other.text == reply.text, "{} {}", other.text, reply.text);
            }
        }
        Ok(())
    }

    fn is_json(&self, case: &Case, reply: &Reply) -> Result<()> {
        let header = |name: &str| {
            let value = reply.headers.get(name);
            value
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
        };
        // What is below /api/ has another.
        let kind = case.reply_headers.get("content-type");
        let kind = kind.and_then(Value::as_str);
        ensure!(header("content-type") == kind.unwrap_or("application/json; charset=utf-8"));
        ensure!(header("cache-control") == "no-cache");
        ensure!(header("access-control-allow-origin").is_empty());
        let body: Map<String, Value> = serde_json::from_str(&reply.text)?;
        if let Some(message) = &case.message {
            ensure!(body["message"] == self.fill(message), "another message");
            ensure!(body["statusCode"] == case.status, "another statusCode");
            ensure!(body["error"] == reason_phrase(case.status), "another error");
        }
        for (name, value) in &case.reply {
            ensure!(body.get(name) == Some(value), "another {name}");
        }
        for (name, kind) in &case.types {
            let found = match body.get(name) {
                None | Some(Value::Null) => "nothing",
                Some(Value::Bool(_)) => "boolean",
                Some(Value::Number(_)) => "number",
                Some(Value::String(_)) => "string",
                Some(Value::Array(_)) => "array",
                Some(Value::Object(_)) => "object",
            };
            ensure!(kind == found, "{name} is {found}");
        }
        for name in &case.absent {
            ensure!(!body.contains_key(name), "there is {name}");
        }
        for (name, begin) in &case.reply_headers {
            let begin = begin.as_str().context("no text")?;
            ensure!(header(name).starts_with(begin), "{name}: {}", header(name));
        }
        if let Some(at) = &case.at {
            let detail = body["detail"].as_str().unwrap_or_default();
            ensure!(detail.contains(at), "it does not name {at}");
        }
        Ok(())
    }
}

fn is_page(reply: &Reply) -> Result<()> {
    ensure!(reply.headers["content-type"] == "text/html; charset=utf-8");
    ensure!(reply.headers["cache-control"] == "no-cache");
    for id in CELLS {
        let count = reply.text.matches(&format!("id=\"{id}\"")).count();
        ensure!(count == 1, "{count} cells {id}");
    }
    Ok(())
}

/// Tries a whole table, and says everything that is wrong.
async fn table(text: &str, settings: Settings) -> Result<()> {
    let cases: Vec<Case> = serde_json::from_str(text)?;
    let mut host = Host::start(settings).await?;
    let mut wrong = Vec::new();
    for case in &cases {
        if let Err(error) = host.check(case).await {
            wrong.push(format!("{}: {error:#}", case.case));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    host.world.stop()?;
    let balances = host.world.balances().await?;
    ensure!(balances.is_empty(), "somebody paid: {balances:?}");
    Ok(())
}

#[tokio::test]
async fn the_host_and_its_page() -> Result<()> {
    table(include_str!("v1/server.json"), Settings::default()).await
}

#[tokio::test]
async fn uploads_quotes_and_extensions() -> Result<()> {
    table(include_str!("v1/pods.json"), Settings::default()).await
}

#[tokio::test]
async fn a_host_without_room() -> Result<()> {
    let settings = Settings {
        memory_mib: 100,
        ..Settings::default()
    };
    table(include_str!("v1/full.json"), settings).await
}

#[tokio::test]
async fn what_a_manifest_may_be() -> Result<()> {
    table(include_str!("v1/manifest.json"), Settings::default()).await
}

#[tokio::test]
async fn names_of_pods() -> Result<()> {
    table(include_str!("v1/proxy.json"), Settings::default()).await
}

/// Prices are those of the original (bignumber.js) at 10 units a month and scale 6; what it priced below
/// zero, at fractions of seconds or at infinity is refused.
#[tokio::test]
async fn durations_and_their_prices() -> Result<()> {
    #[derive(Deserialize)]
    struct Row {
        duration: Option<String>,
        price: Option<String>,
    }
    let rows: Vec<Row> = serde_json::from_str(include_str!("v1/durations.json"))?;
    let mut host = Host::start(Settings {
        asset_scale: 6,
        ..Settings::default()
    })
    .await?;
    let upload = host.upload(&Map::new(), &[])?;
    for Row { duration, price } in rows {
        let query = duration.map_or(String::new(), |text| format!("?duration={text}"));
        let quote = format!("OPTIONS /pods{query}");
        let reply = host.send(&quote, &Map::new(), Some(upload.clone())).await?;
        let body: Value = serde_json::from_str(&reply.text)?;
        let expected = match price {
            Some(price) => reply.status == 200 && body["price"] == price,
            None => reply.status == 400 && body["message"] == "Invalid request query input",
        };
        ensure!(expected, "{quote}: {} {body}", reply.status);
    }
    host.world.stop()
}
