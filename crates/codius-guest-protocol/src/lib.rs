//! What the host and the guest agent of a pod say to each other.
//!
//! One virtio-serial port carries one JSON object a line in each direction. A line is at most
//! [`MAX_LINE_BYTES`] long; JSON escapes line feeds, so a reader that has lost its place (because the
//! other side was killed in the middle of a line) finds it again at the next one. That is the whole
//! resynchronisation:
//!
//! ```text
//! host connects ──▶ "\n"                      ends whatever half line a dead host left behind
//!               ──▶ Attach { nonce }          repeated until answered
//!  drops all lines until
//!               ◀── Hello { nonce, … }        this nonce: the stream is in step again
//!               ──▶ Warm, ◀── Warmed          only to a machine that becomes a template
//!               ──▶ Configure { … }           once in the life of a pod; ignored afterwards
//!               ◀── Started, Log, Listening, Standing, Exited, … in any order
//!               ──▶ Exec, ◀── Exec            sessions beside the containers' own programs (exec)
//!               ──▶ Stop { grace_ms }
//!               ◀── Stopped                   file systems are synced: the host may kill the VM
//! ```
//!
//! The agent says nothing before the first `Attach`, and nothing to a new host before its `Attach`. A
//! `Hello` is followed by every lasting state once more (`Started`, `Listening` or
//! `ListeningOnLoopbackOnly`, `Standing`, `Failed`, `Stopped`), because the host may have missed it; exits
//! are in the `Hello` itself. So these messages are repeatable, and an `Attach` that is repeated because the
//! answer was slow gets a `Hello` each time. It ends all sessions of `exec`: they were another host's.
//!
//! A container's `Exited` comes after everything that it wrote. While a host is attached and reads,
//! output waits in the container's pipe and none is lost; otherwise the agent keeps the latest and
//! counts what it dropped in `LogDropped`.
//!
//! Everything that the guest says is hostile input to the host: it is parsed once into these types,
//! and the lengths named here are enforced before anything is allocated.

mod exec;
mod line;
mod message;

pub use exec::*;
pub use line::{Line, LineReader, encode};
pub use message::*;

/// The name of the virtio-serial port, as the guest finds it in `/sys/class/virtio-ports/*/name`.
pub const PORT_NAME: &str = "org.codius.agent";
/// The version of this protocol; a host refuses an agent of another one.
pub const PROTOCOL_VERSION: u32 = 1;
/// The longest line, without its line feed. A `Configure` holds a whole pod (the manifest is at most
/// 1 MiB and appears in each container's environment once).
pub const MAX_LINE_BYTES: usize = 32 * 1024 * 1024;
/// The longest line that the host accepts from a guest.
pub const MAX_GUEST_LINE_BYTES: usize = 64 * 1024;
/// The most program output in one `Log`.
pub const MAX_LOG_BYTES: usize = 16 * 1024;
/// The most containers in a pod (each distinct image is one of at most 24 virtio-mmio devices).
pub const MAX_CONTAINERS: usize = 16;
/// The serial number of the scratch disk; images are `img0`, `img1`, ….
pub const SCRATCH_SERIAL: &str = "scratch";
/// Where the volume that all containers of a pod share is mounted in each of them.
pub const POD_VOLUME: &str = "/pod";
/// The port at which programs find Interledger (`localhost:7768`), and at which the pod's gateway
/// offers it to the agent.
pub const INTERLEDGER_PORT: u16 = 7768;
