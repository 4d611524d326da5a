//! When a container's program is started again: what its policy says of an exit, and how long to wait.
//!
//! ```text
//! runs ── ends, and the policy says so ──▶ waits 1 s, 2 s, 4 s … 60 s ──▶ runs
//!   └── for RESET without an end ──▶ the next wait is 1 s again
//! ```
//! Kubernetes waits 10 s to 300 s; time is paid for here by the second, so it is less.

use std::time::{Duration, Instant};

use codius_guest_protocol::{ContainerExit, ContainerStanding, RestartPolicy, Standing};

const FIRST_WAIT: Duration = Duration::from_secs(1);
const MAX_WAIT: Duration = Duration::from_secs(60);
/// A program that has run for so long is taken for a sound one.
const RESET: Duration = Duration::from_secs(120);

/// What a container has gone through.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Restarts {
    policy: RestartPolicy,
    count: u32,
    /// Ends in a row, each soon after its start.
    in_a_row: u32,
    last_exit: Option<ContainerExit>,
    /// Since when it is as it is.
    since: Instant,
    /// When it is started again; none while it runs, or if it is not.
    next: Option<Instant>,
}

impl Restarts {
    pub(crate) fn new(policy: RestartPolicy, now: Instant) -> Self {
        Self {
            policy,
            count: 0,
            in_a_row: 0,
            last_exit: None,
            since: now,
            next: None,
        }
    }

    /// The program has ended. Says whether it is to be started again.
    pub(crate) fn ended(&mut self, exit: ContainerExit, now: Instant) -> bool {
        let again = match self.policy {
            RestartPolicy::No => false,
            RestartPolicy::OnFailure => exit != ContainerExit::Code(0),
            RestartPolicy::Always => true,
        };
        if now.saturating_duration_since(self.since) >= RESET {
            self.in_a_row = 0;
        }
        self.last_exit = Some(exit);
        self.since = now;
        self.next = again.then(|| now + wait(self.in_a_row));
        self.in_a_row = self.in_a_row.saturating_add(1);
        again
    }

    /// It is started again, now.
    pub(crate) fn started_again(&mut self, now: Instant) {
        self.count = self.count.saturating_add(1);
        self.since = now;
        self.next = None;
    }

    /// It is not started again any more.
    pub(crate) fn give_up(&mut self) {
        self.policy = RestartPolicy::No;
        self.next = None;
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.next
    }

    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    pub(crate) fn standing(&self, container: u16, runs: bool, now: Instant) -> ContainerStanding {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        ContainerStanding {
            container,
            now: match self.next {
                Some(next) => Standing::Waiting {
                    next_ms: millis(next.saturating_duration_since(now)),
                },
                None if runs => Standing::Running,
                None => Standing::Exited,
            },
            for_ms: millis(now.saturating_duration_since(self.since)),
            restarts: self.count,
            last_exit: self.last_exit,
        }
    }
}

fn wait(in_a_row: u32) -> Duration {
    let factor = 1_u32.checked_shl(in_a_row).filter(|&factor| factor > 0);
    FIRST_WAIT
        .saturating_mul(factor.unwrap_or(u32::MAX))
        .min(MAX_WAIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The waits of a program that ends each time after it has run for so long.
    fn waits(policy: RestartPolicy, exit: ContainerExit, runs: &[u64]) -> Vec<Option<u64>> {
        let mut now = Instant::now();
        let mut restarts = Restarts::new(policy, now);
        let mut waits = Vec::new();
        for &run in runs {
            now += Duration::from_secs(run);
            restarts.ended(exit, now);
            let next = restarts.next();
            waits.push(next.map(|next| (next - now).as_secs()));
            if let Some(next) = next {
                now = next;
                restarts.started_again(now);
            }
        }
        waits
    }

    #[test]
    fn a_crash_loop_becomes_slow_and_is_forgiven_after_a_sound_run() {
        let always = |runs: &[u64]| -> Vec<u64> {
            let waits = waits(RestartPolicy::Always, ContainerExit::Code(0), runs);
            waits.into_iter().flatten().collect()
        };
        assert_eq!(always(&[0; 9]), [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(always(&[0, 0, 119, 120, 0]), [1, 2, 4, 1, 2]);
        assert_eq!(wait(u32::MAX), MAX_WAIT);
    }

    #[test]
    fn the_policy_decides_by_the_exit() {
        let again = |policy, exit| waits(policy, exit, &[0]) != [None];
        for exit in [
            ContainerExit::Code(1),
            ContainerExit::Signal(9),
            ContainerExit::OutOfMemory,
        ] {
            assert!(!again(RestartPolicy::No, exit));
            assert!(again(RestartPolicy::OnFailure, exit));
            assert!(again(RestartPolicy::Always, exit));
        }
        assert!(!again(RestartPolicy::OnFailure, ContainerExit::Code(0)));
        assert!(again(RestartPolicy::Always, ContainerExit::Code(0)));
    }

    #[test]
    fn how_it_stands_is_told_in_full() {
        let began = Instant::now();
        let mut restarts = Restarts::new(RestartPolicy::OnFailure, began);
        let at = |secs| began + Duration::from_secs(secs);
        let exit = ContainerExit::Signal(11);
        assert!(restarts.ended(exit, at(5)));
        let standing = |now, for_ms, restarts| ContainerStanding {
            container: 3,
            now,
            for_ms,
            restarts,
            last_exit: Some(exit),
        };
        let waiting = Standing::Waiting { next_ms: 1000 };
        assert_eq!(restarts.standing(3, false, at(5)), standing(waiting, 0, 0));
        restarts.started_again(at(6));
        assert_eq!(
            restarts.standing(3, true, at(9)),
            standing(Standing::Running, 3000, 1)
        );
    }
}
