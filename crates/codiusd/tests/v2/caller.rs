//! Somebody who sends requests of version 2, signed or not.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use codius_client::PayToken;
use codius_signature::{Key, Request, SignatureFields, sign};
use reqwest::{Client, Method, RequestBuilder, header::HeaderMap};
use serde_json::Value;
use url::Url;

use crate::{account::Account, support::World};

/// A client with a key.
pub(crate) struct Caller {
    pub(crate) key: Key,
    http: Client,
    origin: Url,
}

/// A request, before it is sent.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    method: Method,
    target: String,
    headers: Vec<(&'static str, String)>,
    body: Option<String>,
}

impl Call {
    pub(crate) fn get(target: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            target: target.into(),
            headers: Vec::new(),
            body: None,
        }
    }

    pub(crate) fn post(target: impl Into<String>, body: &Value) -> Self {
        Self {
            method: Method::POST,
            body: Some(body.to_string()),
            ..Self::get(target)
        }
    }

    pub(crate) fn method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }

    pub(crate) fn body(mut self, body: impl Into<String>) -> Self {
        self.body = Some(body.into());
        self
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn with_token(self) -> Self {
        self.header("Pay-Token", PayToken::random().header())
    }

    fn fields(mut self, fields: SignatureFields) -> Self {
        if let Some(digest) = fields.content_digest {
            self = self.header("Content-Digest", digest);
        }
        self.header("Signature-Input", fields.signature_input)
            .header("Signature", fields.signature)
    }
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.text).with_context(|| format!("no JSON: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.and_then(|value| value.to_str().ok()).unwrap_or("")
    }

    /// Id and line of each server-sent event.
    pub(crate) fn events(&self) -> Result<Vec<(u64, Value)>> {
        let mut events = Vec::new();
        for block in self.text.split("\n\n").filter(|block| !block.is_empty()) {
            let field = |name: &str| {
                let mut lines = block.lines();
                lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            };
            if let (Some(id), Some(data)) = (field("id"), field("data")) {
                events.push((id.parse()?, serde_json::from_str(data)?));
            }
        }
        Ok(events)
    }
}

impl Caller {
    pub(crate) fn new(world: &World, seed: u8) -> Result<Self> {
        Ok(Self {
            key: Key::from_seed([seed; 32]),
            http: Client::new(),
            origin: Url::parse(&world.api)?,
        })
    }

    /// Signs a request as it will be sent, now.
    pub(crate) fn sign(&self, call: Call) -> Result<Call> {
        self.sign_at(call, 0)
    }

    /// Signs as somebody does whose clock is so many seconds off.
    pub(crate) fn sign_at(&self, call: Call, off_secs: i64) -> Result<Call> {
        let url = self.origin.join(&call.target)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let fields = sign(
            &self.key,
            &Request {
                method: call.method.as_str(),
                authority: url.authority(),
                path: url.path(),
                query: url.query(),
                body: call.body.as_deref().unwrap_or_default().as_bytes(),
            },
            now.saturating_add_signed(off_secs),
            &rand::random::<[u8; 16]>(),
        );
        Ok(call.fields(fields))
    }

    /// Sends a request as it is.
    pub(crate) async fn send(&self, call: &Call) -> Result<Reply> {
        let response = self.request(call)?.send().await?;
        Ok(Reply {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            text: response.text().await?,
        })
    }

    /// Sends a request with a signature of its own. As every client must, it signs once more if it is
    /// told that the signature is of another time: that of a host that has just been started is soon.
    pub(crate) async fn signed(&self, call: Call) -> Result<Reply> {
        let reply = self.send(&self.sign(call.clone())?).await?;
        if reply.status != 401 {
            return Ok(reply);
        }
        self.send(&self.sign(call)?).await
    }

    /// The beginning of an endless answer: at least `enough` bytes of it.
    pub(crate) async fn beginning(&self, call: &Call, enough: usize) -> Result<Reply> {
        let mut response = self.request(call)?.send().await?;
        let mut text = Vec::new();
        while text.len() < enough
            && let Some(chunk) = response.chunk().await?
        {
            text.extend_from_slice(&chunk);
        }
        Ok(Reply {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            text: String::from_utf8(text)?,
        })
    }

    /// Sends a request that has a token, pays what is asked for it, and sends it again, signed anew if
    /// it is to be signed.
    pub(crate) async fn paid(&self, account: &Account, call: &Call, signed: bool) -> Result<Reply> {
        let send = async || {
            if signed {
                self.signed(call.clone()).await
            } else {
                self.send(call).await
            }
        };
        let first = send().await?;
        ensure!(first.status == 402, "no demand: {first:?}");
        let payment = account.pay(first.header("pay")).await?;
        let second = send().await?;
        payment.end().await;
        Ok(second)
    }

    fn request(&self, call: &Call) -> Result<RequestBuilder> {
        let mut request = self
            .http
            .request(call.method.clone(), self.origin.join(&call.target)?);
        for (name, value) in &call.headers {
            request = request.header(*name, value);
        }
        if let Some(body) = &call.body {
            request = request
                .header("Content-Type", "application/json")
                .body(body.clone());
        }
        Ok(request)
    }
}
