//! Images made from nothing and pushed with the OCI distribution API.

use std::{collections::BTreeMap, path::Path, process::Command};

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Client, StatusCode, header};
use serde_json::{Value, json};

use crate::{
    layer::{Compression, Layer},
    registry::Registry,
};

/// Where Debian's package busybox-static puts its program.
const BUSYBOX: &str = "/bin/busybox";

/// Installs the process-wide TLS provider that `reqwest` needs. Calling it again does nothing.
pub fn install_crypto() {
    // An error means that one is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Which family of media types an image carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MediaTypes {
    Oci,
    Docker,
}

/// An image under construction: layers from bottom to top, and how to run it.
#[derive(Debug, Clone)]
pub struct ImageBuilder {
    layers: Vec<Layer>,
    config: BTreeMap<&'static str, Value>,
    media_types: MediaTypes,
    index: bool,
    architecture: String,
}

impl Default for ImageBuilder {
    fn default() -> Self {
        Self {
            layers: Vec::new(),
            config: BTreeMap::new(),
            media_types: MediaTypes::Oci,
            index: false,
            architecture: "amd64".into(),
        }
    }
}

impl ImageBuilder {
    /// No layers, no configuration, linux/amd64, OCI media types, no index.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a layer on top.
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// `Entrypoint` of the image config.
    pub fn entrypoint(self, words: &[&str]) -> Self {
        self.set("Entrypoint", json!(words))
    }

    /// `Cmd` of the image config.
    pub fn cmd(self, words: &[&str]) -> Self {
        self.set("Cmd", json!(words))
    }

    /// `Env` of the image config, `NAME=value` each.
    pub fn env(self, variables: &[&str]) -> Self {
        self.set("Env", json!(variables))
    }

    /// `WorkingDir` of the image config.
    pub fn workdir(self, path: &str) -> Self {
        self.set("WorkingDir", json!(path))
    }

    /// `User` of the image config.
    pub fn user(self, user: &str) -> Self {
        self.set("User", json!(user))
    }

    /// Uses Docker's media types instead of OCI's.
    pub fn docker_media_types(mut self) -> Self {
        self.media_types = MediaTypes::Docker;
        self
    }

    /// Wraps the manifest in an index that also names an image for another platform.
    pub fn index(mut self) -> Self {
        self.index = true;
        self
    }

    /// Says that the image is for another architecture than amd64.
    pub fn architecture(mut self, name: &str) -> Self {
        self.architecture = name.into();
        self
    }

    fn set(mut self, key: &'static str, value: Value) -> Self {
        self.config.insert(key, value);
        self
    }

    /// Makes manifest and blobs without a registry.
    pub fn build(&self) -> Result<BuiltImage> {
        let docker = self.media_types == MediaTypes::Docker;
        let mut blobs = Vec::new();
        let (mut diff_ids, mut descriptors) = (Vec::new(), Vec::new());
        for layer in &self.layers {
            let tar = layer.tar()?;
            let blob = layer.compress(&tar)?;
            let media_type = match (layer.compression_kind(), docker) {
                (Compression::Gzip, false) => "application/vnd.oci.image.layer.v1.tar+gzip",
                (Compression::Zstd, false) => "application/vnd.oci.image.layer.v1.tar+zstd",
                (Compression::Plain, false) => "application/vnd.oci.image.layer.v1.tar",
                (Compression::Gzip, true) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
                (Compression::Plain, true) => "application/vnd.docker.image.rootfs.diff.tar",
                (Compression::Zstd, true) => bail!("docker's media types have no zstd"),
            };
            diff_ids.push(digest(&tar));
            descriptors.push(descriptor(media_type, &blob));
            blobs.push(blob);
        }
        let config = serde_json::to_vec(&json!({
            "architecture": self.architecture,
            "os": "linux",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }))?;
        let (manifest_type, config_type, index_type) = if docker {
            (
                "application/vnd.docker.distribution.manifest.v2+json",
                "application/vnd.docker.container.image.v1+json",
                "application/vnd.docker.distribution.manifest.list.v2+json",
            )
        } else {
            (
                "application/vnd.oci.image.manifest.v1+json",
                "application/vnd.oci.image.config.v1+json",
                "application/vnd.oci.image.index.v1+json",
            )
        };
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": descriptor(config_type, &config),
            "layers": descriptors,
        }))?;
        blobs.push(config);
        let index = if self.index {
            let mut ours = descriptor(manifest_type, &manifest);
            ours["platform"] = json!({"architecture": self.architecture, "os": "linux"});
            // The registry checks that all manifests of an index exist, so the other platform's
            // entry names the same manifest.
            let mut other = descriptor(manifest_type, &manifest);
            other["platform"] = json!({"architecture": "s390x", "os": "linux"});
            Some(serde_json::to_vec(&json!({
                "schemaVersion": 2,
                "mediaType": index_type,
                "manifests": [other, ours],
            }))?)
        } else {
            None
        };
        Ok(BuiltImage {
            manifest,
            manifest_type,
            index,
            index_type,
            blobs,
        })
    }

    /// Builds the image and pushes it as `name` (`hello:1`) to a registry that speaks plain HTTP.
    pub async fn push(&self, registry: &Registry, name: &str) -> Result<PushedImage> {
        self.build()?.push(&registry.host(), name).await
    }
}

/// An image as bytes.
#[derive(Debug, Clone)]
pub struct BuiltImage {
    /// The image manifest.
    pub manifest: Vec<u8>,
    /// Its media type.
    pub manifest_type: &'static str,
    /// The index around it, if one was asked for.
    pub index: Option<Vec<u8>>,
    /// The media type an index has in this family.
    pub index_type: &'static str,
    /// Layers from bottom to top, then the config.
    pub blobs: Vec<Vec<u8>>,
}

/// Where an image went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushedImage {
    /// `HOST:PORT/NAME:TAG`.
    pub reference: String,
    /// `HOST:PORT/NAME@sha256:…`, of the index if there is one.
    pub by_digest: String,
    /// `sha256:…` of the linux/amd64 image manifest.
    pub digest: String,
}

impl BuiltImage {
    /// `sha256:…` of the manifest.
    pub fn digest(&self) -> String {
        digest(&self.manifest)
    }

    /// Pushes to `host` (`127.0.0.1:PORT`) over plain HTTP.
    pub async fn push(&self, host: &str, name: &str) -> Result<PushedImage> {
        install_crypto();
        let (repository, tag) = name.split_once(':').unwrap_or((name, "latest"));
        let base = format!("http://{host}/v2/{repository}");
        let client = Client::builder().no_proxy().build()?;
        for blob in &self.blobs {
            push_blob(&client, &base, host, blob).await?;
        }
        let digest = self.digest();
        let by_digest = match &self.index {
            None => {
                push_manifest(&client, &base, tag, self.manifest_type, &self.manifest).await?;
                format!("{host}/{repository}@{digest}")
            }
            Some(index) => {
                push_manifest(&client, &base, &digest, self.manifest_type, &self.manifest).await?;
                push_manifest(&client, &base, tag, self.index_type, index).await?;
                format!("{host}/{repository}@{}", self::digest(index))
            }
        };
        Ok(PushedImage {
            reference: format!("{host}/{repository}:{tag}"),
            by_digest,
            digest,
        })
    }
}

async fn push_blob(client: &Client, base: &str, host: &str, blob: &[u8]) -> Result<()> {
    let started = client.post(format!("{base}/blobs/uploads/")).send().await?;
    ensure!(
        started.status() == StatusCode::ACCEPTED,
        "upload refused: {}",
        started.status()
    );
    let location = started
        .headers()
        .get(header::LOCATION)
        .and_then(|value| value.to_str().ok())
        .context("upload without a location")?;
    let mut url = match location.strip_prefix('/') {
        Some(path) => format!("http://{host}/{path}"),
        None => location.to_owned(),
    };
    url.push(if url.contains('?') { '&' } else { '?' });
    url.push_str("digest=");
    url.push_str(&digest(blob));
    let done = client
        .put(url)
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .body(blob.to_vec())
        .send()
        .await?;
    ensure!(
        done.status() == StatusCode::CREATED,
        "blob refused: {}",
        done.status()
    );
    Ok(())
}

async fn push_manifest(
    client: &Client,
    base: &str,
    reference: &str,
    media_type: &str,
    manifest: &[u8],
) -> Result<()> {
    let answer = client
        .put(format!("{base}/manifests/{reference}"))
        .header(header::CONTENT_TYPE, media_type)
        .body(manifest.to_vec())
        .send()
        .await?;
    let status = answer.status();
    if status != StatusCode::CREATED {
        bail!("manifest refused: {status}: {}", answer.text().await?);
    }
    Ok(())
}

/// Adds a bottom-most usable system to an image: `/bin/busybox` (static, from Debian's package
/// busybox-static), a link in `/bin` for each of its applets, and `/tmp` and `/etc/passwd`.
pub fn busybox(builder: ImageBuilder) -> Result<ImageBuilder> {
    let missing = "install the Debian package busybox-static";
    ensure!(
        Path::new(BUSYBOX).exists(),
        "{BUSYBOX} does not exist; {missing}"
    );
    let program = std::fs::read(BUSYBOX)?;
    let list = Command::new(BUSYBOX)
        .arg("--list")
        .output()
        .context(missing)?;
    ensure!(list.status.success(), "busybox --list failed; {missing}");
    let mut layer = Layer::new()
        .dir("bin", 0o755)
        .file("bin/busybox", 0o755, program)
        .dir("tmp", 0o1777)
        .dir("etc", 0o755)
        .file(
            "etc/passwd",
            0o644,
            "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
        )
        .file("etc/group", 0o644, "root:x:0:\nnogroup:x:65534:\n");
    for applet in String::from_utf8(list.stdout)?
        .lines()
        .filter(|name| *name != "busybox")
    {
        layer = layer.symlink(&format!("bin/{applet}"), "busybox");
    }
    Ok(builder.env(&["PATH=/bin"]).layer(layer))
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

/// `sha256:` and the hexadecimal SHA-256 of the bytes.
pub fn digest(bytes: &[u8]) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, bytes);
    format!("sha256:{}", data_encoding::HEXLOWER.encode(hash.as_ref()))
}
