//! `GET /pods/{hash}/logs`: what a pod writes, if its manifest says `debug`.
//!
//! The original sent the word `ping` each second to those who follow; its own tool stops at the first
//! one. Nothing is sent here while there is nothing to say.

use std::{collections::HashMap, sync::Arc};

use axum::{
    body::{Body, Bytes},
    extract::{Path, State},
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use codius_guest_protocol::LogStream;
use codius_manifest::ManifestHash;
use codius_pod::{LogRecord, PodLogs};
use futures_util::stream;

use super::{Shared, query};
use crate::http_error::HttpError;

/// The longest line; longer ones are cut into several.
const MAX_LINE_BYTES: usize = 16 * 1024;

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
            .for_each(|record| lines.push(record, &mut text));
        lines.finish(&mut text);
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
            lines.finish(&mut text);
            return Some((Ok(text.into()), None));
        };
        records
            .iter()
            .for_each(|record| lines.push(record, &mut text));
        Some((Ok(text.into()), Some((logs, lines, next))))
    })
}

/// Puts pieces of output together to lines: `_<container> stdout|stderr <text>`.
struct Lines {
    names: Vec<String>,
    partial: HashMap<(usize, LogStream), Vec<u8>>,
}

impl Lines {
    fn new(names: Vec<String>) -> Self {
        Self {
            names,
            partial: HashMap::new(),
        }
    }

    fn push(&mut self, record: &LogRecord, out: &mut Vec<u8>) {
        let Some(name) = self.names.get(record.container) else {
            return;
        };
        let partial = self
            .partial
            .entry((record.container, record.stream))
            .or_default();
        for piece in record.data.split_inclusive(|&byte| byte == b'\n') {
            partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") || partial.len() >= MAX_LINE_BYTES {
                let line = std::mem::take(partial);
                write_line(name, record.stream, &line, out);
            }
        }
    }

    /// What was written without a line feed at its end.
    fn finish(self, out: &mut Vec<u8>) {
        for ((container, stream), partial) in self.partial {
            if let Some(name) = self.names.get(container)
                && !partial.is_empty()
            {
                write_line(name, stream, &partial, out);
            }
        }
    }
}

fn write_line(name: &str, stream: LogStream, line: &[u8], out: &mut Vec<u8>) {
    let stream = match stream {
        LogStream::Stdout => "stdout",
        LogStream::Stderr => "stderr",
    };
    out.extend_from_slice(format!("_{name} {stream} ").as_bytes());
    out.extend_from_slice(line.strip_suffix(b"\n").unwrap_or(line));
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_become_lines_of_their_container_and_stream() {
        let mut lines = Lines::new(vec!["app".into(), "db".into()]);
        let mut out = Vec::new();
        for (container, stream, data) in [
            (0, LogStream::Stdout, "hel"),
            (1, LogStream::Stderr, "oops\n"),
            (0, LogStream::Stdout, "lo\nwor"),
            (9, LogStream::Stdout, "nobody\n"),
        ] {
            lines.push(
                &LogRecord {
                    container,
                    stream,
                    data: data.into(),
                },
                &mut out,
            );
        }
        lines.finish(&mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "_db stderr oops\n_app stdout hello\n_app stdout wor\n"
        );
    }
}
