//! Where orders are paid: the host's STREAM server.
//!
//! Each order has an address and a secret of its own, which follow from the host's secret and the
//! order's id, so that giving them out costs nothing. A connection is made when its first packet
//! arrives, and only for an order that is expected.
//!
//! ```text
//! expected ──first packet──▶ connected ──stream opened──▶ 0xff is written: the client may ask again
//!     │                          │ collect: takes up to the price
//!     │                          │ refund: sends back, and takes nothing any more
//!     │                          ▼
//!     └──────────────────────▶ forgotten ──linger──▶ gone
//! ```
//!
//! What arrives is recorded for the account `order:ID` before it is fulfilled; what is sent back comes
//! from there.
//!
//! A paid request is to cost few packets, so what we have to say rides in answers where it can. The
//! answer to the packet by which our own client opens its stream has the byte, and says that the price
//! is taken, since the client has said with the same packet that it would pay as much. Its money comes
//! at once and is kept waiting, neither taken nor refused, until the request comes again or the packet
//! expires.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use codius_ledger::{Account, Asset, OrderId};
use ilp_connector::{
    AccountId, Commit, CommitError, Connector, LedgerAccount, Receiver, SpendLimit,
};
use ilp_link::stream::{Observed, PacketSender, StreamConnection, SystemEntropy};
use ilp_packet::{Address, ErrorCode, Prepare, Reject, Reply};
use ilp_stream::{
    AssetDetails, CommandError, Config, Connection, StreamErrorCode, StreamId,
    server::{Credentials, ServerSecret},
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout},
};

/// The segment of the connector's address below which orders are paid.
const SEGMENT: &str = "host";
/// What a client waits for on its stream before it sends its request again (facts of the original).
const READY_BYTE: &[u8] = &[0xff];
/// How often it is looked whether the last packet has been recorded.
const RECORDING_POLL: Duration = Duration::from_millis(2);
/// How long the other end may take to hear that a connection is over.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long packets of a connection that is over are still answered: a client that was told of the end
/// may have something to say to it.
const LINGER: Duration = Duration::from_secs(2);

/// The host's STREAM server.
pub(crate) struct Till {
    secret: ServerSecret,
    asset: Asset,
    connector: Connector,
    expected: Mutex<HashMap<OrderId, Arc<Expected>>>,
}

/// An order that may be paid.
struct Expected {
    account: LedgerAccount,
    price: u64,
    intake: Arc<Intake>,
    link: Mutex<Option<Payment>>,
    /// The ready byte was written.
    greeted: AtomicBool,
    /// The order is not paid any more.
    forgotten: Mutex<Option<Instant>>,
}

/// Whether an order takes money, and how many packets are being recorded for it.
#[derive(Default)]
struct Intake {
    phase: watch::Sender<Phase>,
    /// Those that wait are woken in the order in which they came, which those of a watch are not.
    changed: Notify,
    recording: AtomicUsize,
}

/// How far the intake of an order is; it only goes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// Nobody has asked again for what is paid: money waits.
    #[default]
    Waiting,
    /// The order is being carried out.
    Taking,
    /// No more is taken: what is held is being sent back, or it is over.
    Shut,
}

/// A packet that is being recorded.
struct Recording<'a>(&'a Intake);

impl Intake {
    fn enter(&self, phase: Phase) {
        self.phase.send_if_modified(|now| {
            let later = phase > *now;
            *now = phase.max(*now);
            later
        });
        self.changed.notify_waiters();
    }

    /// The client has gone: money that waits is not taken.
    fn give_up(&self) {
        self.phase.send_if_modified(|now| {
            let waiting = *now == Phase::Waiting;
            if waiting {
                *now = Phase::Shut;
            }
            waiting
        });
        self.changed.notify_waiters();
    }

    /// Waits until money is taken; none if it will not be. Safe to drop: the connector does when the
    /// packet expires.
    async fn begin(&self) -> Option<Recording<'_>> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if *self.phase.borrow() != Phase::Waiting {
                break;
            }
            changed.await;
        }
        // Counted before it is looked whether it is too late: see `Payment::shut`.
        self.recording.fetch_add(1, Ordering::SeqCst);
        let recording = Recording(self);
        (*self.phase.borrow() == Phase::Taking).then_some(recording)
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        self.0.recording.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The connection by which an order is paid.
#[derive(Clone)]
pub(crate) struct Payment {
    connection: StreamConnection,
    /// What goes back by it.
    refunds: SpendLimit,
    intake: Arc<Intake>,
    payer: Option<AccountId>,
}

/// Why the price did not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shortfall {
    /// The payer sends less in all.
    TooSmall {
        received: u64,
        offered: u64,
    },
    /// The connection ended.
    Interrupted {
        received: u64,
    },
    TimedOut {
        received: u64,
    },
}

impl Till {
    /// Registers the server with the connector.
    pub(crate) fn open(
        connector: &Connector,
        secret: &[u8; 32],
        asset: Asset,
    ) -> Result<Arc<Self>> {
        let till = Arc::new(Self {
            secret: ServerSecret::new(secret),
            asset,
            connector: connector.clone(),
            expected: Mutex::default(),
        });
        connector.register_receiver(SEGMENT, Arc::clone(&till) as Arc<dyn Receiver>)?;
        Ok(till)
    }

    /// Where orders are paid now; the parent may give the host another address.
    fn address(&self) -> Address {
        self.connector
            .address()
            .with_suffix(SEGMENT)
            .expect("it was registered below the connector's address")
    }

    /// `interledger-stream ADDRESS SECRET`, as the `Pay` header has it.
    pub(crate) fn challenge(&self, id: &OrderId) -> String {
        let Credentials {
            token,
            shared_secret,
        } = self
            .secret
            .generate(id.as_bytes())
            .expect("an order id is as long as a tag may be");
        format!(
            "interledger-stream {}.{token} {}",
            self.address(),
            STANDARD.encode(shared_secret.0)
        )
    }

    /// Lets an order be paid.
    pub(crate) fn expect(&self, id: OrderId, price: u64) {
        let mut orders = self.lock();
        if orders.get(&id).is_some_and(|it| !it.is_forgotten()) {
            return;
        }
        let expected = Expected {
            account: Account::Order(id).to_string().into(),
            price,
            intake: Arc::default(),
            link: Mutex::default(),
            greeted: AtomicBool::new(false),
            forgotten: Mutex::default(),
        };
        orders.insert(id, Arc::new(expected));
    }

    /// An order is not paid any more.
    pub(crate) fn forget(&self, id: &OrderId) {
        let mut orders = self.lock();
        if let Some(expected) = orders.get(id) {
            expected.intake.enter(Phase::Shut);
            expected.forgotten().get_or_insert_with(Instant::now);
        }
        // Who has lingered long enough is gone with the next that is forgotten.
        orders.retain(|_, it| {
            let since = *it.forgotten();
            since.is_none_or(|since| it.link().is_some() && since.elapsed() < LINGER)
        });
    }

    /// The connection by which an order can be paid, once the client has opened its stream.
    pub(crate) fn payment(&self, id: &OrderId) -> Option<Arc<Payment>> {
        let expected = self.lock().get(id).cloned()?;
        if expected.is_forgotten() {
            return None;
        }
        let payment = expected.link().clone()?;
        payment.stream().is_some().then(|| Arc::new(payment))
    }

    /// The connection that a packet is for. A forged token costs one HMAC and leaves nothing behind.
    fn connection(
        &self,
        from: Option<&AccountId>,
        prepare: &Prepare,
    ) -> Option<(Arc<Expected>, Payment)> {
        let token = prepare.destination.segment_after(&self.address())?;
        let opened = self.secret.open(token)?;
        let id = OrderId::from_bytes(opened.tag.try_into().ok()?);
        let expected = self.lock().get(&id).cloned()?;
        let mut link = expected.link();
        if link.is_none() && expected.is_forgotten() {
            return None;
        }
        let payment = link.get_or_insert_with(|| {
            let clock = self.connector.clock();
            let config = Config {
                local_address: self.address().with_suffix(token).ok(),
                asset: Some(asset_details(&self.asset)),
                // The ready byte is all the data that there is.
                data_in_replies: true,
                ..Config::default()
            };
            let entropy = Box::new(SystemEntropy);
            let machine = Connection::server(clock.now(), config, &opened.shared_secret, entropy);
            let limit = SpendLimit::new(expected.price);
            let sender = Refunds {
                connector: self.connector.clone(),
                account: expected.account.clone(),
                limit: limit.clone(),
            };
            let connection = StreamConnection::spawn(machine, Arc::new(sender), clock);
            Payment {
                connection,
                refunds: limit,
                intake: Arc::clone(&expected.intake),
                payer: from.cloned(),
            }
        });
        let payment = payment.clone();
        drop(link);
        Some((expected, payment))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<OrderId, Arc<Expected>>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Expected {
    fn link(&self) -> MutexGuard<'_, Option<Payment>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forgotten(&self) -> MutexGuard<'_, Option<Instant>> {
        self.forgotten
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn is_forgotten(&self) -> bool {
        self.forgotten().is_some()
    }

    /// Acts on what the client has said, before that is answered.
    fn react(&self, machine: &mut Connection, observed: &Observed) {
        if observed.closed.is_some() {
            return self.intake.give_up();
        }
        let Some(&stream) = observed.opened.first() else {
            return;
        };
        let result = self.greet(machine, stream);
        let result = result.and_then(|()| self.ask(machine, observed, stream));
        if let Err(error) = result {
            tracing::debug!(%error, "a payment could not be asked for");
        }
    }

    /// Tells the client that its stream was seen.
    fn greet(&self, machine: &mut Connection, stream: StreamId) -> Result<(), CommandError> {
        if self.greeted.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        machine.write(stream, Bytes::from_static(READY_BYTE))
    }

    /// Tells a client that would pay the price that it can. One that would pay less has nothing taken.
    fn ask(
        &self,
        machine: &mut Connection,
        observed: &Observed,
        stream: StreamId,
    ) -> Result<(), CommandError> {
        match observed.blocked.get(&stream) {
            Some((offered, _)) if *offered >= self.price => {
                machine.set_receive_max(stream, self.price)
            }
            Some(_) | None => Ok(()),
        }
    }
}

#[async_trait]
impl Receiver for Till {
    async fn receive(&self, from: Option<&AccountId>, prepare: Prepare, commit: Commit) -> Reply {
        let Some((expected, payment)) = self.connection(from, &prepare) else {
            return Err(Reject::new(
                ErrorCode::UnexpectedPayment,
                Some(&self.connector.address()),
                "",
            ));
        };
        // Called for packets that bring money, and only for them.
        let record = || async {
            let Some(_recording) = expected.intake.begin().await else {
                return Err(ErrorCode::FinalApplicationError);
            };
            commit
                .credit(expected.account.clone())
                .await
                .map_err(|error| code_of(&error))
        };
        let react = |machine: &mut Connection, observed: &mut Observed| {
            expected.react(machine, observed);
        };
        payment
            .connection
            .incoming_with(&prepare, react, record)
            .await
    }
}

/// What payers are told of the host's asset.
pub(crate) fn asset_details(asset: &Asset) -> AssetDetails {
    AssetDetails {
        code: asset.code().to_owned(),
        scale: asset.scale(),
    }
}

/// How a payer is told that its packet could not be recorded.
pub(crate) fn code_of(error: &CommitError) -> ErrorCode {
    match error {
        CommitError::Expired => ErrorCode::TransferTimedOut,
        CommitError::Refused(_) | CommitError::Failed(_) => ErrorCode::InternalError,
    }
}

/// Sends what a connection sends back, at most what was paid by it.
struct Refunds {
    connector: Connector,
    account: LedgerAccount,
    limit: SpendLimit,
}

#[async_trait]
impl PacketSender for Refunds {
    async fn send(&self, prepare: Prepare) -> Reply {
        self.connector
            .originate(&self.account, &self.limit, prepare)
            .await
    }
}

impl Payment {
    /// Takes the price, all of it or what comes in time.
    pub(crate) async fn collect(&self, price: u64, patience: Duration) -> Result<(), Shortfall> {
        let Some(stream) = self.stream() else {
            return Err(Shortfall::Interrupted { received: 0 });
        };
        // A client says what it would send as soon as it is told that nothing is taken.
        let offered = self
            .connection
            .with(|_, observed| observed.blocked.get(&stream).copied());
        if let Some((offered, received)) = offered
            && offered < price
        {
            return Err(Shortfall::TooSmall { received, offered });
        }
        if self
            .connection
            .with(|machine, _| machine.set_receive_max(stream, price))
            .is_err()
        {
            return Err(Shortfall::Interrupted {
                received: self.received(stream),
            });
        }
        self.intake.enter(Phase::Taking);
        let complete = self.connection.until(|machine, observed| {
            let received = machine.stream_received(stream).unwrap_or_default();
            if received >= price {
                return Some(Ok(()));
            }
            if let Some(&(offered, _)) = observed.blocked.get(&stream)
                && offered < price
                && received >= offered
            {
                return Some(Err(Shortfall::TooSmall { received, offered }));
            }
            observed
                .closed
                .is_some()
                .then_some(Err(Shortfall::Interrupted { received }))
        });
        match timeout(patience, complete).await {
            Ok(result) => result,
            Err(_) => Err(Shortfall::TimedOut {
                received: self.received(stream),
            }),
        }
    }

    /// Takes nothing any more, and waits until what was being taken is in the ledger.
    pub(crate) async fn shut(&self) {
        self.intake.enter(Phase::Shut);
        while self.intake.recording.load(Ordering::SeqCst) > 0 {
            // A write to the database ends, well or badly.
            tokio::time::sleep(RECORDING_POLL).await;
        }
    }

    /// Sends back what it can of `amount`. How much went is in the ledger.
    pub(crate) async fn refund(&self, amount: u64, patience: Duration) {
        let Some(stream) = self.stream() else { return };
        let takes = self
            .connection
            .with(|machine, _| machine.remote_receive_max(stream))
            .unwrap_or_default();
        // The original's client takes nothing, and never will on this connection.
        let amount = amount.min(takes);
        if amount == 0
            || self
                .connection
                .with(|machine, _| machine.set_send_max(stream, amount))
                .is_err()
        {
            return;
        }
        let sent = self.connection.until(|machine, observed| {
            let sent = machine.stream_sent(stream).unwrap_or_default();
            (sent >= amount || observed.closed.is_some()).then_some(())
        });
        if timeout(patience, sent).await.is_err() {
            tracing::warn!("a refund did not arrive in time");
        }
        // What is still on its way must be answered before the books are read.
        let answered = self.connection.until(|machine, _| {
            (machine.stream_held(stream).unwrap_or_default() == 0).then_some(())
        });
        self.connection.with(|machine, _| {
            let _ = machine.stop_sending(stream);
        });
        answered.await;
        self.refunds.settled().await;
    }

    /// Tells the payer that it is over, stream and connection.
    pub(crate) async fn close(&self) {
        self.intake.enter(Phase::Shut);
        let closing = self.connection.close(StreamErrorCode::NoError, "");
        if timeout(CLOSE_TIMEOUT, closing).await.is_err() {
            tracing::debug!("the payer did not hear that its connection is over");
        }
    }

    /// Waits until the payer has ended its stream, or has had the time for it.
    ///
    /// `ilp-fetch` ends it when it has read the answer, and then says what it has paid. If it is told of
    /// the end before, it says so at once, and may be wrong: the Fulfill of its last packet can be slower
    /// than ours, since each goes its own way through the connectors between us. A payer that takes money
    /// back, as our own client does, is not waited for: it may wait for us.
    pub(crate) async fn ended(&self, patience: Duration) {
        let Some(stream) = self.stream() else { return };
        let takes = self
            .connection
            .with(|machine, _| machine.remote_receive_max(stream));
        if takes > Some(0) {
            return;
        }
        let ended = self.connection.until(|_, observed| {
            let over = observed.ended.contains_key(&stream) || observed.closed.is_some();
            over.then_some(())
        });
        if timeout(patience, ended).await.is_err() {
            tracing::debug!("the payer has not ended its stream");
        }
    }

    /// The connector's account that the first packet came from.
    pub(crate) fn payer(&self) -> Option<String> {
        self.payer.as_ref().map(ToString::to_string)
    }

    /// The stream that the client has opened.
    fn stream(&self) -> Option<StreamId> {
        self.connection
            .with(|_, observed| observed.opened.first().copied())
    }

    fn received(&self, stream: StreamId) -> u64 {
        self.connection
            .with(|machine, _| machine.stream_received(stream))
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
