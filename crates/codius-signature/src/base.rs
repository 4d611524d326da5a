//! The text that is signed (RFC 9421, section 2.5).

use std::borrow::Cow;

use crate::Request;

/// The component that is covered if there is a body.
const CONTENT_DIGEST: &str = "content-digest";

/// Names and values of what is covered.
pub(crate) type Components<'a> = Vec<(&'static str, Cow<'a, str>)>;

/// What a signature of this request covers, in order. `digest` is the value of `Content-Digest`.
pub(crate) fn components<'a>(request: &Request<'a>, digest: Option<&'a str>) -> Components<'a> {
    let query = format!("?{}", request.query.unwrap_or_default());
    let mut components: Components<'a> = vec![
        ("@method", request.method.into()),
        ("@authority", request.authority.to_ascii_lowercase().into()),
        ("@path", request.path.into()),
        ("@query", query.into()),
    ];
    components.extend(digest.map(|digest| (CONTENT_DIGEST, digest.trim().into())));
    components
}

/// One line for each component, and one for the parameters.
pub(crate) fn base(components: &[(&str, Cow<'_, str>)], params: &str) -> String {
    let mut base = String::new();
    for (name, value) in components {
        base.push_str(&format!("\"{name}\": {value}\n"));
    }
    base + "\"@signature-params\": " + params
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Key, KeyId};

    /// RFC 9421, appendix B.2.6: another profile, with the same key algorithm and the same base.
    #[test]
    fn the_signature_of_the_rfc() {
        const SEED: &str = "n4Ni-HpISpVObnQMW0wOhCKROaIKqKtW_2ZYb2p9KcU";
        const PUBLIC: &str = "JrQLj5P_89iXES9-vFgrIy29clF9CC_oPPsw3c5D0bs";
        const SIGNATURE: &str = "wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1\
                                 u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw==";
        let components = [
            ("date", "Tue, 20 Apr 2021 02:07:55 GMT".into()),
            ("@method", "POST".into()),
            ("@path", "/foo".into()),
            ("@authority", "example.com".into()),
            ("content-type", "application/json".into()),
            ("content-length", "18".into()),
        ];
        let params = "(\"date\" \"@method\" \"@path\" \"@authority\" \"content-type\" \
                      \"content-length\");created=1618884473;keyid=\"test-key-ed25519\"";
        let base = base(&components, params);
        let key: Key = SEED.parse().unwrap();
        assert_eq!(key.id().to_string(), PUBLIC);
        let signature = key.sign(base.as_bytes());
        assert_eq!(data_encoding::BASE64.encode(&signature), SIGNATURE);
        let public: KeyId = PUBLIC.parse().unwrap();
        assert!(public.has_signed(base.as_bytes(), &signature));
        assert!(!public.has_signed(&base.as_bytes()[1..], &signature));
    }

    #[test]
    fn the_base_of_this_profile() {
        let request = Request {
            method: "POST",
            authority: "Host.Example:3000",
            path: "/api/v2/leases/x/stop",
            query: None,
            body: b"{}",
        };
        let digest = crate::content_digest(b"{}");
        let lines = base(&components(&request, Some(&digest)), "(…)");
        assert_eq!(
            lines,
            "\"@method\": POST\n\"@authority\": host.example:3000\n\"@path\": /api/v2/leases/x/stop\n\
             \"@query\": ?\n\
             \"content-digest\": sha-256=:RBNvo1WzZ4oRRq0W9+hknpT7T8If536DEMBg9hyq/4o=:\n\
             \"@signature-params\": (…)"
        );
    }
}
