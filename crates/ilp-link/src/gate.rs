//! Who a client is: the gate that it came through decides.
//!
//! ```text
//! socket ──introduced──▶ Gate::enter ──Seat──▶ session ──▶ Seat dropped: the place is free again
//!                              └─ same name again: the old socket is closed, the newest wins
//! ```
//! [`PodGate`] belongs to one account (the pod's); its clients are sub-accounts that share the
//! balance. [`LocalGate`] gives each client an account of its own with play money.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ilp_connector::{
    AccountConfig, AccountError, AccountId, Answer, Attachment, Connector, LedgerAccount, Link,
    LinkError,
};
use ilp_packet::Prepare;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::client_name::ClientName;
use crate::peer::Peer;

/// Clients of one gate that have left while replies were due to them.
const MAX_DEPARTED: usize = 8;
/// For how long their replies are kept. No packet lives longer.
const DEPARTED_FOR: Duration = Duration::from_secs(35);

/// Decides which account a client belongs to.
pub trait Gate: Send + Sync {
    /// Gives the client its place. An older socket of the same client is closed.
    ///
    /// # Errors
    /// If there is no place for it; it is told why and disconnected.
    fn enter(&self, client: &ClientName) -> Result<Seat, GateError>;

    /// One permit for each connection through this gate, from its first byte on. It keeps one pod
    /// from using up the connections of all.
    fn connections(&self) -> Arc<Semaphore>;
}

/// Why a client was not let in. Nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// There are as many clients as allowed. One of them has to go first.
    #[error("too many clients")]
    TooManyClients,
    /// The connector would not open the account.
    #[error("account cannot be opened: {0}")]
    Account(#[from] AccountError),
}

/// The place of one client. It is given back on drop.
pub struct Seat {
    /// The connector's account.
    pub(crate) account: AccountId,
    /// The segment below the account, if the account has several clients.
    pub(crate) sub_account: Option<Arc<str>>,
    /// The client, over all its sockets.
    pub(crate) peer: Peer,
    leave: Option<Box<dyn FnOnce() + Send>>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(leave) = self.leave.take() {
            leave();
        }
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat")
            .field("account", &self.account)
            .field("sub_account", &self.sub_account)
            .finish_non_exhaustive()
    }
}

/// The clients of one gate, by segment. The newest socket of a name wins.
#[derive(Debug)]
struct Roster {
    clients: HashMap<Arc<str>, Client>,
    entries: u64,
    max_clients: usize,
}

#[derive(Debug)]
struct Client {
    /// Which entry of this client is the newest.
    entry: u64,
    peer: Peer,
    /// How it is attached, where every client has an account of its own.
    attachment: Option<Attachment>,
    /// It has left, and replies are due to it.
    left_at: Option<Instant>,
}

impl Roster {
    fn new(max_clients: usize) -> Self {
        Self {
            clients: HashMap::new(),
            entries: 0,
            max_clients,
        }
    }

    /// Connected clients, with room for the one of this segment.
    fn has_place_for(&self, segment: &str) -> bool {
        let others = self
            .clients
            .iter()
            .filter(|(name, client)| client.left_at.is_none() && name.as_ref() != segment);
        others.count() < self.max_clients
    }

    /// The client of this segment, which is new or was here before.
    fn peer(&self, segment: &str) -> Peer {
        let known = self.clients.get(segment).map(|client| client.peer.clone());
        known.unwrap_or_else(Peer::new)
    }

    /// Adds a client and returns the number of its entry.
    fn enter(&mut self, segment: Arc<str>, peer: Peer, attachment: Option<Attachment>) -> u64 {
        self.entries += 1;
        let client = Client {
            entry: self.entries,
            peer,
            attachment,
            left_at: None,
        };
        self.clients.insert(segment, client);
        self.entries
    }

    /// A client leaves, unless a newer entry has its name by now. How it was attached comes back.
    fn leave(&mut self, segment: &str, entry: u64) -> Option<Attachment> {
        let client = self.clients.get_mut(segment)?;
        if client.entry != entry {
            return None;
        }
        let attachment = client.attachment.take();
        if client.peer.is_done() {
            self.clients.remove(segment);
        } else {
            client.left_at = Some(Instant::now());
            self.forget_departed();
        }
        attachment
    }

    fn forget_departed(&mut self) {
        self.clients.retain(|_, client| {
            client
                .left_at
                .is_none_or(|left_at| left_at.elapsed() < DEPARTED_FOR)
        });
        let departed = |client: &Client| client.left_at.is_some();
        while self.clients.values().filter(|it| departed(it)).count() > MAX_DEPARTED {
            let oldest = self
                .clients
                .iter()
                .filter(|(_, client)| departed(client))
                .min_by_key(|(_, client)| client.entry)
                .map(|(name, _)| name.clone());
            let Some(oldest) = oldest else { return };
            self.clients.remove(&oldest);
        }
    }

    fn close(&self) {
        for client in self.clients.values() {
            client.peer.close();
        }
    }
}

type SharedRoster = Arc<Mutex<Roster>>;

fn lock(roster: &Mutex<Roster>) -> std::sync::MutexGuard<'_, Roster> {
    roster.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The gate of one pod: every client is a sub-account `<pod address>.<client>` of one account.
///
/// It is the link of that account for as long as it lives. (That link holds the connector; it is
/// detached when the gate is dropped.)
pub struct PodGate {
    connector: Connector,
    account: AccountId,
    attachment: Attachment,
    roster: SharedRoster,
    connections: Arc<Semaphore>,
}

impl PodGate {
    /// Most clients of one pod unless said otherwise.
    pub const DEFAULT_MAX_CLIENTS: usize = 64;

    /// The gate of an open account, which it attaches itself to.
    ///
    /// # Errors
    /// If there is no such account or it is not a child.
    pub fn new(
        connector: &Connector,
        account: AccountId,
        max_clients: usize,
    ) -> Result<Self, AccountError> {
        if connector.account_address(&account).is_none() {
            return Err(AccountError::NoAccount(account));
        }
        let roster = Arc::new(Mutex::new(Roster::new(max_clients)));
        let link = PodLink {
            connector: connector.clone(),
            account: account.clone(),
            roster: roster.clone(),
        };
        let attachment = connector.attach_link(&account, Arc::new(link))?;
        Ok(Self {
            connector: connector.clone(),
            account,
            attachment,
            roster,
            connections: connections_for(max_clients),
        })
    }

    /// Closes all sockets of the pod.
    pub fn close(&self) {
        lock(&self.roster).close();
    }
}

impl Gate for PodGate {
    fn enter(&self, client: &ClientName) -> Result<Seat, GateError> {
        let segment = client.segment();
        let mut roster = lock(&self.roster);
        if !roster.has_place_for(&segment) {
            return Err(GateError::TooManyClients);
        }
        let peer = roster.peer(&segment);
        let entry = roster.enter(segment.clone(), peer.clone(), None);
        let shared = self.roster.clone();
        let sub_account = Some(segment.clone());
        Ok(Seat {
            account: self.account.clone(),
            sub_account,
            peer,
            leave: Some(Box::new(move || {
                lock(&shared).leave(&segment, entry);
            })),
        })
    }

    fn connections(&self) -> Arc<Semaphore> {
        self.connections.clone()
    }
}

impl Drop for PodGate {
    fn drop(&mut self) {
        self.connector.detach_link(&self.account, self.attachment);
        self.close();
    }
}

impl fmt::Debug for PodGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PodGate")
            .field("account", &self.account)
            .finish_non_exhaustive()
    }
}

/// Sends to the client that the address names.
struct PodLink {
    connector: Connector,
    account: AccountId,
    roster: SharedRoster,
}

impl Link for PodLink {
    fn send(&self, prepare: Prepare, answer: Answer) {
        // Asked each time, because a parent may give the connector another address.
        let own = self.connector.account_address(&self.account);
        let found = {
            let roster = lock(&self.roster);
            let segment = own
                .as_ref()
                .and_then(|own| prepare.destination.segment_after(own));
            match segment.and_then(|segment| roster.clients.get(segment)) {
                Some(client) => Ok(client.peer.clone()),
                // A program that reconnects is away for a moment only.
                None if roster.clients.is_empty() => Err(LinkError::Closed),
                None => Err(LinkError::NoDestination),
            }
        };
        match found {
            Ok(peer) => peer.send(prepare, answer),
            Err(error) => answer.complete(Err(error)),
        }
    }
}

/// The gate for programs on the host's own machine: every client has an account of its own,
/// `<prefix>.<client>`, with play money.
pub struct LocalGate {
    connector: Connector,
    prefix: Arc<str>,
    ledger_account: LedgerAccount,
    max_packet_amount: u64,
    max_packets_per_sec: Option<u32>,
    roster: SharedRoster,
    connections: Arc<Semaphore>,
}

impl LocalGate {
    /// Most clients unless said otherwise.
    pub const DEFAULT_MAX_CLIENTS: usize = 256;

    /// A gate whose clients live below the segment `prefix` and are recorded together as
    /// `ledger_account`.
    #[must_use]
    pub fn new(
        connector: &Connector,
        prefix: &str,
        ledger_account: LedgerAccount,
        max_clients: usize,
    ) -> Self {
        Self {
            connector: connector.clone(),
            prefix: prefix.into(),
            ledger_account,
            max_packet_amount: u64::MAX,
            max_packets_per_sec: None,
            roster: Arc::new(Mutex::new(Roster::new(max_clients))),
            connections: connections_for(max_clients),
        }
    }

    /// The same with limits for the packets of each client.
    #[must_use]
    pub fn with_limits(mut self, max_packet_amount: u64, max_packets_per_sec: Option<u32>) -> Self {
        self.max_packet_amount = max_packet_amount;
        self.max_packets_per_sec = max_packets_per_sec;
        self
    }
}

impl Gate for LocalGate {
    fn enter(&self, client: &ClientName) -> Result<Seat, GateError> {
        let segment = client.segment();
        // The lock is held throughout, so that entering and leaving cannot mix.
        let mut roster = lock(&self.roster);
        if !roster.has_place_for(&segment) {
            return Err(GateError::TooManyClients);
        }
        let name = format!("{}.{segment}", self.prefix);
        let account = AccountId::new(name.as_str());
        let config = AccountConfig {
            max_packet_amount: self.max_packet_amount,
            max_packets_per_sec: self.max_packets_per_sec,
            ..AccountConfig::child(account.clone(), name, self.ledger_account.clone()).unlimited()
        };
        match self.connector.open_account(config) {
            // It is the same client's; its older socket is about to be closed.
            Ok(()) | Err(AccountError::AlreadyOpen(_)) => {}
            Err(error) => return Err(error.into()),
        }
        let peer = roster.peer(&segment);
        let attachment = self
            .connector
            .attach_link(&account, Arc::new(peer.clone()))?;
        let entry = roster.enter(segment.clone(), peer.clone(), Some(attachment));
        let shared = self.roster.clone();
        let connector = self.connector.clone();
        let leaving = account.clone();
        let leave = move || {
            let mut roster = lock(&shared);
            if let Some(attachment) = roster.leave(&segment, entry) {
                connector.detach_link(&leaving, attachment);
                // Cannot fail: only this gate closes the account, and it was still ours.
                let _ = connector.close_account(&leaving);
            }
        };
        Ok(Seat {
            account,
            sub_account: None,
            peer,
            leave: Some(Box::new(leave)),
        })
    }

    fn connections(&self) -> Arc<Semaphore> {
        self.connections.clone()
    }
}

impl fmt::Debug for LocalGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalGate")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// A client that reconnects has two sockets for a moment, so there is room for half as many more
/// connections than clients.
fn connections_for(max_clients: usize) -> Arc<Semaphore> {
    let permits = max_clients.saturating_add(max_clients.div_ceil(2));
    Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)))
}
