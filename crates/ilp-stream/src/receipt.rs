//! STREAM receipts: what a receiver got, provable to a third party (RFC 39, deprecated).
//!
//! The third party gives the receiver a nonce and a secret when the payment is set up. The receiver
//! puts a receipt for the total of a stream into its Fulfills, the sender shows the latest one to the
//! third party. The sender cannot check it, only read it.

use std::fmt;

use ring::hmac;

use crate::frame::StreamId;

/// Length of a receipt, bytes.
pub const RECEIPT_LEN: usize = 58;
const VERSION: u8 = 1;
/// What is authenticated: everything before the HMAC.
const SIGNED_LEN: usize = 26;

/// What a receiver needs to make receipts, and a verifier to check them. Printing it does not show
/// the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct ReceiptKey {
    /// Names the payment.
    pub nonce: [u8; 16],
    /// Known to the receiver and the verifier only.
    pub secret: [u8; 32],
}

impl fmt::Debug for ReceiptKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReceiptKey(…)")
    }
}

impl ReceiptKey {
    /// A receipt. None for a stream whose number does not fit the format.
    pub fn issue(&self, stream: StreamId, total_received: u64) -> Option<Receipt> {
        let number = u8::try_from(stream.0).ok()?;
        let mut bytes = [0; RECEIPT_LEN];
        bytes[0] = VERSION;
        bytes[1..17].copy_from_slice(&self.nonce);
        bytes[17] = number;
        bytes[18..SIGNED_LEN].copy_from_slice(&total_received.to_be_bytes());
        let tag = hmac::sign(&self.key(), &bytes[..SIGNED_LEN]);
        bytes[SIGNED_LEN..].copy_from_slice(tag.as_ref());
        Some(Receipt(bytes))
    }

    /// Whether a receipt was made with this nonce and secret.
    pub fn verify(&self, receipt: &Receipt) -> bool {
        let (signed, tag) = receipt.0.split_at(SIGNED_LEN);
        receipt.nonce() == self.nonce && hmac::verify(&self.key(), signed, tag).is_ok()
    }

    fn key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.secret)
    }
}

/// A receipt as it travels. Whether it is true only its verifier can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt([u8; RECEIPT_LEN]);

impl Receipt {
    /// Reads a receipt; none if it has another length or version.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let receipt = Self(bytes.try_into().ok()?);
        (receipt.0[0] == VERSION).then_some(receipt)
    }

    /// The bytes, to be shown to the verifier.
    pub fn as_bytes(&self) -> &[u8; RECEIPT_LEN] {
        &self.0
    }

    /// Names the payment.
    pub fn nonce(&self) -> [u8; 16] {
        let mut nonce = [0; 16];
        nonce.copy_from_slice(&self.0[1..17]);
        nonce
    }

    /// The stream that it is about.
    pub fn stream(&self) -> StreamId {
        StreamId(u64::from(self.0[17]))
    }

    /// What the receiver had got on that stream, in its units.
    pub fn total_received(&self) -> u64 {
        let mut total = [0; 8];
        total.copy_from_slice(&self.0[18..SIGNED_LEN]);
        u64::from_be_bytes(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `ilp-protocol-stream/test/util/receipt.spec.ts` of interledgerjs.
    #[test]
    fn receipt_of_interledgerjs() {
        let key = ReceiptKey {
            nonce: [0; 16],
            secret: [0; 32],
        };
        let text =
            "AQAAAAAAAAAAAAAAAAAAAAABAAAAAAAAAfTBIvoCUt67Zy1ZGCP3EOmVFtZzhc85fah8yPnoyL9RMA==";
        let bytes = data_encoding::BASE64.decode(text.as_bytes()).unwrap();
        let receipt = key.issue(StreamId(1), 500).unwrap();
        assert_eq!(receipt.as_bytes(), &bytes[..]);
        let read = Receipt::from_bytes(&bytes).unwrap();
        assert!(key.verify(&read));
        assert_eq!((read.stream(), read.total_received()), (StreamId(1), 500));
        assert_eq!(read.nonce(), key.nonce);
    }

    #[test]
    fn a_changed_receipt_does_not_verify() {
        let key = ReceiptKey {
            nonce: [3; 16],
            secret: [4; 32],
        };
        let receipt = key.issue(StreamId(7), u64::MAX).unwrap();
        assert!(key.verify(&receipt));
        for at in 1..RECEIPT_LEN {
            let mut bytes = *receipt.as_bytes();
            bytes[at] ^= 1;
            assert!(
                !key.verify(&Receipt::from_bytes(&bytes).unwrap()),
                "byte {at}"
            );
        }
        let mut other_version = *receipt.as_bytes();
        other_version[0] = 2;
        assert_eq!(Receipt::from_bytes(&other_version), None);
        assert_eq!(Receipt::from_bytes(&receipt.as_bytes()[1..]), None);
        assert_eq!(key.issue(StreamId(256), 1), None);
        assert!(!format!("{key:?}").contains('4'));
    }
}
