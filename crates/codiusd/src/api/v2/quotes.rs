//! `POST /api/v2/quotes`: what a lease would cost.

use axum::{
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::{HeaderMap, StatusCode},
    response::Response,
};
use codius_api::{
    Units,
    v2::{QuoteReply, QuoteRequest},
};

use super::{Problem, body};
use crate::{
    api::{Shared, json},
    leases::sold,
};

/// Free, needs no payment channel, and looks at no registry.
pub(super) async fn quote(
    State(api): Shared,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let body = body::bytes(&headers, body)?;
    let request: QuoteRequest = body::parse(&body)?;
    let duration = body::duration(request.duration_seconds, api.max_duration)?;
    let own_uri = api.leases.own_uri();
    let quoted = body::quoted(request.manifest, request.private, own_uri)?;
    let quotation = api.orders.quote(&quoted.hash, quoted.machine, duration)?;
    let reply = QuoteReply {
        manifest_hash: quoted.hash,
        machine: Some(sold(quotation.size)),
        duration_seconds: duration.0,
        price: Units(quotation.price),
        price_per_second: quotation.rate.to_string(),
        asset: api.leases.asset.clone(),
        runs: api.leases.shown(&quoted.hash).is_some(),
    };
    Ok(json(StatusCode::OK, &reply))
}
