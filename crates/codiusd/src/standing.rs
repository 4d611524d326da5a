//! Where this host stands in Interledger: the root of a private network, or the child of a parent.
//!
//! ```text
//! local    address and asset are the host's own
//! uplink   first start: waits for the parent, which says them
//!          later starts: those of last time, at once; the parent is found in the background
//! ```
//! What it is, is written down with the first start. Books in one asset cannot go on in another, and
//! play money must never leave for a real network, so a data directory keeps its mode and asset.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use codius_ledger::{Account, Asset};
use codius_store::{Batch, Store};
use ilp_connector::{AccountConfig, AccountId, Connector, SystemClock};
use ilp_link::{BtpClient, BtpServer, BtpUrl, Credentials, RefuseRequests, Uplink, UplinkState};
use ilp_packet::Address;
use serde::{Deserialize, Serialize};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use crate::config::{Interledger, InterledgerMode};

/// The address of a host that is the root of its own network.
const LOCAL_ADDRESS: &str = "private.codius";
/// Where the store keeps it.
const META_KEY: &str = "interledger";
/// What the token for the parent is derived from the host's secret by.
const TOKEN_LABEL: &[u8] = b"codius_uplink_token";
/// Longest secret of a parent, bytes.
const MAX_SECRET_BYTES: usize = 1024;
/// Waits between two tries of the first start; the last one is repeated.
const WAITS: [Duration; 4] = [
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

/// Mode, address and asset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Standing {
    mode: InterledgerMode,
    address: String,
    asset_code: String,
    asset_scale: u8,
}

impl Standing {
    /// What it is at this start. Waits for a parent that was never reached before.
    pub(crate) async fn find(
        config: &Interledger,
        secret: &[u8; 32],
        store: &Store,
        known: Option<&Vec<u8>>,
    ) -> Result<Self> {
        let known: Option<Self> = known
            .map(|json| serde_json::from_slice(json))
            .transpose()
            .context("the record of this host's Interledger address cannot be read")?;
        if let Some(known) = &known {
            known.fits(config)?;
        }
        let found = match (config.mode, known) {
            (InterledgerMode::Uplink, Some(known)) => return Ok(known),
            (InterledgerMode::Uplink, None) => Self::ask(config, secret).await?,
            (InterledgerMode::Local, _) => Self {
                mode: InterledgerMode::Local,
                address: LOCAL_ADDRESS.to_owned(),
                asset_code: config.asset_code.clone(),
                asset_scale: config.asset_scale,
            },
        };
        found.keep(store).await?;
        Ok(found)
    }

    /// Refuses a configuration that would give the same books another meaning.
    fn fits(&self, config: &Interledger) -> Result<()> {
        let other_dir = "choose another data_dir for it";
        ensure!(
            self.mode == config.mode,
            "this data directory belongs to a host with interledger.mode = {:?}, whose money is not \
             that of mode = {:?}; {other_dir}",
            self.mode.name(),
            config.mode.name(),
        );
        let same = self.asset_code == config.asset_code && self.asset_scale == config.asset_scale;
        ensure!(
            config.mode == InterledgerMode::Uplink || same,
            "the books of this data directory are in {} with scale {}; {other_dir}",
            self.asset_code,
            self.asset_scale,
        );
        Ok(())
    }

    /// Asks the parent, again and again.
    async fn ask(config: &Interledger, secret: &[u8; 32]) -> Result<Self> {
        let url = parent(config, secret)?;
        let mut failures = 0;
        loop {
            let error = match configuration(&url).await {
                Ok(standing) => return Ok(standing),
                Err(error) => error,
            };
            let next = if is_untrusted(&error) {
                "have this machine trust its certificate, or name who signed it by SSL_CERT_FILE"
            } else {
                "start it"
            };
            tracing::warn!(
                "waiting for the Interledger parent (moneyd, for example) at {url}: {error:#}; {next}, or \
                 correct interledger.parent"
            );
            tokio::time::sleep(WAITS[failures.min(WAITS.len() - 1)]).await;
            failures += 1;
        }
    }

    async fn keep(&self, store: &Store) -> Result<()> {
        let json = serde_json::to_vec(self).context("this host's Interledger address")?;
        store
            .commit(Batch::new().meta(META_KEY, Some(json)))
            .await?;
        Ok(())
    }

    /// Where the store keeps it.
    pub(crate) fn meta_key() -> &'static str {
        META_KEY
    }

    pub(crate) fn address(&self) -> Result<Address> {
        self.address
            .parse()
            .context("the record of this host's Interledger address cannot be read")
    }

    pub(crate) fn asset(&self) -> Result<Asset> {
        Ok(Asset::new(&self.asset_code, self.asset_scale)?)
    }
}

impl InterledgerMode {
    fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Uplink => "uplink",
        }
    }
}

async fn configuration(url: &BtpUrl) -> Result<Standing> {
    let client = BtpClient::connect(url, Arc::new(RefuseRequests), Arc::new(SystemClock)).await?;
    let found = client.configuration().await?;
    client.close();
    let standing = Standing {
        mode: InterledgerMode::Uplink,
        address: found.client_address.to_string(),
        asset_code: found.asset_code,
        asset_scale: found.asset_scale,
    };
    // An asset that the books cannot hold is found out here, and not when the first money comes.
    standing.asset().context("the parent's asset")?;
    Ok(standing)
}

/// Whether it has answered, with a certificate that proves nothing to us.
fn is_untrusted(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let within = cause.downcast_ref().and_then(std::io::Error::get_ref);
        let tls = within.and_then(|it| it.downcast_ref::<rustls::Error>());
        matches!(tls, Some(rustls::Error::InvalidCertificate(_)))
    })
}

/// The parent's URL with the secret for it.
fn parent(config: &Interledger, host_secret: &[u8; 32]) -> Result<BtpUrl> {
    let url: BtpUrl = config.parent.parse().context("interledger.parent")?;
    let token = match (&config.parent_secret, &config.parent_secret_file) {
        (Some(secret), _) => secret.0.clone(),
        (None, Some(path)) => read_secret(path)?,
        (None, None) => {
            let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, host_secret);
            let tag = ring::hmac::sign(&key, TOKEN_LABEL);
            data_encoding::HEXLOWER.encode(tag.as_ref())
        }
    };
    let username = url.credentials().username.clone();
    Ok(url.with_credentials(Credentials { username, token }))
}

fn read_secret(path: &Path) -> Result<String> {
    let shown = path.display();
    let metadata = fs::metadata(path)
        .with_context(|| format!("cannot read interledger.parent_secret_file {shown}"))?;
    let mode = metadata.permissions().mode();
    ensure!(
        mode & 0o077 == 0,
        "{shown} can be read by others (mode {:o}); run `chmod 600 {shown}`",
        mode & 0o777
    );
    ensure!(
        metadata.len() <= MAX_SECRET_BYTES as u64,
        "{shown} is longer than a secret ({MAX_SECRET_BYTES} bytes)"
    );
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read interledger.parent_secret_file {shown}"))?;
    let secret = text.trim();
    if secret.is_empty() {
        bail!("{shown} is empty; write the secret that the parent knows this host by into it");
    }
    Ok(secret.to_owned())
}

/// A running uplink.
pub(crate) struct Line {
    uplink: Uplink,
    _watch: AbortOnDropHandle<()>,
}

impl Line {
    /// Opens the parent's account and starts connecting.
    pub(crate) async fn open(
        config: &Interledger,
        host_secret: &[u8; 32],
        standing: Standing,
        store: &Store,
        connector: &Connector,
        btp: &BtpServer,
    ) -> Result<Self> {
        let url = parent(config, host_secret)?;
        let account = AccountId::new("parent");
        let balance = store.balance(&Account::Parent).await?;
        connector.open_account(AccountConfig {
            balance: balance.into(),
            balance_floor: config.parent_credit,
            // What programs and refunds send has come in before: this host never owes its parent.
            balance_ceiling: Some(0),
            ..AccountConfig::parent(account.clone(), Account::Parent.to_string())
        })?;
        let uplink = Uplink::spawn(url, connector.clone(), account);
        let watching = watch(uplink.state(), standing, store.clone(), btp.clone());
        let watching = watching.instrument(tracing::info_span!("uplink"));
        Ok(Self {
            uplink,
            _watch: AbortOnDropHandle::new(tokio::spawn(watching)),
        })
    }

    /// Ends the connection to the parent.
    pub(crate) fn close(&self) {
        self.uplink.close();
    }
}

/// Writes down an address that the parent has changed, and tells the programs below.
async fn watch(
    mut state: tokio::sync::watch::Receiver<UplinkState>,
    mut standing: Standing,
    store: Store,
    btp: BtpServer,
) {
    loop {
        let now = state.borrow_and_update().clone();
        match now {
            UplinkState::Up { address } if address.as_str() != standing.address => {
                standing.address = address.to_string();
                if let Err(error) = standing.keep(&store).await {
                    // The next connection says it again.
                    tracing::error!(
                        error = &*error as &dyn std::error::Error,
                        "address not kept"
                    );
                }
                // Programs ask for their address when they connect.
                btp.disconnect();
            }
            UplinkState::OtherAsset { code, scale } => tracing::error!(
                "the parent's account is in {code} with scale {scale}, this host's books are in {} \
                 with scale {}; nothing can be paid until interledger.parent is the former one again",
                standing.asset_code,
                standing.asset_scale,
            ),
            UplinkState::Up { .. } | UplinkState::Down => {}
        }
        if state.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(mode: InterledgerMode, asset_code: &str) -> Standing {
        Standing {
            mode,
            address: "private.codius".to_owned(),
            asset_code: asset_code.to_owned(),
            asset_scale: 9,
        }
    }

    #[test]
    fn books_keep_their_mode_and_asset() {
        let local = Interledger::default();
        let uplink = Interledger {
            mode: InterledgerMode::Uplink,
            ..Interledger::default()
        };
        standing(InterledgerMode::Local, "XRP")
            .fits(&local)
            .unwrap();
        // What the configuration says of the asset is for local mode only.
        standing(InterledgerMode::Uplink, "USD")
            .fits(&uplink)
            .unwrap();
        for (known, config) in [
            (standing(InterledgerMode::Local, "XRP"), &uplink),
            (standing(InterledgerMode::Uplink, "XRP"), &local),
            (standing(InterledgerMode::Local, "USD"), &local),
        ] {
            let error = known.fits(config).unwrap_err().to_string();
            assert!(error.contains("data_dir"), "{error}");
        }
    }

    #[test]
    fn a_secret_is_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        fs::write(&path, " abc\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = read_secret(&path).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read_secret(&path).unwrap(), "abc");
        fs::write(&path, "\n").unwrap();
        assert!(read_secret(&path).is_err());
        assert!(read_secret(&dir.path().join("none")).is_err());
    }

    #[test]
    fn without_a_file_the_token_follows_from_the_hosts_secret() {
        let config = Interledger {
            parent: "btp+ws://me@localhost:7768".to_owned(),
            ..Interledger::default()
        };
        let (one, two) = (
            parent(&config, &[1; 32]).unwrap(),
            parent(&config, &[2; 32]).unwrap(),
        );
        assert_eq!(one.credentials().username, "me");
        assert_eq!(one.credentials().token.len(), 64);
        assert_ne!(one.credentials().token, two.credentials().token);
    }
}
