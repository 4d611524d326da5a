//! Image references as Docker reads them: `nginx`, `ghcr.io/a/b:1`, `127.0.0.1:5000/x@sha256:…`.
//!
//! The grammar and the vectors of the tests are those of `distribution/reference`
//! (`reference.go`, `normalize.go` and their tests).

use std::{fmt, net::Ipv6Addr, str::FromStr};

use thiserror::Error;

use crate::digest::Digest;

/// The registry of a name without one.
const DEFAULT_DOMAIN: &str = "docker.io";
/// An older name of the same registry.
const LEGACY_DOMAIN: &str = "index.docker.io";
/// Where the default registry's API is.
const DEFAULT_API_HOST: &str = "registry-1.docker.io";
/// What a one-word name of the default registry stands in.
const OFFICIAL_PREFIX: &str = "library/";
/// The tag of a reference that has neither tag nor digest.
const DEFAULT_TAG: &str = "latest";
/// Bytes of a repository path (`RepositoryNameTotalLengthMax`).
const MAX_REPOSITORY_BYTES: usize = 255;
/// Bytes of a tag.
const MAX_TAG_BYTES: usize = 128;
/// Bytes of a registry's name: those of a DNS name and a port. Not in the grammar.
const MAX_DOMAIN_BYTES: usize = 253 + 6;

/// A complete reference: every part that Docker leaves out is filled in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    domain: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// The text is no reference. Nothing happened; whoever wrote it corrects it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidReference {
    /// There is nothing, or only a tag or digest.
    #[error("it has no name")]
    Empty,
    /// Only names of registries and tags may have upper-case letters.
    #[error("the repository name must be lower-case")]
    Uppercase,
    /// Docker takes such a word for the identifier of a local image.
    #[error("64 hexadecimal digits name no repository; write the registry before them")]
    Identifier,
    /// The part before the first slash is no host name, address or port.
    #[error("{0:?} is not the name of a registry")]
    Domain(String),
    /// A part of the name has other characters than lower-case letters, digits and separators.
    #[error("{0:?} is not a repository name")]
    Repository(String),
    /// The repository is longer than 255 bytes.
    #[error("the repository name is longer than {MAX_REPOSITORY_BYTES} bytes")]
    TooLong,
    /// The part after the colon has other characters, or more than 128.
    #[error("{0:?} is not a tag")]
    Tag(String),
    /// The part after `@` is not a SHA-256 digest.
    #[error("its digest is not sha256: followed by 64 lower-case hexadecimal digits")]
    Digest,
}

impl Reference {
    /// The registry, `docker.io` if none was written.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The path in the registry, such as `library/nginx`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag as written.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The tag that is asked for: what is written, or `latest`; none if only a digest is written.
    pub(crate) fn tag_meant(&self) -> Option<&str> {
        match (&self.tag, &self.digest) {
            (Some(tag), _) => Some(tag),
            (None, None) => Some(DEFAULT_TAG),
            (None, Some(_)) => None,
        }
    }

    /// The digest as written.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// What to ask the registry for: the digest if there is one, else the tag, else `latest`.
    pub(crate) fn identifier(&self) -> String {
        match &self.digest {
            Some(digest) => digest.to_string(),
            None => self.tag.as_deref().unwrap_or(DEFAULT_TAG).to_owned(),
        }
    }

    /// Host and port of the registry's API.
    pub(crate) fn api_host(&self) -> &str {
        if self.domain == DEFAULT_DOMAIN {
            DEFAULT_API_HOST
        } else {
            &self.domain
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.repository)?;
        match (&self.tag, &self.digest) {
            (None, None) => write!(f, ":{DEFAULT_TAG}"),
            (tag, digest) => {
                tag.iter().try_for_each(|tag| write!(f, ":{tag}"))?;
                digest.iter().try_for_each(|digest| write!(f, "@{digest}"))
            }
        }
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() == 64 && text.bytes().all(is_lower_hex) {
            return Err(InvalidReference::Identifier);
        }
        let (domain, rest) = split_domain(text);
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (
                rest,
                Some(digest.parse().map_err(|_| InvalidReference::Digest)?),
            ),
            None => (rest, None),
        };
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (rest, None),
        };
        if repository.is_empty() {
            return Err(InvalidReference::Empty);
        }
        if !is_domain(domain) {
            return Err(InvalidReference::Domain(shown(domain)));
        }
        if repository.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(InvalidReference::Uppercase);
        }
        let repository = if domain == DEFAULT_DOMAIN && !repository.contains('/') {
            format!("{OFFICIAL_PREFIX}{repository}")
        } else {
            repository.to_owned()
        };
        if repository.len() > MAX_REPOSITORY_BYTES {
            return Err(InvalidReference::TooLong);
        }
        if !repository.split('/').all(is_path_component) {
            return Err(InvalidReference::Repository(repository));
        }
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(InvalidReference::Tag(shown(tag)));
        }
        Ok(Self {
            domain: domain.to_owned(),
            repository,
            tag: tag.map(str::to_owned),
            digest,
        })
    }
}

/// The first part is a registry if it could not be a repository of the default one: it has a dot,
/// a colon or an upper-case letter, or is `localhost`.
fn split_domain(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            (
                if first == LEGACY_DOMAIN {
                    DEFAULT_DOMAIN
                } else {
                    first
                },
                rest,
            )
        }
        _ => (DEFAULT_DOMAIN, text),
    }
}

fn is_domain(text: &str) -> bool {
    if text.len() > MAX_DOMAIN_BYTES {
        return false;
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let Some((address, after)) = rest.split_once(']') else {
                return false;
            };
            // No zone and no dotted quad inside, as in the grammar.
            let plain = address
                .bytes()
                .all(|byte| byte.is_ascii_hexdigit() || byte == b':');
            if !plain || address.parse::<Ipv6Addr>().is_err() {
                return false;
            }
            match after.strip_prefix(':') {
                None if after.is_empty() => return true,
                None => return false,
                Some(port) => (None, Some(port)),
            }
        }
        None => match text.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(text), None),
        },
    };
    let host_is_good = host.is_none_or(|host| host.split('.').all(is_domain_component));
    let port_is_good = port.is_none_or(|port| {
        port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|n| n > 0)
    });
    host_is_good && port_is_good
}

fn is_domain_component(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Letters and digits, with single `.` or `_`, `__`, or any number of `-` between them.
fn is_path_component(text: &str) -> bool {
    let is_word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let (Some(first), Some(last)) = (text.as_bytes().first(), text.as_bytes().last()) else {
        return false;
    };
    is_word(first)
        && is_word(last)
        && text.as_bytes().split(is_word).all(|separator| {
            matches!(separator, b"" | b"." | b"_" | b"__")
                || separator.iter().all(|byte| *byte == b'-')
        })
}

fn is_tag(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= MAX_TAG_BYTES
        && text.bytes().next().is_some_and(is_word)
        && text
            .bytes()
            .all(|byte| is_word(byte) || byte == b'.' || byte == b'-')
}

fn is_lower_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// A part of a reference short enough for a message.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const F64: &str = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";

    fn full(text: &str) -> String {
        text.parse::<Reference>()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
            .to_string()
    }

    /// `TestParseRepositoryInfo` of normalize_test.go; a missing tag is shown as `latest` here.
    #[test]
    fn familiar_names_are_completed() {
        for (familiar, complete) in [
            ("localhost/fooo", "localhost/fooo"),
            ("localhost/fooo/bar", "localhost/fooo/bar"),
            ("LOCALDOMAIN/fooo", "LOCALDOMAIN/fooo"),
            ("fooo/bar", "docker.io/fooo/bar"),
            ("index.docker.io/fooo/bar", "docker.io/fooo/bar"),
            ("ubuntu", "docker.io/library/ubuntu"),
            ("library/ubuntu", "docker.io/library/ubuntu"),
            ("nonlibrary/ubuntu", "docker.io/nonlibrary/ubuntu"),
            (
                "127.0.0.1:8000/private/moonbase",
                "127.0.0.1:8000/private/moonbase",
            ),
            ("127.0.0.1:8000/privatebase", "127.0.0.1:8000/privatebase"),
            ("example.com/privatebase", "example.com/privatebase"),
            (
                "example.com:8000/private/moonbase",
                "example.com:8000/private/moonbase",
            ),
            ("ubuntu-12.04-base", "docker.io/library/ubuntu-12.04-base"),
            ("docker.io/foo", "docker.io/library/foo"),
            (
                "index.docker.io/ubuntu-12.04-base",
                "docker.io/library/ubuntu-12.04-base",
            ),
            ("library/foo/bar", "docker.io/library/foo/bar"),
            ("Foo/bar", "Foo/bar"),
            ("FOO/bar", "FOO/bar"),
            ("192.168.0.1", "docker.io/library/192.168.0.1"),
        ] {
            assert_eq!(full(familiar), format!("{complete}:latest"));
        }
    }

    /// `TestReferenceParse` of reference_test.go, for references with a registry.
    #[test]
    fn all_parts_are_found() {
        let digest = format!("@sha256:{F64}");
        for text in [
            "test.com/repo:tag".to_owned(),
            "test:5000/repo:tag".to_owned(),
            format!("test:5000/repo{digest}"),
            format!("test:5000/repo:tag{digest}"),
            "sub-dom1.foo.com/bar/baz/quux:some-long-tag".to_owned(),
            "b.gcr.io/test.example.com/my-app:test.example.com".to_owned(),
            format!("xn--7o8h.com/myimage:xn--7o8h.com{digest}"),
            "192.168.1.1:5000/repo:5050".to_owned(),
            "[2001:db8:1:2:3:4:5:6]/repo:tag".to_owned(),
            format!("[2001:db8::1]:5000/repo:tag{digest}"),
            "[::1]:5000/repo:1".to_owned(),
            format!("example.com/{}:tag", "a".repeat(255)),
            format!("example.com/x:{}", "T".repeat(128)),
        ] {
            assert_eq!(full(&text), text);
        }
        let reference: Reference = format!("test:5000/a/b:tag{digest}")
            .parse()
            .expect("a reference");
        assert_eq!(reference.domain(), "test:5000");
        assert_eq!(reference.repository(), "a/b");
        assert_eq!(reference.tag(), Some("tag"));
        assert_eq!(
            reference.identifier(),
            format!("sha256:{F64}"),
            "the digest counts"
        );
        assert_eq!(
            "x".parse::<Reference>().map(|it| it.identifier()),
            Ok("latest".into())
        );
        assert_eq!(
            "x".parse::<Reference>().map(|it| it.api_host().to_owned()),
            Ok("registry-1.docker.io".into())
        );
        assert_eq!(
            "192.168.0.1:80".parse::<Reference>().map(|it| it.tag),
            Ok(Some("80".into()))
        );
        for valid in [
            "docker---rules/docker",
            "doc/docker",
            "d/docker",
            "dock__er/docker",
            "docker.io/1a3f5e7d9c1b3a5f7e9d1c3b5a7f9e1d3c5b7a9f1e3d5d7c9b1a3f5e7d9c1b3a",
        ] {
            full(valid);
        }
    }

    /// The invalid names of normalize_test.go and reference_test.go.
    #[test]
    fn what_docker_refuses_is_refused() {
        let long = "this_is_not_a_valid_namespace_because_its_lenth_is_greater_than_255_".repeat(4);
        for text in [
            "",
            ":justtag",
            "@sha256:ffff",
            "repo@sha256:ffffffffffffffffffffffffffffffffff",
            "https://github.com/docker/docker",
            "docker/Docker",
            "-docker",
            "-docker/docker",
            "-docker.io/docker/docker",
            "docker///docker",
            "docker.io/docker/Docker",
            "docker.io/docker///docker",
            "[fc00::1]",
            "[fc00::1]:5000",
            "fc00::1:5000/debian",
            "[fe80::1%eth0]:5000/debian",
            "[2001:db8:3:4::192.0.2.33]:5000/debian",
            "1a3f5e7d9c1b3a5f7e9d1c3b5a7f9e1d3c5b7a9f1e3d5d7c9b1a3f5e7d9c1b3a",
            "docker-/docker",
            "-docker-/docker",
            "____/____",
            "_docker/_docker",
            "dock..er/docker",
            "dock_.er/docker",
            "dock-.er/docker",
            "docker/",
            "aa/asdf$$^/aa",
            "Uppercase:tag",
            "/x",
            "a/b:",
            "a:b:c",
            "test:5000/Uppercase/lowercase:tag",
            "example.com:0/x",
            "example.com:65536/x",
            "example.com:/x",
            "exa_mple.com/x",
            "a b",
            "a\nb",
            "é",
            "a@b",
            "a@",
            &format!("{long}/docker"),
            &format!("domain/{}:tag", "a".repeat(256)),
            &format!("x:{}", "t".repeat(129)),
            &format!("validname@invaliddigest:{F64}"),
            &format!("validname@sha512:{F64}{F64}"),
            &format!("{}.com/x", "a".repeat(260)),
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }

    proptest! {
        /// What is shown means the same again, whatever came in.
        #[test]
        fn a_complete_reference_reads_as_itself(text in "[a-zA-Z0-9._:/@-]{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let again: Reference = reference.to_string().parse().expect("its own form");
                prop_assert_eq!(again.identifier(), reference.identifier());
                prop_assert_eq!(again.repository(), reference.repository());
                prop_assert_eq!(again.domain(), reference.domain());
            }
        }
    }
}
