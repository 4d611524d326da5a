//! Ranges of addresses, as `10.0.0.0/8` and `2001:db8::/32`.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// A range of IPv4 addresses. Nothing is set below its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv4Range {
    network: Ipv4Addr,
    prefix_len: u8,
}

impl Ipv4Range {
    /// For the tables of this crate: what is below the prefix is cut off.
    pub(crate) const fn of(octets: [u8; 4], prefix_len: u8) -> Self {
        let mask = mask_v4(prefix_len);
        Self {
            network: Ipv4Addr::from_bits(u32::from_be_bytes(octets) & mask),
            prefix_len,
        }
    }

    pub const fn network(self) -> Ipv4Addr {
        self.network
    }

    pub const fn prefix_len(self) -> u8 {
        self.prefix_len
    }

    /// The highest address in it.
    pub const fn last(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() | !mask_v4(self.prefix_len))
    }

    pub const fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask_v4(self.prefix_len) == self.network.to_bits()
    }

    /// Whether some address is in both. Of two ranges that overlap one lies within the other.
    pub const fn overlaps(self, other: Self) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }
}

impl From<Ipv4Addr> for Ipv4Range {
    fn from(address: Ipv4Addr) -> Self {
        Self {
            network: address,
            prefix_len: 32,
        }
    }
}

impl fmt::Display for Ipv4Range {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.network, self.prefix_len)
    }
}

impl TryFrom<String> for Ipv4Range {
    type Error = InvalidRange;

    fn try_from(text: String) -> Result<Self, InvalidRange> {
        text.parse()
    }
}

impl From<Ipv4Range> for String {
    fn from(range: Ipv4Range) -> Self {
        range.to_string()
    }
}

/// The text is no range. The message says what one looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidRange {
    text: String,
    reason: &'static str,
}

impl fmt::Display for InvalidRange {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (text, reason) = (&self.text, self.reason);
        write!(
            out,
            "{text:?} is no range of IPv4 addresses such as 10.0.0.0/8: {reason}"
        )
    }
}

impl std::error::Error for InvalidRange {}

impl FromStr for Ipv4Range {
    type Err = InvalidRange;

    /// An address by itself is a range of one.
    fn from_str(text: &str) -> Result<Self, InvalidRange> {
        let wrong = |reason| InvalidRange {
            // Whatever was given, an answer quotes only so much of it.
            text: text.chars().take(MAX_QUOTED_CHARS).collect(),
            reason,
        };
        let (network, prefix_len) = text.split_once('/').unwrap_or((text, "32"));
        let network: Ipv4Addr = network
            .parse()
            .map_err(|_| wrong("it does not begin with an address"))?;
        let digits = !prefix_len.is_empty() && prefix_len.bytes().all(|byte| byte.is_ascii_digit());
        let prefix_len: u8 = digits
            .then(|| prefix_len.parse().ok())
            .flatten()
            .filter(|length| *length <= 32)
            .ok_or_else(|| wrong("its length is not 0 to 32"))?;
        let range = Self {
            network,
            prefix_len,
        };
        if range.contains(network) {
            Ok(range)
        } else {
            Err(wrong("it has bits below its length"))
        }
    }
}

/// Characters of a wrong text that its error repeats.
const MAX_QUOTED_CHARS: usize = 64;

const fn mask_v4(prefix_len: u8) -> u32 {
    match prefix_len {
        0 => 0,
        length => u32::MAX << (32 - length),
    }
}

/// A range of IPv6 addresses, for the tables of this crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ipv6Range {
    network: Ipv6Addr,
    prefix_len: u8,
}

impl Ipv6Range {
    pub(crate) const fn of(segments: [u16; 8], prefix_len: u8) -> Self {
        let [a, b, c, d, e, f, g, h] = segments;
        Self {
            network: Ipv6Addr::new(a, b, c, d, e, f, g, h),
            prefix_len,
        }
    }

    pub const fn contains(self, address: Ipv6Addr) -> bool {
        let mask = match self.prefix_len {
            0 => 0,
            length => u128::MAX << (128 - length),
        };
        address.to_bits() & mask == self.network.to_bits()
    }
}

impl fmt::Display for Ipv6Range {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.network, self.prefix_len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_what_it_prints() {
        for text in ["0.0.0.0/0", "10.0.0.0/8", "100.64.0.0/10", "1.2.3.4/32"] {
            assert_eq!(text.parse::<Ipv4Range>().unwrap().to_string(), text);
        }
        let one: Ipv4Range = "1.2.3.4".parse().unwrap();
        assert_eq!(one.to_string(), "1.2.3.4/32");
    }

    #[test]
    fn what_is_no_range_is_refused_with_its_reason() {
        for (text, reason) in [
            ("", "begin with an address"),
            ("10.0.0/8", "begin with an address"),
            ("::/8", "begin with an address"),
            ("10.0.0.0/", "0 to 32"),
            ("10.0.0.0/33", "0 to 32"),
            ("10.0.0.0/+8", "0 to 32"),
            ("10.0.0.0/8/8", "0 to 32"),
            ("10.0.0.1/8", "below its length"),
        ] {
            let error = text.parse::<Ipv4Range>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
        let long = "x".repeat(100_000).parse::<Ipv4Range>().unwrap_err();
        assert!(long.to_string().len() < 200);
    }

    #[test]
    fn the_ends_of_a_range_are_in_it_and_their_neighbours_are_not() {
        let range: Ipv4Range = "172.16.0.0/12".parse().unwrap();
        assert!(range.contains(Ipv4Addr::new(172, 16, 0, 0)));
        assert!(range.contains(range.last()));
        assert_eq!(range.last(), Ipv4Addr::new(172, 31, 255, 255));
        assert!(!range.contains(Ipv4Addr::new(172, 15, 255, 255)));
        assert!(!range.contains(Ipv4Addr::new(172, 32, 0, 0)));
    }

    #[test]
    fn ranges_overlap_if_one_is_within_the_other() {
        let [wide, inner, beside] = ["10.0.0.0/8", "10.9.0.0/16", "11.0.0.0/8"]
            .map(|text| text.parse::<Ipv4Range>().unwrap());
        assert!(wide.overlaps(inner) && inner.overlaps(wide));
        assert!(!wide.overlaps(beside));
    }
}
