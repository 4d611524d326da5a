//! What the owner of a connection can ask it.

use ilp_packet::Address;

use super::event::CloseReason;
use super::rate::Quote;
use super::{AssetDetails, Connection, Finished, Role, State};
use crate::frame::StreamId;
use crate::receipt::Receipt;

impl Connection {
    /// Which end this is.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Where the other end receives.
    pub fn remote_address(&self) -> Option<&Address> {
        self.remote_address.as_ref()
    }

    /// The asset of the other end.
    pub fn remote_asset(&self) -> Option<&AssetDetails> {
        self.remote_asset.as_ref()
    }

    /// Whether an authentic packet of the other end has arrived and the connection is not closed.
    pub fn is_connected(&self) -> bool {
        matches!(self.state, State::Connected)
    }

    /// Why the connection is over, if it is. It may still have to tell the other end.
    pub fn close_reason(&self) -> Option<&CloseReason> {
        match &self.state {
            State::Fresh | State::Connected => None,
            State::Closing { reason, .. } | State::Closed { reason } => Some(reason),
        }
    }

    /// Whether nothing is left to do: the connection is closed, every packet was answered, every
    /// event was taken.
    pub fn is_drained(&self) -> bool {
        matches!(self.state, State::Closed { .. })
            && self.in_flight.is_empty()
            && self.pending_packets == 0
            && !self.closed_unreported
            && self.noteworthy.is_empty()
    }

    /// Sent on a stream so far, in our units; also of the streams that were closed last.
    pub fn stream_sent(&self, stream: StreamId) -> Option<u64> {
        let open = self.streams.get(&stream).map(|state| state.total_sent);
        open.or_else(|| self.finished(stream).map(|it| it.sent))
    }

    /// Received on a stream so far; also of the streams that were closed last.
    pub fn stream_received(&self, stream: StreamId) -> Option<u64> {
        let open = self.streams.get(&stream).map(|state| state.total_received);
        open.or_else(|| self.finished(stream).map(|it| it.received))
    }

    /// The receipt for the most that the other end says to have received on a stream; also of the
    /// streams that were closed last. Only its verifier can tell whether it is genuine.
    pub fn receipt(&self, stream: StreamId) -> Option<&Receipt> {
        match self.streams.get(&stream) {
            Some(state) => state.receipt.as_ref(),
            None => self.finished(stream)?.receipt.as_ref(),
        }
    }

    fn finished(&self, stream: StreamId) -> Option<&Finished> {
        self.finished.iter().find(|it| it.id == stream)
    }

    /// What the path costs; none while it is being asked.
    pub fn quote(&self) -> Option<Quote> {
        self.rate.map(|rate| Quote {
            estimate: rate.estimate,
            minimum: rate.minimum,
            max_packet_amount: self.congestion.path_max(),
        })
    }

    /// Most packets that may be on their way at the moment.
    pub fn window(&self) -> usize {
        self.congestion.window()
    }

    /// Packets on their way.
    pub fn packets_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// What we take on a stream in all.
    pub fn receive_max(&self, stream: StreamId) -> Option<u64> {
        self.streams.get(&stream).map(|state| state.receive_max)
    }

    /// What the other end takes on a stream in all, in its units; zero if it has not said so.
    pub fn remote_receive_max(&self, stream: StreamId) -> Option<u64> {
        self.streams
            .get(&stream)
            .map(|state| state.remote_receive_max)
    }

    /// Sent on a stream and not answered yet, in our units.
    pub fn stream_held(&self, stream: StreamId) -> Option<u64> {
        self.streams.get(&stream).map(|state| state.held)
    }

    /// Bytes that were written to a stream and that the other end has not confirmed.
    pub fn unconfirmed_data(&self, stream: StreamId) -> Option<usize> {
        self.streams.get(&stream).map(|state| state.outgoing.len())
    }

    /// Sent over all streams, in our units.
    pub fn total_sent(&self) -> u64 {
        self.total_sent
    }

    /// Received over all streams.
    pub fn total_received(&self) -> u64 {
        self.total_received
    }

    /// What the other end says has arrived, in its units.
    pub fn total_delivered(&self) -> u64 {
        self.total_delivered
    }

    /// The streams that are not closed.
    pub fn open_streams(&self) -> impl Iterator<Item = StreamId> {
        self.streams
            .values()
            .filter(|state| state.is_open())
            .map(|state| state.id)
    }
}
