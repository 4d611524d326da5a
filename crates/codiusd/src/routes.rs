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
    by_label: RwLock<HashMap<String, SocketAddr>>,
}

impl Routes {
    pub(crate) fn insert(&self, hash: &ManifestHash, address: SocketAddr) {
        self.by_label
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(hash.to_string(), address);
    }

    /// Where a pod is, if visitors reach it.
    pub(crate) fn address(&self, hash: &ManifestHash) -> Option<SocketAddr> {
        let routes = self.by_label.read();
        let routes = routes.unwrap_or_else(PoisonError::into_inner);
        routes.get(&hash.to_string()).copied()
    }

    /// Takes a pod off; its address, so that open connections can be ended.
    pub(crate) fn remove(&self, hash: &ManifestHash) -> Option<SocketAddr> {
        self.by_label
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&hash.to_string())
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
            Some(address) => Route::Pod(*address),
            None => Route::NotFound,
        }
    }
}
