//! Word of the end of a lease, before it comes: an event, a line in the pod's output, and a file in the pod
//! (`/dev/codius/lease.json`) that has the latest expiry whenever it moves.
//!
//! A lease is announced once at each of the times that the operator has set, when its remaining time falls
//! below; when money is added, those that lie ahead again are announced again.

use std::time::Duration;

use codius_api::LeaseEventKind;
use codius_pod::PodNotice;

use super::{Leases, Running, Slot};

/// How long before the end the next word is due: the largest of `times` (in any order) below what was said
/// last.
pub(super) fn next(times: &[Duration], said: Option<Duration>) -> Option<Duration> {
    let ahead = times
        .iter()
        .filter(|time| said.is_none_or(|said| **time < said));
    ahead.max().copied()
}

/// What counts as said to a lease that has so much time left: there is no use in saying that less than an
/// hour is left to who has just paid for a minute.
pub(super) fn said(times: &[Duration], remaining: Duration) -> Option<Duration> {
    let passed = times.iter().filter(|time| **time >= remaining);
    passed.min().copied()
}

impl Leases {
    /// Says how long it is until the end.
    pub(super) fn announce(&self, slot: &Slot, running: &Running) {
        let expires_at = self.expiry(&running.lease, running.balance);
        let remaining_ms = running
            .lease
            .remaining_ms(self.clock.steady(), running.balance);
        let seconds = remaining_ms.div_ceil(1000);
        tracing::info!(pod = %slot.hash, expires = %expires_at, seconds, "expires soon");
        let text = format!("paid until {expires_at}, for {seconds} s more");
        running.pod.logs.note(&text, self.clock.wall());
        if let Some(progress) = self.progress.get(&slot.hash) {
            progress.push(LeaseEventKind::Expiring { expires_at });
        }
    }

    /// Tells the programs in a pod when it expires.
    pub(super) fn tell_pod(&self, slot: &Slot, running: &Running) {
        let expires_at = self.expiry(&running.lease, running.balance);
        let notice = PodNotice {
            expires_at_unix_ms: expires_at.get(),
        };
        self.supervisor.tell(&slot.hash, notice);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_said_once_and_again_when_it_lies_ahead_again() {
        let secs = Duration::from_secs;
        let times = [secs(60), secs(3600), secs(600)];
        // Paid for a day.
        assert_eq!(said(&times, secs(86_400)), None);
        assert_eq!(next(&times, None), Some(secs(3600)));
        assert_eq!(next(&times, Some(secs(3600))), Some(secs(600)));
        assert_eq!(next(&times, Some(secs(60))), None);
        // Paid for five minutes, then for five more.
        assert_eq!(said(&times, secs(300)), Some(secs(600)));
        assert_eq!(said(&times, secs(601)), Some(secs(3600)));
        // Streamed by the second, a few seconds ahead: nothing is ever said.
        assert_eq!(next(&times, said(&times, secs(10))), None);
        assert_eq!(next(&[], None), None);
    }
}
