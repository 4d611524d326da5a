//! A host in memory: a connector with a BTP server, a pod's gate and the local gate.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses its own part of this module"
)]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ilp_connector::{
    AccountConfig, Clock, Connector, ConnectorConfig, Ledger, Movement, Recorded, SystemClock,
};
use ilp_link::{
    BtpClient, BtpServer, BtpUrl, Credentials, LocalGate, PodGate, RefuseRequests, RequestHandler,
    SessionEnd,
};
use ilp_packet::{Fulfill, Fulfillment, Prepare, Reply};
use tokio::io::DuplexStream;
use tokio::net::TcpListener;

pub const FULFILLMENT: Fulfillment = Fulfillment([3; 32]);

/// How long a test waits for something that should happen soon.
const SOON: Duration = Duration::from_secs(20);

pub async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(SOON, future)
        .await
        .expect("it should have happened by now")
}

pub async fn until(condition: impl Fn() -> bool) {
    soon(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

#[derive(Default)]
pub struct MemoryLedger(pub Mutex<Vec<Movement>>);

impl Ledger for MemoryLedger {
    fn record(&self, movement: Movement, recorded: Recorded) {
        self.0.lock().unwrap().push(movement);
        recorded.complete(Ok(()));
    }
}

pub struct Host {
    pub connector: Connector,
    pub ledger: Arc<MemoryLedger>,
    pub server: BtpServer,
    pub pod: Arc<PodGate>,
    pub local: Arc<LocalGate>,
}

impl Host {
    /// The host `test.host` with the pod `pod.p` that has 1000 units and room for two programs.
    pub fn new() -> Self {
        let address = "test.host".parse().unwrap();
        let ledger = Arc::new(MemoryLedger::default());
        let config = ConnectorConfig::new(address, "XRP", 9);
        let connector = Connector::new(config, ledger.clone(), Arc::new(SystemClock));
        let pod = AccountConfig::child("pod.p", "pod-p", "pod:p").with_balance(1000);
        connector.open_account(pod).unwrap();
        Self {
            server: BtpServer::new(connector.clone()),
            pod: Arc::new(PodGate::new(&connector, "pod.p".into(), 2).unwrap()),
            local: Arc::new(LocalGate::new(&connector, "local", "local".into(), 8)),
            connector,
            ledger,
        }
    }

    /// Listens on a free loopback port for local clients.
    pub async fn listen_local(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        self.server.listen(listener, self.local.clone());
        address
    }

    /// A new connection from inside the pod, still without a WebSocket.
    pub fn pod_stream(&self) -> DuplexStream {
        let (inside, outside) = tokio::io::duplex(64 * 1024);
        self.server.accept(outside, self.pod.clone());
        inside
    }

    /// A program in the pod that fulfills what it gets.
    pub async fn pod_program(&self, token: &str) -> Result<BtpClient, SessionEnd> {
        let credentials = Credentials {
            username: String::new(),
            token: token.into(),
        };
        let handler = Arc::new(Payee::default());
        BtpClient::over(
            self.pod_stream(),
            &credentials,
            handler,
            Arc::new(SystemClock),
        )
        .await
    }

    pub fn pod_balance(&self) -> i128 {
        self.connector.balance(&"pod.p".into()).unwrap()
    }
}

/// Fulfills everything, and remembers it.
#[derive(Default)]
pub struct Payee(pub Mutex<Vec<Prepare>>);

#[async_trait]
impl RequestHandler for Payee {
    async fn handle(&self, prepare: Prepare) -> Reply {
        let data = prepare.data.clone();
        self.0.lock().unwrap().push(prepare);
        Ok(Fulfill {
            fulfillment: FULFILLMENT,
            data,
        })
    }
}

pub fn url(address: SocketAddr, user: &str) -> BtpUrl {
    format!("btp+ws://{user}:secret@{address}/some/path")
        .parse()
        .unwrap()
}

pub async fn local_payee(address: SocketAddr, user: &str) -> (BtpClient, Arc<Payee>) {
    let payee = Arc::new(Payee::default());
    let clock = Arc::new(SystemClock);
    (
        BtpClient::connect(&url(address, user), payee.clone(), clock)
            .await
            .unwrap(),
        payee,
    )
}

pub async fn local_payer(address: SocketAddr, user: &str) -> BtpClient {
    let (handler, clock) = (Arc::new(RefuseRequests), Arc::new(SystemClock));
    BtpClient::connect(&url(address, user), handler, clock)
        .await
        .unwrap()
}

pub fn packet(destination: &str, amount: u64) -> Prepare {
    Prepare {
        amount,
        expires_at: SystemClock.now().plus_millis(20_000),
        condition: FULFILLMENT.condition(),
        destination: destination.parse().unwrap(),
        data: Bytes::from_static(b"hello"),
    }
}
