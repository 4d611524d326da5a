//! Signing a request, and finding out who has signed one.

use data_encoding::{BASE64, BASE64URL_NOPAD};
use sfv::{BareItem, Dictionary, InnerList, ListEntry, ListSerializer, Parser};

use crate::{
    Key, KeyId, Request, SignatureError,
    base::{base, components},
    digest,
};

/// The longest field that is looked at. Ours have less than 400 bytes; proxies may add signatures of
/// their own.
pub const MAX_FIELD_BYTES: usize = 4096;

/// The label of our signature.
const LABEL: &str = "sig1";
const ALGORITHM: &str = "ed25519";
/// What the signature is for, so that one made for something else is worth nothing here.
const TAG: &str = "codius-v2";
/// Length of a nonce, in random bytes.
const NONCE_BYTES: std::ops::RangeInclusive<usize> = 16..=64;

const INPUT: &str = "Signature-Input";
const SIGNATURE: &str = "Signature";

/// The fields that make a request a signed one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignatureFields {
    /// `None` if there is no body.
    pub content_digest: Option<String>,
    pub signature_input: String,
    pub signature: String,
}

/// The same fields as they arrived; those that came in several lines are joined with `, `.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Received<'a> {
    pub content_digest: Option<&'a str>,
    pub signature_input: Option<&'a str>,
    pub signature: Option<&'a str>,
}

impl<'a> From<&'a SignatureFields> for Received<'a> {
    fn from(fields: &'a SignatureFields) -> Self {
        Self {
            content_digest: fields.content_digest.as_deref(),
            signature_input: Some(&fields.signature_input),
            signature: Some(&fields.signature),
        }
    }
}

/// A signature that is right. Whether it is of this moment and not a copy is for the caller to find
/// out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    pub key: KeyId,
    /// UNIX seconds.
    pub created: u64,
    /// Random bytes that no other signature of this key has.
    pub nonce: Vec<u8>,
}

/// Signs a request. `created` is in UNIX seconds; `nonce` are 16 to 64 random bytes, new each time.
pub fn sign(key: &Key, request: &Request<'_>, created: u64, nonce: &[u8]) -> SignatureFields {
    debug_assert!(
        NONCE_BYTES.contains(&nonce.len()),
        "nobody takes this nonce"
    );
    let content_digest = (!request.body.is_empty()).then(|| digest::content_digest(request.body));
    let components = components(request, content_digest.as_deref());
    let names: Vec<String> = components
        .iter()
        .map(|(name, _)| format!("\"{name}\""))
        .collect();
    let params = format!(
        "({});created={created};nonce=\"{}\";keyid=\"{}\";alg=\"{ALGORITHM}\";tag=\"{TAG}\"",
        names.join(" "),
        BASE64URL_NOPAD.encode(nonce),
        key.id(),
    );
    let signature = key.sign(base(&components, &params).as_bytes());
    SignatureFields {
        content_digest,
        signature_input: format!("{LABEL}={params}"),
        signature: format!("{LABEL}=:{}:", BASE64.encode(&signature)),
    }
}

/// Finds out who has signed a request, and when.
pub fn verify(request: &Request<'_>, received: &Received<'_>) -> Result<Signed, SignatureError> {
    let input = field(INPUT, received.signature_input)?;
    let signature = field(SIGNATURE, received.signature)?;
    let digest = if request.body.is_empty() {
        None
    } else {
        let digest = field(digest::FIELD, received.content_digest)?;
        digest::check(digest, request.body)?;
        Some(digest)
    };

    let list = match member(INPUT, input)? {
        ListEntry::InnerList(list) => list,
        ListEntry::Item(_) => return Err(SignatureError::Malformed(INPUT)),
    };
    let signature = match member(SIGNATURE, signature)? {
        ListEntry::Item(item) => match item.bare_item {
            BareItem::ByteSequence(bytes) => bytes,
            _ => return Err(SignatureError::Malformed(SIGNATURE)),
        },
        ListEntry::InnerList(_) => return Err(SignatureError::Malformed(SIGNATURE)),
    };

    let components = components(request, digest);
    let named = list.items.iter().map(|item| {
        let name = item.bare_item.as_string().map(sfv::StringRef::as_str);
        name.filter(|_| item.params.is_empty())
    });
    if !named.eq(components.iter().map(|(name, _)| Some(*name))) {
        return Err(SignatureError::Components);
    }
    let signed = parameters(&list)?;
    // The parameters as they were sent, in their canonical form: RFC 9421, section 2.3.
    let mut params = ListSerializer::new();
    params.members([&ListEntry::InnerList(list)]);
    let params = params.finish().expect("a list of one member is a field");
    if !signed
        .key
        .has_signed(base(&components, &params).as_bytes(), &signature)
    {
        return Err(SignatureError::Wrong);
    }
    Ok(signed)
}

fn field<'a>(name: &'static str, value: Option<&'a str>) -> Result<&'a str, SignatureError> {
    let value = value.ok_or(SignatureError::Missing(name))?;
    if value.len() > MAX_FIELD_BYTES {
        return Err(SignatureError::TooLong(name));
    }
    Ok(value)
}

/// Our member of a dictionary; what others have signed does not matter.
fn member(name: &'static str, field: &str) -> Result<ListEntry, SignatureError> {
    let mut members: Dictionary = Parser::new(field)
        .parse()
        .map_err(|_| SignatureError::Malformed(name))?;
    members
        .swap_remove(LABEL)
        .ok_or(SignatureError::NoLabel(name))
}

/// Reads the parameters: all of them must be there, in any order, and no others.
fn parameters(list: &InnerList) -> Result<Signed, SignatureError> {
    let text = |name: &'static str| {
        let value = list.params.get(name).and_then(BareItem::as_string);
        value
            .map(sfv::StringRef::as_str)
            .ok_or(SignatureError::Parameter(name))
    };
    if text("alg")? != ALGORITHM {
        return Err(SignatureError::Parameter("alg"));
    }
    if text("tag")? != TAG {
        return Err(SignatureError::Parameter("tag"));
    }
    let key = text("keyid")?
        .parse()
        .map_err(|_| SignatureError::Parameter("keyid"))?;
    let nonce = BASE64URL_NOPAD.decode(text("nonce")?.as_bytes()).ok();
    let nonce = nonce
        .filter(|nonce| NONCE_BYTES.contains(&nonce.len()))
        .ok_or(SignatureError::Parameter("nonce"))?;
    let created = list.params.get("created").and_then(BareItem::as_integer);
    let created = created
        .and_then(|created| u64::try_from(i64::from(created)).ok())
        .ok_or(SignatureError::Parameter("created"))?;
    if list.params.len() != 5 {
        return Err(SignatureError::UnknownParameter);
    }
    Ok(Signed {
        key,
        created,
        nonce,
    })
}
