//! Where the reply to a packet goes: to the socket that the packet came from, or to a future.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use ilp_packet::{ErrorCode, Reject, Reply};
use tokio::sync::oneshot;

/// Takes replies to packets of one neighbour.
pub trait ReplySink: Send + Sync {
    /// Takes the reply to the packet that was handed in with `token`. Called once for each packet,
    /// from any thread; must not block.
    fn reply(&self, token: u64, reply: Reply);
}

/// Where one reply goes.
pub struct ReplyTo(Target);

enum Target {
    Sink(Arc<dyn ReplySink>, u64),
    Future(oneshot::Sender<Reply>),
}

impl ReplyTo {
    /// To a sink, with the token by which it knows its packet.
    #[must_use]
    pub fn sink(sink: Arc<dyn ReplySink>, token: u64) -> Self {
        Self(Target::Sink(sink, token))
    }

    pub(crate) fn future() -> (Self, Dispatch) {
        let (sender, receiver) = oneshot::channel();
        (Self(Target::Future(sender)), Dispatch(receiver))
    }

    pub(crate) fn send(self, reply: Reply) {
        match self.0 {
            Target::Sink(sink, token) => sink.reply(token, reply),
            // Whoever waited may have gone away; the packet is settled all the same.
            Target::Future(sender) => drop(sender.send(reply)),
        }
    }
}

impl fmt::Debug for ReplyTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Target::Sink(..) => "ReplyTo::sink",
            Target::Future(_) => "ReplyTo::future",
        })
    }
}

/// The reply to a packet, as a future. Dropping it does not stop the packet.
#[derive(Debug)]
pub struct Dispatch(oneshot::Receiver<Reply>);

impl Future for Dispatch {
    type Output = Reply;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Reply> {
        Pin::new(&mut self.0).poll(context).map(|reply| {
            // The packet's task panicked, or the runtime is going down.
            reply.unwrap_or_else(|_| {
                Err(Reject::new(
                    ErrorCode::InternalError,
                    None,
                    "packet handling failed",
                ))
            })
        })
    }
}
