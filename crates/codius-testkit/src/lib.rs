//! What the tests, the demo and the benchmarks share: a real registry on loopback, and images made
//! from nothing.
//!
//! Everything here is for development. It panics never and reports with `anyhow`, because its users
//! are tests; a program that is missing is an error that names the Debian package.

#![forbid(unsafe_code)]

pub mod image;
pub mod layer;
pub mod registry;

pub use image::{BuiltImage, ImageBuilder, PushedImage, busybox, install_crypto};
pub use layer::{Compression, Entry, Layer};
pub use registry::Registry;
