//! What is heard of a running program: its output, what happens to it, and how it stands. Each source is a
//! task that goes on after every break, and all of them are told in one order.

use std::{sync::Arc, time::Duration};

use codius_api::{LeaseEventKind, v2::LeaseReply};
use codius_client::{ClientError, Flow, HostClient, LogQuery, Signer, Wallet};
use codius_manifest::ManifestHash;
use tokio::{sync::mpsc, task::JoinHandle};

use crate::{failure::Failure, raw_log::LogLine};

/// What waits to be shown; a program that writes faster waits at the host.
const MAX_WAITING: usize = 256;
/// The pause before a source is asked again.
const PAUSE: Duration = Duration::from_secs(1);
/// How long the host may take to say how a lease stands.
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);

/// Something that was heard.
#[derive(Debug)]
pub(crate) enum Heard {
    /// A line of output.
    Line(LogLine),
    /// There is no more output, for now.
    LogEnded,
    /// The output is not shown to us, and why.
    NoLog(Failure),
    Event(LeaseEventKind),
    /// How the lease stands, and what had been added when it was asked.
    Lease {
        added: u64,
        reply: Result<Box<LeaseReply>, ClientError>,
    },
    /// A connection to pay by, and the wallet that it belongs to.
    Flow(Result<(Wallet, Flow), ClientError>),
}

/// The tasks, and where they tell.
pub(crate) struct Hearing {
    host: HostClient,
    hash: ManifestHash,
    sender: mpsc::Sender<Heard>,
    heard: mpsc::Receiver<Heard>,
    tasks: Vec<JoinHandle<()>>,
}

impl Hearing {
    pub(crate) fn new(host: &HostClient, hash: ManifestHash, signer: &Arc<Signer>) -> Self {
        let (sender, heard) = mpsc::channel(MAX_WAITING);
        let logs = logs(host.clone(), hash, Arc::clone(signer), sender.clone());
        let events = events(host.clone(), hash, sender.clone());
        Self {
            host: host.clone().answering_within(LOOK_TIMEOUT),
            hash,
            sender,
            heard,
            tasks: vec![tokio::spawn(logs), tokio::spawn(events)],
        }
    }

    /// The next thing that is heard. Safe to drop.
    pub(crate) async fn next(&mut self) -> Heard {
        match self.heard.recv().await {
            Some(heard) => heard,
            // It holds a sender itself.
            None => std::future::pending().await,
        }
    }

    /// Asks how the lease stands.
    pub(crate) fn look(&self, added: u64) {
        let (host, hash, sender) = (self.host.clone(), self.hash, self.sender.clone());
        tokio::spawn(async move {
            let reply = host.lease(&hash).await.map(Box::new);
            let _ = sender.send(Heard::Lease { added, reply }).await;
        });
    }

    /// Opens a connection to pay by; `renew` connects the wallet first, at its URL and for the host's scale.
    pub(crate) fn open_flow(&self, wallet: Wallet, renew: Option<(String, u8)>) {
        let (host, hash, sender) = (self.host.clone(), self.hash, self.sender.clone());
        tokio::spawn(async move {
            let opening = async {
                let wallet = match renew {
                    Some((url, scale)) => Wallet::connect(&url).await?.purse(scale),
                    None => wallet,
                };
                let flow = Flow::open(&host, &hash, &wallet).await?;
                Ok((wallet, flow))
            };
            let _ = sender.send(Heard::Flow(opening.await)).await;
        });
    }
}

impl Drop for Hearing {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn logs(
    host: HostClient,
    hash: ManifestHash,
    signer: Arc<Signer>,
    sender: mpsc::Sender<Heard>,
) {
    let mut query = LogQuery {
        follow: true,
        ..LogQuery::default()
    };
    loop {
        match host.log_events(&hash, &query, &signer).await {
            Ok(mut lines) => {
                while let Ok(Some(line)) = lines.next().await {
                    if sender.send(Heard::Line(line.into())).await.is_err() {
                        return;
                    }
                }
                query.after = lines.last_id().map(str::to_owned);
                let _ = sender.send(Heard::LogEnded).await;
            }
            Err(ClientError::Refused { body, paid }) if matches!(body.status_code, 401 | 403) => {
                let error = ClientError::Refused { body, paid };
                let _ = sender.send(Heard::NoLog(error.into())).await;
                return;
            }
            Err(_) => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn events(host: HostClient, hash: ManifestHash, sender: mpsc::Sender<Heard>) {
    loop {
        if let Ok(mut events) = host.events(&hash).await {
            while let Some(event) = events.next().await {
                let last = event.kind.is_last();
                if sender.send(Heard::Event(event.kind)).await.is_err() || last {
                    return;
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}
