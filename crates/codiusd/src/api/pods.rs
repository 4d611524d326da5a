//! `/pods`: quotes, uploads, extensions, and what runs.

use std::sync::Arc;

use axum::{
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::Response,
};
use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use codius_api::{PodStatusReply, QuoteReply, Units};
use codius_ledger::{OrderId, RequestDigest};
use codius_manifest::{Machine, ManifestVersion, Upload};

use super::{Api, Shared, answer, json, query};
use crate::{
    config::Quote,
    http_error::HttpError,
    leases::ReplyForm,
    orders::{PaidRequest, Quotation, What, no_pod},
    refund::{InvalidPointer, PaymentPointer},
};

const TOKEN_BYTES: usize = 16;
const PAY_TOKEN: &str = "pay-token";
const REFUND_TO: &str = "refund-to";
/// What a request without a body says: JSON of the wrong shape, not what is no JSON.
const NO_BODY: &[u8] = b"null";

/// `OPTIONS /pods`: the hash and the price of a manifest. Free, and without a `Pay-Token` it never needs a
/// payment channel.
pub(super) async fn quote(
    State(api): Shared,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, HttpError> {
    let body = json_body(&headers, body)?;
    let own_uri = api.leases.own_uri();
    let quoted = codius_manifest::quoted(ManifestVersion::V1, &body, own_uri)?;
    let duration = query::duration(uri.query(), api.max_duration)?;
    let Quotation { price, .. } = api.orders.quote(&quoted.hash, quoted.machine, duration)?;
    if api.quote == Quote::Stream && headers.contains_key(PAY_TOKEN) {
        let id = pay_token(&headers)?;
        api.orders.connected(id, digest(&method, &uri, &body))?;
    }
    Ok(json(
        StatusCode::OK,
        &QuoteReply {
            manifest_hash: quoted.hash,
            price: Units(price),
        },
    ))
}

/// `POST /pods`: runs a manifest for the time that is paid for, or longer if it runs already.
pub(super) async fn upload(
    State(api): Shared,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, HttpError> {
    let body = json_body(&headers, body)?;
    let upload = Upload::parse(&body)?;
    let duration = query::duration(uri.query(), api.max_duration)?;
    let id = match pay_token(&headers) {
        Ok(id) => id,
        Err(error) => {
            // As in the original: who cannot be served is told so before how to pay.
            api.orders.check_room(&upload.hash(), Machine::SMALL)?;
            return Err(error);
        }
    };
    let refund_to = refund_to(&api, &headers)?;
    let digest = digest(&method, &uri, &body);
    let request = PaidRequest {
        id,
        digest,
        duration,
        what: What::Upload(Arc::new(upload)),
        owner: None,
        refund_to,
        form: ReplyForm::V1,
    };
    Ok(answer(api.orders.handle(request).await?))
}

/// `PUT /pods`: more time for a pod that runs. A body is not read. The original asked for money before it
/// looked whether there is anything to extend.
pub(super) async fn extend(
    State(api): Shared,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, HttpError> {
    let hash = query::manifest_hash(uri.query(), |id| no_pod(id))?;
    let duration = query::duration(uri.query(), api.max_duration)?;
    let id = match pay_token(&headers) {
        Ok(id) => id,
        Err(_) if api.leases.shown(&hash).is_none() => return Err(no_pod(hash)),
        Err(error) => return Err(error),
    };
    let digest = digest(&method, &uri, b"");
    Ok(answer(
        api.orders
            .handle(PaidRequest {
                id,
                digest,
                duration,
                what: What::Extend(hash),
                owner: None,
                refund_to: None,
                form: ReplyForm::V1,
            })
            .await?,
    ))
}

/// `GET /pods`: where a pod is, until when, and its manifest (the public part).
pub(super) async fn show(State(api): Shared, uri: Uri) -> Result<Response, HttpError> {
    let unknown = |hash: &str| {
        let text = format!("No manifest with hash of \"{hash}\"");
        HttpError::new(StatusCode::NOT_FOUND, text)
    };
    let hash = query::manifest_hash(uri.query(), unknown)?;
    let shown = api
        .leases
        .shown(&hash)
        .ok_or_else(|| unknown(&hash.to_string()))?;
    let reply = PodStatusReply {
        url: shown.url.clone(),
        manifest_hash: hash,
        expiry: shown.expires_at,
        manifest: shown.upload.manifest().as_value().clone(),
    };
    Ok(json(StatusCode::OK, &reply))
}

/// Where unused money goes: a header that the original did not have.
fn refund_to(api: &Api, headers: &HeaderMap) -> Result<Option<PaymentPointer>, HttpError> {
    let Some(text) = headers.get(REFUND_TO) else {
        return Ok(None);
    };
    // What is no text is no pointer.
    let pointer = api.refunds.pointer(text.to_str().unwrap_or_default());
    pointer
        .map(Some)
        .map_err(|error| not_paid("`Refund-To`", error))
}

/// A payment pointer that this host does not pay.
pub(super) fn not_paid(what: &str, error: InvalidPointer) -> HttpError {
    let text = format!("{what} is not a payment pointer that this host pays");
    HttpError::new(StatusCode::BAD_REQUEST, text)
        .detail(error.to_string())
        .next("give `$host/path`, or an https:// URL, at a public address")
}

/// What a token is bound to.
pub(super) fn digest(method: &Method, uri: &Uri, body: &[u8]) -> RequestDigest {
    RequestDigest::of(
        method.as_str(),
        uri.path(),
        uri.query().unwrap_or_default(),
        body,
    )
}

/// The order that a `Pay-Token` names: 16 bytes in base64 or base64url, padded or not.
pub(super) fn pay_token(headers: &HeaderMap) -> Result<OrderId, HttpError> {
    const ANY_PADDING: GeneralPurposeConfig = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, ANY_PADDING);
    const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, ANY_PADDING);
    let Some(text) = headers.get(PAY_TOKEN) else {
        return Err(
            HttpError::new(StatusCode::BAD_REQUEST, "must supply `Pay-Token` header.")
                .next("send 16 random bytes in base64 as `Pay-Token`"),
        );
    };
    let bytes = STANDARD
        .decode(text)
        .or_else(|_| URL_SAFE.decode(text))
        .unwrap_or_default();
    if bytes.len() != TOKEN_BYTES {
        return Err(HttpError::new(
            StatusCode::BAD_REQUEST,
            "`Pay-Token` must be 16 bytes base64.",
        )
        .next("send 16 random bytes in base64 as `Pay-Token`"));
    }
    Ok(OrderId::of_token(&bytes))
}

/// A body that says it is JSON, or says nothing of it. Refused in the order of the original (hapi 17).
pub(super) fn json_body(
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Bytes, HttpError> {
    if let Err(rejection) = &body
        && rejection.status() == StatusCode::PAYLOAD_TOO_LARGE
    {
        let text = format!(
            "Payload content length greater than maximum allowed: {}",
            super::MAX_BODY_BYTES
        );
        return Err(HttpError::new(StatusCode::PAYLOAD_TOO_LARGE, text)
            .next("put what is large into an image, not into the manifest"));
    }
    if let Some(kind) = headers.get(header::CONTENT_TYPE) {
        let kind = kind.to_str().unwrap_or_default().to_ascii_lowercase();
        let essence = kind.split(';').next().unwrap_or_default().trim();
        let Some((main, sub)) = essence.split_once('/') else {
            let text = "Invalid content-type header";
            return Err(HttpError::new(StatusCode::BAD_REQUEST, text)
                .next("send the manifest with Content-Type: application/json"));
        };
        if main != "application" || !(sub == "json" || sub.ends_with("+json")) {
            return Err(HttpError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "Unsupported Media Type",
            )
            .next("send the manifest with Content-Type: application/json"));
        }
    }
    let body = body.map_err(|_| {
        HttpError::new(
            StatusCode::BAD_REQUEST,
            "Invalid request payload JSON format",
        )
        .next("send the whole body")
    })?;
    if body.is_empty() {
        return Ok(Bytes::from_static(NO_BODY));
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_token(text: &str) -> HeaderMap {
        HeaderMap::from_iter([("pay-token".parse().unwrap(), text.parse().unwrap())])
    }

    #[test]
    fn a_token_is_16_bytes_in_any_base64() {
        let standard = pay_token(&with_token("++//AAECAwQFBgcICQoLDA==")).unwrap();
        assert_eq!(
            pay_token(&with_token("--__AAECAwQFBgcICQoLDA")).unwrap(),
            standard
        );
        for text in ["", "AAAA", "!!!!", "AAECAwQFBgcICQoLDA0ODxAREhM="] {
            assert_eq!(
                pay_token(&with_token(text)).unwrap_err().status(),
                400,
                "{text}"
            );
        }
        let missing = pay_token(&HeaderMap::new()).unwrap_err();
        assert_eq!(missing.body().message, "must supply `Pay-Token` header.");
    }

    #[test]
    fn only_json_is_taken() {
        let of = |kind: &str| HeaderMap::from_iter([(header::CONTENT_TYPE, kind.parse().unwrap())]);
        let body = || Ok(Bytes::from_static(b"{}"));
        assert!(json_body(&HeaderMap::new(), body()).is_ok());
        assert!(json_body(&of("application/json; charset=utf-8"), body()).is_ok());
        assert!(json_body(&of("application/codius-v1+json"), body()).is_ok());
        for (kind, status) in [
            ("text/plain", 415),
            ("application/jsonx", 415),
            ("json", 400),
        ] {
            let error = json_body(&of(kind), body()).unwrap_err();
            assert_eq!(error.status(), status, "{kind}");
        }
        let nothing = json_body(&HeaderMap::new(), Ok(Bytes::new()));
        assert_eq!(nothing.unwrap(), NO_BODY);
    }
}
