//! Who may run what: the operator's lists of images and manifests, and which images stay.
//!
//! ```text
//! configuration   [images] allow, deny, pin · [pods] allow_hashes, deny_hashes
//!       +
//! run time        `codiusd admin deny RULE`: kept in the store until `codiusd admin undeny RULE`
//! ```
//!
//! Manifests are judged here, images by the image store, which is given the patterns; both before money
//! is asked for. Rules hold for what is uploaded or extended from then on. What runs goes on until the
//! operator stops it; a pod whose image is denied meanwhile is not started again if it is lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error as StdError,
    sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard},
};

use anyhow::{Context, Result};
use async_trait::async_trait;
use axum::http::StatusCode;
use codius_api::Trouble;
use codius_image::{ImagePolicy, ImageStore, InvalidPattern, Leaseholders, Pattern, Reference};
use codius_manifest::ManifestHash;
use codius_store::{Batch, Store, StoreError};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{config::Config, http_error::HttpError};

/// Where the store keeps what was denied while the host ran.
const META_KEY: &str = "denied";
/// Rules that can be added while the host runs. More belong into the configuration.
const MAX_DENIED: usize = 10_000;

/// The rules of this host. Clones are the same rules; until they are opened they allow everything.
#[derive(Clone, Default)]
pub(crate) struct Rules(Arc<OnceLock<Inner>>);

struct Inner {
    configured: Configured,
    images: Arc<ImageStore>,
    denied: RwLock<Denied>,
    /// What the host uploads to itself; no list of what is allowed is about that.
    own: RwLock<Option<ManifestHash>>,
    /// One change at a time: what holds is what was written last.
    changing: tokio::sync::Mutex<()>,
}

struct Configured {
    images: ImagePolicy,
    allow_hashes: BTreeSet<ManifestHash>,
    deny_hashes: BTreeSet<ManifestHash>,
}

/// What was denied while the host ran.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Denied {
    images: BTreeSet<String>,
    hashes: BTreeSet<ManifestHash>,
}

/// What an operator denies: a manifest by its hash, or images by a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rule {
    Manifest(ManifestHash),
    Images(Pattern),
}

impl std::str::FromStr for Rule {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // No pattern looks like a hash: it has no dot and no colon.
        match text.parse() {
            Ok(hash) => Ok(Self::Manifest(hash)),
            Err(_) => text.parse().map(Self::Images),
        }
    }
}

/// Why a rule was not changed.
#[derive(Debug, Error)]
pub(crate) enum RuleError {
    #[error("there are {MAX_DENIED} rules already; put them into the configuration")]
    TooMany,
    #[error(
        "this rule was not made while the host ran; if it is in the configuration, change that"
    )]
    Unknown,
    #[error("the rule could not be recorded")]
    Store(#[from] StoreError),
}

/// `GET /rules`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct RulesReport {
    pub(crate) allow: Vec<String>,
    pub(crate) deny: Vec<String>,
    pub(crate) pin: Vec<String>,
    pub(crate) allow_hashes: Vec<String>,
    pub(crate) deny_hashes: Vec<String>,
    /// Denied while the host ran, patterns and hashes.
    pub(crate) denied_here: Vec<String>,
}

impl Rules {
    /// Sets them from the configuration and what the store remembers. `own_image` is what the host
    /// uploads to itself.
    pub(crate) fn open(
        &self,
        config: &Config,
        own_image: Option<&str>,
        images: &Arc<ImageStore>,
        meta: &BTreeMap<String, Vec<u8>>,
    ) -> Result<()> {
        let denied: Option<Denied> = meta
            .get(META_KEY)
            .map(|json| serde_json::from_slice(json))
            .transpose()
            .context("the record of what was denied cannot be read")?;
        let mut allow = config.images.allow.clone();
        if let (Some(own), false) = (own_image, allow.is_empty()) {
            let own: Reference = own.parse().context("self_test.image")?;
            allow.push(format!("{}/{}", own.domain(), own.repository()).parse()?);
        }
        let inner = Inner {
            configured: Configured {
                images: ImagePolicy {
                    allow,
                    deny: config.images.deny.clone(),
                    pin: config.images.pin.clone(),
                },
                allow_hashes: config.pods.allow_hashes.iter().copied().collect(),
                deny_hashes: config.pods.deny_hashes.iter().copied().collect(),
            },
            images: Arc::clone(images),
            denied: RwLock::new(denied.unwrap_or_default()),
            own: RwLock::default(),
            changing: tokio::sync::Mutex::default(),
        };
        inner.tell_images();
        anyhow::ensure!(self.0.set(inner).is_ok(), "rules are opened once");
        Ok(())
    }

    /// Whether a manifest may be uploaded or extended.
    pub(crate) fn check(&self, hash: &ManifestHash) -> Result<(), HttpError> {
        let Some(inner) = self.0.get() else {
            return Ok(());
        };
        let configured = &inner.configured;
        let why = if configured.deny_hashes.contains(hash) || inner.denied().hashes.contains(hash) {
            "its operator has denied this manifest"
        } else if !configured.allow_hashes.is_empty()
            && !configured.allow_hashes.contains(hash)
            && *inner.own.read().unwrap_or_else(PoisonError::into_inner) != Some(*hash)
        {
            "it runs only manifests that its operator has listed"
        } else {
            return Ok(());
        };
        let text = format!("manifest {hash} is not allowed on this host: {why}");
        Err(HttpError::new(StatusCode::FORBIDDEN, text)
            .cause(Trouble::NotAllowed)
            .next("take another host"))
    }

    /// Says what the host uploads to itself next.
    pub(crate) fn expect_own(&self, hash: ManifestHash) {
        if let Some(inner) = self.0.get() {
            *inner.own.write().unwrap_or_else(PoisonError::into_inner) = Some(hash);
        }
    }

    /// Denies something from now on. It is durable when this returns.
    pub(crate) async fn deny(&self, rule: &Rule, store: &Store) -> Result<(), RuleError> {
        self.change(store, |denied| {
            if denied.images.len() + denied.hashes.len() >= MAX_DENIED {
                return Err(RuleError::TooMany);
            }
            match rule {
                Rule::Manifest(hash) => denied.hashes.insert(*hash),
                Rule::Images(pattern) => denied.images.insert(pattern.to_string()),
            };
            Ok(())
        })
        .await
    }

    /// Takes back what was denied while the host ran.
    pub(crate) async fn undeny(&self, rule: &Rule, store: &Store) -> Result<(), RuleError> {
        self.change(store, |denied| {
            let was_there = match rule {
                Rule::Manifest(hash) => denied.hashes.remove(hash),
                Rule::Images(pattern) => denied.images.remove(&pattern.to_string()),
            };
            was_there.then_some(()).ok_or(RuleError::Unknown)
        })
        .await
    }

    async fn change(
        &self,
        store: &Store,
        change: impl FnOnce(&mut Denied) -> Result<(), RuleError>,
    ) -> Result<(), RuleError> {
        let Some(inner) = self.0.get() else {
            return Ok(());
        };
        let _one = inner.changing.lock().await;
        let mut denied = inner.denied().clone();
        change(&mut denied)?;
        let json = serde_json::to_vec(&denied).expect("strings are JSON");
        store
            .commit(Batch::new().meta(META_KEY, Some(json)))
            .await?;
        *inner.denied.write().unwrap_or_else(PoisonError::into_inner) = denied;
        inner.tell_images();
        Ok(())
    }

    pub(crate) fn report(&self) -> RulesReport {
        let Some(inner) = self.0.get() else {
            return RulesReport::default();
        };
        fn texts<T: ToString>(rules: impl IntoIterator<Item = T>) -> Vec<String> {
            rules.into_iter().map(|rule| rule.to_string()).collect()
        }
        let (configured, denied) = (&inner.configured, inner.denied());
        RulesReport {
            allow: texts(&configured.images.allow),
            deny: texts(&configured.images.deny),
            pin: texts(&configured.images.pin),
            allow_hashes: texts(&configured.allow_hashes),
            deny_hashes: texts(&configured.deny_hashes),
            denied_here: [texts(&denied.images), texts(&denied.hashes)].concat(),
        }
    }
}

impl Inner {
    fn denied(&self) -> RwLockReadGuard<'_, Denied> {
        self.denied.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the image store the patterns that hold now.
    fn tell_images(&self) {
        let mut policy = self.configured.images.clone();
        let denied = self.denied();
        let added = denied.images.iter().filter_map(|text| text.parse().ok());
        policy.deny.extend(added);
        self.images.set_policy(policy);
    }
}

/// The leases in the store, as the image store asks for them before it removes anything.
pub(crate) struct StoredLeases(pub(crate) Store);

#[async_trait]
impl Leaseholders for StoredLeases {
    async fn needed_images(&self) -> Result<Vec<String>, Box<dyn StdError + Send + Sync>> {
        #[derive(Deserialize)]
        struct Pinned {
            digest: String,
        }
        let mut digests = Vec::new();
        for stored in self.0.load().await?.leases {
            if let Some(upload) = stored.upload {
                let images: Vec<Pinned> = serde_json::from_str(&upload.images_json)?;
                digests.extend(images.into_iter().map(|image| image.digest));
            }
        }
        Ok(digests)
    }
}

#[cfg(test)]
mod tests {
    use codius_image::{ImageLimits, RegistryConfig};

    use super::*;

    const HASH: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    #[tokio::test]
    async fn what_is_denied_while_the_host_runs_is_denied_after_a_restart() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let store = Store::open(&dir.path().join("codius.db"))?;
        let images = Arc::new(ImageStore::open(
            dir.path().join("images"),
            ImageLimits::default(),
            &RegistryConfig::default(),
        )?);
        let open = async |config: &str| -> Result<Rules> {
            let rules = Rules::default();
            rules.open(
                &toml::from_str(config)?,
                None,
                &images,
                &store.load().await?.meta,
            )?;
            Ok(rules)
        };
        let hash: ManifestHash = HASH.parse()?;
        let rules = open("").await?;
        assert!(rules.check(&hash).is_ok());
        rules.deny(&HASH.parse()?, &store).await?;
        rules.deny(&"*.example/evil".parse()?, &store).await?;
        let refused = rules.check(&hash).expect_err("denied");
        assert_eq!(refused.status(), 403);

        let rules = open("").await?;
        assert!(rules.check(&hash).is_err());
        assert_eq!(rules.report().denied_here, ["*.example/evil", HASH]);
        let other = "docker.io".parse()?;
        assert!(matches!(
            rules.undeny(&other, &store).await,
            Err(RuleError::Unknown)
        ));
        rules.undeny(&HASH.parse()?, &store).await?;
        assert!(open("").await?.check(&hash).is_ok());

        // The configuration's own rules are not taken back by a command.
        let rules = open(&format!("[pods]\ndeny_hashes = [\"{HASH}\"]")).await?;
        assert!(rules.check(&hash).is_err());
        assert!(rules.undeny(&HASH.parse()?, &store).await.is_err());

        // A list of what is allowed is not about what the host uploads to itself.
        let listed = "b".repeat(51) + "a";
        let rules = open(&format!("[pods]\nallow_hashes = [\"{listed}\"]")).await?;
        assert!(rules.check(&listed.parse()?).is_ok());
        assert!(rules.check(&hash).is_err());
        rules.expect_own(hash);
        assert!(rules.check(&hash).is_ok());
        store.close().await;
        Ok(())
    }
}
