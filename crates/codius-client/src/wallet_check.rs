//! What can be found out about one's own Interledger connection without paying anything.

use std::time::{Duration, Instant};

use bytes::Bytes;
use ilp_connector::{Clock, SystemClock};
use ilp_link::ConfigurationError;
use ilp_packet::ildcp::{self, IldcpResponse};
use ilp_packet::{AmountTooLarge, Condition, ErrorCode, Prepare};

use crate::{ClientError, Wallet};

/// How long the answer to a question may take, in milliseconds.
const ANSWER_TIMEOUT_MS: u64 = 5_000;

impl Wallet {
    /// How long the connection takes to say again who we are (ILDCP): there and back once.
    pub async fn round_trip(&self, url: &str) -> Result<Duration, ClientError> {
        let start = Instant::now();
        let request = ildcp::request(SystemClock.now().plus_millis(ANSWER_TIMEOUT_MS));
        let source = match self.send(request).await {
            Ok(fulfill) => match IldcpResponse::decode(&fulfill.data) {
                Ok(_) => return Ok(start.elapsed()),
                Err(error) => ConfigurationError::Response(error),
            },
            Err(reject) => ConfigurationError::Rejected(reject),
        };
        Err(ClientError::Wallet {
            url: url.to_owned(),
            source,
        })
    }

    /// The most that one packet may move, if the connection tells: it is offered a packet of the
    /// largest amount there is, to ourselves, under a condition that nobody can fulfil. RFC 27 has it
    /// answered with the limit (F08); whatever else comes, nothing has moved.
    pub async fn max_packet_amount(&self) -> Option<u64> {
        let (_, destination) = self.fresh_address();
        let prepare = Prepare {
            amount: u64::MAX,
            expires_at: SystemClock.now().plus_millis(ANSWER_TIMEOUT_MS),
            condition: Condition(rand::random()),
            destination,
            data: Bytes::new(),
        };
        let reject = self.send(prepare).await.err()?;
        if reject.code != ErrorCode::AmountTooLarge {
            return None;
        }
        let limit = AmountTooLarge::decode(&reject.data).ok()?;
        // The units of a hop farther away may be others than ours.
        (limit.received == u64::MAX).then_some(limit.maximum)
    }
}
