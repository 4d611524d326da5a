//! `GET /api/v2/leases/{hash}/events`: how a lease goes on, as server-sent events.

use std::convert::Infallible;

use axum::{
    extract::State,
    http::StatusCode,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::stream;

use super::{Problem, hash::LeaseHash};
use crate::{api::Shared, http_error::HttpError};

pub(super) async fn events(
    State(api): Shared,
    LeaseHash(hash): LeaseHash,
) -> Result<Response, Problem> {
    // One that is over is another lease's history to whoever uploads the same manifest again.
    let progress = api.leases.progress.get(&hash);
    let progress = progress.filter(|progress| !progress.is_over());
    let Some(progress) = progress else {
        let text = "nothing goes on with a lease of this hash";
        return Err(HttpError::new(StatusCode::NOT_FOUND, text)
            .next("ask while it is being created, or while it runs")
            .into());
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
