//! One host, from its configuration to its end: wiring, start-up and shutdown, each in one place.
//!
//! Trap: after a write that has failed so that nobody knows what is on the disk, only another process can go
//! on. So this one ends then, by itself and with an error; whoever holds it (systemd, `codiusd keep`) starts
//! the next, and pods and waiting connections see no more of it than of an update.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use codius_api::AssetInfo;
use codius_image::{ImageLimits, ImageStore, RegistryConfig};
use codius_ledger::{BootId, Seconds};
use codius_microvm::{AcceleratorChoice, Instance, MicrovmConfig, MicrovmDriver};
use codius_pod::{Admission, Driver, Supervisor};
use codius_proxy::{Limits, Proxy, Scheme};
use codius_store::{Batch, Snapshot, Store};
use hyper_util::service::TowerToHyperService;
use ilp_connector::{Connector, ConnectorConfig, SystemClock};
use ilp_link::{BtpServer, LocalGate};
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::{
    admin::Admin,
    api::{self, Api},
    bookkeeper::Bookkeeper,
    capacity,
    clock::{self, Clock},
    config::{Accelerator, Config, InterledgerMode, OnShutdown, Warm},
    drain::{self, Drain},
    leases::{Leases, Wiring},
    ledger::DATABASE,
    listeners::{Held, Listeners},
    orders::Orders,
    peers::Peers,
    pod_money::{PacketLimits, PodMoney, PodPort},
    price::PriceTag,
    refund::{Reach, RefundQueue, Refunds},
    routes::Routes,
    rules::StoredLeases,
    self_test,
    signatures::Signatures,
    spsp::Spsp,
    standing::{Line, Standing},
    till::Till,
};

/// Play-money clients are recorded together.
const LOCAL_ACCOUNT: &str = "local:clients";
/// The segment below which local clients are.
const LOCAL_SEGMENT: &str = "local";
/// The name of the secret that everything of this host is derived from.
const HOST_SECRET: &str = "host";
/// How long each part may take to end at shutdown, once leases are charged and nothing new begins.
const PART_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the whole shutdown may take, pods included, beyond what is given to requests under way.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(60);
const MIB: u64 = 1024 * 1024;

/// Runs a host until it is told to end (SIGINT or SIGTERM), or to make room for its successor (SIGHUP). `held`
/// are the listeners that it takes from its holder.
pub(crate) async fn run(config: Config, held: Held) -> Result<()> {
    config.check()?;
    let started = Instant::now();
    // From here on no signal is missed, whenever it comes.
    let mut signals = Signals::new()?;
    make_private_dir(&config.data_dir)?;
    let data_dir = fs::canonicalize(&config.data_dir)?;
    let guest_dir = guest_dir(&config)?;

    let clock = Clock::system();
    let store = Store::open(&data_dir.join(DATABASE))?;
    // Only one process has it open: no other one hears requests from now on.
    let began_unix_ms = clock.wall();
    let snapshot = store.load().await?;
    let checked = store
        .check()
        .await
        .context("the ledger does not add up; restore a backup")?;
    tracing::info!(?checked, "ledger adds up");
    let secret = host_secret(&store, &snapshot).await?;

    let known = snapshot.meta.get(Standing::meta_key());
    // The first start below a parent waits for it, and can be told to end meanwhile.
    let standing = tokio::select! {
        standing = Standing::find(&config.interledger, &secret, &store, known) => standing?,
        ending = signals.told_to_end() => {
            tracing::info!("{ending}: ending before the parent was found");
            store.close().await;
            return Ok(());
        }
    };
    let asset = standing.asset()?;
    let rate = PriceTag::open(&config.price, &config.sizes, &asset, &snapshot.meta)?;
    let drain = Drain::open(&snapshot.meta)?;

    // The listeners first: a port that is taken is found before anything is touched.
    let Listeners {
        http: listener,
        interledger,
    } = Listeners::open(&config, held)?;
    let api_address = listener.local_addr()?;
    let public_uri = match &config.public_uri {
        Some(uri) => uri.clone(),
        None => Url::parse(&format!("http://localhost:{}", api_address.port()))?,
    };
    let interledger_shown = match interledger.first() {
        Some(listener) => format!("btp+ws://{}", listener.local_addr()?),
        None => config.interledger.parent.clone(),
    };

    let connector = Connector::new(
        ConnectorConfig::new(standing.address()?, asset.code(), asset.scale()),
        Arc::new(store.clone()),
        Arc::new(SystemClock),
    );
    let btp = BtpServer::new(connector.clone());
    let pod_money = PodMoney::new(
        store.clone(),
        connector.clone(),
        btp.clone(),
        PacketLimits {
            max_amount: config.interledger.max_packet_amount,
            max_per_sec: config.interledger.max_packets_per_sec,
        },
    );
    let till = Till::open(&connector, &secret, asset.clone())?;

    let own_registry = match (config.tests_itself(), &config.self_test.image) {
        (true, None) => Some(self_test::Registry::open(&guest_dir).await?),
        (true, Some(_)) | (false, _) => None,
    };
    let images = Arc::new(open_images(&config, &data_dir, own_registry.as_ref())?);
    images.ask_before_removing(Arc::new(StoredLeases(store.clone())));
    let driver = Arc::new(open_driver(&config, &data_dir, guest_dir).await?);
    let isolation_reason = driver.isolation_reason().to_owned();
    let isolation = driver.isolation();
    let supervisor = Supervisor::new(
        Arc::clone(&driver) as Arc<dyn Driver>,
        Arc::clone(&images) as _,
        Arc::new(PodPort(Arc::clone(&pod_money))),
        Duration::from_secs(config.pods.port_timeout_secs),
        {
            let clock = clock.clone();
            Arc::new(move || clock.wall())
        },
    );
    let routes = Arc::new(Routes::default());
    let limits = Limits {
        drain: Duration::from_secs(config.shutdown.drain_secs),
        ..Limits::default()
    };
    let proxy = Proxy::with_limits(Arc::clone(&routes) as _, limits, Vec::new());
    let admission = Admission::new(capacity::of(&config.pods, &data_dir)?, {
        let driver = Arc::clone(&driver);
        Arc::new(move |machine| driver.overhead_mib(machine))
    });
    let leases = Leases::new(Wiring {
        clock: clock.clone(),
        store: store.clone(),
        supervisor,
        admission,
        routes,
        proxy: proxy.clone(),
        pod_money,
        rate,
        drain,
        asset: AssetInfo {
            code: asset.code().to_owned(),
            scale: asset.scale(),
        },
        max_duration: Seconds(config.price.max_duration_secs),
        public_uri: public_uri.clone(),
        boot: boot_id()?,
        stop_grace: Duration::from_millis(config.pods.stop_grace_ms),
        grace: Duration::from_secs(config.pods.grace_secs),
        expiry_notices: config
            .pods
            .expiry_notice_secs
            .iter()
            .map(|secs| Duration::from_secs(*secs))
            .collect(),
    });
    let own_image = match &own_registry {
        Some(registry) => Some(registry.reference()),
        None => config.self_test.image.clone(),
    };
    leases
        .rules
        .open(&config, own_image.as_deref(), &images, &snapshot.meta)?;
    leases
        .egress
        .open(
            Arc::clone(&driver) as _,
            config.egress.policy(),
            config.pool()?.range(),
            &snapshot.meta,
        )
        .await?;
    // The operator may have lowered the budget since the last start.
    if let Err(reason) = images.trim().await {
        tracing::warn!(
            reason,
            taken = images.bytes_taken(),
            "images take more than they may"
        );
    }
    let spsp = Spsp::open(&connector, &secret, asset.clone(), Arc::clone(&leases))?;
    let orders = Orders::new(
        Arc::clone(&leases),
        till,
        Duration::from_secs(config.interledger.payment_timeout_secs),
    );
    let (found_leases, found_orders) = (snapshot.leases.len(), snapshot.open_orders.len());
    let undone = leases.recover(snapshot.leases, driver.as_ref()).await?;
    orders
        .recover(snapshot.open_orders, &undone, &snapshot.balances)
        .await?;
    let swept = driver.swept();
    tracing::info!(
        leases = found_leases,
        starts_undone = undone.len(),
        orders_answered = found_orders,
        pods_removed = swept.pods,
        machines_ended = swept.machines,
        networks_removed = swept.networks,
        files_removed = swept.files,
        "what an earlier run has left is in order"
    );

    let clients = LocalGate::new(
        &connector,
        LOCAL_SEGMENT,
        LOCAL_ACCOUNT.into(),
        LocalGate::DEFAULT_MAX_CLIENTS,
    );
    let clients = Arc::new(clients.with_limits(config.interledger.max_packet_amount, None));
    for listener in interledger {
        btp.listen(listener, Arc::clone(&clients) as _);
    }
    let line = match config.interledger.mode {
        InterledgerMode::Local => None,
        InterledgerMode::Uplink => {
            let interledger = &config.interledger;
            Some(Line::open(interledger, &secret, standing, &store, &connector, &btp).await?)
        }
    };
    let (test, tester) = self_test::prepare(
        config.tests_itself().then_some(&config.self_test),
        own_registry,
        &snapshot.meta,
        self_test::Surroundings {
            listener: api_address,
            leases: Arc::clone(&leases),
            connector: connector.clone(),
            asset: asset.clone(),
        },
    )
    .await?;
    // Of a host that does not test itself it is the operator's word that it works.
    let tested = if config.tests_itself() {
        test.watch()
    } else {
        let word = config.peers.allow_private || !config.peers.bootstrap.is_empty();
        watch::Sender::new(word).subscribe()
    };
    let refunds = Arc::new(Refunds::new(
        connector.clone(),
        asset.clone(),
        refund_reach(&config),
        leases.closing.clone(),
    )?);
    let peers = Peers::open(&config.peers, &public_uri, &store, &snapshot.meta, tested)?;
    let router = api::router(Api {
        self_test: test,
        leases: Arc::clone(&leases),
        orders,
        spsp,
        peers: Arc::clone(&peers),
        refunds: Arc::clone(&refunds),
        signatures: Signatures::new(
            &public_uri,
            api_address.port(),
            began_unix_ms,
            clock.clone(),
        ),
        log_followers: api::log_followers(),
        exec_places: api::exec_places(),
        asset: asset.clone(),
        max_duration: Seconds(config.price.max_duration_secs),
        publish_running: config.publish_running,
        quote: config.api.quote,
        isolation,
        isolation_reason: isolation_reason.clone(),
        started,
    });
    let closing = CancellationToken::new();
    let serving = tokio::spawn({
        let (proxy, closing) = (proxy.clone(), closing.clone());
        async move {
            proxy
                .serve(
                    listener,
                    Scheme::Http,
                    TowerToHyperService::new(router),
                    closing,
                )
                .await
        }
    });

    let admin = Admin {
        leases: Arc::clone(&leases),
        peers: Arc::clone(&peers),
        connector: connector.clone(),
        store: store.clone(),
        asset,
        images,
    };
    let administering = admin
        .open(&data_dir, config.admin.tcp_port, &closing)
        .await?;
    let queue = RefundQueue {
        refunds,
        store: store.clone(),
        clock,
        claims: leases.claims.clone(),
        backoff: config.refunds.backoff(),
        closing: leases.closing.clone(),
    };
    leases.tasks.spawn(queue.run());
    let finding = tokio::spawn(Arc::clone(&peers).run(closing.clone()));

    let api = public_uri.as_str().trim_end_matches('/');
    if let Some(tester) = tester {
        leases.tasks.spawn(tester.run());
    }
    // Nobody has to read it, and the pipe of whoever did may be closed by now.
    let _ = writeln!(
        io::stdout(),
        "ready api={api} interledger={interledger_shown} isolation={isolation} \
         isolation-reason=\"{isolation_reason}\""
    );
    tell_holder(NotifyState::Ready);
    leases.tasks.spawn(drain::watch(Arc::clone(&leases)));
    let bookkeeper = Bookkeeper::new(store.clone(), leases.clock.clone(), config.books.keep_days);
    let mut books = tokio::spawn(bookkeeper.run(closing.clone(), checked));
    let (told, wrong) = tokio::select! {
        told = signals.told_to_end() => (told, None),
        kept = &mut books => {
            let error = kept.map_err(Into::into).flatten().err();
            tracing::error!(?error, "the books are not looked after any more");
            (Told::WrongBooks, error)
        }
        () = store.poisoned() => (Told::BrokenStore, Some(anyhow!(
            "a write to {} has failed, so this process cannot know what is written; the next one reads it. Pods \
             were left running. Next: start codiusd again if nothing does; if it ends in this way again, look \
             at the disk (`dmesg`)",
            data_dir.join(DATABASE).display()
        ))),
    };
    tracing::info!("{told}: ending");
    tell_holder(NotifyState::Stopping);

    // Of pods that end now it could not be written that they did.
    let leaves_pods = matches!(told, Told::HandOver | Told::BrokenStore);
    let stop_pods = config.pods.on_shutdown == OnShutdown::Stop && !leaves_pods;
    let ending = async {
        closing.cancel();
        // Requests first, while all that they need still works: uploads that are being carried out, too.
        let unfinished = serving.await;
        leases.shut_down(stop_pods).await;
        let finishing = async {
            if let Ok(unfinished) = unfinished {
                unfinished.finish(PART_TIMEOUT).await;
            }
        };
        let parts = async { tokio::join!(finding, administering.wait(), finishing) };
        let _ = tokio::time::timeout(2 * PART_TIMEOUT, parts).await;
        let _ = tokio::time::timeout(PART_TIMEOUT, connector.drain()).await;
        let _ = tokio::time::timeout(PART_TIMEOUT, btp.shutdown()).await;
        if let Some(line) = line {
            line.close();
        }
        driver.end_templates().await;
        store.close().await;
        if stop_pods && let Err(error) = driver.retire().await {
            tracing::warn!(%error, "the firewall table stays");
        }
    };
    let within = shutdown_timeout(&config);
    if tokio::time::timeout(within, ending).await.is_err() {
        bail!(
            "the shutdown took over {} s and was cut off; the next start tidies up",
            within.as_secs()
        );
    }
    tracing::info!("ended");
    match wrong {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// How long the shutdown of a host may take.
pub(crate) fn shutdown_timeout(config: &Config) -> Duration {
    // For the requests of before, and for the last ones (`codius_proxy::Limits::drain`).
    SHUTDOWN_TIMEOUT + 2 * Duration::from_secs(config.shutdown.drain_secs)
}

/// Whoever has started this process may want to know how it is. Without such a one nothing happens.
fn tell_holder(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "who started this process cannot be told how it is");
    }
}

/// Why the host ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Interrupt,
    Terminate,
    /// To end and to leave the pods to another process, whatever `pods.on_shutdown` says.
    HandOver,
    WrongBooks,
    /// Nothing can be written any more until the database is opened anew.
    BrokenStore,
}

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
            Self::HandOver => "SIGHUP (pods are left to the next process)",
            Self::WrongBooks => "the books are wrong",
            Self::BrokenStore => "the database has failed (pods are left to the next process)",
        })
    }
}

/// The signals that ask for the end. What comes while nobody waits is not lost.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the first.
    async fn told_to_end(&mut self) -> Told {
        tokio::select! {
            _ = self.interrupt.recv() => Told::Interrupt,
            _ = self.terminate.recv() => Told::Terminate,
            _ = self.hangup.recv() => Told::HandOver,
        }
    }
}

pub(crate) fn make_private_dir(path: &Path) -> Result<()> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    made.with_context(|| format!("cannot make the data directory {}", path.display()))?;
    // Pods' processes run as other users and are given single files below it.
    let mode = fs::metadata(path)?.permissions().mode();
    ensure!(
        mode & 0o022 == 0,
        "the data directory {} can be written by others (mode {mode:o})",
        path.display()
    );
    Ok(())
}

/// Which payment pointers are paid.
fn refund_reach(config: &Config) -> Reach {
    match config.interledger.mode {
        _ if config.refunds.allow_private => Reach::Any,
        InterledgerMode::Local => Reach::Loopback,
        InterledgerMode::Uplink => Reach::Public,
    }
}

/// Where the guest's kernel and initramfs are.
fn guest_dir(config: &Config) -> Result<PathBuf> {
    if let Some(dir) = &config.guest.dir {
        return Ok(dir.clone());
    }
    let program = std::env::current_exe().unwrap_or_default();
    let beside = program
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("guest"));
    let found = beside
        .chain([PathBuf::from("/usr/lib/codius/guest")])
        .find(|dir| dir.join("vmlinux").is_file());
    found.context("there is no guest kernel; run `cargo xtask guest`, or set guest.dir")
}

async fn host_secret(store: &Store, snapshot: &Snapshot) -> Result<[u8; 32]> {
    if let Some(secret) = snapshot.secrets.get(HOST_SECRET) {
        return Ok(*secret);
    }
    let secret: [u8; 32] = rand::random();
    store
        .commit(Batch::new().secret(HOST_SECRET, secret))
        .await?;
    Ok(secret)
}

fn open_images(
    config: &Config,
    data_dir: &Path,
    own: Option<&self_test::Registry>,
) -> Result<ImageStore> {
    let limits = ImageLimits {
        compressed_bytes: config.images.max_compressed_mib.saturating_mul(MIB),
        uncompressed_bytes: config.images.max_unpacked_mib.saturating_mul(MIB),
        cache_bytes: config.images.max_cache_mib.saturating_mul(MIB),
        free_bytes: config.images.min_free_mib.saturating_mul(MIB),
        ..ImageLimits::default()
    };
    let mut insecure = config.images.insecure_registries.clone();
    insecure.extend(own.map(|registry| registry.host().to_owned()));
    let registries = RegistryConfig {
        insecure,
        ..RegistryConfig::default()
    };
    Ok(ImageStore::open(
        data_dir.join("images"),
        limits,
        &registries,
    )?)
}

async fn open_driver(
    config: &Config,
    data_dir: &Path,
    guest_dir: PathBuf,
) -> Result<MicrovmDriver> {
    let driver = MicrovmDriver::open(MicrovmConfig {
        state_dir: data_dir.join("pods"),
        guest_dir,
        instance: Instance::of_data_dir(data_dir),
        accelerator: match config.pods.accelerator {
            Accelerator::Auto => AcceleratorChoice::Auto,
            Accelerator::Kvm => AcceleratorChoice::Kvm,
            Accelerator::Tcg => AcceleratorChoice::Tcg,
        },
        pool: config.pool()?,
        nameservers: config.network.nameservers.clone(),
        egress: config.egress.policy(),
        warm: match config.pods.warm {
            Warm::Auto | Warm::On => Some(codius_pod::Machine::SMALL),
            Warm::Off => None,
        },
        uid_base: MicrovmConfig::DEFAULT_UID_BASE,
    });
    Ok(driver.await?)
}

fn boot_id() -> Result<BootId> {
    clock::boot_id()
        .parse()
        .context("/proc/sys/kernel/random/boot_id cannot be read")
}
