//! The disk that images may take: a budget for all of them together, and a part of the disk that stays
//! free for everything else.
//!
//! Whoever writes takes room first, in a [`Claim`], and gives it back by dropping that. A claim becomes
//! the room of an image that is here by [`Claim::keep`]. If there is too little, images are removed
//! that nobody needs, least recently used first ([`choose`]); if that is not enough, nothing is removed.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use crate::{digest::Digest, fault::Fault, store::Inner};

/// Bytes of the disk, counted.
#[derive(Debug)]
pub(crate) struct Room {
    most: u64,
    floor: u64,
    /// On the disk in question.
    directory: PathBuf,
    taken: AtomicU64,
}

/// How much is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Short {
    Budget(u64),
    Disk(u64),
}

impl Short {
    pub(crate) fn bytes(self) -> u64 {
        match self {
            Self::Budget(bytes) | Self::Disk(bytes) => bytes,
        }
    }
}

impl Room {
    pub(crate) fn new(most: u64, floor: u64, directory: PathBuf, taken: u64) -> Self {
        Self {
            most,
            floor,
            directory,
            taken: AtomicU64::new(taken),
        }
    }

    pub(crate) fn most(&self) -> u64 {
        self.most
    }

    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Whether so much more may be written. Takes nothing.
    pub(crate) fn look(&self, bytes: u64) -> io::Result<Result<(), Short>> {
        let wanted = self.taken().saturating_add(bytes);
        if wanted > self.most {
            return Ok(Err(Short::Budget(wanted - self.most)));
        }
        let disk = rustix::fs::statvfs(&self.directory)?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let wanted = self.floor.saturating_add(bytes);
        Ok(if wanted > free {
            Err(Short::Disk(wanted - free))
        } else {
            Ok(())
        })
    }

    /// Takes room, if there is.
    pub(crate) fn take(&self, bytes: u64) -> io::Result<Result<(), Short>> {
        let looked = self.look(bytes)?;
        if looked.is_ok() {
            let before = self.taken.fetch_add(bytes, Ordering::Relaxed);
            // Somebody else may have taken it since.
            if before.saturating_add(bytes) > self.most {
                self.give(bytes);
                return Ok(Err(Short::Budget(before.saturating_add(bytes) - self.most)));
            }
        }
        Ok(looked)
    }

    pub(crate) fn give(&self, bytes: u64) {
        self.taken.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Room that something in the making has taken.
pub(crate) struct Claim {
    inner: Arc<Inner>,
    bytes: AtomicU64,
}

impl Claim {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        Self {
            inner,
            bytes: AtomicU64::new(0),
        }
    }

    /// Takes more, and removes other images for it if need be.
    pub(crate) async fn grow(&self, bytes: u64) -> Result<(), Fault> {
        let most = self.inner.room.most();
        if self.bytes.load(Ordering::Relaxed).saturating_add(bytes) > most {
            return Err(Fault::too_large(format!(
                "while it is made it takes more than {most} bytes on disk, which is all that this \
                 host has for images"
            )));
        }
        self.inner.take_room(bytes).await?;
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Of the room taken, so much is for good: that of an image that is here now.
    pub(crate) fn keep(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.inner.room.give(*self.bytes.get_mut());
    }
}

/// An image that may be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) digest: Digest,
    pub(crate) used: SystemTime,
    pub(crate) bytes: u64,
}

/// The least recently used images that together have so many bytes; none if all of them have not.
pub(crate) fn choose(mut candidates: Vec<Candidate>, bytes: u64) -> Option<Vec<Digest>> {
    candidates.sort_by_key(|candidate| (candidate.used, candidate.digest));
    let (mut chosen, mut sum) = (Vec::new(), 0u64);
    for candidate in candidates {
        if sum >= bytes {
            break;
        }
        sum = sum.saturating_add(candidate.bytes);
        chosen.push(candidate.digest);
    }
    (sum >= bytes).then_some(chosen)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn candidate(number: u8, used: u64, bytes: u64) -> Candidate {
        Candidate {
            digest: Digest::of(&[number]),
            used: SystemTime::UNIX_EPOCH + Duration::from_secs(used),
            bytes,
        }
    }

    #[test]
    fn the_least_recently_used_go_first_and_no_more_than_needed() {
        let all = vec![
            candidate(1, 30, 10),
            candidate(2, 10, 10),
            candidate(3, 20, 10),
        ];
        let [one, two, three] = [1, 2, 3].map(|number| Digest::of(&[number]));
        assert_eq!(choose(all.clone(), 0), Some(vec![]));
        assert_eq!(choose(all.clone(), 10), Some(vec![two]));
        assert_eq!(choose(all.clone(), 11), Some(vec![two, three]));
        assert_eq!(choose(all.clone(), 30), Some(vec![two, three, one]));
        assert_eq!(choose(all, 31), None);
    }

    proptest! {
        /// What is chosen is enough, and without its last it would not be.
        #[test]
        fn what_is_chosen_is_enough_and_no_more(
            images in prop::collection::vec((0u64..50, 0u64..100), 0..20), bytes in 0u64..1000,
        ) {
            let all: Vec<_> = (0u8..)
                .zip(&images)
                .map(|(number, (used, bytes))| candidate(number, *used, *bytes))
                .collect();
            let bytes_of = |digest: &Digest| {
                all.iter().find(|it| it.digest == *digest).map_or(0, |it| it.bytes)
            };
            let total: u64 = all.iter().map(|it| it.bytes).sum();
            match choose(all.clone(), bytes) {
                None => prop_assert!(total < bytes),
                Some(chosen) => {
                    let sum: u64 = chosen.iter().map(bytes_of).sum();
                    prop_assert!(sum >= bytes);
                    if let Some(last) = chosen.last() {
                        prop_assert!(sum - bytes_of(last) < bytes);
                    }
                }
            }
        }
    }
}
