//! What holds for every document.

use codius_manifest::{
    ManifestHash, Upload, canonical::canonical, hash_posted, hash_value, javascript,
    parse_document, validate_generated,
};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((any::<String>(), inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// An upload that is accepted: names and values that a process can be given.
fn good_upload() -> impl Strategy<Value = Value> {
    let text = "[^\0]{0,8}";
    let name = "[0-9A-B_a-z]{1,6}";
    let container = (
        text,
        prop::option::of(prop::collection::vec(text, 0..3)),
        prop::option::of(prop::collection::hash_map(name, "[^\0$][^\0]{0,5}", 0..5)),
    );
    let containers = prop::collection::vec(container, 1..5);
    (
        text,
        text,
        prop::option::of(1..=65535_u16),
        any::<Option<bool>>(),
        containers,
    )
        .prop_map(|(app, version, port, debug, containers)| {
            let containers: Vec<Value> = containers
                .into_iter()
                .enumerate()
                .map(|(id, (image, command, environment))| {
                    let mut container = json!({"id": id.to_string(), "image": image});
                    if let Some(command) = command {
                        container["command"] = command.into();
                    }
                    if let Some(environment) = environment {
                        container["environment"] = json!(environment);
                    }
                    container
                })
                .collect();
            let mut manifest = json!({"containers": containers, "version": version, "name": app});
            if let Some(port) = port {
                manifest["port"] = port.to_string().into();
            }
            if let Some(debug) = debug {
                manifest["debug"] = debug.into();
            }
            json!({ "manifest": manifest })
        })
}

proptest! {
    #[test]
    fn bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Upload::parse(&bytes);
        let _ = hash_posted(&bytes);
    }

    /// Text that is made of the pieces of JSON gets further than bytes do.
    #[test]
    fn pieces_of_json_never_panic(pieces in prop::collection::vec(prop::sample::select(vec![
        "{", "}", "[", "]", ":", ",", "\"", "\\", "\\u", "d800", "\"manifest\":", "\"private\":", "{}",
        "\"vars\":", "\"containers\":", "1", "-", "1e9", "null", "true", "\\\"", "é", "\u{0}", " ",
    ]), 0..60)) {
        let text = pieces.concat();
        let _ = Upload::parse(text.as_bytes());
        if let Ok(value) = parse_document(text.as_bytes()) {
            validate_generated(&value);
        }
    }

    #[test]
    fn any_json_is_judged_without_panic(value in any_json()) {
        for document in [value.clone(), json!({"manifest": value}), json!({"manifest": {"containers": [value]}})] {
            validate_generated(&document);
            let text = document.to_string();
            if let Err(error) = Upload::parse(text.as_bytes()) {
                prop_assert!(!error.details().is_empty());
            }
        }
    }

    #[test]
    fn the_canonical_form_reads_back_and_is_its_own(value in any_json()) {
        let form = canonical(&value);
        let read = parse_document(form.as_bytes()).unwrap();
        prop_assert_eq!(&read, &value);
        prop_assert_eq!(canonical(&read), form);
    }

    #[test]
    fn the_hash_does_not_depend_on_order_or_spaces(value in any_json()) {
        fn reversed(value: &Value) -> Value {
            match value {
                Value::Array(items) => items.iter().map(reversed).collect(),
                Value::Object(members) => {
                    members.iter().rev().map(|(name, member)| (name.clone(), reversed(member))).collect()
                }
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
            }
        }
        let spaced = serde_json::to_string_pretty(&reversed(&value)).unwrap();
        let read = parse_document(spaced.as_bytes()).unwrap();
        prop_assert_eq!(hash_value(&read), hash_value(&value));
    }

    #[test]
    fn good_uploads_are_accepted_and_kept_whole(document in good_upload()) {
        let text = document.to_string();
        let upload = Upload::parse(text.as_bytes()).unwrap();
        prop_assert_eq!(upload.hash(), hash_value(&document["manifest"]));
        prop_assert_eq!(&Upload::parse(upload.to_json().as_bytes()).unwrap(), &upload);
        let spec = upload.pod_spec("http://h").unwrap();
        prop_assert_eq!(spec.containers.len(), upload.manifest().containers().len());
        for container in &spec.containers {
            prop_assert_eq!(&container.env[3].1, &upload.manifest().to_json());
            let own = upload.manifest().containers().iter().find(|one| one.id == container.id).unwrap();
            prop_assert_eq!(&container.env[4..], &own.environment[..]);
        }
        let read: Value = serde_json::from_str(&upload.manifest().to_json()).unwrap();
        prop_assert_eq!(&read, &document["manifest"]);
    }

    #[test]
    fn hashes_read_back(bytes in any::<[u8; 32]>()) {
        let hash = ManifestHash::from_bytes(bytes);
        let text = hash.to_string();
        prop_assert_eq!(text.len(), ManifestHash::TEXT_LEN);
        prop_assert_eq!(text.parse::<ManifestHash>().unwrap(), hash);
        prop_assert_eq!(text.to_uppercase().parse::<ManifestHash>().unwrap(), hash);
    }

    #[test]
    fn numbers_read_back_from_their_text(bits in any::<u64>()) {
        let number = f64::from_bits(bits);
        prop_assume!(number.is_finite());
        let text = javascript::number_to_string(number);
        prop_assert_eq!(javascript::number(&text), Some(number), "{}", text);
    }
}
