//! What can go wrong inside a pull, before it is tied to the reference somebody asked for.

use std::io;

use codius_pod::ImageError;

/// One cause of failure. The variants are those of [`ImageError`], without the reference: several
/// callers who named the same image differently may share one failed job.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The registry has no such image, or shows it to nobody without credentials.
    NotFound(String),
    /// There is no linux/amd64 form.
    WrongPlatform,
    /// A limit of this host is passed.
    TooLarge(String),
    /// The content is broken, not what its digest says, or dangerous.
    Invalid(String),
    /// The registry did not answer, or not in time.
    Unavailable(String),
    /// The operator does not want it here; the text is the rule that says so.
    Denied(String),
    /// There is no room for it now.
    NoRoom(String),
    /// This host's disk or tools failed.
    Host(io::Error),
}

impl Fault {
    pub(crate) fn invalid(reason: impl Into<String>) -> Self {
        Self::Invalid(reason.into())
    }

    pub(crate) fn too_large(reason: impl Into<String>) -> Self {
        Self::TooLarge(reason.into())
    }

    pub(crate) fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable(reason.into())
    }

    /// The public error for the caller who asked with `reference`.
    pub(crate) fn for_reference(&self, reference: &str) -> ImageError {
        let reference = reference.to_owned();
        match self {
            Self::NotFound(reason) => ImageError::NotFound {
                reference,
                reason: reason.clone(),
            },
            Self::WrongPlatform => ImageError::WrongPlatform { reference },
            Self::TooLarge(reason) => ImageError::TooLarge {
                reference,
                reason: reason.clone(),
            },
            Self::Invalid(reason) => ImageError::Invalid {
                reference,
                reason: reason.clone(),
            },
            Self::Unavailable(reason) => ImageError::Unavailable {
                reference,
                reason: reason.clone(),
            },
            Self::Denied(rule) => ImageError::Denied {
                reference,
                rule: rule.clone(),
            },
            Self::NoRoom(reason) => ImageError::NoRoom {
                reference,
                reason: reason.clone(),
            },
            // An io::Error cannot be shared between callers, so each gets one with the same text.
            Self::Host(source) => ImageError::Host {
                reference,
                source: io::Error::new(source.kind(), source.to_string()),
            },
        }
    }
}

/// Only errors of this host's own files and processes are converted with `?`.
impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        // The floor of free space keeps this from happening, unless somebody else fills the disk.
        if matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        ) {
            return Self::NoRoom("this host's disk is full".into());
        }
        Self::Host(error)
    }
}
