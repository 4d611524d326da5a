//! The image of the self-test, and a registry on loopback that holds nothing else.
//!
//! The host pulls it as it pulls every image, so that this is tested too, and needs nobody else's
//! registry for it. The image has one layer with one program, which is installed beside the guest.

use std::{collections::HashMap, fs, path::Path, sync::Arc};

use anyhow::{Context, Result};
use axum::{
    Router,
    extract::{Path as UrlPath, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use data_encoding::HEXLOWER;
use ring::digest::{SHA256, digest};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The file in the guest's directory.
const PROGRAM: &str = "self-test";
const REPOSITORY: &str = "codius/self-test";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Serves the image of the self-test.
#[derive(Debug)]
pub(crate) struct Registry {
    listener: TcpListener,
    image: Image,
    host: String,
}

#[derive(Debug)]
struct Image {
    /// Digest of the manifest.
    digest: String,
    /// By digest.
    blobs: HashMap<String, (&'static str, Bytes)>,
}

impl Registry {
    /// Reads the program and takes a port.
    pub(crate) async fn open(guest_dir: &Path) -> Result<Self> {
        let program = guest_dir.join(PROGRAM);
        let program = fs::read(&program).with_context(|| {
            format!(
                "cannot read the program of the self-test, {}; run `cargo xtask guest`, or set \
                 self_test.image or self_test.enabled = false",
                program.display()
            )
        })?;
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        Ok(Self {
            host: listener.local_addr()?.to_string(),
            image: Image::of(&program)?,
            listener,
        })
    }

    /// `HOST:PORT`, spoken to without TLS.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// The image's reference.
    pub(crate) fn reference(&self) -> String {
        format!("{}/{REPOSITORY}@{}", self.host, self.image.digest)
    }

    pub(crate) async fn serve(self, closing: CancellationToken) {
        let router = Router::new()
            .route("/v2/", get(|| async { "{}" }))
            .route("/v2/codius/self-test/{kind}/{digest}", get(blob))
            .with_state(Arc::new(self.image));
        let serving = axum::serve(self.listener, router)
            .with_graceful_shutdown(async move { closing.cancelled().await });
        if let Err(error) = serving.await {
            tracing::warn!(%error, "the self-test's registry has ended");
        }
    }
}

async fn blob(
    State(image): State<Arc<Image>>,
    UrlPath((_, digest)): UrlPath<(String, String)>,
) -> Response {
    let Some((media_type, bytes)) = image.blobs.get(&digest) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let headers = [
        (header::CONTENT_TYPE, *media_type),
        (
            header::HeaderName::from_static("docker-content-digest"),
            &digest,
        ),
    ];
    (headers, bytes.clone()).into_response()
}

impl Image {
    fn of(program: &[u8]) -> Result<Self> {
        let mut blobs = HashMap::new();
        let mut put = |media_type, bytes: Vec<u8>| {
            let digest = sha256(&bytes);
            let descriptor =
                json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() });
            blobs.insert(digest.clone(), (media_type, bytes.into()));
            (digest, descriptor)
        };
        let (layer_digest, layer) = put(LAYER, layer(program)?);
        // The layer is not compressed, so both of its digests are the same.
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": { "Entrypoint": [format!("/{PROGRAM}")] },
            "rootfs": { "type": "layers", "diff_ids": [layer_digest] },
        });
        let (_, config) = put(CONFIG, serde_json::to_vec(&config)?);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config,
            "layers": [layer],
        });
        let (digest, _) = put(MANIFEST, serde_json::to_vec(&manifest)?);
        Ok(Self { digest, blobs })
    }
}

/// A tar with the program. The same program gives the same bytes, so that its image stays in the store.
fn layer(program: &[u8]) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut entry = tar::Header::new_ustar();
    entry.set_size(program.len() as u64);
    entry.set_mode(0o755);
    entry.set_mtime(0);
    archive.append_data(&mut entry, PROGRAM, program)?;
    Ok(archive.into_inner()?)
}

fn sha256(bytes: &[u8]) -> String {
    format!(
        "sha256:{}",
        HEXLOWER.encode(digest(&SHA256, bytes).as_ref())
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_of_a_program_is_always_the_same() {
        let image = Image::of(b"program").unwrap();
        assert_eq!(image.digest, Image::of(b"program").unwrap().digest);
        assert_ne!(image.digest, Image::of(b"another").unwrap().digest);
        assert_eq!(image.blobs.len(), 3);
        for (digest, (_, bytes)) in &image.blobs {
            assert_eq!(*digest, sha256(bytes));
        }
    }
}
