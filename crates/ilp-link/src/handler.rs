//! Who answers the Prepares that come in over a socket.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use ilp_btp::RequestId;
use ilp_connector::{AccountId, Connector, Dispatch};
use ilp_packet::{Address, ErrorCode, Prepare, Reject, Reply};
use tokio::task::JoinHandle;

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

/// The two kinds of handlers. The connector runs its packets in tasks by itself already.
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
    pub(crate) fn start(&self, request_id: RequestId, prepare: Prepare) -> Answering {
        let work = match self {
            Self::Connector {
                connector,
                account,
                sub_account,
            } => Work::Dispatch(connector.dispatch(account, sub_account.as_deref(), prepare)),
            Self::Handler(handler) => {
                let handler = handler.clone();
                Work::Task(tokio::spawn(async move { handler.handle(prepare).await }))
            }
        };
        Answering { request_id, work }
    }

    /// A Reject by this end.
    pub(crate) fn reject(&self, code: ErrorCode, message: &str) -> Reject {
        Reject::new(code, self.address().as_ref(), message)
    }

    fn address(&self) -> Option<Address> {
        match self {
            Self::Connector { connector, .. } => Some(connector.address()),
            Self::Handler(_) => None,
        }
    }
}

/// A request that is being answered.
pub(crate) struct Answering {
    request_id: RequestId,
    work: Work,
}

enum Work {
    Dispatch(Dispatch),
    Task(JoinHandle<Reply>),
}

impl Future for Answering {
    type Output = (RequestId, Reply);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let request_id = self.request_id;
        match &mut self.work {
            Work::Dispatch(dispatch) => Pin::new(dispatch).poll(context),
            Work::Task(task) => Pin::new(task).poll(context).map(|reply| {
                reply.unwrap_or_else(|_| {
                    Err(Reject::new(
                        ErrorCode::InternalError,
                        None,
                        "request handler failed",
                    ))
                })
            }),
        }
        .map(|reply| (request_id, reply))
    }
}
