//! Which sequence numbers of the other end were already seen.
//!
//! Somebody on the way can send a sealed packet twice. Fulfilling it twice would give the receiver's
//! answer, and its proof of payment, for a packet that was paid once.

use super::config::REPLAY_WINDOW;

const BITS: u64 = u64::BITS as u64;
const WORDS: usize = 64;

/// A window of the latest sequence numbers, one bit for each.
#[derive(Debug)]
pub(super) struct ReplayWindow {
    /// Highest number seen; nothing was seen while it is zero, because ends count from one. (A zero
    /// that does arrive is seen as number zero of the first window.)
    highest: u64,
    seen: [u64; WORDS],
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self {
            highest: 0,
            seen: [0; WORDS],
        }
    }
}

impl ReplayWindow {
    /// Notes a number. False if it was seen before, or is so old that nobody can tell.
    pub(super) fn insert(&mut self, sequence: u64) -> bool {
        if sequence > self.highest {
            let skipped = (sequence - self.highest).min(REPLAY_WINDOW);
            // The bits of the numbers that leave the window are used again.
            for number in sequence - skipped + 1..=sequence {
                let (word, bit) = Self::place(number);
                self.seen[word] &= !bit;
            }
            self.highest = sequence;
        } else if self.highest - sequence >= REPLAY_WINDOW {
            return false;
        }
        let (word, bit) = Self::place(sequence);
        let new = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        new
    }

    fn place(sequence: u64) -> (usize, u64) {
        let at = sequence % REPLAY_WINDOW;
        let word = usize::try_from(at / BITS).unwrap_or(0);
        (word, 1 << (at % BITS))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_window_is_as_large_as_its_bits() {
        assert_eq!(WORDS as u64 * BITS, REPLAY_WINDOW);
    }

    proptest! {
        #[test]
        fn each_number_passes_once(numbers in prop::collection::vec(0_u64..20_000, 0..400)) {
            let (mut window, mut model, mut highest) = (ReplayWindow::default(), BTreeSet::new(), 0);
            for number in numbers {
                highest = highest.max(number);
                let expected = number + REPLAY_WINDOW > highest && model.insert(number);
                prop_assert_eq!(window.insert(number), expected, "number {}", number);
            }
        }
    }

    #[test]
    fn numbers_at_the_end_of_the_range_do_no_harm() {
        let mut window = ReplayWindow::default();
        assert!(window.insert(u64::MAX));
        assert!(!window.insert(u64::MAX));
        assert!(!window.insert(5));
    }
}
