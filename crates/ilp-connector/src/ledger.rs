//! The durable record of what was paid. The store implements it; the connector only waits for it.

use async_trait::async_trait;

use crate::account::LedgerAccount;

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
#[async_trait]
pub trait Ledger: Send + Sync {
    /// Returns when the movement would survive a crash.
    async fn record(&self, movement: Movement) -> Result<(), LedgerError>;
}
