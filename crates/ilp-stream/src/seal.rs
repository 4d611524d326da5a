//! Sealing of STREAM packets, and the conditions that follow from the sealed bytes (RFC 29
//! sections 5.1 and 6).
//!
//! The envelope is `IV (12) | tag (16) | ciphertext` of AES-256-GCM without additional data. The
//! tag stands before the ciphertext, as in the JavaScript implementation, and not behind it, where
//! most libraries put it. The fulfillment is an HMAC of the whole envelope, so each sealed packet
//! has its own condition and only the two ends can know its fulfillment.

use std::fmt;

use ilp_packet::{Condition, Fulfillment, MAX_DATA};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hmac;

const IV_LEN: usize = 12;
const TAG_LEN: usize = 16;

/// Bytes that sealing adds.
pub const SEAL_OVERHEAD: usize = IV_LEN + TAG_LEN;
/// Longest plaintext that fits the data of an ILP packet, bytes.
pub const MAX_PLAINTEXT: usize = MAX_DATA - SEAL_OVERHEAD;

/// Where random bytes come from. It must be unpredictable outside of tests: a repeated IV gives away
/// the key of the connection.
pub trait Entropy {
    /// Fills `bytes` with random bytes.
    fn fill(&mut self, bytes: &mut [u8]);
}

impl<E: Entropy + ?Sized> Entropy for Box<E> {
    fn fill(&mut self, bytes: &mut [u8]) {
        (**self).fill(bytes);
    }
}

/// The secret that both ends of a connection have. Printing it shows nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct SharedSecret(pub [u8; 32]);

impl fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedSecret(…)")
    }
}

/// Why an envelope could not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The envelope was not made with this secret, or was changed on the way. Nothing is known
    /// about who sent it.
    #[error("packet is not sealed with the secret of this connection")]
    NotOurs,
    /// The plaintext does not fit a packet; our own caller has to make it shorter.
    #[error("packet of {0} bytes is too long to be sealed")]
    TooLong(usize),
}

/// The keys of one connection.
pub struct Keys {
    seal: LessSafeKey,
    fulfill: hmac::Key,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(…)")
    }
}

impl Keys {
    /// Derives the keys. Secrets of any length work; 32 bytes are what everybody uses.
    pub fn new(shared_secret: &[u8]) -> Self {
        let encryption = derive(shared_secret, b"ilp_stream_encryption");
        let fulfillment = derive(shared_secret, b"ilp_stream_fulfillment");
        #[expect(
            clippy::unwrap_used,
            reason = "an HMAC-SHA256 has exactly the length of the key"
        )]
        let key = UnboundKey::new(&AES_256_GCM, encryption.as_ref()).unwrap();
        Self {
            seal: LessSafeKey::new(key),
            fulfill: hmac::Key::new(hmac::HMAC_SHA256, fulfillment.as_ref()),
        }
    }

    /// Seals `plaintext` with an IV that must never have been used with this secret.
    pub fn seal(&self, iv: [u8; IV_LEN], plaintext: &[u8]) -> Result<Vec<u8>, SealError> {
        if plaintext.len() > MAX_PLAINTEXT {
            return Err(SealError::TooLong(plaintext.len()));
        }
        let mut envelope = Vec::with_capacity(plaintext.len() + SEAL_OVERHEAD);
        envelope.extend_from_slice(&iv);
        envelope.extend_from_slice(&[0; TAG_LEN]);
        envelope.extend_from_slice(plaintext);
        let nonce = Nonce::assume_unique_for_key(iv);
        let tag = self
            .seal
            .seal_in_place_separate_tag(nonce, Aad::empty(), &mut envelope[SEAL_OVERHEAD..])
            .map_err(|_| SealError::TooLong(plaintext.len()))?;
        envelope[IV_LEN..SEAL_OVERHEAD].copy_from_slice(tag.as_ref());
        Ok(envelope)
    }

    /// Opens an envelope.
    pub fn open(&self, envelope: &[u8]) -> Result<Vec<u8>, SealError> {
        let (iv, rest) = envelope
            .split_first_chunk::<IV_LEN>()
            .ok_or(SealError::NotOurs)?;
        let (tag, ciphertext) = rest
            .split_first_chunk::<TAG_LEN>()
            .ok_or(SealError::NotOurs)?;
        let mut buffer = Vec::with_capacity(ciphertext.len() + TAG_LEN);
        buffer.extend_from_slice(ciphertext);
        buffer.extend_from_slice(tag);
        let nonce = Nonce::assume_unique_for_key(*iv);
        self.seal
            .open_in_place(nonce, Aad::empty(), &mut buffer)
            .map_err(|_| SealError::NotOurs)?;
        buffer.truncate(ciphertext.len());
        Ok(buffer)
    }

    /// The fulfillment of a Prepare whose data is `envelope`.
    pub fn fulfillment(&self, envelope: &[u8]) -> Fulfillment {
        Fulfillment(to_array(&hmac::sign(&self.fulfill, envelope)))
    }

    /// The condition of a Prepare whose data is `envelope`.
    pub fn condition(&self, envelope: &[u8]) -> Condition {
        self.fulfillment(envelope).condition()
    }
}

pub(crate) fn derive(key: &[u8], label: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), label)
}

pub(crate) fn to_array(tag: &hmac::Tag) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(tag.as_ref());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base64(text: &str) -> Vec<u8> {
        data_encoding::BASE64.decode(text.as_bytes()).unwrap()
    }

    /// `ilp-protocol-stream/test/crypto.spec.ts` of interledgerjs.
    #[test]
    fn derived_keys() {
        assert_eq!(
            derive(b"foo", b"ilp_stream_encryption").as_ref(),
            base64("zfOGMU/uY+EOUCE6tN3WhE77bF/N6pS0wSOmMgEAMEA=")
        );
        assert_eq!(
            derive(b"foo", b"ilp_stream_fulfillment").as_ref(),
            base64("lh8nGJCJosvfUePaU0uxxXK3jNvV2Y+5ivt1GH1Muhs=")
        );
        assert_eq!(
            derive(&[0; 32], b"foo").as_ref(),
            base64("DA2Y9+PZ1F5y6Id7wbEEMn77nAexjy/+ztdtgTB/H/8=")
        );
    }

    /// The same file: an envelope with the tag before the ciphertext.
    #[test]
    fn envelope_of_interledgerjs() {
        let key = base64("AOStyoBvoK9/OFhdmf2TzQRrJsCkxH/cj49Ya7RFOEc=");
        let envelope = base64("Y1UiXpDA1GwAv+h95CEv67O49MOAJQrnYEQMrOFsbv6rrlE=");
        let keys = Keys {
            seal: LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).unwrap()),
            fulfill: hmac::Key::new(hmac::HMAC_SHA256, b""),
        };
        assert_eq!(keys.open(&envelope).unwrap(), b"foo bar");
        let mut iv = [0; 12];
        iv.copy_from_slice(&envelope[..12]);
        assert_eq!(keys.seal(iv, b"foo bar").unwrap(), envelope);
    }

    #[test]
    fn what_was_changed_or_is_of_another_secret_does_not_open() {
        let keys = Keys::new(&[1; 32]);
        let envelope = keys.seal([9; 12], b"hello").unwrap();
        assert_eq!(keys.open(&envelope).unwrap(), b"hello");
        for at in 0..envelope.len() {
            let mut changed = envelope.clone();
            changed[at] ^= 1;
            assert_eq!(keys.open(&changed), Err(SealError::NotOurs), "byte {at}");
        }
        for len in 0..envelope.len() {
            assert_eq!(keys.open(&envelope[..len]), Err(SealError::NotOurs));
        }
        assert_eq!(Keys::new(&[2; 32]).open(&envelope), Err(SealError::NotOurs));
    }

    #[test]
    fn the_longest_plaintext_fills_a_packet() {
        let keys = Keys::new(&[1; 32]);
        assert_eq!(
            keys.seal([0; 12], &vec![0; MAX_PLAINTEXT]).unwrap().len(),
            MAX_DATA
        );
        assert_eq!(
            keys.seal([0; 12], &vec![0; MAX_PLAINTEXT + 1]),
            Err(SealError::TooLong(MAX_PLAINTEXT + 1))
        );
    }

    #[test]
    fn secrets_are_not_printed() {
        assert_eq!(
            format!("{:?}{:?}", SharedSecret([7; 32]), Keys::new(b"x")).find('7'),
            None
        );
    }
}
