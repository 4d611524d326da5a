//! What an uploader posts to a host.

use std::{collections::BTreeSet, fmt};

use serde_json::{Map, Value};

use crate::{
    FieldError, MachineName, Manifest, ManifestError, ManifestHash, PodSpec, Private, hash_value,
    javascript, parse_document, pod_spec,
    schema::{self, Conversion, Shape},
};

/// The most containers of one pod. The first host had no limit.
pub const MAX_CONTAINERS: usize = 16;

/// The longest id of a container, in bytes. The first host had no limit.
pub const MAX_CONTAINER_ID_BYTES: usize = 128;

/// Which manifests are accepted. What version 1 accepts means the same in version 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ManifestVersion {
    /// As the first host did.
    V1,
    /// A container may say when it is started again, and `machine` may name any size; whether there is such a one is for
    /// the host to say.
    V2,
}

impl ManifestVersion {
    const fn shape(self) -> &'static Shape {
        match self {
            Self::V1 => &schema::HOST_UPLOAD,
            Self::V2 => &schema::HOST_UPLOAD_V2,
        }
    }
}

/// What is known of a document that is asked a price for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quoted {
    pub hash: ManifestHash,
    pub machine: MachineName,
}

/// A manifest and its private part, accepted: whatever can be known to be wrong without looking at
/// the world has been looked for.
#[derive(Clone, PartialEq)]
pub struct Upload {
    manifest: Manifest,
    private: Private,
    /// For each container its environment with all variables put in. Private values are in it.
    environments: Vec<Vec<(String, String)>>,
}

impl fmt::Debug for Upload {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Upload")
            .field("manifest", &self.manifest)
            .field("private", &self.private)
            .finish_non_exhaustive()
    }
}

impl Upload {
    /// Reads the body of `POST /pods`: `{"manifest": …, "private"?: …}`.
    ///
    /// In the order of the first host: JSON, then the schema with its conversions, then the
    /// variables; then what the first host did not look at and stumbled over later.
    pub fn parse(body: &[u8]) -> Result<Self, ManifestError> {
        Self::parse_as(ManifestVersion::V1, body)
    }

    /// The same for a version.
    pub fn parse_as(version: ManifestVersion, body: &[u8]) -> Result<Self, ManifestError> {
        let (mut manifest, private) = read(version, body)?;
        let private = private.unwrap_or_default();
        let environments = accept(&mut manifest, Some(&private))?;
        Ok(Self {
            manifest,
            private,
            environments,
        })
    }

    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub const fn private(&self) -> &Private {
        &self.private
    }

    /// The name of the program.
    pub const fn hash(&self) -> ManifestHash {
        self.manifest.hash()
    }

    /// The pod that this upload asks for, on the host with this public address.
    ///
    /// Fails if the environment becomes longer than a process can be given.
    pub fn pod_spec(&self, host_uri: &str) -> Result<PodSpec, ManifestError> {
        pod_spec::build(&self.manifest, &self.environments, host_uri)
    }

    /// The upload as text that [`parse_as`](Self::parse_as) reads back. Contains the private values.
    pub fn to_json(&self) -> String {
        let mut posted = Map::new();
        posted.insert("manifest".to_owned(), self.manifest.as_value().clone());
        posted.insert("private".to_owned(), self.private.to_value());
        javascript::stringify(&Value::Object(posted))
    }
}

/// What a document is asked a price for (`OPTIONS /pods`), if the host with this public address would run
/// it. Who extends a pod by its hash does not know its private values, so a document without `private`
/// is taken for one that has the right ones. (The first host answered 500.)
pub fn quoted(
    version: ManifestVersion,
    body: &[u8],
    host_uri: &str,
) -> Result<Quoted, ManifestError> {
    let (mut manifest, private) = read(version, body)?;
    let environments = accept(&mut manifest, private.as_ref())?;
    pod_spec::build(&manifest, &environments, host_uri)?;
    Ok(Quoted {
        hash: manifest.hash(),
        machine: manifest.machine(),
    })
}

/// The parts of a document that has the shape of an upload.
fn read(
    version: ManifestVersion,
    body: &[u8],
) -> Result<(Manifest, Option<Private>), ManifestError> {
    let mut value = parse_document(body)?;
    let faults = schema::check(&mut value, version.shape(), Conversion::Joi)?;
    if !faults.is_empty() {
        let details = faults
            .into_iter()
            .map(schema::Fault::into_host_error)
            .collect();
        return Err(ManifestError::Schema(details));
    }
    let private = value.get("private").map(Private::from_checked);
    Ok((Manifest::from_checked(value["manifest"].take()), private))
}

/// Looks at what no schema can say, and puts the variables in.
fn accept(
    manifest: &mut Manifest,
    private: Option<&Private>,
) -> Result<Vec<Vec<(String, String)>>, ManifestError> {
    let environments = pod_spec::environments(manifest, private)?;
    check_containers(manifest)?;
    manifest.port = port(manifest.as_value())?;
    Ok(environments)
}

/// The hash that a host would give to a posted document; documents that a host would refuse are hashed
/// as they stand, as `codius-manifest`'s `hashManifest` does.
pub fn hash_posted(body: &[u8]) -> Result<ManifestHash, ManifestError> {
    let written = parse_document(body)?;
    let mut converted = written.clone();
    let faults = schema::check(&mut converted, ManifestVersion::V2.shape(), Conversion::Joi)?;
    let document = if faults.is_empty() {
        converted
    } else {
        written
    };
    match document.get("manifest") {
        Some(manifest) => Ok(hash_value(manifest)),
        None => Err(ManifestError::Schema(vec![FieldError::new(
            "manifest",
            "is required",
            "put the manifest into {\"manifest\": …}, as it is posted to a host",
        )])),
    }
}

fn check_containers(manifest: &Manifest) -> Result<(), ManifestError> {
    let containers = manifest.containers();
    if containers.len() > MAX_CONTAINERS {
        return Err(ManifestError::unprocessable(
            "manifest.containers",
            format!(
                "{} containers are more than the {MAX_CONTAINERS} of a pod",
                containers.len()
            ),
            "upload several manifests",
        ));
    }
    let mut ids = BTreeSet::new();
    for (index, container) in containers.iter().enumerate() {
        let path = format!("manifest.containers.{index}.id");
        if container.id.len() > MAX_CONTAINER_ID_BYTES || container.id.contains(char::is_control) {
            return Err(ManifestError::unprocessable(
                path,
                format!(
                    "container ids have at most {MAX_CONTAINER_ID_BYTES} bytes and no control \
                     characters"
                ),
                "choose a short id: it names the container in the logs",
            ));
        }
        if !ids.insert(&container.id) {
            return Err(ManifestError::unprocessable(
                path,
                format!("container ids must be unique. id={}", container.id),
                "give each container of the manifest another id",
            ));
        }
    }
    Ok(())
}

/// The port that JavaScript would connect to: the schema's pattern lets much more pass.
fn port(manifest: &Value) -> Result<Option<u16>, ManifestError> {
    let Some(text) = manifest.get("port").and_then(Value::as_str) else {
        return Ok(None);
    };
    let number = javascript::number(text)
        .filter(|number| number.fract() == 0.0 && (1.0..=65535.0).contains(number));
    match number {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is whole and between 1 and 65535"
        )]
        Some(number) => Ok(Some(number as u16)),
        None => Err(ManifestError::unprocessable(
            "manifest.port",
            format!("port must be a number from 1 to 65535. port={text}"),
            "write the port of the program as \"8080\", or leave it out if it serves no visitors",
        )),
    }
}
