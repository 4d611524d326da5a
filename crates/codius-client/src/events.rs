//! What happens to a lease, as it happens.

use codius_api::LeaseEvent;

/// The longest event that is read.
const MAX_EVENT_BYTES: usize = 64 * 1024;

/// Events of one lease; see [`HostClient::events`](crate::HostClient::events).
pub struct Events {
    response: reqwest::Response,
    unread: Vec<u8>,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Events")
            .field("unread", &self.unread.len())
            .finish_non_exhaustive()
    }
}

impl Events {
    pub(crate) fn new(response: reqwest::Response) -> Self {
        Self {
            response,
            unread: Vec::new(),
        }
    }

    /// The next event; `None` when there are no more, or they cannot be read any more. Safe to drop
    /// while waiting.
    pub async fn next(&mut self) -> Option<LeaseEvent> {
        loop {
            while let Some(end) = self.unread.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                let data = line.strip_prefix(b"data:").map(<[u8]>::trim_ascii);
                if let Some(event) = data.and_then(|data| serde_json::from_slice(data).ok()) {
                    return Some(event);
                }
            }
            let chunk = self.response.chunk().await.ok()??;
            if self.unread.len() + chunk.len() > MAX_EVENT_BYTES {
                return None;
            }
            self.unread.extend_from_slice(&chunk);
        }
    }
}
