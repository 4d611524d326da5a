//! How a host says no.

use serde::{Deserialize, Serialize};

use crate::Units;

/// Body of every error reply: the three members of version 1, those of RFC 9457 with the same
/// content, and what became of the money.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    #[serde(rename = "statusCode")]
    pub status_code: u16,
    /// Reason phrase of the status.
    pub error: String,
    /// What is wrong; the exact text is part of version 1.
    pub message: String,

    /// RFC 9457: a URI that names the kind of problem. Missing means `about:blank`.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// RFC 9457: what is wrong in this case, for people. May say more than `message`, whose text is
    /// fixed by version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,

    /// Sent back to the payer over the connection it paid by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refunded: Option<Units>,
    /// Not sent back yet; the host has recorded that it owes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owed: Option<Units>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<FailureCause>,
    /// What the reader can do now, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl ErrorBody {
    pub fn new(status: u16, message: impl Into<String>) -> Self {
        let (error, message) = (reason_phrase(status).to_owned(), message.into());
        Self {
            status_code: status,
            kind: None,
            title: Some(error.clone()),
            status: Some(status),
            detail: Some(message.clone()),
            instance: None,
            refunded: None,
            owed: None,
            cause: None,
            next: None,
            error,
            message,
        }
    }

    /// Says what happened in this case, where `message` is a fixed text.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    #[must_use]
    pub fn with_cause(mut self, cause: FailureCause) -> Self {
        self.cause = Some(cause);
        self
    }

    #[must_use]
    pub fn with_next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// Says where the money is; amounts of zero are left out.
    #[must_use]
    pub fn with_money(mut self, refunded: Units, owed: Units) -> Self {
        self.refunded = (!refunded.is_zero()).then_some(refunded);
        self.owed = (!owed.is_zero()).then_some(owed);
        self
    }
}

/// Why a pod did not run, or stopped before its time. For programs; people read the message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FailureCause {
    Known(Trouble),
    /// A cause that this version does not know.
    Other(String),
}

impl From<Trouble> for FailureCause {
    fn from(trouble: Trouble) -> Self {
        Self::Known(trouble)
    }
}

/// The causes that this version knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trouble {
    /// The uploaded manifest is not valid. The uploader changes it.
    ManifestInvalid,
    /// A registry does not know the image, or does not show it to everyone.
    ImageNotFound,
    ImageTooLarge,
    /// The image is broken, not for this platform, or not what its digest says.
    ImageInvalid,
    /// The operator of the host does not run this image or this manifest. Take another host.
    NotAllowed,
    /// A registry does not answer. Try again later.
    RegistryUnavailable,
    /// No room for another pod. Take another host or come back.
    HostFull,
    /// Less came than the price, in the time allowed.
    PaymentTooSmall,
    /// The payer went away while paying.
    PaymentInterrupted,
    /// The token was used for another request already.
    TokenUsed,
    /// A program could not be started, or ended at once.
    ProgramFailed,
    /// No program opened the manifest's port in the time allowed.
    PortNotOpened,
    /// The machine of the pod did not come up, or was lost.
    PodLost,
    /// The host was stopped or killed before the pod ran.
    HostStopped,
    /// The operator empties the host: it sells no more time. Take another host.
    HostDraining,
    /// The host's own fault. Its operator is told.
    HostError,
}

/// Reason phrases of RFC 9110 for the statuses that a host sends, in the spelling of the original.
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Time-out",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        413 => "Request Entity Too Large",
        414 => "Request-URI Too Large",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Entity",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Time-out",
        507 => "Insufficient Storage",
        _ => "Unknown",
    }
}
