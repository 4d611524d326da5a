//! One stream of a connection: its money in both directions, its data, and its end.
//!
//! ```text
//! Open ──close_stream──▶ Closing ──StreamClose confirmed──▶ Over ──event taken──▶ (removed)
//!   └──────StreamClose of the other end─────────────────────▲
//! ```
//!
//! A stream is removed only when nothing of it is on its way any more, so that a late Fulfill is
//! still counted.

use bytes::Bytes;

use super::config::{Rate, STREAM_DATA_WINDOW};
use super::data::{ReceiveBuffer, SendBuffer};
use super::event::Event;
use crate::frame::{StreamErrorCode, StreamId};

/// Life of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    /// Everything goes.
    Open,
    /// Our application closed it. What was written is still sent, then the close itself.
    Closing {
        /// The close is on its way.
        close_in_flight: bool,
    },
    /// Both ends know.
    Over,
}

/// What the application was not told yet.
#[derive(Debug, Default)]
struct Unreported {
    opened: bool,
    received: u64,
    sent: u64,
    remote_max: bool,
    blocked: Option<(u64, u64)>,
    closed: Option<(StreamErrorCode, String)>,
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: StreamId,
    pub(super) phase: Phase,

    /// Most that our application wants to send, in our units.
    pub(super) send_max: u64,
    /// Fulfilled, in our units.
    pub(super) total_sent: u64,
    /// On its way, in our units.
    pub(super) held: u64,
    /// The least that may arrive of what is on its way, in units of the other end.
    held_arriving: u64,
    /// What arrived of what was fulfilled, in units of the other end.
    delivered: u64,
    /// What the other end takes; zero until it says so, in its units.
    pub(super) remote_receive_max: u64,
    remote_total_received: u64,

    /// Most that we take.
    pub(super) receive_max: u64,
    /// Committed.
    pub(super) total_received: u64,
    /// Accepted and neither committed nor refused.
    pub(super) pending: u64,
    /// Accepted packets that are neither committed nor refused.
    pub(super) pending_packets: usize,

    pub(super) outgoing: SendBuffer,
    /// Highest offset that the other end takes.
    pub(super) remote_max_data: u64,
    pub(super) incoming: ReceiveBuffer,

    unreported: Unreported,
}

impl Stream {
    pub(super) fn new(id: StreamId) -> Self {
        Self {
            id,
            phase: Phase::Open,
            send_max: 0,
            total_sent: 0,
            held: 0,
            held_arriving: 0,
            delivered: 0,
            remote_receive_max: 0,
            remote_total_received: 0,
            receive_max: 0,
            total_received: 0,
            pending: 0,
            pending_packets: 0,
            outgoing: SendBuffer::default(),
            // What an end assumes until it is told; the other implementations assume the same.
            remote_max_data: STREAM_DATA_WINDOW,
            incoming: ReceiveBuffer::default(),
            unreported: Unreported::default(),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// What the other end still takes, in its units, if all that is on its way arrives.
    fn remote_room(&self) -> u64 {
        let arrived = self.remote_total_received.max(self.delivered);
        self.remote_receive_max
            .saturating_sub(arrived)
            .saturating_sub(self.held_arriving)
    }

    /// What our application still wants to send, in our units.
    fn wanted(&self) -> u64 {
        self.send_max
            .saturating_sub(self.total_sent)
            .saturating_sub(self.held)
    }

    /// What can be sent now, in our units.
    pub(super) fn sendable(&self, rate: Rate) -> u64 {
        if self.phase == Phase::Over {
            return 0;
        }
        self.wanted().min(rate.sendable(self.remote_room()))
    }

    /// More is wanted than the other end takes.
    pub(super) fn is_money_blocked(&self, rate: Rate) -> bool {
        self.is_open() && self.wanted() > rate.sendable(self.remote_room())
    }

    pub(super) fn hold(&mut self, amount: u64, arriving: u64) {
        self.held += amount;
        self.held_arriving = self.held_arriving.saturating_add(arriving);
    }

    pub(super) fn release(&mut self, amount: u64, arriving: u64) {
        self.held -= amount;
        self.held_arriving = self.held_arriving.saturating_sub(arriving);
    }

    /// A held amount was fulfilled and `delivered` arrived.
    pub(super) fn sent(&mut self, amount: u64, delivered: u64) {
        self.total_sent += amount;
        self.delivered = self.delivered.saturating_add(delivered);
        self.unreported.sent += amount;
    }

    /// What may arrive beyond what was committed and accepted. `tolerance` is in thousandths.
    pub(super) fn receivable(&self, tolerance: u64) -> u64 {
        let room = self
            .receive_max
            .saturating_sub(self.total_received + self.pending);
        let extra = (u128::from(room) * u128::from(tolerance)).div_ceil(1_000);
        let most = u64::MAX - self.total_received - self.pending;
        room.saturating_add(u64::try_from(extra).unwrap_or(u64::MAX))
            .min(most)
    }

    pub(super) fn received(&mut self, amount: u64) {
        self.total_received += amount;
        self.unreported.received += amount;
    }

    pub(super) fn set_remote_max(&mut self, receive_max: u64, total_received: u64) {
        let before = (self.remote_receive_max, self.remote_total_received);
        self.remote_receive_max = self.remote_receive_max.max(receive_max);
        self.remote_total_received = self.remote_total_received.max(total_received);
        if before != (self.remote_receive_max, self.remote_total_received) {
            self.unreported.remote_max = true;
        }
    }

    pub(super) fn note_opened(&mut self) {
        self.unreported.opened = true;
    }

    pub(super) fn note_blocked(&mut self, send_max: u64, total_sent: u64) {
        self.unreported.blocked = Some((send_max, total_sent));
    }

    /// Nothing more is sent or taken. What is on its way is still counted.
    pub(super) fn finish(&mut self, code: StreamErrorCode, message: String) {
        if self.phase != Phase::Over {
            self.phase = Phase::Over;
            self.outgoing.clear();
            self.send_max = self.total_sent + self.held;
            self.unreported.closed.get_or_insert((code, message));
        }
    }

    /// Our own close was decided; what is reported when it is done.
    pub(super) fn note_closing(&mut self, code: StreamErrorCode, message: String) {
        self.unreported.closed = Some((code, message));
    }

    /// How our application closed the stream.
    pub(super) fn close_reason(&self) -> (StreamErrorCode, String) {
        self.unreported
            .closed
            .clone()
            .unwrap_or((StreamErrorCode::NoError, String::new()))
    }

    /// Everything that was to be sent before the close is sent and confirmed.
    pub(super) fn is_ready_to_close(&self, rate: Rate) -> bool {
        self.phase
            == Phase::Closing {
                close_in_flight: false,
            }
            && self.outgoing.is_drained()
            && self.held == 0
            && self.sendable(rate) == 0
    }

    /// Nothing of the stream is on its way and the application knows everything.
    pub(super) fn is_removable(&self) -> bool {
        self.phase == Phase::Over
            && self.held == 0
            && self.pending_packets == 0
            && self.unreported.closed.is_none()
    }

    /// Offset up to which we take data.
    pub(super) fn max_data(&self) -> u64 {
        self.incoming.read_to().saturating_add(STREAM_DATA_WINDOW)
    }

    /// The next thing the application should know.
    pub(super) fn poll_event(&mut self) -> Option<Event> {
        let stream = self.id;
        let unreported = &mut self.unreported;
        if std::mem::take(&mut unreported.opened) {
            return Some(Event::StreamOpened { stream });
        }
        if let Some(data) = self.incoming.read() {
            return Some(Event::Data { stream, data });
        }
        if unreported.received > 0 {
            let amount = std::mem::take(&mut unreported.received);
            return Some(Event::MoneyReceived {
                stream,
                amount,
                total: self.total_received,
            });
        }
        if unreported.sent > 0 {
            let amount = std::mem::take(&mut unreported.sent);
            return Some(Event::MoneySent {
                stream,
                amount,
                total: self.total_sent,
            });
        }
        if std::mem::take(&mut unreported.remote_max) {
            return Some(Event::RemoteMaxMoney {
                stream,
                receive_max: self.remote_receive_max,
                total_received: self.remote_total_received,
            });
        }
        if let Some((send_max, total_sent)) = unreported.blocked.take() {
            return Some(Event::MoneyBlocked {
                stream,
                send_max,
                total_sent,
            });
        }
        // The last word on a stream, when no packet can change its totals any more.
        let settled = self.held == 0 && self.pending_packets == 0;
        if self.phase == Phase::Over && settled {
            let (code, message) = unreported.closed.take()?;
            return Some(Event::StreamClosed {
                stream,
                code,
                message,
            });
        }
        None
    }

    /// A piece of data arrived. The caller has checked that it is within the window.
    pub(super) fn take_data(&mut self, offset: u64, data: &Bytes) {
        if self.phase != Phase::Over {
            self.incoming.insert(offset, data);
        }
    }
}
