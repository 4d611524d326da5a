//! The two schemas of version 1, what version 2 adds to them, and the walk that checks a value against them.
//!
//! The host's schema was a JSON schema run by Joi 13 through enjoi, which *converts*: JSON text is
//! taken where an object or array is expected, and `"true"` where a boolean is. The tool's schema was
//! run by jsen 0.6 and converts nothing. Their shapes are the same but for `description`.
//!
//! No member may be there that a shape does not name, at any level. Absent and `null` are different:
//! `null` never fits.

use serde_json::Value;

use crate::{
    FieldError, InvalidMachineName, MachineName, ManifestError, RestartPolicy, parse_document,
};

/// The most faults that a host reports at once, so that an answer is not longer than its question.
pub(crate) const MAX_REPORTED: usize = 32;

/// The longest path or name that a host repeats in a report.
const MAX_REPEATED_CHARACTERS: usize = 200;

/// What a value has to look like.
#[derive(Debug)]
pub(crate) enum Shape {
    Text,
    /// Text in which a digit from 1 to 9 occurs: the original's pattern `[1-9][0-9]*`, which it
    /// forgot to anchor.
    PortText,
    /// Exactly this text.
    Only(&'static str),
    /// When a container is started again.
    RestartPolicy,
    /// The name of a size of pods.
    MachineName,
    Boolean,
    List {
        items: &'static Self,
        min: usize,
    },
    Record {
        fields: &'static [Field],
        /// Whether other members are refused.
        closed: bool,
    },
    /// Any names, all with values of this shape.
    Map(&'static Self),
}

#[derive(Debug)]
pub(crate) struct Field {
    name: &'static str,
    shape: Shape,
    required: bool,
}

const fn required(name: &'static str, shape: Shape) -> Field {
    Field {
        name,
        shape,
        required: true,
    }
}

const fn optional(name: &'static str, shape: Shape) -> Field {
    Field {
        name,
        shape,
        required: false,
    }
}

const fn record(fields: &'static [Field]) -> Shape {
    Shape::Record {
        fields,
        closed: true,
    }
}

const ENCODING: Shape = Shape::Only("private:sha256");
const TEXT_MAP: Shape = Shape::Map(&Shape::Text);

const CONTAINER_ID: Field = required("id", Shape::Text);
const IMAGE: Field = required("image", Shape::Text);
const COMMAND: Field = optional(
    "command",
    Shape::List {
        items: &Shape::Text,
        min: 0,
    },
);
const WORKDIR: Field = optional("workdir", Shape::Text);
const ENVIRONMENT: Field = optional("environment", TEXT_MAP);
/// Of version 2.
const RESTART: Field = optional("restart", Shape::RestartPolicy);

const CONTAINER: Shape = record(&[CONTAINER_ID, IMAGE, COMMAND, WORKDIR, ENVIRONMENT]);
const CONTAINER_V2: Shape = record(&[CONTAINER_ID, IMAGE, COMMAND, WORKDIR, ENVIRONMENT, RESTART]);

const HOST_VAR: Shape = record(&[
    optional("encoding", ENCODING),
    required("value", Shape::Text),
]);

const TOOL_VAR: Shape = record(&[
    optional("encoding", ENCODING),
    required("value", Shape::Text),
    optional("description", Shape::Text),
]);

/// The one size of version 1.
const MACHINE: Shape = Shape::Only("small");

const fn manifest_fields(
    var: &'static Shape,
    machine: Shape,
    container: &'static Shape,
) -> [Field; 7] {
    [
        required("name", Shape::Text),
        required("version", Shape::Text),
        optional("port", Shape::PortText),
        optional("machine", machine),
        required(
            "containers",
            Shape::List {
                items: container,
                min: 1,
            },
        ),
        optional("vars", Shape::Map(var)),
        optional("debug", Shape::Boolean),
    ]
}

const HOST_MANIFEST: &[Field] = &manifest_fields(&HOST_VAR, MACHINE, &CONTAINER);
const HOST_MANIFEST_V2: &[Field] = &manifest_fields(&HOST_VAR, Shape::MachineName, &CONTAINER_V2);
const TOOL_MANIFEST: &[Field] = &manifest_fields(&TOOL_VAR, MACHINE, &CONTAINER);
const TOOL_MANIFEST_V2: &[Field] = &manifest_fields(&TOOL_VAR, Shape::MachineName, &CONTAINER_V2);

const PRIVATE_VAR: Shape = record(&[
    required("nonce", Shape::Text),
    required("value", Shape::Text),
]);
const PRIVATE: Shape = record(&[optional("vars", Shape::Map(&PRIVATE_VAR))]);

/// The body that is posted to a host (its `PodRequest.json`).
pub(crate) const HOST_UPLOAD: Shape = record(&[
    required("manifest", record(HOST_MANIFEST)),
    optional("private", PRIVATE),
]);

/// The same in version 2.
pub(crate) const HOST_UPLOAD_V2: Shape = record(&[
    required("manifest", record(HOST_MANIFEST_V2)),
    optional("private", PRIVATE),
]);

/// The same, as the tool checks it before it posts it (`GeneratedManifestSpec.json`).
pub(crate) const GENERATED: Shape = record(&[
    required("manifest", record(TOOL_MANIFEST)),
    optional("private", PRIVATE),
]);

/// The same in version 2.
pub(crate) const GENERATED_V2: Shape = record(&[
    required("manifest", record(TOOL_MANIFEST_V2)),
    optional("private", PRIVATE),
]);

/// `codius.json` (`CodiusSpec.json`, in which `required` and `additionalProperties` of the root stand
/// at the wrong place and therefore mean nothing; [`source`](crate::source) repairs the first).
pub(crate) const CODIUS_FILE: Shape = Shape::Record {
    fields: &[optional("manifest", record(TOOL_MANIFEST_V2))],
    closed: false,
};

const PUBLIC_SOURCE_VAR: Shape = record(&[
    required("value", Shape::Text),
    optional("description", Shape::Text),
]);
const PRIVATE_SOURCE_VAR: Shape = record(&[required("value", Shape::Text)]);

/// `codiusvars.json` (`CodiusVarsSpec.json`; below `vars` the original's `additionalProperties`
/// stands at the wrong place too).
pub(crate) const VARS_FILE: Shape = record(&[required(
    "vars",
    Shape::Record {
        fields: &[
            optional("public", Shape::Map(&PUBLIC_SOURCE_VAR)),
            optional("private", Shape::Map(&PRIVATE_SOURCE_VAR)),
        ],
        closed: false,
    },
)]);

/// Which rule of a shape a value breaks; jsen's name for it is its [`keyword`](Self::keyword).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rule {
    Type(&'static str),
    Required,
    Only(&'static str),
    RestartPolicy,
    MachineName,
    PortPattern,
    MinItems(usize),
    /// A member of this name is not known here.
    Unknown(String),
}

impl Rule {
    const fn keyword(&self) -> &'static str {
        match self {
            Self::Type(_) => "type",
            Self::Required => "required",
            // Which sizes there are is for each host to say; the original knew one, by an "enum".
            Self::Only(_) | Self::MachineName | Self::RestartPolicy => "enum",
            Self::PortPattern => "pattern",
            Self::MinItems(_) => "minItems",
            Self::Unknown(_) => "additionalProperties",
        }
    }
}

/// One broken rule and its place (members and indices joined by dots, as jsen writes them).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) path: String,
    pub(crate) rule: Rule,
}

impl Fault {
    /// As the host explains it.
    pub(crate) fn into_host_error(self) -> FieldError {
        let (message, next_step) = match &self.rule {
            Rule::Type(expected) => (
                format!("must be {expected}"),
                "change the type of the value",
            ),
            Rule::Required => ("is required".to_owned(), "add it"),
            Rule::Only(text) => (
                format!("must be \"{text}\""),
                "write it so, or leave it out",
            ),
            Rule::RestartPolicy => (
                format!("must be one of {}", RestartPolicy::NAMES.join(", ")),
                "write one of these, or leave it out: then it is not started again",
            ),
            Rule::MachineName => (
                format!("is {InvalidMachineName}"),
                "name a size that the host offers; codius host lists them",
            ),
            Rule::PortPattern => (
                "must be a port number in quotes".to_owned(),
                "write it as \"8080\"",
            ),
            Rule::MinItems(min) => (format!("must have at least {min} items"), "add one"),
            Rule::Unknown(name) if name == "description" => (
                "\"description\" is not allowed in an uploaded manifest".to_owned(),
                "remove it; the codius tool does so when it makes a manifest from codius.json",
            ),
            Rule::Unknown(name) => (
                format!("{:?} is not allowed", shortened(name)),
                "remove it, or correct its spelling",
            ),
        };
        FieldError::new(shortened(&self.path), message, next_step)
    }

    /// As `codius-manifest` 2.2 prints it.
    pub(crate) fn into_tool_error(self) -> FieldError {
        let quoted = |text: &str| Value::from(text).to_string();
        let additional = match &self.rule {
            Rule::Unknown(name) => format!("\"additionalProperties\":{},", quoted(name)),
            _ => String::new(),
        };
        let error = format!(
            "{{{additional}\"path\":{},\"keyword\":\"{}\"}}",
            quoted(&self.path),
            self.rule.keyword()
        );
        let message = format!("schema is invalid. error={}", error.replace('"', "'"));
        let path = self.path.clone();
        FieldError {
            path,
            message,
            ..self.into_host_error()
        }
    }
}

/// The beginning of a text, if it is too long to be repeated.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_REPEATED_CHARACTERS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Whether values of a neighbouring type are taken for what a shape asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Conversion {
    /// As Joi does; the value is changed.
    Joi,
    None,
}

/// Checks a value, and converts it if so asked. Fails only if text inside the value cannot be read
/// at all (see [`parse_document`]); all else is reported as faults.
pub(crate) fn check(
    value: &mut Value,
    shape: &Shape,
    conversion: Conversion,
) -> Result<Vec<Fault>, ManifestError> {
    let mut walk = Walk {
        path: Vec::new(),
        conversion,
        faults: Vec::new(),
    };
    walk.visit(value, shape)?;
    Ok(walk.faults)
}

struct Walk {
    path: Vec<String>,
    conversion: Conversion,
    faults: Vec<Fault>,
}

impl Walk {
    fn fault(&mut self, rule: Rule) {
        // The tool checks the file of the one who runs it, and reports everything.
        if self.conversion == Conversion::None || self.faults.len() < MAX_REPORTED {
            self.faults.push(Fault {
                path: self.path.join("."),
                rule,
            });
        }
    }

    fn descend(
        &mut self,
        step: impl Into<String>,
        value: &mut Value,
        shape: &Shape,
    ) -> Result<(), ManifestError> {
        self.path.push(step.into());
        let result = self.visit(value, shape);
        self.path.pop();
        result
    }

    fn visit(&mut self, value: &mut Value, shape: &Shape) -> Result<(), ManifestError> {
        match shape {
            Shape::Text => {
                if !value.is_string() {
                    self.fault(Rule::Type("text"));
                }
            }
            Shape::PortText => self.visit_port(value),
            Shape::Only(text) => {
                if value.as_str() != Some(text) {
                    self.fault(Rule::Only(text));
                }
            }
            Shape::RestartPolicy => {
                let policy = value.as_str().and_then(RestartPolicy::named);
                if policy.is_none() {
                    self.fault(Rule::RestartPolicy);
                }
            }
            Shape::MachineName => {
                let name = value.as_str().map(str::parse::<MachineName>);
                if !matches!(name, Some(Ok(_))) {
                    self.fault(Rule::MachineName);
                }
            }
            Shape::Boolean => self.visit_boolean(value),
            Shape::List { items, min } => {
                self.read_text(value, Value::is_array)?;
                let Value::Array(list) = value else {
                    self.fault(Rule::Type("a list"));
                    return Ok(());
                };
                if list.len() < *min {
                    self.fault(Rule::MinItems(*min));
                }
                for (index, item) in list.iter_mut().enumerate() {
                    self.descend(index.to_string(), item, items)?;
                }
            }
            Shape::Record { fields, closed } => self.visit_record(value, fields, *closed)?,
            Shape::Map(members) => {
                self.read_text(value, Value::is_object)?;
                let Value::Object(map) = value else {
                    self.fault(Rule::Type("an object"));
                    return Ok(());
                };
                for (name, member) in map.iter_mut() {
                    if self.conversion == Conversion::Joi && name == "__proto__" {
                        // Joi drops this member without a word, so that what runs is not what was
                        // written.
                        self.fault(Rule::Unknown(name.clone()));
                        continue;
                    }
                    self.descend(name, member, members)?;
                }
            }
        }
        Ok(())
    }

    fn visit_port(&mut self, value: &Value) {
        let Some(text) = value.as_str() else {
            self.fault(Rule::Type("text"));
            return;
        };
        // Joi lets empty text pass before it looks at the pattern.
        let passes = self.conversion == Conversion::Joi && text.is_empty();
        if !passes && !text.contains(|c| matches!(c, '1'..='9')) {
            self.fault(Rule::PortPattern);
        }
    }

    fn visit_boolean(&mut self, value: &mut Value) {
        if let (Conversion::Joi, Some(text)) = (self.conversion, value.as_str()) {
            if text.eq_ignore_ascii_case("true") {
                *value = Value::Bool(true);
            } else if text.eq_ignore_ascii_case("false") {
                *value = Value::Bool(false);
            }
        }
        if !value.is_boolean() {
            self.fault(Rule::Type("true or false"));
        }
    }

    fn visit_record(
        &mut self,
        value: &mut Value,
        fields: &[Field],
        closed: bool,
    ) -> Result<(), ManifestError> {
        self.read_text(value, Value::is_object)?;
        let Value::Object(members) = value else {
            self.fault(Rule::Type("an object"));
            return Ok(());
        };
        for field in fields {
            match members.get_mut(field.name) {
                Some(member) => self.descend(field.name, member, &field.shape)?,
                None if field.required => {
                    self.path.push(field.name.to_owned());
                    self.fault(Rule::Required);
                    self.path.pop();
                }
                None => {}
            }
        }
        if closed {
            for name in members.keys() {
                if !fields.iter().any(|field| field.name == name) {
                    self.fault(Rule::Unknown(name.clone()));
                }
            }
        }
        Ok(())
    }

    /// Replaces JSON text by what it says, if that is what is `wanted`.
    fn read_text(
        &self,
        value: &mut Value,
        wanted: fn(&Value) -> bool,
    ) -> Result<(), ManifestError> {
        let (Conversion::Joi, Some(text)) = (self.conversion, value.as_str()) else {
            return Ok(());
        };
        match parse_document(text.as_bytes()) {
            Ok(inner) if wanted(&inner) => *value = inner,
            // Not JSON, or other JSON: the type is reported by the caller.
            Ok(_) | Err(ManifestError::Malformed(_)) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
