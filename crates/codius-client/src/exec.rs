//! A program that the owner of a lease runs in a container of it (`/api/v2/leases/{hash}/exec`).

use codius_api::v2::{ExecReply, ExecRequest, INPUT, STDERR, STDOUT};
use codius_manifest::ManifestHash;
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use reqwest::{Method, StatusCode, Upgraded, header};
use thiserror::Error;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message,
        handshake::{client::generate_key, derive_accept_key},
        protocol::{Role, WebSocketConfig},
    },
};

use crate::{ClientError, HostClient, Receipt, Signer};

/// The longest message of a host: a piece of output, or a sentence.
const MAX_MESSAGE_BYTES: usize = 128 * 1024;
/// The most input in one message.
const MAX_INPUT_BYTES: usize = 16 * 1024;

/// The connection of a session broke.
#[derive(Debug, Error)]
#[error("the connection to the host broke")]
pub struct SessionCut(#[source] Option<tungstenite::Error>);

/// What comes of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionEvent {
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    Said(ExecReply),
}

/// What goes to the program.
#[derive(Debug)]
pub struct SessionWriter(SplitSink<WebSocketStream<Upgraded>, Message>);

impl SessionWriter {
    pub async fn ask(&mut self, request: &ExecRequest) -> Result<(), SessionCut> {
        let text = serde_json::to_string(request).expect("text and numbers are JSON");
        let sent = self.0.send(Message::text(text)).await;
        sent.map_err(|error| SessionCut(Some(error)))
    }

    /// Sends input; waits while the program does not read it.
    pub async fn write(&mut self, data: &[u8]) -> Result<(), SessionCut> {
        for piece in data.chunks(MAX_INPUT_BYTES) {
            let mut framed = Vec::with_capacity(piece.len() + 1);
            framed.push(INPUT);
            framed.extend_from_slice(piece);
            let sent = self.0.send(Message::binary(framed)).await;
            sent.map_err(|error| SessionCut(Some(error)))?;
        }
        Ok(())
    }
}

/// What comes from the program, and from the host.
#[derive(Debug)]
pub struct SessionReader(SplitStream<WebSocketStream<Upgraded>>);

impl SessionReader {
    /// The next event; the last one is that it was left or could not be begun. Safe to drop while waiting.
    pub async fn next(&mut self) -> Result<SessionEvent, SessionCut> {
        loop {
            let message = match self.0.next().await {
                Some(Ok(message)) => message,
                Some(Err(error)) => return Err(SessionCut(Some(error))),
                None => return Err(SessionCut(None)),
            };
            match message {
                Message::Binary(data) => match data.split_first() {
                    Some((&STDOUT, data)) => return Ok(SessionEvent::Stdout(data.to_vec())),
                    Some((&STDERR, data)) => return Ok(SessionEvent::Stderr(data.to_vec())),
                    // Of a newer host.
                    _ => {}
                },
                Message::Text(text) => {
                    if let Ok(reply) = serde_json::from_str(&text) {
                        return Ok(SessionEvent::Said(reply));
                    }
                }
                Message::Close(_) => return Err(SessionCut(None)),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }
}

impl HostClient {
    /// Opens a session in a lease of the signer; nothing runs yet.
    pub async fn session(
        &self,
        hash: &ManifestHash,
        signer: &Signer,
    ) -> Result<(SessionWriter, SessionReader), ClientError> {
        let path = format!("/api/v2/leases/{hash}/exec");
        let key = generate_key();
        let response = self
            .send_signed(signer, || {
                let request = self
                    .request(Method::GET, &path)
                    .header(header::CONNECTION, "Upgrade")
                    .header(header::UPGRADE, "websocket")
                    .header(header::SEC_WEBSOCKET_VERSION, "13")
                    .header(header::SEC_WEBSOCKET_KEY, &key);
                self.signed(signer, request, &Method::GET, &path, "")
            })
            .await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(self.refusal(response, Receipt::default()).await);
        }
        let accepted = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
        let expected = derive_accept_key(key.as_bytes());
        if accepted.is_none_or(|accepted| accepted.as_bytes() != expected.as_bytes()) {
            let reason = "its WebSocket handshake is wrong";
            return Err(self.not_a_host(reason, Receipt::default()));
        }
        let upgraded = response.upgrade().await;
        let upgraded = upgraded.map_err(|source| self.unreachable(source))?;
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE_BYTES))
            .max_frame_size(Some(MAX_MESSAGE_BYTES));
        let socket = WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(config)).await;
        let (writer, reader) = socket.split();
        Ok((SessionWriter(writer), SessionReader(reader)))
    }
}
