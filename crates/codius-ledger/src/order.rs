//! One paid request.
//!
//! ```text
//!  Open ──complete──▶ Done (its response is given again to whoever repeats the request)
//!    └─────fail─────▶ Failed (the money is refunded or owed; the token is spent)
//! ```
//!
//! A version 1 client chooses a `Pay-Token` for each order. The original let a token that was paid
//! once be used for ever; here a token is bound to one request, pays once, and a repeat gets the
//! stored answer without anything happening again.

use std::{fmt, str::FromStr};

use codius_manifest::ManifestHash;
use ring::digest::{Context, SHA256, digest};
use serde::{Deserialize, Serialize};

use crate::Seconds;

/// SHA-256 of the pay token: the token itself is a secret of its payer and is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OrderId([u8; 32]);

/// The text is not 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an order id")]
pub struct InvalidOrderId;

impl OrderId {
    pub fn of_token(token: &[u8]) -> Self {
        Self(bytes_of(digest(&SHA256, token)))
    }

    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for OrderId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl FromStr for OrderId {
    type Err = InvalidOrderId;

    fn from_str(text: &str) -> Result<Self, InvalidOrderId> {
        if text.len() != 64 {
            return Err(InvalidOrderId);
        }
        let bytes = data_encoding::HEXLOWER
            .decode(text.as_bytes())
            .map_err(|_| InvalidOrderId)?;
        Ok(Self(bytes.try_into().map_err(|_| InvalidOrderId)?))
    }
}

/// SHA-256 of what a request asks for, so that a token cannot be moved to another request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestDigest([u8; 32]);

impl RequestDigest {
    pub fn of(method: &str, path: &str, query: &str, body: &[u8]) -> Self {
        let mut context = Context::new(&SHA256);
        for part in [method.as_bytes(), path.as_bytes(), query.as_bytes(), body] {
            // With its length before it, so that no two requests make the same bytes.
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        Self(bytes_of(context.finish()))
    }

    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

fn bytes_of(digest: ring::digest::Digest) -> [u8; 32] {
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// One paid request, named by its pay token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub id: OrderId,
    pub request: RequestDigest,
    /// What is uploaded or extended.
    pub hash: ManifestHash,
    pub kind: OrderKind,
    pub duration: Seconds,
    /// Smallest units; fixed when the order was opened.
    pub price: u64,
    pub state: OrderState,
    /// Where its money came from, if known: for refunds.
    pub payer: Option<String>,
    pub created_at_unix_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderKind {
    Upload,
    Extend,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderState {
    Open,
    Done { response: StoredResponse },
    Failed { response: StoredResponse },
}

/// The answer of the host to an order, as it was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredResponse {
    pub status: u16,
    /// JSON text.
    pub body: String,
}

/// What to do with a request whose token is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat<'a> {
    /// It is being paid or carried out: go on or wait.
    Open,
    /// It was answered: give the answer again.
    Answered(&'a StoredResponse),
}

/// Why an order cannot take a step. Nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// The token belongs to another request. Its payer takes a new token.
    #[error("the pay token was used for another request")]
    OtherRequest,
    /// It has its answer. The caller is wrong.
    #[error("the order was answered already")]
    Answered,
}

impl Order {
    /// A request comes with this order's token.
    pub fn repeat(&self, request: &RequestDigest) -> Result<Repeat<'_>, OrderError> {
        if self.request != *request {
            return Err(OrderError::OtherRequest);
        }
        match &self.state {
            OrderState::Open => Ok(Repeat::Open),
            OrderState::Done { response } | OrderState::Failed { response } => {
                Ok(Repeat::Answered(response))
            }
        }
    }

    pub fn complete(&mut self, response: StoredResponse) -> Result<(), OrderError> {
        self.answer(OrderState::Done { response })
    }

    pub fn fail(&mut self, response: StoredResponse) -> Result<(), OrderError> {
        self.answer(OrderState::Failed { response })
    }

    pub fn is_open(&self) -> bool {
        matches!(self.state, OrderState::Open)
    }

    fn answer(&mut self, state: OrderState) -> Result<(), OrderError> {
        if !self.is_open() {
            return Err(OrderError::Answered);
        }
        self.state = state;
        Ok(())
    }
}

impl OrderKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Upload => "upload",
            Self::Extend => "extend",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(request: RequestDigest) -> Order {
        Order {
            id: OrderId::of_token(b"0123456789abcdef"),
            request,
            hash: ManifestHash::from_bytes([1; 32]),
            kind: OrderKind::Upload,
            duration: Seconds(600),
            price: 2284,
            state: OrderState::Open,
            payer: None,
            created_at_unix_ms: 0,
        }
    }

    #[test]
    fn a_token_pays_for_one_request_once() {
        let request = RequestDigest::of("POST", "/pods", "duration=600", b"{}");
        let mut order = order(request);
        assert_eq!(order.repeat(&request), Ok(Repeat::Open));
        let response = StoredResponse {
            status: 200,
            body: "{}".into(),
        };
        order.complete(response.clone()).unwrap();
        assert_eq!(order.repeat(&request), Ok(Repeat::Answered(&response)));
        assert_eq!(order.complete(response.clone()), Err(OrderError::Answered));
        assert_eq!(order.fail(response), Err(OrderError::Answered));
        for other in [
            RequestDigest::of("PUT", "/pods", "duration=600", b"{}"),
            RequestDigest::of("POST", "/podsd", "uration=600", b"{}"),
            RequestDigest::of("POST", "/pods", "duration=6000", b"{}"),
            RequestDigest::of("POST", "/pods", "duration=600", b"{ }"),
        ] {
            assert_eq!(order.repeat(&other), Err(OrderError::OtherRequest));
        }
    }

    #[test]
    fn a_failed_order_stays_failed() {
        let request = RequestDigest::of("PUT", "/pods", "", b"");
        let mut order = order(request);
        let response = StoredResponse {
            status: 500,
            body: "{}".into(),
        };
        order.fail(response.clone()).unwrap();
        assert_eq!(order.repeat(&request), Ok(Repeat::Answered(&response)));
        assert_eq!(order.complete(response), Err(OrderError::Answered));
    }

    /// SHA-256 of "abc": FIPS 180-2, appendix B.1.
    #[test]
    fn an_id_is_the_hash_of_the_token() {
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(OrderId::of_token(b"abc").to_string(), text);
        assert_eq!(text.parse(), Ok(OrderId::of_token(b"abc")));
        assert_eq!(text.to_uppercase().parse::<OrderId>(), Err(InvalidOrderId));
        assert_eq!("".parse::<OrderId>(), Err(InvalidOrderId));
    }
}
