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

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::http::{HeaderName, HeaderValue, StatusCode};
use codius_api::{LeaseEventKind, Trouble, Units};
use codius_ledger::{
    Account, Order, OrderId, OrderKind, OrderState, Reason, Repeat, RequestDigest, Seconds,
    StoredResponse,
};
use codius_manifest::{ManifestHash, Upload};
use codius_pod::{Machine, Reservation, ResolvedImage};
use codius_store::{Batch, StoreError};
use tokio::sync::watch;
use tracing::Instrument;

use crate::{
    clock::wall_now,
    http_error::HttpError,
    leases::{Leases, PlaceError, Purchase, transfer},
    progress::Progress,
    till::{Payment, Shortfall, Till},
};

/// How long a client may take from the 402 to its payment.
const PENDING_TTL: Duration = Duration::from_secs(120);
/// The most orders that wait for their payment; asking is free, so it is bounded.
const MAX_PENDING: usize = 4096;
/// How long a refund may take before the rest is recorded as owed.
const REFUND_TIMEOUT: Duration = Duration::from_secs(15);

/// All orders of this host.
pub(crate) struct Orders {
    leases: Arc<Leases>,
    till: Arc<Till>,
    /// How long the price may take to arrive once the client has asked again.
    payment_timeout: Duration,
    pending: Mutex<HashMap<OrderId, Pending>>,
    carried_out: Mutex<HashMap<OrderId, CarriedOut>>,
}

/// A request that has to be paid for.
#[derive(Clone)]
pub(crate) struct PaidRequest {
    pub(crate) id: OrderId,
    pub(crate) digest: RequestDigest,
    pub(crate) duration: Seconds,
    pub(crate) what: What,
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

/// An order that waits for its payment.
struct Pending {
    request: PaidRequest,
    price: u64,
    /// Empty for an extension.
    images: Vec<ResolvedImage>,
    since: Instant,
}

/// An order that is being carried out; those who ask again wait here.
struct CarriedOut {
    digest: RequestDigest,
    answer: watch::Receiver<Option<StoredResponse>>,
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
            pending: Mutex::default(),
            carried_out: Mutex::default(),
        })
    }

    /// What a request costs.
    pub(crate) fn price(&self, duration: Seconds) -> Result<u64, HttpError> {
        self.leases.rate.price(duration).map_err(|_| {
            HttpError::new(StatusCode::BAD_REQUEST, "duration is too long to be priced")
                .next("ask for less time")
        })
    }

    /// Takes a paid request as far as it goes: to its answer, or to the demand for money.
    pub(crate) async fn handle(
        self: &Arc<Self>,
        request: PaidRequest,
    ) -> Result<StoredResponse, HttpError> {
        if let Some(answer) = self.joined(&request)? {
            return wait(answer).await;
        }
        let known = self
            .leases
            .store
            .order(request.id)
            .await
            .map_err(|error| unreadable(&error))?;
        if let Some(order) = known {
            return match order.repeat(&request.digest).map_err(|_| other_request())? {
                Repeat::Answered(response) => Ok(response.clone()),
                // Open and in nobody's hands: left over by a crash, and settled at the next start.
                Repeat::Open => Err(HttpError::internal()),
            };
        }
        let price = self.ready_to_pay(&request).await?;
        let payment = self.till.payment(&request.id);
        if payment.is_none() && price > 0 {
            return Err(self.demand(&request.id, price));
        }
        let Some(pending) = self.lock_pending().remove(&request.id) else {
            // A second copy of this request was faster.
            return match self.joined(&request)? {
                Some(answer) => wait(answer).await,
                None => Err(self.demand(&request.id, price)),
            };
        };
        wait(self.carry_out(pending, payment)).await
    }

    /// The answer that is on its way for this token, if there is one.
    fn joined(
        &self,
        request: &PaidRequest,
    ) -> Result<Option<watch::Receiver<Option<StoredResponse>>>, HttpError> {
        let carried_out = self
            .carried_out
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match carried_out.get(&request.id) {
            None => Ok(None),
            Some(order) if order.digest == request.digest => Ok(Some(order.answer.clone())),
            Some(_) => Err(other_request()),
        }
    }

    /// Makes sure that the order is pending, checking at its first appearance all that can be checked
    /// without money. Returns the price.
    async fn ready_to_pay(&self, request: &PaidRequest) -> Result<u64, HttpError> {
        {
            let pending = self.lock_pending();
            if let Some(pending) = pending.get(&request.id) {
                if pending.request.digest != request.digest {
                    return Err(other_request());
                }
                return Ok(pending.price);
            }
        }
        let price = self.price(request.duration)?;
        let images = match &request.what {
            What::Extend(hash) => {
                if self.leases.shown(hash).is_none() {
                    return Err(no_pod(hash));
                }
                Vec::new()
            }
            What::Upload(upload) => self.check_upload(upload).await?,
        };
        let mut pending = self.lock_pending();
        pending.retain(|id, order| {
            let keep = order.since.elapsed() < PENDING_TTL;
            if !keep {
                self.till.forget(id);
            }
            keep
        });
        if pending.len() >= MAX_PENDING {
            return Err(
                HttpError::new(StatusCode::SERVICE_UNAVAILABLE, "too many unpaid orders")
                    .cause(Trouble::HostFull)
                    .next("try again in a minute, or take another host"),
            );
        }
        self.till.expect(request.id, price);
        pending.insert(
            request.id,
            Pending {
                request: request.clone(),
                price,
                images,
                since: Instant::now(),
            },
        );
        Ok(price)
    }

    async fn check_upload(&self, upload: &Upload) -> Result<Vec<ResolvedImage>, HttpError> {
        let hash = upload.hash();
        let spec = self.leases.spec(upload)?;
        if self.leases.closing.is_cancelled() {
            return Err(closing());
        }
        if !self.leases.is_live(&hash) && !self.leases.admission.has_room_for(Machine::SMALL) {
            return Err(full());
        }
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
        pending: Pending,
        payment: Option<Arc<Payment>>,
    ) -> watch::Receiver<Option<StoredResponse>> {
        let (sender, answer) = watch::channel(None);
        let id = pending.request.id;
        let entry = CarriedOut {
            digest: pending.request.digest,
            answer: answer.clone(),
        };
        self.carried_out
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, entry);
        let orders = Arc::clone(self);
        let span = tracing::info_span!("order", hash = %pending.request.what.hash());
        self.leases.tasks.spawn(
            async move {
                let response = orders.fulfil(pending, payment.as_deref()).await;
                // The answer is in the store by now, except where it could not be written.
                sender.send_replace(Some(response));
                orders
                    .carried_out
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(&id);
                if let Some(payment) = payment {
                    payment.close().await;
                }
                orders.till.forget(&id);
            }
            .instrument(span),
        );
        answer
    }

    async fn fulfil(&self, pending: Pending, payment: Option<&Payment>) -> StoredResponse {
        let Pending {
            request,
            price,
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
            created_at_unix_ms: wall_now(),
        };
        // Room first: money is not taken for what there is no room for.
        let reservation = match &request.what {
            What::Upload(_) if !self.leases.is_live(&hash) => {
                match self.leases.admission.reserve(Machine::SMALL) {
                    Ok(reservation) => Some(reservation),
                    Err(_) => return response_of(&full()),
                }
            }
            What::Upload(_) | What::Extend(_) => None,
        };
        if let Err(error) = self
            .leases
            .store
            .commit(Batch::new().order(order.clone()))
            .await
        {
            return response_of(&unreadable(&error));
        }
        if let Some(payment) = payment
            && let Err(shortfall) = payment.collect(price, self.payment_timeout).await
        {
            return self
                .give_back(
                    order,
                    Some(payment),
                    short(price, &shortfall, self.payment_timeout),
                )
                .await;
        }
        let progress = self.leases.progress.begin(hash);
        let placed = self
            .place(&request, order.clone(), images, reservation, &progress)
            .await;
        match placed {
            Ok(response) => response,
            Err(error) => {
                let extended = matches!(request.what, What::Extend(_));
                let response = self.give_back(order, payment, refusal(error, &hash)).await;
                if !extended {
                    progress.push(failed(&response));
                }
                response
            }
        }
    }

    async fn place(
        &self,
        request: &PaidRequest,
        order: Order,
        images: Vec<ResolvedImage>,
        reservation: Option<Reservation>,
        progress: &Arc<Progress>,
    ) -> Result<StoredResponse, PlaceError> {
        match &request.what {
            What::Extend(_) => self.leases.extend(order).await,
            What::Upload(upload) => {
                let purchase = Purchase {
                    order,
                    upload: Arc::clone(upload),
                    images,
                    reservation,
                    progress: Arc::clone(progress),
                };
                self.leases.place(purchase).await
            }
        }
    }

    /// Sends back what an order still holds, records the rest as owed, and answers.
    async fn give_back(
        &self,
        mut order: Order,
        payment: Option<&Payment>,
        error: HttpError,
    ) -> StoredResponse {
        let account = Account::Order(order.id);
        let held = match self.balance(&account).await {
            Ok(held) => held,
            Err(error) => return response_of(&unreadable(&error)),
        };
        if held > 0
            && let Some(payment) = payment
        {
            payment.refund(held, REFUND_TIMEOUT).await;
        }
        // What left is what the ledger says, not what we meant to send.
        let owed = match self.balance(&account).await {
            Ok(rest) => rest,
            Err(error) => return response_of(&unreadable(&error)),
        };
        let refunded = held - owed;
        let response = response_of(&error.money(refunded, owed));
        tracing::warn!(status = response.status, refunded, owed, "order failed");
        order
            .fail(response.clone())
            .expect("an order is answered once");
        let mut batch = Batch::new().order(order.clone());
        transfer(
            &mut batch,
            Reason::Return,
            account,
            Account::Owed(order.hash),
            owed,
        );
        if let Err(error) = self.leases.store.commit(batch).await {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "refund not recorded"
            );
        }
        response
    }

    /// Answers the orders that an earlier process left open: their money is owed to their program.
    pub(crate) async fn recover(&self, open: Vec<Order>) -> Result<(), StoreError> {
        for order in open {
            let error = HttpError::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the host was stopped before the pod ran",
            )
            .cause(Trouble::HostStopped)
            .next("upload the same manifest again: what is owed is used for it");
            self.give_back(order, None, error).await;
        }
        Ok(())
    }

    async fn balance(&self, account: &Account) -> Result<u64, StoreError> {
        Ok(u64::try_from(self.leases.store.balance(account).await?).unwrap_or_default())
    }

    fn lock_pending(&self) -> std::sync::MutexGuard<'_, HashMap<OrderId, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn wait(
    mut answer: watch::Receiver<Option<StoredResponse>>,
) -> Result<StoredResponse, HttpError> {
    match answer.wait_for(Option::is_some).await {
        Ok(answer) => answer.clone().ok_or_else(HttpError::internal),
        Err(_) => Err(HttpError::internal()),
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
fn failed(response: &StoredResponse) -> LeaseEventKind {
    let body: Option<codius_api::ErrorBody> = serde_json::from_str(&response.body).ok();
    let (cause, message, refunded, owed) = match body {
        Some(body) => (body.cause, body.message, body.refunded, body.owed),
        None => (None, String::new(), None, None),
    };
    LeaseEventKind::Failed {
        cause: cause.unwrap_or_else(|| Trouble::HostError.into()),
        message,
        refunded: refunded.unwrap_or(Units::ZERO),
        owed: owed.unwrap_or(Units::ZERO),
    }
}

fn refusal(error: PlaceError, hash: &ManifestHash) -> HttpError {
    match error {
        PlaceError::Start(error) => error.into(),
        PlaceError::Full(_) => full(),
        PlaceError::Closing => closing(),
        PlaceError::NotRunning => no_pod(hash),
        PlaceError::Store(error) => unreadable(&error),
    }
}

fn short(price: u64, shortfall: &Shortfall, patience: Duration) -> HttpError {
    let (text, cause) = match shortfall {
        Shortfall::TooSmall { received, offered } => (
            format!(
                "the price is {price}, and the payer sends at most {offered}; {received} arrived"
            ),
            Trouble::PaymentTooSmall,
        ),
        Shortfall::Interrupted { received } => (
            format!("the payment stopped at {received} of {price}: the payer's connection ended"),
            Trouble::PaymentInterrupted,
        ),
        Shortfall::TimedOut { received } => (
            format!("{received} of {price} arrived in {} s", patience.as_secs()),
            Trouble::PaymentTooSmall,
        ),
    };
    HttpError::new(
        StatusCode::PAYMENT_REQUIRED,
        "Failed to get payment before timeout",
    )
    .detail(text)
    .cause(cause)
    .next("pay the full price with a new Pay-Token")
}

pub(crate) fn no_pod(hash: &ManifestHash) -> HttpError {
    HttpError::new(
        StatusCode::NOT_FOUND,
        format!("no pod found with id. id={hash}"),
    )
    .next("upload its manifest to run it again")
}

fn other_request() -> HttpError {
    HttpError::new(
        StatusCode::BAD_REQUEST,
        "this `Pay-Token` belongs to another request.",
    )
    .cause(Trouble::TokenUsed)
    .next("choose 16 new random bytes for each request")
}

fn full() -> HttpError {
    HttpError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "Memory usage exceeded. Send pod request later.",
    )
    .detail("this host has no room for another pod")
    .cause(Trouble::HostFull)
    .next("take another host, or come back later")
}

fn closing() -> HttpError {
    HttpError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "this host is being shut down",
    )
    .cause(Trouble::HostStopped)
    .next("take another host, or come back later")
}

fn unreadable(error: &StoreError) -> HttpError {
    tracing::error!(error = error as &dyn std::error::Error, "store");
    HttpError::internal()
}
