//! The loop that finds peers: it checks who is due, and exchanges peers with a few that answer.

use std::{sync::Arc, time::Duration};

use tokio::{task::JoinSet, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use codius_peers::PeerUrl;

use super::Peers;

/// How often it is looked who is due.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Checks under way at once.
const MAX_CHECKS: usize = 8;
/// Peers that are exchanged with in one round, as in the original.
const EXCHANGED_WITH: usize = 5;

impl Peers {
    /// Keeps the table true until the host ends.
    pub(crate) async fn run(self: Arc<Self>, closing: CancellationToken) {
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        let mut exchange = tokio::time::interval(self.exchange_interval);
        for ticks in [&mut look, &mut exchange] {
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        let (mut checks, mut exchanges) = (JoinSet::new(), JoinSet::new());
        loop {
            // Ticks and finished tasks are not lost by being looked at again; tasks that are still
            // under way at the end are dropped, and with them their connections.
            tokio::select! {
                () = closing.cancelled() => break,
                _ = look.tick() => {
                    let free = MAX_CHECKS - checks.len();
                    let due = self.table().due(self.now(), free);
                    for peer in due {
                        let span = tracing::debug_span!("peer", url = %peer);
                        checks.spawn(Arc::clone(&self).check(peer).instrument(span));
                    }
                }
                _ = exchange.tick() => {
                    self.keep().await;
                    // A round that takes longer than the interval is one round.
                    if self.is_tested() && exchanges.is_empty() {
                        for peer in self.choose(EXCHANGED_WITH) {
                            let span = tracing::debug_span!("peer", url = %peer);
                            exchanges.spawn(Arc::clone(&self).exchange(peer).instrument(span));
                        }
                    }
                }
                Some(_) = checks.join_next() => {}
                Some(_) = exchanges.join_next() => {}
            }
        }
        drop((checks, exchanges));
        self.keep().await;
    }

    async fn check(self: Arc<Self>, peer: PeerUrl) {
        let outcome = self.client.check(&peer).await;
        let (now, random) = (self.now(), rand::random());
        match outcome {
            Ok(()) => {
                self.table().answered(&peer, now, random);
                tracing::debug!("answers as itself");
            }
            Err(error) => {
                self.table().failed(&peer, now, random);
                tracing::debug!(%error, "not listed");
            }
        }
    }

    async fn exchange(self: Arc<Self>, peer: PeerUrl) {
        match self.client.discover(&peer, self.own.as_ref()).await {
            Ok(peers) => self.offer(&peers),
            Err(error) => {
                tracing::debug!(%error, "no exchange");
                let (now, random) = (self.now(), rand::random());
                self.table().lost(&peer, now, random);
            }
        }
    }
}
