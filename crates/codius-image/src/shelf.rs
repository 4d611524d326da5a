//! The files of a store, and what is left of them after a crash.
//!
//! ```text
//! DIR/lock                  held while a store is open
//! DIR/images/HEX.squashfs   the block image
//! DIR/images/HEX.json       its record; written last, so its presence means "complete";
//!                           its time of modification is when the image was last used
//! DIR/tmp/                  what is being made; emptied at open
//! ```
//!
//! ```text
//! publish: image renamed into place ─▶ record renamed into place ─▶ here
//! remove:  record unlinked ─▶ image unlinked ─▶ gone
//! ```
//!
//! A process may be killed between any two of these steps. What it leaves is an image without a record
//! or a file in `tmp`; a power failure may also leave a record without its image. [`Shelf::open`]
//! removes all of it.
//!
//! The time of use is written without waiting for the disk: a crash of the machine loses some of it,
//! and then another image is removed first, no more.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File, FileTimes, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

use tempfile::NamedTempFile;

use crate::{
    digest::Digest,
    manifest::Record,
    store::{OpenError, VERSION},
};

/// Bytes of a record; what the limits of a config allow is less.
const RECORD_BYTES: u64 = 4 << 20;

/// The directory of a store.
#[derive(Debug)]
pub(crate) struct Shelf {
    images: PathBuf,
    temporary: PathBuf,
    /// Locked as long as the store is open.
    _lock: File,
}

/// A complete image, as found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) record: Record,
    pub(crate) used: SystemTime,
}

/// What was removed at open.
#[derive(Debug, Default, PartialEq, Eq)]
struct Leftovers {
    /// Files of interrupted pulls.
    half_made: u32,
    images_without_record: u32,
    records_without_image: u32,
    /// Images that are shorter or longer than their record says.
    wrong_size: u32,
    /// Records that cannot be read or are another version's.
    unreadable: u32,
    /// What nobody of us has put there.
    strange: u32,
}

impl Shelf {
    /// Opens a directory, made if it is not there, and puts it in order.
    pub(crate) fn open(directory: &Path) -> Result<(Self, HashMap<Digest, Found>), OpenError> {
        let failed = |source| OpenError::Directory {
            path: directory.to_owned(),
            source,
        };
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
        let mut leftovers = Leftovers::default();
        leftovers.empty(&temporary).map_err(failed)?;
        let found = leftovers.sweep(&images).map_err(failed)?;
        if leftovers != Leftovers::default() {
            tracing::warn!(
                half_made = leftovers.half_made,
                images_without_record = leftovers.images_without_record,
                records_without_image = leftovers.records_without_image,
                wrong_size = leftovers.wrong_size,
                unreadable = leftovers.unreadable,
                strange = leftovers.strange,
                kept = found.len(),
                "image store put in order; what was removed is fetched again when it is needed"
            );
        }
        let shelf = Self {
            images,
            temporary,
            _lock: lock,
        };
        Ok((shelf, found))
    }

    pub(crate) fn temporary(&self) -> &Path {
        &self.temporary
    }

    pub(crate) fn image_path(&self, digest: &Digest) -> PathBuf {
        self.images.join(format!("{}.squashfs", digest.hex()))
    }

    fn record_path(&self, digest: &Digest) -> PathBuf {
        self.images.join(format!("{}.json", digest.hex()))
    }

    /// Puts a new image beside the others. If that fails, nothing of it is left.
    pub(crate) fn publish(
        &self,
        digest: &Digest,
        image: NamedTempFile,
        record: &Record,
    ) -> io::Result<()> {
        let path = self.image_path(digest);
        image.persist(&path).map_err(|error| error.error)?;
        let recorded = self.write_record(digest, record, SystemTime::now());
        if recorded.is_err() {
            let _ = fs::remove_file(path);
        }
        recorded
    }

    /// Writes the record of an image, anew if there is one.
    pub(crate) fn write_record(
        &self,
        digest: &Digest,
        record: &Record,
        used: SystemTime,
    ) -> io::Result<()> {
        let mut file = NamedTempFile::new_in(&self.temporary)?;
        serde_json::to_writer_pretty(&mut file, record)?;
        file.write_all(b"\n")?;
        let times = FileTimes::new().set_modified(used);
        file.as_file().set_times(times)?;
        file.as_file().sync_all()?;
        file.persist(self.record_path(digest))
            .map_err(|error| error.error)?;
        File::open(&self.images)?.sync_all()
    }

    /// Remembers when an image was used, as well as that goes.
    pub(crate) fn mark_used(&self, digest: &Digest, at: SystemTime) {
        let marked = File::options()
            .write(true)
            .open(self.record_path(digest))
            .and_then(|record| record.set_times(FileTimes::new().set_modified(at)));
        if let Err(error) = marked {
            tracing::debug!(%digest, %error, "use of an image not recorded");
        }
    }

    /// Removes an image: the record first, so that the rest is found at the next start if this ends
    /// in between. A machine that has the image open keeps its content.
    pub(crate) fn remove(&self, digest: &Digest) -> io::Result<()> {
        fs::remove_file(self.record_path(digest))?;
        fs::remove_file(self.image_path(digest))
    }
}

impl Leftovers {
    /// Empties the directory of what is being made.
    fn empty(&mut self, temporary: &Path) -> io::Result<()> {
        match fs::read_dir(temporary) {
            Ok(files) => {
                for file in files {
                    remove_any(&file?.path())?;
                    self.half_made += 1;
                }
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir(temporary),
            Err(error) => Err(error),
        }
    }

    /// Finds the complete images of a directory and removes everything else in it.
    fn sweep(&mut self, images: &Path) -> io::Result<HashMap<Digest, Found>> {
        let mut paths = Vec::new();
        for file in fs::read_dir(images)? {
            paths.push(file?.path());
        }
        let (mut found, mut judged) = (HashMap::new(), HashSet::new());
        // Records first: an image is judged by whether its record is good.
        for path in paths.iter().filter(|path| has_extension(path, "json")) {
            let Some(digest) = digest_in(path) else {
                continue;
            };
            judged.insert(digest);
            if let Some(complete) = self.read(path, &digest)? {
                found.insert(digest, complete);
            }
        }
        for path in paths {
            let digest = digest_in(&path);
            if digest.is_some_and(|digest| found.contains_key(&digest)) {
                continue;
            }
            match digest {
                // Counted by what is wrong with its record.
                Some(digest) if judged.contains(&digest) => {}
                Some(_) => self.images_without_record += 1,
                None => self.strange += 1,
            }
            remove_any(&path)?;
        }
        Ok(found)
    }

    /// The record at a path, if it is one of this version and its block image is there in full.
    fn read(&mut self, path: &Path, digest: &Digest) -> io::Result<Option<Found>> {
        let metadata = fs::symlink_metadata(path)?;
        let record = if metadata.is_file() && metadata.len() <= RECORD_BYTES {
            serde_json::from_slice::<Record>(&fs::read(path)?).ok()
        } else {
            None
        };
        let record = record
            .filter(|record| record.version == VERSION && record.digest == digest.to_string());
        let Some(record) = record else {
            self.unreadable += 1;
            return Ok(None);
        };
        let image = fs::symlink_metadata(path.with_extension("squashfs"));
        match image.ok().filter(fs::Metadata::is_file) {
            None => self.records_without_image += 1,
            Some(image) if image.len() != record.block_image_bytes => self.wrong_size += 1,
            Some(_) => {
                let used = metadata.modified()?;
                return Ok(Some(Found { record, used }));
            }
        }
        Ok(None)
    }
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|it| it == extension)
}

/// Whose file this is, if it is named as ours are.
fn digest_in(path: &Path) -> Option<Digest> {
    if !has_extension(path, "json") && !has_extension(path, "squashfs") {
        return None;
    }
    let stem = path.file_stem()?.to_str()?;
    format!("sha256:{stem}").parse().ok()
}

fn remove_any(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    }
}
