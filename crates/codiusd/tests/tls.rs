//! A host whose parent, the real moneyd, is behind TLS (`btp+wss`): it is trusted by its certificate and
//! by nothing else, and money passes. No pods.

mod support;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use codius_testkit::{
    Background, Listen, Moneyd, NetworkNamespace, Packages,
    background::output_of,
    moneyd::{MONEYD, MONEYD_OVERRIDE},
};
use jiff::Timestamp;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::{Value, json};
use support::{PAYER, bridge::Bridge, pool};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

/// What takes a moment, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(5);
const GIFT: u64 = 2_345;

/// Somebody who certifies names.
struct Authority {
    certificate: PathBuf,
    key: PathBuf,
}

impl Authority {
    fn new(place: &Path, name: &str) -> Result<Self> {
        let (certificate, key) = openssl(&place.join(name), name, &[])?;
        Ok(Self { certificate, key })
    }

    /// A server that proves to be `localhost` by a certificate of this authority.
    fn server(&self, place: &Path) -> Result<ServerConfig> {
        let (certificate, key) = openssl(
            &place.join("localhost"),
            "localhost",
            &[
                "-CA".as_ref(),
                &self.certificate,
                "-CAkey".as_ref(),
                &self.key,
                "-addext".as_ref(),
                "subjectAltName=DNS:localhost".as_ref(),
                "-addext".as_ref(),
                "basicConstraints=critical,CA:FALSE".as_ref(),
            ],
        )?;
        let chain = vec![CertificateDer::from_pem_file(certificate)?];
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Ok(ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?)
    }
}

/// A new key and a certificate of it, which signs itself unless the options say who does.
fn openssl(file: &Path, name: &str, options: &[&Path]) -> Result<(PathBuf, PathBuf)> {
    let (certificate, key) = (file.with_extension("pem"), file.with_extension("key"));
    let mut command = Command::new("openssl");
    command
        .args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"])
        .args(["-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-subj", &format!("/CN={name}")])
        .arg("-out")
        .arg(&certificate)
        .arg("-keyout")
        .arg(&key)
        .args(options);
    output_of(&mut command, "openssl")?;
    Ok((certificate, key))
}

/// What stands in front of the parent and takes TLS off.
struct Front {
    port: u16,
    /// Connections whose clients have accepted the certificate.
    trusted: Arc<AtomicUsize>,
}

impl Front {
    async fn of(parent: SocketAddr, config: ServerConfig) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let trusted = Arc::new(AtomicUsize::new(0));
        let (acceptor, count) = (TlsAcceptor::from(Arc::new(config)), Arc::clone(&trusted));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (acceptor, count) = (acceptor.clone(), Arc::clone(&count));
                tokio::spawn(async move {
                    let Ok(mut client) = acceptor.accept(client).await else {
                        return;
                    };
                    count.fetch_add(1, Ordering::SeqCst);
                    let Ok(mut parent) = TcpStream::connect(parent).await else {
                        return;
                    };
                    let _ = copy_bidirectional(&mut client, &mut parent).await;
                });
            }
        });
        Ok(Self { port, trusted })
    }

    fn trusted(&self) -> usize {
        self.trusted.load(Ordering::SeqCst)
    }

    fn url(&self, host: &str) -> String {
        format!("btp+wss://{host}:{}", self.port)
    }
}

/// `codiusd`, started by hand.
struct Host(Background);

impl Host {
    fn start(data_dir: &Path, parent: &str, trusted: &Authority) -> Result<Self> {
        let mut codiusd = Command::new(env!("CARGO_BIN_EXE_codiusd"));
        codiusd
            .args(["--uplink", parent, "--listen", "127.0.0.1:0"])
            .arg("--no-self-test")
            .args(["--network-pool", &format!("{}/24", pool(0))])
            .arg("--data-dir")
            .arg(data_dir)
            .env("SSL_CERT_FILE", &trusted.certificate)
            .env_remove("SSL_CERT_DIR")
            .env_remove("RUST_LOG");
        Ok(Self(Background::start(&codiusd, Listen::Output)?))
    }

    /// Where its API is.
    fn ready(&self, parent: &str) -> Result<String> {
        let line = self.0.line(PATIENCE)?;
        ensure!(
            line.starts_with("ready ") && line.contains(&format!(" interledger={parent} ")),
            "{line}"
        );
        let api = line.split(' ').find_map(|word| word.strip_prefix("api="));
        Ok(api.context("no address")?.replace("localhost", "127.0.0.1"))
    }

    /// The lines with this text, once there are so many.
    async fn logged(&self, text: &str, lines: usize) -> Result<Vec<String>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let log = self.0.errors();
            let found: Vec<_> = log.lines().filter(|line| line.contains(text)).collect();
            if found.len() >= lines {
                return Ok(found.into_iter().map(str::to_owned).collect());
            }
            ensure!(
                Instant::now() < deadline,
                "{} lines with {text:?} in:\n{log}",
                found.len()
            );
            tokio::time::sleep(LOOK).await;
        }
    }

    /// It says why it does not go to its parent, and after each time waits at least so long.
    async fn keeps_away(&self, says: &str, why: &str, waits_ms: &[i64]) -> Result<()> {
        let lines = self.logged(says, waits_ms.len() + 1).await?;
        let mut times = Vec::new();
        for line in &lines {
            ensure!(line.contains(why), "{lines:#?}");
            let time = line.split(' ').next().context("an empty line")?;
            times.push(time.parse::<Timestamp>()?.as_millisecond());
        }
        for (pair, wait_ms) in times.windows(2).zip(waits_ms) {
            ensure!(pair[1] - pair[0] >= *wait_ms, "too early: {lines:#?}");
        }
        Ok(())
    }
}

/// The JavaScript payer gives the host something, through moneyd.
fn give(bridge: &Bridge, modules: &Path, api: &str) -> Result<()> {
    let mut node = Command::new("node");
    node.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node/spsp_payer.js"))
        .args(["pay", api, &GIFT.to_string()])
        .env("NODE_PATH", modules)
        .env("ILP_BTP_SERVER", bridge.url());
    let payer = Background::start(&node, Listen::Output)?;
    let given: Value = serde_json::from_str(&payer.line(PATIENCE)?)?;
    let expected = json!({ "sent": GIFT.to_string(), "error": null });
    ensure!(given == expected, "{given}");
    Ok(())
}

async fn books(data_dir: &Path) -> Result<Vec<(String, i64)>> {
    let store = codius_store::Store::open(&data_dir.join("codius.db"))?;
    store.verify().await?;
    let balances = store.balances().await?;
    store.close().await;
    let named = balances.into_iter();
    let mut named: Vec<_> = named
        .map(|(account, balance)| (account.to_string(), balance))
        .collect();
    named.sort();
    Ok(named)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_behind_tls_is_trusted_by_its_certificate_and_nothing_else() -> Result<()> {
    let place = tempfile::Builder::new().prefix("codius-tls-").tempdir()?;
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let packages = Packages {
        packages: &[MONEYD],
        overrides: &[MONEYD_OVERRIDE],
    };
    let network = NetworkNamespace::new()?;
    let _moneyd = Moneyd::local(&network, &packages.install(cache)?)?;
    let bridge = Bridge::to(&network, place.path()).await?;
    let authority = Authority::new(place.path(), "authority")?;
    let stranger = Authority::new(place.path(), "stranger")?;
    let front = Front::of(bridge.address, authority.server(place.path())?).await?;
    let (url, data_dir) = (front.url("localhost"), place.path().join("data"));

    // It was never there before, so a new host waits for a parent that it can trust.
    let waiting = "waiting for the Interledger parent";
    let host = Host::start(&data_dir, &url, &stranger)?;
    let (unknown, waits) = ("invalid peer certificate: UnknownIssuer", [500, 1000, 2000]);
    host.keeps_away(waiting, unknown, &waits).await?;
    host.logged("or name who signed it by SSL_CERT_FILE", 1)
        .await?;
    host.0.terminate(PATIENCE)?;
    // A certificate is for its name.
    let elsewhere = front.url("127.0.0.1");
    let host = Host::start(&data_dir, &elsewhere, &authority)?;
    let other_name = "certificate not valid for name \"127.0.0.1\"";
    host.keeps_away(waiting, other_name, &waits).await?;
    host.0.terminate(PATIENCE)?;
    ensure!(
        front.trusted() == 0,
        "it has spoken to whom it does not trust"
    );

    // Trusted, it stands below moneyd, and is paid through it.
    let host = Host::start(&data_dir, &url, &authority)?;
    let api = host.ready(&url)?;
    let up = host.logged("uplink is up", 1).await?;
    ensure!(up[0].contains("private.moneyd.local."), "{up:?}");
    give(&bridge, &PAYER.install(cache)?, &api)?;
    host.0.terminate(PATIENCE)?;
    let gift = i64::try_from(GIFT)?;
    let balances = books(&data_dir).await?;
    let expected = [("earned".to_owned(), gift), ("parent".to_owned(), -gift)];
    ensure!(balances == expected, "{balances:?}");

    // It knows where it stands, and is there for its pods; but it does not go to a parent that became
    // somebody else.
    let trusted = front.trusted();
    let host = Host::start(&data_dir, &url, &stranger)?;
    host.ready(&url)?;
    host.keeps_away("uplink is down", unknown, &[100, 500, 1000, 2000])
        .await?;
    host.0.terminate(PATIENCE)?;
    ensure!(front.trusted() == trusted, "it has spoken to a stranger");
    Ok(())
}
