//! `GET /api/v2/leases/{hash}/logs`: what the programs of a pod write, as server-sent events.
//!
//! For the owner, who signs the request; for everybody if the manifest says `debug`. A line's id is the
//! place of its end in all output, so a client that was cut off goes on after the last one that it saw,
//! as far as the host still has it: the newest MiB of a pod's output is kept.

use std::{convert::Infallible, sync::Arc};

use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use codius_api::{
    UnixMillis,
    v2::{LogLine, LogStreamName},
};
use codius_guest_protocol::LogStream;
use codius_pod::PodLogs;
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    Problem,
    hash::{LeaseHash, unknown},
    leases::from_owner,
};
use crate::{
    api::{
        Shared,
        lines::{Line, Lines},
    },
    http_error::HttpError,
    leases::Shown,
};

/// The most readers that follow logs at the same time, of all pods together.
pub(in crate::api) const MAX_FOLLOWERS: usize = 256;
/// When a full host is worth another try, in seconds.
const RETRY_SECS: u16 = 30;

pub(super) async fn lines(
    State(api): Shared,
    method: Method,
    uri: Uri,
    LeaseHash(hash): LeaseHash,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Some(shown) = api.leases.shown(&hash) else {
        let known = api.leases.view(&hash).await?.is_some();
        let text = "this lease does not run; the output of its pod is not kept";
        let not_running = HttpError::new(StatusCode::CONFLICT, text)
            .next("read the logs while it runs; its events tell when that is");
        return Err(if known {
            not_running
        } else {
            unknown(&hash.to_string())
        }
        .into());
    };
    if !shown.upload.manifest().debug() {
        from_owner(&api, &method, &uri, &headers, &hash).await?;
    }
    let wanted = Wanted::read(uri.query(), &headers, &shown, api.leases.clock.wall())?;
    let place = Arc::clone(&api.log_followers)
        .try_acquire_owned()
        .map_err(|_| too_many())?;
    let names = containers(&shown);
    let logs = Arc::clone(&shown.logs);
    if wanted.follow {
        let events = followed(logs, names, wanted, place);
        let reply = Sse::new(events).keep_alive(KeepAlive::default());
        return Ok(reply.into_response());
    }
    let (records, _) = logs.read(0);
    let (mut lines, mut events) = (Lines::new(names), Vec::new());
    for record in &records {
        lines.push(record, |line| events.extend(wanted.event(line)));
    }
    lines.finish(|line| events.extend(wanted.event(line)));
    let events = stream::iter(events.into_iter().map(Ok::<_, Infallible>));
    Ok(Sse::new(events).into_response())
}

/// Lines as they come, until the pod ends.
fn followed(
    logs: Arc<PodLogs>,
    names: Vec<String>,
    wanted: Wanted,
    place: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let start = Some((Lines::new(names), 0, place));
    let batches = stream::unfold(start, move |state| {
        let (logs, wanted) = (Arc::clone(&logs), wanted.clone());
        async move {
            let (mut lines, from, place) = state?;
            let mut events = Vec::new();
            let Some((records, next)) = logs.follow(from).await else {
                lines.finish(|line| events.extend(wanted.event(line)));
                return Some((events, None));
            };
            for record in &records {
                lines.push(record, |line| events.extend(wanted.event(line)));
            }
            Some((events, Some((lines, next, place))))
        }
    });
    batches.flat_map(|events| stream::iter(events.into_iter().map(Ok)))
}

/// Which lines a client wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Wanted {
    follow: bool,
    container: Option<String>,
    /// Milliseconds since 1970.
    since: u64,
    /// The id of the last line that the client has seen.
    after: Option<u64>,
}

impl Wanted {
    fn read(
        query: Option<&str>,
        headers: &HeaderMap,
        shown: &Shown,
        now_unix_ms: u64,
    ) -> Result<Self, HttpError> {
        let mut wanted = Self::parse(query, now_unix_ms)?;
        if let Some(name) = &wanted.container
            && !containers(shown).contains(name)
        {
            return Err(invalid(format!(
                "`container` is one of {}",
                containers(shown).join(", ")
            )));
        }
        if let Some(id) = headers.get("last-event-id") {
            let id = id.to_str().ok().and_then(|id| id.parse().ok());
            let next = "send the `id` of an event as `Last-Event-ID`, or no such header";
            wanted.after = Some(id.ok_or_else(|| invalid(next))?);
        }
        Ok(wanted)
    }

    fn parse(query: Option<&str>, now_unix_ms: u64) -> Result<Self, HttpError> {
        let mut wanted = Self::default();
        for (name, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            match name.as_ref() {
                "follow" => {
                    wanted.follow = value
                        .parse()
                        .map_err(|_| invalid("give `follow` as `true` or `false`"))?;
                }
                "container" => wanted.container = Some(value.into_owned()),
                "since" => {
                    wanted.since = moment(&value, now_unix_ms).ok_or_else(|| {
                        invalid("give `since` as a moment (2026-11-23T16:10:00Z) or as seconds ago")
                    })?;
                }
                _ => {
                    return Err(invalid(
                        "the parameters are `follow`, `container` and `since`",
                    ));
                }
            }
        }
        Ok(wanted)
    }

    /// The event of a line, if it is wanted.
    fn event(&self, line: &Line<'_>) -> Option<Event> {
        let other = self
            .container
            .as_ref()
            .is_some_and(|name| name != line.container);
        let seen = self.after.is_some_and(|after| line.place <= after);
        if other || seen || line.at_unix_ms < self.since {
            return None;
        }
        let told = LogLine {
            at: UnixMillis::new(line.at_unix_ms),
            container: line.container.to_owned(),
            stream: match line.stream {
                LogStream::Stdout => LogStreamName::Stdout,
                LogStream::Stderr => LogStreamName::Stderr,
            },
            text: String::from_utf8_lossy(line.text).into_owned(),
        };
        let data = serde_json::to_string(&told).expect("text is JSON");
        Some(Event::default().id(line.place.to_string()).data(data))
    }
}

/// A moment of RFC 3339, or so many seconds ago; in milliseconds since 1970.
fn moment(text: &str, now_unix_ms: u64) -> Option<u64> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        let seconds: u64 = text.parse().ok()?;
        return Some(now_unix_ms.saturating_sub(seconds.saturating_mul(1000)));
    }
    let moment: jiff::Timestamp = text.parse().ok()?;
    // A line of before 1970 there is not.
    Some(u64::try_from(moment.as_millisecond()).unwrap_or_default())
}

fn containers(shown: &Shown) -> Vec<String> {
    let containers = shown.upload.manifest().containers().iter();
    containers.map(|container| container.id.clone()).collect()
}

/// As many readers as a host may have.
pub(in crate::api) fn followers() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(MAX_FOLLOWERS))
}

fn invalid(next: impl Into<String>) -> HttpError {
    HttpError::new(StatusCode::BAD_REQUEST, "the query is not what it must be").next(next)
}

fn too_many() -> HttpError {
    let text = "too many readers follow logs on this host";
    HttpError::new(StatusCode::SERVICE_UNAVAILABLE, text)
        .next("try again in a minute")
        .header(header::RETRY_AFTER, HeaderValue::from(RETRY_SECS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_says_which_lines_are_wanted() {
        let now = 1_795_450_200_000;
        let parse = |query: &str| Wanted::parse(Some(query), now);
        assert_eq!(Wanted::parse(None, now).unwrap(), Wanted::default());
        let all = parse("follow=true&container=a%20b&since=60").unwrap();
        let expected = Wanted {
            follow: true,
            container: Some("a b".to_owned()),
            since: now - 60_000,
            after: None,
        };
        assert_eq!(all, expected);
        for (since, expected) in [
            ("2026-11-23T16:10:00Z", now),
            ("2026-11-23T17:10:00.5%2B01:00", now + 500),
            ("0", now),
            ("18446744073709551615", 0),
            ("1969-01-01T00:00:00Z", 0),
        ] {
            let query = format!("since={since}");
            assert_eq!(parse(&query).unwrap().since, expected, "{since}");
        }
        for query in [
            "follow=yes",
            "follow=",
            "since=",
            "since=-5",
            "since=yesterday",
            "since=2026-11-23",
            "since=184467440737095516150",
            "tail=5",
        ] {
            assert_eq!(parse(query).unwrap_err().status(), 400, "{query}");
        }
    }

    #[test]
    fn a_line_that_was_seen_is_not_sent_again() {
        let line = Line {
            container: "app",
            stream: LogStream::Stdout,
            text: b"hello \xff",
            place: 7,
            at_unix_ms: 1000,
        };
        let sent = |wanted: Wanted| wanted.event(&line).is_some();
        assert!(sent(Wanted::default()));
        for (after, expected) in [(6, true), (7, false), (8, false)] {
            let wanted = Wanted {
                after: Some(after),
                ..Wanted::default()
            };
            assert_eq!(sent(wanted), expected);
        }
        for (since, expected) in [(1000, true), (1001, false)] {
            let wanted = Wanted {
                since,
                ..Wanted::default()
            };
            assert_eq!(sent(wanted), expected);
        }
        for (name, expected) in [("app", true), ("db", false)] {
            let wanted = Wanted {
                container: Some(name.to_owned()),
                ..Wanted::default()
            };
            assert_eq!(sent(wanted), expected);
        }
    }
}
