//! Authentication: the first message on every BTP connection (RFC 23, "Authentication").
//!
//! The client sends one Message with three entries: an empty `auth`, then `auth_username` and
//! `auth_token` as text. The server answers with an empty Response, or with an Error F00 and closes.
//! What the two strings mean is the server's business; a pod's own connector treats them as a name
//! and never as proof.

use std::fmt;

use crate::frame::{Frame, RequestId};
use crate::protocol::{ProtocolData, find};

/// Name of the marker entry.
pub const AUTH: &str = "auth";
/// Name of the entry with the user name, empty if there is none.
pub const AUTH_USERNAME: &str = "auth_username";
/// Name of the entry with the token.
pub const AUTH_TOKEN: &str = "auth_token";

/// Longest user name or token in bytes.
const MAX_CREDENTIAL_BYTES: usize = 1024;

/// User name and token of one client. The token is a secret and never printed.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Credentials {
    /// User name; empty if the client has none.
    pub username: String,
    /// Token; may be empty.
    pub token: String,
}

/// Why a first message is no authentication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// The first frame was no Message, or its first entry was not `auth`. The session does not
    /// open; the client is not a BTP client.
    #[error("the first message is not an authentication")]
    NotAuth,
    /// There was no `auth_token` entry. The session does not open; the client must send one.
    #[error("the authentication has no auth_token")]
    NoToken,
    /// User name or token is not UTF-8. The session does not open; the client must change it.
    #[error("user name or token is not UTF-8")]
    NotText,
    /// User name or token is above 1024 bytes. The session does not open; the client must change it.
    #[error("user name or token is too long")]
    TooLong,
}

impl Credentials {
    /// The authentication message, with the same three entries in the same order that
    /// ilp-plugin-btp sends.
    #[must_use]
    pub fn message(&self, request_id: RequestId) -> Frame {
        Frame::Message {
            request_id,
            protocol_data: vec![
                ProtocolData::empty(AUTH),
                ProtocolData::text(AUTH_USERNAME, &self.username),
                ProtocolData::text(AUTH_TOKEN, &self.token),
            ],
        }
    }

    /// Reads the credentials of a client's first frame.
    ///
    /// # Errors
    /// If the frame is no authentication or its strings are unusable.
    pub fn from_frame(frame: &Frame) -> Result<Self, CredentialsError> {
        let Frame::Message { protocol_data, .. } = frame else {
            return Err(CredentialsError::NotAuth);
        };
        if protocol_data.first().is_none_or(|entry| entry.name != AUTH) {
            return Err(CredentialsError::NotAuth);
        }
        let token = find(protocol_data, AUTH_TOKEN).ok_or(CredentialsError::NoToken)?;
        let username = match find(protocol_data, AUTH_USERNAME) {
            Some(entry) => text(entry)?,
            None => String::new(),
        };
        Ok(Self {
            username,
            token: text(token)?,
        })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

fn text(entry: &ProtocolData) -> Result<String, CredentialsError> {
    if entry.data.len() > MAX_CREDENTIAL_BYTES {
        return Err(CredentialsError::TooLong);
    }
    String::from_utf8(entry.data.to_vec()).map_err(|_| CredentialsError::NotText)
}
