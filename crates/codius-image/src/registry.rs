//! The registry's side of a pull: OCI distribution-spec over HTTP, for anonymous readers.
//!
//! Redirects are followed here and not in the HTTP client, because every hop decides anew: whether
//! the target may be spoken to at all, over which scheme, and that a token given for one host is not
//! shown to another. The operator's own registries (`RegistryConfig::insecure`) may lead to each
//! other; nobody else's leads to them, neither by a redirect nor by its token server.

use std::{
    collections::{HashMap, HashSet},
    error::Error as StdError,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use codius_outbound::{PrivateAddress, is_private_literal, public_only};
use reqwest::{
    Client, Response, StatusCode,
    header::{
        ACCEPT, AUTHORIZATION, CONTENT_RANGE, HeaderMap, HeaderValue, LOCATION, RANGE,
        WWW_AUTHENTICATE,
    },
    redirect,
};
use serde::Deserialize;
use tokio::{sync::mpsc, time::timeout};
use url::Url;

use crate::{
    digest::{Digest, Hasher},
    fault::Fault,
    limits::{ImageLimits, RegistryConfig},
    manifest::{self, Descriptor},
    reference::Reference,
};

/// Bytes of a token server's answer.
const TOKEN_BYTES: u64 = 64 << 10;
/// Tokens remembered; when there are more, all are forgotten.
const MAX_TOKENS: usize = 256;
/// How long a token is used if its server does not say (distribution's token specification).
const TOKEN_LIFE: Duration = Duration::from_secs(60);
/// A token is not used in its last seconds.
const TOKEN_MARGIN: Duration = Duration::from_secs(10);
/// Wait before an interrupted transfer is taken up again; doubled each time.
const RESUME_WAIT: Duration = Duration::from_millis(200);
/// The registry's name or address belongs to a private network. The operator may allow it.
const PRIVATE: &str = "its registry is not at a public address";

/// Speaks to registries.
#[derive(Debug)]
pub(crate) struct RegistryClient {
    /// For `https`; the text says why there is none (no certificates on this machine).
    secure: Result<Client, String>,
    /// For plain HTTP to listed hosts.
    plain: Client,
    /// `host:port` of hosts that are spoken to over plain HTTP.
    insecure: HashSet<String>,
    allow_private: bool,
    limits: Arc<ImageLimits>,
    tokens: Mutex<HashMap<TokenKey, Token>>,
}

/// Whose registry leads to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// One that the operator has listed, and that may lead to the others.
    Listed,
    /// Anybody's.
    Public,
}

/// Registry host and repository.
type TokenKey = (String, String);

#[derive(Debug, Clone)]
struct Token {
    value: HeaderValue,
    until: Instant,
}

/// Why a blob did not arrive.
#[derive(Debug)]
pub(crate) enum BlobFault {
    /// Its receiver closed the channel before the end, for a reason that only the receiver knows.
    ReceiverGone,
    /// The registry's side failed.
    Registry(Fault),
}

impl From<Fault> for BlobFault {
    fn from(fault: Fault) -> Self {
        Self::Registry(fault)
    }
}

/// Why one transfer of a blob ended early.
enum Broken {
    /// It may go on from where it stopped.
    Resume(Fault),
    /// It could have gone on, but the registry does not know how.
    NoResume,
    /// It is over.
    Final(BlobFault),
}

impl Broken {
    fn finally(fault: Fault) -> Self {
        Self::Final(BlobFault::Registry(fault))
    }
}

impl RegistryClient {
    /// Fails only if an entry of `insecure` is no host name.
    pub(crate) fn new(config: &RegistryConfig, limits: Arc<ImageLimits>) -> Result<Self, String> {
        // An error means that the program has installed a provider already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let insecure = config
            .insecure
            .iter()
            .map(|entry| {
                Url::parse(&format!("http://{entry}"))
                    .ok()
                    .filter(|url| url.path() == "/" && url.username().is_empty())
                    .and_then(|url| authority(&url))
                    .ok_or_else(|| format!("{entry:?} is not HOST or HOST:PORT of a registry"))
            })
            .collect::<Result<HashSet<_>, _>>()?;
        let builder = || {
            Client::builder()
                .user_agent(concat!("codius-image/", env!("CARGO_PKG_VERSION")))
                .redirect(redirect::Policy::none())
                .connect_timeout(limits.connect)
                .pool_max_idle_per_host(limits.parallel_layers)
        };
        // A proxy looks names up by itself, so it would have to do the refusing too.
        let secure = if config.allow_private_addresses {
            builder()
        } else {
            public_only(builder())
        };
        // Without roots, so that a machine that has no certificates can still use a listed registry.
        let no_roots = rustls::ClientConfig::builder()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let plain = builder()
            .no_proxy()
            .tls_backend_preconfigured(no_roots)
            .build()
            .map_err(|error| format!("no HTTP client: {}", chain(&error)))?;
        Ok(Self {
            secure: secure.build().map_err(|error| chain(&error)),
            plain,
            insecure,
            allow_private: config.allow_private_addresses,
            limits,
            tokens: Mutex::new(HashMap::new()),
        })
    }

    /// Fetches a manifest or index by tag or digest, and checks the digest if there is one.
    pub(crate) async fn manifest(
        &self,
        reference: &Reference,
        identifier: &str,
    ) -> Result<(Digest, Bytes), Fault> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(manifest::ACCEPT));
        let url = self.url(reference, &format!("manifests/{identifier}"))?;
        let response = self.get(reference, url, &headers).await?;
        let bytes = self
            .body(response, self.limits.manifest_bytes, "its manifest")
            .await?;
        let digest = Digest::of(&bytes);
        match identifier.parse::<Digest>() {
            Ok(asked) if asked != digest => Err(Fault::invalid(
                "its manifest does not have the digest it was asked for by",
            )),
            _ => Ok((digest, bytes)),
        }
    }

    /// Fetches a small blob into memory.
    pub(crate) async fn small_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
    ) -> Result<Bytes, Fault> {
        let url = self.url(reference, &format!("blobs/{}", descriptor.digest))?;
        let response = self.get(reference, url, &HeaderMap::new()).await?;
        let bytes = self.body(response, descriptor.size, "its config").await?;
        if bytes.len() as u64 != descriptor.size || Digest::of(&bytes) != descriptor.digest {
            return Err(Fault::invalid("its config is not what its digest says"));
        }
        Ok(bytes)
    }

    /// Streams a blob into a channel. Ok means that all of it was sent and had the right digest.
    ///
    /// `received` is called with the size of each piece. Dropping the future stops the transfer and
    /// closes the channel; a closed receiver ends it with an error.
    pub(crate) async fn blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        sink: mpsc::Sender<Bytes>,
        received: &(dyn Fn(u64) + Sync),
    ) -> Result<(), BlobFault> {
        let url = self.url(reference, &format!("blobs/{}", descriptor.digest))?;
        let mut transfer = Transfer {
            hasher: Hasher::new(),
            offset: 0,
        };
        let mut wait = RESUME_WAIT;
        let mut resumes = 0;
        let mut first_fault = None;
        loop {
            let result = self
                .transfer(reference, &url, descriptor, &mut transfer, &sink, received)
                .await;
            let fault = match result {
                Ok(()) => break,
                Err(Broken::Final(fault)) => return Err(fault),
                Err(Broken::NoResume) => None,
                Err(Broken::Resume(fault)) => Some(fault),
            };
            tracing::debug!(
                ?fault,
                offset = transfer.offset,
                resumes,
                "layer interrupted"
            );
            let may_resume = fault.is_some() && resumes < self.limits.resumes;
            // What broke the transfer first says more than why it could not go on.
            first_fault = first_fault.or(fault);
            if !may_resume {
                let fault =
                    first_fault.unwrap_or_else(|| Fault::unavailable("a layer ended early"));
                return Err(fault.into());
            }
            resumes += 1;
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
        if transfer.hasher.finish() != descriptor.digest {
            return Err(Fault::invalid("a layer is not what its digest says").into());
        }
        Ok(())
    }

    async fn transfer(
        &self,
        reference: &Reference,
        url: &Url,
        descriptor: &Descriptor,
        transfer: &mut Transfer,
        sink: &mpsc::Sender<Bytes>,
        received: &(dyn Fn(u64) + Sync),
    ) -> Result<(), Broken> {
        let mut headers = HeaderMap::new();
        if transfer.offset > 0 {
            let range = HeaderValue::from_str(&format!("bytes={}-", transfer.offset));
            headers.insert(RANGE, range.map_err(|_| Broken::finally(broken_header()))?);
        }
        let mut response = self
            .get(reference, url.clone(), &headers)
            .await
            .map_err(|fault| match fault {
                Fault::Unavailable(_) => Broken::Resume(fault),
                other => Broken::finally(other),
            })?;
        if transfer.offset > 0 && !continues_at(&response, transfer.offset) {
            return Err(Broken::NoResume);
        }
        let left = descriptor.size - transfer.offset;
        if response
            .content_length()
            .is_some_and(|length| length != left)
        {
            return Err(Broken::finally(Fault::invalid(
                "a layer has another size than announced",
            )));
        }
        let mut pace = Pace::new(&self.limits);
        while let Some(bytes) = pace
            .next_piece(&mut response)
            .await
            .map_err(Broken::Resume)?
        {
            let length = bytes.len() as u64;
            if length > descriptor.size - transfer.offset {
                return Err(Broken::finally(Fault::invalid(
                    "a layer is longer than announced",
                )));
            }
            transfer.hasher.update(&bytes);
            transfer.offset += length;
            received(length);
            if sink.send(bytes).await.is_err() {
                return Err(Broken::Final(BlobFault::ReceiverGone));
            }
        }
        if transfer.offset < descriptor.size {
            return Err(Broken::Resume(Fault::unavailable("a layer ended early")));
        }
        Ok(())
    }

    /// One request for this repository, with a token if the registry wants one.
    async fn get(
        &self,
        reference: &Reference,
        url: Url,
        headers: &HeaderMap,
    ) -> Result<Response, Fault> {
        let key = (
            reference.api_host().to_owned(),
            reference.repository().to_owned(),
        );
        let known = self.known_token(&key);
        let had_token = known.is_some();
        let from = self.origin(&url);
        let mut response = self.follow(url.clone(), headers, known, from).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let challenge = Challenge::of(&response);
            let Some(challenge) = challenge else {
                return Err(Fault::NotFound("its registry wants credentials".into()));
            };
            if had_token {
                self.tokens
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(&key);
            }
            let token = self.fetch_token(&challenge, reference, from).await?;
            self.remember(key, token.clone());
            response = self.follow(url, headers, Some(token.value), from).await?;
        }
        match response.status() {
            status if status.is_success() => Ok(response),
            StatusCode::NOT_FOUND => Err(Fault::NotFound("its registry does not have it".into())),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Fault::NotFound(
                "its registry does not show it to anonymous users".into(),
            )),
            StatusCode::TOO_MANY_REQUESTS => Err(Fault::unavailable(
                "its registry says that this host asks too often",
            )),
            status => Err(Fault::unavailable(format!(
                "its registry answered {status}"
            ))),
        }
    }

    /// One request, redirects followed. The token goes to the first host only.
    async fn follow(
        &self,
        mut url: Url,
        headers: &HeaderMap,
        token: Option<HeaderValue>,
        from: Origin,
    ) -> Result<Response, Fault> {
        let first_host = (url.scheme().to_owned(), authority(&url));
        for _ in 0..=self.limits.redirects {
            let mut request = self
                .client_for(&url, from)?
                .get(url.clone())
                .headers(headers.clone());
            if let Some(token) = &token
                && (url.scheme().to_owned(), authority(&url)) == first_host
            {
                request = request.header(AUTHORIZATION, token.clone());
            }
            let response = timeout(self.limits.idle, request.send())
                .await
                .map_err(|_| Fault::unavailable("its registry did not answer in time"))?
                .map_err(|error| request_fault(&error))?;
            let redirected = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            let Some(location) = response.headers().get(LOCATION).filter(|_| redirected) else {
                return Ok(response);
            };
            url = location
                .to_str()
                .ok()
                .and_then(|text| url.join(text).ok())
                .ok_or_else(|| Fault::unavailable("its registry redirects to no valid address"))?;
        }
        Err(Fault::unavailable(format!(
            "its registry redirects more than {} times",
            self.limits.redirects
        )))
    }

    fn origin(&self, url: &Url) -> Origin {
        if self.is_listed(url) {
            Origin::Listed
        } else {
            Origin::Public
        }
    }

    fn is_listed(&self, url: &Url) -> bool {
        url.scheme() == "http" && authority(url).is_some_and(|host| self.insecure.contains(&host))
    }

    /// The client that may speak to this URL, to which a registry has led.
    fn client_for(&self, url: &Url, from: Origin) -> Result<&Client, Fault> {
        match url.scheme() {
            "http" if self.is_listed(url) => match from {
                Origin::Listed => Ok(&self.plain),
                Origin::Public => Err(Fault::invalid(PRIVATE)),
            },
            "https" => {
                // The resolver never sees an address that is written out.
                if !self.allow_private && is_private_literal(url) {
                    return Err(Fault::invalid(PRIVATE));
                }
                self.secure.as_ref().map_err(|reason| {
                    Fault::Host(std::io::Error::other(format!("no https client: {reason}")))
                })
            }
            _ => Err(Fault::invalid(
                "its registry leads to an address that is not https; the operator may allow it",
            )),
        }
    }

    fn url(&self, reference: &Reference, path: &str) -> Result<Url, Fault> {
        let host = reference.api_host();
        let insecure = Url::parse(&format!("http://{host}"))
            .ok()
            .and_then(|url| authority(&url))
            .is_some_and(|host| self.insecure.contains(&host));
        let scheme = if insecure { "http" } else { "https" };
        Url::parse(&format!(
            "{scheme}://{host}/v2/{}/{path}",
            reference.repository()
        ))
        .map_err(|error| Fault::invalid(format!("its registry has no valid address: {error}")))
    }

    fn known_token(&self, key: &TokenKey) -> Option<HeaderValue> {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens
            .get(key)
            .filter(|token| token.until > Instant::now())
            .map(|token| token.value.clone())
    }

    fn remember(&self, key: TokenKey, token: Token) {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= MAX_TOKENS {
            tokens.clear();
        }
        tokens.insert(key, token);
    }

    /// Asks a token server for anonymous read access (distribution's token specification).
    async fn fetch_token(
        &self,
        challenge: &Challenge,
        reference: &Reference,
        from: Origin,
    ) -> Result<Token, Fault> {
        let mut url = Url::parse(&challenge.realm)
            .map_err(|_| Fault::unavailable("its registry names no valid token server"))?;
        let scope = match &challenge.scope {
            Some(scope) => scope.clone(),
            None => format!("repository:{}:pull", reference.repository()),
        };
        url.query_pairs_mut()
            .extend_pairs(challenge.service.iter().map(|service| ("service", service)))
            .append_pair("scope", &scope);
        let response = self.follow(url, &HeaderMap::new(), None, from).await?;
        match response.status() {
            status if status.is_success() => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
                return Err(Fault::NotFound(
                    "its registry does not show it to anonymous users".into(),
                ));
            }
            status => {
                return Err(Fault::unavailable(format!(
                    "its token server answered {status}"
                )));
            }
        }
        let bytes = self.body(response, TOKEN_BYTES, "its token").await?;
        let answer: TokenAnswer = serde_json::from_slice(&bytes)
            .map_err(|_| Fault::unavailable("its token server's answer cannot be read"))?;
        let text = answer
            .token
            .or(answer.access_token)
            .ok_or_else(|| Fault::unavailable("its token server gave no token"))?;
        let mut value = HeaderValue::from_str(&format!("Bearer {text}"))
            .map_err(|_| Fault::unavailable("its token server gave no valid token"))?;
        value.set_sensitive(true);
        let life = answer.expires_in.map_or(TOKEN_LIFE, Duration::from_secs);
        let life = life
            .saturating_sub(TOKEN_MARGIN)
            .min(Duration::from_secs(3600));
        Ok(Token {
            value,
            until: Instant::now() + life,
        })
    }

    /// Reads a whole body that must fit `limit`.
    async fn body(
        &self,
        mut response: Response,
        limit: u64,
        what: &'static str,
    ) -> Result<Bytes, Fault> {
        let too_large = || Fault::too_large(format!("{what} has more than {limit} bytes"));
        if response
            .content_length()
            .is_some_and(|length| length > limit)
        {
            return Err(too_large());
        }
        let mut pace = Pace::new(&self.limits);
        let mut body = BytesMut::new();
        while let Some(bytes) = pace.next_piece(&mut response).await? {
            if (body.len() + bytes.len()) as u64 > limit {
                return Err(too_large());
            }
            body.extend_from_slice(&bytes);
        }
        Ok(body.freeze())
    }
}

/// How far a blob has come, over all its interruptions.
struct Transfer {
    hasher: Hasher,
    offset: u64,
}

/// Watches that a body keeps coming. Only time spent waiting for the registry counts, not time in
/// which our own side was busy.
struct Pace {
    idle: Duration,
    idle_bytes: u64,
    waited: Duration,
    arrived: u64,
}

impl Pace {
    fn new(limits: &ImageLimits) -> Self {
        Self {
            idle: limits.idle,
            idle_bytes: limits.idle_bytes,
            waited: Duration::ZERO,
            arrived: 0,
        }
    }

    async fn next_piece(&mut self, response: &mut Response) -> Result<Option<Bytes>, Fault> {
        let slow = || Fault::unavailable("its registry is too slow");
        let start = Instant::now();
        let piece = timeout(self.idle, response.chunk())
            .await
            .map_err(|_| slow())?
            .map_err(|error| request_fault(&error))?;
        self.waited += start.elapsed();
        self.arrived += piece.as_ref().map_or(0, |bytes| bytes.len() as u64);
        if self.waited >= self.idle {
            if self.arrived < self.idle_bytes && piece.is_some() {
                return Err(slow());
            }
            (self.waited, self.arrived) = (Duration::ZERO, 0);
        }
        Ok(piece)
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// A `WWW-Authenticate: Bearer` header (RFC 9110 11.6.1).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Challenge {
    pub(crate) realm: String,
    pub(crate) service: Option<String>,
    pub(crate) scope: Option<String>,
}

impl Challenge {
    fn of(response: &Response) -> Option<Self> {
        let mut headers = response.headers().get_all(WWW_AUTHENTICATE).iter();
        headers.find_map(|value| Self::parse(value.to_str().ok()?))
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (scheme, mut rest) = text.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut parameters = HashMap::new();
        loop {
            rest = rest.trim_start_matches([' ', ',', '\t']);
            if rest.is_empty() {
                break;
            }
            let (name, after) = rest.split_once('=')?;
            let value;
            (value, rest) = match after.strip_prefix('"') {
                // No escapes: none of these values can contain a quote.
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_at(after.find(',').unwrap_or(after.len())),
            };
            parameters.insert(name.trim().to_ascii_lowercase(), value.to_owned());
        }
        Some(Self {
            realm: parameters.remove("realm")?,
            service: parameters.remove("service"),
            scope: parameters.remove("scope"),
        })
    }
}

/// `host:port` in lower case, the port always written.
fn authority(url: &Url) -> Option<String> {
    Some(format!(
        "{}:{}",
        url.host_str()?,
        url.port_or_known_default()?
    ))
}

fn continues_at(response: &Response, offset: u64) -> bool {
    response.status() == StatusCode::PARTIAL_CONTENT
        && response
            .headers()
            .get(CONTENT_RANGE)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|range| range.starts_with(&format!("bytes {offset}-")))
}

fn broken_header() -> Fault {
    Fault::Host(std::io::Error::other("a header of our own is not valid"))
}

fn request_fault(error: &reqwest::Error) -> Fault {
    if PrivateAddress::caused(error) {
        return Fault::invalid(PRIVATE);
    }
    // Without the URL, which may carry a signature of the registry's storage.
    if error.is_timeout() {
        Fault::unavailable("its registry did not answer in time")
    } else if error.is_connect() {
        Fault::unavailable("its registry cannot be reached")
    } else {
        Fault::unavailable("the connection to its registry broke")
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bearer_challenge_is_read() {
        let text = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/x:pull,push""#;
        let challenge = Challenge::parse(text).expect("a challenge");
        assert_eq!(challenge.realm, "https://auth.docker.io/token");
        assert_eq!(challenge.service.as_deref(), Some("registry.docker.io"));
        assert_eq!(
            challenge.scope.as_deref(),
            Some("repository:library/x:pull,push")
        );
        let bare = Challenge::parse("bearer realm=https://a/b, service=c").expect("a challenge");
        assert_eq!(
            (bare.realm.as_str(), bare.service.as_deref()),
            ("https://a/b", Some("c"))
        );
    }

    #[test]
    fn other_challenges_are_not_read() {
        for text in [
            "",
            "Basic realm=\"x\"",
            "Bearer",
            "Bearer service=\"x\"",
            "Bearer realm=\"x",
        ] {
            assert_eq!(Challenge::parse(text), None, "{text}");
        }
    }

    #[test]
    fn only_listed_hosts_are_spoken_to_in_the_clear() {
        let config = RegistryConfig {
            insecure: vec!["127.0.0.1:5000".into(), "Plain.example".into()],
            allow_private_addresses: false,
        };
        let client =
            RegistryClient::new(&config, Arc::new(ImageLimits::default())).expect("a client");
        let led = |url: &str, from| {
            client
                .client_for(&Url::parse(url).expect(url), from)
                .is_ok()
        };
        let allowed = |url: &str| led(url, Origin::Listed);
        assert!(!led("http://127.0.0.1:5000/v2/", Origin::Public));
        assert!(!led("https://127.0.0.1:5000/v2/", Origin::Public));
        assert!(allowed("http://127.0.0.1:5000/v2/"));
        assert!(allowed("http://plain.example/v2/"));
        assert!(!allowed("http://127.0.0.1:5001/v2/"));
        assert!(!allowed("http://example.com/"));
        assert!(!allowed("https://127.0.0.1:5000/"));
        assert!(!allowed("https://[::1]/"));
        assert!(!allowed("https://169.254.169.254/latest"));
        for other in [
            "ftp://example.com/",
            "file:///etc/passwd",
            "data:,x",
            "gopher://1.1.1.1/",
        ] {
            assert!(!allowed(other), "{other}");
        }
        let scheme = |text: &str| {
            let reference: Reference = text.parse().expect(text);
            client.url(&reference, "tags").expect(text).to_string()
        };
        assert_eq!(
            scheme("127.0.0.1:5000/x"),
            "http://127.0.0.1:5000/v2/x/tags"
        );
        assert_eq!(
            scheme("127.0.0.1:5001/x"),
            "https://127.0.0.1:5001/v2/x/tags"
        );
        assert_eq!(
            scheme("x"),
            "https://registry-1.docker.io/v2/library/x/tags"
        );
    }

    #[test]
    fn an_entry_that_is_no_host_is_refused() {
        for entry in ["", "http://x", "x/y", "user@x", "x:99999"] {
            let config = RegistryConfig {
                insecure: vec![entry.into()],
                ..Default::default()
            };
            assert!(
                RegistryClient::new(&config, Arc::default()).is_err(),
                "{entry}"
            );
        }
    }
}
