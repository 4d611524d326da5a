//! The three packets of ILPv4 (RFC 27).
//!
//! A packet is a type byte and its contents with a length in front. Contents may be followed by
//! fields of a later version, which are ignored; bytes after the packet itself are ignored too.
//! Decoding borrows the data field from the input (`Bytes` is reference-counted), so forwarding a
//! packet copies it once, when it is encoded for the next hop.

use bytes::Bytes;

use crate::oer::{self, OerError, Reader, Writer};
use crate::{
    Address, AddressError, Condition, ErrorCode, Fulfillment, MAX_ADDRESS_LEN, TIMESTAMP_LEN,
    Timestamp, TimestampError,
};

/// Type bytes of the packets.
pub mod kind {
    /// A Prepare.
    pub const PREPARE: u8 = 12;
    /// A Fulfill.
    pub const FULFILL: u8 = 13;
    /// A Reject.
    pub const REJECT: u8 = 14;
}

/// Longest data field that we make, bytes (RFC 27).
pub const MAX_DATA: usize = 32_767;
/// Longest data field that we read, bytes. ilp-protocol-stream 2.7.2-alpha.3 fills its plaintext to
/// [`MAX_DATA`] and seals it after that, which makes it 28 bytes longer; ilp-connector passes it on.
pub const MAX_DATA_READ: usize = MAX_DATA + 28;
/// Longest message of a Reject, bytes (RFC 27).
pub const MAX_MESSAGE: usize = 8_191;
/// No packet that keeps the limits above is longer than this, bytes.
pub const MAX_PACKET: usize = 48 * 1024;

/// What comes back for a Prepare.
pub type Reply = Result<Fulfill, Reject>;

/// An offer: this amount, to whom, for which preimage, until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepare {
    /// In units of the account that the packet arrives on.
    pub amount: u64,
    /// After this moment nobody owes anything for the packet.
    pub expires_at: Timestamp,
    /// Hash of the fulfillment that collects the amount.
    pub condition: Condition,
    /// The receiver.
    pub destination: Address,
    /// For the receiver; at most [`MAX_DATA`] bytes.
    pub data: Bytes,
}

/// The proof that a Prepare was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fulfill {
    /// Preimage of the condition.
    pub fulfillment: Fulfillment,
    /// For the sender; at most [`MAX_DATA`] bytes.
    pub data: Bytes,
}

/// The statement that a Prepare was not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// Why, for programs.
    pub code: ErrorCode,
    /// Who rejected; none if unknown or if what stands in the packet is no address.
    pub triggered_by: Option<Address>,
    /// Why, for people; at most [`MAX_MESSAGE`] bytes. Text from the network: never a format string.
    pub message: String,
    /// For the sender; at most [`MAX_DATA`] bytes.
    pub data: Bytes,
}

/// Any of the three.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// Type 12.
    Prepare(Prepare),
    /// Type 13.
    Fulfill(Fulfill),
    /// Type 14.
    Reject(Reject),
}

/// Why bytes are not an ILPv4 packet. Nothing was changed; whoever sent them has to fix it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// The encoding is broken or a field is longer than RFC 27 allows.
    #[error("packet is malformed")]
    Malformed(#[from] OerError),
    /// The type byte is none of 12, 13, 14.
    #[error("packet type {0} is unknown")]
    UnknownType(u8),
    /// The packet is a valid one of another type than the caller can use.
    #[error("packet type {0} was not expected here")]
    UnexpectedType(u8),
    /// The destination of a Prepare is not an address (a connector answers F00).
    #[error("destination is invalid")]
    Destination(#[source] AddressError),
    /// The expiry of a Prepare is not a timestamp.
    #[error("expiry is invalid")]
    Expiry(#[source] TimestampError),
}

impl Prepare {
    /// The packet as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let destination = self.destination.as_bytes();
        let contents = 8
            + TIMESTAMP_LEN
            + 32
            + oer::var_octets_len(destination.len())
            + oer::var_octets_len(self.data.len());
        let mut writer = envelope(kind::PREPARE, contents);
        writer.u64(self.amount);
        writer.bytes(&self.expires_at.encode());
        writer.bytes(&self.condition.0);
        writer.var_octets(destination);
        writer.var_octets(&self.data);
        writer.into_vec()
    }

    /// Reads a packet that must be a Prepare.
    pub fn decode(bytes: Bytes) -> Result<Self, PacketError> {
        match Packet::decode(bytes)? {
            Packet::Prepare(prepare) => Ok(prepare),
            other => Err(PacketError::UnexpectedType(other.kind())),
        }
    }
}

impl Fulfill {
    /// The packet as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = envelope(kind::FULFILL, 32 + oer::var_octets_len(self.data.len()));
        writer.bytes(&self.fulfillment.0);
        writer.var_octets(&self.data);
        writer.into_vec()
    }
}

impl Reject {
    /// A Reject without data.
    pub fn new(
        code: ErrorCode,
        triggered_by: Option<&Address>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            code,
            triggered_by: triggered_by.cloned(),
            message: message.into(),
            data: Bytes::new(),
        }
    }

    /// The packet as bytes. A message that is too long is cut at a character.
    pub fn encode(&self) -> Vec<u8> {
        let triggered_by = self
            .triggered_by
            .as_ref()
            .map_or(&b""[..], Address::as_bytes);
        let message = cut_at_character(&self.message, MAX_MESSAGE);
        let contents = 3
            + oer::var_octets_len(triggered_by.len())
            + oer::var_octets_len(message.len())
            + oer::var_octets_len(self.data.len());
        let mut writer = envelope(kind::REJECT, contents);
        writer.bytes(&self.code.to_bytes());
        writer.var_octets(triggered_by);
        writer.var_octets(message.as_bytes());
        writer.var_octets(&self.data);
        writer.into_vec()
    }
}

impl Packet {
    /// The type byte.
    pub fn kind(&self) -> u8 {
        match self {
            Self::Prepare(_) => kind::PREPARE,
            Self::Fulfill(_) => kind::FULFILL,
            Self::Reject(_) => kind::REJECT,
        }
    }

    /// The packet as bytes.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Prepare(prepare) => prepare.encode(),
            Self::Fulfill(fulfill) => fulfill.encode(),
            Self::Reject(reject) => reject.encode(),
        }
    }

    /// Reads one packet. The data field shares memory with `bytes`.
    pub fn decode(bytes: Bytes) -> Result<Self, PacketError> {
        let mut reader = Reader::new(&bytes);
        let kind = reader.u8()?;
        if !(kind::PREPARE..=kind::REJECT).contains(&kind) {
            return Err(PacketError::UnknownType(kind));
        }
        let mut contents = Reader::new(reader.var_octets_max(MAX_PACKET)?);
        match kind {
            kind::PREPARE => Ok(Self::Prepare(Prepare {
                amount: contents.u64()?,
                expires_at: Timestamp::decode(contents.bytes(TIMESTAMP_LEN)?)
                    .map_err(PacketError::Expiry)?,
                condition: Condition(contents.array()?),
                destination: Address::try_from(contents.var_octets_max(MAX_ADDRESS_LEN)?)
                    .map_err(PacketError::Destination)?,
                data: bytes.slice_ref(contents.var_octets_max(MAX_DATA_READ)?),
            })),
            kind::FULFILL => Ok(Self::Fulfill(Fulfill {
                fulfillment: Fulfillment(contents.array()?),
                data: bytes.slice_ref(contents.var_octets_max(MAX_DATA_READ)?),
            })),
            _ => Ok(Self::Reject(Reject {
                code: ErrorCode::from_bytes(contents.array()?),
                // A reply that cannot be read would leave its sender waiting until the packet
                // expires, so who rejected and the message are taken as far as they make sense.
                triggered_by: Address::try_from(contents.var_octets_max(MAX_ADDRESS_LEN)?).ok(),
                message: String::from_utf8_lossy(contents.var_octets_max(MAX_MESSAGE)?)
                    .into_owned(),
                data: bytes.slice_ref(contents.var_octets_max(MAX_DATA_READ)?),
            })),
        }
    }

    /// This packet as the reply to a Prepare; none if it is itself a Prepare.
    pub fn into_reply(self) -> Option<Reply> {
        match self {
            Self::Prepare(_) => None,
            Self::Fulfill(fulfill) => Some(Ok(fulfill)),
            Self::Reject(reject) => Some(Err(reject)),
        }
    }
}

impl From<Reply> for Packet {
    fn from(reply: Reply) -> Self {
        match reply {
            Ok(fulfill) => Self::Fulfill(fulfill),
            Err(reject) => Self::Reject(reject),
        }
    }
}

/// The longest start of `text` that is at most `max` bytes and ends between two characters.
fn cut_at_character(text: &str, max: usize) -> &str {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn envelope(kind: u8, contents: usize) -> Writer {
    let mut writer = Writer::with_capacity(1 + oer::var_octets_len(contents));
    writer.u8(kind);
    writer.length(contents);
    writer
}
