//! A neighbour that Prepares can be sent to.

use ilp_packet::Prepare;

use crate::answer::Answer;

/// Sends packets to one neighbour: a BTP socket, a group of sockets, or a fake in a test.
pub trait Link: Send + Sync {
    /// Sends a Prepare and returns at once.
    ///
    /// `answer` is completed once, now or later and on any thread, with the neighbour's word: the
    /// connector checks the fulfillment. At [`Answer::deadline`] the link completes it with
    /// [`LinkError::TimedOut`]; a reply after that must have no effect. An answer that is dropped
    /// counts as [`LinkError::Closed`].
    fn send(&self, prepare: Prepare, answer: Answer);
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
    /// The neighbour did not answer before the packet expired. The source gets R00.
    #[error("neighbour did not answer in time")]
    TimedOut,
}

/// Names one attachment of a link to an account, so that an old connection that ends late cannot
/// detach the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Attachment(pub(crate) u64);
