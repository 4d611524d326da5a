//! What an address says, hidden from everyone but us: who is paid, and with what receipts are made.
//!
//! ```text
//! kind │ nonce of 12 │ hash of 32, for a lease │ nonce of 16 and secret of 32, with receipts
//! ```
//!
//! A verifier of receipts (RFC 39) gives their nonce and secret with its query. They are kept nowhere:
//! they travel in the address, so a query costs us nothing, however many there are, and nothing is
//! forgotten when the daemon starts anew. That is safe because a token is encrypted and not only
//! authenticated (`ilp-stream/src/server.rs`): the payer, who knows the address and must not know the
//! secret, cannot read it, nor can a connector on the way.

use codius_manifest::ManifestHash;
use ilp_stream::ReceiptKey;

/// Bytes of a token that make each query's secret its own.
pub(super) const NONCE_LEN: usize = 12;

/// Who is paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Payee {
    /// The operator, who gives nothing for it.
    Host,
    /// The program, which runs longer.
    Lease(ManifestHash),
}

/// What is agreed on with a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) payee: Payee,
    /// With what the payer's receipts are made, if a verifier wants them.
    pub(crate) receipts: Option<ReceiptKey>,
}

impl Terms {
    const HOST: u8 = 0;
    const LEASE: u8 = 1;
    const HOST_WITH_RECEIPTS: u8 = 2;
    const LEASE_WITH_RECEIPTS: u8 = 3;

    /// The tag of a token, at most 93 bytes long.
    pub(super) fn tag(&self, nonce: [u8; NONCE_LEN]) -> Vec<u8> {
        let (kind, hash): (u8, &[u8]) = match (&self.payee, &self.receipts) {
            (Payee::Host, None) => (Self::HOST, &[]),
            (Payee::Host, Some(_)) => (Self::HOST_WITH_RECEIPTS, &[]),
            (Payee::Lease(hash), None) => (Self::LEASE, hash.as_bytes()),
            (Payee::Lease(hash), Some(_)) => (Self::LEASE_WITH_RECEIPTS, hash.as_bytes()),
        };
        let mut tag = [&[kind], &nonce[..], hash].concat();
        if let Some(ReceiptKey { nonce, secret }) = &self.receipts {
            tag.extend_from_slice(nonce);
            tag.extend_from_slice(secret);
        }
        tag
    }

    pub(super) fn of_tag(tag: &[u8]) -> Option<Self> {
        let (kind, rest) = tag.split_first()?;
        let (_nonce, rest) = rest.split_first_chunk::<NONCE_LEN>()?;
        let (payee, rest) = match *kind {
            Self::HOST | Self::HOST_WITH_RECEIPTS => (Payee::Host, rest),
            Self::LEASE | Self::LEASE_WITH_RECEIPTS => {
                let (hash, rest) = rest.split_first_chunk()?;
                (Payee::Lease(ManifestHash::from_bytes(*hash)), rest)
            }
            _ => return None,
        };
        let receipts = match (*kind, rest) {
            (Self::HOST | Self::LEASE, []) => None,
            (Self::HOST_WITH_RECEIPTS | Self::LEASE_WITH_RECEIPTS, rest) => {
                let (nonce, secret) = rest.split_first_chunk()?;
                Some(ReceiptKey {
                    nonce: *nonce,
                    secret: secret.try_into().ok()?,
                })
            }
            _ => return None,
        };
        Some(Self { payee, receipts })
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::BASE64URL_NOPAD;
    use ilp_stream::{
        ReceiptKey,
        server::{MAX_TAG, ServerSecret},
    };

    use super::*;

    fn hash(byte: u8) -> ManifestHash {
        ManifestHash::from_bytes([byte; 32])
    }

    fn terms() -> Vec<Terms> {
        let receipts = ReceiptKey {
            nonce: [3; 16],
            secret: [4; 32],
        };
        [None, Some(receipts)]
            .into_iter()
            .flat_map(|receipts| {
                [Payee::Host, Payee::Lease(hash(7))].map(|payee| Terms {
                    payee,
                    receipts: receipts.clone(),
                })
            })
            .collect()
    }

    #[test]
    fn a_tag_says_who_is_paid_and_its_nonce_is_in_it() {
        for terms in terms() {
            let (one, two) = (terms.tag([1; NONCE_LEN]), terms.tag([2; NONCE_LEN]));
            assert_ne!(one, two);
            for tag in [one, two] {
                assert!(tag.len() <= MAX_TAG);
                assert_eq!(Terms::of_tag(&tag), Some(terms.clone()));
                // Neither more nor less.
                assert_eq!(Terms::of_tag(&tag[..tag.len() - 1]), None);
                assert_eq!(Terms::of_tag(&[&tag[..], &[0]].concat()), None);
                // One kind is not taken for another.
                for kind in (0..=u8::MAX).filter(|kind| *kind != tag[0]) {
                    let other = [&[kind], &tag[1..]].concat();
                    assert_eq!(Terms::of_tag(&other), None, "{kind}");
                }
            }
        }
        assert_eq!(Terms::of_tag(&[]), None);
    }

    #[test]
    fn a_tag_survives_the_token_and_other_tokens_are_not_heard() {
        let server = ServerSecret::new(&[1; 32]);
        for terms in terms() {
            let token = server.generate(&terms.tag([5; NONCE_LEN])).unwrap().token;
            assert_eq!(
                Terms::of_tag(&server.open(&token).unwrap().tag),
                Some(terms)
            );
        }
        // An order's tag is 32 bytes, whatever they are.
        for kind in 0..=u8::MAX {
            assert_eq!(Terms::of_tag(&[kind; 32]), None);
        }
    }

    /// RFC 39: who forges a receipt has paid nothing, so its secret must not be seen by the payer, who
    /// knows the address.
    #[test]
    fn an_address_does_not_show_the_secret_of_receipts() {
        let server = ServerSecret::new(&[1; 32]);
        for terms in terms().iter().filter(|it| it.receipts.is_some()) {
            let tokens =
                [1, 2].map(|nonce| server.generate(&terms.tag([nonce; NONCE_LEN])).unwrap());
            let [one, two] = tokens.map(|it| BASE64URL_NOPAD.decode(it.token.as_bytes()).unwrap());
            assert_eq!(one.len(), two.len());
            // Neither is it there, nor do two addresses with the same one have a word in common.
            for (one, two) in one.windows(4).zip(two.windows(4)) {
                assert!(one != [4; 4] && two != [4; 4] && one != two);
            }
        }
    }
}
