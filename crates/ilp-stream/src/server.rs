//! Addresses and secrets of a server, without state (RFC 29 section 4.1).
//!
//! A server gives each client an address of its own and a secret. Both follow from one server
//! secret and a *tag* that the server chooses (for the host: what the payment is for). The tag
//! travels, encrypted, as one segment of the address, so nothing has to be remembered until the
//! first packet arrives.
//!
//! The token is a synthetic-IV encryption: `mac = HMAC(k1, tag)`, `token = mac | tag xor mask`, where
//! the mask is `HMAC(k2, mac)`, and `HMAC(k2, mac | n)` for the blocks after the first. The same tag
//! gives the same token, a token that we did not make fails its MAC after a few short HMACs and leaves
//! nothing behind, and connectors on the way cannot read the tag, which may be a bearer token of the
//! client.

use std::fmt;

use ring::hmac;

use crate::seal::{SharedSecret, derive, to_array};

/// Longest tag, bytes: room for a hash of 32, a nonce, and what a receipt is made with (RFC 39: a
/// nonce of 16 and a secret of 32).
pub const MAX_TAG: usize = 96;
const MAC_LEN: usize = 16;
/// Bytes of the tag that one HMAC hides.
const MASK_BLOCK: usize = 32;

/// The tag is longer than [`MAX_TAG`]. Our own caller has to hash it first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("tag of {0} bytes is longer than {MAX_TAG}")]
pub struct TagTooLong(pub usize);

/// What a client is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The segment to append to the address of the server. At most 150 characters; 64 for a tag of 32
    /// bytes.
    pub token: String,
    /// The secret of the connection.
    pub shared_secret: SharedSecret,
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// The tag that the server chose.
    pub tag: Vec<u8>,
    /// The secret of the connection.
    pub shared_secret: SharedSecret,
}

/// The secret of a server.
pub struct ServerSecret {
    mac: hmac::Key,
    mask: hmac::Key,
    secret: hmac::Key,
}

impl fmt::Debug for ServerSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerSecret(…)")
    }
}

impl ServerSecret {
    /// From 32 random bytes, which must stay the same as long as tokens shall be valid.
    pub fn new(secret: &[u8; 32]) -> Self {
        let key = |label| hmac::Key::new(hmac::HMAC_SHA256, derive(secret, label).as_ref());
        Self {
            mac: key(b"codius_stream_token_mac"),
            mask: key(b"codius_stream_token_mask"),
            secret: key(b"codius_stream_shared_secret"),
        }
    }

    /// The credentials for `tag`.
    pub fn generate(&self, tag: &[u8]) -> Result<Credentials, TagTooLong> {
        if tag.len() > MAX_TAG {
            return Err(TagTooLong(tag.len()));
        }
        let mac = self.mac(tag);
        let mut token = mac.to_vec();
        token.extend(self.masked(&mac, tag));
        Ok(Credentials {
            token: data_encoding::BASE64URL_NOPAD.encode(&token),
            shared_secret: self.shared_secret(tag),
        })
    }

    /// What a token of ours says; none for everything else.
    pub fn open(&self, token: &str) -> Option<Opened> {
        if token.len() > (MAC_LEN + MAX_TAG).div_ceil(3) * 4 {
            return None;
        }
        let token = data_encoding::BASE64URL_NOPAD
            .decode(token.as_bytes())
            .ok()?;
        let (mac, masked) = token.split_first_chunk::<MAC_LEN>()?;
        if masked.len() > MAX_TAG {
            return None;
        }
        let tag = self.masked(mac, masked);
        // Comparing through another HMAC takes the same time whatever the difference is.
        let expected = hmac::sign(&self.mac, &self.mac(&tag));
        hmac::verify(&self.mac, mac, expected.as_ref()).ok()?;
        let shared_secret = self.shared_secret(&tag);
        Some(Opened { tag, shared_secret })
    }

    fn mac(&self, tag: &[u8]) -> [u8; MAC_LEN] {
        let mut mac = [0; MAC_LEN];
        mac.copy_from_slice(&hmac::sign(&self.mac, tag).as_ref()[..MAC_LEN]);
        mac
    }

    fn masked(&self, mac: &[u8; MAC_LEN], bytes: &[u8]) -> Vec<u8> {
        let mut masked = Vec::with_capacity(bytes.len());
        for (number, block) in (0_u8..).zip(bytes.chunks(MASK_BLOCK)) {
            let mut context = hmac::Context::with_key(&self.mask);
            context.update(mac);
            if number > 0 {
                context.update(&[number]);
            }
            let mask = context.sign();
            masked.extend(
                block
                    .iter()
                    .zip(mask.as_ref())
                    .map(|(byte, mask)| byte ^ mask),
            );
        }
        masked
    }

    fn shared_secret(&self, tag: &[u8]) -> SharedSecret {
        SharedSecret(to_array(&hmac::sign(&self.secret, tag)))
    }
}

#[cfg(test)]
mod tests {
    use ilp_packet::Address;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_token_opens_to_its_tag(secret: [u8; 32], tag in prop::collection::vec(any::<u8>(), 0..=MAX_TAG)) {
            let server = ServerSecret::new(&secret);
            let credentials = server.generate(&tag).unwrap();
            prop_assert!(Address::is_segment(&credentials.token));
            let longest = if tag.len() <= 32 { 64 } else { 150 };
            prop_assert!(credentials.token.len() <= longest);
            let opened = server.open(&credentials.token).unwrap();
            prop_assert_eq!(opened.tag, tag);
            prop_assert_eq!(opened.shared_secret, credentials.shared_secret);
        }

        #[test]
        fn garbage_does_not_open(token in "[A-Za-z0-9_-]{0,170}") {
            prop_assert_eq!(ServerSecret::new(&[3; 32]).open(&token), None);
        }
    }

    #[test]
    fn a_changed_token_or_another_server_does_not_open() {
        let server = ServerSecret::new(&[1; 32]);
        let token = server.generate(b"order 7").unwrap().token;
        assert_eq!(ServerSecret::new(&[2; 32]).open(&token), None);
        for at in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(
                server.open(std::str::from_utf8(&changed).unwrap()),
                None,
                "character {at}"
            );
        }
        assert_eq!(server.open(&token[..token.len() - 2]), None);
    }

    #[test]
    fn a_token_does_not_show_its_tag_and_different_tags_share_nothing() {
        let server = ServerSecret::new(&[1; 32]);
        let (a, b) = (
            server.generate(&[0; 32]).unwrap(),
            server.generate(&[1; 32]).unwrap(),
        );
        assert_ne!(a.token[..8], b.token[..8]);
        assert_ne!(a.shared_secret, b.shared_secret);
        let raw = data_encoding::BASE64URL_NOPAD
            .decode(a.token.as_bytes())
            .unwrap();
        assert!(!raw.windows(4).any(|window| window == [0; 4]));
        assert_eq!(server.generate(&[0; 97]), Err(TagTooLong(97)));
    }

    #[test]
    fn each_block_of_a_long_tag_is_hidden_by_a_mask_of_its_own() {
        let token = ServerSecret::new(&[1; 32])
            .generate(&[0; MAX_TAG])
            .unwrap()
            .token;
        let raw = data_encoding::BASE64URL_NOPAD
            .decode(token.as_bytes())
            .unwrap();
        let blocks: Vec<_> = raw[MAC_LEN..].chunks(MASK_BLOCK).collect();
        assert_eq!(blocks.len(), 3);
        assert!(blocks[0] != blocks[1] && blocks[1] != blocks[2] && blocks[0] != blocks[2]);
    }

    /// Tokens that were given out before tags could be longer than 32 bytes must stay valid.
    #[test]
    fn the_token_of_a_short_tag_is_what_it_was() {
        let token = ServerSecret::new(&[1; 32])
            .generate(b"order 7")
            .unwrap()
            .token;
        assert_eq!(token, "x1THcwN3Uzoq-ZhfgO9tYlJ3RhmWzn0");
    }
}
