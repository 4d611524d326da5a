//! An Interledger account at a host in local mode: it pays, and it is paid.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD};
use ilp_connector::{Clock, SystemClock};
use ilp_link::{
    BtpClient, RequestHandler,
    stream::{PacketSender, StreamConnection, SystemEntropy},
};
use ilp_packet::{Address, ErrorCode, Prepare, Reject, Reply};
use ilp_stream::{Config, Connection, SharedSecret, StreamErrorCode};
use serde_json::{Value, json};

use crate::support::World;

const TIMEOUT: Duration = Duration::from_secs(20);

/// A BTP client with the STREAM connections that packets for it belong to.
pub(crate) struct Account {
    client: BtpClient,
    address: Address,
    inbox: Arc<Inbox>,
    /// What its payments have sent, less what came back by them.
    paid: Mutex<u64>,
}

/// A payment whose connection is open.
pub(crate) struct Payment<'a> {
    account: &'a Account,
    connection: StreamConnection,
}

/// A STREAM server that waits for one refund.
pub(crate) struct Refund {
    connection: StreamConnection,
    /// As the body of a stop has it.
    pub(crate) to: Value,
}

/// Connections by the address that they receive at; later ones come first.
#[derive(Default)]
struct Inbox(Mutex<Vec<(Address, StreamConnection)>>);

#[async_trait]
impl RequestHandler for Inbox {
    async fn handle(&self, prepare: Prepare) -> Reply {
        let connections = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let wanted = prepare.destination.as_str();
        let found = connections
            .into_iter()
            .rev()
            .find(|(address, _)| wanted.starts_with(address.as_str()));
        match found {
            Some((_, connection)) => connection.incoming(&prepare, || async { Ok(()) }).await,
            None => Err(Reject::new(ErrorCode::UnexpectedPayment, None, "")),
        }
    }
}

struct Sender(BtpClient);

#[async_trait]
impl PacketSender for Sender {
    async fn send(&self, prepare: Prepare) -> Reply {
        let unreachable = |error: ilp_connector::LinkError| {
            Reject::new(ErrorCode::PeerUnreachable, None, error.to_string())
        };
        self.0.send(prepare).await.map_err(unreachable)?
    }
}

impl Account {
    pub(crate) async fn open(world: &World) -> Result<Self> {
        let url = world
            .interledger
            .replace("btp+ws://", "btp+ws://:a-secret@")
            .parse()?;
        let inbox = Arc::new(Inbox::default());
        let client = BtpClient::connect(&url, inbox.clone(), Arc::new(SystemClock)).await?;
        let address = client.configuration().await?.client_address;
        Ok(Self {
            client,
            address,
            inbox,
            paid: Mutex::new(0),
        })
    }

    /// What the host has of it, by its own count.
    pub(crate) fn paid(&self) -> u64 {
        *self.paid.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a demand: opens the stream and waits until the host has seen it.
    pub(crate) async fn pay(&self, demand: &str) -> Result<Payment<'_>> {
        let words: Vec<&str> = demand.split(' ').collect();
        let ["interledger-stream", address, secret, price] = words[..] else {
            bail!("not a demand: {demand:?}")
        };
        let secret = STANDARD.decode(secret)?.try_into();
        let secret = SharedSecret(secret.ok().context("not 32 bytes")?);
        let price: u64 = price.parse()?;
        let clock = Arc::new(SystemClock);
        let machine = Connection::client(
            clock.now(),
            self.config(&self.address),
            &secret,
            address.parse()?,
            Box::new(SystemEntropy),
        );
        let connection =
            StreamConnection::spawn(machine, Arc::new(Sender(self.client.clone())), clock);
        self.receive(self.address.clone(), &connection);
        let stream = connection.with(|machine, _| {
            let stream = machine.open_stream()?;
            machine.set_send_max(stream, price)?;
            machine.set_receive_max(stream, price)?;
            Ok::<_, ilp_stream::CommandError>(stream)
        })?;
        let seen = connection.until(|_, seen| {
            let closed = seen.closed.as_ref().map(|reason| bail!("closed: {reason}"));
            if seen.data.contains_key(&stream) {
                Some(Ok(()))
            } else {
                closed
            }
        });
        tokio::time::timeout(TIMEOUT, seen).await??;
        Ok(Payment {
            account: self,
            connection,
        })
    }

    /// Listens for a refund, taking at most so much.
    pub(crate) fn listen(&self, receive_max: u64) -> Result<Refund> {
        let secret: [u8; 32] = rand::random();
        let token: u64 = rand::random();
        let address = self.address.with_suffix(&format!("refund{token}"))?;
        let clock = Arc::new(SystemClock);
        let machine = Connection::server(
            clock.now(),
            self.config(&address),
            &SharedSecret(secret),
            Box::new(SystemEntropy),
        );
        let connection =
            StreamConnection::spawn(machine, Arc::new(Sender(self.client.clone())), clock);
        self.receive(address.clone(), &connection);
        let opened = connection.clone();
        tokio::spawn(async move {
            let taken = opened.until(|machine, seen| {
                let stream = seen.opened.first()?;
                Some(machine.set_receive_max(*stream, receive_max))
            });
            taken.await
        });
        Ok(Refund {
            connection,
            to: json!({
                "destination_account": address.to_string(),
                "shared_secret": STANDARD.encode(secret),
            }),
        })
    }

    fn config(&self, address: &Address) -> Config {
        Config {
            local_address: Some(address.clone()),
            ..Config::default()
        }
    }

    fn receive(&self, address: Address, connection: &StreamConnection) {
        let mut connections = self.inbox.0.lock().unwrap_or_else(PoisonError::into_inner);
        connections.push((address, connection.clone()));
    }
}

impl Payment<'_> {
    /// Ends the connection, and counts what has moved by it.
    pub(crate) async fn end(self) {
        let closing = self.connection.close(StreamErrorCode::NoError, "");
        let _ = tokio::time::timeout(Duration::from_secs(2), closing).await;
        let moved = self
            .connection
            .with(|machine, _| machine.total_sent() - machine.total_received());
        *self
            .account
            .paid
            .lock()
            .unwrap_or_else(PoisonError::into_inner) += moved;
    }
}

impl Refund {
    /// What has arrived.
    pub(crate) fn received(&self) -> u64 {
        self.connection.with(|machine, _| machine.total_received())
    }
}
