//! The Codius host daemon: configuration, wiring, HTTP handlers and shutdown.
//!
//! The work is done in the crates below; here their ends are tied together. ARCHITECTURE.md follows
//! one request through them.

#![forbid(unsafe_code)]

mod api;
mod clock;
pub mod command;
mod config;
mod daemon;
mod http_error;
mod leases;
mod orders;
mod pod_money;
mod progress;
mod refund;
mod routes;
mod signatures;
mod spsp;
mod standing;
mod till;
