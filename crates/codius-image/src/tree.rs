//! The file system of an image, in memory: names and attributes, no contents.
//!
//! Layers are applied from bottom to top as an unpacking tool would apply them to a directory
//! (OCI image-spec, layer.md, "Applying Changesets"), except that a name leads nowhere but into this
//! tree. Two rules need care:
//!
//! - A whiteout hides what *lower* layers have. An entry of its own layer stays, wherever in the
//!   archive it is.
//! - A hard link may name a file of a lower layer that its own layer hides. So what a layer hides
//!   is only marked while the layer is applied, and removed after it.
//!
//! What a hostile image can make of it is bounded: every file and directory counts, also those that a
//! path needs and no layer describes (one entry can need a thousand), and so does every name that is
//! looked up, symbolic links written out included.
//!
//! Parents that are symbolic links are followed inside the tree (a `lib/x` above a `lib → usr/lib`
//! arrives in `usr/lib`), the last part of a path never.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
};

use crate::{
    fault::Fault,
    layer::{Entry, EntryKind, Meta},
    place::shown,
};

/// Directories in each other. The kernel cannot open a longer path at once.
const MAX_DEPTH: usize = 1024;
/// Names in one directory. `sqfstar` looks through all of them for each new one: with five times as many
/// it would be busy for minutes.
const MAX_NAMES: usize = 100_000;
/// Symbolic links followed for one path, as in Linux.
const MAX_SYMLINKS: usize = 40;
/// Names looked up for all entries of an image; bounds the time that deep or looping paths cost.
const MAX_STEPS: u64 = 20_000_000;
/// Mode of a directory that a path needs and no layer describes.
const IMPLIED_MODE: u32 = 0o755;

/// Index of a node. The root is the first.
pub(crate) type NodeId = usize;
const ROOT: NodeId = 0;

/// A file system under construction.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    /// The layer being applied, from 0.
    layer: usize,
    /// What the layer being applied hides: names in directories.
    hidden: Vec<(NodeId, Box<[u8]>)>,
    steps: u64,
    most_nodes: u64,
}

/// A file or directory. Hard links are several names for one.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) meta: Meta,
    pub(crate) kind: NodeKind,
}

#[derive(Debug)]
pub(crate) enum NodeKind {
    Directory(BTreeMap<Box<[u8]>, Link>),
    /// Which layer's spool has the contents, and where.
    File {
        layer: usize,
        offset: u64,
        size: u64,
    },
    Symlink(Box<[u8]>),
    Fifo,
    /// Takes a name and is not written out.
    Dropped,
}

/// One name in a directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    pub(crate) node: NodeId,
    /// The layer that last said something of this name.
    layer: usize,
    hidden: bool,
}

/// What a walk does at a name that is not there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// Makes a directory.
    Make,
    /// Ends.
    End,
    /// Takes what this layer hides, and ends if there is nothing hidden either.
    SeeHidden,
}

impl Tree {
    /// A root directory and nothing in it. It may come to have `most_nodes` files and directories
    /// besides, those included that later layers remove.
    pub(crate) fn new(most_nodes: u64) -> Self {
        Self {
            nodes: vec![Node::implied_directory()],
            layer: 0,
            hidden: Vec::new(),
            steps: 0,
            most_nodes,
        }
    }

    pub(crate) fn root(&self) -> &Node {
        &self.nodes[ROOT]
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id]
    }

    /// The owners and groups of all files, those of removed ones included.
    pub(crate) fn ids(&self) -> HashSet<u32> {
        self.nodes
            .iter()
            .flat_map(|node| [node.meta.uid, node.meta.gid])
            .collect()
    }

    /// How many nodes there are or were; ids are below it.
    pub(crate) fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Applies one layer on top. Their order gives them the numbers that `NodeKind::File` has.
    pub(crate) fn apply(&mut self, entries: Vec<Entry>) -> Result<(), Fault> {
        for entry in entries {
            self.apply_entry(entry)?;
        }
        for (directory, name) in std::mem::take(&mut self.hidden) {
            if let NodeKind::Directory(names) = &mut self.nodes[directory].kind
                && names.get(&name).is_some_and(|link| link.hidden)
            {
                names.remove(&name);
            }
        }
        self.layer += 1;
        Ok(())
    }

    fn apply_entry(&mut self, entry: Entry) -> Result<(), Fault> {
        let Entry { path, kind, meta } = entry;
        let kind = match kind {
            EntryKind::Opaque => {
                if let Some(directory) = self.walk(&path, Missing::End)? {
                    self.hide_below(directory)?;
                }
                return Ok(());
            }
            EntryKind::Whiteout => {
                let (parent, name) = split(&path);
                if let Some(directory) = self.walk(parent, Missing::End)? {
                    self.hide(directory, name)?;
                }
                return Ok(());
            }
            EntryKind::HardLink(target) => {
                let node = self.link_target(&path, &target)?;
                let (directory, name) = self.place(&path)?;
                return self.link(directory, name, node);
            }
            EntryKind::Directory => {
                return self.apply_directory(&path, meta);
            }
            EntryKind::File { offset, size } => NodeKind::File {
                layer: self.layer,
                offset,
                size,
            },
            EntryKind::Symlink(target) => NodeKind::Symlink(target),
            EntryKind::Fifo => NodeKind::Fifo,
            EntryKind::Dropped => NodeKind::Dropped,
        };
        let (directory, name) = self.place(&path)?;
        let node = self.add(Node { meta, kind })?;
        self.link(directory, name, node)
    }

    fn apply_directory(&mut self, path: &[u8], meta: Meta) -> Result<(), Fault> {
        if path.is_empty() {
            self.nodes[ROOT].meta = meta;
            return Ok(());
        }
        let (directory, name) = self.place(path)?;
        let layer = self.layer;
        if let Some(node) = self.directory_at(directory, name) {
            self.nodes[node].meta = meta;
            if let NodeKind::Directory(names) = &mut self.nodes[directory].kind
                && let Some(link) = names.get_mut(name)
            {
                link.layer = layer;
            }
            return Ok(());
        }
        let node = self.add(Node {
            meta,
            kind: NodeKind::Directory(BTreeMap::new()),
        })?;
        self.link(directory, name, node)
    }

    /// The directory in which a path's last part belongs, made if it is not there.
    fn place<'a>(&mut self, path: &'a [u8]) -> Result<(NodeId, &'a [u8]), Fault> {
        let (parent, name) = split(path);
        if name.is_empty() {
            return Err(Fault::invalid("its root is not a directory"));
        }
        let directory = self.walk(parent, Missing::Make)?;
        directory
            .map(|directory| (directory, name))
            .ok_or_else(|| Fault::invalid(format!("{} has no place in it", shown(path))))
    }

    fn link_target(&mut self, path: &[u8], target: &[u8]) -> Result<NodeId, Fault> {
        let (parent, name) = split(target);
        for missing in [Missing::End, Missing::SeeHidden] {
            let Some(directory) = self.walk(parent, missing)? else {
                continue;
            };
            let Some(link) = self.name(directory, name, missing) else {
                continue;
            };
            return match self.nodes[link.node].kind {
                NodeKind::Directory(_) => Err(Fault::invalid(format!(
                    "{} is a hard link to a directory",
                    shown(path)
                ))),
                NodeKind::File { .. }
                | NodeKind::Symlink(_)
                | NodeKind::Fifo
                | NodeKind::Dropped => Ok(link.node),
            };
        }
        Err(Fault::invalid(format!(
            "{} is a hard link to {}, which is not there",
            shown(path),
            shown(target)
        )))
    }

    /// Follows a path of directories, symbolic links included. `None` if it is not there.
    fn walk(&mut self, path: &[u8], missing: Missing) -> Result<Option<NodeId>, Fault> {
        let mut at = vec![ROOT];
        let mut followed = 0;
        // The parts still to go, the next one last.
        let mut parts: Vec<Cow<'_, [u8]>> = parts(path).map(Cow::Borrowed).rev().collect();
        while let Some(part) = parts.pop() {
            self.step()?;
            if *part == *b".." {
                if at.len() > 1 {
                    at.pop();
                }
                continue;
            }
            let directory = at.last().copied().unwrap_or(ROOT);
            let node = match self.name(directory, &part, missing) {
                Some(link) => link.node,
                None if missing == Missing::Make => {
                    let node = self.add(Node::implied_directory())?;
                    self.link(directory, &part, node)?;
                    node
                }
                None => return Ok(None),
            };
            match &self.nodes[node].kind {
                NodeKind::Directory(_) => at.push(node),
                NodeKind::Symlink(target) => {
                    followed += 1;
                    if followed > MAX_SYMLINKS {
                        return Err(Fault::invalid(format!(
                            "{} goes through too many symbolic links",
                            shown(path)
                        )));
                    }
                    if target.starts_with(b"/") {
                        at.truncate(1);
                    }
                    let target = target.clone();
                    // Writing it out costs as much as looking it up, even if the walk ends before.
                    self.steps(self::parts(&target).count() as u64)?;
                    let more: Vec<_> = self::parts(&target)
                        .map(|part| Cow::Owned(part.to_vec()))
                        .collect();
                    parts.extend(more.into_iter().rev());
                }
                NodeKind::File { .. } | NodeKind::Fifo | NodeKind::Dropped => {
                    return match missing {
                        Missing::Make => Err(Fault::invalid(format!(
                            "{} is below something that is not a directory",
                            shown(path)
                        ))),
                        Missing::End | Missing::SeeHidden => Ok(None),
                    };
                }
            }
            if at.len() > MAX_DEPTH {
                return Err(Fault::too_large("its directories are too deep"));
            }
        }
        Ok(at.last().copied())
    }

    fn name(&self, directory: NodeId, name: &[u8], missing: Missing) -> Option<Link> {
        match &self.nodes[directory].kind {
            NodeKind::Directory(names) => names
                .get(name)
                .copied()
                .filter(|link| !link.hidden || missing == Missing::SeeHidden),
            NodeKind::File { .. } | NodeKind::Symlink(_) | NodeKind::Fifo | NodeKind::Dropped => {
                None
            }
        }
    }

    fn directory_at(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        let link = self.name(directory, name, Missing::End)?;
        matches!(self.nodes[link.node].kind, NodeKind::Directory(_)).then_some(link.node)
    }

    fn add(&mut self, node: Node) -> Result<NodeId, Fault> {
        // The root is one of them.
        if self.nodes.len() as u64 > self.most_nodes {
            return Err(Fault::too_large(format!(
                "it has more than {} files and directories",
                self.most_nodes
            )));
        }
        self.nodes.push(node);
        Ok(self.nodes.len() - 1)
    }

    /// Gives a node a name, in place of what had it.
    fn link(&mut self, directory: NodeId, name: &[u8], node: NodeId) -> Result<(), Fault> {
        let layer = self.layer;
        match &mut self.nodes[directory].kind {
            NodeKind::Directory(names) => {
                if names.len() >= MAX_NAMES {
                    return Err(Fault::too_large(format!(
                        "it has a directory of more than {MAX_NAMES} names"
                    )));
                }
                names.insert(
                    name.into(),
                    Link {
                        node,
                        layer,
                        hidden: false,
                    },
                );
                Ok(())
            }
            NodeKind::File { .. } | NodeKind::Symlink(_) | NodeKind::Fifo | NodeKind::Dropped => {
                Err(Fault::invalid(format!(
                    "{} is not in a directory",
                    shown(name)
                )))
            }
        }
    }

    /// Hides what lower layers have at a name.
    fn hide(&mut self, directory: NodeId, name: &[u8]) -> Result<(), Fault> {
        self.step()?;
        let Some(link) = self.name(directory, name, Missing::End) else {
            return Ok(());
        };
        let is_directory = matches!(self.nodes[link.node].kind, NodeKind::Directory(_));
        let something_stays = is_directory && self.hide_below(link.node)?;
        if !something_stays
            && link.layer != self.layer
            && let NodeKind::Directory(names) = &mut self.nodes[directory].kind
            && let Some(link) = names.get_mut(name)
        {
            link.hidden = true;
            self.hidden.push((directory, name.into()));
        }
        Ok(())
    }

    /// Hides what lower layers have below a directory; true if this layer has something there.
    fn hide_below(&mut self, directory: NodeId) -> Result<bool, Fault> {
        let NodeKind::Directory(names) = &self.nodes[directory].kind else {
            return Ok(false);
        };
        let names: Vec<Box<[u8]>> = names.keys().cloned().collect();
        let mut something_stays = false;
        for name in names {
            self.hide(directory, &name)?;
            something_stays |= self.name(directory, &name, Missing::End).is_some();
        }
        Ok(something_stays)
    }

    fn step(&mut self) -> Result<(), Fault> {
        self.steps(1)
    }

    fn steps(&mut self, number: u64) -> Result<(), Fault> {
        self.steps += number;
        if self.steps > MAX_STEPS {
            return Err(Fault::too_large("its paths are too many and too deep"));
        }
        Ok(())
    }
}

impl Node {
    fn implied_directory() -> Self {
        Self {
            meta: Meta {
                mode: IMPLIED_MODE,
                ..Meta::default()
            },
            kind: NodeKind::Directory(BTreeMap::new()),
        }
    }
}

/// Parent and last part.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

fn parts(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
}
