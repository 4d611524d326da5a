//! STREAM with unmodified JavaScript programs (ilp-protocol-stream 2.7.2-alpha.3), in both roles,
//! through our connector and our BTP server.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test stops at the first surprise"
)]

mod host;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use host::Host;
use ilp_connector::{AccountId, Clock, Commit, Receiver, SystemClock};
use ilp_link::stream::{PacketSender, StreamConnection, SystemEntropy};
use ilp_link::{BtpClient, RequestHandler};
use ilp_packet::{Address, ErrorCode, Prepare, Reject, Reply};
use ilp_stream::server::{Opened, ServerSecret};
use ilp_stream::{
    AssetDetails, CloseReason, Config, Connection, Rate, RatePolicy, Receipt, ReceiptKey,
    SharedSecret, StreamErrorCode, StreamId,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

/// Exactly these were looked at when the behaviour of the clients was written down.
const PACKAGES: [&str; 2] = ["ilp-plugin-btp@1.5.0", "ilp-protocol-stream@2.7.2-alpha.3"];
const INSTALL_TIMEOUT: Duration = Duration::from_secs(180);
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(60);
const STREAM: StreamId = StreamId(1);

async fn installed() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("package.json"), "{\"private\":true}").unwrap();
    let mut npm = Command::new("npm");
    let options = [
        "install",
        "--no-audit",
        "--no-fund",
        "--ignore-scripts",
        "--loglevel=error",
    ];
    npm.args(options)
        .args(PACKAGES)
        .current_dir(directory.path())
        .kill_on_drop(true);
    let output = timeout(INSTALL_TIMEOUT, npm.output())
        .await
        .expect("npm takes too long")
        .expect("npm cannot be started; install the Debian package `npm`");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "npm install failed: {errors}");
    directory
}

/// Starts a script and gives the lines that it prints.
struct Script {
    process: tokio::process::Child,
    lines: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
}

impl Script {
    fn start(directory: &Path, name: &str, source: &str, arguments: &[&str]) -> Self {
        let path = directory.join(name);
        std::fs::write(&path, source).unwrap();
        let mut process = Command::new("node")
            .arg(path)
            .args(arguments)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("node cannot be started; install the Debian package `nodejs`");
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines }
    }

    async fn line(&mut self) -> Value {
        let line = timeout(SCRIPT_TIMEOUT, self.lines.next_line())
            .await
            .expect("the script says nothing");
        let line = line.unwrap().expect("the script ended without an answer");
        serde_json::from_str(&line).unwrap()
    }

    async fn end(mut self) {
        let status = timeout(SCRIPT_TIMEOUT, self.process.wait()).await;
        assert!(status.expect("the script does not end").unwrap().success());
    }
}

fn config(address: &Address) -> Config {
    Config {
        local_address: Some(address.clone()),
        asset: Some(AssetDetails {
            code: "XRP".to_owned(),
            scale: 9,
        }),
        ..Config::default()
    }
}

/// The STREAM server of a host that takes one connection.
struct Shop {
    secret: ServerSecret,
    address: Address,
    connector: ilp_connector::Connector,
    receipts: Option<ReceiptKey>,
    connection: OnceLock<StreamConnection>,
    credited: Mutex<u64>,
}

impl Shop {
    fn open(host: &Host, receipts: Option<ReceiptKey>) -> Arc<Self> {
        let shop = Arc::new(Self {
            secret: ServerSecret::new(&[9; 32]),
            address: host.connector.address().with_suffix("shop").unwrap(),
            connector: host.connector.clone(),
            receipts,
            connection: OnceLock::new(),
            credited: Mutex::default(),
        });
        host.connector
            .register_receiver("shop", shop.clone())
            .unwrap();
        shop
    }

    async fn connected(&self) -> &StreamConnection {
        while self.connection.get().is_none() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.connection.get().unwrap()
    }
}

#[async_trait]
impl Receiver for Shop {
    async fn receive(&self, _: Option<&AccountId>, prepare: Prepare, commit: Commit) -> Reply {
        let token = prepare.destination.segment_after(&self.address);
        let Some(Opened { shared_secret, .. }) = token.and_then(|token| self.secret.open(token))
        else {
            return Err(Reject::new(ErrorCode::UnexpectedPayment, None, ""));
        };
        let connection = self.connection.get_or_init(|| {
            let entropy = Box::new(SystemEntropy);
            let address = self.address.with_suffix(token.unwrap()).unwrap();
            let clock = Arc::new(SystemClock);
            let config = Config {
                receipts: self.receipts.clone(),
                ..config(&address)
            };
            let machine = Connection::server(clock.now(), config, &shared_secret, entropy);
            let sender = Till {
                connector: self.connector.clone(),
                limit: ilp_connector::SpendLimit::new(5_000),
            };
            StreamConnection::spawn(machine, Arc::new(sender), clock)
        });
        let record = || async {
            let amount = commit.amount();
            let credited = commit.credit("shop".into()).await;
            *self.credited.lock().unwrap() += amount;
            credited.map_err(|_| ErrorCode::InternalError)
        };
        connection.incoming(&prepare, record).await
    }
}

struct Till {
    connector: ilp_connector::Connector,
    limit: ilp_connector::SpendLimit,
}

#[async_trait]
impl PacketSender for Till {
    async fn send(&self, prepare: Prepare) -> Reply {
        let account = "shop".into();
        self.connector
            .originate(&account, &self.limit, prepare)
            .await
    }
}

#[tokio::test]
async fn a_javascript_client_pays_our_server_and_is_refunded() {
    let host = Host::new();
    let listening = host.listen_local().await.to_string();
    let shop = Shop::open(&host, None);
    let credentials = shop.secret.generate(b"order 7").unwrap();
    let address = shop.address.with_suffix(&credentials.token).unwrap();
    let secret = data_encoding::BASE64.encode(&credentials.shared_secret.0);

    let directory = installed().await;
    let source = include_str!("node/stream_client.js");
    let arguments = [listening.as_str(), address.as_str(), secret.as_str()];
    let mut script = Script::start(directory.path(), "client.js", source, &arguments);

    let shopping = async {
        let connection = shop.connected().await;
        let opened = connection.until(|_, observed| observed.opened.first().copied());
        assert_eq!(opened.await, STREAM);
        // The client tries to pay before it is asked to, and is told that nothing is taken.
        connection
            .until(|_, observed| observed.blocked.get(&STREAM).copied())
            .await;
        connection.with(|machine, _| machine.write(STREAM, Bytes::from_static(b"\xff")).unwrap());
        let thanks =
            connection.until(|_, seen| seen.data.get(&STREAM).filter(|it| it.len() == 9).cloned());
        assert_eq!(thanks.await, b"thank you");
        connection.with(|machine, _| {
            assert_eq!(machine.total_received(), 0, "nothing was asked for");
            machine.set_receive_max(STREAM, 1_234).unwrap();
        });
        connection
            .until(|machine, _| (machine.stream_received(STREAM) == Some(1_234)).then_some(()))
            .await;
        connection.with(|machine, _| machine.set_send_max(STREAM, 234).unwrap());
        connection
            .until(|machine, _| (machine.stream_sent(STREAM) == Some(234)).then_some(()))
            .await;
    };
    timeout(SCRIPT_TIMEOUT, shopping)
        .await
        .expect("the client does not pay");
    let result = script.line().await;
    script.end().await;
    assert_eq!(result["data"], "ff");
    assert_eq!(result["sentBeforeTheByte"], "0");
    assert_eq!(
        (&result["sent"], &result["received"]),
        (&"1234".into(), &"234".into())
    );
    assert_eq!(result["asset"], serde_json::json!(["XRP", 9]));
    assert_eq!(*shop.credited.lock().unwrap(), 1_234);
}

/// Our end as the command-line tool has it: behind a BTP connection of its own.
struct Purse(Arc<OnceLock<StreamConnection>>);

#[async_trait]
impl RequestHandler for Purse {
    async fn handle(&self, prepare: Prepare) -> Reply {
        match self.0.get() {
            Some(connection) => connection.incoming(&prepare, || async { Ok(()) }).await,
            None => Err(Reject::new(ErrorCode::UnexpectedPayment, None, "")),
        }
    }
}

struct Wire(BtpClient);

#[async_trait]
impl PacketSender for Wire {
    async fn send(&self, prepare: Prepare) -> Reply {
        let failed = |_| Err(Reject::new(ErrorCode::PeerUnreachable, None, ""));
        self.0.send(prepare).await.unwrap_or_else(failed)
    }
}

/// A client of ours with a BTP connection of its own, for the server that a script has announced.
async fn our_client(
    listening: SocketAddr,
    credentials: &Value,
    rate: RatePolicy,
) -> StreamConnection {
    let server: Address = credentials["address"].as_str().unwrap().parse().unwrap();
    let secret = credentials["secret"].as_str().unwrap();
    let secret = data_encoding::BASE64.decode(secret.as_bytes()).unwrap();
    let secret = SharedSecret(secret.try_into().unwrap());

    let slot = Arc::new(OnceLock::new());
    let clock = Arc::new(SystemClock);
    let purse = Arc::new(Purse(slot.clone()));
    let url = host::url(listening, "payer");
    let client = BtpClient::connect(&url, purse, clock.clone()).await;
    let client = client.unwrap();
    let us = client.configuration().await.unwrap().client_address;
    let config = Config {
        rate,
        ..config(&us)
    };
    let entropy = Box::new(SystemEntropy);
    let machine = Connection::client(clock.now(), config, &secret, server, entropy);
    let connection = StreamConnection::spawn(machine, Arc::new(Wire(client)), clock);
    slot.set(connection.clone()).unwrap();
    connection
}

#[tokio::test]
async fn our_client_pays_a_javascript_server_and_is_refunded() {
    let host = Host::new();
    let listening = host.listen_local().await;
    let directory = installed().await;
    let source = include_str!("node/stream_server.js");
    let address = listening.to_string();
    let mut script = Script::start(directory.path(), "server.js", source, &[&address]);
    let connection = our_client(
        listening,
        &script.line().await,
        RatePolicy::Fixed(Rate::ONE),
    )
    .await;

    connection.with(|machine, _| {
        assert_eq!(machine.open_stream(), Ok(STREAM));
        machine.set_send_max(STREAM, 3_000).unwrap();
        machine.set_receive_max(STREAM, 400).unwrap();
        machine
            .write(STREAM, Bytes::from_static(b"hello from Rust"))
            .unwrap();
    });
    let finished = connection.until(|machine, seen| {
        assert_eq!(seen.closed, None);
        let paid = machine.stream_sent(STREAM) == Some(1_000);
        let refunded = machine.stream_received(STREAM) == Some(250);
        let hello = seen
            .data
            .get(&STREAM)
            .is_some_and(|data| data == b"hello from JavaScript");
        (paid && refunded && hello && machine.unconfirmed_data(STREAM) == Some(0)).then_some(())
    });
    timeout(SCRIPT_TIMEOUT, finished)
        .await
        .expect("it is not paid and refunded");
    connection.with(|machine, _| {
        assert_eq!(machine.remote_asset().unwrap().code, "XRP");
        assert_eq!(machine.remote_receive_max(STREAM), Some(1_000));
    });
    connection.close(StreamErrorCode::NoError, "").await;
    let result = script.line().await;
    script.end().await;
    assert_eq!(
        (&result["received"], &result["sent"]),
        (&"1000".into(), &"250".into())
    );
    assert_eq!(result["data"], "hello from Rust");
    assert_eq!(result["asset"], serde_json::json!(["XRP", 9]));
}

/// What the scripts give to the verifier of their receipts.
const RECEIPTS: ReceiptKey = ReceiptKey {
    nonce: [1; 16],
    secret: [2; 32],
};

#[tokio::test]
async fn streams_receipts_and_errors_work_with_javascript_in_both_roles() {
    let directory = installed().await;
    a_javascript_server_with_many_streams(directory.path()).await;
    a_javascript_client_with_many_streams(directory.path()).await;
}

/// We ask the path for its rate, pay on three streams whose limits are raised in steps, get echoes
/// and money on a stream of the server, until the server fails.
async fn a_javascript_server_with_many_streams(directory: &Path) {
    let host = Host::new();
    let listening = host.listen_local().await;
    let source = include_str!("node/stream_many_server.js");
    let arguments = [&*listening.to_string()];
    let mut script = Script::start(directory, "many_server.js", source, &arguments);
    let probed = RatePolicy::Probed {
        slippage_ppm: 10_000,
        max_amount: 1_000_000,
    };
    let connection = our_client(listening, &script.line().await, probed).await;
    let quoted = connection.until(|machine, _| machine.quote());
    let quote = timeout(SCRIPT_TIMEOUT, quoted).await.expect("no quote");
    assert_eq!(quote.estimate.arriving(1_000_000), 1_000_000);
    assert_eq!(quote.minimum.arriving(1_000_000), 990_000);
    connection.with(|machine, _| assert_eq!(machine.total_sent(), 0));

    let streams = [1, 3, 5].map(StreamId);
    // The server puts up to 32,767 bytes of frames into a packet, which sealing makes longer than the
    // data of a packet may be (RFC 27), so all echoes together are less.
    let sent = |stream: StreamId| vec![u8::try_from(stream.0).unwrap(); 10_000];
    connection.with(|machine, _| {
        for stream in streams {
            assert_eq!(machine.open_stream(), Ok(stream));
            machine.set_send_max(stream, 1_000).unwrap();
            machine.write(stream, sent(stream).into()).unwrap();
        }
    });
    let of_the_server = StreamId(2);
    let finished = connection.until(|machine, seen| {
        assert_eq!(seen.closed, None);
        if machine.receive_max(of_the_server) == Some(0) {
            machine.set_receive_max(of_the_server, 1_000).unwrap();
        }
        let mut paid = streams.iter().map(|it| machine.stream_sent(*it));
        let mut echoed = streams.iter().map(|it| seen.data.get(it).map(Vec::len));
        let paid = paid.all(|sent| sent == Some(400));
        let echoed = echoed.all(|len| len == Some(10_000));
        let received = machine.stream_received(of_the_server) == Some(77);
        let hello = seen.data.get(&of_the_server).map(Vec::as_slice) == Some(b"from the server");
        (paid && echoed && received && hello).then_some(())
    });
    timeout(SCRIPT_TIMEOUT, finished)
        .await
        .expect("not everything arrives");
    for stream in streams {
        assert_eq!(connection.take_data(stream), sent(stream));
        connection.with(|machine, _| {
            let receipt = machine.receipt(stream).unwrap();
            assert!(RECEIPTS.verify(receipt));
            assert_eq!((receipt.stream(), receipt.total_received()), (stream, 400));
        });
    }
    connection.with(|machine, _| {
        machine
            .write(of_the_server, Bytes::from_static(b"fail"))
            .unwrap();
    });
    let closed = connection.until(|_, seen| seen.closed.clone());
    let reason = timeout(SCRIPT_TIMEOUT, closed)
        .await
        .expect("it stays open");
    let CloseReason::Remote { code, message } = reason else {
        panic!("{reason}");
    };
    assert_eq!(code, StreamErrorCode::InternalError);
    assert_eq!(message, "out of order");
    let result = script.line().await;
    script.end().await;
    assert_eq!(result["sent"], "77");
    let received = serde_json::json!({"1": "400", "3": "400", "5": "400"});
    assert_eq!(result["received"], received);
}

/// A client pays on two streams and gets receipts of ours, until we fail.
async fn a_javascript_client_with_many_streams(directory: &Path) {
    let host = Host::new();
    let listening = host.listen_local().await.to_string();
    let shop = Shop::open(&host, Some(RECEIPTS));
    let credentials = shop.secret.generate(b"order 8").unwrap();
    let address = shop.address.with_suffix(&credentials.token).unwrap();
    let secret = data_encoding::BASE64.encode(&credentials.shared_secret.0);
    let source = include_str!("node/stream_many_client.js");
    let arguments = [listening.as_str(), address.as_str(), secret.as_str()];
    let mut script = Script::start(directory, "many_client.js", source, &arguments);

    let streams = [StreamId(1), StreamId(3)];
    let selling = async {
        let connection = shop.connected().await;
        let opened = |seen: &ilp_link::stream::Observed| (seen.opened == streams).then_some(());
        connection.until(|_, seen| opened(seen)).await;
        connection.with(|machine, _| {
            machine.set_receive_max(streams[0], 1_000).unwrap();
            machine.set_receive_max(streams[1], 200).unwrap();
        });
    };
    timeout(SCRIPT_TIMEOUT, selling).await.expect("no client");
    let receipts = script.line().await;
    for (index, (stream, total)) in streams.into_iter().zip([300, 200]).enumerate() {
        let text = receipts["receipts"][index].as_str().unwrap();
        let bytes = data_encoding::BASE64.decode(text.as_bytes()).unwrap();
        let receipt = Receipt::from_bytes(&bytes).unwrap();
        assert!(RECEIPTS.verify(&receipt));
        assert_eq!(
            (receipt.stream(), receipt.total_received()),
            (stream, total)
        );
    }
    let connection = shop.connected().await;
    let closing = connection.close(StreamErrorCode::ApplicationError, "closing time");
    timeout(SCRIPT_TIMEOUT, closing).await.expect("not closed");
    let error = script.line().await;
    let error = error["error"].as_str().unwrap();
    assert!(
        error.contains("ApplicationError") && error.contains("closing time"),
        "{error}"
    );
    script.end().await;
    assert_eq!(*shop.credited.lock().unwrap(), 500);
}
