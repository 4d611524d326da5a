//! Money that goes back to who paid it, over a STREAM connection that this host opens: to an account
//! that its owner has named (RFC 29), or to a payment pointer (`refund/queue.rs`). Refunds of an order
//! that failed take the way of its payment first (`till.rs`).
//!
//! Each packet is in the books before it counts as sent, and a limit that all packets of one refund
//! share holds whatever the other end says. So what has left is what was fulfilled, and what has not
//! left is still in the account that it was to leave.

mod claims;
mod payee;
mod pointer;
mod queue;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD};
use codius_api::v2::RefundTo;
use codius_ledger::{Account, Asset};
use data_encoding::HEXLOWER;
use ilp_connector::{
    AccountError, AccountId, Commit, Connector, LedgerAccount, Receiver, SpendLimit,
};
use ilp_link::stream::{PacketSender, StreamConnection, SystemEntropy};
use ilp_packet::{Address, ErrorCode, Prepare, Reject, Reply};
use ilp_stream::{Config, Connection, RatePolicy, SharedSecret, StreamErrorCode};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub(crate) use claims::{Claim, Claims};
pub(crate) use pointer::{InvalidPointer, PaymentPointer, Reach};
pub(crate) use queue::RefundQueue;

use crate::till::asset_details;
use payee::Payees;

/// How much less than the path's rate may arrive of a packet, in millionths: a percent, as with the
/// original's clients.
const SLIPPAGE_PPM: u32 = 10_000;
/// The segment of the connector's address below which payees answer.
const SEGMENT: &str = "refund";
/// How long a packet may take: a refund ends so much later than it is given up.
const PACKET_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the other end may take to hear that the connection is over.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Where a refund goes.
#[derive(Debug, Clone)]
pub(crate) struct Destination {
    address: Address,
    secret: SharedSecret,
}

/// The request names no STREAM server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidDestination {
    #[error("`refund.destination_account` is not an Interledger address")]
    Address,
    #[error("`refund.shared_secret` is not 32 bytes in base64")]
    Secret,
}

impl TryFrom<&RefundTo> for Destination {
    type Error = InvalidDestination;

    fn try_from(to: &RefundTo) -> Result<Self, InvalidDestination> {
        let address = to
            .destination_account
            .parse()
            .map_err(|_| InvalidDestination::Address)?;
        let secret = STANDARD
            .decode(&to.shared_secret)
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(InvalidDestination::Secret)?;
        Ok(Self {
            address,
            secret: SharedSecret(secret),
        })
    }
}

/// Sends refunds.
pub(crate) struct Refunds {
    connector: Connector,
    asset: Asset,
    payees: Payees,
    closing: CancellationToken,
    connections: Arc<Connections>,
}

impl Refunds {
    pub(crate) fn new(
        connector: Connector,
        asset: Asset,
        reach: Reach,
        closing: CancellationToken,
    ) -> Result<Self, AccountError> {
        let connections = Arc::new(Connections {
            connector: connector.clone(),
            open: Mutex::default(),
        });
        connector.register_receiver(SEGMENT, Arc::clone(&connections) as Arc<dyn Receiver>)?;
        Ok(Self {
            connector,
            asset,
            payees: Payees::new(reach),
            closing,
            connections,
        })
    }

    /// Reads a payment pointer that this host would pay.
    pub(crate) fn pointer(&self, text: &str) -> Result<PaymentPointer, InvalidPointer> {
        PaymentPointer::parse(text, self.payees.reach())
    }

    /// Where the owner of a pointer is paid now, or why not.
    async fn ask(&self, pointer: &PaymentPointer) -> Result<Destination, String> {
        let asked = tokio::select! {
            asked = self.payees.ask(pointer) => asked,
            () = self.closing.cancelled() => return Err("the host was ended".to_owned()),
        };
        asked.map_err(|fault| format!("the payment pointer cannot be paid: {fault}"))
    }

    /// Sends at most `amount` from an account and returns how much has left, which is in the books. No
    /// packet is sent after `patience`, or when the host ends, and none is under way [`PACKET_TIMEOUT`]
    /// later. The caller has claimed the account.
    pub(crate) async fn send(
        &self,
        from: &Account,
        amount: u64,
        to: Destination,
        patience: Duration,
    ) -> u64 {
        if amount == 0 {
            return 0;
        }
        let limit = SpendLimit::new(amount);
        let clock = self.connector.clock();
        let token = HEXLOWER.encode(&rand::random::<[u8; 16]>());
        let address = self.connections.address();
        let config = Config {
            // A JavaScript server takes nothing from who does not say where he is.
            local_address: address.and_then(|it| it.with_suffix(&token).ok()),
            asset: Some(asset_details(&self.asset)),
            rate: RatePolicy::Probed {
                slippage_ppm: SLIPPAGE_PPM,
                max_amount: amount,
            },
            packet_timeout_millis: u64::try_from(PACKET_TIMEOUT.as_millis()).unwrap_or(u64::MAX),
            ..Config::default()
        };
        let entropy = Box::new(SystemEntropy);
        let machine = Connection::client(clock.now(), config, &to.secret, to.address, entropy);
        let sender = Sender {
            connector: self.connector.clone(),
            account: from.to_string().into(),
            limit: limit.clone(),
        };
        let connection = StreamConnection::spawn(machine, Arc::new(sender), clock);
        let _open = self.connections.open(token, &connection);
        let opened = connection.with(|machine, _| {
            let stream = machine.open_stream()?;
            machine.set_send_max(stream, amount)?;
            Ok::<_, ilp_stream::CommandError>(stream)
        });
        let Ok(stream) = opened else {
            return 0;
        };
        let sent = connection.until(|machine, observed| {
            let sent = machine.stream_sent(stream).unwrap_or(amount);
            (sent >= amount || observed.closed.is_some()).then_some(())
        });
        tokio::select! {
            sent = timeout(patience, sent) => {
                if sent.is_err() {
                    tracing::warn!(account = %from, amount, "a refund did not arrive in time");
                }
            }
            () = self.closing.cancelled() => {}
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
        let closing = connection.close(StreamErrorCode::NoError, "");
        if timeout(CLOSE_TIMEOUT, closing).await.is_err() {
            tracing::debug!("the payee did not hear that its refund is over");
        }
        limit.spent()
    }
}

/// The connections of refunds, by the last segment of their addresses: payees send packets, too, to say
/// what they take. No money comes by them.
struct Connections {
    connector: Connector,
    open: Mutex<HashMap<String, StreamConnection>>,
}

/// A connection is found while this is there.
struct Open<'a> {
    connections: &'a Connections,
    token: String,
}

impl Connections {
    /// Asked each time, because a parent may give the host another address.
    fn address(&self) -> Option<Address> {
        self.connector.address().with_suffix(SEGMENT).ok()
    }

    fn open(&self, token: String, connection: &StreamConnection) -> Open<'_> {
        self.lock().insert(token.clone(), connection.clone());
        Open {
            connections: self,
            token,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, StreamConnection>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.connections.lock().remove(&self.token);
    }
}

#[async_trait]
impl Receiver for Connections {
    async fn receive(&self, _: Option<&AccountId>, prepare: Prepare, _: Commit) -> Reply {
        let address = self.address();
        let token = address.and_then(|it| Some(prepare.destination.segment_after(&it)?.to_owned()));
        let connection = token.and_then(|token| self.lock().get(&token).cloned());
        let Some(connection) = connection else {
            let code = ErrorCode::UnexpectedPayment;
            return Err(Reject::new(code, Some(&self.connector.address()), ""));
        };
        let refuse = || async {
            // Called for packets that bring money.
            match prepare.amount {
                0 => Ok(()),
                _ => Err(ErrorCode::FinalApplicationError),
            }
        };
        connection.incoming(&prepare, refuse).await
    }
}

/// Sends the packets of one refund.
struct Sender {
    connector: Connector,
    account: LedgerAccount,
    limit: SpendLimit,
}

#[async_trait]
impl PacketSender for Sender {
    async fn send(&self, prepare: Prepare) -> Reply {
        self.connector
            .originate(&self.account, &self.limit, prepare)
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_an_address_and_a_secret() {
        let to = |address: &str, secret: &str| {
            Destination::try_from(&RefundTo {
                destination_account: address.to_owned(),
                shared_secret: secret.to_owned(),
            })
            .map(|_| ())
        };
        let secret = STANDARD.encode([7; 32]);
        assert_eq!(to("test.local.a.token", &secret), Ok(()));
        for address in ["", "nowhere", "test..a", "test.a b"] {
            let refused = to(address, &secret);
            assert_eq!(refused, Err(InvalidDestination::Address), "{address}");
        }
        for secret in ["", "AAAA", &secret[1..], "!"] {
            let refused = to("test.a.b", secret);
            assert_eq!(refused, Err(InvalidDestination::Secret), "{secret}");
        }
    }
}
