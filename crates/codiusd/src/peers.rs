//! The other hosts that this one knows: the table of `codius-peers`, with a clock, a network and a
//! place on disk.
//!
//! What strangers name is only ever connected to as [`client`] allows. The loop is in [`finder`].

mod client;
mod finder;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use codius_peers::{Limits, Pace, PeerOverview, PeerTable, PeerUrl, Reach};
use codius_store::{Batch, Store};
use tokio::sync::watch;
use url::Url;

use self::client::PeerClient;
use crate::config;

/// Where the store keeps the peers that have answered: a JSON array of URLs.
const META_KEY: &str = "peers";

/// All peers of this host.
pub(crate) struct Peers {
    table: Mutex<PeerTable>,
    started: Instant,
    client: PeerClient,
    store: Store,
    /// How peers know this host; none if no peer may know it by its address.
    own: Option<PeerUrl>,
    exchange_interval: Duration,
    /// Whether this host has found that it works.
    tested: watch::Receiver<bool>,
}

impl Peers {
    /// Takes up what an earlier process knew. Nothing is asked before [`Peers::run`].
    pub(crate) fn open(
        config: &config::Peers,
        public_uri: &Url,
        store: &Store,
        meta: &BTreeMap<String, Vec<u8>>,
        tested: watch::Receiver<bool>,
    ) -> Result<Arc<Self>> {
        let reach = config.reach();
        let own = match PeerUrl::parse(public_uri.as_str(), reach) {
            Ok(own) => Some(own),
            Err(error) => {
                tracing::info!(
                    "{public_uri} is not made known to other hosts: {error}; set public_uri"
                );
                None
            }
        };
        let pace = Pace::new(
            Duration::from_secs(config.check_interval_secs),
            Duration::from_secs(config.retry_secs),
        );
        let mut table = PeerTable::new(own.clone(), reach, Limits::default(), pace);
        for url in config.bootstrap_urls()? {
            table.bootstrap(url, Duration::ZERO);
        }
        if let Some(json) = meta.get(META_KEY) {
            let known: Vec<String> =
                serde_json::from_slice(json).context("the record of peers cannot be read")?;
            table.restore(known.iter().map(String::as_str), Duration::ZERO);
        }
        Ok(Arc::new(Self {
            table: Mutex::new(table),
            started: Instant::now(),
            client: PeerClient::new(reach),
            store: store.clone(),
            own,
            exchange_interval: Duration::from_secs(config.exchange_interval_secs),
            tested,
        }))
    }

    /// Whether this host may speak of peers: it has found that it works itself.
    pub(crate) fn is_tested(&self) -> bool {
        *self.tested.borrow()
    }

    /// How many peers answer.
    pub(crate) fn count(&self) -> usize {
        self.table().listed()
    }

    /// Up to `most` peers that answer, in random order.
    pub(crate) fn sample(&self, most: usize) -> Vec<String> {
        self.choose(most).iter().map(ToString::to_string).collect()
    }

    /// Peers that somebody has named. Those that are new are checked soon, and listed if they answer.
    pub(crate) fn offer(&self, urls: &[String]) {
        let now = self.now();
        let added = self.table().offer(urls.iter().map(String::as_str), now);
        if added > 0 {
            tracing::debug!(added, "new candidates");
        }
    }

    /// Every peer that is known, for the operator.
    pub(crate) fn overview(&self) -> Vec<PeerOverview> {
        let now = self.now();
        self.table().overview(now)
    }

    fn choose(&self, most: usize) -> Vec<PeerUrl> {
        self.table().sample(most, rand::random)
    }

    /// Writes down who has answered, if that has changed. What is lost with a crash is learnt again.
    async fn keep(&self) {
        let Some(known) = self.table().remembered() else {
            return;
        };
        let texts: Vec<&str> = known.iter().map(PeerUrl::as_str).collect();
        let json = serde_json::to_vec(&texts).expect("strings are JSON");
        if let Err(error) = self
            .store
            .commit(Batch::new().meta(META_KEY, Some(json)))
            .await
        {
            tracing::error!(error = &error as &dyn std::error::Error, "peers not kept");
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn table(&self) -> MutexGuard<'_, PeerTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl config::Peers {
    /// Whom strangers may name.
    fn reach(&self) -> Reach {
        if self.allow_private {
            Reach::Any
        } else {
            Reach::Public
        }
    }

    /// The peers that the operator has named.
    pub(crate) fn bootstrap_urls(&self) -> Result<Vec<PeerUrl>> {
        self.bootstrap
            .iter()
            .map(|text| {
                PeerUrl::parse(text, self.reach())
                    .with_context(|| format!("peers.bootstrap: {text:?}"))
            })
            .collect()
    }
}
