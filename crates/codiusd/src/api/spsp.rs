//! Payment pointers (SPSP, RFC 9 and 26): `$HOST` is `GET /.well-known/pay`, `$HOST/HASH` is
//! `GET /HASH`.
//!
//! Only who accepts SPSP's media types gets its answers; everyone else sees the page of the host, as at
//! any other path.

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use codius_manifest::ManifestHash;
use serde::Serialize;

use super::{Shared, info, json, receipts::receipt_key, unknown};
use crate::{
    http_error::HttpError,
    spsp::{Destination, NotPayable, Payee, Terms},
};

/// Where the pointer without a path leads.
pub(super) const HOST_PATH: &str = "/.well-known/pay";
const MEDIA_TYPE: &str = "application/spsp4+json";
/// What clients accept: this version, or any.
const ACCEPTED: [&str; 2] = [MEDIA_TYPE, "application/spsp+json"];
const METHODS: &str = "GET, HEAD, OPTIONS";
/// How long a browser may remember what it may ask for, in seconds.
const PREFLIGHT_MAX_AGE: &str = "86400";

/// RFC 9, "Response Body", and RFC 39, "SPSP".
#[derive(Debug, Serialize)]
struct SpspReply {
    destination_account: String,
    shared_secret: String,
    /// Said only to those who asked for receipts.
    #[serde(skip_serializing_if = "Option::is_none")]
    receipts_enabled: Option<bool>,
}

/// RFC 9, "Errors".
#[derive(Debug, Serialize)]
struct SpspError {
    id: &'static str,
    message: String,
}

/// `GET` of a payment pointer.
pub(super) async fn query(State(api): Shared, uri: Uri, headers: HeaderMap) -> Response {
    if !accepts_spsp(&headers) {
        let mut page = info::page(&api).into_response();
        vary(&mut page);
        return page;
    }
    let invalid = |message| refused(StatusCode::BAD_REQUEST, "InvalidRequestError", message);
    // RFC 9: a query string must be refused.
    if uri.query().is_some_and(|query| !query.is_empty()) {
        return invalid("a payment pointer has no query string".to_owned());
    }
    let receipts = match receipt_key(&headers) {
        Ok(receipts) => receipts,
        Err(error) => return invalid(error.to_string()),
    };
    let receipts_enabled = receipts.is_some().then_some(true);
    let destination = match payee_of(uri.path()) {
        Some(payee) => api.spsp.destination(&Terms { payee, receipts }),
        None => Err(NotPayable::NotRunning),
    };
    match destination {
        Ok(Destination {
            address,
            shared_secret,
        }) => spsp(
            StatusCode::OK,
            &SpspReply {
                destination_account: address.to_string(),
                shared_secret: STANDARD.encode(shared_secret.0),
                receipts_enabled,
            },
        ),
        Err(error) => refused(
            StatusCode::NOT_FOUND,
            "InvalidReceiverError",
            error.to_string(),
        ),
    }
}

/// Every other method: what a browser asks before it asks for a pointer of another site, or a refusal.
pub(super) async fn other(state: Shared, request: Request) -> Response {
    if payee_of(request.uri().path()).is_none() {
        return unknown(state, request).await;
    }
    if *request.method() != Method::OPTIONS {
        let text = "Method Not Allowed";
        return HttpError::new(StatusCode::METHOD_NOT_ALLOWED, text)
            .next(format!("a payment pointer is asked with {METHODS}"))
            .header(header::ALLOW, HeaderValue::from_static(METHODS))
            .into_response();
    }
    let mut reply = StatusCode::NO_CONTENT.into_response();
    for (name, value) in [
        (header::ALLOW, METHODS),
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        (header::ACCESS_CONTROL_ALLOW_METHODS, METHODS),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, "*"),
        (header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_MAX_AGE),
    ] {
        reply
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    reply
}

/// Whom a path pays, whether it can be paid or not.
fn payee_of(path: &str) -> Option<Payee> {
    if path == HOST_PATH {
        return Some(Payee::Host);
    }
    let hash: ManifestHash = path.strip_prefix('/')?.parse().ok()?;
    Some(Payee::Lease(hash))
}

/// Whether one of SPSP's media types is in the list, and not with a weight of zero.
fn accepts_spsp(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT).into_iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|range| {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default();
            ACCEPTED.iter().any(|it| kind.eq_ignore_ascii_case(it))
                && !parts.any(|parameter| {
                    let weight = parameter
                        .split_once('=')
                        .filter(|(name, _)| name.trim().eq_ignore_ascii_case("q"));
                    weight.is_some_and(|(_, weight)| {
                        weight.trim().parse().is_ok_and(|weight: f32| weight <= 0.0)
                    })
                })
        })
}

fn refused(status: StatusCode, id: &'static str, message: String) -> Response {
    spsp(status, &SpspError { id, message })
}

/// Not to be kept: each query has a secret of its own. Open to pages of other sites.
fn spsp<T: Serialize>(status: StatusCode, body: &T) -> Response {
    let mut reply = json(status, body);
    reply
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    reply.headers_mut().insert(
        header::ACCESS_CONTROL_ALLOW_ORIGIN,
        HeaderValue::from_static("*"),
    );
    vary(&mut reply);
    reply
}

fn vary(reply: &mut Response) {
    reply
        .headers_mut()
        .insert(header::VARY, HeaderValue::from_static("accept"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spsp_is_found_in_every_form_of_accept() {
        let accepts = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::ACCEPT, value.parse().unwrap());
            }
            accepts_spsp(&headers)
        };
        for value in [
            "application/spsp4+json",
            "application/spsp4+json, application/spsp+json",
            "application/spsp+json",
            "text/html, Application/SPSP4+JSON;q=0.5, */*;q=0.1",
            "text/html,application/spsp4+json ; charset=utf-8 ; Q=0.001",
        ] {
            assert!(accepts(&[value]), "{value}");
        }
        assert!(accepts(&["text/html", "application/spsp4+json"]));
        for value in [
            "",
            "*/*",
            "application/*",
            "application/json",
            "text/html,application/xhtml+xml",
            "application/spsp4+json;q=0",
            "application/spsp4+json; q=0.000, text/html",
            "application/spsp4+jsonx",
            "application/spsp3+json",
        ] {
            assert!(!accepts(&[value]), "{value}");
        }
        assert!(!accepts(&[]));
    }

    #[test]
    fn a_path_pays_the_host_or_a_hash_in_any_case() {
        let hash = ManifestHash::from_bytes([3; 32]);
        assert_eq!(payee_of("/.well-known/pay"), Some(Payee::Host));
        for text in [hash.to_string(), hash.to_string().to_uppercase()] {
            assert_eq!(payee_of(&format!("/{text}")), Some(Payee::Lease(hash)));
        }
        for path in ["/", "", "/pods", "/.well-known/payx", &format!("/{hash}/")] {
            assert_eq!(payee_of(path), None, "{path}");
        }
    }
}
