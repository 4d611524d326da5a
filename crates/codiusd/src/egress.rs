//! What single programs may reach beyond what all pods may: permits of the operator, by manifest hash.
//!
//! ```text
//! configuration   [egress]: what holds for all pods; needs a restart
//!       +
//! run time        `codiusd admin egress allow HASH`: in the store until `codiusd admin egress remove HASH`
//! ```
//!
//! A change is durable first; then it is in force for the pod that runs, and for each that is started later.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard},
};

use anyhow::{Context, Result};
use codius_address::Ipv4Range;
use codius_manifest::ManifestHash;
use codius_pod::{
    Count, DriverError, Egress, EgressLimits, EgressPolicy, InvalidPermit, Permit, Traffic,
};
use codius_store::{Batch, Store, StoreError};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Where the store keeps the permits.
const META_KEY: &str = "egress_permits";
/// Programs that can have one.
const MAX_PERMITS: usize = 1000;
/// Ports and ranges of one program.
const MAX_ENTRIES: usize = 64;

/// The permits of this host. Clones are the same ones; until they are opened there are none, and nothing
/// is counted.
#[derive(Clone, Default)]
pub(crate) struct EgressPermits(Arc<OnceLock<Inner>>);

struct Inner {
    driver: Arc<dyn Egress>,
    pool: Ipv4Range,
    policy: EgressPolicy,
    permits: RwLock<BTreeMap<ManifestHash, Permit>>,
    /// One change at a time: what holds is what was written last.
    changing: tokio::sync::Mutex<()>,
}

/// What the operator wants of one program's permit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// These, too.
    Allow(Permit),
    /// These no longer; if it names none, none at all.
    Remove(Permit),
}

/// Why a permit was not changed.
#[derive(Debug, Error)]
pub(crate) enum PermitError {
    #[error(transparent)]
    Invalid(#[from] InvalidPermit),
    #[error("it names no port and no range")]
    Empty,
    #[error("there are {MAX_PERMITS} permits already")]
    TooMany,
    #[error("a program can have {MAX_ENTRIES} ports and ranges; put wider ones")]
    TooLong,
    #[error(
        "there is no such permit that was given while the host ran; those of the configuration are \
         changed there"
    )]
    Unknown,
    #[error("the permit could not be recorded")]
    Store(#[from] StoreError),
    /// It is recorded, and holds for the next pod of this hash.
    #[error("the permit is recorded, but could not be put in force for the pod that runs")]
    NotInForce(#[source] DriverError),
}

/// `GET /egress`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct EgressReport {
    pub(crate) deny_ports: Vec<String>,
    pub(crate) allow_ports: Vec<String>,
    pub(crate) deny_ranges: Vec<String>,
    pub(crate) allow_ranges: Vec<String>,
    pub(crate) max_packets_per_sec: u32,
    pub(crate) max_kib_per_sec: u64,
    pub(crate) max_new_connections_per_sec: u32,
    pub(crate) max_open_connections: u32,
    /// By manifest hash.
    pub(crate) permits: BTreeMap<String, Permit>,
}

/// What went through the networks of the pods that run.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct TrafficReport {
    /// By manifest hash.
    pub(crate) pods: BTreeMap<String, Traffic>,
    /// What was refused behind the rules of each pod, of all together since the host started.
    pub(crate) refused_by_host: Count,
}

impl EgressPermits {
    /// Takes up what the store remembers, and tells the driver before it starts or takes up any pod.
    pub(crate) async fn open(
        &self,
        driver: Arc<dyn Egress>,
        policy: EgressPolicy,
        pool: Ipv4Range,
        meta: &BTreeMap<String, Vec<u8>>,
    ) -> Result<()> {
        let stored: Option<BTreeMap<ManifestHash, Permit>> = meta
            .get(META_KEY)
            .map(|json| serde_json::from_slice(json))
            .transpose()
            .context("the record of what pods may reach cannot be read")?;
        let permits = stored.unwrap_or_default();
        for (hash, permit) in &permits {
            driver.permit(*hash, permit.clone()).await?;
        }
        let inner = Inner {
            driver,
            pool,
            policy,
            permits: RwLock::new(permits),
            changing: tokio::sync::Mutex::default(),
        };
        anyhow::ensure!(self.0.set(inner).is_ok(), "permits are opened once");
        Ok(())
    }

    /// Changes the permit of a program. It is durable, and in force, when this returns.
    pub(crate) async fn change(
        &self,
        hash: ManifestHash,
        change: Change,
        store: &Store,
    ) -> Result<(), PermitError> {
        let Some(inner) = self.0.get() else {
            return Ok(());
        };
        let _one = inner.changing.lock().await;
        let mut permits = inner.permits().clone();
        let permit = changed(permits.get(&hash).cloned().unwrap_or_default(), change)?;
        permit.check(inner.pool)?;
        if permit.ports.len() + permit.ranges.len() > MAX_ENTRIES {
            return Err(PermitError::TooLong);
        }
        if permit.is_empty() {
            permits.remove(&hash);
        } else {
            permits.insert(hash, permit.clone());
        }
        if permits.len() > MAX_PERMITS {
            return Err(PermitError::TooMany);
        }
        let json = serde_json::to_vec(&permits).expect("strings are JSON");
        store
            .commit(Batch::new().meta(META_KEY, Some(json)))
            .await?;
        *inner
            .permits
            .write()
            .unwrap_or_else(PoisonError::into_inner) = permits;
        let told = inner.driver.permit(hash, permit).await;
        told.map_err(PermitError::NotInForce)
    }

    pub(crate) fn report(&self) -> EgressReport {
        let Some(inner) = self.0.get() else {
            return EgressReport::default();
        };
        fn texts<T: ToString>(entries: impl IntoIterator<Item = T>) -> Vec<String> {
            entries.into_iter().map(|entry| entry.to_string()).collect()
        }
        let EgressPolicy {
            deny_ports,
            deny_ranges,
            permit,
            limits,
        } = &inner.policy;
        let EgressLimits {
            packets_per_sec,
            bytes_per_sec,
            new_connections_per_sec,
            open_connections,
        } = *limits;
        let permits = inner.permits();
        EgressReport {
            deny_ports: texts(deny_ports),
            allow_ports: texts(&permit.ports),
            deny_ranges: texts(deny_ranges),
            allow_ranges: texts(&permit.ranges),
            max_packets_per_sec: packets_per_sec,
            max_kib_per_sec: bytes_per_sec / 1024,
            max_new_connections_per_sec: new_connections_per_sec,
            max_open_connections: open_connections,
            permits: permits
                .iter()
                .map(|(hash, permit)| (hash.to_string(), permit.clone()))
                .collect(),
        }
    }

    /// What pods have sent and received; those that do not run are left out.
    pub(crate) async fn traffic(
        &self,
        pods: &[ManifestHash],
    ) -> Result<BTreeMap<ManifestHash, Traffic>, DriverError> {
        match self.0.get() {
            Some(inner) => inner.driver.traffic(pods).await,
            None => Ok(BTreeMap::new()),
        }
    }

    /// The same, and what the host has refused of all. What cannot be read is left out, and logged.
    pub(crate) async fn traffic_of(&self, pods: &[ManifestHash]) -> TrafficReport {
        let pods = self.traffic(pods).await.unwrap_or_else(|error| {
            unreadable(&error);
            BTreeMap::new()
        });
        let pods = pods.into_iter().map(|(hash, it)| (hash.to_string(), it));
        let pods = pods.collect();
        let refused_by_host = match self.0.get() {
            Some(inner) => inner.driver.refused_by_host().await,
            None => Ok(Count::default()),
        };
        TrafficReport {
            pods,
            refused_by_host: refused_by_host.unwrap_or_else(|error| {
                unreadable(&error);
                Count::default()
            }),
        }
    }
}

impl Inner {
    fn permits(&self) -> RwLockReadGuard<'_, BTreeMap<ManifestHash, Permit>> {
        self.permits.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unreadable(error: &DriverError) {
    tracing::warn!(
        error = error as &dyn std::error::Error,
        "counters of a network cannot be read"
    );
}

fn changed(mut permit: Permit, change: Change) -> Result<Permit, PermitError> {
    match change {
        Change::Allow(more) if more.is_empty() => Err(PermitError::Empty),
        Change::Allow(more) => {
            permit.ports.extend(more.ports);
            permit.ranges.extend(more.ranges);
            Ok(permit)
        }
        Change::Remove(_) if permit.is_empty() => Err(PermitError::Unknown),
        Change::Remove(all) if all.is_empty() => Ok(Permit::default()),
        Change::Remove(some) => {
            let known =
                some.ports.is_subset(&permit.ports) && some.ranges.is_subset(&permit.ranges);
            if !known {
                return Err(PermitError::Unknown);
            }
            permit.ports.retain(|ports| !some.ports.contains(ports));
            permit.ranges.retain(|range| !some.ranges.contains(range));
            Ok(permit)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;

    use super::*;

    /// Remembers what it was told.
    #[derive(Default)]
    struct Told(Mutex<Vec<(ManifestHash, Permit)>>);

    #[async_trait]
    impl Egress for Told {
        async fn permit(&self, pod: ManifestHash, permit: Permit) -> Result<(), DriverError> {
            self.0.lock().unwrap().push((pod, permit));
            Ok(())
        }

        async fn traffic(
            &self,
            _: &[ManifestHash],
        ) -> Result<BTreeMap<ManifestHash, Traffic>, DriverError> {
            Ok(BTreeMap::new())
        }

        async fn refused_by_host(&self) -> Result<Count, DriverError> {
            Ok(Count::default())
        }
    }

    fn permit(ports: &[&str], ranges: &[&str]) -> Permit {
        Permit {
            ports: ports.iter().map(|text| text.parse().unwrap()).collect(),
            ranges: ranges.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    async fn open(store: &Store) -> Result<(EgressPermits, Arc<Told>)> {
        let (permits, told) = (EgressPermits::default(), Arc::new(Told::default()));
        let meta = store.load().await?.meta;
        let pool = "10.88.0.0/16".parse()?;
        permits
            .open(Arc::clone(&told) as _, EgressPolicy::default(), pool, &meta)
            .await?;
        Ok((permits, told))
    }

    #[tokio::test]
    async fn a_permit_is_told_at_once_and_again_after_a_restart() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let store = Store::open(&dir.path().join("codius.db"))?;
        let hash = ManifestHash::from_bytes([1; 32]);
        let (permits, told) = open(&store).await?;
        let mail = permit(&["25/tcp"], &[]);
        let lan = permit(&[], &["10.1.0.0/16"]);
        let both = permit(&["25/tcp"], &["10.1.0.0/16"]);
        permits
            .change(hash, Change::Allow(mail.clone()), &store)
            .await?;
        permits
            .change(hash, Change::Allow(lan.clone()), &store)
            .await?;
        assert_eq!(
            *told.0.lock().unwrap(),
            [(hash, mail.clone()), (hash, both.clone())]
        );

        let (permits, told) = open(&store).await?;
        assert_eq!(*told.0.lock().unwrap(), [(hash, both.clone())]);
        assert_eq!(permits.report().permits[&hash.to_string()], both);
        permits.change(hash, Change::Remove(mail), &store).await?;
        permits
            .change(hash, Change::Remove(Permit::default()), &store)
            .await?;
        let last = told.0.lock().unwrap().last().cloned();
        assert_eq!(last, Some((hash, Permit::default())));
        let (permits, told) = open(&store).await?;
        assert!(told.0.lock().unwrap().is_empty() && permits.report().permits.is_empty());
        store.close().await;
        Ok(())
    }

    #[tokio::test]
    async fn what_is_refused_changes_nothing() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let store = Store::open(&dir.path().join("codius.db"))?;
        let hash = ManifestHash::from_bytes([1; 32]);
        let (permits, told) = open(&store).await?;
        let many: Vec<String> = (1..=65).map(|port| port.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        for (change, reason) in [
            (Change::Allow(permit(&[], &[])), "names no port"),
            (Change::Allow(permit(&many, &[])), "64 ports and ranges"),
            (Change::Allow(permit(&[], &["10.0.0.0/8"])), "other pods"),
            (Change::Allow(permit(&[], &["0.0.0.0/0"])), "host itself"),
            (Change::Remove(permit(&[], &[])), "no such permit"),
        ] {
            let error = permits.change(hash, change, &store).await.unwrap_err();
            assert!(error.to_string().contains(reason), "{error}");
        }
        permits
            .change(hash, Change::Allow(permit(&["25"], &[])), &store)
            .await?;
        let other = Change::Remove(permit(&["26"], &[]));
        let error = permits.change(hash, other, &store).await.unwrap_err();
        assert!(matches!(error, PermitError::Unknown), "{error}");
        assert_eq!(told.0.lock().unwrap().len(), 1);
        store.close().await;
        Ok(())
    }
}
