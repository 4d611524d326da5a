//! The uploader's own Interledger connection: BTP to `moneyd`, to a host in local mode, or to any
//! other connector.

use std::{
    env,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use ilp_connector::{Clock, LinkError, SystemClock};
use ilp_link::{
    BtpClient, BtpUrl, Credentials, DEFAULT_PORT, RequestHandler,
    stream::{PacketSender, StreamConnection, SystemEntropy},
};
use ilp_packet::{Address, ErrorCode, Prepare, Reject, Reply};
use ilp_stream::{AssetDetails, Config, Connection, SharedSecret};

use crate::{ClientError, Receipt};

/// A connection that can pay.
#[derive(Clone)]
pub struct Wallet(Arc<Inner>);

struct Inner {
    sender: Arc<dyn PacketSender>,
    address: Address,
    asset: AssetDetails,
    incoming: Arc<Incoming>,
}

/// Where the Interledger connection is unless the caller says otherwise: `ILP_BTP_SERVER` as newer
/// ilp-plugin packages have it, `ILP_CREDENTIALS` (JSON with `server`), else `localhost:7768`.
pub fn default_url() -> String {
    if let Ok(server) = env::var("ILP_BTP_SERVER") {
        return server;
    }
    let credentials = env::var("ILP_CREDENTIALS").ok();
    let server = credentials
        .and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok())
        .and_then(|value| value.get("server")?.as_str().map(str::to_owned));
    server.unwrap_or_else(|| format!("btp+ws://localhost:{DEFAULT_PORT}"))
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
            sender: Arc::new(Sender(client)),
            address: configuration.client_address,
            asset,
            incoming,
        })))
    }

    /// A connection to a connector in this process. What comes for `address` has to be given to
    /// [`Wallet::receive`].
    pub fn in_process(
        address: Address,
        asset: AssetDetails,
        sender: Arc<dyn PacketSender>,
    ) -> Self {
        Self(Arc::new(Inner {
            sender,
            address,
            asset,
            incoming: Arc::default(),
        }))
    }

    /// Answers a Prepare that came for this wallet. `record` makes its amount durable.
    pub async fn receive<R>(&self, prepare: &Prepare, record: impl FnOnce() -> R) -> Reply
    where
        R: Future<Output = Result<(), ErrorCode>>,
    {
        self.0.incoming.answer(prepare, record).await
    }

    /// What amounts of this connection are counted in.
    pub fn asset(&self) -> &AssetDetails {
        &self.0.asset
    }

    /// What has moved on the connection that was opened last.
    pub fn moved(&self) -> Receipt {
        let connection = self
            .0
            .incoming
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        connection.map_or_else(Receipt::default, |connection| {
            connection.with(|machine, _| Receipt {
                paid: machine.total_sent(),
                refunded: machine.total_received(),
            })
        })
    }

    /// Opens a STREAM connection to a server, which `prepare` is to give all that the first packet
    /// shall say. One at a time receives what comes back.
    pub(crate) fn stream<T, E>(
        &self,
        server: Address,
        secret: &SharedSecret,
        prepare: impl FnOnce(&mut Connection) -> Result<T, E>,
    ) -> Result<(StreamConnection, T), E> {
        let clock = Arc::new(SystemClock);
        let config = Config {
            local_address: Some(self.0.address.clone()),
            asset: Some(self.0.asset.clone()),
            ..Config::default()
        };
        let mut machine =
            Connection::client(clock.now(), config, secret, server, Box::new(SystemEntropy));
        // Whoever drives it may be faster than we are.
        let prepared = prepare(&mut machine)?;
        let sender = Arc::clone(&self.0.sender);
        let connection = StreamConnection::spawn(machine, sender, clock);
        *self
            .0
            .incoming
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(connection.clone());
        Ok((connection, prepared))
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

/// Packets that come to us belong to the connection that was opened last.
#[derive(Default)]
struct Incoming(Mutex<Option<StreamConnection>>);

impl Incoming {
    async fn answer<R>(&self, prepare: &Prepare, record: impl FnOnce() -> R) -> Reply
    where
        R: Future<Output = Result<(), ErrorCode>>,
    {
        let connection = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let Some(connection) = connection else {
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
