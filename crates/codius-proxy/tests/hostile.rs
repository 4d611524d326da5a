//! Visitors that mean no good, and tunnels.

mod support;

use std::time::{Duration, Instant};

use codius_proxy::Limits;
use futures_util::{SinkExt, StreamExt};
use support::{Host, OTHER, POD, read_to_end, read_until, status, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A pod that tells how many request heads it has seen, in bytes it was sent.
async fn counting_pod(host: &Host) -> tokio::sync::mpsc::UnboundedReceiver<String> {
    let (tell, told) = tokio::sync::mpsc::unbounded_channel();
    host.raw_pod(move |mut stream| {
        let tell = tell.clone();
        async move {
            let mut seen = Vec::new();
            let mut buffer = vec![0; 4096];
            while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                seen.extend_from_slice(&buffer[..read]);
                let text = String::from_utf8_lossy(&seen).into_owned();
                let ended = text.ends_with("0\r\n\r\n") || !text.contains("chunked");
                if text.contains("\r\n\r\n") && ended {
                    let _ = stream.write_all(OK.as_bytes()).await;
                    let _ = tell.send(text);
                    seen.clear();
                }
            }
        }
    })
    .await;
    told
}

#[tokio::test]
async fn two_lengths_never_become_two_requests() {
    let host = Host::start().await;
    let mut requests = counting_pod(&host).await;
    // CL.TE and TE.CL: whoever believes the other length sees a second request.
    for (first, second) in [
        ("Content-Length: 45", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Content-Length: 5"),
    ] {
        let reply = host
            .talk(&format!(
                "POST / HTTP/1.1\r\nHost: {POD}.h\r\n{first}\r\n{second}\r\n\r\n\
                 0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: {POD}.h\r\n\r\n"
            ))
            .await;
        assert_eq!(
            reply.matches("HTTP/1.1 ").count(),
            1,
            "one reply, then the end: {reply}"
        );
        if status(&reply) == 200 {
            let seen = within(requests.recv()).await.unwrap();
            assert!(
                !seen.contains("content-length") && !seen.contains("smuggled"),
                "{seen}"
            );
        }
    }
    assert!(requests.try_recv().is_err(), "nothing else reached the pod");
}

#[tokio::test]
async fn what_can_be_misread_is_refused_and_the_connection_closed() {
    let host = Host::start().await;
    let mut requests = counting_pod(&host).await;
    let many: String = (0..200).map(|n| format!("X-{n}: 1\r\n")).collect();
    let long = "a".repeat(40 * 1024);
    for (request, expected) in [
        (
            format!("GET / HTTP/1.1\r\nHost: {POD}.h\r\nHost: host\r\n\r\n"),
            400,
        ),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
        (
            format!("GET http://host/ HTTP/1.1\r\nHost: {POD}.h\r\n\r\n"),
            400,
        ),
        (format!("GET / HTTP/1.1\r\nHost: {POD}.h@evil\r\n\r\n"), 400),
        (format!("GET / HTTP/1.1\r\nHost : {POD}.h\r\n\r\n"), 400),
        (
            format!("GET / HTTP/1.1\r\nHost: {POD}.h\r\n folded\r\n\r\n"),
            400,
        ),
        (
            format!("POST / HTTP/1.1\r\nHost: {POD}.h\r\nContent-Length: +1\r\n\r\na"),
            400,
        ),
        (
            format!("POST / HTTP/1.1\r\nHost: {POD}.h\r\nContent-Length: 1, 2\r\n\r\na"),
            400,
        ),
        (
            format!(
                "POST / HTTP/1.1\r\nHost: {POD}.h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na"
            ),
            400,
        ),
        (
            format!("POST / HTTP/1.1\r\nHost: {POD}.h\r\nTransfer-Encoding: chunked, gzip\r\n\r\n"),
            400,
        ),
        (
            format!(
                "POST / HTTP/1.1\r\nHost: {POD}.h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"
            ),
            501,
        ),
        (
            format!(
                "POST / HTTP/1.0\r\nHost: {POD}.h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
            400,
        ),
        (
            format!("CONNECT {POD}.h:80 HTTP/1.1\r\nHost: {POD}.h:80\r\n\r\n"),
            405,
        ),
        (
            format!("GET / HTTP/1.1\r\nHost: {POD}.h\r\n{many}\r\n"),
            431,
        ),
        (
            format!("GET / HTTP/1.1\r\nHost: {POD}.h\r\nX: {long}\r\n\r\n"),
            431,
        ),
        ("\u{1f4a9}\r\n\r\n".to_owned(), 400),
        (
            "\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03".to_owned(),
            400,
        ),
    ] {
        let reply = host
            .talk(&format!(
                "{request}GET /second HTTP/1.1\r\nHost: {POD}.h\r\n\r\n"
            ))
            .await;
        let shown = &request[..request.len().min(120)];
        assert_eq!(status(&reply), expected, "{shown:?} -> {reply}");
        assert_eq!(reply.matches("HTTP/1.").count(), 1, "{shown:?} -> {reply}");
    }
    assert!(
        requests.try_recv().is_err(),
        "nothing of this reached the pod"
    );
}

#[tokio::test]
async fn a_pipelined_second_request_is_judged_by_its_own_host() {
    let host = Host::start().await;
    let mut requests = counting_pod(&host).await;
    let reply = host
        .talk(&format!(
            "GET /one HTTP/1.1\r\nHost: {POD}.h\r\n\r\nGET /two HTTP/1.1\r\nHost: {OTHER}.h\r\n\r\n\
             GET /info HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
        ))
        .await;
    let statuses: Vec<_> = reply
        .match_indices("HTTP/1.1 ")
        .map(|(at, _)| &reply[at + 9..at + 12])
        .collect();
    assert_eq!(statuses, ["200", "404", "200"], "{reply}");
    assert!(reply.ends_with("api /info 127.0.0.1"), "{reply}");
    assert!(
        within(requests.recv())
            .await
            .unwrap()
            .starts_with("GET /one ")
    );
    assert!(requests.try_recv().is_err());
}

#[tokio::test]
async fn slow_visitors_are_cut_off() {
    let limit = Duration::from_millis(200);
    let host = Host::with_limits(Limits {
        head_read: limit,
        visitor_stall: limit,
        ..Limits::default()
    })
    .await;
    host.raw_pod(|mut stream| async move {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;

    // A header line now and then: the head as a whole has a deadline.
    let mut stream = host.connect().await;
    let start = Instant::now();
    stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    within(async {
        while stream.write_all(b"X: 1\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(start.elapsed() < 20 * limit, "took {:?}", start.elapsed());

    // Nothing at all, and a body that never comes.
    let mut idle = host.connect().await;
    assert_eq!(read_to_end(&mut idle).await, "");
    let mut stream = host.connect().await;
    let request = format!("POST / HTTP/1.1\r\nHost: {POD}.h\r\nContent-Length: 5\r\n\r\nab");
    stream.write_all(request.as_bytes()).await.unwrap();
    let reply = read_to_end(&mut stream).await;
    assert!(reply.is_empty() || status(&reply) == 502, "{reply}");
}

#[tokio::test]
async fn a_long_answer_is_not_mistaken_for_a_slow_head() {
    let host = Host::with_limits(Limits {
        head_read: Duration::from_millis(100),
        ..Limits::default()
    })
    .await;
    host.raw_pod(|mut stream| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")
            .await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let _ = stream.write_all(b"k").await;
    })
    .await;
    let reply = host.visit(&format!("{POD}.h"), "/").await;
    assert!(reply.ends_with("ok"), "{reply}");
}

async fn websocket_pod(host: &Host) -> std::net::SocketAddr {
    host.raw_pod(|stream| async move {
        let mut socket = tokio_tungstenite::accept_async(stream)
            .await
            .expect("a WebSocket handshake");
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() || message.is_binary() {
                let _ = socket.send(message).await;
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_websocket_goes_both_ways_and_ends_with_its_pod() {
    // Shorter than the conversation: a tunnel is no request head.
    let host = Host::with_limits(Limits {
        head_read: Duration::from_millis(100),
        ..Limits::default()
    })
    .await;
    let pod = websocket_pod(&host).await;
    let url = format!("ws://{POD}.localhost/chat");
    let stream = host.connect().await;
    let (mut socket, reply) = tokio_tungstenite::client_async(url, stream).await.unwrap();
    assert_eq!(reply.status(), 101);
    for turn in 0..50 {
        let text = Message::text(format!("{turn}").repeat(1000));
        socket.send(text.clone()).await.unwrap();
        assert_eq!(within(socket.next()).await.unwrap().unwrap(), text);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    host.proxy.forget(pod);
    assert!(
        !matches!(within(socket.next()).await, Some(Ok(_))),
        "cut off"
    );
}

#[tokio::test]
async fn a_tunnel_may_be_closed_one_side_at_a_time() {
    let host = Host::start().await;
    host.raw_pod(|mut stream| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        let reply =
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
        stream.write_all(reply.as_bytes()).await.unwrap();
        let mut all = String::new();
        stream.read_to_string(&mut all).await.unwrap();
        stream
            .write_all(format!("got {all}").as_bytes())
            .await
            .unwrap();
    })
    .await;
    let mut stream = host.connect().await;
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {POD}.h\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nearly "
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = read_until(&mut stream, "\r\n\r\n").await;
    assert_eq!(status(&head), 101);
    assert!(
        head.contains("upgrade: echo\r\n") && head.contains("connection: upgrade\r\n"),
        "{head}"
    );
    stream.write_all(b"late").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut stream).await, "got early late");
}

#[tokio::test]
async fn upgrades_that_lead_nowhere_get_an_ordinary_reply() {
    let host = Host::start().await;
    host.canned_pod("HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno")
        .await;
    let ask = |name: &str, upgrade: &str| {
        format!(
            "GET / HTTP/1.1\r\nHost: {name}\r\nConnection: upgrade, close\r\nUpgrade: {upgrade}\r\n\r\n"
        )
    };
    let pod = format!("{POD}.h");
    assert_eq!(status(&host.talk(&ask(&pod, "websocket")).await), 426);
    assert_eq!(
        status(&host.talk(&ask(&format!("{OTHER}.h"), "websocket")).await),
        404
    );
    assert_eq!(status(&host.talk(&ask("h", "websocket")).await), 502);
    // An offer of HTTP/2 may be ignored, and is.
    assert_eq!(status(&host.talk(&ask("h", "h2c")).await), 200);
}

#[tokio::test]
async fn no_more_visitors_than_allowed_are_served_at_once() {
    let host = Host::with_limits(Limits {
        visitors: 1,
        ..Limits::default()
    })
    .await;
    let mut first = host.connect().await;
    first
        .write_all(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n")
        .await
        .unwrap();
    read_until(&mut first, "api /a").await;
    let waiting = host.visit("h", "/b");
    tokio::pin!(waiting);
    let early = tokio::time::timeout(Duration::from_millis(200), &mut waiting).await;
    assert!(early.is_err(), "the second waits its turn");
    drop(first);
    assert_eq!(status(&within(waiting).await), 200);
}
