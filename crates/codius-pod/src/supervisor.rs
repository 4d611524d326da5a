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
//! A pod that its driver could not remove is a leftover ([`leftovers`]). Trap: the next pod of its hash must
//! not be taken for it, so a start removes what is left first, and fails if it cannot.

mod leftovers;
mod pulls;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use codius_guest_protocol::{ContainerExit, LogStream};
use codius_manifest::{ManifestHash, PodSpec, RestartPolicy};
use futures_util::future::try_join_all;
use thiserror::Error;
use tokio::{sync::watch, time::timeout};

use self::{
    leftovers::Leftovers,
    pulls::{Pull, Pulls},
};
use crate::{
    Activity, ContainerActivity, ContainerState, ContainerView, Driver, DriverError, Duplex,
    ExecError, ExecSession, ExecStart, ImageError, Images, LogRecord, Machine, PodEvent, PodEvents,
    PodLogs, PodNotice, PodUsage, PullProgress, ResolvedImage, RunningPod, plan,
};

/// How long a pod without a port must run before it counts as started.
pub const SETTLE: Duration = Duration::from_millis(500);
/// A driver ended its events without saying why.
const LET_GO: &str = "the driver has let go of the pod";
/// An end that was longer ago was told before, by an earlier process of the host.
const TOLD_AGAIN: Duration = Duration::from_millis(500);
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

/// Tells of each change of a pod's containers after their start.
#[derive(Debug)]
pub struct ContainerChanges {
    status: watch::Receiver<Status>,
    seen: Vec<ContainerView>,
}

impl ContainerChanges {
    /// The containers that are not as they were; waits for one. For ever, after the end of the pod. Safe to
    /// drop while waiting.
    pub async fn next(&mut self) -> Vec<ContainerView> {
        loop {
            if self.status.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            let now = self.status.borrow_and_update().containers.clone();
            let told = |(view, before): (&ContainerView, &ContainerView)| {
                let began = view.activity == ContainerActivity::Running && view.restarts == 0;
                (view != before && !began).then(|| view.clone())
            };
            let changed: Vec<_> = now.iter().zip(&self.seen).filter_map(told).collect();
            self.seen = now;
            if !changed.is_empty() {
                return changed;
            }
        }
    }
}

impl Pod {
    /// How its containers are.
    pub fn containers(&self) -> Vec<ContainerView> {
        self.status.borrow().containers.clone()
    }

    /// Of what happens to its containers from now on.
    pub fn changes(&self) -> ContainerChanges {
        let mut status = self.status.clone();
        let seen = status.borrow_and_update().containers.clone();
        ContainerChanges { status, seen }
    }

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
    containers: Vec<ContainerView>,
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

    /// The first container that ended badly and is started again and again.
    fn restarted(&self) -> Option<(usize, ContainerExit)> {
        let containers = self.containers.iter().enumerate();
        let mut restarted = containers.filter_map(|(index, view)| match view.last_exit {
            Some(ContainerExit::Code(0)) | None => None,
            Some(exit) => Some((index, exit)),
        });
        restarted.next()
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
    /// For each container, whether it may be started again, and whether its error output ends within a line.
    lines: Vec<(bool, AtomicBool)>,
}

impl Watch {
    /// A line of the host's among a container's error output.
    fn remark(&self, container: usize, remark: &str) {
        let Some((_, within_line)) = self.lines.get(container) else {
            return;
        };
        let feed = if within_line.swap(false, Ordering::Relaxed) {
            "\n"
        } else {
            ""
        };
        self.logs.append(LogRecord {
            container,
            stream: LogStream::Stderr,
            data: format!("{feed}codius: {remark}\n").into_bytes(),
            at_unix_ms: (self.wall_clock)(),
            offset: 0,
        });
    }

    /// What the reader of a log is told of a container: that its program has ended, if it may be started
    /// again.
    fn remarks(&self, event: &PodEvent) {
        match event {
            PodEvent::Standing {
                container,
                state:
                    ContainerState {
                        now: Activity::Waiting { next },
                        restarts,
                        last_exit: Some(exit),
                        since,
                    },
            } if *since < TOLD_AGAIN => {
                let seconds = next.as_millis().div_ceil(1000);
                let exit = ExitText(*exit);
                self.remark(
                    *container,
                    &format!("the program {exit}; it is started again in {seconds} s, {restarts} times before"),
                );
            }
            PodEvent::Exited { container, exit }
                if self.lines.get(*container).is_some_and(|(again, _)| *again) =>
            {
                self.remark(*container, &format!("the program {}", ExitText(*exit)));
            }
            _ => {}
        }
    }
}

impl PodEvents for Watch {
    fn event(&self, event: PodEvent) {
        match event {
            PodEvent::Log {
                container,
                stream,
                data,
            } => {
                if stream == LogStream::Stderr
                    && let Some((_, within_line)) = self.lines.get(container)
                    && let Some(last) = data.last()
                {
                    within_line.store(*last != b'\n', Ordering::Relaxed);
                }
                self.logs.append(LogRecord {
                    container,
                    stream,
                    data,
                    at_unix_ms: (self.wall_clock)(),
                    offset: 0,
                });
            }
            PodEvent::LogDropped { container, bytes } => {
                tracing::debug!(pod = %self.hash, container, bytes, "output dropped");
            }
            event => {
                if matches!(event, PodEvent::Lost { .. }) {
                    self.logs.close();
                }
                self.remarks(&event);
                let now_unix_ms = (self.wall_clock)();
                self.status
                    .send_modify(|status| apply(status, event, now_unix_ms));
            }
        }
    }

    fn interledger(&self, connection: Box<dyn Duplex>) {
        self.interledger.connected(&self.hash, connection);
    }
}

fn apply(status: &mut Status, event: PodEvent, now_unix_ms: u64) {
    match event {
        PodEvent::Booted => status.booted = true,
        PodEvent::Started => {
            status.started = true;
            for container in &mut status.containers {
                container.started(now_unix_ms);
            }
        }
        PodEvent::Listening => status.listening = true,
        PodEvent::ListeningOnLoopbackOnly => status.loopback_only = true,
        PodEvent::Exited { container, exit } => {
            if let Some(slot) = status.exits.get_mut(container) {
                *slot = Some(exit);
            }
            if let Some(view) = status.containers.get_mut(container) {
                view.exited(exit, now_unix_ms);
            }
        }
        PodEvent::Standing { container, state } => {
            if let Some(view) = status.containers.get_mut(container) {
                view.stands(state, now_unix_ms);
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

    /// Runs a program in a container of a running pod.
    pub async fn exec(
        &self,
        hash: &ManifestHash,
        start: ExecStart,
    ) -> Result<ExecSession, ExecError> {
        self.driver.exec(hash, start).await
    }

    /// What pods have used of the host; those that do not run are left out.
    pub async fn usage(
        &self,
        pods: &[ManifestHash],
    ) -> Result<BTreeMap<ManifestHash, PodUsage>, DriverError> {
        self.driver.usage(pods).await
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
        self.leftovers.add(*hash, &error, &self.driver);
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
            containers: spec
                .containers
                .iter()
                .map(|container| ContainerView::starting(&container.id))
                .collect(),
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
            lines: spec
                .containers
                .iter()
                .map(|container| {
                    let again = container.restart != RestartPolicy::No;
                    (again, AtomicBool::new(false))
                })
                .collect(),
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
        // One that is started again has had its time.
        let restarted = || status.restarted().filter(|_| spec.port.is_some());
        if let Some((index, exit)) = status.failure().or_else(restarted) {
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
