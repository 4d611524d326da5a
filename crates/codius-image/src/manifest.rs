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

/// Words that a config may have of how to run it: entrypoint, arguments and environment together.
const RUN_WORDS: usize = 4096;
/// Bytes of these words, the user and the directory together. Linux itself takes 128 KiB for one word.
const RUN_BYTES: usize = 256 << 10;

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
    let run = ImageConfig {
        entrypoint: run.entrypoint.unwrap_or_default(),
        cmd: run.cmd.unwrap_or_default(),
        env: run.env.unwrap_or_default(),
        workdir: run.working_dir.unwrap_or_default(),
        user: run.user.unwrap_or_default(),
    };
    check_run(&run)?;
    Ok(Config { run, diff_ids })
}

/// It stays in memory as long as the image is here, so it is small.
fn check_run(run: &ImageConfig) -> Result<(), Fault> {
    let words = || run.entrypoint.iter().chain(&run.cmd).chain(&run.env);
    let number = words().count();
    if number > RUN_WORDS {
        return Err(Fault::too_large(format!(
            "its config has {number} arguments and variables, the most allowed are {RUN_WORDS}"
        )));
    }
    let more = [&run.workdir, &run.user];
    let bytes: usize = words().chain(more).map(String::len).sum();
    if bytes > RUN_BYTES {
        return Err(Fault::too_large(format!(
            "its config has {bytes} bytes of arguments and variables, the most allowed are {RUN_BYTES}"
        )));
    }
    if words().chain(more).any(|word| word.contains('\0')) {
        return Err(Fault::invalid(
            "its config has a zero byte in an argument or variable",
        ));
    }
    Ok(())
}

/// What is written beside a block image; its presence says that the image is complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Layout of this record and of the block image; others are made again.
    pub(crate) version: u32,
    /// `sha256:…` of the image manifest.
    pub(crate) digest: String,
    /// The reference that it was first prepared for, for people and for pins.
    pub(crate) reference: String,
    /// More references that it was prepared for.
    #[serde(default)]
    pub(crate) also: Vec<String>,
    pub(crate) compressed_bytes: u64,
    pub(crate) block_image_bytes: u64,
    /// Digests of indexes that lead to this image on this platform.
    pub(crate) indexes: Vec<String>,
    pub(crate) config: ImageConfig,
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn layer(kind: &str, size: u64) -> String {
        format!(r#"{{"mediaType":"{kind}","digest":"sha256:{HEX}","size":{size}}}"#)
    }

    fn manifest(layers: &[String]) -> String {
        let config = layer("application/vnd.oci.image.config.v1+json", 2);
        let layers = layers.join(",");
        format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layers}]}}"#)
    }

    fn document(text: &str) -> Result<Document, String> {
        parse_document(text.as_bytes(), &ImageLimits::default())
            .map_err(|fault| format!("{fault:?}"))
    }

    #[test]
    fn a_manifest_may_repeat_a_layer_and_each_counts() {
        let limits = ImageLimits::default();
        let one = layer(LAYER_TYPES[1], limits.compressed_bytes / 2);
        let read = document(&manifest(&[one.clone(), one.clone()])).expect("just fits");
        let Document::Image(read) = read else {
            panic!("it is an image");
        };
        assert_eq!(read.layers.len(), 2);
        let said = document(&manifest(&[one.clone(), one.clone(), one])).expect_err("too much");
        assert!(said.contains("compressed bytes"), "{said}");
    }

    #[test]
    fn manifest_bombs_are_refused() {
        let tar = LAYER_TYPES[1];
        let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
        let secret = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
        let many = vec![layer(tar, 0); 40_000];
        let image = manifest(&[layer(tar, 1)]);
        let deep = format!(
            r#"{{"schemaVersion":2,"x":{}{}}}"#,
            "[".repeat(100_000),
            "]".repeat(100_000)
        );
        for (text, reason) in [
            // What nobody asked for is skipped without going down into it.
            (deep, "neither"),
            (manifest(&many), "40000 layers"),
            (manifest(&[layer(foreign, 1)]), "unknown type"),
            (manifest(&[layer(secret, 1)]), "unknown type"),
            (manifest(&[layer(&"x".repeat(1 << 20), 1)]), "unknown type"),
            (
                manifest(&[layer(tar, u64::MAX), layer(tar, 2)]),
                "compressed bytes",
            ),
            (image.replace("\"size\":1", "\"size\":-1"), "cannot be read"),
            (
                image.replace("\"size\":1", "\"size\":1e300"),
                "cannot be read",
            ),
            (image.replace(HEX, &HEX.to_uppercase()), "names content"),
            (image.replace("sha256", "sha512"), "names content"),
            (image.replace("sha256:", "sha256:../../"), "names content"),
            (
                image.replace("\"size\":2", "\"size\":1048577"),
                "its config has",
            ),
            (
                image.replace("{\"schema", "{\"manifests\":[],\"schema"),
                "both an index and an image",
            ),
            (image.replace("Version\":2", "Version\":1"), "old format"),
            (
                r#"{"schemaVersion":2,"manifests":[]}"#.into(),
                "WrongPlatform",
            ),
            (r#"{"schemaVersion":2}"#.into(), "neither"),
            ("[]".into(), "cannot be read"),
            (String::new(), "cannot be read"),
        ] {
            let said = document(&text).expect_err(reason);
            assert!(said.contains(reason), "{reason}: {said}");
        }
    }

    #[test]
    fn an_index_of_many_platforms_is_read_to_the_one_that_is_ours() {
        let other = format!(
            r#"{{"digest":"sha256:{HEX}","size":1,"platform":{{"os":"linux","architecture":"s390x"}}}}"#
        );
        let ours = other.replace("s390x", "amd64");
        let index = |entries: &[String]| {
            let entries = entries.join(",");
            format!(r#"{{"schemaVersion":2,"manifests":[{entries}]}}"#)
        };
        let mut many = vec![other; 20_000];
        assert!(document(&index(&many)).is_err_and(|said| said.contains("WrongPlatform")));
        many.push(ours);
        assert!(matches!(document(&index(&many)), Ok(Document::Index(_))));
    }

    #[test]
    fn config_bombs_are_refused() {
        let config = |run: &str, layers: &str| {
            format!(
                r#"{{"os":"linux","architecture":"amd64","config":{run},"rootfs":{{"diff_ids":[{layers}]}}}}"#
            )
        };
        let words = |number: usize, bytes: usize| {
            let word = format!("\"{}\"", "x".repeat(bytes));
            format!(r#"{{"Env":[{}]}}"#, vec![word; number].join(","))
        };
        let digests = vec![format!("\"sha256:{HEX}\""); 2].join(",");
        for (text, reason) in [
            (config(&words(4097, 1), ""), "4097 arguments and variables"),
            (config(&words(3, 100_000), ""), "300000 bytes of arguments"),
            (config(r#"{"User":"a\u0000b"}"#, ""), "zero byte"),
            (config(r#"{"WorkingDir":5}"#, ""), "cannot be read"),
            (config("{}", &digests), "names 2 layers and its manifest 0"),
            (config("{}", "\"x\""), "names a layer whose"),
            (config("{}", "").replace("amd64", "arm64"), "WrongPlatform"),
            (config("{}", "").replace("rootfs", "root"), "no rootfs"),
        ] {
            let said = parse_config(text.as_bytes(), 0).expect_err(reason);
            let said = format!("{said:?}");
            assert!(said.contains(reason), "{reason}: {said}");
        }
        parse_config(config(&words(4096, 1), "").as_bytes(), 0).expect("as many as allowed");
    }
}
