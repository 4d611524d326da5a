//! `/api/v2/leases`: creating, showing, extending and stopping.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    response::Response,
};
use codius_api::{
    Units,
    v2::{CreateLeaseRequest, ExtendLeaseRequest, LeaseState, StopReply, StopRequest},
};
use codius_manifest::ManifestHash;
use codius_signature::KeyId;
use tracing::Instrument;

use super::{
    Problem, body,
    hash::{LeaseHash, unknown},
    problem::answer,
};
use crate::{
    api::{Api, Shared, json, pods},
    http_error::HttpError,
    leases::{Leases, ReplyForm, StopError},
    orders::{PaidRequest, What},
    refund::{Destination, InvalidDestination, Refunds},
    signatures::Purpose,
};

/// For how long a refund is tried before the rest stays owed. With the time that its last packet may
/// take it is over within 15 s.
pub(super) const REFUND_PATIENCE: Duration = Duration::from_secs(10);
/// When it is worth to ask again while a lease is starting, in seconds.
const STARTING_RETRY_SECS: u16 = 5;

/// `POST /api/v2/leases`: runs a manifest for the time that is paid for, or longer if it runs already.
/// Who signs the request that is carried out owns the new lease.
pub(super) async fn create(
    State(api): Shared,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let id = pods::pay_token(&headers)?;
    let body = body::bytes(&headers, body)?;
    let signed = api.signatures.who(&method, &uri, &headers, &body).await?;
    let request: CreateLeaseRequest = body::parse(&body)?;
    let duration = body::duration(request.duration_seconds, api.max_duration)?;
    let upload = body::upload(request.manifest, request.private)?;
    let refund_to = request
        .refund_to
        .map(|text| api.refunds.pointer(&text))
        .transpose()
        .map_err(|error| pods::not_paid("`refund_to`", error))?;
    if let Some(signed) = &signed {
        api.signatures.once(signed, Purpose::Create)?;
    }
    let request = PaidRequest {
        id,
        digest: pods::digest(&method, &uri, &body),
        duration,
        what: What::Upload(Arc::new(upload)),
        owner: signed.map(|signed| signed.key),
        refund_to,
        form: ReplyForm::V2,
    };
    Ok(answer(api.orders.handle(request).await?))
}

/// `GET /api/v2/leases/{hash}`: anyone may ask. Its owner, who signs, is told where his money goes.
pub(super) async fn show(
    State(api): Shared,
    method: Method,
    uri: Uri,
    LeaseHash(hash): LeaseHash,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let signed = api.signatures.who(&method, &uri, &headers, b"").await?;
    let lease = match signed {
        Some(signed) => {
            api.signatures.once(&signed, Purpose::Control)?;
            api.leases.view_for(&hash, &signed.key).await?
        }
        None => api.leases.view(&hash).await?,
    };
    match lease {
        Some(lease) => Ok(json(StatusCode::OK, &lease)),
        None => Err(unknown(&hash.to_string()).into()),
    }
}

/// `POST /api/v2/leases/{hash}/extend`: more time for a lease that runs. Anyone may pay for it.
pub(super) async fn extend(
    State(api): Shared,
    method: Method,
    uri: Uri,
    LeaseHash(hash): LeaseHash,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let id = pods::pay_token(&headers)?;
    let body = body::bytes(&headers, body)?;
    let ExtendLeaseRequest { duration_seconds } = body::parse(&body)?;
    let duration = body::duration(duration_seconds, api.max_duration)?;
    let request = PaidRequest {
        id,
        digest: pods::digest(&method, &uri, &body),
        duration,
        what: What::Extend(hash),
        owner: None,
        refund_to: None,
        form: ReplyForm::V2,
    };
    match api.orders.handle(request).await {
        Ok(response) => Ok(answer(response)),
        Err(error) if error.status() == StatusCode::NOT_FOUND => {
            Err(not_running(&api, &hash).await?.into())
        }
        Err(error) => Err(error.into()),
    }
}

/// `POST /api/v2/leases/{hash}/stop`: its owner ends a lease, and gets back what was not used.
pub(super) async fn stop(
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
    let request: StopRequest = if body.is_empty() {
        StopRequest::default()
    } else {
        body::parse(&body)?
    };
    let to = request.refund.as_ref().map(Destination::try_from);
    let to = to.transpose().map_err(invalid_destination)?;
    let refused = |error| refusal(error, &hash);
    api.leases
        .owned(&hash, &signed.key)
        .await
        .map_err(refused)?;
    api.signatures.once(&signed, Purpose::Control)?;
    // In a task of its own: a client that goes away changes nothing.
    let key = signed.key;
    let span = tracing::info_span!("stop", %hash);
    let stopping = api.leases.tasks.spawn({
        let api = Arc::clone(&api);
        async move { end_and_refund(&api.leases, &api.refunds, hash, &key, to).await }
            .instrument(span)
    });
    let stopped = stopping.await.map_err(|_| HttpError::internal())?;
    Ok(json(StatusCode::OK, &stopped.map_err(refused)?))
}

/// Ends a lease for its owner, and sends what is his.
pub(crate) async fn end_and_refund(
    leases: &Arc<Leases>,
    refunds: &Refunds,
    hash: ManifestHash,
    key: &KeyId,
    to: Option<Destination>,
) -> Result<StopReply, StopError> {
    let ending = leases.stop(hash, key).await?;
    let refunded = match (to, &ending.due) {
        (Some(to), Some(due)) => {
            refunds
                .send(&due.account(), due.amount, to, REFUND_PATIENCE)
                .await
        }
        (Some(_), None) | (None, _) => 0,
    };
    // Nobody is at it any more.
    drop(ending.due);
    let owed = leases.owed(hash, ending.refund).await?;
    tracing::info!(used = ending.used, refunded, owed, "stopped");
    Ok(StopReply {
        manifest_hash: hash,
        used: Units(ending.used),
        refunded: Units(refunded),
        owed: Units(owed),
    })
}

/// Why a lease cannot be extended: it is over, or not there yet.
async fn not_running(api: &Api, hash: &ManifestHash) -> Result<HttpError, HttpError> {
    Ok(match api.leases.view(hash).await? {
        Some(lease) if lease.state == LeaseState::Ended => {
            HttpError::new(StatusCode::CONFLICT, "this lease has ended")
                .next("create a new one: POST /api/v2/leases")
        }
        Some(_) => starting(),
        None => unknown(&hash.to_string()),
    })
}

/// Lets a request without a body pass, once, that the owner of a lease has signed.
pub(super) async fn from_owner(
    api: &Api,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    hash: &ManifestHash,
) -> Result<(), HttpError> {
    let signed = api.signatures.required(method, uri, headers, b"").await?;
    let owned = api.leases.owned(hash, &signed.key).await;
    owned.map_err(|error| refusal(error, hash))?;
    api.signatures.once(&signed, Purpose::Control)
}

pub(super) fn refusal(error: StopError, hash: &ManifestHash) -> HttpError {
    let text = error.to_string();
    match error {
        StopError::Unknown => unknown(&hash.to_string()),
        StopError::Unowned => HttpError::new(StatusCode::FORBIDDEN, text).next(
            "create leases by signed requests to own them; this one ends when its money is used up",
        ),
        StopError::NotOwner => HttpError::new(StatusCode::FORBIDDEN, text)
            .next("sign with the key that created it, which GET /api/v2/leases/{hash} names"),
        StopError::Starting => starting(),
        StopError::Store(error) => error.into(),
    }
}

fn starting() -> HttpError {
    HttpError::new(StatusCode::CONFLICT, "this lease is being started")
        .detail("nothing is charged until it runs, and if it cannot run its money goes back")
        .next("wait until it runs, which its events tell, then ask again")
        .header(header::RETRY_AFTER, HeaderValue::from(STARTING_RETRY_SECS))
}

pub(super) fn invalid_destination(error: InvalidDestination) -> HttpError {
    HttpError::new(StatusCode::BAD_REQUEST, error.to_string())
        .next("give the address and the secret of a STREAM server that listens now, or no `refund`")
}
