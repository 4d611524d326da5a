//! The leases of this host: from paid to running, charged by the second, to their end.
//!
//! ```text
//!           place                    ready
//!  (none) ────────▶ Starting ─────────────────▶ Running ──┐ extend, top up, charge
//!                      │ start failed              │ ◀────┘  │ ▲
//!                      │                           │         ▼ │ money used up, paid again
//!                      │                           │        Frozen ──┐ the grace is over
//!                      ▼                           ▼                 ▼
//!               money back to the order     settled: earned + due or owed (expired, exited, lost, stopped)
//! ```
//!
//! Each manifest hash has one [`Slot`]. Its state is behind one lock that is held for the whole of a
//! step, so two uploads of the same manifest cannot both start it: the second finds it running, and
//! extends it. Every step is durable before its effect.
//!
//! What others see of a lease (its address, expiry and logs) is published beside the lock, so that
//! no request waits for a pod that is starting.

mod drain;
mod frost;
mod notice;
mod overview;
mod recovery;
mod refund;
mod share;
mod stop;
mod top_up;
mod unwritten;
mod view;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use codius_api::{AssetInfo, EndReason as ApiEndReason, LeaseEventKind, Phase, UnixMillis};
use codius_ledger::{
    Account, BootId, EndReason, Lease, Order, Reason, RefundId, Seconds, Settlement,
    StoredResponse, Transaction,
};
use codius_manifest::{ManifestHash, PodSpec, Upload};
use codius_pod::{
    Admission, Machine, Pod, PodEnd, PodLogs, Reservation, ResolvedImage, StartError, Supervisor,
};
use codius_proxy::Proxy;
use codius_signature::KeyId;
use codius_store::{Batch, LeaseOrigin, RefundStep, Store, StoreError, StoredUpload};
use thiserror::Error;
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

pub(crate) use share::{GIVE_BACK_PATIENCE, Payer, Payers, Share};
pub(crate) use stop::StopError;
pub(crate) use top_up::TopUpError;
use unwritten::Unwritten;
pub(crate) use view::ReplyForm;

use crate::{
    clock::Clock,
    drain::Drain,
    pod_money::PodMoney,
    price::PriceTag,
    progress::{Progress, ProgressBoard, Tell},
    refund::{Claim, Claims},
    routes::Routes,
    rules::Rules,
};

/// How often what a running lease has used is made durable. A crash loses the record of at most this
/// much time, and that only if the pod is lost with it.
const CHARGE_INTERVAL: Duration = Duration::from_secs(10);

/// What leases are made with.
pub(crate) struct Wiring {
    pub(crate) clock: Clock,
    pub(crate) store: Store,
    pub(crate) supervisor: Supervisor,
    pub(crate) admission: Admission,
    pub(crate) routes: Arc<Routes>,
    pub(crate) proxy: Proxy,
    pub(crate) pod_money: Arc<PodMoney>,
    pub(crate) rate: PriceTag,
    pub(crate) drain: Drain,
    pub(crate) asset: AssetInfo,
    /// How far ahead a lease may be topped up.
    pub(crate) max_duration: Seconds,
    /// `scheme://host[:port]`, as pods are told and as their URLs are made of.
    pub(crate) public_uri: url::Url,
    pub(crate) boot: BootId,
    /// Between SIGTERM and SIGKILL at the end of a lease.
    pub(crate) stop_grace: Duration,
    /// How long a pod is held still, and kept, when its money is used up.
    pub(crate) grace: Duration,
    /// How long before the end of a lease it is announced.
    pub(crate) expiry_notices: Vec<Duration>,
}

/// All leases; one for the process.
pub(crate) struct Leases {
    wiring: Wiring,
    pub(crate) progress: ProgressBoard,
    /// Who may run what; everything, until they are opened.
    pub(crate) rules: Rules,
    /// Who pays over a connection that is open.
    pub(crate) payers: Payers,
    pub(crate) closing: CancellationToken,
    pub(crate) tasks: TaskTracker,
    /// Who is at the refund of a lease that has ended.
    pub(crate) claims: Claims,
    pub(crate) unwritten: Unwritten,
    /// What `closing` means for pods.
    stop_pods: AtomicBool,
    slots: Mutex<HashMap<ManifestHash, Weak<Slot>>>,
}

impl std::ops::Deref for Leases {
    type Target = Wiring;

    fn deref(&self) -> &Wiring {
        &self.wiring
    }
}
/// One manifest hash.
struct Slot {
    hash: ManifestHash,
    state: Arc<tokio::sync::Mutex<Option<Running>>>,
    /// The expiry has moved.
    changed: Notify,
    shown: Mutex<Option<Arc<Shown>>>,
}

/// A lease whose pod runs.
struct Running {
    lease: Lease,
    /// Of `lease:HASH`; only this module moves it.
    balance: u64,
    pod: Arc<Pod>,
    upload: Arc<Upload>,
    origin: LeaseOrigin,
    /// The shortest of the notices of its expiry that need not be given (any more).
    said: Option<Duration>,
    _reservation: Reservation,
}

/// What anyone may know of a running lease.
pub(crate) struct Shown {
    pub(crate) upload: Arc<Upload>,
    pub(crate) url: String,
    pub(crate) expires_at: UnixMillis,
    pub(crate) logs: Arc<PodLogs>,
    /// Who may stop it and read its logs.
    pub(crate) owner: Option<KeyId>,
    /// As of the last payment. What was charged since then has moved from one to the other, and what
    /// follows from both of them has not changed.
    lease: Lease,
    balance: u64,
}

impl Shown {
    /// Whether it costs nothing, and ends when its time is up.
    pub(crate) fn is_free(&self) -> bool {
        self.lease.rate().is_free()
    }
}

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
    pub(crate) fn new(wiring: Wiring) -> Arc<Self> {
        Arc::new(Self {
            progress: ProgressBoard::new(wiring.clock.clone()),
            payers: Payers::default(),
            wiring,
            rules: Rules::default(),
            closing: CancellationToken::new(),
            tasks: TaskTracker::new(),
            claims: Claims::default(),
            unwritten: Unwritten::new(),
            stop_pods: AtomicBool::new(false),
            slots: Mutex::default(),
        })
    }

    /// Whether the host ends, and its pods with it.
    pub(crate) fn stops_pods(&self) -> bool {
        self.closing.is_cancelled() && self.stop_pods.load(Ordering::Acquire)
    }

    /// What is known of a running lease.
    pub(crate) fn shown(&self, hash: &ManifestHash) -> Option<Arc<Shown>> {
        let slot = self.slots().get(hash)?.upgrade()?;
        slot.shown
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// How many leases run.
    pub(crate) fn running(&self) -> usize {
        let live: Vec<_> = self.slots().values().filter_map(Weak::upgrade).collect();
        live.iter()
            .filter(|slot| {
                slot.shown
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .is_some()
            })
            .count()
    }

    /// Whether an upload of this hash would find it running, or on its way to it.
    pub(crate) fn is_live(&self, hash: &ManifestHash) -> bool {
        let slot = self.slots().get(hash).and_then(Weak::upgrade);
        // Somebody who holds the lock is starting it, or doing something with it while it runs.
        slot.is_some_and(|slot| slot.state.try_lock().map_or(true, |state| state.is_some()))
    }

    /// The pod spec of an upload on this host.
    pub(crate) fn spec(&self, upload: &Upload) -> Result<PodSpec, codius_manifest::ManifestError> {
        upload.pod_spec(self.own_uri())
    }

    /// The host's address as it is told to others: without a slash at its end.
    pub(crate) fn own_uri(&self) -> &str {
        self.public_uri.as_str().trim_end_matches('/')
    }

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
        let reservation = match purchase.reservation {
            Some(reservation) => reservation,
            None => self.admission.reserve(Machine::SMALL)?,
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
        let mut lease = Lease::new(
            slot.hash,
            self.clock.wall(),
            self.rate
                .rate_of(purchase.order.duration, purchase.order.price),
        );
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
            .start(&spec, &purchase.images, &purchase.progress)
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
    async fn start(
        &self,
        spec: &PodSpec,
        images: &[ResolvedImage],
        progress: &Arc<Progress>,
    ) -> Result<Pod, PlaceError> {
        let tell = Arc::new(Tell(Arc::clone(progress)));
        // A pod that is ready is kept, and the next start finds it.
        let outcome = tokio::select! {
            biased;
            outcome = self.supervisor.start(spec, images, Machine::SMALL, tell) => Some(outcome),
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

    /// Watches over a running lease in a task of its own, to the end of its pod.
    fn watch(self: &Arc<Self>, slot: Arc<Slot>, pod: Arc<Pod>) {
        let leases = Arc::clone(self);
        let span = tracing::info_span!("lease", hash = %slot.hash);
        self.tasks
            .spawn(async move { leases.run(&slot, &pod).await }.instrument(span));
    }

    async fn run(self: &Arc<Self>, slot: &Arc<Slot>, pod: &Arc<Pod>) {
        let mut charge_at = tokio::time::Instant::now() + CHARGE_INTERVAL;
        loop {
            let (due, wait) = match slot.state.lock().await.as_ref() {
                Some(running) if Arc::ptr_eq(&running.pod, pod) => self.due(running),
                // It has been ended, and the hash may be another lease's by now.
                Some(_) | None => return,
            };
            // Nothing is lost if any of these is dropped: all are looked at anew. In the order of what
            // decides: a pod that has ended is not frozen, and what is due comes before a charge.
            let end = tokio::select! {
                biased;
                end = pod.ended() => Some(End::Pod(end)),
                () = tokio::time::sleep(wait) => match due {
                    Due::Expiry => Some(End::Expired),
                    Due::Notice(time) => {
                        self.give_notice(slot, pod, time).await;
                        None
                    }
                    Due::Thaw => {
                        if !self.thaw(slot).await {
                            tokio::time::sleep(frost::RETRY).await;
                        }
                        None
                    }
                },
                () = slot.changed.notified() => None,
                () = tokio::time::sleep_until(charge_at) => {
                    charge_at += CHARGE_INTERVAL;
                    self.charge(slot).await;
                    None
                }
                () = self.closing.cancelled() => {
                    if self.stop_pods.load(Ordering::Acquire) {
                        Some(End::HostStopped)
                    } else {
                        self.charge(slot).await;
                        return;
                    }
                }
            };
            if let Some(end) = end
                && self.end(slot, pod, end).await
            {
                return;
            }
        }
    }

    /// What happens next to a lease by itself, and how long that is from now.
    fn due(&self, running: &Running) -> (Due, Duration) {
        let now = self.clock.steady();
        if running.can_go_on(now) {
            return (Due::Thaw, Duration::ZERO);
        }
        if running.lease.is_frozen() {
            let grace_ms = running.lease.grace_left_ms(now, self.grace_ms());
            return (Due::Expiry, Duration::from_millis(grace_ms));
        }
        let remaining = running.lease.remaining_ms(now, running.balance);
        let remaining = Duration::from_millis(remaining);
        match notice::next(&self.expiry_notices, running.said) {
            Some(time) => (Due::Notice(time), remaining.saturating_sub(time)),
            None => (Due::Expiry, remaining),
        }
    }

    async fn give_notice(&self, slot: &Slot, pod: &Arc<Pod>, time: Duration) {
        let mut state = slot.state.lock().await;
        let Some(running) = state
            .as_mut()
            .filter(|running| Arc::ptr_eq(&running.pod, pod))
        else {
            return;
        };
        let remaining_ms = running
            .lease
            .remaining_ms(self.clock.steady(), running.balance);
        if Duration::from_millis(remaining_ms) > time {
            // More money has come meanwhile.
            return;
        }
        running.said = Some(time);
        self.announce(slot, running);
    }

    /// Makes durable what a lease has used until now.
    async fn charge(&self, slot: &Slot) {
        let mut state = slot.state.lock().await;
        let Some(running) = state.as_mut() else {
            return;
        };
        let mut lease = running.lease;
        let charge = lease.charge(self.clock.steady(), running.balance);
        let mut batch = Batch::new().lease(lease);
        self.transfer(
            &mut batch,
            Reason::Charge,
            Account::Lease(slot.hash),
            Account::Earned,
            charge.amount,
        );
        match self.store.commit(batch).await {
            Ok(()) => {
                running.lease = lease;
                running.balance -= charge.amount;
            }
            // Nothing is lost: the time is charged with the next attempt, or at the end.
            Err(error) => tracing::error!(
                error = &error as &dyn std::error::Error,
                "charge not recorded"
            ),
        }
    }

    /// Ends a running lease; false if it has been extended in the meantime.
    async fn end(self: &Arc<Self>, slot: &Arc<Slot>, pod: &Arc<Pod>, end: End) -> bool {
        let mut state = slot.state.lock().await;
        // It may be another lease's by now.
        let Some(running) = state
            .as_mut()
            .filter(|running| Arc::ptr_eq(&running.pod, pod))
        else {
            return true;
        };
        if matches!(end, End::Expired) {
            let now = self.clock.steady();
            if running.takes_money(now, self.grace_ms()) {
                return false;
            }
            // Nobody can pay for what is free.
            let can_be_frozen = !self.grace.is_zero()
                && !running.lease.is_frozen()
                && !running.lease.rate().is_free();
            if can_be_frozen && self.freeze(slot, running).await {
                return false;
            }
        }
        // Logged there, and what could not be written is written later.
        let _ = self.end_locked(slot, &mut state, end).await;
        true
    }

    /// Ends the lease in `state`, if there is one: settled first, then stopped, while what is left goes back
    /// to those who have paid it over connections that are still open; what is owed after that is the
    /// refund that is returned. Fails if the end could not be written; the lease is over all the same, and
    /// it is written as soon as it can be.
    async fn end_locked(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        state: &mut Option<Running>,
        end: End,
    ) -> Result<(Settlement, Option<Claim>), StoreError> {
        let Some(running) = state.take() else {
            return Ok((Settlement::default(), None));
        };
        let (reason, shown_reason, why) = end.reasons();
        self.unpublish(slot);
        let mut lease = running.lease;
        let settled = lease
            .end(self.clock.steady(), running.balance, reason)
            .expect("a running lease can end");
        // Nobody else sends what is being given back.
        let claim = running.origin.refund.and_then(|id| self.claims.take(id));
        let settlement = self.settlement(lease, settled, running.origin);
        let recorded = self.store.commit(settlement.clone()).await;
        if let Err(error) = &recorded {
            // What is not recorded is not paid, so it must not run.
            tracing::error!(
                error = error as &dyn std::error::Error,
                "end of lease not recorded"
            );
        }
        running.pod.logs.close();
        let (born, used) = (lease.parts().created_at_unix_ms, lease.parts().charged);
        let giving_back = async {
            let (from, rest) = match (running.origin.refund, &claim) {
                _ if recorded.is_err() => return 0,
                (Some(id), Some(_)) => {
                    let due = stop::due(&lease, settled, &running.origin);
                    (Account::Refund(id), due)
                }
                (Some(_), None) => return 0,
                (None, _) => (Account::Owed(slot.hash), settled.refund),
            };
            self.payers
                .give_back(slot.hash, born, used, &from, rest)
                .await
        };
        let stopping = self.supervisor.stop(&slot.hash, self.stop_grace);
        let (returned, ()) = tokio::join!(giving_back, stopping);
        if let Some(address) = running.pod.address {
            // Those who looked the route up just before it was taken away.
            self.proxy.forget(address);
        }
        self.pod_money.close(&slot.hash).await;
        if recorded.is_err() {
            self.settle_later(Arc::clone(slot), settlement);
        }
        let owed = settled.refund.saturating_sub(returned);
        tracing::info!(pod = %slot.hash, earned = settled.earned, returned, owed, "{why}");
        if let Some(progress) = self.progress.get(&slot.hash) {
            progress.push(LeaseEventKind::Ended {
                reason: shown_reason,
            });
        }
        recorded.map(|()| {
            let settled = Settlement {
                refund: owed,
                ..settled
            };
            (settled, claim)
        })
    }

    /// Ends this module's part of the process. Pods are left running, with what they have used made
    /// durable, or ended and settled: each by the task that watches it, all at the same time.
    pub(crate) async fn shut_down(&self, stop_pods: bool) {
        self.stop_pods.store(stop_pods, Ordering::Release);
        self.closing.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// A running lease has more money or time: whoever goes by its expiry is told the new one.
    fn moved(&self, slot: &Slot, running: &mut Running) {
        let expires_at = self.expiry(&running.lease, running.balance);
        self.show(slot, running, expires_at);
        self.paid_until(slot, running);
        slot.changed.notify_one();
        if running.lease.is_frozen() {
            // It is told that it runs when it does.
            return;
        }
        if let Some(progress) = self.progress.get(&slot.hash) {
            let url = self.url(&slot.hash);
            progress.phase(Phase::Running { expires_at, url });
        }
    }

    /// What follows from the time that is left: the notices to come, and what the pod is told.
    fn paid_until(&self, slot: &Slot, running: &mut Running) {
        let remaining_ms = running
            .lease
            .remaining_ms(self.clock.steady(), running.balance);
        let remaining = Duration::from_millis(remaining_ms);
        running.said = notice::said(&self.expiry_notices, remaining);
        self.tell_pod(slot, running);
    }

    fn publish(&self, slot: &Slot, running: &mut Running, expires_at: UnixMillis) {
        if let Some(address) = running.pod.address {
            self.routes.insert(&slot.hash, address);
        }
        self.show(slot, running, expires_at);
        self.paid_until(slot, running);
    }

    fn show(&self, slot: &Slot, running: &Running, expires_at: UnixMillis) {
        *slot.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(Shown {
            upload: Arc::clone(&running.upload),
            url: self.url(&slot.hash),
            expires_at,
            logs: Arc::clone(&running.pod.logs),
            owner: running.origin.owner.map(KeyId::from_bytes),
            lease: running.lease,
            balance: running.balance,
        }));
    }

    fn unpublish(&self, slot: &Slot) {
        if let Some(address) = self.routes.remove(&slot.hash) {
            self.proxy.forget(address);
        }
        *slot.shown.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// `scheme://HASH.host[:port]/`.
    fn url(&self, hash: &ManifestHash) -> String {
        let host = self.public_uri.host_str().unwrap_or_default();
        let port = self
            .public_uri
            .port()
            .map(|port| format!(":{port}"))
            .unwrap_or_default();
        format!("{}://{hash}.{host}{port}/", self.public_uri.scheme())
    }

    /// The slot of a hash. It lives as long as somebody holds it: a request or the watch of a lease.
    fn slot(&self, hash: ManifestHash) -> Arc<Slot> {
        let mut slots = self.slots();
        if let Some(slot) = slots.get(&hash).and_then(Weak::upgrade) {
            return slot;
        }
        slots.retain(|_, slot| slot.strong_count() > 0);
        let slot = Arc::new(Slot {
            hash,
            state: Arc::default(),
            changed: Notify::new(),
            shown: Mutex::new(None),
        });
        slots.insert(hash, Arc::downgrade(&slot));
        slot
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, HashMap<ManifestHash, Weak<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The balance of an account that cannot be negative.
    async fn balance(&self, account: &Account) -> Result<u64, StoreError> {
        let balance = self.store.balance(account).await?;
        Ok(u64::try_from(balance).unwrap_or_default())
    }

    /// The end of a lease, with the movements that empty its account: what its payer has not used is due
    /// to him, if it is known who he is, and what others had left there is owed to the program again.
    fn settlement(&self, lease: Lease, settled: Settlement, origin: LeaseOrigin) -> Batch {
        let hash = lease.hash();
        let mut batch = Batch::new().lease(lease);
        self.transfer(
            &mut batch,
            Reason::Charge,
            Account::Lease(hash),
            Account::Earned,
            settled.earned,
        );
        let due = stop::due(&lease, settled, &origin);
        let owed = settled.refund - due;
        self.transfer(
            &mut batch,
            Reason::Return,
            Account::Lease(hash),
            Account::Owed(hash),
            owed,
        );
        let Some(refund) = origin.refund else {
            return batch;
        };
        self.transfer(
            &mut batch,
            Reason::Return,
            Account::Lease(hash),
            Account::Refund(refund),
            due,
        );
        if due == 0 {
            return batch;
        }
        let at_unix_ms = self.clock.wall();
        batch.refund_step(refund, RefundStep::Due { at_unix_ms })
    }

    /// Adds a movement to a batch; one of nothing is none.
    pub(crate) fn transfer(
        &self,
        batch: &mut Batch,
        reason: Reason,
        from: Account,
        to: Account,
        amount: u64,
    ) {
        if amount == 0 {
            return;
        }
        let transaction = Transaction::transfer(self.clock.wall(), reason, from, to, amount)
            .expect("two different accounts, and an amount that a balance had");
        batch.transactions.push(transaction);
    }

    /// When the money of a lease is used up, by the wall clock as it is now.
    fn expiry(&self, lease: &Lease, balance: u64) -> UnixMillis {
        let remaining_ms = lease.remaining_ms(self.clock.steady(), balance);
        UnixMillis::new(self.clock.wall().saturating_add(remaining_ms))
    }
}

/// What happens to a lease by itself.
enum Due {
    /// Its money, or the grace after it, is used up.
    Expiry,
    /// That it expires is announced.
    Notice(Duration),
    /// It is frozen and paid for again.
    Thaw,
}

/// Why a lease ends.
enum End {
    Expired,
    Stopped,
    Pod(PodEnd),
    HostStopped,
}

impl End {
    fn reasons(self) -> (EndReason, ApiEndReason, String) {
        match self {
            Self::Expired => (
                EndReason::Expired,
                ApiEndReason::Expired,
                "expired".to_owned(),
            ),
            Self::Stopped => (
                EndReason::Stopped,
                ApiEndReason::Stopped,
                "stopped by its owner".to_owned(),
            ),
            Self::Pod(PodEnd::Exited(why)) => (EndReason::Exited, ApiEndReason::Exited, why),
            Self::Pod(PodEnd::Lost(why)) => (EndReason::Lost, ApiEndReason::Lost, why),
            Self::HostStopped => (
                EndReason::HostStopped,
                ApiEndReason::HostStopped,
                "host stopped".to_owned(),
            ),
        }
    }
}

/// What an image reference meant when the lease began, as the store keeps it.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct PinnedImage {
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
