//! Addresses of BTP servers: `btp+ws://<user name>:<token>@<host>:<port>/<path>`, or `btp+wss` for a
//! connection over TLS.

use std::fmt;
use std::str::FromStr;

use ilp_btp::Credentials;
use url::Url;

/// Where a BTP server is, and the credentials for it. The token is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct BtpUrl {
    /// The WebSocket URL, without credentials: they go into the BTP session, never into HTTP.
    websocket: Url,
    credentials: Credentials,
}

/// Why a text is no usable BTP URL. Whoever configured it has to change it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BtpUrlError {
    /// It is no URL at all.
    #[error("not a URL")]
    Url(#[from] url::ParseError),
    /// The scheme is not one of BTP's.
    #[error("scheme {0:?} is neither btp+ws nor btp+wss")]
    Scheme(String),
    /// There is no host.
    #[error("URL names no host")]
    NoHost,
    /// User name or token is not UTF-8 behind its percent signs.
    #[error("credentials are not UTF-8")]
    Credentials,
}

impl BtpUrl {
    /// The same server with other credentials.
    #[must_use]
    pub fn with_credentials(mut self, credentials: Credentials) -> Self {
        self.credentials = credentials;
        self
    }

    /// User name and token.
    #[must_use]
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// Host and port to connect to.
    #[must_use]
    pub fn host_and_port(&self) -> (&str, u16) {
        let host = self.websocket.host_str().unwrap_or_default();
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        (host, self.websocket.port_or_known_default().unwrap_or(80))
    }

    /// Whether the connection is over TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.websocket.scheme() == "wss"
    }

    pub(crate) fn websocket(&self) -> &str {
        self.websocket.as_str()
    }
}

impl FromStr for BtpUrl {
    type Err = BtpUrlError;

    fn from_str(text: &str) -> Result<Self, BtpUrlError> {
        let text = text.trim();
        let mut websocket = Url::parse(text.strip_prefix("btp+").unwrap_or(text))?;
        match websocket.scheme() {
            "ws" | "wss" => {}
            other => return Err(BtpUrlError::Scheme(other.to_owned())),
        }
        if websocket.host_str().is_none_or(str::is_empty) {
            return Err(BtpUrlError::NoHost);
        }
        let credentials = Credentials {
            username: percent_decoded(websocket.username())?,
            token: percent_decoded(websocket.password().unwrap_or_default())?,
        };
        // Cannot fail: a `ws` URL with a host may have, or not have, credentials.
        let _ = websocket.set_username("");
        let _ = websocket.set_password(None);
        websocket.set_fragment(None);
        Ok(Self {
            websocket,
            credentials,
        })
    }
}

impl fmt::Display for BtpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "btp+{}", self.websocket)
    }
}

impl fmt::Debug for BtpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Undoes percent encoding. A percent sign without two hexadecimal digits stands for itself.
fn percent_decoded(text: &str) -> Result<String, BtpUrlError> {
    let hex = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let high = bytes.get(at + 1).copied().and_then(hex);
        let low = bytes.get(at + 2).copied().and_then(hex);
        match (byte, high, low) {
            (b'%', Some(high), Some(low)) => {
                decoded.push(high * 16 + low);
                at += 3;
            }
            _ => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8(decoded).map_err(|_| BtpUrlError::Credentials)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_leave_the_url() {
        let url: BtpUrl = "btp+ws://al%3Aice:s%40cret@localhost:7768/path"
            .parse()
            .unwrap();
        assert_eq!(url.credentials().username, "al:ice");
        assert_eq!(url.credentials().token, "s@cret");
        assert_eq!(url.host_and_port(), ("localhost", 7768));
        assert_eq!(url.to_string(), "btp+ws://localhost:7768/path");
        assert!(!format!("{url:?}").contains("cret"));
    }

    #[test]
    fn the_default_of_ilp_plugin_is_understood() {
        let url: BtpUrl = "btp+ws://:abcdef0123456789@localhost:7768".parse().unwrap();
        assert_eq!(url.credentials().username, "");
        assert_eq!(url.credentials().token, "abcdef0123456789");
        let url: BtpUrl = "btp+ws://[::1]".parse().unwrap();
        assert_eq!(url.host_and_port(), ("::1", 80));
        let url: BtpUrl = "btp+wss://host.example".parse().unwrap();
        assert_eq!(url.host_and_port(), ("host.example", 443));
        assert!(url.is_tls());
    }

    #[test]
    fn other_urls_are_refused() {
        for (text, error) in [
            ("http://host", BtpUrlError::Scheme("http".into())),
            ("btp+ws://%ff@host", BtpUrlError::Credentials),
        ] {
            assert_eq!(text.parse::<BtpUrl>(), Err(error), "{text}");
        }
        assert!(matches!(
            "localhost".parse::<BtpUrl>(),
            Err(BtpUrlError::Url(_))
        ));
    }
}
