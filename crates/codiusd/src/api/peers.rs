//! `/peers`: the hosts that this one knows.

use axum::{
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::{HeaderMap, StatusCode, Uri},
    response::Response,
};
use codius_api::{DiscoverReply, DiscoverRequest, PeersReply};

use super::{Shared, json, pods::json_body, query};
use crate::http_error::HttpError;

/// The most peers of one answer.
pub(super) const MAX_PEERS: usize = 1000;

/// `GET /peers`: in random order.
pub(super) async fn list(State(api): Shared, uri: Uri) -> Result<Response, HttpError> {
    let limit = match query::value(uri.query(), "limit") {
        None => MAX_PEERS,
        Some(text) => text
            .parse()
            .ok()
            .filter(|limit| (1..=MAX_PEERS).contains(limit))
            .ok_or_else(|| {
                HttpError::new(StatusCode::BAD_REQUEST, "Invalid request query input")
                    .next(format!("give `limit` as 1 to {MAX_PEERS}"))
            })?,
    };
    let peers = api.peers.sample(limit);
    Ok(json(StatusCode::OK, &PeersReply { peers }))
}

/// `POST /peers/discover`: takes the caller's peers, which are checked later, and gives ours.
pub(super) async fn discover(
    State(api): Shared,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, HttpError> {
    let body = json_body(&headers, body)?;
    let request = request_of(&body)?;
    // A host that does not work must not be passed on, and has no word in who else works.
    if !api.peers.is_tested() {
        let text = "This host is misconfigured.";
        return Err(HttpError::new(StatusCode::FORBIDDEN, text).next("try again later"));
    }
    api.peers.offer(&request.peers);
    Ok(json(
        StatusCode::OK,
        &DiscoverReply {
            name: super::info::NAME.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            peers: api.peers.sample(MAX_PEERS),
        },
    ))
}

fn request_of(body: &[u8]) -> Result<DiscoverRequest, HttpError> {
    let bad = |text: &str| HttpError::new(StatusCode::BAD_REQUEST, text);
    // Two errors in the original: what is no JSON, and what is not the JSON that is expected.
    let value: serde_json::Value =
        serde_json::from_slice(body).map_err(|_| bad("Invalid request payload JSON format"))?;
    let request: DiscoverRequest = serde_json::from_value(value)
        .map_err(|error| bad("Invalid request payload input").detail(error.to_string()))?;
    let in_range = |limit: u16| (1..=MAX_PEERS).contains(&usize::from(limit));
    if !request.limit.is_none_or(in_range) {
        let error = bad("Invalid request payload input");
        return Err(error.next(format!("give `limit` as 1 to {MAX_PEERS}")));
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_discover_request_has_peers_perhaps_a_limit_and_nothing_else() {
        for text in [
            r#"{"peers":[]}"#,
            r#"{"peers":["x"],"limit":1}"#,
            r#"{"peers":[],"limit":1000}"#,
        ] {
            assert!(request_of(text.as_bytes()).is_ok(), "{text}");
        }
        for (text, message) in [
            ("", "Invalid request payload JSON format"),
            ("{", "Invalid request payload JSON format"),
            ("[]", "Invalid request payload input"),
            ("{}", "Invalid request payload input"),
            (r#"{"peers":"x"}"#, "Invalid request payload input"),
            (r#"{"peers":[1]}"#, "Invalid request payload input"),
            (r#"{"peers":[],"limit":0}"#, "Invalid request payload input"),
            (
                r#"{"peers":[],"limit":1001}"#,
                "Invalid request payload input",
            ),
            (
                r#"{"peers":[],"limit":-1}"#,
                "Invalid request payload input",
            ),
            (
                r#"{"peers":[],"limit":1.5}"#,
                "Invalid request payload input",
            ),
            (r#"{"peers":[],"other":1}"#, "Invalid request payload input"),
        ] {
            let error = request_of(text.as_bytes()).unwrap_err();
            assert_eq!(
                (error.status(), error.body().message.as_str()),
                (400, message),
                "{text}"
            );
        }
    }
}
