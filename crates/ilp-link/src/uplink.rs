//! The connection to the parent, made again whenever it breaks.
//!
//! ```text
//! Down ──connected──▶ asks for address and asset ──▶ Up (attached to the parent's account)
//!  ▲                        │ other asset                │ broken
//!  └──────── wait ◀─────────┴─────────────────────────◀──┘
//! ```
//! What is open when the connection breaks stays open until it expires: a parent that has fulfilled a
//! packet tells us over the next connection, and hears there what became of its own packets. So a
//! broken connection alone makes no difference between our books and the parent's.
//!
//! The parent may give us another address, when it was set up anew for example. The connector takes it
//! up before packets pass. Another asset it cannot take up: every amount in our books would mean
//! something else.

use std::sync::Arc;
use std::time::Duration;

use ilp_connector::{AccountError, AccountId, Answer, Connector, Link, LinkError};
use ilp_packet::ildcp::{self, IldcpResponse};
use ilp_packet::{Address, Reply};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use crate::btp_url::BtpUrl;
use crate::client::{ConfigurationError, ConnectError, ILDCP_TIMEOUT_MS, dial};
use crate::handler::Inbound;
use crate::peer::{Keep, Peer};
use crate::socket::SessionEnd;

/// Waits between two attempts; the last one is repeated. The same steps as ilp-plugin-btp's.
const WAITS: [Duration; 5] = [
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];
/// The wait after something that only a person can change: credentials, or the asset.
const LONG_WAIT: Duration = Duration::from_secs(30);

/// How the uplink is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UplinkState {
    /// Not connected; another attempt is under way or follows.
    Down,
    /// Connected and attached to the parent's account.
    Up {
        /// The address that the parent has given us.
        address: Address,
    },
    /// The parent's account is in another asset than ours. Nothing passes; another attempt follows.
    OtherAsset {
        /// Its code.
        code: String,
        /// Its scale.
        scale: u8,
    },
}

/// Keeps an account of the connector connected to a BTP server. Dropping it closes the connection.
#[derive(Debug)]
pub struct Uplink {
    state: watch::Receiver<UplinkState>,
    stop: CancellationToken,
    _task: AbortOnDropHandle<()>,
}

/// Why an attempt did not lead to an uplink.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the parent did not say what our address is")]
    Configuration(#[from] ConfigurationError),
    #[error("the parent's account is in {code} with scale {scale}, ours are not")]
    OtherAsset { code: String, scale: u8 },
    #[error("the parent's account is not open")]
    Account(#[from] AccountError),
}

impl Uplink {
    /// Starts connecting. The account must be open and stay open.
    #[must_use]
    pub fn spawn(url: BtpUrl, connector: Connector, account: AccountId) -> Self {
        let (state_sender, state) = watch::channel(UplinkState::Down);
        let stop = CancellationToken::new();
        let span = tracing::info_span!("uplink", %url);
        let line = Line {
            url,
            connector,
            account,
            peer: Peer::new(),
            state: state_sender,
            stop: stop.clone(),
        };
        Self {
            state,
            stop,
            _task: AbortOnDropHandle::new(tokio::spawn(line.run().instrument(span))),
        }
    }

    /// How it is, now and later.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<UplinkState> {
        self.state.clone()
    }

    /// Whether it is up now.
    #[must_use]
    pub fn is_up(&self) -> bool {
        matches!(*self.state.borrow(), UplinkState::Up { .. })
    }

    /// Returns when it is up.
    pub async fn up(&self) {
        let up = |state: &UplinkState| matches!(state, UplinkState::Up { .. });
        // Fails only if the task ended, and then there is nothing to wait for.
        let _ = self.state.clone().wait_for(up).await;
    }

    /// Closes the connection and does not connect again.
    pub fn close(&self) {
        self.stop.cancel();
    }
}

/// What the task works with.
struct Line {
    url: BtpUrl,
    connector: Connector,
    account: AccountId,
    peer: Peer,
    state: watch::Sender<UplinkState>,
    stop: CancellationToken,
}

impl Line {
    async fn run(self) {
        let mut failures = 0;
        loop {
            let attempt = self.while_carried(self.once());
            let wait = tokio::select! {
                () = self.stop.cancelled() => break,
                attempt = attempt => match attempt {
                    Ok(()) => {
                        failures = 0;
                        WAITS[0]
                    }
                    Err(failure) => {
                        tracing::warn!(error = &failure as &dyn std::error::Error, "uplink is down");
                        failures += 1;
                        self.wait_after(&failure, failures)
                    }
                },
            };
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = self.while_carried(tokio::time::sleep(wait)) => {}
            }
        }
        self.peer.give_up();
    }

    fn wait_after(&self, failure: &Failure, failures: usize) -> Duration {
        match failure {
            Failure::OtherAsset { code, scale } => {
                self.state.send_replace(UplinkState::OtherAsset {
                    code: code.clone(),
                    scale: *scale,
                });
                LONG_WAIT
            }
            Failure::Connect(ConnectError::Session {
                source: SessionEnd::Refused(_),
                ..
            }) => LONG_WAIT,
            Failure::Connect(_) | Failure::Configuration(_) | Failure::Account(_) => {
                WAITS[failures.min(WAITS.len()) - 1]
            }
        }
    }

    /// Does the work, and meanwhile gives up what was left open and has expired.
    async fn while_carried<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            let next = self.peer.expire_carried();
            let expiry = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    // Looked at again, because a session may have left something meanwhile.
                    None => tokio::time::sleep(WAITS[2]).await,
                }
            };
            tokio::select! {
                done = &mut work => return done,
                () = expiry => {}
            }
        }
    }

    /// Connects, and returns when the connection has ended.
    async fn once(&self) -> Result<(), Failure> {
        let cancel = self.stop.child_token();
        let _closed = cancel.clone().drop_guard();
        let clock = self.connector.clock();
        let socket = dial(&self.url, &clock, &cancel).await?;
        let Some(open) = self.peer.occupy(&cancel).await else {
            return Ok(());
        };
        let inbound = Inbound::Connector {
            connector: self.connector.clone(),
            account: self.account.clone(),
            sub_account: None,
        };
        let session = socket.run(&self.peer, &inbound, open, Keep::Always);
        tokio::pin!(session);
        let _attached = tokio::select! {
            end = &mut session => {
                tracing::warn!(%end, "uplink ended before it was up");
                return Ok(());
            }
            attached = self.attach() => match attached {
                Ok(attached) => attached,
                Err(failure) => {
                    cancel.cancel();
                    session.await;
                    return Err(failure);
                }
            },
        };
        tracing::info!(address = %self.connector.address(), "uplink is up");
        let end = session.await;
        tracing::warn!(%end, "uplink ended");
        Ok(())
    }

    /// Learns who we are, and lets packets pass.
    async fn attach(&self) -> Result<Attached<'_>, Failure> {
        let configuration = self.configuration().await?;
        let (code, scale) = self.connector.asset();
        if (configuration.asset_code.as_str(), configuration.asset_scale) != (code.as_str(), scale)
        {
            return Err(Failure::OtherAsset {
                code: configuration.asset_code,
                scale: configuration.asset_scale,
            });
        }
        let address = configuration.client_address;
        if address != self.connector.address() {
            tracing::warn!(
                before = %self.connector.address(),
                now = %address,
                "the parent has given us another address"
            );
            self.connector.readdress(address.clone())?;
        }
        let attachment = self
            .connector
            .attach_link(&self.account, Arc::new(self.peer.clone()))?;
        self.state.send_replace(UplinkState::Up { address });
        Ok(Attached {
            line: self,
            attachment,
        })
    }

    async fn configuration(&self) -> Result<IldcpResponse, ConfigurationError> {
        let expires_at = self.connector.clock().now().plus_millis(ILDCP_TIMEOUT_MS);
        let wait = Duration::from_millis(ILDCP_TIMEOUT_MS);
        let (answer, reply) = Answer::future(Instant::now() + wait);
        self.peer.send(ildcp::request(expires_at), answer);
        let reply: Result<Reply, LinkError> = reply.await.unwrap_or(Err(LinkError::Closed));
        let fulfill = reply?.map_err(ConfigurationError::Rejected)?;
        Ok(IldcpResponse::decode(&fulfill.data)?)
    }
}

/// Detaches the account when the connection ends, however it ends.
struct Attached<'a> {
    line: &'a Line,
    attachment: ilp_connector::Attachment,
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        self.line
            .connector
            .detach_link(&self.line.account, self.attachment);
        self.line.state.send_replace(UplinkState::Down);
    }
}
