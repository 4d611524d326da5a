//! One admitted packet at a receiver inside the host, in a task of its own.

use std::sync::Arc;

use ilp_packet::{Condition, ErrorCode, Fulfill, Prepare, Reply};
use tokio::time::Instant;

use crate::account::{AccountId, LedgerAccount};
use crate::connector::Inner;
use crate::core::{Outcome, Ticket};
use crate::passage::{Hold, not_recorded, timed_out, wrong_fulfillment};
use crate::receiver::{Commit, CommitState, Receiver, Step};
use crate::reply::ReplyTo;

pub(crate) struct Reception {
    inner: Arc<Inner>,
    hold: Hold,
    state: Arc<CommitState>,
    deadline: Instant,
    amount: u64,
    condition: Condition,
    debit: LedgerAccount,
}

impl Reception {
    pub(crate) fn new(inner: Arc<Inner>, ticket: Ticket, deadline: Instant) -> Self {
        let state = Arc::<CommitState>::default();
        let (amount, condition, debit) = (ticket.amount, ticket.reference, ticket.debit.clone());
        let mut hold = Hold::new(inner.clone(), ticket);
        hold.commit = Some(state.clone());
        Self {
            inner,
            hold,
            state,
            deadline,
            amount,
            condition,
            debit,
        }
    }

    pub(crate) async fn run(
        mut self,
        receiver: Arc<dyn Receiver>,
        from: Option<AccountId>,
        prepare: Prepare,
        reply_to: ReplyTo,
    ) {
        let reply = self.receive(&*receiver, from.as_ref(), prepare).await;
        // The balances have to be right before the source hears of it.
        drop(self.hold);
        reply_to.send(reply);
    }

    async fn receive(
        &mut self,
        receiver: &dyn Receiver,
        from: Option<&AccountId>,
        prepare: Prepare,
    ) -> Reply {
        let state = self.state.clone();
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
            (Step::Recorded, Ok(fulfill)) => self.check(fulfill),
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
                self.check(fulfill)
            }
            (Step::Open, Ok(_)) => {
                tracing::error!(account = ?from, "receiver fulfilled without recording the amount");
                Err(self
                    .inner
                    .reject(ErrorCode::InternalError, "packet was not recorded"))
            }
            (Step::Expired, _) => self.timed_out(),
            (Step::Recording | Step::Failed, _) => {
                tracing::error!(
                    account = ?from,
                    debit = %self.debit,
                    amount = self.amount,
                    "movement to a receiver could not be recorded; the account is stopped"
                );
                not_recorded(&self.inner)
            }
            (Step::Open, Err(reject)) => Err(reject),
        }
    }

    fn check(&mut self, fulfill: Fulfill) -> Reply {
        if fulfill.fulfillment.condition() == self.condition {
            return Ok(fulfill);
        }
        self.hold.outcome = Outcome::WrongFulfill;
        tracing::error!(
            amount = self.amount,
            "receiver's fulfillment does not match the condition"
        );
        wrong_fulfillment(&self.inner)
    }

    fn timed_out(&mut self) -> Reply {
        self.hold.outcome = Outcome::TimedOut;
        timed_out(&self.inner)
    }
}
