//! Keys of Ed25519 (RFC 8032) and their text.

use std::{fmt, str::FromStr};

use data_encoding::BASE64URL_NOPAD;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

/// The text is not 32 bytes in base64url without padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not 32 bytes in base64url without padding")]
pub struct InvalidKey;

/// A key pair: who has it can sign.
pub struct Key {
    seed: [u8; 32],
    pair: Ed25519KeyPair,
}

impl Key {
    /// From 32 random bytes, which are the secret.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed)
            .expect("every seed of 32 bytes is a key of Ed25519");
        Self { seed, pair }
    }

    /// The name of the key, which everybody may know.
    pub fn id(&self) -> KeyId {
        let public = self.pair.public_key().as_ref();
        KeyId(
            public
                .try_into()
                .expect("a public key of Ed25519 has 32 bytes"),
        )
    }

    /// The secret as the key file has it: base64url without padding.
    pub fn to_secret_text(&self) -> String {
        BASE64URL_NOPAD.encode(&self.seed)
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }
}

/// Reads what [`Key::to_secret_text`] writes.
impl FromStr for Key {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        decode(text).map(Self::from_seed)
    }
}

/// Without the secret.
impl fmt::Debug for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Key")
            .field("id", &self.id())
            .finish_non_exhaustive()
    }
}

/// A public key. Its text is base64url without padding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; 32]);

impl KeyId {
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether it is this key that has signed the message.
    pub(crate) fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0)
            .verify(message, signature)
            .is_ok()
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&BASE64URL_NOPAD.encode(&self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "KeyId({self})")
    }
}

impl FromStr for KeyId {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        decode(text).map(Self)
    }
}

fn decode(text: &str) -> Result<[u8; 32], InvalidKey> {
    let bytes = BASE64URL_NOPAD
        .decode(text.as_bytes())
        .map_err(|_| InvalidKey)?;
    bytes.try_into().map_err(|_| InvalidKey)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_text() {
        let key = Key::from_seed([7; 32]);
        let again: Key = key.to_secret_text().parse().unwrap();
        assert_eq!(key.id(), again.id());
        assert_eq!(key.id().to_string().parse(), Ok(key.id()));
        assert!(!format!("{key:?}").contains(&key.to_secret_text()));
        for text in ["", "AAAA", &format!("{}=", key.id()), &"+".repeat(43)] {
            assert_eq!(text.parse::<KeyId>(), Err(InvalidKey), "{text}");
        }
        // The last letter has bits that no byte uses: they must be zero.
        let other_bits = format!("{}B", "A".repeat(42));
        assert_eq!(other_bits.parse::<KeyId>(), Err(InvalidKey));
    }
}
