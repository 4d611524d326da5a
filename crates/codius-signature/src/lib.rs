//! Who sent a request: HTTP Message Signatures (RFC 9421) with Ed25519, and the digest of the body
//! (RFC 9530). One profile of the two, and nothing beside it:
//!
//! ```text
//! Content-Digest: sha-256=:X48E…=:                                  (if there is a body)
//! Signature-Input: sig1=("@method" "@authority" "@path" "@query" "content-digest");created=1618884473
//!                  ;nonce="…";keyid="…";alg="ed25519";tag="codius-v2"
//! Signature: sig1=:wqcA…=:
//! ```
//!
//! `keyid` is the public key itself, so that nobody has to look it up: a key is a name. What is covered
//! is fixed, in this order; `content-digest` is covered whenever there is a body. A signature over less
//! would be valid for another request, so it is refused.
//!
//! Pure: the moment and the random nonce of a signature are passed in, and whether they are still good
//! is for the caller to say. Signing and checking of signatures is `ring`'s, which the workspace uses
//! already.

#![forbid(unsafe_code)]

mod base;
mod digest;
mod error;
mod key;
mod request;
mod signature;

pub use digest::content_digest;
pub use error::SignatureError;
pub use key::{InvalidKey, Key, KeyId};
pub use request::Request;
pub use signature::{MAX_FIELD_BYTES, Received, SignatureFields, Signed, sign, verify};
