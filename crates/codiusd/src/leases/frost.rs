//! Pods whose money is used up: held still for a grace, and let go on if somebody pays in time.
//!
//! ```text
//!            money used up                      paid for a second or more
//!  Running ────────────────▶ Frozen, pod still ──────────────────────────▶ Running
//!                                 │ the grace is over
//!                                 ▼
//!                            Ended, pod removed
//! ```
//!
//! Both steps are written before they are done. So a host that is killed in between finds a pod that runs
//! and should not, or one that is still and should not be: `recovery.rs` does the rest, and the time for
//! which it was still is not charged.
//!
//! Traps:
//! - A frozen pod keeps its memory, so it keeps its place on the host. That is why the grace is short.
//! - To go on needs a whole second's money: else each unit that somebody sends would wake a pod for a
//!   moment, and cost the host a write for it.

use std::time::Duration;

use codius_api::{LeaseEventKind, UnixMillis};
use codius_ledger::{Account, Reason};
use codius_pod::DriverError;
use codius_store::Batch;

use super::{Leases, Running, Slot};

/// For how long a frozen pod must be paid before it goes on.
pub(super) const RESUME_MS: u64 = 1000;
/// The pause after an attempt to let a pod go on that could not be recorded.
pub(super) const RETRY: Duration = Duration::from_secs(1);

impl Running {
    /// Frozen, and paid for again.
    pub(super) fn can_go_on(&self, now: codius_ledger::Millis) -> bool {
        self.lease.is_frozen() && self.lease.remaining_ms(now, self.balance) >= RESUME_MS
    }

    /// Whether more money or time makes it go on: it runs, or its grace does.
    pub(super) fn takes_money(&self, now: codius_ledger::Millis, grace_ms: u64) -> bool {
        if self.lease.is_frozen() {
            // What is too little to go on with does not lengthen the grace.
            return self.can_go_on(now) || self.lease.grace_left_ms(now, grace_ms) > 0;
        }
        self.lease.remaining_ms(now, self.balance) > 0
    }
}

impl Leases {
    pub(super) fn grace_ms(&self) -> u64 {
        u64::try_from(self.grace.as_millis()).unwrap_or(u64::MAX)
    }

    /// Holds a pod still whose money is used up; false if that could not be done, and then the lease is to
    /// be ended.
    pub(super) async fn freeze(&self, slot: &Slot, running: &mut Running) -> bool {
        let now = self.clock.steady();
        let mut lease = running.lease;
        let charge = lease.charge(now, running.balance);
        if lease.freeze(self.boot, now).is_err() {
            return false;
        }
        let mut batch = Batch::new().lease(lease);
        self.transfer(
            &mut batch,
            Reason::Charge,
            Account::Lease(slot.hash),
            Account::Earned,
            charge.amount,
        );
        if let Err(error) = self.store.commit(batch).await {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "that a lease is frozen could not be recorded"
            );
            return false;
        }
        running.lease = lease;
        running.balance -= charge.amount;
        if let Err(error) = self.hold_still(slot, running).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot be frozen");
            return false;
        }
        true
    }

    /// The pod of a lease that is frozen in the books, and everything that is told of it.
    pub(super) async fn hold_still(
        &self,
        slot: &Slot,
        running: &Running,
    ) -> Result<(), DriverError> {
        self.supervisor.freeze(&slot.hash).await?;
        self.routes.freeze(&slot.hash);
        let grace_ms = running
            .lease
            .grace_left_ms(self.clock.steady(), self.grace_ms());
        let ends_at = UnixMillis::new(self.clock.wall().saturating_add(grace_ms));
        self.show(slot, running, self.expiry(&running.lease, running.balance));
        tracing::info!(pod = %slot.hash, ends = %ends_at, "frozen: the money is used up");
        let text = format!("the money is used up; the pod is held still and ends at {ends_at}");
        running.pod.logs.note(&text, self.clock.wall());
        if let Some(progress) = self.progress.get(&slot.hash) {
            progress.push(LeaseEventKind::Frozen { ends_at });
        }
        Ok(())
    }

    /// Lets a frozen pod go on that is paid for again; false if that could not be written, and then it
    /// stays frozen.
    pub(super) async fn thaw(&self, slot: &Slot) -> bool {
        let mut state = slot.state.lock().await;
        let Some(running) = state.as_mut() else {
            return true;
        };
        if !running.can_go_on(self.clock.steady()) {
            return true;
        }
        let mut lease = running.lease;
        lease
            .resume(self.boot, self.clock.steady())
            .expect("a frozen lease can be resumed");
        if let Err(error) = self.store.commit(Batch::new().lease(lease)).await {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "that a lease goes on could not be recorded"
            );
            return false;
        }
        running.lease = lease;
        // If this fails the pod is lost, which whoever watches it hears.
        if let Err(error) = self.supervisor.thaw(&slot.hash).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot go on");
        }
        self.routes.thaw(&slot.hash);
        tracing::info!(pod = %slot.hash, "paid for again: goes on");
        running
            .pod
            .logs
            .note("paid for again: the pod goes on", self.clock.wall());
        self.moved(slot, running);
        true
    }
}
