//! The connector's money in the store's books.

use async_trait::async_trait;
use codius_ledger::{Account, Reason, Transaction};
use codius_store::{Store, StoreError};
use ilp_connector::{Ledger, LedgerError, Movement};

use crate::clock::wall_now;

/// Records every fulfilled packet before its fulfillment leaves.
#[derive(Debug, Clone)]
pub(crate) struct Bank(pub(crate) Store);

#[async_trait]
impl Ledger for Bank {
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
            Account::Parent
            | Account::Local(_)
            | Account::Pod(_)
            | Account::Lease(_)
            | Account::Earned => Reason::Packet,
        };
        let transaction = Transaction::transfer(wall_now(), reason, from, to, movement.amount)
            .map_err(|error| LedgerError::Refused(error.to_string()))?
            .with_reference(movement.reference);
        match self.0.commit(transaction).await {
            Ok(()) => Ok(()),
            Err(error @ (StoreError::Overdraft { .. } | StoreError::Refused { .. })) => {
                Err(LedgerError::Refused(error.to_string()))
            }
            Err(error) => Err(LedgerError::Failed(Box::new(error))),
        }
    }
}
