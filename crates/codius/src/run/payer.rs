//! The connection that pays, which breaks and is opened again.
//!
//! ```text
//!          opened                  over, stalled, wallet lost
//! Opening ────────▶ Open ───────────────────────────────────▶ Down ──pause is over──▶ Opening
//!    │ failed                                                   ▲
//!    └──────────────────────────────────────────────────────────┘ (the pause doubles)
//! ```

use std::time::{Duration, Instant};

use codius_client::{ClientError, Flow, Receipt, Wallet};

use super::hearing::Hearing;

/// The pause before another connection is opened: at first, and at most, doubled each time.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(4));
/// Money that is wanted and does not leave for so long is tried by another connection.
const STALL: Duration = Duration::from_secs(5);

pub(crate) struct Payer {
    /// In the host's units.
    wallet: Wallet,
    url: String,
    host_scale: u8,
    link: Link,
    /// Moved by connections that are over.
    past: Receipt,
    pause: Duration,
    /// What had left when more had left last, and when that was.
    moved: (u64, Instant),
}

enum Link {
    Opening,
    Open(Flow),
    Down { until: Instant },
}

impl Payer {
    pub(crate) fn new(wallet: Wallet, url: String, host_scale: u8, hearing: &Hearing) -> Self {
        hearing.open_flow(wallet.clone(), None);
        Self {
            wallet,
            url,
            host_scale,
            link: Link::Opening,
            past: Receipt::default(),
            pause: PAUSE.0,
            moved: (0, Instant::now()),
        }
    }

    pub(crate) fn wallet(&self) -> &Wallet {
        &self.wallet
    }

    /// What has left and come back, in the wallet's units.
    pub(crate) fn receipt(&self) -> Receipt {
        let now = match &self.link {
            Link::Open(flow) => flow.receipt(),
            Link::Opening | Link::Down { .. } => Receipt::default(),
        };
        sum(self.past, now)
    }

    /// What has left, in the host's units.
    pub(crate) fn added(&self) -> u64 {
        self.wallet.most(self.receipt().paid)
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self.link, Link::Open(_))
    }

    /// Lets `total` of the host's units leave in all, if that can be paid in our units without going over
    /// `most`; true if the connection was lost. `woke` says that we have not run for a while.
    pub(crate) fn pay(&mut self, total: u64, most: u64, woke: bool, hearing: &Hearing) -> bool {
        let now = Instant::now();
        let wanted = match self.wallet.cost(total) {
            Some(cost) if cost <= self.wallet.most(most) => cost,
            _ => self.wallet.most(total.min(most)),
        };
        let lost = self.wallet.is_lost();
        match &self.link {
            Link::Opening => false,
            Link::Down { until } if *until > now => false,
            Link::Down { .. } => {
                let renew = lost.then(|| (self.url.clone(), self.host_scale));
                hearing.open_flow(self.wallet.clone(), renew);
                self.link = Link::Opening;
                false
            }
            Link::Open(flow) => {
                let paid = flow.receipt().paid.saturating_add(self.past.paid);
                if paid > self.moved.0 || paid >= wanted || woke {
                    self.moved = (paid, now);
                }
                if paid > 0 {
                    self.pause = PAUSE.0;
                }
                let stalled = now.saturating_duration_since(self.moved.1) > STALL;
                if lost || stalled || flow.is_over() {
                    self.drop_flow();
                    return true;
                }
                flow.pay_up_to(wanted.saturating_sub(self.past.paid));
                false
            }
        }
    }

    /// A connection was opened, or not.
    pub(crate) fn opened(
        &mut self,
        opened: Result<(Wallet, Flow), ClientError>,
    ) -> Result<(), ClientError> {
        match opened {
            Ok((wallet, flow)) => {
                self.wallet = wallet;
                self.moved.1 = Instant::now();
                self.link = Link::Open(flow);
                Ok(())
            }
            Err(error) => {
                self.back_off();
                Err(error)
            }
        }
    }

    /// Ends the connection, after the host has had so long to end it itself.
    pub(crate) async fn end(&mut self, patience: Duration) {
        if let Link::Open(flow) = &self.link {
            flow.ended(patience).await;
        }
        let until = Instant::now();
        if let Link::Open(flow) = std::mem::replace(&mut self.link, Link::Down { until }) {
            self.past = sum(self.past, flow.end().await);
        }
    }

    fn drop_flow(&mut self) {
        if let Link::Open(flow) = &self.link {
            flow.abandon();
            self.past = sum(self.past, flow.receipt());
        }
        self.back_off();
    }

    fn back_off(&mut self) {
        let until = Instant::now() + self.pause;
        self.link = Link::Down { until };
        self.pause = (self.pause * 2).min(PAUSE.1);
    }
}

fn sum(one: Receipt, other: Receipt) -> Receipt {
    Receipt {
        paid: one.paid.saturating_add(other.paid),
        refunded: one.refunded.saturating_add(other.refunded),
    }
}
