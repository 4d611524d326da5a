//! What becomes of the leases that an earlier process of this host has left.
//!
//! ```text
//! Starting ──▶ abandoned: its money is owed, its orders are answered
//! Running  ──▶ its pod answers ─── yes ──▶ goes on (a frozen one is held still)
//! Frozen             │ no
//!                    ▼
//!        is there money? ── no ──▶ abandoned
//!                    │ yes
//!                    ▼
//!              started again ── failed ──▶ abandoned
//! ```
//! Time without a pod is not charged. A pod of no lease is removed.
//!
//! All pods are asked at the same time, because visitors wait meanwhile: in the listener's queue for at most
//! [`TAKE_UP_WAIT`], and then for the pod they want ([`Routes::expect`](crate::routes::Routes::expect)). Who
//! uploads, extends or stops such a pod waits for the lock of its hash.

use std::{sync::Arc, time::Duration};

use codius_api::{EndReason as ApiEndReason, LeaseEventKind, Phase};
use codius_ledger::{Account, EndReason, Lease, LeaseState};
use codius_manifest::{ManifestHash, ManifestVersion, PodSpec, Upload};
use codius_pod::{Pod, Reservation, ResolvedImage};
use codius_store::{Batch, LeaseOrigin, StoreError, StoredLease, StoredUpload};
use futures_util::future::try_join_all;
use tokio::{sync::OwnedMutexGuard, task::JoinHandle};

use super::{Leases, PinnedImage, PlaceError, Running, Slot, frost, unwritten};
use crate::progress::Progress;

/// How long the start of the daemon waits for the answers of all pods. Those that are busy take longer.
const TAKE_UP_WAIT: Duration = Duration::from_secs(2);

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
        let mut taken_up = Vec::new();
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
                    if let Some(taking_up) = self.take_up(record).await? {
                        wanted.push(hash);
                        taken_up.push(taking_up);
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
        match tokio::time::timeout(TAKE_UP_WAIT, try_join_all(taken_up)).await {
            Ok(all) => all?.into_iter().collect::<Result<(), StoreError>>()?,
            Err(_) => tracing::warn!(
                "some pods have not answered within {} s; their visitors wait for them",
                TAKE_UP_WAIT.as_secs()
            ),
        }
        Ok(undone)
    }

    /// Ends a lease that cannot go on: what it has not used is owed, or due to its payer.
    pub(super) async fn abandon(
        &self,
        lease: Lease,
        origin: LeaseOrigin,
        reason: EndReason,
    ) -> Result<(), StoreError> {
        if let Some(batch) = self.abandonment(lease, origin, reason).await? {
            self.store.commit(batch).await?;
            self.claims.wake();
        }
        Ok(())
    }

    /// What is written of the end of a lease that cannot go on; nothing if it is over.
    async fn abandonment(
        &self,
        mut lease: Lease,
        origin: LeaseOrigin,
        reason: EndReason,
    ) -> Result<Option<Batch>, StoreError> {
        // Nobody knows how long it ran since it was last charged.
        lease.recover(self.boot, self.clock.steady(), false);
        let balance = self.balance(&Account::Lease(lease.hash())).await?;
        let ended = lease.end(self.clock.steady(), balance, reason);
        Ok(ended
            .ok()
            .map(|settled| self.settlement(lease, settled, origin)))
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

    /// Begins to take up a lease that can go on: its hash is locked and has a place, its visitors wait, and a
    /// task asks its pod.
    async fn take_up(
        self: &Arc<Self>,
        record: StoredLease,
    ) -> Result<Option<JoinHandle<Result<(), StoreError>>>, StoreError> {
        let StoredLease {
            lease,
            upload,
            origin,
        } = record;
        let hash = lease.hash();
        let Some((spec, upload, images)) = upload.and_then(|upload| self.read(&upload)) else {
            tracing::error!(pod = %hash, "its record cannot be read; its money is owed");
            self.abandon(lease, origin, EndReason::Lost).await?;
            return Ok(None);
        };
        let slot = self.slot(hash);
        if spec.port.is_some() {
            self.routes.expect(&hash);
        }
        let left = Left {
            // Held until it runs again, so that an upload waits for it and extends it.
            state: Arc::clone(&slot.state).lock_owned().await,
            slot,
            lease,
            recorded: lease,
            spec,
            upload,
            images,
            origin,
            reservation: Some(self.admission.reserve_running(origin.size.machine)),
            progress: self.progress.begin(hash),
        };
        let leases = Arc::clone(self);
        Ok(Some(self.tasks.spawn(async move {
            leases.attach_or_restart(left).await
        })))
    }

    /// Attaches to the pod of a lease. If it is lost, another task starts it again.
    async fn attach_or_restart(self: Arc<Self>, mut left: Left) -> Result<(), StoreError> {
        let hash = left.slot.hash;
        let attached = tokio::select! {
            attached = self.supervisor.attach(&left.spec) => attached,
            // The next process asks it.
            () = self.closing.cancelled() => return Ok(()),
        };
        // A pod that was held still while its lease ran was frozen, or not woken yet, when the host was
        // killed: it has not run since then. Of one whose programs have ended meanwhile nobody knows how
        // long they ran.
        let ran = matches!(&attached, Ok(pod) if !pod.frozen && !pod.has_ended());
        left.lease.recover(self.boot, self.clock.steady(), ran);
        let error = match attached {
            Ok(pod) => {
                tracing::info!(pod = %hash, "taken up");
                return self.go_on(&mut left, pod).await;
            }
            Err(error) => error,
        };
        if left.lease.is_frozen() {
            let balance = self.balance(&Account::Lease(hash)).await?;
            if left.lease.remaining_ms(self.clock.steady(), balance) < frost::RESUME_MS {
                tracing::info!(pod = %hash, "was frozen, and lost while the host was away");
                return self
                    .give_up(&left, EndReason::Expired, ApiEndReason::Expired)
                    .await;
            }
        }
        tracing::warn!(pod = %hash, %error, "was lost while the host was away; it is started again");
        let leases = Arc::clone(&self);
        self.tasks.spawn(async move { leases.restart(left).await });
        Ok(())
    }

    async fn restart(self: Arc<Self>, mut left: Left) {
        let hash = left.slot.hash;
        // Written before it is started, as soon as that can be. Else a process that is killed now leaves a
        // lease that seems to run since its last count, and a pod that runs: the next one would charge the
        // time in between.
        let paused = self.commit_at_last(Batch::new().lease(left.lease)).await;
        if let Err(error) = paused {
            tracing::error!(pod = %hash, error = &error as &dyn std::error::Error, "not started again");
            return;
        }
        left.recorded = left.lease;
        let machine = left.origin.size.machine;
        let started = self.start(&left.spec, &left.images, machine, &left.progress);
        let outcome = match started.await {
            Ok(pod) => match self.go_on(&mut left, pod).await {
                Ok(()) => Ok(()),
                Err(error) => {
                    tracing::error!(pod = %hash, error = &error as &dyn std::error::Error, "that it goes on could not be recorded");
                    // Without a record it must not run.
                    self.supervisor.stop(&hash, Duration::ZERO).await;
                    self.give_up(&left, EndReason::Lost, ApiEndReason::Lost)
                        .await
                }
            },
            // The next start of the daemon tries again; until then nothing is charged.
            Err(PlaceError::Closing) => Ok(()),
            Err(error) => {
                tracing::warn!(pod = %hash, %error, "could not be started again; its money is owed");
                self.give_up(&left, EndReason::Lost, ApiEndReason::Lost)
                    .await
            }
        };
        if let Err(error) = outcome {
            tracing::error!(pod = %hash, error = &error as &dyn std::error::Error, "not recorded");
        }
    }

    /// Ends a lease whose pod does not come back, as soon as that can be written; nobody waits for it any
    /// more.
    async fn give_up(
        &self,
        left: &Left,
        reason: EndReason,
        shown: ApiEndReason,
    ) -> Result<(), StoreError> {
        self.routes.remove(&left.slot.hash);
        left.progress.push(LeaseEventKind::Ended { reason: shown });
        if let Some(batch) = self.abandonment(left.lease, left.origin, reason).await? {
            self.commit_at_last(batch).await?;
            self.claims.wake();
        }
        Ok(())
    }

    /// What the store has of an upload, as it was when it was uploaded.
    fn read(&self, stored: &StoredUpload) -> Option<(PodSpec, Arc<Upload>, Vec<ResolvedImage>)> {
        let upload = Upload::parse_as(ManifestVersion::V2, stored.upload_json.as_bytes()).ok()?;
        let spec = self.spec(&upload).ok()?;
        let images: Vec<PinnedImage> = serde_json::from_str(&stored.images_json).ok()?;
        Some((
            spec,
            Arc::new(upload),
            images.into_iter().map(Into::into).collect(),
        ))
    }

    /// A lease as it goes on from now: one that can be paid for runs.
    fn resumed(&self, mut lease: Lease, balance: u64) -> Lease {
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
        lease
    }

    /// Lets a lease go on with a pod that runs, as soon as that can be written.
    async fn go_on(self: &Arc<Self>, left: &mut Left, mut pod: Pod) -> Result<(), StoreError> {
        let slot = Arc::clone(&left.slot);
        let balance = self.balance(&Account::Lease(slot.hash)).await?;
        let lease = loop {
            let lease = self.resumed(left.lease, balance);
            // One that goes on as it was needs no room on the disk, and is watched and charged in any case.
            if lease == left.recorded {
                break lease;
            }
            match self.store.commit(Batch::new().lease(lease)).await {
                Ok(()) => {
                    self.unwritten.is_over();
                    break lease;
                }
                Err(error) if error.may_pass() => {
                    self.unwritten.failed();
                    tracing::error!(
                        pod = %slot.hash,
                        error = &error as &dyn std::error::Error,
                        "held still until it can be written that it goes on"
                    );
                }
                Err(error) => return Err(error),
            }
            // Without a record it must not run, and nothing is charged.
            if !pod.frozen {
                if let Err(error) = self.supervisor.freeze(&slot.hash).await {
                    tracing::warn!(pod = %slot.hash, %error, "could not be held still");
                }
                pod.frozen = true;
            }
            tokio::select! {
                biased;
                // The next process takes it up, or starts it again.
                () = self.closing.cancelled() => {
                    if self.stops_pods() {
                        self.supervisor.stop(&slot.hash, Duration::ZERO).await;
                    }
                    return Ok(());
                }
                () = tokio::time::sleep(unwritten::TRY_EVERY) => {}
            }
        };
        let expires_at = self.expiry(&lease, balance);
        let is_still = pod.frozen;
        let mut running = Running {
            lease,
            balance,
            pod: Arc::new(pod),
            upload: Arc::clone(&left.upload),
            origin: left.origin,
            said: None,
            _reservation: left
                .reservation
                .take()
                .unwrap_or_else(|| self.admission.reserve_running(left.origin.size.machine)),
        };
        self.publish(&slot, &mut running, expires_at);
        left.progress.phase(Phase::Running {
            expires_at,
            url: self.url(&slot.hash),
        });
        // If either fails the pod is lost, which whoever watches it hears.
        let adjusted = if lease.is_frozen() {
            self.hold_still(&slot, &running).await
        } else if is_still {
            self.supervisor.thaw(&slot.hash).await
        } else {
            Ok(())
        };
        if let Err(error) = adjusted {
            tracing::warn!(pod = %slot.hash, %error, "could not be frozen, or go on");
            if lease.is_frozen() {
                // It would run for nothing.
                self.supervisor.stop(&slot.hash, Duration::ZERO).await;
                self.unpublish(&slot);
                return self
                    .give_up(left, EndReason::Expired, ApiEndReason::Expired)
                    .await;
            }
        }
        self.watch(Arc::clone(&slot), Arc::clone(&running.pod));
        *left.state = Some(running);
        Ok(())
    }
}

/// A lease that an earlier process has left, with all that it needs to go on.
struct Left {
    slot: Arc<Slot>,
    state: OwnedMutexGuard<Option<Running>>,
    lease: Lease,
    /// As it is in the books.
    recorded: Lease,
    spec: PodSpec,
    upload: Arc<Upload>,
    images: Vec<ResolvedImage>,
    origin: LeaseOrigin,
    /// Given to the lease when it goes on.
    reservation: Option<Reservation>,
    progress: Arc<Progress>,
}
