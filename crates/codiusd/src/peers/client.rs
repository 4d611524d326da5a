//! Speaking to peers: HTTP to hosts that strangers have named.
//!
//! No redirects, no proxy, public addresses only (unless the operator allows others), and a bound for
//! every body and for the time that all of it takes.

use std::time::Duration;

use codius_api::{DiscoverReply, DiscoverRequest};
use codius_outbound::{PrivateAddress, public_only};
use codius_peers::{PeerUrl, Reach};
use reqwest::{Client, RequestBuilder, StatusCode, header, redirect};
use serde::{Deserialize, de::DeserializeOwned};
use thiserror::Error;

/// For a whole request, from the look-up of the name to the last byte of the answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of an answer: a thousand URLs of full length fit.
const MAX_BODY_BYTES: usize = 512 * 1024;

/// Asks peers.
pub(super) struct PeerClient {
    /// The text says why there is none (no certificates on this machine).
    http: Result<Client, String>,
    timeout: Duration,
}

/// Why a peer did not do what a peer does. It is not listed then.
#[derive(Debug, Error)]
pub(super) enum PeerFault {
    #[error("this host cannot speak to peers: {0}")]
    NoClient(String),
    /// Nothing was connected to.
    #[error("its name leads to a private address")]
    Private,
    #[error("it does not answer in time")]
    Slow,
    #[error("it cannot be reached")]
    Unreachable,
    /// Redirects are such an answer: who answers at another address has another name.
    #[error("it answers with status {0}")]
    Status(StatusCode),
    #[error("its answer has more than {MAX_BODY_BYTES} bytes")]
    TooLong,
    #[error("its answer cannot be read")]
    Unreadable,
    #[error("it says that it is {0:?}")]
    Other(String),
}

/// What matters of `GET /info`.
#[derive(Deserialize)]
struct Identity {
    uri: String,
}

impl PeerClient {
    pub(super) fn new(reach: Reach) -> Self {
        let builder = Client::builder().user_agent(concat!("codiusd/", env!("CARGO_PKG_VERSION")));
        let builder = match reach {
            Reach::Public => public_only(builder),
            Reach::Any => builder.redirect(redirect::Policy::none()).no_proxy(),
        };
        let http = builder.build().map_err(|error| error.to_string());
        if let Err(error) = &http {
            tracing::warn!(error, "peers cannot be spoken to");
        }
        Self {
            http,
            timeout: REQUEST_TIMEOUT,
        }
    }

    /// Whether a peer answers, and as itself.
    pub(super) async fn check(&self, peer: &PeerUrl) -> Result<(), PeerFault> {
        let request = self.client()?.get(format!("{peer}/info"));
        let Identity { uri } = self.ask(request).await?;
        if uri != peer.as_str() {
            return Err(PeerFault::Other(uri.chars().take(100).collect()));
        }
        Ok(())
    }

    /// Tells a peer of this host, and asks for its peers.
    pub(super) async fn discover(
        &self,
        peer: &PeerUrl,
        own: Option<&PeerUrl>,
    ) -> Result<Vec<String>, PeerFault> {
        let body = DiscoverRequest {
            peers: own.map(ToString::to_string).into_iter().collect(),
            limit: None,
        };
        let body = serde_json::to_string(&body).expect("strings are JSON");
        let request = self.client()?.post(format!("{peer}/peers/discover"));
        let request = request
            .header(header::CONTENT_TYPE, "application/json")
            .body(body);
        let reply: DiscoverReply = self.ask(request).await?;
        Ok(reply.peers)
    }

    fn client(&self) -> Result<&Client, PeerFault> {
        self.http
            .as_ref()
            .map_err(|error| PeerFault::NoClient(error.clone()))
    }

    async fn ask<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, PeerFault> {
        let request = request
            .header(header::ACCEPT, "application/json")
            .timeout(self.timeout);
        let mut response = request.send().await.map_err(|error| fault(&error))?;
        if response.status() != StatusCode::OK {
            return Err(PeerFault::Status(response.status()));
        }
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|error| fault(&error))? {
            if body.len() + piece.len() > MAX_BODY_BYTES {
                return Err(PeerFault::TooLong);
            }
            body.extend_from_slice(&piece);
        }
        serde_json::from_slice(&body).map_err(|_| PeerFault::Unreadable)
    }
}

fn fault(error: &reqwest::Error) -> PeerFault {
    if PrivateAddress::caused(error) {
        PeerFault::Private
    } else if error.is_timeout() {
        PeerFault::Slow
    } else {
        PeerFault::Unreachable
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use anyhow::Result;
    use axum::{
        Router,
        body::{Body, Bytes},
        http::Uri,
        response::IntoResponse,
    };
    use codius_testkit::install_crypto;
    use futures_util::{StreamExt, stream};
    use tokio::net::TcpListener;

    use super::*;

    /// A host that answers every request the same way, and counts them.
    struct Fake {
        url: PeerUrl,
        asked: Arc<AtomicUsize>,
    }

    impl Fake {
        async fn start<R: IntoResponse>(
            answer: impl Fn(&str) -> R + Clone + Send + Sync + 'static,
        ) -> Result<Self> {
            install_crypto();
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let url = format!("http://{}", listener.local_addr()?);
            let (own, asked) = (url.clone(), Arc::<AtomicUsize>::default());
            let count = Arc::clone(&asked);
            let router = Router::new().fallback(move |_: Uri| {
                count.fetch_add(1, Ordering::SeqCst);
                let answer = answer(&own).into_response();
                async move { answer }
            });
            tokio::spawn(async move { axum::serve(listener, router).await });
            Ok(Self {
                url: PeerUrl::parse(&url, Reach::Any)?,
                asked,
            })
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::SeqCst)
        }
    }

    fn client() -> PeerClient {
        install_crypto();
        PeerClient {
            timeout: Duration::from_millis(700),
            ..PeerClient::new(Reach::Any)
        }
    }

    fn info(uri: &str) -> String {
        format!(r#"{{"uri":{uri:?},"fullMem":false,"anything":[1]}}"#)
    }

    #[tokio::test]
    async fn a_peer_must_answer_to_exactly_its_name() -> Result<()> {
        let good = Fake::start(info).await?;
        client().check(&good.url).await?;
        for wrong in ["/", "/x", "0"] {
            let other = Fake::start(move |own: &str| info(&format!("{own}{wrong}"))).await?;
            let error = client().check(&other.url).await.unwrap_err();
            assert!(matches!(error, PeerFault::Other(_)), "{wrong}: {error}");
        }
        let no_name = Fake::start(|_: &str| r#"{"peers":[]}"#).await?;
        let error = client().check(&no_name.url).await.unwrap_err();
        assert!(matches!(error, PeerFault::Unreadable), "{error}");
        Ok(())
    }

    #[tokio::test]
    async fn redirects_are_not_followed() -> Result<()> {
        let target = Fake::start(info).await?;
        let to = target.url.to_string();
        let redirecting = Fake::start(move |_: &str| {
            (
                StatusCode::FOUND,
                [(header::LOCATION, format!("{to}/info"))],
            )
        })
        .await?;
        let error = client().check(&redirecting.url).await.unwrap_err();
        assert!(
            matches!(error, PeerFault::Status(StatusCode::FOUND)),
            "{error}"
        );
        assert_eq!((redirecting.asked(), target.asked()), (1, 0));
        Ok(())
    }

    #[tokio::test]
    async fn a_huge_body_is_cut_off() -> Result<()> {
        let huge = Fake::start(|_: &str| {
            let endless = stream::repeat(Bytes::from_static(&[b' '; 8192]));
            Body::from_stream(endless.map(Ok::<_, Infallible>))
        })
        .await?;
        let patient = PeerClient::new(Reach::Any);
        let error = patient.check(&huge.url).await.unwrap_err();
        assert!(matches!(error, PeerFault::TooLong), "{error}");
        Ok(())
    }

    #[tokio::test]
    async fn a_slow_body_is_cut_off() -> Result<()> {
        let slow = Fake::start(|own: &str| {
            // One byte at a time: the connection is never silent for long.
            let bytes = info(own).into_bytes().into_iter().map(|byte| vec![byte]);
            let drops = stream::iter(bytes).then(|byte| async move {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Ok::<_, Infallible>(byte)
            });
            Body::from_stream(drops)
        })
        .await?;
        let error = client().check(&slow.url).await.unwrap_err();
        assert!(matches!(error, PeerFault::Slow), "{error}");
        Ok(())
    }

    #[tokio::test]
    async fn who_is_not_there_or_not_well_is_at_fault() -> Result<()> {
        let gone = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
        let gone = PeerUrl::parse(&format!("http://{gone}"), Reach::Any)?;
        let error = client().check(&gone).await.unwrap_err();
        assert!(matches!(error, PeerFault::Unreachable), "{error}");
        let ill = Fake::start(|own: &str| (StatusCode::SERVICE_UNAVAILABLE, info(own))).await?;
        let error = client().check(&ill.url).await.unwrap_err();
        assert!(matches!(error, PeerFault::Status(_)), "{error}");
        let error = client().discover(&ill.url, None).await.unwrap_err();
        assert!(matches!(error, PeerFault::Status(_)), "{error}");
        Ok(())
    }

    #[tokio::test]
    async fn the_client_for_strangers_reaches_no_private_address() -> Result<()> {
        let listener = Fake::start(info).await?;
        // A name that leads to loopback. (One that strangers may give is refused before this.)
        let port = listener.url.as_str().rsplit(':').next().unwrap_or_default();
        let named = PeerUrl::parse(&format!("http://localhost:{port}"), Reach::Any)?;
        let error = PeerClient::new(Reach::Public)
            .check(&named)
            .await
            .unwrap_err();
        assert!(matches!(error, PeerFault::Private), "{error}");
        assert_eq!(listener.asked(), 0);
        // The same name without the rule is reached, though it answers to another.
        let error = client().check(&named).await.unwrap_err();
        assert!(matches!(error, PeerFault::Other(_)), "{error}");
        assert_eq!(listener.asked(), 1);
        Ok(())
    }
}
