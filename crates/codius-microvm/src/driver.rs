//! The driver itself: which pods there are, and who owns each.
//!
//! At any time at most one task owns a hash (a [`Claim`]): the one that starts, runs, stops or removes it.
//! Whoever wants the next thing of a hash asks the owner to end and waits for that.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    net::Ipv4Addr,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use codius_guest_protocol::MAX_CONTAINERS;
use codius_manifest::ManifestHash;
use codius_pod::{
    Count, Driver, DriverError, Egress, ExecError, ExecSession, ExecStart, Isolation, Machine,
    Permit, PodEvents, PodNotice, PodStart, PodUsage, RunningPod, Traffic,
};
use rustix::fs::{FlockOperation, flock};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{
    Instance, Ipv4Pool, MicrovmConfig, OpenError, acceleration, configuration,
    footprint::{overhead_mib, unfit},
    jail::Jail,
    limits::LOCK_DEADLINE,
    machine::{Accelerator, GuestFiles},
    network, pod,
    programs::Programs,
    record::{Phase, PodRecord, Records},
    remains::{Places, Swept},
    template::{self, Shape, Templates},
    usage,
};

/// What is asked of one pod at the same time.
const MAX_COMMANDS: usize = 16;
/// Locks of the instances of this machine; gone with a reboot, as what they protect.
const LOCK_DIR: &str = "/run/codius";

/// Runs pods as QEMU microVMs. Dropping it leaves the pods running; the next one takes them up.
#[derive(Debug)]
pub struct MicrovmDriver {
    shared: Arc<Shared>,
}

/// What the tasks of all pods have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) places: Places,
    pub(crate) guest: GuestFiles,
    pub(crate) accelerator: Accelerator,
    pub(crate) pool: Ipv4Pool,
    pub(crate) nameservers: Vec<Ipv4Addr>,
    pub(crate) egress: Arc<network::EgressRules>,
    /// None: every pod is booted.
    pub(crate) templates: Option<Arc<Templates>>,
    isolation_reason: String,
    swept: Swept,
    state: Mutex<State>,
    closing: CancellationToken,
    /// One driver per instance. Held by every task, so that the next driver waits for the last one.
    _lock: File,
}

#[derive(Debug, Default)]
struct State {
    owners: HashMap<ManifestHash, Owner>,
    slots: Slots,
}

/// The task that has a hash, as seen by the others.
#[derive(Debug)]
struct Owner {
    stop: mpsc::Sender<Duration>,
    commands: mpsc::Sender<Command>,
    ended: CancellationToken,
    running: bool,
}

/// What the task of a running pod is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    Freeze(oneshot::Sender<io::Result<()>>),
    Thaw(oneshot::Sender<io::Result<()>>),
    Tell(PodNotice),
    Exec(ExecStart, oneshot::Sender<Result<ExecSession, ExecError>>),
}

/// What somebody wants of the task of a pod.
#[derive(Debug)]
pub(crate) enum Asked {
    Stop(Duration),
    Command(Command),
}

/// Slots are given out in turn: a fresh pod should not meet the packets meant for the last one.
#[derive(Debug, Default)]
struct Slots {
    used: BTreeSet<u16>,
    next: u16,
}

impl Slots {
    fn take(&mut self, count: u16) -> Option<u16> {
        let free = (self.next..count)
            .chain(0..self.next.min(count))
            .find(|slot| !self.used.contains(slot))?;
        self.used.insert(free);
        self.next = free + 1;
        Some(free)
    }
}

impl MicrovmDriver {
    /// Checks what this machine has, finds out what it can do, and clears away what earlier runs have left
    /// half done. Running pods go on; [`Driver::attach`] takes them up.
    pub async fn open(config: MicrovmConfig) -> Result<Self, OpenError> {
        if !rustix::process::geteuid().is_root() {
            return Err(OpenError::NotRoot);
        }
        let programs = Programs::find()?;
        let guest = guest_files(&config.guest_dir)?;
        let state_dir = make_state_dir(&config.state_dir)
            .map_err(OpenError::host("make its state directory"))?;
        let lock = lock_instance(&config.instance, &state_dir).await?;
        let (qemu, instance, disks) = (
            programs.qemu.clone(),
            config.instance.clone(),
            state_dir.clone(),
        );
        let jail = tokio::task::spawn_blocking(move || Jail::open(&qemu, &instance, &disks))
            .await
            .map_err(io::Error::other)
            .and_then(|jail| jail)
            .map_err(OpenError::host("prepare the jail of its machines"))?;
        jail.announce();
        let places = Places {
            programs,
            jail: Arc::new(jail),
            instance: config.instance,
            records: Records::open(&state_dir)
                .map_err(OpenError::host("make its state directory"))?,
            pods_dir: state_dir.join("pods"),
            uid_base: config.uid_base,
        };

        let common = network::Common {
            policy: config.egress,
            pool: config.pool,
            nameservers: config.nameservers.clone(),
        };
        let egress = network::EgressRules::new(&places.programs, &places.instance, common);
        let egress = Arc::new(egress);
        let (swept, pool, rules) = (places.clone(), config.pool, Arc::clone(&egress));
        let (kept, found) = tokio::task::spawn_blocking(move || {
            network::enable_forwarding().map_err(OpenError::host("switch on IP forwarding"))?;
            rules
                .set_up_host()
                .map_err(OpenError::host("set its firewall rules"))?;
            let can_go_on = |record: &PodRecord| {
                let process = record
                    .process
                    .as_ref()
                    .filter(|_| record.phase == Phase::Running);
                let lives = process
                    .map(|process| process.find())
                    .transpose()?
                    .flatten()
                    .is_some();
                Ok(lives && record.slot < pool.slots())
            };
            swept
                .sweep(can_go_on)
                .map_err(OpenError::host("clear away what an earlier run has left"))
        })
        .await
        .map_err(io::Error::other)
        .map_err(OpenError::host("look for what an earlier run has left"))??;

        let acceleration =
            acceleration::choose(config.accelerator, &places, &guest, &state_dir).await?;
        acceleration::announce(&acceleration);
        let isolation_reason = format!("{}; {}", acceleration.reason, places.jail.report());
        let mut state = State::default();
        state
            .slots
            .used
            .extend(kept.iter().map(|record| record.slot));
        if config.warm.is_none() {
            template::remove_all(&state_dir)
                .map_err(OpenError::host("remove templates of an earlier run"))?;
        }
        let templates = config.warm.map(|_| Arc::new(Templates::new(&state_dir)));
        let driver = Self {
            shared: Arc::new(Shared {
                places,
                guest,
                accelerator: acceleration.accelerator,
                pool: config.pool,
                nameservers: config.nameservers,
                egress,
                isolation_reason,
                swept: found,
                state: Mutex::new(state),
                closing: CancellationToken::new(),
                templates,
                _lock: lock,
            }),
        };
        if let Some(machine) = config.warm {
            // Most pods have one image or two.
            template::want(&driver.shared, Shape::of(machine, 1));
        }
        Ok(driver)
    }

    /// Waits until no template is being made: from then on a pod of a machine that has one is cloned.
    pub async fn warmed(&self) {
        if let Some(templates) = &self.shared.templates {
            templates.idle().await;
        }
    }

    /// Makes no template any more, and gives up the one that is being made. For a host that ends.
    pub async fn end_templates(&self) {
        if let Some(templates) = &self.shared.templates {
            templates.end().await;
        }
    }

    /// Why the pods of this host are isolated as they are: a sentence for the operator.
    pub fn isolation_reason(&self) -> &str {
        &self.shared.isolation_reason
    }

    /// What it has removed when it was opened.
    pub fn swept(&self) -> Swept {
        self.shared.swept
    }

    /// Removes the host's firewall table if no pod is left. For a host that ends for good; returns whether
    /// it was removed.
    pub async fn retire(&self) -> Result<bool, DriverError> {
        if !self.list().await?.is_empty() {
            return Ok(false);
        }
        let places = self.shared.places.clone();
        blocking("remove its firewall rules", move || {
            network::remove_host_rules(&places.programs, &places.instance)
        })
        .await?;
        Ok(true)
    }
}

impl MicrovmDriver {
    /// Where the task of a running pod takes commands.
    fn commands(&self, pod: &ManifestHash) -> Option<mpsc::Sender<Command>> {
        let shared = self.shared.lock();
        let owner = shared.owners.get(pod).filter(|owner| owner.running);
        owner.map(|owner| owner.commands.clone())
    }

    /// Has the task of a pod do something, and waits for it.
    async fn command(
        &self,
        pod: &ManifestHash,
        doing: &'static str,
        command: impl FnOnce(oneshot::Sender<io::Result<()>>) -> Command,
    ) -> Result<(), DriverError> {
        let commands = self.commands(pod).ok_or(DriverError::NotRunning)?;
        let (answer, answered) = oneshot::channel();
        commands
            .send(command(answer))
            .await
            .map_err(|_| DriverError::NotRunning)?;
        let done = answered.await.map_err(|_| DriverError::NotRunning)?;
        done.map_err(|source| DriverError::Host {
            doing: doing.to_owned(),
            source,
        })
    }
}

impl Drop for MicrovmDriver {
    fn drop(&mut self) {
        self.shared.closing.cancel();
    }
}

#[async_trait]
impl Driver for MicrovmDriver {
    fn isolation(&self) -> Isolation {
        self.shared.accelerator.isolation()
    }

    fn overhead_mib(&self, machine: Machine) -> u64 {
        overhead_mib(machine, self.isolation())
    }

    async fn usage(
        &self,
        pods: &[ManifestHash],
    ) -> Result<BTreeMap<ManifestHash, PodUsage>, DriverError> {
        let (places, pods) = (self.shared.places.clone(), pods.to_vec());
        blocking("read what pods use", move || Ok(usage::of(&places, &pods))).await
    }

    async fn start(
        &self,
        pod: PodStart,
        events: Arc<dyn PodEvents>,
    ) -> Result<RunningPod, DriverError> {
        check(&pod)?;
        let hash = pod.hash;
        let claim = Claim::take(&self.shared, hash).await?;
        // Something may be left of an earlier pod whose removal failed.
        self.shared.remove_left(hash).await?;
        let slot = self.shared.lock().slots.take(self.shared.pool.slots());
        let slot = slot.ok_or_else(|| DriverError::Host {
            doing: "give the pod an address: all are in use".to_owned(),
            source: io::Error::from(io::ErrorKind::AddrInUse),
        })?;
        let (answer, answered) = oneshot::channel();
        let span = tracing::info_span!("pod", %hash);
        tokio::spawn(
            pod::start(Arc::clone(&self.shared), claim, slot, pod, events, answer).instrument(span),
        );
        answered.await.unwrap_or_else(|_| {
            Err(DriverError::Boot {
                reason: "its task ended".to_owned(),
            })
        })
    }

    async fn attach(
        &self,
        pod: &ManifestHash,
        events: Arc<dyn PodEvents>,
    ) -> Result<RunningPod, DriverError> {
        let hash = *pod;
        let claim = Claim::take(&self.shared, hash).await?;
        let shared = Arc::clone(&self.shared);
        let record = blocking("read the pod's record", move || {
            shared.places.records.read(&hash)
        })
        .await?;
        let Some(record) = record else {
            return Err(DriverError::NotRunning);
        };
        let (answer, answered) = oneshot::channel();
        let span = tracing::info_span!("pod", %hash);
        tokio::spawn(
            pod::attach(Arc::clone(&self.shared), claim, record, events, answer).instrument(span),
        );
        answered.await.unwrap_or(Err(DriverError::NotRunning))
    }

    async fn freeze(&self, pod: &ManifestHash) -> Result<(), DriverError> {
        self.command(pod, "hold the pod still", Command::Freeze)
            .await
    }

    async fn thaw(&self, pod: &ManifestHash) -> Result<(), DriverError> {
        self.command(pod, "let the pod go on", Command::Thaw).await
    }

    fn tell(&self, pod: &ManifestHash, notice: PodNotice) {
        if let Some(owner) = self.shared.lock().owners.get(pod) {
            // Whoever is told so often misses one.
            let _ = owner.commands.try_send(Command::Tell(notice));
        }
    }

    async fn exec(&self, pod: &ManifestHash, start: ExecStart) -> Result<ExecSession, ExecError> {
        let commands = self.commands(pod).ok_or(ExecError::NotRunning)?;
        let (answer, answered) = oneshot::channel();
        commands
            .send(Command::Exec(start, answer))
            .await
            .map_err(|_| ExecError::NotRunning)?;
        answered.await.map_err(|_| ExecError::NotRunning)?
    }

    async fn stop(&self, pod: &ManifestHash, grace: Duration) -> Result<(), DriverError> {
        let ended = self.shared.lock().owners.get(pod).map(|owner| {
            // Full means that a stop has been asked for already.
            let _ = owner.stop.try_send(grace);
            owner.ended.clone()
        });
        if let Some(ended) = ended {
            ended.cancelled().await;
        }
        if self.shared.lock().owners.contains_key(pod) {
            // Somebody has started it anew meanwhile; the pod that was to be stopped is gone.
            return Ok(());
        }
        // Normally there is nothing left to do.
        let _claim = Claim::take(&self.shared, *pod).await?;
        self.shared.remove_left(*pod).await
    }

    async fn list(&self) -> Result<Vec<ManifestHash>, DriverError> {
        let shared = Arc::clone(&self.shared);
        let mut hashes = blocking("list the pods", move || shared.places.records.hashes()).await?;
        hashes.sort_unstable();
        Ok(hashes)
    }
}

#[async_trait]
impl Egress for MicrovmDriver {
    async fn permit(&self, pod: ManifestHash, permit: Permit) -> Result<(), DriverError> {
        let egress = Arc::clone(&self.shared.egress);
        blocking("change what the pod may reach", move || {
            egress.permit(pod, permit)
        })
        .await
    }

    async fn traffic(
        &self,
        pods: &[ManifestHash],
    ) -> Result<BTreeMap<ManifestHash, Traffic>, DriverError> {
        let (egress, pods) = (Arc::clone(&self.shared.egress), pods.to_vec());
        blocking(
            "read what pods have sent",
            move || Ok(egress.traffic(&pods)),
        )
        .await
    }

    async fn refused_by_host(&self) -> Result<Count, DriverError> {
        let egress = Arc::clone(&self.shared.egress);
        blocking("read what was refused", move || egress.refused_by_host()).await
    }
}

impl Shared {
    pub(crate) fn closing(&self) -> &CancellationToken {
        &self.closing
    }

    /// Removes everything of a pod and frees its slot. The caller owns the hash.
    pub(crate) async fn remove_pod(
        self: &Arc<Self>,
        hash: ManifestHash,
        slot: u16,
    ) -> Result<(), DriverError> {
        let shared = Arc::clone(self);
        blocking("remove what is left of a pod", move || {
            shared.egress.forget(&hash);
            // Without a record it failed before anything else was made.
            if let Some(record) = shared.places.records.read(&hash)? {
                shared.places.remove_pod(&record)?;
            }
            shared.lock().slots.used.remove(&slot);
            Ok(())
        })
        .await
    }

    /// As [`Self::remove_pod`] for a pod of which only the hash is known.
    async fn remove_left(self: &Arc<Self>, hash: ManifestHash) -> Result<(), DriverError> {
        let shared = Arc::clone(self);
        blocking("remove what is left of a pod", move || {
            shared.egress.forget(&hash);
            if let Some(record) = shared.places.records.read(&hash)? {
                shared.places.remove_pod(&record)?;
                shared.lock().slots.used.remove(&record.slot);
            }
            Ok(())
        })
        .await
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic happens under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to do something with a hash. Given back when dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    shared: Arc<Shared>,
    hash: ManifestHash,
    stop: mpsc::Receiver<Duration>,
    commands: mpsc::Receiver<Command>,
    ended: CancellationToken,
}

impl Claim {
    /// Waits for an owner that is starting or ending; fails if the pod runs.
    async fn take(shared: &Arc<Shared>, hash: ManifestHash) -> Result<Self, DriverError> {
        loop {
            let ended = {
                let mut state = shared.lock();
                match state.owners.get(&hash) {
                    Some(owner) if owner.running => {
                        return Err(DriverError::Host {
                            doing: "take the pod up: it runs already".to_owned(),
                            source: io::Error::from(io::ErrorKind::AlreadyExists),
                        });
                    }
                    Some(owner) => owner.ended.clone(),
                    None => {
                        let (sender, stop) = mpsc::channel(1);
                        let (asked, commands) = mpsc::channel(MAX_COMMANDS);
                        let ended = CancellationToken::new();
                        let owner = Owner {
                            stop: sender,
                            commands: asked,
                            ended: ended.clone(),
                            running: false,
                        };
                        state.owners.insert(hash, owner);
                        return Ok(Self {
                            shared: Arc::clone(shared),
                            hash,
                            stop,
                            commands,
                            ended,
                        });
                    }
                }
            };
            ended.cancelled().await;
        }
    }

    /// The next thing that is asked of a running pod.
    pub(crate) async fn asked(&mut self) -> Asked {
        // The senders are in the table for as long as this claim is.
        tokio::select! {
            biased;
            Some(grace) = self.stop.recv() => Asked::Stop(grace),
            Some(command) = self.commands.recv() => Asked::Command(command),
            else => std::future::pending().await,
        }
    }

    /// The grace of a stop, when one is asked for.
    pub(crate) async fn stop_asked(&mut self) -> Duration {
        match self.stop.recv().await {
            Some(grace) => grace,
            // The sender is in the table for as long as this claim is.
            None => std::future::pending().await,
        }
    }

    pub(crate) fn set_running(&self) {
        if let Some(owner) = self.shared.lock().owners.get_mut(&self.hash) {
            owner.running = true;
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.shared.lock().owners.remove(&self.hash);
        self.ended.cancel();
    }
}

/// What this driver can run at all. Nothing has happened yet.
fn check(pod: &PodStart) -> Result<(), DriverError> {
    let problem = if pod.containers.is_empty() {
        Some("it has no container".to_owned())
    } else if pod.containers.len() > MAX_CONTAINERS {
        Some(format!(
            "it has {} containers, at most {MAX_CONTAINERS} are possible",
            pod.containers.len()
        ))
    } else if let Some(container) = pod
        .containers
        .iter()
        .find(|container| container.args.is_empty())
    {
        Some(format!("container {} has no command", container.id))
    } else if let Some(problem) = unfit(pod.machine) {
        Some(problem)
    } else if !configuration::fits_one_line(pod) {
        Some("its environment and arguments are too long".to_owned())
    } else {
        None
    };
    problem.map_or(Ok(()), |reason| Err(DriverError::Unsupported { reason }))
}

async fn blocking<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, DriverError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(io::Error::other)
        .and_then(|done| done)
        .map_err(|source| DriverError::Host {
            doing: doing.to_owned(),
            source,
        })
}

fn guest_files(dir: &Path) -> Result<GuestFiles, OpenError> {
    let file = |name: &str| {
        let path = dir.join(name);
        let reason = match fs::metadata(&path) {
            // QEMU opens them itself, without privileges.
            Ok(metadata) if metadata.is_file() && metadata.mode() & 0o004 != 0 => return Ok(path),
            Ok(_) => "it has to be a file that all users may read".to_owned(),
            Err(error) => format!("{error}; make it with `cargo xtask guest`"),
        };
        Err(OpenError::GuestFile { path, reason })
    };
    Ok(GuestFiles {
        kernel: file("vmlinux")?,
        initramfs: file("initramfs.cpio")?,
    })
}

fn make_state_dir(dir: &Path) -> io::Result<PathBuf> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir.join("pods"))?;
    dir.canonicalize()
}

/// Two drivers of one instance would take each other's pods for orphans.
async fn lock_instance(instance: &Instance, state_dir: &Path) -> Result<File, OpenError> {
    let failed = || OpenError::host("lock its instance");
    fs::create_dir_all(LOCK_DIR).map_err(failed())?;
    let path = Path::new(LOCK_DIR).join(format!("{instance}.lock"));
    let options = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path);
    let mut file = options.map_err(failed())?;
    let begin = tokio::time::Instant::now();
    let mut owner = String::new();
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(rustix::io::Errno::WOULDBLOCK) if begin.elapsed() < LOCK_DEADLINE => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                read_owner(&mut file, &mut owner).map_err(failed())?;
                return Err(OpenError::InUse {
                    instance: instance.to_string(),
                    state_dir: owner,
                });
            }
            Err(error) => return Err(failed()(error.into())),
        }
    }
    read_owner(&mut file, &mut owner).map_err(failed())?;
    let state_dir = state_dir.display().to_string();
    // The other host does not run now, but its pods may.
    let other_pods = (owner != state_dir && !owner.is_empty())
        .then(|| fs::read_dir(Path::new(&owner).join("records")).ok())
        .flatten()
        .is_some_and(|mut records| records.next().is_some());
    if other_pods {
        return Err(OpenError::InUse {
            instance: instance.to_string(),
            state_dir: owner,
        });
    }
    file.set_len(0).map_err(failed())?;
    file.seek(SeekFrom::Start(0)).map_err(failed())?;
    file.write_all(state_dir.as_bytes()).map_err(failed())?;
    Ok(file)
}

fn read_owner(file: &mut File, owner: &mut String) -> io::Result<()> {
    file.seek(SeekFrom::Start(0))?;
    owner.clear();
    file.take(4096).read_to_string(owner)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_slot_is_not_the_next() {
        let mut slots = Slots::default();
        assert_eq!(slots.take(3), Some(0));
        slots.used.remove(&0);
        assert_eq!(slots.take(3), Some(1));
        assert_eq!(slots.take(3), Some(2));
        assert_eq!(slots.take(3), Some(0));
        assert_eq!(slots.take(3), None);
    }
}
