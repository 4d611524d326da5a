//! What `codius manifest validate` looks for: the checks of the npm package `codius-manifest` 2.2,
//! with its paths and messages in its order.
//!
//! They are not the host's: they find variables that nobody uses, allow `description`, convert
//! nothing, and do not mind a port that is no port. What passes both can be run.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::{
    FieldError, javascript, private_var_hash,
    schema::{self, Conversion, Shape},
};

/// Checks `{"manifest": …, "private"?: …}` of version 1. Faults of the schema are reported first and alone.
pub fn validate_generated(document: &Value) -> Vec<FieldError> {
    validate_as(document, &schema::GENERATED)
}

/// The same by another schema.
pub(crate) fn validate_as(document: &Value, shape: &Shape) -> Vec<FieldError> {
    let mut document = document.clone();
    javascript::enumeration_order(&mut document);
    match schema::check(&mut document, shape, Conversion::None) {
        Ok(faults) if !faults.is_empty() => {
            return faults
                .into_iter()
                .map(schema::Fault::into_tool_error)
                .collect();
        }
        Ok(_) => {}
        Err(error) => return error.details().to_vec(),
    }
    let document = Document::new(&document);
    let mut errors = document.container_errors();
    errors.extend(document.public_var_errors());
    errors.extend(document.private_var_errors());
    errors
}

/// A document that has the right shape.
struct Document<'a> {
    containers: &'a [Value],
    vars: Option<&'a Map<String, Value>>,
    private: Option<&'a Value>,
    private_vars: Option<&'a Map<String, Value>>,
    /// Names that occur as the name of a variable with a value that is not empty, or as `$NAME`.
    used: BTreeSet<&'a str>,
}

impl<'a> Document<'a> {
    fn new(document: &'a Value) -> Self {
        let manifest = &document["manifest"];
        let containers = manifest["containers"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        let private = document.get("private");
        let mut used = BTreeSet::new();
        for (name, value) in containers.iter().flat_map(environment) {
            if !value.is_empty() {
                used.insert(name);
            }
            used.extend(value.strip_prefix('$'));
        }
        Self {
            containers,
            vars: manifest.get("vars").and_then(Value::as_object),
            private,
            private_vars: private
                .and_then(|private| private.get("vars"))
                .and_then(Value::as_object),
            used,
        }
    }

    fn container_errors(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let ids: BTreeSet<_> = self
            .containers
            .iter()
            .map(|one| one["id"].as_str())
            .collect();
        if ids.len() < self.containers.len() {
            errors.push(FieldError::new(
                "manifest.containers",
                "container ids must be unique.",
                "give each container another id",
            ));
        }
        for (index, container) in self.containers.iter().enumerate() {
            for (name, value) in environment(container) {
                let path = format!("manifest.containers[{index}].environment.{name}");
                if name.starts_with("CODIUS") {
                    errors.push(FieldError::new(
                        &path,
                        "environment variables starting in `CODIUS` are reserved.",
                        "choose another name",
                    ));
                }
                errors.extend(
                    value
                        .strip_prefix('$')
                        .and_then(|var| self.reference_error(path, var)),
                );
            }
        }
        errors
    }

    /// What is wrong with a reference to a variable.
    fn reference_error(&self, path: String, name: &str) -> Option<FieldError> {
        let Some(vars) = self.vars else {
            return Some(FieldError::new(
                path,
                "cannot validate env variable - manifest.vars not defined",
                "define the variable in manifest.vars",
            ));
        };
        let Some(var) = vars.get(name) else {
            return Some(FieldError::new(
                path,
                "env variable is not defined within manifest.vars.",
                "define the variable in manifest.vars",
            ));
        };
        // The schema knows one encoding only, so "invalid encoding" is never said; and the original
        // does not look further where there is no `private` at all.
        let missing = is_encoded(var)
            && self.private.is_some()
            && !self
                .private_vars
                .is_some_and(|vars| vars.contains_key(name));
        missing.then(|| {
            FieldError::new(
                path,
                "encoded env variable is not defined within private manifest field",
                "add its nonce and value to private.vars",
            )
        })
    }

    fn public_var_errors(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        for (name, var) in self.vars.into_iter().flatten() {
            let path = format!("manifest.vars.{name}");
            if !self.used.contains(name.as_str()) {
                errors.push(FieldError::new(
                    &path,
                    "public var is not used within a container",
                    "remove it, or use it in an environment",
                ));
            }
            if is_encoded(var) && self.private.is_none() {
                errors.push(FieldError::new(
                    path,
                    "public var has encoding but private.vars is undefined",
                    "add its nonce and value to private.vars",
                ));
            }
        }
        errors
    }

    fn private_var_errors(&self) -> Vec<FieldError> {
        let Some(private_vars) = self.private_vars.filter(|vars| !vars.is_empty()) else {
            return Vec::new();
        };
        let Some(vars) = self.vars else {
            return vec![FieldError::new(
                "private",
                "cannot validate private vars - manifest.vars is not defined.",
                "add the hashes of the private variables to manifest.vars",
            )];
        };
        let mut errors = Vec::new();
        for (name, private_var) in private_vars {
            let path = format!("private.{name}");
            let Some(var) = vars.get(name) else {
                errors.push(FieldError::new(
                    path,
                    "private var is not specified within manifest.vars",
                    "add its hash to manifest.vars, or remove it",
                ));
                continue;
            };
            let text = |member: &str| private_var[member].as_str().unwrap_or_default();
            let hashed = private_var_hash(text("nonce"), text("value"));
            let public = var["value"].as_str().unwrap_or_default();
            if public != hashed {
                errors.push(FieldError::new(
                    &path,
                    format!(
                        "private var hash does not match the hashed value. public-hash={public} \
                         hashed-value={hashed}"
                    ),
                    "make the manifest again from codius.json and codiusvars.json",
                ));
            }
            if !self.used.contains(name.as_str()) {
                errors.push(FieldError::new(
                    path,
                    "private var is never used within a container",
                    "remove it, or use it in an environment",
                ));
            }
        }
        errors
    }
}

fn is_encoded(var: &Value) -> bool {
    var.get("encoding").is_some()
}

fn environment(container: &Value) -> impl Iterator<Item = (&str, &str)> {
    container
        .get("environment")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)))
}
