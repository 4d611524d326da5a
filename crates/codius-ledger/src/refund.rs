//! What goes back to who paid: the name of its account, and when it is tried again.
//!
//! ```text
//!            lease or order ends                       all of it has left
//!  (nothing due) ─────────────▶ due, in `refund:ID` ──────────────────────▶ (nothing due)
//!                                 │        ▲
//!                                 └────────┘ try, wait, try again: for ever
//! ```
//!
//! A refund is a liability from the moment its lease or order ends until packets have carried it away.
//! It never becomes anybody else's: there is no last try, and no time after which it is earned.

use std::{fmt, str::FromStr};

use crate::{InvalidOrderId, OrderId};

/// Names the refund of an order and of the lease that it created; the same 32 bytes as the order's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RefundId([u8; 32]);

impl RefundId {
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<OrderId> for RefundId {
    fn from(id: OrderId) -> Self {
        Self(*id.as_bytes())
    }
}

impl fmt::Display for RefundId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        OrderId::from_bytes(self.0).fmt(out)
    }
}

impl FromStr for RefundId {
    type Err = InvalidOrderId;

    fn from_str(text: &str) -> Result<Self, InvalidOrderId> {
        text.parse::<OrderId>().map(Into::into)
    }
}

/// How long to wait between two tries of a refund.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// After the first try, milliseconds.
    pub first_ms: u64,
    /// Never longer than this, milliseconds.
    pub longest_ms: u64,
}

impl Backoff {
    /// The wait after so many tries in a row that moved nothing: doubled with each, and of that between
    /// a half and all, as `random` says, so that refunds that failed together are not tried together.
    pub fn wait_ms(&self, tries: u32, random: u32) -> u64 {
        let doublings = tries.saturating_sub(1).min(63);
        let factor = 1u64.checked_shl(doublings).unwrap_or(u64::MAX);
        let longest = self.first_ms.saturating_mul(factor).min(self.longest_ms);
        let half = longest / 2;
        let part = u128::from(longest - half) * u128::from(random) / u128::from(u32::MAX);
        half + u64::try_from(part).expect("it is no more than a half of 64 bits")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff {
        first_ms: 60_000,
        longest_ms: 86_400_000,
    };

    #[test]
    fn a_refund_has_the_name_of_its_order() {
        let order = OrderId::of_token(b"0123456789abcdef");
        let refund = RefundId::from(order);
        assert_eq!(refund.to_string(), order.to_string());
        assert_eq!(refund.to_string().parse(), Ok(refund));
        assert_eq!("00".parse::<RefundId>(), Err(InvalidOrderId));
    }

    #[test]
    fn waits_double_to_a_day_and_are_never_shorter_than_half() {
        for (tries, longest) in [
            (0, 60_000),
            (1, 60_000),
            (2, 120_000),
            (11, 61_440_000),
            (12, 86_400_000),
            (u32::MAX, 86_400_000),
        ] {
            assert_eq!(BACKOFF.wait_ms(tries, u32::MAX), longest, "{tries}");
            assert_eq!(BACKOFF.wait_ms(tries, 0), longest / 2, "{tries}");
            let between = BACKOFF.wait_ms(tries, 1 << 31);
            assert!(between > longest / 2 && between < longest, "{tries}");
        }
        let extreme = Backoff {
            first_ms: u64::MAX,
            longest_ms: u64::MAX,
        };
        assert_eq!(extreme.wait_ms(9, u32::MAX), u64::MAX);
    }
}
