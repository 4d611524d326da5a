//! Visitors: accepting them, reading their requests, choosing between pod and API.
//!
//! The end is gentle, because whoever holds the listener may let a successor accept from it:
//!
//! ```text
//! open ─shutdown─▶ last answers ─LINGER─▶ quiet ─no request of before, or drain─▶ closed to new ─drain─▶ Unfinished
//!                  accepting: every answer says `Connection: close`              those that wait are
//!                                         idle connections are closed            the successor's
//! ```
//! Traps:
//! - hyper's own graceful shutdown closes a connection whose request has arrived and was not read yet. Here
//!   [`VisitorIo`] reports the end of input, and only when there is nothing to read, nothing half read, and
//!   nothing half answered.
//! - A visitor that sends a request on an idle connection at the very moment it is closed gets no answer and
//!   has to send it again (RFC 9112, 9.3.1); nothing on this side can help.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, StatusCode};
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
/// Below it the API itself may upgrade a connection; elsewhere it never does, and says so as the original did.
const UPGRADED_BY_API: &str = "/api/v2/";
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// After `shutdown`, idle connections stay open for this long, so that a visitor who sends one request after
/// another hears `Connection: close` instead of being cut off between two of them.
const LINGER: Duration = Duration::from_millis(500);
/// A new connection has this long for its first byte before the shutdown takes it for an idle one.
const FIRST_BYTE: Duration = Duration::from_secs(1);
/// How often a connection is looked at whether it is idle, once idle ones are to be closed.
const IDLE_LOOK: Duration = Duration::from_millis(20);
/// Time for the last answers to reach visitors, once the API has given them.
const LAST_BYTES: Duration = Duration::from_millis(500);

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
    /// Requests that the API has not answered yet.
    api: TaskTracker,
}

/// What a connection is told of the end, in this order.
#[derive(Clone, Default)]
struct Ends {
    /// Every answer is the last one of its connection.
    shutdown: CancellationToken,
    /// A connection without a request is closed.
    quiet: CancellationToken,
    /// A connection is closed, whatever goes on.
    cut: CancellationToken,
}

/// Requests and tunnels that were still open when [`Proxy::serve`] gave up waiting for them. Dropping it cuts
/// them.
#[must_use = "what is unfinished is cut when this is dropped"]
pub struct Unfinished {
    shared: Arc<Shared>,
    visitors: [TaskTracker; 2],
    cut: CancellationToken,
}

impl fmt::Debug for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unfinished").finish_non_exhaustive()
    }
}

impl Unfinished {
    /// Waits at most `within` for the API's answers, and then for a moment until visitors have them. Whatever
    /// is open then is cut: long bodies, event streams, tunnels.
    pub async fn finish(self, within: Duration) {
        let shared = &self.shared;
        shared.api.close();
        let api = tokio::time::timeout(within, shared.api.wait());
        tokio::select! {
            () = self.visitors_gone() => {}
            _ = api => {
                let _ = tokio::time::timeout(LAST_BYTES, self.visitors_gone()).await;
            }
        }
        self.cut.cancel();
        self.visitors_gone().await;
        shared.tunnels.close();
        shared.tunnels.wait().await;
    }

    async fn visitors_gone(&self) {
        for visitors in &self.visitors {
            visitors.wait().await;
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        self.cut.cancel();
    }
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
            api: TaskTracker::new(),
        }))
    }

    /// The pod at `address` is gone: cuts everything that is open to it. To be called before the
    /// address can be given to another pod.
    pub fn forget(&self, address: SocketAddr) {
        self.0.pool.forget(address);
    }

    /// Accepts visitors until `shutdown`, and for a little longer, as drawn above: while requests of before
    /// go on, at most for [`Limits::drain`]. Then the listener is dropped, those that were accepted last get as
    /// long again, and the rest is given back. Dropping this future stops accepting and cuts what was accepted.
    pub async fn serve<A, B>(
        &self,
        listener: TcpListener,
        scheme: Scheme,
        api: A,
        shutdown: CancellationToken,
    ) -> Unfinished
    where
        A: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + Sync + 'static,
        A::Error: Into<BoxError>,
        A::Future: Send,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let ends = Ends {
            shutdown,
            ..Ends::default()
        };
        let [before, late] = [TaskTracker::new(), TaskTracker::new()];
        let unfinished = Unfinished {
            shared: Arc::clone(&self.0),
            visitors: [before.clone(), late.clone()],
            cut: ends.cut.clone(),
        };
        let drain = self.0.limits.drain;
        let door = Door {
            proxy: self,
            listener,
            scheme,
            api,
            places: Arc::new(Semaphore::new(self.0.limits.visitors)),
            ends: &ends,
        };
        door.accept_until(ends.shutdown.cancelled(), &before).await;
        before.close();
        let tunnels = &self.0.tunnels;
        tunnels.close();
        let under_way = async {
            let _ = tokio::time::timeout(LINGER, before.wait()).await;
            ends.quiet.cancel();
            before.wait().await;
            tunnels.wait().await;
        };
        let under_way = tokio::time::timeout(drain, under_way);
        door.accept_until(async { drop(under_way.await) }, &late)
            .await;
        // Whoever waits in the listener's queue is the successor's.
        drop(door);
        ends.quiet.cancel();
        late.close();
        let _ = tokio::time::timeout(drain, late.wait()).await;
        unfinished
    }

    /// Serves one visitor until it leaves, or until it is told of the end. Tunnels go on in tasks of their own
    /// until they are cut.
    async fn serve_connection<I, A, B>(&self, io: I, visitor: Visitor, api: A, ends: Ends)
    where
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
        // The connection is polled before the waits below are, and may answer at once.
        if ends.shutdown.is_cancelled() {
            activity.set_last();
        }
        let patience = Mutex::default();
        let forwarder = Forwarder {
            pool: &shared.pool,
            limits: &shared.limits,
            tunnels: &shared.tunnels,
            origin: &origin,
            cut: &ends.cut,
            patience: &patience,
            activity: &activity,
        };
        let (forwarder, api) = (&forwarder, &api);
        let service = service_fn(move |request| async move {
            let busy = forwarder.activity.begin();
            let mut reply = match shared.answer(forwarder, visitor, api, request).await {
                Ok(reply) => reply,
                Err(Unanswered::Failure(failure)) => {
                    tracing::debug!(%failure, visitor = %visitor.address, "request not forwarded");
                    failure.reply().map(|body| Source::Refusal(Full::new(body)))
                }
                Err(Unanswered::Api(error)) => return Err(ApiFailed(error)),
            };
            if forwarder.activity.is_last() && reply.status() != StatusCode::SWITCHING_PROTOCOLS {
                let close = HeaderValue::from_static("close");
                reply.headers_mut().insert(CONNECTION, close);
            }
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
            activity: Arc::clone(&activity),
            opened: Instant::now(),
            head_from: None,
            takes_nothing: false,
            head: HeadWait::new(Arc::clone(&activity), limits.head_read),
        };
        let connection = server
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let ended = async {
            // Each time, the connection itself goes first.
            tokio::select! {
                biased;
                ended = connection.as_mut() => return ended,
                () = Rarely::new(Box::pin(ends.shutdown.cancelled())) => activity.set_last(),
            }
            tokio::select! {
                biased;
                ended = connection.as_mut() => return ended,
                () = Rarely::new(Box::pin(ends.quiet.cancelled())) => activity.set_closing(),
            }
            loop {
                // Being polled, it asks for input, and hears that there is no more if it is idle.
                tokio::select! {
                    biased;
                    ended = connection.as_mut() => return ended,
                    () = ends.cut.cancelled() => return Ok(()),
                    () = tokio::time::sleep(IDLE_LOOK) => {}
                }
            }
        }
        .await;
        if let Err(error) = ended {
            tracing::debug!(%error, visitor = %visitor.address, "connection of a visitor ended");
        }
    }
}

/// Where visitors come in.
struct Door<'a, A> {
    proxy: &'a Proxy,
    listener: TcpListener,
    scheme: Scheme,
    api: A,
    places: Arc<Semaphore>,
    ends: &'a Ends,
}

impl<A, B> Door<'_, A>
where
    A: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + Sync + 'static,
    A::Error: Into<BoxError>,
    A::Future: Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    async fn accept_until(&self, end: impl Future<Output = ()>, visitors: &TaskTracker) {
        tokio::pin!(end);
        loop {
            // Nothing is lost if either wait is dropped: a connection not accepted stays queued.
            let accepted = tokio::select! {
                biased;
                () = &mut end => return,
                accepted = self.accept() => accepted,
            };
            let (stream, address, place) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a visitor");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let scheme = self.scheme;
            let visitor = Visitor { address, scheme };
            let (proxy, api, ends) = (self.proxy.clone(), self.api.clone(), self.ends.clone());
            visitors.spawn(async move {
                proxy.serve_connection(stream, visitor, api, ends).await;
                drop(place);
            });
        }
    }

    async fn accept(
        &self,
    ) -> io::Result<(
        tokio::net::TcpStream,
        SocketAddr,
        tokio::sync::OwnedSemaphorePermit,
    )> {
        let place = Arc::clone(&self.places)
            .acquire_owned()
            .await
            .map_err(io::Error::other)?;
        let (stream, address) = self.listener.accept().await?;
        // A connection that is gone already is found out by its task.
        let _ = stream.set_nodelay(true);
        Ok((stream, address, place))
    }
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
            if headers::upgrade(&parts.headers).is_some()
                && !parts.uri.path().starts_with(UPGRADED_BY_API)
            {
                return Err(Failure::UpgradeWithoutPod.into());
            }
            let mut request = Request::from_parts(parts, incoming);
            request.extensions_mut().insert(visitor);
            let _answering = self.api.token();
            let reply = api
                .call(request)
                .await
                .map_err(|error| Unanswered::Api(error.into()))?;
            return Ok(reply.map(|body| Source::Api(Box::pin(body))));
        };
        let address = match self.settled_route(&label).await {
            Route::Pod(address) => address,
            Route::NotReady => return Err(Failure::NotReady(label.as_str().to_owned()).into()),
            Route::Frozen => return Err(Failure::Frozen(label.as_str().to_owned()).into()),
            Route::NotFound => return Err(Failure::UnknownPod(label.as_str().to_owned()).into()),
        };
        let reply = forwarder.forward(label, address, parts, incoming).await?;
        Ok(reply.map(Source::Pod))
    }

    /// The route of a label; of a pod that is not ready yet, what it is in the end or when the patience is over.
    async fn settled_route(&self, label: &host::Label) -> Route {
        let route = self.routes.route(label.as_str());
        if route != Route::NotReady {
            return route;
        }
        let mut changes = self.routes.changes();
        let settled = async {
            loop {
                let route = self.routes.route(label.as_str());
                // An error means that nothing changes any more.
                if route != Route::NotReady || changes.changed().await.is_err() {
                    return route;
                }
            }
        };
        let settled = tokio::time::timeout(self.limits.pod_ready, settled);
        settled.await.unwrap_or(Route::NotReady)
    }
}

/// The visitor's socket, which fails when the visitor takes nothing for too long, or sends no
/// whole request head for too long. At the shutdown its input ends when nothing goes on.
struct VisitorIo<I> {
    io: I,
    stall: Stall,
    head: HeadWait,
    activity: Arc<Activity>,
    opened: Instant,
    /// When the last byte came, counted in what has happened to requests.
    head_from: Option<u64>,
    /// Part of an answer waits for the visitor to take it.
    takes_nothing: bool,
}

impl<I> VisitorIo<I> {
    /// Whether this is the moment to close the connection. To be asked when there is nothing to read.
    fn is_over(&self) -> bool {
        if !self.activity.is_closing() || self.activity.is_busy() || self.takes_nothing {
            return false;
        }
        let moment = self.activity.moment();
        match self.head_from {
            // The first request is on its way, as far as anybody can tell.
            None => self.opened.elapsed() >= FIRST_BYTE,
            // Of the next request a part is here.
            Some(head_from) => head_from != moment,
        }
    }

    fn judge<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        self.takes_nothing = written.is_pending();
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
        let filled = buffer.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut self.io).poll_read(cx, buffer) {
            if buffer.filled().len() > filled {
                self.head_from = Some(self.activity.moment());
            }
            return Poll::Ready(read);
        }
        if self.is_over() {
            return Poll::Ready(Ok(()));
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
