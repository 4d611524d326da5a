//! Frames of the other end, whatever packet they came in, and our news to it.

use super::config::{
    CONNECTION_DATA_WINDOW, MAX_CLOSING_STREAMS, MAX_SEQUENCE, REPLY_DATA, REPLY_DATA_MILLIS,
};
use super::event::CloseReason;
use super::stream::{Phase, Stream};
use super::{AssetDetails, Connection, State};
use crate::frame::{Frame, StreamErrorCode, StreamId};
use crate::receipt::Receipt;

/// The other end broke the protocol, and the connection is to be closed with this.
pub(super) struct Violation {
    pub(super) code: StreamErrorCode,
    pub(super) message: String,
}

fn violation<T>(code: StreamErrorCode, message: impl Into<String>) -> Result<T, Violation> {
    Err(Violation {
        code,
        message: message.into(),
    })
}

impl Connection {
    /// Acts on all frames except `StreamMoney`, which only counts in a Prepare that is accepted.
    pub(super) fn handle_frames(&mut self, frames: &[Frame]) -> Result<(), Violation> {
        for frame in frames {
            if !matches!(self.state, State::Fresh | State::Connected) {
                return Ok(());
            }
            self.handle_frame(frame)?;
        }
        Ok(())
    }

    fn handle_frame(&mut self, frame: &Frame) -> Result<(), Violation> {
        match frame {
            Frame::ConnectionClose { code, message } => {
                let (code, message) = (*code, message.clone());
                self.closed(CloseReason::Remote { code, message });
            }
            Frame::ConnectionNewAddress { address } => {
                if self.remote_address.as_ref() != Some(address) {
                    if self.remote_address.is_some() {
                        self.congestion.on_new_path();
                    }
                    self.remote_address = Some(address.clone());
                    // The other end can be told things now.
                    self.news = self.news || !self.streams.is_empty();
                }
            }
            Frame::ConnectionAssetDetails { code, scale } => {
                let told = AssetDetails {
                    code: code.clone(),
                    scale: *scale,
                };
                match &self.remote_asset {
                    Some(known) if *known != told => {
                        return violation(
                            StreamErrorCode::ProtocolViolation,
                            "asset details must not change",
                        );
                    }
                    Some(_) => {}
                    None => self.remote_asset = Some(told),
                }
            }
            Frame::ConnectionMaxData { max_offset } => {
                self.remote_max_data = self.remote_max_data.max(*max_offset);
            }
            Frame::ConnectionMaxStreamId { max_stream_id } => {
                self.remote_max_stream_id = self.remote_max_stream_id.max(*max_stream_id);
                self.streams_blocked =
                    self.streams_blocked && self.next_local_stream > self.remote_max_stream_id;
            }
            Frame::StreamClose {
                stream,
                code,
                message,
            } => {
                // It may be the first that is heard of the stream.
                if self.stream_of_frame(*stream)?.is_some() {
                    self.finish_stream(*stream, *code, message.clone());
                }
            }
            Frame::StreamMoney { stream, .. } => {
                self.stream_of_frame(*stream)?;
            }
            Frame::StreamMaxMoney {
                stream,
                receive_max,
                total_received,
            } => {
                let (receive_max, total_received) = (*receive_max, *total_received);
                if let Some(state) = self.stream_of_frame(*stream)? {
                    state.set_remote_max(receive_max, total_received);
                }
            }
            Frame::StreamMoneyBlocked {
                stream,
                send_max,
                total_sent,
            } => {
                let (send_max, total_sent) = (*send_max, *total_sent);
                if let Some(state) = self.stream_of_frame(*stream)? {
                    state.note_blocked(send_max, total_sent);
                }
            }
            Frame::StreamMaxData { stream, max_offset } => {
                let max_offset = *max_offset;
                if let Some(state) = self.stream_of_frame(*stream)? {
                    state.set_remote_max_data(max_offset);
                }
            }
            Frame::StreamData {
                stream,
                offset,
                data,
            } => {
                let (offset, end) = (*offset, offset.saturating_add(data.len() as u64));
                let (before, after) = match self.stream_of_frame(*stream)? {
                    None => return Ok(()),
                    Some(state) => {
                        if end > state.max_data() {
                            return violation(
                                StreamErrorCode::FlowControlError,
                                format!("data of stream {stream} is beyond its limit"),
                            );
                        }
                        let before = state.incoming.received_to();
                        state.take_data(offset, data);
                        (before, state.incoming.received_to())
                    }
                };
                self.data_received = self.data_received.saturating_add(after - before);
                // Other implementations forget the bytes of streams that are gone, so both counts
                // must be above the limit: all that was ever sent, and what waits to be read.
                if self.data_received > self.told_max_data
                    && self.unread_data() > CONNECTION_DATA_WINDOW
                {
                    return violation(
                        StreamErrorCode::FlowControlError,
                        "data is beyond the limit of the connection",
                    );
                }
            }
            Frame::StreamReceipt { stream, receipt } => {
                let receipt = Receipt::from_bytes(receipt).filter(|it| it.stream() == *stream);
                if let (Some(receipt), Some(state)) = (receipt, self.streams.get_mut(stream)) {
                    state.take_receipt(receipt);
                    self.noteworthy.insert(*stream);
                }
            }
            // Said for debugging only: every packet of ours tells the limits.
            Frame::ConnectionDataBlocked { .. }
            | Frame::ConnectionStreamIdBlocked { .. }
            | Frame::StreamDataBlocked { .. } => {}
        }
        Ok(())
    }

    /// Bytes that arrived and were not read, over all streams.
    fn unread_data(&self) -> u64 {
        let streams = self.streams.values().map(|stream| &stream.incoming);
        streams.fold(0, |sum: u64, incoming| {
            sum.saturating_add(incoming.received_to().saturating_sub(incoming.read_to()))
        })
    }

    /// The stream that a frame is about. A frame for a new stream of the other end opens it, and all
    /// its streams with lower numbers (packets may arrive out of order). None if the stream is gone.
    fn stream_of_frame(&mut self, id: StreamId) -> Result<Option<&mut Stream>, Violation> {
        if id.0 == 0 {
            return violation(StreamErrorCode::ProtocolViolation, "there is no stream 0");
        }
        if self.is_local(id) {
            if id.0 >= self.next_local_stream {
                return violation(
                    StreamErrorCode::ProtocolViolation,
                    format!("stream {id} is ours to open"),
                );
            }
        } else {
            if id.0 > self.local_max_stream_id {
                return violation(
                    StreamErrorCode::StreamIdError,
                    format!("stream {id} is above {}", self.local_max_stream_id),
                );
            }
            while self.next_remote_stream <= id.0 {
                let opened = StreamId(self.next_remote_stream);
                self.next_remote_stream += 2;
                let mut stream = Stream::new(opened);
                stream.note_opened();
                self.streams.insert(opened, stream);
                self.noteworthy.insert(opened);
            }
        }
        self.noteworthy.insert(id);
        Ok(self
            .streams
            .get_mut(&id)
            .filter(|stream| stream.phase != Phase::Over))
    }

    /// Acts on what the other end said, and closes the connection if that was against the rules.
    pub(super) fn take_frames(&mut self, frames: &[Frame]) {
        if let Err(Violation { code, message }) = self.handle_frames(frames) {
            let reason = CloseReason::Local {
                code,
                message: message.clone(),
            };
            self.end(reason, code, &message);
        }
    }

    /// A sequence number was used that no honest end reaches.
    pub(super) fn check_sequence(&mut self, sequence: u64) {
        if sequence >= MAX_SEQUENCE {
            let message = "too many packets with one key";
            let code = StreamErrorCode::ProtocolViolation;
            self.end(
                CloseReason::Local {
                    code,
                    message: message.to_owned(),
                },
                code,
                message,
            );
        }
    }

    /// Our limits, as every packet of ours tells them. Repeating them costs a few bytes per stream
    /// and makes a lost packet harmless.
    pub(super) fn limit_frames(&mut self) -> Vec<Frame> {
        self.told_max_data = self.data_credit.saturating_add(CONNECTION_DATA_WINDOW);
        let mut frames = Vec::with_capacity(4 + 3 * self.streams.len());
        frames.push(Frame::ConnectionMaxData {
            max_offset: self.told_max_data,
        });
        if self.local_max_stream_id > super::INITIAL_MAX_STREAM_ID {
            frames.push(Frame::ConnectionMaxStreamId {
                max_stream_id: self.local_max_stream_id,
            });
        }
        for stream in self.streams.values_mut().filter(|stream| stream.is_open()) {
            stream.told_max_data = stream.max_data();
            frames.push(Frame::StreamMaxMoney {
                stream: stream.id,
                receive_max: stream.receive_max,
                total_received: stream.total_received,
            });
            frames.push(Frame::StreamMaxData {
                stream: stream.id,
                max_offset: stream.told_max_data,
            });
        }
        frames
    }

    /// What a reply says. `introduced`: the request told us who the other end is, so we do too.
    pub(super) fn reply_frames(&mut self, introduced: bool) -> Vec<Frame> {
        match &self.state {
            State::Fresh | State::Connected => {}
            State::Closing {
                reason,
                frames,
                in_flight,
                ..
            } => {
                let (reason, frames) = (reason.clone(), frames.clone());
                if !in_flight {
                    // It is told with this, and to an end that listens. A packet of ours could come
                    // before the reply, and make the other end leave without it.
                    self.closed(reason);
                }
                return frames;
            }
            State::Closed { reason } => {
                let (code, message) = match reason {
                    CloseReason::Local { code, message } => (*code, message.clone()),
                    CloseReason::Remote { .. } => return Vec::new(),
                    CloseReason::Idle { .. }
                    | CloseReason::Rejected { .. }
                    | CloseReason::NoRate { .. }
                    | CloseReason::PacketsTooSmall { .. }
                    | CloseReason::BadRate { .. } => (
                        StreamErrorCode::InternalError,
                        "the connection is over".to_owned(),
                    ),
                };
                return vec![Frame::ConnectionClose { code, message }];
            }
        }
        let mut frames = self.limit_frames();
        if introduced {
            frames.push(Frame::ConnectionMaxStreamId {
                max_stream_id: self.local_max_stream_id,
            });
            if let Some(asset) = &self.config.asset {
                frames.push(Frame::ConnectionAssetDetails {
                    code: asset.code.clone(),
                    scale: asset.scale,
                });
            }
        }
        let no_way_to_send = self.remote_address.is_none();
        // Data rides in replies again and again only where it cannot ride in packets of our own:
        // ilp-protocol-stream 2.7.2-alpha.3 never reads past a piece of data that it has got twice.
        let mut left = if no_way_to_send || self.config.data_in_replies {
            REPLY_DATA
        } else {
            0
        };
        let lost_at = self.last_heard.plus_millis(REPLY_DATA_MILLIS);
        let mut told_of_close = Vec::new();
        for stream in self.streams.values_mut() {
            if stream.phase != Phase::Over && left > 0 {
                let room = self.remote_max_data.saturating_sub(self.data_sent);
                let before = stream.outgoing.sent_to();
                let limit = stream.remote_max_data.min(before.saturating_add(room));
                let pieces = if no_way_to_send {
                    stream.outgoing.repeat(left, limit)
                } else {
                    stream.outgoing.take_into_reply(left, limit, lost_at)
                };
                for (offset, data) in pieces {
                    left -= data.len();
                    frames.push(Frame::StreamData {
                        stream: stream.id,
                        offset,
                        data,
                    });
                }
                self.data_sent += stream.outgoing.sent_to() - before;
            }
            // Without an address this is the only way to say it; nobody can confirm it, nor the data
            // that goes with it.
            if no_way_to_send
                && stream.phase
                    == (Phase::Closing {
                        close_in_flight: false,
                    })
            {
                let (code, message) = stream.close_reason();
                frames.push(Frame::StreamClose {
                    stream: stream.id,
                    code,
                    message: message.clone(),
                });
                told_of_close.push((stream.id, code, message));
            }
        }
        for (id, code, message) in told_of_close {
            self.finish_stream(id, code, message);
        }
        // Whoever introduces itself repeats that until it is answered, and the answer says everything
        // but what we are kept from sending. So a lost answer needs no packet of ours.
        if introduced && self.remote_knows_us && !self.is_blocked() {
            self.news = false;
        }
        frames
    }

    /// The end of a connection, for packets: each open stream ends first.
    ///
    /// Trap: `ilp-protocol-stream` does not end its streams when only their connection is closed, and
    /// `ilp-fetch` would wait for the end of its stream until the idle time-out of a minute.
    pub(super) fn close_frames(&self, code: StreamErrorCode, message: String) -> Vec<Frame> {
        let streams = self.streams.values();
        let ends = streams.filter_map(|stream| match stream.phase {
            Phase::Open => Some((stream.id, code, String::new())),
            Phase::Closing { .. } => {
                let (code, message) = stream.close_reason();
                Some((stream.id, code, message))
            }
            Phase::Over => None,
        });
        let mut frames: Vec<Frame> = ends
            .take(MAX_CLOSING_STREAMS)
            .map(|(stream, code, message)| Frame::StreamClose {
                stream,
                code,
                message,
            })
            .collect();
        frames.push(Frame::ConnectionClose { code, message });
        frames
    }
}
