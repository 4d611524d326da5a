//! How far the images of a pod are.

use std::sync::{Arc, Mutex, PoisonError};

use super::{StartPhase, StartProgress};
use crate::{PullProgress, ResolvedImage};

/// The pulls of one pod's images, summed up. An image that several containers share counts once.
pub(super) struct Pulls {
    done: Mutex<Vec<(u64, u64)>>,
    progress: Arc<dyn StartProgress>,
}

pub(super) struct Pull {
    pub(super) index: usize,
    pub(super) pulls: Arc<Pulls>,
}

impl Pulls {
    pub(super) fn new(images: &[ResolvedImage], progress: Arc<dyn StartProgress>) -> Arc<Self> {
        let first = |index: usize| {
            images[..index]
                .iter()
                .all(|earlier| earlier.digest != images[index].digest)
        };
        let done = images
            .iter()
            .enumerate()
            .map(|(index, image)| {
                (
                    0,
                    if image.cached || !first(index) {
                        0
                    } else {
                        image.compressed_bytes
                    },
                )
            })
            .collect();
        Arc::new(Self {
            done: Mutex::new(done),
            progress,
        })
    }
}

impl PullProgress for Pull {
    fn pulled(&self, bytes: u64, _of: u64) {
        let (bytes, of) = {
            let mut done = self
                .pulls
                .done
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let (mine, of) = &mut done[self.index];
            *mine = bytes.min(*of);
            done.iter()
                .fold((0, 0), |(bytes, all), (b, o)| (bytes + b, all + o))
        };
        if of > 0 {
            self.pulls.progress.phase(StartPhase::Pulling { bytes, of });
        }
    }

    fn building(&self) {
        self.pulls.progress.phase(StartPhase::Building);
    }
}
