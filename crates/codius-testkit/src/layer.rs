//! One layer of an image: a tar archive made entry by entry, hostile ones included.
//!
//! Names are written exactly as given, also `../x` and `/x`: the tests of the image store need what
//! a well-behaved tar library refuses to write.

use std::io::Write;

use anyhow::{Context, Result};
use tar::{EntryType, Header};

/// How a layer travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// `tar+gzip`, as most images have it.
    #[default]
    Gzip,
    /// `tar+zstd` (OCI media types only).
    Zstd,
    /// `tar`.
    Plain,
}

/// One entry of a layer.
#[derive(Debug, Clone)]
pub struct Entry {
    path: Vec<u8>,
    kind: EntryType,
    link: Vec<u8>,
    contents: Vec<u8>,
    mode: u32,
    uid: u64,
    gid: u64,
    mtime: u64,
    device: Option<(u32, u32)>,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Entry {
    /// An entry of any kind; the shortcuts below serve most cases.
    pub fn new(kind: EntryType, path: impl AsRef<[u8]>, mode: u32) -> Self {
        Self {
            path: path.as_ref().to_vec(),
            kind,
            link: Vec::new(),
            contents: Vec::new(),
            mode,
            uid: 0,
            gid: 0,
            mtime: 0,
            device: None,
            xattrs: Vec::new(),
        }
    }

    /// A regular file.
    pub fn file(path: impl AsRef<[u8]>, mode: u32, contents: impl AsRef<[u8]>) -> Self {
        let mut entry = Self::new(EntryType::Regular, path, mode);
        entry.contents = contents.as_ref().to_vec();
        entry
    }

    /// A directory.
    pub fn dir(path: impl AsRef<[u8]>, mode: u32) -> Self {
        Self::new(EntryType::Directory, path, mode)
    }

    /// A symbolic link at `path` that says `target`.
    pub fn symlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        let mut entry = Self::new(EntryType::Symlink, path, 0o777);
        entry.link = target.as_ref().to_vec();
        entry
    }

    /// A hard link at `path` to the file at `target`.
    pub fn hard_link(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        let mut entry = Self::new(EntryType::Link, path, 0o644);
        entry.link = target.as_ref().to_vec();
        entry
    }

    /// A character device.
    pub fn char_device(path: impl AsRef<[u8]>, mode: u32, major: u32, minor: u32) -> Self {
        let mut entry = Self::new(EntryType::Char, path, mode);
        entry.device = Some((major, minor));
        entry
    }

    /// Owner, 0 and 0 if not said.
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    /// Seconds since 1970, 0 if not said.
    pub fn mtime(mut self, seconds: u64) -> Self {
        self.mtime = seconds;
        self
    }

    /// An extended attribute by its full name, such as `security.capability`.
    pub fn xattr(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.xattrs.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    fn write(&self, tar: &mut Vec<u8>) -> Result<()> {
        let mut extensions = Vec::new();
        for (name, value) in &self.xattrs {
            extensions.extend(pax_record(&format!("SCHILY.xattr.{name}"), value));
        }
        let mut header = Header::new_ustar();
        if !place(&mut header.as_old_mut().name, &self.path) {
            extensions.extend(pax_record("path", &self.path));
        }
        if !place(&mut header.as_old_mut().linkname, &self.link) {
            extensions.extend(pax_record("linkpath", &self.link));
        }
        if !extensions.is_empty() {
            let mut pax = Header::new_ustar();
            pax.set_entry_type(EntryType::XHeader);
            place(&mut pax.as_old_mut().name, b"PaxHeaders/x");
            pax.set_size(extensions.len() as u64);
            pax.set_mode(0o644);
            pax.set_cksum();
            append(tar, &pax, &extensions);
        }
        header.set_entry_type(self.kind);
        header.set_mode(self.mode);
        header.set_uid(self.uid);
        header.set_gid(self.gid);
        header.set_mtime(self.mtime);
        header.set_size(self.contents.len() as u64);
        if let Some((major, minor)) = self.device {
            header.set_device_major(major).context("device number")?;
            header.set_device_minor(minor).context("device number")?;
        }
        header.set_cksum();
        append(tar, &header, &self.contents);
        Ok(())
    }
}

/// A layer under construction: entries in the order given, duplicates included.
#[derive(Debug, Clone, Default)]
pub struct Layer {
    entries: Vec<Entry>,
    raw: Option<Vec<u8>>,
    packed: Option<Vec<u8>>,
    compression: Compression,
}

impl Layer {
    /// An empty layer.
    pub fn new() -> Self {
        Self::default()
    }

    /// A layer whose uncompressed bytes are given, for broken archives.
    pub fn raw(tar: impl Into<Vec<u8>>) -> Self {
        Self {
            raw: Some(tar.into()),
            ..Self::default()
        }
    }

    /// A layer whose bytes are given as they travel, too: for compressions that no tool writes.
    /// The compression only decides its media type.
    pub fn packed(tar: impl Into<Vec<u8>>, blob: impl Into<Vec<u8>>) -> Self {
        Self {
            packed: Some(blob.into()),
            ..Self::raw(tar)
        }
    }

    /// Adds any entry.
    pub fn entry(mut self, entry: Entry) -> Self {
        self.entries.push(entry);
        self
    }

    /// Adds a regular file of root.
    pub fn file(self, path: &str, mode: u32, contents: impl AsRef<[u8]>) -> Self {
        self.entry(Entry::file(path, mode, contents))
    }

    /// Adds a directory of root.
    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.entry(Entry::dir(path, mode))
    }

    /// Adds a symbolic link.
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(Entry::symlink(path, target))
    }

    /// Adds a hard link to a path of this or a lower layer.
    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(Entry::hard_link(path, target))
    }

    /// Removes what lower layers have at `path` (OCI image-spec, layer.md, whiteouts).
    pub fn whiteout(self, path: &str) -> Self {
        let marker = match path.rsplit_once('/') {
            Some((parent, name)) => format!("{parent}/.wh.{name}"),
            None => format!(".wh.{path}"),
        };
        self.file(&marker, 0o600, b"")
    }

    /// Hides everything that lower layers have below the directory `path`.
    pub fn opaque(self, path: &str) -> Self {
        self.file(&format!("{path}/.wh..wh..opq"), 0o600, b"")
    }

    /// Sets how the layer travels; gzip if not said.
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    pub(crate) fn compression_kind(&self) -> Compression {
        self.compression
    }

    /// The uncompressed archive.
    pub fn tar(&self) -> Result<Vec<u8>> {
        if let Some(raw) = &self.raw {
            return Ok(raw.clone());
        }
        let mut tar = Vec::new();
        for entry in &self.entries {
            entry.write(&mut tar)?;
        }
        tar.resize(tar.len() + 1024, 0);
        Ok(tar)
    }

    /// The blob as it travels.
    pub(crate) fn compress(&self, tar: &[u8]) -> Result<Vec<u8>> {
        if let Some(packed) = &self.packed {
            return Ok(packed.clone());
        }
        Ok(match self.compression {
            Compression::Plain => tar.to_vec(),
            Compression::Zstd => zstd::bulk::compress(tar, 3)?,
            Compression::Gzip => {
                let mut gzip =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
                gzip.write_all(tar)?;
                gzip.finish()?
            }
        })
    }
}

/// Copies `bytes` into a fixed field; false if they do not fit.
fn place(field: &mut [u8; 100], bytes: &[u8]) -> bool {
    let fits = bytes.len() <= field.len();
    let length = bytes.len().min(field.len());
    field[..length].copy_from_slice(&bytes[..length]);
    fits
}

fn append(tar: &mut Vec<u8>, header: &Header, contents: &[u8]) {
    tar.extend_from_slice(header.as_bytes());
    tar.extend_from_slice(contents);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

/// `LENGTH KEY=VALUE\n`, where LENGTH counts itself (POSIX pax).
fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = 3 + key.len() + value.len();
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    let mut record = format!("{length} {key}=").into_bytes();
    record.extend_from_slice(value);
    record.push(b'\n');
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pax_record_counts_its_own_length() {
        assert_eq!(pax_record("path", b"abc"), b"12 path=abc\n");
        // One byte more makes the length itself one digit longer.
        assert_eq!(pax_record("p", b"abc"), b"8 p=abc\n");
        assert_eq!(pax_record("p", b"abcd"), b"9 p=abcd\n");
        assert_eq!(pax_record("p", b"abcde"), b"11 p=abcde\n");
    }

    #[test]
    fn the_tar_crate_reads_back_what_a_layer_writes() -> Result<()> {
        let long = "d/".repeat(80) + "file";
        let layer = Layer::new()
            .dir("a", 0o750)
            .entry(
                Entry::file(&long, 0o4755, b"x")
                    .owner(7, 8)
                    .xattr("user.k", b"v"),
            )
            .symlink("s", "a")
            .whiteout("a/gone")
            .opaque("a");
        let tar = layer.tar()?;
        let mut archive = tar::Archive::new(&tar[..]);
        let mut names = Vec::new();
        for entry in archive.entries()? {
            let mut entry = entry?;
            names.push(entry.path()?.display().to_string());
            if names.len() == 2 {
                assert_eq!(entry.header().mode()?, 0o4755);
                assert_eq!(entry.header().uid()?, 7);
                let xattr = entry
                    .pax_extensions()?
                    .context("extensions")?
                    .next()
                    .context("one")??;
                assert_eq!((xattr.key()?, xattr.value()?), ("SCHILY.xattr.user.k", "v"));
            }
        }
        assert_eq!(names, ["a", &long, "s", "a/.wh.gone", "a/.wh..wh..opq"]);
        Ok(())
    }
}
