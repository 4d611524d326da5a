//! BTP frames and their encoding (RFC 23 and its BilateralTransferProtocol.asn, over OER of RFC 30).
//!
//! ```text
//! type u8 | request id u32 | VarOctets( part of the type | count VarUInt | entries )
//! entry   = name VarOctets (ASCII) | content type u8 | data VarOctets
//! part    = Message, Response: nothing; Transfer: amount u64;
//!           Error: code (3 bytes) | name VarOctets | triggeredAt VarOctets | data VarOctets
//! ```
//!
//! Encoding is strict. Decoding accepts what RFC 30 demands: bytes behind the last known field are
//! ignored. Data is sliced from the received buffer, never copied, and nothing is allocated from a
//! length that the peer merely claims.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use ilp_packet::oer::{OerError, Reader, Writer};

use crate::protocol::{
    ContentType, ILP, MAX_PROTOCOL_NAME_BYTES, MAX_PROTOCOLS, ProtocolData, find,
};
use crate::refusal::Refusal;

/// Longest frame in bytes, and so the longest WebSocket message. An ILP packet of the largest
/// allowed size takes about 34 000.
pub const MAX_FRAME_BYTES: usize = 64 * 1024;

const TYPE_RESPONSE: u8 = 1;
const TYPE_ERROR: u8 = 2;
const TYPE_MESSAGE: u8 = 6;
const TYPE_TRANSFER: u8 = 7;

/// Pairs a reply with its request. Chosen at random by the requester, per direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u32);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// One BTP packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Type 1: the reply to a request.
    Response {
        /// Id of the request.
        request_id: RequestId,
        /// The payloads.
        protocol_data: Vec<ProtocolData>,
    },
    /// Type 2: a request was refused.
    Error {
        /// Id of the request.
        request_id: RequestId,
        /// Why.
        refusal: Refusal,
        /// The payloads.
        protocol_data: Vec<ProtocolData>,
    },
    /// Type 6: a request.
    Message {
        /// Id of the request.
        request_id: RequestId,
        /// The payloads.
        protocol_data: Vec<ProtocolData>,
    },
    /// Type 7: a transfer on a settlement ledger. Read only to be refused.
    Transfer {
        /// Id of the request.
        request_id: RequestId,
        /// Amount in units of the two parties' ledger.
        amount: u64,
        /// The payloads.
        protocol_data: Vec<ProtocolData>,
    },
}

/// Why bytes are no BTP frame. Nothing changed; the peer sent something unreadable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The message is longer than [`MAX_FRAME_BYTES`].
    #[error("frame of {0} bytes is too long")]
    TooLong(usize),
    /// The first byte is none of the four types in use (3, 4 and 5 are long dead).
    #[error("unknown frame type {0}")]
    UnknownType(u8),
    /// A field is cut off or its length is malformed.
    #[error("malformed field")]
    Field(#[from] OerError),
    /// There are more entries than [`MAX_PROTOCOLS`].
    #[error("{0} protocol entries are too many")]
    TooManyProtocols(u64),
    /// An entry's name is empty, too long or not printable ASCII.
    #[error("bad protocol name")]
    ProtocolName,
    /// Two entries have the same name.
    #[error("protocol name is repeated")]
    RepeatedProtocol,
    /// The name or the time of an Error is not UTF-8.
    #[error("error text is not UTF-8")]
    ErrorText,
}

/// Why a frame cannot be encoded. Nothing changed; the caller built it wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The frame would be longer than [`MAX_FRAME_BYTES`].
    #[error("frame of {0} bytes is too long")]
    TooLong(usize),
    /// There are more entries than [`MAX_PROTOCOLS`].
    #[error("{0} protocol entries are too many")]
    TooManyProtocols(usize),
    /// An entry's name is empty, too long or not printable ASCII.
    #[error("bad protocol name")]
    ProtocolName,
    /// Two entries have the same name.
    #[error("protocol name is repeated")]
    RepeatedProtocol,
}

impl Frame {
    /// A request that carries one encoded ILP packet.
    #[must_use]
    pub fn ilp_request(request_id: RequestId, packet: Bytes) -> Self {
        Self::Message {
            request_id,
            protocol_data: vec![ProtocolData::ilp(packet)],
        }
    }

    /// A reply that carries one encoded ILP packet.
    #[must_use]
    pub fn ilp_response(request_id: RequestId, packet: Bytes) -> Self {
        Self::Response {
            request_id,
            protocol_data: vec![ProtocolData::ilp(packet)],
        }
    }

    /// A reply without any payload, as the one to a good authentication.
    #[must_use]
    pub fn empty_response(request_id: RequestId) -> Self {
        Self::Response {
            request_id,
            protocol_data: Vec::new(),
        }
    }

    /// A refusal without further payload.
    #[must_use]
    pub fn error(request_id: RequestId, refusal: Refusal) -> Self {
        Self::Error {
            request_id,
            refusal,
            protocol_data: Vec::new(),
        }
    }

    /// The id that pairs request and reply.
    #[must_use]
    pub fn request_id(&self) -> RequestId {
        match self {
            Self::Response { request_id, .. }
            | Self::Error { request_id, .. }
            | Self::Message { request_id, .. }
            | Self::Transfer { request_id, .. } => *request_id,
        }
    }

    /// The payloads.
    #[must_use]
    pub fn protocol_data(&self) -> &[ProtocolData] {
        match self {
            Self::Response { protocol_data, .. }
            | Self::Error { protocol_data, .. }
            | Self::Message { protocol_data, .. }
            | Self::Transfer { protocol_data, .. } => protocol_data,
        }
    }

    /// The encoded ILP packet, if the frame carries one.
    #[must_use]
    pub fn ilp(&self) -> Option<&Bytes> {
        find(self.protocol_data(), ILP).map(|entry| &entry.data)
    }

    /// Encodes the frame.
    ///
    /// # Errors
    /// If the frame breaks one of the limits of this crate.
    pub fn encode(&self) -> Result<Bytes, EncodeError> {
        let protocol_data = self.protocol_data();
        if protocol_data.len() > MAX_PROTOCOLS {
            return Err(EncodeError::TooManyProtocols(protocol_data.len()));
        }
        let payload: usize = protocol_data
            .iter()
            .map(|entry| entry.data.len() + 16)
            .sum();
        let mut body = Writer::with_capacity(payload + 16);
        let kind = match self {
            Self::Response { .. } => TYPE_RESPONSE,
            Self::Error { refusal, .. } => {
                body.bytes(&refusal.code.bytes());
                body.var_octets(refusal.name.as_bytes());
                body.var_octets(refusal.triggered_at.as_bytes());
                body.var_octets(&refusal.data);
                TYPE_ERROR
            }
            Self::Message { .. } => TYPE_MESSAGE,
            Self::Transfer { amount, .. } => {
                body.u64(*amount);
                TYPE_TRANSFER
            }
        };
        body.var_uint(protocol_data.len() as u64);
        for (at, entry) in protocol_data.iter().enumerate() {
            if !good_name(entry.name.as_bytes()) {
                return Err(EncodeError::ProtocolName);
            }
            if find(&protocol_data[..at], &entry.name).is_some() {
                return Err(EncodeError::RepeatedProtocol);
            }
            body.var_octets(entry.name.as_bytes());
            body.u8(entry.content_type.number());
            body.var_octets(&entry.data);
        }
        let body = body.into_vec();
        let mut frame = Writer::with_capacity(body.len() + 10);
        frame.u8(kind);
        frame.u32(self.request_id().0);
        frame.var_octets(&body);
        let frame = frame.into_vec();
        if frame.len() > MAX_FRAME_BYTES {
            return Err(EncodeError::TooLong(frame.len()));
        }
        Ok(Bytes::from(frame))
    }

    /// Decodes one WebSocket message.
    ///
    /// # Errors
    /// If the bytes are no frame of a known type within the limits.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        if bytes.len() > MAX_FRAME_BYTES {
            return Err(DecodeError::TooLong(bytes.len()));
        }
        let mut frame = Reader::new(bytes);
        let kind = frame.u8()?;
        let request_id = RequestId(frame.u32()?);
        let mut body = Reader::new(frame.var_octets()?);
        match kind {
            TYPE_RESPONSE => Ok(Self::Response {
                request_id,
                protocol_data: read_protocol_data(bytes, &mut body)?,
            }),
            TYPE_ERROR => {
                let code: [u8; 3] = body.array()?;
                let refusal = Refusal {
                    code: code.into(),
                    name: read_text(&mut body)?,
                    triggered_at: read_text(&mut body)?,
                    data: bytes.slice_ref(body.var_octets()?),
                };
                let protocol_data = read_protocol_data(bytes, &mut body)?;
                Ok(Self::Error {
                    request_id,
                    refusal,
                    protocol_data,
                })
            }
            TYPE_MESSAGE => Ok(Self::Message {
                request_id,
                protocol_data: read_protocol_data(bytes, &mut body)?,
            }),
            TYPE_TRANSFER => {
                let amount = body.u64()?;
                let protocol_data = read_protocol_data(bytes, &mut body)?;
                Ok(Self::Transfer {
                    request_id,
                    amount,
                    protocol_data,
                })
            }
            unknown => Err(DecodeError::UnknownType(unknown)),
        }
    }
}

fn read_protocol_data(
    bytes: &Bytes,
    body: &mut Reader<'_>,
) -> Result<Vec<ProtocolData>, DecodeError> {
    let count = body.var_uint()?;
    if count > MAX_PROTOCOLS as u64 {
        return Err(DecodeError::TooManyProtocols(count));
    }
    let mut entries: Vec<ProtocolData> = Vec::new();
    for _ in 0..count {
        let name = body.var_octets()?;
        if !good_name(name) {
            return Err(DecodeError::ProtocolName);
        }
        let name: Cow<'static, str> = if name == ILP.as_bytes() {
            Cow::Borrowed(ILP)
        } else {
            Cow::Owned(String::from_utf8_lossy(name).into_owned())
        };
        if find(&entries, &name).is_some() {
            return Err(DecodeError::RepeatedProtocol);
        }
        let content_type = ContentType::from(body.u8()?);
        let data = bytes.slice_ref(body.var_octets()?);
        entries.push(ProtocolData {
            name,
            content_type,
            data,
        });
    }
    Ok(entries)
}

fn read_text(body: &mut Reader<'_>) -> Result<String, DecodeError> {
    let text = std::str::from_utf8(body.var_octets()?).map_err(|_| DecodeError::ErrorText)?;
    Ok(text.to_owned())
}

fn good_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= MAX_PROTOCOL_NAME_BYTES
        && name.iter().all(u8::is_ascii_graphic)
}
