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

mod containers;
mod drain;
mod frost;
mod notice;
mod overview;
mod place;
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
use codius_ledger::{Account, BootId, EndReason, Lease, Reason, Seconds, Settlement, Transaction};
use codius_manifest::{ManifestHash, PodSpec, Size, Upload};
use codius_pod::{Admission, Pod, PodEnd, PodLogs, Reservation, Supervisor};
use codius_proxy::Proxy;
use codius_signature::KeyId;
use codius_store::{Batch, LeaseOrigin, RefundStep, Store, StoreError};
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

pub(crate) use containers::exit as exit_told;
pub(crate) use place::{PlaceError, Purchase};
pub(crate) use share::{GIVE_BACK_PATIENCE, Payer, Payers, Share};
pub(crate) use stop::StopError;
pub(crate) use top_up::TopUpError;
use unwritten::Unwritten;
pub(crate) use view::{ReplyForm, sold};

use place::PinnedImage;

use crate::{
    clock::Clock,
    drain::Drain,
    egress::EgressPermits,
    pod_money::PodMoney,
    price::PriceTag,
    progress::ProgressBoard,
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
    /// What single programs may reach, and what each has sent; nothing, until they are opened.
    pub(crate) egress: EgressPermits,
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
    pod: Arc<Pod>,
    /// Who may stop it and read its logs.
    pub(crate) owner: Option<KeyId>,
    /// As it was sold.
    pub(crate) size: Size,
    /// As of the last payment. What was charged since then has moved from one to the other, and what
    /// follows from both of them has not changed.
    lease: Lease,
    balance: u64,
}

impl Shown {
    /// Whether its pod is held still.
    pub(crate) fn is_frozen(&self) -> bool {
        self.lease.is_frozen()
    }

    /// Whether it costs nothing, and ends when its time is up.
    pub(crate) fn is_free(&self) -> bool {
        self.lease.rate().is_free()
    }
}

impl Leases {
    pub(crate) fn new(wiring: Wiring) -> Arc<Self> {
        Arc::new(Self {
            progress: ProgressBoard::new(wiring.clock.clone()),
            payers: Payers::default(),
            wiring,
            rules: Rules::default(),
            egress: EgressPermits::default(),
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

    /// Watches over a running lease in a task of its own, to the end of its pod.
    fn watch(self: &Arc<Self>, slot: Arc<Slot>, pod: Arc<Pod>) {
        let leases = Arc::clone(self);
        let span = tracing::info_span!("lease", hash = %slot.hash);
        self.tasks
            .spawn(async move { leases.run(&slot, &pod).await }.instrument(span));
    }

    async fn run(self: &Arc<Self>, slot: &Arc<Slot>, pod: &Arc<Pod>) {
        let mut charge_at = tokio::time::Instant::now() + CHARGE_INTERVAL;
        let mut changes = pod.changes();
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
                // Last: a guest may say new things of its containers without end.
                changed = changes.next() => {
                    if let Some(progress) = self.progress.get(&slot.hash) {
                        for view in &changed {
                            progress.push(LeaseEventKind::Container(containers::told(view)));
                        }
                    }
                    None
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
            pod: Arc::clone(&running.pod),
            owner: running.origin.owner.map(KeyId::from_bytes),
            size: running.origin.size,
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
