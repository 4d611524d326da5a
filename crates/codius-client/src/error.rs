//! What can go wrong between an uploader and a host, and what has become of the money.

use codius_api::ErrorBody;
use ilp_link::{BtpUrlError, ConfigurationError, ConnectError};
use thiserror::Error;

use crate::Receipt;

/// Why a request did not succeed.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The text is not the address of a host. Nothing was sent.
    #[error("{url} is not the address of a host; give it like https://host.example")]
    InvalidHost { url: String },
    /// The host cannot be reached. Nothing was paid.
    #[error("the host {host} does not answer; check the address and that it runs")]
    Unreachable {
        host: String,
        #[source]
        source: reqwest::Error,
    },
    /// The host says no. What was paid and came back is in `paid`.
    #[error("{}", .body.message)]
    Refused { body: Box<ErrorBody>, paid: Receipt },
    /// What came is not what a Codius host says.
    #[error("{host} does not answer like a Codius host: {reason}")]
    NotAHost {
        host: String,
        reason: String,
        paid: Receipt,
    },
    /// It costs more than the caller allows. Nothing was paid.
    #[error("the host asks for {price} units, and at most {limit} may be spent")]
    TooDear { price: u64, limit: u64 },
    /// The text is not the address of an Interledger connection.
    #[error("the Interledger address is not valid")]
    InvalidWallet(#[from] BtpUrlError),
    /// There is no Interledger connection to pay by. Nothing was paid.
    #[error(
        "there is no Interledger connection at {url}; start `codiusd --local` or moneyd, or give --ilp"
    )]
    NoWallet {
        url: String,
        #[source]
        source: ConnectError,
    },
    /// The Interledger connection does not say who we are. Nothing was paid.
    #[error("the Interledger connection at {url} does not work")]
    Wallet {
        url: String,
        #[source]
        source: ConfigurationError,
    },
    /// The payment could not be begun. Nothing was paid.
    #[error("the host's payment address does not answer: {reason}")]
    NoPayment { reason: String },
    /// Contact was lost after money had moved.
    #[error("contact with the host was lost {0}")]
    Lost(Box<PaidThen>),
}

/// What was paid before something went wrong.
#[derive(Debug, Error)]
#[error("after {} units had been paid and {} had come back", .receipt.paid, .receipt.refunded)]
pub struct PaidThen {
    pub receipt: Receipt,
    #[source]
    pub source: reqwest::Error,
}

impl ClientError {
    /// What was paid, and what came back.
    pub fn receipt(&self) -> Receipt {
        match self {
            Self::Refused { paid, .. } | Self::NotAHost { paid, .. } => *paid,
            Self::Lost(lost) => lost.receipt,
            Self::InvalidHost { .. }
            | Self::Unreachable { .. }
            | Self::TooDear { .. }
            | Self::InvalidWallet(_)
            | Self::NoWallet { .. }
            | Self::Wallet { .. }
            | Self::NoPayment { .. } => Receipt::default(),
        }
    }
}
