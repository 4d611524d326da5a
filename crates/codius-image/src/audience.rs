//! Those who wait for one job and want to see how it goes on.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use codius_pod::PullProgress;

/// Everybody who watches one job. Who joins late is told first how far it is.
#[derive(Default)]
pub(crate) struct Audience(Mutex<Stage>);

#[derive(Default)]
struct Stage {
    listeners: Vec<Arc<dyn PullProgress>>,
    pulled: Option<(u64, u64)>,
    building: bool,
}

impl std::fmt::Debug for Audience {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Audience")
    }
}

impl Audience {
    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn join(&self, listener: Arc<dyn PullProgress>) {
        let mut stage = self.stage();
        if let Some((bytes, of)) = stage.pulled {
            listener.pulled(bytes, of);
        }
        if stage.building {
            listener.building();
        }
        stage.listeners.push(listener);
    }

    pub(crate) fn pulled(&self, bytes: u64, of: u64) {
        let mut stage = self.stage();
        stage.pulled = Some((bytes, of));
        stage
            .listeners
            .iter()
            .for_each(|listener| listener.pulled(bytes, of));
    }

    pub(crate) fn building(&self) {
        let mut stage = self.stage();
        stage.building = true;
        stage
            .listeners
            .iter()
            .for_each(|listener| listener.building());
    }
}
