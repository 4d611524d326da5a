//! `/api/v2/leases`.

use std::convert::Infallible;

use axum::{
    extract::{Path, State},
    http::StatusCode,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use codius_manifest::ManifestHash;
use futures_util::stream;

use super::Shared;
use crate::http_error::HttpError;

/// `GET /api/v2/leases/{hash}/events`: how an upload goes on, as server-sent events.
pub(super) async fn events(
    State(api): Shared,
    Path(hash): Path<String>,
) -> Result<Response, HttpError> {
    let hash: Option<ManifestHash> = hash.parse().ok();
    // One that is over is another lease's history to whoever uploads the same manifest again.
    let progress = hash
        .and_then(|hash| api.leases.progress.get(&hash))
        .filter(|progress| !progress.is_over());
    let Some(progress) = progress else {
        return Err(HttpError::new(
            StatusCode::NOT_FOUND,
            "nothing goes on with a lease of this hash",
        ));
    };
    let events = stream::unfold(progress.follow(), |mut follower| async move {
        let event = follower.next().await?;
        let data = serde_json::to_string(&event).unwrap_or_default();
        Some((Ok::<_, Infallible>(Event::default().data(data)), follower))
    });
    Ok(Sse::new(events)
        .keep_alive(KeepAlive::default())
        .into_response())
}
