//! The same amount of one asset, counted in units of another size.

/// Units of 10^-`to` that are worth no more than `units` of 10^-`from`; the largest number if it would
/// be larger.
pub fn down(units: u64, from: u8, to: u8) -> u64 {
    match to.checked_sub(from) {
        Some(finer) => power(finer).map_or(if units == 0 { 0 } else { u64::MAX }, |factor| {
            units.saturating_mul(factor)
        }),
        None => power(from - to).map_or(0, |factor| units / factor),
    }
}

/// The least units of 10^-`to` that are worth `units` of 10^-`from` or more; `None` if no number is.
pub fn up(units: u64, from: u8, to: u8) -> Option<u64> {
    if units == 0 {
        return Some(0);
    }
    match to.checked_sub(from) {
        Some(finer) => units.checked_mul(power(finer)?),
        None => Some(power(from - to).map_or(1, |factor| units.div_ceil(factor))),
    }
}

fn power(exponent: u8) -> Option<u64> {
    10_u64.checked_pow(exponent.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_goes_down_and_a_price_goes_up() {
        assert_eq!(down(2_283_106, 9, 6), 2_283);
        assert_eq!(up(2_283_106, 9, 6), Some(2_284));
        assert_eq!(up(2_283_000, 9, 6), Some(2_283));
        assert_eq!((down(7, 6, 9), up(7, 6, 9)), (7_000, Some(7_000)));
        assert_eq!((down(7, 9, 9), up(7, 9, 9)), (7, Some(7)));
    }

    #[test]
    fn nothing_wraps_around() {
        assert_eq!(
            (down(u64::MAX, 0, 18), up(u64::MAX, 0, 18)),
            (u64::MAX, None)
        );
        assert_eq!((down(1, 0, 255), up(1, 0, 255)), (u64::MAX, None));
        assert_eq!((down(u64::MAX, 255, 0), up(u64::MAX, 255, 0)), (0, Some(1)));
        assert_eq!((down(0, 0, 255), up(0, 0, 255)), (0, Some(0)));
    }

    #[test]
    fn what_is_paid_for_a_price_is_never_more_than_its_limit_allows() {
        for (from, to) in [(9, 6), (6, 9), (2, 2), (0, 18)] {
            for units in [0, 1, 999, 1_000, 1_001, 123_456_789] {
                let back = up(down(units, from, to), to, from);
                assert!(
                    back.is_some_and(|back| back <= units),
                    "{units} {from} {to}"
                );
            }
        }
    }
}
