//! What becomes of the leases that an earlier process of this host has left.
//!
//! ```text
//! Starting ──▶ abandoned: its money is owed, its orders are answered
//! Running  ──▶ its pod is there ── yes ──▶ goes on (a frozen one is held still)
//! Frozen             │ no
//!                    ▼
//!        is there money? ── no ──▶ abandoned
//!                    │ yes
//!                    ▼
//!              started again ── failed ──▶ abandoned
//! ```
//! Time without a pod is not charged. A pod of no lease is removed.

use std::{sync::Arc, time::Duration};

use codius_api::{EndReason as ApiEndReason, LeaseEventKind, Phase};
use codius_ledger::{Account, EndReason, Lease, LeaseState};
use codius_manifest::{ManifestHash, PodSpec, Upload};
use codius_pod::{Machine, Pod, Reservation, ResolvedImage};
use codius_store::{Batch, LeaseOrigin, StoreError, StoredLease, StoredUpload};

use super::{Leases, PinnedImage, PlaceError, Running, Slot, frost};
use crate::progress::Progress;

impl Leases {
    /// Takes up what an earlier process has left: running pods go on, lost ones are started again if
    /// there is money for it, what was on its way is undone, and what belongs to no lease is removed.
    /// Returns the programs that were on their way.
    pub(crate) async fn recover(
        self: &Arc<Self>,
        records: Vec<StoredLease>,
        driver: &dyn codius_pod::Driver,
    ) -> anyhow::Result<Vec<ManifestHash>> {
        let (mut wanted, mut undone) = (Vec::new(), Vec::new());
        for record in records {
            let hash = record.lease.hash();
            match record.lease.state() {
                LeaseState::Ended { .. } => {}
                LeaseState::Starting => {
                    tracing::warn!(pod = %hash, "was being started when the host ended; its money is owed");
                    self.abandon(record.lease, record.origin, EndReason::StartFailed)
                        .await?;
                    undone.push(hash);
                }
                LeaseState::Running(_) | LeaseState::Paused | LeaseState::Frozen(_) => {
                    if self.take_up(record).await? {
                        wanted.push(hash);
                    }
                }
            }
        }
        for orphan in driver.list().await? {
            if !wanted.contains(&orphan) {
                tracing::warn!(pod = %orphan, "belongs to no lease; removed");
                driver.stop(&orphan, Duration::ZERO).await?;
            }
        }
        Ok(undone)
    }

    /// Ends a lease that cannot go on: what it has not used is owed, or due to its payer.
    pub(super) async fn abandon(
        &self,
        mut lease: Lease,
        origin: LeaseOrigin,
        reason: EndReason,
    ) -> Result<(), StoreError> {
        // Nobody knows how long it ran since it was last charged.
        lease.recover(self.boot, self.clock.steady(), false);
        let balance = self.balance(&Account::Lease(lease.hash())).await?;
        match lease.end(self.clock.steady(), balance, reason) {
            Ok(settled) => {
                self.store
                    .commit(self.settlement(lease, settled, origin))
                    .await?;
                self.claims.wake();
                Ok(())
            }
            Err(_) => Ok(()),
        }
    }

    /// Ends a lease that is not running any more and whose end could not be written, when the disk was
    /// full for example. To be called with the slot's lock held and nothing running.
    pub(super) async fn settle_leftover(&self, hash: ManifestHash) -> Result<(), StoreError> {
        match self.store.lease(hash).await? {
            Some(left) if !left.lease.is_ended() => {
                tracing::warn!(pod = %hash, "a lease was not ended in the books; ended now");
                self.abandon(left.lease, left.origin, EndReason::Lost).await
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Whether the lease goes on.
    async fn take_up(self: &Arc<Self>, record: StoredLease) -> Result<bool, StoreError> {
        let StoredLease {
            mut lease,
            upload,
            origin,
        } = record;
        let hash = lease.hash();
        let Some((spec, upload, images)) = upload.and_then(|upload| self.read(&upload)) else {
            tracing::error!(pod = %hash, "its record cannot be read; its money is owed");
            self.abandon(lease, origin, EndReason::Lost).await?;
            return Ok(false);
        };
        let attached = self.supervisor.attach(&spec).await;
        // A pod that was held still while its lease ran was frozen, or not woken yet, when the host was
        // killed: it has not run since then.
        let ran = matches!(&attached, Ok(pod) if !pod.frozen);
        lease.recover(self.boot, self.clock.steady(), ran);
        if lease.is_frozen() && attached.is_err() {
            let balance = self.balance(&Account::Lease(hash)).await?;
            if lease.remaining_ms(self.clock.steady(), balance) < frost::RESUME_MS {
                tracing::info!(pod = %hash, "was frozen, and lost while the host was away");
                self.abandon(lease, origin, EndReason::Expired).await?;
                return Ok(false);
            }
        }
        let slot = self.slot(hash);
        let progress = self.progress.begin(hash);
        let reservation = self.admission.reserve_running(Machine::SMALL);
        // Held until it runs again, so that an upload waits for it and extends it.
        let mut state = Arc::clone(&slot.state).lock_owned().await;
        match attached {
            Ok(pod) => {
                tracing::info!(pod = %hash, "taken up");
                self.go_on(
                    &slot,
                    &mut state,
                    lease,
                    pod,
                    upload,
                    origin,
                    reservation,
                    &progress,
                )
                .await?;
            }
            Err(error) => {
                tracing::warn!(pod = %hash, %error, "was lost while the host was away; it is started again");
                let leases = Arc::clone(self);
                self.tasks.spawn(async move {
                    let outcome = match leases.start(&spec, &images, &progress).await {
                        Ok(pod) => leases.go_on(&slot, &mut state, lease, pod, upload, origin, reservation, &progress).await,
                        // The next start of the daemon tries again; until then nothing is charged.
                        Err(PlaceError::Closing) => Ok(()),
                        Err(error) => {
                            tracing::warn!(pod = %hash, %error, "could not be started again; its money is owed");
                            progress.push(LeaseEventKind::Ended { reason: ApiEndReason::Lost });
                            leases.abandon(lease, origin, EndReason::Lost).await
                        }
                    };
                    if let Err(error) = outcome {
                        tracing::error!(pod = %hash, error = &error as &dyn std::error::Error, "not recorded");
                    }
                });
            }
        }
        Ok(true)
    }

    /// What the store has of an upload, as it was when it was uploaded.
    fn read(&self, stored: &StoredUpload) -> Option<(PodSpec, Arc<Upload>, Vec<ResolvedImage>)> {
        let upload = Upload::parse(stored.upload_json.as_bytes()).ok()?;
        let spec = self.spec(&upload).ok()?;
        let images: Vec<PinnedImage> = serde_json::from_str(&stored.images_json).ok()?;
        Some((
            spec,
            Arc::new(upload),
            images.into_iter().map(Into::into).collect(),
        ))
    }

    /// Lets a lease go on with a pod that runs.
    #[expect(
        clippy::too_many_arguments,
        reason = "all that a running lease is made of"
    )]
    async fn go_on(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        state: &mut Option<Running>,
        mut lease: Lease,
        pod: Pod,
        upload: Arc<Upload>,
        origin: LeaseOrigin,
        reservation: Reservation,
        progress: &Progress,
    ) -> Result<(), StoreError> {
        let balance = self.balance(&Account::Lease(slot.hash)).await?;
        let now = self.clock.steady();
        let paid = lease.remaining_ms(now, balance) >= frost::RESUME_MS;
        match lease.state() {
            LeaseState::Paused => lease.resume(self.boot, now),
            LeaseState::Frozen(_) if paid => lease.resume(self.boot, now),
            LeaseState::Starting
            | LeaseState::Running(_)
            | LeaseState::Frozen(_)
            | LeaseState::Ended { .. } => Ok(()),
        }
        .expect("a paused or frozen lease can be resumed");
        self.store.commit(Batch::new().lease(lease)).await?;
        let expires_at = self.expiry(&lease, balance);
        let is_still = pod.frozen;
        let mut running = Running {
            lease,
            balance,
            pod: Arc::new(pod),
            upload,
            origin,
            said: None,
            _reservation: reservation,
        };
        self.publish(slot, &mut running, expires_at);
        progress.phase(Phase::Running {
            expires_at,
            url: self.url(&slot.hash),
        });
        // If either fails the pod is lost, which whoever watches it hears.
        let adjusted = if lease.is_frozen() {
            self.hold_still(slot, &running).await
        } else if is_still {
            self.supervisor.thaw(&slot.hash).await
        } else {
            Ok(())
        };
        if let Err(error) = adjusted {
            tracing::warn!(pod = %slot.hash, %error, "could not be frozen, or go on");
        }
        self.watch(Arc::clone(slot), Arc::clone(&running.pod));
        *state = Some(running);
        Ok(())
    }
}
