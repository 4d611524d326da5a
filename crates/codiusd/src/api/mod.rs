//! The HTTP API: version 1 as the first Codius host had it, and what is new under `/api/v2`.

mod info;
mod lines;
mod logs;
mod peers;
mod pods;
pub(crate) mod query;
mod receipts;
mod spsp;
mod v2;

use std::{sync::Arc, time::Instant};

use axum::{
    Router,
    body::Body,
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderValue, Method, StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::{MethodFilter, get, on, post},
};
#[cfg(any(test, feature = "simulation"))]
pub(crate) use v2::end_and_refund;

use codius_ledger::{Asset, Seconds, StoredResponse};
use codius_pod::Isolation;
use serde::Serialize;
use tokio::sync::Semaphore;

use crate::{
    config::Quote,
    http_error::HttpError,
    leases::Leases,
    orders::Orders,
    peers::Peers,
    refund::Refunds,
    self_test::{SelfTest, gate},
    signatures::Signatures,
    spsp::Spsp,
};

/// Longest body of a request, as in the original.
const MAX_BODY_BYTES: usize = 1024 * 1024;

/// What the handlers work with.
pub(crate) struct Api {
    pub(crate) leases: Arc<Leases>,
    pub(crate) orders: Arc<Orders>,
    pub(crate) spsp: Arc<Spsp>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) refunds: Arc<Refunds>,
    pub(crate) signatures: Signatures,
    /// A place for each reader of logs.
    pub(crate) log_followers: Arc<Semaphore>,
    /// A place for each session of `exec`.
    pub(crate) exec_places: Arc<Semaphore>,
    pub(crate) asset: Asset,
    pub(crate) max_duration: Seconds,
    pub(crate) publish_running: bool,
    pub(crate) quote: Quote,
    pub(crate) isolation: Isolation,
    pub(crate) isolation_reason: String,
    pub(crate) started: Instant,
    pub(crate) self_test: Arc<SelfTest>,
}

type Shared = State<Arc<Api>>;

pub(crate) fn router(api: Api) -> Router {
    let self_test = Arc::clone(&api.self_test);
    routes()
        .layer(middleware::from_fn_with_state(self_test, gate))
        .with_state(Arc::new(api))
}

fn routes() -> Router<Arc<Api>> {
    Router::new()
        .route(
            "/pods",
            on(MethodFilter::OPTIONS, pods::quote)
                .post(pods::upload)
                .put(pods::extend)
                .get(pods::show),
        )
        .route("/pods/{hash}/logs", get(logs::raw))
        .route("/info", get(info::info))
        .route("/memory", get(info::memory))
        .route("/version", get(info::version))
        .route("/peers", get(peers::list))
        .route("/peers/discover", post(peers::discover))
        .merge(v2::router())
        .route(spsp::HOST_PATH, get(spsp::query).fallback(spsp::other))
        .route("/{hash}", get(spsp::query).fallback(spsp::other))
        .fallback(unknown)
        .method_not_allowed_fallback(unknown)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
}

/// As in the original: a page for people who look, an error for everything else.
async fn unknown(State(api): Shared, request: Request) -> Response {
    if matches!(*request.method(), Method::GET | Method::HEAD)
        && !request.uri().path().starts_with("/api/")
    {
        return info::page(&api).into_response();
    }
    let error = HttpError::new(StatusCode::NOT_FOUND, "Not Found");
    if request.uri().path().starts_with("/api/") {
        return v2::Problem::from(error.next("see /api/v2/openapi.json")).into_response();
    }
    error.into_response()
}

/// Places for the readers of logs.
pub(crate) fn log_followers() -> Arc<Semaphore> {
    v2::log_followers()
}

/// As many sessions of `exec` as a host may have.
pub(crate) fn exec_places() -> Arc<Semaphore> {
    v2::exec_places()
}

/// A JSON reply, with the headers of the original.
pub(crate) fn json<T: Serialize>(status: StatusCode, body: &T) -> Response {
    match serde_json::to_string(body) {
        Ok(text) => json_text(status, text),
        Err(error) => {
            tracing::error!(%error, "a reply could not be written as JSON");
            HttpError::internal().into_response()
        }
    }
}

fn json_text(status: StatusCode, text: String) -> Response {
    let mut reply = (status, Body::from(text)).into_response();
    let headers = reply.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json; charset=utf-8"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    reply
}

fn answer(response: StoredResponse) -> Response {
    let status = StatusCode::from_u16(response.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json_text(status, response.body)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    /// Paths and methods, as the router shows itself: it has no other way to tell them. HEAD comes
    /// with each GET.
    fn of_the_router() -> BTreeSet<(String, String)> {
        let text = format!("{:?}", routes());
        // The second part is what answers to everything else.
        let (text, _) = text
            .split_once("fallback_router")
            .expect("a router shows its parts");
        let id_of = |text: &str| text.split(')').next().map(str::to_owned);
        let mut methods = BTreeMap::new();
        let mut paths = Vec::new();
        for part in text.split("RouteId(").skip(1) {
            let id = id_of(part).expect("an id ends");
            if let Some((_, after)) = part.split_once("allow_header: Bytes(b\"") {
                methods.insert(id, after.split('"').next().unwrap_or_default().to_owned());
            } else if let Some(path) = part.split('"').nth(1) {
                paths.push((id, path.to_owned()));
            }
        }
        let of_path = |(id, path): &(String, String)| {
            let methods = methods.get(id).expect("a path has its methods");
            let methods = methods.split(',').filter(|method| *method != "HEAD");
            methods
                .map(|method| (path.clone(), method.to_lowercase()))
                .collect::<Vec<_>>()
        };
        paths.iter().flat_map(of_path).collect()
    }

    fn of_the_document() -> BTreeSet<(String, String)> {
        let document: serde_json::Value =
            serde_json::from_str(include_str!("../../../../docs/openapi.json")).unwrap();
        let mut operations = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for member in item.as_object().unwrap().keys() {
                if member != "parameters" {
                    operations.insert((path.clone(), member.clone()));
                }
            }
        }
        operations
    }

    #[test]
    fn the_document_has_every_route_and_no_other() {
        let router = of_the_router();
        assert!(router.len() > 15, "{router:?}");
        let upload = ("/pods".to_owned(), "post".to_owned());
        assert!(router.contains(&upload), "{router:?}");
        assert_eq!(router, of_the_document());
    }
}
