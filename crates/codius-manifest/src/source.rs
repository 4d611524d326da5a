//! From `codius.json` and `codiusvars.json`, which people write, to the document that is posted.
//!
//! As `generateManifest` of the npm package `codius-manifest` 2.2 does it:
//!
//! 1. both files fit their schemas;
//! 2. public variables of `codiusvars.json` are added to, or take the place of, the manifest's;
//! 3. private ones get a nonce, and their hashes are put into the manifest;
//! 4. empty environments, and descriptions that are not empty, are removed;
//! 5. the result is checked ([`validate_generated`](crate::validate_generated)), but sizes of version 2 may be named;
//! 6. with variables there is always a `private`, even an empty one;
//! 7. images are pinned to a digest. This needs a registry and is left to the caller:
//!    [`Generated::unpinned_images`] says which, [`Generated::pin`] takes the answers.
//!
//! Traps: the original makes new nonces, and with them another hash of the program, in each run; here
//! the caller decides ([`generate`]). An empty `description` stays, and a host refuses it.

use serde_json::{Map, Value};

use crate::{
    FieldError, ManifestHash,
    generated::validate_as,
    hash_value, javascript, private_var_hash,
    schema::{self, Conversion, Shape},
};

/// The random bytes of a nonce. The nonce's text is their lower hex.
pub const NONCE_BYTES: usize = 16;

/// A manifest ready to be posted, but for its images.
#[derive(Clone, PartialEq)]
pub struct Generated {
    /// `{"manifest": …, "private"?: …}`
    document: Value,
}

impl std::fmt::Debug for Generated {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Generated")
            .field("manifest", self.manifest())
            .finish_non_exhaustive()
    }
}

/// Makes the document to post from `codius.json` and, if there is one, `codiusvars.json`.
///
/// `nonce` gives the nonce of a private variable, of which it is told name and value: [`NONCE_BYTES`]
/// bytes in lower hex that nobody can guess.
pub fn generate(
    codius: &Value,
    vars: Option<&Value>,
    nonce: &mut dyn FnMut(&str, &str) -> String,
) -> Result<Generated, Vec<FieldError>> {
    let codius = checked(codius, &schema::CODIUS_FILE)?;
    let vars = vars
        .map(|vars| checked(vars, &schema::VARS_FILE))
        .transpose()?;
    let Some(manifest) = codius.get("manifest") else {
        return Err(vec![FieldError::new(
            "manifest",
            "is required",
            "put the manifest into {\"manifest\": …}",
        )]);
    };
    let mut document = Map::new();
    document.insert("manifest".to_owned(), manifest.clone());
    let mut generated = Generated {
        document: Value::Object(document),
    };
    if let Some(vars) = vars.as_ref().and_then(|vars| vars.get("vars")) {
        generated.add_public_vars(members(vars, "public"));
        generated.add_private_vars(members(vars, "private"), nonce);
    }
    generated.remove_empty_environments();
    generated.remove_descriptions();
    javascript::enumeration_order(&mut generated.document);

    let errors = validate_as(&generated.document, &schema::GENERATED_V2);
    if !errors.is_empty() {
        return Err(errors);
    }
    if generated.manifest().get("vars").is_some() && generated.document.get("private").is_none() {
        generated.document["private"] = Value::Object(Map::new());
    }
    Ok(generated)
}

/// Whether an image reference names its content: `…@sha256:` and 64 hex digits.
pub fn is_pinned(image: &str) -> bool {
    image.rsplit_once("@sha256:").is_some_and(|(name, digest)| {
        !name.is_empty() && digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

impl Generated {
    /// What to post.
    pub const fn document(&self) -> &Value {
        &self.document
    }

    /// The text to post. Contains the private values.
    pub fn to_json(&self) -> String {
        javascript::stringify(&self.document)
    }

    pub fn manifest(&self) -> &Value {
        &self.document["manifest"]
    }

    /// The name of the program. Pinning images changes it.
    pub fn hash(&self) -> ManifestHash {
        hash_value(self.manifest())
    }

    /// The containers whose image could be another tomorrow: position and reference.
    pub fn unpinned_images(&self) -> Vec<(usize, String)> {
        let containers = self.manifest()["containers"].as_array();
        let images = containers
            .into_iter()
            .flatten()
            .map(|one| one["image"].as_str());
        images
            .enumerate()
            .filter_map(|(index, image)| Some((index, image?.to_owned())))
            .filter(|(_, image)| !is_pinned(image))
            .collect()
    }

    /// Replaces the image of a container. Without such a container, nothing happens.
    pub fn pin(&mut self, container: usize, image: &str) {
        if let Some(slot) = self
            .document
            .pointer_mut(&format!("/manifest/containers/{container}/image"))
        {
            *slot = image.into();
        }
    }

    /// Makes the logs public (`codius upload --debug`).
    pub fn set_debug(&mut self) {
        self.document["manifest"]["debug"] = true.into();
    }

    /// Tells every container which hosts it is uploaded to (`codius upload --add-host-env`): `HOSTS` is
    /// a JSON array in its environment. Changes the hash; `None`, and nothing is changed, if a container
    /// has a `HOSTS` already.
    pub fn add_hosts(&mut self, hosts: &[String]) -> Option<()> {
        const NAME: &str = "HOSTS";
        let text = javascript::stringify(&Value::from(hosts));
        let containers = self.document["manifest"]["containers"].as_array_mut()?;
        if containers
            .iter()
            .any(|container| !container["environment"][NAME].is_null())
        {
            return None;
        }
        for container in containers.iter_mut().filter_map(Value::as_object_mut) {
            let environment = container
                .entry("environment")
                .or_insert_with(|| Value::Object(Map::new()));
            if let Some(environment) = environment.as_object_mut() {
                environment.insert(NAME.to_owned(), text.clone().into());
            }
        }
        Some(())
    }

    fn add_public_vars(&mut self, public: Option<&Map<String, Value>>) {
        for (name, var) in public.into_iter().flatten() {
            self.vars().insert(name.clone(), var.clone());
        }
    }

    fn add_private_vars(
        &mut self,
        private: Option<&Map<String, Value>>,
        nonce: &mut dyn FnMut(&str, &str) -> String,
    ) {
        let mut with_nonces = Map::new();
        for (name, var) in private.into_iter().flatten() {
            let value = var["value"].as_str().unwrap_or_default();
            let nonce = nonce(name, value);
            let hash = private_var_hash(&nonce, value);
            let mut public = Map::new();
            public.insert("encoding".to_owned(), "private:sha256".into());
            public.insert("value".to_owned(), hash.into());
            self.vars().insert(name.clone(), Value::Object(public));
            let mut var = Map::new();
            var.insert("value".to_owned(), value.into());
            var.insert("nonce".to_owned(), nonce.into());
            with_nonces.insert(name.clone(), Value::Object(var));
        }
        if !with_nonces.is_empty() {
            let mut part = Map::new();
            part.insert("vars".to_owned(), Value::Object(with_nonces));
            self.document["private"] = Value::Object(part);
        }
    }

    /// The manifest's variables, made if there are none. The schema has been checked: it is an object.
    fn vars(&mut self) -> &mut Map<String, Value> {
        let vars = &mut self.document["manifest"]["vars"];
        if !vars.is_object() {
            *vars = Value::Object(Map::new());
        }
        vars.as_object_mut()
            .expect("it has just been made an object")
    }

    fn remove_empty_environments(&mut self) {
        let containers = self.document["manifest"]["containers"].as_array_mut();
        for container in containers
            .into_iter()
            .flatten()
            .filter_map(Value::as_object_mut)
        {
            let environment = container.get("environment").and_then(Value::as_object);
            if environment.is_some_and(Map::is_empty) {
                // `remove` would move the last member into the gap.
                container.shift_remove("environment");
            }
        }
    }

    fn remove_descriptions(&mut self) {
        let vars = self.document["manifest"]
            .get_mut("vars")
            .and_then(Value::as_object_mut);
        for var in vars
            .into_iter()
            .flat_map(Map::values_mut)
            .filter_map(Value::as_object_mut)
        {
            if var
                .get("description")
                .and_then(Value::as_str)
                .is_some_and(|text| !text.is_empty())
            {
                var.shift_remove("description");
            }
        }
    }
}

/// The file in JavaScript's order, if it fits its schema.
fn checked(file: &Value, shape: &Shape) -> Result<Value, Vec<FieldError>> {
    let mut file = file.clone();
    javascript::enumeration_order(&mut file);
    match schema::check(&mut file, shape, Conversion::None) {
        Ok(faults) if faults.is_empty() => Ok(file),
        Ok(faults) => Err(faults
            .into_iter()
            .map(schema::Fault::into_tool_error)
            .collect()),
        Err(error) => Err(error.details().to_vec()),
    }
}

fn members<'a>(value: &'a Value, name: &str) -> Option<&'a Map<String, Value>> {
    value.get(name)?.as_object()
}
