//! Pod lifecycle: the supervisor, and the traits of what runs pods.
//!
//! A [`Driver`] runs pods (`microvm`, later `kubernetes`), [`Egress`] holds what they may reach, [`Images`]
//! brings what they run, and the [`Supervisor`] takes a pod from its spec to a program that answers. No trait has file
//! descriptors or process ids in its types, so that a remote cluster can implement them as well as a
//! process on this machine.

mod admission;
mod containers;
mod driver;
mod egress;
mod exec;
mod images;
mod logs;
mod plan;
mod supervisor;

pub use admission::*;
pub use codius_manifest::Machine;
pub use containers::*;
pub use driver::*;
pub use egress::*;
pub use exec::*;
pub use images::*;
pub use logs::*;
pub use plan::plan;
pub use supervisor::*;
