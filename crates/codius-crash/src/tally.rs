//! What the clients know of their money, packet by packet.
//!
//! A packet that was fulfilled is in the host's books, because it was recorded before the Fulfill left.
//! One whose answer was lost may be. A packet of the host's that a client has fulfilled is in the books
//! only when the host has heard of it: an answer to the request that it belongs to shows that.

/// In the smallest unit of the host's asset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Sent and fulfilled.
    pub paid: u64,
    /// Sent, and nobody knows what became of it.
    pub perhaps_paid: u64,
    /// Received, and the host knows that.
    pub received: u64,
    /// Received, and the host may have been killed before it knew.
    pub perhaps_received: u64,
}

impl Tally {
    pub fn add(&mut self, other: Self) {
        self.paid += other.paid;
        self.perhaps_paid += other.perhaps_paid;
        self.received += other.received;
        self.perhaps_received += other.perhaps_received;
    }
}

/// What a host has told a client, which must be true from then on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// A lease of this hash was paid for and ran.
    Placed { hash: String },
    /// A lease of this hash is over and has cost so much.
    Stopped { hash: String, used: u64 },
}
