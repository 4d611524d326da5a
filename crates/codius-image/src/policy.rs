//! Which images the operator runs, and which ones stay in the cache: lists of patterns.
//!
//! | pattern | means |
//! |---|---|
//! | `*` | every image |
//! | `registry.example`, `registry.example:5000`, `registry.example/*` | every image of a registry |
//! | `*.example` | every image of the registries below a name |
//! | `registry.example/team/*` | every repository below a path |
//! | `registry.example/team/app` | one repository, with all tags and digests |
//! | `registry.example/team/app:1` | one tag |
//! | `sha256:…` | one image or index, whoever serves it |
//!
//! The registry is always written out (`docker.io/library/nginx`, or short `docker.io/nginx`).
//!
//! `deny` wins over `allow`; an empty `allow` allows everything. Both are asked before a registry is:
//! a registry that is not allowed gets no request. So a digest in `allow` counts only if the manifest
//! names the image by it, while one in `deny` is also compared with what a tag turns out to mean.
//!
//! Traps: one registry has many spellings, so names are compared in one form (lower case, addresses as
//! numbers, no default port, the aliases of Docker's registry as one). Other aliases cannot be known:
//! who wants to keep content away rather than a name denies its digest, or allows only what he knows.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer};
use thiserror::Error;
use url::Url;

use crate::{digest::Digest, reference::Reference};

/// The registry that has several names.
const DOCKER: &str = "docker.io";
const DOCKER_ALIASES: [&str; 3] = [
    "index.docker.io",
    "registry-1.docker.io",
    "registry.docker.io",
];
/// Bytes of one pattern.
const MAX_PATTERN_BYTES: usize = 1024;

/// What the operator says of images.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImagePolicy {
    /// If there are any: what else is there is refused.
    pub allow: Vec<Pattern>,
    /// Refused, even if it is allowed.
    pub deny: Vec<Pattern>,
    /// Never removed from the cache to make room. Nothing is fetched for it.
    pub pin: Vec<Pattern>,
}

impl ImagePolicy {
    /// The rule that keeps an image away, if there is one. `digests` are what is known of what the
    /// reference means: what is written in it, the index's, the image's.
    pub(crate) fn refusal(&self, reference: &Reference, digests: &[Digest]) -> Option<String> {
        let denied = self
            .deny
            .iter()
            .find(|pattern| pattern.matches(reference, digests));
        if let Some(pattern) = denied {
            return Some(format!("the rule deny = \"{pattern}\" says so"));
        }
        let is_allowed =
            |pattern: &Pattern| pattern.matches(reference, reference.digest().as_slice());
        if self.allow.is_empty() || self.allow.iter().any(is_allowed) {
            return None;
        }
        let allowed: Vec<_> = self.allow.iter().take(5).map(Pattern::to_string).collect();
        let more = if self.allow.len() > allowed.len() {
            ", …"
        } else {
            ""
        };
        Some(format!(
            "it runs only images of {}{more}",
            allowed.join(", ")
        ))
    }

    pub(crate) fn is_pinned(&self, references: &[Reference], digests: &[Digest]) -> bool {
        self.pin.iter().any(|pattern| {
            let mut references = references.iter();
            references.any(|reference| pattern.matches(reference, digests))
        })
    }
}

/// A set of images, as the operator writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    set: Set,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Set {
    All,
    Digest(Digest),
    Registry(Registry),
    Below(Registry, String),
    Repository(Registry, String),
    Tag(Registry, String, String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Registry {
    One(String),
    /// Those that end with this; it begins with a dot.
    Ending(String),
}

/// The text is no pattern. Nothing happened; the operator corrects it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is no pattern for images: {reason}")]
pub struct InvalidPattern {
    text: String,
    reason: String,
}

impl Pattern {
    /// Whether a reference is one of them, by what is written in it.
    pub fn covers(&self, reference: &str) -> bool {
        let reference: Result<Reference, _> = reference.parse();
        reference.is_ok_and(|it| self.matches(&it, it.digest().as_slice()))
    }

    fn matches(&self, reference: &Reference, digests: &[Digest]) -> bool {
        let at = |registry: &Registry| registry.has(&canonical(reference.domain()));
        let repository = reference.repository();
        match &self.set {
            Set::All => true,
            Set::Digest(digest) => digests.contains(digest),
            Set::Registry(registry) => at(registry),
            Set::Below(registry, path) => {
                at(registry)
                    && repository
                        .strip_prefix(path.as_str())
                        .is_some_and(|rest| rest.starts_with('/'))
            }
            Set::Repository(registry, path) => at(registry) && repository == path,
            Set::Tag(registry, path, tag) => {
                at(registry) && repository == path && reference.tag_meant() == Some(tag)
            }
        }
    }
}

impl Registry {
    fn has(&self, domain: &str) -> bool {
        match self {
            Self::One(name) => name == domain,
            Self::Ending(end) => {
                let host = domain.rsplit_once(':').map_or(domain, |(host, _)| host);
                host.ends_with(end.as_str())
            }
        }
    }
}

/// One spelling for each registry.
fn canonical(domain: &str) -> String {
    let url = Url::parse(&format!("https://{domain}/")).ok();
    let host = url
        .as_ref()
        .and_then(|url| Some((url.host_str()?.to_owned(), url.port())));
    let Some((host, port)) = host else {
        return domain.to_ascii_lowercase();
    };
    if DOCKER_ALIASES.contains(&host.as_str()) {
        return DOCKER.to_owned();
    }
    match port {
        // 443 is the default, 80 that of registries without TLS.
        None | Some(80) => host,
        Some(port) => format!("{host}:{port}"),
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Pattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = |reason: String| InvalidPattern {
            text: text.chars().take(80).collect(),
            reason,
        };
        if text.len() > MAX_PATTERN_BYTES {
            return Err(invalid(format!(
                "it has more than {MAX_PATTERN_BYTES} bytes"
            )));
        }
        let set = if text == "*" {
            Set::All
        } else if text.starts_with("sha256:") {
            Set::Digest(
                text.parse()
                    .map_err(|error: crate::InvalidDigest| invalid(error.to_string()))?,
            )
        } else {
            named(text).map_err(invalid)?
        };
        Ok(Self {
            text: text.to_owned(),
            set,
        })
    }
}

/// A pattern that begins with a registry.
fn named(text: &str) -> Result<Set, String> {
    let (host, rest) = match text.split_once('/') {
        Some((host, rest)) => (host, Some(rest)),
        None => (text, None),
    };
    let is_registry = host.contains(['.', ':']) || host == "localhost";
    if !is_registry {
        return Err(format!(
            "write the registry before it, such as docker.io/{text}, or sha256: before a digest"
        ));
    }
    let (registry, sample) = match host.strip_prefix('*') {
        Some(end) if end.starts_with('.') && !end.contains(':') => (
            Registry::Ending(end.to_ascii_lowercase()),
            format!("x{end}"),
        ),
        Some(_) => return Err("a star stands for whole names before a dot: *.example".into()),
        None => (Registry::One(canonical(host)), host.to_owned()),
    };
    // The grammar of references is that of the rest, too.
    let read = |rest: &str| -> Result<Reference, String> {
        let reference: Reference = format!("{sample}/{rest}")
            .parse()
            .map_err(|error: crate::InvalidReference| error.to_string())?;
        if reference.digest().is_some() {
            return Err("write the digest alone, from sha256: on".into());
        }
        Ok(reference)
    };
    let Some(rest) = rest.filter(|rest| *rest != "*") else {
        read("x")?;
        return Ok(Set::Registry(registry));
    };
    if let Some(path) = rest.strip_suffix("/*") {
        // With something below, so that Docker's registry puts nothing before a single word.
        let below = read(&format!("{path}/x"))?;
        let path = below.repository().strip_suffix("/x").unwrap_or_default();
        return Ok(Set::Below(registry, path.to_owned()));
    }
    let reference = read(rest)?;
    let repository = reference.repository().to_owned();
    Ok(match reference.tag() {
        Some(tag) => Set::Tag(registry, repository, tag.to_owned()),
        None => Set::Repository(registry, repository),
    })
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(allow: &[&str], deny: &[&str]) -> ImagePolicy {
        let read = |texts: &[&str]| texts.iter().map(|text| text.parse().expect(text)).collect();
        ImagePolicy {
            allow: read(allow),
            deny: read(deny),
            pin: Vec::new(),
        }
    }

    fn refused(policy: &ImagePolicy, reference: &str) -> Option<String> {
        let reference: Reference = reference.parse().expect(reference);
        policy.refusal(&reference, reference.digest().as_slice())
    }

    #[test]
    fn a_pattern_means_what_it_says_and_no_more() {
        let digest = Digest::of(b"x");
        let by_digest = format!("r.example/a@{digest}");
        for (pattern, inside, outside) in [
            ("*", vec!["nginx", "r.example:5000/a/b"], vec![]),
            (
                "docker.io",
                vec![
                    "nginx",
                    "a/b",
                    "docker.io/a/b",
                    "registry-1.docker.io/a/b",
                    "index.docker.io/a/b",
                    "REGISTRY-1.docker.io:443/a/b",
                ],
                vec!["r.example/a", "docker.io.example/a"],
            ),
            (
                "r.example",
                vec!["r.example/a", "R.Example/a", "r.example:443/a", &by_digest],
                vec!["r.example:5000/a", "x.r.example/a", "xr.example/a"],
            ),
            (
                "*.example",
                vec!["r.example/a", "a.b.example:5000/c"],
                vec!["example.com/a", "example.org/a"],
            ),
            (
                "127.0.0.1:5000",
                vec!["127.0.0.1:5000/a", "127.1:5000/a", "0x7f.1:5000/a"],
                vec!["127.0.0.1/a"],
            ),
            (
                "r.example/team/*",
                vec!["r.example/team/a", "r.example/team/a/b:1"],
                vec!["r.example/team", "r.example/teams/a"],
            ),
            (
                "docker.io/library/*",
                vec!["nginx", "docker.io/library/x"],
                vec!["team/nginx"],
            ),
            ("docker.io/team/*", vec!["team/nginx"], vec!["nginx"]),
            (
                "docker.io/nginx",
                vec!["nginx:1", "docker.io/library/nginx"],
                vec!["team/nginx", "nginx2"],
            ),
            (
                "r.example/a",
                vec!["r.example/a", "r.example/a:1", &by_digest],
                vec!["r.example/a/b"],
            ),
            (
                "r.example/a:1",
                vec!["r.example/a:1"],
                vec!["r.example/a", "r.example/a:2", &by_digest],
            ),
            ("r.example/a:latest", vec!["r.example/a"], vec![&by_digest]),
            (&digest.to_string(), vec![&by_digest], vec!["r.example/a"]),
        ] {
            for reference in inside {
                assert!(
                    refused(&policy(&[], &[pattern]), reference).is_some(),
                    "{pattern} {reference}"
                );
                assert_eq!(
                    refused(&policy(&[pattern], &[]), reference),
                    None,
                    "{pattern} {reference}"
                );
            }
            for reference in outside {
                assert_eq!(
                    refused(&policy(&[], &[pattern]), reference),
                    None,
                    "{pattern} {reference}"
                );
                assert!(
                    refused(&policy(&[pattern], &[]), reference).is_some(),
                    "{pattern} {reference}"
                );
            }
        }
    }

    #[test]
    fn deny_wins_and_the_rule_is_named() {
        let policy = policy(
            &["docker.io"],
            &["r.example", "docker.io/evil/*", "docker.io/evil/a"],
        );
        assert_eq!(refused(&policy, "nginx"), None);
        let said = refused(&policy, "evil/a").expect("denied");
        assert_eq!(said, "the rule deny = \"docker.io/evil/*\" says so");
        let said = refused(&policy, "quay.io/a").expect("not allowed");
        assert_eq!(said, "it runs only images of docker.io");
    }

    #[test]
    fn a_digest_is_denied_behind_a_tag_and_allowed_only_if_it_is_written() {
        let digest = Digest::of(b"x");
        let text = digest.to_string();
        let tagged: Reference = "r.example/a:1".parse().expect("a reference");
        assert!(policy(&[], &[&text]).refusal(&tagged, &[digest]).is_some());
        assert!(policy(&[&text], &[]).refusal(&tagged, &[digest]).is_some());
    }

    #[test]
    fn what_is_no_pattern_is_refused_with_a_reason() {
        for (text, reason) in [
            ("", "docker.io/"),
            ("nginx", "docker.io/nginx"),
            ("team/app", "docker.io/team/app"),
            ("*/app", "docker.io"),
            ("*example.com", "before a dot"),
            ("r.*.example", "name of a registry"),
            ("r.example/", "no name"),
            ("r.example/A", "lower-case"),
            ("r.example/a*", "not a repository"),
            ("r.example/a:*", "not a tag"),
            ("sha256:abc", "64 lower-case"),
            (
                &format!("r.example/a@{}", Digest::of(b"x")),
                "write the digest alone",
            ),
        ] {
            let error = text.parse::<Pattern>().expect_err(text).to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
