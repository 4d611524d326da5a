//! Bodies, trailers, and the replies that have none.

mod support;

use std::time::Duration;

use bytes::Bytes;
use codius_proxy::Limits;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use support::{Host, POD, body, read_to_end, read_until, status, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const GIGABYTE: usize = 1 << 30;
/// What the whole process may grow by while a gigabyte passes in each direction.
const GROWTH: usize = 48 << 20;

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("statm");
    let pages: Option<usize> = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    4096 * pages.unwrap_or_else(|| panic!("no pages in {statm:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gigabyte_passes_both_ways_in_constant_memory() {
    let host = Host::start().await;
    host.http_pod(|request: Request<Incoming>| async {
        let mut response = Response::new(request.into_body());
        response
            .headers_mut()
            .insert("x-echo", "1".parse().unwrap());
        response
    })
    .await;
    let stream = host.connect().await;
    let before = resident_bytes();
    let (mut reader, mut writer) = stream.into_split();
    let sending = tokio::spawn(async move {
        let head = format!(
            "POST / HTTP/1.1\r\nHost: {POD}.h\r\nContent-Length: {GIGABYTE}\r\nConnection: close\r\n\r\n"
        );
        writer.write_all(head.as_bytes()).await.unwrap();
        let block = vec![b'x'; 64 * 1024];
        for _ in 0..GIGABYTE / block.len() {
            writer.write_all(&block).await.unwrap();
        }
        writer
    });
    let mut buffer = vec![0; 64 * 1024];
    let (mut received, mut most) = (0_usize, before);
    let mut turns = 0_u32;
    tokio::time::timeout(Duration::from_secs(120), async {
        loop {
            let read = reader.read(&mut buffer).await.unwrap();
            if read == 0 {
                break;
            }
            received += read;
            turns += 1;
            if turns.is_multiple_of(256) {
                most = most.max(resident_bytes());
            }
        }
    })
    .await
    .expect("a gigabyte within two minutes");
    sending.await.unwrap();
    assert!(received > GIGABYTE, "{received} bytes with the head");
    assert!(most - before < GROWTH, "grew by {} bytes", most - before);
}

#[tokio::test]
async fn a_visitor_that_does_not_read_holds_the_pod_back() {
    let host = Host::start().await;
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    host.raw_pod(move |mut stream| {
        let tell = tell.clone();
        async move {
            let _ = stream.read(&mut [0; 4096]).await;
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {GIGABYTE}\r\n\r\n");
            let _ = stream.write_all(head.as_bytes()).await;
            let block = vec![0; 64 * 1024];
            let mut written = 0_usize;
            while tokio::time::timeout(Duration::from_secs(1), stream.write_all(&block))
                .await
                .is_ok()
            {
                written += block.len();
            }
            let _ = tell.send(written).await;
        }
    })
    .await;
    let mut visitor = host.connect().await;
    let request = format!("GET / HTTP/1.1\r\nHost: {POD}.h\r\n\r\n");
    visitor.write_all(request.as_bytes()).await.unwrap();
    let written = within(told.recv()).await.unwrap();
    // What is left are the buffers of four sockets and two small ones of ours.
    assert!(
        written < 64 << 20,
        "the pod wrote {written} bytes to nobody"
    );
}

#[tokio::test]
async fn chunks_arrive_as_they_are_made_and_trailers_follow() {
    let host = Host::start().await;
    let (frames, receiver) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(1);
    let receiver = std::sync::Arc::new(std::sync::Mutex::new(Some(receiver)));
    host.http_pod(move |_| {
        let receiver = receiver.lock().unwrap().take().expect("one request");
        async move {
            let stream = futures_util::stream::unfold(receiver, |mut receiver| async move {
                Some((receiver.recv().await?, receiver))
            });
            let mut response = Response::new(StreamBody::new(stream));
            let headers = response.headers_mut();
            headers.insert("trailer", "x-sum".parse().unwrap());
            response
        }
    })
    .await;
    let mut visitor = host.connect().await;
    let request =
        format!("GET / HTTP/1.1\r\nHost: {POD}.h\r\nConnection: te, close\r\nTE: trailers\r\n\r\n");
    visitor.write_all(request.as_bytes()).await.unwrap();
    for word in ["first", "second"] {
        frames
            .send(Ok(Frame::data(Bytes::from(word))))
            .await
            .unwrap();
        read_until(&mut visitor, word).await;
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "42".parse().unwrap());
    frames.send(Ok(Frame::trailers(trailers))).await.unwrap();
    drop(frames);
    let rest = read_to_end(&mut visitor).await;
    assert!(rest.contains("0\r\nx-sum: 42\r\n\r\n"), "{rest:?}");
}

#[tokio::test]
async fn replies_without_a_body_keep_their_headers_and_the_connection() {
    let host = Host::start().await;
    for (method, reply, length) in [
        (
            "HEAD",
            "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n",
            Some("1234"),
        ),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n", None),
        (
            "GET",
            "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n",
            None,
        ),
        (
            "GET",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            Some("0"),
        ),
    ] {
        host.canned_pod(reply).await;
        let mut visitor = host.connect().await;
        for _ in 0..2 {
            let request = format!("{method} / HTTP/1.1\r\nHost: {POD}.h\r\n\r\n");
            visitor.write_all(request.as_bytes()).await.unwrap();
            let head = read_until(&mut visitor, "\r\n\r\n").await;
            let found = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            assert_eq!(found, length, "{method} {reply:?} -> {head}");
            assert!(!head.contains("chunked"), "{head}");
        }
    }
}

#[tokio::test]
async fn a_body_is_sent_when_the_pod_asks_for_it() {
    let host = Host::start().await;
    host.raw_pod(|mut stream| async move {
        let request = read_until(&mut stream, "\r\n\r\n").await;
        assert!(request.contains("expect: 100-continue"), "{request}");
        if request.starts_with("POST /refuse") {
            let reply = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig";
            let _ = stream.write_all(reply.as_bytes()).await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
            return;
        }
        let _ = stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await;
        read_until(&mut stream, "hello").await;
        let reply = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ndone!";
        let _ = stream.write_all(reply.as_bytes()).await;
    })
    .await;

    let head = |path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: {POD}.h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        )
    };
    let mut visitor = host.connect().await;
    visitor.write_all(head("/take").as_bytes()).await.unwrap();
    let interim = read_until(&mut visitor, "\r\n\r\n").await;
    assert_eq!(status(&interim), 100);
    visitor.write_all(b"hello").await.unwrap();
    assert_eq!(status(&read_until(&mut visitor, "done!").await), 200);

    let mut visitor = host.connect().await;
    visitor.write_all(head("/refuse").as_bytes()).await.unwrap();
    let reply = read_to_end(&mut visitor).await;
    assert_eq!(status(&reply), 413, "the first word is the last: {reply}");
    assert_eq!(body(&reply), "big");
}

#[tokio::test]
async fn a_pod_that_does_not_know_the_expectation_gets_the_body_anyway() {
    let host = Host::with_limits(Limits {
        continue_wait: Duration::from_millis(50),
        ..Limits::default()
    })
    .await;
    host.raw_pod(|mut stream| async move {
        read_until(&mut stream, "hello").await;
        let reply = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        let _ = stream.write_all(reply.as_bytes()).await;
    })
    .await;
    let request = format!(
        "POST / HTTP/1.1\r\nHost: {POD}.h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello"
    );
    let mut visitor = host.connect().await;
    visitor.write_all(request.as_bytes()).await.unwrap();
    let reply = read_until(&mut visitor, "ok").await;
    assert!(reply.contains("HTTP/1.1 200 OK"), "{reply}");
}

#[tokio::test]
async fn old_servers_and_old_visitors_are_understood() {
    let host = Host::start().await;
    host.raw_pod(|mut stream| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        let _ = stream
            .write_all(b"HTTP/1.0 200 OK\r\n\r\nuntil the end")
            .await;
    })
    .await;
    let reply = host.visit(&format!("{POD}.h"), "/").await;
    assert!(
        reply.contains("chunked") && reply.contains("until the end"),
        "{reply}"
    );
    assert!(reply.ends_with("0\r\n\r\n"), "{reply}");

    let reply = host
        .talk(&format!("GET / HTTP/1.0\r\nHost: {POD}.h\r\n\r\n"))
        .await;
    assert!(reply.starts_with("HTTP/1.0 200"), "{reply}");
    assert_eq!(body(&reply), "until the end");
}

#[tokio::test]
async fn a_chunked_upload_stays_whole() {
    let host = Host::start().await;
    host.http_pod(|request: Request<Incoming>| async {
        let length = request.headers().contains_key("content-length");
        let collected = request.into_body().collect().await.unwrap();
        let trailer = collected
            .trailers()
            .and_then(|map| map.get("x-end"))
            .cloned();
        let text = String::from_utf8(collected.to_bytes().to_vec()).unwrap();
        Response::new(Full::new(Bytes::from(format!(
            "{length} {trailer:?} {text}"
        ))))
    })
    .await;
    let reply = host
        .talk(&format!(
            "POST / HTTP/1.1\r\nHost: {POD}.h\r\nTransfer-Encoding: chunked\r\nTrailer: x-end\r\n\
             Connection: close\r\n\r\n3\r\nabc\r\n4;ext=1\r\ndefg\r\n0\r\nx-end: 7\r\n\r\n"
        ))
        .await;
    assert_eq!(body(&reply), r#"false Some("7") abcdefg"#);
}
