//! `/api/v2/leases/{hash}/refund`: an owner draws what is due to him after his leases have ended.

use std::sync::Arc;

use axum::{
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    response::Response,
};
use codius_api::{
    Units,
    v2::{RefundReply, RefundRequest},
};
use codius_manifest::ManifestHash;
use codius_signature::KeyId;
use tracing::Instrument;

use super::{Problem, body, hash::LeaseHash, leases};
use crate::{
    api::{Api, Shared, json, pods},
    http_error::HttpError,
    refund::{Destination, PaymentPointer},
    signatures::Purpose,
};

/// When it is worth to ask again while the money is on its way, in seconds.
const SENDING_RETRY_SECS: u16 = 15;

/// Where an owner wants his money.
enum Wanted {
    Now(Destination),
    At(PaymentPointer),
}

/// `POST /api/v2/leases/{hash}/refund`: sends to a STREAM server now, or to a payment pointer until it
/// has arrived.
pub(super) async fn draw(
    State(api): Shared,
    method: Method,
    uri: Uri,
    LeaseHash(hash): LeaseHash,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let body = body::bytes(&headers, body)?;
    let signed = api
        .signatures
        .required(&method, &uri, &headers, &body)
        .await?;
    let wanted = wanted(&api, &body::parse(&body)?)?;
    // Older leases than the last may have been his: what is due says so itself.
    if api.leases.due_to(hash, &signed.key).await?.is_empty() {
        api.leases
            .owned(&hash, &signed.key)
            .await
            .map_err(|error| leases::refusal(error, &hash))?;
    }
    api.signatures.once(&signed, Purpose::Control)?;
    // In a task of its own: a client that goes away changes nothing.
    let key = signed.key;
    let span = tracing::info_span!("draw", %hash);
    let drawing = api.leases.tasks.spawn({
        let api = Arc::clone(&api);
        async move { pay(&api, hash, &key, wanted).await }.instrument(span)
    });
    let reply = drawing.await.map_err(|_| HttpError::internal())??;
    Ok(json(StatusCode::OK, &reply))
}

fn wanted(api: &Api, request: &RefundRequest) -> Result<Wanted, HttpError> {
    match (&request.refund, &request.refund_to) {
        (Some(to), None) => {
            let to = Destination::try_from(to).map_err(leases::invalid_destination)?;
            Ok(Wanted::Now(to))
        }
        (None, Some(to)) => {
            let to = api.refunds.pointer(to);
            let to = to.map_err(|error| pods::not_paid("`refund_to`", error))?;
            Ok(Wanted::At(to))
        }
        (None, None) | (Some(_), Some(_)) => Err(HttpError::new(
            StatusCode::BAD_REQUEST,
            "the body says not where the money goes, or twice",
        )
        .next("give either `refund`, a STREAM server, or `refund_to`, a payment pointer")),
    }
}

async fn pay(
    api: &Api,
    hash: ManifestHash,
    key: &KeyId,
    wanted: Wanted,
) -> Result<RefundReply, HttpError> {
    let mut refunded = 0;
    match wanted {
        Wanted::At(pointer) => api.leases.redirect(hash, key, &pointer).await?,
        Wanted::Now(to) => match api.leases.gather(hash, key).await? {
            Some(due) => {
                let from = due.account();
                let patience = leases::REFUND_PATIENCE;
                refunded = api.refunds.send(&from, due.amount, to, patience).await;
            }
            None if api.leases.due_to(hash, key).await?.is_empty() => {}
            None => return Err(under_way()),
        },
    }
    let owed = api.leases.due_to(hash, key).await?;
    let owed = owed.iter().map(|refund| refund.due).sum();
    tracing::info!(refunded, owed, "drawn");
    Ok(RefundReply {
        manifest_hash: hash,
        refunded: Units(refunded),
        owed: Units(owed),
    })
}

fn under_way() -> HttpError {
    HttpError::new(StatusCode::CONFLICT, "this refund is being sent")
        .next("see how far it is with GET /api/v2/leases/{hash}, then ask again")
        .header(header::RETRY_AFTER, HeaderValue::from(SENDING_RETRY_SECS))
}
