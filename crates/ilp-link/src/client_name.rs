//! Which sub-account a client gets.
//!
//! The listener that a client came through says whose account it is. What the client calls itself
//! only selects a stable segment below that account, so that a program finds its address again
//! after it reconnects. User names and tokens have separate name spaces: nobody can take another
//! client's place by using what is visible in its address as a user name.

use std::fmt;
use std::sync::Arc;

use data_encoding::BASE64URL_NOPAD;
use ilp_btp::Credentials;
use ilp_packet::Address;
use ring::digest::{SHA256, digest};

/// Longest user name that appears as it is in an address.
const MAX_PLAIN_USERNAME_BYTES: usize = 64;

/// One address segment made from a client's credentials.
///
/// | credentials | segment |
/// | --- | --- |
/// | user name that can be a segment | `u-<user name>` |
/// | any other user name | `h-<base64url(sha256(user name))>` |
/// | only a token | `t-<base64url(sha256(token))>` |
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ClientName(Arc<str>);

impl ClientName {
    /// The name of the client with these credentials.
    #[must_use]
    pub fn from_credentials(credentials: &Credentials) -> Self {
        let username = credentials.username.as_str();
        let segment = if username.is_empty() {
            format!("t-{}", hashed(&credentials.token))
        } else if username.len() <= MAX_PLAIN_USERNAME_BYTES && Address::is_segment(username) {
            format!("u-{username}")
        } else {
            format!("h-{}", hashed(username))
        };
        Self(segment.into())
    }

    /// The segment.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn segment(&self) -> Arc<str> {
        self.0.clone()
    }
}

impl fmt::Display for ClientName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ClientName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn hashed(text: &str) -> String {
    BASE64URL_NOPAD.encode(digest(&SHA256, text.as_bytes()).as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(username: &str, token: &str) -> String {
        let credentials = Credentials {
            username: username.into(),
            token: token.into(),
        };
        ClientName::from_credentials(&credentials)
            .as_str()
            .to_owned()
    }

    #[test]
    fn a_token_alone_gives_its_hash() {
        // sha256("") and sha256("abc"), FIPS 180-2.
        assert_eq!(
            name("", ""),
            "t-47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU"
        );
        assert_eq!(
            name("", "abc"),
            "t-ungWv48Bz-pBQUDeXa4iI7ADYaOWF3qctBD_YfIAFa0"
        );
    }

    #[test]
    fn a_user_name_stands_for_itself_whatever_the_token_is() {
        assert_eq!(name("alice", "one"), "u-alice");
        assert_eq!(name("alice", "two"), "u-alice");
    }

    #[test]
    fn a_user_name_cannot_take_the_place_of_a_token() {
        let victim = name("", "secret");
        assert_ne!(name(&victim, "x"), victim);
        assert_ne!(name(victim.trim_start_matches("t-"), "x"), victim);
    }

    #[test]
    fn user_names_that_are_no_segment_are_hashed() {
        for odd in ["a.b", "alice@example.com", "ä", &"x".repeat(65)] {
            let segment = name(odd, "");
            assert!(segment.starts_with("h-"), "{segment}");
            assert!(Address::is_segment(&segment), "{segment}");
        }
    }
}
