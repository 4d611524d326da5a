//! Percentiles of times.

use std::time::Duration;

/// The value below which `per_mille` thousandths of the values are; zero if there is none. Sorts.
#[must_use]
pub fn percentile(values: &mut [Duration], per_mille: usize) -> Duration {
    values.sort_unstable();
    let last = values.len().saturating_sub(1);
    let at = (values.len() * per_mille / 1000).min(last);
    values.get(at).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let mut values: Vec<_> = (1..=9).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile(&mut values, 500), Duration::from_millis(5));
        assert_eq!(percentile(&mut values, 990), Duration::from_millis(9));
        assert_eq!(percentile(&mut [], 500), Duration::ZERO);
    }
}
