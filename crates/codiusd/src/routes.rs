//! Which pod a visitor is sent to: a published map from manifest hash to address.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{PoisonError, RwLock},
};

use codius_manifest::ManifestHash;
use codius_proxy::{PodRoutes, Route};
use tokio::sync::watch;

/// The pods with a port that run now, and those that are about to. Read for every request, changed seldom.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    /// Without a target: the pod is being taken up or started again.
    by_label: RwLock<HashMap<String, Option<Target>>>,
    changed: watch::Sender<()>,
}

/// Where visitors of one pod are sent.
#[derive(Debug, Clone, Copy)]
struct Target {
    address: SocketAddr,
    frozen: bool,
}

impl Routes {
    /// Its pod is on its way; visitors wait for it.
    pub(crate) fn expect(&self, hash: &ManifestHash) {
        self.change(|routes| routes.insert(hash.to_string(), None));
    }

    pub(crate) fn insert(&self, hash: &ManifestHash, address: SocketAddr) {
        let target = Target {
            address,
            frozen: false,
        };
        self.change(|routes| routes.insert(hash.to_string(), Some(target)));
    }

    /// Visitors are told that the pod is held still.
    pub(crate) fn freeze(&self, hash: &ManifestHash) {
        self.set_frozen(hash, true);
    }

    pub(crate) fn thaw(&self, hash: &ManifestHash) {
        self.set_frozen(hash, false);
    }

    fn set_frozen(&self, hash: &ManifestHash, frozen: bool) {
        self.change(|routes| {
            if let Some(Some(target)) = routes.get_mut(&hash.to_string()) {
                target.frozen = frozen;
            }
        });
    }

    /// Where a pod is, if visitors reach it.
    pub(crate) fn address(&self, hash: &ManifestHash) -> Option<SocketAddr> {
        let routes = self.by_label.read();
        let routes = routes.unwrap_or_else(PoisonError::into_inner);
        let target = routes.get(&hash.to_string()).copied().flatten()?;
        Some(target.address)
    }

    /// Takes a pod off; its address, so that open connections can be ended.
    pub(crate) fn remove(&self, hash: &ManifestHash) -> Option<SocketAddr> {
        let target = self.change(|routes| routes.remove(&hash.to_string()))??;
        Some(target.address)
    }

    fn change<T>(&self, change: impl FnOnce(&mut HashMap<String, Option<Target>>) -> T) -> T {
        let mut routes = self
            .by_label
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let done = change(&mut routes);
        drop(routes);
        self.changed.send_replace(());
        done
    }
}

impl PodRoutes for Routes {
    fn route(&self, label: &str) -> Route {
        match self
            .by_label
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(label)
        {
            Some(Some(Target { frozen: true, .. })) => Route::Frozen,
            Some(Some(target)) => Route::Pod(target.address),
            Some(None) => Route::NotReady,
            None => Route::NotFound,
        }
    }

    fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}
