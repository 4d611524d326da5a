//! Who is paid, and how an address says it.

use codius_manifest::ManifestHash;

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

impl Payee {
    const HOST: u8 = 0;
    const LEASE: u8 = 1;

    /// What a token says: the kind, a nonce, and for a lease its hash.
    pub(super) fn tag(self, nonce: [u8; NONCE_LEN]) -> Vec<u8> {
        let (kind, hash): (u8, &[u8]) = match &self {
            Self::Host => (Self::HOST, &[]),
            Self::Lease(hash) => (Self::LEASE, hash.as_bytes()),
        };
        [&[kind], &nonce[..], hash].concat()
    }

    pub(super) fn of_tag(tag: &[u8]) -> Option<Self> {
        let (kind, rest) = tag.split_first()?;
        let (_nonce, hash) = rest.split_first_chunk::<NONCE_LEN>()?;
        match (*kind, hash) {
            (Self::HOST, []) => Some(Self::Host),
            (Self::LEASE, hash) => {
                Some(Self::Lease(ManifestHash::from_bytes(hash.try_into().ok()?)))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use ilp_stream::server::ServerSecret;

    use super::*;

    fn hash(byte: u8) -> ManifestHash {
        ManifestHash::from_bytes([byte; 32])
    }

    #[test]
    fn a_tag_says_who_is_paid_and_its_nonce_is_in_it() {
        for payee in [Payee::Host, Payee::Lease(hash(7))] {
            let (one, two) = (payee.tag([1; NONCE_LEN]), payee.tag([2; NONCE_LEN]));
            assert_ne!(one, two);
            for tag in [one, two] {
                assert_eq!(Payee::of_tag(&tag), Some(payee));
                // Neither more nor less.
                assert_eq!(Payee::of_tag(&tag[..tag.len() - 1]), None);
                assert_eq!(Payee::of_tag(&[&tag[..], &[0]].concat()), None);
            }
        }
        assert_eq!(Payee::of_tag(&[2; 1 + NONCE_LEN]), None);
        assert_eq!(Payee::of_tag(&[]), None);
    }

    #[test]
    fn a_tag_survives_the_token_and_other_tokens_are_not_heard() {
        let server = ServerSecret::new(&[1; 32]);
        let tag = Payee::Lease(hash(9)).tag([5; NONCE_LEN]);
        let token = server.generate(&tag).unwrap().token;
        let opened = server.open(&token).unwrap();
        assert_eq!(Payee::of_tag(&opened.tag), Some(Payee::Lease(hash(9))));
        // An order's tag is 32 bytes, whatever they are.
        for kind in [Payee::HOST, Payee::LEASE] {
            assert_eq!(Payee::of_tag(&[kind; 32]), None);
        }
    }
}
