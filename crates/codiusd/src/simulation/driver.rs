//! Pods and images that are only pretended. Pods go on when the host dies; what each of them did, and
//! when, is written down here, and what the host says it has cost is compared with that.
//!
//! ```text
//! start ──▶ Half ──▶ Running ──ready──▶ (paid for) ──exit or loss──▶ over ──stop──▶ gone
//!                                        ▲  │ freeze
//!                                   thaw │  ▼
//!                                       frozen
//! ```

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use codius_guest_protocol::ContainerExit;
use codius_manifest::ManifestHash;
use codius_pod::{
    Driver, DriverError, ExecError, ExecSession, ExecStart, ImageConfig, ImageError, Images,
    Isolation, Machine, PodEvent, PodEvents, PodNotice, PodStart, PodUsage, PreparedImage,
    PullProgress, ResolvedImage, RunningPod, SETTLE,
};

use super::{
    dice::Dice,
    world::{Incarnation, World, lock, sleep_ms},
};

/// The machines of this host.
pub(super) struct Machines {
    dice: Dice,
    pods: BTreeMap<ManifestHash, PodMachine>,
    /// Nothing goes wrong any more.
    pub(super) healed: bool,
}

/// One pod.
struct PodMachine {
    generation: u64,
    phase: Phase,
    port: bool,
    events: Option<Arc<dyn PodEvents>>,
    /// What is told again to whoever attaches.
    listening: bool,
    exited: bool,
    /// Held still: it does nothing, so it does not end by itself either.
    frozen: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Not all of it is there yet.
    Half,
    Running,
}

/// What will become of a pod, decided when it is started.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// Its port opens, and it runs until it is stopped.
    Good,
    NoBoot,
    /// It takes minutes to find out that it does not boot.
    Hangs,
    NeverListens,
    /// Its program ends before its port is open.
    ExitsEarly,
    /// So long after it was ready.
    Exits(u64),
    Lost(u64),
}

impl Machines {
    pub(super) fn new(dice: Dice) -> Self {
        Self {
            dice,
            pods: BTreeMap::new(),
            healed: false,
        }
    }

    /// The host's process is gone: nobody hears of events any more.
    pub(super) fn let_go(&mut self) {
        for pod in self.pods.values_mut() {
            pod.events = None;
        }
    }

    pub(super) fn power_failure(&mut self, world: &World, now_ms: u64) {
        let gone = std::mem::take(&mut self.pods);
        let mut model = lock(&world.model);
        for hash in gone.keys() {
            model.pod_gone(hash, now_ms);
        }
    }

    /// Those of which anything exists.
    pub(super) fn hashes(&self) -> Vec<ManifestHash> {
        self.pods.keys().copied().collect()
    }

    /// Those that use the machine's memory and time as running pods do.
    pub(super) fn running(&self) -> Vec<ManifestHash> {
        let running = self
            .pods
            .iter()
            .filter(|(_, pod)| pod.phase == Phase::Running && !pod.exited && !pod.frozen);
        running.map(|(hash, _)| *hash).collect()
    }

    fn fate(&mut self, trouble: u64) -> Fate {
        if self.healed || !self.dice.permille(trouble) {
            return Fate::Good;
        }
        let after = self.dice.between(0, 60_000);
        match self.dice.below(8) {
            0 => Fate::NoBoot,
            1 => Fate::Hangs,
            2 => Fate::NeverListens,
            3 => Fate::ExitsEarly,
            4 | 5 => Fate::Exits(after),
            _ => Fate::Lost(after),
        }
    }

    fn same(&mut self, hash: &ManifestHash, generation: u64) -> Option<&mut PodMachine> {
        self.pods
            .get_mut(hash)
            .filter(|pod| pod.generation == generation)
    }
}

impl World {
    /// Tells whoever watches a pod. The events are called without the lock.
    fn tell(&self, hash: &ManifestHash, event: PodEvent) {
        let events = {
            let machines = lock(&self.machines);
            machines.pods.get(hash).and_then(|pod| pod.events.clone())
        };
        if let Some(events) = events {
            events.event(event);
        }
    }

    /// A pod's port opens, or it has run for long enough.
    fn pod_ready(&self, hash: &ManifestHash, generation: u64) -> bool {
        let port = {
            let mut machines = lock(&self.machines);
            let Some(pod) = machines.same(hash, generation) else {
                return false;
            };
            if pod.exited {
                return false;
            }
            pod.listening = pod.port;
            pod.port
        };
        self.note(|| format!("pod {} is ready", short(hash)));
        lock(&self.model).pod_ready(hash, self.now_ms());
        if port {
            self.tell(hash, PodEvent::Listening);
        }
        true
    }

    /// All programs of a pod end.
    pub(super) fn pod_exits(&self, hash: &ManifestHash, generation: Option<u64>) {
        {
            let mut machines = lock(&self.machines);
            let Some(pod) = machines.pods.get_mut(hash) else {
                return;
            };
            let other = generation.is_some_and(|generation| generation != pod.generation);
            if other || pod.exited || pod.frozen || pod.phase == Phase::Half {
                return;
            }
            pod.exited = true;
        }
        self.note(|| format!("pod {} exits", short(hash)));
        lock(&self.model).pod_over(hash, self.now_ms());
        let exit = ContainerExit::Code(0);
        self.tell(hash, PodEvent::Exited { container: 0, exit });
    }

    /// A pod's machine is gone.
    pub(super) fn pod_lost(&self, hash: &ManifestHash, generation: Option<u64>) {
        let gone = {
            let mut machines = lock(&self.machines);
            let Some(pod) = machines.pods.get(hash) else {
                return;
            };
            let other = generation.is_some_and(|generation| generation != pod.generation);
            if other || pod.phase == Phase::Half {
                return;
            }
            machines.pods.remove(hash)
        };
        self.note(|| format!("pod {} is lost", short(hash)));
        lock(&self.model).pod_gone(hash, self.now_ms());
        if let Some(events) = gone.and_then(|pod| pod.events) {
            let reason = "the machine died".to_owned();
            events.event(PodEvent::Lost { reason });
        }
    }

    /// What a started pod does by itself, whether there is a host or not.
    async fn live(self: Arc<Self>, hash: ManifestHash, generation: u64, fate: Fate, ready_ms: u64) {
        match fate {
            Fate::NoBoot | Fate::Hangs | Fate::NeverListens => {}
            Fate::ExitsEarly => {
                sleep_ms(ready_ms / 2).await;
                self.pod_exits(&hash, Some(generation));
            }
            Fate::Good | Fate::Exits(_) | Fate::Lost(_) => {
                sleep_ms(ready_ms).await;
                if !self.pod_ready(&hash, generation) {
                    return;
                }
                match fate {
                    Fate::Exits(after) => {
                        sleep_ms(after).await;
                        self.pod_exits(&hash, Some(generation));
                    }
                    Fate::Lost(after) => {
                        sleep_ms(after).await;
                        self.pod_lost(&hash, Some(generation));
                    }
                    _ => {}
                }
            }
        }
    }
}

/// The driver of one process of the host.
pub(super) struct PretendedDriver {
    pub(super) world: Arc<World>,
    pub(super) incarnation: Incarnation,
}

impl PretendedDriver {
    fn remove(&self, hash: &ManifestHash) {
        let removed = lock(&self.world.machines).pods.remove(hash).is_some();
        if removed {
            self.world.note(|| format!("pod {} is gone", short(hash)));
            lock(&self.world.model).pod_gone(hash, self.world.now_ms());
        }
    }
}

fn host_error(doing: &str) -> DriverError {
    DriverError::Host {
        doing: doing.to_owned(),
        source: std::io::Error::other("pretended"),
    }
}

#[async_trait]
impl Driver for PretendedDriver {
    fn isolation(&self) -> Isolation {
        Isolation::Tcg
    }

    fn overhead_mib(&self, _: Machine) -> u64 {
        0
    }

    async fn usage(
        &self,
        _: &[ManifestHash],
    ) -> Result<BTreeMap<ManifestHash, PodUsage>, DriverError> {
        Ok(BTreeMap::new())
    }

    async fn start(
        &self,
        start: PodStart,
        events: Arc<dyn PodEvents>,
    ) -> Result<RunningPod, DriverError> {
        self.incarnation.must_live().await;
        let hash = start.hash;
        let world = &self.world;
        let begun = {
            let mut machines = lock(&world.machines);
            if machines.pods.contains_key(&hash) {
                Err(host_error("start a pod that is there"))
            } else {
                let fate = machines.fate(world.plan.pod_trouble);
                let boot_ms = machines.dice.between(1, 3000);
                let ready_ms = machines.dice.between(0, 2000);
                let generation = world.number();
                let pod = PodMachine {
                    generation,
                    phase: Phase::Half,
                    port: start.port.is_some(),
                    events: None,
                    listening: false,
                    exited: false,
                    frozen: false,
                };
                machines.pods.insert(hash, pod);
                Ok((fate, boot_ms, ready_ms, generation))
            }
        };
        let (fate, boot_ms, ready_ms, generation) = begun?;
        world.note(|| format!("pod {} is started: {fate:?}", short(&hash)));
        if let Some(wrong) = lock(&world.model).pod_started(&hash) {
            world.violation(wrong);
        }
        sleep_ms(boot_ms).await;
        self.incarnation.must_live().await;
        if matches!(fate, Fate::Hangs) {
            sleep_ms(120_000).await;
            self.incarnation.must_live().await;
        }
        if matches!(fate, Fate::NoBoot | Fate::Hangs) {
            self.remove(&hash);
            let reason = "pretended".to_owned();
            return Err(DriverError::Boot { reason });
        }
        {
            let mut machines = lock(&world.machines);
            let Some(pod) = machines.same(&hash, generation) else {
                // Stopped meanwhile.
                return Err(DriverError::NotRunning);
            };
            pod.phase = Phase::Running;
            pod.events = Some(Arc::clone(&events));
        }
        events.event(PodEvent::Booted);
        events.event(PodEvent::Started);
        let port = start.port.is_some();
        let fate = match fate {
            Fate::NeverListens if !port => Fate::Good,
            other => other,
        };
        let ready_ms = if port {
            ready_ms
        } else {
            u64::try_from(SETTLE.as_millis()).unwrap_or_default()
        };
        tokio::spawn(Arc::clone(world).live(hash, generation, fate, ready_ms));
        Ok(RunningPod {
            address: address(port),
            frozen: false,
        })
    }

    async fn attach(
        &self,
        pod: &ManifestHash,
        events: Arc<dyn PodEvents>,
    ) -> Result<RunningPod, DriverError> {
        self.incarnation.must_live().await;
        let takes_ms = lock(&self.world.machines).dice.between(0, 300);
        sleep_ms(takes_ms).await;
        self.incarnation.must_live().await;
        let attached = {
            let mut machines = lock(&self.world.machines);
            let spoilt =
                !machines.healed && machines.dice.permille(self.world.plan.pod_trouble / 4);
            match machines.pods.get_mut(pod) {
                Some(machine) if machine.phase == Phase::Running && !spoilt => {
                    machine.events = Some(Arc::clone(&events));
                    Some((
                        machine.port,
                        machine.listening,
                        machine.exited,
                        machine.frozen,
                    ))
                }
                Some(_) | None => None,
            }
        };
        let Some((port, listening, exited, frozen)) = attached else {
            self.remove(pod);
            return Err(DriverError::NotRunning);
        };
        self.world
            .note(|| format!("pod {} is attached", short(pod)));
        if !exited && !frozen {
            lock(&self.world.model).pod_attached(pod, self.world.now_ms());
        }
        events.event(PodEvent::Booted);
        events.event(PodEvent::Started);
        if listening {
            events.event(PodEvent::Listening);
        }
        if exited {
            let exit = ContainerExit::Code(0);
            events.event(PodEvent::Exited { container: 0, exit });
        }
        Ok(RunningPod {
            address: address(port),
            frozen,
        })
    }

    async fn freeze(&self, pod: &ManifestHash) -> Result<(), DriverError> {
        self.incarnation.must_live().await;
        let held = {
            let mut machines = lock(&self.world.machines);
            let spoilt =
                !machines.healed && machines.dice.permille(self.world.plan.pod_trouble / 8);
            match machines.pods.get_mut(pod) {
                Some(_) if spoilt => Err(host_error("hold a pod still")),
                Some(machine) => {
                    machine.frozen = true;
                    Ok(())
                }
                None => Err(DriverError::NotRunning),
            }
        };
        if held.is_ok() {
            self.world.note(|| format!("pod {} is frozen", short(pod)));
            lock(&self.world.model).pod_over(pod, self.world.now_ms());
        }
        held
    }

    async fn thaw(&self, pod: &ManifestHash) -> Result<(), DriverError> {
        self.incarnation.must_live().await;
        let was_still = {
            let mut machines = lock(&self.world.machines);
            let machine = machines.pods.get_mut(pod).ok_or(DriverError::NotRunning)?;
            std::mem::take(&mut machine.frozen) && !machine.exited
        };
        if was_still {
            self.world.note(|| format!("pod {} goes on", short(pod)));
            lock(&self.world.model).pod_thawed(pod, self.world.now_ms());
        }
        Ok(())
    }

    fn tell(&self, _: &ManifestHash, _: PodNotice) {}

    async fn exec(&self, _: &ManifestHash, _: ExecStart) -> Result<ExecSession, ExecError> {
        Err(ExecError::NotOffered)
    }

    async fn stop(&self, pod: &ManifestHash, grace: Duration) -> Result<(), DriverError> {
        self.incarnation.must_live().await;
        let known = {
            let mut machines = lock(&self.world.machines);
            match machines.pods.get_mut(pod) {
                // Its programs end, whether the host lives to see it or not.
                Some(machine) => {
                    machine.exited = true;
                    true
                }
                None => false,
            }
        };
        if !known {
            return Ok(());
        }
        self.world
            .note(|| format!("pod {} is told to stop", short(pod)));
        lock(&self.world.model).pod_told_to_stop(pod, self.world.now_ms());
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or_default();
        let takes_ms = lock(&self.world.machines).dice.between(0, grace_ms);
        sleep_ms(takes_ms).await;
        self.incarnation.must_live().await;
        self.remove(pod);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<ManifestHash>, DriverError> {
        self.incarnation.must_live().await;
        Ok(lock(&self.world.machines).hashes())
    }
}

fn address(port: bool) -> Option<SocketAddr> {
    port.then(|| (Ipv4Addr::LOCALHOST, 9).into())
}

/// The first letters of a hash, for people.
pub(super) fn short(hash: &ManifestHash) -> String {
    hash.to_string().chars().take(4).collect()
}

/// Images that are here at once, or not at all.
pub(super) struct PretendedImages {
    pub(super) world: Arc<World>,
    pub(super) incarnation: Incarnation,
}

impl PretendedImages {
    async fn fetch(&self, reference: &str) -> Result<(), ImageError> {
        self.incarnation.must_live().await;
        let (takes_ms, fails) = {
            let trouble = self.world.plan.pod_trouble;
            let mut machines = lock(&self.world.machines);
            let fails = !machines.healed && machines.dice.permille(trouble / 4);
            (machines.dice.between(0, 1500), fails)
        };
        sleep_ms(takes_ms).await;
        self.incarnation.must_live().await;
        if fails {
            return Err(ImageError::NotFound {
                reference: reference.to_owned(),
                reason: "pretended".to_owned(),
            });
        }
        Ok(())
    }
}

#[async_trait]
impl Images for PretendedImages {
    async fn resolve(&self, reference: &str) -> Result<ResolvedImage, ImageError> {
        self.fetch(reference).await?;
        Ok(ResolvedImage {
            reference: reference.to_owned(),
            digest: format!("sha256:{:064}", 1),
            compressed_bytes: 1000,
            cached: false,
        })
    }

    async fn prepare(
        &self,
        image: &ResolvedImage,
        _: Arc<dyn PullProgress>,
    ) -> Result<PreparedImage, ImageError> {
        self.fetch(&image.reference).await?;
        Ok(PreparedImage {
            digest: image.digest.clone(),
            block_image: PathBuf::from("pretended"),
            config: ImageConfig {
                cmd: vec!["/bin/true".to_owned()],
                ..ImageConfig::default()
            },
        })
    }
}
