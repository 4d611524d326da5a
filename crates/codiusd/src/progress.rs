//! What happens to each lease, for those who watch: the events of
//! `GET /api/v2/leases/{hash}/events`.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use codius_api::{LeaseEvent, LeaseEventKind, Phase, UnixMillis};
use codius_manifest::ManifestHash;
use codius_pod::{StartPhase, StartProgress};
use tokio::{sync::Notify, time::Instant};

use crate::clock::Clock;

/// The most uploads whose progress is kept. Quotes that are never paid for leave one too.
const MAX_KEPT: usize = 4096;

/// The most events that are kept of one lease: the first ones, which tell of its start, and the latest.
const MAX_EVENTS: usize = 64;
const FIRST_EVENTS: usize = 16;

/// The progress of all leases, by hash.
#[derive(Debug)]
pub(crate) struct ProgressBoard {
    clock: Clock,
    by_hash: Mutex<HashMap<ManifestHash, Arc<Progress>>>,
}

impl ProgressBoard {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            clock,
            by_hash: Mutex::default(),
        }
    }

    /// The progress that is going on for a hash; a new one if the last has come to its end.
    pub(crate) fn begin(&self, hash: ManifestHash) -> Arc<Progress> {
        let mut by_hash = self.by_hash.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(progress) = by_hash.get(&hash)
            && !progress.is_over()
        {
            return Arc::clone(progress);
        }
        if by_hash.len() >= MAX_KEPT {
            // Of those that do not run: an upload that was never paid for, or one that is over.
            let idle = by_hash
                .iter()
                .filter(|(_, progress)| !progress.is_running());
            let oldest = idle
                .min_by_key(|(_, progress)| progress.began)
                .map(|(hash, _)| *hash);
            oldest.map(|oldest| by_hash.remove(&oldest));
        }
        let progress = Arc::new(Progress::new(self.clock.clone()));
        by_hash.insert(hash, Arc::clone(&progress));
        progress
    }

    pub(crate) fn get(&self, hash: &ManifestHash) -> Option<Arc<Progress>> {
        self.by_hash
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(hash)
            .cloned()
    }
}

/// The events of one lease, from its upload to its end.
#[derive(Debug)]
pub(crate) struct Progress {
    clock: Clock,
    began: Instant,
    events: Mutex<Vec<LeaseEvent>>,
    grown: Notify,
}

impl Progress {
    fn new(clock: Clock) -> Self {
        Self {
            clock,
            began: Instant::now(),
            events: Mutex::default(),
            grown: Notify::new(),
        }
    }

    pub(crate) fn phase(&self, phase: Phase) {
        self.push(LeaseEventKind::Phase(phase));
    }

    /// Adds an event. Nothing is added after the last one.
    pub(crate) fn push(&self, kind: LeaseEventKind) {
        let elapsed_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let event = LeaseEvent {
            kind,
            at: UnixMillis::new(self.clock.wall()),
            elapsed_ms,
        };
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.last().is_some_and(|last| last.kind.is_last()) {
            return;
        }
        let same_phase = |one: &LeaseEventKind, other: &LeaseEventKind| {
            use LeaseEventKind::Phase as Now;
            matches!(
                (one, other),
                (Now(Phase::Pulling { .. }), Now(Phase::Pulling { .. }))
                    | (Now(Phase::Running { .. }), Now(Phase::Running { .. }))
            ) || matches!(
                (one, other),
                (LeaseEventKind::Container(one), LeaseEventKind::Container(other))
                    if one.container == other.container
            )
        };
        match events.last_mut() {
            // A pull tells of itself often, an expiry moves with every packet of a payment, a program may
            // crash all the time, and only the latest word matters to those who come late.
            Some(last) if same_phase(&last.kind, &event.kind) => last.kind = event.kind,
            Some(last) if last.kind == event.kind => return,
            _ => {
                // A lease that is frozen and paid for again and again has no longer a story.
                if events.len() >= MAX_EVENTS {
                    events.remove(FIRST_EVENTS);
                }
                events.push(event);
            }
        }
        drop(events);
        self.grown.notify_waiters();
    }

    pub(crate) fn is_over(&self) -> bool {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.last().is_some_and(|last| last.kind.is_last())
    }

    fn is_running(&self) -> bool {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        // A drain and what containers do is told beside all else, and changes nothing.
        let last = events.iter().rev().find(|event| {
            !matches!(
                event.kind,
                LeaseEventKind::Draining { .. }
                    | LeaseEventKind::DrainUndone
                    | LeaseEventKind::Container(_)
            )
        });
        last.is_some_and(|last| {
            matches!(
                last.kind,
                LeaseEventKind::Phase(Phase::Running { .. })
                    | LeaseEventKind::Expiring { .. }
                    | LeaseEventKind::Frozen { .. }
            )
        })
    }

    pub(crate) fn follow(self: Arc<Self>) -> Follower {
        Follower {
            progress: self,
            next: 0,
            told: None,
        }
    }
}

/// Reads the events of one lease from the beginning, and those to come.
#[derive(Debug)]
pub(crate) struct Follower {
    progress: Arc<Progress>,
    next: usize,
    /// The event that was told last: a pull, and a running pod, change in their place.
    told: Option<LeaseEventKind>,
}

impl Follower {
    /// The next event; `None` after the last one. Safe to drop while waiting.
    pub(crate) async fn next(&mut self) -> Option<LeaseEvent> {
        loop {
            let progress = Arc::clone(&self.progress);
            let grown = progress.grown.notified();
            tokio::pin!(grown);
            grown.as_mut().enable();
            {
                let events = progress
                    .events
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                if let Some(last) = self.next.checked_sub(1).and_then(|index| events.get(index))
                    && self.told.as_ref().is_some_and(|told| *told != last.kind)
                {
                    self.told = Some(last.kind.clone());
                    return Some(last.clone());
                }
                if let Some(event) = events.get(self.next) {
                    self.next += 1;
                    self.told = Some(event.kind.clone());
                    return Some(event.clone());
                }
                if events.last().is_some_and(|last| last.kind.is_last()) {
                    return None;
                }
            }
            grown.await;
        }
    }
}

/// Tells the phases of a pod's start as events.
#[derive(Debug)]
pub(crate) struct Tell(pub(crate) Arc<Progress>);

impl StartProgress for Tell {
    fn phase(&self, phase: StartPhase) {
        self.0.phase(match phase {
            StartPhase::Pulling { bytes, of } => Phase::Pulling { bytes, of },
            StartPhase::Building => Phase::Building,
            StartPhase::Booting => Phase::Booting,
            StartPhase::Starting => Phase::Starting,
            StartPhase::WaitingForPort { port } => Phase::WaitingForPort { port },
        });
    }
}

#[cfg(test)]
mod tests {
    use codius_api::EndReason;

    use super::*;

    #[tokio::test]
    async fn one_who_comes_late_hears_each_phase_once_and_the_latest_of_a_pull() {
        let progress = Arc::new(Progress::new(Clock::system()));
        progress.phase(Phase::Resolving);
        progress.phase(Phase::Pulling { bytes: 1, of: 9 });
        progress.phase(Phase::Pulling { bytes: 5, of: 9 });
        let mut follower = Arc::clone(&progress).follow();
        assert_eq!(
            follower.next().await.unwrap().kind,
            LeaseEventKind::Phase(Phase::Resolving)
        );
        assert_eq!(
            follower.next().await.unwrap().kind,
            LeaseEventKind::Phase(Phase::Pulling { bytes: 5, of: 9 })
        );
        progress.phase(Phase::Pulling { bytes: 9, of: 9 });
        assert_eq!(
            follower.next().await.unwrap().kind,
            LeaseEventKind::Phase(Phase::Pulling { bytes: 9, of: 9 })
        );
        progress.push(LeaseEventKind::Ended {
            reason: EndReason::Expired,
        });
        progress.phase(Phase::Booting);
        assert!(follower.next().await.unwrap().kind.is_last());
        assert!(follower.next().await.is_none());
    }

    #[tokio::test]
    async fn an_expiry_that_moves_is_told_to_who_follows_and_kept_once() {
        let running = |expires_at| Phase::Running {
            expires_at: UnixMillis::new(expires_at),
            url: "http://pod/".to_owned(),
        };
        let progress = Arc::new(Progress::new(Clock::system()));
        progress.phase(running(1));
        let mut follower = Arc::clone(&progress).follow();
        for expires_at in [1, 2, 3] {
            progress.phase(running(expires_at));
            let told = follower.next().await.unwrap().kind;
            assert_eq!(told, LeaseEventKind::Phase(running(expires_at)));
        }
        assert_eq!(progress.events.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_finished_upload_makes_room_for_a_new_one_and_a_running_one_is_shared() {
        let board = ProgressBoard::new(Clock::system());
        let hash = ManifestHash::from_bytes([7; 32]);
        let first = board.begin(hash);
        assert!(Arc::ptr_eq(&first, &board.begin(hash)));
        first.push(LeaseEventKind::Ended {
            reason: EndReason::Expired,
        });
        assert!(!Arc::ptr_eq(&first, &board.begin(hash)));
    }
}
