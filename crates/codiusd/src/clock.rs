//! The two clocks of a host: one that people read, and one that money runs by.

use std::{
    fmt,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use codius_ledger::Millis;
use rustix::time::{ClockId, clock_gettime};

/// What tells a host the time. Clones tell the same.
#[derive(Clone)]
pub(crate) struct Clock(Arc<dyn ClockSource>);

/// Where the time comes from.
pub(crate) trait ClockSource: Send + Sync {
    /// Milliseconds since 1970 by a clock that may jump.
    fn wall_ms(&self) -> u64;
    /// Milliseconds by a clock that never jumps; see [`Clock::steady`].
    fn steady_ms(&self) -> u64;
}

impl Clock {
    pub(crate) fn new(source: Arc<dyn ClockSource>) -> Self {
        Self(source)
    }

    /// The clocks of this machine.
    pub(crate) fn system() -> Self {
        Self::new(Arc::new(Machine))
    }

    /// Milliseconds since 1970 by the wall clock, which may jump. For display and the wire.
    pub(crate) fn wall(&self) -> u64 {
        self.0.wall_ms()
    }

    /// The time since the machine was started, by a clock that never jumps and stands still while the
    /// machine sleeps (`CLOCK_MONOTONIC`). It goes on when the daemon is restarted: within one
    /// [`boot_id`], two readings by different processes can be compared. For charging.
    pub(crate) fn steady(&self) -> Millis {
        Millis(self.0.steady_ms())
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

struct Machine;

impl ClockSource for Machine {
    fn wall_ms(&self) -> u64 {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn steady_ms(&self) -> u64 {
        let now = clock_gettime(ClockId::Monotonic);
        let (secs, nanos) = (u64::try_from(now.tv_sec), u64::try_from(now.tv_nsec));
        secs.unwrap_or_default() * 1000 + nanos.unwrap_or_default() / 1_000_000
    }
}

/// Names this start of the machine.
pub(crate) fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}
