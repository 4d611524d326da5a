//! How long a pod is paid for.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A duration in whole seconds.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Seconds(pub u64);

impl Seconds {
    /// In milliseconds; held at the largest number.
    pub fn millis(self) -> u64 {
        self.0.saturating_mul(1000)
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} s", self.0)
    }
}

/// What a version 1 request means that names no duration.
pub const DEFAULT_DURATION: Seconds = Seconds(3600);

/// Characters of a duration in a query; longer text is refused unread.
pub const MAX_DURATION_TEXT: usize = 64;

/// The `duration` of a request is not a whole number from 1 to the host's maximum. Nothing happened;
/// the uploader corrects it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("duration must be a whole number of seconds from 1 to {}", max.0)]
pub struct InvalidDuration {
    pub max: Seconds,
}

/// Reads the `duration` query value of version 1: whatever JavaScript's `Number` makes a whole number
/// from 1 to `max` of (`60`, ` 60`, `6e1`, `60.0`, `0x3c`), since old clients were heard so. An empty
/// value means [`DEFAULT_DURATION`]. The original also took negative, fractional and endless ones;
/// they are refused.
pub fn parse_duration(text: &str, max: Seconds) -> Result<Seconds, InvalidDuration> {
    if text.is_empty() {
        return if DEFAULT_DURATION <= max {
            Ok(DEFAULT_DURATION)
        } else {
            Ok(max)
        };
    }
    match javascript_whole_number(text) {
        Some(seconds) if (1..=max.0).contains(&seconds) => Ok(Seconds(seconds)),
        _ => Err(InvalidDuration { max }),
    }
}

/// ECMAScript `StringToNumber`, as far as it gives a whole number that is not negative.
fn javascript_whole_number(text: &str) -> Option<u64> {
    /// Above this, a JavaScript number no longer holds every integer.
    const MAX_SAFE_INTEGER: f64 = 9_007_199_254_740_991.0;

    if text.len() > MAX_DURATION_TEXT {
        return None;
    }
    let text = text.trim_matches(is_javascript_space);
    for (prefixes, radix) in [(["0x", "0X"], 16), (["0o", "0O"], 8), (["0b", "0B"], 2)] {
        for prefix in prefixes {
            if let Some(digits) = text.strip_prefix(prefix) {
                let plain = digits.bytes().all(|byte| byte.is_ascii_alphanumeric());
                return if plain {
                    u64::from_str_radix(digits, radix).ok()
                } else {
                    None
                };
            }
        }
    }
    // What remains is a decimal literal. Rust and ECMAScript read those alike, except for the names
    // of infinity and NaN.
    let decimal = |byte: u8| byte.is_ascii_digit() || b"+-.eE".contains(&byte);
    if !text.bytes().all(decimal) {
        return None;
    }
    let number: f64 = text.parse().ok()?;
    if number.fract() != 0.0 || !(0.0..=MAX_SAFE_INTEGER).contains(&number) {
        return None;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is whole and between 0 and 2^53 - 1"
    )]
    let number = number as u64;
    Some(number)
}

/// ECMAScript `WhiteSpace` and `LineTerminator`: Unicode's, without NEL, with the byte order mark.
fn is_javascript_space(c: char) -> bool {
    (c.is_whitespace() && c != '\u{85}') || c == '\u{feff}'
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Seconds = Seconds(31_536_000);

    #[test]
    fn what_javascript_reads_as_a_whole_number_is_taken() {
        for (text, seconds) in [
            ("1", 1),
            ("3600", 3600),
            ("31536000", 31_536_000),
            ("1e3", 1000),
            ("1E+3", 1000),
            ("60000e-3", 60),
            (" 60", 60),
            ("60\n", 60),
            ("\u{feff}60\u{a0}", 60),
            ("+60", 60),
            ("060", 60),
            ("60.", 60),
            ("60.000", 60),
            (".6e2", 60),
            ("0x10", 16),
            ("0XfF", 255),
            ("0o17", 15),
            ("0b101", 5),
            ("1.00000000000000000001", 1),
        ] {
            assert_eq!(parse_duration(text, MAX), Ok(Seconds(seconds)), "{text:?}");
        }
    }

    #[test]
    fn an_empty_duration_is_the_default() {
        assert_eq!(parse_duration("", MAX), Ok(DEFAULT_DURATION));
        assert_eq!(parse_duration("", Seconds(60)), Ok(Seconds(60)));
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "0",
            "-0",
            "-60",
            "0.5",
            "1.5",
            "31536001",
            "1e30",
            "1e999",
            "1e-999",
            "Infinity",
            "-Infinity",
            "inf",
            "NaN",
            "nan",
            "abc",
            " ",
            ".",
            "e",
            "1e",
            "+",
            "--1",
            "1 2",
            "1,000",
            "1_000",
            "60s",
            "0x",
            "0x-1",
            "0x+1",
            "+0x10",
            "-0x10",
            "0x1p3",
            "0b2",
            "0xffffffffffffffffffffffff",
            "\u{85}60",
            "６０",
            "1\0",
        ] {
            assert_eq!(
                parse_duration(text, MAX),
                Err(InvalidDuration { max: MAX }),
                "{text:?}"
            );
        }
        let long = format!("{}1", "0".repeat(MAX_DURATION_TEXT));
        parse_duration(&long, MAX).unwrap_err();
        assert_eq!(
            InvalidDuration { max: MAX }.to_string(),
            "duration must be a whole number of seconds from 1 to 31536000"
        );
    }
}
