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

use super::config::STREAM_DATA_WINDOW;
use super::data::{ReceiveBuffer, SendBuffer};
use super::event::Event;
use super::rate::PathRate;
use crate::frame::{StreamErrorCode, StreamId};
use crate::receipt::Receipt;

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
    readable: bool,
    undeliverable: bool,
    receipt: bool,
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
    /// Nothing more is sent, not even what is lost on its way.
    pub(super) stopped: bool,
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
    /// The highest that it said so before any data was sent: what it holds without reading.
    remote_data_window: Option<u64>,
    pub(super) incoming: ReceiveBuffer,
    /// What we last said we take of its data.
    pub(super) told_max_data: u64,

    /// An amount that the application knows to be too little to arrive.
    told_undeliverable: Option<u64>,
    /// The receipt for the most that the other end has given us.
    pub(super) receipt: Option<Receipt>,

    unreported: Unreported,
}

impl Stream {
    pub(super) fn new(id: StreamId) -> Self {
        Self {
            id,
            phase: Phase::Open,
            send_max: 0,
            stopped: false,
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
            remote_data_window: None,
            incoming: ReceiveBuffer::default(),
            told_max_data: STREAM_DATA_WINDOW,
            told_undeliverable: None,
            receipt: None,
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
        if self.stopped {
            return 0;
        }
        self.send_max
            .saturating_sub(self.total_sent)
            .saturating_sub(self.held)
    }

    /// What one packet with room for `most` can take now, in our units. Nothing if nothing of it
    /// would arrive, or if nobody knows what would.
    pub(super) fn sendable(&self, rate: Option<PathRate>, most: u64) -> u64 {
        self.sendable_with_spare(rate, most, 0)
    }

    /// The same if `spare` units of what the other end takes are left free.
    pub(super) fn sendable_with_spare(&self, rate: Option<PathRate>, most: u64, spare: u64) -> u64 {
        let Some(rate) = rate.filter(|_| self.phase != Phase::Over) else {
            return 0;
        };
        let wanted = self.wanted();
        if wanted == 0 {
            return 0;
        }
        let room = self.remote_room().saturating_sub(spare);
        let amount = wanted.min(rate.estimate.sendable(room)).min(most);
        if rate.estimate.arriving(amount) == 0 {
            return 0;
        }
        amount
    }

    /// More is wanted than the other end takes.
    pub(super) fn is_money_blocked(&self, rate: Option<PathRate>) -> bool {
        let wanted = self.wanted();
        self.is_open()
            && wanted > 0
            && match rate {
                Some(rate) => wanted > rate.estimate.sendable(self.remote_room()),
                None => self.remote_room() == 0,
            }
    }

    /// Money is to be sent, as soon as the other end takes it.
    pub(super) fn wants_to_send(&self) -> bool {
        self.phase != Phase::Over && self.wanted() > 0
    }

    /// Notes that what is left is too little to arrive. True if there is news for the application.
    pub(super) fn check_deliverable(&mut self, rate: PathRate) -> bool {
        let wanted = self.wanted();
        let too_little = self.is_open() && wanted > 0 && rate.estimate.arriving(wanted) == 0;
        let news = too_little && self.held == 0 && self.told_undeliverable != Some(wanted);
        if news {
            self.told_undeliverable = Some(wanted);
            self.unreported.undeliverable = true;
        }
        news
    }

    /// Data waits that the other end does not take.
    pub(super) fn is_data_blocked(&self, connection_room: u64) -> bool {
        self.outgoing.next_offset().is_some() && !self.has_data_to_send(connection_room)
    }

    /// Data waits that the other end takes; bytes that were sent before do not count again.
    pub(super) fn has_data_to_send(&self, connection_room: u64) -> bool {
        self.outgoing.next_offset().is_some_and(|offset| {
            offset < self.remote_max_data
                && (connection_room > 0 || offset < self.outgoing.sent_to())
        })
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

    /// The other end takes data up to an offset. It takes more only when it has read something.
    pub(super) fn set_remote_max_data(&mut self, max_offset: u64) {
        if self.outgoing.sent_to() == 0 {
            self.remote_data_window = self.remote_data_window.max(Some(max_offset));
        }
        self.remote_max_data = self.remote_max_data.max(max_offset);
        if let Some(window) = self.remote_data_window {
            self.outgoing.was_read(max_offset.saturating_sub(window));
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
    pub(super) fn is_ready_to_close(&self, rate: Option<PathRate>) -> bool {
        self.phase
            == Phase::Closing {
                close_in_flight: false,
            }
            && self.outgoing.is_drained()
            && self.held == 0
            && (rate.is_some() || self.wanted() == 0)
            && self.sendable(rate, u64::MAX) == 0
    }

    /// Nothing of the stream is on its way and the application knows everything.
    pub(super) fn is_removable(&self) -> bool {
        self.phase == Phase::Over
            && self.held == 0
            && self.pending_packets == 0
            && self.unreported.closed.is_none()
            && !self.incoming.is_readable()
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
        if std::mem::take(&mut unreported.readable) && self.incoming.is_readable() {
            return Some(Event::Readable { stream });
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
        if std::mem::take(&mut unreported.receipt)
            && let Some(receipt) = &self.receipt
        {
            let total_received = receipt.total_received();
            return Some(Event::Receipt {
                stream,
                total_received,
            });
        }
        if std::mem::take(&mut unreported.undeliverable) {
            let amount = self.send_max.saturating_sub(self.total_sent);
            return Some(Event::Undeliverable { stream, amount });
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
        let settled = self.held == 0 && self.pending_packets == 0 && !self.incoming.is_readable();
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
            self.unreported.readable = self.unreported.readable || self.incoming.is_readable();
        }
    }

    /// The other end gave a receipt. The one for the most counts, whatever the order.
    pub(super) fn take_receipt(&mut self, receipt: Receipt) {
        let known = self.receipt.as_ref().map(Receipt::total_received);
        if known.is_none_or(|known| receipt.total_received() > known) {
            self.receipt = Some(receipt);
            self.unreported.receipt = true;
        }
    }
}
