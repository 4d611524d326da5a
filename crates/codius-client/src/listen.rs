//! Where money comes back that is not asked for by a payment of ours: a STREAM server for one sender.

use base64::{Engine, engine::general_purpose::STANDARD};
use codius_api::v2::RefundTo;
use ilp_connector::{Clock, SystemClock};
use ilp_link::stream::{StreamConnection, SystemEntropy};
use ilp_packet::Address;
use ilp_stream::{Config, Connection, SharedSecret};
use std::sync::Arc;

use crate::Wallet;

/// An address that is told to one host, and the connection that the host opens to it.
#[derive(Debug)]
pub struct Listener {
    address: Address,
    secret: [u8; 32],
    connection: StreamConnection,
}

impl Listener {
    pub(crate) fn open(wallet: &Wallet) -> Self {
        let clock = Arc::new(SystemClock);
        let (segment, address) = wallet.fresh_address();
        let config = Config {
            local_address: Some(address.clone()),
            asset: Some(wallet.asset().clone()),
            ..Config::default()
        };
        let secret = rand::random();
        let machine = Connection::server(
            clock.now(),
            config,
            &SharedSecret(secret),
            Box::new(SystemEntropy),
        );
        let connection = wallet.drive(machine, clock);
        wallet.expect_at(segment, &connection);
        Self {
            address,
            secret,
            connection,
        }
    }

    /// What the sender is told.
    pub fn refund_to(&self) -> RefundTo {
        RefundTo {
            destination_account: self.address.to_string(),
            shared_secret: STANDARD.encode(self.secret),
        }
    }

    /// Takes all that comes, until the sender closes the connection. Safe to drop.
    pub async fn attend(&self) {
        loop {
            let opened = self.connection.until(|machine, observed| {
                if observed.closed.is_some() {
                    return Some(None);
                }
                let new = machine
                    .open_streams()
                    .find(|stream| machine.receive_max(*stream) == Some(0));
                new.map(Some)
            });
            let Some(stream) = opened.await else {
                return;
            };
            // A stream that is over by now takes nothing, and is not found again.
            let _ = self
                .connection
                .with(|machine, _| machine.set_receive_max(stream, u64::MAX));
        }
    }

    /// What has come, in our units.
    pub fn received(&self) -> u64 {
        self.connection.with(|machine, _| machine.total_received())
    }
}
