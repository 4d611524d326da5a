//! Moments on the wire.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

const MILLIS_PER_DAY: u64 = 86_400_000;

/// Milliseconds since 1970-01-01T00:00:00Z, leap seconds not counted. Its text is what JavaScript's
/// `Date.toISOString` writes: `2026-11-23T16:10:00.000Z`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMillis(u64);

impl UnixMillis {
    /// The last moment that has a four-digit year; later ones are held at it.
    pub const MAX: Self = Self(253_402_300_799_999);

    /// Later moments than [`UnixMillis::MAX`] become that one, so that each has a text.
    pub fn new(millis: u64) -> Self {
        Self(millis.min(Self::MAX.0))
    }

    /// Milliseconds since the epoch.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for UnixMillis {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil_from_days(self.0 / MILLIS_PER_DAY);
        let millis = self.0 % MILLIS_PER_DAY;
        let (hours, minutes) = (millis / 3_600_000, millis / 60_000 % 60);
        let (seconds, millis) = (millis / 1000 % 60, millis % 1000);
        write!(
            out,
            "{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}.{millis:03}Z"
        )
    }
}

/// The text is not a moment of the form `2026-11-23T16:10:00.000Z` from 1970 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a moment of the form 2026-11-23T16:10:00.000Z")]
pub struct InvalidTime;

impl FromStr for UnixMillis {
    type Err = InvalidTime;

    fn from_str(text: &str) -> Result<Self, InvalidTime> {
        const FORM: &[u8; 24] = b"0000-00-00T00:00:00.000Z";
        let bytes: &[u8; 24] = text.as_bytes().try_into().map_err(|_| InvalidTime)?;
        let fits = bytes.iter().zip(FORM).all(|(byte, form)| match form {
            b'0' => byte.is_ascii_digit(),
            _ => byte == form,
        });
        if !fits {
            return Err(InvalidTime);
        }
        let number = |from: usize, to: usize| {
            bytes[from..to]
                .iter()
                .fold(0, |sum, byte| sum * 10 + u64::from(byte - b'0'))
        };
        let (year, month, day) = (number(0, 4), number(5, 7), number(8, 10));
        let (hours, minutes, seconds) = (number(11, 13), number(14, 16), number(17, 19));
        if year < 1970 || !(1..=12).contains(&month) || hours > 23 || minutes > 59 || seconds > 59 {
            return Err(InvalidTime);
        }
        let days = days_from_civil(year, month, day);
        if civil_from_days(days) != (year, month, day) {
            return Err(InvalidTime);
        }
        Ok(Self(
            days * MILLIS_PER_DAY
                + hours * 3_600_000
                + minutes * 60_000
                + seconds * 1000
                + number(20, 23),
        ))
    }
}

impl Serialize for UnixMillis {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for UnixMillis {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        <std::borrow::Cow<'de, str>>::deserialize(from)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// Days of 400 years of the Gregorian calendar.
const DAYS_PER_ERA: u64 = 146_097;
/// Days from 0000-03-01 to 1970-01-01. Years are counted from March, so that the leap day is the
/// last of its year.
const DAYS_TO_EPOCH: u64 = 719_468;

/// Year, month and day of the Gregorian calendar, so many days after 1970-01-01.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let days = days + DAYS_TO_EPOCH;
    let (era, day_of_era) = (days / DAYS_PER_ERA, days % DAYS_PER_ERA);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// The inverse of [`civil_from_days`] for years from 1970 on. A day that the month has not gives a
/// day of the next month.
fn days_from_civil(year: u64, month: u64, day: u64) -> u64 {
    let year = year - u64::from(month <= 2);
    let month_from_march = if month > 2 { month - 3 } else { month + 9 };
    let year_of_era = year % 400;
    let day_of_year = (153 * month_from_march + 2) / 5 + day;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (year / 400 * DAYS_PER_ERA + day_of_era).saturating_sub(DAYS_TO_EPOCH + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments_have_their_text() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_795_450_200_000, "2026-11-23T16:10:00.000Z"),
            (UnixMillis::MAX.get(), "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(UnixMillis::new(millis).to_string(), text);
            assert_eq!(text.parse(), Ok(UnixMillis::new(millis)), "{text}");
        }
        assert_eq!(UnixMillis::new(u64::MAX), UnixMillis::MAX);
    }

    #[test]
    fn days_that_do_not_exist_and_other_forms_are_refused() {
        for text in [
            "",
            "2026-11-23T16:10:00Z",
            "2026-11-23T16:10:00.000+00:00",
            "2026-11-23 16:10:00.000Z",
            "2026-02-29T00:00:00.000Z",
            "2026-04-31T00:00:00.000Z",
            "2026-00-10T00:00:00.000Z",
            "2026-13-10T00:00:00.000Z",
            "2026-01-00T00:00:00.000Z",
            "1970-01-00T00:00:00.000Z",
            "2026-01-01T24:00:00.000Z",
            "2026-01-01T00:60:00.000Z",
            "2026-01-01T00:00:60.000Z",
            "1969-12-31T23:59:59.999Z",
            "2026-1-01T00:00:00.0000Z",
        ] {
            assert_eq!(text.parse::<UnixMillis>(), Err(InvalidTime), "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn agrees_with_another_calendar(millis in 0..=UnixMillis::MAX.get()) {
            let moment = UnixMillis::new(millis);
            let signed = i64::try_from(millis).unwrap();
            let other = jiff::Timestamp::from_millisecond(signed).unwrap();
            proptest::prop_assert_eq!(moment.to_string(), format!("{other:.3}"));
            proptest::prop_assert_eq!(moment.to_string().parse(), Ok(moment));
        }
    }
}
