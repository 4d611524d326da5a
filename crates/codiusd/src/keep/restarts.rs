//! When a host that has ended is started again.
//!
//! ```text
//! ended ── had been ready for SETTLED ────────────────▶ at once
//!       ── had been ready, for less ── first time ────▶ at once
//!       │                           └─ again ─────────▶ after a wait that doubles
//!       └─ was never ready ── below MAX_FAILED_STARTS ▶ after a wait that doubles
//!                           └─ else ──────────────────▶ given up
//! ```

use std::time::Duration;

/// Starts in a row that did not become ready, after which there is no further one.
pub(super) const MAX_FAILED_STARTS: u32 = 10;
/// A host that was ready for so long has not failed at its start.
const SETTLED: Duration = Duration::from_secs(10);
/// The first wait; it doubles with each end in a row.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// The longest wait. All waits until it is given up are about eighty seconds.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What has happened since the last time that all was well.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    /// Ends in a row.
    quick: u32,
    /// Ends in a row before the host was ready.
    failed: u32,
}

impl Restarts {
    /// How long to wait after an end that nobody has asked for; none if it is hopeless.
    pub(super) fn after(&mut self, ready_for: Option<Duration>) -> Option<Duration> {
        match ready_for {
            Some(time) if time >= SETTLED => {
                *self = Self::default();
                return Some(Duration::ZERO);
            }
            Some(_) => self.failed = 0,
            None => self.failed += 1,
        }
        self.quick += 1;
        if self.failed >= MAX_FAILED_STARTS {
            return None;
        }
        if self.quick == 1 && ready_for.is_some() {
            return Some(Duration::ZERO);
        }
        let doublings = self.quick.saturating_sub(1).min(16);
        Some((FIRST_WAIT * 2_u32.pow(doublings)).min(LONGEST_WAIT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Option<Duration> = Some(Duration::from_secs(1));
    const LONG: Option<Duration> = Some(SETTLED);

    #[test]
    fn a_host_that_is_killed_now_and_then_is_started_at_once() {
        let mut restarts = Restarts::default();
        for _ in 0..100 {
            assert_eq!(restarts.after(LONG), Some(Duration::ZERO));
        }
        assert_eq!(restarts.after(SHORT), Some(Duration::ZERO));
    }

    #[test]
    fn one_that_ends_again_and_again_is_waited_for_but_not_given_up() {
        let mut restarts = Restarts::default();
        let waits: Vec<_> = (0..100).map(|_| restarts.after(SHORT)).collect();
        assert_eq!(waits[0], Some(Duration::ZERO));
        assert!(waits.is_sorted(), "{waits:?}");
        assert_eq!(waits[99], Some(LONGEST_WAIT));
        assert_eq!(restarts.after(LONG), Some(Duration::ZERO));
        assert_eq!(restarts.after(SHORT), Some(Duration::ZERO));
    }

    #[test]
    fn one_that_is_never_ready_is_given_up() {
        let mut restarts = Restarts::default();
        let waits: Vec<_> = (0..MAX_FAILED_STARTS)
            .map(|_| restarts.after(None))
            .collect();
        let (last, waits) = waits.split_last().expect("there are some");
        assert!(
            waits.iter().all(Option::is_some) && waits.is_sorted(),
            "{waits:?}"
        );
        assert!(waits.iter().flatten().all(|wait| *wait >= FIRST_WAIT));
        assert_eq!(*last, None);
    }

    #[test]
    fn one_good_start_is_a_new_beginning() {
        let mut restarts = Restarts::default();
        for _ in 0..3 {
            for _ in 1..MAX_FAILED_STARTS {
                assert!(restarts.after(None).is_some());
            }
            assert!(restarts.after(SHORT).is_some());
        }
    }
}
