//! Emptying a host: no new pods, and what runs is told.
//!
//! ```text
//!            codiusd drain [--at]                         --at is there
//!  open ───────────────────────────▶ draining ─────────────────────────────▶ leases ended, rest owed
//!    ▲                                  │  │ (without --at: leases run to their end)
//!    └───────── codiusd drain --undo ───┘  └─▶ uploads, extensions and top-ups are refused
//! ```
//!
//! It is written down before it counts, so that it holds over restarts until it is undone. What is
//! paid already runs on; nothing can be bought beyond that, with or without a time: otherwise who
//! drains would wait for whoever pays.

use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use axum::{
    Router,
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::StatusCode,
    response::Response,
    routing::get,
};
use clap::Args;
use codius_api::{Trouble, UnixMillis};
use codius_store::{Batch, Store, StoreError};
use hyper::Method;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::{
    admin::{Admin, SOCKET, call},
    api::json,
    http_error::HttpError,
    leases::Leases,
    ledger::moment,
};

/// Where the store keeps it.
const META_KEY: &str = "drain";
/// How often the wall clock is looked at, which may have been set, while a time is waited for.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// How often `codiusd drain --wait` asks.
const ASK_INTERVAL: Duration = Duration::from_secs(2);

/// That a host takes no new pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Draining {
    pub(crate) since: UnixMillis,
    /// When what still runs is ended; without it, it runs to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ends_at: Option<UnixMillis>,
}

impl Draining {
    pub(crate) fn meta_key() -> &'static str {
        META_KEY
    }
}

/// For people.
impl fmt::Display for Draining {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "since {}; ", self.since)?;
        match self.ends_at {
            Some(ends_at) => write!(out, "what still runs is ended at {ends_at}"),
            None => write!(out, "leases run to their end"),
        }
    }
}

/// Whether this host is being emptied. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Drain(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    now: RwLock<Option<Draining>>,
    changed: Notify,
    /// One change at a time: what counts is what was written last.
    changing: tokio::sync::Mutex<()>,
}

impl Drain {
    /// As it was left.
    pub(crate) fn open(meta: &BTreeMap<String, Vec<u8>>) -> Result<Self> {
        let left: Option<Draining> = meta
            .get(META_KEY)
            .map(|json| serde_json::from_slice(json))
            .transpose()
            .context("the record of the drain cannot be read")?;
        if let Some(draining) = left {
            tracing::warn!(
                "no new pods: this host is being drained {draining}; `codiusd drain --undo` ends that"
            );
        }
        let drain = Self::default();
        drain.keep(left);
        Ok(drain)
    }

    pub(crate) fn now(&self) -> Option<Draining> {
        *self.0.now.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_on(&self) -> bool {
        self.now().is_some()
    }

    /// It is durable when this returns.
    pub(crate) async fn set(
        &self,
        draining: Option<Draining>,
        store: &Store,
    ) -> Result<(), StoreError> {
        let _one = self.0.changing.lock().await;
        let json =
            draining.map(|draining| serde_json::to_vec(&draining).expect("two moments are JSON"));
        store.commit(Batch::new().meta(META_KEY, json)).await?;
        self.keep(draining);
        self.0.changed.notify_one();
        Ok(())
    }

    fn keep(&self, draining: Option<Draining>) {
        *self.0.now.write().unwrap_or_else(PoisonError::into_inner) = draining;
    }
}

/// Why a host that is being emptied says no.
pub(crate) fn refusal() -> HttpError {
    HttpError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "this host is being drained and sells no more time",
    )
    .cause(Trouble::HostDraining)
    .next("take another host; what is paid here already runs on")
}

/// Tells who runs here already, and ends what runs when it is time, until the host ends.
pub(crate) async fn watch(leases: Arc<Leases>) {
    if let Some(draining) = leases.drain.now() {
        leases.announce_drain(Some(draining));
    }
    loop {
        let ends_at = leases.drain.now().and_then(|draining| draining.ends_at);
        if ends_at.is_some_and(|ends_at| leases.clock.wall() >= ends_at.get()) {
            leases.end_all().await;
        }
        let wait = match ends_at {
            Some(ends_at) => {
                let left = ends_at.get().saturating_sub(leases.clock.wall());
                Duration::from_millis(left.max(1000)).min(LOOK_INTERVAL)
            }
            None => LOOK_INTERVAL,
        };
        tokio::select! {
            () = leases.closing.cancelled() => return,
            () = leases.drain.0.changed.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// `GET /drain`, and the answer to a change.
#[derive(Debug, Serialize, Deserialize)]
struct DrainReport {
    draining: Option<Draining>,
    /// Leases that have not ended.
    leases: usize,
}

/// `POST /drain`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DrainRequest {
    drain: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ends_at: Option<UnixMillis>,
}

pub(crate) fn router() -> Router<Arc<Admin>> {
    Router::new().route("/drain", get(show).post(change))
}

async fn show(State(admin): State<Arc<Admin>>) -> Result<Response, HttpError> {
    report(&admin).await
}

async fn change(
    State(admin): State<Arc<Admin>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, HttpError> {
    let bad = || HttpError::new(StatusCode::BAD_REQUEST, "Invalid request payload");
    let body = body.map_err(|_| bad())?;
    let asked: DrainRequest =
        serde_json::from_slice(&body).map_err(|error| bad().detail(error.to_string()))?;
    let leases = &admin.leases;
    let before = leases.drain.now();
    let draining = asked.drain.then(|| Draining {
        // It goes on since it began, with another end.
        since: before.map_or_else(
            || UnixMillis::new(leases.clock.wall()),
            |before| before.since,
        ),
        ends_at: asked.ends_at,
    });
    if draining != before {
        leases
            .drain
            .set(draining, &admin.store)
            .await
            .map_err(|error| {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "drain not recorded"
                );
                HttpError::internal()
            })?;
        match draining {
            Some(draining) => tracing::warn!("no new pods: this host is being drained {draining}"),
            None => tracing::info!("the drain is undone: pods are taken again"),
        }
        leases.announce_drain(draining);
    }
    report(&admin).await
}

async fn report(admin: &Admin) -> Result<Response, HttpError> {
    // In the books, so that those count which are being started.
    let snapshot = admin.store.load().await.map_err(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "store");
        HttpError::internal()
    })?;
    let report = DrainReport {
        draining: admin.leases.drain.now(),
        leases: snapshot.leases.len(),
    };
    Ok(json(StatusCode::OK, &report))
}

/// What the operator wants.
#[derive(Debug, Args)]
pub(crate) struct DrainArguments {
    /// End what still runs at this moment (RFC 3339); what is not used is owed to who paid
    #[arg(long, value_name = "TIME", value_parser = moment)]
    at: Option<u64>,
    /// Take new pods again
    #[arg(long, conflicts_with_all = ["at", "wait"])]
    undo: bool,
    /// Only say how it is
    #[arg(long, conflicts_with_all = ["at", "wait", "undo"])]
    status: bool,
    /// Come back when no lease is left
    #[arg(long)]
    wait: bool,
    /// Print the host's answer as it is
    #[arg(long)]
    json: bool,
}

/// `codiusd drain`.
pub(crate) fn run(arguments: &DrainArguments, data_dir: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    runtime.block_on(drive(arguments, &data_dir.join(SOCKET)))
}

async fn drive(arguments: &DrainArguments, socket: &Path) -> Result<()> {
    let (method, body) = if arguments.status {
        (Method::GET, String::new())
    } else {
        let asked = DrainRequest {
            drain: !arguments.undo,
            ends_at: arguments.at.map(UnixMillis::new),
        };
        (Method::POST, serde_json::to_string(&asked)?)
    };
    let text = call(socket, method, "/drain", body).await?;
    let mut report: DrainReport = read(&text)?;
    if arguments.json {
        println!("{text}");
    } else {
        println!("{}", shown(&report));
    }
    while arguments.wait && report.leases > 0 {
        tokio::time::sleep(ASK_INTERVAL).await;
        report = read(&call(socket, Method::GET, "/drain", String::new()).await?)?;
        if report.draining.is_none() {
            bail!("the drain was undone");
        }
    }
    if arguments.wait && !arguments.json {
        println!("No lease is left.");
    }
    Ok(())
}

fn read(text: &str) -> Result<DrainReport> {
    serde_json::from_str(text).context("the host's answer cannot be read; is it another version?")
}

fn shown(report: &DrainReport) -> String {
    let leases = match report.leases {
        0 => "no lease is left".to_owned(),
        1 => "1 lease has not ended".to_owned(),
        more => format!("{more} leases have not ended"),
    };
    match &report.draining {
        Some(draining) => format!("Draining {draining}; {leases}."),
        None => format!("Not draining; {leases}."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_drain_holds_until_it_is_undone() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let store = Store::open(&dir.path().join("codius.db"))?;
        let reopened = async || -> Result<Drain> { Drain::open(&store.load().await?.meta) };
        let drain = reopened().await?;
        assert!(!drain.is_on());
        let draining = Draining {
            since: UnixMillis::new(1000),
            ends_at: Some(UnixMillis::new(5000)),
        };
        drain.set(Some(draining), &store).await?;
        assert_eq!(drain.now(), Some(draining));
        assert_eq!(reopened().await?.now(), Some(draining));
        drain.set(None, &store).await?;
        assert!(!drain.is_on() && !reopened().await?.is_on());
        store.close().await;
        Ok(())
    }
}
