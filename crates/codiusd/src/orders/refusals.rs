//! Why an order is not taken, or has failed: what its client is told, and what to do next.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header::RETRY_AFTER};
use codius_api::Trouble;
use codius_manifest::ManifestHash;
use codius_pod::Full;
use codius_store::StoreError;

use crate::{drain, http_error::HttpError, leases::PlaceError, till::Shortfall};

pub(super) fn refusal(error: PlaceError, hash: &ManifestHash) -> HttpError {
    match error {
        PlaceError::Start(error) => error.into(),
        PlaceError::Full(of_what) => full(of_what),
        PlaceError::NotSold => not_sold(),
        PlaceError::Closing => closing(),
        PlaceError::Draining => drain::refusal(),
        PlaceError::NotRunning => no_pod(hash),
        PlaceError::Store(error) => unreadable(&error),
    }
}

pub(super) fn short(price: u64, shortfall: &Shortfall, patience: Duration) -> HttpError {
    let (text, cause) = match shortfall {
        Shortfall::TooSmall { received, offered } => (
            format!(
                "the price is {price}, and the payer sends at most {offered}; {received} arrived"
            ),
            Trouble::PaymentTooSmall,
        ),
        Shortfall::Interrupted { received } => (
            format!("the payment stopped at {received} of {price}: the payer's connection ended"),
            Trouble::PaymentInterrupted,
        ),
        Shortfall::TimedOut { received } => (
            format!("{received} of {price} arrived in {} s", patience.as_secs()),
            Trouble::PaymentTooSmall,
        ),
    };
    HttpError::new(
        StatusCode::PAYMENT_REQUIRED,
        "Failed to get payment before timeout",
    )
    .detail(text)
    .cause(cause)
    .next("pay the full price with a new Pay-Token")
}

pub(crate) fn no_pod(hash: impl std::fmt::Display) -> HttpError {
    HttpError::new(
        StatusCode::NOT_FOUND,
        format!("no pod found with id. id={hash}"),
    )
    .next("upload its manifest to run it again")
}

pub(super) fn other_request() -> HttpError {
    HttpError::new(
        StatusCode::BAD_REQUEST,
        "this `Pay-Token` belongs to another request.",
    )
    .cause(Trouble::TokenUsed)
    .next("choose 16 new random bytes for each request")
}

/// The original's words, whatever there is none left of; the detail says it.
pub(super) fn full(of_what: Full) -> HttpError {
    HttpError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "Memory usage exceeded. Send pod request later.",
    )
    .detail(of_what.to_string())
    .cause(Trouble::HostFull)
    .next("take another host, or come back later")
}

/// A lease ran when it was asked for more time and has ended since, and its size is not sold any more.
fn not_sold() -> HttpError {
    HttpError::new(
        StatusCode::CONFLICT,
        "this host does not sell this size any more",
    )
    .cause(Trouble::ManifestInvalid)
    .next("name another size in the manifest's `machine`, or take another host")
}

pub(super) fn closing() -> HttpError {
    HttpError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "this host is being shut down",
    )
    .cause(Trouble::HostStopped)
    .next("take another host, or come back later")
}

/// The disk is full, most likely.
pub(super) fn unwritten() -> HttpError {
    HttpError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "this host cannot write to its disk",
    )
    .detail("the request goes on when it can; nothing that was paid is lost")
    .cause(Trouble::HostError)
    .next("send the same request with the same `Pay-Token` again in a minute")
    .header(RETRY_AFTER, HeaderValue::from_static("60"))
}

pub(super) fn unreadable(error: &StoreError) -> HttpError {
    tracing::error!(error = error as &dyn std::error::Error, "store");
    HttpError::internal()
}
