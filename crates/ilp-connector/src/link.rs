//! A neighbour that Prepares can be sent to.

use async_trait::async_trait;
use ilp_packet::{Prepare, Reply};

/// Sends packets to one neighbour: a BTP socket, a group of sockets, or a fake in a test.
#[async_trait]
pub trait Link: Send + Sync {
    /// Sends a Prepare and waits for its reply.
    ///
    /// The connector drops the future when the packet expires; a reply after that must have no
    /// effect. The reply is the neighbour's word: the connector checks the fulfillment.
    async fn send(&self, prepare: Prepare) -> Result<Reply, LinkError>;
}

/// Why a neighbour gave no ILP reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// Nobody is connected, or the connection closed before the reply came. In the second case the
    /// neighbour may have seen the packet. The source gets T01.
    #[error("neighbour is not connected")]
    Closed,
    /// Too many packets are waiting for this neighbour. It has not seen this one. The source gets
    /// T02.
    #[error("neighbour is busy")]
    Busy,
    /// The neighbour has no such sub-account. The source gets F02.
    #[error("no such destination at this neighbour")]
    NoDestination,
    /// The neighbour answered with something that is no ILP reply. The source gets F02, as from the
    /// JavaScript connector.
    #[error("neighbour did not answer with an ILP packet: {0}")]
    NotIlp(String),
    /// The packet cannot be put on the wire. The neighbour has not seen it. The source gets F01.
    #[error("packet cannot be encoded for this neighbour")]
    Unencodable,
    /// The link gave up waiting before the connector did. The source gets R00.
    #[error("neighbour did not answer in time")]
    TimedOut,
}

/// Names one attachment of a link to an account, so that an old connection that ends late cannot
/// detach the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Attachment(pub(crate) u64);
