//! The connection to the parent, made again whenever it breaks.
//!
//! ```text
//! Connecting ──▶ Connected (attached to the parent's account) ──▶ Waiting ──▶ Connecting …
//!      └──────────────────────────────────────────────────────────▶ ▲
//! ```

use std::sync::Arc;
use std::time::Duration;

use ilp_connector::{AccountError, AccountId, Connector};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use crate::btp_url::BtpUrl;
use crate::client::BtpClient;
use crate::handler::Inbound;

/// Waits between two attempts; the last one is repeated. The same steps as ilp-plugin-btp's.
const WAITS: [Duration; 5] = [
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

/// How the uplink is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UplinkState {
    /// Not connected; another attempt is under way or follows.
    Down,
    /// Connected and attached to the parent's account.
    Up,
}

/// Keeps an account of the connector connected to a BTP server. Dropping it closes the connection.
#[derive(Debug)]
pub struct Uplink {
    state: watch::Receiver<UplinkState>,
    stop: CancellationToken,
    _task: AbortOnDropHandle<()>,
}

impl Uplink {
    /// Starts connecting. The account must be open and stay open.
    #[must_use]
    pub fn spawn(url: BtpUrl, connector: Connector, account: AccountId) -> Self {
        let (state_sender, state) = watch::channel(UplinkState::Down);
        let stop = CancellationToken::new();
        let span = tracing::info_span!("uplink", %url);
        let running = run(url, connector, account, state_sender, stop.clone()).instrument(span);
        Self {
            state,
            stop,
            _task: AbortOnDropHandle::new(tokio::spawn(running)),
        }
    }

    /// How it is now.
    #[must_use]
    pub fn state(&self) -> UplinkState {
        *self.state.borrow()
    }

    /// Returns when it is up.
    pub async fn up(&self) {
        // Fails only if the task ended, and then there is nothing to wait for.
        let _ = self
            .state
            .clone()
            .wait_for(|state| *state == UplinkState::Up)
            .await;
    }

    /// Closes the connection and does not connect again.
    pub fn close(&self) {
        self.stop.cancel();
    }
}

async fn run(
    url: BtpUrl,
    connector: Connector,
    account: AccountId,
    state: watch::Sender<UplinkState>,
    stop: CancellationToken,
) {
    let mut failures = 0;
    loop {
        let wait = tokio::select! {
            () = stop.cancelled() => return,
            connected = once(&url, &connector, &account, &state) => match connected {
                Ok(()) => {
                    failures = 0;
                    WAITS[0]
                }
                Err(error) => {
                    tracing::warn!(error = &*error as &dyn std::error::Error, "uplink is down");
                    failures += 1;
                    WAITS[failures.min(WAITS.len()) - 1]
                }
            },
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Connects, and returns when the connection has ended.
async fn once(
    url: &BtpUrl,
    connector: &Connector,
    account: &AccountId,
    state: &watch::Sender<UplinkState>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let inbound = Inbound::Connector {
        connector: connector.clone(),
        account: account.clone(),
        sub_account: None,
    };
    let client = BtpClient::connect_inbound(url, inbound, connector.clock()).await?;
    let link: Result<_, AccountError> = connector.attach_link(account, Arc::new(client.link()));
    let attachment = link?;
    let _attached = Attached {
        connector,
        account,
        attachment,
        state,
    };
    state.send_replace(UplinkState::Up);
    tracing::info!("uplink is up");
    let end = client.closed().await;
    tracing::warn!(%end, "uplink ended");
    Ok(())
}

/// Detaches the account when the connection ends, however it ends.
struct Attached<'a> {
    connector: &'a Connector,
    account: &'a AccountId,
    attachment: ilp_connector::Attachment,
    state: &'a watch::Sender<UplinkState>,
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        self.connector.detach_link(self.account, self.attachment);
        self.state.send_replace(UplinkState::Down);
    }
}
