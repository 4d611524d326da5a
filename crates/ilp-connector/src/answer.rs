//! What a link completes when its neighbour has answered.

use std::fmt;

use ilp_packet::Reply;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::link::LinkError;
use crate::passage::Passage;

/// Waits for the reply of a neighbour. Dropping it completes it with [`LinkError::Closed`].
pub struct Answer(Option<Waiting>);

enum Waiting {
    Passage(Box<Passage>),
    Future(oneshot::Sender<Result<Reply, LinkError>>, Instant),
}

impl Answer {
    pub(crate) fn passage(passage: Passage) -> Self {
        Self(Some(Waiting::Passage(Box::new(passage))))
    }

    /// For those who send without a connector and wait in a task.
    #[must_use]
    pub fn future(deadline: Instant) -> (Self, oneshot::Receiver<Result<Reply, LinkError>>) {
        let (sender, receiver) = oneshot::channel();
        (Self(Some(Waiting::Future(sender, deadline))), receiver)
    }

    /// When the packet expires for the neighbour.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        match &self.0 {
            Some(Waiting::Passage(passage)) => passage.deadline(),
            Some(Waiting::Future(_, deadline)) => *deadline,
            // Not seen from outside: only `complete` and `drop` empty it.
            None => Instant::now(),
        }
    }

    /// Says what the neighbour answered, or why it did not.
    pub fn complete(mut self, result: Result<Reply, LinkError>) {
        self.finish(result);
    }

    fn finish(&mut self, result: Result<Reply, LinkError>) {
        match self.0.take() {
            Some(Waiting::Passage(passage)) => passage.answered(result),
            // Whoever waited may have given up.
            Some(Waiting::Future(sender, _)) => drop(sender.send(result)),
            None => {}
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.finish(Err(LinkError::Closed));
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Answer(…)")
    }
}
