//! The right to run a pod until the money is used up.
//!
//! ```text
//!             begin             pause (the host cannot run it)
//!  Starting ─────────▶ Running ◀───────────────────────▶ Paused
//!     │                  ▲ │      resume                    │
//!     │           resume │ ▼ freeze (the money is used up)  │
//!     │                 Frozen                              │
//!     └───────────────────┴─────────────┬───────────────────┘
//!                                       ▼ end
//!                                     Ended (final)
//! ```
//!
//! A frozen pod is held still and kept for a grace that the host gives. Whoever pays in time lets it go
//! on; nothing is charged meanwhile, and the grace runs only while the host is there to be paid.
//!
//! A lease does not hold its money: that is the balance of the account `lease:HASH`, given to each
//! function as `balance`. It holds how long the pod has run and how much of that has been charged,
//! and from these follow what to charge, what to give back, and when the time is up. The expiry is
//! never stored.
//!
//! Traps:
//! - Change a copy, make it durable together with its [`Charge`] in one batch, and only then keep the
//!   copy. (`Lease` is `Copy` for that.)
//! - Time is a monotonic reading of one boot. After a restart of the daemon call [`Lease::recover`]
//!   before anything else: it decides whether the time since the last count was run or not.

use std::{fmt, str::FromStr};

use codius_manifest::ManifestHash;
use serde::{Deserialize, Serialize};

use crate::{BootId, Millis, Rate, Seconds};

/// The right to run a pod until the money in `lease:HASH` is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease(LeaseParts);

/// What a lease is made of, as the store writes it down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseParts {
    pub hash: ManifestHash,
    /// For people, and to tell leases of the same hash apart.
    pub created_at_unix_ms: u64,
    /// Fixed for the life of the lease.
    pub rate: Rate,
    pub state: LeaseState,
    /// How long the pod has run, as far as it was counted.
    pub run_ms: u64,
    /// What was moved to what the operator has earned, in smallest units.
    pub charged: u64,
    /// How long it may run if its rate is zero.
    pub granted_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum LeaseState {
    /// Paid, and not running yet; nothing is charged.
    Starting,
    Running(Segment),
    /// Not running, because the host cannot run it; nothing is charged.
    Paused,
    /// Not running, because the money is used up; nothing is charged.
    Frozen(Frost),
    Ended {
        reason: EndReason,
    },
}

/// A stretch of time in which the pod runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub boot: BootId,
    /// Until when it is counted in [`LeaseParts::run_ms`].
    pub counted_to: Millis,
}

/// How long a pod has been held still since its money was used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frost {
    /// As far as it was counted.
    pub frozen_ms: u64,
    pub counted: Segment,
}

/// Why a lease has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// The money was used up.
    Expired,
    /// Its owner stopped it.
    Stopped,
    /// It was never started: the pod could not be.
    StartFailed,
    /// Its programs ended.
    Exited,
    /// Its machine was lost.
    Lost,
    /// The operator or a shutdown of the host ended it.
    HostStopped,
}

/// Move `amount` from `lease:HASH` to `earned`, if it is not zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[must_use = "money that is counted as charged has to be moved"]
pub struct Charge {
    pub amount: u64,
}

/// The last movements of a lease: together they empty `lease:HASH`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[must_use = "the money of an ended lease has to be moved"]
pub struct Settlement {
    /// To `earned`.
    pub earned: u64,
    /// To `owed:HASH`, and from there back to who paid.
    pub refund: u64,
}

/// A step that a lease cannot take. Nothing has changed; the caller is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// It is over. A new upload makes a new lease.
    #[error("the lease has ended")]
    Ended,
    /// It runs already.
    #[error("the lease is running")]
    Running,
    /// It does not run.
    #[error("the lease is not running")]
    NotRunning,
    /// Stored parts that no lease can have come to. The database was changed by someone else.
    #[error("more was charged than the lease has run for")]
    Overcharged,
}

impl Lease {
    pub fn new(hash: ManifestHash, created_at_unix_ms: u64, rate: Rate) -> Self {
        let state = LeaseState::Starting;
        Self(LeaseParts {
            hash,
            created_at_unix_ms,
            rate,
            state,
            run_ms: 0,
            charged: 0,
            granted_ms: 0,
        })
    }

    pub fn from_parts(parts: LeaseParts) -> Result<Self, LeaseError> {
        // One more: see `end`.
        if parts.charged > parts.rate.earned(parts.run_ms).saturating_add(1) {
            return Err(LeaseError::Overcharged);
        }
        Ok(Self(parts))
    }

    pub fn parts(&self) -> &LeaseParts {
        &self.0
    }

    pub fn hash(&self) -> ManifestHash {
        self.0.hash
    }

    pub fn rate(&self) -> Rate {
        self.0.rate
    }

    pub fn state(&self) -> LeaseState {
        self.0.state
    }

    pub fn is_ended(&self) -> bool {
        matches!(self.0.state, LeaseState::Ended { .. })
    }

    /// The pod runs from now on.
    pub fn begin(&mut self, boot: BootId, now: Millis) -> Result<(), LeaseError> {
        match self.0.state {
            LeaseState::Starting => {}
            LeaseState::Running(_) | LeaseState::Paused | LeaseState::Frozen(_) => {
                return Err(LeaseError::Running);
            }
            LeaseState::Ended { .. } => return Err(LeaseError::Ended),
        }
        self.0.state = LeaseState::Running(Segment {
            boot,
            counted_to: now,
        });
        Ok(())
    }

    /// The pod stops running for a while; the time until now is counted.
    pub fn pause(&mut self, now: Millis) -> Result<(), LeaseError> {
        match self.0.state {
            LeaseState::Running(_) => {}
            LeaseState::Starting | LeaseState::Paused | LeaseState::Frozen(_) => {
                return Err(LeaseError::NotRunning);
            }
            LeaseState::Ended { .. } => return Err(LeaseError::Ended),
        }
        self.count(now);
        self.0.state = LeaseState::Paused;
        Ok(())
    }

    /// The money is used up and the pod is held still from now on; the time until now is counted. Also
    /// for a paused lease that nobody has money for.
    pub fn freeze(&mut self, boot: BootId, now: Millis) -> Result<(), LeaseError> {
        match self.0.state {
            LeaseState::Running(_) | LeaseState::Paused => {}
            LeaseState::Starting | LeaseState::Frozen(_) => return Err(LeaseError::NotRunning),
            LeaseState::Ended { .. } => return Err(LeaseError::Ended),
        }
        self.count(now);
        self.0.state = LeaseState::Frozen(Frost {
            frozen_ms: 0,
            counted: Segment {
                boot,
                counted_to: now,
            },
        });
        Ok(())
    }

    pub fn is_frozen(&self) -> bool {
        matches!(self.0.state, LeaseState::Frozen(_))
    }

    /// How much of a grace is left to a frozen lease.
    pub fn grace_left_ms(&self, now: Millis, grace_ms: u64) -> u64 {
        match self.0.state {
            LeaseState::Frozen(frost) => {
                let frozen_ms = frost
                    .frozen_ms
                    .saturating_add(now.since(frost.counted.counted_to));
                grace_ms.saturating_sub(frozen_ms)
            }
            LeaseState::Starting
            | LeaseState::Running(_)
            | LeaseState::Paused
            | LeaseState::Ended { .. } => 0,
        }
    }

    /// The pod runs again.
    pub fn resume(&mut self, boot: BootId, now: Millis) -> Result<(), LeaseError> {
        match self.0.state {
            LeaseState::Paused | LeaseState::Frozen(_) => {}
            LeaseState::Starting => return Err(LeaseError::NotRunning),
            LeaseState::Running(_) => return Err(LeaseError::Running),
            LeaseState::Ended { .. } => return Err(LeaseError::Ended),
        }
        self.0.state = LeaseState::Running(Segment {
            boot,
            counted_to: now,
        });
        Ok(())
    }

    /// After the daemon was restarted, for a lease as it was stored: `still_running` says whether the
    /// pod was found running. If so, and if this is the same boot of the machine, it goes on as if
    /// nothing had been and the time since the last count is charged with the next. Otherwise nobody
    /// knows how long it ran after the last count; that time is not charged, and the lease is paused. A
    /// frozen lease stays frozen: nobody could pay while the host was away, so its grace goes on from now.
    pub fn recover(&mut self, boot: BootId, now: Millis, still_running: bool) {
        match &mut self.0.state {
            LeaseState::Running(segment) if still_running && segment.boot == boot => {}
            LeaseState::Running(_) => self.0.state = LeaseState::Paused,
            LeaseState::Frozen(frost) => {
                frost.counted = Segment {
                    boot,
                    counted_to: now,
                };
            }
            LeaseState::Starting | LeaseState::Paused | LeaseState::Ended { .. } => {}
        }
    }

    /// Grants time. It only counts if nothing is charged: otherwise the money does, which the caller
    /// moves to `lease:HASH`.
    pub fn extend(&mut self, duration: Seconds) -> Result<(), LeaseError> {
        if self.is_ended() {
            return Err(LeaseError::Ended);
        }
        self.0.granted_ms = self.0.granted_ms.saturating_add(duration.millis());
        Ok(())
    }

    /// Counts the time until now and says what it has cost since the last charge: never more than
    /// there is.
    pub fn charge(&mut self, now: Millis, balance: u64) -> Charge {
        self.count(now);
        let due = self
            .0
            .rate
            .earned(self.0.run_ms)
            .saturating_sub(self.0.charged);
        let amount = if self.is_ended() { 0 } else { due.min(balance) };
        self.0.charged += amount;
        Charge { amount }
    }

    /// For how long the pod can run from now on.
    pub fn remaining_ms(&self, now: Millis, balance: u64) -> u64 {
        if self.is_ended() {
            return 0;
        }
        self.funded_ms(balance).saturating_sub(self.run_ms(now))
    }

    /// When the money will be used up, if the pod runs from now until then. It moves only when money
    /// or time is added, or while the pod does not run.
    pub fn expires_at(&self, now: Millis, balance: u64) -> Millis {
        now.after(self.remaining_ms(now, balance))
    }

    /// How much money may still be added, if the pod is to be paid for at most `ahead` from now on.
    /// Never a unit too much, and at most one too little. Nothing, if nothing is charged.
    pub fn room(&self, now: Millis, balance: u64, ahead: Seconds) -> u64 {
        if self.is_ended() || self.0.rate.is_free() {
            return 0;
        }
        let run_ms = self.run_ms(now).saturating_add(ahead.millis());
        let paid = self.0.charged.saturating_add(balance);
        self.0
            .rate
            .earned(run_ms)
            .saturating_sub(paid)
            .min(Rate::MAX_PRICE.saturating_sub(balance))
    }

    /// How long the pod has run until now.
    pub fn run_ms(&self, now: Millis) -> u64 {
        match self.0.state {
            LeaseState::Running(segment) => {
                self.0.run_ms.saturating_add(now.since(segment.counted_to))
            }
            LeaseState::Starting
            | LeaseState::Paused
            | LeaseState::Frozen(_)
            | LeaseState::Ended { .. } => self.0.run_ms,
        }
    }

    /// Ends the lease: what was used is charged, the rest goes back.
    ///
    /// When the time is used up, a last unit may remain whose time is less than a millisecond or which
    /// is the part below one unit that [`Rate::earned`] leaves. It is charged: what is paid is then
    /// still within one unit of the rate times the run, and no lease ends in a debt of one unit.
    pub fn end(
        &mut self,
        now: Millis,
        balance: u64,
        reason: EndReason,
    ) -> Result<Settlement, LeaseError> {
        if self.is_ended() {
            return Err(LeaseError::Ended);
        }
        let Charge { amount: mut earned } = self.charge(now, balance);
        let rest = balance - earned;
        let used_up = !self.0.rate.is_free() && self.funded_ms(rest) <= self.0.run_ms;
        if rest == 1 && used_up && self.0.charged <= self.0.rate.earned(self.0.run_ms) {
            earned += 1;
            self.0.charged += 1;
        }
        self.0.state = LeaseState::Ended { reason };
        Ok(Settlement {
            earned,
            refund: balance - earned,
        })
    }

    /// How long the pod may run in all, with what was charged and what is left.
    fn funded_ms(&self, balance: u64) -> u64 {
        let paid = self.0.charged.saturating_add(balance);
        self.0.rate.funded_ms(paid).unwrap_or(self.0.granted_ms)
    }

    fn count(&mut self, now: Millis) {
        self.0.run_ms = self.run_ms(now);
        // Not to an earlier moment: the time between would be counted twice.
        match &mut self.0.state {
            LeaseState::Running(segment) => segment.counted_to = segment.counted_to.max(now),
            LeaseState::Frozen(Frost { frozen_ms, counted }) => {
                *frozen_ms = frozen_ms.saturating_add(now.since(counted.counted_to));
                counted.counted_to = counted.counted_to.max(now);
            }
            LeaseState::Starting | LeaseState::Paused | LeaseState::Ended { .. } => {}
        }
    }
}

impl EndReason {
    const ALL: [Self; 6] = [
        Self::Expired,
        Self::Stopped,
        Self::StartFailed,
        Self::Exited,
        Self::Lost,
        Self::HostStopped,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Stopped => "stopped",
            Self::StartFailed => "start_failed",
            Self::Exited => "exited",
            Self::Lost => "lost",
            Self::HostStopped => "host_stopped",
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

/// The text names no reason that this version knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a reason of the end of a lease")]
pub struct InvalidEndReason;

impl FromStr for EndReason {
    type Err = InvalidEndReason;

    fn from_str(text: &str) -> Result<Self, InvalidEndReason> {
        Self::ALL
            .into_iter()
            .find(|reason| reason.as_str() == text)
            .ok_or(InvalidEndReason)
    }
}

/// As `{"boot": "…", "counted_to": 123}`.
impl Serialize for Segment {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        SegmentText {
            boot: self.boot.to_string(),
            counted_to: self.counted_to,
        }
        .serialize(to)
    }
}

impl<'de> Deserialize<'de> for Segment {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = SegmentText::deserialize(from)?;
        let boot = text.boot.parse().map_err(serde::de::Error::custom)?;
        Ok(Self {
            boot,
            counted_to: text.counted_to,
        })
    }
}

#[derive(Serialize, Deserialize)]
struct SegmentText {
    boot: String,
    counted_to: Millis,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Asset;

    const BOOT: BootId = BootId([1; 16]);
    const OTHER_BOOT: BootId = BootId([2; 16]);

    fn rate(cost: &str, scale: u8) -> Rate {
        Rate::per_month(cost.parse().unwrap(), &Asset::new("XRP", scale).unwrap()).unwrap()
    }

    fn starting(rate: Rate) -> Lease {
        Lease::new(ManifestHash::from_bytes([3; 32]), 0, rate)
    }

    fn running(rate: Rate, now: u64) -> Lease {
        let mut lease = starting(rate);
        lease.begin(BOOT, Millis(now)).unwrap();
        lease
    }

    proptest! {
        /// Money that fits never pays for more than so long ahead; one unit more pays for all of it.
        #[test]
        fn what_fits_is_exact_to_one_unit(
            scaled in 1..u128::from(u64::MAX),
            balance in 0..1_000_000_000_000_u64,
            ran_ms in 0..100_000_000_000_u64,
            ahead in 1..40_000_000_u64,
        ) {
            let rate: Rate = format!("{}.{:012}", scaled / 1_000_000_000_000, scaled % 1_000_000_000_000)
                .parse()
                .unwrap();
            let mut lease = running(rate, 5);
            let now = Millis(5 + ran_ms);
            let Charge { amount } = lease.charge(now, balance);
            let balance = balance - amount;
            let ahead = Seconds(ahead);
            let room = lease.room(now, balance, ahead);
            if room > 0 {
                prop_assert!(lease.remaining_ms(now, balance + room) <= ahead.millis());
            }
            if room < Rate::MAX_PRICE - balance {
                prop_assert!(lease.remaining_ms(now, balance + room + 1) >= ahead.millis());
            }
        }
    }

    #[test]
    fn only_a_lease_that_is_charged_and_goes_on_has_room() {
        let mut lease = running(rate("2.628", 6), 0);
        assert_eq!(lease.room(Millis(0), 60, Seconds(100)), 40);
        assert_eq!(lease.room(Millis(0), 100, Seconds(100)), 0);
        assert_eq!(lease.room(Millis(0), 101, Seconds(100)), 0);
        // Time that has run is room again, charged or not.
        assert_eq!(lease.room(Millis(30_500), 100, Seconds(100)), 30);
        let Charge { amount } = lease.charge(Millis(30_500), 100);
        assert_eq!(lease.room(Millis(30_500), 100 - amount, Seconds(100)), 30);
        assert_eq!(running(Rate::FREE, 0).room(Millis(0), 0, Seconds(100)), 0);
        let _ = lease.end(Millis(30_500), 70, EndReason::Exited).unwrap();
        assert_eq!(lease.room(Millis(30_500), 0, Seconds(100)), 0);
    }

    #[test]
    fn a_lease_that_never_ran_gives_everything_back() {
        let mut lease = starting(rate("10", 6));
        assert_eq!(lease.charge(Millis(999_999), 2284), Charge { amount: 0 });
        let settled = lease
            .end(Millis(1_999_999), 2284, EndReason::StartFailed)
            .unwrap();
        assert_eq!(
            settled,
            Settlement {
                earned: 0,
                refund: 2284
            }
        );
        assert_eq!(
            lease.end(Millis(0), 0, EndReason::Lost),
            Err(LeaseError::Ended)
        );
    }

    #[test]
    fn half_the_time_costs_half_the_price() {
        let mut lease = running(rate("2.628", 6), 1000);
        assert_eq!(lease.expires_at(Millis(1000), 3600), Millis(3_601_000));
        assert_eq!(lease.charge(Millis(601_000), 3600), Charge { amount: 600 });
        assert_eq!(lease.expires_at(Millis(601_000), 3000), Millis(3_601_000));
        let settled = lease
            .end(Millis(1_801_000), 3000, EndReason::Stopped)
            .unwrap();
        assert_eq!(
            settled,
            Settlement {
                earned: 1200,
                refund: 1800
            }
        );
        assert_eq!(lease.parts().charged, 1800);
        assert_eq!(lease.remaining_ms(Millis(1_801_000), 0), 0);
    }

    #[test]
    fn money_that_is_added_moves_the_expiry_by_exactly_its_time() {
        let mut lease = running(rate("2.628", 6), 0);
        let Charge { amount } = lease.charge(Millis(500), 60);
        assert_eq!(amount, 0);
        assert_eq!(lease.expires_at(Millis(500), 60), Millis(60_000));
        assert_eq!(lease.expires_at(Millis(500), 120), Millis(120_000));
    }

    #[test]
    fn a_paid_hour_at_a_coarse_scale_ends_with_nothing_owed() {
        let rate = rate("10", 3);
        let price = rate.price(Seconds(3600)).unwrap();
        let mut lease = running(rate, 0);
        let expires = lease.expires_at(Millis(0), price);
        assert!(expires >= Millis(3_600_000));
        let settled = lease.end(expires, price, EndReason::Expired).unwrap();
        assert_eq!(
            settled,
            Settlement {
                earned: 14,
                refund: 0
            }
        );
    }

    #[test]
    fn pods_that_overrun_are_never_charged_more_than_there_is() {
        let mut lease = running(rate("2.628", 6), 0);
        assert_eq!(lease.remaining_ms(Millis(99_000), 60), 0);
        assert_eq!(lease.charge(Millis(99_000), 60), Charge { amount: 60 });
        assert_eq!(lease.charge(Millis(99_000), 0), Charge { amount: 0 });
        // What comes later pays for what has run.
        assert_eq!(lease.charge(Millis(99_000), 100), Charge { amount: 39 });
        let settled = lease.end(Millis(100_000), 61, EndReason::Stopped).unwrap();
        assert_eq!(
            settled,
            Settlement {
                earned: 1,
                refund: 60
            }
        );
    }

    #[test]
    fn free_leases_end_when_the_granted_time_is_used() {
        let mut lease = starting(Rate::FREE);
        lease.extend(Seconds(60)).unwrap();
        lease.begin(BOOT, Millis(0)).unwrap();
        assert_eq!(lease.expires_at(Millis(10_000), 0), Millis(60_000));
        lease.extend(Seconds(60)).unwrap();
        assert_eq!(lease.expires_at(Millis(10_000), 0), Millis(120_000));
        let settled = lease.end(Millis(120_000), 1, EndReason::Expired).unwrap();
        assert_eq!(
            settled,
            Settlement {
                earned: 0,
                refund: 1
            }
        );
        assert_eq!(lease.extend(Seconds(1)), Err(LeaseError::Ended));
    }

    #[test]
    fn paused_time_is_free_and_moves_the_expiry() {
        let mut lease = running(rate("2.628", 6), 0);
        lease.pause(Millis(10_000)).unwrap();
        assert_eq!(lease.pause(Millis(11_000)), Err(LeaseError::NotRunning));
        assert_eq!(lease.remaining_ms(Millis(500_000), 60), 50_000);
        lease.resume(BOOT, Millis(1_000_000)).unwrap();
        assert_eq!(lease.resume(BOOT, Millis(1)), Err(LeaseError::Running));
        assert_eq!(lease.expires_at(Millis(1_000_000), 60), Millis(1_050_000));
        assert_eq!(lease.charge(Millis(1_005_000), 60), Charge { amount: 15 });
    }

    #[test]
    fn a_restart_of_the_daemon_alone_loses_no_time() {
        let mut lease = running(rate("2.628", 6), 0);
        assert_eq!(lease.charge(Millis(10_000), 60), Charge { amount: 10 });
        let mut stored = Lease::from_parts(*lease.parts()).unwrap();
        stored.recover(BOOT, Millis(0), true);
        assert_eq!(stored.charge(Millis(30_000), 50), Charge { amount: 20 });
    }

    #[test]
    fn time_after_the_last_count_is_not_charged_if_the_pod_is_gone_or_the_machine_was_restarted() {
        for (boot, still_running) in [(BOOT, false), (OTHER_BOOT, false), (OTHER_BOOT, true)] {
            let mut lease = running(rate("2.628", 6), 5000);
            assert_eq!(lease.charge(Millis(15_000), 60), Charge { amount: 10 });
            lease.recover(boot, Millis(0), still_running);
            assert_eq!(lease.state(), LeaseState::Paused);
            assert_eq!(lease.charge(Millis(99_000), 50), Charge { amount: 0 });
            // The clock of the new boot begins again.
            lease.resume(boot, Millis(100)).unwrap();
            assert_eq!(lease.charge(Millis(1100), 50), Charge { amount: 1 });
        }
    }

    #[test]
    fn a_clock_that_goes_backwards_charges_nothing_twice() {
        let mut lease = running(rate("2.628", 6), 0);
        assert_eq!(lease.charge(Millis(10_000), 60), Charge { amount: 10 });
        assert_eq!(lease.charge(Millis(2000), 50), Charge { amount: 0 });
        assert_eq!(lease.charge(Millis(11_000), 50), Charge { amount: 1 });
    }

    #[test]
    fn steps_that_make_no_sense_are_refused() {
        let mut lease = starting(Rate::FREE);
        assert_eq!(lease.pause(Millis(0)), Err(LeaseError::NotRunning));
        assert_eq!(lease.resume(BOOT, Millis(0)), Err(LeaseError::NotRunning));
        lease.begin(BOOT, Millis(0)).unwrap();
        assert_eq!(lease.begin(BOOT, Millis(0)), Err(LeaseError::Running));
        let _ = lease.end(Millis(0), 0, EndReason::Exited).unwrap();
        assert_eq!(lease.begin(BOOT, Millis(0)), Err(LeaseError::Ended));
        assert_eq!(lease.pause(Millis(0)), Err(LeaseError::Ended));
        assert_eq!(lease.resume(BOOT, Millis(0)), Err(LeaseError::Ended));
        assert_eq!(lease.charge(Millis(99), 9), Charge { amount: 0 });
    }

    #[test]
    fn stored_parts_come_back_and_impossible_ones_are_refused() {
        let mut lease = running(rate("2.628", 6), 0);
        let _ = lease.charge(Millis(10_000), 60);
        let text = serde_json::to_string(lease.parts()).unwrap();
        let parts: LeaseParts = serde_json::from_str(&text).unwrap();
        assert_eq!(Lease::from_parts(parts), Ok(lease));
        let wrong = LeaseParts {
            charged: 12,
            ..parts
        };
        assert_eq!(Lease::from_parts(wrong), Err(LeaseError::Overcharged));
        for reason in EndReason::ALL {
            assert_eq!(reason.to_string().parse(), Ok(reason));
        }
    }
}
