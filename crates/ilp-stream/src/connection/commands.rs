//! What the owner of a connection tells it.

use bytes::Bytes;

use super::config::{CONNECTION_DATA_WINDOW, MAX_SEND_BUFFER, STREAM_DATA_WINDOW};
use super::event::{CloseReason, CommandError};
use super::stream::{Phase, Stream};
use super::{Connection, shortened};
use crate::frame::{StreamErrorCode, StreamId};

impl Connection {
    /// Opens a stream. The other end hears of it with the next packet.
    pub fn open_stream(&mut self) -> Result<StreamId, CommandError> {
        self.check_alive()?;
        if self.next_local_stream > self.remote_max_stream_id {
            // The other end is told, and asked again, until it allows more.
            self.streams_blocked = true;
            self.news = true;
            return Err(CommandError::TooManyStreams);
        }
        let id = StreamId(self.next_local_stream);
        self.next_local_stream += 2;
        self.streams.insert(id, Stream::new(id));
        self.news = true;
        Ok(id)
    }

    /// Sets how much may be sent on a stream in all, in our units. It is sent as soon and as far as
    /// the other end takes it.
    pub fn set_send_max(&mut self, stream: StreamId, send_max: u64) -> Result<(), CommandError> {
        let rate = self.rate;
        let state = self.open_stream_mut(stream)?;
        let least = state.total_sent + state.held;
        if send_max < least {
            return Err(CommandError::LimitTooLow {
                wanted: send_max,
                least,
            });
        }
        state.send_max = send_max;
        state.stopped = false;
        let blocked = state.is_money_blocked(rate);
        if rate.is_some_and(|rate| state.check_deliverable(rate)) {
            self.noteworthy.insert(stream);
        }
        self.news = self.news || blocked;
        Ok(())
    }

    /// Sends no more money on a stream until [`Self::set_send_max`]. What is on its way may still arrive; what
    /// is lost of it is not sent again.
    pub fn stop_sending(&mut self, stream: StreamId) -> Result<(), CommandError> {
        self.open_stream_mut(stream)?.stopped = true;
        Ok(())
    }

    /// Sets how much is taken on a stream in all, in our units. It can only be raised (RFC 29
    /// section 4.4.4).
    pub fn set_receive_max(
        &mut self,
        stream: StreamId,
        receive_max: u64,
    ) -> Result<(), CommandError> {
        let state = self.open_stream_mut(stream)?;
        if receive_max < state.receive_max {
            let least = state.receive_max;
            return Err(CommandError::LimitTooLow {
                wanted: receive_max,
                least,
            });
        }
        if receive_max > state.receive_max {
            state.receive_max = receive_max;
            self.news = true;
        }
        Ok(())
    }

    /// Appends data to a stream.
    pub fn write(&mut self, stream: StreamId, data: Bytes) -> Result<(), CommandError> {
        let state = self.open_stream_mut(stream)?;
        if state.outgoing.len() + data.len() > MAX_SEND_BUFFER {
            return Err(CommandError::BufferFull);
        }
        state.outgoing.push(data);
        Ok(())
    }

    /// Takes the bytes of a stream that have arrived, in order; none if there are none at the moment.
    /// Reading is what lets the other end send more.
    pub fn read(&mut self, stream: StreamId) -> Option<Bytes> {
        let state = self.streams.get_mut(&stream)?;
        let data = state.incoming.read()?;
        // The end of a stream is reported when its data was read.
        self.noteworthy.insert(stream);
        match state.phase {
            Phase::Over => return Some(data),
            Phase::Open | Phase::Closing { .. } => {}
        }
        self.data_credit = self.data_credit.saturating_add(data.len() as u64);
        // Say so before the other end has used up what we told it.
        let stream_grows = state.is_open()
            && state.max_data().saturating_sub(state.told_max_data) >= STREAM_DATA_WINDOW / 2;
        let max_data = self.data_credit.saturating_add(CONNECTION_DATA_WINDOW);
        let connection_grows =
            max_data.saturating_sub(self.told_max_data) >= CONNECTION_DATA_WINDOW / 2;
        self.news = self.news || stream_grows || connection_grows;
        Some(data)
    }

    /// Closes a stream. Data that was written, and money that the other end takes, still goes out
    /// first.
    pub fn close_stream(
        &mut self,
        stream: StreamId,
        code: StreamErrorCode,
        message: &str,
    ) -> Result<(), CommandError> {
        let message = shortened(message);
        let state = self.open_stream_mut(stream)?;
        state.phase = Phase::Closing {
            close_in_flight: false,
        };
        state.note_closing(code, message);
        self.news = true;
        Ok(())
    }

    /// Closes the connection. Money that waits is not sent any more; what is on its way is counted.
    pub fn close(&mut self, code: StreamErrorCode, message: &str) {
        let reason = CloseReason::Local {
            code,
            message: shortened(message),
        };
        self.end(reason, code, message);
    }
}
