//! Why a driver cannot be opened.

use std::{io, path::PathBuf};

use thiserror::Error;

/// Nothing was started; the operator puts it right.
#[derive(Debug, Error)]
pub enum OpenError {
    /// A program of the distribution is not installed.
    #[error("{program} is not installed; install the Debian package {package}")]
    MissingProgram {
        program: &'static str,
        package: &'static str,
    },
    /// The guest's kernel or initramfs is not there, or other users may not read it.
    #[error("guest file {path} cannot be used: {reason}")]
    GuestFile { path: PathBuf, reason: String },
    /// Namespaces, tap devices and firewall rules need root.
    #[error("the microvm driver has to run as root")]
    NotRoot,
    /// A range is too small, or not usable for pods.
    #[error("the pod network {pool} cannot be used: {reason}")]
    Pool { pool: String, reason: String },
    /// Another running host uses the same instance name, or the same state directory.
    #[error("instance {instance} is in use by another host (state in {state_dir})")]
    InUse { instance: String, state_dir: String },
    /// KVM was demanded and does not work here.
    #[error("KVM does not work on this machine: {reason}")]
    Kvm { reason: String },
    /// This host's own disk, network or tools.
    #[error("the host could not {doing}")]
    Host {
        doing: String,
        #[source]
        source: io::Error,
    },
}

impl OpenError {
    pub(crate) fn host(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Host { doing, source }
    }
}
