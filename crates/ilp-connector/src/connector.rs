//! The connector as the rest of the host sees it: performs the decisions of `core` on tokio.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ilp_packet::{Address, ErrorCode, Prepare, Reject, Reply};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::account::{
    AccountConfig, AccountError, AccountId, AccountOverview, AccountStatistics, LedgerAccount,
};
use crate::answer::Answer;
use crate::clock::Clock;
use crate::core::{Admitted, Core, NextHop, Outcome, Source, Ticket};
use crate::ledger::Ledger;
use crate::link::{Attachment, Link};
use crate::passage::Passage;
use crate::receiver::Receiver;
use crate::reception::Reception;
use crate::reply::{Dispatch, ReplyTo};
use crate::spending::SpendLimit;

/// What a connector is.
#[derive(Debug, Clone)]
pub struct ConnectorConfig {
    /// Our own address. Children are below it.
    pub address: Address,
    /// The one asset of all accounts, such as `XRP`.
    pub asset_code: String,
    /// Amounts are in units of 10^-scale of the asset.
    pub asset_scale: u8,
    /// Longest time that a packet may be held.
    pub max_hold: Duration,
    /// What we need to pass a Fulfill back; each packet's expiry is lowered by it.
    pub min_message_window: Duration,
}

impl ConnectorConfig {
    /// A connector with the usual times: 30 s of hold, a window of 1 s.
    #[must_use]
    pub fn new(address: Address, asset_code: impl Into<String>, asset_scale: u8) -> Self {
        Self {
            address,
            asset_code: asset_code.into(),
            asset_scale,
            max_hold: Duration::from_secs(30),
            min_message_window: Duration::from_secs(1),
        }
    }
}

/// An ILPv4 connector. Clones are the same connector.
#[derive(Clone)]
pub struct Connector(Arc<Inner>);

pub(crate) struct Inner {
    core: Mutex<Core>,
    pub(crate) ledger: Arc<dyn Ledger>,
    clock: Arc<dyn Clock>,
    started: Instant,
    /// The last packet in flight has ended after the connector was closed.
    drained: Notify,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector")
            .field("address", &self.address())
            .finish_non_exhaustive()
    }
}

impl Connector {
    /// A connector without accounts.
    #[must_use]
    pub fn new(config: ConnectorConfig, ledger: Arc<dyn Ledger>, clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Inner {
            core: Mutex::new(Core::new(config)),
            ledger,
            clock,
            started: Instant::now(),
            drained: Notify::new(),
        }))
    }

    /// Our own address.
    #[must_use]
    pub fn address(&self) -> Address {
        self.core(|core| core.config().address.clone())
    }

    /// Gives the connector another address, when its parent has given it one, and with it all
    /// children. They have to be told: what they know of their address is wrong now.
    ///
    /// # Errors
    /// If a child's address would be too long. Nothing has changed then.
    pub fn readdress(&self, address: Address) -> Result<(), AccountError> {
        self.core(|core| core.readdress(address))
    }

    /// Code and scale of the one asset.
    #[must_use]
    pub fn asset(&self) -> (String, u8) {
        self.core(|core| (core.config().asset_code.clone(), core.config().asset_scale))
    }

    /// The clock that packets are judged by.
    #[must_use]
    pub fn clock(&self) -> Arc<dyn Clock> {
        self.0.clock.clone()
    }

    /// Opens an account. One that was closed while packets were in flight is revived with its
    /// balance as long as they are.
    ///
    /// # Errors
    /// If the name or the segment is taken.
    pub fn open_account(&self, config: AccountConfig) -> Result<(), AccountError> {
        self.core(|core| core.open_account(config))
    }

    /// Closes an account. Packets in flight are still settled.
    ///
    /// # Errors
    /// If there is no such account.
    pub fn close_account(&self, id: &AccountId) -> Result<(), AccountError> {
        self.core(|core| core.close_account(id)).map(drop)
    }

    /// Connects an account to its neighbour, in place of any earlier link.
    ///
    /// # Errors
    /// If there is no such account.
    pub fn attach_link(
        &self,
        id: &AccountId,
        link: Arc<dyn Link>,
    ) -> Result<Attachment, AccountError> {
        let (attachment, _before) = self.core(|core| core.attach(id, link))?;
        Ok(attachment)
    }

    /// Disconnects an account, unless another link has been attached since. Says whether it did.
    pub fn detach_link(&self, id: &AccountId, attachment: Attachment) -> bool {
        self.core(|core| core.detach(id, attachment)).is_some()
    }

    /// Gives the addresses below `segment` to a receiver inside the host.
    ///
    /// # Errors
    /// If the segment is taken.
    pub fn register_receiver(
        &self,
        segment: &str,
        receiver: Arc<dyn Receiver>,
    ) -> Result<(), AccountError> {
        self.core(|core| core.register_receiver(segment.into(), receiver))
    }

    /// The address of a child.
    #[must_use]
    pub fn account_address(&self, id: &AccountId) -> Option<Address> {
        self.core(|core| core.account_address(id))
    }

    /// What the host owes the neighbour, packets in flight not counted.
    #[must_use]
    pub fn balance(&self, id: &AccountId) -> Option<i128> {
        self.core(|core| core.balance(id))
    }

    /// What happened on the account since it was opened.
    #[must_use]
    pub fn statistics(&self, id: &AccountId) -> Option<AccountStatistics> {
        self.core(|core| core.statistics(id))
    }

    /// Whether the account was stopped by a write that failed.
    #[must_use]
    pub fn is_stopped(&self, id: &AccountId) -> Option<bool> {
        self.core(|core| core.is_stopped(id))
    }

    /// Every open account, by name.
    #[must_use]
    pub fn accounts(&self) -> Vec<AccountOverview> {
        self.core(|core| core.overview())
    }

    /// Counts a reply of a neighbour that replied to nothing. It has no other effect.
    pub fn note_unexpected_reply(&self, id: &AccountId) {
        self.core(|core| core.note_unexpected_reply(id));
    }

    /// Handles a packet from a neighbour, or from the program behind `sub_account` at that
    /// neighbour. The packet is decided now; its reply goes to `reply_to`, now or later. Must be
    /// called on a runtime.
    pub fn handle(
        &self,
        from: &AccountId,
        sub_account: Option<&str>,
        prepare: Prepare,
        reply_to: ReplyTo,
    ) {
        let source = Source::Account {
            id: from,
            sub_account,
        };
        self.start(source, prepare, reply_to);
    }

    /// The same for those who wait for the reply. Dropping it does not stop the packet.
    #[must_use = "the reply has to go back to the neighbour"]
    pub fn dispatch(
        &self,
        from: &AccountId,
        sub_account: Option<&str>,
        prepare: Prepare,
    ) -> Dispatch {
        let (reply_to, dispatch) = ReplyTo::future();
        self.handle(from, sub_account, prepare, reply_to);
        dispatch
    }

    /// Handles a packet from a neighbour that has no programs behind it.
    pub async fn prepare(&self, from: &AccountId, prepare: Prepare) -> Reply {
        self.dispatch(from, None, prepare).await
    }

    /// Sends a packet of the host's own: a refund, for example. The amount is taken from `debit` in
    /// the ledger. The connector keeps no balance for that account; `limit` bounds what it spends.
    /// The packet runs to its end even if the reply is dropped.
    #[must_use = "the reply says whether the amount was paid"]
    pub fn originate(
        &self,
        debit: &LedgerAccount,
        limit: &SpendLimit,
        prepare: Prepare,
    ) -> Dispatch {
        let (reply_to, dispatch) = ReplyTo::future();
        self.start(Source::Host { debit, limit }, prepare, reply_to);
        dispatch
    }

    /// Stops taking packets (they get T03) and waits until none is in flight. The caller sets the
    /// deadline; dropping the future leaves the connector closed.
    pub async fn drain(&self) {
        self.core(Core::close);
        loop {
            let drained = self.0.drained.notified();
            tokio::pin!(drained);
            drained.as_mut().enable();
            if self.core(|core| core.is_drained()) {
                return;
            }
            drained.await;
        }
    }

    fn start(&self, source: Source<'_>, prepare: Prepare, reply_to: ReplyTo) {
        let now = self.0.clock.now();
        let steady = Instant::now();
        let steady_ns = steady.saturating_duration_since(self.0.started).as_nanos();
        let steady_ns = u64::try_from(steady_ns).unwrap_or(u64::MAX);
        let admitted = self.core(|core| match core.answer_ildcp(source, &prepare) {
            Some(reply) => Err(reply),
            None => core.admit(now, steady_ns, source, prepare).map_err(Err),
        });
        let Admitted {
            ticket,
            next,
            forward,
            wait,
        } = match admitted {
            Ok(admitted) => admitted,
            Err(reply) => return reply_to.send(reply),
        };
        let (inner, deadline) = (self.0.clone(), steady + wait);
        match next {
            NextHop::Link(link) => {
                let passage = Passage::new(inner, ticket, deadline, reply_to);
                link.send(forward, Answer::passage(passage));
            }
            NextHop::Receiver(receiver) => {
                let from = match source {
                    Source::Account { id, .. } => Some(id.clone()),
                    Source::Host { .. } => None,
                };
                let reception = Reception::new(inner, ticket, deadline);
                tokio::spawn(reception.run(receiver, from, forward, reply_to));
            }
        }
    }

    fn core<R>(&self, work: impl FnOnce(&mut Core) -> R) -> R {
        self.0.core(work)
    }
}

impl Inner {
    fn core<R>(&self, work: impl FnOnce(&mut Core) -> R) -> R {
        work(&mut self.core.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn reject(&self, code: ErrorCode, message: &str) -> Reject {
        self.core(|core| core.reject(code, message))
    }

    pub(crate) fn finish(&self, ticket: Ticket, outcome: Outcome) {
        let drained = self.core(|core| {
            core.finish(ticket, outcome);
            core.is_drained()
        });
        if drained {
            self.drained.notify_waiters();
        }
    }
}
