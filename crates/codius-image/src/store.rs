//! The images of this host: one directory, one block image for each image digest.
//!
//! ```text
//! DIR/<hex>.squashfs   the block image, complete
//! DIR/<hex>.json       its record; written last: an image without it does not exist
//! DIR/tmp/             what is being made; swept at the start
//! ```
//!
//! A digest is prepared by one caller at a time. The others wait, and find it made. A caller that goes
//! away in the middle leaves files in `tmp` at most, and those are removed when its future is dropped.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use codius_pod::{ImageError, Images, PreparedImage, PullProgress, ResolvedImage};
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use tempfile::NamedTempFile;
use thiserror::Error;
use tokio::{
    sync::{Semaphore, mpsc},
    task::spawn_blocking,
    time::timeout,
};

use crate::{
    block,
    digest::Digest,
    fault::Fault,
    layer::{self, Budget, Layer, Pieces},
    limits::{ImageLimits, RegistryConfig},
    manifest::{Config, Descriptor, Document, Manifest, Record, parse_config, parse_document},
    reference::Reference,
    registry::RegistryClient,
    tree::Tree,
};

/// Layout of records and block images; what has another is made again.
const VERSION: u32 = 1;
/// Pieces of a layer between its download and its reader.
const PIECES: usize = 32;
/// Indexes whose answer is remembered for the record of their image.
const MAX_INDEXES: usize = 1024;

/// The image store of a host.
pub struct ImageStore(Arc<Inner>);

struct Inner {
    directory: PathBuf,
    temporary: PathBuf,
    program: PathBuf,
    limits: Arc<ImageLimits>,
    registry: RegistryClient,
    /// Those that are being prepared.
    jobs: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
    places: Semaphore,
    /// Image → the index that led to it.
    indexes: Mutex<HashMap<Digest, Digest>>,
}

/// Why the store cannot be opened. Nothing was changed, but the directory may have been made.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The program that makes block images is missing. The operator installs it.
    #[error("the program sqfstar is not installed; install the package squashfs-tools")]
    NoProgram,
    /// An entry of the registry settings is wrong. The operator corrects it.
    #[error("registry settings: {0}")]
    Registry(String),
    /// The directory cannot be used. The operator looks at it.
    #[error("image store {path} cannot be used")]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// An image that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredImage {
    /// `sha256:…` of the image manifest.
    pub digest: String,
    /// The reference that it was first prepared for.
    pub reference: String,
    /// Size of the block image.
    pub bytes: u64,
}

impl ImageStore {
    /// Opens a directory, made if it is missing, and sweeps what an earlier process left half done.
    pub fn open(directory: &Path, limits: ImageLimits, registries: RegistryConfig) -> Result<Self, OpenError> {
        let program = block::find_program().ok_or(OpenError::NoProgram)?;
        let limits = Arc::new(limits);
        let registry = RegistryClient::new(&registries, Arc::clone(&limits)).map_err(OpenError::Registry)?;
        let inner = Inner {
            directory: directory.to_owned(),
            temporary: directory.join("tmp"),
            program,
            places: Semaphore::new(limits.parallel_images),
            limits,
            registry,
            jobs: Mutex::default(),
            indexes: Mutex::default(),
        };
        inner.sweep().map_err(|source| OpenError::Directory { path: directory.to_owned(), source })?;
        Ok(Self(Arc::new(inner)))
    }

    /// Every image that is here.
    pub fn list(&self) -> io::Result<Vec<StoredImage>> {
        let mut images = Vec::new();
        for entry in fs::read_dir(&self.0.directory)? {
            if let Some(record) = digest_of(&entry?.path(), "json").and_then(|digest| self.0.record(&digest)) {
                let Record { digest, reference, block_image_bytes: bytes, .. } = record;
                images.push(StoredImage { digest, reference, bytes });
            }
        }
        Ok(images)
    }

    /// Removes every image whose digest is not in `keep` and that nobody is preparing. A pod that runs
    /// keeps its file open, and so keeps it.
    pub fn remove_unused(&self, keep: &[String]) -> io::Result<Vec<StoredImage>> {
        let mut removed = Vec::new();
        for image in self.list()? {
            let Ok(digest) = image.digest.parse::<Digest>() else { continue };
            // Held while the files go, so that nobody begins to use them meanwhile.
            let jobs = self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner);
            let busy = jobs.get(&digest).is_some_and(|job| job.strong_count() > 0);
            if busy || keep.contains(&image.digest) {
                continue;
            }
            // The record first: without it the image does not exist.
            fs::remove_file(self.0.path(&digest, "json"))?;
            fs::remove_file(self.0.path(&digest, "squashfs"))?;
            removed.push(image);
        }
        Ok(removed)
    }
}

impl std::fmt::Debug for ImageStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageStore").field("directory", &self.0.directory).finish_non_exhaustive()
    }
}

#[async_trait]
impl Images for ImageStore {
    async fn resolve(&self, reference: &str) -> Result<ResolvedImage, ImageError> {
        let parsed = parse(reference)?;
        self.0.resolve(&parsed, reference).await.map_err(|fault| fault.for_reference(reference))
    }

    async fn prepare(
        &self,
        image: &ResolvedImage,
        progress: Arc<dyn PullProgress>,
    ) -> Result<PreparedImage, ImageError> {
        let parsed = parse(&image.reference)?;
        let digest = image.digest.parse().map_err(|_| ImageError::InvalidReference {
            reference: image.reference.clone(),
            reason: format!("{:?} is not a digest", image.digest),
        })?;
        self.0.prepare(&parsed, digest, image, progress).await.map_err(|fault| fault.for_reference(&image.reference))
    }
}

fn parse(reference: &str) -> Result<Reference, ImageError> {
    reference.parse().map_err(|error: crate::InvalidReference| ImageError::InvalidReference {
        reference: reference.chars().take(256).collect(),
        reason: error.to_string(),
    })
}

impl Inner {
    async fn resolve(&self, parsed: &Reference, reference: &str) -> Result<ResolvedImage, Fault> {
        if let Some(record) = parsed.digest().and_then(|digest| self.record_led_to_by(&digest)) {
            return Ok(ResolvedImage {
                reference: reference.to_owned(),
                digest: record.digest,
                compressed_bytes: record.compressed_bytes,
                cached: true,
            });
        }
        let asking = async {
            let (digest, bytes) = self.registry.manifest(parsed, &parsed.identifier()).await?;
            let (digest, manifest) = match parse_document(&bytes, &self.limits)? {
                Document::Image(manifest) => (digest, manifest),
                Document::Index(image) => {
                    self.remember_index(image.digest, digest);
                    (image.digest, self.image_manifest(parsed, &image.digest).await?)
                }
            };
            // The platform of an image without an index is only in its config.
            if self.record(&digest).is_none() {
                self.config(parsed, &manifest).await?;
            }
            Ok::<_, Fault>((digest, manifest))
        };
        let (digest, manifest) = timeout(self.limits.resolve, asking)
            .await
            .map_err(|_| Fault::unavailable("its registry took too long"))??;
        Ok(ResolvedImage {
            reference: reference.to_owned(),
            digest: digest.to_string(),
            compressed_bytes: manifest.compressed_bytes(),
            cached: self.record(&digest).is_some(),
        })
    }

    async fn image_manifest(&self, reference: &Reference, digest: &Digest) -> Result<Manifest, Fault> {
        let (_, bytes) = self.registry.manifest(reference, &digest.to_string()).await?;
        match parse_document(&bytes, &self.limits)? {
            Document::Image(manifest) => Ok(manifest),
            Document::Index(_) => Err(Fault::invalid("its index leads to another index")),
        }
    }

    async fn config(&self, reference: &Reference, manifest: &Manifest) -> Result<Config, Fault> {
        let bytes = self.registry.small_blob(reference, &manifest.config).await?;
        parse_config(&bytes, manifest.layers.len())
    }

    async fn prepare(
        &self,
        reference: &Reference,
        digest: Digest,
        image: &ResolvedImage,
        progress: Arc<dyn PullProgress>,
    ) -> Result<PreparedImage, Fault> {
        let job = self.job(digest);
        let _turn = job.lock().await;
        if let Some(record) = self.record(&digest) {
            return Ok(self.prepared(&digest, record));
        }
        // Never closed.
        let _place = self.places.acquire().await.map_err(|_| Fault::unavailable("the host is ending"))?;
        let record = self.make(reference, digest, image, progress).await?;
        Ok(self.prepared(&digest, record))
    }

    /// Pulls an image and makes its block image.
    async fn make(
        &self,
        reference: &Reference,
        digest: Digest,
        image: &ResolvedImage,
        progress: Arc<dyn PullProgress>,
    ) -> Result<Record, Fault> {
        let pull = async {
            let manifest = self.image_manifest(reference, &digest).await?;
            let config = self.config(reference, &manifest).await?;
            let layers = self.layers(reference, &manifest, &config, &*progress).await?;
            Ok::<_, Fault>((manifest, config, layers))
        };
        let (manifest, config, layers) = timeout(self.limits.fetch, pull)
            .await
            .map_err(|_| Fault::unavailable("fetching its layers took too long"))??;
        progress.building();

        let applying = spawn_blocking(move || {
            let mut tree = Tree::new();
            let mut spools = Vec::with_capacity(layers.len());
            let mut contents_bytes = 0;
            for layer in layers {
                tree.apply(layer.entries)?;
                contents_bytes += layer.spool.metadata()?.len();
                spools.push(layer.spool);
            }
            Ok::<_, Fault>((tree, spools, contents_bytes))
        });
        let (tree, spools, contents_bytes) = applying.await.map_err(panicked)??;
        let made = NamedTempFile::new_in(&self.temporary)?;
        let output = made.as_file().try_clone()?;
        let block_image_bytes =
            block::build(self.program.clone(), tree, spools, contents_bytes, output, self.limits.build).await?;
        let record = Record {
            version: VERSION,
            digest: digest.to_string(),
            reference: image.reference.clone(),
            compressed_bytes: manifest.compressed_bytes(),
            block_image_bytes,
            indexes: self.index_of(&digest).iter().map(ToString::to_string).collect(),
            config: config.run,
        };
        self.publish(&digest, made, &record)?;
        Ok(record)
    }

    /// Fetches and reads all layers, some at a time; in their order.
    async fn layers(
        &self,
        reference: &Reference,
        manifest: &Manifest,
        config: &Config,
        progress: &dyn PullProgress,
    ) -> Result<Vec<Layer>, Fault> {
        let budget = Arc::new(Budget::new(Arc::clone(&self.limits)));
        let (fetched, of) = (AtomicU64::new(0), manifest.compressed_bytes());
        progress.pulled(0, of);
        let received = |bytes: u64| {
            let before = fetched.fetch_add(bytes, Ordering::Relaxed);
            progress.pulled(before + bytes, of);
        };
        let mut layers = Vec::with_capacity(manifest.layers.len());
        for (descriptor, diff_id) in manifest.layers.iter().zip(&config.diff_ids) {
            layers.push(self.layer(reference, descriptor, diff_id, Arc::clone(&budget), &received).boxed());
        }
        stream::iter(layers).buffered(self.limits.parallel_layers).try_collect().await
    }

    async fn layer(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        diff_id: &Digest,
        budget: Arc<Budget>,
        received: &(dyn Fn(u64) + Sync),
    ) -> Result<Layer, Fault> {
        let spool = tempfile::tempfile_in(&self.temporary)?;
        let (sink, pieces) = mpsc::channel(PIECES);
        let size = descriptor.size;
        let reading = spawn_blocking(move || layer::read(Pieces::new(pieces), size, spool, &budget));
        let (fetched, read) = tokio::join!(self.registry.blob(reference, descriptor, sink, received), reading);
        let layer = match (fetched, read.map_err(panicked)?) {
            (Ok(()), read) => read?,
            // The reader stopped the transfer, and knows why.
            (Err(_), Err(fault @ (Fault::TooLarge(_) | Fault::Host(_)))) => return Err(fault),
            // What is not what its digest says, or has not come to its end, cannot be read either.
            (Err(fault @ (Fault::Unavailable(_) | Fault::NotFound(_))), _) => return Err(fault),
            (Err(_), Err(fault)) => return Err(fault),
            (Err(fault), Ok(_)) => return Err(fault),
        };
        if layer.diff_id != *diff_id {
            return Err(Fault::invalid("a layer does not unpack to what its config says"));
        }
        Ok(layer)
    }

    /// Gives a finished block image its name: the image first, then its record, each durable.
    fn publish(&self, digest: &Digest, made: NamedTempFile, record: &Record) -> Result<(), Fault> {
        made.persist(self.path(digest, "squashfs")).map_err(|error| Fault::Host(error.error))?;
        let mut written = NamedTempFile::new_in(&self.temporary)?;
        written.write_all(&serde_json::to_vec_pretty(record).map_err(io::Error::other)?)?;
        written.as_file().sync_all()?;
        written.persist(self.path(digest, "json")).map_err(|error| Fault::Host(error.error))?;
        File::open(&self.directory)?.sync_all()?;
        Ok(())
    }

    fn prepared(&self, digest: &Digest, record: Record) -> PreparedImage {
        PreparedImage {
            digest: record.digest,
            block_image: self.path(digest, "squashfs"),
            config: record.config,
        }
    }

    /// The record of a complete image.
    fn record(&self, digest: &Digest) -> Option<Record> {
        let text = fs::read(self.path(digest, "json")).ok()?;
        let record: Record = serde_json::from_slice(&text).ok()?;
        let length = fs::metadata(self.path(digest, "squashfs")).ok()?.len();
        let complete = record.version == VERSION && record.digest == digest.to_string();
        (complete && length == record.block_image_bytes).then_some(record)
    }

    /// The record of an image, or of the image that an index leads to.
    fn record_led_to_by(&self, digest: &Digest) -> Option<Record> {
        if let Some(record) = self.record(digest) {
            return Some(record);
        }
        let index = digest.to_string();
        let mut records = fs::read_dir(&self.directory).ok()?.flatten().filter_map(|entry| {
            self.record(&digest_of(&entry.path(), "json")?)
        });
        records.find(|record| record.indexes.contains(&index))
    }

    fn job(&self, digest: Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(job) = jobs.get(&digest).and_then(Weak::upgrade) {
            return job;
        }
        jobs.retain(|_, job| job.strong_count() > 0);
        let job = Arc::default();
        jobs.insert(digest, Arc::downgrade(&job));
        job
    }

    fn remember_index(&self, image: Digest, index: Digest) {
        let mut indexes = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
        if indexes.len() >= MAX_INDEXES {
            indexes.clear();
        }
        indexes.insert(image, index);
    }

    fn index_of(&self, image: &Digest) -> Option<Digest> {
        self.indexes.lock().unwrap_or_else(PoisonError::into_inner).get(image).copied()
    }

    fn path(&self, digest: &Digest, ending: &str) -> PathBuf {
        self.directory.join(format!("{}.{ending}", digest.hex()))
    }

    /// Makes the directories and removes what is not complete.
    fn sweep(&self) -> io::Result<()> {
        fs::create_dir_all(&self.temporary)?;
        for entry in fs::read_dir(&self.temporary)? {
            fs::remove_file(entry?.path())?;
        }
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let digest = digest_of(&path, "json").or_else(|| digest_of(&path, "squashfs"));
            if digest.is_some_and(|digest| self.record(&digest).is_none()) {
                tracing::info!(path = %path.display(), "image was not complete; removed");
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }
}

/// The digest in a file's name, if it has this ending.
fn digest_of(path: &Path, ending: &str) -> Option<Digest> {
    let hex = path.file_name()?.to_str()?.strip_suffix(ending)?.strip_suffix('.')?;
    format!("sha256:{hex}").parse().ok()
}

fn panicked(error: tokio::task::JoinError) -> Fault {
    Fault::Host(io::Error::other(error))
}
