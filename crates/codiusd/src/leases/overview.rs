//! All leases that run, for the operator.

use std::sync::{Arc, PoisonError, Weak};

use codius_api::UnixMillis;
use codius_ledger::{Millis, Rate, Seconds};
use codius_manifest::ManifestHash;

use super::{Leases, Shown};

impl Leases {
    /// Those that run, in the order of their hashes.
    pub(crate) fn overview(&self) -> Vec<(ManifestHash, Arc<Shown>)> {
        let live: Vec<_> = self.slots().values().filter_map(Weak::upgrade).collect();
        let mut running: Vec<_> = live
            .iter()
            .filter_map(|slot| {
                let shown = slot.shown.lock().unwrap_or_else(PoisonError::into_inner);
                Some((slot.hash, Arc::clone(shown.as_ref()?)))
            })
            .collect();
        running.sort_by_key(|(hash, _)| hash.to_string());
        running
    }
}

impl Shown {
    pub(crate) fn rate(&self) -> Rate {
        self.lease.rate()
    }

    /// When its lease was made.
    pub(crate) fn created_at(&self) -> UnixMillis {
        UnixMillis::new(self.lease.parts().created_at_unix_ms)
    }

    /// For how long it is paid in all: the time that it has run, and the time that is left.
    pub(crate) fn paid_for(&self, now: Millis) -> Seconds {
        let ms = self
            .lease
            .run_ms(now)
            .saturating_add(self.lease.remaining_ms(now, self.balance));
        // To the nearest second: the price was rounded up, so a little more is paid for.
        Seconds(ms.saturating_add(500) / 1000)
    }
}
