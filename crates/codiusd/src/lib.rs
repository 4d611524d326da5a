//! The Codius host daemon.
