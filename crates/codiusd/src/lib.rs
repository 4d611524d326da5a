//! The Codius host daemon: configuration, wiring, HTTP handlers and shutdown.
//!
//! The work is done in the crates below; here their ends are tied together. ARCHITECTURE.md follows
//! one request through them.

#![forbid(unsafe_code)]

mod admin;
mod api;
mod backup;
mod bookkeeper;
mod capacity;
mod clock;
pub mod command;
mod config;
mod daemon;
mod drain;
mod egress;
mod environment;
mod http_error;
mod keep;
mod leases;
mod ledger;
mod listeners;
mod orders;
mod peers;
mod pod_money;
mod price;
mod privileges;
mod progress;
mod refund;
mod routes;
mod rules;
mod self_test;
mod signatures;
#[cfg(any(test, feature = "simulation"))]
pub mod simulation;
mod spsp;
mod standing;
mod till;
