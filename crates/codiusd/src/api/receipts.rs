//! What a verifier of STREAM receipts asks for: it passes a payer's query of a payment pointer on, and
//! adds with what the receipts are to be made (RFC 39, "SPSP").

use axum::http::{HeaderMap, HeaderName};
use base64::{
    Engine,
    alphabet::{STANDARD, URL_SAFE},
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use ilp_stream::ReceiptKey;
use thiserror::Error;

const NONCE: HeaderName = HeaderName::from_static("receipt-nonce");
const SECRET: HeaderName = HeaderName::from_static("receipt-secret");

/// Why a query for receipts is not understood. What was said is not repeated: it may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(super) enum BadReceiptKey {
    #[error("{given} is there without {missing}; receipts need both")]
    Alone {
        given: &'static str,
        missing: &'static str,
    },
    #[error("{0} is there more than once")]
    Repeated(&'static str),
    #[error("{0} is not base64")]
    NotBase64(&'static str),
    #[error("{name} is {len} bytes long and has to be {expected}")]
    Length {
        name: &'static str,
        len: usize,
        expected: usize,
    },
}

/// The nonce and the secret of receipts, if the query asks for receipts.
pub(super) fn receipt_key(headers: &HeaderMap) -> Result<Option<ReceiptKey>, BadReceiptKey> {
    let nonce = bytes(headers, &NONCE, "Receipt-Nonce")?;
    let secret = bytes(headers, &SECRET, "Receipt-Secret")?;
    let alone = |given, missing| Err(BadReceiptKey::Alone { given, missing });
    match (nonce, secret) {
        (None, None) => Ok(None),
        (Some(nonce), Some(secret)) => Ok(Some(ReceiptKey { nonce, secret })),
        (Some(_), None) => alone("Receipt-Nonce", "Receipt-Secret"),
        (None, Some(_)) => alone("Receipt-Secret", "Receipt-Nonce"),
    }
}

/// The content of a header, which is base64 of either alphabet, padded or not: the RFC does not say
/// which, and the receivers that verifiers know are as lenient.
fn bytes<const LEN: usize>(
    headers: &HeaderMap,
    header: &HeaderName,
    name: &'static str,
) -> Result<Option<[u8; LEN]>, BadReceiptKey> {
    let mut values = headers.get_all(header).into_iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(BadReceiptKey::Repeated(name));
    }
    let text = value.as_bytes();
    let is_url_safe = text.iter().any(|byte| matches!(byte, b'-' | b'_'));
    let alphabet = if is_url_safe { &URL_SAFE } else { &STANDARD };
    let config =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let decoded = GeneralPurpose::new(alphabet, config)
        .decode(text)
        .map_err(|_| BadReceiptKey::NotBase64(name))?;
    let len = decoded.len();
    let expected = LEN;
    let exact = decoded.try_into().map_err(|_| BadReceiptKey::Length {
        name,
        len,
        expected,
    })?;
    Ok(Some(exact))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(lines: &[(&'static str, &str)]) -> Result<Option<ReceiptKey>, BadReceiptKey> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        receipt_key(&headers)
    }

    const GOOD_NONCE: &str = "+/v7+/v7+/v7+/v7+/v7+w==";
    const GOOD_SECRET: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

    #[test]
    fn a_nonce_and_a_secret_are_found_in_either_alphabet() {
        let key = ReceiptKey {
            nonce: [0xfb; 16],
            secret: [2; 32],
        };
        for nonce in [
            GOOD_NONCE,
            "-_v7-_v7-_v7-_v7-_v7-w",
            "-_v7-_v7-_v7-_v7-_v7-w==",
        ] {
            for secret in [GOOD_SECRET, GOOD_SECRET.trim_end_matches('=')] {
                let asked = asked(&[("receipt-nonce", nonce), ("receipt-secret", secret)]);
                assert_eq!(asked, Ok(Some(key.clone())), "{nonce} {secret}");
            }
        }
        assert_eq!(asked(&[]), Ok(None));
        assert_eq!(asked(&[("receipt", "yes")]), Ok(None));
    }

    #[test]
    fn everything_else_is_refused_in_a_sentence_that_does_not_repeat_it() {
        let (nonce, secret) = (
            ("receipt-nonce", GOOD_NONCE),
            ("receipt-secret", GOOD_SECRET),
        );
        let long = "A".repeat(5000);
        for (lines, says) in [
            (
                &[nonce][..],
                "Receipt-Nonce is there without Receipt-Secret; receipts need both",
            ),
            (
                &[secret],
                "Receipt-Secret is there without Receipt-Nonce; receipts need both",
            ),
            (
                &[nonce, secret, nonce],
                "Receipt-Nonce is there more than once",
            ),
            (
                &[nonce, secret, secret],
                "Receipt-Secret is there more than once",
            ),
            (
                &[("receipt-nonce", "a nonce"), secret],
                "Receipt-Nonce is not base64",
            ),
            (
                &[nonce, ("receipt-secret", "AgI*")],
                "Receipt-Secret is not base64",
            ),
            // The alphabets are not mixed, and nothing is left over.
            (
                &[("receipt-nonce", "+_v7-_v7-_v7-_v7-_v7-w"), secret],
                "Receipt-Nonce is not base64",
            ),
            (
                &[("receipt-nonce", "+/v7+/v7+/v7+/v7+/v7+x=="), secret],
                "Receipt-Nonce is not base64",
            ),
            (
                &[("receipt-nonce", ""), secret],
                "Receipt-Nonce is 0 bytes long and has to be 16",
            ),
            (
                &[("receipt-nonce", GOOD_SECRET), secret],
                "Receipt-Nonce is 32 bytes long and has to be 16",
            ),
            (
                &[nonce, ("receipt-secret", GOOD_NONCE)],
                "Receipt-Secret is 16 bytes long and has to be 32",
            ),
            (
                &[nonce, ("receipt-secret", &long)],
                "Receipt-Secret is 3750 bytes long and has to be 32",
            ),
        ] {
            assert_eq!(asked(lines).unwrap_err().to_string(), says);
        }
    }
}
