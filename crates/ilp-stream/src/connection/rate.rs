//! Exchange rates: what arrives of what is sent.
//!
//! Two rates steer a payment. The *estimate* is what the path has shown to deliver; it decides how
//! much is sent towards a limit of the other end. The *minimum* is what must arrive at least; the
//! other end refuses a packet that arrives with less. A rate is a fraction of whole numbers and all
//! rounding is down, so what is said to arrive is never more than what does.

/// Parts per million of one.
const MILLION: u64 = 1_000_000;
/// A measurement that arrived with fewer units than this may raise the estimate but not lower it:
/// rounding on the way makes small amounts look worse than they are.
const PRECISE: u64 = 1_000;

/// Units that arrive for units that are sent: `numerator / denominator`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Units of the receiver.
    pub numerator: u64,
    /// Units of the sender. Zero is taken for one.
    pub denominator: u64,
}

impl Rate {
    /// Both ends use the same asset and nobody on the way takes a part.
    pub const ONE: Self = Self {
        numerator: 1,
        denominator: 1,
    };

    /// What arrives when `amount` is sent, at most [`u64::MAX`].
    pub fn arriving(self, amount: u64) -> u64 {
        scale(amount, self.numerator, self.denominator)
    }

    /// What can be sent so that at most `amount` arrives: the least that makes it arrive in full, or
    /// if whole numbers do not allow that, the most that does not exceed it.
    pub fn sendable(self, amount: u64) -> u64 {
        let below = scale(amount, self.denominator.max(1), self.numerator);
        match below.checked_add(1) {
            Some(above) if self.arriving(below) < amount && self.arriving(above) <= amount => above,
            Some(_) | None => below,
        }
    }

    /// The rate without `ppm` millionths of it, rounded down.
    fn less(self, ppm: u32) -> Self {
        let kept = MILLION.saturating_sub(u64::from(ppm));
        let mut numerator = u128::from(self.numerator) * u128::from(kept);
        let mut denominator = u128::from(self.denominator.max(1)) * u128::from(MILLION);
        let divisor = greatest_common_divisor(numerator, denominator);
        numerator /= divisor;
        denominator /= divisor;
        let bits = 128 - numerator.max(denominator).leading_zeros();
        let excess = bits.saturating_sub(64);
        if excess > 0 {
            numerator >>= excess;
            // Rounded up, which makes the rate smaller; at most the largest number.
            denominator = (denominator >> excess) + 1;
        }
        Self {
            numerator: u64::try_from(numerator).unwrap_or(u64::MAX),
            denominator: u64::try_from(denominator).unwrap_or(u64::MAX),
        }
    }

    /// Whether `received` of `sent` is more than this rate.
    fn is_below(self, sent: u64, received: u64) -> bool {
        u128::from(received) * u128::from(self.denominator.max(1))
            > u128::from(self.numerator) * u128::from(sent)
    }
}

/// Where the rate of a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RatePolicy {
    /// It is known; nothing is asked of the path, and a path that delivers less is not used.
    Fixed(Rate),
    /// The path is asked with packets that cannot be fulfilled. A client asks at once, a server when
    /// it first wants to send money. No money moves before the answer.
    Probed {
        /// How much less than was measured may arrive of a packet, in millionths.
        slippage_ppm: u32,
        /// The largest amount to ask with, in our units: what the caller is willing to send. Larger
        /// amounts measure more precisely. Zero is taken for one.
        max_amount: u64,
    },
}

impl From<Rate> for RatePolicy {
    fn from(rate: Rate) -> Self {
        Self::Fixed(rate)
    }
}

/// What a path costs, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quote {
    /// What the path delivered last, measured as precisely as it could be.
    pub estimate: Rate,
    /// What must arrive at least.
    pub minimum: Rate,
    /// Largest amount of one packet, in our units; [`u64::MAX`] if nobody has named a limit.
    pub max_packet_amount: u64,
}

/// The two rates of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PathRate {
    pub(super) estimate: Rate,
    pub(super) minimum: Rate,
}

impl PathRate {
    pub(super) fn fixed(rate: Rate) -> Self {
        Self {
            estimate: rate,
            minimum: rate,
        }
    }

    /// `received` of `sent` arrived; `slippage_ppm` less may arrive in future.
    pub(super) fn measured(sent: u64, received: u64, slippage_ppm: u32) -> Self {
        let estimate = Rate {
            numerator: received,
            denominator: sent,
        };
        Self {
            estimate,
            minimum: estimate.less(slippage_ppm),
        }
    }

    /// A packet has shown what the path delivers now. The minimum stays: it was agreed to.
    pub(super) fn observe(&mut self, sent: u64, received: u64) {
        let shown = Rate {
            numerator: received,
            denominator: sent,
        };
        let lower = received >= PRECISE
            && shown.is_below(self.estimate.denominator, self.estimate.numerator);
        if self.estimate.is_below(sent, received) || lower {
            self.estimate = shown;
        }
    }

    /// The least that must arrive of `amount`. What should deliver something must deliver something,
    /// so that nobody can keep single units.
    pub(super) fn minimum_of(&self, amount: u64) -> u64 {
        let least = u64::from(self.estimate.arriving(amount) > 0 && self.minimum.numerator > 0);
        self.minimum.arriving(amount).max(least)
    }

    /// The smallest amount of which anything arrives; none if nothing ever does.
    pub(super) fn least_amount(&self) -> Option<u64> {
        let Rate {
            numerator,
            denominator,
        } = self.estimate;
        (numerator > 0).then(|| denominator.max(1).div_ceil(numerator))
    }
}

/// `amount * times / by`, rounded down, at most [`u64::MAX`].
pub(super) fn scale(amount: u64, times: u64, by: u64) -> u64 {
    let scaled = u128::from(amount) * u128::from(times) / u128::from(by.max(1));
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

fn greatest_common_divisor(mut a: u128, mut b: u128) -> u128 {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a.max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// What is sent because of a limit never demands more than the limit.
        #[test]
        fn sendable_never_arrives_above_the_limit(
            limit: u64, numerator in 1_u64.., denominator in 1_u64..,
        ) {
            let rate = Rate { numerator, denominator };
            let amount = rate.sendable(limit);
            prop_assert!(amount == u64::MAX || rate.arriving(amount) <= limit);
        }

        /// Where the rate is at most one, a limit can be hit exactly.
        #[test]
        fn a_limit_is_filled_when_units_are_fine_enough(
            limit in 0..=u64::from(u32::MAX), (numerator, denominator) in (1_u64..1_000_000)
                .prop_flat_map(|denominator| (1..=denominator, Just(denominator))),
        ) {
            let rate = Rate { numerator, denominator };
            prop_assert_eq!(rate.arriving(rate.sendable(limit)), limit);
        }

        /// Slippage lowers the rate by what was said, as exactly as 64 bits allow, and never raises it.
        #[test]
        fn slippage_is_taken_off(numerator: u64, denominator in 1_u64.., ppm in 0..=1_000_000_u32, amount: u64) {
            let rate = Rate { numerator, denominator };
            let least = rate.less(ppm);
            prop_assert!(least.arriving(amount) <= rate.arriving(amount));
            if numerator < 1 << 32 && denominator < 1 << 32 {
                let kept = u128::from(amount) * u128::from(numerator) * u128::from(1_000_000 - ppm)
                    / (u128::from(denominator) * 1_000_000);
                prop_assert_eq!(u128::from(least.arriving(amount)), kept.min(u128::from(u64::MAX)));
            }
        }

        #[test]
        fn the_least_amount_is_the_smallest_that_delivers(numerator in 1_u64.., denominator in 1_u64..) {
            let rate = PathRate::fixed(Rate { numerator, denominator });
            let least = rate.least_amount().unwrap();
            prop_assert!(rate.estimate.arriving(least) > 0);
            prop_assert_eq!(rate.estimate.arriving(least - 1), 0);
        }
    }

    #[test]
    fn the_estimate_follows_the_path_and_the_minimum_does_not() {
        let mut rate = PathRate::measured(1_000_000, 500_000, 10_000);
        assert_eq!(rate.minimum_of(1_000), 495);
        rate.observe(10_000, 5_100);
        assert_eq!(rate.estimate.arriving(100), 51);
        // Three of ten may be three of anything from 0.3 to 0.39.
        rate.observe(10, 3);
        assert_eq!(rate.estimate.arriving(100), 51);
        rate.observe(10_000, 4_960);
        assert_eq!(rate.estimate.arriving(1_000), 496);
        assert_eq!(rate.minimum_of(1_000), 495);
        // 1.98 units would be demanded as one, 0.99 as none at all.
        assert_eq!(PathRate::measured(1_000, 1_000, 10_000).minimum_of(1), 1);
    }
}
