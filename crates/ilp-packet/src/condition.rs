//! Conditions and fulfillments (RFC 27): a payment is due exactly when somebody shows 32 bytes whose
//! SHA-256 is the condition.

use std::fmt;

use ring::digest;

/// SHA-256 of the fulfillment; travels in a Prepare. Public.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Condition(pub [u8; 32]);

/// The preimage of a [`Condition`]; travels in a Fulfill, and is a secret until then.
///
/// Comparison is not in constant time: fulfillments are compared through their conditions.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fulfillment(pub [u8; 32]);

impl Fulfillment {
    /// The condition that this fulfils.
    pub fn condition(&self) -> Condition {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, &self.0).as_ref());
        Condition(hash)
    }
}

impl Condition {
    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in &self.0[..6] {
            write!(f, "{byte:02x}")?;
        }
        f.write_str("…")
    }
}

/// Says nothing: a log must not give away a payment.
impl fmt::Debug for Fulfillment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fulfillment(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The condition of ILDCP: SHA-256 of 32 zero bytes.
    #[test]
    fn condition_of_zeros() {
        let hex = "66687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925";
        let expected = data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap();
        assert_eq!(Fulfillment([0; 32]).condition().as_bytes()[..], expected);
    }
}
