//! Clock readings as the ledger takes them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A reading of the machine's monotonic clock, in milliseconds (Linux `CLOCK_MONOTONIC`: the same for
/// all processes of one boot, does not count while the machine is suspended, never set by anyone).
/// Readings of different boots must not be compared; see [`BootId`].
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl Millis {
    /// Milliseconds from `earlier` to `self`; zero if the clock seems to have gone backwards.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The reading so many milliseconds later; held at the last one.
    #[must_use]
    pub fn after(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis))
    }
}

/// Which run of the machine a [`Millis`] belongs to (Linux `/proc/sys/kernel/random/boot_id`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BootId(pub [u8; 16]);

/// The text is not 32 hexadecimal digits (dashes may stand between them).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a boot id")]
pub struct InvalidBootId;

impl fmt::Display for BootId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl FromStr for BootId {
    type Err = InvalidBootId;

    /// Takes the kernel's form (with dashes and a line feed) and our own.
    fn from_str(text: &str) -> Result<Self, InvalidBootId> {
        if text.len() > 64 {
            return Err(InvalidBootId);
        }
        let digits = text.trim().replace('-', "");
        let bytes = data_encoding::HEXLOWER_PERMISSIVE
            .decode(digits.as_bytes())
            .map_err(|_| InvalidBootId)?;
        Ok(Self(bytes.try_into().map_err(|_| InvalidBootId)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_text_is_read() {
        let id: BootId = "0e5f4a2c-9b1d-4c3e-8f70-1234567890ab\n".parse().unwrap();
        assert_eq!(id.to_string(), "0e5f4a2c9b1d4c3e8f701234567890ab");
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in ["", "0e5f", "zz5f4a2c9b1d4c3e8f701234567890ab"] {
            assert_eq!(text.parse::<BootId>(), Err(InvalidBootId), "{text:?}");
        }
    }

    #[test]
    fn a_clock_that_goes_backwards_gives_no_time() {
        assert_eq!(Millis(5).since(Millis(9)), 0);
        assert_eq!(Millis(u64::MAX).after(1), Millis(u64::MAX));
    }
}
