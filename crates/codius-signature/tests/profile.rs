//! What the profile takes, and that it takes nothing else.

use codius_signature::{
    Key, MAX_FIELD_BYTES, Received, Request, SignatureError, SignatureFields, sign, verify,
};
use proptest::prelude::*;

const CREATED: u64 = 1_800_000_000;
const NONCE: [u8; 16] = [9; 16];

fn key() -> Key {
    Key::from_seed([1; 32])
}

const STOP: Request<'_> = Request {
    method: "POST",
    authority: "host.example:3000",
    path: "/api/v2/leases/abc/stop",
    query: None,
    body: b"{}",
};

fn signed(request: &Request<'_>) -> SignatureFields {
    sign(&key(), request, CREATED, &NONCE)
}

#[track_caller]
fn refused(request: &Request<'_>, fields: &SignatureFields, error: SignatureError) {
    assert_eq!(verify(request, &fields.into()), Err(error), "{fields:?}");
}

#[test]
fn a_signed_request_says_who_and_when() {
    let fields = signed(&STOP);
    let signed = verify(&STOP, &(&fields).into()).unwrap();
    assert_eq!(signed.key, key().id());
    assert_eq!(
        (signed.created, signed.nonce.as_slice()),
        (CREATED, &NONCE[..])
    );
    assert_eq!(
        fields.signature_input,
        format!(
            "sig1=(\"@method\" \"@authority\" \"@path\" \"@query\" \"content-digest\");created=1800000000\
             ;nonce=\"CQkJCQkJCQkJCQkJCQkJCQ\";keyid=\"{}\";alg=\"ed25519\";tag=\"codius-v2\"",
            key().id()
        )
    );
}

#[test]
fn a_host_is_the_same_in_any_case_and_no_query_is_an_empty_one() {
    let fields = signed(&STOP);
    let other_case = Request {
        authority: "HOST.example:3000",
        query: Some(""),
        ..STOP
    };
    verify(&other_case, &(&fields).into()).unwrap();
}

#[test]
fn a_signature_is_of_one_request() {
    let fields = signed(&STOP);
    for other in [
        Request {
            method: "PUT",
            ..STOP
        },
        Request {
            authority: "host.example",
            ..STOP
        },
        Request {
            path: "/api/v2/leases/abd/stop",
            ..STOP
        },
        Request {
            query: Some("a"),
            ..STOP
        },
    ] {
        refused(&other, &fields, SignatureError::Wrong);
    }
    let other_body = Request {
        body: b"{ }",
        ..STOP
    };
    refused(&other_body, &fields, SignatureError::Digest);
    let other_digest = SignatureFields {
        content_digest: signed(&other_body).content_digest,
        ..fields.clone()
    };
    refused(&other_body, &other_digest, SignatureError::Wrong);
    let no_body = Request { body: b"", ..STOP };
    refused(&no_body, &fields, SignatureError::Components);
    let of_no_body = signed(&no_body);
    assert_eq!(of_no_body.content_digest, None);
    refused(
        &STOP,
        &of_no_body,
        SignatureError::Missing("Content-Digest"),
    );
    let added = SignatureFields {
        content_digest: fields.content_digest.clone(),
        ..of_no_body
    };
    refused(&STOP, &added, SignatureError::Components);
    let another = sign(&Key::from_seed([2; 32]), &STOP, CREATED, &NONCE);
    let of_two = SignatureFields {
        signature: another.signature,
        ..fields
    };
    refused(&STOP, &of_two, SignatureError::Wrong);
}

#[test]
fn any_other_profile_is_refused() {
    use SignatureError::{
        Components, Malformed, Missing, NoLabel, Parameter, TooLong, UnknownParameter,
    };
    let fields = signed(&STOP);
    let input = |from: &str, to: &str| {
        let changed = fields.signature_input.replacen(from, to, 1);
        assert_ne!(changed, fields.signature_input, "{from}");
        SignatureFields {
            signature_input: changed,
            ..fields.clone()
        }
    };
    for (from, to, error) in [
        ("sig1=", "sig2=", NoLabel("Signature-Input")),
        ("sig1=", "sig1=1, x=", Malformed("Signature-Input")),
        ("sig1=", "=", Malformed("Signature-Input")),
        ("\"@query\" ", "", Components),
        (
            "\"@query\" \"content-digest\"",
            "\"content-digest\" \"@query\"",
            Components,
        ),
        ("\"@path\"", "\"@path\";req", Components),
        ("\"@path\"", "@path", Malformed("Signature-Input")),
        ("\"@path\"", "7", Components),
        (
            " \"content-digest\"",
            " \"content-digest\" \"x-more\"",
            Components,
        ),
        ("created=1800000000", "created=1.5", Parameter("created")),
        ("created=1800000000", "created=-1", Parameter("created")),
        (";created=1800000000", "", Parameter("created")),
        ("nonce=\"", "nonce=\"+", Parameter("nonce")),
        (
            "nonce=\"CQkJCQkJCQkJCQkJCQkJCQ\"",
            "nonce=\"CQkJ\"",
            Parameter("nonce"),
        ),
        ("keyid=\"", "keyid=\"A", Parameter("keyid")),
        ("ed25519", "rsa-v1_5-sha256", Parameter("alg")),
        ("codius-v2", "codius-v3", Parameter("tag")),
        (";tag=", ";expires=1900000000;tag=", UnknownParameter),
    ] {
        refused(&STOP, &input(from, to), error);
    }
    // In another order it is another text, so it is not what was signed.
    let tail = ";alg=\"ed25519\";tag=\"codius-v2\"";
    let turned = input(tail, ";tag=\"codius-v2\";alg=\"ed25519\"");
    refused(&STOP, &turned, SignatureError::Wrong);

    let received = Received::from(&fields);
    let missing = |received| verify(&STOP, &received).unwrap_err();
    assert_eq!(
        missing(Received {
            signature: None,
            ..received
        }),
        Missing("Signature")
    );
    assert_eq!(
        missing(Received {
            signature_input: None,
            ..received
        }),
        Missing("Signature-Input")
    );
    let long = format!("{}, x=:{}:", fields.signature, "A".repeat(MAX_FIELD_BYTES));
    assert_eq!(
        missing(Received {
            signature: Some(&long),
            ..received
        }),
        TooLong("Signature")
    );
    for text in ["sig1", "sig1=(:AAAA:)", "sig1=\"AAAA\"", "sig1=:AA"] {
        assert_eq!(
            missing(Received {
                signature: Some(text),
                ..received
            }),
            Malformed("Signature"),
            "{text}"
        );
    }
}

#[test]
fn signatures_of_others_do_not_matter() {
    let fields = signed(&STOP);
    let input = format!("proxy=(\"@method\");created=1, {}", fields.signature_input);
    let signature = format!("proxy=:AAAA:, {}", fields.signature);
    let received = Received {
        signature_input: Some(&input),
        signature: Some(&signature),
        ..(&fields).into()
    };
    verify(&STOP, &received).unwrap();
}

proptest! {
    #[test]
    fn what_is_signed_is_verified(
        method in "GET|POST|DELETE",
        authority in "[a-z0-9.-]{1,30}(:[0-9]{1,5})?",
        path in "/[!-~]{0,40}",
        query in proptest::option::of("[!-~]{0,40}"),
        body in proptest::collection::vec(any::<u8>(), 0..100),
        seed in any::<[u8; 32]>(),
        created in 0..=999_999_999_999_999_u64,
        nonce in proptest::collection::vec(any::<u8>(), 16..=64),
    ) {
        let request = Request {
            method: &method,
            authority: &authority,
            path: &path,
            query: query.as_deref(),
            body: &body,
        };
        let key = Key::from_seed(seed);
        let fields = sign(&key, &request, created, &nonce);
        let signed = verify(&request, &(&fields).into()).unwrap();
        prop_assert_eq!((signed.key, signed.created, signed.nonce), (key.id(), created, nonce));
    }

    #[test]
    fn no_text_is_taken_for_a_signature(input in "\\PC{0,200}", signature in "\\PC{0,100}") {
        let received = Received {
            content_digest: None,
            signature_input: Some(&input),
            signature: Some(&signature),
        };
        prop_assert!(verify(&STOP, &received).is_err());
    }
}
