//! The BTP client: one connection to a server, as a program in a pod or our command-line tool
//! makes it, or as the host makes it to its parent.

use std::sync::Arc;
use std::time::Duration;

use ilp_btp::{Credentials, RequestId, Session, SessionLimits};
use ilp_connector::{Answer, Clock, Link, LinkError};
use ilp_packet::ildcp::{self, IldcpError, IldcpResponse};
use ilp_packet::{Prepare, Reject, Reply};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_tungstenite::client_async_with_config;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::Instrument;

use crate::btp_url::BtpUrl;
use crate::handler::{Inbound, RequestHandler};
use crate::peer::{Keep, Peer};
use crate::socket::{SessionEnd, Socket, websocket_config};
use crate::transport::Transport;

/// How long connecting, the WebSocket handshake and the authentication may take together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the parent has to tell us our address. RFC 31 suggests a minute; nobody wants to wait
/// that long.
pub(crate) const ILDCP_TIMEOUT_MS: u64 = 10_000;
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
    peer: Peer,
    clock: Arc<dyn Clock>,
    end: watch::Receiver<Option<Arc<SessionEnd>>>,
    cancel: CancellationToken,
    _last: Arc<DropGuard>,
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
        let cancel = CancellationToken::new();
        let socket = dial(url, &clock, &cancel).await?;
        let name = url.to_string();
        Ok(Self::spawn(&name, socket, handler, clock, cancel).await)
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
        let cancel = CancellationToken::new();
        let url = "ws://localhost/";
        let opening = open(stream, url, credentials, &clock, &cancel);
        let socket = tokio::time::timeout(CONNECT_TIMEOUT, opening)
            .await
            .map_err(|_| SessionEnd::HandshakeTimeout)??;
        Ok(Self::spawn(url, socket, handler, clock, cancel).await)
    }

    async fn spawn<S>(
        url: &str,
        socket: Socket<S>,
        handler: Arc<dyn RequestHandler>,
        clock: Arc<dyn Clock>,
        cancel: CancellationToken,
    ) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (ended, end) = watch::channel(None);
        let peer = Peer::new();
        // A new peer is free. It is taken here, so that whoever gets the client can send at once.
        let open = peer.occupy(&cancel).await.unwrap_or_default();
        let running = {
            let peer = peer.clone();
            async move {
                let inbound = Inbound::Handler(handler);
                let end = socket.run(&peer, &inbound, open, Keep::Nothing).await;
                ended.send_replace(Some(Arc::new(end)));
            }
        };
        tokio::spawn(running.instrument(tracing::info_span!("link", url)));
        Self {
            peer,
            clock,
            end,
            _last: Arc::new(cancel.clone().drop_guard()),
            cancel,
        }
    }

    /// Sends a Prepare and waits for its reply, at most until the packet expires.
    ///
    /// # Errors
    /// If there was no reply. Unless the error says that the packet was not sent, it may have been
    /// fulfilled all the same.
    pub async fn send(&self, prepare: Prepare) -> Result<Reply, LinkError> {
        let wait = prepare.expires_at.since(self.clock.now()).min(MAX_WAIT);
        let (answer, reply) = Answer::future(Instant::now() + wait);
        self.peer.send(prepare, answer);
        match tokio::time::timeout(wait, reply).await {
            Ok(reply) => reply.unwrap_or(Err(LinkError::Closed)),
            Err(_) => Err(LinkError::TimedOut),
        }
    }

    /// Asks the server for our address and asset (ILDCP, RFC 31).
    ///
    /// # Errors
    /// If the server does not tell.
    pub async fn configuration(&self) -> Result<IldcpResponse, ConfigurationError> {
        let request = ildcp::request(self.clock.now().plus_millis(ILDCP_TIMEOUT_MS));
        let fulfill = self
            .send(request)
            .await?
            .map_err(ConfigurationError::Rejected)?;
        Ok(IldcpResponse::decode(&fulfill.data)?)
    }

    /// Whether the connection is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.cancel.is_cancelled() || self.end.borrow().is_some()
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
        self.cancel.cancel();
    }
}

impl std::fmt::Debug for BtpClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BtpClient")
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

/// Connects to a server and authenticates.
pub(crate) async fn dial(
    url: &BtpUrl,
    clock: &Arc<dyn Clock>,
    cancel: &CancellationToken,
) -> Result<Socket<Transport>, ConnectError> {
    let name = || url.to_string();
    let connecting = async {
        let stream = Transport::connect(url).await.map_err(|source| {
            let url = name();
            ConnectError::Connect { url, source }
        })?;
        let opening = open(stream, url.websocket(), url.credentials(), clock, cancel);
        opening.await.map_err(|source| {
            let url = name();
            ConnectError::Session { url, source }
        })
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(connected) => connected,
        Err(_) => Err(ConnectError::TimedOut { url: name() }),
    }
}

async fn open<S>(
    stream: S,
    url: &str,
    credentials: &Credentials,
    clock: &Arc<dyn Clock>,
    cancel: &CancellationToken,
) -> Result<Socket<S>, SessionEnd>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (websocket, _) = client_async_with_config(url, stream, Some(websocket_config()))
        .await
        .map_err(SessionEnd::Handshake)?;
    let request_id = RequestId(rand::random());
    let (session, hello) = Session::client(SessionLimits::default(), request_id, credentials)
        .map_err(|_| SessionEnd::Refused("credentials are too long".into()))?;
    let mut socket = Socket::new(websocket, session, clock.clone(), cancel.clone());
    socket.introduce(hello).await?;
    Ok(socket)
}
