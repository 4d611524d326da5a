//! `GET /api/v2/openapi.json`: the description of this API, as it is committed.

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};

/// OpenAPI 3.1; `tests/openapi.rs` compares it with the router and with what the host answers.
const DOCUMENT: &str = include_str!("../../../../../docs/openapi.json");

pub(super) async fn document() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/json; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        // Pages that show API documents are elsewhere.
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
    ];
    (StatusCode::OK, headers, DOCUMENT).into_response()
}
