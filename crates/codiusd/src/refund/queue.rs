//! Sends refunds to the payment pointers that their payers have named, until they have arrived.
//!
//! ```text
//!              ┌───────────────── due, and nobody is at it ◀──────────────┐
//!              ▼                                                          │ the wait is over
//! (the next try is written) ──▶ asked (SPSP) ──▶ sent (STREAM) ──▶ is something left?
//!                                                                  │ no
//!                                                                  ▼
//!                                                               settled
//! ```
//! What has left is what the books say, and each try sends what they say is left. The next try is in the
//! books before this one begins, so that a host that dies of one does not begin again with it.
//!
//! Traps:
//! - A packet counts when its Fulfill is in the books. A host that is killed in between knows nothing of
//!   it, and sends that much again: at most what is on its way at that moment, as with every connector.
//! - Waits are by the wall clock, which may be set back: a wait that is longer than the longest is over.

use std::{collections::HashSet, sync::Arc, time::Duration};

use codius_ledger::{Account, Backoff};
use codius_store::{Batch, RefundStep, Store, StoreError, StoredRefund};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{Claim, Claims, PaymentPointer, Refunds};
use crate::clock::Clock;

/// Refunds that are being sent at a time.
const MAX_AT_A_TIME: usize = 8;
/// Refunds that are looked at at a time: more than [`MAX_AT_A_TIME`], as several may have the same payee.
const MAX_LOOKED_AT: usize = 256;
/// How long a try may send. With the time that its last packet may take it is over 5 s later.
const PATIENCE: Duration = Duration::from_secs(30);
/// The books are looked at so often even if nothing seems to be due.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// The longest text of a trouble that is kept, in characters.
const MAX_TROUBLE_CHARS: usize = 200;

/// Sends what is due.
pub(crate) struct RefundQueue {
    pub(crate) refunds: Arc<Refunds>,
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) claims: Claims,
    pub(crate) backoff: Backoff,
    pub(crate) closing: CancellationToken,
}

impl RefundQueue {
    /// Sends refunds until the host ends; what is being sent then stops with the packets on their way.
    pub(crate) async fn run(self) {
        let queue = Arc::new(self);
        let mut tries: JoinSet<String> = JoinSet::new();
        // Who is asked at this moment: one refund at a time for each.
        let mut asked = HashSet::new();
        loop {
            let wait = match queue.begin_tries(&mut tries, &mut asked).await {
                Ok(wait) => wait,
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "refunds that are due cannot be read");
                    LOOK_INTERVAL
                }
            };
            // Nothing is lost if any of these is dropped: the books are looked at anew.
            tokio::select! {
                () = queue.closing.cancelled() => break,
                Some(done) = tries.join_next() => {
                    // A try that panicked leaves its payee in the set: it is not asked again.
                    if let Ok(origin) = done {
                        asked.remove(&origin);
                    }
                }
                () = queue.claims.woken() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
        while tries.join_next().await.is_some() {}
    }

    /// Begins what is due, and says how long nothing else will be.
    async fn begin_tries(
        self: &Arc<Self>,
        tries: &mut JoinSet<String>,
        asked: &mut HashSet<String>,
    ) -> Result<Duration, StoreError> {
        let now = self.clock.wall();
        for refund in self.store.refunds_to_send(MAX_LOOKED_AT).await? {
            let at = refund.next_try_unix_ms.unwrap_or(now);
            let wait_ms = at.saturating_sub(now);
            if wait_ms > 0 && wait_ms <= self.backoff.longest_ms {
                return Ok(Duration::from_millis(wait_ms).min(LOOK_INTERVAL));
            }
            if asked.len() >= MAX_AT_A_TIME {
                // Whoever ends lets the next begin.
                break;
            }
            let origin = self
                .payee(&refund)
                .map_or_else(|_| refund.record.id.to_string(), |pointer| pointer.origin());
            if asked.contains(&origin) {
                continue;
            }
            // Whoever is at it wakes us when it is done.
            let Some(claim) = self.claims.take(refund.record.id) else {
                continue;
            };
            asked.insert(origin.clone());
            let queue = Arc::clone(self);
            let span = tracing::info_span!("refund", hash = %refund.record.hash);
            let trying = async move {
                if let Err(error) = queue.attempt(&refund, &claim).await {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "a try of a refund was not recorded"
                    );
                    // The store does not recover by itself; so no haste.
                    tokio::select! {
                        () = tokio::time::sleep(LOOK_INTERVAL) => {}
                        () = queue.closing.cancelled() => {}
                    }
                }
                origin
            };
            tries.spawn(trying.instrument(span));
        }
        Ok(LOOK_INTERVAL)
    }

    fn payee(&self, refund: &StoredRefund) -> Result<PaymentPointer, String> {
        let text = refund.record.destination.as_deref().unwrap_or_default();
        self.refunds
            .pointer(text)
            .map_err(|error| format!("its payment pointer is not paid by this host: {error}"))
    }

    async fn attempt(&self, refund: &StoredRefund, claim: &Claim) -> Result<(), StoreError> {
        let account = Account::Refund(claim.id);
        let due = self.balance(&account).await?;
        if due == 0 {
            return self.note(claim, RefundStep::Settled).await;
        }
        let tries = refund.tries.saturating_add(1);
        let waiting = |tries, trouble| RefundStep::Waiting {
            tries,
            trouble,
            next_try_unix_ms: self
                .clock
                .wall()
                .saturating_add(self.backoff.wait_ms(tries, rand::random())),
        };
        self.note(claim, waiting(tries, refund.trouble.clone()))
            .await?;
        let trouble = self.send(refund, &account, due).await.err();
        // What left is what the books say, not what we meant to send.
        let rest = self.balance(&account).await?;
        let sent = due.saturating_sub(rest);
        if rest == 0 {
            tracing::info!(sent, "refunded");
            return self.note(claim, RefundStep::Settled).await;
        }
        let tries = if sent > 0 { 1 } else { tries };
        let trouble = trouble.unwrap_or_else(|| format!("{sent} of {due} arrived"));
        tracing::warn!(sent, rest, tries, trouble, "not refunded yet");
        let trouble = trouble.chars().take(MAX_TROUBLE_CHARS).collect();
        self.note(claim, waiting(tries, Some(trouble))).await
    }

    async fn send(&self, refund: &StoredRefund, from: &Account, due: u64) -> Result<(), String> {
        let pointer = self.payee(refund)?;
        let to = self.refunds.ask(&pointer).await?;
        let sent = self.refunds.send(from, due, to, PATIENCE).await;
        tracing::debug!(sent, %pointer, "tried");
        Ok(())
    }

    async fn note(&self, claim: &Claim, step: RefundStep) -> Result<(), StoreError> {
        self.store
            .commit(Batch::new().refund_step(claim.id, step))
            .await
    }

    async fn balance(&self, account: &Account) -> Result<u64, StoreError> {
        Ok(u64::try_from(self.store.balance(account).await?).unwrap_or_default())
    }
}
