//! Protocol data: the named payloads that every BTP frame ends with (RFC 23, "Protocol Data").
//!
//! The first entry is the primary one and names what the frame is about. Names must be unique
//! within a frame; a frame with a name twice is unreadable, because two readers could disagree on
//! which of the two counts.

use std::borrow::Cow;

use bytes::Bytes;

/// Name of the protocol that carries ILP packets.
pub const ILP: &str = "ilp";

/// Most entries that one frame may carry. The largest known client sends three.
pub const MAX_PROTOCOLS: usize = 16;

/// Longest protocol name in bytes.
pub const MAX_PROTOCOL_NAME_BYTES: usize = 128;

/// How the data of an entry is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ContentType {
    /// `application/octet-stream`, number 0.
    OctetStream,
    /// `text/plain; charset=utf-8`, number 1.
    TextPlain,
    /// `application/json`, number 2.
    Json,
    /// A number that RFC 23 does not define. Kept, so that a frame survives a round trip.
    Other(u8),
}

impl ContentType {
    /// The number on the wire.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::OctetStream => 0,
            Self::TextPlain => 1,
            Self::Json => 2,
            Self::Other(number) => number,
        }
    }
}

impl From<u8> for ContentType {
    fn from(number: u8) -> Self {
        match number {
            0 => Self::OctetStream,
            1 => Self::TextPlain,
            2 => Self::Json,
            other => Self::Other(other),
        }
    }
}

/// One named payload of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProtocolData {
    /// ASCII name, unique within the frame.
    pub name: Cow<'static, str>,
    /// How `data` is to be read.
    pub content_type: ContentType,
    /// The payload.
    pub data: Bytes,
}

impl ProtocolData {
    /// An entry that carries one encoded ILP packet.
    #[must_use]
    pub fn ilp(packet: Bytes) -> Self {
        Self {
            name: Cow::Borrowed(ILP),
            content_type: ContentType::OctetStream,
            data: packet,
        }
    }

    /// An entry of UTF-8 text.
    #[must_use]
    pub fn text(name: &'static str, text: &str) -> Self {
        Self {
            name: Cow::Borrowed(name),
            content_type: ContentType::TextPlain,
            data: Bytes::copy_from_slice(text.as_bytes()),
        }
    }

    /// An entry without data, as the `auth` marker is.
    #[must_use]
    pub fn empty(name: &'static str) -> Self {
        Self {
            name: Cow::Borrowed(name),
            content_type: ContentType::OctetStream,
            data: Bytes::new(),
        }
    }
}

/// The entry with this name, if the frame has one.
pub(crate) fn find<'a>(entries: &'a [ProtocolData], name: &str) -> Option<&'a ProtocolData> {
    entries.iter().find(|entry| entry.name == name)
}
