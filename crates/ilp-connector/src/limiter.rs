//! How many packets an account may send in a second.
//!
//! This is the generic cell rate algorithm: one number says when the account would be even again, and
//! a packet may come as long as that is not further ahead than the burst.

const NANOS_PER_SEC: u64 = 1_000_000_000;

/// The allowance of one account.
#[derive(Debug)]
pub(crate) struct Limiter {
    /// Nanoseconds that one packet costs; none if there is no limit.
    cost_ns: Option<u64>,
    even_at_ns: u64,
}

impl Limiter {
    /// At most so many packets a second, and as many at once after a quiet second.
    pub(crate) fn new(packets_per_sec: Option<u32>) -> Self {
        Self {
            cost_ns: packets_per_sec.map(|rate| NANOS_PER_SEC / u64::from(rate.max(1))),
            even_at_ns: 0,
        }
    }

    /// Takes the allowance for one packet; false if there is none left. A packet that is refused
    /// costs nothing more.
    pub(crate) fn take(&mut self, steady_ns: u64) -> bool {
        let Some(cost_ns) = self.cost_ns else {
            return true;
        };
        let even_at_ns = self.even_at_ns.max(steady_ns).saturating_add(cost_ns);
        if even_at_ns > steady_ns.saturating_add(NANOS_PER_SEC) {
            return false;
        }
        self.even_at_ns = even_at_ns;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_second_gives_a_burst_of_one_second() {
        let mut limiter = Limiter::new(Some(10));
        let now = 5 * NANOS_PER_SEC;
        let passed = (0..30).filter(|_| limiter.take(now)).count();
        assert_eq!(passed, 10);
        let passed = (0..30)
            .filter(|_| limiter.take(now + NANOS_PER_SEC / 2))
            .count();
        assert_eq!(passed, 5);
    }

    #[test]
    fn over_time_the_rate_is_kept() {
        let mut limiter = Limiter::new(Some(100));
        // A packet each millisecond for ten seconds, ten times the rate.
        let passed = (0..10_000_u64)
            .filter(|millis| limiter.take(millis * 1_000_000))
            .count();
        assert!((1_090..=1_101).contains(&passed), "{passed}");
    }

    #[test]
    fn without_a_limit_everything_passes() {
        let mut limiter = Limiter::new(None);
        assert!((0..100_000).all(|_| limiter.take(0)));
        let mut limiter = Limiter::new(Some(0));
        assert!(limiter.take(0), "zero is taken for one");
    }
}
