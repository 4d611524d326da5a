//! How the containers of a pod are: what their driver says, and what is told to others.

use std::time::Duration;

use codius_guest_protocol::ContainerExit;

/// A container, as a driver sees it at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContainerState {
    pub now: Activity,
    /// For how long that has been so.
    pub since: Duration,
    /// How often its program was started again.
    pub restarts: u32,
    /// How the last program ended, if one has.
    pub last_exit: Option<ContainerExit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    Running,
    /// Its program is started again after that.
    Waiting {
        next: Duration,
    },
    Exited,
}

/// A container, by the host's clock: times are in milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerView {
    /// As the manifest names it.
    pub id: String,
    pub activity: ContainerActivity,
    /// Since when that is so, if it is known.
    pub since_unix_ms: Option<u64>,
    pub restarts: u32,
    pub last_exit: Option<ContainerExit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerActivity {
    Starting,
    Running,
    /// Its program has ended and is started again at this time.
    Waiting {
        next_unix_ms: u64,
    },
    Exited,
}

impl ContainerView {
    pub(crate) fn starting(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            activity: ContainerActivity::Starting,
            since_unix_ms: None,
            restarts: 0,
            last_exit: None,
        }
    }

    /// The containers of its pod have been started.
    pub(crate) fn started(&mut self, now_unix_ms: u64) {
        if self.activity == ContainerActivity::Starting {
            self.activity = ContainerActivity::Running;
            self.since_unix_ms = Some(now_unix_ms);
        }
    }

    pub(crate) fn stands(&mut self, state: ContainerState, now_unix_ms: u64) {
        let since = now_unix_ms.saturating_sub(millis(state.since));
        // A second word about the same state: it cannot be newer than the first.
        let same = match (self.activity, state.now) {
            (ContainerActivity::Running, Activity::Running)
            | (ContainerActivity::Exited, Activity::Exited)
            | (ContainerActivity::Waiting { .. }, Activity::Waiting { .. }) => {
                self.since_unix_ms.is_some() && self.restarts == state.restarts
            }
            _ => false,
        };
        if same {
            self.since_unix_ms = self.since_unix_ms.min(Some(since));
            return;
        }
        self.since_unix_ms = Some(since);
        self.restarts = state.restarts;
        self.last_exit = state.last_exit;
        self.activity = match state.now {
            Activity::Running => ContainerActivity::Running,
            Activity::Waiting { next } => ContainerActivity::Waiting {
                next_unix_ms: now_unix_ms.saturating_add(millis(next)),
            },
            Activity::Exited => ContainerActivity::Exited,
        };
    }

    /// Its program has ended and is not started again.
    pub(crate) fn exited(&mut self, exit: ContainerExit, now_unix_ms: u64) {
        if self.activity != ContainerActivity::Exited {
            self.activity = ContainerActivity::Exited;
            self.since_unix_ms = Some(now_unix_ms);
        }
        self.last_exit = Some(exit);
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_by_the_hosts_clock_and_stay_when_a_state_is_told_again() {
        let mut view = ContainerView::starting("app");
        view.started(1000);
        assert_eq!(view.activity, ContainerActivity::Running);
        let exit = Some(ContainerExit::Code(3));
        let waiting = ContainerState {
            now: Activity::Waiting {
                next: Duration::from_millis(400),
            },
            since: Duration::from_millis(100),
            restarts: 0,
            last_exit: exit,
        };
        view.stands(waiting, 2000);
        let expected = ContainerView {
            id: "app".to_owned(),
            activity: ContainerActivity::Waiting { next_unix_ms: 2400 },
            since_unix_ms: Some(1900),
            restarts: 0,
            last_exit: exit,
        };
        assert_eq!(view, expected);
        view.stands(waiting, 2100);
        assert_eq!(view, expected);
        let again = ContainerState {
            now: Activity::Running,
            since: Duration::ZERO,
            restarts: 1,
            last_exit: exit,
        };
        view.stands(again, 2500);
        assert_eq!((view.restarts, view.since_unix_ms), (1, Some(2500)));
        view.exited(ContainerExit::Code(0), 3000);
        view.exited(ContainerExit::Code(0), 4000);
        assert_eq!(view.since_unix_ms, Some(3000));
    }

    #[test]
    fn a_guest_cannot_make_times_overflow() {
        let mut view = ContainerView::starting("app");
        let state = ContainerState {
            now: Activity::Waiting {
                next: Duration::MAX,
            },
            since: Duration::MAX,
            restarts: u32::MAX,
            last_exit: None,
        };
        view.stands(state, 5);
        assert_eq!(view.since_unix_ms, Some(0));
    }
}
