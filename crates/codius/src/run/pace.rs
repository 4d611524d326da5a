//! How much may have been paid by now: what a lease needs to be paid for so far ahead, and no more than that
//! time can cost by our own clock.
//!
//! ```text
//! paid ─────────────────────────────────────▶ |
//! used ───────────────────▶ |                  |
//!                          now            now + ahead
//! ```
//! Two bounds hold together. One follows from what the host says is left, so that time in which it could not
//! run the program, or that somebody else has paid for, is not paid again. The other follows from our clock
//! and the price alone, so that a host that always says that nothing is left gets no more than any other.
//!
//! All amounts are in the host's units and rounded up to the next one, or a unit that lasts for longer than
//! `ahead` would never be paid. A balance is whole units, too: nobody knows how much of its last one is used,
//! so that one counts as used, and our clock says when the next is due.

use codius_ledger::Rate;

/// What is paid, and when.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    pub(crate) rate: Rate,
    pub(crate) ahead_ms: u64,
    /// What was left of the lease when this began.
    pub(crate) funded: u64,
    /// The most that may be added in all.
    pub(crate) most: u64,
}

/// What a host has said of its lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    /// When, in milliseconds since this began.
    pub(crate) at_ms: u64,
    pub(crate) balance: u64,
    /// It is being used up.
    pub(crate) runs: bool,
    /// What we had added until then.
    pub(crate) added: u64,
}

impl Pace {
    /// What so much time costs.
    pub(crate) fn cost(&self, ms: u64) -> u64 {
        let whole = self.rate.earned(ms);
        match self.rate.funded_ms(whole) {
            Some(funded) if funded < ms => whole.saturating_add(1),
            _ => whole,
        }
    }

    /// What should be left of the lease now, going by what was seen.
    pub(crate) fn left(&self, now_ms: u64, added: u64, seen: &Seen) -> u64 {
        let used = match seen.runs {
            true => self.rate.earned(now_ms.saturating_sub(seen.at_ms)),
            false => 0,
        };
        let since = added.saturating_sub(seen.added);
        seen.balance.saturating_add(since).saturating_sub(used)
    }

    /// How much may have been added in all by now, if so much has been until now.
    pub(crate) fn total(&self, now_ms: u64, added: u64, seen: &Seen) -> u64 {
        let missing = self
            .cost(self.ahead_ms)
            .saturating_sub(self.left(now_ms, added, seen).saturating_sub(1));
        let by_our_clock = self
            .cost(now_ms.saturating_add(self.ahead_ms))
            .saturating_sub(self.funded);
        added
            .saturating_add(missing)
            .min(by_our_clock)
            .min(self.most)
            .max(added)
    }

    /// The limit is reached, and what is left is all that there will be.
    pub(crate) fn is_spent(&self, added: u64) -> bool {
        added >= self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(rate: &str, ahead_ms: u64, funded: u64) -> Pace {
        Pace {
            rate: rate.parse().unwrap(),
            ahead_ms,
            funded,
            most: u64::MAX,
        }
    }

    fn seen(at_ms: u64, balance: u64, added: u64) -> Seen {
        Seen {
            at_ms,
            balance,
            runs: true,
            added,
        }
    }

    #[test]
    fn it_stays_so_far_ahead_and_no_further() {
        // 10 XRP a month.
        let pace = pace("3805.17503805175038051751", 10_000, 38_052);
        let (mut added, mut last) = (0, seen(0, 38_052, 0));
        for second in 1..=3_600 {
            let now = second * 1_000;
            added = pace.total(now, added, &last);
            let paid = 38_052 + added;
            let most = pace.cost(now + 10_000);
            assert!(paid <= most && most - paid <= 1, "{second}: {paid} {most}");
            if second % 5 == 0 {
                last = seen(now, paid - pace.rate.earned(now), added);
            }
        }
    }

    #[test]
    fn a_host_that_says_that_nothing_is_left_gets_what_the_time_costs() {
        let pace = pace("100", 10_000, 1_000);
        let mut added = 0;
        for second in 0..100 {
            let now = second * 1_000;
            added = pace.total(now, added, &seen(now, 0, added));
            assert_eq!(added, second * 100);
        }
    }

    #[test]
    fn time_that_is_not_used_is_not_paid() {
        let pace = pace("100", 10_000, 1_000);
        let paused = Seen {
            runs: false,
            ..seen(0, 1_000, 0)
        };
        assert_eq!(pace.total(60_000, 0, &paused), 1);
        assert_eq!(pace.total(60_000, 1, &paused), 1);
        // Somebody else has paid for an hour.
        assert_eq!(pace.total(60_000, 500, &seen(60_000, 360_000, 500)), 500);
    }

    #[test]
    fn after_a_pause_of_ours_only_what_lies_ahead_is_paid() {
        let pace = pace("100", 10_000, 1_000);
        // Seen at 20 s; then nothing for a minute, in which the pod was frozen.
        let total = pace.total(80_000, 2_000, &seen(20_000, 1_000, 2_000));
        assert_eq!(total, 3_000);
        let frozen = Seen {
            runs: false,
            ..seen(80_000, 0, 2_000)
        };
        assert_eq!(pace.total(80_000, 2_000, &frozen), 3_000);
    }

    #[test]
    fn a_unit_that_lasts_for_long_is_paid_before_it_is_needed() {
        // A cent lasts for 2,628 s.
        let pace = pace("0.0003805175038051", 10_000, 1);
        assert_eq!(pace.cost(10_000), 1);
        assert_eq!(pace.total(1_000, 0, &seen(0, 1, 0)), 0);
        assert_eq!(pace.total(2_617_000, 0, &seen(2_615_000, 1, 0)), 0);
        assert_eq!(pace.total(2_619_000, 0, &seen(2_615_000, 1, 0)), 1);
        assert_eq!(pace.total(2_620_000, 1, &seen(2_615_000, 1, 0)), 1);
    }

    #[test]
    fn nothing_goes_over_the_limit() {
        let pace = Pace {
            most: 250,
            ..pace("100", 10_000, 1_000)
        };
        assert_eq!(pace.total(2_000, 0, &seen(0, 1_000, 0)), 200);
        assert_eq!(pace.total(3_000, 200, &seen(0, 1_000, 0)), 250);
        assert_eq!(pace.total(9_000_000, 250, &seen(0, 0, 0)), 250);
        assert!(pace.is_spent(250) && !pace.is_spent(249));
    }
}
