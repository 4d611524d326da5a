//! The BTP client: one connection to a server, as a program in a pod or our command-line tool
//! makes it, or as the host makes it to its parent.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ilp_btp::{Credentials, RequestId, Session, SessionLimits};
use ilp_connector::{Clock, Link, LinkError};
use ilp_packet::ildcp::{self, IldcpError, IldcpResponse};
use ilp_packet::{Prepare, Reject, Reply};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_tungstenite::client_async_with_config;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::btp_url::BtpUrl;
use crate::handler::{Inbound, RequestHandler};
use crate::socket::{SessionEnd, Socket, SocketLink, websocket_config};

/// How long connecting, the WebSocket handshake and the authentication may take together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the parent has to tell us our address. RFC 31 suggests a minute; nobody wants to wait
/// that long.
const ILDCP_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for a reply, whatever the packet says.
const MAX_WAIT: Duration = Duration::from_secs(35);

/// Why there is no connection. Nothing was sent that could cost money.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The server does not answer on the network.
    #[error("cannot connect to {url}")]
    Connect {
        /// The server, without credentials.
        url: String,
        /// What the operating system says.
        #[source]
        source: std::io::Error,
    },
    /// It took longer than ten seconds.
    #[error("connecting to {url} took too long")]
    TimedOut {
        /// The server, without credentials.
        url: String,
    },
    /// The server answered, but there is no session.
    #[error("no BTP session with {url}")]
    Session {
        /// The server, without credentials.
        url: String,
        /// Why.
        #[source]
        source: SessionEnd,
    },
}

/// Why the server did not tell us our address and asset.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// There was no reply.
    #[error("no reply to the request for configuration")]
    Link(#[from] LinkError),
    /// The server rejected the request.
    #[error("request for configuration was rejected: {} {}", .0.code, .0.message)]
    Rejected(Reject),
    /// The reply makes no sense.
    #[error("configuration is unusable")]
    Response(#[from] IldcpError),
}

/// A connection to a BTP server. Clones are the same connection; it closes when the last one is
/// dropped. It does not reconnect.
#[derive(Clone)]
pub struct BtpClient {
    link: SocketLink,
    clock: Arc<dyn Clock>,
    end: watch::Receiver<Option<Arc<SessionEnd>>>,
}

impl BtpClient {
    /// Connects to a server. Its Prepares go to `handler`.
    ///
    /// # Errors
    /// If there is no server, or it refuses us.
    pub async fn connect(
        url: &BtpUrl,
        handler: Arc<dyn RequestHandler>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ConnectError> {
        Self::connect_inbound(url, Inbound::Handler(handler), clock).await
    }

    pub(crate) async fn connect_inbound(
        url: &BtpUrl,
        inbound: Inbound,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ConnectError> {
        let name = url.to_string();
        let connecting = async {
            let stream = TcpStream::connect(url.host_and_port())
                .await
                .map_err(|source| ConnectError::Connect {
                    url: name.clone(),
                    source,
                })?;
            // Packets are small and somebody waits for each.
            let _ = stream.set_nodelay(true);
            Self::open(stream, url.websocket(), url.credentials(), inbound, clock)
                .await
                .map_err(|source| ConnectError::Session {
                    url: name.clone(),
                    source,
                })
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(ConnectError::TimedOut { url: name }),
        }
    }

    /// Opens a session over a stream that is connected already.
    ///
    /// # Errors
    /// If the other end is no BTP server or refuses us.
    pub async fn over<S>(
        stream: S,
        credentials: &Credentials,
        handler: Arc<dyn RequestHandler>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, SessionEnd>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let inbound = Inbound::Handler(handler);
        let opening = Self::open(stream, "ws://localhost/", credentials, inbound, clock);
        match tokio::time::timeout(CONNECT_TIMEOUT, opening).await {
            Ok(opened) => opened,
            Err(_) => Err(SessionEnd::HandshakeTimeout),
        }
    }

    async fn open<S>(
        stream: S,
        url: &str,
        credentials: &Credentials,
        inbound: Inbound,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, SessionEnd>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (websocket, _) = client_async_with_config(url, stream, Some(websocket_config()))
            .await
            .map_err(SessionEnd::Handshake)?;
        let request_id = RequestId(rand::random());
        let (session, hello) =
            Session::client(SessionLimits::default(), request_id, credentials)
                .map_err(|_| SessionEnd::Refused("credentials are too long".into()))?;
        let cancel = CancellationToken::new();
        let (mut socket, link) = Socket::new(websocket, session, clock.clone(), cancel);
        socket.introduce(hello).await?;
        let (ended, end) = watch::channel(None);
        let running = async move {
            let end = socket.run(inbound, true).await;
            ended.send_replace(Some(Arc::new(end)));
        };
        tokio::spawn(running.instrument(tracing::info_span!("link", url)));
        Ok(Self { link, clock, end })
    }

    /// Sends a Prepare and waits for its reply, at most until the packet expires.
    ///
    /// # Errors
    /// If there was no reply. Unless the error says that the packet was not sent, it may have been
    /// fulfilled all the same.
    pub async fn send(&self, prepare: Prepare) -> Result<Reply, LinkError> {
        let wait = prepare.expires_at.since(self.clock.now()).min(MAX_WAIT);
        match tokio::time::timeout(wait, self.link.send(prepare)).await {
            Ok(reply) => reply,
            Err(_) => Err(LinkError::TimedOut),
        }
    }

    /// Asks the server for our address and asset (ILDCP, RFC 31).
    ///
    /// # Errors
    /// If the server does not tell.
    pub async fn configuration(&self) -> Result<IldcpResponse, ConfigurationError> {
        let wait = u64::try_from(ILDCP_TIMEOUT.as_millis()).unwrap_or(u64::MAX);
        let request = ildcp::request(self.clock.now().plus_millis(wait));
        let fulfill = self
            .send(request)
            .await?
            .map_err(ConfigurationError::Rejected)?;
        Ok(IldcpResponse::decode(&fulfill.data)?)
    }

    /// The link, for attaching it to a connector's account.
    #[must_use]
    pub fn link(&self) -> SocketLink {
        self.link.clone()
    }

    /// Whether the connection is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.link.is_closed()
    }

    /// Returns why the connection ended, once it did.
    pub async fn closed(&self) -> Arc<SessionEnd> {
        let mut end = self.end.clone();
        match end.wait_for(Option::is_some).await {
            Ok(end) => end
                .clone()
                .unwrap_or_else(|| Arc::new(SessionEnd::ClosedHere)),
            // The task was dropped with its runtime.
            Err(_) => Arc::new(SessionEnd::ClosedHere),
        }
    }

    /// Closes the connection. Open requests end with [`LinkError::Closed`].
    pub fn close(&self) {
        self.link.close();
    }
}

#[async_trait]
impl Link for BtpClient {
    async fn send(&self, prepare: Prepare) -> Result<Reply, LinkError> {
        Self::send(self, prepare).await
    }
}

impl std::fmt::Debug for BtpClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BtpClient")
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}
