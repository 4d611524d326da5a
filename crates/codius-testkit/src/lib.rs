//! What the tests, the demo and the benchmarks share: a real registry on loopback, images made
//! from nothing, programs from npm and the network they run in.
//!
//! Everything here is for development. It panics never and reports with `anyhow`, because its users
//! are tests; a program that is missing is an error that names the Debian package.

#![forbid(unsafe_code)]

pub mod background;
pub mod front;
pub mod image;
pub mod layer;
pub mod moneyd;
pub mod namespace;
pub mod nodejs;
pub mod npm;
pub mod python;
pub mod registry;

pub use background::{Background, Listen};
pub use front::Front;
pub use image::{BuiltImage, ImageBuilder, PushedImage, busybox, install_crypto};
pub use layer::{Compression, Entry, Layer};
pub use moneyd::Moneyd;
pub use namespace::NetworkNamespace;
pub use nodejs::{NODE, node_program};
pub use npm::Packages;
pub use registry::Registry;
