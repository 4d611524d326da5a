//! The gentle end: what was asked is answered, and nobody who comes meanwhile is turned away.

mod support;

use std::time::{Duration, Instant};

use codius_proxy::{Limits, Route};
use futures_util::{SinkExt, StreamExt};
use support::{Host, OTHER, POD, body, read_to_end, read_until, status, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// Longer than the proxy leaves idle connections open at its end, and shorter than the drain of these tests.
const AFTER_IDLE: Duration = Duration::from_millis(900);

fn get(host: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")
}

fn drain(drain: Duration) -> Limits {
    Limits {
        drain,
        ..Limits::default()
    }
}

/// A pod that takes its time.
async fn slow_pod(host: &Host, time: Duration) {
    host.raw_pod(move |mut stream| async move {
        while let Ok(1..) = stream.read(&mut [0; 4096]).await {
            tokio::time::sleep(time).await;
            if stream.write_all(OK.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn shutdown_answers_what_was_asked_and_ends() {
    let host = Host::start().await;
    slow_pod(&host, Duration::from_millis(300)).await;
    let _silent = host.connect().await;
    let mut asking = host.connect().await;
    let request = get(&format!("{POD}.h"));
    asking.write_all(request.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    host.shutdown.cancel();
    let reply = read_to_end(&mut asking).await;
    assert!(status(&reply) == 200 && reply.ends_with("ok"), "{reply}");
    assert!(reply.contains("connection: close"), "{reply}");
    let Host {
        serving, address, ..
    } = host;
    within(serving).await.unwrap();
    let refused = TcpStream::connect(address).await;
    assert!(refused.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn the_next_request_on_a_kept_connection_is_answered_as_the_last() {
    let host = Host::start().await;
    let mut kept = host.connect().await;
    kept.write_all(get("h").as_bytes()).await.unwrap();
    let first = read_until(&mut kept, "api / 127.0.0.1").await;
    assert!(!first.contains("connection: close"), "{first}");
    host.shutdown.cancel();
    tokio::time::sleep(Duration::from_millis(100)).await;
    kept.write_all(get("h").as_bytes()).await.unwrap();
    let last = read_to_end(&mut kept).await;
    assert!(
        status(&last) == 200 && last.contains("connection: close"),
        "{last}"
    );
    within(host.serving).await.unwrap();
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_one_in_the_middle_of_a_request_is_not() {
    let host = Host::with_limits(drain(Duration::from_secs(10))).await;
    let [mut idle, mut half, mut half_of_second] = [
        host.connect().await,
        host.connect().await,
        host.connect().await,
    ];
    for kept in [&mut idle, &mut half_of_second] {
        kept.write_all(get("h").as_bytes()).await.unwrap();
        read_until(kept, "api / 127.0.0.1").await;
    }
    let request = get("h");
    let (begin, rest) = request.split_at(10);
    for stream in [&mut half, &mut half_of_second] {
        stream.write_all(begin.as_bytes()).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    host.shutdown.cancel();
    assert_eq!(within(idle.read(&mut [0; 1])).await.unwrap(), 0);
    tokio::time::sleep(AFTER_IDLE).await;
    for stream in [&mut half, &mut half_of_second] {
        stream.write_all(rest.as_bytes()).await.unwrap();
        let reply = read_to_end(stream).await;
        assert!(
            status(&reply) == 200 && reply.contains("connection: close"),
            "{reply}"
        );
    }
    within(host.serving).await.unwrap();
}

#[tokio::test]
async fn while_an_old_request_goes_on_new_visitors_are_let_in() {
    let host = Host::start().await;
    slow_pod(&host, Duration::from_millis(1500)).await;
    let mut asking = host.connect().await;
    let request = get(&format!("{POD}.h"));
    asking.write_all(request.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    host.shutdown.cancel();
    tokio::time::sleep(AFTER_IDLE).await;
    let reply = host.talk(&get("h")).await;
    assert!(
        status(&reply) == 200 && reply.contains("connection: close"),
        "{reply}"
    );
    let reply = read_to_end(&mut asking).await;
    assert!(reply.ends_with("ok"), "{reply}");
    within(host.serving).await.unwrap();
}

#[tokio::test]
async fn a_tunnel_goes_on_for_as_long_as_the_drain_and_is_cut_then() {
    let host = Host::with_limits(drain(Duration::from_secs(1))).await;
    host.raw_pod(|stream| async move {
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        while let Some(Ok(message)) = socket.next().await {
            let _ = socket.send(message).await;
        }
    })
    .await;
    let url = format!("ws://{POD}.localhost/");
    let stream = host.connect().await;
    let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.unwrap();
    let shutdown = Instant::now();
    host.shutdown.cancel();
    socket.send(Message::text("still there?")).await.unwrap();
    let echo = within(socket.next()).await.unwrap().unwrap();
    assert_eq!(echo, Message::text("still there?"));
    assert!(!matches!(within(socket.next()).await, Some(Ok(_))));
    assert!(shutdown.elapsed() >= Duration::from_secs(1));
    within(host.serving).await.unwrap();
}

#[tokio::test]
async fn a_body_without_an_end_is_cut_after_the_drain() {
    let host = Host::with_limits(drain(Duration::from_secs(1))).await;
    host.raw_pod(|mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let _ = stream.write_all(head.as_bytes()).await;
        while stream.write_all(b"4\r\ntick\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let mut asking = host.connect().await;
    let request = get(&format!("{POD}.h"));
    asking.write_all(request.as_bytes()).await.unwrap();
    read_until(&mut asking, "tick").await;
    host.shutdown.cancel();
    let rest = read_to_end(&mut asking).await;
    assert!(!rest.ends_with("0\r\n\r\n"), "an end that was none");
    within(host.serving).await.unwrap();
}

#[tokio::test]
async fn a_request_waits_for_a_pod_that_is_being_taken_up() {
    let host = Host::start().await;
    let pod = host.canned_pod(OK).await;
    let name = format!("{OTHER}.h");
    host.table.set(OTHER, Route::NotReady);
    let waiting = host.visit(&name, "/");
    tokio::pin!(waiting);
    let early = tokio::time::timeout(Duration::from_millis(200), &mut waiting).await;
    assert!(early.is_err(), "{early:?}");
    host.table.set(OTHER, Route::Pod(pod));
    assert_eq!(body(&within(waiting).await), "ok");
    // One that turns out to be gone is said to be so.
    host.table.set(OTHER, Route::NotReady);
    let waiting = host.visit(&name, "/");
    tokio::pin!(waiting);
    let early = tokio::time::timeout(Duration::from_millis(200), &mut waiting).await;
    assert!(early.is_err(), "{early:?}");
    host.table.set(OTHER, Route::NotFound);
    assert_eq!(status(&within(waiting).await), 404);
}
