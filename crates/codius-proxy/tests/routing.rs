//! Which party answers, and with what, for each kind of target.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use codius_proxy::{Limits, Route};
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use support::{Host, OTHER, POD, body, read_until, status, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Answers with what the pod saw: the request line and its headers, sorted.
async fn mirror(request: Request<Incoming>) -> Response<Full<Bytes>> {
    let mut lines: Vec<_> = request
        .headers()
        .iter()
        .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
        .collect();
    lines.sort();
    let text = format!(
        "{} {}\n{}",
        request.method(),
        request.uri(),
        lines.join("\n")
    );
    Response::new(Full::new(Bytes::from(text)))
}

#[tokio::test]
async fn the_first_label_decides() {
    let host = Host::start().await;
    host.http_pod(mirror).await;

    let upper = POD.to_ascii_uppercase();
    for name in [
        format!("{POD}.host:1"),
        format!("{upper}.host"),
        POD.to_owned(),
    ] {
        let reply = host.visit(&name, "/a?b=c").await;
        assert_eq!(status(&reply), 200, "{reply}");
        assert!(body(&reply).starts_with("GET /a?b=c\n"), "{reply}");
        assert!(
            body(&reply).contains(&format!("\nhost: {name}\n")),
            "Host is kept: {reply}"
        );
    }

    let reply = host.visit("host.example", "/info").await;
    assert_eq!(body(&reply), "api /info 127.0.0.1");
}

#[tokio::test]
async fn the_pod_learns_who_came_and_nothing_invented() {
    let host = Host::start().await;
    host.http_pod(mirror).await;
    let reply = host
        .talk(&format!(
            "GET / HTTP/1.1\r\nHost: {POD}.host\r\nConnection: close, X-Drop\r\nX-Drop: 1\r\n\
             Keep-Alive: 5\r\nTE: gzip\r\nX-Forwarded-For: 10.9.9.9\r\nForwarded: for=1.1.1.1\r\n\
             X-Forwarded-Proto: https\r\nCookie: kept\r\n\r\n"
        ))
        .await;
    assert_eq!(
        body(&reply),
        format!(
            "GET /\ncookie: kept\nhost: {POD}.host\nx-forwarded-for: 127.0.0.1\n\
             x-forwarded-host: {POD}.host\nx-forwarded-proto: http"
        )
    );
}

#[tokio::test]
async fn an_unknown_or_starting_pod_is_said_to_be_so() {
    let host = Host::with_limits(Limits {
        pod_ready: Duration::from_millis(100),
        ..Limits::default()
    })
    .await;
    let reply = host.visit(&format!("{OTHER}.host"), "/").await;
    assert_eq!(status(&reply), 404);
    assert!(
        reply.contains("content-type: application/json; charset=utf-8\r\n"),
        "{reply}"
    );
    assert_eq!(
        body(&reply),
        format!(
            r#"{{"statusCode":404,"error":"Not Found","message":"no pod with that hash found. hash={OTHER}"}}"#
        )
    );

    host.table.set(OTHER, Route::NotReady);
    let reply = host.visit(&format!("{OTHER}.host"), "/").await;
    assert_eq!(status(&reply), 503);
    assert!(reply.contains("retry-after: 1\r\n"), "{reply}");
}

#[tokio::test]
async fn each_way_a_pod_can_fail_has_its_status() {
    let host = Host::with_limits(Limits {
        pod_head: Duration::from_millis(200),
        ..Limits::default()
    })
    .await;

    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    host.table.set(POD, Route::Pod(closed));
    assert_eq!(status(&host.visit(&format!("{POD}.h"), "/").await), 503);

    for broken in [
        "220 mail.example ESMTP\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nBad Header: 1\r\n\r\n",
    ] {
        host.canned_pod(broken).await;
        let reply = host.visit(&format!("{POD}.h"), "/").await;
        assert_eq!(status(&reply), 502, "{broken:?} -> {reply}");
    }

    host.raw_pod(|mut stream| async move {
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all).await;
    })
    .await;
    assert_eq!(status(&host.visit(&format!("{POD}.h"), "/").await), 504);
}

#[tokio::test]
async fn a_reply_cut_short_is_not_passed_off_as_whole() {
    let host = Host::start().await;
    for short in [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ] {
        host.raw_pod(move |mut stream| async move {
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(short.as_bytes()).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        })
        .await;
        let reply = host.visit(&format!("{POD}.h"), "/").await;
        let whole = reply.ends_with("0\r\n\r\n");
        assert!(reply.contains("abc") && !whole, "{reply:?}");
    }
}

#[tokio::test]
async fn connections_to_a_pod_are_kept_and_its_end_is_noticed() {
    let host = Host::start().await;
    let accepted = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&accepted);
    let address = host
        .raw_pod(move |mut stream| {
            counter.fetch_add(1, Ordering::SeqCst);
            async move {
                // Closes after three requests, as some servers do, without saying so.
                for _ in 0..3 {
                    if !matches!(stream.read(&mut [0; 4096]).await, Ok(read) if read > 0) {
                        return;
                    }
                    let reply = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                    let _ = stream.write_all(reply.as_bytes()).await;
                }
            }
        })
        .await;
    let mut visitor = host.connect().await;
    let request = format!("GET / HTTP/1.1\r\nHost: {POD}.h\r\n\r\n");
    for turn in 0..9 {
        visitor.write_all(request.as_bytes()).await.unwrap();
        let reply = read_until(&mut visitor, "ok").await;
        assert_eq!(status(&reply), 200, "request {turn}");
        // Lets the pod's FIN arrive.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(accepted.load(Ordering::SeqCst), 3, "three requests each");

    host.proxy.forget(address);
    visitor.write_all(request.as_bytes()).await.unwrap();
    read_until(&mut visitor, "ok").await;
    assert_eq!(
        accepted.load(Ordering::SeqCst),
        4,
        "nothing is kept for an address that went"
    );
}

#[tokio::test]
async fn a_request_is_sent_twice_only_if_that_does_no_harm() {
    for (method, length, expected) in [("GET", "", 200), ("POST", "Content-Length: 0\r\n", 502)] {
        let host = Host::start().await;
        let accepted = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&accepted);
        host.raw_pod(move |mut stream| {
            let first = counter.fetch_add(1, Ordering::SeqCst) == 0;
            async move {
                let reply = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(reply.as_bytes()).await;
                let _ = stream.read(&mut [0; 4096]).await;
                // The first connection reads its second request and hangs up.
                if !first {
                    let _ = stream.write_all(reply.as_bytes()).await;
                }
            }
        })
        .await;
        let mut visitor = host.connect().await;
        let request = format!("{method} / HTTP/1.1\r\nHost: {POD}.h\r\n{length}\r\n");
        visitor.write_all(request.as_bytes()).await.unwrap();
        read_until(&mut visitor, "ok").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        visitor.write_all(request.as_bytes()).await.unwrap();
        let reply = read_until(&mut visitor, "\r\n\r\n").await;
        assert_eq!(status(&reply), expected, "{method}");
    }
}

#[tokio::test]
async fn a_pod_that_goes_takes_its_requests_with_it() {
    let host = Host::start().await;
    let address = host
        .raw_pod(|mut stream| async move {
            let mut bytes = vec![0; 4096];
            let read = stream.read(&mut bytes).await.unwrap_or(0);
            if String::from_utf8_lossy(&bytes[..read]).starts_with("GET /stream") {
                let head = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc";
                let _ = stream.write_all(head.as_bytes()).await;
            }
            let _ = stream.read_to_end(&mut bytes).await;
        })
        .await;
    let mut streaming = host.connect().await;
    let request = format!("GET /stream HTTP/1.1\r\nHost: {POD}.h\r\n\r\n");
    streaming.write_all(request.as_bytes()).await.unwrap();
    read_until(&mut streaming, "abc").await;
    let silent = {
        let name = format!("{POD}.h");
        let visit = host.visit(&name, "/silent");
        let forget = async {
            tokio::time::sleep(Duration::from_millis(400)).await;
            host.proxy.forget(address);
        };
        within(async { tokio::join!(visit, forget).0 }).await
    };
    assert_eq!(status(&silent), 503);
    assert_eq!(
        support::read_to_end(&mut streaming).await,
        "",
        "cut, not completed"
    );
}

#[tokio::test]
async fn a_pod_gets_no_more_connections_than_allowed() {
    let host = Host::with_limits(Limits {
        pod_connections: 1,
        ..Limits::default()
    })
    .await;
    host.raw_pod(|mut stream| async move {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let mut first = host.connect().await;
    let request = format!("GET / HTTP/1.1\r\nHost: {POD}.h\r\n\r\n");
    first.write_all(request.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let second = host.visit(&format!("{POD}.h"), "/").await;
    assert_eq!(status(&second), 503);
    assert!(body(&second).contains("too many connections"), "{second}");
}
