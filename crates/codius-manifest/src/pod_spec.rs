//! A manifest made concrete: what each container is started with.

use std::fmt;

use crate::{
    Container, MachineName, Manifest, ManifestError, ManifestHash, Private, RestartPolicy, Var,
};

/// The longest `NAME=value` or argument, in bytes with its closing zero (Linux: `MAX_ARG_STRLEN`).
/// `CODIUS_MANIFEST` is one of them.
pub const MAX_ENVIRONMENT_STRING_BYTES: usize = 128 * 1024;

/// The most bytes of arguments and environment of one container. Linux allows 2 MiB with a stack of
/// 8 MiB; the rest is left to what the image adds.
pub const MAX_ENVIRONMENT_BYTES: usize = 1 << 20;

/// What to run, without open questions but the contents of the images.
#[derive(Clone, PartialEq, Eq)]
pub struct PodSpec {
    pub hash: ManifestHash,
    pub name: String,
    pub version: String,
    pub machine: MachineName,
    /// The port that visitors are sent to.
    pub port: Option<u16>,
    /// Whether everyone may read the logs.
    pub debug: bool,
    pub containers: Vec<ContainerSpec>,
}

/// One container. Private values are in `env`; `Debug` shows its names only.
#[derive(Clone, PartialEq, Eq)]
pub struct ContainerSpec {
    pub id: String,
    /// The image reference as the manifest writes it.
    pub image: String,
    /// Takes the place of the image's command.
    pub command: Option<Vec<String>>,
    pub workdir: Option<String>,
    /// `CODIUS`, `CODIUS_HOST`, `CODIUS_MANIFEST_HASH`, `CODIUS_MANIFEST`, then the manifest's, in
    /// JavaScript's order.
    pub env: Vec<(String, String)>,
    pub restart: RestartPolicy,
}

impl fmt::Debug for PodSpec {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("PodSpec")
            .field("hash", &self.hash)
            .field("name", &self.name)
            .field("version", &self.version)
            .field("machine", &self.machine)
            .field("port", &self.port)
            .field("debug", &self.debug)
            .field("containers", &self.containers)
            .finish()
    }
}

impl fmt::Debug for ContainerSpec {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.env.iter().map(|(name, _)| name.as_str()).collect();
        out.debug_struct("ContainerSpec")
            .field("id", &self.id)
            .field("image", &self.image)
            .field("command", &self.command)
            .field("workdir", &self.workdir)
            .field("env", &names)
            .field("restart", &self.restart)
            .finish()
    }
}

/// The environment of every container with its variables put in, without what the host adds. If the
/// private values are not told, they are empty.
pub(crate) fn environments(
    manifest: &Manifest,
    private: Option<&Private>,
) -> Result<Vec<Vec<(String, String)>>, ManifestError> {
    let containers = manifest.containers().iter().enumerate();
    // Of the manifest's own text, every container gets a copy.
    let manifest_bytes = manifest.to_json().len();
    containers
        .map(|(index, container)| environment(manifest, private, index, container, manifest_bytes))
        .collect()
}

fn environment(
    manifest: &Manifest,
    private: Option<&Private>,
    index: usize,
    container: &Container,
    manifest_bytes: usize,
) -> Result<Vec<(String, String)>, ManifestError> {
    let path = |member: &str| format!("manifest.containers.{index}.{member}");
    let mut budget = Budget::default();
    let mut environment = Vec::with_capacity(container.environment.len());
    for (name, written) in &container.environment {
        let path = path(&format!("environment.{name}"));
        if name.starts_with("CODIUS") {
            return Err(ManifestError::unprocessable(
                path,
                format!("environment variables starting in \"CODIUS\" are reserved. var={name}"),
                "choose another name",
            ));
        }
        let value = interpolate(manifest, private, &path, written)?;
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(ManifestError::unprocessable(
                path,
                format!("environment variables have a name without `=` and zero bytes. var={name}"),
                "choose another name",
            ));
        }
        budget.spend(&path, name.len() + 1, value)?;
        environment.push((name.clone(), value.to_owned()));
    }
    for (position, argument) in container.command.iter().flatten().enumerate() {
        budget.spend(&path(&format!("command.{position}")), 0, argument)?;
    }
    if let Some(workdir) = &container.workdir {
        budget.spend(&path("workdir"), 0, workdir)?;
    }
    budget.spend_bytes("manifest", "CODIUS_MANIFEST=".len() + manifest_bytes)?;
    Ok(environment)
}

/// What an environment value stands for: itself, or with a `$` in front the whole variable of that
/// name. There is no escape and nothing is put into the middle of a text.
fn interpolate<'a>(
    manifest: &'a Manifest,
    private: Option<&'a Private>,
    path: &str,
    written: &'a str,
) -> Result<&'a str, ManifestError> {
    let Some(name) = written.strip_prefix('$') else {
        return Ok(written);
    };
    let Some(var) = manifest.var(name) else {
        return Err(ManifestError::unprocessable(
            path,
            format!(
                "could not interpolate var. var={written} manifest.vars={}",
                manifest.vars_json()
            ),
            "define the variable in manifest.vars; a value that begins with `$` is a name",
        ));
    };
    // The first host had a third error, "unknown var encoding", that its own schema kept from ever
    // being seen.
    match var {
        Var::Public { value } => Ok(value),
        Var::PrivateSha256 { hash } => {
            let Some(private) = private else {
                return Ok("");
            };
            let Some(private_var) = private.var(name) else {
                return Err(ManifestError::unprocessable(
                    path,
                    format!(
                        "could not interpolate private var. var={written} manifest.vars={}",
                        manifest.vars_json()
                    ),
                    "send the variable's nonce and value in private.vars",
                ));
            };
            let hashed = private_var.hash();
            if hashed != *hash {
                return Err(ManifestError::unprocessable(
                    path,
                    format!(
                        "private var does not match hash. var={written} encoding=private:sha256 \
                         public-hash={hash} hashed-value={hashed}"
                    ),
                    "make the manifest again from codius.json and codiusvars.json",
                ));
            }
            Ok(&private_var.value)
        }
    }
}

pub(crate) fn build(
    manifest: &Manifest,
    environments: &[Vec<(String, String)>],
    host_uri: &str,
) -> Result<PodSpec, ManifestError> {
    Budget::default().spend("CODIUS_HOST", "CODIUS_HOST=".len(), host_uri)?;
    let of_host = [
        ("CODIUS", "true".to_owned()),
        ("CODIUS_HOST", host_uri.to_owned()),
        ("CODIUS_MANIFEST_HASH", manifest.hash().to_string()),
        ("CODIUS_MANIFEST", manifest.to_json()),
    ];
    let container =
        |(container, environment): (&Container, &Vec<(String, String)>)| ContainerSpec {
            id: container.id.clone(),
            image: container.image.clone(),
            command: container.command.clone(),
            workdir: container.workdir.clone(),
            restart: container.restart,
            env: of_host
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .chain(environment.iter().cloned())
                .collect(),
        };
    Ok(PodSpec {
        hash: manifest.hash(),
        name: manifest.name().to_owned(),
        version: manifest.version().to_owned(),
        machine: manifest.machine(),
        port: manifest.port(),
        debug: manifest.debug(),
        containers: manifest
            .containers()
            .iter()
            .zip(environments)
            .map(container)
            .collect(),
    })
}

/// Counts what a container's first process is given. A variable can be used many times, so a short
/// manifest can ask for an endless environment; the count is taken before the copy is made.
#[derive(Debug, Default)]
struct Budget {
    bytes: usize,
}

impl Budget {
    fn spend(&mut self, path: &str, prefix_bytes: usize, text: &str) -> Result<(), ManifestError> {
        if text.contains('\0') {
            return Err(ManifestError::unprocessable(
                path,
                "text with a zero byte cannot be given to a process",
                "encode the value, for example in base 64",
            ));
        }
        self.spend_bytes(path, prefix_bytes + text.len())
    }

    fn spend_bytes(&mut self, path: &str, bytes: usize) -> Result<(), ManifestError> {
        let with_zero = bytes + 1;
        if with_zero > MAX_ENVIRONMENT_STRING_BYTES {
            return Err(ManifestError::unprocessable(
                path,
                format!(
                    "{bytes} bytes are too long for one argument or environment variable \
                     (CODIUS_MANIFEST is one); at most {} fit",
                    MAX_ENVIRONMENT_STRING_BYTES - 1
                ),
                "put large data into the image",
            ));
        }
        self.bytes += with_zero;
        if self.bytes > MAX_ENVIRONMENT_BYTES {
            return Err(ManifestError::unprocessable(
                path,
                format!(
                    "arguments and environment of the container exceed {MAX_ENVIRONMENT_BYTES} bytes"
                ),
                "put large data into the image",
            ));
        }
        Ok(())
    }
}
