//! The price of a second.

use std::{fmt, str::FromStr};

use ethnum::U256;
use serde::{Deserialize, Serialize, de};

use crate::{Asset, Cost, Seconds};

/// A price per second, in smallest units of the host's asset with 20 decimals.
///
/// The original host computes `costPerMonth × 10^scale ÷ 2 628 000` with a decimal library that
/// rounds quotients half up to 20 decimals, so that whole months may be one unit dear. This is the
/// same number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate {
    /// Smallest units × 10^20 per second.
    scaled: u128,
}

/// Seconds of the month by which hosts price: 365 days ÷ 12.
const SECONDS_PER_MONTH: u128 = 2_628_000;
const DECIMALS: u8 = 20;
/// 10^[`DECIMALS`].
const ONE: u128 = 100_000_000_000_000_000_000;
const MILLIS_PER_SECOND: u128 = 1000;

/// Why an amount cannot be computed. Nothing happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RateError {
    /// The monthly cost is more than can be counted in this asset. The operator lowers it.
    #[error("the cost per month is too large")]
    CostTooLarge,
    /// The price is above 2⁶³ − 1 units, the largest amount of the ledger. The uploader asks for
    /// less time.
    #[error("the price of {} is too large", duration)]
    PriceTooLarge { duration: Seconds },
}

impl Rate {
    /// Nothing is charged; a lease then ends by the time granted to it.
    pub const FREE: Self = Self { scaled: 0 };
    /// The largest amount that the ledger holds.
    pub const MAX_PRICE: u64 = i64::MAX as u64;

    /// The rate of an operator's monthly cost.
    pub fn per_month(cost: Cost, asset: &Asset) -> Result<Self, RateError> {
        let power = |exponent: u8| U256::new(10).checked_pow(u32::from(exponent));
        let scaled = || {
            let numerator = U256::new(cost.digits())
                .checked_mul(power(asset.scale())?)?
                .checked_mul(U256::new(ONE))?;
            let denominator = U256::new(SECONDS_PER_MONTH).checked_mul(power(cost.decimals())?)?;
            let (quotient, rest) = (numerator / denominator, numerator % denominator);
            let rounded_up = u8::from(rest >= denominator - rest);
            u128::try_from(quotient.checked_add(U256::from(rounded_up))?).ok()
        };
        scaled()
            .map(|scaled| Self { scaled })
            .ok_or(RateError::CostTooLarge)
    }

    pub fn is_free(self) -> bool {
        self.scaled == 0
    }

    /// What a duration costs, rounded up to a whole unit.
    pub fn price(self, duration: Seconds) -> Result<u64, RateError> {
        let one = U256::new(ONE);
        let scaled = U256::new(self.scaled) * U256::from(duration.0);
        let price = scaled / one + U256::from(u8::from(scaled % one != U256::ZERO));
        u64::try_from(price)
            .ok()
            .filter(|price| *price <= Self::MAX_PRICE)
            .ok_or(RateError::PriceTooLarge { duration })
    }

    /// For how many milliseconds an amount lasts, rounded down; held at the largest number. `None`
    /// if nothing is charged.
    pub fn funded_ms(self, amount: u64) -> Option<u64> {
        if self.is_free() {
            return None;
        }
        let scaled = U256::from(amount) * U256::new(ONE) * U256::new(MILLIS_PER_SECOND);
        Some(u64::try_from(scaled / U256::new(self.scaled)).unwrap_or(u64::MAX))
    }

    /// What a run of so many milliseconds has used up, rounded down to a whole unit; held at the
    /// largest number. Always give it the whole run of a lease: the rounding must happen once.
    pub fn earned(self, run_ms: u64) -> u64 {
        let scaled = U256::new(self.scaled) * U256::from(run_ms);
        u64::try_from(scaled / (U256::new(ONE) * U256::new(MILLIS_PER_SECOND))).unwrap_or(u64::MAX)
    }
}

/// Exact decimal text: units per second, no zeros at the end.
impl fmt::Display for Rate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fraction = format!("{:020}", self.scaled % ONE);
        match fraction.trim_end_matches('0') {
            "" => write!(out, "{}", self.scaled / ONE),
            fraction => write!(out, "{}.{fraction}", self.scaled / ONE),
        }
    }
}

/// The text is not a decimal number that is not negative, with at most 20 decimals and below
/// 2¹²⁸ ÷ 10²⁰.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a rate (units per second, up to 20 decimals)")]
pub struct InvalidRate;

impl FromStr for Rate {
    type Err = InvalidRate;

    fn from_str(text: &str) -> Result<Self, InvalidRate> {
        let (whole, fraction) = match text.split_once('.') {
            Some((_, "")) => return Err(InvalidRate),
            Some(parts) => parts,
            None => (text, ""),
        };
        if whole.is_empty() || fraction.len() > usize::from(DECIMALS) {
            return Err(InvalidRate);
        }
        let zeros = std::iter::repeat_n(b'0', usize::from(DECIMALS) - fraction.len());
        let scaled =
            whole
                .bytes()
                .chain(fraction.bytes())
                .chain(zeros)
                .try_fold(0u128, |sum, byte| {
                    let digit = byte.is_ascii_digit().then(|| u128::from(byte - b'0'))?;
                    sum.checked_mul(10)?.checked_add(digit)
                });
        scaled.map(|scaled| Self { scaled }).ok_or(InvalidRate)
    }
}

impl Serialize for Rate {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        <std::borrow::Cow<'de, str>>::deserialize(from)?
            .parse()
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(cost: &str, scale: u8) -> Rate {
        Rate::per_month(cost.parse().unwrap(), &Asset::new("XRP", scale).unwrap()).unwrap()
    }

    /// From the real bignumber.js 7.2.1 of codiusd 1.2.5 (cost per month, scale, seconds → price).
    #[test]
    fn prices_are_those_of_the_original() {
        for (cost, scale, seconds, price) in [
            ("10", 6, 3600, 13_699),
            ("10", 6, 300, 1142),
            ("10", 6, 1, 4),
            ("10", 3, 3600, 14),
            ("10", 9, 3600, 13_698_631),
            ("10", 6, 2_628_000, 10_000_001),
            ("5", 6, 2_628_000, 5_000_001),
            ("7", 6, 2_628_000, 7_000_000),
            ("10", 9, 2_628_000, 10_000_000_000),
            ("2.628", 6, 3600, 3600),
            ("0", 6, 3600, 0),
            ("1", 6, 1, 1),
            ("10", 6, 1000, 3806),
            ("10", 6, 60, 229),
            ("10", 6, 16, 61),
            ("10", 6, 600, 2284),
        ] {
            assert_eq!(
                rate(cost, scale).price(Seconds(seconds)),
                Ok(price),
                "{cost}, {scale}, {seconds}"
            );
        }
    }

    #[test]
    fn the_rate_is_rounded_half_up_at_the_twentieth_decimal() {
        assert_eq!(rate("10", 6).to_string(), "3.80517503805175038052");
        assert_eq!(rate("7", 6).to_string(), "2.66362252663622526636");
        assert_eq!(rate("2.628", 6).to_string(), "1");
        assert_eq!(rate("0", 6), Rate::FREE);
        // Half of the last decimal, and a little less.
        assert_eq!(
            rate("0.000000000000013140", 0).to_string(),
            "0.00000000000000000001"
        );
        assert_eq!(rate("0.000000000000013139", 0).to_string(), "0");
    }

    #[test]
    fn too_large_is_said_and_not_wrapped() {
        let cost = "999999999999999999".parse().unwrap();
        let most = Rate::per_month(cost, &Asset::new("XRP", 18).unwrap());
        assert_eq!(most, Err(RateError::CostTooLarge));
        let dear = rate("999999999999999999", 6);
        assert_eq!(
            dear.price(Seconds(u64::MAX)),
            Err(RateError::PriceTooLarge {
                duration: Seconds(u64::MAX)
            })
        );
        assert_eq!(dear.earned(u64::MAX), u64::MAX);
        assert_eq!(rate("0.000001", 0).funded_ms(u64::MAX), Some(u64::MAX));
        assert_eq!(Rate::FREE.funded_ms(0), None);
    }

    #[test]
    fn text_that_is_not_a_rate_is_refused() {
        for text in [
            "",
            ".",
            "1.",
            ".1",
            "-1",
            "+1",
            "1e2",
            "0.000000000000000000001",
            "1 ",
            "9999999999999999999",
        ] {
            assert_eq!(text.parse::<Rate>(), Err(InvalidRate), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn text_comes_back(scaled: u128) {
            let rate = Rate { scaled };
            prop_assert_eq!(rate.to_string().parse(), Ok(rate));
        }

        #[test]
        fn a_paid_duration_is_funded_in_full_and_not_a_unit_too_dear(
            scaled in 1..ONE * 1_000_000_000,
            seconds in 1..100_000_000u64,
        ) {
            let rate = Rate { scaled };
            let price = rate.price(Seconds(seconds)).unwrap();
            prop_assert!(rate.funded_ms(price).unwrap() >= seconds * 1000);
            prop_assert!(rate.funded_ms(price - 1).unwrap() < seconds * 1000);
            prop_assert!(rate.earned(seconds * 1000) <= price);
            prop_assert!(rate.earned(seconds * 1000) + 1 >= price);
        }

        #[test]
        fn what_is_funded_is_never_earned_above_the_amount(scaled in 1u128.., amount: u64) {
            let rate = Rate { scaled };
            let funded = rate.funded_ms(amount).unwrap();
            prop_assert!(rate.earned(funded) <= amount);
        }
    }
}
