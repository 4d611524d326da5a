//! HTTP to hosts that strangers have named: public addresses only, unless the operator says otherwise.
//!
//! Names are resolved once, here, and only what passes is connected to; there is no second look-up
//! that could answer differently. Traps: an address that is written out is never looked up, so
//! [`is_private_literal`] has to be asked besides; a proxy would look names up by itself, and a
//! redirect names another host, so the client of [`public_only`] has neither.

#![forbid(unsafe_code)]

use std::{
    error::Error as StdError,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use codius_address::is_public;
use reqwest::{
    ClientBuilder,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect,
};
use url::{Host, Url};

/// The name or address belongs to a private network. Nothing was connected to.
#[derive(Debug)]
pub struct PrivateAddress;

impl fmt::Display for PrivateAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it is not at a public address")
    }
}

impl StdError for PrivateAddress {}

impl PrivateAddress {
    /// Whether this is why something failed.
    pub fn caused(error: &(dyn StdError + 'static)) -> bool {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if error.is::<Self>() {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

/// Resolves names with the system's resolver and keeps public addresses only.
#[derive(Debug)]
pub struct PublicResolver;

impl Resolve for PublicResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let name = name.as_str().to_owned();
        Box::pin(async move {
            let all: Vec<SocketAddr> = tokio::net::lookup_host((name, 0)).await?.collect();
            let public: Vec<SocketAddr> = all
                .iter()
                .copied()
                .filter(|address| is_public(address.ip()))
                .collect();
            if public.is_empty() && !all.is_empty() {
                return Err(Box::new(PrivateAddress) as Box<dyn StdError + Send + Sync>);
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

/// A client that reaches what names lead to on the public internet, and goes nowhere else by itself.
pub fn public_only(builder: ClientBuilder) -> ClientBuilder {
    builder
        .redirect(redirect::Policy::none())
        .no_proxy()
        .dns_resolver(Arc::new(PublicResolver))
}

/// Whether a URL's host is written as an address that is not public.
#[must_use]
pub fn is_private_literal(url: &Url) -> bool {
    let address = match url.host() {
        Some(Host::Ipv4(address)) => IpAddr::V4(address),
        Some(Host::Ipv6(address)) => IpAddr::V6(address),
        Some(Host::Domain(_)) | None => return false,
    };
    !is_public(address)
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, time::Duration};

    use anyhow::Result;

    use super::*;

    fn builder() -> ClientBuilder {
        let _ = rustls::crypto::ring::default_provider().install_default();
        reqwest::Client::builder().timeout(Duration::from_secs(5))
    }

    fn connected(listener: &TcpListener) -> bool {
        listener.accept().is_ok()
    }

    #[tokio::test]
    async fn a_name_that_leads_to_a_private_address_is_not_connected_to() -> Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let url = format!("http://localhost:{}/", listener.local_addr()?.port());

        let error = public_only(builder()).build()?.get(&url).send().await;
        let error = error.expect_err("localhost is private");
        assert!(PrivateAddress::caused(&error), "{error:?}");
        assert!(!connected(&listener));

        // The same without the resolver: the listener would have been reached.
        let reached = builder().timeout(Duration::from_millis(300)).build()?;
        let error = reached.get(&url).send().await.expect_err("nobody answers");
        assert!(!PrivateAddress::caused(&error));
        assert!(connected(&listener));
        Ok(())
    }

    #[test]
    fn written_addresses_are_judged_without_a_look_up() {
        for (text, private) in [
            ("https://127.0.0.1/", true),
            ("https://0x7f.1/", true),
            ("https://[::ffff:10.0.0.1]/", true),
            ("https://1.1.1.1/", false),
            ("https://host.example/", false),
        ] {
            let url = Url::parse(text).expect(text);
            assert_eq!(is_private_literal(&url), private, "{text}");
        }
    }
}
