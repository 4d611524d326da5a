//! Amounts of money on the wire.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize, de};

/// An amount in the smallest unit of the host's asset; decimal text in JSON.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Units(pub u64);

impl Units {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// Whether it is nothing; such amounts are left out of error bodies.
    pub fn is_zero(&self) -> bool {
        self.0 == 0
    }
}

/// The text is not a whole number from 0 to 2⁶⁴ − 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an amount (a whole number of the asset's smallest unit)")]
pub struct InvalidUnits;

impl fmt::Display for Units {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, out)
    }
}

impl FromStr for Units {
    type Err = InvalidUnits;

    fn from_str(text: &str) -> Result<Self, InvalidUnits> {
        // `u64::from_str` takes a leading plus sign, which no host writes.
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(InvalidUnits);
        }
        text.parse().map(Self).map_err(|_| InvalidUnits)
    }
}

impl From<u64> for Units {
    fn from(units: u64) -> Self {
        Self(units)
    }
}

impl Serialize for Units {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Units {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Units;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an amount as decimal text")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Units, E> {
                text.parse().map_err(E::custom)
            }

            // Hosts of other makers have sent plain numbers; nothing is lost by taking them.
            fn visit_u64<E: de::Error>(self, units: u64) -> Result<Units, E> {
                Ok(Units(units))
            }
        }

        from.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_numbers_that_fit_are_amounts() {
        assert_eq!("18446744073709551615".parse(), Ok(Units(u64::MAX)));
        for text in [
            "",
            "-1",
            "+1",
            "1.0",
            "1e3",
            " 1",
            "18446744073709551616",
            "١",
        ] {
            assert_eq!(text.parse::<Units>(), Err(InvalidUnits), "{text:?}");
        }
    }

    #[test]
    fn json_is_text_and_numbers_are_taken() {
        assert_eq!(serde_json::to_string(&Units(2284)).unwrap(), r#""2284""#);
        assert_eq!(serde_json::from_str::<Units>("2284").unwrap(), Units(2284));
        serde_json::from_str::<Units>("-1").unwrap_err();
        serde_json::from_str::<Units>("1.5").unwrap_err();
    }
}
