//! `GET /pods/{hash}/logs`: what a pod writes, if its manifest says `debug`.
//!
//! The original sent the word `ping` each second to those who follow; its own tool stops at the first
//! one. Nothing is sent here while there is nothing to say.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes},
    extract::{Path, State},
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use codius_guest_protocol::LogStream;
use codius_manifest::ManifestHash;
use codius_pod::PodLogs;
use futures_util::stream;

use super::{
    Shared,
    lines::{Line, Lines},
    query,
};
use crate::http_error::HttpError;

pub(super) async fn raw(
    State(api): Shared,
    Path(text): Path<String>,
    uri: Uri,
) -> Result<Response, HttpError> {
    let hash: Option<ManifestHash> = text.parse().ok();
    let Some(shown) = hash.and_then(|hash| api.leases.shown(&hash)) else {
        let message = format!("no pod found with this id. id={}", query::short(&text));
        return Err(HttpError::new(StatusCode::NOT_FOUND, message));
    };
    let manifest = shown.upload.manifest();
    if !manifest.debug() {
        let message = format!(
            "pod manifest does not allow debugging. id={}",
            query::short(&text)
        );
        return Err(HttpError::new(StatusCode::FORBIDDEN, message)
            .next("upload it with `debug`: true in the manifest"));
    }
    let lines = Lines::new(
        manifest
            .containers()
            .iter()
            .map(|container| container.id.clone())
            .collect(),
    );
    let follow = query::value(uri.query(), "follow").is_some_and(|value| value == "true");
    let body = if follow {
        Body::from_stream(followed(Arc::clone(&shown.logs), lines))
    } else {
        let mut lines = lines;
        let (records, _) = shown.logs.read(0);
        let mut text = Vec::new();
        records
            .iter()
            .for_each(|record| lines.push(record, |line| write_line(line, &mut text)));
        lines.finish(|line| write_line(line, &mut text));
        Body::from(text)
    };
    let headers = [
        (header::CONTENT_TYPE, "application/vnd.codius.raw-stream"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    Ok((headers, body).into_response())
}

/// Lines as they come, until the pod ends.
fn followed(
    logs: Arc<PodLogs>,
    lines: Lines,
) -> impl futures_util::Stream<Item = Result<Bytes, std::convert::Infallible>> {
    stream::unfold(Some((logs, lines, 0)), |state| async {
        let (logs, mut lines, from) = state?;
        let mut text = Vec::new();
        let Some((records, next)) = logs.follow(from).await else {
            lines.finish(|line| write_line(line, &mut text));
            return Some((Ok(text.into()), None));
        };
        records
            .iter()
            .for_each(|record| lines.push(record, |line| write_line(line, &mut text)));
        Some((Ok(text.into()), Some((logs, lines, next))))
    })
}

/// `_<container> stdout|stderr <text>`.
fn write_line(line: &Line<'_>, out: &mut Vec<u8>) {
    let stream = match line.stream {
        LogStream::Stdout => "stdout",
        LogStream::Stderr => "stderr",
    };
    out.extend_from_slice(format!("_{} {stream} ", line.container).as_bytes());
    out.extend_from_slice(line.text);
    out.push(b'\n');
}
