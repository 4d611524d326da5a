//! Error codes of a Reject (RFC 27), and the data that travels with `F08`.

use std::fmt;

use crate::oer::{OerError, Reader, Writer};

/// Why a packet was rejected. The first letter says what a sender should do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// F00: the sender's packet was wrong in a way that has no better code.
    BadRequest,
    /// F01: the packet could not be understood.
    InvalidPacket,
    /// F02: there is no route to the destination.
    Unreachable,
    /// F03: the amount is invalid, for example zero where that is not allowed.
    InvalidAmount,
    /// F04: the amount that arrived is below what the receiver wants.
    InsufficientDestinationAmount,
    /// F05: the receiver generated a different condition.
    WrongCondition,
    /// F06: the receiver was not expecting a payment like this.
    UnexpectedPayment,
    /// F07: the receiver cannot accept this payment.
    CannotReceive,
    /// F08: the amount is above what a hop carries in one packet; see [`AmountTooLarge`].
    AmountTooLarge,
    /// F99: a final error of the application.
    FinalApplicationError,
    /// T00: something went wrong inside.
    InternalError,
    /// T01: the next hop does not answer.
    PeerUnreachable,
    /// T02: the next hop is overloaded.
    PeerBusy,
    /// T03: this connector is overloaded.
    ConnectorBusy,
    /// T04: there is not enough balance at the moment.
    InsufficientLiquidity,
    /// T05: too many packets.
    RateLimited,
    /// T99: a temporary error of the application.
    TemporaryApplicationError,
    /// R00: the packet expired before it was answered.
    TransferTimedOut,
    /// R01: the amount is too small to be forwarded.
    InsufficientSourceAmount,
    /// R02: too little time is left to forward the packet.
    InsufficientTimeout,
    /// R99: a relative error of the application.
    RelativeApplicationError,
    /// A code that RFC 27 does not list. Always three ASCII bytes when it comes from a packet.
    Other([u8; 3]),
}

/// What a sender may conclude from the first letter of a code (RFC 27).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// Do not send the same again.
    Final,
    /// Try later.
    Temporary,
    /// Try with other values.
    Relative,
}

/// Every listed code, so that both directions come from one table.
const CODES: [(ErrorCode, &[u8; 3]); 21] = [
    (ErrorCode::BadRequest, b"F00"),
    (ErrorCode::InvalidPacket, b"F01"),
    (ErrorCode::Unreachable, b"F02"),
    (ErrorCode::InvalidAmount, b"F03"),
    (ErrorCode::InsufficientDestinationAmount, b"F04"),
    (ErrorCode::WrongCondition, b"F05"),
    (ErrorCode::UnexpectedPayment, b"F06"),
    (ErrorCode::CannotReceive, b"F07"),
    (ErrorCode::AmountTooLarge, b"F08"),
    (ErrorCode::FinalApplicationError, b"F99"),
    (ErrorCode::InternalError, b"T00"),
    (ErrorCode::PeerUnreachable, b"T01"),
    (ErrorCode::PeerBusy, b"T02"),
    (ErrorCode::ConnectorBusy, b"T03"),
    (ErrorCode::InsufficientLiquidity, b"T04"),
    (ErrorCode::RateLimited, b"T05"),
    (ErrorCode::TemporaryApplicationError, b"T99"),
    (ErrorCode::TransferTimedOut, b"R00"),
    (ErrorCode::InsufficientSourceAmount, b"R01"),
    (ErrorCode::InsufficientTimeout, b"R02"),
    (ErrorCode::RelativeApplicationError, b"R99"),
];

impl ErrorCode {
    /// The three bytes on the wire.
    pub fn to_bytes(self) -> [u8; 3] {
        if let Self::Other(bytes) = self {
            return bytes;
        }
        CODES
            .iter()
            .find(|(code, _)| *code == self)
            .map_or(*b"F00", |(_, bytes)| **bytes)
    }

    /// From the three bytes on the wire.
    pub fn from_bytes(bytes: [u8; 3]) -> Self {
        CODES
            .iter()
            .find(|(_, code)| **code == bytes)
            .map_or(Self::Other(bytes), |(code, _)| *code)
    }

    /// What a sender may conclude. A letter that RFC 27 does not know is final: not repeating a
    /// payment is the harmless mistake.
    pub fn class(self) -> ErrorClass {
        match self.to_bytes()[0] {
            b'T' => ErrorClass::Temporary,
            b'R' => ErrorClass::Relative,
            _ => ErrorClass::Final,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.to_bytes().escape_ascii())
    }
}

/// The data of an `F08` Reject: how much arrived at the hop and how much it carries (RFC 27,
/// `InterledgerErrorData.asn`).
///
/// Both are in the units of the hop; a sender scales its own amount by `maximum / received`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AmountTooLarge {
    /// Amount that arrived at the hop.
    pub received: u64,
    /// Largest amount that the hop carries in one packet.
    pub maximum: u64,
}

impl AmountTooLarge {
    /// The 16 bytes.
    pub fn encode(self) -> Vec<u8> {
        let mut writer = Writer::with_capacity(16);
        writer.u64(self.received);
        writer.u64(self.maximum);
        writer.into_vec()
    }

    /// Reads the first 16 bytes.
    pub fn decode(data: &[u8]) -> Result<Self, OerError> {
        let mut reader = Reader::new(data);
        Ok(Self {
            received: reader.u64()?,
            maximum: reader.u64()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_round_trips() {
        for (code, bytes) in CODES {
            assert_eq!(ErrorCode::from_bytes(*bytes), code);
            assert_eq!(code.to_bytes(), *bytes);
        }
        assert_eq!(ErrorCode::from_bytes(*b"F55"), ErrorCode::Other(*b"F55"));
        assert_eq!(ErrorCode::Other(*b"T55").class(), ErrorClass::Temporary);
        assert_eq!(ErrorCode::Other(*b"X55").class(), ErrorClass::Final);
        assert_eq!(ErrorCode::TransferTimedOut.class(), ErrorClass::Relative);
        assert_eq!(ErrorCode::InsufficientLiquidity.to_string(), "T04");
        assert_eq!(ErrorCode::Other(*b"\n00").to_string(), "\\n00");
    }

    #[test]
    fn amount_too_large_is_16_bytes() {
        let data = AmountTooLarge {
            received: 1_000,
            maximum: 300,
        };
        assert_eq!(data.encode().len(), 16);
        assert_eq!(AmountTooLarge::decode(&data.encode()), Ok(data));
        assert_eq!(AmountTooLarge::decode(&[0; 15]), Err(OerError::Truncated));
    }
}
