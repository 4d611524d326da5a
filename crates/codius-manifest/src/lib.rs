//! The v1 manifest: parsing, variables, canonical form, hash and pod spec.
mod hash;
pub use hash::{InvalidHash, ManifestHash};
