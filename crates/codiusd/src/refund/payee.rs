//! Asking a payment pointer where its owner is paid (SPSP, RFC 9).
//!
//! The server is a stranger's: no redirects, no proxy, public addresses only (see `pointer.rs`), and a
//! bound for the body and for the time that all of it takes.

use std::{sync::LazyLock, time::Duration};

use codius_api::v2::RefundTo;
use codius_outbound::{PrivateAddress, public_only};
use reqwest::{Client, ClientBuilder, StatusCode, header, redirect};
use serde::Deserialize;
use thiserror::Error;

use super::{
    Destination, InvalidDestination,
    pointer::{PaymentPointer, Reach},
};

/// For a whole query, from the look-up of the name to the last byte of the answer.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of an answer.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// RFC 9, "Query Request"; the first is this version's.
const ACCEPT: &str = "application/spsp4+json, application/spsp+json";

/// Asks payment pointers.
pub(super) struct Payees {
    reach: Reach,
    /// Made when the first pointer is asked. The text says why there is none (no certificates on this
    /// machine).
    public: LazyLock<Result<Client, String>>,
    private: LazyLock<Result<Client, String>>,
    timeout: Duration,
}

/// Why a pointer cannot be paid now. Nothing was paid.
#[derive(Debug, Error)]
pub(super) enum PayeeFault {
    #[error("this host cannot ask payment pointers: {0}")]
    NoClient(String),
    /// Nothing was connected to.
    #[error("its name leads to a private address")]
    Private,
    #[error("it does not answer in time")]
    Slow,
    #[error("it cannot be reached")]
    Unreachable,
    /// Redirects are such an answer, too.
    #[error("it answers with status {0}")]
    Status(StatusCode),
    #[error("its answer has more than {MAX_BODY_BYTES} bytes")]
    TooLong,
    #[error("its answer is no SPSP answer")]
    Unreadable,
    #[error("its answer names no STREAM server: {0}")]
    NoServer(#[from] InvalidDestination),
}

/// What matters of RFC 9's "Response Body".
#[derive(Deserialize)]
struct SpspReply {
    destination_account: String,
    shared_secret: String,
}

fn builder() -> ClientBuilder {
    Client::builder().user_agent(concat!("codiusd/", env!("CARGO_PKG_VERSION")))
}

fn made(builder: ClientBuilder) -> Result<Client, String> {
    builder.build().map_err(|error| error.to_string())
}

impl Payees {
    pub(super) fn new(reach: Reach) -> Self {
        Self {
            reach,
            public: LazyLock::new(|| made(public_only(builder()))),
            private: LazyLock::new(|| {
                made(builder().redirect(redirect::Policy::none()).no_proxy())
            }),
            timeout: QUERY_TIMEOUT,
        }
    }

    pub(super) fn reach(&self) -> Reach {
        self.reach
    }

    pub(super) async fn ask(&self, pointer: &PaymentPointer) -> Result<Destination, PayeeFault> {
        let client = match self.reach {
            Reach::Public => &self.public,
            Reach::Loopback if pointer.is_here() => &self.private,
            Reach::Loopback => &self.public,
            Reach::Any => &self.private,
        };
        let client = client
            .as_ref()
            .map_err(|error| PayeeFault::NoClient(error.clone()))?;
        let request = client
            .get(pointer.url().clone())
            .header(header::ACCEPT, ACCEPT)
            .timeout(self.timeout);
        let mut response = request.send().await.map_err(|error| fault(&error))?;
        if response.status() != StatusCode::OK {
            return Err(PayeeFault::Status(response.status()));
        }
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|error| fault(&error))? {
            if body.len() + piece.len() > MAX_BODY_BYTES {
                return Err(PayeeFault::TooLong);
            }
            body.extend_from_slice(&piece);
        }
        let SpspReply {
            destination_account,
            shared_secret,
        } = serde_json::from_slice(&body).map_err(|_| PayeeFault::Unreadable)?;
        let to = RefundTo {
            destination_account,
            shared_secret,
        };
        Ok(Destination::try_from(&to)?)
    }
}

fn fault(error: &reqwest::Error) -> PayeeFault {
    if PrivateAddress::caused(error) {
        PayeeFault::Private
    } else if error.is_timeout() {
        PayeeFault::Slow
    } else {
        PayeeFault::Unreachable
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use anyhow::Result;
    use axum::{Router, http::header::LOCATION, response::IntoResponse};
    use codius_testkit::install_crypto;
    use tokio::net::TcpListener;

    use super::*;

    /// A server that answers every request the same way, and counts them.
    async fn serve<R: IntoResponse>(
        answer: impl Fn() -> R + Clone + Send + Sync + 'static,
    ) -> Result<(u16, Arc<AtomicUsize>)> {
        install_crypto();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let asked = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&asked);
        let router = Router::new().fallback(move || {
            count.fetch_add(1, Ordering::SeqCst);
            let answer = answer().into_response();
            async move { answer }
        });
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok((port, asked))
    }

    async fn ask(port: u16, reach: Reach) -> Result<Result<Destination, PayeeFault>> {
        let payees = Payees {
            timeout: Duration::from_millis(700),
            ..Payees::new(reach)
        };
        let pointer = PaymentPointer::parse(&format!("http://localhost:{port}/a"), Reach::Any)?;
        Ok(payees.ask(&pointer).await)
    }

    fn answer() -> String {
        let secret = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";
        format!(r#"{{"destination_account":"test.a.b","shared_secret":"{secret}","more":1}}"#)
    }

    #[tokio::test]
    async fn a_pointer_says_where_its_owner_is_paid() -> Result<()> {
        let (port, asked) = serve(answer).await?;
        ask(port, Reach::Loopback).await??;
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        Ok(())
    }

    #[tokio::test]
    async fn a_name_that_leads_to_a_private_address_is_never_asked() -> Result<()> {
        let (port, asked) = serve(answer).await?;
        let fault = ask(port, Reach::Public).await?.unwrap_err();
        assert!(matches!(fault, PayeeFault::Private), "{fault}");
        assert_eq!(asked.load(Ordering::SeqCst), 0);
        Ok(())
    }

    #[tokio::test]
    async fn what_is_no_answer_is_told_and_redirects_are_not_followed() -> Result<()> {
        let (there, reached) = serve(answer).await?;
        let to = format!("http://localhost:{there}/a");
        let redirect = move || (StatusCode::FOUND, [(LOCATION, to.clone())]);
        let (port, _) = serve(redirect).await?;
        let fault = ask(port, Reach::Any).await?.unwrap_err();
        assert!(matches!(fault, PayeeFault::Status(_)), "{fault}");
        assert_eq!(reached.load(Ordering::SeqCst), 0);

        let (port, _) = serve(|| " ".repeat(MAX_BODY_BYTES + 1)).await?;
        let fault = ask(port, Reach::Any).await?.unwrap_err();
        assert!(matches!(fault, PayeeFault::TooLong), "{fault}");

        let (port, _) = serve(|| "{}").await?;
        let fault = ask(port, Reach::Any).await?.unwrap_err();
        assert!(matches!(fault, PayeeFault::Unreadable), "{fault}");

        let (port, _) =
            serve(|| r#"{"destination_account":"test.a","shared_secret":"AAAA"}"#).await?;
        let fault = ask(port, Reach::Any).await?.unwrap_err();
        assert!(matches!(fault, PayeeFault::NoServer(_)), "{fault}");

        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let fault = ask(listener.local_addr()?.port(), Reach::Any).await?;
        assert!(matches!(fault.unwrap_err(), PayeeFault::Slow));
        Ok(())
    }
}
