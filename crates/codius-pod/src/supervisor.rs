//! Starts pods, watches them and ends them.
//!
//! ```text
//! Preparing ──▶ Booting ──▶ Starting ──▶ WaitingForPort ──▶ Ready ──▶ ended
//!     │            │            │              │
//!     └────────────┴────────────┴──────────────┴──▶ StartError, and nothing is left behind
//! ```
//!
//! A pod with a port is ready when the port is open; one without, when its containers have run for
//! [`SETTLE`] without failing. It has ended when its last container has, or when its machine is lost.
//!
//! A pod that its driver could not remove is a leftover: it is removed again and again, after waits that
//! grow, until it is gone. Trap: the next pod of its hash must not be taken for it, so a start removes what
//! is left first, and fails if it cannot.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use codius_guest_protocol::ContainerExit;
use codius_manifest::{ManifestHash, PodSpec};
use futures_util::future::try_join_all;
use thiserror::Error;
use tokio::{sync::watch, time::timeout};

use crate::{
    Driver, DriverError, Duplex, ImageError, Images, LogRecord, Machine, PodEvent, PodEvents,
    PodLogs, PodNotice, PullProgress, ResolvedImage, RunningPod, plan,
};

/// How long a pod without a port must run before it counts as started.
pub const SETTLE: Duration = Duration::from_millis(500);
/// A driver ended its events without saying why.
const LET_GO: &str = "the driver has let go of the pod";
/// How long after a removal that failed the next is tried; it doubles with each.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest of these waits.
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// How much of a failed container's output goes into the error.
const TAIL_BYTES: usize = 2000;

/// Where connections of programs to `localhost:7768` go.
pub trait InterledgerPort: Send + Sync + 'static {
    fn connected(&self, pod: &ManifestHash, connection: Box<dyn Duplex>);
}

/// Told how a start goes on; must not block.
pub trait StartProgress: Send + Sync {
    fn phase(&self, phase: StartPhase);
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartPhase {
    /// Compressed bytes of all images of the pod that are not here yet.
    Pulling {
        bytes: u64,
        of: u64,
    },
    Building,
    Booting,
    Starting,
    WaitingForPort {
        port: u16,
    },
}

/// Why a pod did not start. Nothing of it is left, in every case.
#[derive(Debug, Error)]
pub enum StartError {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The program ended before the pod was ready. The uploader reads its output.
    #[error("container {container} {exit} before the program was ready{output}")]
    Exited {
        container: String,
        exit: ExitText,
        output: OutputText,
    },
    /// All programs ended well, but the port was never open.
    #[error("all containers ended before port {port} was open{output}")]
    Finished { port: u16, output: OutputText },
    /// The program runs and does not listen.
    #[error(
        "port {port} was not opened within {waited_secs} s; make the program listen on 0.0.0.0:{port}, or \
         correct `port` in the manifest{output}"
    )]
    PortNotOpened {
        port: u16,
        waited_secs: u64,
        output: OutputText,
    },
    /// The program listens where nobody can reach it.
    #[error("the program listens on 127.0.0.1:{port} only; make it listen on 0.0.0.0:{port}")]
    LoopbackOnly { port: u16 },
    /// The machine died.
    #[error("the pod was lost while starting: {reason}")]
    Lost { reason: String },
}

impl StartError {
    /// Whether the host is to blame rather than the upload.
    pub fn is_host_fault(&self) -> bool {
        match self {
            Self::Image(error) => matches!(error, ImageError::Host { .. }),
            Self::Driver(error) => {
                matches!(
                    error,
                    DriverError::Boot { .. } | DriverError::Host { .. } | DriverError::NotRunning
                )
            }
            Self::Lost { .. } => true,
            Self::Exited { .. }
            | Self::Finished { .. }
            | Self::PortNotOpened { .. }
            | Self::LoopbackOnly { .. } => false,
        }
    }
}

/// An exit, in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitText(pub ContainerExit);

impl std::fmt::Display for ExitText {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            ContainerExit::Code(code) => write!(out, "ended with exit code {code}"),
            ContainerExit::Signal(signal) => write!(out, "was ended by signal {signal}"),
            ContainerExit::OutOfMemory => {
                out.write_str("was ended because it used more memory than the pod has")
            }
        }
    }
}

/// The last output of a program, as the end of a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputText(pub String);

impl std::fmt::Display for OutputText {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            out.write_str(" (it wrote nothing)")
        } else {
            write!(out, "; its last output:\n{}", self.0)
        }
    }
}

/// Starts and ends pods through a driver.
pub struct Supervisor {
    driver: Arc<dyn Driver>,
    images: Arc<dyn Images>,
    interledger: Arc<dyn InterledgerPort>,
    port_timeout: Duration,
    wall_clock: WallClock,
    leftovers: Arc<Leftovers>,
}

/// Pods that were to be removed and could not be. Whoever removes one holds its lock.
#[derive(Debug, Default)]
struct Leftovers(Mutex<HashMap<ManifestHash, Arc<tokio::sync::Mutex<()>>>>);

impl Leftovers {
    fn table(&self) -> MutexGuard<'_, HashMap<ManifestHash, Arc<tokio::sync::Mutex<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes what is left of a pod, if there is something, while nobody else does.
    async fn remove(&self, driver: &dyn Driver, hash: &ManifestHash) -> Result<(), DriverError> {
        let Some(lock) = self.table().get(hash).cloned() else {
            return Ok(());
        };
        let _alone = lock.lock().await;
        // Somebody else has removed it meanwhile.
        if !self.table().contains_key(hash) {
            return Ok(());
        }
        driver.stop(hash, Duration::ZERO).await?;
        self.table().remove(hash);
        Ok(())
    }
}

/// Removes a leftover until it is gone, or nobody supervises any more: then the next start of the daemon
/// does, which looks for what no lease needs.
async fn remove_at_last(leftovers: Weak<Leftovers>, driver: Arc<dyn Driver>, hash: ManifestHash) {
    let mut wait = FIRST_RETRY;
    loop {
        tokio::time::sleep(wait).await;
        let Some(leftovers) = leftovers.upgrade() else {
            return;
        };
        match leftovers.remove(&*driver, &hash).await {
            Ok(()) => {
                tracing::info!(pod = %hash, "removed at last");
                return;
            }
            Err(error) => {
                wait = (2 * wait).min(LONGEST_RETRY);
                not_removed(&hash, &error, wait);
            }
        }
    }
}

fn not_removed(hash: &ManifestHash, error: &DriverError, wait: Duration) {
    tracing::error!(
        pod = %hash,
        error = error as &dyn std::error::Error,
        "pod could not be removed; it is not charged, and tried again in {} s",
        wait.as_secs()
    );
}

/// Milliseconds since 1970, for the time of log lines.
pub type WallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

impl std::fmt::Debug for Supervisor {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Supervisor")
            .field("port_timeout", &self.port_timeout)
            .finish_non_exhaustive()
    }
}

/// A pod that is ready.
#[derive(Debug)]
pub struct Pod {
    pub hash: ManifestHash,
    /// Where visitors are sent, if the pod has a port.
    pub address: Option<SocketAddr>,
    /// It was held still when it was taken up.
    pub frozen: bool,
    pub logs: Arc<PodLogs>,
    status: watch::Receiver<Status>,
}

impl Pod {
    /// Whether it was over when it was taken up: nobody knows since when.
    pub fn has_ended(&self) -> bool {
        self.status.borrow().end().is_some()
    }

    /// Waits for the end of the last container or of the machine. Safe to drop while waiting.
    pub async fn ended(&self) -> PodEnd {
        let mut status = self.status.clone();
        let ended = status.wait_for(|status| status.end().is_some()).await;
        ended
            .ok()
            .and_then(|status| status.end())
            .unwrap_or_else(|| PodEnd::Lost(LET_GO.to_owned()))
    }
}

/// Why a pod runs no more, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodEnd {
    /// Its programs have ended.
    Exited(String),
    /// Its machine is gone.
    Lost(String),
}

/// What is known of a pod from its events.
#[derive(Debug, Clone, Default)]
struct Status {
    booted: bool,
    started: bool,
    listening: bool,
    loopback_only: bool,
    exits: Vec<Option<ContainerExit>>,
    lost: Option<String>,
}

impl Status {
    fn end(&self) -> Option<PodEnd> {
        if let Some(reason) = &self.lost {
            return Some(PodEnd::Lost(reason.clone()));
        }
        let all_ended = !self.exits.is_empty() && self.exits.iter().all(Option::is_some);
        all_ended.then(|| {
            PodEnd::Exited(match self.failure() {
                Some((container, exit)) => format!("container {container} {}", ExitText(exit)),
                None => "all containers have ended".to_owned(),
            })
        })
    }

    /// The first container that ended badly.
    fn failure(&self) -> Option<(usize, ContainerExit)> {
        self.exits
            .iter()
            .enumerate()
            .find_map(|(index, exit)| match exit {
                Some(ContainerExit::Code(0)) | None => None,
                Some(exit) => Some((index, *exit)),
            })
    }
}

/// Turns a driver's events into a status, logs and Interledger connections.
struct Watch {
    hash: ManifestHash,
    status: watch::Sender<Status>,
    logs: Arc<PodLogs>,
    interledger: Arc<dyn InterledgerPort>,
    wall_clock: WallClock,
}

impl PodEvents for Watch {
    fn event(&self, event: PodEvent) {
        match event {
            PodEvent::Log {
                container,
                stream,
                data,
            } => self.logs.append(LogRecord {
                container,
                stream,
                data,
                at_unix_ms: (self.wall_clock)(),
                offset: 0,
            }),
            PodEvent::LogDropped { container, bytes } => {
                tracing::debug!(pod = %self.hash, container, bytes, "output dropped");
            }
            event => {
                if matches!(event, PodEvent::Lost { .. }) {
                    self.logs.close();
                }
                self.status.send_modify(|status| apply(status, event));
            }
        }
    }

    fn interledger(&self, connection: Box<dyn Duplex>) {
        self.interledger.connected(&self.hash, connection);
    }
}

fn apply(status: &mut Status, event: PodEvent) {
    match event {
        PodEvent::Booted => status.booted = true,
        PodEvent::Started => status.started = true,
        PodEvent::Listening => status.listening = true,
        PodEvent::ListeningOnLoopbackOnly => status.loopback_only = true,
        PodEvent::Exited { container, exit } => {
            if let Some(slot) = status.exits.get_mut(container) {
                *slot = Some(exit);
            }
        }
        PodEvent::Lost { reason } => status.lost = Some(reason),
        PodEvent::Log { .. } | PodEvent::LogDropped { .. } => {}
    }
}

impl Supervisor {
    pub fn new(
        driver: Arc<dyn Driver>,
        images: Arc<dyn Images>,
        interledger: Arc<dyn InterledgerPort>,
        port_timeout: Duration,
        wall_clock: WallClock,
    ) -> Self {
        Self {
            driver,
            images,
            interledger,
            port_timeout,
            wall_clock,
            leftovers: Arc::default(),
        }
    }

    /// Asks the registries what each image of a pod means now; in the order of the containers.
    pub async fn resolve(&self, spec: &PodSpec) -> Result<Vec<ResolvedImage>, ImageError> {
        try_join_all(
            spec.containers
                .iter()
                .map(|container| self.images.resolve(&container.image)),
        )
        .await
    }

    /// Starts a pod and returns it when it is ready.
    pub async fn start(
        &self,
        spec: &PodSpec,
        images: &[ResolvedImage],
        machine: Machine,
        progress: Arc<dyn StartProgress>,
    ) -> Result<Pod, StartError> {
        let prepared = self.prepare(images, &progress).await?;
        let start = plan(spec, machine, prepared)?;
        self.leftovers.remove(&*self.driver, &spec.hash).await?;

        progress.phase(StartPhase::Booting);
        let (watch, pod) = self.watch(spec);
        let told = tokio::spawn(tell(pod.status.clone(), spec.port, Arc::clone(&progress)));
        let started = self.driver.start(start, watch).await;
        let outcome = match started {
            Ok(RunningPod { address, frozen }) => self.ready(spec, &pod).await.map(|()| Pod {
                address,
                frozen,
                ..pod
            }),
            Err(error) => Err(error.into()),
        };
        told.abort();
        if outcome.is_err() {
            self.stop(&spec.hash, Duration::ZERO).await;
        }
        outcome
    }

    /// Takes up a pod that an earlier process left running.
    pub async fn attach(&self, spec: &PodSpec) -> Result<Pod, DriverError> {
        let (watch, pod) = self.watch(spec);
        let RunningPod { address, frozen } = self.driver.attach(&spec.hash, watch).await?;
        Ok(Pod {
            address,
            frozen,
            ..pod
        })
    }

    /// Holds a running pod still.
    pub async fn freeze(&self, hash: &ManifestHash) -> Result<(), DriverError> {
        self.driver.freeze(hash).await
    }

    /// Lets a pod go on.
    pub async fn thaw(&self, hash: &ManifestHash) -> Result<(), DriverError> {
        self.driver.thaw(hash).await
    }

    /// Tells the programs of a pod about their lease.
    pub fn tell(&self, hash: &ManifestHash, notice: PodNotice) {
        self.driver.tell(hash, notice);
    }

    /// Ends a pod and removes everything of it. If the driver fails it is asked again in the background,
    /// until the pod is gone.
    pub async fn stop(&self, hash: &ManifestHash, grace: Duration) {
        let Err(error) = self.driver.stop(hash, grace).await else {
            return;
        };
        not_removed(hash, &error, FIRST_RETRY);
        let is_new = {
            let mut table = self.leftovers.table();
            let is_new = !table.contains_key(hash);
            table.entry(*hash).or_default();
            is_new
        };
        if is_new {
            let leftovers = Arc::downgrade(&self.leftovers);
            tokio::spawn(remove_at_last(leftovers, Arc::clone(&self.driver), *hash));
        }
    }

    async fn prepare(
        &self,
        images: &[ResolvedImage],
        progress: &Arc<dyn StartProgress>,
    ) -> Result<Vec<crate::PreparedImage>, ImageError> {
        let pulls = Pulls::new(images, Arc::clone(progress));
        let prepares = images.iter().enumerate().map(|(index, image)| {
            let pull: Arc<dyn PullProgress> = Arc::new(Pull {
                index,
                pulls: Arc::clone(&pulls),
            });
            self.images.prepare(image, pull)
        });
        try_join_all(prepares).await
    }

    fn watch(&self, spec: &PodSpec) -> (Arc<Watch>, Pod) {
        let initial = Status {
            exits: vec![None; spec.containers.len()],
            ..Status::default()
        };
        let (sender, status) = watch::channel(initial);
        let logs = Arc::new(PodLogs::beginning((self.wall_clock)()));
        let watch = Watch {
            hash: spec.hash,
            status: sender,
            logs: Arc::clone(&logs),
            interledger: Arc::clone(&self.interledger),
            wall_clock: Arc::clone(&self.wall_clock),
        };
        (
            Arc::new(watch),
            Pod {
                hash: spec.hash,
                address: None,
                frozen: false,
                logs,
                status,
            },
        )
    }

    /// Waits until a started pod is ready, or says why it never will be.
    async fn ready(&self, spec: &PodSpec, pod: &Pod) -> Result<(), StartError> {
        let output = |container: usize| OutputText(pod.logs.tail(container, TAIL_BYTES));
        let decided = |status: &Status| {
            status.listening
                || status.lost.is_some()
                || status.failure().is_some()
                || status.end().is_some()
        };
        let mut watching = pod.status.clone();
        let patience = if spec.port.is_some() {
            self.port_timeout
        } else {
            SETTLE
        };
        let waited = timeout(patience, watching.wait_for(decided)).await;
        // Output that was written just before an exit arrives just after it.
        let status = match waited {
            Ok(Ok(status)) => status.clone(),
            Ok(Err(_)) => {
                return Err(StartError::Lost {
                    reason: LET_GO.to_owned(),
                });
            }
            Err(_) => pod.status.borrow().clone(),
        };
        if let Some(reason) = status.lost {
            return Err(StartError::Lost { reason });
        }
        if status.listening {
            return Ok(());
        }
        if let Some((index, exit)) = status.failure() {
            let container = spec.containers[index].id.clone();
            return Err(StartError::Exited {
                container,
                exit: ExitText(exit),
                output: output(index),
            });
        }
        let Some(port) = spec.port else { return Ok(()) };
        if status.end().is_some() {
            return Err(StartError::Finished {
                port,
                output: output(0),
            });
        }
        if status.loopback_only {
            return Err(StartError::LoopbackOnly { port });
        }
        Err(StartError::PortNotOpened {
            port,
            waited_secs: patience.as_secs(),
            output: output(0),
        })
    }
}

/// Tells the phases of a start that only the guest knows.
async fn tell(
    mut status: watch::Receiver<Status>,
    port: Option<u16>,
    progress: Arc<dyn StartProgress>,
) {
    if status.wait_for(|status| status.booted).await.is_err() {
        return;
    }
    progress.phase(StartPhase::Starting);
    let Some(port) = port else { return };
    if status.wait_for(|status| status.started).await.is_ok() {
        progress.phase(StartPhase::WaitingForPort { port });
    }
}

/// The pulls of one pod's images, summed up. An image that several containers share counts once.
struct Pulls {
    done: Mutex<Vec<(u64, u64)>>,
    progress: Arc<dyn StartProgress>,
}

struct Pull {
    index: usize,
    pulls: Arc<Pulls>,
}

impl Pulls {
    fn new(images: &[ResolvedImage], progress: Arc<dyn StartProgress>) -> Arc<Self> {
        let first = |index: usize| {
            images[..index]
                .iter()
                .all(|earlier| earlier.digest != images[index].digest)
        };
        let done = images
            .iter()
            .enumerate()
            .map(|(index, image)| {
                (
                    0,
                    if image.cached || !first(index) {
                        0
                    } else {
                        image.compressed_bytes
                    },
                )
            })
            .collect();
        Arc::new(Self {
            done: Mutex::new(done),
            progress,
        })
    }
}

impl PullProgress for Pull {
    fn pulled(&self, bytes: u64, _of: u64) {
        let (bytes, of) = {
            let mut done = self
                .pulls
                .done
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let (mine, of) = &mut done[self.index];
            *mine = bytes.min(*of);
            done.iter()
                .fold((0, 0), |(bytes, all), (b, o)| (bytes + b, all + o))
        };
        if of > 0 {
            self.pulls.progress.phase(StartPhase::Pulling { bytes, of });
        }
    }

    fn building(&self) {
        self.pulls.progress.phase(StartPhase::Building);
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use codius_manifest::Upload;

    use super::*;
    use crate::{ImageConfig, Isolation, PodStart, PreparedImage};

    /// Removes a pod only after it has refused so many times.
    #[derive(Default)]
    struct Stubborn {
        refusals: Mutex<u32>,
        asked: Mutex<u32>,
        /// Who hears of its pods, for as long as they run.
        hearing: Mutex<Vec<Arc<dyn PodEvents>>>,
    }

    impl Stubborn {
        fn asked(&self) -> u32 {
            *self.asked.lock().unwrap()
        }

        fn refuses(&self, times: u32) {
            *self.refusals.lock().unwrap() = times;
        }
    }

    #[async_trait]
    impl Driver for Stubborn {
        fn isolation(&self) -> Isolation {
            Isolation::Tcg
        }

        async fn start(
            &self,
            _: PodStart,
            events: Arc<dyn PodEvents>,
        ) -> Result<RunningPod, DriverError> {
            self.hearing.lock().unwrap().push(events);
            Ok(RunningPod {
                address: None,
                frozen: false,
            })
        }

        async fn attach(
            &self,
            _: &ManifestHash,
            _: Arc<dyn PodEvents>,
        ) -> Result<RunningPod, DriverError> {
            Err(DriverError::NotRunning)
        }

        async fn freeze(&self, _: &ManifestHash) -> Result<(), DriverError> {
            Ok(())
        }

        async fn thaw(&self, _: &ManifestHash) -> Result<(), DriverError> {
            Ok(())
        }

        fn tell(&self, _: &ManifestHash, _: PodNotice) {}

        async fn stop(&self, _: &ManifestHash, _: Duration) -> Result<(), DriverError> {
            *self.asked.lock().unwrap() += 1;
            let mut refusals = self.refusals.lock().unwrap();
            if *refusals == 0 {
                return Ok(());
            }
            *refusals -= 1;
            Err(DriverError::Host {
                doing: "remove it".to_owned(),
                source: std::io::Error::other("busy"),
            })
        }

        async fn list(&self) -> Result<Vec<ManifestHash>, DriverError> {
            Ok(Vec::new())
        }
    }

    struct Ready;

    #[async_trait]
    impl Images for Ready {
        async fn resolve(&self, reference: &str) -> Result<ResolvedImage, ImageError> {
            Ok(resolved(reference))
        }

        async fn prepare(
            &self,
            image: &ResolvedImage,
            _: Arc<dyn PullProgress>,
        ) -> Result<PreparedImage, ImageError> {
            Ok(PreparedImage {
                digest: image.digest.clone(),
                block_image: "/i".into(),
                config: ImageConfig {
                    cmd: vec!["run".to_owned()],
                    ..ImageConfig::default()
                },
            })
        }
    }

    fn resolved(reference: &str) -> ResolvedImage {
        ResolvedImage {
            reference: reference.to_owned(),
            digest: "sha256:0".to_owned(),
            compressed_bytes: 0,
            cached: true,
        }
    }

    struct Nobody;

    impl InterledgerPort for Nobody {
        fn connected(&self, _: &ManifestHash, _: Box<dyn Duplex>) {}
    }

    impl StartProgress for Nobody {
        fn phase(&self, _: StartPhase) {}
    }

    fn spec() -> PodSpec {
        let body =
            br#"{"manifest":{"name":"n","version":"1","containers":[{"id":"app","image":"i"}]}}"#;
        let upload = Upload::parse(body).unwrap();
        upload.pod_spec("http://host").unwrap()
    }

    fn supervisor(driver: &Arc<Stubborn>) -> Supervisor {
        Supervisor::new(
            Arc::clone(driver) as Arc<dyn Driver>,
            Arc::new(Ready),
            Arc::new(Nobody),
            SETTLE,
            Arc::new(|| 0),
        )
    }

    async fn start(supervisor: &Supervisor) -> Result<Pod, StartError> {
        let image = resolved("i");
        let nobody = Arc::new(Nobody);
        supervisor
            .start(&spec(), &[image], Machine::SMALL, nobody)
            .await
    }

    /// Far longer than every wait.
    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_cannot_be_removed_is_tried_until_it_is_gone() {
        let driver = Arc::new(Stubborn::default());
        let supervisor = supervisor(&driver);
        // Given a pod that cannot be removed nine times; nobody waits for it.
        driver.refuses(9);
        supervisor.stop(&spec().hash, Duration::ZERO).await;
        assert_eq!(driver.asked(), 1);

        // The waits grow: 1, 2, 4, 8 and 16 s are over after 31 s.
        tokio::time::sleep(Duration::from_millis(31_500)).await;
        assert_eq!(driver.asked(), 6);
        // It is asked until it is gone, and then no more.
        tokio::time::sleep(LONG).await;
        assert_eq!(driver.asked(), 10);
        tokio::time::sleep(LONG).await;
        assert_eq!(driver.asked(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_pod_of_a_hash_is_not_taken_for_what_is_left_of_the_last() {
        let driver = Arc::new(Stubborn::default());
        let supervisor = supervisor(&driver);
        driver.refuses(u32::MAX);
        supervisor.stop(&spec().hash, Duration::ZERO).await;

        // While something is left there is no new pod,
        let refused = start(&supervisor).await.unwrap_err();
        assert!(refused.is_host_fault(), "{refused}");
        // and once there is one, nothing removes it.
        driver.refuses(0);
        start(&supervisor).await.unwrap();
        let asked = driver.asked();
        tokio::time::sleep(LONG).await;
        assert_eq!(driver.asked(), asked);
    }
}
