//! The uploader's own Interledger connection: BTP to `moneyd`, to a host in local mode, or to any
//! other connector.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use ilp_connector::{Clock, LinkError, SystemClock};
use ilp_link::{
    BtpClient, BtpUrl, Credentials, RequestHandler,
    stream::{PacketSender, StreamConnection, SystemEntropy},
};
use ilp_packet::{Address, ErrorCode, Prepare, Reject, Reply};
use ilp_stream::{AssetDetails, Config, Connection, Rate, RatePolicy, SharedSecret};

use crate::{ClientError, Listener, Receipt, scale};

/// How much less than was measured may arrive of a packet, in millionths.
const SLIPPAGE_PPM: u32 = 1_000;

/// A connection that can pay.
#[derive(Clone)]
pub struct Wallet(Arc<Inner>);

struct Inner {
    sender: Arc<dyn PacketSender>,
    /// The connection, if there is one of its own.
    link: Option<BtpClient>,
    address: Address,
    asset: AssetDetails,
    incoming: Arc<Incoming>,
    /// What the hosts that are paid count in, if not the same as we; the code is the same.
    host_scale: u8,
    /// The connection that was opened last.
    opened: Mutex<Option<StreamConnection>>,
}

impl Wallet {
    /// Connects. Without a token in the URL a random one is taken, as ilp-plugin does.
    pub async fn connect(url: &str) -> Result<Self, ClientError> {
        let mut url: BtpUrl = url.parse()?;
        if url.credentials().token.is_empty() {
            let token = hex(&rand::random::<[u8; 16]>());
            url = url.with_credentials(Credentials {
                username: String::new(),
                token,
            });
        }
        let incoming = Arc::new(Incoming::default());
        let clock = Arc::new(SystemClock);
        let client = BtpClient::connect(&url, Arc::clone(&incoming) as _, clock)
            .await
            .map_err(|source| ClientError::NoWallet {
                url: url.to_string(),
                source,
            })?;
        let configuration = client
            .configuration()
            .await
            .map_err(|source| ClientError::Wallet {
                url: url.to_string(),
                source,
            })?;
        let asset = AssetDetails {
            code: configuration.asset_code,
            scale: configuration.asset_scale,
        };
        Ok(Self(Arc::new(Inner {
            sender: Arc::new(Sender(client.clone())),
            link: Some(client),
            address: configuration.client_address,
            host_scale: asset.scale,
            asset,
            incoming,
            opened: Mutex::default(),
        })))
    }

    /// A connection to a connector in this process. What comes for `address`, or below it, has to be
    /// given to [`Wallet::receive`].
    pub fn in_process(
        address: Address,
        asset: AssetDetails,
        sender: Arc<dyn PacketSender>,
    ) -> Self {
        Self(Arc::new(Inner {
            sender,
            link: None,
            address,
            host_scale: asset.scale,
            asset,
            incoming: Arc::default(),
            opened: Mutex::default(),
        }))
    }

    /// Answers a Prepare that came for this wallet. `record` makes its amount durable.
    pub async fn receive<R>(&self, prepare: &Prepare, record: impl FnOnce() -> R) -> Reply
    where
        R: Future<Output = Result<(), ErrorCode>>,
    {
        self.0.incoming.answer(prepare, record).await
    }

    /// The same account for the orders at one host, which counts in units of 10^-`host_scale` of the
    /// same asset: [`Wallet::moved`] is of these orders only.
    #[must_use]
    pub fn purse(&self, host_scale: u8) -> Self {
        Self(Arc::new(Inner {
            sender: Arc::clone(&self.0.sender),
            link: self.0.link.clone(),
            address: self.0.address.clone(),
            asset: self.0.asset.clone(),
            incoming: Arc::clone(&self.0.incoming),
            host_scale,
            opened: Mutex::default(),
        }))
    }

    /// The connection is lost: nothing can be paid by this wallet any more.
    pub fn is_lost(&self) -> bool {
        self.0.link.as_ref().is_some_and(BtpClient::is_closed)
    }

    /// The least of our units that are worth so many of the host's; `None` if there is no such number.
    pub fn cost(&self, host_units: u64) -> Option<u64> {
        scale::up(host_units, self.0.host_scale, self.0.asset.scale)
    }

    /// The most of our units that are worth no more than so many of the host's.
    pub fn most(&self, host_units: u64) -> u64 {
        scale::down(host_units, self.0.host_scale, self.0.asset.scale)
    }

    /// Our own Interledger address, as the connection has told it.
    pub fn address(&self) -> &Address {
        &self.0.address
    }

    /// Sends one packet by itself.
    pub(crate) async fn send(&self, prepare: Prepare) -> Reply {
        self.0.sender.send(prepare).await
    }

    /// What amounts of this connection are counted in.
    pub fn asset(&self) -> &AssetDetails {
        &self.0.asset
    }

    /// What has moved on the connection that was opened last.
    pub fn moved(&self) -> Receipt {
        let connection = lock(&self.0.opened).clone();
        connection.map_or_else(Receipt::default, |connection| {
            connection.with(|machine, _| Receipt {
                paid: machine.total_sent(),
                refunded: machine.total_received(),
            })
        })
    }

    /// Opens a STREAM connection to a server, which `prepare` is to give all that the first packet
    /// shall say. What comes back has an address of its own.
    pub(crate) fn stream<T, E>(
        &self,
        server: Address,
        secret: &SharedSecret,
        prepare: impl FnOnce(&mut Connection) -> Result<T, E>,
    ) -> Result<(StreamConnection, T), E> {
        let clock = Arc::new(SystemClock);
        let (segment, address) = self.fresh_address();
        let config = Config {
            local_address: Some(address),
            asset: Some(self.0.asset.clone()),
            rate: self.rate(),
            ..Config::default()
        };
        let mut machine =
            Connection::client(clock.now(), config, secret, server, Box::new(SystemEntropy));
        // Whoever drives it may be faster than we are.
        let prepared = prepare(&mut machine)?;
        let connection = self.drive(machine, clock);
        self.expect_at(segment, &connection);
        *lock(&self.0.opened) = Some(connection.clone());
        Ok((connection, prepared))
    }

    /// Listens for money that one sender is told to send.
    pub fn listen(&self) -> Listener {
        Listener::open(self)
    }

    /// Drives the machine of a connection whose packets leave by this wallet.
    pub(crate) fn drive(&self, machine: Connection, clock: Arc<SystemClock>) -> StreamConnection {
        StreamConnection::spawn(machine, Arc::clone(&self.0.sender), clock)
    }

    /// Packets for an address of ours are a connection's from now on.
    pub(crate) fn expect_at(&self, segment: String, connection: &StreamConnection) {
        self.0.incoming.register(segment, connection);
    }

    /// An address below ours that nobody knows yet, and its last segment.
    pub(crate) fn fresh_address(&self) -> (String, Address) {
        let segment = hex(&rand::random::<[u8; 8]>());
        match self.0.address.with_suffix(&segment) {
            Ok(address) => (segment, address),
            // Ours is as long as an address may be; then all share it.
            Err(_) => (String::new(), self.0.address.clone()),
        }
    }

    /// What arrives of what is sent. Between scales of one asset nobody has a rate to set; a connector
    /// that takes its share is measured.
    fn rate(&self) -> RatePolicy {
        if self.0.host_scale == self.0.asset.scale {
            return RatePolicy::Fixed(Rate::ONE);
        }
        RatePolicy::Probed {
            slippage_ppm: SLIPPAGE_PPM,
            max_amount: u64::MAX,
        }
    }
}

impl std::fmt::Debug for Wallet {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Wallet")
            .field("address", &self.0.address)
            .field("asset", &self.0.asset)
            .finish()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Sender(BtpClient);

#[async_trait]
impl PacketSender for Sender {
    async fn send(&self, prepare: Prepare) -> Reply {
        match self.0.send(prepare).await {
            Ok(reply) => reply,
            // Without a reply nobody knows; a packet that was fulfilled and whose answer was lost is
            // found in what the server says that it has received.
            Err(LinkError::TimedOut) => Err(Reject::new(
                ErrorCode::TransferTimedOut,
                None,
                "no reply in time",
            )),
            Err(error) => Err(Reject::new(
                ErrorCode::PeerUnreachable,
                None,
                error.to_string(),
            )),
        }
    }
}

/// Connections that packets come for, by the last segment of the address.
#[derive(Default)]
struct Incoming(Mutex<HashMap<String, StreamConnection>>);

impl Incoming {
    fn register(&self, segment: String, connection: &StreamConnection) {
        let mut connections = lock(&self.0);
        connections.retain(|_, one| one.with(|_, observed| observed.closed.is_none()));
        connections.insert(segment, connection.clone());
    }

    fn find(&self, destination: &Address) -> Option<StreamConnection> {
        let connections = lock(&self.0);
        let segment = destination.segments().last().unwrap_or_default();
        connections
            .get(segment)
            .or_else(|| connections.get(""))
            .cloned()
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Incoming {
    async fn answer<R>(&self, prepare: &Prepare, record: impl FnOnce() -> R) -> Reply
    where
        R: Future<Output = Result<(), ErrorCode>>,
    {
        let Some(connection) = self.find(&prepare.destination) else {
            return Err(Reject::new(ErrorCode::UnexpectedPayment, None, ""));
        };
        connection.incoming(prepare, record).await
    }
}

#[async_trait]
impl RequestHandler for Incoming {
    async fn handle(&self, prepare: Prepare) -> Reply {
        // The connector that fulfils us keeps the books; there is nothing to make durable here.
        self.answer(&prepare, || async { Ok(()) }).await
    }
}
