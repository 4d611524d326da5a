//! The host's payment pointers (SPSP, RFC 9): `$HOST` pays the host itself, `$HOST/HASH` a running
//! lease. This is the STREAM server behind them; the HTTP side is `api/spsp.rs`.
//!
//! ```text
//! query ──▶ address with a token, secret        (nothing is kept)
//! packet with an authentic token and content ──▶ connected ──stream opened──▶ takes what there is room for
//!                                                    │ lease over, host ends, idle, or another needs the place
//!                                                    ▼
//!                              what came over it and was not used goes back ──▶ closed
//! ```
//!
//! The token says what is paid and has a nonce of its own (`terms.rs`), so each query has its own
//! secret. A packet for a lease is recorded for `lease:HASH`, one for the host for `earned`, before it
//! is fulfilled. It is the lease that decides whether it takes a packet (`leases/top_up.rs`); what a
//! stream may carry is only told so that payers need not try.
//!
//! When a lease ends, whatever of its money came over a connection that is still open, and was not used, goes
//! back over that connection, if its payer takes money (`leases/share.rs`). The rest of a lease is owed.
//!
//! Traps:
//! - A packet that comes while a lease ends is answered when it has ended: an answer that says that the
//!   connection is over would cut off what is on its way back.
//! - What a stream takes is fixed when it is opened, because the room of a lease grows with every
//!   millisecond that passes: a limit that followed it would be used up a few units at a time. A stream
//!   that is full and wants more is closed, as RFC 9 has it, so that its payer does not wait for ever.
//! - A connection that had to make room for another may come back with the next packet of its payer.
//!   It is then a new one: totals begin at nothing, and so does its stream's limit. Its receipts, too,
//!   say less than those before: a verifier counts no unit twice, but may count less than was paid.

mod recent;
mod terms;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use async_trait::async_trait;
use codius_ledger::{Account, Asset, Rate};
use ilp_connector::{AccountId, Commit, Connector, LedgerAccount, Receiver, SpendLimit};
use ilp_link::stream::{Observed, PacketSender, StreamConnection, SystemEntropy};
use ilp_packet::{Address, ErrorCode, Prepare, Reject, Reply};
use ilp_stream::{
    Config, Connection, Keys, ReceiptKey, SharedSecret, StreamErrorCode, StreamId,
    server::{Credentials, Opened, ServerSecret},
};
use recent::Recent;
use ring::hmac;
use thiserror::Error;
use tokio::time::timeout;
use tracing::Instrument;

use crate::{
    leases::{GIVE_BACK_PATIENCE, Leases, Payer, Share, TopUpError},
    till,
};

pub(crate) use terms::{Payee, Terms};

/// The segment of the connector's address below which pointers are paid.
const SEGMENT: &str = "spsp";
/// Makes the secret of this server from the host's, so that no token of an order is one of ours.
const SECRET_LABEL: &[u8] = b"codius_spsp";
/// Connections at a time; over it, the one that was quiet for longest is closed.
const MAX_CONNECTIONS: usize = 1024;
/// A connection ends after this long without an authentic packet, as the JavaScript payer's does.
const IDLE_TIMEOUT_MILLIS: u64 = 60_000;
/// How long a packet of ours may take: a lease that has ended waits for what goes back.
const PACKET_TIMEOUT_MILLIS: u64 = 5_000;
/// How long the other end may take to hear that a connection is over.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a pointer cannot be paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum NotPayable {
    #[error("no program of this hash runs here; upload its manifest to run it")]
    NotRunning,
    #[error("this program costs nothing, so there is nothing to pay")]
    Free,
    /// The parent of this host has given it an address that leaves no room for one below it.
    #[error("this host's Interledger address is too long to be paid at")]
    NoAddress,
}

/// What a payer is told.
#[derive(Debug)]
pub(crate) struct Destination {
    pub(crate) address: Address,
    pub(crate) shared_secret: SharedSecret,
}

/// The STREAM server of the payment pointers.
pub(crate) struct Spsp {
    secret: ServerSecret,
    asset: Asset,
    connector: Connector,
    leases: Arc<Leases>,
    connections: Connections,
}

type Connections = Arc<Mutex<Recent<Arc<Inflow>>>>;

/// A connection, and whom it pays.
struct Inflow {
    payee: Payee,
    connection: StreamConnection,
    outflow: Outflow,
    /// What came of the money of a lease.
    share: Mutex<Share>,
    /// The lease knows of it.
    is_known: AtomicBool,
}

impl Spsp {
    /// Registers the server with the connector.
    pub(crate) fn open(
        connector: &Connector,
        host_secret: &[u8; 32],
        asset: Asset,
        leases: Arc<Leases>,
    ) -> Result<Arc<Self>> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, host_secret);
        let mut secret = [0; 32];
        secret.copy_from_slice(hmac::sign(&key, SECRET_LABEL).as_ref());
        let spsp = Arc::new(Self {
            secret: ServerSecret::new(&secret),
            asset,
            connector: connector.clone(),
            leases,
            connections: Arc::new(Mutex::new(Recent::new(MAX_CONNECTIONS))),
        });
        connector.register_receiver(SEGMENT, Arc::clone(&spsp) as Arc<dyn Receiver>)?;
        Ok(spsp)
    }

    /// Where and with which secret a payee can be paid: another one for each query.
    pub(crate) fn destination(&self, terms: &Terms) -> Result<Destination, NotPayable> {
        if let Payee::Lease(hash) = terms.payee {
            let shown = self.leases.shown(&hash).ok_or(NotPayable::NotRunning)?;
            if shown.is_free() {
                return Err(NotPayable::Free);
            }
        }
        let Credentials {
            token,
            shared_secret,
        } = self.secret.generate(&terms.tag(rand::random())).expect(
            "a kind, a nonce, a hash and what receipts need are no longer than a tag may be",
        );
        let address = self.address().and_then(|it| it.with_suffix(&token).ok());
        let address = address.ok_or(NotPayable::NoAddress)?;
        Ok(Destination {
            address,
            shared_secret,
        })
    }

    /// Where pointers are paid. Asked each time, because a parent may give the host another address.
    fn address(&self) -> Option<Address> {
        self.connector.address().with_suffix(SEGMENT).ok()
    }

    /// The connection that a packet is for; a new one if its token is one of ours, its payee can be
    /// paid, and its content was sealed with the secret of the token. Whatever else comes leaves
    /// nothing behind.
    fn connection(&self, prepare: &Prepare) -> Option<Arc<Inflow>> {
        let token = prepare.destination.segment_after(&self.address()?)?;
        if let Some(known) = self.lock().get(token) {
            return Some(Arc::clone(known));
        }
        let Opened { tag, shared_secret } = self.secret.open(token)?;
        let Terms { payee, receipts } = Terms::of_tag(&tag)?;
        if !self.is_payable(payee) || Keys::new(&shared_secret.0).open(&prepare.data).is_err() {
            return None;
        }
        let mut connections = self.lock();
        // The first packets of a payer come together.
        if let Some(known) = connections.get(token) {
            return Some(Arc::clone(known));
        }
        let outflow = Outflow::default();
        let inflow = Arc::new(Inflow {
            payee,
            connection: self.connect(token, &shared_secret, receipts, &outflow),
            outflow,
            share: Mutex::default(),
            is_known: AtomicBool::new(false),
        });
        let quietest = connections.insert(token.to_owned(), Arc::clone(&inflow));
        drop(connections);
        if let Some(quietest) = quietest {
            quietest.end(StreamErrorCode::EndpointBusy, "too many payers");
        }
        let attending = attend(
            Arc::clone(&inflow),
            token.to_owned(),
            Arc::clone(&self.connections),
            Arc::clone(&self.leases),
        );
        let span = tracing::info_span!("payer", payee = ?payee);
        self.leases.tasks.spawn(attending.instrument(span));
        Some(inflow)
    }

    fn connect(
        &self,
        token: &str,
        shared_secret: &SharedSecret,
        receipts: Option<ReceiptKey>,
        outflow: &Outflow,
    ) -> StreamConnection {
        let clock = self.connector.clock();
        let config = Config {
            local_address: self.address().and_then(|it| it.with_suffix(token).ok()),
            asset: Some(till::asset_details(&self.asset)),
            idle_timeout_millis: IDLE_TIMEOUT_MILLIS,
            packet_timeout_millis: PACKET_TIMEOUT_MILLIS,
            receipts,
            ..Config::default()
        };
        let machine =
            Connection::server(clock.now(), config, shared_secret, Box::new(SystemEntropy));
        let news = News {
            connector: self.connector.clone(),
            outflow: outflow.clone(),
        };
        StreamConnection::spawn(machine, Arc::new(news), clock)
    }

    fn is_payable(&self, payee: Payee) -> bool {
        match payee {
            Payee::Host => !self.leases.closing.is_cancelled(),
            Payee::Lease(hash) => self.leases.room(&hash).is_some(),
        }
    }

    /// Records a packet for its payee, or says why not.
    async fn take(&self, inflow: &Arc<Inflow>, commit: Commit) -> Result<(), ErrorCode> {
        if commit.amount() == 0 {
            return Ok(());
        }
        let refused = match inflow.payee {
            Payee::Host => {
                let credited = commit.credit(Account::Earned.to_string().into()).await;
                return credited.map_err(|error| till::code_of(&error));
            }
            Payee::Lease(hash) => {
                if !inflow.is_known.swap(true, Ordering::AcqRel) {
                    let payer: Weak<Inflow> = Arc::downgrade(inflow);
                    self.leases.payers.add(hash, payer);
                }
                match self.leases.top_up(&hash, commit, &inflow.share).await {
                    Ok(()) => return Ok(()),
                    Err(TopUpError::NotRecorded(error)) => return Err(till::code_of(&error)),
                    Err(error @ TopUpError::NoRoom) => error,
                    Err(error @ TopUpError::NotRunning) => {
                        if inflow.takes_money() {
                            self.leases.at_rest(&hash).await;
                        }
                        error
                    }
                }
            }
        };
        // Nothing of this connection would be taken after that. It is over before the packet is
        // answered, so that the answer says so, and nothing but the answer: the JavaScript payer leaves
        // when it hears of it, and would wait for 35 s for an answer that comes later.
        inflow.end(StreamErrorCode::ApplicationError, &refused.to_string());
        Err(ErrorCode::FinalApplicationError)
    }

    fn lock(&self) -> MutexGuard<'_, Recent<Arc<Inflow>>> {
        lock(&self.connections)
    }
}

#[async_trait]
impl Receiver for Spsp {
    async fn receive(&self, _: Option<&AccountId>, prepare: Prepare, commit: Commit) -> Reply {
        let Some(inflow) = self.connection(&prepare) else {
            return Err(Reject::new(
                ErrorCode::UnexpectedPayment,
                Some(&self.connector.address()),
                "",
            ));
        };
        let record = || self.take(&inflow, commit);
        inflow.connection.incoming(&prepare, record).await
    }
}

impl Inflow {
    /// Takes nothing any more. The other end hears of it in the reply to a packet that is being looked at,
    /// or at once.
    fn end(&self, code: StreamErrorCode, message: &str) {
        self.connection
            .with(|machine, _| machine.close(code, message));
    }

    /// The stream by which its payer takes money back, and how much.
    fn way_back(&self) -> Option<(StreamId, u64)> {
        self.connection.with(|machine, _| {
            let room = |stream| {
                let sent = machine.stream_sent(stream).unwrap_or_default();
                let takes = machine.remote_receive_max(stream).unwrap_or_default();
                (stream, takes.saturating_sub(sent))
            };
            machine.open_streams().map(room).find(|(_, room)| *room > 0)
        })
    }

    fn takes_money(&self) -> bool {
        self.way_back().is_some()
    }

    /// What a stream that is opened now may carry.
    fn room(&self, leases: &Leases) -> u64 {
        match self.payee {
            Payee::Host => Rate::MAX_PRICE,
            Payee::Lease(hash) => leases.room(&hash).unwrap_or_default(),
        }
    }
}

#[async_trait]
impl Payer for Inflow {
    fn share(&self) -> Share {
        lock_share(&self.share).clone()
    }

    async fn give_back(&self, from: &Account, amount: u64) -> u64 {
        // Most payers take nothing, and are told of the end in the answer to their next packet.
        let Some((stream, room)) = self.way_back() else {
            return 0;
        };
        let amount = amount.min(room);
        let limit = self.outflow.open(from, amount);
        let connection = &self.connection;
        let sent = |machine: &Connection| machine.stream_sent(stream).unwrap_or_default();
        let opened = connection.with(|machine, _| {
            let all = sent(machine).saturating_add(amount);
            machine.set_send_max(stream, all).map(|()| all)
        });
        if let Ok(all) = opened {
            let arrived = connection.until(|machine, observed| {
                (sent(machine) >= all || observed.closed.is_some()).then_some(())
            });
            if timeout(GIVE_BACK_PATIENCE, arrived).await.is_err() {
                tracing::warn!(amount, "the rest did not arrive in time");
            }
        }
        // No further packet; what is on its way is answered before the books are read.
        connection.with(|machine, _| {
            let _ = machine.stop_sending(stream);
        });
        connection
            .until(|machine, _| {
                (machine.stream_held(stream).unwrap_or_default() == 0).then_some(())
            })
            .await;
        limit.settled().await;
        self.end(StreamErrorCode::NoError, "this program has ended");
        let returned = limit.spent();
        tracing::info!(amount, returned, "gave back what was not used");
        returned
    }
}

/// What there is to do for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The payer has opened a stream.
    Welcome(StreamId),
    /// A stream has carried all that it may, and its payer wants to send more.
    Full(StreamId),
    /// The connection is over.
    Over,
    /// The host ends.
    Closing,
}

/// Stays with a connection to its end.
async fn attend(inflow: Arc<Inflow>, token: String, connections: Connections, leases: Arc<Leases>) {
    let connection = &inflow.connection;
    loop {
        // Nothing is lost if either is dropped: both are looked at anew.
        let step = tokio::select! {
            biased;
            step = connection.until(next_step) => step,
            () = leases.closing.cancelled() => Step::Closing,
        };
        match step {
            Step::Welcome(stream) => {
                let room = inflow.room(&leases);
                connection.with(|machine, observed| welcome(machine, observed, stream, room));
            }
            Step::Full(stream) => connection.with(|machine, _| turn_away(machine, stream)),
            Step::Over => break,
            Step::Closing => {
                if leases.stops_pods() && inflow.takes_money() {
                    // Its lease ends now, too, and what is left goes back first.
                    let ended =
                        connection.until(|_, observed| observed.closed.is_some().then_some(()));
                    let _ = timeout(GIVE_BACK_PATIENCE, ended).await;
                }
                let text = "this host is being shut down";
                let closing = connection.close(StreamErrorCode::NoError, text);
                if timeout(CLOSE_TIMEOUT, closing).await.is_err() {
                    tracing::debug!("the payer did not hear that its connection is over");
                }
                break;
            }
        }
    }
    lock(&connections).remove(&token, |it| Arc::ptr_eq(it, &inflow));
    let received = connection.with(|machine, _| machine.total_received());
    if let Payee::Lease(hash) = inflow.payee {
        drop(inflow);
        leases.payers.tidy(&hash);
    }
    if received > 0 {
        tracing::info!(received, "paid");
    }
}

fn next_step(machine: &mut Connection, observed: &mut Observed) -> Option<Step> {
    // Nobody reads what payers write; and their streams are looked up in the machine.
    observed.data.clear();
    observed.opened.clear();
    if observed.closed.is_some() {
        return Some(Step::Over);
    }
    observed
        .blocked
        .retain(|stream, _| machine.receive_max(*stream).is_some());
    machine.open_streams().find_map(|stream| {
        let receive_max = machine.receive_max(stream)?;
        if receive_max == 0 {
            return Some(Step::Welcome(stream));
        }
        let is_full = machine.stream_received(stream)? >= receive_max;
        (is_full && observed.blocked.contains_key(&stream)).then_some(Step::Full(stream))
    })
}

/// Sets what a new stream may carry.
fn welcome(machine: &mut Connection, observed: &mut Observed, stream: StreamId, room: u64) {
    if room == 0 {
        turn_away(machine, stream);
        return;
    }
    // What the payer has said until now was of a stream that took nothing.
    observed.blocked.remove(&stream);
    if let Err(error) = machine.set_receive_max(stream, room) {
        tracing::debug!(%error, "a stream was over before it was welcomed");
    }
}

fn turn_away(machine: &mut Connection, stream: StreamId) {
    let message = TopUpError::NoRoom.to_string();
    if let Err(error) = machine.close_stream(stream, StreamErrorCode::ApplicationError, &message) {
        tracing::debug!(%error, "a stream was over before it was turned away");
    }
}

/// What may leave by a connection: nothing, until the lease that it pays is over.
#[derive(Clone)]
struct Outflow(Arc<Mutex<(LedgerAccount, SpendLimit)>>);

impl Default for Outflow {
    fn default() -> Self {
        let account = Account::Earned.to_string().into();
        Self(Arc::new(Mutex::new((account, SpendLimit::new(0)))))
    }
}

impl Outflow {
    fn open(&self, from: &Account, amount: u64) -> SpendLimit {
        let limit = SpendLimit::new(amount);
        let opened = (from.to_string().into(), limit.clone());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = opened;
        limit
    }
}

/// Tells a payer what its connection takes, and sends what goes back.
struct News {
    connector: Connector,
    outflow: Outflow,
}

#[async_trait]
impl PacketSender for News {
    async fn send(&self, prepare: Prepare) -> Reply {
        let (account, limit) = {
            let opened = self.outflow.0.lock();
            opened.unwrap_or_else(PoisonError::into_inner).clone()
        };
        self.connector.originate(&account, &limit, prepare).await
    }
}

fn lock_share(share: &Mutex<Share>) -> MutexGuard<'_, Share> {
    share.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lock<T>(recent: &Mutex<Recent<T>>) -> MutexGuard<'_, Recent<T>> {
    recent.lock().unwrap_or_else(PoisonError::into_inner)
}
