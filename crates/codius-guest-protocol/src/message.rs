//! The messages themselves.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::{ExecAnswer, ExecAsk};

/// From the host to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum HostMessage {
    /// Asks for a [`AgentMessage::Hello`] with this nonce.
    Attach { nonce: String },
    /// Starts the pod. Accepted once; a later one changes nothing and is not answered.
    Configure(Box<PodConfig>),
    /// Does all that can be done before the pod is known, then answers [`AgentMessage::Warmed`]: the machine
    /// is to become a template. Only before `Configure`.
    Warm,
    /// Asks for a [`AgentMessage::Pong`].
    Ping { id: u64 },
    /// Until when the pod is paid for, whenever that changes. An agent that knows no such message passes
    /// over it.
    Lease { expires_at_unix_ms: u64 },
    /// SIGTERM to every container, SIGKILL after the grace, sync, then [`AgentMessage::Stopped`].
    Stop { grace_ms: u64 },
    /// About a session of `exec`. Only to an agent whose `Hello` offers some.
    Exec { session: u32, ask: ExecAsk },
}

/// From the agent to the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum AgentMessage {
    Hello {
        nonce: String,
        version: u32,
        configured: bool,
        containers: Vec<ContainerStatus>,
        /// Sessions of `exec` that it carries at the same time; agents before there were any say nothing.
        #[serde(default)]
        sessions: u16,
    },
    /// The answer to [`HostMessage::Warm`]. The agent now only waits.
    Warmed,
    /// All containers of the pod have been started.
    Started,
    /// The pod's port is open on an address that the host can reach.
    Listening,
    /// The pod's port is open, but only on the loopback address.
    ListeningOnLoopbackOnly,
    /// A piece of what a container wrote.
    Log {
        container: u16,
        stream: LogStream,
        #[serde(with = "base64_bytes")]
        data: Vec<u8>,
    },
    /// Output that was thrown away because the host did not read it in time.
    LogDropped {
        container: u16,
        bytes: u64,
    },
    /// A container's first process has ended.
    Exited {
        container: u16,
        exit: ContainerExit,
    },
    /// A container's program is to be started again, or has been. Lasting, for every container.
    Standing(ContainerStanding),
    Pong {
        id: u64,
    },
    Stopped,
    /// About a session of `exec`.
    Exec {
        session: u32,
        answer: ExecAnswer,
    },
    /// The pod cannot be started or has to end; the text is for the uploader.
    Failed {
        container: Option<u16>,
        message: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogStream {
    Stdout,
    Stderr,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerStatus {
    Waiting,
    Running,
    Exited(ContainerExit),
}

/// How a container's first process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerExit {
    Code(i32),
    Signal(i32),
    /// Killed because it used more memory than it may.
    OutOfMemory,
}

/// Whether a container's program is started again when it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartPolicy {
    #[default]
    No,
    /// Unless its exit code is 0.
    OnFailure,
    /// However it has ended.
    Always,
}

/// What has become of a container's programs until now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStanding {
    pub container: u16,
    pub now: Standing,
    /// For how long that has been so.
    pub for_ms: u64,
    /// How often the program was started again.
    pub restarts: u32,
    /// How the last program ended, if one has.
    pub last_exit: Option<ContainerExit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    Running,
    /// It is started again in so many milliseconds.
    Waiting {
        next_ms: u64,
    },
    /// It is not started again.
    Exited,
}

/// A whole pod, as its agent needs to know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodConfig {
    /// 32 bytes of the host's randomness, in hex, for the guest's generator.
    pub entropy_hex: String,
    /// Wall-clock time at the host, milliseconds since 1970.
    pub now_unix_ms: u64,
    pub hostname: String,
    pub network: Option<NetworkConfig>,
    /// The port that the host forwards visitors to; watched by the agent.
    pub port: Option<u16>,
    pub containers: Vec<ContainerConfig>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    pub address: Ipv4Addr,
    pub prefix_len: u8,
    /// Also where the Interledger port is: `gateway:7768`.
    pub gateway: Ipv4Addr,
    pub nameservers: Vec<Ipv4Addr>,
}

/// The hardware address that goes with an address of a pod. QEMU gives all machines the same, and programs make
/// names of it that they take for unique (UUIDs of version 1). Its first byte says that it is of one interface
/// and that no manufacturer has given it (IEEE 802).
pub fn hardware_address(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x52, 0x54, a, b, c, d]
}

/// One container, with everything that the image and the manifest leave open already decided, except
/// the user's name and the program's path, which only the image's own files can answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerConfig {
    pub id: String,
    /// The virtio-blk serial of its read-only image, `img0`….
    pub image_serial: String,
    /// Program and arguments; never empty.
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Absolute; made if it does not exist.
    pub workdir: String,
    /// As in an image config: empty, `user`, `uid`, `user:group`, `uid:gid`.
    pub user: String,
    /// Zero: as much as the pod has.
    pub memory_bytes: u64,
    /// Processes and threads at the same time. Zero: as many as the pod may have.
    pub max_processes: u32,
    #[serde(default)]
    pub restart: RestartPolicy,
}

/// Bytes as base64 text: program output is not UTF-8.
pub(crate) mod base64_bytes {
    use data_encoding::BASE64;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&BASE64.encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        BASE64
            .decode(text.as_bytes())
            .map_err(serde::de::Error::custom)
    }
}
