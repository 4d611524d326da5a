//! How much may be on its way at a time.
//!
//! The window counts packets. It doubles per round trip until the first loss, then grows by one per
//! window and is halved by a loss, as in TCP; losses among packets that were sent before the last
//! halving count once. It does not grow while answers take much longer than they could: then packets
//! only wait in a queue somewhere. A round ends with the first answer to a packet that was sent after
//! it began, and its shortest round trip is what counts, so that jitter does not look like a queue.
//!
//! Amounts have two ceilings: a hard one that hops announce (F08) and a soft one that falls with T04
//! and recovers with success.

use super::config::{BACKOFF_MAX_MILLIS, BACKOFF_MIN_MILLIS};
use super::rate::scale;
use ilp_packet::{AmountTooLarge, Timestamp};

/// Window before the other end has answered for the first time, packets. RFC 29 section 4.3.2 asks
/// not to flood an address that somebody only named.
const FIRST_WINDOW: usize = 1;
/// Window after the first answer, packets.
const VALIDATED_WINDOW: usize = 10;
/// A round trip may be so much longer than twice the shortest one before packets are taken to wait in
/// a queue, milliseconds.
const QUEUE_ALLOWANCE_MILLIS: u64 = 20;

#[derive(Debug)]
pub(super) struct Congestion {
    window: usize,
    max_window: usize,
    slow_start_until: usize,
    acked: usize,
    /// Shortest round trip on this path.
    shortest_millis: u64,
    /// Shortest round trip of the round that runs.
    round_millis: u64,
    /// The first packet that belongs to the next round.
    round_until: u64,
    /// The last round showed a queue.
    queueing: bool,
    /// Losses of packets up to this sequence were already reacted to.
    recovered_from: u64,
    /// No hop carries more in one packet.
    path_max: u64,
    /// What the path seems to have liquidity for in one packet.
    liquidity_max: u64,
    backoff_millis: u64,
    pause_until: Timestamp,
}

impl Congestion {
    pub(super) fn new(max_window: usize, max_packet_amount: u64) -> Self {
        Self {
            window: FIRST_WINDOW,
            max_window: max_window.max(1),
            slow_start_until: usize::MAX,
            acked: 0,
            shortest_millis: u64::MAX,
            round_millis: u64::MAX,
            round_until: 0,
            queueing: false,
            recovered_from: 0,
            path_max: max_packet_amount.max(1),
            liquidity_max: u64::MAX,
            backoff_millis: BACKOFF_MIN_MILLIS,
            pause_until: Timestamp::default(),
        }
    }

    pub(super) fn window(&self) -> usize {
        self.window
    }

    pub(super) fn max_amount(&self) -> u64 {
        self.path_max.min(self.liquidity_max)
    }

    /// No hop carries more in one packet.
    pub(super) fn path_max(&self) -> u64 {
        self.path_max
    }

    /// Nothing is sent before this moment.
    pub(super) fn pause_until(&self) -> Timestamp {
        self.pause_until
    }

    /// The remote address changed: start carefully again.
    pub(super) fn on_new_path(&mut self) {
        self.window = FIRST_WINDOW;
        self.slow_start_until = usize::MAX;
        self.shortest_millis = u64::MAX;
        self.round_millis = u64::MAX;
        self.queueing = false;
    }

    /// The other end answered.
    pub(super) fn on_answer(&mut self) {
        if self.window < VALIDATED_WINDOW && self.slow_start_until == usize::MAX {
            self.window = VALIDATED_WINDOW.min(self.max_window);
        }
    }

    /// Packet `sequence` was fulfilled; `next_sequence` is the first that was not sent yet.
    pub(super) fn on_fulfill(
        &mut self,
        sequence: u64,
        amount: u64,
        sent_at: Timestamp,
        now: Timestamp,
        next_sequence: u64,
    ) {
        self.backoff_millis = BACKOFF_MIN_MILLIS;
        self.pause_until = Timestamp::default();
        self.measure(sequence, now.millis_since(sent_at), next_sequence);
        if amount >= self.liquidity_max {
            self.liquidity_max = self.liquidity_max.saturating_mul(2);
        }
        if self.queueing {
            return;
        }
        if self.window < self.slow_start_until {
            self.window += 1;
        } else {
            self.acked += 1;
            if self.acked >= self.window {
                self.acked = 0;
                self.window += 1;
            }
        }
        self.window = self.window.min(self.max_window);
    }

    fn measure(&mut self, sequence: u64, millis: u64, next_sequence: u64) {
        self.shortest_millis = self.shortest_millis.min(millis);
        if sequence >= self.round_until {
            let longest = self.shortest_millis.saturating_mul(2);
            self.queueing = self.round_millis != u64::MAX
                && self.round_millis > longest.saturating_add(QUEUE_ALLOWANCE_MILLIS);
            self.round_millis = u64::MAX;
            self.round_until = next_sequence;
        }
        self.round_millis = self.round_millis.min(millis);
    }

    /// A packet was lost or refused because something on the way is overloaded.
    pub(super) fn on_loss(&mut self, sequence: u64, next_sequence: u64) {
        if sequence > self.recovered_from {
            self.recovered_from = next_sequence;
            self.window = (self.window / 2).max(1);
            self.slow_start_until = self.window;
            self.acked = 0;
        }
    }

    /// Waits before the next packet, longer each time.
    pub(super) fn pause(&mut self, now: Timestamp) {
        self.pause_until = now.plus_millis(self.backoff_millis);
        self.backoff_millis = (self.backoff_millis * 2).min(BACKOFF_MAX_MILLIS);
    }

    /// T04: half of it may pass, but less than `least` would not arrive.
    pub(super) fn on_no_liquidity(&mut self, amount: u64, least: u64) {
        if amount > 1 {
            self.liquidity_max = self.liquidity_max.min((amount / 2).max(least));
        }
    }

    /// F08: returns false when nothing at all can pass.
    pub(super) fn on_too_large(&mut self, amount: u64, data: &[u8]) -> bool {
        let announced = match AmountTooLarge::decode(data) {
            Ok(hop) if hop.received > 0 => scale(amount, hop.maximum, hop.received),
            Ok(_) | Err(_) => amount / 2,
        };
        // A hop that rejects a packet and claims to carry it would make us send it for ever.
        let maximum = if announced < amount {
            announced
        } else {
            amount / 2
        };
        self.path_max = self.path_max.min(maximum);
        self.path_max > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    /// A Fulfill after `millis`, while one more packet than that was sent.
    fn fulfilled(congestion: &mut Congestion, sequence: u64, millis: u64) {
        congestion.on_fulfill(sequence, 1, NOW, NOW.plus_millis(millis), sequence + 1);
    }

    #[test]
    fn the_window_grows_and_is_halved_once_per_flight() {
        let mut congestion = Congestion::new(16, u64::MAX);
        assert_eq!(congestion.window(), 1);
        congestion.on_answer();
        assert_eq!(congestion.window(), VALIDATED_WINDOW);
        for sequence in 1..=30 {
            fulfilled(&mut congestion, sequence, 10);
        }
        assert_eq!(congestion.window(), 16);
        // Packets 31 to 45 are on their way and three of them are lost.
        for sequence in [33, 40, 45] {
            congestion.on_loss(sequence, 46);
        }
        assert_eq!(congestion.window(), 8);
        congestion.on_loss(47, 60);
        assert_eq!(congestion.window(), 4);
        fulfilled(&mut congestion, 61, 10);
        assert_eq!(
            congestion.window(),
            4,
            "one more per window, not per packet"
        );
    }

    #[test]
    fn pauses_grow_until_something_passes() {
        let mut congestion = Congestion::new(16, u64::MAX);
        for millis in [100, 200, 400] {
            congestion.pause(NOW);
            assert_eq!(congestion.pause_until(), NOW.plus_millis(millis));
        }
        fulfilled(&mut congestion, 1, 10);
        assert_eq!(congestion.pause_until(), Timestamp::default());
    }

    #[test]
    fn the_window_does_not_grow_into_a_queue() {
        let mut congestion = Congestion::new(1_000, u64::MAX);
        congestion.on_answer();
        for sequence in 1..=20 {
            fulfilled(&mut congestion, sequence, 30);
        }
        let window = congestion.window();
        assert_eq!(window, VALIDATED_WINDOW + 20);
        for sequence in 21..=40 {
            fulfilled(&mut congestion, sequence, 300);
        }
        assert!(congestion.window() <= window + 2, "{}", congestion.window());
        for sequence in 41..=60 {
            fulfilled(&mut congestion, sequence, 40);
        }
        assert!(
            congestion.window() >= window + 18,
            "{}",
            congestion.window()
        );
    }

    #[test]
    fn too_large_always_gets_smaller() {
        let mut congestion = Congestion::new(16, u64::MAX);
        let hop = AmountTooLarge {
            received: 2_000,
            maximum: 500,
        };
        assert!(congestion.on_too_large(1_000, &hop.encode()));
        assert_eq!(congestion.max_amount(), 250);
        let liar = AmountTooLarge {
            received: 1,
            maximum: 500,
        };
        assert!(congestion.on_too_large(250, &liar.encode()));
        assert_eq!(congestion.max_amount(), 125);
        assert!(congestion.on_too_large(125, b""));
        assert_eq!(congestion.max_amount(), 62);
        let closed = AmountTooLarge {
            received: 62,
            maximum: 0,
        };
        assert!(!congestion.on_too_large(62, &closed.encode()));
    }

    #[test]
    fn liquidity_recovers_with_success() {
        let mut congestion = Congestion::new(16, 1_000);
        congestion.on_no_liquidity(800, 1);
        assert_eq!(congestion.max_amount(), 400);
        congestion.on_fulfill(1, 400, NOW, NOW, 2);
        assert_eq!(congestion.max_amount(), 800);
        congestion.on_fulfill(2, 800, NOW, NOW, 3);
        assert_eq!(congestion.max_amount(), 1_000);
    }
}
