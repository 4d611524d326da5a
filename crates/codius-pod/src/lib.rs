//! Pod lifecycle: the supervisor, and the traits of what runs pods.
//!
//! A [`Driver`] runs pods (`microvm`, later `kubernetes`), [`Images`] brings what they run. Neither
//! trait has file descriptors or process ids in its types, so that a remote cluster can implement
//! them as well as a process on this machine.

mod driver;
mod images;

pub use driver::*;
pub use images::*;
