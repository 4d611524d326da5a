//! The committed OpenAPI document, and what it says of a body.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

pub(crate) const TEXT: &str = include_str!("../../../../docs/openapi.json");

pub(crate) fn document() -> Value {
    serde_json::from_str(TEXT).expect("the document is JSON")
}

/// Whether a body is what the schema of this name says.
pub(crate) fn conforms(schema: &str, body: &Value) -> Result<()> {
    let schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$ref": format!("#/components/schemas/{schema}"),
        "components": document()["components"],
    });
    let validator = jsonschema::validator_for(&schema)?;
    let faults: Vec<String> = validator
        .iter_errors(body)
        .map(|fault| fault.to_string())
        .collect();
    ensure!(faults.is_empty(), "{faults:?} in {body}");
    Ok(())
}

#[test]
fn the_schemas_of_the_document_can_tell_right_from_wrong() {
    let right =
        json!({ "manifest_hash": "a".repeat(52), "used": "1", "refunded": "2", "owed": "0" });
    conforms("Stopped", &right).unwrap();
    for (member, value) in [
        ("used", json!(1)),
        ("owed", json!("-1")),
        ("manifest_hash", json!("x")),
        ("refunded", Value::Null),
    ] {
        let mut wrong = right.clone();
        wrong[member] = value;
        conforms("Stopped", &wrong).unwrap_err();
    }
}
