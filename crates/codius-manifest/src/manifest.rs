//! An accepted manifest and the private part of its upload.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::{MachineName, ManifestHash, hash_value, javascript, private_var_hash};

/// What to run: public, and named by its hash. Made by [`Upload::parse`](crate::Upload::parse).
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// The manifest after the conversions of the schema; members in JavaScript's order.
    value: Value,
    hash: ManifestHash,
    name: String,
    version: String,
    machine: MachineName,
    pub(crate) port: Option<u16>,
    containers: Vec<Container>,
    vars: BTreeMap<String, Var>,
    debug: bool,
}

/// A container as the manifest writes it: variables are not yet put in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    pub id: String,
    /// The image reference, as written.
    pub image: String,
    pub command: Option<Vec<String>>,
    pub workdir: Option<String>,
    /// Names and values (`$NAME` refers to a variable) in JavaScript's order.
    pub environment: Vec<(String, String)>,
    pub restart: RestartPolicy,
}

/// Whether a container's program is started again when it has ended. Version 1 never does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum RestartPolicy {
    #[default]
    No,
    /// Unless its exit code is 0.
    OnFailure,
    /// However it has ended.
    Always,
}

impl RestartPolicy {
    /// As manifests write them.
    pub const NAMES: [&str; 3] = ["no", "on-failure", "always"];

    pub(crate) fn named(name: &str) -> Option<Self> {
        let all = [Self::No, Self::OnFailure, Self::Always];
        let known = Self::NAMES.into_iter().zip(all);
        known
            .into_iter()
            .find_map(|(known, policy)| (known == name).then_some(policy))
    }
}

/// A variable of the manifest. Everyone can read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Var {
    /// The value itself.
    Public { value: String },
    /// Encoding `private:sha256`: the [`private_var_hash`] of a value that only the host is given.
    PrivateSha256 { hash: String },
}

/// The part of an upload that only the host is given. `Debug` shows names only.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Private {
    vars: BTreeMap<String, PrivateVar>,
}

/// A private value and the nonce that keeps its public hash from being guessed.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateVar {
    pub nonce: String,
    pub value: String,
}

impl Manifest {
    /// The name of the program: the hash of the canonical form.
    pub const fn hash(&self) -> ManifestHash {
        self.hash
    }

    /// The canonical form, which the hash is made over.
    pub fn canonical(&self) -> Vec<u8> {
        crate::canonical::canonical(&self.value).into_bytes()
    }

    /// The text that `JSON.stringify(manifest)` gives: what programs find in `CODIUS_MANIFEST`.
    pub fn to_json(&self) -> String {
        javascript::stringify(&self.value)
    }

    /// The manifest as JSON, for answers.
    pub const fn as_value(&self) -> &Value {
        &self.value
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn version(&self) -> &str {
        &self.version
    }

    pub const fn machine(&self) -> MachineName {
        self.machine
    }

    /// The port of the program that visitors are sent to; without one, there are none.
    pub const fn port(&self) -> Option<u16> {
        self.port
    }

    /// From 1 to [`MAX_CONTAINERS`](crate::MAX_CONTAINERS).
    pub fn containers(&self) -> &[Container] {
        &self.containers
    }

    /// The variable of this name.
    pub fn var(&self, name: &str) -> Option<&Var> {
        self.vars.get(name)
    }

    /// All variables, by name.
    pub fn vars(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.vars.iter().map(|(name, var)| (name.as_str(), var))
    }

    /// Whether everyone may read the logs.
    pub const fn debug(&self) -> bool {
        self.debug
    }

    /// `JSON.stringify(manifest.vars)`, with the word that JavaScript has for what is not there.
    pub(crate) fn vars_json(&self) -> String {
        self.value
            .get("vars")
            .map_or_else(|| "undefined".to_owned(), javascript::stringify)
    }

    /// From a value that the host's schema has accepted. The port is not read here.
    pub(crate) fn from_checked(value: Value) -> Self {
        let text = |name| text_member(&value, name).unwrap_or_default();
        Self {
            hash: hash_value(&value),
            name: text("name"),
            version: text("version"),
            machine: text("machine").parse().unwrap_or_default(),
            port: None,
            containers: value
                .get("containers")
                .and_then(Value::as_array)
                .map(|list| list.iter().map(Container::from_checked).collect())
                .unwrap_or_default(),
            vars: members(value.get("vars"), Var::from_checked).collect(),
            debug: value
                .get("debug")
                .and_then(Value::as_bool)
                .unwrap_or_default(),
            value,
        }
    }
}

impl Container {
    fn from_checked(value: &Value) -> Self {
        Self {
            id: text_member(value, "id").unwrap_or_default(),
            image: text_member(value, "image").unwrap_or_default(),
            command: value.get("command").and_then(Value::as_array).map(|list| {
                list.iter()
                    .filter_map(Value::as_str)
                    .map(str::to_owned)
                    .collect()
            }),
            workdir: text_member(value, "workdir"),
            environment: members(value.get("environment"), |text| {
                text.as_str().unwrap_or_default().to_owned()
            })
            .collect(),
            restart: text_member(value, "restart")
                .and_then(|name| RestartPolicy::named(&name))
                .unwrap_or_default(),
        }
    }
}

impl Var {
    fn from_checked(value: &Value) -> Self {
        let text = text_member(value, "value").unwrap_or_default();
        if value.get("encoding").is_some() {
            Self::PrivateSha256 { hash: text }
        } else {
            Self::Public { value: text }
        }
    }
}

impl Private {
    /// The private variable of this name.
    pub fn var(&self, name: &str) -> Option<&PrivateVar> {
        self.vars.get(name)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.vars.keys().map(String::as_str)
    }

    pub fn is_empty(&self) -> bool {
        self.vars.is_empty()
    }

    pub(crate) fn from_checked(value: &Value) -> Self {
        let vars = members(value.get("vars"), |var| PrivateVar {
            nonce: text_member(var, "nonce").unwrap_or_default(),
            value: text_member(var, "value").unwrap_or_default(),
        });
        Self {
            vars: vars.collect(),
        }
    }

    /// As it is posted, values included: for the host's own keeping.
    pub(crate) fn to_value(&self) -> Value {
        #[derive(Serialize)]
        struct Posted<'a> {
            nonce: &'a str,
            value: &'a str,
        }
        let mut vars = Map::new();
        for (name, PrivateVar { nonce, value }) in &self.vars {
            vars.insert(name.clone(), serde_json::json!(Posted { nonce, value }));
        }
        let mut private = Map::new();
        private.insert("vars".to_owned(), Value::Object(vars));
        Value::Object(private)
    }
}

impl PrivateVar {
    /// What has to stand in public for this variable.
    pub fn hash(&self) -> String {
        private_var_hash(&self.nonce, &self.value)
    }
}

impl fmt::Debug for Private {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_map().entries(&self.vars).finish()
    }
}

impl fmt::Debug for PrivateVar {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("<private>")
    }
}

fn text_member(value: &Value, name: &str) -> Option<String> {
    value.get(name)?.as_str().map(str::to_owned)
}

/// The members of an object that may be absent, in JavaScript's order.
fn members<T>(
    object: Option<&Value>,
    read: impl Fn(&Value) -> T,
) -> impl Iterator<Item = (String, T)> {
    object
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(move |(name, value)| (name.clone(), read(value)))
}
