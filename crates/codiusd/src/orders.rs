//! Paid requests, from the first asking to the stored answer.
//!
//! ```text
//! request ──▶ known token? ── answered ──▶ the same answer again
//!    │             └── being carried out ──▶ wait for its answer
//!    ▼
//! check everything that is free to check ──▶ 4xx/5xx, no money
//!    ▼
//! pending ──▶ 402 + Pay ──(client connects)──▶ same request again
//!    ▼
//! reserve room ▶ record the order ▶ collect the price ▶ place the lease ▶ answer
//!                                       │ short             │ failed
//!                                       ▼                   ▼
//!                          send back what came; what cannot be sent is recorded as owed
//! ```
//!
//! An order is carried out in a task of its own: a client that goes away changes nothing.

mod refusals;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::http::{HeaderName, HeaderValue, StatusCode};
use codius_api::{LeaseEventKind, Trouble, Units};
use codius_ledger::{
    Account, Order, OrderId, OrderKind, OrderState, Rate, Reason, RefundId, Repeat, RequestDigest,
    Seconds, StoredResponse,
};
use codius_manifest::{MachineName, ManifestHash, Size, Upload};
use codius_pod::{Machine, Reservation, ResolvedImage};
use codius_signature::KeyId;
use codius_store::{Batch, RefundRecord, RefundStep, StoreError};
use tokio::{sync::watch, time::Instant};
use tracing::Instrument;

pub(crate) use self::refusals::no_pod;
use self::refusals::{closing, full, other_request, refusal, short, unreadable, unwritten};
use crate::{
    drain,
    http_error::HttpError,
    leases::{Leases, PlaceError, Purchase, ReplyForm},
    price::Offer,
    progress::Progress,
    refund::PaymentPointer,
    till::{Payment, Till},
};

/// How long a client may take from the 402 to its payment.
const PENDING_TTL: Duration = Duration::from_secs(120);
/// The most orders that wait for their payment; asking is free, so it is bounded.
const MAX_PENDING: usize = 4096;
/// How long a refund may take before the rest is recorded as owed.
const REFUND_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a request waits while nothing can be written, as when the disk is full.
const UNWRITTEN_PATIENCE: Duration = Duration::from_secs(30);

/// How long a payer may take, once it is answered, to end its stream.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// All orders of this host.
pub(crate) struct Orders {
    leases: Arc<Leases>,
    till: Arc<Till>,
    /// How long the price may take to arrive once the client has asked again.
    payment_timeout: Duration,
    table: Mutex<Table>,
}

/// The orders that are not answered yet. One lock for both, so that a request finds its order in one of
/// the two or in neither.
#[derive(Default)]
struct Table {
    pending: HashMap<OrderId, Pending>,
    carried_out: HashMap<OrderId, CarriedOut>,
}

/// What an order comes to: an answer that is in the books and the same for ever, or an error that is kept
/// nowhere, after which the same request may be sent again.
type Outcome = Result<StoredResponse, HttpError>;

type Coming = watch::Receiver<Option<Outcome>>;

impl Table {
    /// The answer that is on its way for this request's token, if there is one.
    fn joined(&self, request: &PaidRequest) -> Result<Option<Coming>, HttpError> {
        match self.carried_out.get(&request.id) {
            None => Ok(None),
            Some(order) if order.digest == request.digest => Ok(Some(order.answer.clone())),
            Some(_) => Err(other_request()),
        }
    }

    /// Lets an order be paid from now on, if not too many wait already.
    fn await_payment(
        &mut self,
        till: &Till,
        id: OrderId,
        pending: Pending,
    ) -> Result<(), HttpError> {
        self.pending.retain(|id, order| {
            let keep = order.since.elapsed() < PENDING_TTL;
            if !keep {
                till.forget(id);
            }
            keep
        });
        if self.pending.len() >= MAX_PENDING {
            return Err(
                HttpError::new(StatusCode::SERVICE_UNAVAILABLE, "too many unpaid orders")
                    .cause(Trouble::HostFull)
                    .next("try again in a minute, or take another host"),
            );
        }
        till.expect(id, pending.price);
        self.pending.entry(id).or_insert(pending);
        Ok(())
    }
}

/// A request that has to be paid for.
#[derive(Clone)]
pub(crate) struct PaidRequest {
    pub(crate) id: OrderId,
    pub(crate) digest: RequestDigest,
    pub(crate) duration: Seconds,
    pub(crate) what: What,
    /// Who has signed it.
    pub(crate) owner: Option<KeyId>,
    /// Where he wants back what is not used.
    pub(crate) refund_to: Option<PaymentPointer>,
    pub(crate) form: ReplyForm,
}

impl PaidRequest {
    /// Who may get back what is not used of it; none if nobody has said.
    fn refund(&self, at_unix_ms: u64) -> Option<RefundRecord> {
        let What::Upload(upload) = &self.what else {
            return None;
        };
        (self.owner.is_some() || self.refund_to.is_some()).then(|| RefundRecord {
            id: self.id.into(),
            hash: upload.hash(),
            owner: self.owner.map(|key| *key.as_bytes()),
            destination: self.refund_to.as_ref().map(ToString::to_string),
            created_at_unix_ms: at_unix_ms,
        })
    }
}

#[derive(Clone)]
pub(crate) enum What {
    Upload(Arc<Upload>),
    Extend(ManifestHash),
}

impl What {
    fn hash(&self) -> ManifestHash {
        match self {
            Self::Upload(upload) => upload.hash(),
            Self::Extend(hash) => *hash,
        }
    }
}

/// What some time of a program costs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quotation {
    pub(crate) price: u64,
    pub(crate) size: Size,
    pub(crate) rate: Rate,
}

impl Quotation {
    fn of(size: Size, rate: Rate, duration: Seconds) -> Result<Self, HttpError> {
        let price = rate.price(duration).map_err(|_| {
            HttpError::new(StatusCode::BAD_REQUEST, "duration is too long to be priced")
                .next("ask for less time")
        })?;
        Ok(Self { price, size, rate })
    }
}

/// An order that waits for its payment. What it is for comes again with the request that is paid.
struct Pending {
    digest: RequestDigest,
    price: u64,
    /// Of the pod that it would start.
    size: Size,
    /// Empty for an extension.
    images: Vec<ResolvedImage>,
    since: Instant,
}

impl Pending {
    fn new(digest: RequestDigest, price: u64, size: Size, images: Vec<ResolvedImage>) -> Self {
        Self {
            digest,
            price,
            size,
            images,
            since: Instant::now(),
        }
    }
}

/// How far a request is.
enum Step {
    Joined(Coming),
    Costs(u64),
}

/// An order that is being carried out; those who ask again wait here.
struct CarriedOut {
    digest: RequestDigest,
    answer: Coming,
}

impl Orders {
    pub(crate) fn new(
        leases: Arc<Leases>,
        till: Arc<Till>,
        payment_timeout: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            leases,
            till,
            payment_timeout,
            table: Mutex::default(),
        })
    }

    /// What more time of this program costs: at the rate of its lease if it runs, else at that of a new one
    /// of its size.
    pub(crate) fn quote(
        &self,
        hash: &ManifestHash,
        machine: MachineName,
        duration: Seconds,
    ) -> Result<Quotation, HttpError> {
        let (size, rate) = match self.leases.shown(hash) {
            Some(shown) => (shown.size, shown.rate()),
            None => {
                let offer = self.offer(machine)?;
                (offer.size, offer.rate)
            }
        };
        Quotation::of(size, rate, duration)
    }

    /// A size that this host sells.
    fn offer(&self, machine: MachineName) -> Result<Offer, HttpError> {
        self.leases.rate.offer(machine).ok_or_else(|| {
            HttpError::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                format!("this host has no machine {:?}", machine.as_str()),
            )
            .detail(format!("it has {}", self.names_of_machines()))
            .cause(Trouble::ManifestInvalid)
            .next("name one that it has in the manifest's `machine`, or take another host")
        })
    }

    fn names_of_machines(&self) -> String {
        let offers = self.leases.rate.offers();
        let names: Vec<String> = offers.iter().map(|it| it.size.name.to_string()).collect();
        names.join(", ")
    }

    /// What a request costs.
    fn price(&self, request: &PaidRequest) -> Result<Quotation, HttpError> {
        match &request.what {
            What::Upload(upload) => {
                let machine = upload.manifest().machine();
                let quotation = self.quote(&upload.hash(), machine, request.duration)?;
                // It is extended if it runs; if that ends meanwhile, this is what is started.
                let sold = self.leases.rate.offer(machine);
                Ok(Quotation {
                    size: sold.map_or(quotation.size, |offer| offer.size),
                    ..quotation
                })
            }
            What::Extend(hash) => {
                let shown = self.leases.shown(hash).ok_or_else(|| no_pod(hash))?;
                Quotation::of(shown.size, shown.rate(), request.duration)
            }
        }
    }

    /// Takes a paid request as far as it goes: to its answer, or to the demand for money.
    pub(crate) async fn handle(self: &Arc<Self>, request: PaidRequest) -> Outcome {
        let joined = self.table().joined(&request)?;
        if let Some(answer) = joined {
            return self.outcome(answer).await;
        }
        let known = self.leases.store.order(request.id).await;
        if let Some(order) = known.map_err(|error| unreadable(&error))? {
            return match order.repeat(&request.digest).map_err(|_| other_request())? {
                Repeat::Answered(response) => Ok(response.clone()),
                // Open and in nobody's hands: left over by a crash, and settled at the next start.
                Repeat::Open => Err(HttpError::internal()),
            };
        }
        let price = match self.ready_to_pay(&request).await? {
            Step::Joined(answer) => return self.outcome(answer).await,
            Step::Costs(price) => price,
        };
        let payment = self.till.payment(&request.id);
        if payment.is_none() && price > 0 {
            return Err(self.demand(&request.id, price));
        }
        let (sender, answer) = watch::channel(None);
        let pending = {
            let mut table = self.table();
            match table.pending.remove(&request.id) {
                Some(pending) => {
                    let entry = CarriedOut {
                        digest: request.digest,
                        answer: answer.clone(),
                    };
                    table.carried_out.insert(request.id, entry);
                    Ok(pending)
                }
                // A second copy of this request was faster.
                None => Err(table.joined(&request)?),
            }
        };
        match pending {
            Ok(pending) => self.carry_out(request, pending, payment, sender),
            Err(Some(theirs)) => return self.outcome(theirs).await,
            Err(None) => return Err(self.demand(&request.id, price)),
        }
        self.outcome(answer).await
    }

    /// What an order that is carried out comes to. It goes on while nothing can be written, and who waits
    /// for it may come back.
    async fn outcome(&self, mut coming: Coming) -> Outcome {
        tokio::select! {
            biased;
            outcome = coming.wait_for(Option::is_some) => match outcome {
                Ok(outcome) => outcome.clone().unwrap_or_else(|| Err(HttpError::internal())),
                Err(_) => Err(HttpError::internal()),
            },
            () = self.leases.unwritten.lasts(UNWRITTEN_PATIENCE) => Err(unwritten()),
        }
    }

    /// Makes sure that the order is pending, checking at its first appearance all that can be checked
    /// without money.
    async fn ready_to_pay(&self, request: &PaidRequest) -> Result<Step, HttpError> {
        if let Some(pending) = self.table().pending.get(&request.id) {
            if pending.digest != request.digest {
                return Err(other_request());
            }
            return Ok(Step::Costs(pending.price));
        }
        self.leases.rules.check(&request.what.hash())?;
        let Quotation { price, size, .. } = self.price(request)?;
        let images = match &request.what {
            What::Extend(_) => {
                if self.leases.drain.is_on() {
                    return Err(drain::refusal());
                }
                Vec::new()
            }
            What::Upload(upload) => self.check_upload(upload, size).await?,
        };
        let mut table = self.table();
        // The same request may have come twice, and the other have got further meanwhile.
        if let Some(answer) = table.joined(request)? {
            return Ok(Step::Joined(answer));
        }
        let pending = Pending::new(request.digest, price, size, images);
        table.await_payment(&self.till, request.id, pending)?;
        Ok(Step::Costs(price))
    }

    /// Makes a client connect, for nothing, before it is told a price: from the connection it learns the
    /// asset. An error is the demand, until it has.
    pub(crate) fn connected(
        self: &Arc<Self>,
        id: OrderId,
        digest: RequestDigest,
    ) -> Result<(), HttpError> {
        let mut table = self.table();
        let known = table.pending.get(&id);
        if known.is_some_and(|known| known.digest != digest) {
            return Err(other_request());
        }
        let Some(payment) = self.till.payment(&id) else {
            let quote = Pending::new(digest, 0, Size::SMALL, Vec::new());
            table.await_payment(&self.till, id, quote)?;
            return Err(self.demand(&id, 0));
        };
        if table.pending.remove(&id).is_none() {
            // An order is being paid with this token.
            return Err(other_request());
        }
        drop(table);
        let orders = Arc::clone(self);
        self.leases.tasks.spawn(async move {
            payment.ended(END_TIMEOUT).await;
            payment.close().await;
            orders.till.forget(&id);
        });
        Ok(())
    }

    /// Whether a manifest may run here, and there is a place for such a pod or it runs already.
    pub(crate) fn check_room(
        &self,
        hash: &ManifestHash,
        machine: Machine,
    ) -> Result<(), HttpError> {
        self.leases.rules.check(hash)?;
        if self.leases.is_live(hash) {
            return Ok(());
        }
        self.leases.admission.room_for(machine).map_err(full)
    }

    async fn check_upload(
        &self,
        upload: &Upload,
        size: Size,
    ) -> Result<Vec<ResolvedImage>, HttpError> {
        let hash = upload.hash();
        let spec = self.leases.spec(upload)?;
        if self.leases.closing.is_cancelled() {
            return Err(closing());
        }
        if self.leases.drain.is_on() {
            return Err(drain::refusal());
        }
        self.check_room(&hash, size.machine)?;
        let progress = self.leases.progress.begin(hash);
        progress.phase(codius_api::Phase::Resolving);
        Ok(self.leases.supervisor.resolve(&spec).await?)
    }

    /// 402, with where to pay.
    fn demand(&self, id: &OrderId, price: u64) -> HttpError {
        let pay = format!("{} {price}", self.till.challenge(id));
        let pay = HeaderValue::from_str(&pay)
            .expect("an ILP address, base64 and digits are a header value");
        HttpError::new(StatusCode::PAYMENT_REQUIRED, "Payment Required")
            .next("pay over Interledger STREAM as the `Pay` header says, then send the same request again")
            .header(HeaderName::from_static("pay"), pay)
    }

    /// Carries an order out in a task of its own.
    fn carry_out(
        self: &Arc<Self>,
        request: PaidRequest,
        pending: Pending,
        payment: Option<Arc<Payment>>,
        sender: watch::Sender<Option<Outcome>>,
    ) {
        let id = request.id;
        let orders = Arc::clone(self);
        let span = tracing::info_span!("order", hash = %request.what.hash());
        self.leases.tasks.spawn(
            async move {
                let outcome = orders.fulfil(request, pending, payment.as_deref()).await;
                sender.send_replace(Some(outcome));
                orders.table().carried_out.remove(&id);
                if let Some(payment) = payment {
                    payment.ended(END_TIMEOUT).await;
                    payment.close().await;
                }
                // Only now: the payer's last packets are still answered.
                orders.till.forget(&id);
            }
            .instrument(span),
        );
    }

    async fn fulfil(
        &self,
        request: PaidRequest,
        pending: Pending,
        payment: Option<&Payment>,
    ) -> Outcome {
        let Pending {
            price,
            size,
            images,
            ..
        } = pending;
        let hash = request.what.hash();
        let order = Order {
            id: request.id,
            request: request.digest,
            hash,
            kind: match request.what {
                What::Upload(_) => OrderKind::Upload,
                What::Extend(_) => OrderKind::Extend,
            },
            duration: request.duration,
            price,
            state: OrderState::Open,
            payer: payment.and_then(Payment::payer),
            created_at_unix_ms: self.leases.clock.wall(),
        };
        if self.leases.drain.is_on() {
            return Err(drain::refusal());
        }
        // Room first: money is not taken for what there is no room for.
        let reservation = match &request.what {
            What::Upload(_) if !self.leases.is_live(&hash) => {
                let reservation = self.leases.admission.reserve(size.machine);
                Some(reservation.map_err(full)?)
            }
            What::Upload(_) | What::Extend(_) => None,
        };
        let mut opening = Batch::new().order(order.clone());
        let refund = request.refund(order.created_at_unix_ms);
        opening.refunds.extend(refund.clone());
        if let Err(error) = self.leases.store.commit(opening).await {
            // A second copy of the request may have been answered while this one was looked at.
            return match self.leases.store.order(order.id).await {
                Ok(Some(Order {
                    state: OrderState::Done { response } | OrderState::Failed { response },
                    ..
                })) => Ok(response),
                _ => Err(unreadable(&error)),
            };
        }
        if let Some(payment) = payment {
            // An order that is paid goes on; that the host ends it hears when it is placed.
            let collected = tokio::select! {
                biased;
                collected = payment.collect(price, self.payment_timeout) => collected,
                () = self.leases.closing.cancelled() => {
                    return self.give_back(order, Some(payment), closing()).await;
                }
            };
            if let Err(shortfall) = collected {
                let error = short(price, &shortfall, self.payment_timeout);
                return self.give_back(order, Some(payment), error).await;
            }
        }
        let progress = self.leases.progress.begin(hash);
        let placed = self
            .place(
                &request,
                order.clone(),
                images,
                reservation,
                refund.map(|refund| refund.id),
                &progress,
            )
            .await;
        match placed {
            Ok(response) => Ok(response),
            Err(error) => {
                let outcome = self.give_back(order, payment, refusal(error, &hash)).await;
                // Others may watch a pod of this hash that goes on.
                let goes_on = self.leases.shown(&hash).is_some();
                if matches!(request.what, What::Upload(_)) && !goes_on {
                    progress.push(failed(&outcome));
                }
                outcome
            }
        }
    }

    async fn place(
        &self,
        request: &PaidRequest,
        order: Order,
        images: Vec<ResolvedImage>,
        reservation: Option<Reservation>,
        refund: Option<RefundId>,
        progress: &Arc<Progress>,
    ) -> Result<StoredResponse, PlaceError> {
        match &request.what {
            What::Extend(_) => self.leases.extend(order, request.form).await,
            What::Upload(upload) => {
                let purchase = Purchase {
                    order,
                    upload: Arc::clone(upload),
                    images,
                    reservation,
                    progress: Arc::clone(progress),
                    owner: request.owner,
                    refund,
                    form: request.form,
                };
                self.leases.place(purchase).await
            }
        }
    }

    /// What is left of an order that has failed is due to its payer, if it is known who he is, else owed
    /// to its program.
    async fn put_aside(
        &self,
        batch: &mut Batch,
        order: &Order,
        amount: u64,
    ) -> Result<(), StoreError> {
        let leases = &self.leases;
        let (from, refund) = (Account::Order(order.id), RefundId::from(order.id));
        let Some(refund) = leases.store.refund(refund).await? else {
            let owed = Account::Owed(order.hash);
            leases.transfer(batch, Reason::Return, from, owed, amount);
            return Ok(());
        };
        leases.transfer(batch, Reason::Return, from, refund.account(), amount);
        if amount > 0 {
            let at_unix_ms = leases.clock.wall();
            let step = (refund.record.id, RefundStep::Due { at_unix_ms });
            batch.refund_steps.push(step);
        }
        Ok(())
    }

    /// Sends back what an order still holds, records the rest as owed, and answers.
    async fn give_back(
        &self,
        mut order: Order,
        payment: Option<&Payment>,
        error: HttpError,
    ) -> Outcome {
        let account = Account::Order(order.id);
        if let Some(payment) = payment {
            payment.shut().await;
        }
        let held = match self.balance(&account).await {
            Ok(held) => held,
            Err(error) => return Err(unreadable(&error)),
        };
        if held > 0
            && let Some(payment) = payment
        {
            payment.refund(held, REFUND_TIMEOUT).await;
        }
        // What left is what the ledger says, not what we meant to send.
        let owed = match self.balance(&account).await {
            Ok(rest) => rest,
            Err(error) => return Err(unreadable(&error)),
        };
        let refunded = held.saturating_sub(owed);
        let response = response_of(&error.money(refunded, owed));
        tracing::warn!(status = response.status, refunded, owed, "order failed");
        order
            .fail(response.clone())
            .expect("an order is answered once");
        let mut batch = Batch::new().order(order.clone());
        let recorded = match self.put_aside(&mut batch, &order, owed).await {
            Ok(()) => self.leases.commit_at_last(batch).await,
            Err(error) => Err(error),
        };
        self.leases.claims.wake();
        match recorded {
            Ok(()) => Ok(response),
            // The next start of the host answers.
            Err(error) => Err(unreadable(&error)),
        }
    }

    /// Answers the orders that an earlier process left open: their money is owed to their program.
    /// `undone` are programs whose start was undone, and whose money is recorded as owed already.
    pub(crate) async fn recover(
        &self,
        open: Vec<Order>,
        undone: &[ManifestHash],
        balances: &BTreeMap<Account, i64>,
    ) -> Result<(), StoreError> {
        for mut order in open {
            let account = Account::Order(order.id);
            let held = self.balance(&account).await?;
            let was_starting = order.kind == OrderKind::Upload && undone.contains(&order.hash);
            // The order's money had gone to its lease, and from there to what is owed. (Another order of the
            // same program may have been open, too, with nothing paid yet.)
            let last = self.leases.store.entries(&account, 1).await?;
            let was_used = last.first().map(|entry| entry.reason) == Some(Reason::Payment);
            let owed = if held == 0 && was_starting && was_used {
                order.price
            } else {
                held
            };
            let text = "the host was stopped before the pod ran";
            let error = HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, text)
                .cause(Trouble::HostStopped)
                .next(
                    "upload the same manifest again: what is owed is used for it, unless it goes \
                     where you wanted it",
                )
                .money(0, owed);
            order
                .fail(response_of(&error))
                .expect("an open order has no answer");
            let mut batch = Batch::new();
            self.put_aside(&mut batch, &order, held).await?;
            self.leases.store.commit(batch.order(order)).await?;
        }
        // Money that came too late for an order that was answered already.
        for account in balances.keys() {
            let Account::Order(id) = account else {
                continue;
            };
            let late = self.balance(account).await?;
            if let Some(order) = self.leases.store.order(*id).await?
                && late > 0
            {
                let mut batch = Batch::new();
                self.put_aside(&mut batch, &order, late).await?;
                self.leases.store.commit(batch).await?;
            }
        }
        Ok(())
    }

    async fn balance(&self, account: &Account) -> Result<u64, StoreError> {
        Ok(u64::try_from(self.leases.store.balance(account).await?).unwrap_or_default())
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn response_of(error: &HttpError) -> StoredResponse {
    let body = serde_json::to_string(error.body()).expect("an error body is JSON");
    StoredResponse {
        status: error.status(),
        body,
    }
}

/// The event that tells a failed start to those who watch it.
fn failed(outcome: &Outcome) -> LeaseEventKind {
    let body: Option<codius_api::ErrorBody> = match outcome {
        Ok(response) => serde_json::from_str(&response.body).ok(),
        Err(error) => Some(error.body().clone()),
    };
    let (cause, message, refunded, owed) = match body {
        Some(body) => (body.cause, body.message, body.refunded, body.owed),
        None => (None, String::new(), None, None),
    };
    LeaseEventKind::Failed {
        cause: cause.unwrap_or_else(|| Trouble::HostError.into()),
        // Without what the program wrote, which is for its uploader alone.
        message: message.lines().next().unwrap_or_default().to_owned(),
        refunded: refunded.unwrap_or(Units::ZERO),
        owed: owed.unwrap_or(Units::ZERO),
    }
}
