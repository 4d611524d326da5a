//! The connector as the rest of the host sees it: performs the decisions of `core` on tokio.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use ilp_packet::{Address, Condition, ErrorCode, Fulfill, Prepare, Reject, Reply};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::account::{AccountConfig, AccountError, AccountId, AccountStatistics, LedgerAccount};
use crate::clock::Clock;
use crate::core::{Admitted, Core, NextHop, Outcome, Source, Ticket};
use crate::ledger::{Ledger, LedgerError, Movement};
use crate::link::{Attachment, Link, LinkError};
use crate::receiver::{Commit, CommitState, Receiver, Step, record};
use crate::spending::SpendLimit;

/// What a connector is.
#[derive(Debug, Clone)]
pub struct ConnectorConfig {
    /// Our own address. Children are below it.
    pub address: Address,
    /// The one asset of all accounts, such as `XRP`.
    pub asset_code: String,
    /// Amounts are in units of 10^-scale of the asset.
    pub asset_scale: u8,
    /// Longest time that a packet may be held.
    pub max_hold: Duration,
    /// What we need to pass a Fulfill back; each packet's expiry is lowered by it.
    pub min_message_window: Duration,
}

impl ConnectorConfig {
    /// A connector with the usual times: 30 s of hold, a window of 1 s.
    #[must_use]
    pub fn new(address: Address, asset_code: impl Into<String>, asset_scale: u8) -> Self {
        Self {
            address,
            asset_code: asset_code.into(),
            asset_scale,
            max_hold: Duration::from_secs(30),
            min_message_window: Duration::from_secs(1),
        }
    }
}

/// An ILPv4 connector. Clones are the same connector.
#[derive(Clone)]
pub struct Connector(Arc<Inner>);

struct Inner {
    config: ConnectorConfig,
    core: Mutex<Core>,
    ledger: Arc<dyn Ledger>,
    clock: Arc<dyn Clock>,
    /// Number of packets in flight.
    in_flight: watch::Sender<usize>,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector")
            .field("address", &self.0.config.address.as_str())
            .finish_non_exhaustive()
    }
}

impl Connector {
    /// A connector without accounts.
    #[must_use]
    pub fn new(config: ConnectorConfig, ledger: Arc<dyn Ledger>, clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Inner {
            core: Mutex::new(Core::new(config.clone())),
            config,
            ledger,
            clock,
            in_flight: watch::Sender::new(0),
        }))
    }

    /// Our own address.
    #[must_use]
    pub fn address(&self) -> Address {
        self.0.config.address.clone()
    }

    /// Code and scale of the one asset.
    #[must_use]
    pub fn asset(&self) -> (&str, u8) {
        (&self.0.config.asset_code, self.0.config.asset_scale)
    }

    /// The clock that packets are judged by.
    #[must_use]
    pub fn clock(&self) -> Arc<dyn Clock> {
        self.0.clock.clone()
    }

    /// Opens an account. One that was closed while packets were in flight is revived with its
    /// balance as long as they are.
    ///
    /// # Errors
    /// If the name or the segment is taken.
    pub fn open_account(&self, config: AccountConfig) -> Result<(), AccountError> {
        self.core(|core| core.open_account(config))
    }

    /// Closes an account. Packets in flight are still settled.
    ///
    /// # Errors
    /// If there is no such account.
    pub fn close_account(&self, id: &AccountId) -> Result<(), AccountError> {
        self.core(|core| core.close_account(id))
    }

    /// Connects an account to its neighbour, in place of any earlier link.
    ///
    /// # Errors
    /// If there is no such account.
    pub fn attach_link(
        &self,
        id: &AccountId,
        link: Arc<dyn Link>,
    ) -> Result<Attachment, AccountError> {
        self.core(|core| core.attach(id, link))
    }

    /// Disconnects an account, unless another link has been attached since. Says whether it did.
    pub fn detach_link(&self, id: &AccountId, attachment: Attachment) -> bool {
        self.core(|core| core.detach(id, attachment))
    }

    /// Gives the addresses below `segment` to a receiver inside the host.
    ///
    /// # Errors
    /// If the segment is taken.
    pub fn register_receiver(
        &self,
        segment: &str,
        receiver: Arc<dyn Receiver>,
    ) -> Result<(), AccountError> {
        self.core(|core| core.register_receiver(segment.into(), receiver))
    }

    /// The address of a child.
    #[must_use]
    pub fn account_address(&self, id: &AccountId) -> Option<Address> {
        self.core(|core| core.account_address(id))
    }

    /// What the host owes the neighbour, packets in flight not counted.
    #[must_use]
    pub fn balance(&self, id: &AccountId) -> Option<i128> {
        self.core(|core| core.balance(id))
    }

    /// What happened on the account since it was opened.
    #[must_use]
    pub fn statistics(&self, id: &AccountId) -> Option<AccountStatistics> {
        self.core(|core| core.statistics(id))
    }

    /// Whether the account was stopped by a write that failed.
    #[must_use]
    pub fn is_stopped(&self, id: &AccountId) -> Option<bool> {
        self.core(|core| core.is_stopped(id))
    }

    /// Handles a packet from a neighbour.
    pub async fn prepare(&self, from: &AccountId, prepare: Prepare) -> Reply {
        self.dispatch(from, None, prepare).await
    }

    /// Handles a packet from a neighbour, or from the program behind `sub_account` at that
    /// neighbour. The packet is decided now and runs to its end even if the reply is dropped.
    #[must_use = "the reply has to go back to the neighbour"]
    pub fn dispatch(
        &self,
        from: &AccountId,
        sub_account: Option<&str>,
        prepare: Prepare,
    ) -> Dispatch {
        self.start(
            Source::Account {
                id: from,
                sub_account,
            },
            Some(from.clone()),
            prepare,
        )
    }

    /// Sends a packet of the host's own: a refund, for example. The amount is taken from `debit` in
    /// the ledger. The connector keeps no balance for that account; `limit` bounds what it spends.
    /// The packet runs to its end even if the reply is dropped.
    #[must_use = "the reply says whether the amount was paid"]
    pub fn originate(
        &self,
        debit: &LedgerAccount,
        limit: &SpendLimit,
        prepare: Prepare,
    ) -> Dispatch {
        self.start(Source::Host { debit, limit }, None, prepare)
    }

    /// Stops taking packets (they get T03) and waits until none is in flight. The caller sets the
    /// deadline; dropping the future leaves the connector closed.
    pub async fn drain(&self) {
        self.core(Core::close);
        let mut in_flight = self.0.in_flight.subscribe();
        // Cannot fail: `self` keeps the sender alive.
        let _ = in_flight.wait_for(|count| *count == 0).await;
    }

    fn start(&self, source: Source<'_>, from: Option<AccountId>, prepare: Prepare) -> Dispatch {
        let now = self.0.clock.now();
        let admitted = self.core(|core| match core.answer_ildcp(source, &prepare) {
            Some(reply) => Err(reply),
            None => core.admit(now, source, prepare).map_err(Err),
        });
        match admitted {
            Err(reply) => Dispatch(State::Done(Some(reply))),
            Ok(admitted) => {
                let Admitted {
                    ticket,
                    next,
                    forward,
                    wait,
                } = admitted;
                let passage = Passage::new(self.0.clone(), ticket, wait);
                let task = tokio::spawn(passage.run(next, from, forward));
                Dispatch(State::Running(task, self.0.clone()))
            }
        }
    }

    fn core<R>(&self, work: impl FnOnce(&mut Core) -> R) -> R {
        self.0.core(work)
    }
}

impl Inner {
    fn core<R>(&self, work: impl FnOnce(&mut Core) -> R) -> R {
        work(&mut self.core.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn reject(&self, code: ErrorCode, message: &str) -> Reject {
        Reject::new(code, Some(&self.config.address), message)
    }
}

/// The reply to a packet, as a future. Dropping it does not stop the packet.
#[derive(Debug)]
pub struct Dispatch(State);

enum State {
    Done(Option<Reply>),
    Running(JoinHandle<Reply>, Arc<Inner>),
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Done(_) => "Done",
            Self::Running(..) => "Running",
        })
    }
}

impl Future for Dispatch {
    type Output = Reply;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Reply> {
        match &mut self.0 {
            State::Done(reply) => Poll::Ready(reply.take().unwrap_or_else(|| {
                Err(Reject::new(
                    ErrorCode::InternalError,
                    None,
                    "reply was taken already",
                ))
            })),
            State::Running(task, inner) => Pin::new(task).poll(context).map(|reply| {
                // The task panicked, or the runtime is going down.
                reply.unwrap_or_else(|_| {
                    Err(inner.reject(ErrorCode::InternalError, "packet handling failed"))
                })
            }),
        }
    }
}

/// The hold of one admitted packet. Whatever happens to the packet's task, dropping the hold
/// finishes the packet in the way that fits what was recorded.
struct Hold {
    inner: Arc<Inner>,
    ticket: Option<Ticket>,
    state: Arc<CommitState>,
    /// How the packet ended, as far as the ledger does not say otherwise.
    outcome: Outcome,
}

impl Hold {
    fn new(inner: Arc<Inner>, ticket: Ticket) -> Self {
        inner.in_flight.send_modify(|count| *count += 1);
        Self {
            inner,
            ticket: Some(ticket),
            state: Arc::default(),
            outcome: Outcome::Rejected,
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let outcome = match self.state.get() {
            Step::Recorded => Outcome::Fulfilled,
            Step::Recording | Step::Failed => Outcome::InDoubt,
            Step::Open | Step::Expired => self.outcome,
        };
        if let Some(ticket) = self.ticket.take() {
            self.inner.core(|core| core.finish(ticket, outcome));
        }
        self.inner.in_flight.send_modify(|count| *count -= 1);
    }
}

/// One admitted packet on its way to the next hop.
struct Passage {
    inner: Arc<Inner>,
    hold: Hold,
    deadline: Instant,
    amount: u64,
    condition: Condition,
    debit: LedgerAccount,
    credit: Option<LedgerAccount>,
}

impl Passage {
    fn new(inner: Arc<Inner>, ticket: Ticket, wait: Duration) -> Self {
        Self {
            deadline: Instant::now() + wait,
            amount: ticket.amount,
            condition: ticket.reference,
            debit: ticket.debit.clone(),
            credit: ticket.credit.clone(),
            hold: Hold::new(inner.clone(), ticket),
            inner,
        }
    }

    async fn run(mut self, next: NextHop, from: Option<AccountId>, forward: Prepare) -> Reply {
        let reply = match next {
            NextHop::Link(link) => self.forward(&*link, forward).await,
            NextHop::Receiver(receiver) => self.receive(&*receiver, from.as_ref(), forward).await,
        };
        // The balances have to be right before the source hears of it.
        drop(self.hold);
        reply
    }

    async fn forward(&mut self, link: &dyn Link, prepare: Prepare) -> Reply {
        let answered = tokio::time::timeout_at(self.deadline, link.send(prepare)).await;
        let reply = match answered {
            // A reply that lies ready when we are woken late is late all the same.
            Ok(_) if Instant::now() >= self.deadline => return self.timed_out(),
            Err(_) | Ok(Err(LinkError::TimedOut)) => return self.timed_out(),
            Ok(Err(error)) => {
                let code = match error {
                    LinkError::Closed => ErrorCode::PeerUnreachable,
                    LinkError::Busy => ErrorCode::PeerBusy,
                    LinkError::NoDestination | LinkError::NotIlp(_) => ErrorCode::Unreachable,
                    LinkError::Unencodable => ErrorCode::InvalidPacket,
                    LinkError::TimedOut => ErrorCode::TransferTimedOut,
                };
                return Err(self.inner.reject(code, &error.to_string()));
            }
            Ok(Ok(reply)) => reply,
        };
        let fulfill = reply?;
        if fulfill.fulfillment.condition() != self.condition {
            self.hold.outcome = Outcome::WrongFulfill;
            let message = "the fulfillment does not match the condition";
            return Err(self.inner.reject(ErrorCode::WrongCondition, message));
        }
        self.hold.outcome = Outcome::Fulfilled;
        let Some(credit) = self.credit.clone() else {
            return Ok(fulfill);
        };
        let movement = Movement {
            debit: self.debit.clone(),
            credit,
            amount: self.amount,
            reference: self.condition.0,
        };
        self.hold.state.set(Step::Recording);
        match record(&*self.inner.ledger, movement).await {
            Ok(()) => {
                self.hold.state.set(Step::Recorded);
                Ok(fulfill)
            }
            Err(error) => {
                // The next hop has proved that it was paid and we cannot write it down, not even
                // if the ledger merely refuses: our balances and the ledger disagree.
                self.hold.state.set(Step::Failed);
                Err(self.write_failed(&error))
            }
        }
    }

    async fn receive(
        &mut self,
        receiver: &dyn Receiver,
        from: Option<&AccountId>,
        prepare: Prepare,
    ) -> Reply {
        let state = self.hold.state.clone();
        let commit = Commit {
            state: state.clone(),
            ledger: self.inner.ledger.clone(),
            debit: self.debit.clone(),
            amount: self.amount,
            reference: self.condition.0,
        };
        let mut receiving = receiver.receive(from, prepare, commit);
        let reply = tokio::select! {
            biased;
            reply = &mut receiving => reply,
            () = tokio::time::sleep_until(self.deadline) => {
                if state.advance(Step::Open, Step::Expired) {
                    return self.timed_out();
                }
                // The amount is being recorded; only the outcome of that may decide.
                receiving.await
            }
        };
        match (state.get(), reply) {
            (Step::Recorded, Ok(fulfill)) => self.check_receiver(fulfill),
            (Step::Recorded, Err(reject)) => {
                // The receiver broke its contract. The ledger has the money, so it is kept there
                // for a person to look at, rather than guessed back.
                tracing::error!(
                    account = ?from,
                    code = %reject.code,
                    amount = self.amount,
                    "receiver rejected a packet after recording its amount"
                );
                Err(reject)
            }
            (Step::Open, Ok(fulfill)) if self.amount == 0 => {
                self.hold.outcome = Outcome::Fulfilled;
                self.check_receiver(fulfill)
            }
            (Step::Open, Ok(_)) => {
                tracing::error!(account = ?from, "receiver fulfilled without recording the amount");
                Err(self
                    .inner
                    .reject(ErrorCode::InternalError, "packet was not recorded"))
            }
            (Step::Expired, _) => self.timed_out(),
            (Step::Recording | Step::Failed, _) => Err(self.write_failed_at(from)),
            (Step::Open, Err(reject)) => Err(reject),
        }
    }

    fn check_receiver(&mut self, fulfill: Fulfill) -> Reply {
        if fulfill.fulfillment.condition() == self.condition {
            return Ok(fulfill);
        }
        self.hold.outcome = Outcome::WrongFulfill;
        tracing::error!(
            amount = self.amount,
            "receiver's fulfillment does not match the condition"
        );
        let message = "the fulfillment does not match the condition";
        Err(self.inner.reject(ErrorCode::WrongCondition, message))
    }

    fn timed_out(&mut self) -> Reply {
        self.hold.outcome = Outcome::TimedOut;
        Err(self
            .inner
            .reject(ErrorCode::TransferTimedOut, "packet expired"))
    }

    fn write_failed(&self, error: &LedgerError) -> Reject {
        tracing::error!(
            debit = %self.debit,
            credit = ?self.credit,
            amount = self.amount,
            error = error as &dyn std::error::Error,
            "movement could not be recorded; its accounts are stopped"
        );
        self.inner
            .reject(ErrorCode::InternalError, "payment could not be recorded")
    }

    fn write_failed_at(&self, from: Option<&AccountId>) -> Reject {
        tracing::error!(
            account = ?from,
            debit = %self.debit,
            amount = self.amount,
            "movement to a receiver could not be recorded; the account is stopped"
        );
        self.inner
            .reject(ErrorCode::InternalError, "payment could not be recorded")
    }
}
