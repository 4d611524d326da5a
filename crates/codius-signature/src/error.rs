//! Why a request counts as nobody's.

use thiserror::Error;

/// A request is not signed as it must be. The client can repair all of these but the last two, which
/// mean that what arrived is not what was signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SignatureError {
    /// One of the fields is not there.
    #[error("the request has no `{0}`")]
    Missing(&'static str),
    #[error("`{0}` is too long")]
    TooLong(&'static str),
    /// Not a dictionary of structured fields (RFC 9651), or the member is not of the kind it must be.
    #[error("`{0}` cannot be read")]
    Malformed(&'static str),
    /// There are signatures, but none labelled `sig1`.
    #[error("`{0}` has no member `sig1`")]
    NoLabel(&'static str),
    /// Other components, or in another order, or with parameters.
    #[error("the signature covers other components than it must")]
    Components,
    /// A parameter is missing, of another kind, or one that this profile does not have.
    #[error("the parameter `{0}` of the signature is not as it must be")]
    Parameter(&'static str),
    #[error("the signature has a parameter that this host does not know")]
    UnknownParameter,
    #[error("`Content-Digest` is not that of the body")]
    Digest,
    #[error("the signature is not of this request by this key")]
    Wrong,
}
