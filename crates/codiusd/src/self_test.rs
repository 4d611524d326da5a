//! The host's test of itself: it uploads a program to itself, by its public name, pays for it, and
//! visits it over HTTP and WebSocket.
//!
//! ```text
//! closed ──passed──▶ open ──(later start, the same public name)──▶ open while it is tested again
//!    │                 └──failed──▶ closed
//!    └──failed, failed …──▶ closed, and tried again every five minutes
//! ```
//! While the gate is closed every request to the host itself gets 503, as in the original; pods are
//! visited all the same. A host that has passed once under its name is not closed for the time of the
//! test when it starts again: an upgrade costs nobody a request.
//!
//! The money of a test ends where it began: see `payer.rs`. A test that a crash cut off is settled at
//! the next start.

mod gate;
mod payer;
mod registry;
mod visit;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use codius_client::HostClient;
use codius_ledger::{Account, Asset, Reason};
use codius_manifest::{ManifestHash, Upload};
use codius_store::{Batch, Store};
use data_encoding::HEXLOWER;
use http::{HeaderMap, HeaderValue, header};
use ilp_connector::Connector;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::watch;

pub(crate) use gate::gate;
pub(crate) use registry::Registry;

use crate::{config, leases::Leases};
use payer::Payer;
use visit::Visitor;

/// How long the program is paid for; it is stopped after the test.
const DURATION_SECS: u64 = 300;
/// How long after a failed test the next one begins.
const NEXT_TEST: Duration = Duration::from_secs(300);
/// How often a test that waits for the end of a drain looks for it.
const DRAIN_LOOK: Duration = Duration::from_secs(2);
/// How long an upload may take, image and start of the machine included.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(120);
/// Where it is kept what was passed and what has to be settled.
const META_KEY: &str = "self-test";

/// What the test has found; the gate tells it to everyone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Stats {
    pub(crate) self_test_success: bool,
    pub(crate) upload_success: bool,
    pub(crate) http_success: bool,
    pub(crate) ws_success: bool,
    pub(crate) running: bool,
}

/// What is known of earlier tests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// The public address that the last test was passed under.
    passed: Option<String>,
    /// The program of a test whose money is not settled.
    unsettled: Option<ManifestHash>,
}

/// The host that is tested.
pub(crate) struct Surroundings {
    /// Where names below `localhost` lead.
    pub(crate) listener: SocketAddr,
    pub(crate) leases: Arc<Leases>,
    pub(crate) connector: Connector,
    pub(crate) asset: Asset,
}

/// Whether the gate is open, and what the test has found.
#[derive(Debug)]
pub(crate) struct SelfTest {
    /// Whoever has it may pass while the gate is closed: the test itself.
    token: String,
    stats: Mutex<Stats>,
    open: watch::Sender<bool>,
    /// For the end of a drain.
    waits: AtomicBool,
}

/// Makes the gate, and the test if there is one. What an earlier test left is settled before anything
/// new is paid.
pub(crate) async fn prepare(
    config: Option<&config::SelfTest>,
    registry: Option<Registry>,
    meta: &BTreeMap<String, Vec<u8>>,
    host: Surroundings,
) -> Result<(Arc<SelfTest>, Option<Tester>)> {
    let record = match meta.get(META_KEY) {
        Some(record) => {
            serde_json::from_slice(record).context("what is stored of the self-test")?
        }
        None => Record::default(),
    };
    let public_uri = host.leases.public_uri.as_str();
    let public_uri = public_uri.trim_end_matches('/').to_owned();
    // A host that is not tested, because its operator says so, is open.
    let open = config.is_none() || record.passed.as_ref() == Some(&public_uri);
    let test = SelfTest::new(open);
    let image = registry.as_ref().map(Registry::reference);
    let mut tester = Tester {
        test: Arc::clone(&test),
        config: config.cloned().unwrap_or_default(),
        image: image.or_else(|| config?.image.clone()).unwrap_or_default(),
        registry,
        payer: Payer::open(&host.connector, host.asset.clone())?,
        host,
        record,
        public_uri,
    };
    tester.settle().await?;
    Ok((test, config.is_some().then_some(tester)))
}

impl SelfTest {
    fn new(open: bool) -> Arc<Self> {
        Arc::new(Self {
            token: HEXLOWER.encode(&rand::random::<[u8; 32]>()),
            stats: Mutex::default(),
            open: watch::Sender::new(open),
            waits: AtomicBool::new(false),
        })
    }

    pub(crate) fn stats(&self) -> Stats {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the gate is open, now and later.
    pub(crate) fn watch(&self) -> watch::Receiver<bool> {
        self.open.subscribe()
    }

    fn is_open(&self) -> bool {
        *self.open.borrow()
    }

    fn note(&self, change: impl FnOnce(&mut Stats)) {
        change(&mut self.stats.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Carries the test out.
pub(crate) struct Tester {
    test: Arc<SelfTest>,
    config: config::SelfTest,
    /// The image's reference.
    image: String,
    /// Where it is, if it is the host's own.
    registry: Option<Registry>,
    host: Surroundings,
    payer: Arc<Payer>,
    record: Record,
    public_uri: String,
}

impl Tester {
    /// Tests until the host passes, or ends.
    pub(crate) async fn run(mut self) {
        let closing = self.host.leases.closing.clone();
        if let Some(registry) = self.registry.take() {
            self.host
                .leases
                .tasks
                .spawn(registry.serve(closing.clone()));
        }
        let testing = async {
            loop {
                self.wait_for_sales().await;
                if self.passes().await {
                    return;
                }
                if !self.host.leases.drain.is_on() {
                    tokio::time::sleep(NEXT_TEST).await;
                }
            }
        };
        tokio::select! {
            () = testing => {}
            // What was begun is settled at the next start.
            () = closing.cancelled() => {}
        }
    }

    /// A host that is being drained sells nothing, not to its test either: that says nothing about it.
    async fn wait_for_sales(&self) {
        let drain = &self.host.leases.drain;
        if drain.is_on() {
            tracing::warn!("draining: the self-test waits until `codiusd drain --undo`");
            self.test.waits.store(true, Ordering::Release);
        }
        while drain.is_on() {
            tokio::time::sleep(DRAIN_LOOK).await;
        }
        self.test.waits.store(false, Ordering::Release);
    }

    /// One test with its repetitions. Says whether it was passed.
    async fn passes(&mut self) -> bool {
        self.test.note(|stats| {
            *stats = Stats {
                running: true,
                ..Stats::default()
            };
        });
        let outcome = self.attempts().await;
        let settled = self.settle().await;
        let outcome = outcome.and(settled.context("the test's money"));
        self.test.note(|stats| {
            stats.running = false;
            stats.self_test_success = outcome.is_ok();
        });
        self.test.open.send_replace(outcome.is_ok());
        match &outcome {
            Ok(()) => tracing::info!(uri = %self.public_uri, "self-test passed"),
            Err(error) if self.host.leases.drain.is_on() => {
                tracing::warn!("draining: the self-test was cut off: {error:#}");
            }
            Err(error) => tracing::error!(
                uri = %self.public_uri,
                "self-test failed, and nobody can upload: {error:#}. Next: see that public_uri and \
                 every name below it lead here; it is tried again in {} s",
                NEXT_TEST.as_secs()
            ),
        }
        let passed = outcome.is_ok().then(|| self.public_uri.clone());
        if self.record.passed != passed {
            let unsettled = self.record.unsettled;
            let record = Record { passed, unsettled };
            if let Err(error) = self.write_record(Batch::new(), record).await {
                tracing::warn!(
                    error = &*error,
                    "what the self-test found was not written down"
                );
            }
        }
        outcome.is_ok()
    }

    async fn attempts(&mut self) -> Result<()> {
        let mut left = self.config.retries;
        let url = loop {
            left = left.saturating_sub(1);
            match self.upload().await {
                Ok(url) => break url,
                Err(error) if left == 0 => return Err(error.context("the upload")),
                Err(error) => tracing::warn!(error = &*error, left, "self-test: no upload yet"),
            }
            tokio::time::sleep(Duration::from_secs(self.config.interval_secs)).await;
        };
        self.test.note(|stats| stats.upload_success = true);
        let visitor = Visitor::new(&url, self.host.listener)?;
        visitor
            .http()
            .await
            .with_context(|| format!("a visit to {url}"))?;
        self.test.note(|stats| stats.http_success = true);
        visitor
            .websocket()
            .await
            .with_context(|| format!("a WebSocket to {url}"))?;
        self.test.note(|stats| stats.ws_success = true);
        Ok(())
    }

    /// Uploads the program as everybody does, and says where it is.
    async fn upload(&mut self) -> Result<String> {
        let document = document(&self.image);
        let hash = Upload::parse(document.as_bytes())?.hash();
        self.host.leases.rules.expect_own(hash);
        // One at a time, and before anything is paid, so that whatever happens it can be settled.
        self.settle().await?;
        let mut record = self.record.clone();
        record.unsettled = Some(hash);
        self.write_record(Batch::new(), record).await?;
        let host = self.client()?;
        let quote = host.quote(&document, DURATION_SECS).await?;
        ensure!(
            quote.manifest_hash == hash,
            "another hash than ours; is it another host at {}?",
            self.public_uri
        );
        let wallet = self.payer.wallet(quote.price.0);
        let upload = host.upload(&document, DURATION_SECS, &wallet, quote.price.0);
        match tokio::time::timeout(UPLOAD_TIMEOUT, upload).await {
            Ok(answer) => Ok(answer?.reply.url),
            Err(_) => bail!("no answer in {} s", UPLOAD_TIMEOUT.as_secs()),
        }
    }

    fn client(&self) -> Result<HostClient> {
        let authorization = format!("Bearer {}", self.test.token);
        let mut authorization = HeaderValue::from_str(&authorization)?;
        authorization.set_sensitive(true);
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, authorization)]);
        let mut http = HostClient::http().default_headers(headers);
        let name = self.host.leases.public_uri.host_str().unwrap_or_default();
        if visit::is_localhost(name) {
            http = http.resolve(name, self.host.listener);
        }
        Ok(HostClient::new(&self.public_uri)?.with_http(http.build()?))
    }

    /// Stops the program of the test, and gives what it has cost back to the account that paid: what is
    /// owed to it, and what its lease was charged. Fails while its order is still being carried out.
    async fn settle(&mut self) -> Result<()> {
        let Some(hash) = self.record.unsettled else {
            return Ok(());
        };
        self.host.leases.stop_own(&hash).await?;
        let leases = &self.host.leases;
        let store = &leases.store;
        let (owed, payer) = (Account::Owed(hash), Payer::account());
        let balance = async |account: &Account| store.balance(account).await;
        let lease = store.lease(hash).await?;
        let charged = lease.map_or(0, |stored| stored.lease.parts().charged);
        let spent = balance(&payer).await?.min(0).unsigned_abs();
        let returned = u64::try_from(balance(&owed).await?)?.min(spent);
        let earned = charged.min(spent - returned);
        let rest = spent - returned - earned;
        let mut batch = Batch::new();
        leases.transfer(&mut batch, Reason::Refund, owed, payer.clone(), returned);
        leases.transfer(&mut batch, Reason::Refund, Account::Earned, payer, earned);
        let mut record = self.record.clone();
        if rest == 0 {
            record.unsettled = None;
        }
        self.write_record(batch, record).await?;
        ensure!(rest == 0, "{rest} units of the last test are on their way");
        Ok(())
    }

    /// What is known is what is written.
    async fn write_record(&mut self, batch: Batch, record: Record) -> Result<()> {
        let bytes = serde_json::to_vec(&record)?;
        let store: &Store = &self.host.leases.store;
        store.commit(batch.meta(META_KEY, Some(bytes))).await?;
        self.record = record;
        Ok(())
    }
}

/// What is uploaded: as in the original, under another name each time.
fn document(image: &str) -> String {
    let name = HEXLOWER.encode(&rand::random::<[u8; 20]>());
    json!({
        "manifest": {
            "name": name,
            "version": "1.0.0",
            "machine": "small",
            "port": "3000",
            "containers": [{
                "id": "codius-test",
                "image": image,
                "environment": { "PORT": "3000" },
            }],
        },
        "private": {},
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_uploaded_is_valid_and_never_the_same() {
        let image = format!("127.0.0.1:5000/codius/self-test@sha256:{}", "a".repeat(64));
        let hash = || Upload::parse(document(&image).as_bytes()).unwrap().hash();
        assert_ne!(hash(), hash());
    }
}
