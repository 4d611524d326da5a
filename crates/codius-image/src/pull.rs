//! One pull: from a reference to a published block image. Everything it makes is removed with it.
//!
//! ```text
//! look_up ──▶ (a place) ──▶ fetch_layers ──▶ (a place) ──▶ assemble ──▶ block::build ──▶ publish
//!   resolve      queue         fetch           queue                       build
//! ```
//!
//! Below: the waits of [`ImageLimits`](crate::ImageLimits) that bound each step. Room on disk is taken
//! before it is written to, and memory is bounded by what layers may say and how many do it at a time.

use std::{
    fs::File,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::{StreamExt, TryStreamExt, stream};
use tempfile::NamedTempFile;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, SemaphorePermit, mpsc},
    task::spawn_blocking,
    time::timeout,
};

use crate::{
    audience::Audience,
    block,
    digest::Digest,
    fault::Fault,
    layer::{self, Budget, Layer, Pieces},
    manifest::{self, Descriptor, Document, Record},
    reference::Reference,
    registry::BlobFault,
    room::Claim,
    store::{Inner, MAX_RESOLVED, Resolved, Stored, VERSION},
    tree::Tree,
};

/// Pieces of a layer that wait between the network and decompression; each has at most
/// 400 KiB (hyper's read buffer).
const PIECES: usize = 16;

impl Inner {
    /// Asks the registry what a reference means. The answer is remembered for `prepare`.
    pub(crate) async fn look_up(&self, reference: &Reference) -> Result<Arc<Resolved>, Fault> {
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

    /// Fetches the layers, makes the block image and publishes it.
    pub(crate) async fn make(
        self: &Arc<Self>,
        digest: Digest,
        reference: &Reference,
        audience: &Audience,
    ) -> Result<(), Fault> {
        let _place = self.turn(&self.places).await?;
        let resolved = match self.known(&digest) {
            Some(resolved) => resolved,
            None => self.look_up_again(reference, digest).await?,
        };
        // Given back whenever this is dropped.
        let claim = Arc::new(Claim::new(Arc::clone(self)));
        let fetch = self.fetch_layers(reference, &resolved, audience, &claim);
        let layers = timeout(self.limits.fetch, fetch).await.map_err(|_| {
            let seconds = self.limits.fetch.as_secs();
            Fault::unavailable(format!("its layers did not arrive in {seconds} s"))
        })??;
        let _building = self.turn(&self.builders).await?;
        audience.building();
        let most_nodes = self.limits.entries;
        let (tree, spools, contents_bytes) = spawn_blocking(move || assemble(layers, most_nodes))
            .await
            .map_err(|_| io::Error::other("applying the layers panicked"))??;
        claim.grow(block::most_bytes(&tree, contents_bytes)).await?;
        // Removed when it is dropped before it is published.
        let output = NamedTempFile::new_in(self.shelf.temporary())?;
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
            also: Vec::new(),
            compressed_bytes: resolved.manifest.compressed_bytes(),
            block_image_bytes,
            indexes: resolved.index.iter().map(Digest::to_string).collect(),
            config: resolved.config.run.clone(),
        };
        self.publish(digest, output, record, &resolved, &claim)
    }

    /// Waits for a place. Those who wait are served in the order in which they came.
    async fn turn<'a>(&self, places: &'a Semaphore) -> Result<SemaphorePermit<'a>, Fault> {
        let place = timeout(self.limits.queue, places.acquire()).await;
        let place = place.map_err(|_| {
            Fault::NoRoom("too many other images are being fetched at the moment".into())
        })?;
        Ok(place.map_err(io::Error::other)?)
    }

    /// The image is here when this returns. Nothing of it is, if it fails.
    fn publish(
        &self,
        digest: Digest,
        image: NamedTempFile,
        record: Record,
        resolved: &Resolved,
        claim: &Claim,
    ) -> Result<(), Fault> {
        // Held from the first file to the last word, so that nobody sees or removes half of it.
        let mut state = self.state();
        state.resolved.retain(|other| other.digest != digest);
        if state.stored.contains_key(&digest) {
            // Somebody had it from another registry in the meantime.
            return Ok(());
        }
        self.shelf.publish(&digest, image, &record)?;
        claim.keep(record.block_image_bytes);
        state
            .indexes
            .extend(resolved.index.map(|index| (index, digest)));
        state.stored.insert(digest, Stored::new(record));
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
        claim: &Arc<Claim>,
    ) -> Result<Vec<Layer>, Fault> {
        // Asked by the threads that read layers, which may block.
        let (runtime, claim) = (Handle::current(), Arc::clone(claim));
        let room = Box::new(move |bytes| runtime.block_on(claim.grow(bytes)));
        let budget = Arc::new(Budget::new(Arc::clone(&self.limits), room));
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
        let spool = tempfile::tempfile_in(self.shelf.temporary())?;
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
}

/// Puts the layers on top of each other. Also returns the bytes of all contents.
fn assemble(layers: Vec<Layer>, most_nodes: u64) -> Result<(Tree, Vec<File>, u64), Fault> {
    let mut tree = Tree::new(most_nodes);
    let mut spools = Vec::new();
    let mut contents_bytes = 0;
    for layer in layers {
        tree.apply(layer.entries)?;
        contents_bytes += layer.spool.metadata()?.len();
        spools.push(layer.spool);
    }
    Ok((tree, spools, contents_bytes))
}
