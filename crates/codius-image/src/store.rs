//! The images of this host: a directory of block images, one for each manifest digest.
//!
//! ```text
//! DIR/lock                  held while a store is open
//! DIR/images/HEX.squashfs   the block image
//! DIR/images/HEX.json       its record; written last, so its presence means "complete"
//! DIR/tmp/                  what is being made; emptied at open
//! ```
//!
//! A digest is prepared by one job at a time. A job is a shared future, not a task: whoever waits
//! for it drives it, it outlives the caller who started it, and when nobody waits any more it is
//! dropped, which ends its transfers and its `sqfstar`.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use codius_pod::{ImageError, Images, PreparedImage, PullProgress, ResolvedImage};
use futures_util::{
    FutureExt, StreamExt, TryStreamExt,
    future::{BoxFuture, Shared, WeakShared},
    stream,
};
use tempfile::NamedTempFile;
use thiserror::Error;
use tokio::{
    sync::{Semaphore, mpsc},
    task::spawn_blocking,
    time::timeout,
};

use crate::{
    audience::Audience,
    block,
    digest::Digest,
    fault::Fault,
    layer::{self, Budget, Layer, Pieces},
    limits::{ImageLimits, RegistryConfig},
    manifest::{self, Config, Descriptor, Document, Manifest, Record},
    reference::Reference,
    registry::{BlobFault, RegistryClient},
    tree::Tree,
};

/// Of the records and block images written by this version.
const VERSION: u32 = 1;
/// Resolved images whose manifests are remembered until they are prepared.
const MAX_RESOLVED: usize = 64;
/// Indexes remembered for one image.
const MAX_INDEXES: usize = 8;
/// Pieces of a layer that wait between the network and decompression; each has at most
/// 400 KiB (hyper's read buffer).
const PIECES: usize = 16;

/// Why a store cannot be opened. Nothing was changed; the operator puts it right.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The directory cannot be made, read or written.
    #[error("image directory {} cannot be used", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Another process has the store open.
    #[error("image directory {} is in use by another process", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The program that makes block images is not installed.
    #[error("sqfstar was not found; install the package squashfs-tools")]
    NoSqfstar,
    /// An entry of the registry configuration makes no sense.
    #[error("registry configuration: {0}")]
    Registry(String),
}

/// An image that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredImage {
    /// `sha256:…` of the image manifest.
    pub digest: String,
    /// The reference that it was first prepared for.
    pub reference: String,
    /// What it takes on disk.
    pub block_image_bytes: u64,
}

/// Brings images to one directory and keeps them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ImageStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    images: PathBuf,
    temporary: PathBuf,
    sqfstar: PathBuf,
    limits: Arc<ImageLimits>,
    registry: RegistryClient,
    places: Semaphore,
    state: Mutex<State>,
    /// Locked as long as the store is open.
    _lock: File,
}

#[derive(Debug, Default)]
struct State {
    stored: HashMap<Digest, Stored>,
    /// From indexes to the images they lead to, for references by an index's digest.
    indexes: HashMap<Digest, Digest>,
    resolved: VecDeque<Arc<Resolved>>,
    jobs: HashMap<Digest, Job>,
}

#[derive(Debug)]
struct Stored {
    record: Record,
    used: Instant,
}

/// What `resolve` learned and `prepare` needs.
#[derive(Debug)]
struct Resolved {
    digest: Digest,
    index: Option<Digest>,
    manifest: Manifest,
    config: Config,
}

type JobResult = Result<(), Arc<Fault>>;
type JobFuture = Shared<BoxFuture<'static, JobResult>>;

#[derive(Debug)]
struct Job {
    future: WeakShared<BoxFuture<'static, JobResult>>,
    audience: Arc<Audience>,
}

impl ImageStore {
    /// Opens a directory, made if it is not there, and removes what an interrupted pull left in it.
    pub fn open(
        directory: impl AsRef<Path>,
        limits: ImageLimits,
        registries: &RegistryConfig,
    ) -> Result<Self, OpenError> {
        let directory = directory.as_ref();
        let failed = |source| OpenError::Directory {
            path: directory.to_owned(),
            source,
        };
        let sqfstar = block::find_program().ok_or(OpenError::NoSqfstar)?;
        let images = directory.join("images");
        let temporary = directory.join("tmp");
        fs::create_dir_all(&images).map_err(failed)?;
        let lock = File::create(directory.join("lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(OpenError::InUse {
                    path: directory.to_owned(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        match fs::remove_dir_all(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => fs::create_dir(&temporary).map_err(failed)?,
        }
        let state = sweep(&images).map_err(failed)?;
        let limits = Arc::new(limits);
        let registry =
            RegistryClient::new(registries, Arc::clone(&limits)).map_err(OpenError::Registry)?;
        Ok(Self(Arc::new(Inner {
            images,
            temporary,
            sqfstar,
            places: Semaphore::new(limits.parallel_images),
            limits,
            registry,
            state: Mutex::new(state),
            _lock: lock,
        })))
    }

    /// The images that are here.
    pub fn list(&self) -> Vec<StoredImage> {
        let state = self.0.state();
        let mut images: Vec<_> = state
            .stored
            .values()
            .map(|stored| StoredImage {
                digest: stored.record.digest.clone(),
                reference: stored.record.reference.clone(),
                block_image_bytes: stored.record.block_image_bytes,
            })
            .collect();
        images.sort_by(|a, b| a.digest.cmp(&b.digest));
        images
    }

    /// Removes the images that are not in `keep` and that nobody resolved or prepared for
    /// `unused_for`, so that an image between being resolved and being run is not taken away.
    /// Returns what was removed. A VM that has an image open keeps its content.
    pub fn remove_unused(
        &self,
        keep: &[String],
        unused_for: Duration,
    ) -> io::Result<Vec<StoredImage>> {
        let keep: HashSet<&str> = keep.iter().map(String::as_str).collect();
        let mut removed = Vec::new();
        for image in self.list() {
            if keep.contains(image.digest.as_str()) {
                continue;
            }
            let Ok(digest) = image.digest.parse::<Digest>() else {
                continue;
            };
            let mut state = self.0.state();
            let old = state
                .stored
                .get(&digest)
                .is_some_and(|stored| stored.used.elapsed() >= unused_for);
            if !old {
                continue;
            }
            state.stored.remove(&digest);
            state.indexes.retain(|_, image| *image != digest);
            // The record first: without it, the rest is swept at the next start. The lock is held,
            // so that nobody makes the image anew in the meantime.
            fs::remove_file(self.0.record_path(&digest))?;
            fs::remove_file(self.0.image_path(&digest))?;
            drop(state);
            removed.push(image);
        }
        Ok(removed)
    }
}

#[async_trait]
impl Images for ImageStore {
    async fn resolve(&self, reference: &str) -> Result<ResolvedImage, ImageError> {
        let parsed = parse(reference)?;
        if let Some(digest) = parsed.digest()
            && let Some(answer) = self.0.resolve_stored(reference, digest)
        {
            return Ok(answer);
        }
        let resolved = match timeout(self.0.limits.resolve, self.0.look_up(&parsed)).await {
            Ok(result) => result,
            Err(_) => Err(Fault::unavailable("its registry did not answer in time")),
        };
        let resolved = resolved.map_err(|fault| fault.for_reference(reference))?;
        let cached = self.0.touch(resolved.digest, resolved.index);
        Ok(ResolvedImage {
            reference: reference.to_owned(),
            digest: resolved.digest.to_string(),
            compressed_bytes: resolved.manifest.compressed_bytes(),
            cached,
        })
    }

    async fn prepare(
        &self,
        image: &ResolvedImage,
        progress: Arc<dyn PullProgress>,
    ) -> Result<PreparedImage, ImageError> {
        let parsed = parse(&image.reference)?;
        let digest: Digest = image.digest.parse().map_err(|error| {
            Fault::invalid(format!("it was resolved to something else: {error}"))
                .for_reference(&image.reference)
        })?;
        loop {
            let job = {
                let mut state = self.0.state();
                if let Some(prepared) = self.0.prepared(&mut state, &digest) {
                    return Ok(prepared);
                }
                self.0.job(&mut state, digest, &parsed, &progress)
            };
            // Safe to drop here: the job goes on for others, or is dropped with the last of us.
            job.await
                .map_err(|fault| fault.for_reference(&image.reference))?;
        }
    }
}

fn parse(reference: &str) -> Result<Reference, ImageError> {
    reference.parse().map_err(
        |reason: crate::InvalidReference| ImageError::InvalidReference {
            reference: reference.chars().take(512).collect(),
            reason: reason.to_string(),
        },
    )
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn image_path(&self, digest: &Digest) -> PathBuf {
        self.images.join(format!("{}.squashfs", digest.hex()))
    }

    fn record_path(&self, digest: &Digest) -> PathBuf {
        self.images.join(format!("{}.json", digest.hex()))
    }

    /// An image that is here, by its own digest or that of an index.
    fn resolve_stored(&self, reference: &str, digest: Digest) -> Option<ResolvedImage> {
        let mut state = self.state();
        let digest = state.indexes.get(&digest).copied().unwrap_or(digest);
        let stored = state.stored.get_mut(&digest)?;
        stored.used = Instant::now();
        Some(ResolvedImage {
            reference: reference.to_owned(),
            digest: digest.to_string(),
            compressed_bytes: stored.record.compressed_bytes,
            cached: true,
        })
    }

    /// Whether an image is here; if so, it counts as used, and is known under one more index.
    fn touch(self: &Arc<Self>, digest: Digest, index: Option<Digest>) -> bool {
        let mut state = self.state();
        let Some(stored) = state.stored.get_mut(&digest) else {
            return false;
        };
        stored.used = Instant::now();
        let Some(index) = index else { return true };
        let text = index.to_string();
        let indexes = &mut stored.record.indexes;
        if !indexes.contains(&text) && indexes.len() < MAX_INDEXES {
            indexes.push(text);
            let record = stored.record.clone();
            state.indexes.insert(index, digest);
            let inner = Arc::clone(self);
            // Nobody waits: forgetting it costs a question to the registry, no more.
            spawn_blocking(move || inner.update_record(&digest, &record));
        }
        true
    }

    /// Writes the record of an image anew, unless the image is gone in the meantime.
    fn update_record(&self, digest: &Digest, record: &Record) {
        // The lock keeps `remove_unused` from running in between; this happens once per index.
        let state = self.state();
        if state.stored.contains_key(digest)
            && let Err(error) = self.write_record(digest, record)
        {
            tracing::warn!(%digest, %error, "image record not updated");
        }
    }

    fn prepared(&self, state: &mut State, digest: &Digest) -> Option<PreparedImage> {
        let stored = state.stored.get_mut(digest)?;
        stored.used = Instant::now();
        Some(PreparedImage {
            digest: digest.to_string(),
            block_image: self.image_path(digest),
            config: stored.record.config.clone(),
        })
    }

    /// Asks the registry what a reference means. The answer is remembered for `prepare`.
    async fn look_up(&self, reference: &Reference) -> Result<Arc<Resolved>, Fault> {
        let (digest, bytes) = self
            .registry
            .manifest(reference, &reference.identifier())
            .await?;
        let (digest, index, manifest) = match manifest::parse_document(&bytes, &self.limits)? {
            Document::Image(manifest) => (digest, None, manifest),
            Document::Index(image) => {
                let (_, bytes) = self
                    .registry
                    .manifest(reference, &image.digest.to_string())
                    .await?;
                match manifest::parse_document(&bytes, &self.limits)? {
                    Document::Image(manifest) => (image.digest, Some(digest), manifest),
                    Document::Index(_) => {
                        return Err(Fault::invalid("it is an index of an index"));
                    }
                }
            }
        };
        if let Some(known) = self.known(&digest) {
            return Ok(known);
        }
        let bytes = self
            .registry
            .small_blob(reference, &manifest.config)
            .await?;
        let config = manifest::parse_config(&bytes, manifest.layers.len())?;
        let resolved = Arc::new(Resolved {
            digest,
            index,
            manifest,
            config,
        });
        let mut state = self.state();
        state.resolved.retain(|other| other.digest != digest);
        state.resolved.push_back(Arc::clone(&resolved));
        if state.resolved.len() > MAX_RESOLVED {
            state.resolved.pop_front();
        }
        Ok(resolved)
    }

    fn known(&self, digest: &Digest) -> Option<Arc<Resolved>> {
        self.state()
            .resolved
            .iter()
            .find(|resolved| resolved.digest == *digest)
            .cloned()
    }

    /// The job that prepares a digest, begun if there is none.
    fn job(
        self: &Arc<Self>,
        state: &mut State,
        digest: Digest,
        reference: &Reference,
        progress: &Arc<dyn PullProgress>,
    ) -> JobFuture {
        if let Some(job) = state.jobs.get(&digest)
            && let Some(future) = job.future.upgrade()
        {
            job.audience.join(Arc::clone(progress));
            return future;
        }
        let audience = Arc::new(Audience::default());
        audience.join(Arc::clone(progress));
        let (inner, reference) = (Arc::clone(self), reference.clone());
        let listeners = Arc::clone(&audience);
        let future = async move {
            let result = inner
                .make(digest, &reference, &listeners)
                .await
                .map_err(Arc::new);
            inner.state().jobs.remove(&digest);
            result
        }
        .boxed()
        .shared();
        state.jobs.retain(|_, job| job.future.upgrade().is_some());
        if let Some(future) = future.downgrade() {
            state.jobs.insert(digest, Job { future, audience });
        }
        future
    }

    /// Fetches the layers, makes the block image and publishes it.
    async fn make(
        self: &Arc<Self>,
        digest: Digest,
        reference: &Reference,
        audience: &Audience,
    ) -> Result<(), Fault> {
        let _place = self.places.acquire().await.map_err(io::Error::other)?;
        let resolved = match self.known(&digest) {
            Some(resolved) => resolved,
            None => self.look_up_again(reference, digest).await?,
        };
        let fetch = self.fetch_layers(reference, &resolved, audience);
        let layers = timeout(self.limits.fetch, fetch).await.map_err(|_| {
            let seconds = self.limits.fetch.as_secs();
            Fault::unavailable(format!("its layers did not arrive in {seconds} s"))
        })??;
        audience.building();
        let (tree, spools, contents_bytes) = spawn_blocking(move || assemble(layers))
            .await
            .map_err(|_| io::Error::other("applying the layers panicked"))??;
        // Removed when it is dropped before it is published.
        let output = NamedTempFile::new_in(&self.temporary)?;
        let block_image_bytes = block::build(
            self.sqfstar.clone(),
            tree,
            spools,
            contents_bytes,
            output.as_file().try_clone()?,
            self.limits.build,
        )
        .await?;
        let record = Record {
            version: VERSION,
            digest: digest.to_string(),
            reference: reference.to_string(),
            compressed_bytes: resolved.manifest.compressed_bytes(),
            block_image_bytes,
            indexes: resolved.index.iter().map(Digest::to_string).collect(),
            config: resolved.config.run.clone(),
        };
        output
            .persist(self.image_path(&digest))
            .map_err(|error| error.error)?;
        self.write_record(&digest, &record)?;
        let mut state = self.state();
        state.resolved.retain(|other| other.digest != digest);
        state
            .indexes
            .extend(resolved.index.map(|index| (index, digest)));
        state.stored.insert(
            digest,
            Stored {
                record,
                used: Instant::now(),
            },
        );
        Ok(())
    }

    /// For a `ResolvedImage` that is older than this process, or forgotten.
    async fn look_up_again(
        &self,
        reference: &Reference,
        digest: Digest,
    ) -> Result<Arc<Resolved>, Fault> {
        let look_up = self.look_up_digest(reference, digest);
        timeout(self.limits.resolve, look_up)
            .await
            .map_err(|_| Fault::unavailable("its registry did not answer in time"))?
    }

    async fn look_up_digest(
        &self,
        reference: &Reference,
        digest: Digest,
    ) -> Result<Arc<Resolved>, Fault> {
        let (_, bytes) = self
            .registry
            .manifest(reference, &digest.to_string())
            .await?;
        let Document::Image(manifest) = manifest::parse_document(&bytes, &self.limits)? else {
            return Err(Fault::invalid("it was resolved to an index"));
        };
        let bytes = self
            .registry
            .small_blob(reference, &manifest.config)
            .await?;
        let config = manifest::parse_config(&bytes, manifest.layers.len())?;
        Ok(Arc::new(Resolved {
            digest,
            index: None,
            manifest,
            config,
        }))
    }

    async fn fetch_layers(
        &self,
        reference: &Reference,
        resolved: &Resolved,
        audience: &Audience,
    ) -> Result<Vec<Layer>, Fault> {
        let budget = Arc::new(Budget::new(Arc::clone(&self.limits)));
        let total = resolved.manifest.compressed_bytes();
        let pulled = AtomicU64::new(0);
        let received = |bytes| {
            let before = pulled.fetch_add(bytes, Ordering::Relaxed);
            audience.pulled(before + bytes, total);
        };
        let wanted = resolved
            .manifest
            .layers
            .iter()
            .zip(&resolved.config.diff_ids);
        // The collected closures avoid a lifetime that the compiler cannot prove through the stream.
        let fetches: Vec<_> = wanted
            .map(|(descriptor, diff_id)| {
                self.fetch_layer(
                    reference,
                    descriptor,
                    *diff_id,
                    Arc::clone(&budget),
                    &received,
                )
            })
            .collect();
        stream::iter(fetches)
            .buffered(self.limits.parallel_layers)
            .try_collect()
            .await
    }

    /// Downloads a layer into a thread that decompresses it at the same time.
    async fn fetch_layer(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        diff_id: Digest,
        budget: Arc<Budget>,
        received: &(dyn Fn(u64) + Sync),
    ) -> Result<Layer, Fault> {
        // Without a name from the beginning, so that nothing is left whatever happens.
        let spool = tempfile::tempfile_in(&self.temporary)?;
        let (sink, pieces) = mpsc::channel(PIECES);
        let size = descriptor.size;
        // If this future is dropped, the channel closes and the thread comes to its end.
        let reader = spawn_blocking(move || layer::read(Pieces::new(pieces), size, spool, &budget));
        let fetched = self
            .registry
            .blob(reference, descriptor, sink, received)
            .await;
        let read = reader
            .await
            .map_err(|_| io::Error::other("reading a layer panicked"))?;
        let layer = match fetched {
            // If the registry's side failed, the reader has only seen a layer that is cut off.
            Err(BlobFault::Registry(fault)) => return Err(fault),
            Ok(()) | Err(BlobFault::ReceiverGone) => read?,
        };
        if layer.diff_id != diff_id {
            return Err(Fault::invalid(
                "a layer's archive is not what the config says",
            ));
        }
        Ok(layer)
    }

    fn write_record(&self, digest: &Digest, record: &Record) -> io::Result<()> {
        let mut file = NamedTempFile::new_in(&self.temporary)?;
        serde_json::to_writer_pretty(&mut file, record)?;
        file.write_all(b"\n")?;
        file.as_file().sync_all()?;
        file.persist(self.record_path(digest))
            .map_err(|error| error.error)?;
        File::open(&self.images)?.sync_all()
    }
}

/// Puts the layers on top of each other. Also returns the bytes of all contents.
fn assemble(layers: Vec<Layer>) -> Result<(Tree, Vec<File>, u64), Fault> {
    let mut tree = Tree::new();
    let mut spools = Vec::new();
    let mut contents_bytes = 0;
    for layer in layers {
        tree.apply(layer.entries)?;
        contents_bytes += layer.spool.metadata()?.len();
        spools.push(layer.spool);
    }
    Ok((tree, spools, contents_bytes))
}

/// Finds the complete images of a directory and removes everything else in it.
fn sweep(images: &Path) -> io::Result<State> {
    let mut state = State::default();
    let mut files = Vec::new();
    for file in fs::read_dir(images)? {
        files.push(file?.path());
    }
    for path in files
        .iter()
        .filter(|path| path.extension().is_some_and(|it| it == "json"))
    {
        let Some(record) = read_record(path)? else {
            continue;
        };
        let Ok(digest) = record.digest.parse::<Digest>() else {
            continue;
        };
        for index in &record.indexes {
            state
                .indexes
                .extend(index.parse().map(|index: Digest| (index, digest)));
        }
        state.stored.insert(
            digest,
            Stored {
                record,
                used: Instant::now(),
            },
        );
    }
    for path in files {
        let stem = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .unwrap_or_default();
        let known = format!("sha256:{stem}")
            .parse()
            .is_ok_and(|it| state.stored.contains_key(&it));
        if !known {
            tracing::info!(path = %path.display(), "incomplete image removed");
            fs::remove_file(path)?;
        }
    }
    Ok(state)
}

/// The record at a path, if it is one of this version and its block image is there in full.
fn read_record(path: &Path) -> io::Result<Option<Record>> {
    let Ok(record) = serde_json::from_slice::<Record>(&fs::read(path)?) else {
        return Ok(None);
    };
    let named = path
        .file_stem()
        .and_then(|stem| stem.to_str())
        .map(|hex| format!("sha256:{hex}"));
    let image = path.with_extension("squashfs");
    let complete = fs::metadata(image).is_ok_and(|file| file.len() == record.block_image_bytes);
    let good = record.version == VERSION && named.as_deref() == Some(&record.digest) && complete;
    Ok(good.then_some(record))
}
