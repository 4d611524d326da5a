//! The fixed-length timestamp of ILPv4: 17 digits `YYYYMMDDHHMMSSmmm`, UTC (RFC 30).
//!
//! Leap seconds are smeared, so a second of 60 is refused and every day has 86 400 000
//! milliseconds. We hold milliseconds since 1970; earlier years are refused, since nothing on
//! Interledger can expire before its invention.

use std::fmt;
use std::time::Duration;

/// Length of an encoded timestamp, bytes.
pub const TIMESTAMP_LEN: usize = 17;

const MILLIS_PER_DAY: u64 = 86_400_000;
/// 9999-12-31T23:59:59.999Z, the last moment that four digits of year can say.
const MAX_MILLIS: u64 = 253_402_300_799_999;

/// A moment in UTC, milliseconds since 1970-01-01, at most the end of the year 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

/// Why bytes are not a timestamp. Whoever wrote them has to fix it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TimestampError {
    /// There are not exactly 17 bytes, or one of them is not a digit.
    #[error("timestamp is not 17 digits")]
    NotDigits,
    /// The digits do not name a moment from 1970 to 9999.
    #[error("timestamp names no moment from 1970 to 9999")]
    OutOfRange,
}

impl Timestamp {
    /// The last moment that can be encoded.
    pub const MAX: Self = Self(MAX_MILLIS);

    /// From milliseconds since 1970. What cannot be encoded becomes [`Timestamp::MAX`].
    pub const fn from_millis(millis: u64) -> Self {
        if millis > MAX_MILLIS {
            Self::MAX
        } else {
            Self(millis)
        }
    }

    /// Milliseconds since 1970.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// This moment and `millis` later; at most [`Timestamp::MAX`].
    pub const fn plus_millis(self, millis: u64) -> Self {
        Self::from_millis(self.0.saturating_add(millis))
    }

    /// This moment and `millis` earlier; at least 1970.
    pub const fn minus_millis(self, millis: u64) -> Self {
        Self(self.0.saturating_sub(millis))
    }

    /// Milliseconds from `earlier` until this moment; zero if it is in fact later.
    pub const fn millis_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Time from `earlier` until this moment; zero if it is in fact later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.millis_since(earlier))
    }

    /// The 17 digits.
    pub fn encode(self) -> [u8; TIMESTAMP_LEN] {
        let (year, month, day) = civil_from_days(self.0 / MILLIS_PER_DAY);
        let of_day = self.0 % MILLIS_PER_DAY;
        let mut out = [b'0'; TIMESTAMP_LEN];
        let fields = [
            (0..4, year),
            (4..6, month),
            (6..8, day),
            (8..10, of_day / 3_600_000),
            (10..12, of_day / 60_000 % 60),
            (12..14, of_day / 1_000 % 60),
            (14..17, of_day % 1_000),
        ];
        for (range, mut value) in fields {
            for digit in out[range].iter_mut().rev() {
                // The remainder of a division by ten fits one digit.
                *digit = b'0' + u8::try_from(value % 10).unwrap_or(0);
                value /= 10;
            }
        }
        out
    }

    /// Reads exactly 17 digits.
    pub fn decode(bytes: &[u8]) -> Result<Self, TimestampError> {
        if bytes.len() != TIMESTAMP_LEN || !bytes.iter().all(u8::is_ascii_digit) {
            return Err(TimestampError::NotDigits);
        }
        let number = |range: std::ops::Range<usize>| {
            bytes[range]
                .iter()
                .fold(0_u64, |sum, digit| sum * 10 + u64::from(digit - b'0'))
        };
        let (year, month, day) = (number(0..4), number(4..6), number(6..8));
        let (hour, minute) = (number(8..10), number(10..12));
        let (second, milli) = (number(12..14), number(14..17));
        let valid = year >= 1970
            && (1..=12).contains(&month)
            && (1..=days_in_month(year, month)).contains(&day)
            && hour < 24
            && minute < 60
            && second < 60;
        if !valid {
            return Err(TimestampError::OutOfRange);
        }
        let seconds = (hour * 60 + minute) * 60 + second;
        Ok(Self(
            days_from_civil(year, month, day) * MILLIS_PER_DAY + seconds * 1_000 + milli,
        ))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.encode()))
    }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_in_month(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to a date of the Gregorian calendar from 1970 on. The year is counted from
/// March, so that the leap day is its last day and the lengths of the months follow one formula.
fn days_from_civil(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days_before_year = 365 * year + year / 4 - year / 100 + year / 400;
    let days_before_month = (153 * month + 2) / 5;
    // 719 468 days lie between the first of March of the year 0 and 1970-01-01.
    days_before_year + days_before_month + day - 1 - 719_468
}

/// The inverse of [`days_from_civil`].
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let year = era * 400 + year_of_era;
    if month < 10 {
        (year, month + 3, day)
    } else {
        (year + 1, month - 9, day)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The lists of valid examples in RFC 30, with the milliseconds as `date -u +%s%3N` gives them.
    #[test]
    fn valid_examples_of_rfc_30() {
        for (text, millis) in [
            ("20171224161432279", 1_514_132_072_279),
            ("20171224161432270", 1_514_132_072_270),
            ("20171224161432200", 1_514_132_072_200),
            ("20171224161432000", 1_514_132_072_000),
            ("20161231235959852", 1_483_228_799_852),
            ("20171225000000000", 1_514_160_000_000),
            ("99991224161432279", 253_401_668_072_279),
            ("20000229000000000", 951_782_400_000),
            ("19700101000000000", 0),
            ("99991231235959999", MAX_MILLIS),
        ] {
            assert_eq!(
                Timestamp::decode(text.as_bytes()),
                Ok(Timestamp::from_millis(millis))
            );
            assert_eq!(Timestamp::from_millis(millis).to_string(), text);
        }
    }

    /// The list of invalid examples in RFC 30, and dates that do not exist.
    #[test]
    fn invalid_examples_of_rfc_30() {
        for text in [
            "20171224235312.431+0200",
            "201712242153124318",
            "20171324161432200",
            "20171224230000000.",
            "20171224240000000",
            "20171224215300",
            "2017122421531",
            "201712242153",
            "2017122421",
            "20161231235960852",
            "",
            "20170229000000000",
            "19000101000000000",
            "20170100000000000",
            "20170001000000000",
            "20170431000000000",
            "20171224006000000",
            "2017122400000000 ",
        ] {
            assert!(Timestamp::decode(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn arithmetic_stays_in_range() {
        assert_eq!(Timestamp::from_millis(u64::MAX), Timestamp::MAX);
        assert_eq!(Timestamp::MAX.plus_millis(1), Timestamp::MAX);
        assert_eq!(
            Timestamp::from_millis(5).minus_millis(9),
            Timestamp::from_millis(0)
        );
        assert_eq!(
            Timestamp::from_millis(5).millis_since(Timestamp::from_millis(9)),
            0
        );
    }

    proptest! {
        #[test]
        fn every_moment_round_trips(millis in 0..=MAX_MILLIS) {
            let moment = Timestamp::from_millis(millis);
            prop_assert_eq!(Timestamp::decode(&moment.encode()), Ok(moment));
        }

        /// The order of the digits is the order of the moments.
        #[test]
        fn digits_sort_like_moments(a in 0..=MAX_MILLIS, b in 0..=MAX_MILLIS) {
            let (a, b) = (Timestamp::from_millis(a), Timestamp::from_millis(b));
            prop_assert_eq!(a.cmp(&b), a.encode().cmp(&b.encode()));
        }
    }
}
