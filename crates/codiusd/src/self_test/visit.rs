//! The self-test's visitor: comes the way that every visitor comes, by the host's public name.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::StreamExt;
use reqwest::{Client, StatusCode, Url, header};
use serde_json::Value;
use tokio::time::timeout;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        handshake::derive_accept_key,
        protocol::{Role, WebSocketConfig},
    },
};

/// How long one visit may take, as in the original.
const VISIT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest answer that is read.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Visits a program.
pub(crate) struct Visitor {
    http: Client,
    url: Url,
}

impl Visitor {
    /// `listener` is where names below `localhost` lead (RFC 6761, section 6.3): not every resolver
    /// knows that.
    pub(crate) fn new(url: &str, listener: SocketAddr) -> Result<Self> {
        let url: Url = url.parse()?;
        let name = url.host_str().context("the program has no name")?;
        let mut http = Client::builder()
            .timeout(VISIT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .http1_only();
        if is_localhost(name) {
            http = http.resolve(name, listener);
        }
        Ok(Self {
            http: http.build()?,
            url,
        })
    }

    /// Gets JSON with a true `imageUploaded`.
    pub(crate) async fn http(&self) -> Result<()> {
        let answer = self.http.get(self.url.clone()).send().await?;
        ensure!(
            answer.status().is_success(),
            "it answers {}",
            answer.status()
        );
        let mut body = Vec::new();
        let mut chunks = answer.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            body.extend_from_slice(&chunk?);
            ensure!(body.len() <= MAX_ANSWER_BYTES, "its answer is too long");
        }
        says(&body, "imageUploaded")
    }

    /// Opens a WebSocket, and gets JSON with a true `websocketEnabled`.
    pub(crate) async fn websocket(&self) -> Result<()> {
        timeout(VISIT_TIMEOUT, self.talk())
            .await
            .context("no message in time")?
    }

    async fn talk(&self) -> Result<()> {
        let key = STANDARD.encode(rand::random::<[u8; 16]>());
        let request = self.http.get(self.url.clone());
        let answer = request
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, &key)
            .send()
            .await?;
        ensure!(
            answer.status() == StatusCode::SWITCHING_PROTOCOLS,
            "it answers {} to a WebSocket",
            answer.status()
        );
        let accepted = answer.headers().get(header::SEC_WEBSOCKET_ACCEPT);
        ensure!(
            accepted.is_some_and(|accept| accept == derive_accept_key(key.as_bytes()).as_str()),
            "its answer is not to our key"
        );
        let limits = WebSocketConfig::default()
            .max_message_size(Some(MAX_ANSWER_BYTES))
            .max_frame_size(Some(MAX_ANSWER_BYTES));
        let mut websocket =
            WebSocketStream::from_raw_socket(answer.upgrade().await?, Role::Client, Some(limits))
                .await;
        loop {
            match websocket.next().await.context("it said nothing")?? {
                Message::Text(text) => return says(text.as_bytes(), "websocketEnabled"),
                Message::Binary(bytes) => return says(&bytes, "websocketEnabled"),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
                Message::Close(_) => anyhow::bail!("it said nothing but goodbye"),
            }
        }
    }
}

/// Whether a name means this machine.
pub(crate) fn is_localhost(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

/// True in JavaScript's sense, as the original looks.
fn says(json: &[u8], member: &str) -> Result<()> {
    let answer: Value = serde_json::from_slice(json).context("its answer is no JSON")?;
    let is_true = match &answer[member] {
        Value::Null | Value::Bool(false) => false,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Bool(true) | Value::Array(_) | Value::Object(_) => true,
    };
    ensure!(is_true, "its answer has no {member}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_javascript_takes_for_true_is_true() {
        for value in ["true", "1", "\"x\"", "{}", "[]"] {
            says(format!("{{\"a\":{value}}}").as_bytes(), "a").unwrap();
        }
        for value in ["false", "0", "\"\"", "null"] {
            says(format!("{{\"a\":{value}}}").as_bytes(), "a").unwrap_err();
        }
        says(b"{}", "a").unwrap_err();
        says(b"<html>", "a").unwrap_err();
    }

    #[test]
    fn names_below_localhost_are_this_machine() {
        assert!(is_localhost("abc.localhost") && is_localhost("LOCALHOST."));
        assert!(!is_localhost("localhost.example") && !is_localhost("notlocalhost"));
    }
}
