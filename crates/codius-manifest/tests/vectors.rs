//! Hashes that were computed with the original JavaScript libraries.

use codius_manifest::{
    ManifestHash, Upload, canonical::canonical, hash_posted, hash_value, parse_document,
    private_var_hash,
};
use serde_json::Value;

fn hash_of(json: &str) -> String {
    hash_value(&parse_document(json.as_bytes()).expect("the vector is JSON")).to_string()
}

/// `test/mocks/manifest.test.json` of the npm package codius-manifest 2.2.3.
const MOCK: &str = r#"{
  "manifest": {
    "name": "my-codius-pod",
    "version": "1.0.0",
    "machine": "small",
    "containers": [{
      "id": "app",
      "image": "hello-world@sha256:f5233545e43561214ca4891fd1157e1c3c563316ed8e237750d59bde73361e77",
      "command": ["/bin/sh"],
      "workdir": "/root",
      "environment": {
        "AWS_ACCESS_KEY": "$AWS_ACCESS_KEY",
        "AWS_SECRET_KEY": "$AWS_SECRET_KEY"
      }
    }],
    "vars": {
      "AWS_ACCESS_KEY": { "value": "AKRTP2SB9AF5TQQ1N1BB" },
      "AWS_SECRET_KEY": {
        "encoding": "private:sha256",
        "value": "95b3449d5b13a4e60e5c0218021354c447907d1762bb410ba8d776bfaa1a3faf"
      }
    }
  },
  "private": {
    "vars": {
      "AWS_SECRET_KEY": { "nonce": "123450325", "value": "AKRTP2SB9AF5TQQ1N1BC" }
    }
  }
}"#;

const NGINX: &str = r#"{"name":"nginx-codius-pod","version":"1.0.0","machine":"small","port":"80",
  "containers":[{"id":"app",
    "image":"nginx@sha256:3e2ffcf0edca2a4e9b24ca442d227baea7b7f0e33ad654ef1eb806fbd9bedcf0",
    "command":["nginx","-g","daemon off;"],"workdir":"\u002froot",
    "environment":{"EXAMPLE_PUBLIC_ENV":"Public Env Value"}}]}"#;

#[test]
fn values_have_the_hash_that_the_original_gives_them() {
    let vectors = [
        ("{}", "iqjw7i2vwntyuekgvulpp2det2kpwt6cd7tx5ayqybqpmhfk76fa"),
        (
            NGINX,
            "vqceouzbwpzzuu436i6i4yf72mydfqdu4azlcsodf6el23bb7x3q",
        ),
        (
            r#"{"a":"\u007f\u0080\u00ad\u200b\u200c\u2028\u202f\u2060\ufeff\ufff0\uffff\u0000\u001f/\"\\\t\b😀é"}"#,
            "l6vpydyeca36ymfumvy555vt6d76yp2bsyzyj2ylvdqcz2d36gna",
        ),
        (
            "{\"b\":1,\"a\":[3,{\"d\":null,\"c\":true}],\"é\":\"x\",\"10\":1,\"9\":2,\"Z\":1,\"€\":1,\"😀\":1,\"\u{fb33}\":1}",
            "7nzhfrdj6bgiyqio5vnsk6gydxpi2q2cau2uviiuhhgeyzosyv7q",
        ),
    ];
    for (json, hash) in vectors {
        assert_eq!(hash_of(json), hash, "{json}");
    }
}

#[test]
fn uploads_have_the_hash_of_their_manifest_only() {
    let hash = "hyd2tb5kkhy2akzfs7bewagcc53dirdlausb5ngulr73xab3cqya";
    let upload = Upload::parse(MOCK.as_bytes()).unwrap();
    assert_eq!(upload.hash().to_string(), hash);
    assert_eq!(hash_posted(MOCK.as_bytes()).unwrap().to_string(), hash);
    let nginx = format!(r#"{{"manifest":{NGINX}}}"#);
    let upload = Upload::parse(nginx.as_bytes()).unwrap();
    assert_eq!(
        upload.hash().to_string(),
        "vqceouzbwpzzuu436i6i4yf72mydfqdu4azlcsodf6el23bb7x3q"
    );
}

#[test]
fn private_variables_have_the_hash_that_the_original_gives_them() {
    assert_eq!(
        private_var_hash("123450325", "AKRTP2SB9AF5TQQ1N1BC"),
        "95b3449d5b13a4e60e5c0218021354c447907d1762bb410ba8d776bfaa1a3faf"
    );
}

#[test]
fn a_hash_is_read_in_any_case_and_in_no_other_form() {
    let text = "iqjw7i2vwntyuekgvulpp2det2kpwt6cd7tx5ayqybqpmhfk76fa";
    let hash: ManifestHash = text.parse().unwrap();
    assert_eq!(text.to_uppercase().parse::<ManifestHash>().unwrap(), hash);
    assert_eq!(hash.to_string(), text);
    assert_eq!(serde_json::to_value(hash).unwrap(), Value::from(text));
    assert_eq!(
        serde_json::from_value::<ManifestHash>(text.into()).unwrap(),
        hash
    );
    let refused = [
        text[1..].to_owned(),
        format!("{text}a"),
        text.replace('i', "1"),
        // The last letter has bits that belong to no byte.
        format!("{}b", &text[..51]),
    ];
    for text in refused {
        assert!(text.parse::<ManifestHash>().is_err(), "{text}");
    }
}

#[test]
fn the_canonical_form_escapes_what_canonical_json_0_0_4_escapes() {
    let escaped = "\u{7f}\u{ad}\u{600}\u{70f}\u{17b4}\u{200f}\u{202a}\u{2060}\u{feff}\u{ffff}";
    assert_eq!(
        canonical(&escaped.into()),
        r#""\u007f\u00ad\u0600\u070f\u17b4\u200f\u202a\u2060\ufeff\uffff""#
    );
    let raw = "/\u{a0}\u{605}\u{200b}\u{2010}\u{2070}\u{ffef}😀";
    assert_eq!(canonical(&raw.into()), format!("\"{raw}\""));
    assert_eq!(
        canonical(&"\u{8}\t\n\u{c}\r\"\\\u{b}".into()),
        r#""\b\t\n\f\r\"\\\u000b""#
    );
}

#[test]
fn the_canonical_form_sorts_by_code_units_and_drops_spaces() {
    let value = parse_document(
        "{ \"\u{fb33}\": 1, \"😀\": [ ], \"a\": { }, \"10\": 0, \"9\": 0 }".as_bytes(),
    );
    assert_eq!(
        canonical(&value.unwrap()),
        "{\"10\":0,\"9\":0,\"a\":{},\"😀\":[],\"\u{fb33}\":1}"
    );
}
