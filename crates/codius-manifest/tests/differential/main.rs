//! This crate against the original JavaScript libraries, on thousands of generated documents.
//!
//! `codius-manifest` 2.2.3 and `canonical-json` 0.0.4 say what a hash is and what the tool reports;
//! `joi` 13.3.0 with `enjoi` 3.2.3, which the first host checked uploads with, say what a host accepts
//! and what it makes of it. They come from npm and run in one Node process per test.
//!
//! `CODIUS_TEST_SEED` repeats a run, `CODIUS_TEST_CASES` changes its length.
//!
//! Not compared, because ours differs on purpose: names that every JavaScript object inherits
//! (`toString`, `__proto__`) as names of variables, and half surrogate pairs.

mod documents;
mod peer;

use codius_manifest::{
    ErrorFamily, FieldError, MachineName, Upload, canonical::canonical, hash_posted, hash_value,
    javascript, parse_document, private_var_hash, source, validate_generated,
};
use documents::Documents;
use peer::Peer;
use serde_json::{Value, json};

/// The seed of this run, printed for the case that it fails.
fn seed() -> u64 {
    let seed = match std::env::var("CODIUS_TEST_SEED") {
        Ok(text) => text.parse().expect("CODIUS_TEST_SEED is a number"),
        Err(_) => rand::random(),
    };
    println!("CODIUS_TEST_SEED={seed}");
    seed
}

fn cases() -> usize {
    match std::env::var("CODIUS_TEST_CASES") {
        Ok(text) => text.parse().expect("CODIUS_TEST_CASES is a number"),
        Err(_) => 4000,
    }
}

/// Path and message of each error, as the peer writes them.
fn pairs(errors: &[FieldError]) -> Value {
    errors
        .iter()
        .map(|error| json!([error.path, error.message]))
        .collect()
}

#[test]
fn any_json_has_the_canonical_form_and_hash_of_the_original() {
    let mut documents = Documents::new(seed());
    let texts: Vec<String> = (0..cases()).map(|_| documents.anything()).collect();
    let questions = texts.iter().map(|text| json!({"value": text}));
    for (text, answer) in texts.iter().zip(Peer::ask(questions)) {
        let value = parse_document(text.as_bytes()).unwrap();
        assert_eq!(answer["canonical"], canonical(&value), "{text}");
        assert_eq!(
            answer["stringified"],
            javascript::stringify(&value),
            "{text}"
        );
        assert_eq!(answer["hash"], hash_value(&value).to_string(), "{text}");
    }
}

#[test]
fn uploads_are_accepted_converted_hashed_and_reported_as_by_the_original() {
    let mut documents = Documents::new(seed());
    let texts: Vec<String> = (0..cases()).map(|_| documents.upload()).collect();
    let questions = texts.iter().map(|text| json!({"text": text}));
    let (mut accepted, mut hashed, mut reported, mut clean) = (0, 0, 0, 0);
    for (text, answer) in texts.iter().zip(Peer::ask(questions)) {
        let errors = validate_generated(&parse_document(text.as_bytes()).unwrap());
        assert_eq!(answer["tool"], pairs(&errors), "{text}");
        if errors.is_empty() {
            clean += 1;
        } else {
            reported += 1;
        }

        let host = &answer["host"];
        match Upload::parse(text.as_bytes()) {
            Err(error) if error.family() == ErrorFamily::Schema => {
                assert!(host.is_null(), "{text}");
            }
            Err(error) => {
                // The shape is right for both; what is wrong is found after it.
                assert_eq!(error.family(), ErrorFamily::Unprocessable, "{text}");
                assert_eq!(
                    host["hash"],
                    hash_posted(text.as_bytes()).unwrap().to_string()
                );
                hashed += 1;
            }
            Ok(upload) => {
                assert_eq!(host["hash"], upload.hash().to_string(), "{text}");
                assert_eq!(host["stringified"], upload.manifest().to_json(), "{text}");
                let port = upload.manifest().port().map(|port| port.to_string());
                assert_eq!(host["port"], json!(port), "{text}");
                for name in upload.private().names() {
                    let var = upload.private().var(name).unwrap();
                    assert_eq!(
                        host["privateHashes"][name],
                        private_var_hash(&var.nonce, &var.value)
                    );
                }
                assert_eq!(
                    Upload::parse(upload.to_json().as_bytes()).unwrap(),
                    upload,
                    "{text}"
                );
                accepted += 1;
            }
        }
    }
    println!("{accepted} accepted, {hashed} of right shape, {clean} clean, {reported} reported");
    // The generator has to reach all sides.
    for count in [accepted, hashed, clean, reported] {
        assert!(count * 50 > texts.len(), "only {count} of {}", texts.len());
    }
}

#[test]
fn files_become_the_document_that_the_original_generates() {
    let mut documents = Documents::new(seed());
    let files: Vec<(String, String)> = (0..cases() / 2)
        .map(|_| documents.files())
        // The original knows no other size, and looks no further; ours goes on.
        .filter(|(codius, _)| !names_another_size(codius))
        .collect();
    let questions = files
        .iter()
        .map(|(codius, vars)| json!({"codius": codius, "vars": vars}));
    let (mut generated, mut refused) = (0, 0);
    for ((codius, vars), answer) in files.iter().zip(Peer::ask(questions)) {
        let parsed = |text: &String| parse_document(text.as_bytes()).unwrap();
        let mut nonces = 0;
        let mut nonce = |_: &str, _: &str| {
            nonces += 1;
            format!("nonce {}", nonces - 1)
        };
        match source::generate(&parsed(codius), Some(&parsed(vars)), &mut nonce) {
            Ok(ours) => {
                assert_eq!(answer["generated"], ours.to_json(), "{codius}\n{vars}");
                generated += 1;
            }
            Err(errors) => {
                assert_eq!(answer["errors"], pairs(&errors), "{codius}\n{vars}");
                refused += 1;
            }
        }
    }
    println!("{generated} generated, {refused} refused");
    for count in [generated, refused] {
        assert!(count * 20 > files.len(), "only {count} of {}", files.len());
    }
}

fn names_another_size(codius: &str) -> bool {
    let document = parse_document(codius.as_bytes()).expect("it is JSON");
    let name = document["manifest"]["machine"].as_str();
    name.is_some_and(|name| name != "small" && name.parse::<MachineName>().is_ok())
}
