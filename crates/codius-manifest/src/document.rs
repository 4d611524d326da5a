//! From bytes to JSON, as `JSON.parse` reads it, with limits.

use serde_json::{Value, error::Category};

use crate::{FieldError, ManifestError, javascript};

/// The longest body of an upload, in bytes (what the first host accepted). Longer ones are refused
/// before they are read.
pub const MAX_BODY_BYTES: usize = 1 << 20;

/// Reads JSON as JavaScript does: the last of equal keys counts, members are in the order in which
/// JavaScript enumerates them.
///
/// Refused beside what is not JSON: bodies of more than [`MAX_BODY_BYTES`]; text that is not UTF-8;
/// more than 127 levels; numbers beyond the range of a double; escapes that are half of a surrogate
/// pair (`"\ud800"`), which Node hashes as U+FFFD, so that two programs would have one name.
pub fn parse_document(body: &[u8]) -> Result<Value, ManifestError> {
    if body.len() > MAX_BODY_BYTES {
        return Err(ManifestError::TooLarge {
            limit: MAX_BODY_BYTES,
            detail: Box::new(FieldError::new(
                "",
                format!(
                    "the body has {} bytes, more than {MAX_BODY_BYTES}",
                    body.len()
                ),
                "make the manifest shorter; put large data into the image",
            )),
        });
    }
    let mut value = match serde_json::from_slice(body) {
        Ok(value) => value,
        Err(_) if has_lone_surrogate(body) => {
            return Err(ManifestError::unprocessable(
                "",
                "text with half of a surrogate pair (an escape from \\ud800 to \\udfff on its own) \
                 cannot be hashed",
                "write the character itself, or both halves of its escape",
            ));
        }
        Err(error) => return Err(malformed(&error)),
    };
    javascript::enumeration_order(&mut value);
    Ok(value)
}

fn malformed(error: &serde_json::Error) -> ManifestError {
    let message = match error.classify() {
        Category::Eof => format!("the JSON ends too early, in line {}", error.line()),
        Category::Io | Category::Syntax | Category::Data => {
            format!("the body is not JSON: {error}")
        }
    };
    ManifestError::Malformed(Box::new(FieldError::new(
        "",
        message,
        "send one JSON object: {\"manifest\": …, \"private\": …}",
    )))
}

/// Whether an escape for half of a surrogate pair stands alone. In JSON, a backslash is always the
/// beginning of an escape, so strings need not be told from the rest.
fn has_lone_surrogate(text: &[u8]) -> bool {
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| *byte == b'\\') {
        rest = &rest[at..];
        match escaped_unit(rest) {
            Some(0xd800..=0xdbff) => match escaped_unit(&rest[6..]) {
                Some(0xdc00..=0xdfff) => rest = &rest[12..],
                _ => return true,
            },
            Some(0xdc00..=0xdfff) => return true,
            Some(_) => rest = &rest[6..],
            None => rest = rest.get(2..).unwrap_or_default(),
        }
    }
    false
}

/// The code unit of the `\uXXXX` that a text begins with.
fn escaped_unit(text: &[u8]) -> Option<u16> {
    let digits = text.strip_prefix(b"\\u")?.get(..4)?;
    let digits = std::str::from_utf8(digits)
        .ok()
        .filter(|text| !text.starts_with('+'))?;
    u16::from_str_radix(digits, 16).ok()
}
