//! What runs pods.

use std::{collections::BTreeMap, fmt, net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use codius_guest_protocol::{ContainerExit, LogStream, RestartPolicy};
use codius_manifest::{Machine, ManifestHash};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{ContainerState, ExecError, ExecSession, ExecStart, PreparedImage};

/// Runs pods. One pod per manifest hash.
///
/// Every method may be called again after the daemon was killed in the middle of it: what a hash has
/// left behind is found by its name and removed by `stop`.
#[async_trait]
pub trait Driver: Send + Sync + 'static {
    /// What holds the guest back.
    fn isolation(&self) -> Isolation;

    /// What a machine takes of the host's memory at most, in MiB, beside what it gives to programs.
    fn overhead_mib(&self, machine: Machine) -> u64;

    /// Starts a pod and returns once its containers were told to start. What happens then comes
    /// through `events`. On an error nothing is left behind.
    async fn start(
        &self,
        pod: PodStart,
        events: Arc<dyn PodEvents>,
    ) -> Result<RunningPod, DriverError>;

    /// Takes up a pod that an earlier process has started. `NotRunning` if it cannot be had any more
    /// (and then nothing of it is left).
    async fn attach(
        &self,
        pod: &ManifestHash,
        events: Arc<dyn PodEvents>,
    ) -> Result<RunningPod, DriverError>;

    /// Holds a running pod still: none of its programs runs, and nothing of it is lost. Also right for one
    /// that is held still already. It stays so when the daemon ends.
    async fn freeze(&self, pod: &ManifestHash) -> Result<(), DriverError>;

    /// Lets a pod go on that was held still. Also right for one that runs.
    async fn thaw(&self, pod: &ManifestHash) -> Result<(), DriverError>;

    /// Tells the programs of a pod what they may want to know. Nobody answers, and it may be lost.
    fn tell(&self, pod: &ManifestHash, notice: PodNotice);

    /// Runs a program in a container of a running pod, beside the container's own.
    async fn exec(&self, pod: &ManifestHash, start: ExecStart) -> Result<ExecSession, ExecError>;

    /// What pods have used of the host; those that do not run are left out.
    async fn usage(
        &self,
        pods: &[ManifestHash],
    ) -> Result<BTreeMap<ManifestHash, PodUsage>, DriverError>;

    /// Ends a pod: containers get `grace` to end by themselves; then everything of it is removed.
    /// Also right for a pod that is not there.
    async fn stop(&self, pod: &ManifestHash, grace: Duration) -> Result<(), DriverError>;

    /// Every pod of which anything exists: running, half-started or half-removed.
    async fn list(&self) -> Result<Vec<ManifestHash>, DriverError>;
}

/// A pod to start, everything decided.
#[derive(Debug, Clone)]
pub struct PodStart {
    pub hash: ManifestHash,
    pub machine: Machine,
    pub port: Option<u16>,
    pub containers: Vec<ContainerStart>,
}

#[derive(Debug, Clone)]
pub struct ContainerStart {
    pub id: String,
    pub image: PreparedImage,
    /// Program and arguments; never empty.
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub workdir: String,
    pub user: String,
    pub restart: RestartPolicy,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningPod {
    /// Where the host reaches the pod's port, if it has one.
    pub address: Option<SocketAddr>,
    /// It is held still; only an attached one can be.
    pub frozen: bool,
}

/// What a pod has used. Counters begin with its machine: a pod that was started again begins anew, and a
/// restart of the daemon changes nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodUsage {
    /// Time of the host's processors, in milliseconds.
    pub cpu_ms: u64,
    /// Memory of the host that it has now, and the most that it had.
    pub memory_bytes: u64,
    pub memory_peak_bytes: u64,
    /// What its writable disk takes on the host's now.
    pub disk_bytes: u64,
    /// What it has read from the host's disks and written to them. What the host had in memory anyway is not
    /// read.
    pub disk_read_bytes: u64,
    pub disk_written_bytes: u64,
}

/// What the programs of a pod are told of their lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodNotice {
    /// When the money is used up, in milliseconds since 1970.
    pub expires_at_unix_ms: u64,
}

/// Told what a pod does; called from the driver's own tasks, must not block.
pub trait PodEvents: Send + Sync {
    fn event(&self, event: PodEvent);
    /// A program in the pod has connected to `localhost:7768`.
    fn interledger(&self, connection: Box<dyn Duplex>);
}

/// A byte stream in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodEvent {
    /// The virtual machine's agent has answered.
    Booted,
    /// All containers have been started.
    Started,
    /// The pod's port is open.
    Listening,
    /// The pod's port is open, but only on the pod's loopback address, where no visitor comes.
    ListeningOnLoopbackOnly,
    /// A piece of output, by the container's place in [`PodStart::containers`].
    Log {
        container: usize,
        stream: LogStream,
        data: Vec<u8>,
    },
    LogDropped {
        container: usize,
        bytes: u64,
    },
    /// A container's program has ended and is not started again.
    Exited {
        container: usize,
        exit: ContainerExit,
    },
    /// A container's program has ended and is started again, or was; also what a driver knows of a container
    /// when it takes a pod up.
    Standing {
        container: usize,
        state: ContainerState,
    },
    /// The pod has ended and everything of it is gone, unasked. The text says why.
    Lost {
        reason: String,
    },
}

/// What holds a guest back, weakest last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Hardware virtualisation.
    Kvm,
    /// A user-space kernel.
    Gvisor,
    /// An emulated machine: for development and tests. QEMU gives no guarantee for it.
    Tcg,
}

impl Isolation {
    /// Whether a host that takes real money may use it unasked.
    pub fn is_hardware(self) -> bool {
        matches!(self, Self::Kvm)
    }
}

impl fmt::Display for Isolation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Kvm => "kvm",
            Self::Gvisor => "gvisor",
            Self::Tcg => "tcg",
        })
    }
}

#[derive(Debug, Error)]
pub enum DriverError {
    /// The pod asks for what this driver cannot give. Nothing happened; the uploader changes it.
    #[error("the pod cannot be run: {reason}")]
    Unsupported { reason: String },
    /// A container could not be started: no such program, user or directory. Everything was removed.
    #[error("container {container} could not be started: {reason}")]
    Container { container: String, reason: String },
    /// The machine did not come up in time or died. Everything was removed.
    #[error("the pod did not start: {reason}")]
    Boot { reason: String },
    /// There is no such pod.
    #[error("the pod is not running")]
    NotRunning,
    /// This host's own disk, network or tools. The operator looks at the text.
    #[error("the host could not {doing}")]
    Host {
        doing: String,
        #[source]
        source: std::io::Error,
    },
}
