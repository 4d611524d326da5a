//! The manifest: what an uploader posts, what it is called, and what it makes a host run.
//!
//! ```text
//! codius.json + codiusvars.json ──source::generate──▶ {"manifest": …, "private"?: …}
//!                                                          │ POST
//!   JSON text ──document──▶ value ──schema──▶ Upload ──pod_spec──▶ PodSpec
//!                                              │ canonical form, SHA-256, base 32
//!                                              ▼
//!                                         ManifestHash
//! ```
//!
//! The first Codius was written in JavaScript and its habits are part of the format: the last of two
//! equal keys counts, integer-like keys are enumerated first, text is measured and sorted in UTF-16
//! code units, a port is whatever `Number()` makes of its text. They are gathered in [`javascript`].
//!
//! Everything here is pure: no input or output, no clock, no randomness.
//!
//! Traps:
//! - The canonical form is that of the npm package canonical-json 0.0.4, which escapes more than
//!   RFC 8785 does ([`canonical`]).
//! - The hash is over the manifest *after* the conversions of the schema ([`Upload::parse`]).
//! - The host and the `codius` tool have two different schemas: the tool's allows `description` in
//!   variables and converts nothing ([`validate_generated`]).
#![forbid(unsafe_code)]

pub mod canonical;
mod document;
mod error;
mod generated;
mod hash;
pub mod javascript;
mod machine;
mod manifest;
mod pod_spec;
mod schema;
pub mod source;
mod upload;

pub use canonical::{hash_value, private_var_hash};
pub use document::{MAX_BODY_BYTES, parse_document};
pub use error::{ErrorFamily, FieldError, ManifestError};
pub use generated::validate_generated;
pub use hash::{InvalidHash, ManifestHash};
pub use machine::{InvalidMachineName, Machine, MachineName, Size};
pub use manifest::{Container, Manifest, Private, PrivateVar, RestartPolicy, Var};
pub use pod_spec::{ContainerSpec, MAX_ENVIRONMENT_BYTES, MAX_ENVIRONMENT_STRING_BYTES, PodSpec};
pub use upload::{
    MAX_CONTAINER_ID_BYTES, MAX_CONTAINERS, ManifestVersion, Quoted, Upload, hash_posted, quoted,
};
