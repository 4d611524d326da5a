//! How many, and how often.

use std::time::Duration;

/// Longest peer URL: `https://`, a name of 253 bytes (RFC 1035), and a port.
pub const MAX_PEER_URL_BYTES: usize = 8 + 253 + 6;
/// Most peers that are listed, as in the original.
const MAX_LISTED: usize = 1000;
/// Most peers that are not listed and may come to be.
const MAX_CANDIDATES: usize = 2000;
/// Most new candidates that one request or answer adds.
const MAX_OFFERED: usize = 100;
/// Most peers under one host name or address, so that one name does not stand for a thousand.
const MAX_PER_NAME: usize = 8;
/// The longest wait before a peer that does not answer is tried again.
const MAX_RETRY: Duration = Duration::from_secs(3600);
/// How long a peer that does not answer is remembered.
const FORGET_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Bounds of a table. The default is what hosts use; tests make them smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub listed: usize,
    pub candidates: usize,
    /// Taken from one offer.
    pub offered: usize,
    pub per_name: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            listed: MAX_LISTED,
            candidates: MAX_CANDIDATES,
            offered: MAX_OFFERED,
            per_name: MAX_PER_NAME,
        }
    }
}

/// When peers are looked at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// A listed peer is checked again within this time.
    pub check: Duration,
    /// The first wait for a peer that did not answer; it doubles up to an hour.
    pub retry: Duration,
    pub max_retry: Duration,
    /// A peer that has not answered for so long is forgotten.
    pub forget: Duration,
}

impl Pace {
    #[must_use]
    pub fn new(check: Duration, retry: Duration) -> Self {
        Self {
            check,
            retry,
            max_retry: MAX_RETRY,
            forget: FORGET_AFTER,
        }
    }

    /// How long to wait after so many failures in a row (at least one).
    pub(crate) fn wait(&self, failures: u32) -> Duration {
        let factor = 1u32.checked_shl(failures.saturating_sub(1));
        let wait = factor.and_then(|factor| self.retry.checked_mul(factor));
        wait.unwrap_or(self.max_retry).min(self.max_retry)
    }
}

/// Three quarters of a time to all of it, so that hosts that started together do not stay in step.
pub(crate) fn jittered(time: Duration, random: u64) -> Duration {
    // 2^16 steps are enough, and small enough to multiply.
    let step = u32::try_from(random >> 48).expect("16 bits are left");
    time - time / 4 * step / (1 << 16)
}
