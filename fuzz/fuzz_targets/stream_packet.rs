//! STREAM packets in the clear (RFC 29): what decodes encodes again.
#![no_main]

use bytes::Bytes;
use ilp_stream::{Frame, MAX_FRAMES, StreamPacket};
use libfuzzer_sys::fuzz_target;

/// Longest text of a frame that is read, bytes.
const MAX_TEXT: usize = 4_096;

/// What a frame was read from may be longer or shorter than how it is written.
fn is_changed(frame: &Frame) -> bool {
    match frame {
        // Bytes that are no text are replaced.
        Frame::ConnectionClose { message: text, .. }
        | Frame::StreamClose { message: text, .. }
        | Frame::ConnectionAssetDetails { code: text, .. } => {
            text.contains(char::REPLACEMENT_CHARACTER)
        }
        // Numbers above 64 bits read as the largest.
        Frame::StreamMaxMoney {
            receive_max: limit, ..
        }
        | Frame::StreamMoneyBlocked {
            send_max: limit, ..
        } => *limit == u64::MAX,
        Frame::ConnectionNewAddress { .. }
        | Frame::ConnectionMaxData { .. }
        | Frame::ConnectionDataBlocked { .. }
        | Frame::ConnectionMaxStreamId { .. }
        | Frame::ConnectionStreamIdBlocked { .. }
        | Frame::StreamMoney { .. }
        | Frame::StreamData { .. }
        | Frame::StreamMaxData { .. }
        | Frame::StreamDataBlocked { .. }
        | Frame::StreamReceipt { .. } => false,
    }
}

/// A text that became too long to be read again, because each replacement takes three bytes.
fn is_overlong(frame: &Frame) -> bool {
    match frame {
        Frame::ConnectionClose { message: text, .. }
        | Frame::StreamClose { message: text, .. }
        | Frame::ConnectionAssetDetails { code: text, .. } => text.len() > MAX_TEXT,
        Frame::ConnectionNewAddress { .. }
        | Frame::ConnectionMaxData { .. }
        | Frame::ConnectionDataBlocked { .. }
        | Frame::ConnectionMaxStreamId { .. }
        | Frame::ConnectionStreamIdBlocked { .. }
        | Frame::StreamMoney { .. }
        | Frame::StreamMaxMoney { .. }
        | Frame::StreamMoneyBlocked { .. }
        | Frame::StreamData { .. }
        | Frame::StreamMaxData { .. }
        | Frame::StreamDataBlocked { .. }
        | Frame::StreamReceipt { .. } => false,
    }
}

fuzz_target!(|input: &[u8]| {
    let Ok(packet) = StreamPacket::decode(Bytes::copy_from_slice(input)) else {
        return;
    };
    assert!(packet.frames.len() <= MAX_FRAMES);
    let encoded = packet.encode();
    if !packet.frames.iter().any(is_overlong) {
        assert_eq!(
            StreamPacket::decode(encoded.clone().into()).as_ref(),
            Ok(&packet)
        );
    }
    if !packet.frames.iter().any(is_changed) {
        assert!(encoded.len() <= input.len());
        // Shorter: padding, frames of unknown types or fields of a later version were left out.
        if encoded.len() == input.len() {
            assert_eq!(encoded, input);
        }
    }
});
