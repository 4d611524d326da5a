//! How rough a schedule is: decided once, from its seed.

use super::dice::Dice;

/// What everything in one schedule is decided by. Often in a thousand times, or milliseconds.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) steps: u64,
    /// Of the host, in XRP with six decimals.
    pub(super) cost_per_month: &'static str,
    pub(super) max_packet_amount: u64,
    pub(super) pods: usize,
    /// How long a pod is kept whose money is used up.
    pub(super) grace_ms: u64,
    pub(super) network: Network,
    pub(super) disk: DiskPlan,
    /// Pods that do not start, end by themselves, or whose machine is lost.
    pub(super) pod_trouble: u64,
    /// Actions beside those of clients.
    pub(super) kills: bool,
    pub(super) clocks: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Network {
    pub(super) lost: u64,
    pub(super) late: u64,
    pub(super) late_ms: u64,
    pub(super) delay_ms: u64,
}

#[derive(Debug, Clone)]
pub(super) struct DiskPlan {
    pub(super) delay_ms: u64,
    pub(super) slow: u64,
    pub(super) slow_ms: u64,
    /// The process ends at a write.
    pub(super) crash: u64,
    /// SQLite fails at a write, and at every one after it.
    pub(super) broken: u64,
    /// There are times when the disk is full.
    pub(super) fills_up: bool,
}

impl Plan {
    pub(super) fn of(seed: u64) -> Self {
        let mut dice = Dice::of(seed, 1);
        let lossy = dice.permille(500);
        let network = Network {
            lost: if lossy { dice.between(5, 150) } else { 0 },
            late: if lossy { dice.between(0, 80) } else { 0 },
            late_ms: 4000,
            delay_ms: dice.pick(&[0, 5, 40]),
        };
        let rough_disk = dice.permille(500);
        let disk = DiskPlan {
            delay_ms: dice.pick(&[0, 1, 4]),
            slow: if dice.permille(250) { 50 } else { 0 },
            slow_ms: 700,
            crash: if rough_disk {
                dice.pick(&[0, 5, 20, 60])
            } else {
                0
            },
            broken: if rough_disk { dice.pick(&[0, 0, 3]) } else { 0 },
            fills_up: rough_disk && dice.permille(500),
        };
        Self {
            seed,
            steps: dice.between(10, 36),
            cost_per_month: dice.pick(&["10", "2.628", "0.9", "2628", "123.456"]),
            max_packet_amount: dice.pick(&[u64::MAX, u64::MAX, 40]),
            pods: usize::try_from(dice.between(1, 5)).unwrap_or(1),
            grace_ms: dice.pick(&[0, 5000, 30_000]),
            network,
            disk,
            pod_trouble: dice.pick(&[0, 60, 250]),
            kills: dice.permille(600),
            clocks: dice.permille(400),
        }
    }

    /// The longest that a write takes when the disk works.
    pub(super) fn write_ms(&self) -> u64 {
        let slow = if self.disk.slow > 0 {
            self.disk.slow_ms
        } else {
            0
        };
        2 * (self.disk.delay_ms + slow)
    }
}
