//! The name of a program.

use std::{fmt, str::FromStr};

use data_encoding::Specification;
use serde::{Deserialize, Serialize};

/// `base32(sha256(canonical(manifest)))`: the name of a program everywhere. 52 characters, lower case,
/// no padding (RFC 4648 alphabet); parsed in any case.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ManifestHash([u8; 32]);

impl ManifestHash {
    /// Characters of its text form.
    pub const TEXT_LEN: usize = 52;

    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

fn base32() -> &'static data_encoding::Encoding {
    static ENCODING: std::sync::LazyLock<data_encoding::Encoding> =
        std::sync::LazyLock::new(|| {
            let mut spec = Specification::new();
            spec.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
            spec.translate.from.push_str("ABCDEFGHIJKLMNOPQRSTUVWXYZ");
            spec.translate.to.push_str("abcdefghijklmnopqrstuvwxyz");
            spec.encoding()
                .expect("the RFC 4648 alphabet in lower case is a valid base 32")
        });
    &ENCODING
}

impl fmt::Display for ManifestHash {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&base32().encode(&self.0))
    }
}

impl fmt::Debug for ManifestHash {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// The text is not 52 characters of base 32 that stand for 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a manifest hash (52 characters a-z, 2-7)")]
pub struct InvalidHash;

impl FromStr for ManifestHash {
    type Err = InvalidHash;

    fn from_str(text: &str) -> Result<Self, InvalidHash> {
        if text.len() != Self::TEXT_LEN {
            return Err(InvalidHash);
        }
        let bytes = base32().decode(text.as_bytes()).map_err(|_| InvalidHash)?;
        Ok(Self(bytes.try_into().map_err(|_| InvalidHash)?))
    }
}

impl Serialize for ManifestHash {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ManifestHash {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        <std::borrow::Cow<'de, str>>::deserialize(from)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}
