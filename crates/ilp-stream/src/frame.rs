//! The frames of a STREAM packet (RFC 29 section 5.3).
//!
//! A frame is a type byte and its contents with a length in front. Frames of an unknown type are
//! skipped, and so is what follows the known fields of a frame. Stream ids are what the two ends
//! count: odd ones were opened by the client, even ones by the server.

use std::fmt;

use bytes::Bytes;
use ilp_packet::oer::{self, OerError, Reader, Writer};
use ilp_packet::{Address, AddressError, MAX_ADDRESS_LEN};

/// Longest error message or asset code that we read, bytes. What is longer is a malformed frame.
const MAX_TEXT: usize = 4_096;

/// Number of a stream in its connection, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u64);

impl StreamId {
    /// Whether the client side of the connection opened, or would open, this stream.
    pub fn is_client_initiated(self) -> bool {
        self.0 % 2 == 1
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a stream or connection was closed (RFC 29 section 5.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamErrorCode {
    /// 1: nothing is wrong.
    NoError,
    /// 2: an error inside the end that says it.
    InternalError,
    /// 3: the end is too busy.
    EndpointBusy,
    /// 4: more was sent than was allowed.
    FlowControlError,
    /// 5: too many streams.
    StreamIdError,
    /// 6: a frame for a stream in a state that does not allow it.
    StreamStateError,
    /// 7: a frame that could not be read.
    FrameFormatError,
    /// 8: the protocol was broken in another way.
    ProtocolViolation,
    /// 9: the application closed it with an error.
    ApplicationError,
    /// A code that RFC 29 does not list.
    Other(u8),
}

impl StreamErrorCode {
    /// The byte on the wire.
    pub fn to_byte(self) -> u8 {
        match self {
            Self::NoError => 1,
            Self::InternalError => 2,
            Self::EndpointBusy => 3,
            Self::FlowControlError => 4,
            Self::StreamIdError => 5,
            Self::StreamStateError => 6,
            Self::FrameFormatError => 7,
            Self::ProtocolViolation => 8,
            Self::ApplicationError => 9,
            Self::Other(byte) => byte,
        }
    }

    /// From the byte on the wire.
    pub fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::NoError,
            2 => Self::InternalError,
            3 => Self::EndpointBusy,
            4 => Self::FlowControlError,
            5 => Self::StreamIdError,
            6 => Self::StreamStateError,
            7 => Self::FrameFormatError,
            8 => Self::ProtocolViolation,
            9 => Self::ApplicationError,
            other => Self::Other(other),
        }
    }
}

/// Why a packet's frames could not be read. The other end has to fix it; nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The encoding is broken.
    #[error("frame is malformed")]
    Malformed(#[from] OerError),
    /// A `ConnectionNewAddress` frame holds something that is not an address.
    #[error("frame holds an invalid address")]
    Address(#[from] AddressError),
    /// The version of the packet is not 1.
    #[error("version {0} of the protocol is not supported")]
    Version(u8),
    /// The packet names an ILP packet type that does not exist.
    #[error("packet type {0} is unknown")]
    PacketType(u8),
    /// The packet has more frames than we read.
    #[error("packet has too many frames")]
    TooManyFrames,
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// 0x01: the connection ends.
    ConnectionClose {
        /// Why, for programs.
        code: StreamErrorCode,
        /// Why, for people.
        message: String,
    },
    /// 0x02: where the sender of the frame receives packets from now on.
    ConnectionNewAddress {
        /// The address.
        address: Address,
    },
    /// 0x03: how many bytes of data, over all streams, the sender of the frame takes.
    ConnectionMaxData {
        /// Sum of the offsets of all streams, bytes.
        max_offset: u64,
    },
    /// 0x04: the sender of the frame has more data than the connection allows.
    ConnectionDataBlocked {
        /// What it wants to send in all, bytes.
        max_offset: u64,
    },
    /// 0x05: the highest stream id that the sender of the frame accepts.
    ConnectionMaxStreamId {
        /// Inclusive.
        max_stream_id: u64,
    },
    /// 0x06: the sender of the frame wants to open more streams.
    ConnectionStreamIdBlocked {
        /// The id it wants to open.
        max_stream_id: u64,
    },
    /// 0x07: the asset of the account of the sender of the frame.
    ConnectionAssetDetails {
        /// For example `XRP`.
        code: String,
        /// Amounts are in units of 10^-scale.
        scale: u8,
    },
    /// 0x10: a stream ends.
    StreamClose {
        /// Which.
        stream: StreamId,
        /// Why, for programs.
        code: StreamErrorCode,
        /// Why, for people.
        message: String,
    },
    /// 0x11: a part of the amount of the packet is for this stream.
    StreamMoney {
        /// Which.
        stream: StreamId,
        /// The stream gets `shares / sum of all shares` of the amount that arrives.
        shares: u64,
    },
    /// 0x12: how much money the sender of the frame takes on a stream.
    StreamMaxMoney {
        /// Which.
        stream: StreamId,
        /// In all, in units of the sender of the frame.
        receive_max: u64,
        /// Received so far, in the same units.
        total_received: u64,
    },
    /// 0x13: the sender of the frame has more money to send than the other end takes.
    StreamMoneyBlocked {
        /// Which.
        stream: StreamId,
        /// What it wants to send in all, in its own units.
        send_max: u64,
        /// Sent so far, in the same units.
        total_sent: u64,
    },
    /// 0x14: a piece of the data of a stream.
    StreamData {
        /// Which.
        stream: StreamId,
        /// Position of the first byte in the stream.
        offset: u64,
        /// The bytes.
        data: Bytes,
    },
    /// 0x15: how many bytes of data the sender of the frame takes on a stream.
    StreamMaxData {
        /// Which.
        stream: StreamId,
        /// In all, bytes.
        max_offset: u64,
    },
    /// 0x16: the sender of the frame has more data than the stream allows.
    StreamDataBlocked {
        /// Which.
        stream: StreamId,
        /// What it wants to send in all, bytes.
        max_offset: u64,
    },
    /// 0x17: proof for a third party of what was received (RFC 39, deprecated).
    StreamReceipt {
        /// Which.
        stream: StreamId,
        /// Opaque here.
        receipt: Bytes,
    },
}

impl Frame {
    /// The type byte.
    pub fn kind(&self) -> u8 {
        match self {
            Self::ConnectionClose { .. } => 0x01,
            Self::ConnectionNewAddress { .. } => 0x02,
            Self::ConnectionMaxData { .. } => 0x03,
            Self::ConnectionDataBlocked { .. } => 0x04,
            Self::ConnectionMaxStreamId { .. } => 0x05,
            Self::ConnectionStreamIdBlocked { .. } => 0x06,
            Self::ConnectionAssetDetails { .. } => 0x07,
            Self::StreamClose { .. } => 0x10,
            Self::StreamMoney { .. } => 0x11,
            Self::StreamMaxMoney { .. } => 0x12,
            Self::StreamMoneyBlocked { .. } => 0x13,
            Self::StreamData { .. } => 0x14,
            Self::StreamMaxData { .. } => 0x15,
            Self::StreamDataBlocked { .. } => 0x16,
            Self::StreamReceipt { .. } => 0x17,
        }
    }

    /// Bytes of the contents, without type and length.
    fn body_len(&self) -> usize {
        let uint = oer::var_uint_len;
        let octets = oer::var_octets_len;
        match self {
            Self::ConnectionClose { message, .. } => 1 + octets(message.len()),
            Self::ConnectionNewAddress { address } => octets(address.as_bytes().len()),
            Self::ConnectionMaxData { max_offset } | Self::ConnectionDataBlocked { max_offset } => {
                uint(*max_offset)
            }
            Self::ConnectionMaxStreamId { max_stream_id }
            | Self::ConnectionStreamIdBlocked { max_stream_id } => uint(*max_stream_id),
            Self::ConnectionAssetDetails { code, .. } => octets(code.len()) + 1,
            Self::StreamClose {
                stream, message, ..
            } => uint(stream.0) + 1 + octets(message.len()),
            Self::StreamMoney { stream, shares } => uint(stream.0) + uint(*shares),
            Self::StreamMaxMoney {
                stream,
                receive_max,
                total_received,
            } => uint(stream.0) + uint(*receive_max) + uint(*total_received),
            Self::StreamMoneyBlocked {
                stream,
                send_max,
                total_sent,
            } => uint(stream.0) + uint(*send_max) + uint(*total_sent),
            Self::StreamData {
                stream,
                offset,
                data,
            } => uint(stream.0) + uint(*offset) + octets(data.len()),
            Self::StreamMaxData { stream, max_offset }
            | Self::StreamDataBlocked { stream, max_offset } => uint(stream.0) + uint(*max_offset),
            Self::StreamReceipt { stream, receipt } => uint(stream.0) + octets(receipt.len()),
        }
    }

    /// Bytes that the frame takes in a packet.
    pub(crate) fn encoded_len(&self) -> usize {
        1 + oer::var_octets_len(self.body_len())
    }

    /// Appends the frame. Lengths are counted first: packets are made too often to put each frame
    /// together in a buffer of its own.
    pub(crate) fn write(&self, out: &mut Writer) {
        let body_len = self.body_len();
        out.u8(self.kind());
        out.length(body_len);
        let start = out.len();
        match self {
            Self::ConnectionClose { code, message } => {
                out.u8(code.to_byte());
                out.var_octets(message.as_bytes());
            }
            Self::ConnectionNewAddress { address } => out.var_octets(address.as_bytes()),
            Self::ConnectionMaxData { max_offset } | Self::ConnectionDataBlocked { max_offset } => {
                out.var_uint(*max_offset);
            }
            Self::ConnectionMaxStreamId { max_stream_id }
            | Self::ConnectionStreamIdBlocked { max_stream_id } => out.var_uint(*max_stream_id),
            Self::ConnectionAssetDetails { code, scale } => {
                out.var_octets(code.as_bytes());
                out.u8(*scale);
            }
            Self::StreamClose {
                stream,
                code,
                message,
            } => {
                out.var_uint(stream.0);
                out.u8(code.to_byte());
                out.var_octets(message.as_bytes());
            }
            Self::StreamMoney { stream, shares } => {
                out.var_uint(stream.0);
                out.var_uint(*shares);
            }
            Self::StreamMaxMoney {
                stream,
                receive_max,
                total_received,
            } => {
                out.var_uint(stream.0);
                out.var_uint(*receive_max);
                out.var_uint(*total_received);
            }
            Self::StreamMoneyBlocked {
                stream,
                send_max,
                total_sent,
            } => {
                out.var_uint(stream.0);
                out.var_uint(*send_max);
                out.var_uint(*total_sent);
            }
            Self::StreamData {
                stream,
                offset,
                data,
            } => {
                out.var_uint(stream.0);
                out.var_uint(*offset);
                out.var_octets(data);
            }
            Self::StreamMaxData { stream, max_offset }
            | Self::StreamDataBlocked { stream, max_offset } => {
                out.var_uint(stream.0);
                out.var_uint(*max_offset);
            }
            Self::StreamReceipt { stream, receipt } => {
                out.var_uint(stream.0);
                out.var_octets(receipt);
            }
        }
        debug_assert_eq!(out.len() - start, body_len, "frame {:#x}", self.kind());
    }

    /// Reads one frame; none if its type is unknown. `whole` is what `reader` reads from, so that
    /// data can be shared instead of copied.
    pub(crate) fn read(reader: &mut Reader<'_>, whole: &Bytes) -> Result<Option<Self>, FrameError> {
        let kind = reader.u8()?;
        let mut body = Reader::new(reader.var_octets()?);
        let frame = match kind {
            0x01 => Self::ConnectionClose {
                code: StreamErrorCode::from_byte(body.u8()?),
                message: text(&mut body)?,
            },
            0x02 => Self::ConnectionNewAddress {
                address: Address::try_from(body.var_octets_max(MAX_ADDRESS_LEN)?)?,
            },
            0x03 => Self::ConnectionMaxData {
                max_offset: body.var_uint()?,
            },
            0x04 => Self::ConnectionDataBlocked {
                max_offset: body.var_uint()?,
            },
            0x05 => Self::ConnectionMaxStreamId {
                max_stream_id: body.var_uint()?,
            },
            0x06 => Self::ConnectionStreamIdBlocked {
                max_stream_id: body.var_uint()?,
            },
            0x07 => Self::ConnectionAssetDetails {
                code: text(&mut body)?,
                scale: body.u8()?,
            },
            0x10 => Self::StreamClose {
                stream: stream(&mut body)?,
                code: StreamErrorCode::from_byte(body.u8()?),
                message: text(&mut body)?,
            },
            0x11 => Self::StreamMoney {
                stream: stream(&mut body)?,
                shares: body.var_uint()?,
            },
            // RFC 29 section 5.1.4: these two may be larger than we can count, and mean "no limit".
            0x12 => Self::StreamMaxMoney {
                stream: stream(&mut body)?,
                receive_max: body.var_uint_saturating()?,
                total_received: body.var_uint()?,
            },
            0x13 => Self::StreamMoneyBlocked {
                stream: stream(&mut body)?,
                send_max: body.var_uint_saturating()?,
                total_sent: body.var_uint()?,
            },
            0x14 => Self::StreamData {
                stream: stream(&mut body)?,
                offset: body.var_uint()?,
                data: whole.slice_ref(body.var_octets()?),
            },
            0x15 => Self::StreamMaxData {
                stream: stream(&mut body)?,
                max_offset: body.var_uint()?,
            },
            0x16 => Self::StreamDataBlocked {
                stream: stream(&mut body)?,
                max_offset: body.var_uint()?,
            },
            0x17 => Self::StreamReceipt {
                stream: stream(&mut body)?,
                receipt: whole.slice_ref(body.var_octets()?),
            },
            _ => return Ok(None),
        };
        Ok(Some(frame))
    }

    /// Bytes that a `StreamData` frame with `len` bytes of data takes at most.
    pub(crate) fn data_frame_len(stream: StreamId, offset: u64, len: usize) -> usize {
        let body =
            oer::var_uint_len(stream.0) + oer::var_uint_len(offset) + oer::var_octets_len(len);
        1 + oer::var_octets_len(body)
    }
}

fn stream(body: &mut Reader<'_>) -> Result<StreamId, OerError> {
    body.var_uint().map(StreamId)
}

fn text(body: &mut Reader<'_>) -> Result<String, OerError> {
    body.var_octets_max(MAX_TEXT)
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
}
