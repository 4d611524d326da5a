//! How version 2 says no.

use axum::{
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use codius_ledger::StoredResponse;
use codius_store::StoreError;

use crate::{api, http_error::HttpError};

const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");

/// An error with RFC 9457's media type.
#[derive(Debug)]
pub(in crate::api) struct Problem(HttpError);

impl<E: Into<HttpError>> From<E> for Problem {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl From<StoreError> for HttpError {
    fn from(error: StoreError) -> Self {
        tracing::error!(error = &error as &dyn std::error::Error, "store");
        Self::internal()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        marked(self.0.into_response())
    }
}

/// The answer to a paid request, as it was given and will be given again.
pub(super) fn answer(response: StoredResponse) -> Response {
    let failed = response.status >= 400;
    let reply = api::answer(response);
    if failed { marked(reply) } else { reply }
}

fn marked(mut reply: Response) -> Response {
    reply.headers_mut().insert(header::CONTENT_TYPE, MEDIA_TYPE);
    reply
}
