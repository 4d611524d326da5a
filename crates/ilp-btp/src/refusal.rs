//! The body of a BTP Error frame: why a request got no reply of its own protocol.
//!
//! An ILP Prepare that fails is answered by an ILP Reject inside a Response. A BTP Error is only
//! for requests that cannot be answered that way: bad credentials, a Transfer, a Message without an
//! ILP packet.

use std::fmt;

use bytes::Bytes;
use ilp_packet::Timestamp;

/// Code of a BTP Error (RFC 23, "Error codes").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RefusalCode {
    /// T00: the other side cannot be reached just now.
    Unreachable,
    /// F00: the request is not accepted.
    NotAccepted,
    /// F01: the request's fields are wrong.
    InvalidFields,
    /// Any other three bytes, such as the historical F03 to F08.
    Other([u8; 3]),
}

impl RefusalCode {
    /// The three bytes on the wire.
    #[must_use]
    pub fn bytes(self) -> [u8; 3] {
        match self {
            Self::Unreachable => *b"T00",
            Self::NotAccepted => *b"F00",
            Self::InvalidFields => *b"F01",
            Self::Other(bytes) => bytes,
        }
    }

    /// The name that RFC 23 gives to the code.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "UnreachableError",
            Self::NotAccepted => "NotAcceptedError",
            Self::InvalidFields => "InvalidFieldsError",
            Self::Other(_) => "UnknownError",
        }
    }
}

impl From<[u8; 3]> for RefusalCode {
    fn from(bytes: [u8; 3]) -> Self {
        match &bytes {
            b"T00" => Self::Unreachable,
            b"F00" => Self::NotAccepted,
            b"F01" => Self::InvalidFields,
            _ => Self::Other(bytes),
        }
    }
}

impl fmt::Display for RefusalCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.bytes()))
    }
}

/// What a BTP Error frame says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The code.
    pub code: RefusalCode,
    /// The code's name as the peer wrote it.
    pub name: String,
    /// When it happened, as the peer wrote it (a GeneralizedTime). Nothing is decided by it.
    pub triggered_at: String,
    /// Free text for a person, UTF-8 by convention.
    pub data: Bytes,
}

impl Refusal {
    /// A refusal of our own at the wall-clock time `at`.
    #[must_use]
    pub fn new(code: RefusalCode, at: Timestamp, text: &str) -> Self {
        Self {
            code,
            name: code.name().to_owned(),
            triggered_at: generalized_time(at),
            data: Bytes::copy_from_slice(text.as_bytes()),
        }
    }

    /// The free text, with unreadable bytes replaced.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.data).into_owned()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.code, self.name, self.text())
    }
}

/// `20261123152655.841Z`: always three digits of milliseconds.
///
/// RFC 30 wants trailing zeros dropped, but the parser of btp-packet expects exactly three digits,
/// and it is what every JavaScript peer uses.
fn generalized_time(at: Timestamp) -> String {
    let digits = at.to_string();
    let (seconds, millis) = digits.split_at(digits.len().saturating_sub(3));
    format!("{seconds}.{millis}Z")
}
