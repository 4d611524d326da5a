//! The durable record of what was paid. The store implements it; the connector only waits for it.

use std::fmt;

use ilp_packet::Fulfill;
use tokio::sync::oneshot;

use crate::account::LedgerAccount;
use crate::passage::Passage;

/// One fulfilled packet: `amount` goes from `debit` to `credit`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Movement {
    /// Who pays.
    pub debit: LedgerAccount,
    /// Who is paid; never the same as `debit`.
    pub credit: LedgerAccount,
    /// In the smallest unit of the connector's asset; never zero.
    pub amount: u64,
    /// The packet's execution condition. Names the movement, but is not unique: a sender may use
    /// one condition twice.
    pub reference: [u8; 32],
}

/// Why a movement was not recorded.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The ledger's own rules forbid it. Nothing was written.
    #[error("ledger refuses the movement: {0}")]
    Refused(String),
    /// Writing failed, and whether the row exists is unknown until the ledger is read again. The
    /// connector stops the accounts; the operator has to look at the disk.
    #[error("ledger write failed")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Records movements durably.
pub trait Ledger: Send + Sync {
    /// Takes a movement and returns at once, so that many can share one write. `recorded` is
    /// completed when the movement would survive a crash, on any thread; dropping it means that
    /// nobody knows whether it would.
    fn record(&self, movement: Movement, recorded: Recorded);
}

/// What waits for one movement to be durable.
pub struct Recorded(Waiting);

enum Waiting {
    Passage(Box<Passage>, Fulfill),
    Future(oneshot::Sender<Result<(), LedgerError>>),
}

impl Recorded {
    pub(crate) fn passage(passage: Box<Passage>, fulfill: Fulfill) -> Self {
        Self(Waiting::Passage(passage, fulfill))
    }

    /// For those who wait in a task.
    #[must_use]
    pub fn future() -> (Self, oneshot::Receiver<Result<(), LedgerError>>) {
        let (sender, receiver) = oneshot::channel();
        (Self(Waiting::Future(sender)), receiver)
    }

    /// Says how it went.
    pub fn complete(self, result: Result<(), LedgerError>) {
        match self.0 {
            Waiting::Passage(passage, fulfill) => passage.recorded(fulfill, result),
            // Whoever waited may have gone away; what was written is written.
            Waiting::Future(sender) => drop(sender.send(result)),
        }
    }
}

impl fmt::Debug for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recorded(…)")
    }
}

/// The ledger dropped what it was given.
#[derive(Debug, thiserror::Error)]
#[error("ledger gave no answer")]
struct NoAnswer;

/// Records a movement and waits until it is durable. One of nothing, or within one ledger account,
/// needs no row.
pub(crate) async fn record(ledger: &dyn Ledger, movement: Movement) -> Result<(), LedgerError> {
    if !movement.needs_row() {
        return Ok(());
    }
    let (recorded, answer) = Recorded::future();
    ledger.record(movement, recorded);
    answer
        .await
        .unwrap_or_else(|_| Err(LedgerError::Failed(Box::new(NoAnswer))))
}

impl Movement {
    pub(crate) fn needs_row(&self) -> bool {
        self.amount != 0 && self.debit != self.credit
    }
}
