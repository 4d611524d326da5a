//! Where the pods are: asked anew for every request, so it must be quick.

use std::net::SocketAddr;

use tokio::sync::watch;

/// Knows the pods of this host. Called on the path of every request: look into a published map,
/// do not wait for anything.
pub trait PodRoutes: Send + Sync {
    /// `label` is 52 letters of `a-z2-7`, already in lower case.
    fn route(&self, label: &str) -> Route;

    /// Tells when a route may have changed, for requests that wait for a pod.
    fn changes(&self) -> watch::Receiver<()>;
}

/// The answer for one label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// The pod runs and its program is reached at this address.
    Pod(SocketAddr),
    /// The pod exists and is being taken up or started again: the request waits, and gets 503 if that takes
    /// longer than [`Limits::pod_ready`](crate::Limits::pod_ready).
    NotReady,
    /// The pod's money is used up and it is held still for a while: the visitor gets 503.
    Frozen,
    /// No such pod, or a pod without a port: 404.
    NotFound,
}
