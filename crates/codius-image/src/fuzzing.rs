//! What the fuzz targets in `fuzz/` reach of this crate. Nobody else uses it.

use std::{
    collections::HashSet,
    fs::File,
    io::{Cursor, Read, Seek},
    sync::Arc,
};

use crate::{
    archive,
    digest::Digest,
    fault::Fault,
    layer::{self, Budget, EntryKind},
    limits::ImageLimits,
    manifest::{self, Document},
    place::clean,
    reference::Reference,
    registry::Challenge,
    tree::Tree,
};

/// Small enough that the bounds are reached by a fuzzer's inputs.
fn limits() -> ImageLimits {
    ImageLimits {
        uncompressed_bytes: 1 << 20,
        file_bytes: 64 << 10,
        entries: 200,
        metadata_bytes: 64 << 10,
        ..ImageLimits::default()
    }
}

fn read(bytes: &[u8], budget: &Budget) -> Result<layer::Layer, Fault> {
    let spool = tempfile::tempfile()?;
    layer::read(
        Cursor::new(bytes.to_vec()),
        bytes.len() as u64,
        spool,
        budget,
    )
}

fn budget(limits: ImageLimits) -> Budget {
    Budget::new(Arc::new(limits), Box::new(|_| Ok(())))
}

/// Reads layers, puts them on top of each other and writes the archive for `sqfstar`: what comes out
/// is clean, whatever went in.
///
/// # Panics
///
/// If it is not.
pub fn layers(blobs: &[Vec<u8>]) {
    let together = budget(limits());
    let mut tree = Tree::new(limits().entries);
    let mut spools: Vec<File> = Vec::new();
    for blob in blobs {
        let Ok(read) = read(blob, &together) else {
            return;
        };
        spools.push(read.spool);
        if tree.apply(read.entries).is_err() {
            return;
        }
    }
    assert!(tree.nodes() as u64 <= limits().entries + 1);
    let mut output = tempfile::tempfile().expect("a file");
    let sink = output.try_clone().expect("a second handle");
    if archive::write(&tree, &spools, sink).is_err() {
        return;
    }
    let mut written = Vec::new();
    output.rewind().expect("it is a file");
    output.read_to_end(&mut written).expect("it is a file");
    let roomy = ImageLimits {
        ratio_free_bytes: u64::MAX,
        ..ImageLimits::default()
    };
    let again = self::read(&written, &budget(roomy)).expect("what we write can be read");
    let mut seen: HashSet<Box<[u8]>> = HashSet::from([(*b"").into()]);
    for entry in &again.entries {
        assert_eq!(clean(&entry.path).ok().as_ref(), Some(&entry.path));
        let parent = entry
            .path
            .iter()
            .rposition(|byte| *byte == b'/')
            .unwrap_or(0);
        assert!(seen.contains(&entry.path[..parent]), "a parent comes first");
        match &entry.kind {
            EntryKind::HardLink(target) => {
                assert!(seen.contains(target), "what it names came first")
            }
            EntryKind::Directory
            | EntryKind::File { .. }
            | EntryKind::Symlink(_)
            | EntryKind::Fifo => {}
            EntryKind::Dropped | EntryKind::Whiteout | EntryKind::Opaque => {
                panic!("{:?} is no entry of a block image", entry.kind)
            }
        }
        assert!(seen.insert(entry.path.clone()), "a name comes once");
    }
}

/// Reads a manifest or index, and a config: what is taken keeps to the limits.
///
/// # Panics
///
/// If it does not.
pub fn documents(bytes: &[u8]) {
    let limits = ImageLimits::default();
    if let Ok(Document::Image(image)) = manifest::parse_document(bytes, &limits) {
        assert!(image.layers.len() <= limits.layers);
        assert!(image.compressed_bytes() <= limits.compressed_bytes);
        assert!(image.config.size <= limits.config_bytes);
    }
    for layers in 0..3 {
        if let Ok(config) = manifest::parse_config(bytes, layers) {
            assert_eq!(config.diff_ids.len(), layers);
        }
    }
}

/// Reads a `WWW-Authenticate` header.
///
/// # Panics
///
/// If what is read cannot be written as a header again.
pub fn challenge(text: &str) {
    if let Some(challenge) = Challenge::parse(text) {
        let Challenge {
            realm,
            service,
            scope,
        } = challenge;
        for value in [Some(realm), service, scope].into_iter().flatten() {
            assert!(text.contains(&value));
        }
    }
}

/// Reads a reference: its complete form means the same again, and patterns made of it cover it.
///
/// # Panics
///
/// If not.
pub fn reference(text: &str) {
    if let Ok(pattern) = text.parse::<crate::Pattern>() {
        assert_eq!(pattern.to_string(), text);
        assert_eq!(text.parse().as_ref(), Ok(&pattern));
    }
    let Ok(reference) = text.parse::<Reference>() else {
        return;
    };
    let shown = reference.to_string();
    let again: Reference = shown.parse().expect("its own form");
    assert_eq!(again.to_string(), shown);
    assert_eq!(again.identifier(), reference.identifier());
    let domain = reference.domain();
    let named = [
        "*".to_owned(),
        format!("{domain}/{}", reference.repository()),
        format!("{domain}/*"),
    ];
    for pattern in named {
        // A registry of one word is a repository of Docker's in patterns.
        if let Ok(pattern) = pattern.parse::<crate::Pattern>() {
            assert!(pattern.covers(text), "{pattern}");
        }
    }
    if let Some(digest) = reference.digest() {
        let digest: Digest = digest;
        let pattern: crate::Pattern = digest.to_string().parse().expect("a digest is a pattern");
        assert!(pattern.covers(text));
    }
}
