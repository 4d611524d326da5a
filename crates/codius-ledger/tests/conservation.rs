//! Random lives of a lease, with crashes at every step: no money appears or vanishes, nothing goes
//! below zero, and what was paid and not given back is the rate times the run to within one unit.

use std::collections::BTreeMap;

use codius_ledger::{
    Account, Asset, BootId, EndReason, Lease, LeaseState, Millis, Rate, Reason, Transaction,
};
use codius_manifest::ManifestHash;
use proptest::prelude::*;

const HASH: ManifestHash = ManifestHash::from_bytes([5; 32]);

/// What can happen to a lease.
#[derive(Debug, Clone)]
enum Step {
    Wait {
        millis: u64,
    },
    Pay {
        amount: u64,
    },
    Charge,
    Begin,
    Pause,
    Freeze,
    Resume,
    /// The clock shows an earlier moment for one charge.
    ChargeWithClockBack {
        millis: u64,
    },
    /// The daemon dies just before a charge is durable. Does the pod live on, and the machine?
    CrashInCharge {
        pod_survives: bool,
        reboot: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..5_000_000u64).prop_map(|millis| Step::Wait { millis }),
        2 => (1..50_000u64).prop_map(|amount| Step::Pay { amount }),
        3 => Just(Step::Charge),
        1 => Just(Step::Begin),
        1 => Just(Step::Pause),
        1 => Just(Step::Freeze),
        2 => Just(Step::Resume),
        1 => (1..1_000_000u64).prop_map(|millis| Step::ChargeWithClockBack { millis }),
        1 => any::<(bool, bool)>()
            .prop_map(|(pod_survives, reboot)| Step::CrashInCharge { pod_survives, reboot }),
    ]
}

/// The ledger, the clock, and an account of the run that knows nothing of `Lease`.
struct World {
    lease: Lease,
    balances: BTreeMap<Account, i128>,
    boot: BootId,
    now: u64,
    /// The pod runs.
    running: bool,
    /// Run time that was durably counted, and that which was not yet.
    counted_ms: u64,
    uncounted_ms: u64,
    paid: u64,
}

impl World {
    fn new(rate: Rate) -> Self {
        Self {
            lease: Lease::new(HASH, 0, rate),
            balances: BTreeMap::new(),
            boot: BootId([1; 16]),
            now: 1_000_000,
            running: false,
            counted_ms: 0,
            uncounted_ms: 0,
            paid: 0,
        }
    }

    fn balance(&self) -> u64 {
        let balance = self
            .balances
            .get(&Account::Lease(HASH))
            .copied()
            .unwrap_or(0);
        u64::try_from(balance).expect("a lease is never below zero")
    }

    fn transfer(&mut self, reason: Reason, from: Account, to: Account, amount: u64) {
        if amount == 0 {
            return;
        }
        let moved = Transaction::transfer(self.now, reason, from, to, amount)
            .expect("the amount is small and not zero");
        for posting in moved.postings() {
            *self.balances.entry(posting.account.clone()).or_default() +=
                i128::from(posting.amount);
        }
    }

    fn charge(&mut self, now: u64) {
        let mut lease = self.lease;
        let charge = lease.charge(Millis(now), self.balance());
        self.transfer(
            Reason::Charge,
            Account::Lease(HASH),
            Account::Earned,
            charge.amount,
        );
        self.lease = lease;
    }

    fn all_is_counted(&mut self) {
        self.counted_ms += std::mem::take(&mut self.uncounted_ms);
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Wait { millis } => {
                self.now += millis;
                if self.running {
                    self.uncounted_ms += millis;
                }
            }
            Step::Pay { amount } => {
                self.paid += amount;
                self.transfer(
                    Reason::Payment,
                    Account::Parent,
                    Account::Lease(HASH),
                    amount,
                );
            }
            Step::Charge => {
                self.charge(self.now);
                self.all_is_counted();
            }
            Step::Begin => {
                let done = self.lease.begin(self.boot, Millis(self.now)).is_ok();
                assert!(!done || !self.running);
                self.running |= done;
            }
            Step::Pause => {
                let done = self.lease.pause(Millis(self.now)).is_ok();
                assert_eq!(done, self.running);
                if done {
                    self.all_is_counted();
                    self.running = false;
                }
            }
            Step::Freeze => {
                let paused = self.lease.state() == LeaseState::Paused;
                let done = self.lease.freeze(self.boot, Millis(self.now)).is_ok();
                assert_eq!(done, self.running || paused);
                if self.running {
                    self.all_is_counted();
                    self.running = false;
                }
            }
            Step::Resume => {
                let paused = matches!(
                    self.lease.state(),
                    LeaseState::Paused | LeaseState::Frozen(_)
                );
                assert_eq!(
                    self.lease.resume(self.boot, Millis(self.now)).is_ok(),
                    paused
                );
                self.running |= paused;
            }
            Step::ChargeWithClockBack { millis } => {
                // Nothing is lost by it: what was not counted now is counted later. The run until the
                // earlier moment may be counted, so the whole is counted right after.
                self.charge(self.now.saturating_sub(millis));
                self.charge(self.now);
                self.all_is_counted();
            }
            Step::CrashInCharge {
                pod_survives,
                reboot,
            } => {
                let mut lost = self.lease;
                let _ = lost.charge(Millis(self.now), self.balance());
                let pod_survives = pod_survives && !reboot;
                if reboot {
                    self.boot.0[0] += 1;
                    self.now = 0;
                }
                self.lease
                    .recover(self.boot, Millis(self.now), pod_survives);
                if self.running && !pod_survives {
                    self.uncounted_ms = 0;
                    self.running = false;
                }
                assert_eq!(
                    matches!(self.lease.state(), LeaseState::Running(_)),
                    self.running
                );
            }
        }
    }

    fn end(&mut self) -> u64 {
        let balance = self.balance();
        let settled = self
            .lease
            .end(Millis(self.now), balance, EndReason::Stopped)
            .expect("it has not ended before");
        assert_eq!(
            settled.earned + settled.refund,
            balance,
            "the account is emptied"
        );
        self.all_is_counted();
        self.transfer(
            Reason::Charge,
            Account::Lease(HASH),
            Account::Earned,
            settled.earned,
        );
        let owed = Account::Owed(HASH);
        self.transfer(Reason::Return, Account::Lease(HASH), owed, settled.refund);
        settled.refund
    }

    fn check(&self) {
        assert_eq!(
            self.balances.values().sum::<i128>(),
            0,
            "all accounts together are zero"
        );
        for (account, balance) in &self.balances {
            assert!(
                *balance >= 0 || account.may_be_negative(),
                "{account} is at {balance}"
            );
        }
    }
}

/// Units × 10^23 that a run costs, by integers from the rate's text.
fn exact_cost(rate: Rate, run_ms: u64) -> u128 {
    let text = rate.to_string();
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let scaled: u128 = format!("{whole}{fraction:0<20}")
        .parse()
        .expect("a rate is digits");
    scaled * u128::from(run_ms)
}

const UNIT: u128 = 10u128.pow(23);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn money_is_kept_and_the_run_is_charged_exactly(
        cost in 0..2_000_000u64,
        scale in 0..=9u8,
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let cost = format!("{}.{:06}", cost / 1_000_000, cost % 1_000_000);
        let asset = Asset::new("XRP", scale).expect("a small scale");
        let cost = cost.parse().expect("a decimal");
        let rate = Rate::per_month(cost, &asset).expect("a small cost");
        let mut world = World::new(rate);
        for step in &steps {
            world.take(step);
            world.check();
        }
        let refund = world.end();
        world.check();
        prop_assert_eq!(world.lease.parts().run_ms, world.counted_ms);
        let kept = u128::from(world.paid - refund) * UNIT;
        let expected = exact_cost(rate, world.counted_ms).min(u128::from(world.paid) * UNIT);
        prop_assert!(
            kept.abs_diff(expected) <= UNIT,
            "kept {} of {} for {} ms at {rate}", world.paid - refund, world.paid, world.counted_ms
        );
    }

    /// A paid duration at any rate: it runs in full, it ends by its expiry, and then nothing is owed
    /// but what a millisecond costs.
    #[test]
    fn a_paid_duration_runs_in_full_and_is_used_up_at_its_expiry(
        whole in 0..1_000_000u64,
        fraction in 1..u64::MAX,
        seconds in 1..10_000_000u64,
        charges in prop::collection::vec(1..100_000_000u64, 0..20),
    ) {
        let rate: Rate = format!("{whole}.{fraction:020}").parse().expect("a rate");
        let price = rate.price(codius_ledger::Seconds(seconds)).expect("a small price");
        let boot = BootId([0; 16]);
        let mut lease = Lease::new(HASH, 0, rate);
        lease.begin(boot, Millis(0)).expect("it is new");
        let expires = lease.expires_at(Millis(0), price);
        prop_assert!(expires >= Millis(seconds * 1000));
        let (mut balance, mut now) = (price, 0);
        for wait in charges {
            now += wait;
            if now >= expires.0 {
                break;
            }
            balance -= lease.charge(Millis(now), balance).amount;
            prop_assert_eq!(lease.expires_at(Millis(now), balance), expires);
        }
        let settled = lease.end(expires, balance, EndReason::Expired).expect("it runs");
        prop_assert!(settled.refund <= whole / 1000 + 1, "{} is owed", settled.refund);
        if whole < 1000 {
            prop_assert_eq!(settled.refund, 0);
        }
    }
}
