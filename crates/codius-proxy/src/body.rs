//! Bodies on their way through, frame by frame; nothing is held back.
//!
//! Trap: a body that ends too early must end in an error, not in an end, or the other side takes
//! a part for the whole.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::sync::oneshot;
use tokio::time::Sleep;
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::BoxError;
use crate::limits::Limits;
use crate::patience::Busy;
use crate::pool::{Held, PodGone};
use crate::stall::Stall;

/// A body from a visitor to a pod.
#[derive(Debug)]
pub(crate) enum RequestBody {
    Empty,
    Visitor(Box<VisitorBody>),
}

#[derive(Debug)]
pub(crate) struct VisitorBody {
    incoming: Incoming,
    stall: Stall,
    gate: Option<Gate>,
    movement: Movement,
}

/// Whether a request body has moved since this was last asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Movement(Arc<AtomicBool>);

impl Movement {
    pub(crate) fn seen(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// Holds a body back until the pod says `100 Continue`, or has had time to say so.
#[derive(Debug)]
pub(crate) enum Gate {
    Waiting {
        opened: oneshot::Receiver<()>,
        wait: Pin<Box<Sleep>>,
    },
    Shut,
}

impl RequestBody {
    pub(crate) fn new(incoming: Incoming, gate: Option<Gate>, limits: &Limits) -> Self {
        if incoming.is_end_stream() {
            return Self::Empty;
        }
        Self::Visitor(Box::new(VisitorBody {
            incoming,
            stall: Stall::new(limits.visitor_stall),
            gate,
            movement: Movement::default(),
        }))
    }

    /// To watch the body from outside; `None` if there is none.
    pub(crate) fn movement(&self) -> Option<Movement> {
        match self {
            Self::Empty => None,
            Self::Visitor(body) => Some(body.movement.clone()),
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Self::Visitor(body) = self.get_mut() else {
            return Poll::Ready(None);
        };
        if let Some(gate) = &mut body.gate {
            let Gate::Waiting { opened, wait } = gate else {
                return Poll::Pending;
            };
            match Pin::new(opened).poll(cx) {
                Poll::Ready(Ok(())) => {}
                // The pod has answered for good without asking for the body. It is never sent,
                // and the connection is not used again.
                Poll::Ready(Err(_)) => {
                    body.gate = Some(Gate::Shut);
                    return Poll::Pending;
                }
                Poll::Pending => ready!(wait.as_mut().poll(cx)),
            }
            body.gate = None;
        }
        match Pin::new(&mut body.incoming).poll_frame(cx) {
            Poll::Ready(frame) => {
                body.stall.moved();
                body.movement.0.store(true, Ordering::Relaxed);
                Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)))
            }
            Poll::Pending => body.stall.poll(cx).map(|stalled| Some(Err(stalled.into()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Visitor(body) => body.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Visitor(body) => body.incoming.size_hint(),
        }
    }
}

/// A body from a pod to a visitor. Moves its connection to the pod on whenever it is asked for
/// more, and gives the connection back when it has ended.
#[derive(Debug)]
pub(crate) struct PodBody {
    incoming: Incoming,
    /// `None` when the connection is driven elsewhere (refused upgrades) or already given back.
    held: Option<Held>,
    silence: Duration,
    waits: Option<Box<Waits>>,
}

/// Created at the first wait; most bodies have no wait.
#[derive(Debug)]
struct Waits {
    stall: Stall,
    gone: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl PodBody {
    pub(crate) fn new(incoming: Incoming, mut held: Option<Held>, limits: &Limits) -> Self {
        if incoming.is_end_stream()
            && let Some(held) = held.take()
        {
            held.give_back();
        }
        Self {
            incoming,
            held,
            silence: limits.pod_silence,
            waits: None,
        }
    }

    fn poll_pod(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(cx) {
            return Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)));
        }
        if let Some(held) = &mut self.held {
            // Asking told the connection that a frame is wanted; now let it read one.
            held.drive(cx);
        }
        Pin::new(&mut self.incoming)
            .poll_frame(cx)
            .map(|frame| frame.map(|frame| frame.map_err(BoxError::from)))
    }

    fn poll_waits(&mut self, cx: &mut Context<'_>) -> Poll<BoxError> {
        let waits = self.waits.get_or_insert_with(|| {
            Box::new(Waits {
                stall: Stall::new(self.silence),
                gone: self.held.as_ref().map(|held| Box::pin(held.gone())),
            })
        });
        if let Some(gone) = &mut waits.gone
            && gone.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(PodGone.into());
        }
        waits.stall.poll(cx).map(BoxError::from)
    }
}

impl Body for PodBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let body = self.get_mut();
        match body.poll_pod(cx) {
            Poll::Pending => body.poll_waits(cx).map(|error| Some(Err(error))),
            Poll::Ready(frame) => {
                if let Some(waits) = &mut body.waits {
                    waits.stall.moved();
                }
                let ended = match &frame {
                    None => true,
                    Some(Ok(_)) => body.incoming.is_end_stream(),
                    Some(Err(_)) => {
                        body.held = None;
                        false
                    }
                };
                if ended && let Some(held) = body.held.take() {
                    held.give_back();
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// What a visitor receives: from a pod, from the API, or a refusal of the proxy.
#[derive(Debug)]
pub struct ReplyBody<B> {
    pub(crate) source: Source<B>,
    pub(crate) _busy: Busy,
}

#[derive(Debug)]
pub(crate) enum Source<B> {
    Pod(PodBody),
    Api(Pin<Box<B>>),
    Refusal(Full<Bytes>),
}

impl<B> Body for ReplyBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.get_mut().source {
            Source::Pod(body) => Pin::new(body).poll_frame(cx),
            Source::Api(body) => body
                .as_mut()
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(Into::into))),
            Source::Refusal(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(|never| match never {}))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Pod(body) => body.is_end_stream(),
            Source::Api(body) => body.is_end_stream(),
            Source::Refusal(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Pod(body) => body.size_hint(),
            Source::Api(body) => body.size_hint(),
            Source::Refusal(body) => body.size_hint(),
        }
    }
}
