//! The images of this host: a directory of block images, one for each manifest digest.
//!
//! ```text
//!            resolve            prepare                       no room for another,
//!  (unknown) ──────▶ resolved ──────────▶ job ──────▶ here ── and nobody needs it ──▶ removed
//! ```
//!
//! A digest is prepared by one job for each registry at a time (another's may be slower on purpose). A
//! job is a shared future, not a task: whoever waits for it drives it, it outlives the caller who
//! started it, and when nobody waits any more it is dropped, which ends its transfers and its
//! `sqfstar`.
//!
//! All pods of an image open the same file, so the host has its pages in memory once. Images that
//! share layers are kept whole each: a block image is flat, and has no layers to share.
//!
//! **What may be removed.** An image is needed if a lease that has not ended was made with it
//! ([`Leaseholders`]); the lease is recorded before its images are prepared, so there is no gap. What
//! was prepared since that was asked is left alone, too. Only being prepared counts as use: asking
//! what a reference means is free, and would let anybody keep an image here.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    error::Error as StdError,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock},
    time::{Instant, SystemTime},
};

use async_trait::async_trait;
use codius_pod::{ImageError, Images, PreparedImage, PullProgress, ResolvedImage};
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};
use thiserror::Error;
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

use crate::{
    audience::Audience,
    block,
    digest::Digest,
    fault::Fault,
    limits::{ImageLimits, RegistryConfig},
    manifest::{Config, Manifest, Record},
    policy::ImagePolicy,
    reference::Reference,
    registry::RegistryClient,
    room::{Candidate, Room, Short, choose},
    shelf::{Found, Shelf},
};

/// Of the records and block images written by this version.
pub(crate) const VERSION: u32 = 1;
/// Resolved images whose manifests are remembered until they are prepared.
pub(crate) const MAX_RESOLVED: usize = 64;
/// Indexes remembered for one image.
const MAX_INDEXES: usize = 8;
/// References remembered for one image besides the first.
const MAX_REFERENCES: usize = 8;

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

/// Knows which images must stay because a lease runs on them, or will again.
#[async_trait]
pub trait Leaseholders: Send + Sync + 'static {
    /// The digests of image manifests that leases were made with which have not ended. If it fails,
    /// nothing is removed.
    async fn needed_images(&self) -> Result<Vec<String>, Box<dyn StdError + Send + Sync>>;
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
    /// When a pod was last started with it.
    pub used: SystemTime,
    /// Whether the operator keeps it.
    pub pinned: bool,
}

/// Brings images to one directory and keeps them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ImageStore(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) shelf: Shelf,
    pub(crate) sqfstar: PathBuf,
    pub(crate) limits: Arc<ImageLimits>,
    pub(crate) registry: RegistryClient,
    /// Of those that fetch, those that put together, and those that only ask.
    pub(crate) places: Semaphore,
    pub(crate) builders: Semaphore,
    questions: Semaphore,
    pub(crate) room: Room,
    /// One removal at a time.
    clearing: tokio::sync::Mutex<()>,
    policy: RwLock<ImagePolicy>,
    leaseholders: OnceLock<Arc<dyn Leaseholders>>,
    state: Mutex<State>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageStore")
            .field("shelf", &self.shelf)
            .field("room", &self.room)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) stored: HashMap<Digest, Stored>,
    /// From indexes to the images they lead to, for references by an index's digest.
    pub(crate) indexes: HashMap<Digest, Digest>,
    pub(crate) resolved: VecDeque<Arc<Resolved>>,
    jobs: HashMap<(Digest, String), Job>,
}

#[derive(Debug)]
pub(crate) struct Stored {
    record: Record,
    /// For the order in which images are removed; kept over restarts.
    used: SystemTime,
    /// The same of this process, by a clock that nobody sets.
    used_here: Instant,
}

impl Stored {
    /// One that has just been made.
    pub(crate) fn new(record: Record) -> Self {
        Self {
            record,
            used: SystemTime::now(),
            used_here: Instant::now(),
        }
    }
}

/// What `resolve` learned and `prepare` needs.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) digest: Digest,
    pub(crate) index: Option<Digest>,
    pub(crate) manifest: Manifest,
    pub(crate) config: Config,
}

type JobResult = Result<(), Arc<Fault>>;
type JobFuture = Shared<BoxFuture<'static, JobResult>>;

#[derive(Debug)]
struct Job {
    future: WeakShared<BoxFuture<'static, JobResult>>,
    audience: Arc<Audience>,
}

impl ImageStore {
    /// Opens a directory, made if it is not there, and removes what an interrupted pull or removal left
    /// in it.
    pub fn open(
        directory: impl AsRef<Path>,
        limits: ImageLimits,
        registries: &RegistryConfig,
    ) -> Result<Self, OpenError> {
        let directory = directory.as_ref();
        let sqfstar = block::find_program().ok_or(OpenError::NoSqfstar)?;
        let limits = Arc::new(limits);
        let registry =
            RegistryClient::new(registries, Arc::clone(&limits)).map_err(OpenError::Registry)?;
        let (shelf, found) = Shelf::open(directory)?;
        let state = State::found(found);
        let taken = state.stored.values().map(|it| it.record.block_image_bytes);
        let room = Room::new(
            limits.cache_bytes,
            limits.free_bytes,
            directory.to_owned(),
            taken.sum(),
        );
        Ok(Self(Arc::new(Inner {
            shelf,
            sqfstar,
            places: Semaphore::new(limits.parallel_images),
            builders: Semaphore::new(limits.parallel_builds),
            questions: Semaphore::new(limits.parallel_resolves),
            room,
            clearing: tokio::sync::Mutex::default(),
            limits,
            registry,
            policy: RwLock::default(),
            leaseholders: OnceLock::new(),
            state: Mutex::new(state),
        })))
    }

    /// Who is asked before an image is removed. To be said once, before anything is prepared; until
    /// then nobody needs any.
    pub fn ask_before_removing(&self, leaseholders: Arc<dyn Leaseholders>) {
        let first = self.0.leaseholders.set(leaseholders);
        debug_assert!(first.is_ok(), "it is said once");
    }

    /// Replaces what the operator says of images. Holds for everything that is resolved or prepared
    /// from now on; pods that run go on.
    pub fn set_policy(&self, policy: ImagePolicy) {
        *self
            .0
            .policy
            .write()
            .unwrap_or_else(PoisonError::into_inner) = policy;
    }

    /// The images that are here.
    pub fn list(&self) -> Vec<StoredImage> {
        let state = self.0.state();
        let mut images: Vec<_> = state
            .stored
            .iter()
            .map(|(digest, stored)| StoredImage {
                digest: stored.record.digest.clone(),
                reference: stored.record.reference.clone(),
                block_image_bytes: stored.record.block_image_bytes,
                used: stored.used,
                pinned: self.0.is_pinned(*digest, &stored.record),
            })
            .collect();
        images.sort_by(|a, b| a.digest.cmp(&b.digest));
        images
    }

    /// Bytes on disk of all images that are here and of all that is being made.
    pub fn bytes_taken(&self) -> u64 {
        self.0.room.taken()
    }

    /// Removes the least recently used images that nobody needs, until the others keep to the limits;
    /// for an operator who has lowered them. If that is not enough, nothing is removed.
    pub async fn trim(&self) -> Result<(), String> {
        self.0.take_room(0).await.map_err(|fault| match fault {
            Fault::NoRoom(reason) => reason,
            other => format!("{other:?}"),
        })
    }
}

#[async_trait]
impl Images for ImageStore {
    async fn resolve(&self, reference: &str) -> Result<ResolvedImage, ImageError> {
        let parsed = parse(reference)?;
        let resolved = self.0.resolve(reference, &parsed).await;
        resolved.map_err(|fault| fault.for_reference(reference))
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
        // The rules may be others than when it was resolved.
        self.0
            .check_policy(&parsed, &[digest])
            .map_err(|fault| fault.for_reference(&image.reference))?;
        loop {
            let job = {
                let mut state = self.0.state();
                if let Some(prepared) = self.0.prepared(&mut state, &digest, &parsed) {
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

impl State {
    fn found(found: HashMap<Digest, Found>) -> Self {
        let mut state = Self::default();
        for (digest, Found { record, used }) in found {
            for index in &record.indexes {
                state
                    .indexes
                    .extend(index.parse().map(|index: Digest| (index, digest)));
            }
            let stored = Stored {
                used,
                ..Stored::new(record)
            };
            state.stored.insert(digest, stored);
        }
        state
    }
}

impl Inner {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn resolve(
        self: &Arc<Self>,
        reference: &str,
        parsed: &Reference,
    ) -> Result<ResolvedImage, Fault> {
        // Before anything is asked: a registry that is not allowed gets no request.
        self.check_policy(parsed, parsed.digest().as_slice())?;
        if let Some(digest) = parsed.digest()
            && let Some(answer) = self.resolve_stored(reference, digest)
        {
            self.check_policy(parsed, &[digest, answer.0])?;
            return Ok(answer.1);
        }
        let resolved = {
            let place = timeout(self.limits.resolve, self.questions.acquire()).await;
            let _place = place
                .map_err(|_| Fault::unavailable("this host asks about too many images already"))?
                .map_err(io::Error::other)?;
            timeout(self.limits.resolve, self.look_up(parsed))
                .await
                .map_err(|_| Fault::unavailable("its registry did not answer in time"))??
        };
        let mut digests = vec![resolved.digest];
        digests.extend(resolved.index);
        self.check_policy(parsed, &digests)?;
        let compressed_bytes = resolved.manifest.compressed_bytes();
        let cached = self.touch(resolved.digest, resolved.index);
        if !cached {
            // It will take more, but how much is only known when it is here.
            self.check_room(compressed_bytes).await?;
        }
        Ok(ResolvedImage {
            reference: reference.to_owned(),
            digest: resolved.digest.to_string(),
            compressed_bytes,
            cached,
        })
    }

    fn check_policy(&self, reference: &Reference, digests: &[Digest]) -> Result<(), Fault> {
        let policy = self.policy.read().unwrap_or_else(PoisonError::into_inner);
        match policy.refusal(reference, digests) {
            Some(rule) => Err(Fault::Denied(rule)),
            None => Ok(()),
        }
    }

    fn is_pinned(&self, digest: Digest, record: &Record) -> bool {
        let policy = self.policy.read().unwrap_or_else(PoisonError::into_inner);
        if policy.pin.is_empty() {
            return false;
        }
        let references = std::iter::once(&record.reference).chain(&record.also);
        let references: Vec<Reference> = references.filter_map(|it| it.parse().ok()).collect();
        let indexes = record.indexes.iter().filter_map(|it| it.parse().ok());
        let digests: Vec<Digest> = std::iter::once(digest).chain(indexes).collect();
        policy.is_pinned(&references, &digests)
    }

    /// An image that is here, by its own digest or that of an index.
    fn resolve_stored(&self, reference: &str, digest: Digest) -> Option<(Digest, ResolvedImage)> {
        let state = self.state();
        let digest = state.indexes.get(&digest).copied().unwrap_or(digest);
        let stored = state.stored.get(&digest)?;
        let resolved = ResolvedImage {
            reference: reference.to_owned(),
            digest: digest.to_string(),
            compressed_bytes: stored.record.compressed_bytes,
            cached: true,
        };
        Some((digest, resolved))
    }

    /// Whether an image is here; if so, it is known under one more index.
    fn touch(self: &Arc<Self>, digest: Digest, index: Option<Digest>) -> bool {
        let mut state = self.state();
        let Some(stored) = state.stored.get_mut(&digest) else {
            return false;
        };
        let Some(index) = index else { return true };
        let text = index.to_string();
        let indexes = &mut stored.record.indexes;
        if !indexes.contains(&text) && indexes.len() < MAX_INDEXES {
            indexes.push(text);
            state.indexes.insert(index, digest);
            self.rewrite_record(digest);
        }
        true
    }

    /// Writes the record of an image anew, unless the image is gone in the meantime. Nobody waits:
    /// what is lost by a crash costs a question to the registry, no more.
    fn rewrite_record(self: &Arc<Self>, digest: Digest) {
        let inner = Arc::clone(self);
        spawn_blocking(move || {
            // The lock keeps a removal from running in between; this happens once per index.
            let state = inner.state();
            if let Some(stored) = state.stored.get(&digest)
                && let Err(error) = inner
                    .shelf
                    .write_record(&digest, &stored.record, stored.used)
            {
                tracing::warn!(%digest, %error, "image record not updated");
            }
        });
    }

    fn prepared(
        self: &Arc<Self>,
        state: &mut State,
        digest: &Digest,
        reference: &Reference,
    ) -> Option<PreparedImage> {
        let stored = state.stored.get_mut(digest)?;
        (stored.used, stored.used_here) = (SystemTime::now(), Instant::now());
        self.shelf.mark_used(digest, stored.used);
        let prepared = PreparedImage {
            digest: digest.to_string(),
            block_image: self.shelf.image_path(digest),
            config: stored.record.config.clone(),
        };
        let reference = reference.to_string();
        let record = &mut stored.record;
        let is_new = record.reference != reference && !record.also.contains(&reference);
        if is_new && record.also.len() < MAX_REFERENCES {
            record.also.push(reference);
            self.rewrite_record(*digest);
        }
        Some(prepared)
    }

    /// Takes room on disk, and removes images for it if need be.
    pub(crate) async fn take_room(&self, bytes: u64) -> Result<(), Fault> {
        if self.room.take(bytes)?.is_ok() {
            return Ok(());
        }
        let _one = self.clearing.lock().await;
        // Whoever was here before may have made enough.
        let Err(short) = self.room.take(bytes)? else {
            return Ok(());
        };
        let chosen = self.removable(short).await?;
        self.remove(&chosen)?;
        self.room
            .take(bytes)?
            .map_err(|_| Fault::NoRoom("the room that was made for it is taken again".into()))
    }

    /// Whether there would be so much room if everything that may go were gone.
    async fn check_room(&self, bytes: u64) -> Result<(), Fault> {
        let most = self.room.most();
        if bytes > most {
            return Err(Fault::too_large(format!(
                "its layers have {bytes} bytes, and this host has {most} for images"
            )));
        }
        match self.room.look(bytes)? {
            Ok(()) => Ok(()),
            Err(short) => self.removable(short).await.map(drop),
        }
    }

    /// The images to remove for more room.
    async fn removable(&self, short: Short) -> Result<Vec<(Digest, Instant)>, Fault> {
        // What is used from now on is not looked at any more.
        let asked = Instant::now();
        let needed = match self.leaseholders.get() {
            None => HashSet::new(),
            Some(leaseholders) => {
                let needed = leaseholders.needed_images().await.map_err(|error| {
                    tracing::error!(%error, "which images leases need cannot be read; none is removed");
                    Fault::NoRoom("this host cannot tell which images it may remove".into())
                })?;
                needed.into_iter().collect()
            }
        };
        let state = self.state();
        let candidates = state.stored.iter().filter_map(|(digest, stored)| {
            let may_go = stored.used_here < asked
                && !needed.contains(&stored.record.digest)
                && !self.is_pinned(*digest, &stored.record);
            may_go.then_some(Candidate {
                digest: *digest,
                used: stored.used,
                bytes: stored.record.block_image_bytes,
            })
        });
        let candidates: Vec<_> = candidates.collect();
        drop(state);
        let chosen = choose(candidates, short.bytes()).ok_or_else(|| {
            Fault::NoRoom(match short {
                Short::Budget(_) => "its images are all needed at the moment".into(),
                Short::Disk(_) => "its disk is too full".into(),
            })
        })?;
        Ok(chosen.into_iter().map(|digest| (digest, asked)).collect())
    }

    /// Removes images, but for those that were used since it was asked who needs them.
    fn remove(&self, chosen: &[(Digest, Instant)]) -> Result<(), Fault> {
        for (digest, asked) in chosen {
            // The lock is held, so that nobody makes or uses the image in the meantime.
            let mut state = self.state();
            let unused = |stored: &Stored| stored.used_here < *asked;
            if !state.stored.get(digest).is_some_and(unused) {
                continue;
            }
            let removed = self.shelf.remove(digest);
            // Whatever is left on disk now is swept at the next start.
            if let Some(stored) = state.stored.remove(digest) {
                self.room.give(stored.record.block_image_bytes);
                tracing::info!(%digest, reference = stored.record.reference, "image removed to make room");
            }
            state.indexes.retain(|_, image| image != digest);
            drop(state);
            removed?;
        }
        Ok(())
    }

    /// The job that prepares a digest from a registry, begun if there is none.
    fn job(
        self: &Arc<Self>,
        state: &mut State,
        digest: Digest,
        reference: &Reference,
        progress: &Arc<dyn PullProgress>,
    ) -> JobFuture {
        let key = (digest, reference.api_host().to_owned());
        if let Some(job) = state.jobs.get(&key)
            && let Some(future) = job.future.upgrade()
        {
            job.audience.join(Arc::clone(progress));
            return future;
        }
        let audience = Arc::new(Audience::default());
        audience.join(Arc::clone(progress));
        let (inner, reference) = (Arc::clone(self), reference.clone());
        let (listeners, done) = (Arc::clone(&audience), key.clone());
        let future = async move {
            let result = inner
                .make(digest, &reference, &listeners)
                .await
                .map_err(Arc::new);
            inner.state().jobs.remove(&done);
            result
        }
        .boxed()
        .shared();
        state.jobs.retain(|_, job| job.future.upgrade().is_some());
        if let Some(future) = future.downgrade() {
            state.jobs.insert(key, Job { future, audience });
        }
        future
    }
}
