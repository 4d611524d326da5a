//! A private Interledger network: one connector, play money for everybody who connects, and a till.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD};
use ilp_connector::{
    AccountId, Commit, Connector, ConnectorConfig, Ledger, Movement, Receiver, Recorded,
    SpendLimit, SystemClock,
};
use ilp_link::{
    BtpServer, LocalGate,
    stream::{PacketSender, StreamConnection, SystemEntropy},
};
use ilp_packet::{ErrorCode, Prepare, Reject, Reply};
use ilp_stream::{Config, Connection, SharedSecret};
use tokio::{net::TcpListener, time::timeout};

const SEGMENT: &str = "till";
const TILL: &str = "earned:till";
/// How long a till waits for money that may never come.
const PATIENCE: Duration = Duration::from_secs(3);

/// Everything that was fulfilled.
#[derive(Default)]
struct Books(Mutex<Vec<Movement>>);

impl Ledger for Books {
    fn record(&self, movement: Movement, recorded: Recorded) {
        self.0.lock().expect("nobody panics").push(movement);
        recorded.complete(Ok(()));
    }
}

pub(crate) struct Network {
    connector: Connector,
    books: Arc<Books>,
    tills: Arc<Tills>,
    address: SocketAddr,
    scale: u8,
    _server: BtpServer,
}

impl Network {
    /// Counts in units of 10⁻⁹ XRP.
    pub(crate) async fn start() -> Arc<Self> {
        Self::with_scale(9).await
    }

    /// Counts in units of 10^-`scale` XRP.
    pub(crate) async fn with_scale(scale: u8) -> Arc<Self> {
        let books = Arc::new(Books::default());
        let own = "test.network".parse().expect("an address");
        let config = ConnectorConfig::new(own, "XRP", scale);
        let connector = Connector::new(config, books.clone(), Arc::new(SystemClock));
        let gate = Arc::new(LocalGate::new(&connector, "local", "local".into(), 32));
        let server = BtpServer::new(connector.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        server.listen(listener, gate);
        let tills = Arc::new(Tills(Mutex::default()));
        connector
            .register_receiver(SEGMENT, tills.clone())
            .expect("nobody else has it");
        Arc::new(Self {
            connector,
            books,
            tills,
            address,
            scale,
            _server: server,
        })
    }

    /// What so many units of 10⁻⁹ XRP are here, rounded up.
    pub(crate) fn units(&self, nano: u64) -> u64 {
        match self.scale.checked_sub(9) {
            Some(finer) => nano * 10_u64.pow(finer.into()),
            None => nano.div_ceil(10_u64.pow((9 - self.scale).into())),
        }
    }

    /// For `--ilp`.
    pub(crate) fn url(&self) -> String {
        format!("btp+ws://{}", self.address)
    }

    /// What all hosts have had, less what they gave back.
    pub(crate) fn taken(&self) -> i128 {
        let movements = self.books.0.lock().expect("nobody panics");
        movements
            .iter()
            .map(|movement| {
                let amount = i128::from(movement.amount);
                match (movement.credit.to_string(), movement.debit.to_string()) {
                    (credit, _) if credit == TILL => amount,
                    (_, debit) if debit == TILL => -amount,
                    _ => 0,
                }
            })
            .sum()
    }

    /// A STREAM server for one payment, and what the `Pay` header says of it.
    pub(crate) fn till(self: &Arc<Self>) -> (String, Till) {
        let token = format!("{:016x}", rand::random::<u64>());
        let secret: [u8; 32] = rand::random();
        let base = self.connector.address();
        let address = base
            .with_suffix(&format!("{SEGMENT}.{token}"))
            .expect("it is short");
        let config = Config {
            local_address: Some(address.clone()),
            ..Config::default()
        };
        let clock = self.connector.clock();
        let machine = Connection::server(
            clock.now(),
            config,
            &SharedSecret(secret),
            Box::new(SystemEntropy),
        );
        let sender = Arc::new(Sender(self.connector.clone()));
        let connection = StreamConnection::spawn(machine, sender, clock);
        let mut tills = self.tills.0.lock().expect("nobody panics");
        tills.insert(token, connection.clone());
        let header = format!("interledger-stream {address} {}", STANDARD.encode(secret));
        (header, Till { connection })
    }
}

struct Tills(Mutex<HashMap<String, StreamConnection>>);

#[async_trait]
impl Receiver for Tills {
    async fn receive(&self, _: Option<&AccountId>, prepare: Prepare, commit: Commit) -> Reply {
        let token = prepare.destination.segments().last().unwrap_or_default();
        let connection = self.0.lock().expect("nobody panics").get(token).cloned();
        let Some(connection) = connection else {
            return Err(Reject::new(ErrorCode::UnexpectedPayment, None, ""));
        };
        let record = || async {
            if commit.amount() == 0 {
                return Ok(());
            }
            let credited = commit.credit(TILL.to_owned().into()).await;
            credited.map_err(|_| ErrorCode::InternalError)
        };
        connection.incoming(&prepare, record).await
    }
}

struct Sender(Connector);

#[async_trait]
impl PacketSender for Sender {
    async fn send(&self, prepare: Prepare) -> Reply {
        let limit = SpendLimit::new(u64::MAX);
        let till = TILL.to_owned().into();
        self.0.originate(&till, &limit, prepare).await
    }
}

/// The host's end of one payment.
#[derive(Clone)]
pub(crate) struct Till {
    connection: StreamConnection,
}

impl Till {
    /// Says that the payer's stream is seen, as hosts do.
    pub(crate) async fn greet(&self) {
        let greeting = self.connection.until(|machine, observed| {
            let stream = observed.opened.first().copied()?;
            let written = machine.write(stream, bytes::Bytes::from_static(&[0xff]));
            written.is_ok().then_some(())
        });
        let _ = timeout(PATIENCE, greeting).await;
    }

    /// Takes up to so many units, and says how many came.
    pub(crate) async fn take(&self, most: u64) -> u64 {
        let taking = self.connection.until(|machine, observed| {
            for stream in &observed.opened {
                let _ = machine.set_receive_max(*stream, most);
            }
            (machine.total_received() >= most).then_some(())
        });
        let _ = timeout(PATIENCE, taking).await;
        self.connection.with(|machine, _| machine.total_received())
    }

    /// Sends back all that came.
    pub(crate) async fn give_back(&self) {
        let owed = self.connection.with(|machine, observed| {
            let owed = machine.total_received();
            if let Some(stream) = observed.opened.first() {
                let _ = machine.set_send_max(*stream, owed);
            }
            owed
        });
        let sent = self
            .connection
            .until(|machine, _| (machine.total_sent() >= owed).then_some(()));
        let _ = timeout(PATIENCE, sent).await;
    }
}
