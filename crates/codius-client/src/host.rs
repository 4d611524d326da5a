//! One host, as its HTTP API shows it.

use std::time::Duration;

use codius_api::{
    AssetInfo, ErrorBody, Info, PeersReply, PodReply, PodStatusReply, QuoteReply, Version,
};
use codius_manifest::ManifestHash;
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, header};
use serde::de::DeserializeOwned;
use url::Url;

use crate::{
    ClientError, Events, PaidThen, PayToken, Receipt, Signer, Wallet,
    payment::{Demand, Payment},
};

/// How long a connection to a host may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an answer may take that needs no pod to start.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the answer to a paid request may take: payment, pull, start.
const PAID_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// The longest body that is read, but for logs and events.
const MAX_BODY_BYTES: usize = 4 * 1024 * 1024;
/// What asks for a payment pointer.
const ACCEPT_SPSP: &str = "application/spsp4+json, application/spsp+json";
/// What the original's tool sends; hosts ignore it.
const ACCEPT: &str = "application/codius-v1+json";

/// A client of one host.
#[derive(Debug, Clone)]
pub struct HostClient {
    http: Client,
    /// Scheme, host and port.
    pub(crate) origin: Url,
    pub(crate) answer_timeout: Duration,
    pub(crate) paid_timeout: Duration,
    pub(crate) refund_to: Option<String>,
}

/// What a host has answered.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Vec<u8>,
}

/// The answer to a request that was paid for.
#[derive(Debug, Clone)]
pub struct PaidAnswer<T> {
    pub reply: T,
    pub receipt: Receipt,
    /// What the host counts in, if there was a payment and it has said so.
    pub asset: Option<AssetInfo>,
}

impl HostClient {
    /// A client of the host at `url`; only its origin is used, and `https` if it has no scheme.
    pub fn new(url: &str) -> Result<Self, ClientError> {
        let invalid = || ClientError::InvalidHost {
            url: url.to_owned(),
        };
        let with_scheme = if url.contains("://") {
            url.to_owned()
        } else {
            format!("https://{url}")
        };
        let parsed = Url::parse(&with_scheme).map_err(|_| invalid())?;
        if !matches!(parsed.scheme(), "http" | "https") || parsed.host_str().is_none() {
            return Err(invalid());
        }
        let origin = parsed.join("/").map_err(|_| invalid())?;
        let http = Self::http().build().map_err(|_| invalid())?;
        Ok(Self {
            http,
            origin,
            answer_timeout: ANSWER_TIMEOUT,
            paid_timeout: PAID_TIMEOUT,
            refund_to: None,
        })
    }

    /// How a host is spoken to over HTTP, for those who want more than [`HostClient::new`] gives.
    pub fn http() -> reqwest::ClientBuilder {
        Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("codius/", env!("CARGO_PKG_VERSION")))
    }

    /// Speaks to a host by an HTTP client of the caller's, made from [`HostClient::http`].
    #[must_use]
    pub fn with_http(mut self, http: Client) -> Self {
        self.http = http;
        self
    }

    /// How long an answer may take that needs no pod to start.
    #[must_use]
    pub fn answering_within(mut self, timeout: Duration) -> Self {
        self.answer_timeout = timeout;
        self
    }

    /// How long the answer to a paid request may take: payment, pull, start.
    #[must_use]
    pub fn placing_within(mut self, timeout: Duration) -> Self {
        self.paid_timeout = timeout;
        self
    }

    /// Where the host sends what uploads have not used when they end: a payment pointer.
    #[must_use]
    pub fn refunding_to(mut self, pointer: Option<&str>) -> Self {
        self.refund_to = pointer.map(str::to_owned);
        self
    }

    /// The host's origin, without a slash at its end.
    pub fn origin(&self) -> &str {
        self.origin.as_str().trim_end_matches('/')
    }

    pub async fn version(&self) -> Result<Version, ClientError> {
        self.get("/version").await
    }

    pub async fn info(&self) -> Result<Info, ClientError> {
        self.get("/info").await
    }

    /// Other hosts that this one knows, as it says.
    pub async fn peers(&self) -> Result<Vec<String>, ClientError> {
        Ok(self.get::<PeersReply>("/peers").await?.peers)
    }

    /// A pod that runs.
    pub async fn pod(&self, hash: &ManifestHash) -> Result<PodStatusReply, ClientError> {
        self.get(&format!("/pods?manifestHash={hash}")).await
    }

    /// What an upload would cost, and its hash. Free.
    pub async fn quote(&self, upload: &str, duration_secs: u64) -> Result<QuoteReply, ClientError> {
        let request = self
            .upload_request(Method::OPTIONS, upload, duration_secs)
            .timeout(self.answer_timeout);
        self.read(self.send(request).await?, Receipt::default())
            .await
    }

    /// The same from a host of the first generation, which tells its price only to those who show that
    /// they could pay: with a payment of nothing.
    pub async fn quote_by_payment(
        &self,
        upload: &str,
        duration_secs: u64,
        wallet: &Wallet,
    ) -> Result<PaidAnswer<QuoteReply>, ClientError> {
        let asking = self.paid(wallet, 0, None, || {
            self.upload_request(Method::OPTIONS, upload, duration_secs)
        });
        match tokio::time::timeout(self.answer_timeout, asking).await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::NoPayment {
                reason: format!("no answer in {} s", self.answer_timeout.as_secs()),
            }),
        }
    }

    /// Uploads `{"manifest": …, "private"?: …}` for so many seconds, paying at most `limit` units.
    pub async fn upload(
        &self,
        upload: &str,
        duration_secs: u64,
        wallet: &Wallet,
        limit: u64,
    ) -> Result<PaidAnswer<PodReply>, ClientError> {
        self.paid(wallet, limit, None, || {
            let request = self.upload_request(Method::POST, upload, duration_secs);
            match &self.refund_to {
                Some(pointer) => request.header("Refund-To", pointer),
                None => request,
            }
        })
        .await
    }

    /// Buys more time for a pod that runs.
    pub async fn extend(
        &self,
        hash: &ManifestHash,
        duration_secs: u64,
        wallet: &Wallet,
        limit: u64,
    ) -> Result<PaidAnswer<PodReply>, ClientError> {
        let path = format!("/pods?manifestHash={hash}&duration={duration_secs}");
        self.paid(wallet, limit, None, || self.request(Method::PUT, &path))
            .await
    }

    /// What happens to the lease of a hash, from the beginning.
    pub async fn events(&self, hash: &ManifestHash) -> Result<Events, ClientError> {
        let request = self.request(Method::GET, &format!("/api/v2/leases/{hash}/events"));
        let response = self.send(request).await?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(response, Receipt::default()).await);
        }
        Ok(Events::new(response))
    }

    /// The output of a pod that allows it, as it comes: the caller reads the body.
    pub async fn logs(&self, hash: &ManifestHash, follow: bool) -> Result<Response, ClientError> {
        let request = self.request(Method::GET, &format!("/pods/{hash}/logs?follow={follow}"));
        let response = self.send(request).await?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(response, Receipt::default()).await);
        }
        Ok(response)
    }

    /// Where the lease of a hash is paid by its payment pointer (RFC 9).
    pub(crate) async fn pointer(&self, hash: &ManifestHash) -> Result<Demand, ClientError> {
        #[derive(serde::Deserialize)]
        struct Spsp {
            destination_account: String,
            shared_secret: String,
        }
        #[derive(serde::Deserialize)]
        struct SpspError {
            message: String,
        }
        let url = format!("{}/{hash}", self.origin());
        let request = self.http.get(url).header(header::ACCEPT, ACCEPT_SPSP);
        let response = self.send(request.timeout(self.answer_timeout)).await?;
        let status = response.status();
        let body = match self.body(response).await {
            Ok(body) => body,
            Err(BodyError::Cut(source)) => return Err(self.unreachable(source)),
            Err(BodyError::TooLong) => {
                return Err(self.not_a_host("its answer is too long", Receipt::default()));
            }
        };
        if !status.is_success() {
            let reason = match serde_json::from_slice::<SpspError>(&body) {
                Ok(error) => error.message,
                Err(_) => format!("its payment pointer answers {status}"),
            };
            return Err(ClientError::NoPayment { reason });
        }
        serde_json::from_slice::<Spsp>(&body)
            .ok()
            .and_then(|spsp| Demand::of_pointer(&spsp.destination_account, &spsp.shared_secret))
            .ok_or_else(|| self.not_a_host("it has no payment pointers", Receipt::default()))
    }

    /// Sends a request, pays what the host asks for it, and sends it again. The limit is in the host's
    /// units; what the wallet may send for it is rounded down.
    pub(crate) async fn paid<T: DeserializeOwned>(
        &self,
        wallet: &Wallet,
        limit: u64,
        signer: Option<&Signer>,
        request: impl Fn() -> RequestBuilder,
    ) -> Result<PaidAnswer<T>, ClientError> {
        let token = PayToken::random().header();
        let with_token = || {
            request()
                .header("Pay-Token", &token)
                .timeout(self.paid_timeout)
        };
        let first = match signer {
            Some(signer) => self.send_signed(signer, &with_token).await?,
            None => self.send(with_token()).await?,
        };
        if first.status() != StatusCode::PAYMENT_REQUIRED {
            let receipt = Receipt::default();
            return Ok(PaidAnswer {
                reply: self.read(first, receipt).await?,
                receipt,
                asset: None,
            });
        }
        let demand = first
            .headers()
            .get("pay")
            .and_then(|pay| Demand::parse(pay.to_str().ok()?));
        let Some(demand) = demand else {
            let reason = "it asks for a payment that is not by STREAM";
            return Err(self.not_a_host(reason, Receipt::default()));
        };
        let most = wallet.most(limit);
        let amount = match demand.price {
            None => most,
            Some(price) => match wallet.cost(price).filter(|cost| *cost <= most) {
                Some(cost) if price <= limit => cost,
                _ => return Err(ClientError::TooDear { price, limit }),
            },
        };
        let payment = Payment::begin(wallet, &demand, amount).await?;
        let second = with_token().send().await;
        let response = match second {
            Ok(response) => response,
            Err(source) => {
                let receipt = payment.give_up().await;
                return Err(ClientError::Lost(Box::new(PaidThen { receipt, source })));
            }
        };
        // The connection stays open until the answer is whole: a refund comes before it.
        let status = response.status();
        let body = self.body(response).await;
        let asset = payment.host_asset();
        let receipt = payment.end().await;
        let body = match body {
            Ok(body) => body,
            Err(BodyError::Cut(source)) => {
                return Err(ClientError::Lost(Box::new(PaidThen { receipt, source })));
            }
            Err(BodyError::TooLong) => {
                return Err(self.not_a_host("its answer is too long", receipt));
            }
        };
        let reply = self.parse(&Answer { status, body }, receipt)?;
        Ok(PaidAnswer {
            reply,
            receipt,
            asset,
        })
    }

    fn upload_request(&self, method: Method, upload: &str, duration_secs: u64) -> RequestBuilder {
        self.request(method, &format!("/pods?duration={duration_secs}"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(upload.to_owned())
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}{path}", self.origin());
        self.http
            .request(method, url)
            .header(header::ACCEPT, ACCEPT)
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let response = self
            .send(self.request(Method::GET, path).timeout(self.answer_timeout))
            .await?;
        self.read(response, Receipt::default()).await
    }

    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        request
            .send()
            .await
            .map_err(|source| self.unreachable(source))
    }

    pub(crate) async fn read<T: DeserializeOwned>(
        &self,
        response: Response,
        receipt: Receipt,
    ) -> Result<T, ClientError> {
        let status = response.status();
        match self.body(response).await {
            Ok(body) => self.parse(&Answer { status, body }, receipt),
            Err(BodyError::Cut(source)) => Err(self.unreachable(source)),
            Err(BodyError::TooLong) => Err(self.not_a_host("its answer is too long", receipt)),
        }
    }

    pub(crate) async fn refusal(&self, response: Response, receipt: Receipt) -> ClientError {
        match self.read::<serde_json::Value>(response, receipt).await {
            Err(error) => error,
            Ok(_) => self.not_a_host("it answers with another status than agreed", receipt),
        }
    }

    fn parse<T: DeserializeOwned>(&self, answer: &Answer, paid: Receipt) -> Result<T, ClientError> {
        if answer.status.is_success() {
            return serde_json::from_slice(&answer.body)
                .map_err(|error| self.not_a_host(&error.to_string(), paid));
        }
        match serde_json::from_slice::<ErrorBody>(&answer.body) {
            Ok(body) => Err(ClientError::Refused {
                body: Box::new(body),
                paid,
            }),
            Err(_) => Err(self.not_a_host(&format!("it answers {}", answer.status), paid)),
        }
    }

    /// Reads a body up to the limit.
    async fn body(&self, mut response: Response) -> Result<Vec<u8>, BodyError> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(BodyError::Cut)? {
            if body.len() + chunk.len() > MAX_BODY_BYTES {
                return Err(BodyError::TooLong);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    pub(crate) fn unreachable(&self, source: reqwest::Error) -> ClientError {
        ClientError::Unreachable {
            host: self.origin().to_owned(),
            source,
        }
    }

    pub(crate) fn not_a_host(&self, reason: &str, paid: Receipt) -> ClientError {
        ClientError::NotAHost {
            host: self.origin().to_owned(),
            reason: reason.to_owned(),
            paid,
        }
    }
}

enum BodyError {
    Cut(reqwest::Error),
    TooLong,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_origin_of_a_host_counts() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        assert_eq!(
            HostClient::new("host.example").unwrap().origin(),
            "https://host.example"
        );
        assert_eq!(
            HostClient::new("http://localhost:3000/x?y#z")
                .unwrap()
                .origin(),
            "http://localhost:3000"
        );
        for text in ["", "ftp://host", "http://"] {
            assert!(HostClient::new(text).is_err(), "{text}");
        }
    }
}
