//! `localhost:7768` in every pod: each manifest hash has an account at the connector, which begins at
//! nothing, never goes below it, and is kept when the pod ends and is uploaded again.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use codius_ledger::Account;
use codius_manifest::ManifestHash;
use codius_pod::{Duplex, InterledgerPort};
use codius_store::Store;
use ilp_connector::{AccountConfig, AccountId, Connector};
use ilp_link::{BtpServer, PodGate};

/// The segment of the connector's address below which the pods are.
const SEGMENT: &str = "pod";

/// The Interledger ports of all pods.
pub(crate) struct PodMoney {
    store: Store,
    connector: Connector,
    server: BtpServer,
    limits: PacketLimits,
    /// Opened at the first connection of a program. The lock makes sure that it is opened once.
    gates: Mutex<HashMap<ManifestHash, Arc<Entrance>>>,
}

/// What the programs of one pod may send.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PacketLimits {
    /// Most in one packet, from or to them.
    pub(crate) max_amount: u64,
    /// Most packets in a second.
    pub(crate) max_per_sec: u32,
}

/// The gate of one pod, once it is open.
type Entrance = tokio::sync::Mutex<Option<Arc<PodGate>>>;

impl PodMoney {
    pub(crate) fn new(
        store: Store,
        connector: Connector,
        server: BtpServer,
        limits: PacketLimits,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            connector,
            server,
            limits,
            gates: Mutex::default(),
        })
    }

    /// The pod has ended: its connections are closed and its balance rests in the ledger.
    pub(crate) async fn close(&self, hash: &ManifestHash) {
        let entry = self
            .gates
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(hash);
        let Some(entry) = entry else { return };
        if let Some(gate) = entry.lock().await.take() {
            gate.close();
            drop(gate);
            if let Err(error) = self.connector.close_account(&account_id(hash)) {
                tracing::warn!(pod = %hash, %error, "Interledger account");
            }
        }
    }

    async fn gate(&self, hash: &ManifestHash) -> anyhow::Result<Arc<PodGate>> {
        let entry = {
            let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(gates.entry(*hash).or_default())
        };
        let mut entry = entry.lock().await;
        if let Some(gate) = entry.as_ref() {
            return Ok(Arc::clone(gate));
        }
        let ledger_account = Account::Pod(*hash);
        let balance = self.store.balance(&ledger_account).await?;
        let id = account_id(hash);
        let mut config = AccountConfig::child(
            id.clone(),
            format!("{SEGMENT}.{hash}"),
            ledger_account.to_string(),
        );
        config.max_packet_amount = self.limits.max_amount;
        config.max_packets_per_sec = Some(self.limits.max_per_sec);
        self.connector
            .open_account(config.with_balance(balance.into()))?;
        let gate = Arc::new(PodGate::new(
            &self.connector,
            id,
            PodGate::DEFAULT_MAX_CLIENTS,
        )?);
        *entry = Some(Arc::clone(&gate));
        Ok(gate)
    }
}

/// The port as pods see it: cheap to clone, outlives none of them.
pub(crate) struct PodPort(pub(crate) Arc<PodMoney>);

impl InterledgerPort for PodPort {
    fn connected(&self, pod: &ManifestHash, connection: Box<dyn Duplex>) {
        let (money, pod) = (Arc::clone(&self.0), *pod);
        tokio::spawn(async move {
            match money.gate(&pod).await {
                Ok(gate) => money.server.accept(connection, gate),
                Err(error) => {
                    tracing::warn!(pod = %pod, %error, "Interledger port could not be opened");
                }
            }
        });
    }
}

fn account_id(hash: &ManifestHash) -> AccountId {
    AccountId::new(format!("{SEGMENT}.{hash}"))
}
