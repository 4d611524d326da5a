//! Orders that have been paid become leases: a new one is placed and its pod started, one that runs is
//! extended.
//!
//! ```text
//!                    ┌─ runs ────────▶ extended
//! paid ──▶ the lock ─┤
//!                    └─ (none) ──▶ Starting, with the money ──▶ pod ready ──▶ Running, answered
//!                                          └─ failed ──▶ undone: the money is with the order again
//! ```
//! Trap: what is owed to the program and kept for its owner moves with the price, and goes back with it.

use std::{sync::Arc, time::Duration};

use codius_api::Phase;
use codius_ledger::{Account, EndReason, Lease, Order, Reason, RefundId, StoredResponse};
use codius_manifest::{PodSpec, Upload};
use codius_pod::{Machine, Pod, Reservation, ResolvedImage, StartError};
use codius_signature::KeyId;
use codius_store::{Batch, LeaseOrigin, StoreError, StoredUpload};
use thiserror::Error;

use super::{End, Leases, ReplyForm, Running, Slot, refund};
use crate::{
    price::Offer,
    progress::{Progress, Tell},
};

/// An order that has been paid in full, with what it pays for.
pub(crate) struct Purchase {
    pub(crate) order: Order,
    pub(crate) upload: Arc<Upload>,
    pub(crate) images: Vec<ResolvedImage>,
    /// Room that was set aside before the money was taken; none if the pod seemed to be running.
    pub(crate) reservation: Option<Reservation>,
    pub(crate) progress: Arc<Progress>,
    /// Whose the lease is if it is a new one.
    pub(crate) owner: Option<KeyId>,
    /// The refund of its order, and so of a new lease.
    pub(crate) refund: Option<RefundId>,
    pub(crate) form: ReplyForm,
}

/// Why an order could not be carried out. Its money is with the order again, except where said.
#[derive(Debug, Error)]
pub(crate) enum PlaceError {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Full(#[from] codius_pod::Full),
    /// It was extended when it was asked for, and would be a new lease now, of a size that is not sold any
    /// more.
    #[error("this size is not sold any more")]
    NotSold,
    #[error("this host is being shut down")]
    Closing,
    #[error("this host is being drained")]
    Draining,
    /// There is nothing to extend (any more).
    #[error("the pod is not running")]
    NotRunning,
    /// The database cannot be written. The money is where the last successful write left it, and the
    /// next start of the daemon finds it there.
    #[error("the host could not record the order")]
    Store(#[from] StoreError),
}

impl Leases {
    /// Carries out a paid upload: extends the lease of its hash if there is one, starts it otherwise.
    pub(crate) async fn place(
        self: &Arc<Self>,
        purchase: Purchase,
    ) -> Result<StoredResponse, PlaceError> {
        let slot = self.slot(purchase.order.hash);
        let mut state = slot.state.lock().await;
        if self.closing.is_cancelled() {
            return Err(PlaceError::Closing);
        }
        if self.drain.is_on() {
            return Err(PlaceError::Draining);
        }
        if let Some(running) = state.as_mut() {
            if running.takes_money(self.clock.steady(), self.grace_ms()) {
                return self
                    .extend_running(&slot, running, purchase.order, purchase.form)
                    .await;
            }
            // `settle_leftover` tries again what could not be written.
            let _ = self.end_locked(&slot, &mut state, End::Expired).await;
        }
        let Order {
            duration, price, ..
        } = purchase.order;
        let machine = purchase.upload.manifest().machine();
        let offer = self.rate.offer_of(machine, duration, price);
        let Offer { size, rate, .. } = offer.ok_or(PlaceError::NotSold)?;
        let reservation = match purchase.reservation {
            Some(reservation) => reservation,
            None => self.admission.reserve(size.machine)?,
        };
        let spec = self.spec(&purchase.upload).map_err(|error| {
            StartError::Driver(codius_pod::DriverError::Unsupported {
                reason: error.to_string(),
            })
        })?;

        self.settle_leftover(slot.hash).await?;
        // What earlier payers of this program are owed runs it, too, if nobody knows who they are; and
        // what is due to this owner, if he has not said where it goes.
        let owed = self.balance(&Account::Owed(slot.hash)).await?;
        let kept = self.kept(slot.hash, purchase.owner).await?;
        let mut lease = Lease::new(slot.hash, self.clock.wall(), rate);
        lease
            .extend(purchase.order.duration)
            .expect("a new lease can be extended");
        let kept_amount = kept.iter().map(|kept| kept.amount).sum::<u64>();
        let balance = purchase
            .order
            .price
            .saturating_add(owed)
            .saturating_add(kept_amount);
        let origin = LeaseOrigin {
            owner: purchase.owner.map(|key| *key.as_bytes()),
            carried: owed,
            refund: purchase.refund,
            size,
        };
        let upload = stored_upload(&purchase.upload, &purchase.images);
        let mut batch = Batch::new().new_lease_from(lease, upload, origin);
        self.transfer(
            &mut batch,
            Reason::Payment,
            order_of(&purchase.order),
            Account::Lease(slot.hash),
            purchase.order.price,
        );
        self.transfer(
            &mut batch,
            Reason::Payment,
            Account::Owed(slot.hash),
            Account::Lease(slot.hash),
            owed,
        );
        for kept in &kept {
            self.transfer(
                &mut batch,
                Reason::Payment,
                kept.account(),
                Account::Lease(slot.hash),
                kept.amount,
            );
        }
        self.store.commit(batch).await?;

        let started = self
            .start(&spec, &purchase.images, size.machine, &purchase.progress)
            .await;
        let pod = match started {
            Ok(pod) => pod,
            Err(error) => {
                self.undo(lease, &purchase.order, owed, &kept).await?;
                return Err(error);
            }
        };
        let starting = lease;

        lease
            .begin(self.boot, self.clock.steady())
            .expect("a lease that was starting can begin");
        let url = self.url(&slot.hash);
        let expires_at = self.expiry(&lease, balance);
        let response = self.answer(purchase.form, &lease, balance, &purchase.upload, origin);
        let mut order = purchase.order.clone();
        order
            .complete(response.clone())
            .expect("an order is carried out once");
        let batch = Batch::new().order(order).lease(lease);
        if let Err(error) = self.store.commit(batch).await {
            // Without a record it must not run.
            self.supervisor.stop(&slot.hash, Duration::ZERO).await;
            self.undo(starting, &purchase.order, owed, &kept).await?;
            return Err(error.into());
        }
        drop(kept);
        tracing::info!(pod = %slot.hash, name = spec.name, "running");
        let mut running = Running {
            lease,
            balance,
            pod: Arc::new(pod),
            upload: Arc::clone(&purchase.upload),
            origin,
            said: None,
            _reservation: reservation,
        };
        self.publish(&slot, &mut running, expires_at);
        purchase.progress.phase(Phase::Running { expires_at, url });
        self.watch(Arc::clone(&slot), Arc::clone(&running.pod));
        *state = Some(running);
        Ok(response)
    }

    /// Ends a lease whose pod never ran, and takes its money back to where it came from.
    async fn undo(
        &self,
        mut lease: Lease,
        order: &Order,
        owed: u64,
        kept: &[refund::Due],
    ) -> Result<(), StoreError> {
        let hash = lease.hash();
        let kept_in_all: u64 = kept.iter().map(|kept| kept.amount).sum();
        let balance = order.price.saturating_add(owed).saturating_add(kept_in_all);
        let ended = lease
            .end(self.clock.steady(), balance, EndReason::StartFailed)
            .expect("it has not ended before");
        debug_assert_eq!(ended.earned, 0, "a pod that never ran has cost nothing");
        let mut batch = Batch::new().lease(lease);
        self.transfer(
            &mut batch,
            Reason::Return,
            Account::Lease(hash),
            order_of(order),
            order.price,
        );
        self.transfer(
            &mut batch,
            Reason::Return,
            Account::Lease(hash),
            Account::Owed(hash),
            owed,
        );
        for kept in kept {
            self.transfer(
                &mut batch,
                Reason::Return,
                Account::Lease(hash),
                kept.account(),
                kept.amount,
            );
        }
        // Its payer waits, and is told what became of the money only when that is true.
        self.commit_at_last(batch).await
    }

    /// Carries out a paid extension.
    pub(crate) async fn extend(
        self: &Arc<Self>,
        order: Order,
        form: ReplyForm,
    ) -> Result<StoredResponse, PlaceError> {
        let slot = self.slot(order.hash);
        let mut state = slot.state.lock().await;
        if self.drain.is_on() {
            return Err(PlaceError::Draining);
        }
        match state.as_mut() {
            Some(running) => self.extend_running(&slot, running, order, form).await,
            None => Err(PlaceError::NotRunning),
        }
    }

    async fn extend_running(
        &self,
        slot: &Slot,
        running: &mut Running,
        mut order: Order,
        form: ReplyForm,
    ) -> Result<StoredResponse, PlaceError> {
        let mut lease = running.lease;
        if lease.extend(order.duration).is_err()
            || !running.takes_money(self.clock.steady(), self.grace_ms())
        {
            return Err(PlaceError::NotRunning);
        }
        let balance = running.balance.saturating_add(order.price);
        let expires_at = self.expiry(&lease, balance);
        let response = self.answer(form, &lease, balance, &running.upload, running.origin);
        let mut batch = Batch::new().lease(lease);
        self.transfer(
            &mut batch,
            Reason::Payment,
            order_of(&order),
            Account::Lease(slot.hash),
            order.price,
        );
        order
            .complete(response.clone())
            .expect("an order is carried out once");
        batch.orders.push(order);
        self.store.commit(batch).await?;
        running.lease = lease;
        running.balance = balance;
        self.moved(slot, running);
        tracing::info!(pod = %slot.hash, expires = %expires_at, "extended");
        Ok(response)
    }

    /// Starts a pod, unless the host is told to end before it is ready.
    pub(super) async fn start(
        &self,
        spec: &PodSpec,
        images: &[ResolvedImage],
        machine: Machine,
        progress: &Arc<Progress>,
    ) -> Result<Pod, PlaceError> {
        let tell = Arc::new(Tell(Arc::clone(progress)));
        // A pod that is ready is kept, and the next start finds it.
        let outcome = tokio::select! {
            biased;
            outcome = self.supervisor.start(spec, images, machine, tell) => Some(outcome),
            () = self.closing.cancelled() => None,
        };
        match outcome {
            Some(outcome) => Ok(outcome?),
            None => {
                self.supervisor.stop(&spec.hash, Duration::ZERO).await;
                Err(PlaceError::Closing)
            }
        }
    }
}

/// What an image reference meant when the lease began, as the store keeps it.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct PinnedImage {
    reference: String,
    digest: String,
    compressed_bytes: u64,
}

impl From<PinnedImage> for ResolvedImage {
    fn from(
        PinnedImage {
            reference,
            digest,
            compressed_bytes,
        }: PinnedImage,
    ) -> Self {
        // Only the image store knows; it looks when the image is prepared.
        Self {
            reference,
            digest,
            compressed_bytes,
            cached: false,
        }
    }
}

fn stored_upload(upload: &Upload, images: &[ResolvedImage]) -> StoredUpload {
    let pinned: Vec<PinnedImage> = images
        .iter()
        .map(|image| PinnedImage {
            reference: image.reference.clone(),
            digest: image.digest.clone(),
            compressed_bytes: image.compressed_bytes,
        })
        .collect();
    StoredUpload {
        upload_json: upload.to_json(),
        images_json: serde_json::to_string(&pinned).expect("strings and numbers are JSON"),
    }
}

fn order_of(order: &Order) -> Account {
    Account::Order(order.id)
}
