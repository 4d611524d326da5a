//! Who may speak to the host before it has passed its test: only the test.

use std::sync::{Arc, atomic::Ordering};

use axum::{
    extract::{Request, State},
    http::{StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use ring::digest::{SHA256, digest};
use serde_json::json;

use super::SelfTest;

/// Answers 503 in place of the host, as the original does, until the gate is open.
pub(crate) async fn gate(
    State(test): State<Arc<SelfTest>>,
    request: Request,
    next: Next,
) -> Response {
    if test.is_open() || is_ours(&test.token, request.headers().get(header::AUTHORIZATION)) {
        return next.run(request).await;
    }
    let stats = test.stats();
    let message = if test.waits.load(Ordering::Acquire) {
        "Self Test Waits: this host is being drained"
    } else if stats.running {
        "Self Test Running"
    } else {
        "Self Test Failed"
    };
    let body = json!({ "message": message, "stats": stats });
    let headers = [
        (header::CONTENT_TYPE, "application/json; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::RETRY_AFTER, "30"),
    ];
    (StatusCode::SERVICE_UNAVAILABLE, headers, body.to_string()).into_response()
}

/// Whether the second word is the token. Digests are compared, so that the time that it takes says
/// nothing of how much of a guess is right.
fn is_ours(token: &str, header: Option<&http::HeaderValue>) -> bool {
    let given = header
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.split(' ').nth(1))
        .unwrap_or_default();
    let digest = |text: &str| digest(&SHA256, text.as_bytes());
    digest(given).as_ref() == digest(token).as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_word_is_the_token() {
        let header = |text: &str| text.parse().unwrap();
        assert!(is_ours("abc", Some(&header("Bearer abc"))));
        assert!(is_ours("abc", Some(&header("Other abc rest"))));
        for text in ["abc", "Bearer", "Bearer ab", "Bearer  abc", ""] {
            assert!(!is_ours("abc", Some(&header(text))), "{text}");
        }
        assert!(!is_ours("abc", None));
    }
}
