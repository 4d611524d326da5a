//! Signed requests: who sends them can be seen from them (RFC 9421; the profile is that of
//! `codius-signature`).

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use codius_signature::{Key, KeyId, Request, sign};
use reqwest::{Method, RequestBuilder, Response, header};
use url::Url;

/// Random bytes of a signature that no other has.
const NONCE_BYTES: usize = 16;
const ONE_SECOND: Duration = Duration::from_secs(1);

/// A key, and how far its owner's clock is off.
#[derive(Debug)]
pub struct Signer {
    key: Key,
    /// What has to be added to this machine's clock, as a host has said.
    ahead_secs: AtomicI64,
}

impl Signer {
    pub fn new(key: Key) -> Self {
        Self {
            key,
            ahead_secs: AtomicI64::new(0),
        }
    }

    /// The name under which hosts know it.
    pub fn id(&self) -> KeyId {
        self.key.id()
    }

    /// Adds the fields of a new signature. Each request that is sent needs one of its own.
    pub(crate) fn sign(
        &self,
        request: RequestBuilder,
        method: &Method,
        url: &Url,
        body: &[u8],
    ) -> RequestBuilder {
        let authority = authority(url);
        let signed = Request {
            method: method.as_str(),
            authority: &authority,
            path: url.path(),
            query: url.query(),
            body,
        };
        let created = now_secs().saturating_add(self.ahead_secs.load(Ordering::Relaxed));
        let created = u64::try_from(created).unwrap_or(0);
        let nonce: [u8; NONCE_BYTES] = rand::random();
        let fields = sign(&self.key, &signed, created, &nonce);
        let mut request = request
            .header("Signature-Input", fields.signature_input)
            .header("Signature", fields.signature);
        if let Some(digest) = fields.content_digest {
            request = request.header("Content-Digest", digest);
        }
        request
    }

    /// Takes up the clock of a host that has refused a signature, so that another try makes sense: how
    /// long to wait before it. `None` if the host has not said what time it is.
    pub(crate) fn correct(&self, refusal: &Response) -> Option<Duration> {
        let date = refusal.headers().get(header::DATE)?;
        let date = jiff::fmt::rfc2822::parse(date.to_str().ok()?).ok()?;
        let ahead = date.timestamp().as_second().saturating_sub(now_secs());
        let before = self.ahead_secs.swap(ahead, Ordering::Relaxed);
        // Moments are whole seconds: one in which the host was started is too old for it, and the next
        // one is not.
        Some(if before == ahead {
            ONE_SECOND
        } else {
            Duration::ZERO
        })
    }
}

/// As the `Host` header has it.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

fn now_secs() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(date: Option<&str>) -> Response {
        let response = http::Response::builder().status(401);
        let response = match date {
            Some(date) => response.header("Date", date),
            None => response,
        };
        response.body("").expect("it is a response").into()
    }

    #[test]
    fn the_clock_is_corrected_by_that_of_the_host() {
        let signer = Signer::new(Key::from_seed([7; 32]));
        let pause = signer.correct(&refusal(Some("Tue, 20 Apr 2021 02:07:55 GMT")));
        assert_eq!(pause, Some(Duration::ZERO));
        let ahead = signer.ahead_secs.load(Ordering::Relaxed);
        assert!((ahead + now_secs() - 1_618_884_475).abs() <= 1, "{ahead}");
        for date in [None, Some("yesterday")] {
            assert_eq!(signer.correct(&refusal(date)), None);
        }
        assert_eq!(signer.ahead_secs.load(Ordering::Relaxed), ahead);
    }

    #[test]
    fn the_authority_is_that_of_the_host_header() {
        for (url, expected) in [
            ("https://Host.Example/x", "host.example"),
            ("https://host.example:443/x", "host.example"),
            ("http://localhost:3000", "localhost:3000"),
            ("http://[::1]:3000/", "[::1]:3000"),
        ] {
            assert_eq!(authority(&url.parse().unwrap()), expected);
        }
    }
}
