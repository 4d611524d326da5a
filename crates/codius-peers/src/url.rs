//! The name of a peer.

use std::{fmt, net::IpAddr};

use codius_address::is_public;
use url::{Host, Url};

use crate::limits::MAX_PEER_URL_BYTES;

/// Endings of names that mean something in a local network, or nothing at all (RFC 6761, RFC 6762,
/// RFC 8375, and ICANN's `internal`).
const LOCAL_ENDINGS: [&str; 6] = [
    "localhost",
    "local",
    "internal",
    "home.arpa",
    "localdomain",
    "lan",
];
/// Leads to 127.0.0.1; the original uses it in development.
const LOCAL_NAMES: [&str; 1] = ["local.codius.org"];

/// The origin of a host, such as `https://host.example` or `https://host.example:8443`: in lower case,
/// without a slash at the end and without the port that the scheme has anyway. Two peers are the same
/// if this text is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerUrl {
    text: String,
    /// Where the host name begins and ends in `text`.
    name: (usize, usize),
}

/// Which peers a host knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Over TLS, at public addresses: what strangers may name.
    Public,
    /// Any `http` or `https` origin, for tests and private networks.
    Any,
}

/// Why a text names no peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPeerUrl {
    #[error("it is longer than {MAX_PEER_URL_BYTES} bytes")]
    TooLong,
    #[error("it is no URL with a host")]
    NotAUrl,
    #[error("it does not begin with https://")]
    NotSecure,
    /// User, path, query or fragment.
    #[error("it has more than scheme, host and port")]
    NotAnOrigin,
    #[error("its name or address is that of a local network")]
    Local,
}

impl PeerUrl {
    /// Reads a text that a stranger may have written. Names are not looked up: whether one leads to a
    /// public address is seen when it is connected to.
    pub fn parse(text: &str, reach: Reach) -> Result<Self, InvalidPeerUrl> {
        if text.len() > MAX_PEER_URL_BYTES {
            return Err(InvalidPeerUrl::TooLong);
        }
        let url = Url::parse(text).map_err(|_| InvalidPeerUrl::NotAUrl)?;
        match (url.scheme(), reach) {
            ("https", _) | ("http", Reach::Any) => {}
            _ => return Err(InvalidPeerUrl::NotSecure),
        }
        let host = url.host().ok_or(InvalidPeerUrl::NotAUrl)?;
        // `?` and `#` with nothing behind them are seen, too; an empty user is not, and is dropped.
        let bare = url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none();
        if !bare {
            return Err(InvalidPeerUrl::NotAnOrigin);
        }
        if reach == Reach::Public && is_local(&host) {
            return Err(InvalidPeerUrl::Local);
        }
        let text = url.as_str().trim_end_matches('/').to_owned();
        if text.len() > MAX_PEER_URL_BYTES {
            // What was written shorter, such as a name in Unicode.
            return Err(InvalidPeerUrl::TooLong);
        }
        let name_from = url.scheme().len() + "://".len();
        let name_len = url.host_str().map_or(0, str::len);
        Ok(Self {
            text,
            name: (name_from, name_from + name_len),
        })
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The host name or address, without a port.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.text[self.name.0..self.name.1]
    }
}

impl fmt::Display for PeerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn is_local(host: &Host<&str>) -> bool {
    match host {
        Host::Ipv4(address) => !is_public(IpAddr::V4(*address)),
        Host::Ipv6(address) => !is_public(IpAddr::V6(*address)),
        Host::Domain(name) => {
            // A dot at the end is a second way to write the same name.
            let is_single = !name.trim_end_matches('.').contains('.');
            let ends_local = LOCAL_ENDINGS.iter().any(|ending| {
                name.strip_suffix(ending)
                    .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            });
            is_single || name.ends_with('.') || ends_local || LOCAL_NAMES.contains(name)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_kept_in_one_form() {
        for (text, kept, name) in [
            (
                "https://host.example",
                "https://host.example",
                "host.example",
            ),
            (
                "https://host.example/",
                "https://host.example",
                "host.example",
            ),
            (
                "HTTPS://Host.Example:443",
                "https://host.example",
                "host.example",
            ),
            (
                "https://host.example:8443",
                "https://host.example:8443",
                "host.example",
            ),
            ("https://1.1.1.1", "https://1.1.1.1", "1.1.1.1"),
            (
                "https://[2606:4700::1111]:1",
                "https://[2606:4700::1111]:1",
                "[2606:4700::1111]",
            ),
            (
                "https://bücher.example",
                "https://xn--bcher-kva.example",
                "xn--bcher-kva.example",
            ),
        ] {
            let peer = PeerUrl::parse(text, Reach::Public).expect(text);
            assert_eq!((peer.as_str(), peer.name()), (kept, name));
        }
    }

    #[test]
    fn what_is_not_the_origin_of_a_public_host_is_refused() {
        use InvalidPeerUrl::{Local, NotAUrl, NotAnOrigin, NotSecure, TooLong};
        let long = format!("https://{}.example", "a".repeat(MAX_PEER_URL_BYTES));
        for (text, error) in [
            ("", NotAUrl),
            ("host.example", NotAUrl),
            ("https://", NotAUrl),
            ("https://host.example:99999", NotAUrl),
            ("http://host.example", NotSecure),
            ("ftp://host.example", NotSecure),
            ("javascript:alert(1)", NotSecure),
            ("file:///etc/passwd", NotSecure),
            ("https://host.example/path", NotAnOrigin),
            ("https://host.example/?", NotAnOrigin),
            ("https://host.example#", NotAnOrigin),
            ("https://user@host.example", NotAnOrigin),
            ("https://:secret@host.example", NotAnOrigin),
            ("https://localhost", Local),
            ("https://a.localhost:3000", Local),
            ("https://LOCALHOST.", Local),
            ("https://local.codius.org", Local),
            ("https://printer.local", Local),
            ("https://metadata.google.internal", Local),
            ("https://intranet", Local),
            ("https://host.example.", Local),
            ("https://127.0.0.1", Local),
            ("https://0.0.0.0", Local),
            ("https://2130706433", Local),
            ("https://0x7f.1", Local),
            ("https://10.0.0.1:443", Local),
            ("https://169.254.169.254", Local),
            ("https://[::1]", Local),
            ("https://[::ffff:192.168.1.1]", Local),
            (long.as_str(), TooLong),
        ] {
            assert_eq!(PeerUrl::parse(text, Reach::Public), Err(error), "{text}");
        }
    }

    #[test]
    fn a_private_network_may_use_any_origin_and_nothing_else() {
        for text in [
            "http://localhost:3000",
            "https://10.0.0.1",
            "http://[::1]:80",
        ] {
            assert!(PeerUrl::parse(text, Reach::Any).is_ok(), "{text}");
        }
        for text in [
            "ftp://localhost",
            "http://localhost/x",
            "http://u@localhost",
        ] {
            assert!(PeerUrl::parse(text, Reach::Any).is_err(), "{text}");
        }
    }
}
