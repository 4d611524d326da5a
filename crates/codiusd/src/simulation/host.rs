//! One process of the host: the parts of `daemon.rs` that have to do with money, wired in the same order,
//! without listeners.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use codius_api::AssetInfo;
use codius_ledger::{Asset, Seconds};
use codius_pod::{Admission, Capacity, Driver, Machine, Supervisor};
use codius_proxy::Proxy;
use codius_store::{Batch, Store};
use ilp_connector::{Connector, ConnectorConfig};
use ilp_link::BtpServer;

use super::{
    driver::{PretendedDriver, PretendedImages},
    faults::DiskOf,
    world::{HostClock, Incarnation, World},
};
use crate::{
    clock::Clock,
    config,
    drain::Drain,
    leases::{Leases, Wiring},
    orders::Orders,
    pod_money::{PacketLimits, PodMoney, PodPort},
    price::PriceTag,
    refund::{Reach, Refunds},
    routes::Routes,
    spsp::Spsp,
    till::Till,
};

/// How long the shutdown may take, as in `daemon.rs`.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(60);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Between SIGTERM and SIGKILL of a pod.
const STOP_GRACE: Duration = Duration::from_millis(800);
const PORT_TIMEOUT: Duration = Duration::from_secs(20);
const PAYMENT_TIMEOUT: Duration = Duration::from_secs(15);
const EXPIRY_NOTICES: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(10)];
const HOST_SECRET: &str = "host";

/// One process of the host.
pub(super) struct Host {
    pub(super) incarnation: Incarnation,
    pub(super) leases: Arc<Leases>,
    pub(super) orders: Arc<Orders>,
    pub(super) spsp: Arc<Spsp>,
    pub(super) refunds: Arc<Refunds>,
    pub(super) connector: Connector,
    store: Store,
}

impl Host {
    pub(super) const ADDRESS: &'static str = "test.codius";
    /// How far ahead a lease may be paid.
    pub(super) const MAX_DURATION_SECS: u64 = 120;
    /// The longest that a pod takes to end.
    pub(super) const STOP_MS: u64 = 800;

    /// Starts a process; it takes up what is on the disk.
    pub(super) async fn start(world: &Arc<World>, incarnation: Incarnation) -> Result<Arc<Self>> {
        let disk = DiskOf::new(Arc::clone(world), incarnation.clone());
        let store = world.disk.open(Arc::new(disk));
        let snapshot = store.load().await?;
        store.verify().await.context("the ledger does not add up")?;
        let secret = match snapshot.secrets.get(HOST_SECRET) {
            Some(secret) => *secret,
            None => {
                let secret = [7; 32];
                store
                    .commit(Batch::new().secret(HOST_SECRET, secret))
                    .await?;
                secret
            }
        };
        let asset = Asset::new("XRP", 6).context("asset")?;
        let price = config::Price {
            cost_per_month: world.plan.cost_per_month.to_owned(),
            ..config::Price::default()
        };
        let rate = PriceTag::open(&price, &BTreeMap::new(), &asset, &snapshot.meta)?;
        let connector = Connector::new(
            ConnectorConfig::new(Self::ADDRESS.parse()?, asset.code(), asset.scale()),
            Arc::new(store.clone()),
            Arc::new(HostClock(Arc::clone(world))),
        );
        let btp = BtpServer::new(connector.clone());
        let limits = PacketLimits {
            max_amount: u64::MAX,
            max_per_sec: 1000,
        };
        let pod_money = PodMoney::new(store.clone(), connector.clone(), btp, limits);
        let till = Till::open(&connector, &secret, asset.clone())?;
        let driver: Arc<dyn Driver> = Arc::new(PretendedDriver {
            world: Arc::clone(world),
            incarnation: incarnation.clone(),
        });
        let images = Arc::new(PretendedImages {
            world: Arc::clone(world),
            incarnation: incarnation.clone(),
        });
        let clock = Clock::new(Arc::new(HostClock(Arc::clone(world))));
        let supervisor = Supervisor::new(
            Arc::clone(&driver),
            images,
            Arc::new(PodPort(Arc::clone(&pod_money))),
            PORT_TIMEOUT,
            {
                let clock = clock.clone();
                Arc::new(move || clock.wall())
            },
        );
        let routes = Arc::new(Routes::default());
        let proxy = Proxy::new(Arc::clone(&routes) as _);
        let leases = Leases::new(Wiring {
            clock,
            store: store.clone(),
            supervisor,
            admission: Admission::new(Self::capacity(world), {
                let driver = Arc::clone(&driver);
                Arc::new(move |machine| driver.overhead_mib(machine))
            }),
            routes,
            proxy,
            pod_money,
            rate,
            asset: AssetInfo {
                code: asset.code().to_owned(),
                scale: asset.scale(),
            },
            max_duration: Seconds(Self::MAX_DURATION_SECS),
            public_uri: "http://localhost:3000".parse()?,
            boot: world.boot(),
            stop_grace: STOP_GRACE,
            grace: Duration::from_millis(world.plan.grace_ms),
            expiry_notices: EXPIRY_NOTICES.to_vec(),
            drain: Drain::default(),
        });
        let spsp = Spsp::open(&connector, &secret, asset.clone(), Arc::clone(&leases))?;
        let orders = Orders::new(Arc::clone(&leases), till, PAYMENT_TIMEOUT);
        let undone = leases.recover(snapshot.leases, driver.as_ref()).await?;
        orders
            .recover(snapshot.open_orders, &undone, &snapshot.balances)
            .await?;
        let refunds = Arc::new(Refunds::new(
            connector.clone(),
            asset,
            Reach::Loopback,
            leases.closing.clone(),
        )?);
        Ok(Arc::new(Self {
            incarnation,
            leases,
            orders,
            spsp,
            refunds,
            connector,
            store,
        }))
    }

    pub(super) fn capacity(world: &World) -> Capacity {
        Capacity {
            memory_mib: u64::from(Machine::SMALL.memory_mib) * world.plan.pods as u64,
            pods: world.plan.pods as u64,
            ..Capacity::ENDLESS
        }
    }

    /// Ends as `daemon.rs` does, and says whether it came to its end.
    pub(super) async fn shut_down(&self, stop_pods: bool) -> bool {
        let ending = async {
            self.leases.shut_down(stop_pods).await;
            let _ = tokio::time::timeout(DRAIN_TIMEOUT, self.connector.drain()).await;
            self.store.close().await;
        };
        tokio::select! {
            biased;
            () = self.incarnation.dead.cancelled() => false,
            ended = tokio::time::timeout(SHUTDOWN_TIMEOUT, ending) => ended.is_ok(),
        }
    }
}
