//! What can be wrong with an upload, for the person who wrote it.

use std::fmt;

use serde::Serialize;

/// One thing that is wrong at one place of a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldError {
    /// Where, from the root of the document: `manifest.containers.0.id`; empty for the root itself.
    pub path: String,
    /// What is wrong, one sentence.
    pub message: String,
    /// What to do about it.
    pub next_step: &'static str,
}

impl FieldError {
    pub(crate) fn new(
        path: impl Into<String>,
        message: impl Into<String>,
        next_step: &'static str,
    ) -> Self {
        Self {
            path: path.into(),
            message: message.into(),
            next_step,
        }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            out.write_str(&self.message)
        } else {
            write!(out, "{}: {}", self.path, self.message)
        }
    }
}

/// Why a document was not accepted. Nothing has been changed anywhere; only its author can repair it.
///
/// The texts are those that the HTTP API of the first Codius host sends as `message`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The body is longer than [`MAX_BODY_BYTES`](crate::MAX_BODY_BYTES). HTTP 413.
    #[error("Payload content length greater than maximum allowed: {limit}")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
        /// The details for the uploader.
        detail: Box<FieldError>,
    },
    /// The body is not JSON, or nested too deep to be a manifest. HTTP 400.
    #[error("Invalid request payload JSON format")]
    Malformed(Box<FieldError>),
    /// The JSON does not have the shape of an upload. HTTP 400. Never empty.
    #[error("Invalid request payload input")]
    Schema(Vec<FieldError>),
    /// The shape is right, but the host cannot run what it says. HTTP 422; the text is the detail's.
    #[error("{}", .0.message)]
    Unprocessable(Box<FieldError>),
}

/// The kinds of [`ManifestError`] that are answered with different HTTP statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorFamily {
    /// 413.
    TooLarge,
    /// 400, `Invalid request payload JSON format`.
    Malformed,
    /// 400, `Invalid request payload input`.
    Schema,
    /// 422.
    Unprocessable,
}

impl ErrorFamily {
    /// The HTTP status that the first Codius host answered with.
    pub const fn http_status(self) -> u16 {
        match self {
            Self::TooLarge => 413,
            Self::Malformed | Self::Schema => 400,
            Self::Unprocessable => 422,
        }
    }
}

impl ManifestError {
    pub(crate) fn unprocessable(
        path: impl Into<String>,
        message: impl Into<String>,
        next_step: &'static str,
    ) -> Self {
        Self::Unprocessable(Box::new(FieldError::new(path, message, next_step)))
    }

    pub const fn family(&self) -> ErrorFamily {
        match self {
            Self::TooLarge { .. } => ErrorFamily::TooLarge,
            Self::Malformed(_) => ErrorFamily::Malformed,
            Self::Schema(_) => ErrorFamily::Schema,
            Self::Unprocessable(_) => ErrorFamily::Unprocessable,
        }
    }

    /// Every known fault with its place and the next step; at least one.
    pub fn details(&self) -> &[FieldError] {
        match self {
            Self::TooLarge { detail, .. }
            | Self::Malformed(detail)
            | Self::Unprocessable(detail) => std::slice::from_ref(detail),
            Self::Schema(details) => details,
        }
    }
}
