//! A tree written out as one tar archive, for `sqfstar`.
//!
//! Whatever the layers looked like, this archive is plain: parents before children, names in order,
//! each name once, a hard link after the file it names, pax headers only where ustar has no room.
//! The same layers give the same bytes.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
};

use tar::{EntryType, Header};

use crate::{
    fault::Fault,
    layer::Meta,
    place::{PATH_BYTES, shown},
    tree::{NodeId, NodeKind, Tree},
};

/// Written to the pipe when there is as much.
const FLUSH_FROM: usize = 512 << 10;
/// Larger files go from the spool into the pipe without passing through the buffer.
const SPLICE_FROM: u64 = 128 << 10;
/// Largest size that fits ustar's eleven octal digits.
const USTAR_SIZE: u64 = 0o777_7777_7777;
/// Largest owner that fits ustar's seven octal digits.
const USTAR_ID: u32 = 0o777_7777;

/// Writes the whole archive. `spools` has one file for each layer of the tree. Blocks.
///
/// The output is a `File` and not any writer, because the standard library then moves large contents
/// inside the kernel.
pub(crate) fn write(tree: &Tree, spools: &[File], output: File) -> Result<(), Fault> {
    let mut archive = Archive {
        tree,
        spools,
        output,
        buffer: Vec::with_capacity(2 * FLUSH_FROM),
        names: vec![0; tree.nodes()],
        written: HashMap::new(),
        parents: HashMap::new(),
    };
    archive.count_names();
    if let NodeKind::Directory(_) = tree.root().kind {
        archive.directory(0, &mut Vec::new())?;
    }
    archive.buffer.extend_from_slice(&[0; 1024]);
    archive.flush()?;
    Ok(())
}

struct Archive<'a> {
    tree: &'a Tree,
    spools: &'a [File],
    output: File,
    buffer: Vec<u8>,
    /// How many names each node has.
    names: Vec<u32>,
    /// The first name of nodes that have several, and the directory it is in. Not its path: a few
    /// hundred thousand of these, 4 KiB each, would be a bomb.
    written: HashMap<NodeId, (NodeId, &'a [u8])>,
    /// The same for directories, which have one name each.
    parents: HashMap<NodeId, (NodeId, &'a [u8])>,
}

impl<'a> Archive<'a> {
    fn count_names(&mut self) {
        let mut todo = vec![0];
        while let Some(node) = todo.pop() {
            if let NodeKind::Directory(names) = &self.tree.node(node).kind {
                for link in names.values() {
                    self.names[link.node] += 1;
                    todo.push(link.node);
                }
            }
        }
    }

    /// Writes what is in a directory. The depth of the tree is bounded where it is built.
    fn directory(&mut self, node: NodeId, path: &mut Vec<u8>) -> Result<(), Fault> {
        let tree = self.tree;
        let NodeKind::Directory(names) = &tree.node(node).kind else {
            return Ok(());
        };
        let length = path.len();
        for (name, link) in names {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            // Symbolic links can have made it longer than any layer had it.
            if path.len() > PATH_BYTES {
                return Err(Fault::invalid(format!(
                    "a path in it is too long: {}",
                    shown(path)
                )));
            }
            self.node(link.node, path, (node, name))?;
            path.truncate(length);
        }
        Ok(())
    }

    fn node(
        &mut self,
        id: NodeId,
        path: &mut Vec<u8>,
        name: (NodeId, &'a [u8]),
    ) -> Result<(), Fault> {
        let tree = self.tree;
        let node = tree.node(id);
        if let Some(first) = self.written.get(&id) {
            let first = self.path_of(*first);
            self.header(path, EntryType::Link, &first, 0, &node.meta)?;
            return Ok(());
        }
        match &node.kind {
            NodeKind::Dropped => return Ok(()),
            NodeKind::Directory(_) => {
                self.header(path, EntryType::Directory, b"", 0, &node.meta)?;
                self.parents.insert(id, name);
                return self.directory(id, path);
            }
            NodeKind::Symlink(target) => {
                self.header(path, EntryType::Symlink, target, 0, &node.meta)?;
            }
            NodeKind::Fifo => self.header(path, EntryType::Fifo, b"", 0, &node.meta)?,
            NodeKind::File {
                layer,
                offset,
                size,
            } => {
                self.header(path, EntryType::Regular, b"", *size, &node.meta)?;
                self.contents(*layer, *offset, *size)?;
            }
        }
        if self.names[id] > 1 {
            self.written.insert(id, name);
        }
        Ok(())
    }

    /// The path of a name in a directory. No longer than the paths that were written before it.
    fn path_of(&self, (mut directory, name): (NodeId, &'a [u8])) -> Vec<u8> {
        let mut parts = vec![name];
        while let Some((parent, name)) = self.parents.get(&directory) {
            parts.push(name);
            directory = *parent;
        }
        parts.reverse();
        parts.join(&b'/')
    }

    fn contents(&mut self, layer: usize, offset: u64, size: u64) -> Result<(), Fault> {
        let mut spool = &self.spools[layer];
        if size >= SPLICE_FROM {
            self.flush()?;
            spool.seek(SeekFrom::Start(offset))?;
            let copied = io::copy(&mut spool.take(size), &mut self.output)?;
            if copied != size {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        } else {
            let start = self.buffer.len();
            // Below SPLICE_FROM, so it fits every usize.
            let length = usize::try_from(size).unwrap_or_default();
            self.buffer.resize(start + length, 0);
            spool.read_exact_at(&mut self.buffer[start..], offset)?;
        }
        self.pad(size)
    }

    fn pad(&mut self, size: u64) -> Result<(), Fault> {
        let padding = size.wrapping_neg() % 512;
        self.buffer.extend((0..padding).map(|_| 0));
        if self.buffer.len() >= FLUSH_FROM {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Fault> {
        self.output.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    fn header(
        &mut self,
        path: &[u8],
        kind: EntryType,
        link: &[u8],
        size: u64,
        meta: &Meta,
    ) -> Result<(), Fault> {
        let mut records = Vec::new();
        let mut header = Header::new_ustar();
        if !fits(&mut header.as_old_mut().name, path) {
            record(&mut records, b"path", path);
        }
        if !fits(&mut header.as_old_mut().linkname, link) {
            record(&mut records, b"linkpath", link);
        }
        if size > USTAR_SIZE {
            record(&mut records, b"size", size.to_string().as_bytes());
        }
        for (key, id) in [(&b"uid"[..], meta.uid), (&b"gid"[..], meta.gid)] {
            if id > USTAR_ID {
                record(&mut records, key, id.to_string().as_bytes());
            }
        }
        // A hard link has the attributes of its file already.
        if kind != EntryType::Link {
            for xattr in &meta.xattrs {
                record(
                    &mut records,
                    &[b"SCHILY.xattr.", &*xattr.name].concat(),
                    &xattr.value,
                );
            }
        }
        if !records.is_empty() {
            let mut pax = Header::new_ustar();
            pax.set_entry_type(EntryType::XHeader);
            fits(&mut pax.as_old_mut().name, b"pax");
            pax.set_mode(0o644);
            pax.set_size(records.len() as u64);
            pax.set_cksum();
            self.buffer.extend_from_slice(pax.as_bytes());
            self.buffer.extend_from_slice(&records);
            self.pad(records.len() as u64)?;
        }
        header.set_entry_type(kind);
        header.set_mode(meta.mode);
        header.set_uid(meta.uid.min(USTAR_ID).into());
        header.set_gid(meta.gid.min(USTAR_ID).into());
        header.set_mtime(meta.mtime.into());
        header.set_size(size.min(USTAR_SIZE));
        header.set_cksum();
        self.buffer.extend_from_slice(header.as_bytes());
        Ok(())
    }
}

/// Copies into a fixed field; false if there is no room, with a part of it copied.
fn fits(field: &mut [u8; 100], bytes: &[u8]) -> bool {
    let length = bytes.len().min(field.len());
    field[..length].copy_from_slice(&bytes[..length]);
    bytes.len() <= field.len()
}

/// Adds `LENGTH KEY=VALUE\n`, where LENGTH counts itself.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} ").as_bytes());
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}
