//! What a visitor is told when a request cannot be served by a pod.

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use thiserror::Error;

/// Why the proxy itself answers. Nothing has changed on the host in any of these cases.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The label is well formed and names no pod here. The visitor may have the wrong host.
    #[error("no pod with that hash found. hash={0}")]
    UnknownPod(String),
    /// The pod is being started; coming back helps.
    #[error("pod is not ready yet. hash={0}")]
    NotReady(String),
    /// The money for the pod is used up. Whoever pays for it lets it go on.
    #[error("the money for this pod is used up; it is held still until somebody pays. hash={0}")]
    Frozen(String),
    /// Nothing listens at the pod's port, or the pod just went. The uploader can fix it.
    #[error("pod does not accept connections. hash={0}")]
    Refused(String),
    /// As many connections as allowed are open to this pod; coming back helps.
    #[error("pod has too many connections. hash={0}")]
    Busy(String),
    /// No connection to the pod in time.
    #[error("pod did not accept the connection in time. hash={0}")]
    ConnectTimeout(String),
    /// No reply in time; the pod may have acted on the request.
    #[error("pod did not answer in time. hash={0}")]
    HeadTimeout(String),
    /// The pod's answer is not HTTP, or it hung up; it may have acted on the request.
    #[error("pod gave a broken answer. hash={0}")]
    BrokenReply(String),
    /// An upgrade was asked of the host itself, which offers none there.
    #[error("only pods can be upgraded to")]
    UpgradeWithoutPod,
    /// The visitor asked for a tunnel to somewhere else.
    #[error("method CONNECT is not supported")]
    Connect,
    /// No host, two hosts, or one that is not a host name.
    #[error("request must name exactly one host")]
    BadHost,
    /// A transfer coding other than `chunked`, which we could not pass on unchanged.
    #[error("only the transfer coding \"chunked\" is supported")]
    TransferCoding,
}

impl Failure {
    fn status(&self) -> StatusCode {
        match self {
            Self::UnknownPod(_) => StatusCode::NOT_FOUND,
            Self::NotReady(_) | Self::Frozen(_) | Self::Refused(_) | Self::Busy(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::ConnectTimeout(_) | Self::HeadTimeout(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::BrokenReply(_) | Self::UpgradeWithoutPod => StatusCode::BAD_GATEWAY,
            Self::Connect => StatusCode::METHOD_NOT_ALLOWED,
            Self::BadHost => StatusCode::BAD_REQUEST,
            Self::TransferCoding => StatusCode::NOT_IMPLEMENTED,
        }
    }

    /// The reply, in the error format of the version 1 API.
    pub(crate) fn reply(&self) -> Response<Bytes> {
        let status = self.status();
        let reason = status.canonical_reason().unwrap_or_default();
        // Only labels of a-z2-7 and texts of ours get in, so nothing needs escaping but quotes.
        let message = self.to_string().replace('"', "\\\"");
        let body = format!(
            r#"{{"statusCode":{},"error":"{reason}","message":"{message}"}}"#,
            status.as_u16()
        );
        let mut reply = Response::new(Bytes::from(body));
        *reply.status_mut() = status;
        let headers = reply.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/json; charset=utf-8"),
        );
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        match self {
            Self::NotReady(_) | Self::Busy(_) => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
            Self::Connect => {
                headers.insert(ALLOW, HeaderValue::from_static(""));
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            // What follows on such a connection cannot be trusted to be a request of the same
            // visitor.
            Self::BadHost | Self::TransferCoding => {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Self::UnknownPod(_)
            | Self::Refused(_)
            | Self::Frozen(_)
            | Self::ConnectTimeout(_)
            | Self::HeadTimeout(_)
            | Self::BrokenReply(_)
            | Self::UpgradeWithoutPod => {}
        }
        reply
    }
}
