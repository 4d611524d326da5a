//! `GET /api/v2/leases/{hash}/exec`: the owner of a lease runs a program in one of its containers, over a
//! WebSocket ([docs/exec.md](../../../../../docs/exec.md)).
//!
//! ```text
//! signed GET, Upgrade ─▶ 101 ─▶ `start` ─▶ input, output … ─▶ `exited` ─▶ closed
//!      │ refused              └─▶ `failed` ─▶ closed
//! ```
//! The session ends with its connection, whichever side closes it, and with the pod. What a slow client does
//! not read waits in the program: nothing is kept here but one piece.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::Response,
};
use codius_api::v2::{ExecReply, ExecRequest, INPUT, STDERR, STDOUT, TerminalSize};
use codius_guest_protocol::{
    LogStream, MAX_EXEC_COMMAND_BYTES, MAX_EXEC_PIECE_BYTES, MAX_EXEC_WORDS, WindowSize,
};
use codius_manifest::ManifestHash;
use codius_pod::{ExecError, ExecEvent, ExecInput, ExecOutput, ExecSession, ExecStart};
use futures_util::{
    Sink, SinkExt, Stream, StreamExt,
    stream::{SplitSink, SplitStream},
};
use hyper_util::rt::TokioIo;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message,
        handshake::derive_accept_key,
        protocol::{Role, WebSocketConfig},
    },
};
use tracing::Instrument;

use super::{
    Problem,
    hash::{LeaseHash, unknown},
    leases::from_owner,
};
use crate::{
    api::{Api, Shared},
    http_error::HttpError,
    leases::exit_told,
};

/// Sessions of all pods together; each pod has its own limit.
const MAX_SESSIONS: usize = 128;
/// The longest message of a client: its command, written with escapes.
const MAX_MESSAGE_BYTES: usize = 512 * 1024;
/// How long a client may take to say what it wants.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// A session without data in either direction ends after that.
const IDLE: Duration = Duration::from_secs(30 * 60);
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// A client of which nothing is heard for so long, not even that it has heard us, is gone.
const SILENCE: Duration = Duration::from_secs(90);
/// How long the last words may take.
const GOODBYE: Duration = Duration::from_secs(10);
const MAX_TERM_BYTES: usize = 64;
const RETRY_SECS: u16 = 30;

type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

pub(super) async fn open(
    State(api): Shared,
    LeaseHash(hash): LeaseHash,
    request: Request,
) -> Result<Response, Problem> {
    let (method, uri, headers) = (
        request.method().clone(),
        request.uri().clone(),
        request.headers().clone(),
    );
    from_owner(&api, &method, &uri, &headers, &hash).await?;
    let key = websocket_key(&method, &headers)?;
    let names = containers(&api, &hash).await?;
    let place = Arc::clone(&api.exec_places)
        .try_acquire_owned()
        .map_err(|_| too_many("this host has as many sessions as it may have"))?;
    let upgrade = hyper::upgrade::on(request);
    let span = tracing::info_span!("exec", %hash);
    let leases = Arc::clone(&api);
    api.leases.tasks.spawn(
        async move {
            // A client that goes away right now wants nothing.
            let Ok(upgraded) = upgrade.await else { return };
            let io = TokioIo::new(upgraded);
            let config = websocket_config();
            let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
            serve(&leases, &hash, &names, socket, place).await;
        }
        .instrument(span),
    );
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let accept = derive_accept_key(key.as_bytes());
    let accept = HeaderValue::from_str(&accept).map_err(|_| HttpError::internal())?;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    Ok(response)
}

/// As many sessions as a host may have.
pub(in crate::api) fn places() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(MAX_SESSIONS))
}

fn websocket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(16 * 1024)
        .write_buffer_size(0)
        .max_write_buffer_size(256 * 1024)
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES))
}

/// The key of a client's handshake (RFC 6455, 4.2.1).
fn websocket_key(method: &Method, headers: &HeaderMap) -> Result<String, HttpError> {
    let has = |name, word: &str| {
        let mut values = headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok());
        values.any(|value| {
            let mut words = value.split(',').map(str::trim);
            words.any(|one| one.eq_ignore_ascii_case(word))
        })
    };
    let key = headers.get(header::SEC_WEBSOCKET_KEY);
    let key = key.and_then(|key| key.to_str().ok());
    let upgrades = method == Method::GET
        && has(header::CONNECTION, "upgrade")
        && has(header::UPGRADE, "websocket")
        && has(header::SEC_WEBSOCKET_VERSION, "13");
    match key {
        Some(key) if upgrades => Ok(key.to_owned()),
        _ => Err(HttpError::new(
            StatusCode::UPGRADE_REQUIRED,
            "a session goes over a WebSocket",
        )
        .next("open one (RFC 6455, version 13, HTTP/1.1) at this address, or use codius exec")
        .header(header::UPGRADE, HeaderValue::from_static("websocket"))),
    }
}

/// The names of the containers of a pod that can have sessions now.
async fn containers(api: &Api, hash: &ManifestHash) -> Result<Vec<String>, HttpError> {
    let Some(shown) = api.leases.shown(hash) else {
        return Err(match api.leases.view(hash).await? {
            Some(_) => HttpError::new(StatusCode::CONFLICT, "this lease does not run")
                .next("run programs in it while it runs; its events tell when that is"),
            None => unknown(&hash.to_string()),
        });
    };
    if shown.is_frozen() {
        let text = "the pod of this lease is held still, as its money is used up";
        return Err(HttpError::new(StatusCode::CONFLICT, text)
            .next("buy more time for it, as by codius extend-hash, then ask again"));
    }
    let containers = shown.upload.manifest().containers().iter();
    Ok(containers.map(|container| container.id.clone()).collect())
}

fn too_many(text: &str) -> HttpError {
    HttpError::new(StatusCode::SERVICE_UNAVAILABLE, text)
        .next("end another session, or try again later")
        .header(header::RETRY_AFTER, HeaderValue::from(RETRY_SECS))
}

/// One session, from its first frame to its last.
async fn serve(
    api: &Api,
    hash: &ManifestHash,
    names: &[String],
    socket: Socket,
    _place: OwnedSemaphorePermit,
) {
    let (mut sink, mut stream) = socket.split();
    let last = match begin(api, hash, names, &mut stream).await {
        Ok(Some(session)) => {
            tracing::info!("a session has begun");
            let last = tokio::select! {
                last = carry(session, &mut sink, &mut stream) => last,
                () = api.leases.closing.cancelled() => Some(failed("this host is being restarted")),
            };
            tracing::info!("a session has ended");
            last
        }
        Ok(None) => None,
        Err(message) => Some(failed(message)),
    };
    let goodbye = async {
        if let Some(last) = last {
            sink.send(text(&last)).await?;
        }
        sink.close().await
    };
    // A client that has gone needs none.
    let _ = timeout(GOODBYE, goodbye).await;
}

fn failed(message: impl Into<String>) -> ExecReply {
    ExecReply::Failed {
        code: None,
        message: message.into(),
    }
}

fn text(reply: &ExecReply) -> Message {
    Message::text(serde_json::to_string(reply).expect("text and numbers are JSON"))
}

/// Hears what is wanted, and begins it. `None`: the client has gone.
async fn begin(
    api: &Api,
    hash: &ManifestHash,
    names: &[String],
    stream: &mut SplitStream<Socket>,
) -> Result<Option<ExecSession>, String> {
    let first = async {
        loop {
            match stream.next().await {
                Some(Ok(Message::Text(text))) => return Some(text),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(_) | Err(_)) | None => return None,
            }
        }
    };
    let first = timeout(START_TIMEOUT, first).await;
    let Some(first) = first.map_err(|_| "the first message did not come in time".to_owned())?
    else {
        return Ok(None);
    };
    let start = match serde_json::from_str(&first) {
        Ok(ExecRequest::Start(start)) => wanted(start, names)?,
        Ok(_) => return Err("the first message has to be `start`".to_owned()),
        Err(error) => return Err(format!("the first message is not what it must be: {error}")),
    };
    let session = api.leases.supervisor.exec(hash, start).await;
    session.map(Some).map_err(|error| match error {
        ExecError::Frozen => {
            "the pod is held still, as its money is used up; buy more time for it".to_owned()
        }
        ExecError::NotOffered => {
            "this pod was started by an earlier version of the host; it carries sessions when it is \
             started anew"
                .to_owned()
        }
        error @ (ExecError::NotRunning | ExecError::TooMany) => error.to_string(),
    })
}

fn wanted(start: codius_api::v2::ExecStart, names: &[String]) -> Result<ExecStart, String> {
    let container = match &start.container {
        None => 0,
        Some(name) => names
            .iter()
            .position(|known| known == name)
            .ok_or_else(|| format!("`container` is one of {}", names.join(", ")))?,
    };
    let bytes: usize = start.command.iter().map(|word| word.len() + 1).sum();
    if start.command.first().is_none_or(String::is_empty) {
        return Err("`command` is empty".to_owned());
    }
    if start.command.len() > MAX_EXEC_WORDS || bytes > MAX_EXEC_COMMAND_BYTES {
        return Err(format!(
            "`command` has at most {MAX_EXEC_WORDS} words and {MAX_EXEC_COMMAND_BYTES} bytes"
        ));
    }
    if start.command.iter().any(|word| word.contains('\0')) {
        return Err("`command` has a zero byte in it".to_owned());
    }
    let plain = |term: &str| {
        let fits = (1..=MAX_TERM_BYTES).contains(&term.len());
        fits && term
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'/')
    };
    if start.term.as_ref().is_some_and(|term| !plain(term)) {
        return Err("`term` is the name of a kind of terminal".to_owned());
    }
    let term = start
        .terminal
        .map(|_| start.term.unwrap_or_else(|| "xterm".to_owned()));
    Ok(ExecStart {
        container,
        args: start.command,
        env: term
            .map(|term| ("TERM".to_owned(), term))
            .into_iter()
            .collect(),
        input: start.input,
        terminal: start.terminal.map(size),
    })
}

fn size(size: TerminalSize) -> WindowSize {
    WindowSize {
        columns: size.columns,
        rows: size.rows,
    }
}

/// When data was last seen, in either direction.
struct Seen(Mutex<Instant>);

impl Seen {
    fn now(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    async fn idle(&self) {
        loop {
            let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if last.elapsed() >= IDLE {
                return;
            }
            sleep_until(last + IDLE).await;
        }
    }
}

/// Carries a session. Gives its last word, if there is somebody to hear it.
async fn carry(
    session: ExecSession,
    sink: &mut SplitSink<Socket, Message>,
    stream: &mut SplitStream<Socket>,
) -> Option<ExecReply> {
    let ExecSession { input, output } = session;
    let seen = Seen(Mutex::new(Instant::now()));
    tokio::select! {
        last = outward(output, sink, &seen) => last,
        last = inward(&input, stream, &seen) => last,
        () = seen.idle() => {
            let minutes = IDLE.as_secs() / 60;
            Some(failed(format!("the session was idle for {minutes} minutes")))
        }
    }
}

async fn outward(
    mut output: ExecOutput,
    sink: &mut (impl Sink<Message, Error = tungstenite::Error> + Unpin),
    seen: &Seen,
) -> Option<ExecReply> {
    let mut ping = tokio::time::interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
    loop {
        let message = tokio::select! {
            event = output.next() => match event {
                Some(ExecEvent::Started) => text(&ExecReply::Started),
                Some(ExecEvent::Output { stream, data }) => {
                    seen.now();
                    let stream = match stream {
                        LogStream::Stdout => STDOUT,
                        LogStream::Stderr => STDERR,
                    };
                    let mut framed = Vec::with_capacity(data.len() + 1);
                    framed.push(stream);
                    framed.extend(data);
                    Message::binary(framed)
                }
                Some(ExecEvent::Failed { code, message }) => {
                    return Some(ExecReply::Failed { code: Some(code), message });
                }
                Some(ExecEvent::Ended(exit)) => return Some(ExecReply::Exited(exit_told(exit))),
                None => return Some(failed("the pod has ended, or its host is being restarted")),
            },
            _ = ping.tick() => Message::Ping(tungstenite::Bytes::new()),
        };
        if sink.send(message).await.is_err() {
            return None;
        }
    }
}

async fn inward(
    input: &ExecInput,
    stream: &mut (impl Stream<Item = tungstenite::Result<Message>> + Unpin),
    seen: &Seen,
) -> Option<ExecReply> {
    loop {
        // While the program does not read, nobody listens here, and no silence counts.
        let Ok(Some(Ok(message))) = timeout(SILENCE, stream.next()).await else {
            return None;
        };
        let passed_on = match message {
            Message::Binary(data) => match data.split_first() {
                Some((&INPUT, data)) if data.len() <= 4 * MAX_EXEC_PIECE_BYTES => {
                    seen.now();
                    input.write(data).await
                }
                _ => {
                    return Some(failed(
                        "a binary message is a zero byte and at most 64 KiB of input",
                    ));
                }
            },
            Message::Text(text) => match serde_json::from_str(&text) {
                Ok(ExecRequest::Resize(to)) => input.resize(size(to)).await,
                Ok(ExecRequest::EndOfInput) => input.end().await,
                Ok(ExecRequest::Start(_)) => return Some(failed("a session is started once")),
                Err(error) => {
                    return Some(failed(format!("a message is not what it must be: {error}")));
                }
            },
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Ok(()),
            Message::Close(_) => return None,
        };
        if passed_on.is_err() {
            // Its last word comes from the other side.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use axum::http::HeaderName;

    fn start(command: &[&str]) -> codius_api::v2::ExecStart {
        codius_api::v2::ExecStart {
            container: None,
            command: command.iter().map(|&word| word.to_owned()).collect(),
            input: true,
            terminal: None,
            term: None,
        }
    }

    #[test]
    fn what_is_wanted_is_looked_at_before_the_pod_hears_it() {
        let names = ["app".to_owned(), "db".to_owned()];
        let judged = |start| wanted(start, &names);
        let in_db = codius_api::v2::ExecStart {
            container: Some("db".to_owned()),
            terminal: Some(TerminalSize {
                columns: 80,
                rows: 24,
            }),
            ..start(&["sh", "-l"])
        };
        let accepted = judged(in_db.clone()).unwrap();
        assert_eq!((accepted.container, accepted.args.len()), (1, 2));
        assert_eq!(accepted.env, [("TERM".to_owned(), "xterm".to_owned())]);
        assert_eq!(judged(start(&["true"])).unwrap().env, []);
        let long = "x".repeat(MAX_EXEC_COMMAND_BYTES);
        for (refused, why) in [
            (start(&[]), "empty"),
            (start(&[""]), "empty"),
            (start(&["a\0b"]), "zero byte"),
            (start(&[&long]), "bytes"),
            (start(&["a"; MAX_EXEC_WORDS + 1]), "words"),
            (
                codius_api::v2::ExecStart {
                    container: Some("web".to_owned()),
                    ..start(&["true"])
                },
                "one of app, db",
            ),
            (
                codius_api::v2::ExecStart {
                    term: Some("a b".to_owned()),
                    ..in_db
                },
                "`term`",
            ),
        ] {
            let error = judged(refused).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn only_a_websocket_handshake_is_upgraded() {
        let headers = |pairs: &[(&'static str, &'static str)]| -> HeaderMap {
            let pairs = pairs.iter().map(|&(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            });
            pairs.collect()
        };
        let good = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        websocket_key(&Method::GET, &headers(&good)).unwrap();
        for missing in 0..good.len() {
            let mut pairs = good.to_vec();
            pairs.remove(missing);
            let error = websocket_key(&Method::GET, &headers(&pairs)).unwrap_err();
            assert_eq!(error.status(), StatusCode::UPGRADE_REQUIRED);
        }
    }
}
