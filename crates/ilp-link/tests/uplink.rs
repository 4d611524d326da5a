//! A host below another host: the connection to the parent, and what becomes of money when it breaks.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod host;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use host::{FULFILLMENT, Host, MemoryLedger, local_payee, packet, soon, until, url};
use ilp_connector::{AccountConfig, Answer, Connector, ConnectorConfig, Link, SystemClock};
use ilp_link::{BtpClient, BtpServer, RequestHandler, Uplink, UplinkState};
use ilp_packet::{ErrorCode, Fulfill, Prepare, Reply};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, broadcast};

/// Our connector, with the child `c` that has play money.
fn ours(asset: &str) -> Connector {
    let config = ConnectorConfig::new("test.not-known-yet".parse().unwrap(), asset, 9);
    let ledger = Arc::new(MemoryLedger::default());
    let connector = Connector::new(config, ledger, Arc::new(SystemClock));
    connector
        .open_account(AccountConfig::parent("parent", "parent"))
        .unwrap();
    connector
        .open_account(AccountConfig::child("c", "c", "c").unlimited())
        .unwrap();
    connector
}

/// Passes bytes on until it is told to cut every connection, and refuses new ones while it is cut.
struct Wire {
    address: SocketAddr,
    cut: broadcast::Sender<()>,
    open: Arc<AtomicBool>,
}

impl Wire {
    async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, _) = broadcast::channel(1);
        let open = Arc::new(AtomicBool::new(true));
        tokio::spawn({
            let (cut, open) = (cut.clone(), open.clone());
            async move {
                loop {
                    let (mut near, _) = listener.accept().await.unwrap();
                    if !open.load(Ordering::SeqCst) {
                        continue;
                    }
                    let mut cut = cut.subscribe();
                    tokio::spawn(async move {
                        let mut far = TcpStream::connect(server).await.unwrap();
                        tokio::select! {
                            _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                            _ = cut.recv() => {}
                        }
                    });
                }
            }
        });
        Self { address, cut, open }
    }

    fn cut(&self) {
        self.open.store(false, Ordering::SeqCst);
        let _ = self.cut.send(());
    }

    fn mend(&self) {
        self.open.store(true, Ordering::SeqCst);
    }
}

/// A neighbour without a socket.
struct Neighbour(Arc<WhenTold>);

impl Link for Neighbour {
    fn send(&self, prepare: Prepare, answer: Answer) {
        let told = self.0.clone();
        tokio::spawn(async move { answer.complete(Ok(told.handle(prepare).await)) });
    }
}

/// Fulfills when it is told to.
#[derive(Default)]
struct WhenTold {
    asked: Notify,
    go_on: Notify,
}

#[async_trait]
impl RequestHandler for WhenTold {
    async fn handle(&self, _: Prepare) -> Reply {
        self.asked.notify_one();
        self.go_on.notified().await;
        Ok(Fulfill {
            fulfillment: FULFILLMENT,
            data: Bytes::new(),
        })
    }
}

#[tokio::test]
async fn an_uplink_comes_back_after_its_parent_restarted() {
    // The parent is another host; ours is a local client of it.
    let parent = Host::new();
    let address = parent.listen_local().await;
    let (_bob, payee) = local_payee(address, "bob").await;
    let connector = ours("XRP");
    let uplink = Uplink::spawn(url(address, "ours"), connector.clone(), "parent".into());
    soon(uplink.up()).await;
    let send = || connector.dispatch(&"c".into(), None, packet("test.host.local.u-bob", 5));
    soon(send()).await.unwrap();
    assert_eq!(connector.balance(&"parent".into()), Some(5));
    assert_eq!(payee.0.lock().unwrap().len(), 1);

    parent.server.shutdown().await;
    until(|| !uplink.is_up()).await;
    assert_eq!(
        soon(send()).await.unwrap_err().code,
        ErrorCode::PeerUnreachable
    );
    let listener = TcpListener::bind(address).await.unwrap();
    let again = BtpServer::new(parent.connector.clone());
    again.listen(listener, parent.local.clone());
    soon(uplink.up()).await;
    let (_bob, _) = local_payee(address, "bob").await;
    soon(send()).await.unwrap();
    uplink.close();
    until(|| !uplink.is_up()).await;
}

#[tokio::test]
async fn a_parent_that_says_goodbye_settles_over_the_next_connection_all_the_same() {
    let parent = Host::new();
    let server = parent.listen_local().await;
    let told = Arc::new(WhenTold::default());
    let connector = ours("XRP");
    let uplink = Uplink::spawn(url(server, "ours"), connector.clone(), "parent".into());
    soon(uplink.up()).await;
    // The payee is a neighbour of the parent that stays when the parent disconnects its clients.
    let payee = AccountConfig::child("payee", "payee", "payee");
    parent.connector.open_account(payee).unwrap();
    let link = Arc::new(Neighbour(told.clone()));
    let payee = "payee".into();
    parent.connector.attach_link(&payee, link).unwrap();
    let sending = connector.dispatch(&"c".into(), None, packet("test.host.payee", 5));
    soon(told.asked.notified()).await;
    parent.server.disconnect();
    until(|| !uplink.is_up()).await;
    told.go_on.notify_one();
    soon(sending).await.unwrap();
    let books = (
        connector.balance(&"parent".into()),
        parent.connector.balance(&payee),
    );
    assert_eq!(books, (Some(5), Some(5)));
}

#[tokio::test]
async fn the_parent_gives_the_address() {
    let parent = Host::new();
    let address = parent.listen_local().await;
    let connector = ours("XRP");
    let uplink = Uplink::spawn(url(address, "ours"), connector.clone(), "parent".into());
    soon(uplink.up()).await;
    assert_eq!(connector.address().as_str(), "test.host.local.u-ours");
    let child = connector.account_address(&"c".into()).unwrap();
    assert_eq!(child.as_str(), "test.host.local.u-ours.c");
}

#[tokio::test]
async fn a_parent_with_another_asset_is_not_used() {
    let parent = Host::new();
    let address = parent.listen_local().await;
    let connector = ours("USD");
    let uplink = Uplink::spawn(url(address, "ours"), connector.clone(), "parent".into());
    let mut state = uplink.state();
    let other = |state: &UplinkState| matches!(state, UplinkState::OtherAsset { .. });
    let found = soon(state.wait_for(other)).await.unwrap().clone();
    let expected = UplinkState::OtherAsset {
        code: "XRP".into(),
        scale: 9,
    };
    assert_eq!(found, expected);
    assert_eq!(connector.address().as_str(), "test.not-known-yet");
    let reply = connector.dispatch(&"c".into(), None, packet("test.host.local.u-bob", 5));
    assert_eq!(
        soon(reply).await.unwrap_err().code,
        ErrorCode::PeerUnreachable
    );
}

#[tokio::test]
async fn a_packet_that_we_sent_is_settled_over_the_next_connection() {
    let parent = Host::new();
    let server = parent.listen_local().await;
    let told = Arc::new(WhenTold::default());
    let clock = Arc::new(SystemClock);
    let _bob = BtpClient::connect(&url(server, "bob"), told.clone(), clock)
        .await
        .unwrap();
    let wire = Wire::to(server).await;
    let connector = ours("XRP");
    let uplink = Uplink::spawn(
        url(wire.address, "ours"),
        connector.clone(),
        "parent".into(),
    );
    soon(uplink.up()).await;
    let sending = connector.dispatch(&"c".into(), None, packet("test.host.local.u-bob", 5));
    soon(told.asked.notified()).await;
    wire.cut();
    until(|| !uplink.is_up()).await;
    // The parent is paid while nobody can tell us.
    told.go_on.notify_one();
    let paid = || parent.connector.balance(&"local.u-bob".into()) == Some(5);
    until(paid).await;
    assert_eq!(connector.balance(&"parent".into()), Some(0));
    wire.mend();
    soon(sending).await.unwrap();
    assert_eq!(connector.balance(&"parent".into()), Some(5));
    assert_eq!(connector.balance(&"c".into()), Some(-5));
}

#[tokio::test]
async fn a_packet_that_we_received_is_settled_over_the_next_connection() {
    let parent = Host::new();
    let server = parent.listen_local().await;
    let bob = host::local_payer(server, "bob").await;
    let wire = Wire::to(server).await;
    let connector = ours("XRP");
    let uplink = Uplink::spawn(
        url(wire.address, "ours"),
        connector.clone(),
        "parent".into(),
    );
    soon(uplink.up()).await;
    // The payee is a client of ours.
    let (gate, told) = (
        ilp_link::LocalGate::new(&connector, "local", "local".into(), 8),
        Arc::new(WhenTold::default()),
    );
    let btp = BtpServer::new(connector.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = listener.local_addr().unwrap();
    btp.listen(listener, Arc::new(gate));
    let clock = Arc::new(SystemClock);
    let _payee = BtpClient::connect(&url(near, "payee"), told.clone(), clock)
        .await
        .unwrap();
    let to = "test.host.local.u-ours.local.u-payee";
    let sending = tokio::spawn(async move { bob.send(packet(to, 7)).await });
    soon(told.asked.notified()).await;
    wire.cut();
    until(|| !uplink.is_up()).await;
    // We fulfil while nobody can tell the parent.
    told.go_on.notify_one();
    until(|| connector.balance(&"local.u-payee".into()) == Some(7)).await;
    wire.mend();
    soon(sending).await.unwrap().unwrap().unwrap();
    let books = (
        connector.balance(&"parent".into()),
        parent.connector.balance(&"local.u-ours".into()),
    );
    assert_eq!(books, (Some(-7), Some(7)));
}

#[tokio::test]
async fn what_nobody_settles_expires() {
    let parent = Host::new();
    let server = parent.listen_local().await;
    let told = Arc::new(WhenTold::default());
    let clock = Arc::new(SystemClock);
    let _bob = BtpClient::connect(&url(server, "bob"), told.clone(), clock)
        .await
        .unwrap();
    let wire = Wire::to(server).await;
    let connector = ours("XRP");
    let uplink = Uplink::spawn(
        url(wire.address, "ours"),
        connector.clone(),
        "parent".into(),
    );
    soon(uplink.up()).await;
    let mut prepare = packet("test.host.local.u-bob", 5);
    prepare.expires_at = prepare.expires_at.minus_millis(16_500);
    let sending = connector.dispatch(&"c".into(), None, prepare);
    soon(told.asked.notified()).await;
    wire.cut();
    let reject = soon(sending).await.unwrap_err();
    assert_eq!(reject.code, ErrorCode::TransferTimedOut);
    assert_eq!(connector.balance(&"c".into()), Some(0));
    soon(connector.drain()).await;
}

#[tokio::test]
async fn an_uplink_that_is_dropped_gives_up_what_is_open() {
    let parent = Host::new();
    let server = parent.listen_local().await;
    let told = Arc::new(WhenTold::default());
    let clock = Arc::new(SystemClock);
    let _bob = BtpClient::connect(&url(server, "bob"), told.clone(), clock)
        .await
        .unwrap();
    let connector = ours("XRP");
    let uplink = Uplink::spawn(url(server, "ours"), connector.clone(), "parent".into());
    soon(uplink.up()).await;
    let sending = connector.dispatch(&"c".into(), None, packet("test.host.local.u-bob", 5));
    soon(told.asked.notified()).await;
    drop(uplink);
    let reject = soon(sending).await.unwrap_err();
    assert_eq!(reject.code, ErrorCode::PeerUnreachable);
}
