//! One request to a pod, and its reply.
//!
//! Trap: a request may be sent a second time only if the pod cannot have acted on the first. That
//! is certain when nothing of it was sent, and harmless when the method is idempotent and the
//! request has no body (RFC 9110, 9.2.2); otherwise the visitor has to decide.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use http::header::EXPECT;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::body::{Gate, Movement, PodBody, RequestBody};
use crate::failure::Failure;
use crate::headers::{self, Origin};
use crate::host::Label;
use crate::limits::Limits;
use crate::patience::{Activity, Patience};
use crate::pool::{ConnectError, Held, Pool, Upstream};
use crate::tunnel::Tunnel;

/// A pooled connection that was idle for less than this is not suspected to be closed by the pod
/// at this very moment, so no copy of the request is kept for a second try.
const FRESH: Duration = Duration::from_millis(200);

/// Everything a forwarded request needs of its surroundings.
pub(crate) struct Forwarder<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) limits: &'a Arc<Limits>,
    pub(crate) tunnels: &'a TaskTracker,
    pub(crate) origin: &'a Origin,
    pub(crate) cut: &'a CancellationToken,
    pub(crate) patience: &'a Mutex<Patience>,
    pub(crate) activity: &'a Arc<Activity>,
}

impl Forwarder<'_> {
    fn patience(&self, action: impl FnOnce(&mut Patience)) {
        action(&mut self.patience.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Sends `request` to the pod at `address`.
    pub(crate) async fn forward(
        &self,
        label: Label,
        address: SocketAddr,
        mut parts: Parts,
        incoming: Incoming,
    ) -> Result<Response<PodBody>, Failure> {
        let label = || label.as_str().to_owned();
        let upgrade = headers::upgrade(&parts.headers);
        let visitor = upgrade
            .is_some()
            .then(|| parts.extensions.remove::<hyper::upgrade::OnUpgrade>())
            .flatten();
        headers::remove_hop_by_hop(&mut parts.headers)?;
        self.origin.write(&mut parts.headers);
        parts.uri = origin_form(parts.uri);
        parts.version = Version::HTTP_11;
        parts.extensions.clear();

        let gate = gate(&mut parts, &incoming, self.limits);
        let body = RequestBody::new(incoming, gate, self.limits);
        let upstream = self.pool.upstream(address);

        if let (Some(protocol), Some(visitor)) = (upgrade, visitor) {
            headers::write_upgrade(&mut parts.headers, protocol);
            let request = Request::from_parts(parts, body);
            return self.upgrade(&upstream, request, visitor, &label).await;
        }

        let mut request = Request::from_parts(parts, body);
        while let Some((mut held, idle)) = self.pool.take(&upstream) {
            let copy = (idle > FRESH).then(|| copy_if_harmless(&request)).flatten();
            match self.exchange(&mut held, request, &label).await {
                Ok(reply) => return self.accept(reply, Some(held), &label),
                Err(Unanswered::NothingSent(unsent)) => request = *unsent,
                Err(Unanswered::Failed(Failure::BrokenReply(label))) => {
                    request = copy.ok_or(Failure::BrokenReply(label))?;
                }
                Err(Unanswered::Failed(failure)) => return Err(failure),
            }
        }
        let mut held = self
            .pool
            .connect(&upstream)
            .await
            .map_err(|error| connect_failure(&error, &label))?;
        match self.exchange(&mut held, request, &label).await {
            Ok(reply) => self.accept(reply, Some(held), &label),
            Err(Unanswered::NothingSent(_)) => Err(Failure::BrokenReply(label())),
            Err(Unanswered::Failed(failure)) => Err(failure),
        }
    }

    async fn exchange(
        &self,
        held: &mut Held,
        request: Request<RequestBody>,
        label: &impl Fn() -> String,
    ) -> Result<Response<Incoming>, Unanswered> {
        let gone = held.gone();
        let movement = request.body().movement();
        // Every early return below drops `held` unfinished, which closes its connection.
        let mut exchange = std::pin::pin!(held.exchange(request));
        let mut patience = Patience::default();
        self.patience(|kept| std::mem::swap(kept, &mut patience));
        patience.renew();
        let quick = std::future::poll_fn(|cx| match exchange.as_mut().poll(cx) {
            Poll::Ready(reply) => Poll::Ready(Some(reply)),
            Poll::Pending => patience.poll_slow(cx).map(|()| None),
        })
        .await;
        self.patience(|kept| *kept = patience);
        let reply = match quick {
            Some(reply) => reply,
            None => tokio::select! {
                biased;
                reply = exchange => reply,
                () = gone => return Err(Unanswered::Failed(Failure::Refused(label()))),
                () = head_deadline(self.limits, movement) => {
                    return Err(Unanswered::Failed(Failure::HeadTimeout(label())));
                }
            },
        };
        reply.map_err(|mut error| match error.take_message() {
            Some(request) => Unanswered::NothingSent(Box::new(request)),
            None => {
                tracing::debug!(error = %error.error(), "pod gave no answer");
                Unanswered::Failed(Failure::BrokenReply(label()))
            }
        })
    }

    fn accept(
        &self,
        reply: Response<Incoming>,
        held: Option<Held>,
        label: &impl Fn() -> String,
    ) -> Result<Response<PodBody>, Failure> {
        let (mut parts, incoming) = reply.into_parts();
        if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            // Nobody asked for it, so nobody could speak it.
            return Err(Failure::BrokenReply(label()));
        }
        clean_reply(&mut parts.headers, label)?;
        parts.version = Version::HTTP_11;
        parts.extensions.clear();
        Ok(Response::from_parts(
            parts,
            PodBody::new(incoming, held, self.limits),
        ))
    }

    /// A request that may end in a tunnel has a connection of its own, driven by its own task.
    async fn upgrade(
        &self,
        upstream: &Arc<Upstream>,
        request: Request<RequestBody>,
        visitor: hyper::upgrade::OnUpgrade,
        label: &impl Fn() -> String,
    ) -> Result<Response<PodBody>, Failure> {
        let pod_gone = upstream.gone();
        let late = head_deadline(self.limits, request.body().movement());
        let (stream, slot) = self
            .pool
            .connect_raw(upstream)
            .await
            .map_err(|error| connect_failure(&error, label))?;
        let (mut sender, connection) = self
            .pool
            .client()
            .handshake::<_, RequestBody>(TokioIo::new(stream))
            .await
            .map_err(|_| Failure::BrokenReply(label()))?;
        let (gone, cut) = (pod_gone.clone(), self.cut.clone());
        self.tunnels.spawn(async move {
            tokio::select! {
                ended = connection.with_upgrades() => if let Err(error) = ended {
                    tracing::debug!(%error, "connection for an upgrade broke");
                },
                () = gone.cancelled() => {}
                () = cut.cancelled() => {}
            }
        });
        let mut reply = tokio::select! {
            reply = sender.send_request(request) => reply.map_err(|error| {
                tracing::debug!(%error, "pod gave no answer to an upgrade");
                Failure::BrokenReply(label())
            })?,
            () = pod_gone.cancelled() => return Err(Failure::Refused(label())),
            () = late => return Err(Failure::HeadTimeout(label())),
        };
        if reply.status() != StatusCode::SWITCHING_PROTOCOLS {
            // The pod declined, with an ordinary reply.
            return self.accept(reply, None, label);
        }
        let Some(protocol) = headers::upgrade(reply.headers()) else {
            return Err(Failure::BrokenReply(label()));
        };
        let tunnel = Tunnel {
            visitor,
            pod: hyper::upgrade::on(&mut reply),
            slot,
            _busy: self.activity.begin(),
            pod_gone: pod_gone.clone(),
            cut: self.cut.clone(),
            silence: self.limits.tunnel_silence,
        };
        self.tunnels.spawn(tunnel.run());
        let (mut parts, incoming) = reply.into_parts();
        clean_reply(&mut parts.headers, label)?;
        headers::write_upgrade(&mut parts.headers, protocol);
        parts.extensions.clear();
        Ok(Response::from_parts(
            parts,
            PodBody::new(incoming, None, self.limits),
        ))
    }
}

enum Unanswered {
    NothingSent(Box<Request<RequestBody>>),
    Failed(Failure),
}

fn clean_reply(headers: &mut HeaderMap, label: &impl Fn() -> String) -> Result<(), Failure> {
    headers::remove_hop_by_hop(headers).map_err(|_| Failure::BrokenReply(label()))
}

fn connect_failure(error: &ConnectError, label: &impl Fn() -> String) -> Failure {
    tracing::debug!(%error, "no connection to a pod");
    match error {
        ConnectError::Busy => Failure::Busy(label()),
        ConnectError::Timeout => Failure::ConnectTimeout(label()),
        ConnectError::Refused(_) => Failure::Refused(label()),
        ConnectError::Handshake(_) => Failure::BrokenReply(label()),
    }
}

/// The time for the head of a reply, counted anew while a request body moves: a large upload may
/// take longer than any pod should take to answer.
async fn head_deadline(limits: &Limits, body: Option<Movement>) {
    loop {
        tokio::time::sleep(limits.pod_head).await;
        if !body.as_ref().is_some_and(Movement::seen) {
            return;
        }
    }
}

fn origin_form(uri: Uri) -> Uri {
    if uri.authority().is_none() {
        return uri;
    }
    let path = uri
        .into_parts()
        .path_and_query
        .unwrap_or_else(|| PathAndQuery::from_static("/"));
    Uri::from(path)
}

/// Passes the expectation `100-continue` through: the visitor is told to send its body when the
/// pod asks for it, not before.
fn gate(parts: &mut Parts, incoming: &Incoming, limits: &Limits) -> Option<Gate> {
    let expects = parts
        .headers
        .get(EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    if !expects || incoming.is_end_stream() {
        parts.headers.remove(EXPECT);
        return None;
    }
    let (open, opened) = oneshot::channel();
    let open = Mutex::new(Some(open));
    let mut carrier = Request::new(());
    hyper::ext::on_informational(&mut carrier, move |reply| {
        if reply.status() == StatusCode::CONTINUE
            && let Some(open) = open.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            // The body may be gone already; then nobody waits.
            let _ = open.send(());
        }
    });
    parts
        .extensions
        .extend(std::mem::take(carrier.extensions_mut()));
    Some(Gate::Waiting {
        opened,
        wait: Box::pin(tokio::time::sleep(limits.continue_wait)),
    })
}

/// A second copy of a request that may be sent twice.
fn copy_if_harmless(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    let idempotent = matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    );
    if !idempotent || !request.body().is_end_stream() {
        return None;
    }
    let mut copy = Request::new(RequestBody::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}
