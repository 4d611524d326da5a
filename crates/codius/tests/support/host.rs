//! Hosts as no real one is: each has a character, which is what it does to those who pay.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use codius_manifest::{ManifestVersion, quoted};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::network::{Network, Till};

/// What an honest host asks for 600 s at 10 XRP a month.
pub(crate) const FAIR: u64 = 2_283_106;
/// Far over every limit of these tests.
pub(crate) const GREEDY: u64 = 1_000_000_000;

/// When everything ends that runs here.
pub(crate) const EXPIRY: &str = "2026-11-25T18:00:00.000Z";
/// With what the original sends each second, at which its own tool stopped.
const LOG: &str = "_app stdout one\nping\n_app stderr two\nping\n_app stdout three\n";

/// What a host does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Character {
    /// What it says.
    Honest,
    /// Quotes little and asks for much in its 402.
    AsksMuch,
    /// Quotes little, asks for nothing in particular, and takes all that it can get.
    TakesAll,
    /// Quotes nothing and asks for much.
    QuotesNothing,
    /// Takes the connection and never answers.
    Silent,
    /// Answers something that is not of this world.
    Garbage,
    /// Takes the money and fails.
    TakesAndFails,
    /// Takes the money, fails, and gives it back.
    GivesBack,
    /// Takes the money and is not heard of again.
    TakesAndGoes,
    /// Fails before it has taken anything.
    FailsFirst,
    /// Says that it runs something else.
    RunsAnother,
    /// Computes another hash.
    Misnames,
    /// Counts in another asset.
    Foreign,
    /// Has no room.
    Full,
    /// Publishes a low price and quotes a high one.
    QuotesMuch,
}

pub(crate) struct Host {
    pub(crate) url: String,
    state: Arc<Behaviour>,
}

struct Behaviour {
    character: Character,
    /// Version of the API; 0 is the original host, which has version 1 only and wants to be paid
    /// nothing for a quote.
    version: u8,
    /// What a month costs, in whole XRP.
    monthly: u64,
    network: Arc<Network>,
    tills: Mutex<HashMap<String, Till>>,
    address: SocketAddr,
    peers: Vec<String>,
    quotes: AtomicUsize,
    paid_requests: AtomicUsize,
    last_document: Mutex<Option<Value>>,
}

impl Host {
    pub(crate) async fn start(network: &Arc<Network>, character: Character, version: u8) -> Self {
        Self::with(network, character, version, 10, Vec::new()).await
    }

    pub(crate) async fn with(
        network: &Arc<Network>,
        character: Character,
        version: u8,
        monthly: u64,
        peers: Vec<String>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let state = Arc::new(Behaviour {
            character,
            version,
            monthly,
            network: Arc::clone(network),
            tills: Mutex::default(),
            address,
            peers,
            quotes: AtomicUsize::new(0),
            paid_requests: AtomicUsize::new(0),
            last_document: Mutex::default(),
        });
        let router = Router::new()
            .fallback(answer)
            .with_state(Arc::clone(&state));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self {
            url: format!("http://{address}"),
            state,
        }
    }

    /// How often it was asked what the program costs: each time it has seen the program.
    pub(crate) fn quotes(&self) -> usize {
        self.state.quotes.load(Ordering::SeqCst)
    }

    /// How often it was asked to run the program.
    pub(crate) fn paid_requests(&self) -> usize {
        self.state.paid_requests.load(Ordering::SeqCst)
    }

    /// What was posted to it last.
    pub(crate) fn last_document(&self) -> Value {
        self.state.last_document()
    }
}

async fn answer(
    State(host): State<Arc<Behaviour>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    match host.character {
        Character::Silent => {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            return StatusCode::OK.into_response();
        }
        Character::Garbage => {
            return "<html>\u{1b}[2J{\"price\": -1, \"asset\": []}".into_response();
        }
        _ => {}
    }
    let v2 = host.version == 2;
    let logs = uri.path().ends_with("/logs");
    match (method.as_str(), uri.path()) {
        ("GET", _) if logs && !v2 => LOG.into_response(),
        ("GET", "/pods") if !v2 => host.pod(),
        ("PUT", "/pods") if !v2 => host.order(&headers, &body).await,
        ("OPTIONS", "/pods") if host.version == 0 => host.quote_by_payment(&headers, &body).await,
        ("GET", "/api/v2/host") if v2 => host.about_v2(),
        ("GET", "/info") if !v2 => host.about_v1(),
        ("GET", "/peers") => reply(200, &json!({ "peers": host.peers })),
        ("OPTIONS", "/pods") if !v2 => host.quote(&body),
        ("POST", "/api/v2/quotes") if v2 => host.quote(&body),
        ("POST", "/pods") if !v2 => host.order(&headers, &body).await,
        ("POST", "/api/v2/leases") if v2 => host.order(&headers, &body).await,
        ("GET", path) if v2 && path.starts_with("/api/v2/leases/") => host.lease(path),
        // The original has a page for whoever asks for anything.
        ("GET", _) if host.version == 0 => "<!DOCTYPE html><table id=\"uri\">".into_response(),
        _ => refuse(404, "Not Found"),
    }
}

impl Behaviour {
    fn last_document(&self) -> Value {
        let last = self.last_document.lock().expect("nobody panics");
        last.clone().unwrap_or_default()
    }

    fn asset(&self) -> Value {
        let code = match self.character {
            Character::Foreign => "USD",
            _ => "XRP",
        };
        json!({ "code": code, "scale": 9 })
    }

    fn per_second(&self) -> String {
        (self.monthly * 1_000_000_000 / 2_628_000).to_string()
    }

    fn has_room(&self) -> bool {
        self.character != Character::Full
    }

    fn about_v2(&self) -> Response {
        let about = json!({
            "name": "Host of a test", "version": "0.0.0", "uri": format!("http://{}", self.address),
            "asset": self.asset(),
            "price": { "per_second": self.per_second(), "per_month": self.monthly.to_string() },
            "duration": { "min_seconds": 1, "max_seconds": 2_678_400 },
            "machines": [
                { "name": "small", "vcpus": 1, "memory_mib": 512 },
                {
                    "name": "medium", "vcpus": 2, "memory_mib": 1024, "disk_mib": 2048,
                    "price": { "per_second": "1", "per_month": (3 * self.monthly).to_string() },
                    "has_room": self.has_room()
                }
            ],
            "isolation": { "kind": "tcg", "reason": "it is none" },
            "capacity": { "accepting_uploads": self.has_room(), "free_memory_bytes": 0, "running_pods": 0 },
            "load_1m_per_core": 0.5, "uptime_seconds": 1, "payment_pointer": "$host.example", "peers": 0
        });
        reply(200, &about)
    }

    fn about_v1(&self) -> Response {
        let about = json!({
            "fullMem": !self.has_room(), "acceptingUploads": self.has_room(), "serverFreeMemory": 0,
            "serverUptime": 1, "serviceUptime": 1, "avgLoad": 0.5, "numPeers": 0,
            "currency": self.asset()["code"], "costPerMonth": self.monthly,
            "uri": format!("http://{}", self.address), "selfTestSuccess": true
        });
        if self.version == 0 {
            return reply(200, &about);
        }
        let more = json!({
            "isolation": "tcg", "asset": self.asset(), "version": "0.0.0",
            "isolation_reason": "it is none", "price_per_second": self.per_second()
        });
        let members = about
            .as_object()
            .into_iter()
            .chain(more.as_object())
            .flatten();
        let all: serde_json::Map<_, _> = members
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        reply(200, &Value::Object(all))
    }

    fn quoted(&self) -> u64 {
        let honest = FAIR * self.monthly / 10;
        match self.character {
            Character::QuotesNothing => 0,
            Character::QuotesMuch => GREEDY,
            _ => honest,
        }
    }

    /// What it says that the hash is.
    fn hash(&self, body: &[u8]) -> Option<String> {
        if self.character == Character::Misnames {
            return Some("a".repeat(52));
        }
        let mut document: Value = serde_json::from_slice(body).ok()?;
        document.as_object_mut()?.remove("duration_seconds");
        let text = document.to_string();
        *self.last_document.lock().expect("nobody panics") = Some(document);
        let own = format!("http://{}", self.address);
        let quoted = quoted(ManifestVersion::V2, text.as_bytes(), &own).ok()?;
        Some(quoted.hash.to_string())
    }

    fn quote(&self, body: &[u8]) -> Response {
        self.quotes.fetch_add(1, Ordering::SeqCst);
        let Some(hash) = self.hash(body) else {
            return refuse(422, "the manifest is not valid");
        };
        let price = self.quoted().to_string();
        if self.version != 2 {
            return reply(200, &json!({ "manifestHash": hash, "price": price }));
        }
        let quote = json!({
            "manifest_hash": hash, "duration_seconds": 600, "price": price,
            "price_per_second": self.per_second(), "asset": self.asset(), "runs": false
        });
        reply(200, &quote)
    }

    /// The original first asks for a payment of nothing.
    async fn quote_by_payment(&self, headers: &HeaderMap, body: &[u8]) -> Response {
        let token = headers.get("pay-token").and_then(|it| it.to_str().ok());
        let Some(token) = token.map(str::to_owned) else {
            return refuse(400, "must supply `Pay-Token` header.");
        };
        let known = self
            .tills
            .lock()
            .expect("nobody panics")
            .contains_key(&token);
        if known {
            return self.quote(body);
        }
        self.ask(token)
    }

    /// What was posted last runs.
    fn pod(&self) -> Response {
        let document = self.last_document.lock().expect("nobody panics").clone();
        let Some(document) = document else {
            return refuse(404, "No manifest with that hash");
        };
        let hash = self.hash(document.to_string().as_bytes());
        let pod = json!({
            "url": format!("http://{}.{}/", hash.clone().unwrap_or_default(), self.address),
            "manifestHash": hash, "expiry": EXPIRY, "manifest": document["manifest"]
        });
        reply(200, &pod)
    }

    /// A lease of what was posted last.
    fn lease(&self, path: &str) -> Response {
        let document = self.last_document();
        let hash = self.hash(document.to_string().as_bytes());
        match hash {
            Some(hash) if path.ends_with(&hash) => reply(200, &self.lease_of(&hash)),
            _ => refuse(404, "no lease with that hash"),
        }
    }

    fn lease_of(&self, hash: &str) -> Value {
        json!({
            "manifest_hash": hash, "state": "running",
            "url": format!("http://{hash}.{}/", self.address),
            "manifest": self.last_document()["manifest"],
            "created_at": "2026-11-25T17:50:00.000Z", "expires_at": EXPIRY, "balance": "1",
            "price_per_second": self.per_second(), "asset": self.asset(),
            "ended": null
        })
    }

    async fn order(&self, headers: &HeaderMap, body: &[u8]) -> Response {
        let token = headers.get("pay-token").and_then(|it| it.to_str().ok());
        let Some(token) = token.map(str::to_owned) else {
            return refuse(400, "must supply `Pay-Token` header.");
        };
        let known = self
            .tills
            .lock()
            .expect("nobody panics")
            .get(&token)
            .cloned();
        let Some(till) = known else {
            self.paid_requests.fetch_add(1, Ordering::SeqCst);
            if self.character == Character::FailsFirst {
                return refuse(503, "Memory usage exceeded. Send pod request later.");
            }
            return self.ask(token);
        };
        self.carry_out(&till, body).await
    }

    fn ask(&self, token: String) -> Response {
        let (mut pay, till) = self.network.till();
        match self.character {
            Character::AsksMuch | Character::QuotesNothing => pay.push_str(&format!(" {GREEDY}")),
            Character::TakesAll => {}
            // The original does not say.
            _ if self.version == 0 => {}
            _ => pay.push_str(&format!(" {}", self.quoted())),
        }
        let greeted = till.clone();
        tokio::spawn(async move { greeted.greet().await });
        self.tills
            .lock()
            .expect("nobody panics")
            .insert(token, till);
        let mut response = refuse(402, "Payment Required");
        let pay = pay.parse().expect("it is a field");
        response.headers_mut().insert("pay", pay);
        response
    }

    async fn carry_out(&self, till: &Till, body: &[u8]) -> Response {
        let want = match self.character {
            Character::TakesAll | Character::AsksMuch | Character::QuotesNothing => GREEDY,
            _ => self.quoted(),
        };
        // A connector would convert between the payer's units and the host's; here the host does.
        let came = till.take(self.network.units(want)).await;
        match self.character {
            Character::TakesAndFails => return refuse(500, "An internal server error occurred"),
            Character::TakesAndGoes => {
                tokio::time::sleep(Duration::from_secs(3600)).await;
            }
            Character::GivesBack => {
                till.give_back().await;
                return refuse(500, "run pod failed");
            }
            _ if came < self.network.units(self.quoted()) => {
                return refuse(402, "Failed to get payment before timeout");
            }
            _ => {}
        }
        let hash = match self.character {
            Character::RunsAnother => "a".repeat(52),
            // More time for what runs comes without a body.
            _ if body.is_empty() => {
                let document = self.last_document().to_string();
                self.hash(document.as_bytes()).unwrap_or_default()
            }
            _ => self.hash(body).unwrap_or_default(),
        };
        let url = format!("http://{hash}.{}/", self.address);
        let expiry = EXPIRY;
        if self.version != 2 {
            return reply(
                200,
                &json!({ "url": url, "manifestHash": hash, "expiry": expiry }),
            );
        }
        reply(200, &self.lease_of(&hash))
    }
}

fn reply(status: u16, body: &Value) -> Response {
    let status = StatusCode::from_u16(status).expect("a status");
    let json = [("content-type", "application/json; charset=utf-8")];
    (status, json, body.to_string()).into_response()
}

fn refuse(status: u16, message: &str) -> Response {
    let body = json!({ "statusCode": status, "error": "Error", "message": message });
    reply(status, &body)
}
