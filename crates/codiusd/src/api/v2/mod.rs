//! `/api/v2`: one file for each noun. The bodies are `codius_api::v2`'s, the document that describes
//! them is `docs/openapi.json`.
//!
//! Errors have the members of version 1 and those of RFC 9457, and its media type.

mod body;
mod events;
mod exec;
mod hash;
mod host;
mod leases;
mod logs;
mod openapi;
mod problem;
mod quotes;
mod refunds;
mod usage;

use std::sync::Arc;

use axum::{
    Router,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};

pub(super) use exec::places as exec_places;
#[cfg(any(test, feature = "simulation"))]
pub(crate) use leases::end_and_refund;
pub(super) use logs::followers as log_followers;
pub(super) use problem::Problem;

use super::Api;
use crate::http_error::HttpError;

pub(super) fn router() -> Router<Arc<Api>> {
    Router::new()
        .route("/api/v2/openapi.json", get(openapi::document))
        .route("/api/v2/host", get(host::show))
        .route("/api/v2/quotes", post(quotes::quote))
        .route("/api/v2/leases", post(leases::create))
        .route("/api/v2/leases/{hash}", get(leases::show))
        .route("/api/v2/leases/{hash}/extend", post(leases::extend))
        .route("/api/v2/leases/{hash}/stop", post(leases::stop))
        .route("/api/v2/leases/{hash}/refund", post(refunds::draw))
        .route("/api/v2/leases/{hash}/logs", get(logs::lines))
        .route("/api/v2/leases/{hash}/exec", get(exec::open))
        .route("/api/v2/leases/{hash}/usage", get(usage::show))
        .route("/api/v2/leases/{hash}/events", get(events::events))
        .method_not_allowed_fallback(other_method)
}

/// `Allow` is added by the router, which knows.
async fn other_method() -> Response {
    let text = "this resource does not have this method";
    let error = HttpError::new(StatusCode::METHOD_NOT_ALLOWED, text);
    Problem::from(error.next("see the `Allow` header, or /api/v2/openapi.json")).into_response()
}
