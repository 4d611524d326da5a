//! A payment pointer (SPSP) that does what a test says.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use anyhow::Result;
use axum::{
    Router,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::Value;
use tokio::net::TcpListener;

/// An SPSP server on this machine.
pub(crate) struct Pointer {
    pub(crate) url: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// What it answers; nothing: that it is out of service.
    answer: Mutex<Option<Value>>,
    asked: AtomicUsize,
}

impl Pointer {
    /// Out of service, at first.
    pub(crate) async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/alice", listener.local_addr()?);
        let shared = Arc::<Shared>::default();
        let answering = Arc::clone(&shared);
        let router = Router::new().route(
            "/alice",
            axum::routing::get(move |headers: HeaderMap| {
                let reply = answering.reply(&headers);
                async move { reply }
            }),
        );
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { url, shared })
    }

    /// From now on whoever asks is sent to this STREAM server.
    pub(crate) fn answer(&self, to: &Value) {
        let mut answer = self
            .shared
            .answer
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *answer = Some(to.clone());
    }

    /// How often it was asked.
    pub(crate) fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn reply(&self, headers: &HeaderMap) -> Response {
        let accept = headers.get(header::ACCEPT);
        let accept = accept.and_then(|value| value.to_str().ok());
        if !accept.is_some_and(|accept| accept.contains("application/spsp4+json")) {
            return StatusCode::NOT_ACCEPTABLE.into_response();
        }
        self.asked.fetch_add(1, Ordering::SeqCst);
        let answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        match answer.as_ref() {
            Some(answer) => (
                [(header::CONTENT_TYPE, "application/spsp4+json")],
                answer.to_string(),
            )
                .into_response(),
            None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        }
    }
}
