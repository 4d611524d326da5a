//! Who answers the Prepares that come in over a socket.

use std::sync::Arc;

use async_trait::async_trait;
use ilp_btp::RequestId;
use ilp_connector::{AccountId, Connector, ReplySink, ReplyTo};
use ilp_packet::{Address, ErrorCode, Prepare, Reject, Reply};

/// Answers the Prepares that a client receives.
///
/// Every request runs in a task of its own, to its end even if the connection closes meanwhile.
#[async_trait]
pub trait RequestHandler: Send + Sync {
    /// Answers one Prepare.
    async fn handle(&self, prepare: Prepare) -> Reply;
}

/// For a client that only sends: every Prepare is rejected with F02.
#[derive(Debug, Clone, Copy, Default)]
pub struct RefuseRequests;

#[async_trait]
impl RequestHandler for RefuseRequests {
    async fn handle(&self, _prepare: Prepare) -> Reply {
        Err(Reject::new(
            ErrorCode::Unreachable,
            None,
            "this client receives no packets",
        ))
    }
}

/// The two kinds of handlers. The connector needs no task for a packet.
#[derive(Clone)]
pub(crate) enum Inbound {
    Connector {
        connector: Connector,
        account: AccountId,
        sub_account: Option<Arc<str>>,
    },
    Handler(Arc<dyn RequestHandler>),
}

impl Inbound {
    /// Lets a Prepare be answered; the reply goes to `sink` with the id of its request.
    pub(crate) fn start(&self, request_id: RequestId, prepare: Prepare, sink: &Arc<dyn ReplySink>) {
        let (sink, token) = (Arc::clone(sink), u64::from(request_id.0));
        match self {
            Self::Connector {
                connector,
                account,
                sub_account,
            } => {
                let reply_to = ReplyTo::sink(sink, token);
                connector.handle(account, sub_account.as_deref(), prepare, reply_to);
            }
            Self::Handler(handler) => {
                let due = Due(Some((sink, token)));
                let handler = handler.clone();
                tokio::spawn(async move {
                    let reply = handler.handle(prepare).await;
                    due.reply(reply);
                });
            }
        }
    }

    /// A Reject by this end.
    pub(crate) fn reject(&self, code: ErrorCode, message: &str) -> Reject {
        Reject::new(code, self.address().as_ref(), message)
    }

    /// Counts a reply that replied to nothing.
    pub(crate) fn note_unexpected_reply(&self) {
        match self {
            Self::Connector {
                connector, account, ..
            } => connector.note_unexpected_reply(account),
            Self::Handler(_) => {}
        }
    }

    fn address(&self) -> Option<Address> {
        match self {
            Self::Connector { connector, .. } => Some(connector.address()),
            Self::Handler(_) => None,
        }
    }
}

/// A reply that a handler owes, even if it panics.
struct Due(Option<(Arc<dyn ReplySink>, u64)>);

impl Due {
    fn reply(mut self, reply: Reply) {
        if let Some((sink, token)) = self.0.take() {
            sink.reply(token, reply);
        }
    }
}

impl Drop for Due {
    fn drop(&mut self) {
        if let Some((sink, token)) = self.0.take() {
            let message = "request handler failed";
            sink.reply(
                token,
                Err(Reject::new(ErrorCode::InternalError, None, message)),
            );
        }
    }
}
