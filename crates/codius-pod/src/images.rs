//! Where a pod's files come from.

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use thiserror::Error;

/// Brings OCI images to this host.
#[async_trait]
pub trait Images: Send + Sync + 'static {
    /// Asks the registry what a reference means, without fetching any layer: it exists, has a
    /// linux/amd64 form and keeps to the limits. Everything that can be known before money is asked
    /// for is checked here. An image that is already here by digest needs no registry.
    async fn resolve(&self, reference: &str) -> Result<ResolvedImage, ImageError>;

    /// Makes the image ready to run. The second caller for a digest waits for the first.
    async fn prepare(
        &self,
        image: &ResolvedImage,
        progress: Arc<dyn PullProgress>,
    ) -> Result<PreparedImage, ImageError>;
}

/// Told how a pull goes on; called often, must not block.
pub trait PullProgress: Send + Sync {
    /// Compressed bytes fetched so far, of all layers.
    fn pulled(&self, bytes: u64, of: u64);
    /// All layers are here; the block image is being made.
    fn building(&self) {}
}

/// For callers that do not watch.
#[derive(Debug, Clone, Copy)]
pub struct NoProgress;

impl PullProgress for NoProgress {
    fn pulled(&self, _bytes: u64, _of: u64) {}
}

/// A reference with its answer: which content it means now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedImage {
    /// As the manifest has it.
    pub reference: String,
    /// `sha256:…` of the linux/amd64 image manifest.
    pub digest: String,
    /// Sum of the layers as they travel.
    pub compressed_bytes: u64,
    /// It is here already: `prepare` will answer at once.
    pub cached: bool,
}

/// An image that can be given to a driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedImage {
    pub digest: String,
    /// Read-only, shared by all pods of the image.
    pub block_image: PathBuf,
    pub config: ImageConfig,
}

/// What an image says of how to run it (OCI image-spec, config.md), as far as a pod heeds it.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=value`, in order.
    pub env: Vec<String>,
    pub workdir: String,
    pub user: String,
}

/// Why an image cannot be had. The message is meant for the uploader and names the image.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The text is not an image reference. Nothing happened; the uploader corrects it.
    #[error("image reference {reference:?} is not valid: {reason}")]
    InvalidReference { reference: String, reason: String },
    /// The registry says that there is no such image, or does not show it to anonymous users.
    #[error("image {reference} was not found ({reason}); check its name and that it is public")]
    NotFound { reference: String, reason: String },
    /// It exists, but not for this host's platform.
    #[error("image {reference} has no linux/amd64 version")]
    WrongPlatform { reference: String },
    /// It is over a limit of this host.
    #[error("image {reference} is too large for this host: {reason}")]
    TooLarge { reference: String, reason: String },
    /// Its content is broken, not what its digest says, or dangerous. Nothing of it is kept.
    #[error("image {reference} was refused: {reason}")]
    Invalid { reference: String, reason: String },
    /// The registry did not answer, or not in time. A retry may help.
    #[error("image {reference} could not be fetched: {reason}; try again later")]
    Unavailable { reference: String, reason: String },
    /// The operator does not run it. Nothing was fetched; the uploader takes another image or host.
    #[error("image {reference} is not allowed on this host: {rule}")]
    Denied { reference: String, rule: String },
    /// The host's image cache has no room for it now. Another host may have.
    #[error("image {reference} has no room on this host: {reason}")]
    NoRoom { reference: String, reason: String },
    /// This host's own disk or tools. The operator looks at `source`.
    #[error("image {reference} could not be stored on this host")]
    Host {
        reference: String,
        #[source]
        source: std::io::Error,
    },
}
