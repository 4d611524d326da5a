//! What the operator says of programs: which images are here, who may run what, and that a pod is to end.

use axum::{
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::StatusCode,
    response::Response,
};
use codius_api::UnixMillis;
use codius_manifest::ManifestHash;
use serde::{Deserialize, Serialize};

use super::Shared;
use crate::{
    api::json,
    http_error::HttpError,
    rules::{Rule, RuleError},
};

/// `GET /images`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ImagesReport {
    pub(super) images: Vec<ImageReport>,
    /// Bytes on disk, of what is being made besides.
    pub(super) bytes_taken: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ImageReport {
    pub(super) digest: String,
    /// For which it was fetched first.
    pub(super) reference: String,
    pub(super) bytes: u64,
    /// When a pod was last started with it.
    pub(super) used: UnixMillis,
    pub(super) pinned: bool,
}

/// `POST /rules`: one of both.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub(super) enum RuleChange {
    Deny(String),
    Undeny(String),
}

/// What `POST /rules` answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RuleChanged {
    /// Pods that run although they are denied now: they go on until they are stopped.
    pub(super) running: Vec<String>,
}

/// `POST /stopPod`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StopPod {
    pub(super) id: String,
}

/// What `POST /stopPod` answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StoppedPod {
    /// What the host owes for this manifest now, as decimal text in smallest units.
    pub(super) owed: String,
}

pub(super) async fn images(State(admin): Shared) -> Response {
    let images = admin.images.list().into_iter().map(|image| ImageReport {
        digest: image.digest,
        reference: image.reference,
        bytes: image.block_image_bytes,
        used: UnixMillis::new(
            image
                .used
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |since| {
                    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
                }),
        ),
        pinned: image.pinned,
    });
    let report = ImagesReport {
        images: images.collect(),
        bytes_taken: admin.images.bytes_taken(),
    };
    json(StatusCode::OK, &report)
}

pub(super) async fn rules(State(admin): Shared) -> Response {
    json(StatusCode::OK, &admin.leases.rules.report())
}

pub(super) async fn set_rule(
    State(admin): Shared,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, HttpError> {
    let change: RuleChange = read(body)?;
    let (RuleChange::Deny(text) | RuleChange::Undeny(text)) = &change;
    let rule: Rule = text
        .parse()
        .map_err(|error: codius_image::InvalidPattern| {
            bad().detail(error.to_string()).next(
            "give a manifest hash, or a pattern for images such as docker.io/team/* or sha256:…",
        )
        })?;
    let rules = &admin.leases.rules;
    let changed = match &change {
        RuleChange::Deny(_) => rules.deny(&rule, &admin.store).await,
        RuleChange::Undeny(_) => rules.undeny(&rule, &admin.store).await,
    };
    changed.map_err(|error| match error {
        RuleError::TooMany | RuleError::Unknown => {
            HttpError::new(StatusCode::CONFLICT, error.to_string())
                .next("`codiusd admin rules` lists them")
        }
        RuleError::Store(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "rule not changed");
            HttpError::internal()
        }
    })?;
    tracing::info!(?change, "the operator has changed a rule");
    let running = match change {
        RuleChange::Undeny(_) => Vec::new(),
        RuleChange::Deny(_) => {
            let running = admin.leases.overview().into_iter();
            let denied = running.filter(|(hash, shown)| {
                let spec = admin.leases.spec(&shown.upload);
                let images = spec.iter().flat_map(|spec| &spec.containers);
                match &rule {
                    Rule::Manifest(denied) => denied == hash,
                    Rule::Images(pattern) => images.into_iter().any(|it| pattern.covers(&it.image)),
                }
            });
            denied.map(|(hash, _)| hash.to_string()).collect()
        }
    };
    Ok(json(StatusCode::OK, &RuleChanged { running }))
}

/// Ends a lease; what it has not used is owed to whoever paid for it.
pub(super) async fn stop(
    State(admin): Shared,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, HttpError> {
    let StopPod { id } = read(body)?;
    let hash: ManifestHash = id
        .parse()
        .map_err(|_| bad().next("give the manifest hash as `id`"))?;
    if admin.leases.shown(&hash).is_none() {
        return Err(HttpError::new(
            StatusCode::NOT_FOUND,
            format!("no pod found with id. id={hash}"),
        )
        .next("`GET /getPods` lists those that run"));
    }
    let failed = |error: codius_store::StoreError| {
        tracing::error!(error = &error as &dyn std::error::Error, "store");
        HttpError::internal()
    };
    admin.leases.stop_own(&hash).await.map_err(failed)?;
    tracing::info!(pod = %hash, "stopped by the operator");
    let lease = admin.store.lease(hash).await.map_err(failed)?;
    let refund = lease.and_then(|lease| lease.origin.refund);
    let owed = admin.leases.owed(hash, refund).await.map_err(failed)?;
    Ok(json(
        StatusCode::OK,
        &StoppedPod {
            owed: owed.to_string(),
        },
    ))
}

pub(super) fn read<T: serde::de::DeserializeOwned>(
    body: Result<Bytes, BytesRejection>,
) -> Result<T, HttpError> {
    let body = body.map_err(|_| bad())?;
    serde_json::from_slice(&body).map_err(|error| bad().detail(error.to_string()))
}

fn bad() -> HttpError {
    HttpError::new(StatusCode::BAD_REQUEST, "Invalid request payload")
}
