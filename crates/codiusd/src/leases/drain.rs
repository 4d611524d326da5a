//! What an emptied host means for the leases that run: they are told, and in the end they are ended.

use std::{
    sync::{Arc, PoisonError, Weak},
    time::Duration,
};

use codius_api::LeaseEventKind;
use futures_util::future::join_all;

use super::{End, Leases, Slot};
use crate::drain::Draining;

/// How long a lease that is being started may keep the others of a round waiting.
const START_PATIENCE: Duration = Duration::from_secs(5);

impl Leases {
    /// Tells every owner, by an event and in the log of the program, that the host is being emptied, or
    /// no longer.
    pub(crate) fn announce_drain(&self, draining: Option<Draining>) {
        let (event, text) = match draining {
            Some(Draining { ends_at, .. }) => {
                let end = match ends_at {
                    Some(ends_at) => format!("what still runs ends at {ends_at}"),
                    None => "what is paid runs on".to_owned(),
                };
                let text = format!("this host is being drained and sells no more time; {end}");
                (LeaseEventKind::Draining { ends_at }, text)
            }
            None => (
                LeaseEventKind::DrainUndone,
                "this host is no longer being drained".to_owned(),
            ),
        };
        for slot in self.live() {
            let shown = slot
                .shown
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            let Some(shown) = shown else { continue };
            shown.logs.note(&text, self.clock.wall());
            if let Some(progress) = self.progress.get(&slot.hash) {
                progress.push(event.clone());
            }
        }
    }

    /// Ends every lease that runs: settled, and what is not used is owed. One that is being started is
    /// left to the next call.
    pub(crate) async fn end_all(self: &Arc<Self>) {
        let slots = self.live();
        let ending = slots.iter().map(|slot| async move {
            let Ok(mut state) = tokio::time::timeout(START_PATIENCE, slot.state.lock()).await
            else {
                return;
            };
            // What could not be written is logged there, and settled at the next start.
            let _ = self.end_locked(slot, &mut state, End::HostStopped).await;
        });
        join_all(ending).await;
    }

    fn live(&self) -> Vec<Arc<Slot>> {
        self.slots().values().filter_map(Weak::upgrade).collect()
    }
}
