//! A client's Interledger connection that counts: every packet, by what is known to have become of it.

use std::{
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use async_trait::async_trait;
use codius_client::Wallet;
use ilp_connector::{Clock, LinkError, SystemClock};
use ilp_link::{
    BtpClient, BtpUrl, Credentials, RequestHandler,
    stream::{PacketSender, StreamConnection, SystemEntropy},
};
use ilp_packet::{Address, ErrorCode, Prepare, Reject, Reply};
use ilp_stream::{AssetDetails, Config, Connection, SharedSecret, StreamErrorCode};
use tokio::time::timeout;

use crate::{
    board::{Activity, Board},
    plan::Doing,
    tally::Tally,
};

/// How long a payment to a pointer may take before no further packet of it is sent.
const POINTER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the answers to its last packets may take: longer than packets live.
const LAST_ANSWERS_TIMEOUT: Duration = Duration::from_secs(40);
/// How long the other end may take to hear that a connection is over.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// One connection, for one thing that a client does.
pub(crate) struct Purse {
    pub(crate) wallet: Wallet,
    meter: Arc<Meter>,
    asset: AssetDetails,
    own: Address,
}

impl Purse {
    pub(crate) async fn open(interledger: &str, board: &Arc<Board>) -> Result<Self> {
        let url: BtpUrl = interledger.parse()?;
        let token: [u8; 16] = rand::random();
        let url = url.with_credentials(Credentials {
            username: String::new(),
            token: token.iter().map(|byte| format!("{byte:02x}")).collect(),
        });
        let meter = Arc::new(Meter {
            board: Arc::clone(board),
            tally: Mutex::default(),
            receiver: OnceLock::new(),
            closed: AtomicBool::new(false),
        });
        let inbox = Arc::new(Inbox(Arc::clone(&meter)));
        let client = BtpClient::connect(&url, inbox, Arc::new(SystemClock)).await?;
        let configuration = client.configuration().await?;
        let asset = AssetDetails {
            code: configuration.asset_code,
            scale: configuration.asset_scale,
        };
        let own = configuration.client_address;
        let sender = Arc::new(Sender {
            client,
            meter: Arc::clone(&meter),
        });
        let wallet = Wallet::in_process(own.clone(), asset.clone(), Arc::clone(&sender) as _);
        let receiver = Receiver {
            wallet: wallet.clone(),
            sender,
        };
        let _ = meter.receiver.set(receiver);
        Ok(Self {
            wallet,
            meter,
            asset,
            own,
        })
    }

    /// Pays to a payment pointer that was looked up already; an error of the other end is none of ours.
    pub(crate) async fn pay(&self, to: Address, secret: &SharedSecret, amount: u64) -> Result<()> {
        let receiver = self.meter.receiver.get().context("it is closed")?;
        let clock = Arc::new(SystemClock);
        let config = Config {
            local_address: Some(self.own.clone()),
            asset: Some(self.asset.clone()),
            ..Config::default()
        };
        let entropy = Box::new(SystemEntropy);
        let machine = Connection::client(clock.now(), config, secret, to, entropy);
        let sender = Arc::clone(&receiver.sender);
        let connection = StreamConnection::spawn(machine, sender, clock);
        let stream = connection.with(|machine, _| {
            let stream = machine.open_stream()?;
            machine.set_send_max(stream, amount)?;
            Ok::<_, ilp_stream::CommandError>(stream)
        })?;
        let sent = connection.until(|machine, observed| {
            let sent = machine.stream_sent(stream).unwrap_or(amount);
            (sent >= amount || observed.closed.is_some() || observed.ended.contains_key(&stream))
                .then_some(())
        });
        let _ = timeout(POINTER_TIMEOUT, sent).await;
        connection.with(|machine, _| {
            let _ = machine.stop_sending(stream);
        });
        let _ = timeout(
            CLOSE_TIMEOUT,
            connection.close(StreamErrorCode::NoError, ""),
        )
        .await;
        Ok(())
    }

    /// Waits for the last answers and says what has moved. `answered` is whether the host has answered
    /// the request that this was for, and so knows of all that it has sent.
    pub(crate) async fn close(self, answered: bool) -> Tally {
        let waiting = async {
            while self.meter.under_way() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let _ = timeout(LAST_ANSWERS_TIMEOUT, waiting).await;
        self.meter.closed.store(true, Ordering::Release);
        let counted = *lock(&self.meter.tally);
        let (received, perhaps_received) = match answered {
            true => (counted.received, 0),
            false => (0, counted.received),
        };
        Tally {
            paid: counted.fulfilled,
            perhaps_paid: counted.unknown + counted.waiting,
            received,
            perhaps_received,
        }
    }
}

struct Meter {
    board: Arc<Board>,
    tally: Mutex<Counted>,
    receiver: OnceLock<Receiver>,
    /// What comes later is counted nowhere, so it is refused.
    closed: AtomicBool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counted {
    waiting: u64,
    fulfilled: u64,
    unknown: u64,
    received: u64,
}

impl Meter {
    fn under_way(&self) -> bool {
        lock(&self.tally).waiting > 0
    }
}

struct Receiver {
    wallet: Wallet,
    sender: Arc<Sender>,
}

struct Sender {
    client: BtpClient,
    meter: Arc<Meter>,
}

/// A packet whose answer is awaited. If nobody waits to the end, nobody knows what became of it.
struct Waiting<'a> {
    meter: &'a Meter,
    amount: u64,
    counted: bool,
}

impl Waiting<'_> {
    fn end(mut self, count: impl FnOnce(&mut Counted, u64)) {
        let mut tally = lock(&self.meter.tally);
        tally.waiting -= self.amount;
        count(&mut tally, self.amount);
        self.counted = true;
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.counted {
            let mut tally = lock(&self.meter.tally);
            tally.waiting -= self.amount;
            tally.unknown += self.amount;
        }
    }
}

#[async_trait]
impl PacketSender for Sender {
    async fn send(&self, prepare: Prepare) -> Reply {
        let amount = prepare.amount;
        if amount > 0 && self.meter.closed.load(Ordering::Acquire) {
            return Err(Reject::new(ErrorCode::PeerUnreachable, None, "closed"));
        }
        let _activity: Option<Activity> =
            (amount > 0).then(|| self.meter.board.begin(Doing::Paying));
        lock(&self.meter.tally).waiting += amount;
        let waiting = Waiting {
            meter: &self.meter,
            amount,
            counted: false,
        };
        let reply = self.client.send(prepare).await;
        match reply {
            Ok(Ok(fulfill)) => {
                waiting.end(|tally, amount| tally.fulfilled += amount);
                Ok(Ok(fulfill))
            }
            Ok(Err(reject)) => {
                // A host whose disk fails cannot know what is on it.
                let unknown = reject.code == ErrorCode::InternalError;
                waiting.end(|tally, amount| {
                    if unknown {
                        tally.unknown += amount;
                    }
                });
                Ok(Err(reject))
            }
            Err(error @ (LinkError::Busy | LinkError::NoDestination | LinkError::Unencodable)) => {
                waiting.end(|_, _| {});
                Err(error)
            }
            Err(error @ (LinkError::Closed | LinkError::NotIlp(_) | LinkError::TimedOut)) => {
                waiting.end(|tally, amount| tally.unknown += amount);
                Err(error)
            }
        }
        .unwrap_or_else(|error| {
            Err(Reject::new(
                ErrorCode::PeerUnreachable,
                None,
                error.to_string(),
            ))
        })
    }
}

/// What the host sends.
struct Inbox(Arc<Meter>);

#[async_trait]
impl RequestHandler for Inbox {
    async fn handle(&self, prepare: Prepare) -> Reply {
        let meter = &self.0;
        let Some(receiver) = meter.receiver.get() else {
            return Err(Reject::new(ErrorCode::UnexpectedPayment, None, ""));
        };
        if meter.closed.load(Ordering::Acquire) {
            return Err(Reject::new(ErrorCode::UnexpectedPayment, None, "closed"));
        }
        let amount = prepare.amount;
        let record = || async {
            lock(&meter.tally).received += amount;
            Ok(())
        };
        receiver.wallet.receive(&prepare, record).await
    }
}

fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
