//! The BTP server: accepts connections for the connector's accounts.
//!
//! ```text
//! connection ──▶ WebSocket handshake ──▶ credentials ──▶ gate ──▶ session ──▶ end
//!                └──────── HANDSHAKE_TIMEOUT ────────┘
//! ```
//! A connection is anything that reads and writes: TCP from this machine, or a stream that a pod's
//! driver accepted. Browsers are kept out: a request with an `Origin` header is refused, so that a
//! web page cannot spend the money of whoever looks at it.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ilp_btp::{Session, SessionLimits};
use ilp_connector::Connector;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Semaphore;
use tokio_tungstenite::accept_hdr_async_with_config;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::{StatusCode, header};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::client_name::ClientName;
use crate::gate::Gate;
use crate::handler::Inbound;
use crate::peer::Keep;
use crate::socket::{SessionEnd, Socket, websocket_config};

/// The port that unmodified Interledger programs connect to.
pub const DEFAULT_PORT: u16 = 7768;

/// How long a client has from connecting until its credentials are read.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Most connections of all gates together.
const MAX_CONNECTIONS: usize = 4096;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 128;
/// Pause after a failed accept, when the process has no file descriptor left for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A BTP server. Clones are the same server.
#[derive(Clone)]
pub struct BtpServer(Arc<Inner>);

struct Inner {
    connector: Connector,
    connections: Arc<Semaphore>,
    stop: CancellationToken,
    /// A child of `stop`; those of all connections of the moment are its children.
    clients: Mutex<CancellationToken>,
    tasks: TaskTracker,
}

impl BtpServer {
    /// A server for the connector's accounts, without any listener yet.
    #[must_use]
    pub fn new(connector: Connector) -> Self {
        let stop = CancellationToken::new();
        Self(Arc::new(Inner {
            connector,
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            clients: Mutex::new(stop.child_token()),
            stop,
            tasks: TaskTracker::new(),
        }))
    }

    /// Accepts TCP connections through the gate until shutdown, in a task of its own.
    pub fn listen(&self, listener: TcpListener, gate: Arc<dyn Gate>) {
        let server = self.clone();
        let address = listener.local_addr().ok();
        let accepting = async move {
            loop {
                let accepted = tokio::select! {
                    () = server.0.stop.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                match accepted {
                    Ok((stream, _)) => {
                        // Packets are small and somebody waits for each.
                        let _ = stream.set_nodelay(true);
                        server.accept(stream, gate.clone());
                    }
                    Err(error) => {
                        tracing::warn!(error = &error as &dyn std::error::Error, "accept failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        self.0
            .tasks
            .spawn(accepting.instrument(tracing::info_span!("btp", ?address)));
    }

    /// Serves one connection through the gate, in a task of its own. It is dropped at once if there
    /// are too many, or at shutdown.
    pub fn accept<S>(&self, stream: S, gate: Arc<dyn Gate>)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        if self.0.stop.is_cancelled() {
            return;
        }
        let server = self.clone();
        let serving = async move {
            let end = server.serve(stream, gate).await;
            tracing::debug!(end = &end as &dyn std::error::Error, "connection ended");
        };
        self.0
            .tasks
            .spawn(serving.instrument(tracing::info_span!("link")));
    }

    /// Serves one connection through the gate to its end.
    pub async fn serve<S>(&self, stream: S, gate: Arc<dyn Gate>) -> SessionEnd
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (Ok(gate_permit), Ok(permit)) = (
            gate.connections().try_acquire_owned(),
            self.0.connections.clone().try_acquire_owned(),
        ) else {
            return SessionEnd::TooMany;
        };
        let cancel = self
            .0
            .clients
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .child_token();
        let opening = async {
            let config = Some(websocket_config());
            let websocket = accept_hdr_async_with_config(stream, refuse_browsers, config)
                .await
                .map_err(SessionEnd::Handshake)?;
            let session = Session::server(SessionLimits::default());
            let clock = self.0.connector.clock();
            let mut socket = Socket::new(websocket, session, clock, cancel.clone());
            let credentials = socket.introduced().await?;
            Ok((socket, ClientName::from_credentials(&credentials)))
        };
        let opened = tokio::select! {
            () = cancel.cancelled() => return SessionEnd::ClosedHere,
            opened = tokio::time::timeout(HANDSHAKE_TIMEOUT, opening) => opened,
        };
        let (mut socket, name) = match opened {
            Err(_) => return SessionEnd::HandshakeTimeout,
            Ok(Err(end)) => return end,
            Ok(Ok(opened)) => opened,
        };
        let seat = match gate.enter(&name) {
            Ok(seat) => seat,
            Err(error) => {
                socket.refuse(&error.to_string()).await;
                return SessionEnd::Refused(error.to_string());
            }
        };
        let Some(open) = seat.peer.occupy(&cancel).await else {
            return SessionEnd::ClosedHere;
        };
        socket.accept();
        let inbound = Inbound::Connector {
            connector: self.0.connector.clone(),
            account: seat.account.clone(),
            sub_account: seat.sub_account.clone(),
        };
        let span = tracing::info_span!("session", account = %seat.account, client = %name);
        let serving = socket.run(&seat.peer, &inbound, open, Keep::UnlessGoodbye);
        let end = serving.instrument(span).await;
        // What the client has left open is given up when it expires, unless the client comes back.
        let peer = seat.peer.clone();
        drop((seat, gate_permit, permit));
        tokio::select! {
            () = peer.settled() => {}
            () = self.0.stop.cancelled() => peer.give_up(),
        }
        end
    }

    /// Number of connections at the moment.
    #[must_use]
    pub fn connections(&self) -> usize {
        MAX_CONNECTIONS - self.0.connections.available_permits()
    }

    /// Closes the connections of the moment, so that clients connect again and ask for their new
    /// address.
    pub fn disconnect(&self) {
        let next = self.0.stop.child_token();
        let mut clients = self
            .0
            .clients
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *clients, next).cancel();
    }

    /// Closes all listeners and connections and waits until they are gone. Drain the connector
    /// first, so that packets in flight get their replies out.
    pub async fn shutdown(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

impl fmt::Debug for BtpServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BtpServer")
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}

/// Listeners on both loopback addresses, because programs resolve `localhost` to either. Port 0
/// takes a free one. A machine without IPv6 gets only the first.
///
/// # Errors
/// If the port is taken on one of them.
pub fn bind_loopback(port: u16) -> io::Result<Vec<TcpListener>> {
    let first = bind((Ipv4Addr::LOCALHOST, port).into())?;
    let port = first.local_addr()?.port();
    match bind((Ipv6Addr::LOCALHOST, port).into()) {
        Ok(second) => Ok(vec![first, second]),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
        Err(error) => {
            tracing::info!(%error, "no IPv6 loopback; listening on 127.0.0.1 only");
            Ok(vec![first])
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // A restarted daemon gets its port back while old connections linger.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[expect(
    clippy::result_large_err,
    reason = "the WebSocket library fixes the type"
)]
fn refuse_browsers(request: &Request, response: Response) -> Result<Response, ErrorResponse> {
    if !request.headers().contains_key(header::ORIGIN) {
        return Ok(response);
    }
    let mut refusal = ErrorResponse::new(Some("web pages may not use Interledger here".into()));
    *refusal.status_mut() = StatusCode::FORBIDDEN;
    Err(refusal)
}
