//! The canonical form of JSON, and what is hashed with it.
//!
//! It is what the npm package canonical-json 0.0.4 prints: no spaces, members sorted by the UTF-16
//! code units of their names, numbers as ECMAScript prints them, and strings as `JSON.stringify`
//! does **plus** escapes for characters that some JSON readers of 2010 could not bear. The last is
//! the difference to RFC 8785 (JCS).

use std::fmt::Write as _;

use data_encoding::HEXLOWER;
use ring::digest::{Digest, SHA256, digest};
use serde_json::{Map, Value};

use crate::{ManifestHash, javascript};

/// The canonical form of any JSON value.
pub fn canonical(value: &Value) -> String {
    let sorted = sorted(value);
    let mut text = String::new();
    javascript::write_json(&sorted, &mut text, &mut quote);
    text
}

/// The name of a manifest: the hash of its canonical form. The value is taken as it is: an upload's
/// conversions ([`Upload::parse`](crate::Upload::parse)) have to have been made before.
pub fn hash_value(manifest: &Value) -> ManifestHash {
    let digest = sha256(manifest);
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    ManifestHash::from_bytes(bytes)
}

/// What stands in public for a private variable: SHA-256 over the canonical form of
/// `{"nonce": …, "value": …}`, in lower hex.
pub fn private_var_hash(nonce: &str, value: &str) -> String {
    let mut spec = Map::new();
    spec.insert("nonce".into(), nonce.into());
    spec.insert("value".into(), value.into());
    HEXLOWER.encode(sha256(&Value::Object(spec)).as_ref())
}

fn sha256(value: &Value) -> Digest {
    digest(&SHA256, canonical(value).as_bytes())
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
        Value::Array(items) => items.iter().map(sorted).collect(),
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by(|(left, _), (right, _)| left.encode_utf16().cmp(right.encode_utf16()));
            members
                .into_iter()
                .map(|(key, member)| (key.clone(), sorted(member)))
                .collect()
        }
    }
}

/// A string with the escapes of canonical-json 0.0.4. All that it escapes is in the first plane, so
/// one escape is one `\uXXXX`.
fn quote(text: &str, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\u{c}' => out.push_str("\\f"),
            '\r' => out.push_str("\\r"),
            _ if is_escaped(character) => {
                // Writing to a `String` cannot fail.
                let _ = write!(out, "\\u{:04x}", u32::from(character));
            }
            _ => out.push(character),
        }
    }
    out.push('"');
}

fn is_escaped(character: char) -> bool {
    matches!(
        character,
        '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{ad}' | '\u{600}'..='\u{604}' | '\u{70f}'
            | '\u{17b4}' | '\u{17b5}' | '\u{200c}'..='\u{200f}' | '\u{2028}'..='\u{202f}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff0}'..='\u{ffff}'
    )
}
