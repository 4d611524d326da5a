//! Sizes of pods: what a manifest calls them, and what they are on a host.
//!
//! Version 1 knows one, `small`, which is the same on every host. In version 2 a host's operator names
//! others; what such a name stands for is the host's to say (`GET /api/v2/host`).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize, de};

/// What a pod may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Machine {
    /// Virtual processors.
    pub vcpus: u8,
    /// Memory for the programs; what the guest's own system needs comes on top.
    pub memory_mib: u32,
    /// The writable disk.
    pub scratch_mib: u32,
}

impl Machine {
    /// `machine: small` of the v1 manifest.
    pub const SMALL: Self = Self {
        vcpus: 1,
        memory_mib: 512,
        scratch_mib: 1024,
    };
}

/// A size of pods as a host sells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Size {
    pub name: MachineName,
    pub machine: Machine,
}

impl Size {
    pub const SMALL: Self = Self {
        name: MachineName::SMALL,
        machine: Machine::SMALL,
    };
}

impl Default for Size {
    fn default() -> Self {
        Self::SMALL
    }
}

/// The name of a size: 1 to [`MachineName::MAX_BYTES`] lower-case letters, digits and hyphens, beginning
/// with a letter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineName {
    /// Zeros behind the text, so that equal names are equal bytes.
    bytes: [u8; Self::MAX_BYTES],
}

/// The text is not the name of a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not the name of a machine (1 to {} lower-case letters, digits and hyphens, first a letter)",
    MachineName::MAX_BYTES
)]
pub struct InvalidMachineName;

impl MachineName {
    pub const MAX_BYTES: usize = 16;
    /// The one size of version 1: one virtual processor, 512 MiB.
    pub const SMALL: Self = Self {
        bytes: *b"small\0\0\0\0\0\0\0\0\0\0\0",
    };

    pub fn as_str(&self) -> &str {
        let end = self.bytes.iter().position(|byte| *byte == 0);
        let text = &self.bytes[..end.unwrap_or(Self::MAX_BYTES)];
        std::str::from_utf8(text).expect("a name is ASCII")
    }
}

impl Default for MachineName {
    fn default() -> Self {
        Self::SMALL
    }
}

impl FromStr for MachineName {
    type Err = InvalidMachineName;

    fn from_str(text: &str) -> Result<Self, InvalidMachineName> {
        let fits = (1..=Self::MAX_BYTES).contains(&text.len())
            && text.starts_with(|first: char| first.is_ascii_lowercase())
            && text
                .bytes()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        if !fits {
            return Err(InvalidMachineName);
        }
        let mut bytes = [0; Self::MAX_BYTES];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Self { bytes })
    }
}

impl fmt::Display for MachineName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

impl fmt::Debug for MachineName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?}", self.as_str())
    }
}

impl Serialize for MachineName {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for MachineName {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        <std::borrow::Cow<'de, str>>::deserialize(from)?
            .parse()
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_plain() {
        assert_eq!(MachineName::SMALL.as_str(), "small");
        for name in ["small", "m", "gpu-2x", "abcdefghijklmnop"] {
            let parsed: MachineName = name.parse().unwrap();
            assert_eq!(parsed.as_str(), name);
            assert_eq!(parsed == MachineName::SMALL, name == "small");
        }
        for text in [
            "",
            "Small",
            "2x",
            "-a",
            "a b",
            "a\0",
            "größe",
            "abcdefghijklmnopq",
        ] {
            assert_eq!(
                text.parse::<MachineName>(),
                Err(InvalidMachineName),
                "{text:?}"
            );
        }
    }
}
