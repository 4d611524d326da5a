//! `codius manifest`: generated manifests, as they are posted.

use std::{
    fs::File,
    io::{Read, stdin},
    path::Path,
};

use codius_manifest::{
    MAX_BODY_BYTES, ManifestError, hash_posted, parse_document, validate_generated,
};

use serde_json::json;

use crate::failure::{Failure, USAGE};

pub(crate) fn hash(file: &Path, json: bool) -> Result<(), Failure> {
    let hash = hash_posted(&read(file)?).map_err(invalid)?;
    if json {
        println!("{:#}", json!({ "manifestHash": hash }));
    } else {
        println!("{hash}");
    }
    Ok(())
}

pub(crate) fn validate(file: &Path, json: bool) -> Result<(), Failure> {
    let document = parse_document(&read(file)?).map_err(invalid)?;
    let errors = validate_generated(&document);
    if json {
        let told: Vec<_> = errors
            .iter()
            .map(|error| {
                json!({ "path": error.path, "message": error.message, "next": error.next_step })
            })
            .collect();
        println!(
            "{:#}",
            json!({ "valid": errors.is_empty(), "errors": told })
        );
    }
    if errors.is_empty() {
        if !json {
            println!("ok");
        }
        return Ok(());
    }
    let failure = Failure::new(USAGE, format!("{} is not a valid manifest", file.display()));
    Err(errors.iter().fold(failure, |failure, error| {
        failure.note(format!("{error} ({})", error.next_step))
    }))
}

/// Reads a file, or standard input for `-`, up to what a host accepts.
pub(crate) fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let limit = MAX_BODY_BYTES as u64 + 1;
    let read = if file == Path::new("-") {
        stdin().take(limit).read_to_end(&mut bytes)
    } else {
        File::open(file).and_then(|open| open.take(limit).read_to_end(&mut bytes))
    };
    read.map_err(|error| {
        Failure::new(USAGE, format!("{} cannot be read: {error}", file.display()))
    })?;
    Ok(bytes)
}

pub(crate) fn invalid(error: ManifestError) -> Failure {
    let failure = Failure::new(USAGE, error.to_string());
    error.details().iter().fold(failure, |failure, detail| {
        failure.note(format!("{detail} ({})", detail.next_step))
    })
}
