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

use async_trait::async_trait;
use ilp_connector::{
    AccountConfig, AccountError, AccountId, Attachment, Connector, LedgerAccount, Link, LinkError,
};
use ilp_packet::{Address, Prepare, Reply};
use tokio::sync::Semaphore;

use crate::client_name::ClientName;
use crate::socket::SocketLink;

/// Decides which account a client belongs to.
pub trait Gate: Send + Sync {
    /// Gives the client its place. An older socket of the same client is closed.
    ///
    /// # Errors
    /// If there is no place for it; it is told why and disconnected.
    fn enter(&self, client: &ClientName, link: SocketLink) -> Result<Seat, GateError>;

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
    pub account: AccountId,
    /// The segment below the account, if the account has several clients.
    pub sub_account: Option<Arc<str>>,
    leave: Option<Box<dyn FnOnce() + Send>>,
}

impl Seat {
    /// A place that `leave` gives back.
    #[must_use]
    pub fn new(
        account: AccountId,
        sub_account: Option<Arc<str>>,
        leave: impl FnOnce() + Send + 'static,
    ) -> Self {
        Self {
            account,
            sub_account,
            leave: Some(Box::new(leave)),
        }
    }
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
    entry: u64,
    link: SocketLink,
    /// How it is attached, where every client has an account of its own.
    attachment: Option<Attachment>,
}

impl Roster {
    fn new(max_clients: usize) -> Self {
        Self {
            clients: HashMap::new(),
            entries: 0,
            max_clients,
        }
    }

    fn has_place_for(&self, segment: &str) -> bool {
        self.clients.len() < self.max_clients || self.clients.contains_key(segment)
    }

    /// Adds a client and returns the number of its entry. An older one of the same name is closed.
    fn enter(
        &mut self,
        segment: Arc<str>,
        link: SocketLink,
        attachment: Option<Attachment>,
    ) -> u64 {
        self.entries += 1;
        let client = Client {
            entry: self.entries,
            link,
            attachment,
        };
        if let Some(older) = self.clients.insert(segment, client) {
            older.link.close();
        }
        self.entries
    }

    /// Removes a client, unless a newer one has its name by now.
    fn leave(&mut self, segment: &str, entry: u64) -> Option<Client> {
        if self
            .clients
            .get(segment)
            .is_none_or(|client| client.entry != entry)
        {
            return None;
        }
        self.clients.remove(segment)
    }
}

type SharedRoster = Arc<Mutex<Roster>>;

fn lock(roster: &Mutex<Roster>) -> std::sync::MutexGuard<'_, Roster> {
    roster.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The gate of one pod: every client is a sub-account `<pod address>.<client>` of one account.
///
/// It is the link of that account for as long as it lives.
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
        let address = connector
            .account_address(&account)
            .ok_or_else(|| AccountError::NoAccount(account.clone()))?;
        let roster = Arc::new(Mutex::new(Roster::new(max_clients)));
        let link = PodLink {
            address,
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
        for client in lock(&self.roster).clients.values() {
            client.link.close();
        }
    }
}

impl Gate for PodGate {
    fn enter(&self, client: &ClientName, link: SocketLink) -> Result<Seat, GateError> {
        let segment = client.segment();
        let mut roster = lock(&self.roster);
        if !roster.has_place_for(&segment) {
            return Err(GateError::TooManyClients);
        }
        let entry = roster.enter(segment.clone(), link, None);
        let shared = self.roster.clone();
        Ok(Seat::new(
            self.account.clone(),
            Some(segment.clone()),
            move || {
                lock(&shared).leave(&segment, entry);
            },
        ))
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
    address: Address,
    roster: SharedRoster,
}

#[async_trait]
impl Link for PodLink {
    async fn send(&self, prepare: Prepare) -> Result<Reply, LinkError> {
        let link = {
            let roster = lock(&self.roster);
            let segment = prepare.destination.segment_after(&self.address);
            match segment.and_then(|segment| roster.clients.get(segment)) {
                Some(client) => client.link.clone(),
                // A program that reconnects is away for a moment only.
                None if roster.clients.is_empty() => return Err(LinkError::Closed),
                None => return Err(LinkError::NoDestination),
            }
        };
        link.send(prepare).await
    }
}

/// The gate for programs on the host's own machine: every client has an account of its own,
/// `<prefix>.<client>`, with play money.
pub struct LocalGate {
    connector: Connector,
    prefix: Arc<str>,
    ledger_account: LedgerAccount,
    max_packet_amount: u64,
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
            roster: Arc::new(Mutex::new(Roster::new(max_clients))),
            connections: connections_for(max_clients),
        }
    }

    /// The most that one packet of a client, or to one, may move. Without it there is no such limit.
    #[must_use]
    pub fn with_max_packet_amount(mut self, amount: u64) -> Self {
        self.max_packet_amount = amount;
        self
    }
}

impl Gate for LocalGate {
    fn enter(&self, client: &ClientName, link: SocketLink) -> Result<Seat, GateError> {
        let segment = client.segment();
        // The lock is held throughout, so that entering and leaving cannot mix.
        let mut roster = lock(&self.roster);
        if !roster.has_place_for(&segment) {
            return Err(GateError::TooManyClients);
        }
        let name = format!("{}.{segment}", self.prefix);
        let account = AccountId::new(name.as_str());
        let mut config =
            AccountConfig::child(account.clone(), name, self.ledger_account.clone()).unlimited();
        config.max_packet_amount = self.max_packet_amount;
        match self.connector.open_account(config) {
            // It is the same client's; its older socket is about to be closed.
            Ok(()) | Err(AccountError::AlreadyOpen(_)) => {}
            Err(error) => return Err(error.into()),
        }
        let attachment = self
            .connector
            .attach_link(&account, Arc::new(link.clone()))?;
        let entry = roster.enter(segment.clone(), link, Some(attachment));
        let shared = self.roster.clone();
        let connector = self.connector.clone();
        let leaving = account.clone();
        Ok(Seat::new(account, None, move || {
            let mut roster = lock(&shared);
            if let Some(Client {
                attachment: Some(attachment),
                ..
            }) = roster.leave(&segment, entry)
            {
                connector.detach_link(&leaving, attachment);
                // Cannot fail: only this gate closes the account, and it was still ours.
                let _ = connector.close_account(&leaving);
            }
        }))
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
