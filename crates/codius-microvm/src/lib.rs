//! Pods as QEMU microVMs: process, network and guest channel.
//!
//! [`MicrovmDriver`] runs each pod as one QEMU process in a network namespace of its own:
//!
//! ```text
//!            host                     │ namespace cd<instance>-<slot>      │ guest
//!   codiusd ── route b+4/30 ── veth ──┼─ up0 ── firewall ── tap0 (QEMU) ───┼─ eth0 (b+6)
//!   listener of gateway:7768 ─────────┼───────────────────▲ (b+5)          │
//!   channel ── unix socket ───────────┼──────── virtio-serial ─────────────┼─ agent (PID 1)
//! ```
//!
//! States of a pod, by what is durable (`records/<hash>.json`):
//!
//! ```text
//!  (nothing) ─▶ Starting ─▶ Running ─▶ (nothing)
//!                  └───────────┴── a dead daemon, a dead VM: found by name and removed
//! ```
//!
//! Traps:
//! * The virtual machine outlives this process. Whatever is made gets a name that holds the instance and
//!   the slot, and its record is written first, so that a later process finds it.
//! * A guest is never waited for. Each of its steps has a deadline of this side, and the end is a SIGKILL.
//! * A network namespace lives while a socket in it is open: connections given away end with the pod.
//! * A pod is the clone of a template, or boots; everything else is the same for both (`start.rs`).
//! * QEMU runs in a cell (`jail`) and gets its files as descriptors: no path of the host exists for it.

mod acceleration;
mod channel;
mod config;
mod configuration;
mod driver;
mod error;
mod footprint;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod hearing;
mod intake;
mod interledger;
mod jail;
mod limits;
mod machine;
mod network;
mod pod;
mod process;
mod programs;
mod qmp;
mod record;
mod remains;
mod sessions;
mod start;
mod template;
mod usage;

pub use config::{AcceleratorChoice, Instance, InvalidInstance, MicrovmConfig};
pub use driver::MicrovmDriver;
pub use error::OpenError;
pub use footprint::unfit;
pub use network::{InvalidPool, Ipv4Pool};
pub use remains::Swept;
