//! The operator's entrance: the routes of the original's admin API, and what this host adds.
//!
//! The original served them to everyone on the machine. Here they are behind a socket file that only
//! the host's own user and root may use ([`entrance`]); on a TCP port only for who has the token.

mod capacity;
mod egress;
mod entrance;
mod house;
mod metrics;
mod reports;
mod tool;

use std::{path::Path, sync::Arc};

use anyhow::Result;
use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Request, State, rejection::BytesRejection},
    http::{Method, StatusCode, Uri},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use codius_image::ImageStore;
use codius_ledger::Asset;
use codius_store::Store;
use ilp_connector::Connector;
use serde::Deserialize;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    entrance::{OwnersSocket, Token},
    reports::{AccountReport, AccountsReport, PeerReport, PeersReport, PodReport, Pods, Uptime},
};
use crate::{
    api::{json, query},
    drain,
    http_error::HttpError,
    leases::Leases,
    ledger,
    peers::Peers,
    price::PriceError,
};

pub(crate) use tool::{AdminCommand, call, facts, run as run_tool, table};

/// The socket, in the data directory.
pub(crate) const SOCKET: &str = "admin.sock";
/// The token for the TCP port, in the data directory.
const TOKEN: &str = "admin.token";
/// Longest body of a request.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// What the operator may see and change.
pub(crate) struct Admin {
    pub(crate) leases: Arc<Leases>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) connector: Connector,
    pub(crate) store: Store,
    pub(crate) asset: Asset,
    pub(crate) images: Arc<ImageStore>,
}

type Shared = State<Arc<Admin>>;

impl Admin {
    /// Opens the entrances and serves them until the host ends, in tasks of their own.
    pub(crate) async fn open(
        self,
        data_dir: &Path,
        tcp_port: Option<u16>,
        closing: &CancellationToken,
    ) -> Result<TaskTracker> {
        let tasks = TaskTracker::new();
        let router = self.router();
        let socket = OwnersSocket::bind(&data_dir.join(SOCKET))?;
        if let Some(port) = tcp_port {
            let token = Arc::new(Token::keep(&data_dir.join(TOKEN))?);
            let listener = entrance::listen(port).await?;
            tracing::info!(address = %listener.local_addr()?, "admin API on a TCP port");
            let guarded = router
                .clone()
                .layer(middleware::from_fn_with_state(token, entrance::guard));
            let closing = closing.clone().cancelled_owned();
            tasks.spawn(async move {
                let served = axum::serve(listener, guarded).with_graceful_shutdown(closing);
                served.await
            });
        }
        let closing = closing.clone().cancelled_owned();
        tasks.spawn(async move {
            let served = axum::serve(socket, router).with_graceful_shutdown(closing);
            served.await
        });
        tasks.close();
        Ok(tasks)
    }

    fn router(self) -> Router {
        Router::new()
            .route("/getPods", get(pods))
            .route("/getPodInfo", get(pod))
            .route("/getAllUptime", get(uptime))
            .route("/config", post(set_config))
            .route("/accounts", get(accounts))
            .route("/peers", get(peers))
            .merge(ledger::router())
            .merge(drain::router())
            .route("/capacity", get(capacity::show))
            .route("/usage", get(capacity::usage))
            .route("/images", get(house::images))
            .route("/rules", get(house::rules).post(house::set_rule))
            .route("/egress", get(egress::show).post(egress::change))
            .route("/egress/traffic", get(egress::traffic))
            .route("/metrics", get(metrics::show))
            .route("/stopPod", post(house::stop))
            .fallback(other)
            .method_not_allowed_fallback(other)
            .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
            .with_state(Arc::new(self))
    }

    fn pod(&self, id: &str) -> Option<PodReport> {
        let hash = id.parse().ok()?;
        let shown = self.leases.shown(&hash)?;
        let address = self.leases.routes.address(&hash);
        Some(PodReport::of(
            &hash,
            &shown,
            address,
            self.leases.clock.steady(),
        ))
    }
}

/// As in the original: every other path says what this is.
async fn other(request: Request) -> Response {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return HttpError::new(StatusCode::NOT_FOUND, "Not Found").into_response();
    }
    let text = "This shows that you are running the Codiusd Admin API.";
    json(StatusCode::OK, &serde_json::json!({ "test": text }))
}

async fn pods(State(admin): Shared) -> Response {
    let running = admin.leases.overview();
    let running = running.iter().map(|(hash, _)| hash.to_string()).collect();
    json(StatusCode::OK, &Pods { running })
}

async fn pod(State(admin): Shared, uri: Uri) -> Result<Response, HttpError> {
    let id = query::value(uri.query(), "id").filter(|id| !id.is_empty());
    let id = id.ok_or_else(|| {
        HttpError::new(StatusCode::BAD_REQUEST, "missing manifestHash")
            .next("give the manifest hash as `id`")
    })?;
    // The original answered this with 500 and a masked text.
    let report = admin.pod(&id).ok_or_else(|| {
        let text = format!("no pod found with id. id={}", query::short(&id));
        HttpError::new(StatusCode::NOT_FOUND, text).next("`GET /getPods` lists those that run")
    })?;
    Ok(json(StatusCode::OK, &report))
}

async fn uptime(State(admin): Shared) -> Result<Response, HttpError> {
    let earned = admin.store.earned_total().await.map_err(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "store");
        HttpError::internal()
    })?;
    let running = admin.leases.overview();
    let now = admin.leases.clock.steady();
    let secs = running.iter().map(|(_, shown)| shown.paid_for(now).0).sum();
    let report = Uptime::of(
        secs,
        &admin.asset,
        u64::try_from(earned).unwrap_or_default(),
    );
    Ok(json(StatusCode::OK, &report))
}

/// What may be changed while the host runs.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ConfigUpdate {
    host_cost_per_month: Option<serde_json::Number>,
}

async fn set_config(
    State(admin): Shared,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, HttpError> {
    let bad = || HttpError::new(StatusCode::BAD_REQUEST, "Invalid request payload");
    let body = body.map_err(|_| bad())?;
    let update: ConfigUpdate =
        serde_json::from_slice(&body).map_err(|error| bad().detail(error.to_string()))?;
    if let Some(cost) = update.host_cost_per_month {
        let cost = cost_text(&cost).ok_or_else(bad)?;
        match admin.leases.rate.set(&cost, &admin.store).await {
            Ok(()) => tracing::info!(cost_per_month = cost, "the price for new leases is set"),
            Err(PriceError::Store(error)) => {
                tracing::error!(error = &error as &dyn std::error::Error, "price not set");
                return Err(HttpError::internal());
            }
            Err(error) => return Err(bad().detail(error.to_string())),
        }
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// A JSON number as decimal text, without an exponent.
fn cost_text(number: &serde_json::Number) -> Option<String> {
    match number.as_u64() {
        Some(whole) => Some(whole.to_string()),
        None => number
            .as_f64()
            .filter(|cost| *cost >= 0.0)
            // Zero may be written as -0.
            .map(|cost| format!("{}", cost.abs())),
    }
}

async fn accounts(State(admin): Shared) -> Response {
    let accounts = admin.connector.accounts();
    let accounts = accounts.into_iter().map(AccountReport::from).collect();
    json(StatusCode::OK, &AccountsReport { accounts })
}

async fn peers(State(admin): Shared) -> Response {
    let peers = admin.peers.overview();
    let peers = peers.into_iter().map(PeerReport::from).collect();
    json(StatusCode::OK, &PeersReport { peers })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_json_become_decimal_text() {
        for (json, text) in [
            ("0", Some("0")),
            ("10", Some("10")),
            ("0.5", Some("0.5")),
            ("1e-7", Some("0.0000001")),
            ("1e3", Some("1000")),
            ("-0", Some("0")),
            ("-1", None),
            ("-0.5", None),
        ] {
            let number = serde_json::from_str(json).unwrap();
            assert_eq!(cost_text(&number).as_deref(), text, "{json}");
        }
    }
}
