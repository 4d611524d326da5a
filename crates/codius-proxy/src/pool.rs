//! Connections to pods, kept for the next request.
//!
//! ```text
//! connect ─▶ held by one request ─▶ reply complete ─▶ idle ─▶ held again …
//!                 │ broken, cut off, unsent body        │ closed by the pod, too old, pod gone
//!                 ▼                                     ▼
//!               dropped                               dropped
//! ```
//!
//! A connection has no task of its own. The request that holds it polls it ([`Held::drive`]);
//! while idle nobody does, and it is polled once when taken again, which shows whether the pod
//! has closed it meanwhile.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{Connection, SendRequest};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::body::RequestBody;
use crate::limits::Limits;

/// The pod was stopped while a message was under way.
#[derive(Debug, Error)]
#[error("pod is gone")]
pub(crate) struct PodGone;

/// Why there is no connection; nothing was sent.
#[derive(Debug, Error)]
pub(crate) enum ConnectError {
    #[error("too many connections to the pod")]
    Busy,
    #[error("no connection to the pod in time")]
    Timeout,
    #[error("pod does not accept the connection")]
    Refused(#[source] std::io::Error),
    #[error("connection to the pod failed")]
    Handshake(#[source] hyper::Error),
}

/// One pod as seen from here. Lives until [`Pool::forget`].
pub(crate) struct Upstream {
    address: SocketAddr,
    gone: CancellationToken,
    open: AtomicUsize,
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    /// Oldest in front; the youngest is taken first.
    connections: VecDeque<(Box<PodConnection>, Instant)>,
    reaper_runs: bool,
}

pub(crate) struct Pool {
    upstreams: RwLock<HashMap<SocketAddr, Arc<Upstream>>>,
    limits: Arc<Limits>,
}

impl Pool {
    pub(crate) fn new(limits: Arc<Limits>) -> Self {
        Self {
            upstreams: RwLock::default(),
            limits,
        }
    }

    pub(crate) fn upstream(&self, address: SocketAddr) -> Arc<Upstream> {
        let known = self
            .upstreams
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&address)
            .cloned();
        known.unwrap_or_else(|| {
            let mut upstreams = self
                .upstreams
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            Arc::clone(upstreams.entry(address).or_insert_with(|| {
                Arc::new(Upstream {
                    address,
                    gone: CancellationToken::new(),
                    open: AtomicUsize::new(0),
                    idle: Mutex::default(),
                })
            }))
        })
    }

    /// Ends everything that is open to `address`, idle or not.
    pub(crate) fn forget(&self, address: SocketAddr) {
        let upstream = self
            .upstreams
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&address);
        if let Some(upstream) = upstream {
            upstream.gone.cancel();
            let idle = std::mem::take(&mut upstream.idle().connections);
            drop(idle);
        }
    }

    /// An idle connection that the pod has not closed, and how long it was idle.
    pub(crate) fn take(&self, upstream: &Arc<Upstream>) -> Option<(Held, Duration)> {
        loop {
            let (mut connection, since) = upstream.idle().connections.pop_back()?;
            let idle = since.elapsed();
            if idle > self.limits.pod_idle {
                // The youngest is too old, so all are.
                let rest = std::mem::take(&mut upstream.idle().connections);
                drop(rest);
                return None;
            }
            connection.drive(&mut Context::from_waker(Waker::noop()));
            if connection.is_reusable() {
                return Some((self.hold(connection), idle));
            }
        }
    }

    pub(crate) async fn connect(&self, upstream: &Arc<Upstream>) -> Result<Held, ConnectError> {
        let slot = upstream
            .slot(self.limits.pod_connections)
            .ok_or(ConnectError::Busy)?;
        let stream = self.open(upstream).await?;
        let (sender, connection) = self
            .client()
            .handshake(TokioIo::new(stream))
            .await
            .map_err(ConnectError::Handshake)?;
        Ok(self.hold(Box::new(PodConnection {
            sender,
            connection,
            ended: false,
            slot,
        })))
    }

    /// A TCP connection of its own, for an upgrade; it counts like any other.
    pub(crate) async fn connect_raw(
        &self,
        upstream: &Arc<Upstream>,
    ) -> Result<(TcpStream, Slot), ConnectError> {
        let slot = upstream
            .slot(self.limits.pod_connections)
            .ok_or(ConnectError::Busy)?;
        Ok((self.open(upstream).await?, slot))
    }

    pub(crate) fn client(&self) -> hyper::client::conn::http1::Builder {
        let mut builder = hyper::client::conn::http1::Builder::new();
        // 100 is what hyper does without being asked, and does faster.
        if self.limits.header_count != 100 {
            builder.max_headers(self.limits.header_count);
        }
        builder.max_buf_size(BUFFER_BYTES.max(self.limits.head_bytes));
        builder
    }

    async fn open(&self, upstream: &Upstream) -> Result<TcpStream, ConnectError> {
        let connecting = TcpStream::connect(upstream.address);
        let stream = tokio::time::timeout(self.limits.pod_connect, connecting)
            .await
            .map_err(|_| ConnectError::Timeout)?
            .map_err(ConnectError::Refused)?;
        stream.set_nodelay(true).map_err(ConnectError::Refused)?;
        Ok(stream)
    }

    fn hold(&self, connection: Box<PodConnection>) -> Held {
        Held {
            connection,
            idle_connections: self.limits.pod_idle_connections,
            pod_idle: self.limits.pod_idle,
        }
    }
}

/// The most that is read ahead of a body: bounds memory per connection, large enough to keep a
/// fast pod busy.
pub(crate) const BUFFER_BYTES: usize = 128 * 1024;

impl Upstream {
    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn gone(&self) -> &CancellationToken {
        &self.gone
    }

    fn slot(self: &Arc<Self>, limit: usize) -> Option<Slot> {
        self.open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| {
                (open < limit).then_some(open + 1)
            })
            .ok()?;
        Some(Slot(Arc::clone(self)))
    }

    /// Drops what has been idle for too long; ends when nothing is left.
    async fn reap(upstream: Weak<Self>, age: Duration) {
        loop {
            tokio::time::sleep(age / 2).await;
            let Some(upstream) = upstream.upgrade() else {
                return;
            };
            let mut old = Vec::new();
            let mut idle = upstream.idle();
            while let Some((_, since)) = idle.connections.front()
                && since.elapsed() >= age
            {
                old.extend(idle.connections.pop_front());
            }
            idle.reaper_runs = !idle.connections.is_empty();
            let done = !idle.reaper_runs;
            drop(idle);
            drop(old);
            if done {
                return;
            }
        }
    }
}

/// The right to one connection to a pod.
pub(crate) struct Slot(Arc<Upstream>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

struct PodConnection {
    sender: SendRequest<RequestBody>,
    connection: Connection<TokioIo<TcpStream>, RequestBody>,
    ended: bool,
    slot: Slot,
}

impl PodConnection {
    fn drive(&mut self, cx: &mut Context<'_>) {
        if !self.ended {
            // How it ended is told to whoever waits for the reply.
            self.ended = Pin::new(&mut self.connection).poll(cx).is_ready();
        }
    }

    fn is_reusable(&self) -> bool {
        !self.ended && self.sender.is_ready() && !self.slot.0.gone.is_cancelled()
    }
}

/// A connection in use by one request. Dropping it closes it.
pub(crate) struct Held {
    connection: Box<PodConnection>,
    idle_connections: usize,
    pod_idle: Duration,
}

impl Held {
    /// Moves the connection on; the task of `cx` is woken when there is more to do.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) {
        self.connection.drive(cx);
    }

    /// Ready when the pod is gone.
    pub(crate) fn gone(&self) -> WaitForCancellationFutureOwned {
        self.connection.slot.0.gone.clone().cancelled_owned()
    }

    /// Sends `request` and waits for the head of the reply. Drop the connection if this future is
    /// dropped. An error with the request in it means
    /// that nothing of it was sent.
    pub(crate) async fn exchange(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        let mut reply = std::pin::pin!(self.connection.sender.try_send_request(request));
        let connection = &mut self.connection;
        std::future::poll_fn(|cx| {
            connection.drive(cx);
            reply.as_mut().poll(cx)
        })
        .await
    }

    /// The reply is complete: keep the connection if it can serve another request.
    pub(crate) fn give_back(mut self) {
        // The connection needs one more step to see that the reply has ended. Nobody is to be
        // woken for it from now on.
        self.drive(&mut Context::from_waker(Waker::noop()));
        if !self.connection.is_reusable() {
            return;
        }
        let upstream = Arc::clone(&self.connection.slot.0);
        let mut idle = upstream.idle();
        if idle.connections.len() >= self.idle_connections || upstream.gone.is_cancelled() {
            drop(idle);
            return;
        }
        idle.connections
            .push_back((self.connection, Instant::now()));
        if !idle.reaper_runs
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            idle.reaper_runs = true;
            runtime.spawn(Upstream::reap(Arc::downgrade(&upstream), self.pod_idle));
        }
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held")
            .field("address", &self.connection.slot.0.address)
            .field("ended", &self.connection.ended)
            .finish_non_exhaustive()
    }
}
