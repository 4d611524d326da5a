//! A host below the real moneyd: it is paid through it, pays back through it, and finds it again.

mod support;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use codius_client::{ClientError, Wallet};
use codius_testkit::{
    Background, Listen, Moneyd, NetworkNamespace, Packages,
    moneyd::{MONEYD, MONEYD_OVERRIDE},
};
use serde_json::json;
use support::{Settings, World, document, shell};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, UnixStream},
    sync::broadcast,
};

const PRICE_LIMIT: u64 = 1_000_000_000;
const MONEYD_PORT: &str = "7768";
const BRIDGE_TIMEOUT: Duration = Duration::from_secs(30);

/// A port here that leads to moneyd in its own network, and that can be cut.
struct Bridge {
    address: SocketAddr,
    open: Arc<AtomicBool>,
    cut: broadcast::Sender<()>,
    _far: Background,
}

impl Bridge {
    async fn to(network: &NetworkNamespace, place: &Path) -> Result<Self> {
        let (script, socket) = (place.join("bridge.js"), place.join("bridge.sock"));
        std::fs::write(&script, include_str!("node/bridge.js"))?;
        let mut command = network.command("node");
        command.arg(&script).arg(&socket).arg(MONEYD_PORT);
        let far = Background::start(&command, Listen::Output)?;
        far.line_with("bridge ready", BRIDGE_TIMEOUT)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let open = Arc::new(AtomicBool::new(true));
        let (cut, _) = broadcast::channel(1);
        tokio::spawn(pass(listener, socket, Arc::clone(&open), cut.clone()));
        Ok(Self {
            address,
            open,
            cut,
            _far: far,
        })
    }

    fn url(&self) -> String {
        format!("btp+ws://{}", self.address)
    }

    /// Breaks every connection, and refuses new ones.
    fn cut(&self) {
        self.open.store(false, Ordering::SeqCst);
        let _ = self.cut.send(());
    }

    fn mend(&self) {
        self.open.store(true, Ordering::SeqCst);
    }
}

async fn pass(
    listener: TcpListener,
    socket: PathBuf,
    open: Arc<AtomicBool>,
    cut: broadcast::Sender<()>,
) {
    while let Ok((mut near, _)) = listener.accept().await {
        if !open.load(Ordering::SeqCst) {
            continue;
        }
        let (socket, mut cut) = (socket.clone(), cut.subscribe());
        tokio::spawn(async move {
            let Ok(mut far) = UnixStream::connect(&socket).await else {
                return;
            };
            tokio::select! {
                _ = copy_bidirectional(&mut near, &mut far) => {}
                _ = cut.recv() => {}
            }
        });
    }
}

fn balance(balances: &[(String, i64)], account: &str) -> i64 {
    let found = balances.iter().find(|(name, _)| name == account);
    found.map_or(0, |(_, balance)| *balance)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_below_the_real_moneyd() -> Result<()> {
    let place = tempfile::Builder::new()
        .prefix("codius-uplink-")
        .tempdir()?;
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let packages = Packages {
        packages: &[MONEYD],
        overrides: &[MONEYD_OVERRIDE],
    };
    let modules = packages.install(cache)?;
    let network = NetworkNamespace::new()?;
    let moneyd = Moneyd::local(&network, &modules)?;
    let bridge = Bridge::to(&network, place.path()).await?;

    let mut world = World::start(Settings {
        parent: Some(bridge.url()),
        ..Settings::default()
    })?;
    world.logged("uplink is up", 0).await?;
    ensure!(
        world.log().contains("private.moneyd.local."),
        "moneyd gives the address:\n{}",
        world.log()
    );
    let busybox = world.busybox().await?;
    let upload = |name: &str, script: &str| {
        document(name, Some(8080), json!([shell("app", &busybox, script)]))
    };

    // Paid through moneyd, and paid back through it.
    let wallet = Wallet::connect(&bridge.url()).await?;
    let failing = upload("failing", "exit 3");
    let paid = match world
        .client()
        .upload(&failing, 60, &wallet, PRICE_LIMIT)
        .await
    {
        Err(ClientError::Refused { paid, .. }) => paid,
        other => bail!("it should have been refused: {other:?}"),
    };
    ensure!(
        paid.paid > 0 && paid.refunded == paid.paid,
        "all of it comes back: {paid:?}\n{}",
        world.log()
    );

    // The connection breaks; the host finds it again, and goes on.
    let ups = world.log().matches("uplink is up").count();
    bridge.cut();
    world.logged("uplink ended", 0).await?;
    bridge.mend();
    world.logged("uplink is up", ups).await?;
    let wallet = Wallet::connect(&bridge.url()).await?;
    let serving =
        "mkdir /www; echo paid through moneyd > /www/index.html; httpd -f -p 8080 -h /www";
    let good = upload("serving", serving);
    let answer = world
        .client()
        .upload(&good, 3600, &wallet, PRICE_LIMIT)
        .await
        .with_context(|| world.log())?;
    let price = wallet.moved().paid;
    let hash = answer.reply.manifest_hash.to_string();
    let (status, page) = world.visit(&hash, "/").await?;
    ensure!(
        status == 200 && page == "paid through moneyd\n",
        "{status}: {page}"
    );

    // moneyd ends: pods go on, and a restarted host does not wait for it.
    drop(moneyd);
    world.settings.on_shutdown = "leave";
    world.kill()?;
    world.run()?;
    ensure!(world.visit(&hash, "/").await?.0 == 200, "the pod goes on");
    let moneyd = Moneyd::local(&network, &modules)?;
    let ups = world.log().matches("uplink is up").count();
    world.logged("uplink is up", ups - 1).await?;
    // What its configuration said when it started is what it does: the pod ends with the next one.
    world.settings.on_shutdown = "stop";
    world.stop()?;
    world.run()?;
    world.stop()?;
    world.nothing_remains().await?;
    drop(moneyd);

    // What came in and stayed is what the parent owes us, to the unit.
    let balances = world.balances().await?;
    let price = i64::try_from(price)?;
    ensure!(
        balance(&balances, "parent") == -price,
        "price {price}, books {balances:?}"
    );
    let earned = balance(&balances, "earned");
    let rest: i64 = balances
        .iter()
        .filter(|(name, _)| name.starts_with("owed:") || name.starts_with("lease:"))
        .map(|(_, balance)| balance)
        .sum();
    ensure!(
        earned + rest == price,
        "earned {earned}, rest {rest}, books {balances:?}"
    );

    // Real money does not become play money.
    world.settings.parent = None;
    let error = world.run().unwrap_err().to_string();
    ensure!(error.contains("data_dir"), "{error}");
    Ok(())
}
