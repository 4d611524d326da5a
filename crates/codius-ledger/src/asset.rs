//! What a host is paid in, and what it asks for.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The money of this host: all its amounts are integers of 10^-scale of `code`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Asset {
    code: String,
    scale: u8,
}

/// The code is empty, longer than [`Asset::MAX_CODE`] or not printable ASCII, or the scale is above
/// [`Asset::MAX_SCALE`]. Nothing happened; the operator corrects the configuration, or the parent
/// that announced it does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an asset: code {code:?} with scale {scale}")]
pub struct InvalidAsset {
    pub code: String,
    pub scale: u8,
}

impl Asset {
    /// Characters of a code.
    pub const MAX_CODE: usize = 32;
    /// Finer units than this do not fit into 64 bits in useful amounts.
    pub const MAX_SCALE: u8 = 18;

    pub fn new(code: &str, scale: u8) -> Result<Self, InvalidAsset> {
        let printable = code.bytes().all(|byte| byte.is_ascii_graphic());
        if code.is_empty() || code.len() > Self::MAX_CODE || !printable || scale > Self::MAX_SCALE {
            let code = code.chars().take(Self::MAX_CODE).collect();
            return Err(InvalidAsset { code, scale });
        }
        Ok(Self {
            code: code.to_owned(),
            scale,
        })
    }

    pub fn code(&self) -> &str {
        &self.code
    }

    pub fn scale(&self) -> u8 {
        self.scale
    }

    /// An amount for people: `2284` of scale 6 is `0.002284 XRP`. Exact, no zeros at the end.
    pub fn format(&self, units: u64) -> String {
        format!("{} {}", self.in_whole(units), self.code)
    }

    /// An amount in whole assets, without the code: `2284` of scale 6 is `0.002284`.
    pub fn in_whole(&self, units: u64) -> String {
        let digits = format!("{units:0>width$}", width = usize::from(self.scale) + 1);
        let (whole, fraction) = digits.split_at(digits.len() - usize::from(self.scale));
        match fraction.trim_end_matches('0') {
            "" => whole.to_owned(),
            fraction => format!("{whole}.{fraction}"),
        }
    }
}

/// What a pod, or a part of one, costs in a month, in whole assets: an exact decimal number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cost {
    /// The number without its point.
    digits: u128,
    /// Digits after the point.
    decimals: u8,
}

/// The text is not a decimal number that is not negative, with at most [`Cost::MAX_DIGITS`] digits
/// before and after the point. Nothing happened; the operator corrects the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a cost (a decimal number such as 10 or 0.5, up to 18 digits on each side)")]
pub struct InvalidCost;

impl Cost {
    /// Digits on each side of the point.
    pub const MAX_DIGITS: usize = 18;
    /// What [`Self::MAX_DIGITS`] digits can say.
    const MAX_WHOLE: u128 = 999_999_999_999_999_999;

    pub(crate) fn digits(&self) -> u128 {
        self.digits
    }

    pub(crate) fn decimals(&self) -> u8 {
        self.decimals
    }

    pub fn is_free(&self) -> bool {
        self.digits == 0
    }

    /// So many times as much, exactly; `None` if that has more than [`Self::MAX_DIGITS`] digits on a side.
    pub(crate) fn times(self, factor: u64) -> Option<Self> {
        let digits = self.digits.checked_mul(u128::from(factor))?;
        Self { digits, ..self }.bounded()
    }

    /// The part of `1 / 2^halvings`, exactly.
    pub(crate) fn halved(self, halvings: u32) -> Option<Self> {
        let digits = self.digits.checked_mul(5u128.checked_pow(halvings)?)?;
        let decimals = self.decimals.checked_add(u8::try_from(halvings).ok()?)?;
        Self { digits, decimals }.bounded()
    }

    /// The sum, exactly.
    pub(crate) fn plus(self, other: Self) -> Option<Self> {
        let decimals = self.decimals.max(other.decimals);
        let aligned = |cost: Self| {
            let finer = 10u128.checked_pow(u32::from(decimals - cost.decimals))?;
            cost.digits.checked_mul(finer)
        };
        let digits = aligned(self)?.checked_add(aligned(other)?)?;
        Self { digits, decimals }.bounded()
    }

    /// Without zeros at its end, if it has no more digits than can be written.
    fn bounded(mut self) -> Option<Self> {
        while self.decimals > 0 && self.digits.is_multiple_of(10) {
            self.digits /= 10;
            self.decimals -= 1;
        }
        let whole = self.digits / 10u128.checked_pow(self.decimals.into())?;
        let fits = usize::from(self.decimals) <= Self::MAX_DIGITS && whole <= Self::MAX_WHOLE;
        fits.then_some(self)
    }
}

impl FromStr for Cost {
    type Err = InvalidCost;

    fn from_str(text: &str) -> Result<Self, InvalidCost> {
        let (whole, fraction) = match text.split_once('.') {
            Some((_, "")) => return Err(InvalidCost),
            Some(parts) => parts,
            None => (text, ""),
        };
        let mut digits = 0;
        for part in [whole, fraction] {
            if part.len() > Self::MAX_DIGITS || !part.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(InvalidCost);
            }
            digits = part
                .bytes()
                .fold(digits, |sum, byte| sum * 10 + u128::from(byte - b'0'));
        }
        if whole.is_empty() {
            return Err(InvalidCost);
        }
        let decimals = u8::try_from(fraction.len()).map_err(|_| InvalidCost)?;
        Ok(Self { digits, decimals })
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = usize::from(self.decimals);
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

    #[test]
    fn amounts_are_shown_exactly() {
        let xrp = Asset::new("XRP", 6).unwrap();
        assert_eq!(xrp.format(2284), "0.002284 XRP");
        assert_eq!(xrp.format(10_000_000), "10 XRP");
        assert_eq!(xrp.format(u64::MAX), "18446744073709.551615 XRP");
        assert_eq!(Asset::new("DEV", 0).unwrap().format(30), "30 DEV");
    }

    #[test]
    fn assets_are_bounded() {
        Asset::new("", 1).unwrap_err();
        Asset::new("X Y", 1).unwrap_err();
        Asset::new(&"X".repeat(33), 1).unwrap_err();
        Asset::new("XRP", 19).unwrap_err();
    }

    #[test]
    fn costs_are_exact_decimals() {
        for (text, shown) in [
            ("10", "10"),
            ("0", "0"),
            ("0.50", "0.5"),
            ("2.628", "2.628"),
            ("007.1", "7.1"),
            (
                "999999999999999999.999999999999999999",
                "999999999999999999.999999999999999999",
            ),
        ] {
            assert_eq!(text.parse::<Cost>().unwrap().to_string(), shown);
        }
        for text in [
            "",
            ".",
            ".5",
            "5.",
            "-1",
            "+1",
            "1e3",
            " 1",
            "1,5",
            "1.2.3",
            "1234567890123456789",
        ] {
            assert_eq!(text.parse::<Cost>(), Err(InvalidCost), "{text:?}");
        }
        assert!("0.000".parse::<Cost>().unwrap().is_free());
    }
}
