//! The body of `POST /pods`: an upload that is accepted says the same when it is written and read
//! again.
#![no_main]

use codius_manifest::{
    MAX_CONTAINERS, Upload, canonical::canonical, hash_posted, hash_value, parse_document,
    validate_generated,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Ok(value) = parse_document(input) {
        let _ = validate_generated(&value);
        let text = canonical(&value);
        let again = parse_document(text.as_bytes()).expect("the canonical form is JSON");
        assert_eq!(canonical(&again), text);
        assert_eq!(hash_value(&again), hash_value(&value));
    }
    let Ok(upload) = Upload::parse(input) else {
        return;
    };
    assert_eq!(hash_posted(input), Ok(upload.hash()));
    let text = upload.to_json();
    let again = Upload::parse(text.as_bytes()).expect("an accepted upload is accepted again");
    assert_eq!(again, upload);
    assert_eq!(again.hash(), upload.hash());
    if let Ok(spec) = upload.pod_spec("http://localhost:3000") {
        assert!((1..=MAX_CONTAINERS).contains(&spec.containers.len()));
    }
});
