//! The manifest hash in a path.

use axum::{
    extract::FromRequestParts,
    http::{StatusCode, request::Parts},
};
use codius_manifest::ManifestHash;

use super::Problem;
use crate::http_error::HttpError;

/// What is before it in each path that has one.
const BEFORE: &str = "/api/v2/leases/";

/// The hash of `/api/v2/leases/{hash}…`, in any case. What cannot be a hash is the hash of no lease.
pub(super) struct LeaseHash(pub(super) ManifestHash);

impl<S: Sync> FromRequestParts<S> for LeaseHash {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        // A hash needs no percent-encoding, so the path is read as it is.
        let rest = parts.uri.path().strip_prefix(BEFORE).unwrap_or_default();
        let text = rest.split('/').next().unwrap_or_default();
        match text.parse() {
            Ok(hash) => Ok(Self(hash)),
            Err(_) => Err(unknown(text).into()),
        }
    }
}

/// 404.
pub(super) fn unknown(hash: &str) -> HttpError {
    let hash: String = hash.chars().take(100).collect();
    let text = format!("there is no lease of this manifest here. hash={hash}");
    HttpError::new(StatusCode::NOT_FOUND, text).next("create one: POST /api/v2/leases")
}
