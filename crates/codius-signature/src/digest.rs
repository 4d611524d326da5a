//! `Content-Digest` (RFC 9530), with SHA-256 only.

use data_encoding::BASE64;
use ring::digest::{SHA256, digest};
use sfv::{BareItem, Dictionary, Item, ListEntry, Parser};

use crate::SignatureError;

pub(crate) const FIELD: &str = "Content-Digest";
const ALGORITHM: &str = "sha-256";

/// The field's value for a body.
pub fn content_digest(body: &[u8]) -> String {
    let digest = digest(&SHA256, body);
    format!("{ALGORITHM}=:{}:", BASE64.encode(digest.as_ref()))
}

/// Whether a field's value is that of the body. Digests of other algorithms beside it are not looked
/// at: they can be wrong without harm, since this one is right.
pub(crate) fn check(field: &str, body: &[u8]) -> Result<(), SignatureError> {
    let members: Dictionary = Parser::new(field)
        .parse()
        .map_err(|_| SignatureError::Malformed(FIELD))?;
    let Some(ListEntry::Item(Item {
        bare_item: BareItem::ByteSequence(found),
        ..
    })) = members.get(ALGORITHM)
    else {
        return Err(SignatureError::Digest);
    };
    if found.as_slice() != digest(&SHA256, body).as_ref() {
        return Err(SignatureError::Digest);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9530, appendix B: the same JSON with and without a line feed at its end.
    #[test]
    fn the_digests_of_the_rfc() {
        for (body, field) in [
            (
                "{\"hello\": \"world\"}\n",
                "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:",
            ),
            (
                "{\"hello\": \"world\"}",
                "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:",
            ),
        ] {
            assert_eq!(content_digest(body.as_bytes()), field);
            assert_eq!(check(field, body.as_bytes()), Ok(()));
            let beside = format!("sha-512=:AAAA:, {field}");
            assert_eq!(check(&beside, body.as_bytes()), Ok(()));
            assert_eq!(check(field, b"other"), Err(SignatureError::Digest));
        }
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        for (field, error) in [
            ("", SignatureError::Digest),
            ("sha-512=:AAAA:", SignatureError::Digest),
            ("sha-256=AAAA", SignatureError::Digest),
            ("sha-256=:AA", SignatureError::Malformed(FIELD)),
            ("SHA-256=::", SignatureError::Malformed(FIELD)),
        ] {
            assert_eq!(check(field, b""), Err(error), "{field}");
        }
    }
}
