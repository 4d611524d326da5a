//! Whether a signed request is of this moment, for this host, and the first of its kind.
//!
//! What is signed and how is `codius-signature`'s; here is what needs a clock and a memory. A request
//! that was listened to on its way cannot be sent again with an effect:
//!
//! - It is refused when it was signed more than [`MAX_AGE_SECS`] ago, or later than now.
//! - Until then its nonce is remembered, and a second one with it is refused.
//! - What was signed before this process began is refused, since an earlier one may have heard it.
//!   Clocks differ by a moment ([`MAX_AHEAD_SECS`]); who signs in the first seconds of a host is told
//!   to sign again, after them.
//! - It is signed for one authority, and this host has its own.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use codius_signature::{KeyId, MAX_FIELD_BYTES, Received, Request, SignatureError, Signed, verify};
use url::Url;

use crate::{clock::Clock, http_error::HttpError};

/// How old a signature may be.
const MAX_AGE_SECS: u64 = 300;
/// How far ahead of this host's clock that of a client may be. More is corrected by the client, who
/// sees this host's clock in the `Date` of the refusal.
const MAX_AHEAD_SECS: u64 = 2;
/// The most nonces that are remembered, each with its key in some 150 bytes. With more requests in
/// [`MAX_AGE_SECS`] than that, further ones are refused.
const MAX_NONCES: usize = 65_536;

const SIGNATURE: HeaderName = HeaderName::from_static("signature");
const SIGNATURE_INPUT: HeaderName = HeaderName::from_static("signature-input");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");

/// Judges signed requests.
pub(crate) struct Signatures {
    clock: Clock,
    /// Host and port of the public address.
    public: String,
    /// Others by which this host is reached from its own machine.
    loopback: Vec<String>,
    /// UNIX seconds: nothing that an earlier process may have heard was signed after it.
    not_before: u64,
    /// Of those who create leases, which is anybody, and of those who own one: the first cannot take
    /// the room of the second.
    creations: Mutex<Nonces>,
    controls: Mutex<Nonces>,
}

/// What a signature is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To become the owner of a lease.
    Create,
    /// To do something with a lease that is one's own. To be asked only after that is known.
    Control,
}

impl Signatures {
    /// `port` is that of the listener; `began_unix_ms` is when this process had the database, so that
    /// no other one had it any more.
    pub(crate) fn new(public_uri: &Url, port: u16, began_unix_ms: u64, clock: Clock) -> Self {
        let public = match (public_uri.host_str(), public_uri.port()) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (host, _) => host.unwrap_or_default().to_owned(),
        };
        let loopback = ["localhost", "127.0.0.1", "[::1]"];
        Self {
            clock,
            public,
            loopback: loopback.map(|host| format!("{host}:{port}")).into(),
            not_before: began_unix_ms / 1000 + MAX_AHEAD_SECS,
            creations: Mutex::default(),
            controls: Mutex::default(),
        }
    }

    /// Who has signed a request, and when; `None` if nobody has tried to. That it is no copy is still
    /// to be asked: [`Signatures::once`].
    pub(crate) async fn who(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Option<Signed>, HttpError> {
        if !headers.contains_key(SIGNATURE) && !headers.contains_key(SIGNATURE_INPUT) {
            return Ok(None);
        }
        let read = |name: &HeaderName, shown| joined(headers, name).map_err(|()| malformed(shown));
        let signature = read(&SIGNATURE, "Signature")?;
        let input = read(&SIGNATURE_INPUT, "Signature-Input")?;
        let digest = read(&CONTENT_DIGEST, "Content-Digest")?;
        let received = Received {
            content_digest: digest.as_deref(),
            signature_input: input.as_deref(),
            signature: signature.as_deref(),
        };
        let host = headers.get(header::HOST);
        let host = host.and_then(|host| host.to_str().ok());
        let host = host.unwrap_or_default().to_ascii_lowercase();
        let verified = |authority| {
            let request = Request {
                method: method.as_str(),
                authority,
                path: uri.path(),
                query: uri.query(),
                body,
            };
            verify(&request, &received)
        };
        // A proxy in front of this host may have changed the Host header, but no client signs for a
        // name that is not this host's.
        let signed = match verified(&self.public) {
            Err(SignatureError::Wrong) if self.loopback.contains(&host) => verified(&host),
            other => other,
        };
        let signed = signed.map_err(|error| self.wrong(error))?;
        self.timely(signed.created).await?;
        Ok(Some(signed))
    }

    /// As [`Signatures::who`], for a request that somebody must have signed.
    pub(crate) async fn required(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Signed, HttpError> {
        let signed = self.who(method, uri, headers, body).await?;
        signed.ok_or_else(|| unauthorized("this request is not signed").next(HOW))
    }

    /// Lets a signature pass once.
    pub(crate) fn once(&self, signed: &Signed, purpose: Purpose) -> Result<(), HttpError> {
        let nonces = match purpose {
            Purpose::Create => &self.creations,
            Purpose::Control => &self.controls,
        };
        let mut nonces = nonces.lock().unwrap_or_else(PoisonError::into_inner);
        match nonces.take(signed, self.seconds_now()) {
            Taken::First => Ok(()),
            Taken::Again => Err(unauthorized(
                "this signature was used for another request already",
            )
            .next("sign each request anew, with a nonce of its own")),
            Taken::Full => Err(HttpError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many signed requests",
            )
            .next("try again in a few minutes")
            .header(
                header::RETRY_AFTER,
                HeaderValue::from(u16::try_from(MAX_AGE_SECS).unwrap_or(u16::MAX)),
            )),
        }
    }

    fn seconds_now(&self) -> u64 {
        self.clock.wall() / 1000
    }

    async fn timely(&self, created: u64) -> Result<(), HttpError> {
        let now = self.seconds_now();
        if created.saturating_add(MAX_AGE_SECS) < now || created > now + MAX_AHEAD_SECS {
            return Err(
                unauthorized("this request was signed at another time than now")
                    .next("set the clock, or sign by that of this host: the `Date` of this answer"),
            );
        }
        if created <= self.not_before {
            // The answer comes when a signature by its `Date` is good. That is soon, or the clock was
            // turned back: then it is no use to wait.
            let wait = (self.not_before + 1).saturating_sub(now);
            tokio::time::sleep(Duration::from_secs(wait.min(MAX_AHEAD_SECS + 1))).await;
            return Err(
                unauthorized("this request was signed before this host was started")
                    .next("sign it again"),
            );
        }
        Ok(())
    }

    fn wrong(&self, error: SignatureError) -> HttpError {
        let reply = unauthorized(error.to_string());
        match error {
            SignatureError::Wrong => reply.next(format!(
                "sign the request as it is sent, for the authority {}",
                self.public
            )),
            SignatureError::Digest => {
                reply.next("compute `Content-Digest` of the body as it is sent")
            }
            SignatureError::Missing(_)
            | SignatureError::TooLong(_)
            | SignatureError::Malformed(_)
            | SignatureError::NoLabel(_)
            | SignatureError::Components
            | SignatureError::Parameter(_)
            | SignatureError::UnknownParameter => reply.next(HOW),
        }
    }
}

/// What a client can do that does not know how.
const HOW: &str =
    "sign it as the `signature` scheme of /api/v2/openapi.json says, or use the tool `codius`";

/// 401, with the scheme that is meant.
fn unauthorized(text: impl Into<String>) -> HttpError {
    HttpError::new(StatusCode::UNAUTHORIZED, text).header(
        header::WWW_AUTHENTICATE,
        HeaderValue::from_static("Signature"),
    )
}

fn malformed(name: &str) -> HttpError {
    unauthorized(format!("`{name}` cannot be read")).next(HOW)
}

/// The lines of a field as one, within bounds.
fn joined(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>, ()> {
    let mut lines = headers.get_all(name).iter();
    let Some(first) = lines.next() else {
        return Ok(None);
    };
    let mut all = first.to_str().map_err(|_| ())?.to_owned();
    for line in lines {
        if all.len() > MAX_FIELD_BYTES {
            return Err(());
        }
        all.push_str(", ");
        all.push_str(line.to_str().map_err(|_| ())?);
    }
    Ok(Some(all))
}

/// The signatures that may still be sent again, oldest first.
#[derive(Debug, Default)]
struct Nonces(BTreeSet<(u64, KeyId, Vec<u8>)>);

#[derive(Debug, PartialEq, Eq)]
enum Taken {
    First,
    Again,
    Full,
}

impl Nonces {
    fn take(&mut self, signed: &Signed, now: u64) -> Taken {
        // One second more than a signature is good for: the clock goes on between the two looks at it.
        let old = |created: u64| created.saturating_add(MAX_AGE_SECS + 1) < now;
        while self.0.first().is_some_and(|(created, ..)| old(*created)) {
            self.0.pop_first();
        }
        let entry = (signed.created, signed.key, signed.nonce.clone());
        if self.0.contains(&entry) {
            return Taken::Again;
        }
        if self.0.len() >= MAX_NONCES {
            return Taken::Full;
        }
        self.0.insert(entry);
        Taken::First
    }
}

#[cfg(test)]
mod tests {
    use codius_signature::{Key, sign};

    use super::*;

    fn signed(created: u64, nonce: u64) -> Signed {
        Signed {
            key: KeyId::from_bytes([1; 32]),
            created,
            nonce: [nonce.to_be_bytes(), [0; 8]].concat(),
        }
    }

    #[test]
    fn a_nonce_passes_once_for_as_long_as_its_signature_is_good() {
        let mut nonces = Nonces::default();
        assert_eq!(nonces.take(&signed(1000, 1), 1000), Taken::First);
        assert_eq!(
            nonces.take(&signed(1000, 1), 1000 + MAX_AGE_SECS),
            Taken::Again
        );
        assert_eq!(nonces.take(&signed(1000, 2), 1000), Taken::First);
        assert_eq!(nonces.0.len(), 2);
        nonces.take(&signed(1400, 1), 1000 + MAX_AGE_SECS + 2);
        assert_eq!(nonces.0.len(), 1);
    }

    #[test]
    fn a_full_table_refuses_until_its_entries_are_old() {
        let mut nonces = Nonces::default();
        for nonce in 0..MAX_NONCES as u64 {
            assert_eq!(nonces.take(&signed(1000, nonce), 1000), Taken::First);
        }
        assert_eq!(nonces.take(&signed(1000, u64::MAX), 1000), Taken::Full);
        assert_eq!(nonces.take(&signed(1000, 5), 1000), Taken::Again);
        let later = 1000 + MAX_AGE_SECS + 2;
        assert_eq!(nonces.take(&signed(later, 1), later), Taken::First);
    }

    /// A host that began ten seconds ago, and how it takes a request signed so.
    async fn judge(authority: &str, host: &str, age_secs: i64) -> Result<KeyId, u16> {
        let clock = Clock::system();
        let now = clock.wall();
        let began = now - 10_000;
        let public = Url::parse("https://host.example").unwrap();
        let signatures = Signatures::new(&public, 3000, began, clock);
        let uri: Uri = "/api/v2/leases/x/stop".parse().unwrap();
        let request = Request {
            method: "POST",
            authority,
            path: uri.path(),
            query: None,
            body: b"{}",
        };
        let created = (now / 1000).saturating_add_signed(-age_secs);
        let fields = sign(&Key::from_seed([5; 32]), &request, created, &[1; 16]);
        let headers = HeaderMap::from_iter([
            (header::HOST, host.parse().unwrap()),
            (SIGNATURE, fields.signature.parse().unwrap()),
            (SIGNATURE_INPUT, fields.signature_input.parse().unwrap()),
            (
                CONTENT_DIGEST,
                fields.content_digest.unwrap().parse().unwrap(),
            ),
        ]);
        let signed = signatures.required(&Method::POST, &uri, &headers, b"{}");
        match signed.await {
            Ok(signed) => Ok(signed.key),
            Err(error) => {
                assert!(error.body().next.is_some(), "{error:?}");
                Err(error.status())
            }
        }
    }

    #[tokio::test]
    async fn a_signature_is_for_this_host_and_this_moment() {
        let key = Ok(Key::from_seed([5; 32]).id());
        assert_eq!(judge("host.example", "host.example", 0).await, key);
        // A proxy in front may have changed the Host header,
        assert_eq!(judge("host.example", "127.0.0.1:3000", 5).await, key);
        // and who is on this machine may use its own names.
        assert_eq!(judge("localhost:3000", "LOCALHOST:3000", 0).await, key);
        // Another host's signature with that host's name, sent here, is another host's.
        assert_eq!(judge("other.example", "other.example", 0).await, Err(401));
        assert_eq!(judge("localhost:3001", "localhost:3001", 0).await, Err(401));
        for age_secs in [301, 9, 8, -4, -3600] {
            let judged = judge("host.example", "host.example", age_secs).await;
            assert_eq!(judged, Err(401), "{age_secs}");
        }
    }

    #[tokio::test]
    async fn a_request_without_a_signature_is_nobodys() {
        let public = Url::parse("https://host.example").unwrap();
        let signatures = Signatures::new(&public, 3000, 0, Clock::system());
        let uri = Uri::from_static("/");
        let none = HeaderMap::new();
        let who = signatures.who(&Method::GET, &uri, &none, b"").await;
        assert_eq!(who.unwrap(), None);
        let refused = signatures.required(&Method::GET, &uri, &none, b"").await;
        assert_eq!(refused.unwrap_err().status(), 401);
        // One of the two fields is an attempt.
        let half = HeaderMap::from_iter([(SIGNATURE, "sig1=:AAAA:".parse().unwrap())]);
        let who = signatures.who(&Method::GET, &uri, &half, b"").await;
        assert_eq!(who.unwrap_err().status(), 401);
    }
}
