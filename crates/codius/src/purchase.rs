//! Buying time at several hosts at once, and telling what it has cost.
//!
//! ```text
//! offer ──pay──▶ placed
//!          │ failed, nothing was paid there ──▶ the next spare host, quoted anew ──▶ offer
//!          └ failed, something was paid there ──▶ failed
//! ```
//! A host that has had money is not replaced, so that at most as many hosts are paid as were asked
//! for: in all, never more than that many times the limit.

use std::{cell::RefCell, collections::VecDeque, time::Duration};

use codius_api::{AssetInfo, LeaseEvent, PodReply, UnixMillis, v2::LeaseReply};
use codius_client::{ClientError, HostClient, PaidAnswer, Receipt, Wallet};
use codius_manifest::ManifestHash;
use futures_util::{StreamExt, stream::FuturesUnordered};

use crate::{
    amount,
    choice::Wish,
    failure::{Failure, INTERRUPTED},
    offer::{LeftOut, Look, Offer},
    progress::{Board, Display},
};

/// How long to wait before asking again for the events of a lease that the host does not know yet: at
/// first, and at most, doubled each time.
const EVENTS_RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// What is bought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// The program is posted: it is started, or runs longer.
    Upload,
    /// Only what runs there, runs longer.
    Extend,
}

/// Something that runs.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) host: String,
    pub(crate) run: Run,
    pub(crate) receipt: Receipt,
    pub(crate) phases: Vec<LeaseEvent>,
}

/// What was bought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) hash: ManifestHash,
    /// `None` if the program has no port.
    pub(crate) url: Option<String>,
    pub(crate) expiry: UnixMillis,
}

impl From<PodReply> for Run {
    fn from(reply: PodReply) -> Self {
        Self {
            hash: reply.manifest_hash,
            url: Some(reply.url),
            expiry: reply.expiry,
        }
    }
}

impl From<LeaseReply> for Run {
    fn from(reply: LeaseReply) -> Self {
        Self {
            hash: reply.manifest_hash,
            url: reply.url,
            // What has ended since runs no longer than it has begun.
            expiry: reply.expires_at.unwrap_or(reply.created_at),
        }
    }
}

/// A host at which the order failed.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) host: String,
    pub(crate) failure: Failure,
    pub(crate) receipt: Receipt,
}

/// What has become of all orders.
#[derive(Debug, Default)]
pub(crate) struct Purchases {
    pub(crate) placed: Vec<Placed>,
    pub(crate) failed: Vec<Failed>,
    /// Hosts that were replaced, and spare ones that would not do.
    pub(crate) left_out: Vec<LeftOut>,
    /// Ctrl-C: the orders at these hosts were under way.
    pub(crate) interrupted: Option<Vec<(String, Receipt)>>,
}

/// Buys at the chosen hosts; `placed` is told of each success at once.
pub(crate) async fn buy(
    order: Order,
    chosen: Vec<Offer>,
    spare: VecDeque<Look>,
    wish: &Wish<'_>,
    placed: &mut dyn FnMut(&Placed),
) -> Purchases {
    let buyer = Buyer {
        order,
        wish,
        board: Board::new(chosen.len()),
        spare: RefCell::new(spare),
        left_out: RefCell::default(),
        under_way: RefCell::default(),
    };
    let mut purchases = Purchases::default();
    let mut orders: FuturesUnordered<_> =
        chosen.into_iter().map(|offer| buyer.place(offer)).collect();
    let interrupt = tokio::signal::ctrl_c();
    tokio::pin!(interrupt);
    loop {
        // Dropping an order that is under way leaves it to the host, which goes on with it.
        let answer = tokio::select! {
            answer = orders.next() => answer,
            _ = &mut interrupt => {
                let under_way = buyer.under_way.borrow();
                let moved = under_way.iter().map(|(host, purse)| (host.clone(), purse.moved()));
                purchases.interrupted = Some(moved.collect());
                break;
            }
        };
        match answer {
            Some(Ok(one)) => {
                placed(&one);
                purchases.placed.push(one);
            }
            Some(Err(one)) => purchases.failed.push(one),
            None => break,
        }
    }
    drop(orders);
    purchases.left_out = buyer.left_out.into_inner();
    purchases
}

struct Buyer<'a> {
    order: Order,
    wish: &'a Wish<'a>,
    board: Board,
    spare: RefCell<VecDeque<Look>>,
    left_out: RefCell<Vec<LeftOut>>,
    /// Hosts that may be paid right now.
    under_way: RefCell<Vec<(String, Wallet)>>,
}

impl Buyer<'_> {
    /// Buys at one host, or at another in its place.
    async fn place(&self, mut offer: Offer) -> Result<Placed, Failed> {
        loop {
            let failed = match self.pay(&offer).await {
                Ok(placed) => return Ok(placed),
                Err(failed) => failed,
            };
            if failed.receipt.paid > 0 {
                return Err(failed);
            }
            let Some(other) = self.replacement().await else {
                return Err(failed);
            };
            self.board.tell(&format!(
                "{}: {}; nothing was paid there, {} takes its place for {}",
                failed.host,
                failed.failure.message(),
                other.look.origin(),
                amount::format(other.price, &other.look.asset),
            ));
            self.left_out.borrow_mut().push(LeftOut {
                host: failed.host,
                failure: failed.failure,
            });
            offer = other;
        }
    }

    async fn replacement(&self) -> Option<Offer> {
        loop {
            // Taken out before the wait: another order may look for one meanwhile.
            let look = self.spare.borrow_mut().pop_front()?;
            match self.wish.quote(look).await {
                Ok(offer) => return Some(offer),
                Err(left_out) => self.left_out.borrow_mut().push(left_out),
            }
        }
    }

    async fn pay(&self, offer: &Offer) -> Result<Placed, Failed> {
        let host = offer.look.host.clone();
        let host = host
            .placing_within(self.wish.timeout)
            .refunding_to(self.wish.refund_to);
        let name = host.origin().to_owned();
        let mut display = self.board.line(&name);
        display.say("Paying");
        self.under_way
            .borrow_mut()
            .push((name.clone(), offer.purse.clone()));
        let outcome = self.outcome(offer, &host, &mut display).await;
        self.under_way
            .borrow_mut()
            .retain(|(host, _)| *host != name);
        let phases = display.end();
        match outcome {
            Ok((run, receipt)) if run.hash == self.wish.hash => Ok(Placed {
                host: name,
                run,
                receipt,
                phases,
            }),
            Ok((run, receipt)) => Err(Failed {
                host: name,
                failure: Failure::new(
                    crate::failure::REFUSED,
                    format!("the host says that it runs another program, {}", run.hash),
                ),
                receipt,
            }),
            Err(error) => {
                let own = own_asset(&offer.purse);
                let failure =
                    Failure::of_order(&error, &|units| amount::format(units, &own), &|units| {
                        amount::format(units, &offer.look.asset)
                    });
                let receipt = error.receipt();
                let failure = match receipt.paid {
                    0 => failure.first("Nothing was paid."),
                    _ => failure,
                };
                Err(Failed {
                    host: name,
                    failure,
                    receipt,
                })
            }
        }
    }

    /// Waits for the order, showing its progress.
    async fn outcome(
        &self,
        offer: &Offer,
        host: &HostClient,
        display: &mut Display,
    ) -> Result<(Run, Receipt), ClientError> {
        let Wish {
            document,
            hash,
            duration_secs,
            signer,
            ..
        } = self.wish;
        let (secs, purse, limit) = (*duration_secs, &offer.purse, offer.limit);
        let buying = async {
            Ok(match (self.order, offer.look.has_v2) {
                (Order::Upload, true) => taken(
                    host.create_lease(document, secs, signer, purse, limit)
                        .await?,
                ),
                (Order::Upload, false) => taken(
                    host.upload(&document.to_string(), secs, purse, limit)
                        .await?,
                ),
                (Order::Extend, true) => taken(host.extend_lease(hash, secs, purse, limit).await?),
                (Order::Extend, false) => taken(host.extend(hash, secs, purse, limit).await?),
            })
        };
        let watching = watch(host, hash, display);
        tokio::pin!(buying, watching);
        tokio::select! {
            outcome = &mut buying => outcome,
            // All was told; the answer is about to come.
            () = &mut watching => buying.await,
        }
    }
}

fn taken<T: Into<Run>>(answer: PaidAnswer<T>) -> (Run, Receipt) {
    (answer.reply.into(), answer.receipt)
}

/// What a wallet counts in, as the API has it.
pub(crate) fn own_asset(wallet: &Wallet) -> AssetInfo {
    let asset = wallet.asset();
    AssetInfo {
        code: asset.code.clone(),
        scale: asset.scale,
    }
}

/// Follows the events of a lease, which begins when the host has seen the order.
async fn watch(host: &HostClient, hash: &ManifestHash, display: &mut Display) {
    let (mut pause, most) = EVENTS_RETRY;
    let mut events = loop {
        match host.events(hash).await {
            Ok(events) => break events,
            // Not yet; or a host of the first generation, which never knows.
            Err(_) => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(most);
    };
    while let Some(event) = events.next().await {
        let last = event.kind.is_last();
        display.event(event);
        if last {
            return;
        }
    }
}

impl Purchases {
    /// What is wrong with them, if anything is.
    pub(crate) fn failure(&mut self, hash: &ManifestHash, wallet: &Wallet) -> Option<Failure> {
        let own = own_asset(wallet);
        if let Some(under_way) = self.interrupted.take() {
            return Some(interrupted(hash, &under_way, &own));
        }
        let (code, total) = (
            self.failed.first()?.failure.code(),
            self.failed.len() + self.placed.len(),
        );
        if total == 1 {
            return Some(self.failed.remove(0).failure);
        }
        let failure = Failure::new(
            code,
            format!("{} of {total} hosts do not run it", self.failed.len()),
        );
        Some(self.failed.iter().fold(failure, |failure, one| {
            let failure = failure.note(format!("{}: {}", one.host, one.failure.message()));
            one.failure
                .notes()
                .iter()
                .fold(failure, |failure, note| failure.note(format!("  {note}")))
        }))
    }
}

fn interrupted(hash: &ManifestHash, under_way: &[(String, Receipt)], own: &AssetInfo) -> Failure {
    let paid: Vec<_> = under_way
        .iter()
        .map(|(host, moved)| (host, moved.paid.saturating_sub(moved.refunded)))
        .filter(|(_, paid)| *paid > 0)
        .collect();
    if paid.is_empty() {
        return Failure::new(
            INTERRUPTED,
            "interrupted; nothing was paid to the hosts that were left",
        );
    }
    let failure = Failure::new(INTERRUPTED, "interrupted after hosts had been paid");
    paid.into_iter()
        .fold(failure, |failure, (host, paid)| {
            failure
                .note(format!("{host}: {}", amount::format(paid, own)))
                .note(format!("Next: codius status {hash} --host {host}"))
        })
        .note("These hosts go on with the order; if it fails, they owe the money to the next upload of this manifest.")
}
