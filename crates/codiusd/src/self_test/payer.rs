//! How the host pays itself for its self-test: over its own connector, with packets like everybody's.
//!
//! The money is that of the ledger's account `local:self-test`, which goes below zero by what the test
//! costs and is brought back to zero from what the host has earned by it. So the operator's books show
//! nothing of it in the end.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use async_trait::async_trait;
use codius_client::Wallet;
use codius_ledger::{Account, Asset};
use ilp_connector::{AccountId, Commit, Connector, LedgerAccount, Receiver, SpendLimit};
use ilp_link::stream::PacketSender;
use ilp_packet::{Address, ErrorCode, Prepare, Reject, Reply};

use crate::till::{asset_details, code_of};

/// The segment of the connector's address below which the host's own wallet is.
const SEGMENT: &str = "self-test";

/// Holds the wallet of the test that runs.
pub(crate) struct Payer {
    connector: Connector,
    asset: Asset,
    wallet: Mutex<Option<Wallet>>,
}

impl Payer {
    /// Registers it with the connector.
    pub(crate) fn open(connector: &Connector, asset: Asset) -> Result<Arc<Self>> {
        let payer = Arc::new(Self {
            connector: connector.clone(),
            asset,
            wallet: Mutex::default(),
        });
        connector.register_receiver(SEGMENT, Arc::clone(&payer) as Arc<dyn Receiver>)?;
        Ok(payer)
    }

    /// Whose money it is.
    pub(crate) fn account() -> Account {
        Account::Local("self-test".parse().expect("it is the name of an account"))
    }

    /// A wallet from which at most `limit` can leave.
    pub(crate) fn wallet(&self, limit: u64) -> Wallet {
        let wallet = Wallet::in_process(
            self.address(),
            asset_details(&self.asset),
            Arc::new(Purse {
                connector: self.connector.clone(),
                limit: SpendLimit::new(limit),
            }),
        );
        *self.wallet.lock().unwrap_or_else(PoisonError::into_inner) = Some(wallet.clone());
        wallet
    }

    fn address(&self) -> Address {
        self.connector
            .address()
            .with_suffix(SEGMENT)
            .expect("it was registered below the connector's address")
    }
}

/// What comes back: a refund.
#[async_trait]
impl Receiver for Payer {
    async fn receive(&self, _: Option<&AccountId>, prepare: Prepare, commit: Commit) -> Reply {
        let wallet = self
            .wallet
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let Some(wallet) = wallet else {
            let code = ErrorCode::UnexpectedPayment;
            return Err(Reject::new(code, Some(&self.connector.address()), ""));
        };
        let account: LedgerAccount = Self::account().to_string().into();
        let record = || async move {
            let recorded = commit.credit(account).await;
            recorded.map_err(|error| code_of(&error))
        };
        wallet.receive(&prepare, record).await
    }
}

struct Purse {
    connector: Connector,
    limit: SpendLimit,
}

#[async_trait]
impl PacketSender for Purse {
    async fn send(&self, prepare: Prepare) -> Reply {
        let account: LedgerAccount = Payer::account().to_string().into();
        self.connector
            .originate(&account, &self.limit, prepare)
            .await
    }
}
