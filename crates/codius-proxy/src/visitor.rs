//! Visitors: accepting them, reading their requests, choosing between pod and API.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::BoxError;
use crate::body::{ReplyBody, Source};
use crate::failure::Failure;
use crate::forward::Forwarder;
use crate::headers::{self, Origin};
use crate::host;
use crate::limits::Limits;
use crate::patience::{Activity, HeadWait};
use crate::pool::{BUFFER_BYTES, Pool};
use crate::rarely::Rarely;
use crate::route::{PodRoutes, Route};
use crate::stall::Stall;

/// How long to wait before accepting again when the system is out of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Where a connection came from. Requests to the API carry it as an extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visitor {
    /// The other end of the connection.
    pub address: SocketAddr,
    /// What the visitor speaks with whoever it sees as the host.
    pub scheme: Scheme,
}

/// `X-Forwarded-Proto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Plain TCP.
    Http,
    /// TLS, ended before the proxy.
    Https,
}

impl Scheme {
    fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// The proxy. Cheap to clone; all clones share connections and limits.
#[derive(Clone)]
pub struct Proxy(Arc<Shared>);

struct Shared {
    routes: Arc<dyn PodRoutes>,
    limits: Arc<Limits>,
    pool: Pool,
    trusted: Vec<IpAddr>,
    tunnels: TaskTracker,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("limits", &self.0.limits)
            .field("trusted", &self.0.trusted)
            .finish_non_exhaustive()
    }
}

impl Proxy {
    /// A proxy to the pods of `routes`, with the default limits, trusting no other proxy.
    #[must_use]
    pub fn new(routes: Arc<dyn PodRoutes>) -> Self {
        Self::with_limits(routes, Limits::default(), Vec::new())
    }

    /// `trusted` are the addresses of the operator's own proxies in front of this one: what they
    /// say in `X-Forwarded-*` is kept and added to. From anyone else it is overwritten.
    #[must_use]
    pub fn with_limits(routes: Arc<dyn PodRoutes>, limits: Limits, trusted: Vec<IpAddr>) -> Self {
        let limits = Arc::new(limits);
        Self(Arc::new(Shared {
            routes,
            pool: Pool::new(Arc::clone(&limits)),
            limits,
            trusted,
            tunnels: TaskTracker::new(),
        }))
    }

    /// The pod at `address` is gone: cuts everything that is open to it. To be called before the
    /// address can be given to another pod.
    pub fn forget(&self, address: SocketAddr) {
        self.0.pool.forget(address);
    }

    /// Accepts visitors until `shutdown`, then waits until every request that was accepted is
    /// answered. Put a deadline around that wait: a visitor may be slow. Dropping this future
    /// stops accepting; what was accepted goes on.
    pub async fn serve<A, B>(
        &self,
        listener: TcpListener,
        scheme: Scheme,
        api: A,
        shutdown: CancellationToken,
    ) where
        A: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + Sync + 'static,
        A::Error: Into<BoxError>,
        A::Future: Send,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let places = Arc::new(Semaphore::new(self.0.limits.visitors));
        let visitors = TaskTracker::new();
        loop {
            // Nothing is lost if either wait is dropped: a connection not accepted stays queued.
            let accepted = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                accepted = accept(&listener, &places) => accepted,
            };
            let (stream, address, place) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a visitor");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let visitor = Visitor { address, scheme };
            let (proxy, api, shutdown) = (self.clone(), api.clone(), shutdown.clone());
            visitors.spawn(async move {
                proxy.serve_connection(stream, visitor, api, shutdown).await;
                drop(place);
            });
        }
        drop(listener);
        visitors.close();
        visitors.wait().await;
        self.0.tunnels.close();
        self.0.tunnels.wait().await;
    }

    /// Serves one visitor until it leaves, or until `shutdown` and its request is answered.
    /// Tunnels go on in tasks of their own until `shutdown`.
    pub async fn serve_connection<I, A, B>(
        &self,
        io: I,
        visitor: Visitor,
        api: A,
        shutdown: CancellationToken,
    ) where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        A: Service<Request<Incoming>, Response = Response<B>> + Send + Sync,
        A::Error: Into<BoxError>,
        A::Future: Send,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let shared = &*self.0;
        let trusted = shared
            .trusted
            .contains(&visitor.address.ip().to_canonical());
        let origin = Origin::new(visitor.address.ip(), visitor.scheme.as_str(), trusted);
        let activity = Arc::new(Activity::default());
        let patience = Mutex::default();
        let forwarder = Forwarder {
            pool: &shared.pool,
            limits: &shared.limits,
            tunnels: &shared.tunnels,
            origin: &origin,
            shutdown: &shutdown,
            patience: &patience,
            activity: &activity,
        };
        let (forwarder, api) = (&forwarder, &api);
        let service = service_fn(move |request| async move {
            let busy = forwarder.activity.begin();
            let reply = match shared.answer(forwarder, visitor, api, request).await {
                Ok(reply) => reply,
                Err(Unanswered::Failure(failure)) => {
                    tracing::debug!(%failure, visitor = %visitor.address, "request not forwarded");
                    failure.reply().map(|body| Source::Refusal(Full::new(body)))
                }
                Err(Unanswered::Api(error)) => return Err(ApiFailed(error)),
            };
            Ok(reply.map(|source| ReplyBody {
                source,
                _busy: busy,
            }))
        });
        let limits = &shared.limits;
        let mut server = hyper::server::conn::http1::Builder::new();
        server
            // The time for a head is kept by `VisitorIo`, with one timer for all requests.
            .header_read_timeout(None)
            .max_header_size(limits.head_bytes)
            .max_buf_size(BUFFER_BYTES.max(limits.head_bytes));
        // 100 is what hyper does without being asked, and does faster.
        if limits.header_count != 100 {
            server.max_headers(limits.header_count);
        }
        let io = VisitorIo {
            io,
            stall: Stall::new(limits.visitor_stall),
            head: HeadWait::new(Arc::clone(&activity), limits.head_read),
        };
        let connection = server
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            biased;
            ended = connection.as_mut() => ended,
            () = Rarely::new(Box::pin(shutdown.cancelled())) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, visitor = %visitor.address, "connection of a visitor ended");
        }
    }
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<(
    tokio::net::TcpStream,
    SocketAddr,
    tokio::sync::OwnedSemaphorePermit,
)> {
    let place = Arc::clone(places)
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let (stream, address) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream, address, place))
}

/// The API service broke its promise to answer; the visitor's connection is cut.
#[derive(Debug, Error)]
#[error("the API gave no answer")]
struct ApiFailed(#[source] BoxError);

enum Unanswered {
    Failure(Failure),
    Api(BoxError),
}

impl From<Failure> for Unanswered {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl Shared {
    async fn answer<A, B>(
        &self,
        forwarder: &Forwarder<'_>,
        visitor: Visitor,
        api: &A,
        request: Request<Incoming>,
    ) -> Result<Response<Source<B>>, Unanswered>
    where
        A: Service<Request<Incoming>, Response = Response<B>>,
        A::Error: Into<BoxError>,
    {
        let (parts, incoming) = request.into_parts();
        let Some(label) = host::label_of(&parts)? else {
            if headers::upgrade(&parts.headers).is_some() {
                return Err(Failure::UpgradeWithoutPod.into());
            }
            let mut request = Request::from_parts(parts, incoming);
            request.extensions_mut().insert(visitor);
            let reply = api
                .call(request)
                .await
                .map_err(|error| Unanswered::Api(error.into()))?;
            return Ok(reply.map(|body| Source::Api(Box::pin(body))));
        };
        let address = match self.routes.route(label.as_str()) {
            Route::Pod(address) => address,
            Route::NotReady => return Err(Failure::NotReady(label.as_str().to_owned()).into()),
            Route::Frozen => return Err(Failure::Frozen(label.as_str().to_owned()).into()),
            Route::NotFound => return Err(Failure::UnknownPod(label.as_str().to_owned()).into()),
        };
        let reply = forwarder.forward(label, address, parts, incoming).await?;
        Ok(reply.map(Source::Pod))
    }
}

/// The visitor's socket, which fails when the visitor takes nothing for too long, or sends no
/// whole request head for too long.
struct VisitorIo<I> {
    io: I,
    stall: Stall,
    head: HeadWait,
}

impl<I> VisitorIo<I> {
    fn judge<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match written {
            Poll::Ready(result) => {
                self.stall.moved();
                Poll::Ready(result)
            }
            Poll::Pending => self
                .stall
                .poll(cx)
                .map(|stalled| Err(io::Error::new(io::ErrorKind::TimedOut, stalled))),
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for VisitorIo<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(read) = Pin::new(&mut self.io).poll_read(cx, buffer) {
            return Poll::Ready(read);
        }
        self.head
            .poll(cx)
            .map(|()| Err(io::Error::from(io::ErrorKind::TimedOut)))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for VisitorIo<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.judge(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, buffers);
        self.judge(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.judge(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.io).poll_shutdown(cx);
        self.judge(cx, shut)
    }
}
