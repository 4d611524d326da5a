//! Image indexes, manifests and configs, as far as a pod heeds them (OCI image-spec, `image-index.md`,
//! `manifest.md`, `config.md`; Docker's manifest v2 schema 2 has the same fields).
//!
//! The types are our own because they are few, and because a registry's media types are only
//! believed if the document has the shape to go with them.

use codius_pod::ImageConfig;
use serde::{Deserialize, Serialize};

use crate::{digest::Digest, fault::Fault, limits::ImageLimits};

/// What is asked for, in the registry's `Accept` syntax.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, \
     application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json";

const OS: &str = "linux";
const ARCHITECTURE: &str = "amd64";

/// Media types of layers that are tar archives. The compression is found by looking, because some
/// images say the wrong one.
const LAYER_TYPES: [&str; 5] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
];

/// Content by digest and size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// An answer to "what is this reference".
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Document {
    /// One image.
    Image(Manifest),
    /// The linux/amd64 image of an index.
    Index(Descriptor),
}

/// One image: its config, and its layers from bottom to top.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

impl Manifest {
    /// Bytes of all layers as they travel. Parsing has checked that the sum fits.
    pub(crate) fn compressed_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).sum()
    }
}

/// What the config says of the layers and of how to run them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) run: ImageConfig,
    /// Digests of the uncompressed layers, one for each.
    pub(crate) diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<u64>,
    manifests: Option<Vec<RawDescriptor>>,
    layers: Option<Vec<RawDescriptor>>,
    config: Option<RawDescriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<RawPlatform>,
}

#[derive(Deserialize)]
struct RawPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

impl RawDescriptor {
    fn checked(&self) -> Result<Descriptor, Fault> {
        let digest = self
            .digest
            .parse()
            .map_err(|error| Fault::invalid(format!("its manifest names content whose {error}")))?;
        Ok(Descriptor {
            digest,
            size: self.size,
        })
    }
}

/// Reads a manifest or index whose digest is already checked, and holds it to the limits.
pub(crate) fn parse_document(bytes: &[u8], limits: &ImageLimits) -> Result<Document, Fault> {
    let raw: RawDocument = serde_json::from_slice(bytes)
        .map_err(|error| Fault::invalid(format!("its manifest cannot be read: {error}")))?;
    if raw.schema_version != Some(2) {
        return Err(Fault::invalid(
            "its manifest has an old format; push the image again",
        ));
    }
    match (raw.manifests, raw.layers) {
        // Two readers could understand it differently (CVE-2021-41190).
        (Some(_), Some(_)) => Err(Fault::invalid("its manifest is both an index and an image")),
        (Some(manifests), None) => {
            let ours = manifests.iter().find(|entry| {
                entry.platform.as_ref().is_some_and(|platform| {
                    platform.os == OS && platform.architecture == ARCHITECTURE
                })
            });
            Ok(Document::Index(
                ours.ok_or(Fault::WrongPlatform)?.checked()?,
            ))
        }
        (None, Some(layers)) => {
            let config = raw
                .config
                .ok_or_else(|| Fault::invalid("its manifest has no config"))?;
            Ok(Document::Image(parse_layers(&config, &layers, limits)?))
        }
        (None, None) => Err(Fault::invalid(
            "its manifest has neither layers nor manifests",
        )),
    }
}

fn parse_layers(
    config: &RawDescriptor,
    layers: &[RawDescriptor],
    limits: &ImageLimits,
) -> Result<Manifest, Fault> {
    let config = config.checked()?;
    if config.size > limits.config_bytes {
        return Err(Fault::too_large(format!(
            "its config has {} bytes",
            config.size
        )));
    }
    if layers.len() > limits.layers {
        return Err(Fault::too_large(format!(
            "it has {} layers, the most allowed are {}",
            layers.len(),
            limits.layers
        )));
    }
    if let Some(layer) = layers
        .iter()
        .find(|layer| !LAYER_TYPES.contains(&&*layer.media_type))
    {
        let shown: String = layer.media_type.chars().take(100).collect();
        return Err(Fault::invalid(format!(
            "it has a layer of the unknown type {shown:?}"
        )));
    }
    let layers = layers
        .iter()
        .map(RawDescriptor::checked)
        .collect::<Result<Vec<_>, _>>()?;
    let total = layers
        .iter()
        .try_fold(0u64, |sum, layer| sum.checked_add(layer.size));
    if total.is_none_or(|total| total > limits.compressed_bytes) {
        return Err(Fault::too_large(format!(
            "its layers have more than {} compressed bytes",
            limits.compressed_bytes
        )));
    }
    Ok(Manifest { config, layers })
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    config: Option<RawRun>,
    rootfs: Option<RawRootfs>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawRun {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
}

#[derive(Deserialize)]
struct RawRootfs {
    diff_ids: Vec<String>,
}

/// Reads an image config whose digest is already checked.
pub(crate) fn parse_config(bytes: &[u8], layers: usize) -> Result<Config, Fault> {
    let raw: RawConfig = serde_json::from_slice(bytes)
        .map_err(|error| Fault::invalid(format!("its config cannot be read: {error}")))?;
    if raw.os != OS || raw.architecture != ARCHITECTURE {
        return Err(Fault::WrongPlatform);
    }
    let diff_ids = raw
        .rootfs
        .ok_or_else(|| Fault::invalid("its config has no rootfs"))?
        .diff_ids
        .iter()
        .map(|text| text.parse())
        .collect::<Result<Vec<Digest>, _>>()
        .map_err(|error| Fault::invalid(format!("its config names a layer whose {error}")))?;
    if diff_ids.len() != layers {
        return Err(Fault::invalid(format!(
            "its config names {} layers and its manifest {layers}",
            diff_ids.len()
        )));
    }
    let run = raw.config.unwrap_or_default();
    Ok(Config {
        run: ImageConfig {
            entrypoint: run.entrypoint.unwrap_or_default(),
            cmd: run.cmd.unwrap_or_default(),
            env: run.env.unwrap_or_default(),
            workdir: run.working_dir.unwrap_or_default(),
            user: run.user.unwrap_or_default(),
        },
        diff_ids,
    })
}

/// What is written beside a block image; its presence says that the image is complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Layout of this record and of the block image; others are made again.
    pub(crate) version: u32,
    /// `sha256:…` of the image manifest.
    pub(crate) digest: String,
    /// The reference that it was first prepared for, for people.
    pub(crate) reference: String,
    pub(crate) compressed_bytes: u64,
    pub(crate) block_image_bytes: u64,
    /// Digests of indexes that lead to this image on this platform.
    pub(crate) indexes: Vec<String>,
    pub(crate) config: ImageConfig,
}
