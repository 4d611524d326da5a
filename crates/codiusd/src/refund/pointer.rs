//! Where unused money goes: a payment pointer (RFC 26), or the URL that one stands for.
//!
//! Whoever uploads chooses what this host connects to. So a pointer is `https` at a public address; names
//! are looked up when it is asked (`payee.rs`), and only public addresses are connected to.

use std::fmt;

use codius_outbound::is_private_literal;
use url::{Host, Url};

/// The longest text of a pointer, in bytes.
pub(crate) const MAX_POINTER_BYTES: usize = 512;
/// What a pointer without a path stands for.
const DEFAULT_PATH: &str = "/.well-known/pay";

/// Which pointers a host pays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    Public,
    /// Those of this machine besides, also without TLS: in local mode.
    Loopback,
    /// Any `http` or `https` URL, for tests and private networks.
    Any,
}

/// A payment pointer as the URL that is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PaymentPointer(Url);

/// Why a text is no pointer that this host pays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidPointer {
    #[error("it is longer than {MAX_POINTER_BYTES} bytes")]
    TooLong,
    #[error("it is neither a payment pointer ($host/path) nor a URL")]
    NotAPointer,
    #[error("it does not begin with $ or https://")]
    NotSecure,
    #[error("it has a user, a query or a fragment")]
    TooMuch,
    #[error("it is at a private address")]
    Private,
}

impl PaymentPointer {
    pub(crate) fn parse(text: &str, reach: Reach) -> Result<Self, InvalidPointer> {
        if text.len() > MAX_POINTER_BYTES {
            return Err(InvalidPointer::TooLong);
        }
        let short = text.strip_prefix('$');
        let written = match short {
            Some(rest) => format!("https://{rest}"),
            None => text.to_owned(),
        };
        let mut url = Url::parse(&written).map_err(|_| InvalidPointer::NotAPointer)?;
        let here = is_loopback(&url);
        if short.is_some() && here && reach == Reach::Loopback {
            // What is on this machine has no certificate.
            let plain = written.replacen("https", "http", 1);
            url = Url::parse(&plain).map_err(|_| InvalidPointer::NotAPointer)?;
        }
        match (url.scheme(), reach) {
            ("https", _) | ("http", Reach::Any) => {}
            ("http", Reach::Loopback) if here => {}
            _ => return Err(InvalidPointer::NotSecure),
        }
        if url.host().is_none() {
            return Err(InvalidPointer::NotAPointer);
        }
        let bare = url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none();
        if !bare {
            return Err(InvalidPointer::TooMuch);
        }
        let may_be_private = match reach {
            Reach::Public => false,
            Reach::Loopback => here,
            Reach::Any => true,
        };
        if !may_be_private && (here || is_private_literal(&url)) {
            return Err(InvalidPointer::Private);
        }
        if url.path() == "/" {
            url.set_path(DEFAULT_PATH);
        }
        // What was written shorter, such as a name in Unicode, or a pointer without a path.
        if url.as_str().len() > MAX_POINTER_BYTES {
            return Err(InvalidPointer::TooLong);
        }
        Ok(Self(url))
    }

    pub(crate) fn url(&self) -> &Url {
        &self.0
    }

    /// Who is asked: scheme, host and port.
    pub(crate) fn origin(&self) -> String {
        self.0.origin().ascii_serialization()
    }

    /// Whether its host is written as this machine.
    pub(crate) fn is_here(&self) -> bool {
        is_loopback(&self.0)
    }
}

impl fmt::Display for PaymentPointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, reach: Reach) -> Result<String, InvalidPointer> {
        PaymentPointer::parse(text, reach).map(|pointer| pointer.to_string())
    }

    /// RFC 26, "Payment Pointer to URL" and its examples.
    #[test]
    fn a_pointer_stands_for_a_url() {
        for (text, url) in [
            ("$example.com", "https://example.com/.well-known/pay"),
            ("$example.com/", "https://example.com/.well-known/pay"),
            (
                "$example.com/invoices/12345",
                "https://example.com/invoices/12345",
            ),
            (
                "$bob.example.com",
                "https://bob.example.com/.well-known/pay",
            ),
            ("https://example.com/bob", "https://example.com/bob"),
            ("$example.com:8443/bob", "https://example.com:8443/bob"),
        ] {
            assert_eq!(of(text, Reach::Public).as_deref(), Ok(url));
            // What is kept is read again.
            assert_eq!(of(url, Reach::Public).as_deref(), Ok(url));
        }
    }

    #[test]
    fn strangers_name_public_places_over_tls_only() {
        for (text, error) in [
            ("", InvalidPointer::NotAPointer),
            ("$", InvalidPointer::NotAPointer),
            ("example.com", InvalidPointer::NotAPointer),
            ("http://example.com", InvalidPointer::NotSecure),
            ("file:///etc/passwd", InvalidPointer::NotSecure),
            ("$example.com?x=1", InvalidPointer::TooMuch),
            ("$example.com/#x", InvalidPointer::TooMuch),
            ("$user@example.com", InvalidPointer::TooMuch),
            ("$user:secret@example.com", InvalidPointer::TooMuch),
            ("$127.0.0.1", InvalidPointer::Private),
            ("$0x7f.1", InvalidPointer::Private),
            ("$localhost", InvalidPointer::Private),
            ("$10.0.0.1/pay", InvalidPointer::Private),
            ("$169.254.169.254/latest", InvalidPointer::Private),
            ("https://[::1]/", InvalidPointer::Private),
            ("https://[::ffff:10.0.0.1]/", InvalidPointer::Private),
        ] {
            assert_eq!(of(text, Reach::Public), Err(error), "{text}");
        }
        let long = format!("$example.com/{}", "a".repeat(MAX_POINTER_BYTES));
        assert_eq!(of(&long, Reach::Public), Err(InvalidPointer::TooLong));
    }

    #[test]
    fn in_local_mode_this_machine_is_paid_too_and_no_other_private_one() {
        for (text, url) in [
            ("$localhost:3000", "http://localhost:3000/.well-known/pay"),
            ("http://127.0.0.1:3000/a", "http://127.0.0.1:3000/a"),
            ("$[::1]:3000/a", "http://[::1]:3000/a"),
            ("https://localhost/a", "https://localhost/a"),
        ] {
            assert_eq!(of(text, Reach::Loopback).as_deref(), Ok(url), "{text}");
        }
        for text in ["$10.0.0.1", "https://192.168.0.1/"] {
            assert_eq!(of(text, Reach::Loopback), Err(InvalidPointer::Private));
        }
        for text in ["http://10.0.0.1/", "http://localhost.example/"] {
            assert_eq!(of(text, Reach::Loopback), Err(InvalidPointer::NotSecure));
        }
        assert!(of("http://10.0.0.1/", Reach::Any).is_ok());
    }
}
