//! The wall clock, passed in so that tests decide what time it is.

use std::time::{SystemTime, UNIX_EPOCH};

use ilp_packet::Timestamp;

/// Tells the wall-clock time, for the expiry of packets. Waiting itself uses the runtime's
/// monotonic timer.
pub trait Clock: Send + Sync {
    /// The time now.
    fn now(&self) -> Timestamp;
}

/// The clock of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Timestamp::from_millis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
    }
}
