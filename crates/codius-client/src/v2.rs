//! Version 2 of the API: leases that have an owner, who signs for what only he may do.

use codius_api::v2::{
    ExtendLeaseRequest, HostReply, LeaseReply, LogLine, QuoteReply, RefundReply, RefundRequest,
    StopReply, StopRequest, UsageReply,
};
use codius_manifest::ManifestHash;
use reqwest::{Method, RequestBuilder, Response, StatusCode, header};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use url::form_urlencoded;

use crate::{
    ClientError, HostClient, PaidAnswer, Receipt, Signer, Wallet,
    sse::{Cut, ServerEvents},
};

/// Which lines of a log are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// Go on until the program ends.
    pub follow: bool,
    /// Of this container only.
    pub container: Option<String>,
    /// A moment of RFC 3339, or so many seconds ago.
    pub since: Option<String>,
    /// Go on after the line of this id.
    pub after: Option<String>,
}

impl LogQuery {
    fn in_url(&self) -> String {
        let mut text = form_urlencoded::Serializer::new(String::new());
        text.append_pair("follow", if self.follow { "true" } else { "false" });
        if let Some(container) = &self.container {
            text.append_pair("container", container);
        }
        if let Some(since) = &self.since {
            text.append_pair("since", since);
        }
        text.finish()
    }
}

/// Lines of a log as they come.
#[derive(Debug)]
pub struct LogEvents {
    events: ServerEvents,
    last_id: Option<String>,
}

impl LogEvents {
    /// The next line; `None` at the end. Safe to drop while waiting.
    pub async fn next(&mut self) -> Result<Option<LogLine>, Cut> {
        while let Some(event) = self.events.next().await? {
            // What we cannot read a newer host may have sent to newer clients.
            let Ok(line) = serde_json::from_str(&event.data) else {
                continue;
            };
            if event.id.is_some() {
                self.last_id = event.id;
            }
            return Ok(Some(line));
        }
        Ok(None)
    }

    /// For [`LogQuery::after`], if the connection broke.
    pub fn last_id(&self) -> Option<&str> {
        self.last_id.as_deref()
    }
}

impl HostClient {
    /// What the host says of itself, if it has version 2.
    pub async fn host_v2(&self) -> Result<Option<HostReply>, ClientError> {
        let request = self
            .request(Method::GET, "/api/v2/host")
            .timeout(self.answer_timeout);
        let response = self.send(request).await?;
        if response.status() != StatusCode::OK {
            return Ok(None);
        }
        match self.read(response, Receipt::default()).await {
            Ok(reply) => Ok(Some(reply)),
            // The original answers every unknown path with a page about itself.
            Err(ClientError::NotAHost { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What a lease would cost. Free.
    pub async fn quote_v2(
        &self,
        document: &Value,
        duration_secs: u64,
    ) -> Result<QuoteReply, ClientError> {
        let body = with_duration(document, duration_secs);
        let request = self
            .post("/api/v2/quotes", &body)
            .timeout(self.answer_timeout);
        self.read(self.send(request).await?, Receipt::default())
            .await
    }

    /// Creates a lease, or extends the one that runs. The signer becomes the owner of a new one.
    pub async fn create_lease(
        &self,
        document: &Value,
        duration_secs: u64,
        signer: &Signer,
        wallet: &Wallet,
        limit: u64,
    ) -> Result<PaidAnswer<LeaseReply>, ClientError> {
        let path = "/api/v2/leases";
        let mut wanted = document.clone();
        if let (Value::Object(wanted), Some(pointer)) = (&mut wanted, &self.refund_to) {
            wanted.insert("refund_to".to_owned(), pointer.as_str().into());
        }
        let body = with_duration(&wanted, duration_secs);
        self.paid(wallet, limit, Some(signer), || {
            self.signed(signer, self.post(path, &body), &Method::POST, path, &body)
        })
        .await
    }

    /// Buys more time for a lease that runs. Anyone may.
    pub async fn extend_lease(
        &self,
        hash: &ManifestHash,
        duration_secs: u64,
        wallet: &Wallet,
        limit: u64,
    ) -> Result<PaidAnswer<LeaseReply>, ClientError> {
        let path = format!("/api/v2/leases/{hash}/extend");
        let body = json!(ExtendLeaseRequest {
            duration_seconds: duration_secs
        })
        .to_string();
        self.paid(wallet, limit, None, || self.post(&path, &body))
            .await
    }

    /// A lease that the host has seen. Anyone may ask.
    pub async fn lease(&self, hash: &ManifestHash) -> Result<LeaseReply, ClientError> {
        self.get(&format!("/api/v2/leases/{hash}")).await
    }

    /// The same with what is told to its owner alone, if the signer is its owner.
    pub async fn lease_of(
        &self,
        hash: &ManifestHash,
        signer: &Signer,
    ) -> Result<LeaseReply, ClientError> {
        self.get_signed(&format!("/api/v2/leases/{hash}"), signer)
            .await
    }

    /// What the pod of a lease of the signer has used.
    pub async fn usage(
        &self,
        hash: &ManifestHash,
        signer: &Signer,
    ) -> Result<UsageReply, ClientError> {
        self.get_signed(&format!("/api/v2/leases/{hash}/usage"), signer)
            .await
    }

    async fn get_signed<T: DeserializeOwned>(
        &self,
        path: &str,
        signer: &Signer,
    ) -> Result<T, ClientError> {
        let response = self
            .send_signed(signer, || {
                self.signed(
                    signer,
                    self.request(Method::GET, path),
                    &Method::GET,
                    path,
                    "",
                )
                .timeout(self.answer_timeout)
            })
            .await?;
        self.read(response, Receipt::default()).await
    }

    /// Ends a lease of the signer.
    pub async fn stop(
        &self,
        hash: &ManifestHash,
        stop: &StopRequest,
        signer: &Signer,
    ) -> Result<StopReply, ClientError> {
        let path = format!("/api/v2/leases/{hash}/stop");
        self.control(&path, json!(stop).to_string(), signer).await
    }

    /// Draws what is due to the signer for leases of a program that have ended.
    pub async fn draw(
        &self,
        hash: &ManifestHash,
        to: &RefundRequest,
        signer: &Signer,
    ) -> Result<RefundReply, ClientError> {
        let path = format!("/api/v2/leases/{hash}/refund");
        self.control(&path, json!(to).to_string(), signer).await
    }

    /// Something that only an owner may have done, and that takes its time.
    async fn control<T: DeserializeOwned>(
        &self,
        path: &str,
        body: String,
        signer: &Signer,
    ) -> Result<T, ClientError> {
        let response = self
            .send_signed(signer, || {
                self.signed(signer, self.post(path, &body), &Method::POST, path, &body)
                    .timeout(self.paid_timeout)
            })
            .await?;
        self.read(response, Receipt::default()).await
    }

    /// What a lease of the signer writes.
    pub async fn log_events(
        &self,
        hash: &ManifestHash,
        query: &LogQuery,
        signer: &Signer,
    ) -> Result<LogEvents, ClientError> {
        let path = format!("/api/v2/leases/{hash}/logs?{}", query.in_url());
        let response = self
            .send_signed(signer, || {
                let mut request = self.request(Method::GET, &path);
                if let Some(after) = &query.after {
                    request = request.header("Last-Event-ID", after);
                }
                self.signed(signer, request, &Method::GET, &path, "")
            })
            .await?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(response, Receipt::default()).await);
        }
        Ok(LogEvents {
            events: ServerEvents::new(response),
            last_id: query.after.clone(),
        })
    }

    /// Sends a signed request, and once more if it was refused because of our clock.
    pub(crate) async fn send_signed(
        &self,
        signer: &Signer,
        request: impl Fn() -> RequestBuilder,
    ) -> Result<Response, ClientError> {
        let response = self.send(request()).await?;
        if response.status() == StatusCode::UNAUTHORIZED
            && let Some(pause) = signer.correct(&response)
        {
            tokio::time::sleep(pause).await;
            return self.send(request()).await;
        }
        Ok(response)
    }

    pub(crate) fn signed(
        &self,
        signer: &Signer,
        request: RequestBuilder,
        method: &Method,
        path: &str,
        body: &str,
    ) -> RequestBuilder {
        match self.origin.join(path) {
            Ok(url) => signer.sign(request, method, &url, body.as_bytes()),
            // Cannot be sent either, and is refused there.
            Err(_) => request,
        }
    }

    fn post(&self, path: &str, body: &str) -> RequestBuilder {
        self.request(Method::POST, path)
            .header(header::CONTENT_TYPE, "application/json")
            .body(body.to_owned())
    }
}

/// A document as version 1 has it, with the duration in it.
fn with_duration(document: &Value, duration_secs: u64) -> String {
    let mut body = document.clone();
    if let Value::Object(body) = &mut body {
        body.insert("duration_seconds".to_owned(), duration_secs.into());
    }
    body.to_string()
}
