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
    limits::ImageLimits,
};

const BLOCK: usize = 512;
/// Buffer between decompression and the spool file.
const BUFFER: usize = 256 << 10;
/// Bytes of one extended header. Attribute values are at most 64 KiB in Linux.
const EXTENSION_BYTES: u64 = 1 << 20;
/// Bytes of a whole path (Linux PATH_MAX, without its NUL).
const PATH_BYTES: usize = 4095;
/// Bytes of one name (Linux NAME_MAX).
const NAME_BYTES: usize = 255;
/// What an entry costs in memory besides its names; an estimate on the safe side.
const ENTRY_OVERHEAD: u64 = 128;
/// Window of a zstd frame, as a power of two: 32 MiB, four times what every decoder should accept
/// (RFC 8878 3.1.1.1.2) and enough for all but zstd's two highest levels.
const ZSTD_WINDOW_LOG: u32 = 25;
/// Extended attributes of one file.
const MAX_XATTRS: usize = 64;

/// Prefix of a whiteout (OCI image-spec, layer.md).
const WHITEOUT: &[u8] = b".wh.";
/// Prefix of AUFS's own files, all of which mean nothing but the next.
const WHITEOUT_META: &[u8] = b".wh..wh.";
/// Hides everything lower layers have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

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

/// An extended attribute by its full name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Xattr {
    pub(crate) name: Box<[u8]>,
    pub(crate) value: Box<[u8]>,
}

/// What all layers of one image use together.
#[derive(Debug)]
pub(crate) struct Budget {
    limits: Arc<ImageLimits>,
    uncompressed: AtomicU64,
    entries: AtomicU64,
    metadata: AtomicU64,
}

impl Budget {
    pub(crate) fn new(limits: Arc<ImageLimits>) -> Self {
        Self {
            limits,
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
        mut each: impl FnMut(&[u8]) -> io::Result<()>,
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
}

/// What extended headers say of the entry that follows them.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<u32>,
    xattrs: Vec<Xattr>,
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
    let place = place(&name)?;
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
                b'1' => EntryKind::HardLink(link_target(&link)?),
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
        source.pass(size, |bytes| spool.file.write_all(bytes))?;
        spool.length += size;
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

impl Extensions {
    /// Reads `LENGTH KEY=VALUE\n` records; LENGTH counts the whole record.
    fn read_pax(&mut self, mut records: &[u8]) -> Result<(), Fault> {
        let broken = || Fault::invalid("a layer has an extended header that cannot be read");
        while !records.is_empty() {
            let space = records
                .iter()
                .position(|byte| *byte == b' ')
                .ok_or_else(broken)?;
            let length = decimal(&records[..space]).ok_or_else(broken)?;
            let length = usize::try_from(length).map_err(|_| broken())?;
            if length <= space + 1 || length > records.len() {
                return Err(broken());
            }
            let record;
            (record, records) = records.split_at(length);
            let pair = record[space + 1..].strip_suffix(b"\n").ok_or_else(broken)?;
            let equals = pair
                .iter()
                .position(|byte| *byte == b'=')
                .ok_or_else(broken)?;
            let (key, value) = (&pair[..equals], &pair[equals + 1..]);
            self.set(key, value).ok_or_else(broken)?;
            if self.xattrs.len() > MAX_XATTRS {
                return Err(Fault::too_large(format!(
                    "it has a file with more than {MAX_XATTRS} extended attributes"
                )));
            }
            if key.starts_with(b"GNU.sparse.") {
                return Err(Fault::invalid("a layer has sparse files"));
            }
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(decimal(value)?),
            b"gid" => self.gid = Some(decimal(value)?),
            b"mtime" => {
                let whole = value.split(|byte| *byte == b'.').next()?;
                let before_1970 = whole.starts_with(b"-");
                self.mtime = Some(if before_1970 {
                    0
                } else {
                    clamped(decimal(whole)?)
                });
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.")
                    && is_kept(name)
                {
                    self.xattrs.retain(|xattr| *xattr.name != *name);
                    self.xattrs.push(Xattr {
                        name: name.into(),
                        value: value.into(),
                    });
                }
            }
        }
        Some(())
    }
}

/// Of the extended attributes, file capabilities and the user's own mean something in a pod.
/// `trusted.` would reach into the overlay file system, the other `security.` ones belong to
/// modules that are not loaded, and squashfs cannot store `system.`.
fn is_kept(name: &[u8]) -> bool {
    let length_is_good = name.len() <= NAME_BYTES && !name.contains(&0);
    length_is_good && (name == b"security.capability" || name.starts_with(b"user."))
}

/// Where an entry belongs.
enum Place {
    Ordinary(Box<[u8]>),
    Whiteout(Box<[u8]>),
    Opaque(Box<[u8]>),
    /// A file of AUFS's own.
    Nothing,
}

fn place(name: &[u8]) -> Result<Place, Fault> {
    let path = clean(name)?;
    let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    let (Some(last), Some(parents)) = (parts.last(), parts.split_last().map(|(_, rest)| rest))
    else {
        return Ok(Place::Ordinary(path));
    };
    let parent = || -> Box<[u8]> { parents.join(&b'/').into() };
    if parents.iter().any(|part| part.starts_with(WHITEOUT_META)) {
        return Ok(Place::Nothing);
    }
    if parents.iter().any(|part| part.starts_with(WHITEOUT)) {
        return Err(Fault::invalid(format!(
            "it has a file below a whiteout: {}",
            shown(name)
        )));
    }
    if *last == OPAQUE {
        return Ok(Place::Opaque(parent()));
    }
    if last.starts_with(WHITEOUT_META) {
        return Ok(Place::Nothing);
    }
    let Some(hidden) = last.strip_prefix(WHITEOUT) else {
        return Ok(Place::Ordinary(path));
    };
    if matches!(hidden, b"" | b"." | b"..") {
        return Err(Fault::invalid(format!(
            "it has a whiteout of nothing: {}",
            shown(name)
        )));
    }
    let mut target = parents.to_vec();
    target.push(hidden);
    Ok(Place::Whiteout(target.join(&b'/').into()))
}

/// A hard link names a path of the image, so it is held to the same rules as one.
fn link_target(link: &[u8]) -> Result<Box<[u8]>, Fault> {
    clean(link)
}

/// A path without empty and `.` parts. A leading slash means the image's root; `..` is refused,
/// because no honest tool writes it and readers disagree about it.
fn clean(name: &[u8]) -> Result<Box<[u8]>, Fault> {
    let refuse = |why: &str| {
        Err(Fault::invalid(format!(
            "it has a file {why}: {}",
            shown(name)
        )))
    };
    if name.len() > PATH_BYTES {
        return refuse("with too long a path");
    }
    if name.contains(&0) {
        return refuse("with a zero byte in its path");
    }
    let mut path = Vec::with_capacity(name.len());
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return refuse("with .. in its path"),
            _ if part.len() > NAME_BYTES => return refuse("with too long a name"),
            _ => {}
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(part);
    }
    Ok(path.into())
}

/// The 512 bytes before an entry's contents.
struct Header<'a>(&'a [u8; BLOCK]);

impl Header<'_> {
    fn kind(&self) -> u8 {
        self.0[156]
    }

    fn size(&self) -> Result<u64, Fault> {
        self.number(124..136)
    }

    /// The sum of all bytes, those of the checksum itself taken as spaces.
    fn check(&self) -> Result<(), Fault> {
        let sum: u64 = (0..BLOCK)
            .map(|at| {
                if (148..156).contains(&at) {
                    b' '
                } else {
                    self.0[at]
                }
            })
            .map(u64::from)
            .sum();
        if self.number(148..156).is_ok_and(|said| said == sum) {
            Ok(())
        } else {
            Err(Fault::invalid(
                "a layer is not a tar archive, or a broken one",
            ))
        }
    }

    /// An octal number, or a binary one if its first bit is set (GNU). Empty means 0, a negative
    /// number too: only times can be negative.
    fn number(&self, field: std::ops::Range<usize>) -> Result<u64, Fault> {
        let broken = || Fault::invalid("a layer has a number that cannot be read");
        let field = &self.0[field];
        match field[0] {
            0x80 => field[1..].iter().try_fold(0u64, |value, byte| {
                (value >> 56 == 0)
                    .then_some(value << 8 | u64::from(*byte))
                    .ok_or_else(broken)
            }),
            0xff => Ok(0),
            _ => {
                let digits = until_nul(field).trim_ascii();
                digits.iter().try_fold(0u64, |value, digit| match digit {
                    b'0'..=b'7' if value >> 61 == 0 => Ok(value << 3 | u64::from(digit - b'0')),
                    _ => Err(broken()),
                })
            }
        }
    }

    fn path(&self) -> Vec<u8> {
        let name = until_nul(&self.0[..100]);
        let prefix = until_nul(&self.0[345..500]);
        // Only POSIX ustar has a prefix there; GNU keeps times in the same place.
        if &self.0[257..263] != b"ustar\0" || prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, name].join(&b'/')
    }

    fn link(&self) -> Vec<u8> {
        until_nul(&self.0[157..257]).to_vec()
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn id(number: u64) -> Result<u32, Fault> {
    u32::try_from(number).map_err(|_| Fault::invalid("it has a file of an impossible owner"))
}

fn clamped(seconds: u64) -> u32 {
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

/// A path for a message: short and printable.
pub(crate) fn shown(path: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(path).chars().take(120).collect();
    format!("{text:?}")
}
