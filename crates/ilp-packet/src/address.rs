//! Interledger addresses (RFC 15).
//!
//! An address is an allocation scheme and at least one more segment, joined by dots. Comparison is
//! case-sensitive, and "is below" always means whole segments: `g.alice` is not below `g.al`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest address, bytes (RFC 15).
pub const MAX_ADDRESS_LEN: usize = 1023;

/// The allocation schemes of RFC 15.
const SCHEMES: [&str; 10] = [
    "g", "private", "example", "peer", "self", "test", "test1", "test2", "test3", "local",
];

/// A valid Interledger address. Cloning is cheap.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address(Arc<str>);

/// Why a text is not an Interledger address. Whoever wrote it has to fix it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The address is longer than [`MAX_ADDRESS_LEN`].
    #[error("address is longer than {MAX_ADDRESS_LEN} bytes")]
    TooLong,
    /// The first segment is not an allocation scheme of RFC 15.
    #[error("address does not begin with a known scheme")]
    UnknownScheme,
    /// There is no segment after the scheme, or one of the segments is empty.
    #[error("address has an empty segment or none after the scheme")]
    EmptySegment,
    /// A segment contains something else than letters, digits, `_`, `~` and `-`.
    #[error("address contains a character that is not allowed")]
    BadCharacter,
}

impl Address {
    /// The address as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The address as bytes, as it stands in a packet.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// This address with `suffix` (one segment or several, joined by dots) below it.
    pub fn with_suffix(&self, suffix: &str) -> Result<Self, AddressError> {
        let len = self.0.len() + 1 + suffix.len();
        if len > MAX_ADDRESS_LEN {
            return Err(AddressError::TooLong);
        }
        check_segments(suffix.as_bytes())?;
        let mut text = String::with_capacity(len);
        text.push_str(&self.0);
        text.push('.');
        text.push_str(suffix);
        Ok(Self(text.into()))
    }

    /// Whether this address is `prefix`, or below it at a segment boundary.
    pub fn starts_with_segments(&self, prefix: &Self) -> bool {
        self.suffix_after(prefix).is_some()
    }

    /// The first segment of this address after `prefix`; none when the address is `prefix` itself or
    /// not below it.
    pub fn segment_after(&self, prefix: &Self) -> Option<&str> {
        self.suffix_after(prefix)?
            .split('.')
            .next()
            .filter(|segment| !segment.is_empty())
    }

    /// Everything after `prefix` without the dot between; empty when the address is `prefix` itself,
    /// none when it is not below it.
    pub fn suffix_after(&self, prefix: &Self) -> Option<&str> {
        let rest = self.0.strip_prefix(&*prefix.0)?;
        if rest.is_empty() {
            Some(rest)
        } else {
            rest.strip_prefix('.')
        }
    }

    /// The first segment: the allocation scheme.
    pub fn scheme(&self) -> &str {
        self.0.split('.').next().unwrap_or_default()
    }

    /// The segments, the scheme first.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('.')
    }

    /// Whether the text may stand as one segment of an address.
    pub fn is_segment(text: &str) -> bool {
        !text.contains('.') && check_segments(text.as_bytes()).is_ok()
    }
}

fn check_segments(segments: &[u8]) -> Result<(), AddressError> {
    for segment in segments.split(|byte| *byte == b'.') {
        if segment.is_empty() {
            return Err(AddressError::EmptySegment);
        }
        let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"_~-".contains(byte);
        if !segment.iter().all(allowed) {
            return Err(AddressError::BadCharacter);
        }
    }
    Ok(())
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.len() > MAX_ADDRESS_LEN {
            return Err(AddressError::TooLong);
        }
        let (scheme, segments) = text.split_once('.').unwrap_or((text, ""));
        if !SCHEMES.contains(&scheme) {
            return Err(AddressError::UnknownScheme);
        }
        check_segments(segments.as_bytes())?;
        Ok(Self(text.into()))
    }
}

impl TryFrom<&str> for Address {
    type Error = AddressError;

    fn try_from(text: &str) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl TryFrom<&[u8]> for Address {
    type Error = AddressError;

    fn try_from(bytes: &[u8]) -> Result<Self, AddressError> {
        if bytes.len() > MAX_ADDRESS_LEN {
            return Err(AddressError::TooLong);
        }
        std::str::from_utf8(bytes)
            .map_err(|_| AddressError::BadCharacter)?
            .parse()
    }
}

impl AsRef<str> for Address {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    #[test]
    fn valid_addresses() {
        for text in [
            "g.acme.bob",
            "private.moneyd.local.Hj7pF30vKCaOb59w2JapcRd0PGCxDhK7qKoFTzvrYm8",
            "test1.a",
            "test.a-b_c~d",
            "peer.config",
            "local.host",
            "self.x",
            "example.client",
        ] {
            assert_eq!(address(text).as_str(), text);
            assert_eq!(Address::try_from(text.as_bytes()), Ok(address(text)));
        }
    }

    #[test]
    fn invalid_addresses() {
        for (text, error) in [
            ("", AddressError::UnknownScheme),
            ("g", AddressError::EmptySegment),
            ("g.", AddressError::EmptySegment),
            ("g..a", AddressError::EmptySegment),
            ("g.a.", AddressError::EmptySegment),
            (".g.a", AddressError::UnknownScheme),
            ("x.y", AddressError::UnknownScheme),
            ("test4.a", AddressError::UnknownScheme),
            ("G.a", AddressError::UnknownScheme),
            ("g.a b", AddressError::BadCharacter),
            ("g.a/b", AddressError::BadCharacter),
            ("g.ä", AddressError::BadCharacter),
            ("g.a\n", AddressError::BadCharacter),
        ] {
            assert_eq!(text.parse::<Address>(), Err(error), "{text:?}");
        }
        assert_eq!(
            Address::try_from(&b"g.\xff"[..]),
            Err(AddressError::BadCharacter)
        );
    }

    #[test]
    fn the_longest_address_is_1023_bytes() {
        let longest = format!("g.{}", "a".repeat(1021));
        assert!(longest.parse::<Address>().is_ok());
        assert_eq!(
            format!("{longest}a").parse::<Address>(),
            Err(AddressError::TooLong)
        );
        assert_eq!(
            address(&longest).with_suffix("b"),
            Err(AddressError::TooLong)
        );
        assert_eq!(
            Address::try_from(&[b'a'; 1024][..]),
            Err(AddressError::TooLong)
        );
    }

    #[test]
    fn below_means_whole_segments() {
        let host = address("g.host");
        assert!(address("g.host").starts_with_segments(&host));
        assert!(address("g.host.a.b").starts_with_segments(&host));
        assert!(!address("g.hosts.a").starts_with_segments(&host));
        assert!(!address("g.other").starts_with_segments(&host));
        assert_eq!(address("g.host.a.b").segment_after(&host), Some("a"));
        assert_eq!(address("g.host").segment_after(&host), None);
        assert_eq!(address("g.hosts.a").segment_after(&host), None);
        assert_eq!(address("g.host.a.b").suffix_after(&host), Some("a.b"));
    }

    #[test]
    fn suffixes_are_checked() {
        let host = address("g.host");
        assert_eq!(host.with_suffix("a.b"), Ok(address("g.host.a.b")));
        assert_eq!(host.with_suffix(""), Err(AddressError::EmptySegment));
        assert_eq!(host.with_suffix("a."), Err(AddressError::EmptySegment));
        assert_eq!(host.with_suffix("a b"), Err(AddressError::BadCharacter));
        assert!(Address::is_segment("a-1"));
        assert!(!Address::is_segment("a.b"));
        assert!(!Address::is_segment(""));
    }
}
