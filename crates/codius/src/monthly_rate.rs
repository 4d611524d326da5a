//! `--max-monthly-rate`: what a month of a pod may cost, and what that makes of a duration.
//!
//! A month of the original is 2,628,000 seconds. Its tool multiplied floating-point numbers and added
//! 0.08 %, rounded up to a whole unit, because hosts round up; here the multiplication is exact and
//! rounded up, and the same 0.08 % is added.

use std::{fmt, str::FromStr};

use serde_json::{Number, Value};

/// Seconds of a month, as hosts count them.
pub(crate) const MONTH_SECS: u64 = 2_628_000;
/// What is added for the host's own rounding: 8 of 10,000, rounded up.
const TOLERANCE: (u128, u128) = (8, 10_000);
/// Digits after the point that are kept when a rate follows from a price.
const DERIVED_DECIMALS: u32 = 6;
/// More digits than this no price has.
const MAX_DECIMALS: u32 = 18;

/// Whole units of an asset for a month, as a decimal number: `digits` × 10^-`decimals`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MonthlyRate {
    digits: u64,
    decimals: u32,
}

impl MonthlyRate {
    /// What is meant when nobody says.
    pub(crate) const DEFAULT: Self = Self {
        digits: 10,
        decimals: 0,
    };

    /// What so many seconds cost at this rate, in units of 10^-`scale`, rounded up; `None` if that is
    /// more than an amount can be.
    pub(crate) fn price(self, duration_secs: u64, scale: u8) -> Option<u64> {
        let smallest = 10_u128.checked_pow(scale.into())?;
        let units = u128::from(duration_secs)
            .checked_mul(self.digits.into())?
            .checked_mul(smallest)?;
        let divisor = u128::from(MONTH_SECS).checked_mul(10_u128.checked_pow(self.decimals)?)?;
        u64::try_from(units.div_ceil(divisor)).ok()
    }

    /// The most that so many seconds may cost: the price and the tolerance.
    pub(crate) fn limit(self, duration_secs: u64, scale: u8) -> Option<u64> {
        let price = u128::from(self.price(duration_secs, scale)?);
        let (part, of) = TOLERANCE;
        u64::try_from(price + (price * part).div_ceil(of)).ok()
    }

    /// The rate at which so many seconds cost so many units, rounded up.
    pub(crate) fn of_price(units: u64, duration_secs: u64, scale: u8) -> Option<Self> {
        let digits = u128::from(units)
            .checked_mul(MONTH_SECS.into())?
            .checked_mul(10_u128.pow(DERIVED_DECIMALS))?
            .div_ceil(
                u128::from(duration_secs.max(1)).checked_mul(10_u128.checked_pow(scale.into())?)?,
            );
        Some(Self {
            digits: u64::try_from(digits).ok()?,
            decimals: DERIVED_DECIMALS,
        })
    }

    /// As the original's files have it: a number.
    pub(crate) fn to_json(self) -> Value {
        let text = self.to_string();
        let number = text
            .parse::<u64>()
            .map(Number::from)
            .ok()
            .or_else(|| Number::from_f64(text.parse().ok()?));
        number.map_or(Value::String(text), Value::Number)
    }

    pub(crate) fn from_json(value: &Value) -> Option<Self> {
        match value {
            Value::Number(number) => number.to_string().parse().ok(),
            Value::String(text) => text.parse().ok(),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        }
    }
}

/// Not a number of whole units like `10` or `0.5`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an amount like 10 or 0.5")]
pub(crate) struct InvalidRate;

impl FromStr for MonthlyRate {
    type Err = InvalidRate;

    fn from_str(text: &str) -> Result<Self, InvalidRate> {
        // JSON writes small numbers with an exponent.
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse().map_err(|_| InvalidRate)?),
            None => (text, 0_i32),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = format!("{whole}{fraction}");
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(InvalidRate);
        }
        let mut digits: u64 = digits.parse().map_err(|_| InvalidRate)?;
        let fraction = i32::try_from(fraction.len()).map_err(|_| InvalidRate)?;
        let mut decimals = fraction.checked_sub(exponent).ok_or(InvalidRate)?;
        while decimals > 0 && digits.is_multiple_of(10) && digits > 0 {
            digits /= 10;
            decimals -= 1;
        }
        while decimals < 0 {
            digits = digits.checked_mul(10).ok_or(InvalidRate)?;
            decimals += 1;
        }
        match u32::try_from(decimals) {
            Ok(_) if digits == 0 => Ok(Self {
                digits,
                decimals: 0,
            }),
            Ok(decimals) if decimals <= MAX_DECIMALS => Ok(Self { digits, decimals }),
            _ => Err(InvalidRate),
        }
    }
}

impl fmt::Display for MonthlyRate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = usize::try_from(self.decimals).map_err(|_| fmt::Error)?;
        let digits = format!("{:0>width$}", self.digits, width = decimals + 1);
        let (whole, fraction) = digits.split_at(digits.len() - decimals);
        match fraction.trim_end_matches('0') {
            "" => out.write_str(whole),
            fraction => write!(out, "{whole}.{fraction}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(text: &str) -> MonthlyRate {
        text.parse().unwrap()
    }

    #[test]
    fn prices_are_exact_and_rounded_up() {
        for (monthly, scale, duration, price) in [
            ("10", 6, 3_600, 13_699),
            ("10", 6, 300, 1_142),
            ("10", 6, 1, 4),
            ("10", 9, 600, 2_283_106),
            ("10", 9, MONTH_SECS, 10_000_000_000),
            ("2.628", 6, 3_600, 3_600),
            ("0", 6, 3_600, 0),
        ] {
            assert_eq!(
                rate(monthly).price(duration, scale),
                Some(price),
                "{monthly}"
            );
        }
        assert_eq!(rate("18446744073709551615").price(u64::MAX, 18), None);
    }

    #[test]
    fn the_tolerance_is_that_of_the_original() {
        // The original's host is one unit dear for whole months: 10000001 at 10, 6, 2628000.
        assert_eq!(rate("10").limit(MONTH_SECS, 6), Some(10_008_000));
        assert_eq!(rate("10").limit(600, 9), Some(2_283_106 + 1_827));
        assert_eq!(rate("10").limit(1, 6), Some(5));
        assert_eq!(rate("0").limit(600, 9), Some(0));
    }

    #[test]
    fn text_and_json_keep_the_number() {
        for (text, shown, json) in [
            ("10", "10", "10"),
            ("0.50", "0.5", "0.5"),
            (".5", "0.5", "0.5"),
            ("1e-7", "0.0000001", "1e-7"),
            ("1e3", "1000", "1000"),
            ("0.000", "0", "0"),
        ] {
            assert_eq!(rate(text).to_string(), shown);
            assert_eq!(rate(text).to_json().to_string(), json);
            assert_eq!(
                MonthlyRate::from_json(&rate(text).to_json()),
                Some(rate(text))
            );
        }
        for text in ["", ".", "-1", "+1", "1,5", "x", "1e99", "0x10", "Infinity"] {
            assert!(text.parse::<MonthlyRate>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_rate_of_a_price_allows_that_price() {
        for (units, duration) in [(1, 600), (2_283_106, 600), (7, 3_600_000)] {
            let rate = MonthlyRate::of_price(units, duration, 9).unwrap();
            assert!(rate.price(duration, 9) >= Some(units));
        }
    }
}
