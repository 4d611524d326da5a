//! The border between the host and the one part of it that has root.
//!
//! ```text
//!  codiusd, without root                           codius-jailer, with root
//!    Request ─▶ socket: one message, descriptors ─▶ Allowance::admit ─▶ Admitted ─▶ (the work)
//!            ◀─ Response, descriptors ◀──────────────┴─ Refusal
//! ```
//!
//! The host is taken for hostile here: it reads what strangers send. So it can only say numbers, and a word out of few:
//! which slot, how large a machine, what kind of disk. It names no path, no program, no user and no firewall rule.
//! Every file comes as a descriptor that the host has opened itself, and is looked at before QEMU gets it.
//!
//! **State of this crate: the border only, and nobody uses it yet.** What is missing until `codiusd` runs without root:
//!
//! 1. The work behind the border is in `codius-microvm` and called directly: `jail/`, `network/`, the pure part of
//!    `machine.rs`, signals (`process.rs`), removal and strays (`remains.rs`). It moves here (and this crate gets `libc`
//!    and its own place in the rule about unsafe code); `codius-microvm` keeps a client that asks.
//! 2. Requests that are not here yet: rules and permits of a pod in numbers (`EgressPolicy` from the configuration that
//!    the part with root reads itself; a permit as ports and ranges), counters, the host's own table, control groups'
//!    report, the trial of KVM.
//! 3. The program: started by `codiusd` before it has threads (a pair of sockets), or by systemd (`codius-jailer.socket`,
//!    whose peer is checked by [`Border::check_peer`]). `codiusd` then becomes the user of the configuration, without
//!    capabilities. The data directory of a host that ran as root is taken over by descriptors (`O_NOFOLLOW`), never by
//!    paths.
//! 4. What else asks for root today: `MicrovmDriver::open`, the lock in `/run/codius`, `sqfstar` as user `nobody`
//!    (`codius-image`), the admin socket's "own user or root", listeners below port 1024 (opened before, or by systemd),
//!    `/proc/PID/io` of machines (their control groups say the same to anybody).
//! 5. The security test's part about `codiusd` itself: user, capabilities, no new privileges.

#![forbid(unsafe_code)]

mod admission;
mod request;
mod serving;
mod socket;

pub use admission::{Admitted, AdmittedDisk, Allowance, Refusal};
pub use request::{DiskKind, LaunchRequest, OriginKind, Request, Response, Signal};
pub use serving::{Done, serve};
pub use socket::{Border, BorderError, MAX_DESCRIPTORS, MAX_MESSAGE_BYTES, Message};
