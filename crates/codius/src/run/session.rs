//! From the running program to its end: it is paid by the second, and what is heard of it is shown.
//!
//! ```text
//!              ended, by whatever reason
//!  Paying ───────────────────────────────────┐
//!    │ interrupted, or nobody reads          ▼
//!    └────────▶ signed stop ───────▶ the rest comes back ───▶ told      (ending.rs)
//! ```

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use codius_api::{
    AssetInfo, EndReason, LeaseEventKind, Phase,
    v2::{LeaseReply, LeaseState},
};
use codius_client::{ClientError, HostClient, Receipt, Signer, Wallet};
use codius_manifest::ManifestHash;
use jiff::Timestamp;
use serde_json::json;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    hearing::{Heard, Hearing},
    pace::{Pace, Seen},
    payer::Payer,
    show::Show,
};
use crate::{
    amount,
    failure::{Failure, one_line},
    purchase::own_asset,
    standing,
};

/// How often it is paid.
const TICK_MS: u64 = 1_000;
/// A tick that comes so late says that we did not run meanwhile.
const WOKE_MS: u64 = 3_000;
/// How often the host is asked how the lease stands, while nothing is wrong.
const LOOK_EVERY_MS: u64 = 5_000;
/// How often the cost is told where there is no live line.
const COST_EVERY_MS: (u64, u64) = (10_000, 60_000);
/// A host that says nothing for so long is given up.
const MAX_SILENCE_MS: u64 = 10 * 60 * 1000;
/// How long the last lines of a program that has ended may take.
const LAST_LINES: Duration = Duration::from_secs(2);

/// A program that runs, or is frozen, and what it takes to pay for it.
pub(crate) struct Session {
    pub(crate) host: HostClient,
    pub(crate) hash: ManifestHash,
    pub(crate) asset: AssetInfo,
    /// In the host's units.
    pub(crate) wallet: Wallet,
    pub(crate) wallet_url: String,
    pub(crate) signer: Arc<Signer>,
    pub(crate) lease: LeaseReply,
    pub(crate) pace: Pace,
    /// What has been paid before, in the wallet's units.
    pub(crate) before: Receipt,
    pub(crate) show: Show,
}

/// Why it is over.
pub(super) enum Over {
    Ended(EndReason),
    /// By a signal, or because nobody reads what we write.
    Interrupted,
    Silent,
}

/// What is known while it goes on.
struct Going {
    began: Instant,
    seen: Seen,
    state: LeaseState,
    /// When the host was asked last, and when it answered last.
    asked_ms: u64,
    answered_ms: u64,
    ticked_ms: u64,
    told_ms: u64,
    /// The connection is lost, and that was told.
    in_trouble: bool,
    limit_told: bool,
    reads: bool,
}

pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let failed = |error| Failure::new(1, format!("signals cannot be heard: {error}"));
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
            hang_up: signal(SignalKind::hangup()).map_err(failed)?,
        })
    }

    /// Safe to drop.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

impl Session {
    /// Pays and shows until it is over, and gets back what was not used.
    pub(crate) async fn stay(self) -> Result<(), Failure> {
        let mut signals = Signals::new()?;
        let mut hearing = Hearing::new(&self.host, self.hash, &self.signer);
        let mut payer = Payer::new(
            self.wallet.clone(),
            self.wallet_url.clone(),
            self.asset.scale,
            &hearing,
        );
        self.tell_start();
        let mut going = Going {
            began: Instant::now(),
            seen: Seen {
                at_ms: 0,
                balance: self.lease.balance.0,
                runs: self.lease.state == LeaseState::Running,
                added: 0,
            },
            state: self.lease.state,
            asked_ms: 0,
            answered_ms: 0,
            ticked_ms: 0,
            told_ms: 0,
            in_trouble: false,
            limit_told: false,
            reads: true,
        };
        let mut ticks = interval(Duration::from_millis(TICK_MS));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let over = loop {
            let over = tokio::select! {
                biased;
                () = signals.next() => Some(Over::Interrupted),
                _ = ticks.tick() => self.tick(&mut going, &mut payer, &hearing),
                heard = hearing.next() => self.heard(heard, &mut going, &mut payer),
            };
            match over {
                Some(over) => break over,
                None if !going.reads => break Over::Interrupted,
                None => {}
            }
        };
        if matches!(over, Over::Ended(_)) {
            self.last_lines(&mut hearing).await;
        }
        drop(hearing);
        let left_ms = self.left_ms(&going, &payer);
        self.finish(over, &mut payer, &mut signals, left_ms).await
    }

    /// Pays what is due by now.
    fn tick(&self, going: &mut Going, payer: &mut Payer, hearing: &Hearing) -> Option<Over> {
        let now = going.now_ms();
        let woke = now.saturating_sub(going.ticked_ms) > WOKE_MS;
        going.ticked_ms = now;
        if now.saturating_sub(going.answered_ms) > MAX_SILENCE_MS && !woke {
            return Some(Over::Silent);
        }
        let added = payer.added();
        let often = going.state != LeaseState::Running || woke || going.in_trouble;
        let since = now.saturating_sub(going.asked_ms);
        if since >= LOOK_EVERY_MS || (often && since >= TICK_MS) {
            going.asked_ms = now;
            hearing.look(added);
        }
        let total = self.pace.total(now, added, &going.seen);
        if payer.pay(total, self.pace.most, woke, hearing) {
            going.trouble(
                &self.show,
                "the connection that pays was lost",
                self.pace.ahead_ms,
            );
        }
        if self.pace.is_spent(added) && !going.limit_told {
            going.limit_told = true;
            let text =
                "The limit is reached: nothing more is paid, and the program ends with its time.";
            going.reads &= self.show.tell(text, "limit", json!({}));
        }
        let every = match self.show.is_live() {
            true => 0,
            false => COST_EVERY_MS.0,
        };
        if now.saturating_sub(going.told_ms) >= every {
            self.tell_cost(going, payer);
        }
        None
    }

    fn heard(&self, heard: Heard, going: &mut Going, payer: &mut Payer) -> Option<Over> {
        match heard {
            Heard::Line(line) => going.reads &= self.show.line(&line),
            Heard::LogEnded => {}
            Heard::NoLog(failure) => {
                let text = format!("Its output is not shown: {}", one_line(failure.message()));
                going.reads &=
                    self.show
                        .tell(&text, "no_log", json!({ "message": failure.message() }));
            }
            Heard::Event(kind) => return self.event(kind, going),
            Heard::Lease { added, reply } => return self.seen(added, reply, going, payer),
            Heard::Flow(opened) => match payer.opened(opened) {
                Ok(()) if going.in_trouble => {
                    going.in_trouble = false;
                    going.reads &= self.show.tell("Paying again.", "connected", json!({}));
                }
                Ok(()) => {}
                Err(error) => {
                    let text = one_line(&error.to_string());
                    going.trouble(&self.show, &text, self.pace.ahead_ms);
                }
            },
        }
        None
    }

    fn event(&self, kind: LeaseEventKind, going: &mut Going) -> Option<Over> {
        match kind {
            LeaseEventKind::Frozen { ends_at } => {
                let now = Timestamp::now().as_millisecond();
                let is_old = i64::try_from(ends_at.get()).is_ok_and(|ends| ends <= now);
                if !is_old && going.state != LeaseState::Frozen {
                    going.state = LeaseState::Frozen;
                    let text = format!(
                        "Frozen: its money is used up. It ends at {ends_at} unless it is paid."
                    );
                    going.reads &= self.show.tell(&text, "frozen", json!({ "until": ends_at }));
                }
            }
            LeaseEventKind::Phase(Phase::Running { .. }) if going.state == LeaseState::Frozen => {
                going.state = LeaseState::Running;
                going.reads &= self.show.tell("It goes on.", "running", json!({}));
            }
            // Paid by the second it is always about to expire.
            LeaseEventKind::Phase(_) | LeaseEventKind::Expiring { .. } => {}
            LeaseEventKind::Draining { ends_at } => {
                let until = ends_at.map_or(String::new(), |ends| format!(", at most until {ends}"));
                let text = format!(
                    "The operator empties this host: what is paid runs on{until}, and no more may be taken."
                );
                let members = json!({ "ends_at": ends_at });
                going.reads &= self.show.tell(&text, "draining", members);
            }
            LeaseEventKind::Container(container) => {
                let members = json!({ "container": container });
                going.reads &=
                    self.show
                        .tell(&standing::in_words(&container), "container", members);
            }
            LeaseEventKind::DrainUndone => {
                let text = "The operator has changed his mind: this host goes on.";
                going.reads &= self.show.tell(text, "drain_undone", json!({}));
            }
            LeaseEventKind::Failed { message, .. } => {
                return Some(Over::Ended(EndReason::Other(message)));
            }
            LeaseEventKind::Ended { reason } => return Some(Over::Ended(reason)),
        }
        None
    }

    /// The host has said how the lease stands, or does not answer.
    fn seen(
        &self,
        added: u64,
        reply: Result<Box<LeaseReply>, ClientError>,
        going: &mut Going,
        payer: &Payer,
    ) -> Option<Over> {
        let now = going.now_ms();
        let lease = match reply {
            Ok(lease) => lease,
            Err(ClientError::Refused { body, .. }) if body.status_code == 404 => {
                let reason = "the host does not know it any more".to_owned();
                return Some(Over::Ended(EndReason::Other(reason)));
            }
            Err(error) => {
                let text = one_line(&error.to_string());
                going.trouble(&self.show, &text, self.pace.ahead_ms);
                return None;
            }
        };
        going.answered_ms = now;
        if payer.is_open() && going.in_trouble {
            going.in_trouble = false;
            going.reads &= self.show.tell("Paying again.", "connected", json!({}));
        }
        if let Some(ended) = lease.ended {
            return Some(Over::Ended(ended.reason));
        }
        let was_frozen = going.state == LeaseState::Frozen;
        going.state = lease.state;
        if was_frozen && lease.state == LeaseState::Running {
            going.reads &= self.show.tell("It goes on.", "running", json!({}));
        }
        going.seen = Seen {
            at_ms: now,
            balance: lease.balance.0,
            runs: lease.state == LeaseState::Running,
            added,
        };
        None
    }

    /// For how long it is paid, as far as we know.
    fn left_ms(&self, going: &Going, payer: &Payer) -> u64 {
        let left = self.pace.left(going.now_ms(), payer.added(), &going.seen);
        self.pace.rate.funded_ms(left).unwrap_or_default()
    }

    pub(super) fn moved(&self, payer: &Payer) -> Receipt {
        let now = payer.receipt();
        Receipt {
            paid: self.before.paid.saturating_add(now.paid),
            refunded: self.before.refunded.saturating_add(now.refunded),
        }
    }

    fn tell_start(&self) {
        let own = own_asset(&self.wallet);
        let url = self.lease.url.as_deref();
        let mut text = match url {
            Some(url) => format!("{}\n", one_line(url)),
            None => String::new(),
        };
        let ahead = self.pace.ahead_ms / 1000;
        text += &format!("  hash        {}\n", self.hash);
        text += &format!(
            "  paid        by the second, {ahead} s ahead; Ctrl-C stops it and gets the rest back"
        );
        self.show.tell(
            &text,
            "started",
            json!({
                "manifestHash": self.hash,
                "host": self.host.origin(),
                "url": url,
                "state": self.lease.state,
                "ahead_seconds": ahead,
                "price_per_second": self.lease.price_per_second,
                "host_asset": self.asset,
                "asset": own,
                "paid": self.before.paid.to_string(),
            }),
        );
    }

    fn tell_cost(&self, going: &mut Going, payer: &Payer) {
        let own = own_asset(payer.wallet());
        let Receipt { paid, refunded } = self.moved(payer);
        let now = going.now_ms();
        let left_ms = self.left_ms(going, payer);
        let state = json!(going.state);
        let text = format!(
            "{} for {} s, {} paid, {}.{} s ahead",
            state.as_str().unwrap_or_default(),
            now / 1000,
            amount::format(paid.saturating_sub(refunded), &own),
            left_ms / 1000,
            left_ms % 1000 / 100,
        );
        // A pipe without --json is told less often.
        if self.show.is_live()
            || self.show.in_json()
            || now.saturating_sub(going.told_ms) >= COST_EVERY_MS.1
        {
            going.told_ms = now;
            going.reads &= self.show.cost(
                &text,
                json!({
                    "state": state,
                    "seconds": now / 1000,
                    "paid": paid.to_string(),
                    "refunded": refunded.to_string(),
                    "ahead_ms": left_ms,
                }),
            );
        }
    }

    /// Shows what the program has written until its end.
    async fn last_lines(&self, hearing: &mut Hearing) {
        let all = async {
            loop {
                match hearing.next().await {
                    Heard::Line(line) => {
                        self.show.line(&line);
                    }
                    Heard::LogEnded | Heard::NoLog(_) => return,
                    Heard::Event(_) | Heard::Lease { .. } | Heard::Flow(_) => {}
                }
            }
        };
        let _ = timeout(LAST_LINES, all).await;
    }
}

impl Going {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Tells that something is wrong, once.
    fn trouble(&mut self, show: &Show, text: &str, ahead_ms: u64) {
        if self.in_trouble {
            return;
        }
        self.in_trouble = true;
        let ahead = ahead_ms / 1000;
        let whole = format!(
            "Not paying: {text}. Trying again; it is paid for at most {ahead} s more, then frozen for the host's grace."
        );
        self.reads &= show.tell(&whole, "disconnected", json!({ "message": text }));
    }
}
