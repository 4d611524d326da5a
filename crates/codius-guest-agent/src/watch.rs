//! Watching for the pod's port to open.
//!
//! ```text
//! waiting ── listens for the host ───────────────▶ done (Listening)
//!    └────── on loopback only for a while ─▶ told ─┘
//! ```
//! The pause between two looks is a tenth of the time waited so far, so that the delay it adds is never
//! more than a tenth, and a program that is slow to start is not slowed down by being watched.

use std::time::Duration;

use codius_guest_protocol::AgentMessage;

use crate::sockets::Reach;

const MIN_PAUSE: Duration = Duration::from_millis(8);
const MAX_PAUSE: Duration = Duration::from_millis(500);
/// Some programs listen on loopback for a moment before they open their real port.
const LOOPBACK_PATIENCE: Duration = Duration::from_secs(1);

/// What has been seen so far. Times are since the containers were started.
#[derive(Debug, Default)]
pub(crate) struct PortWatch {
    loopback_since: Option<Duration>,
    told: Option<AgentMessage>,
}

impl PortWatch {
    /// Takes one look; gives the message that is due, each at most once.
    pub(crate) fn look(&mut self, now: Duration, reach: Reach) -> Option<AgentMessage> {
        let due = match reach {
            Reach::Host => Some(AgentMessage::Listening),
            Reach::Loopback => {
                let since = *self.loopback_since.get_or_insert(now);
                (now.saturating_sub(since) >= LOOPBACK_PATIENCE)
                    .then_some(AgentMessage::ListeningOnLoopbackOnly)
            }
            Reach::Nowhere => {
                self.loopback_since = None;
                None
            }
        }?;
        if self.is_done() || self.told.as_ref() == Some(&due) {
            return None;
        }
        self.told = Some(due.clone());
        Some(due)
    }

    /// The port is open and need not be watched any more.
    pub(crate) fn is_done(&self) -> bool {
        self.told == Some(AgentMessage::Listening)
    }

    /// The last message given, for a host that may have missed it.
    pub(crate) fn state(&self) -> Option<AgentMessage> {
        self.told.clone()
    }

    pub(crate) fn pause(now: Duration) -> Duration {
        (now / 10).clamp(MIN_PAUSE, MAX_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn an_open_port_is_told_once_and_at_once() {
        let mut watch = PortWatch::default();
        assert_eq!(watch.look(millis(0), Reach::Nowhere), None);
        assert_eq!(
            watch.look(millis(8), Reach::Host),
            Some(AgentMessage::Listening)
        );
        assert!(watch.is_done());
        assert_eq!(watch.look(millis(16), Reach::Host), None);
        assert_eq!(watch.look(millis(5000), Reach::Loopback), None);
        assert_eq!(watch.look(millis(9000), Reach::Loopback), None);
        assert_eq!(watch.state(), Some(AgentMessage::Listening));
    }

    #[test]
    fn loopback_is_told_once_when_it_lasts_and_watching_goes_on() {
        let mut watch = PortWatch::default();
        assert_eq!(watch.look(millis(100), Reach::Loopback), None);
        assert_eq!(watch.look(millis(900), Reach::Nowhere), None);
        assert_eq!(watch.look(millis(1000), Reach::Loopback), None);
        assert_eq!(watch.look(millis(1999), Reach::Loopback), None);
        let told = Some(AgentMessage::ListeningOnLoopbackOnly);
        assert_eq!(watch.look(millis(2000), Reach::Loopback), told);
        assert_eq!(watch.look(millis(3000), Reach::Loopback), None);
        assert!(!watch.is_done());
        assert_eq!(
            watch.look(millis(4000), Reach::Host),
            Some(AgentMessage::Listening)
        );
    }

    #[test]
    fn the_pause_grows_with_the_wait() {
        assert_eq!(PortWatch::pause(millis(0)), MIN_PAUSE);
        assert_eq!(PortWatch::pause(millis(1000)), millis(100));
        assert_eq!(PortWatch::pause(millis(1_000_000)), MAX_PAUSE);
    }
}
