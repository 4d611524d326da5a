//! The two clocks: one that people read, and one that money runs by.

use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// Milliseconds since 1970 by the machine's wall clock, which may jump. For display and the wire.
pub(crate) fn wall_now() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds since the machine was started, by a clock that never jumps and stands still while the
/// machine sleeps (`CLOCK_MONOTONIC`). It goes on when the daemon is restarted: within one
/// [`boot_id`], two readings by different processes can be compared. For charging.
pub(crate) fn steady_now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let (secs, nanos) = (u64::try_from(now.tv_sec), u64::try_from(now.tv_nsec));
    secs.unwrap_or_default() * 1000 + nanos.unwrap_or_default() / 1_000_000
}

/// Names this start of the machine.
pub(crate) fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}
