//! Kills a real host with real pods under load, and checks its books, its machines and whatever it has
//! made on this computer, from the outside.
//!
//! ```text
//! plan (from a seed) ──▶ blow ──▶ host, machines, disk
//!                         │                ▲
//!                         ▼                │ uploads, payments, stops, visits
//!                    start again        clients ──▶ tally of what each knows
//!                         │
//!                         ▼
//!              books (SQL), process table, files, networks ──▶ checks ──▶ violations
//! ```
//! What decides is plain: [`plan`], [`check`], [`tally`]. The rest looks and acts.
//!
//! Traps:
//! - Processes are no clockwork: the same seed gives the same blows, not the same run.
//! - A client that has lost an answer knows less than the host. Its tally says so, and the check allows
//!   exactly that much.

#![forbid(unsafe_code)]

mod board;
pub mod books;
pub mod check;
mod client;
mod disk;
mod host;
pub mod machines;
pub mod plan;
mod purse;
mod run;
pub mod tally;

pub use run::{Report, Settings, Violation, run};
