//! Money that flows into a lease as long as it is wanted: one STREAM connection to the lease's payment
//! pointer, over which what was not used comes back at the end.
//!
//! ```text
//! query of HOST/HASH ─▶ open ─▶ pay_up_to(TOTAL), again and again ─▶ closed by the host: the rest is back
//!                                     │ nobody answers
//!                                     └▶ give_up, and open another
//! ```
//! A total only ever grows, and nothing beyond it leaves, whatever the host says.

use std::time::Duration;

use codius_manifest::ManifestHash;
use ilp_link::stream::StreamConnection;
use ilp_stream::{CloseReason, StreamErrorCode, StreamId};
use tokio::time::timeout;

use crate::{ClientError, HostClient, Receipt, Wallet, payment::Demand};

/// How long the host's STREAM server may take to answer.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the end of the connection may take to be told.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// An open connection to the payment pointer of one lease.
#[derive(Debug)]
pub struct Flow {
    connection: StreamConnection,
    stream: StreamId,
}

impl Flow {
    /// Asks for the lease's payment pointer, opens a connection to it, and waits until the host has taken
    /// it. Nothing is paid yet.
    pub async fn open(
        host: &HostClient,
        hash: &ManifestHash,
        wallet: &Wallet,
    ) -> Result<Self, ClientError> {
        let demand: Demand = host.pointer(hash).await?;
        let refused = |reason: String| ClientError::NoPayment { reason };
        let opened = wallet.stream(demand.address.clone(), &demand.secret, |machine| {
            let stream = machine.open_stream()?;
            // Whatever comes back is welcome.
            machine.set_receive_max(stream, u64::MAX)?;
            Ok::<_, ilp_stream::CommandError>(stream)
        });
        let (connection, stream) = opened.map_err(|error| refused(error.to_string()))?;
        let taken = connection.until(|machine, observed| {
            if let Some(reason) = &observed.closed {
                return Some(Err(refused(reason.to_string())));
            }
            if let Some((_, message)) = observed.ended.get(&stream) {
                return Some(Err(refused(message.clone())));
            }
            let takes = machine.remote_receive_max(stream).unwrap_or_default();
            (takes > 0).then_some(Ok(()))
        });
        let taken = timeout(OPEN_TIMEOUT, taken).await.unwrap_or_else(|_| {
            let seconds = OPEN_TIMEOUT.as_secs();
            Err(refused(format!("no answer in {seconds} s")))
        });
        let flow = Self { connection, stream };
        match taken {
            Ok(()) => Ok(flow),
            Err(error) => {
                flow.abandon();
                Err(error)
            }
        }
    }

    /// Lets so much leave in all by this connection, in the wallet's units. Less than has left already, or
    /// is on its way, changes nothing.
    pub fn pay_up_to(&self, total: u64) {
        self.connection.with(|machine, _| {
            // A connection that is over takes no command, and says so by `is_over`.
            let _ = machine.set_send_max(self.stream, total);
        });
    }

    /// What has left and come back, by packets that were fulfilled.
    pub fn receipt(&self) -> Receipt {
        self.connection.with(|machine, _| Receipt {
            paid: machine.total_sent(),
            refunded: machine.total_received(),
        })
    }

    /// Nothing can be paid by it any more.
    pub fn is_over(&self) -> bool {
        self.connection.with(|machine, observed| {
            observed.closed.is_some() || machine.stream_sent(self.stream).is_none() || {
                observed.ended.contains_key(&self.stream)
            }
        })
    }

    /// Waits until the other end has closed it, at most so long; false if it has not.
    pub async fn ended(&self, patience: Duration) -> bool {
        let closed = self.connection.until(|_, observed| {
            let reason = observed.closed.as_ref()?;
            Some(matches!(reason, CloseReason::Remote { .. }))
        });
        timeout(patience, closed).await.unwrap_or(false)
    }

    /// Ends it and says what has moved.
    pub async fn end(self) -> Receipt {
        let closing = self.connection.close(StreamErrorCode::NoError, "");
        let _ = timeout(CLOSE_TIMEOUT, closing).await;
        self.receipt()
    }

    /// Sends nothing any more, and tells the other end if it still listens.
    pub fn abandon(&self) {
        self.connection
            .with(|machine, _| machine.close(StreamErrorCode::NoError, ""));
    }
}
