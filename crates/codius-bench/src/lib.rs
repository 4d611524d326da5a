//! What the benchmark programs share: WebSocket and BTP by hand, on plain sockets, and a look at
//! processes from outside.
//!
//! A load generator must cost much less than what it measures, so nothing here is general: frames
//! are made once and patched, one thread serves all sockets, and whatever is unexpected ends the run.

#![forbid(unsafe_code)]

pub mod connection;
pub mod frames;
pub mod process;
pub mod statistics;
pub mod tap;
pub mod websocket;
