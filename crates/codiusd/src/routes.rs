//! Which pod a visitor is sent to: a published map from manifest hash to address.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{PoisonError, RwLock},
};

use codius_manifest::ManifestHash;
use codius_proxy::{PodRoutes, Route};

/// The pods with a port that run now. Read for every request, changed seldom.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    by_label: RwLock<HashMap<String, Target>>,
}

/// Where visitors of one pod are sent.
#[derive(Debug, Clone, Copy)]
struct Target {
    address: SocketAddr,
    frozen: bool,
}

impl Routes {
    pub(crate) fn insert(&self, hash: &ManifestHash, address: SocketAddr) {
        self.by_label
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(
                hash.to_string(),
                Target {
                    address,
                    frozen: false,
                },
            );
    }

    /// Visitors are told that the pod is held still.
    pub(crate) fn freeze(&self, hash: &ManifestHash) {
        self.set_frozen(hash, true);
    }

    pub(crate) fn thaw(&self, hash: &ManifestHash) {
        self.set_frozen(hash, false);
    }

    fn set_frozen(&self, hash: &ManifestHash, frozen: bool) {
        let mut routes = self
            .by_label
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(target) = routes.get_mut(&hash.to_string()) {
            target.frozen = frozen;
        }
    }

    /// Where a pod is, if visitors reach it.
    pub(crate) fn address(&self, hash: &ManifestHash) -> Option<SocketAddr> {
        let routes = self.by_label.read();
        let routes = routes.unwrap_or_else(PoisonError::into_inner);
        routes.get(&hash.to_string()).map(|target| target.address)
    }

    /// Takes a pod off; its address, so that open connections can be ended.
    pub(crate) fn remove(&self, hash: &ManifestHash) -> Option<SocketAddr> {
        self.by_label
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&hash.to_string())
            .map(|target| target.address)
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
            Some(Target { frozen: true, .. }) => Route::Frozen,
            Some(target) => Route::Pod(target.address),
            None => Route::NotFound,
        }
    }
}
