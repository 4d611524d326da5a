//! STREAM payments from our sender to our receiver through a connector. Both ends are in this
//! process, each with a BTP connection of its own.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use clap::Args;
use codius_bench::process;
use ilp_connector::{Clock, SystemClock};
use ilp_link::{
    BtpClient, BtpUrl, RequestHandler,
    stream::{PacketSender, StreamConnection, SystemEntropy},
};
use ilp_packet::{Address, ErrorCode, Prepare, Reject, Reply};
use ilp_stream::{Config, Connection, StreamErrorCode, server::ServerSecret};
use serde_json::json;
use tokio::{task::JoinSet, time::timeout};

/// A payment that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Where the sender connects
    #[arg(long)]
    sender: SocketAddr,
    /// Where the receiver connects
    #[arg(long)]
    receiver: SocketAddr,
    /// Connections that pay at the same time
    #[arg(long, default_value_t = 1)]
    connections: u32,
    /// What each pays
    #[arg(long, default_value_t = 20_000_000)]
    amount: u64,
    /// Largest amount of one packet
    #[arg(long, default_value_t = 1000)]
    max_packet_amount: u64,
    /// Process of the connector, to say what it uses
    #[arg(long)]
    pid: Option<u32>,
}

/// Prints one line with what was measured.
pub(crate) fn run(options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(pay(options))
}

async fn pay(options: &Options) -> Result<()> {
    let clock = Arc::new(SystemClock);
    let shop = Arc::new(Shop::new());
    let url = |address: SocketAddr, name: &str| -> Result<BtpUrl> {
        Ok(format!("btp+ws://:{name}@{address}").parse()?)
    };
    let receiving = BtpClient::connect(
        &url(options.receiver, "receiver")?,
        Arc::clone(&shop) as _,
        Arc::clone(&clock) as _,
    )
    .await?;
    let address = receiving.configuration().await?.client_address;
    let seat = Seat {
        address: address.clone(),
        client: receiving.clone(),
    };
    ensure!(shop.seat.set(seat).is_ok(), "the receiver sits already");
    let purse = Arc::new(Purse::default());
    let sending = BtpClient::connect(
        &url(options.sender, "sender")?,
        Arc::clone(&purse) as _,
        Arc::clone(&clock) as _,
    )
    .await?;
    let own_address = sending.configuration().await?.client_address;

    let cpu = options.pid.map(process::cpu_time).transpose()?;
    let own = process::cpu_time(std::process::id())?;
    let begin = Instant::now();
    let mut payments = JoinSet::new();
    for number in 0..options.connections {
        let credentials = shop.secret.generate(&number.to_be_bytes())?;
        let own_address = own_address.with_suffix(&number.to_string())?;
        let config = Config {
            local_address: Some(own_address.clone()),
            max_packet_amount: options.max_packet_amount,
            ..Config::default()
        };
        let machine = Connection::client(
            clock.now(),
            config,
            &credentials.shared_secret,
            address.with_suffix(&credentials.token)?,
            Box::new(SystemEntropy),
        );
        let sender = Arc::new(Sender(sending.clone()));
        let connection = StreamConnection::spawn(machine, sender, Arc::clone(&clock) as _);
        purse.lock().insert(own_address, connection.clone());
        payments.spawn(pay_one(connection, options.amount));
    }
    let mut failures = Vec::new();
    while let Some(paid) = payments.join_next().await {
        if let Err(error) = paid? {
            failures.push(format!("{error:#}"));
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    let cpu_after = options.pid.map(process::cpu_time).transpose()?;
    let own_after = process::cpu_time(std::process::id())?;
    let (packets, received) = (
        shop.packets.load(Ordering::SeqCst),
        shop.received.load(Ordering::SeqCst),
    );
    ensure!(
        !failures.is_empty() || received == options.amount * u64::from(options.connections),
        "{received} arrived of what all connections have paid"
    );
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let count = packets as f64;
    println!(
        "{}",
        json!({
            "packets": packets,
            "received": received,
            "failures": failures.len(),
            "first_failure": failures.first(),
            "seconds": seconds,
            "per_second": count / seconds,
            "cpu_us": cpu.zip(cpu_after).map(|(before, after)| micros(after - before) / count),
            "load_cpu_us": micros(own_after - own) / count,
        })
    );
    sending.close();
    receiving.close();
    Ok(())
}

async fn pay_one(connection: StreamConnection, amount: u64) -> Result<()> {
    let stream = connection.with(|machine, _| {
        let stream = machine.open_stream()?;
        machine.set_send_max(stream, amount)?;
        Ok::<_, ilp_stream::CommandError>(stream)
    })?;
    let paid = connection.until(|machine, observed| {
        let sent = machine.stream_sent(stream).unwrap_or_default();
        if sent >= amount {
            return Some(Ok(()));
        }
        let reason = observed.closed.as_ref()?;
        Some(Err(anyhow::anyhow!("{reason} with {sent} sent")))
    });
    timeout(PATIENCE, paid)
        .await
        .context("not paid in time")??;
    connection.with(|machine, _| machine.close(StreamErrorCode::NoError, ""));
    Ok(())
}

struct Sender(BtpClient);

#[async_trait]
impl PacketSender for Sender {
    async fn send(&self, prepare: Prepare) -> Reply {
        self.0.send(prepare).await.unwrap_or_else(|error| {
            Err(Reject::new(
                ErrorCode::PeerUnreachable,
                None,
                error.to_string(),
            ))
        })
    }
}

/// The connections that pay, so that the other end can tell them what it takes. Without that, a
/// sender that was told that nothing is taken yet waits until it may ask again.
#[derive(Default)]
struct Purse(Mutex<HashMap<Address, StreamConnection>>);

impl Purse {
    fn lock(&self) -> MutexGuard<'_, HashMap<Address, StreamConnection>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl RequestHandler for Purse {
    async fn handle(&self, prepare: Prepare) -> Reply {
        let connection = self.lock().get(&prepare.destination).cloned();
        let Some(connection) = connection else {
            return Err(Reject::new(ErrorCode::UnexpectedPayment, None, ""));
        };
        connection.incoming(&prepare, || async { Ok(()) }).await
    }
}

/// Takes everything, on any number of connections.
struct Shop {
    secret: ServerSecret,
    seat: OnceLock<Seat>,
    connections: Mutex<HashMap<Vec<u8>, StreamConnection>>,
    /// Packets with money that were fulfilled, and the money.
    packets: AtomicU64,
    received: AtomicU64,
}

struct Seat {
    address: Address,
    client: BtpClient,
}

impl Shop {
    fn new() -> Self {
        Self {
            secret: ServerSecret::new(&rand::random()),
            seat: OnceLock::new(),
            connections: Mutex::default(),
            packets: AtomicU64::new(0),
            received: AtomicU64::new(0),
        }
    }

    fn connection(&self, prepare: &Prepare) -> Option<StreamConnection> {
        let seat = self.seat.get()?;
        let token = prepare.destination.segment_after(&seat.address)?;
        let opened = self.secret.open(token)?;
        let mut connections = self
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(connection) = connections.get(&opened.tag) {
            return Some(connection.clone());
        }
        let clock = Arc::new(SystemClock);
        let config = Config {
            local_address: seat.address.with_suffix(token).ok(),
            ..Config::default()
        };
        let machine = Connection::server(
            clock.now(),
            config,
            &opened.shared_secret,
            Box::new(SystemEntropy),
        );
        let sender = Arc::new(Sender(seat.client.clone()));
        let connection = StreamConnection::spawn(machine, sender, clock);
        tokio::spawn(welcome(connection.clone()));
        connections.insert(opened.tag, connection.clone());
        Some(connection)
    }
}

/// Lets the first stream bring what it likes.
async fn welcome(connection: StreamConnection) {
    connection
        .until(|machine, observed| {
            if let Some(stream) = observed.opened.first() {
                // It is open, so that this cannot fail.
                let _ = machine.set_receive_max(*stream, u64::MAX);
                return Some(());
            }
            observed.closed.is_some().then_some(())
        })
        .await;
}

#[async_trait]
impl RequestHandler for Shop {
    async fn handle(&self, prepare: Prepare) -> Reply {
        let Some(connection) = self.connection(&prepare) else {
            return Err(Reject::new(ErrorCode::UnexpectedPayment, None, ""));
        };
        let reply = connection.incoming(&prepare, || async { Ok(()) }).await;
        if reply.is_ok() && prepare.amount > 0 {
            self.packets.fetch_add(1, Ordering::SeqCst);
            self.received.fetch_add(prepare.amount, Ordering::SeqCst);
        }
        reply
    }
}
