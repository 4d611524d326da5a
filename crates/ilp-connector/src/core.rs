//! The decisions of the connector, without I/O: may this packet pass, where does it go, what is
//! held for it, and what happens to the balances when it ends.
//!
//! ```text
//! Prepare ──admit──▶ Rejected (nothing held)
//!            └─────▶ Admitted: amount held on source and destination
//!                       ├─finish(Fulfilled)──▶ hold becomes balance on both
//!                       ├─finish(Rejected, TimedOut, WrongFulfill)──▶ hold is released
//!                       └─finish(InDoubt)──▶ hold is released, both accounts stop
//! ```
//! Every admitted packet is finished exactly once; its [`Ticket`] is consumed by that.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ilp_packet::{
    Address, AmountTooLarge, Condition, ErrorCode, Prepare, Reject, Reply, Timestamp, ildcp,
};

use crate::account::{
    Account, AccountConfig, AccountError, AccountId, AccountOverview, AccountStatistics,
    LedgerAccount, Relation,
};
use crate::connector::ConnectorConfig;
use crate::link::{Attachment, Link};
use crate::receiver::Receiver;
use crate::route::{Lookup, RouteTable, Target, is_route};
use crate::spending::SpendLimit;

/// Where a packet comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Source<'a> {
    /// A neighbour, and the segment below its address if it has several programs.
    Account {
        id: &'a AccountId,
        sub_account: Option<&'a str>,
    },
    /// The host itself.
    Host {
        debit: &'a LedgerAccount,
        limit: &'a SpendLimit,
    },
}

/// Who a packet goes to.
pub(crate) enum NextHop {
    /// A neighbour.
    Link(Arc<dyn Link>),
    /// Somebody inside the host.
    Receiver(Arc<dyn Receiver>),
}

/// A packet that may pass.
pub(crate) struct Admitted {
    pub(crate) ticket: Ticket,
    pub(crate) next: NextHop,
    /// The packet as it goes on, with the expiry of the next hop.
    pub(crate) forward: Prepare,
    /// How long the next hop has.
    pub(crate) wait: Duration,
}

/// What an admitted packet holds. Not `Clone`: it is finished once.
#[derive(Debug)]
pub(crate) struct Ticket {
    payer: Payer,
    payee: Option<Slot>,
    pub(crate) amount: u64,
    pub(crate) reference: Condition,
    pub(crate) debit: LedgerAccount,
    /// Where a neighbour's money is recorded; a receiver names the account itself.
    pub(crate) credit: Option<LedgerAccount>,
}

#[derive(Debug)]
enum Payer {
    Account(Slot),
    Host(SpendLimit),
}

/// Where an account is kept. It stays its own as long as a packet holds something on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slot(usize);

/// How an admitted packet ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was fulfilled, and the movement is durable.
    Fulfilled,
    /// The next hop rejected it or could not be reached.
    Rejected,
    /// The next hop did not answer in time.
    TimedOut,
    /// The next hop's fulfillment does not hash to the condition.
    WrongFulfill,
    /// The movement may or may not be in the ledger.
    InDoubt,
}

/// All accounts, routes and balances.
pub(crate) struct Core {
    config: ConnectorConfig,
    slots: Vec<Option<Account>>,
    free: Vec<Slot>,
    names: HashMap<AccountId, Slot>,
    routes: RouteTable,
    receivers: HashMap<Arc<str>, Arc<dyn Receiver>>,
    parent: Option<AccountId>,
    attachments: u64,
    /// Number of packets that are admitted and not finished.
    in_flight: usize,
    closed: bool,
}

/// A link that an account has lost. It is dropped outside of the lock, because whatever still waits
/// in it comes back to the connector then.
pub(crate) type Unlinked = Option<Arc<dyn Link>>;

impl Core {
    pub(crate) fn new(config: ConnectorConfig) -> Self {
        Self {
            config,
            slots: Vec::new(),
            free: Vec::new(),
            names: HashMap::new(),
            routes: RouteTable::default(),
            receivers: HashMap::new(),
            parent: None,
            attachments: 0,
            in_flight: 0,
            closed: false,
        }
    }

    pub(crate) fn config(&self) -> &ConnectorConfig {
        &self.config
    }

    /// Gives the connector another address of its own, and with it all children.
    pub(crate) fn readdress(&mut self, address: Address) -> Result<(), AccountError> {
        let mut addresses = Vec::new();
        for (at, account) in self.slots.iter().enumerate() {
            let Some(account) = account else { continue };
            if account.config.relation == Relation::Child {
                let segment = &account.config.segment;
                let below = address
                    .with_suffix(segment)
                    .map_err(|_| AccountError::BadSegment(segment.clone()))?;
                addresses.push((at, below));
            }
        }
        for (at, below) in addresses {
            if let Some(account) = &mut self.slots[at] {
                account.address = Some(below);
            }
        }
        self.config.address = address;
        Ok(())
    }

    /// Opens an account. One that is still closing is revived with its balance and its holds, and
    /// the balance in `config` is not used then.
    pub(crate) fn open_account(&mut self, config: AccountConfig) -> Result<(), AccountError> {
        let known = self.names.get(&config.id).copied();
        if let Some(account) = known.and_then(|slot| self.at(slot))
            && !account.closing
        {
            return Err(AccountError::AlreadyOpen(config.id));
        }
        let address = match config.relation {
            Relation::Parent => {
                if self.parent.is_some() {
                    return Err(AccountError::SecondParent);
                }
                None
            }
            Relation::Child => {
                if self.routes.contains(&config.segment) {
                    return Err(AccountError::SegmentTaken(config.segment));
                }
                if !is_route(&config.segment) {
                    return Err(AccountError::BadSegment(config.segment));
                }
                let address = self.config.address.with_suffix(&config.segment);
                Some(address.map_err(|_| AccountError::BadSegment(config.segment.clone()))?)
            }
        };
        match config.relation {
            Relation::Parent => self.parent = Some(config.id.clone()),
            Relation::Child => {
                let target = Target::Account(config.id.clone());
                self.routes.insert(config.segment.clone(), target);
            }
        }
        if let Some(account) = known.and_then(|slot| self.at_mut(slot)) {
            account.config = config;
            account.address = address;
            account.closing = false;
            return Ok(());
        }
        let name = config.id.clone();
        let account = Some(Account::new(config, address));
        let slot = if let Some(slot) = self.free.pop() {
            self.slots[slot.0] = account;
            slot
        } else {
            self.slots.push(account);
            Slot(self.slots.len() - 1)
        };
        self.names.insert(name, slot);
        Ok(())
    }

    /// Closes an account: it disappears for new packets at once, and for good when the packets in
    /// flight are done.
    pub(crate) fn close_account(&mut self, id: &AccountId) -> Result<Unlinked, AccountError> {
        let slot = self.open_slot(id)?;
        let Some(account) = self.at_mut(slot) else {
            return Err(AccountError::NoAccount(id.clone()));
        };
        account.closing = true;
        let link = account.link.take().map(|(_, link)| link);
        let segment = account.config.segment.clone();
        match account.config.relation {
            Relation::Parent => self.parent = None,
            Relation::Child => self.routes.remove(&segment),
        }
        self.forget_if_done(slot);
        Ok(link)
    }

    pub(crate) fn attach(
        &mut self,
        id: &AccountId,
        link: Arc<dyn Link>,
    ) -> Result<(Attachment, Unlinked), AccountError> {
        self.attachments += 1;
        let attachment = Attachment(self.attachments);
        let slot = self.open_slot(id)?;
        let before = self
            .at_mut(slot)
            .and_then(|account| account.link.replace((attachment, link)));
        Ok((attachment, before.map(|(_, link)| link)))
    }

    /// Detaches the link if it is still the one of this attachment.
    pub(crate) fn detach(&mut self, id: &AccountId, attachment: Attachment) -> Unlinked {
        let slot = *self.names.get(id)?;
        let link = &mut self.at_mut(slot)?.link;
        if link.as_ref()?.0 != attachment {
            return None;
        }
        link.take().map(|(_, link)| link)
    }

    pub(crate) fn register_receiver(
        &mut self,
        route: Arc<str>,
        receiver: Arc<dyn Receiver>,
    ) -> Result<(), AccountError> {
        if self.routes.contains(&route) {
            return Err(AccountError::SegmentTaken(route));
        }
        if !is_route(&route) {
            return Err(AccountError::BadSegment(route));
        }
        self.routes
            .insert(route.clone(), Target::Receiver(route.clone()));
        self.receivers.insert(route, receiver);
        Ok(())
    }

    pub(crate) fn account_address(&self, id: &AccountId) -> Option<Address> {
        self.open(id)?.address.clone()
    }

    pub(crate) fn balance(&self, id: &AccountId) -> Option<i128> {
        Some(self.open(id)?.balance)
    }

    pub(crate) fn statistics(&self, id: &AccountId) -> Option<AccountStatistics> {
        Some(self.open(id)?.statistics)
    }

    pub(crate) fn is_stopped(&self, id: &AccountId) -> Option<bool> {
        Some(self.open(id)?.stopped)
    }

    /// Every open account with its balance and statistics, by name.
    pub(crate) fn overview(&self) -> Vec<AccountOverview> {
        let open = self.slots.iter().flatten().filter(|it| !it.closing);
        let mut accounts: Vec<_> = open
            .map(|account| AccountOverview {
                id: account.config.id.clone(),
                relation: account.config.relation,
                address: account.address.clone(),
                connected: account.link.is_some(),
                stopped: account.stopped,
                balance: account.balance,
                in_flight: account.in_flight,
                statistics: account.statistics,
            })
            .collect();
        accounts.sort_by(|a, b| a.id.cmp(&b.id));
        accounts
    }

    /// Notes a reply of this neighbour that replied to nothing.
    pub(crate) fn note_unexpected_reply(&mut self, id: &AccountId) {
        if let Some(&slot) = self.names.get(id)
            && let Some(account) = self.at_mut(slot)
        {
            account.statistics.unexpected_replies_to += 1;
        }
    }

    /// From now on every packet is rejected with T03. Packets in flight go on.
    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    /// Whether it was closed and no packet is in flight.
    pub(crate) fn is_drained(&self) -> bool {
        self.closed && self.in_flight == 0
    }

    /// A Reject of our own.
    pub(crate) fn reject(&self, code: ErrorCode, message: &str) -> Reject {
        Reject::new(code, Some(&self.config.address), message)
    }

    /// Answers a request for configuration (RFC 31) at the edge of the account: before balances
    /// and limits, and even while the connector closes. `None` if the packet is no such request.
    pub(crate) fn answer_ildcp(&self, source: Source<'_>, prepare: &Prepare) -> Option<Reply> {
        if !ildcp::is_request(prepare) {
            return None;
        }
        Some(
            self.ildcp_reply(source, prepare)
                .map_err(|message| self.reject(ErrorCode::BadRequest, message)),
        )
    }

    fn ildcp_reply(
        &self,
        source: Source<'_>,
        prepare: &Prepare,
    ) -> Result<ilp_packet::Fulfill, &'static str> {
        if prepare.condition != ildcp::CONDITION || prepare.amount != 0 {
            return Err("not a request for configuration");
        }
        let Source::Account { id, sub_account } = source else {
            return Err("the host has no parent to ask");
        };
        let address = self
            .open(id)
            .and_then(|account| account.address.as_ref())
            .ok_or("only a child may ask for its configuration")?;
        let client_address = match sub_account {
            None => address.clone(),
            Some(segment) => address
                .with_suffix(segment)
                .map_err(|_| "the account's address is too long")?,
        };
        let response = ildcp::IldcpResponse {
            client_address,
            asset_scale: self.config.asset_scale,
            asset_code: self.config.asset_code.clone(),
        };
        Ok(response.fulfill())
    }

    /// Decides about one packet. On success its amount is held. `steady_ns` is a monotonic reading.
    pub(crate) fn admit(
        &mut self,
        now: Timestamp,
        steady_ns: u64,
        source: Source<'_>,
        prepare: Prepare,
    ) -> Result<Admitted, Reject> {
        let payer = match source {
            Source::Account { id, .. } => self.open_slot(id).ok(),
            Source::Host { .. } => None,
        };
        let admitted = self.decide(now, steady_ns, source, payer, prepare);
        if let Some(account) = payer.and_then(|slot| self.at_mut(slot)) {
            account.statistics.prepares_from += 1;
            if let Err(reject) = &admitted {
                account.statistics.rejects_from += 1;
                match reject.code {
                    ErrorCode::InsufficientLiquidity => account.statistics.insufficient_from += 1,
                    ErrorCode::RateLimited | ErrorCode::ConnectorBusy => {
                        account.statistics.limited_from += 1;
                    }
                    _ => {}
                }
            }
        }
        admitted
    }

    // The order of the checks: cheap ones and those that are the sender's fault first, the ones
    // that may succeed later last.
    fn decide(
        &mut self,
        now: Timestamp,
        steady_ns: u64,
        source: Source<'_>,
        payer: Option<Slot>,
        mut prepare: Prepare,
    ) -> Result<Admitted, Reject> {
        if self.closed {
            return Err(self.reject(ErrorCode::ConnectorBusy, "connector is shutting down"));
        }
        let debit = self.check_source(steady_ns, source, payer, &prepare)?;
        let (expires_at, wait) = self.next_expiry(now, source, &prepare)?;
        let (payee, next) = self.next_hop(source, &prepare.destination)?;
        if let Some(account) = payee.and_then(|slot| self.at(slot)) {
            self.check_amount(account, prepare.amount)?;
            if account.stopped {
                return Err(self.reject(ErrorCode::InternalError, "destination account is stopped"));
            }
            if !account.can_receive(prepare.amount) {
                let message = "destination account has reached its limit";
                return Err(self.reject(ErrorCode::InsufficientLiquidity, message));
            }
        }
        let payer = self.hold(source, payer, prepare.amount)?;
        let credit = payee.and_then(|slot| self.at_mut(slot)).map(|account| {
            account.held_in += u128::from(prepare.amount);
            account.holds += 1;
            account.statistics.prepares_to += 1;
            account.config.ledger_account.clone()
        });
        self.in_flight += 1;
        prepare.expires_at = expires_at;
        let ticket = Ticket {
            payer,
            payee,
            amount: prepare.amount,
            reference: prepare.condition,
            debit,
            credit,
        };
        Ok(Admitted {
            ticket,
            next,
            forward: prepare,
            wait,
        })
    }

    /// Everything that only the source and the packet decide. Returns who pays in the ledger.
    fn check_source(
        &mut self,
        steady_ns: u64,
        source: Source<'_>,
        payer: Option<Slot>,
        prepare: &Prepare,
    ) -> Result<LedgerAccount, Reject> {
        let debit = match source {
            Source::Host { debit, .. } => debit.clone(),
            Source::Account { .. } => {
                let Some(account) = payer.and_then(|slot| self.at_mut(slot)) else {
                    return Err(self.reject(ErrorCode::Unreachable, "source account is not open"));
                };
                if account.stopped {
                    return Err(self.reject(ErrorCode::InternalError, "account is stopped"));
                }
                // Counted whatever becomes of the packet: every one costs us something.
                if !account.limiter.take(steady_ns) {
                    let message = "too many packets per second";
                    return Err(self.reject(ErrorCode::RateLimited, message));
                }
                let busy = account.in_flight >= account.config.max_in_flight_packets;
                let debit = account.config.ledger_account.clone();
                if let Some(account) = payer.and_then(|slot| self.at(slot)) {
                    self.check_amount(account, prepare.amount)?;
                }
                if busy {
                    let message = "too many packets in flight";
                    return Err(self.reject(ErrorCode::ConnectorBusy, message));
                }
                debit
            }
        };
        if prepare.destination.scheme() == "peer" {
            let message = "peer addresses are between neighbours";
            return Err(self.reject(ErrorCode::InvalidPacket, message));
        }
        Ok(debit)
    }

    fn check_amount(&self, account: &Account, amount: u64) -> Result<(), Reject> {
        let maximum = account.config.max_packet_amount;
        if amount <= maximum {
            return Ok(());
        }
        let mut reject = self.reject(ErrorCode::AmountTooLarge, "packet amount is too large");
        reject.data = AmountTooLarge {
            received: amount,
            maximum,
        }
        .encode()
        .into();
        Err(reject)
    }

    /// The expiry that the next hop sees, and how long that is from now.
    ///
    /// A packet of a neighbour loses the message window, the time we need to pass the Fulfill back.
    /// The host's own packets do not, as nobody waits behind them.
    fn next_expiry(
        &self,
        now: Timestamp,
        source: Source<'_>,
        prepare: &Prepare,
    ) -> Result<(Timestamp, Duration), Reject> {
        let window = duration_millis(self.config.min_message_window);
        let longest = now.plus_millis(duration_millis(self.config.max_hold));
        let offered = match source {
            Source::Account { .. } => prepare.expires_at.minus_millis(window),
            Source::Host { .. } => prepare.expires_at,
        };
        let expires_at = offered.min(longest);
        let left = expires_at.millis_since(now);
        if left < window {
            let message = "packet expires too soon";
            return Err(self.reject(ErrorCode::InsufficientTimeout, message));
        }
        Ok((expires_at, Duration::from_millis(left)))
    }

    fn next_hop(
        &self,
        source: Source<'_>,
        destination: &Address,
    ) -> Result<(Option<Slot>, NextHop), Reject> {
        let unreachable = || self.reject(ErrorCode::Unreachable, "no route to the destination");
        let id = match self.routes.lookup(&self.config.address, destination) {
            Lookup::Ourselves => {
                let message = "the connector itself receives no packets";
                return Err(self.reject(ErrorCode::InvalidPacket, message));
            }
            Lookup::Nobody => return Err(unreachable()),
            Lookup::Elsewhere => self.parent.clone().ok_or_else(unreachable)?,
            Lookup::Found(Target::Account(id)) => id,
            Lookup::Found(Target::Receiver(route)) => {
                let receiver = self
                    .receivers
                    .get(&route)
                    .cloned()
                    .ok_or_else(unreachable)?;
                return Ok((None, NextHop::Receiver(receiver)));
            }
        };
        let slot = self.open_slot(&id).map_err(|_| unreachable())?;
        let account = self.at(slot).ok_or_else(unreachable)?;
        if loops_back(source, account, destination) {
            let message = "the destination is where the packet came from";
            return Err(self.reject(ErrorCode::Unreachable, message));
        }
        let Some((_, link)) = &account.link else {
            let message = "the destination is not connected";
            return Err(self.reject(ErrorCode::PeerUnreachable, message));
        };
        Ok((Some(slot), NextHop::Link(link.clone())))
    }

    fn hold(
        &mut self,
        source: Source<'_>,
        payer: Option<Slot>,
        amount: u64,
    ) -> Result<Payer, Reject> {
        match source {
            Source::Host { limit, .. } => {
                if !limit.reserve(amount) {
                    let message = "the payment's limit is reached";
                    return Err(self.reject(ErrorCode::InsufficientLiquidity, message));
                }
                Ok(Payer::Host(limit.clone()))
            }
            Source::Account { .. } => {
                if let Some(slot) = payer
                    && let Some(account) = self.at_mut(slot)
                    && account.can_pay(amount)
                {
                    account.held_out += u128::from(amount);
                    account.in_flight += 1;
                    account.holds += 1;
                    return Ok(Payer::Account(slot));
                }
                let message = "account has insufficient balance";
                Err(self.reject(ErrorCode::InsufficientLiquidity, message))
            }
        }
    }

    /// Ends an admitted packet.
    pub(crate) fn finish(&mut self, ticket: Ticket, outcome: Outcome) {
        self.in_flight -= 1;
        let amount = ticket.amount;
        let fulfilled = outcome == Outcome::Fulfilled;
        match ticket.payer {
            Payer::Host(limit) if fulfilled || outcome == Outcome::InDoubt => limit.spend(amount),
            Payer::Host(limit) => limit.release(amount),
            Payer::Account(slot) => {
                if let Some(account) = self.at_mut(slot) {
                    account.held_out -= u128::from(amount);
                    account.in_flight -= 1;
                    account.holds -= 1;
                    account.stopped |= outcome == Outcome::InDoubt;
                    if fulfilled {
                        account.balance -= i128::from(amount);
                        account.statistics.fulfills_from += 1;
                        account.statistics.amount_from += u128::from(amount);
                    } else {
                        account.statistics.rejects_from += 1;
                    }
                }
                self.forget_if_done(slot);
            }
        }
        let Some(slot) = ticket.payee else { return };
        if let Some(account) = self.at_mut(slot) {
            account.held_in -= u128::from(amount);
            account.holds -= 1;
            account.stopped |= outcome == Outcome::InDoubt;
            let statistics = &mut account.statistics;
            match outcome {
                Outcome::Fulfilled => {
                    account.balance += i128::from(amount);
                    statistics.fulfills_to += 1;
                    statistics.amount_to += u128::from(amount);
                }
                Outcome::TimedOut => statistics.timeouts_to += 1,
                Outcome::WrongFulfill => statistics.wrong_fulfills_to += 1,
                Outcome::Rejected | Outcome::InDoubt => {}
            }
        }
        self.forget_if_done(slot);
    }

    fn forget_if_done(&mut self, slot: Slot) {
        let Some(account) = self.at(slot) else { return };
        if account.closing && account.holds == 0 {
            let name = account.config.id.clone();
            self.names.remove(&name);
            self.slots[slot.0] = None;
            self.free.push(slot);
        }
    }

    fn at(&self, slot: Slot) -> Option<&Account> {
        self.slots.get(slot.0)?.as_ref()
    }

    fn at_mut(&mut self, slot: Slot) -> Option<&mut Account> {
        self.slots.get_mut(slot.0)?.as_mut()
    }

    fn open(&self, id: &AccountId) -> Option<&Account> {
        self.open_slot(id).ok().and_then(|slot| self.at(slot))
    }

    fn open_slot(&self, id: &AccountId) -> Result<Slot, AccountError> {
        let slot = self.names.get(id).copied();
        slot.filter(|slot| self.at(*slot).is_some_and(|account| !account.closing))
            .ok_or_else(|| AccountError::NoAccount(id.clone()))
    }
}

/// Whether the packet would go back to where it came from. Two programs of one pod share its
/// account but not the segment below it, and may pay each other.
fn loops_back(source: Source<'_>, next: &Account, destination: &Address) -> bool {
    let Source::Account { id, sub_account } = source else {
        return false;
    };
    if *id != next.config.id {
        return false;
    }
    let below = next
        .address
        .as_ref()
        .and_then(|address| destination.segment_after(address));
    match (sub_account, below) {
        (Some(from), Some(to)) => from == to,
        _ => true,
    }
}

fn duration_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
