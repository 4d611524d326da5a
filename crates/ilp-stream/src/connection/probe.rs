//! Asking a path what it delivers, with packets that nobody can fulfil.
//!
//! ```text
//! Waiting ──wanted──▶ amounts are sent, answers are collected ──▶ Known
//!                          │  ▲ T, R00: the amount again, after a pause
//!                          │  └ F08: the largest amount that passes
//!                          └── nothing arrives, or too many failures ──▶ NoRate
//! ```
//! The amounts grow by thousands. Small ones pass everywhere but show the rate coarsely, large ones
//! show it precisely and find the largest amount that passes. The answer that arrived with most units
//! counts. A path on which an answer was lost is not waited for when a precise answer is there
//! already and nothing larger is still asked.

use std::collections::VecDeque;

use ilp_packet::Timestamp;

use super::config::{BACKOFF_MAX_MILLIS, BACKOFF_MIN_MILLIS};

/// What is asked, as far as the owner is willing to send it; the JavaScript implementation asks the
/// same.
const AMOUNTS: [u64; 5] = [1, 1_000, 1_000_000, 1_000_000_000, 1_000_000_000_000];
/// Failures, over all amounts, before we settle for what is known. With the pauses between them this
/// takes about a minute.
const MAX_FAILURES: u32 = 20;
/// Enough units that rounding does not matter: a tenth of a percent.
const PRECISE: u64 = 1_000;

/// What came of probing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Answers are missing.
    Pending,
    /// So much of so much arrived.
    Known { sent: u64, received: u64 },
    /// Of so much, nothing arrived; zero if nothing was answered.
    NoRate { sent: u64 },
}

#[derive(Debug)]
pub(super) struct Probe {
    waiting: VecDeque<u64>,
    in_flight: Vec<u64>,
    /// The best answer: (sent, received).
    best: Option<(u64, u64)>,
    failures: u32,
    backoff_millis: u64,
    resume_at: Timestamp,
}

impl Probe {
    pub(super) fn new(max_amount: u64) -> Self {
        let max_amount = max_amount.clamp(1, AMOUNTS[AMOUNTS.len() - 1]);
        let mut waiting: VecDeque<u64> = AMOUNTS
            .into_iter()
            .filter(|amount| *amount < max_amount)
            .collect();
        waiting.push_back(max_amount);
        Self {
            waiting,
            in_flight: Vec::new(),
            best: None,
            failures: 0,
            backoff_millis: BACKOFF_MIN_MILLIS,
            resume_at: Timestamp::default(),
        }
    }

    /// When the next amount can be sent, if there is one.
    pub(super) fn ready_at(&self) -> Option<Timestamp> {
        (!self.waiting.is_empty()).then_some(self.resume_at)
    }

    /// The next amount; it is answered through one of the `on_` functions.
    pub(super) fn next(&mut self, now: Timestamp) -> Option<u64> {
        if now < self.resume_at {
            return None;
        }
        let amount = self.waiting.pop_front()?;
        self.in_flight.push(amount);
        Some(amount)
    }

    fn answered(&mut self, amount: u64) {
        if let Some(at) = self.in_flight.iter().position(|it| *it == amount) {
            self.in_flight.swap_remove(at);
        }
    }

    /// The other end has seen the packet.
    pub(super) fn on_arrived(&mut self, amount: u64, received: u64) {
        self.answered(amount);
        self.backoff_millis = BACKOFF_MIN_MILLIS;
        let better = |(sent, best): (u64, u64)| (received, amount) > (best, sent);
        if self.best.is_none_or(better) {
            self.best = Some((amount, received));
        }
    }

    /// At most `maximum` passes. Zero is for the caller to act on.
    pub(super) fn on_too_large(&mut self, amount: u64, maximum: u64) {
        self.answered(amount);
        self.waiting.retain(|waiting| *waiting <= maximum);
        let known = self.best.is_some_and(|(sent, _)| sent >= maximum);
        let asked = self.waiting.contains(&maximum) || self.in_flight.contains(&maximum);
        if maximum > 0 && !known && !asked {
            self.waiting.push_back(maximum);
        }
    }

    /// Something on the way cannot carry it at the moment; `smaller`: for want of money.
    pub(super) fn on_failure(&mut self, now: Timestamp, amount: u64, smaller: bool) {
        self.answered(amount);
        self.failures += 1;
        if self.failures >= MAX_FAILURES {
            self.waiting.clear();
            return;
        }
        let again = if smaller { amount - amount / 3 } else { amount };
        let known = self.best.is_some_and(|(sent, _)| sent >= again);
        let asked = self.waiting.contains(&again) || self.in_flight.contains(&again);
        if !known && !asked {
            self.waiting.push_back(again);
        }
        // Packets that failed together wait together.
        if now >= self.resume_at {
            self.resume_at = now.plus_millis(self.backoff_millis);
            self.backoff_millis = (self.backoff_millis * 2).min(BACKOFF_MAX_MILLIS);
        }
    }

    pub(super) fn outcome(&self) -> Outcome {
        let missing = || self.waiting.iter().chain(&self.in_flight);
        match self.best {
            Some((sent, received))
                if received >= PRECISE && missing().all(|amount| *amount <= sent) =>
            {
                Outcome::Known { sent, received }
            }
            _ if missing().next().is_some() => Outcome::Pending,
            Some((sent, received)) if received > 0 => Outcome::Known { sent, received },
            Some((sent, _)) => Outcome::NoRate { sent },
            None => Outcome::NoRate { sent: 0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    fn all(probe: &mut Probe, now: Timestamp) -> Vec<u64> {
        std::iter::from_fn(|| probe.next(now)).collect()
    }

    #[test]
    fn the_amounts_end_with_what_the_caller_would_send() {
        assert_eq!(all(&mut Probe::new(0), NOW), [1]);
        assert_eq!(all(&mut Probe::new(1_000), NOW), [1, 1_000]);
        assert_eq!(all(&mut Probe::new(5_000), NOW), [1, 1_000, 5_000]);
        assert_eq!(all(&mut Probe::new(u64::MAX), NOW), AMOUNTS);
    }

    #[test]
    fn the_largest_amount_that_passes_is_found_and_counts() {
        let mut probe = Probe::new(1_000_000);
        assert_eq!(all(&mut probe, NOW), [1, 1_000, 1_000_000]);
        probe.on_arrived(1, 0);
        probe.on_arrived(1_000, 333);
        probe.on_too_large(1_000_000, 70_000);
        assert_eq!(probe.outcome(), Outcome::Pending);
        assert_eq!(all(&mut probe, NOW), [70_000]);
        probe.on_arrived(70_000, 23_333);
        let known = Outcome::Known {
            sent: 70_000,
            received: 23_333,
        };
        assert_eq!(probe.outcome(), known);
    }

    #[test]
    fn failures_are_repeated_after_pauses_and_not_for_ever() {
        let mut probe = Probe::new(1);
        let mut now = NOW;
        for _ in 0..MAX_FAILURES {
            assert_eq!(probe.outcome(), Outcome::Pending);
            now = now.max(probe.ready_at().unwrap());
            assert_eq!(probe.next(now), Some(1));
            probe.on_failure(now, 1, false);
            assert_eq!(probe.next(now), None, "there is a pause");
        }
        assert_eq!(probe.outcome(), Outcome::NoRate { sent: 0 });
    }

    #[test]
    fn a_lost_answer_is_not_waited_for_when_it_could_teach_nothing() {
        let mut probe = Probe::new(1_000_000);
        all(&mut probe, NOW);
        probe.on_arrived(1_000_000, 2_000_000);
        let known = Outcome::Known {
            sent: 1_000_000,
            received: 2_000_000,
        };
        assert_eq!(probe.outcome(), known);
    }

    #[test]
    fn want_of_money_on_the_way_makes_the_amount_smaller() {
        let mut probe = Probe::new(1_000);
        all(&mut probe, NOW);
        probe.on_arrived(1, 1);
        probe.on_failure(NOW, 1_000, true);
        let later = probe.ready_at().unwrap();
        assert_eq!(probe.next(later), Some(667));
        probe.on_arrived(667, 667);
        let known = Outcome::Known {
            sent: 667,
            received: 667,
        };
        assert_eq!(probe.outcome(), known);
    }

    #[test]
    fn a_path_that_delivers_nothing_has_no_rate() {
        let mut probe = Probe::new(1_000);
        for amount in all(&mut probe, NOW) {
            probe.on_arrived(amount, 0);
        }
        assert_eq!(probe.outcome(), Outcome::NoRate { sent: 1_000 });
    }
}
