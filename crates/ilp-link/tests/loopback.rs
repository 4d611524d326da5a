//! Our two ends over real sockets and over streams as a pod's driver gives them.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod host;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use host::{FULFILLMENT, Host, Payee, local_payee, local_payer, packet, soon, until, url};
use ilp_btp::{Frame, ProtocolData, RefusalCode, RequestId};
use ilp_connector::{LinkError, SystemClock};
use ilp_link::{BtpClient, ConnectError, Credentials, RequestHandler, SessionEnd, bind_loopback};
use ilp_packet::{ErrorCode, Fulfill, Packet, Prepare, Reply};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

#[tokio::test]
async fn local_clients_pay_each_other_over_tcp() {
    let host = Host::new();
    let address = host.listen_local().await;
    let (alice, bob) = (
        local_payer(address, "alice").await,
        local_payee(address, "bob").await,
    );
    let configuration = alice.configuration().await.unwrap();
    assert_eq!(
        configuration.client_address.as_str(),
        "test.host.local.u-alice"
    );
    assert_eq!(
        (configuration.asset_code.as_str(), configuration.asset_scale),
        ("XRP", 9)
    );
    let reply = alice
        .send(packet("test.host.local.u-bob.x", 50))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(reply.fulfillment, FULFILLMENT);
    assert_eq!(&reply.data[..], b"hello");
    let seen = bob.1.0.lock().unwrap().clone();
    assert_eq!((seen.len(), seen[0].amount), (1, 50));
    assert_eq!(host.connector.balance(&"local.u-alice".into()), Some(-50));
    assert_eq!(host.connector.balance(&"local.u-bob".into()), Some(50));
    let reject = alice
        .send(packet("test.host.local.u-carol", 1))
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(reject.code, ErrorCode::Unreachable);
    host.server.shutdown().await;
}

#[tokio::test]
async fn programs_of_a_pod_share_its_balance() {
    let host = Host::new();
    let address = host.listen_local().await;
    let (bob, _) = local_payee(address, "bob").await;
    let one = host.pod_program("one").await.unwrap();
    let two = host.pod_program("two").await.unwrap();
    let one_address = one.configuration().await.unwrap().client_address;
    let two_address = two.configuration().await.unwrap().client_address;
    assert!(
        one_address.as_str().starts_with("test.host.pod-p.t-"),
        "{one_address}"
    );
    assert_ne!(one_address, two_address);
    // From the pod to the outside, until it is broke.
    one.send(packet("test.host.local.u-bob", 600))
        .await
        .unwrap()
        .unwrap();
    let reject = two
        .send(packet("test.host.local.u-bob", 401))
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(reject.code, ErrorCode::InsufficientLiquidity);
    assert_eq!(host.pod_balance(), 400);
    // From the outside to one program of the pod.
    let to_two = two_address.with_suffix("invoice").unwrap();
    bob.send(packet(to_two.as_str(), 25))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(host.pod_balance(), 425);
    // From program to program.
    one.send(packet(two_address.as_str(), 425))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(host.pod_balance(), 425);
    let reject = one
        .send(packet(one_address.as_str(), 1))
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(reject.code, ErrorCode::Unreachable, "not to itself");
    let reject = bob
        .send(packet("test.host.pod-p.t-nobody", 1))
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(reject.code, ErrorCode::Unreachable);
    assert_eq!(
        host.ledger.0.lock().unwrap().len(),
        2,
        "one row for each movement"
    );
}

#[tokio::test]
async fn a_pod_without_programs_is_away_and_not_unknown() {
    let host = Host::new();
    let address = host.listen_local().await;
    let bob = local_payer(address, "bob").await;
    let program = host.pod_program("one").await.unwrap();
    let pod_address = program.configuration().await.unwrap().client_address;
    program.close();
    until(|| host.server.connections() == 1).await;
    let reject = bob
        .send(packet(pod_address.as_str(), 1))
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(reject.code, ErrorCode::PeerUnreachable);
}

#[tokio::test]
async fn the_newest_socket_of_a_name_wins() {
    let host = Host::new();
    let address = host.listen_local().await;
    let payer = local_payer(address, "payer").await;
    let (old, old_payee) = local_payee(address, "bob").await;
    let (_new, new_payee) = local_payee(address, "bob").await;
    let end = soon(old.closed()).await;
    assert!(matches!(*end, SessionEnd::Goodbye), "{end:?}");
    until(|| host.server.connections() == 2).await;
    payer
        .send(packet("test.host.local.u-bob", 5))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(old_payee.0.lock().unwrap().len(), 0);
    assert_eq!(new_payee.0.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_client_that_leaves_makes_room() {
    let host = Host::new();
    let one = host.pod_program("one").await.unwrap();
    let _two = host.pod_program("two").await.unwrap();
    let refused = host.pod_program("three").await.unwrap_err();
    let SessionEnd::Refused(reason) = &refused else {
        panic!("{refused:?}")
    };
    assert!(reason.contains("too many clients"), "{reason}");
    drop(one);
    until(|| host.server.connections() == 1).await;
    host.pod_program("three").await.unwrap();
}

#[tokio::test]
async fn connections_that_never_speak_are_bounded_for_each_gate() {
    let host = Host::new();
    // Two clients and half as many more connections.
    let mut silent: Vec<_> = (0..3).map(|_| host.pod_stream()).collect();
    until(|| host.server.connections() == 3).await;
    let mut fourth = host.pod_stream();
    let mut buffer = [0; 1];
    assert_eq!(
        soon(fourth.read(&mut buffer)).await.unwrap(),
        0,
        "closed at once"
    );
    let address = host.listen_local().await;
    local_payer(address, "other")
        .await
        .configuration()
        .await
        .unwrap();
    silent.clear();
    until(|| host.server.connections() == 0).await;
    host.pod_program("one").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_introduce_itself_is_dropped_after_ten_seconds() {
    let host = Host::new();
    let started = tokio::time::Instant::now();
    let mut silent = host.pod_stream();
    let mut buffer = [0; 1];
    assert_eq!(silent.read(&mut buffer).await.unwrap(), 0);
    assert_eq!(started.elapsed().as_secs(), 10);
    let mut slow = client_async("ws://localhost/", host.pod_stream())
        .await
        .unwrap()
        .0;
    slow.send(Message::Ping(Bytes::new())).await.unwrap();
    let mut ended = false;
    while let Some(message) = slow.next().await {
        ended |= message.is_err();
    }
    assert!(ended || started.elapsed().as_secs() == 20);
    assert_eq!(started.elapsed().as_secs(), 20);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_pinged_and_a_dead_one_is_closed() {
    let host = Host::new();
    let mut raw = introduced(&host).await;
    let started = tokio::time::Instant::now();
    // Reading the ping makes the WebSocket answer it, so the connection stays.
    for _ in 0..8 {
        let Message::Ping(_) = raw.next().await.unwrap().unwrap() else {
            panic!("no ping")
        };
        raw.flush().await.unwrap();
    }
    assert!(
        started.elapsed() >= Duration::from_secs(190),
        "{:?}",
        started.elapsed()
    );
    // From now on nothing is read, so no ping is answered.
    let waited = tokio::time::Instant::now();
    while host.server.connections() > 0 {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let waited = waited.elapsed().as_secs();
    assert!((55..=65).contains(&waited), "{waited} s");
}

async fn introduced(host: &Host) -> WebSocketStream<tokio::io::DuplexStream> {
    let mut raw = client_async("ws://localhost/", host.pod_stream())
        .await
        .unwrap()
        .0;
    // Clients ping before they introduce themselves.
    raw.send(Message::Ping(Bytes::new())).await.unwrap();
    let hello = Credentials {
        username: String::new(),
        token: "raw".into(),
    }
    .message(RequestId(1));
    raw.send(Message::Binary(hello.encode().unwrap()))
        .await
        .unwrap();
    loop {
        if let Message::Binary(answer) = raw.next().await.unwrap().unwrap() {
            let expected = Frame::empty_response(RequestId(1));
            assert_eq!(Frame::decode(&answer).unwrap(), expected);
            return raw;
        }
    }
}

async fn exchange(raw: &mut WebSocketStream<tokio::io::DuplexStream>, frame: Frame) -> Frame {
    raw.send(Message::Binary(frame.encode().unwrap()))
        .await
        .unwrap();
    loop {
        if let Message::Binary(answer) = soon(raw.next()).await.unwrap().unwrap() {
            return Frame::decode(&answer).unwrap();
        }
    }
}

#[tokio::test]
async fn requests_that_are_no_prepare() {
    let host = Host::new();
    let mut raw = introduced(&host).await;
    let request_id = RequestId(9);
    let mut bad_expiry = packet("test.host.x", 1).encode();
    // Digits of the month: type, length, amount, year.
    bad_expiry[14..16].copy_from_slice(b"13");
    for (name, protocol_data) in [
        ("no protocols", vec![]),
        ("another protocol", vec![ProtocolData::text("chat", "hi")]),
        ("an empty packet", vec![ProtocolData::ilp(Bytes::new())]),
        ("a bad expiry", vec![ProtocolData::ilp(bad_expiry.into())]),
    ] {
        let answer = exchange(
            &mut raw,
            Frame::Message {
                request_id,
                protocol_data,
            },
        )
        .await;
        let Frame::Error {
            request_id: answered,
            refusal,
            ..
        } = answer
        else {
            panic!("{name}: {answer:?}");
        };
        assert_eq!(
            (answered, refusal.code),
            (request_id, RefusalCode::NotAccepted),
            "{name}"
        );
    }
    let transfer = Frame::Transfer {
        request_id,
        amount: 1,
        protocol_data: vec![],
    };
    let answer = exchange(&mut raw, transfer).await;
    assert!(matches!(answer, Frame::Error { .. }), "{answer:?}");

    let fulfill = Fulfill {
        fulfillment: FULFILLMENT,
        data: Bytes::new(),
    };
    let mut bad_address = packet("test.host.x", 1).encode();
    let at = bad_address
        .windows(4)
        .position(|window| window == b"test")
        .unwrap();
    bad_address[at] = b'!';
    for (name, bytes, code) in [
        ("a Fulfill", fulfill.encode(), ErrorCode::InvalidPacket),
        ("a bad address", bad_address, ErrorCode::BadRequest),
    ] {
        let answer = exchange(&mut raw, Frame::ilp_request(request_id, bytes.into())).await;
        let reply = Packet::decode(answer.ilp().unwrap().clone()).unwrap();
        let Packet::Reject(reject) = reply else {
            panic!("{name}: {reply:?}")
        };
        assert_eq!(reject.code, code, "{name}");
        assert_eq!(reject.triggered_by.unwrap().as_str(), "test.host");
    }
    // Replies nobody asked for and garbage have no effect.
    let unasked = Frame::ilp_response(RequestId(77), fulfill.encode().into());
    raw.send(Message::Binary(unasked.encode().unwrap()))
        .await
        .unwrap();
    raw.send(Message::Binary(Bytes::from_static(b"garbage")))
        .await
        .unwrap();
    let request = ilp_packet::ildcp::request(packet("test.x", 0).expires_at);
    let answer = exchange(
        &mut raw,
        Frame::ilp_request(request_id, request.encode().into()),
    )
    .await;
    assert!(matches!(answer, Frame::Response { .. }), "{answer:?}");
}

#[tokio::test]
async fn what_is_no_btp_is_disconnected() {
    for message in [
        Message::text("hello"),
        Message::Binary(vec![6; ilp_btp::MAX_FRAME_BYTES + 1].into()),
        Message::Close(None),
    ] {
        let host = Host::new();
        let mut raw = introduced(&host).await;
        // The server may hang up before the message is out.
        let _ = raw.send(message).await;
        soon(async { while let Some(Ok(_)) = raw.next().await {} }).await;
        until(|| host.server.connections() == 0).await;
    }
}

#[tokio::test]
async fn nothing_is_served_before_the_introduction() {
    let host = Host::new();
    let mut raw = client_async("ws://localhost/", host.pod_stream())
        .await
        .unwrap()
        .0;
    let prepare = packet("test.host.local.u-bob", 1);
    let answer = exchange(
        &mut raw,
        Frame::ilp_request(RequestId(5), prepare.encode().into()),
    )
    .await;
    let Frame::Error { refusal, .. } = answer else {
        panic!("{answer:?}")
    };
    assert_eq!(refusal.code, RefusalCode::NotAccepted);
    soon(async { while let Some(Ok(_)) = raw.next().await {} }).await;
}

async fn http(host: &Host, extra: &str) -> String {
    let mut stream = host.pod_stream();
    let request = format!(
        "GET / HTTP/1.1\r\nHost: localhost:7768\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{extra}\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(stream.read_u8()).await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test]
async fn browsers_are_refused_and_compression_is_declined() {
    let host = Host::new();
    let head = http(&host, "Origin: https://example.com\r\n").await;
    assert!(head.starts_with("HTTP/1.1 403"), "{head}");
    let offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";
    let head = http(&host, offer).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert!(!head.to_lowercase().contains("extensions"), "{head}");
}

struct Slow;

#[async_trait]
impl RequestHandler for Slow {
    async fn handle(&self, _: Prepare) -> Reply {
        tokio::time::sleep(Duration::from_millis(200)).await;
        Ok(Fulfill {
            fulfillment: FULFILLMENT,
            data: Bytes::new(),
        })
    }
}

#[tokio::test]
async fn a_client_that_says_goodbye_ends_the_open_requests() {
    let host = Host::new();
    let address = host.listen_local().await;
    let payer = local_payer(address, "payer").await;
    let clock = Arc::new(SystemClock);
    let payee = BtpClient::connect(&url(address, "bob"), Arc::new(Slow), clock)
        .await
        .unwrap();
    let sending = tokio::spawn({
        let payer = payer.clone();
        async move { payer.send(packet("test.host.local.u-bob", 5)).await }
    });
    until(|| {
        let statistics = host.connector.statistics(&"local.u-bob".into());
        statistics.is_some_and(|statistics| statistics.prepares_to == 1)
    })
    .await;
    payee.close();
    let reject = soon(sending).await.unwrap().unwrap().unwrap_err();
    assert_eq!(reject.code, ErrorCode::PeerUnreachable);
    assert_eq!(host.connector.balance(&"local.u-payer".into()), Some(0));
    host.server.shutdown().await;
    let end = soon(payer.closed()).await;
    assert!(matches!(*end, SessionEnd::Goodbye), "{end:?}");
    assert_eq!(
        payer.send(packet("test.x", 0)).await,
        Err(LinkError::Closed)
    );
}

#[tokio::test]
async fn a_packet_survives_its_payer() {
    let host = Host::new();
    let address = host.listen_local().await;
    let clock = Arc::new(SystemClock);
    let _bob = BtpClient::connect(&url(address, "bob"), Arc::new(Slow), clock)
        .await
        .unwrap();
    let program = host.pod_program("one").await.unwrap();
    let sending = tokio::spawn({
        let program = program.clone();
        async move { program.send(packet("test.host.local.u-bob", 5)).await }
    });
    until(|| {
        let statistics = host.connector.statistics(&"local.u-bob".into());
        statistics.is_some_and(|statistics| statistics.prepares_to == 1)
    })
    .await;
    program.close();
    assert_eq!(soon(sending).await.unwrap(), Err(LinkError::Closed));
    soon(host.connector.drain()).await;
    assert_eq!(
        host.pod_balance(),
        995,
        "the payee has proved that it was paid"
    );
}

#[tokio::test]
async fn many_large_packets_in_both_directions_do_not_block_each_other() {
    let host = Host::new();
    let address = host.listen_local().await;
    let (alice, _) = local_payee(address, "alice").await;
    let (bob, _) = local_payee(address, "bob").await;
    let mut sending = tokio::task::JoinSet::new();
    for (client, to) in [(&alice, "u-bob"), (&bob, "u-alice")] {
        for _ in 0..20 {
            let client = client.clone();
            sending.spawn(async move {
                for _ in 0..10 {
                    let mut prepare = packet(&format!("test.host.local.{to}"), 1);
                    prepare.data = vec![7; ilp_packet::MAX_DATA].into();
                    let fulfill = client.send(prepare).await.unwrap().unwrap();
                    assert_eq!(fulfill.data.len(), ilp_packet::MAX_DATA);
                }
            });
        }
    }
    soon(sending.join_all()).await;
    assert_eq!(host.connector.balance(&"local.u-alice".into()), Some(0));
}

#[tokio::test]
async fn a_client_that_stops_reading_cannot_fill_our_memory() {
    let host = Host::new();
    let address = host.listen_local().await;
    let (_bob, _) = local_payee(address, "bob").await;
    let mut raw = introduced(&host).await;
    // Every request is answered with as much data as it brought; nobody reads the answers.
    let mut prepare = packet("test.host.local.u-bob", 0);
    prepare.data = vec![7; ilp_packet::MAX_DATA].into();
    let packet = Bytes::from(prepare.encode());
    let flood = async {
        for id in 2.. {
            let frame = Frame::ilp_request(RequestId(id), packet.clone())
                .encode()
                .unwrap();
            if raw.send(Message::Binary(frame)).await.is_err() {
                return id;
            }
        }
        0
    };
    let sent = soon(flood).await;
    // 4 MiB of replies may wait, and as many requests may be open; far below 1000 packets.
    assert!((64..2000).contains(&sent), "{sent} packets");
    until(|| host.server.connections() == 1).await;
}

#[tokio::test]
async fn errors_of_connecting_name_the_server_but_not_the_token() {
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = unused.local_addr().unwrap();
    drop(unused);
    let (handler, clock) = (Arc::new(Payee::default()), Arc::new(SystemClock));
    let error = BtpClient::connect(&url(address, "alice"), handler, clock)
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::Connect { .. }), "{error:?}");
    let text = format!("{error} {error:?}");
    assert!(
        text.contains(&address.to_string()) && !text.contains("secret"),
        "{text}"
    );
}

#[tokio::test]
async fn both_loopback_addresses_get_a_listener_on_one_port() {
    let listeners = bind_loopback(0).unwrap();
    let host = Host::new();
    let mut ports = Vec::new();
    for (at, listener) in listeners.into_iter().enumerate() {
        let address = listener.local_addr().unwrap();
        ports.push(address.port());
        host.server.listen(listener, host.local.clone());
        let client = local_payer(address, &format!("client{at}")).await;
        client.configuration().await.unwrap();
    }
    ports.dedup();
    assert_eq!(ports.len(), 1);
    assert_eq!(
        bind_loopback(ports[0]).unwrap_err().kind(),
        std::io::ErrorKind::AddrInUse
    );
}
