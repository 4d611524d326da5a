//! One admitted packet on its way to a neighbour and back.
//!
//! ```text
//! admitted ──Link::send──▶ Answer ──answered──▶ wrong, late, rejected ──▶ hold released, Reject
//!                                     │ fulfilled
//!                                     ▼
//!                          Ledger::record ──recorded──▶ hold becomes balance, Fulfill
//!                                              └─failed──▶ accounts stop, T00
//! ```
//! No task belongs to a packet: each step runs where its cause arrives (the socket of the neighbour,
//! the thread of the ledger). Whatever happens to it, dropping the [`Hold`] finishes the packet in the
//! way that fits what was recorded.

use std::sync::Arc;

use ilp_packet::{Condition, ErrorCode, Fulfill, Reject, Reply};
use tokio::time::Instant;

use crate::connector::Inner;
use crate::core::{Outcome, Ticket};
use crate::ledger::{LedgerError, Movement, Recorded};
use crate::link::LinkError;
use crate::receiver::{CommitState, Step};
use crate::reply::ReplyTo;

/// The hold of one admitted packet. It is finished when this is dropped.
pub(crate) struct Hold {
    inner: Arc<Inner>,
    ticket: Option<Ticket>,
    /// How the packet ended, as far as the ledger does not say otherwise.
    pub(crate) outcome: Outcome,
    /// A receiver's commit, which then decides.
    pub(crate) commit: Option<Arc<CommitState>>,
}

impl Hold {
    pub(crate) fn new(inner: Arc<Inner>, ticket: Ticket) -> Self {
        Self {
            inner,
            ticket: Some(ticket),
            outcome: Outcome::Rejected,
            commit: None,
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let outcome = match self.commit.as_ref().map(|state| state.get()) {
            Some(Step::Recorded) => Outcome::Fulfilled,
            Some(Step::Recording | Step::Failed) => Outcome::InDoubt,
            Some(Step::Open | Step::Expired) | None => self.outcome,
        };
        if let Some(ticket) = self.ticket.take() {
            self.inner.finish(ticket, outcome);
        }
    }
}

/// A packet that waits for a neighbour's answer or for the ledger.
pub(crate) struct Passage {
    inner: Arc<Inner>,
    hold: Hold,
    movement: Movement,
    deadline: Instant,
    reply_to: ReplyTo,
}

impl Passage {
    pub(crate) fn new(
        inner: Arc<Inner>,
        ticket: Ticket,
        deadline: Instant,
        reply_to: ReplyTo,
    ) -> Self {
        Self {
            movement: Movement {
                debit: ticket.debit.clone(),
                // A packet to a neighbour has both; the same twice needs no row.
                credit: ticket.credit.clone().unwrap_or(ticket.debit.clone()),
                amount: ticket.amount,
                reference: ticket.reference.0,
            },
            hold: Hold::new(inner.clone(), ticket),
            inner,
            deadline,
            reply_to,
        }
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The neighbour has answered, or has not.
    pub(crate) fn answered(mut self: Box<Self>, result: Result<Reply, LinkError>) {
        // A reply that is looked at late is late all the same.
        if Instant::now() >= self.deadline {
            let reply = timed_out(&self.inner);
            return self.end(Outcome::TimedOut, reply);
        }
        let fulfill = match result {
            Ok(Ok(fulfill)) => fulfill,
            Ok(Err(reject)) => return self.end(Outcome::Rejected, Err(reject)),
            Err(LinkError::TimedOut) => {
                let reply = timed_out(&self.inner);
                return self.end(Outcome::TimedOut, reply);
            }
            Err(error) => {
                let reply = Err(self.inner.reject(code_of(&error), &error.to_string()));
                return self.end(Outcome::Rejected, reply);
            }
        };
        if fulfill.fulfillment.condition() != Condition(self.movement.reference) {
            let reply = wrong_fulfillment(&self.inner);
            return self.end(Outcome::WrongFulfill, reply);
        }
        if !self.movement.needs_row() {
            return self.end(Outcome::Fulfilled, Ok(fulfill));
        }
        // Until the ledger has answered nobody knows.
        self.hold.outcome = Outcome::InDoubt;
        let (inner, movement) = (self.inner.clone(), self.movement.clone());
        inner
            .ledger
            .record(movement, Recorded::passage(self, fulfill));
    }

    /// The ledger has answered.
    pub(crate) fn recorded(self: Box<Self>, fulfill: Fulfill, result: Result<(), LedgerError>) {
        match result {
            Ok(()) => self.end(Outcome::Fulfilled, Ok(fulfill)),
            Err(error) => {
                // The next hop has proved that it was paid and we cannot write it down, not even
                // if the ledger merely refuses: our balances and the ledger disagree.
                tracing::error!(
                    debit = %self.movement.debit,
                    credit = %self.movement.credit,
                    amount = self.movement.amount,
                    error = &error as &dyn std::error::Error,
                    "movement could not be recorded; its accounts are stopped"
                );
                let reply = not_recorded(&self.inner);
                self.end(Outcome::InDoubt, reply);
            }
        }
    }

    fn end(self: Box<Self>, outcome: Outcome, reply: Reply) {
        let Self {
            mut hold, reply_to, ..
        } = *self;
        hold.outcome = outcome;
        // The balances have to be right before the source hears of it.
        drop(hold);
        reply_to.send(reply);
    }
}

fn code_of(error: &LinkError) -> ErrorCode {
    match error {
        LinkError::Closed => ErrorCode::PeerUnreachable,
        LinkError::Busy => ErrorCode::PeerBusy,
        LinkError::NoDestination | LinkError::NotIlp(_) => ErrorCode::Unreachable,
        LinkError::Unencodable => ErrorCode::InvalidPacket,
        LinkError::TimedOut => ErrorCode::TransferTimedOut,
    }
}

pub(crate) fn timed_out(inner: &Inner) -> Reply {
    Err(inner.reject(ErrorCode::TransferTimedOut, "packet expired"))
}

pub(crate) fn wrong_fulfillment(inner: &Inner) -> Reply {
    let message = "the fulfillment does not match the condition";
    Err(inner.reject(ErrorCode::WrongCondition, message))
}

pub(crate) fn not_recorded(inner: &Inner) -> Reply {
    let message = "payment could not be recorded";
    Err::<Fulfill, Reject>(inner.reject(ErrorCode::InternalError, message))
}
