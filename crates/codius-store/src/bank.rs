//! The connector's money in the books: every fulfilled packet is recorded before its fulfillment
//! leaves.

use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use codius_ledger::{Account, Reason, Transaction};
use ilp_connector::{Ledger, LedgerError, Movement};

use crate::{Store, StoreError};

#[async_trait]
impl Ledger for Store {
    async fn record(&self, movement: Movement) -> Result<(), LedgerError> {
        let account = |name: &str| {
            name.parse::<Account>()
                .map_err(|_| LedgerError::Refused(format!("no ledger account {name}")))
        };
        let (from, to) = (
            account(movement.debit.as_str())?,
            account(movement.credit.as_str())?,
        );
        // What a host gives back to a payer is a refund in its books, however it travels.
        let reason = match from {
            Account::Order(_) | Account::Owed(_) => Reason::Refund,
            // The host earns by packets only what it is given; all else it charges.
            _ if to == Account::Earned => Reason::Gift,
            Account::Parent
            | Account::Local(_)
            | Account::Pod(_)
            | Account::Lease(_)
            | Account::Earned => Reason::Packet,
        };
        let transaction = Transaction::transfer(wall_now(), reason, from, to, movement.amount)
            .map_err(|error| LedgerError::Refused(error.to_string()))?
            .with_reference(movement.reference);
        match self.commit(transaction).await {
            Ok(()) => Ok(()),
            Err(error @ (StoreError::Overdraft { .. } | StoreError::Refused { .. })) => {
                Err(LedgerError::Refused(error.to_string()))
            }
            Err(error) => Err(LedgerError::Failed(Box::new(error))),
        }
    }
}

/// For people; the order of transactions is the store's.
fn wall_now() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
