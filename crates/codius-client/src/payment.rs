//! One payment: a STREAM connection with one stream, from the 402 to the refund.
//!
//! With a host of ours it takes three packets, each in its direction:
//!
//! ```text
//! client ─▶ who we are, a stream, what we would pay     the answer has the ready byte and the price
//! client ─▶ the price, while the request goes again     fulfilled when the host has got the request
//! host   ─▶ stream and connection are over
//! ```
//! A host that says more in packets of its own is paid as well.

use std::time::Duration;

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use ilp_link::stream::StreamConnection;
use ilp_packet::Address;
use ilp_stream::{SharedSecret, StreamErrorCode};
use tokio::time::timeout;

use crate::{ClientError, Wallet};

/// How long the host's STREAM server may take to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the end of a payment may take to be told.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a host that closes connections itself may take to do so after its answer.
const HOST_CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// The word that a host sends when it has seen our stream.
const READY: u8 = 0xff;

/// 16 random bytes that name one order.
#[derive(Debug, Clone, Copy)]
pub struct PayToken([u8; 16]);

impl PayToken {
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// As the `Pay-Token` header has it: base64url without padding.
    pub fn header(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }
}

/// What has moved, in the payer's units.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Receipt {
    /// Gone to the host, by packets that it has fulfilled.
    pub paid: u64,
    /// Come back over the same connection.
    pub refunded: u64,
}

/// What a `Pay` header asks for: `interledger-stream ADDRESS SECRET [PRICE]`.
pub(crate) struct Demand {
    pub(crate) address: Address,
    pub(crate) secret: SharedSecret,
    /// In the host's units; hosts of the first generation do not say.
    pub(crate) price: Option<u64>,
}

impl Demand {
    /// What a payment pointer answers (RFC 9): an address, and a secret in base64.
    pub(crate) fn of_pointer(address: &str, secret: &str) -> Option<Self> {
        Self::parse(&format!("interledger-stream {address} {secret}"))
    }

    pub(crate) fn parse(header: &str) -> Option<Self> {
        let mut words = header.split(' ').filter(|word| !word.is_empty());
        if words.next()? != "interledger-stream" {
            return None;
        }
        let address = words.next()?.parse().ok()?;
        let secret = words.next()?;
        let secret = STANDARD
            .decode(secret)
            .or_else(|_| URL_SAFE_NO_PAD.decode(secret.trim_end_matches('=')))
            .ok()?;
        let price = words.next().and_then(|price| price.parse().ok());
        Some(Self {
            address,
            secret: SharedSecret(secret.try_into().ok()?),
            price,
        })
    }
}

/// A payment that is under way.
pub(crate) struct Payment {
    connection: StreamConnection,
    /// The host closes the connection after its answer: all do that say what they ask for.
    host_closes: bool,
}

impl Payment {
    /// Opens the connection and waits until the host has seen it. At most `limit` units can leave.
    pub(crate) async fn begin(
        wallet: &Wallet,
        demand: &Demand,
        limit: u64,
    ) -> Result<Self, ClientError> {
        let refused = |reason: String| ClientError::NoPayment { reason };
        let opened = wallet.stream(demand.address.clone(), &demand.secret, |machine| {
            let stream = machine.open_stream()?;
            machine.set_send_max(stream, limit)?;
            // What is not used comes back the same way.
            machine.set_receive_max(stream, limit)?;
            Ok::<_, ilp_stream::CommandError>(stream)
        });
        let (connection, stream) = opened.map_err(|error| refused(error.to_string()))?;
        let seen = connection.until(|_, observed| {
            if observed
                .data
                .get(&stream)
                .is_some_and(|data| data.contains(&READY))
            {
                return Some(Ok(()));
            }
            observed
                .closed
                .as_ref()
                .map(|reason| Err(refused(reason.to_string())))
        });
        match timeout(CONNECT_TIMEOUT, seen).await {
            Ok(seen) => seen?,
            Err(_) => {
                return Err(refused(format!(
                    "no answer in {} s",
                    CONNECT_TIMEOUT.as_secs()
                )));
            }
        }
        Ok(Self {
            connection,
            host_closes: demand.price.is_some(),
        })
    }

    /// What has moved. The connection has one stream, which the host may have ended already.
    pub(crate) fn receipt(&self) -> Receipt {
        self.connection.with(|machine, _| Receipt {
            paid: machine.total_sent(),
            refunded: machine.total_received(),
        })
    }

    /// Ends the connection after the host's answer and says what has moved.
    pub(crate) async fn end(self) -> Receipt {
        if self.host_closes {
            // One packet less than if both ends told each other.
            let closed = self
                .connection
                .until(|_, observed| observed.closed.is_some().then_some(()));
            let _ = timeout(HOST_CLOSE_TIMEOUT, closed).await;
        }
        self.give_up().await
    }

    /// Ends the connection without waiting for anything of the host and says what has moved.
    pub(crate) async fn give_up(self) -> Receipt {
        let closing = self.connection.close(StreamErrorCode::NoError, "");
        // A host that does not listen any more costs us nothing but this wait.
        let _ = timeout(CLOSE_TIMEOUT, closing).await;
        self.receipt()
    }
}

impl Payment {
    /// What the host counts in, if it has said so.
    pub(crate) fn host_asset(&self) -> Option<codius_api::AssetInfo> {
        self.connection.with(|machine, _| {
            machine.remote_asset().map(|asset| codius_api::AssetInfo {
                code: asset.code.clone(),
                scale: asset.scale,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demand_has_an_address_a_secret_and_perhaps_a_price() {
        let secret = STANDARD.encode([7; 32]);
        let plain = Demand::parse(&format!("interledger-stream test.host.abc {secret}")).unwrap();
        assert_eq!(
            (plain.address.as_str(), plain.price),
            ("test.host.abc", None)
        );
        let priced =
            Demand::parse(&format!("interledger-stream test.host.abc {secret} 2284")).unwrap();
        assert_eq!(priced.price, Some(2284));
        for text in [
            "",
            "interledger-stream",
            "interledger-psk2 test.a b",
            "interledger-stream test.a AAAA",
        ] {
            assert!(Demand::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn tokens_are_16_bytes_and_never_the_same() {
        let token = PayToken::random();
        assert_eq!(URL_SAFE_NO_PAD.decode(token.header()).unwrap().len(), 16);
        assert_ne!(token.header(), PayToken::random().header());
    }
}
