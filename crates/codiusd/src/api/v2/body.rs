//! Bodies of requests.

use axum::extract::rejection::BytesRejection;
use axum::{
    body::Bytes,
    http::{HeaderMap, StatusCode},
};
use codius_ledger::Seconds;
use codius_manifest::{ManifestVersion, Quoted, Upload};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{api::pods, http_error::HttpError};

/// The longest text of a parser that is passed on.
const MAX_DETAIL_CHARS: usize = 300;

/// The body of a request as bytes: it is JSON, and not too long.
pub(super) fn bytes(
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Bytes, HttpError> {
    pods::json_body(headers, body)
}

/// Reads a body. Members that are not known are refused by the types.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, HttpError> {
    serde_json::from_slice(body).map_err(|error| {
        let detail: String = error.to_string().chars().take(MAX_DETAIL_CHARS).collect();
        HttpError::new(StatusCode::BAD_REQUEST, "the body is not what it must be")
            .detail(detail)
            .next("see /api/v2/openapi.json for the members of each body")
    })
}

/// A manifest and its private values, checked as `POST /pods` checks them, but by the schema of version 2: any size may
/// be named.
pub(super) fn upload(manifest: Value, private: Option<Value>) -> Result<Upload, HttpError> {
    let posted = posted(manifest, private)?;
    Ok(Upload::parse_as(ManifestVersion::V2, &posted)?)
}

/// The hash and the size of a manifest, checked as `OPTIONS /pods` checks it: without private values it is taken for one
/// that will have the right ones.
pub(super) fn quoted(
    manifest: Value,
    private: Option<Value>,
    own_uri: &str,
) -> Result<Quoted, HttpError> {
    let posted = posted(manifest, private)?;
    Ok(codius_manifest::quoted(
        ManifestVersion::V2,
        &posted,
        own_uri,
    )?)
}

/// Both as version 1 has them.
fn posted(manifest: Value, private: Option<Value>) -> Result<Vec<u8>, HttpError> {
    let mut posted = Map::new();
    posted.insert("manifest".to_owned(), manifest);
    if let Some(private) = private {
        posted.insert("private".to_owned(), private);
    }
    serde_json::to_vec(&posted).map_err(|_| HttpError::internal())
}

/// A duration that can be bought.
pub(super) fn duration(seconds: u64, max: Seconds) -> Result<Seconds, HttpError> {
    if (1..=max.0).contains(&seconds) {
        return Ok(Seconds(seconds));
    }
    Err(HttpError::new(
        StatusCode::BAD_REQUEST,
        "`duration_seconds` is out of range",
    )
    .next(format!(
        "give `duration_seconds` as a whole number from 1 to {}",
        max.0
    )))
}
