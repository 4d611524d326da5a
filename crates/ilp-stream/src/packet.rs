//! STREAM packets: what is sealed into the data of an ILP packet (RFC 29 section 5.2).

use bytes::Bytes;
use ilp_packet::kind;
use ilp_packet::oer::{Reader, Writer};

use crate::frame::{Frame, FrameError};

/// Version of the protocol.
const VERSION: u8 = 1;

/// Longest header: version, type, and three integers of up to nine bytes.
pub(crate) const MAX_HEADER: usize = 2 + 3 * 9;

/// Most frames of one packet that we read. Two bytes are the shortest frame, so a packet could hold
/// sixteen thousand; nobody sends more than a few dozen.
pub const MAX_FRAMES: usize = 1_024;

/// The ILP packet that a STREAM packet says it belongs to. One that arrives in another is discarded:
/// somebody on the way moved it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketType {
    /// 12.
    Prepare,
    /// 13.
    Fulfill,
    /// 14.
    Reject,
}

/// A STREAM packet in the clear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamPacket {
    /// The ILP packet it belongs to.
    pub packet_type: PacketType,
    /// Each end counts its own Prepares from 1; a reply repeats the number.
    pub sequence: u64,
    /// In a Prepare the least amount that the receiver should accept; in a reply the amount that
    /// arrived there. In units of the receiver of the Prepare.
    pub prepare_amount: u64,
    /// What is said.
    pub frames: Vec<Frame>,
}

impl StreamPacket {
    /// The plaintext.
    pub fn encode(&self) -> Vec<u8> {
        let frames: usize = self.frames.iter().map(Frame::encoded_len).sum();
        let mut writer = Writer::with_capacity(MAX_HEADER + frames);
        writer.u8(VERSION);
        writer.u8(match self.packet_type {
            PacketType::Prepare => kind::PREPARE,
            PacketType::Fulfill => kind::FULFILL,
            PacketType::Reject => kind::REJECT,
        });
        writer.var_uint(self.sequence);
        writer.var_uint(self.prepare_amount);
        writer.var_uint(self.frames.len() as u64);
        for frame in &self.frames {
            frame.write(&mut writer);
        }
        writer.into_vec()
    }

    /// Reads a plaintext. Bytes after the frames are padding and ignored.
    pub fn decode(plaintext: Bytes) -> Result<Self, FrameError> {
        let mut reader = Reader::new(&plaintext);
        let version = reader.u8()?;
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        let packet_type = match reader.u8()? {
            kind::PREPARE => PacketType::Prepare,
            kind::FULFILL => PacketType::Fulfill,
            kind::REJECT => PacketType::Reject,
            other => return Err(FrameError::PacketType(other)),
        };
        let sequence = reader.var_uint()?;
        let prepare_amount = reader.var_uint()?;
        let count = reader.var_uint()?;
        if count > MAX_FRAMES as u64 {
            return Err(FrameError::TooManyFrames);
        }
        let mut frames = Vec::new();
        for _ in 0..count {
            frames.extend(Frame::read(&mut reader, &plaintext)?);
        }
        Ok(Self {
            packet_type,
            sequence,
            prepare_amount,
            frames,
        })
    }
}
