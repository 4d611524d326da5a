//! Query strings.

use axum::http::StatusCode;
use codius_ledger::{DEFAULT_DURATION, Seconds, parse_duration};
use codius_manifest::ManifestHash;

use crate::http_error::HttpError;

/// The last value of a name in a query string, decoded; `None` if the name is not there.
pub(crate) fn value(query: Option<&str>, name: &str) -> Option<String> {
    url::form_urlencoded::parse(query.unwrap_or_default().as_bytes())
        .filter(|(known, _)| known == name)
        .last()
        .map(|(_, value)| value.into_owned())
}

/// `duration` in seconds; an hour if it is not there.
pub(crate) fn duration(query: Option<&str>, max: Seconds) -> Result<Seconds, HttpError> {
    let Some(text) = value(query, "duration") else {
        return Ok(DEFAULT_DURATION);
    };
    parse_duration(&text, max).map_err(|error| {
        HttpError::new(StatusCode::BAD_REQUEST, "Invalid request query input")
            .detail(error.to_string())
            .next(format!(
                "give `duration` as whole seconds from 1 to {}",
                max.0
            ))
    })
}

/// `manifestHash`, with the texts of the original. What cannot be a hash is the hash of no pod, and
/// answered as such by `unknown`.
pub(crate) fn manifest_hash(
    query: Option<&str>,
    unknown: impl FnOnce(&str) -> HttpError,
) -> Result<ManifestHash, HttpError> {
    let text = value(query, "manifestHash")
        .filter(|text| !text.is_empty())
        .ok_or_else(|| {
            HttpError::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "manifestHash must be specified",
            )
        })?;
    text.parse().map_err(|_| unknown(&short(&text)))
}

/// Text of a stranger in an error, within bounds.
pub(crate) fn short(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orders::no_pod;

    #[test]
    fn durations_are_whole_seconds_within_bounds() {
        let max = Seconds(1000);
        assert_eq!(duration(Some("duration=60"), max).unwrap(), Seconds(60));
        assert_eq!(duration(None, max).unwrap(), DEFAULT_DURATION);
        for text in ["-60", "1.5", "Infinity", "NaN", "1001", "abc", "0"] {
            let error = duration(Some(&format!("duration={text}")), max).unwrap_err();
            assert_eq!(error.status(), 400, "{text}");
        }
    }

    #[test]
    fn a_hash_is_required_and_may_be_in_any_case() {
        let hash = ManifestHash::from_bytes([3; 32]);
        let of = |query| manifest_hash(query, |id| no_pod(id));
        let query = format!("manifestHash={}", hash.to_string().to_uppercase());
        assert_eq!(of(Some(&query)).unwrap(), hash);
        assert_eq!(of(None).unwrap_err().status(), 422);
        assert_eq!(of(Some("manifestHash=x")).unwrap_err().status(), 404);
    }
}
