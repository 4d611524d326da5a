//! One layer: a compressed tar archive that is read once, while it arrives.
//!
//! File contents go one after the other into a spool file; everything else becomes a list of
//! entries. Reading is strict where two readers could disagree (sizes, names, unknown types) and
//! lenient where real archives are sloppy (empty numeric fields, a missing end marker).
//!
//! Formats: ustar, GNU long names, pax extended headers (POSIX.1-2017 pax, "pax Interchange
//! Format"). Sparse files are refused: no tool that makes image layers writes them.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, Read, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{
    digest::{Digest, Hasher},
    fault::Fault,
    header::{BLOCK, Extensions, Header, Xattr, clamped, id, padding, until_nul},
    limits::ImageLimits,
    place::{PATH_BYTES, Place, clean, shown},
};

/// Buffer between decompression and the spool file.
const BUFFER: usize = 256 << 10;
/// Room on disk is asked for in steps of at least so many bytes.
const ROOM_BYTES: u64 = 8 << 20;
/// Bytes of one extended header. Attribute values are at most 64 KiB in Linux.
const EXTENSION_BYTES: u64 = 1 << 20;
/// What an entry costs in memory besides its names; an estimate on the safe side.
const ENTRY_OVERHEAD: u64 = 128;
/// Window of a zstd frame, as a power of two: 32 MiB, four times what every decoder should accept
/// (RFC 8878 3.1.1.1.2) and enough for all but zstd's two highest levels.
const ZSTD_WINDOW_LOG: u32 = 25;

/// A layer that has been read.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) entries: Vec<Entry>,
    /// The contents of all its files, one after the other.
    pub(crate) spool: File,
    /// Of the uncompressed archive.
    pub(crate) diff_id: Digest,
}

/// One entry. The path is relative, without empty, `.` or `..` parts; empty for the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: Box<[u8]>,
    pub(crate) kind: EntryKind,
    pub(crate) meta: Meta,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EntryKind {
    Directory,
    /// Where its contents are in the spool.
    File {
        offset: u64,
        size: u64,
    },
    /// What the link says.
    Symlink(Box<[u8]>),
    /// The path of the file it is one with, in the form of `Entry::path`.
    HardLink(Box<[u8]>),
    Fifo,
    /// A device or socket: takes the place of what was there, and is not made.
    Dropped,
    /// What lower layers have at `path` is gone.
    Whiteout,
    /// What lower layers have below the directory `path` is gone.
    Opaque,
}

/// What a file is, besides its contents.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Meta {
    /// Permission bits, set-user-id, set-group-id and sticky included.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970.
    pub(crate) mtime: u32,
    pub(crate) xattrs: Vec<Xattr>,
}

/// Asked before so many bytes more are written to disk. Blocks.
pub(crate) type AskForRoom = Box<dyn Fn(u64) -> Result<(), Fault> + Send + Sync>;

/// What all layers of one image use together.
pub(crate) struct Budget {
    limits: Arc<ImageLimits>,
    room: AskForRoom,
    uncompressed: AtomicU64,
    entries: AtomicU64,
    metadata: AtomicU64,
}

impl Budget {
    pub(crate) fn new(limits: Arc<ImageLimits>, room: AskForRoom) -> Self {
        Self {
            limits,
            room,
            uncompressed: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            metadata: AtomicU64::new(0),
        }
    }

    fn uncompressed(&self, bytes: u64) -> Result<(), Fault> {
        let limit = self.limits.uncompressed_bytes;
        take(&self.uncompressed, bytes, limit)
            .ok_or_else(|| Fault::too_large(format!("it has more than {limit} bytes unpacked")))
    }

    fn entry(&self) -> Result<(), Fault> {
        let limit = self.limits.entries;
        take(&self.entries, 1, limit)
            .ok_or_else(|| Fault::too_large(format!("it has more than {limit} files")))
    }

    fn metadata(&self, bytes: u64) -> Result<(), Fault> {
        let limit = self.limits.metadata_bytes;
        take(&self.metadata, bytes, limit).ok_or_else(|| {
            Fault::too_large(format!(
                "its names and attributes have more than {limit} bytes"
            ))
        })
    }
}

/// Adds to a total; `None` if it is then over the limit.
fn take(total: &AtomicU64, amount: u64, limit: u64) -> Option<()> {
    let before = total.fetch_add(amount, Ordering::Relaxed);
    before
        .checked_add(amount)
        .filter(|after| *after <= limit)
        .map(|_| ())
}

/// The blocking end of a channel of pieces. Its end is the end of the layer, or of the download.
#[derive(Debug)]
pub(crate) struct Pieces {
    channel: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Pieces {
    pub(crate) fn new(channel: mpsc::Receiver<Bytes>) -> Self {
        Self {
            channel,
            piece: Bytes::new(),
        }
    }
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.piece.is_empty() {
            match self.channel.blocking_recv() {
                Some(piece) => self.piece = piece,
                None => break,
            }
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, amount: usize) {
        let _ = self.piece.split_to(amount);
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(buffer.len());
        buffer[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

/// Reads a whole layer of `compressed_bytes`, to the end of its stream. Blocks.
pub(crate) fn read(
    blob: impl BufRead + Send + 'static,
    compressed_bytes: u64,
    spool: File,
    budget: &Budget,
) -> Result<Layer, Fault> {
    let limits = &budget.limits;
    let most = compressed_bytes
        .saturating_mul(limits.ratio)
        .max(limits.ratio_free_bytes);
    let mut source = Source {
        reader: BufReader::with_capacity(BUFFER, decoder(blob)?),
        hasher: Hasher::new(),
        consumed: 0,
        most,
        ratio: limits.ratio,
        budget,
    };
    let mut spool = Spool {
        file: BufWriter::with_capacity(BUFFER, spool),
        length: 0,
        granted: 0,
    };
    let entries = read_archive(&mut source, &mut spool)?;
    source.drain()?;
    Ok(Layer {
        entries,
        spool: spool
            .file
            .into_inner()
            .map_err(|error| Fault::Host(error.into_error()))?,
        diff_id: source.hasher.finish(),
    })
}

/// Finds the compression by looking, as containerd does.
fn decoder(mut blob: impl BufRead + Send + 'static) -> Result<Box<dyn Read + Send>, Fault> {
    // A piece may be shorter than the magic number, so it is read and put back.
    let mut magic = Vec::new();
    blob.by_ref().take(4).read_to_end(&mut magic)?;
    let blob = io::Cursor::new(magic.clone()).chain(blob);
    Ok(match magic[..] {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(blob)),
        [0x28, 0xb5, 0x2f, 0xfd] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(blob)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
        _ => Box::new(blob),
    })
}

/// The uncompressed archive, counted and hashed.
struct Source<'a> {
    reader: BufReader<Box<dyn Read + Send>>,
    hasher: Hasher,
    consumed: u64,
    /// What the ratio allows this layer.
    most: u64,
    ratio: u64,
    budget: &'a Budget,
}

impl Source<'_> {
    /// The next bytes, at most `limit` of them; empty only at the end.
    fn next(&mut self, limit: u64) -> Result<&[u8], Fault> {
        let available = self
            .reader
            .fill_buf()
            .map_err(|error| Fault::invalid(format!("a layer cannot be decompressed: {error}")))?;
        let length = available
            .len()
            .min(usize::try_from(limit).unwrap_or(usize::MAX));
        Ok(&available[..length])
    }

    /// Marks bytes given by `next` as read.
    fn advance(&mut self, length: usize) -> Result<(), Fault> {
        // The bytes are still in the buffer; hashing them here keeps `next` free to look ahead.
        self.hasher.update(&self.reader.buffer()[..length]);
        self.reader.consume(length);
        self.consumed += length as u64;
        self.budget.uncompressed(length as u64)?;
        if self.consumed > self.most {
            return Err(Fault::too_large(format!(
                "a layer unpacks to more than {} times its size",
                self.ratio
            )));
        }
        Ok(())
    }

    /// Passes exactly `length` bytes to `each`, in pieces.
    fn pass(
        &mut self,
        mut length: u64,
        mut each: impl FnMut(&[u8]) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        while length > 0 {
            let bytes = self.next(length)?;
            if bytes.is_empty() {
                return Err(Fault::invalid("a layer's archive ends early"));
            }
            each(bytes)?;
            let passed = bytes.len();
            self.advance(passed)?;
            length -= passed as u64;
        }
        Ok(())
    }

    /// The next header block; `None` at the end of the stream.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, Fault> {
        if self.next(1)?.is_empty() {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        let mut filled = 0;
        self.pass(BLOCK as u64, |bytes| {
            block[filled..filled + bytes.len()].copy_from_slice(bytes);
            filled += bytes.len();
            Ok(())
        })?;
        Ok(Some(block))
    }

    /// The contents of an extended header.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>, Fault> {
        if size > EXTENSION_BYTES {
            return Err(Fault::too_large(
                "a layer has an extended header of more than 1 MiB",
            ));
        }
        // Several may come before one entry, so each is charged for when it comes.
        self.budget.metadata(size)?;
        let mut contents = Vec::new();
        self.pass(size, |bytes| {
            contents.extend_from_slice(bytes);
            Ok(())
        })?;
        self.skip(padding(size))?;
        Ok(contents)
    }

    fn skip(&mut self, length: u64) -> Result<(), Fault> {
        self.pass(length, |_| Ok(()))
    }

    /// Reads what follows the end marker, which counts like everything else.
    fn drain(&mut self) -> Result<(), Fault> {
        loop {
            let length = self.next(u64::MAX)?.len();
            if length == 0 {
                return Ok(());
            }
            self.advance(length)?;
        }
    }
}

/// Where the contents of files go.
struct Spool {
    file: BufWriter<File>,
    length: u64,
    /// For how much there is room.
    granted: u64,
}

impl Spool {
    /// Writes what has arrived, not what a header promises: a promise takes no room from others.
    fn write(&mut self, bytes: &[u8], room: &AskForRoom) -> Result<(), Fault> {
        let length = self.length + bytes.len() as u64;
        if length > self.granted {
            let more = (length - self.granted).max(ROOM_BYTES);
            room(more)?;
            self.granted += more;
        }
        self.file.write_all(bytes)?;
        self.length = length;
        Ok(())
    }
}

fn read_archive(source: &mut Source<'_>, spool: &mut Spool) -> Result<Vec<Entry>, Fault> {
    let mut entries = Vec::new();
    let mut extensions = Extensions::default();
    while let Some(block) = source.block()? {
        if block == [0; BLOCK] {
            break;
        }
        let header = Header(&block);
        header.check()?;
        match header.kind() {
            b'x' => {
                let size = header.size()?;
                extensions.read_pax(&source.extension(size)?)?;
            }
            // Global headers carry comments; image tools do not heed them either.
            b'g' => {
                let size = header.size()?;
                source.extension(size)?;
            }
            b'L' => extensions.path = Some(until_nul(&source.extension(header.size()?)?).to_vec()),
            b'K' => extensions.link = Some(until_nul(&source.extension(header.size()?)?).to_vec()),
            _ => {
                source.budget.entry()?;
                let extensions = std::mem::take(&mut extensions);
                entries.extend(read_entry(&header, extensions, source, spool)?);
            }
        }
    }
    Ok(entries)
}

fn read_entry(
    header: &Header<'_>,
    extensions: Extensions,
    source: &mut Source<'_>,
    spool: &mut Spool,
) -> Result<Option<Entry>, Fault> {
    let name = extensions.path.unwrap_or_else(|| header.path());
    let link = extensions.link.unwrap_or_else(|| header.link());
    let says_directory = name.ends_with(b"/");
    let place = Place::of(&name)?;
    // Links, directories and devices have no contents, whatever their size field says.
    let size = match header.kind() {
        b'1'..=b'6' => 0,
        _ => match extensions.size {
            Some(size) => size,
            None => header.size()?,
        },
    };
    if size > source.budget.limits.file_bytes {
        return Err(Fault::too_large(format!(
            "it has a file of {size} bytes, the most allowed are {}",
            source.budget.limits.file_bytes
        )));
    }
    let (path, kind) = match place {
        Place::Nothing => {
            source.skip(size + padding(size))?;
            return Ok(None);
        }
        Place::Whiteout(path) => (path, EntryKind::Whiteout),
        Place::Opaque(path) => (path, EntryKind::Opaque),
        Place::Ordinary(path) => {
            let kind = match header.kind() {
                // Before ustar, a directory was a file with a slash at its end.
                0 | b'0' if says_directory => EntryKind::Directory,
                0 | b'0' | b'7' => EntryKind::File {
                    offset: spool.length,
                    size,
                },
                b'1' => EntryKind::HardLink(clean(&link)?),
                b'2' if link.is_empty() || link.len() > PATH_BYTES || link.contains(&0) => {
                    return Err(Fault::invalid(format!(
                        "it has a symbolic link {} without a usable target",
                        shown(&path)
                    )));
                }
                b'2' => EntryKind::Symlink(link.into()),
                b'5' => EntryKind::Directory,
                b'6' => EntryKind::Fifo,
                b'3' | b'4' => EntryKind::Dropped,
                b'S' => return Err(Fault::invalid("a layer has sparse files")),
                kind => {
                    return Err(Fault::invalid(format!(
                        "a layer has an entry of the unknown type {:?}",
                        char::from(kind)
                    )));
                }
            };
            (path, kind)
        }
    };
    if let EntryKind::File { .. } = kind {
        let budget = source.budget;
        source.pass(size, |bytes| spool.write(bytes, &budget.room))?;
        source.skip(padding(size))?;
    } else {
        source.skip(size + padding(size))?;
    }
    let meta = Meta {
        mode: u32::try_from(header.number(100..108)? & 0o7777).unwrap_or_default(),
        uid: id(extensions.uid.map_or_else(|| header.number(108..116), Ok)?)?,
        gid: id(extensions.gid.map_or_else(|| header.number(116..124), Ok)?)?,
        mtime: match extensions.mtime {
            Some(mtime) => mtime,
            None => clamped(header.number(136..148)?),
        },
        xattrs: extensions.xattrs,
    };
    let entry = Entry { path, kind, meta };
    source.budget.metadata(entry.weight())?;
    Ok(Some(entry))
}

impl Entry {
    fn weight(&self) -> u64 {
        let link = match &self.kind {
            EntryKind::Symlink(target) | EntryKind::HardLink(target) => target.len(),
            EntryKind::Directory
            | EntryKind::File { .. }
            | EntryKind::Fifo
            | EntryKind::Dropped
            | EntryKind::Whiteout
            | EntryKind::Opaque => 0,
        };
        let xattrs: usize = self
            .meta
            .xattrs
            .iter()
            .map(|xattr| xattr.name.len() + xattr.value.len())
            .sum();
        (self.path.len() + link + xattrs) as u64 + ENTRY_OVERHEAD
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_bytes(bytes: Vec<u8>) -> Result<Layer, Fault> {
        let budget = Budget::new(Arc::new(ImageLimits::default()), Box::new(|_| Ok(())));
        let length = bytes.len() as u64;
        read(
            io::Cursor::new(bytes),
            length,
            tempfile::tempfile()?,
            &budget,
        )
    }

    fn archive() -> Vec<u8> {
        codius_testkit::Layer::new()
            .dir("d", 0o755)
            .file("d/f", 0o644, "contents")
            .file(&"n".repeat(150), 0o644, "x".repeat(600))
            .symlink("s", "d")
            .hard_link("h", "d/f")
            .whiteout("w")
            .tar()
            .expect("an archive")
    }

    #[test]
    fn an_archive_is_read_into_entries_and_contents() {
        let layer = read_bytes(archive()).expect("a good archive");
        let kinds: Vec<_> = layer.entries.iter().map(|entry| &entry.kind).collect();
        assert_eq!(
            kinds,
            [
                &EntryKind::Directory,
                &EntryKind::File { offset: 0, size: 8 },
                &EntryKind::File {
                    offset: 8,
                    size: 600
                },
                &EntryKind::Symlink((*b"d").into()),
                &EntryKind::HardLink((*b"d/f").into()),
                &EntryKind::Whiteout,
            ]
        );
        assert_eq!(layer.diff_id, Digest::of(&archive()));
        assert_eq!(
            layer.spool.metadata().map(|file| file.len()).ok(),
            Some(608)
        );
    }

    #[test]
    fn an_archive_may_end_without_its_marker_but_not_inside_an_entry() {
        let whole = archive();
        let marker = whole.len() - 1024;
        assert_eq!(
            read_bytes(whole[..marker].to_vec())
                .map(|layer| layer.entries.len())
                .ok(),
            Some(6)
        );
        for cut in [1, 511, 513, 1025, marker - 1] {
            assert!(read_bytes(whole[..cut].to_vec()).is_err(), "{cut}");
        }
    }

    proptest! {
        /// A changed byte makes another layer or an error; never a panic, never a layer with the
        /// digest of the right one.
        #[test]
        fn changed_archives_are_read_or_refused(at in 0usize..8192, value: u8) {
            let mut bytes = archive();
            let at = at % bytes.len();
            prop_assume!(bytes[at] != value);
            bytes[at] = value;
            if let Ok(layer) = read_bytes(bytes) {
                prop_assert_ne!(layer.diff_id, Digest::of(&archive()));
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(magic in 0usize..3, bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let magic: &[u8] = [&[][..], &[0x1f, 0x8b, 8, 0], &[0x28, 0xb5, 0x2f, 0xfd]][magic];
            let _ = read_bytes([magic, &bytes].concat());
        }
    }
}
