//! The block image: a read-only squashfs made by `sqfstar` (Debian package squashfs-tools).
//!
//! The program reads our own clean tar from a pipe, never a layer's bytes. If we are root it runs as
//! nobody in particular all the same: it gets the new file as its standard output and opens it once
//! more as `/proc/self/fd/1`, so it needs no access to the store's directory.
//!
//! Trap: version 4.5.1 of the program ignores `-root-uid` and `-root-gid` and gives the root
//! directory to whoever runs it. So it is run under ids that no file of the image has, and these are
//! replaced in the squashfs's table of ids afterwards. It ignores `-root-time` too and takes the time of
//! day, which is replaced in the root's inode.
//!
//! Nothing is compressed. Under emulation the guest's CPU is the scarce thing, and with hardware
//! virtualisation the host's page cache is shared by all pods of an image either way; compression
//! would also take longer than all the rest of making the file.

use std::{
    env,
    fs::{File, Permissions},
    io,
    ops::RangeInclusive,
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::{
    fs::{Gid, Uid, fchown},
    process::{getegid, geteuid},
};
use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
    task::spawn_blocking,
    time::timeout,
};

use crate::{archive, fault::Fault, tree::Tree};

const PROGRAM: &str = "sqfstar";
/// Sets resource limits and then becomes another program; part of Debian's essential util-linux.
const LIMITER: &str = "prlimit";
/// Where Debian has programs; nothing else of our environment is handed on.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// Memory for the program's own buffers.
const MEMORY: &str = "128M";
/// All that the program may allocate: an image of as many files as the limits allow, with the longest
/// paths, takes less (docs/images.md has the measurement).
const DATA_BYTES: u64 = 1 << 30;
/// Different owners and groups that a squashfs can have, less the two that the program runs as.
const MOST_IDS: usize = 65_536 - 2;
/// Bytes of the program's messages that are kept.
const MESSAGE_BYTES: u64 = 4096;
/// Ids that belong to no fixed user: those systemd gives out for a while (DynamicUser).
const SPARE_IDS: RangeInclusive<u32> = 61184..=65519;
/// Asked for; the kernel's default maximum for everybody is 1 MiB.
const PIPE_BYTES: usize = 1 << 20;
/// What squashfs adds to the contents at the very most, besides `OVERHEAD` for each file.
const BASE_BYTES: u64 = 16 << 20;
const OVERHEAD: u64 = 1024;
/// A squashfs superblock (the kernel's documentation, filesystems/squashfs.rst, and `squashfs_fs.h`).
const SUPERBLOCK_BYTES: usize = 96;
const MAGIC: [u8; 4] = *b"hsqs";
const ID_COUNT_AT: usize = 26;
const ROOT_INODE_AT: usize = 32;
const BYTES_USED_AT: usize = 40;
const ID_TABLE_AT: usize = 48;
const INODE_TABLE_AT: usize = 64;
/// Bytes of a metadata block, without the two in front of it.
const METADATA_BYTES: u64 = 8192;
/// Of an inode of any kind: its time of modification, four bytes.
const MTIME_AT: u64 = 8;
/// The two kinds of inodes of directories.
const DIRECTORIES: [u64; 2] = [1, 8];
/// Ids in one block of their table.
const IDS_PER_BLOCK: usize = 2048;
/// Marks a metadata block that is not compressed, in its first two bytes.
const NOT_COMPRESSED: u16 = 0x8000;

/// Whom the program runs as, and whom the root directory is to belong to instead (owner and group), with
/// its time.
#[derive(Debug, Clone, Copy)]
struct Owners {
    runs_as: [u32; 2],
    root: [u32; 2],
    root_time: u32,
}

impl Owners {
    fn of(tree: &Tree) -> Result<Self, Fault> {
        let meta = &tree.root().meta;
        let (root, root_time) = ([meta.uid, meta.gid], meta.mtime);
        // Without root there is no choice; a file of the image that has our own ids then gets the
        // root's as well. Only tests can run like this: a pod's network needs root.
        if !geteuid().is_root() {
            return Ok(Self {
                runs_as: [geteuid().as_raw(), getegid().as_raw()],
                root,
                root_time,
            });
        }
        let used = tree.ids();
        if used.len() > MOST_IDS {
            return Err(Fault::too_large(format!(
                "its files have {} owners and groups, the most allowed are {MOST_IDS}",
                used.len()
            )));
        }
        let mut spare = SPARE_IDS.filter(|id| !used.contains(id));
        match (spare.next(), spare.next()) {
            (Some(uid), Some(gid)) => Ok(Self {
                runs_as: [uid, gid],
                root,
                root_time,
            }),
            _ => Err(Fault::too_large("its files have too many owners")),
        }
    }
}

/// What the block image of a tree takes at most.
pub(crate) fn most_bytes(tree: &Tree, contents_bytes: u64) -> u64 {
    contents_bytes
        .saturating_add(BASE_BYTES)
        .saturating_add((tree.nodes() as u64).saturating_mul(OVERHEAD))
}

/// Where `sqfstar` is.
pub(crate) fn find_program() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|directory| directory.join(PROGRAM))
        .find(|file| file.is_file())
}

/// Writes the tree as a squashfs into `output`, a new file, and makes it durable. Returns its size.
///
/// Dropping the future kills the program; what it wrote so far is the caller's to remove.
pub(crate) async fn build(
    program: PathBuf,
    tree: Tree,
    spools: Vec<File>,
    contents_bytes: u64,
    output: File,
    deadline: Duration,
) -> Result<u64, Fault> {
    let most = most_bytes(&tree, contents_bytes);
    let owners = Owners::of(&tree)?;
    let mut child = spawn(&program, &tree, owners, &output, most)?;
    let input = child
        .stdin
        .take()
        .ok_or_else(|| io::Error::other("no pipe to sqfstar"))?;
    let input = File::from(input.into_owned_fd()?);
    // A smaller pipe is only slower.
    let _ = rustix::pipe::fcntl_setpipe_size(&input, PIPE_BYTES);
    let mut messages = Vec::new();
    let stderr = child.stderr.take();
    let run = async {
        let feed = spawn_blocking(move || archive::write(&tree, &spools, input));
        if let Some(stderr) = stderr {
            stderr
                .take(MESSAGE_BYTES)
                .read_to_end(&mut messages)
                .await?;
        }
        let status = child.wait().await?;
        let fed = feed
            .await
            .map_err(|_| io::Error::other("writing the archive panicked"))?;
        Ok::<_, Fault>((status, fed))
    };
    let (status, fed) = timeout(deadline, run).await.map_err(|_| {
        Fault::too_large(format!(
            "its block image was not made in {} s",
            deadline.as_secs()
        ))
    })??;
    match fed {
        // The program ended early: what it said is the better reason.
        Err(Fault::Host(error)) if error.kind() == io::ErrorKind::BrokenPipe => {}
        fed => fed?,
    }
    if !status.success() {
        let messages = String::from_utf8_lossy(&messages);
        let reason = format!("sqfstar ended with {status}: {}", messages.trim());
        return Err(Fault::Host(io::Error::other(reason)));
    }
    spawn_blocking(move || finish(&output, owners))
        .await
        .map_err(|_| io::Error::other("checking the block image panicked"))?
}

fn spawn(
    program: &Path,
    tree: &Tree,
    owners: Owners,
    output: &File,
    most: u64,
) -> Result<Child, Fault> {
    let root = &tree.root().meta;
    // The limits are set by the program's own process before it becomes sqfstar: setting them from
    // here would need a capability that root in a container often lacks.
    let mut command = Command::new(LIMITER);
    command
        .args([&format!("--fsize={most}"), &format!("--data={DATA_BYTES}")])
        .args(["--core=0", "--"])
        .arg(program)
        // Without -force it takes the empty file for one to append to.
        .args([
            "-quiet",
            "-no-progress",
            "-force",
            "-reproducible",
            "-mkfs-time",
            "0",
        ])
        .args([
            "-noI",
            "-noD",
            "-noF",
            "-noX",
            "-no-duplicates",
            "-mem",
            MEMORY,
        ])
        .args(["-root-mode", &format!("{:o}", root.mode)])
        .arg("/proc/self/fd/1")
        .env_clear()
        .env("PATH", PATH)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(output.try_clone()?)
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    if geteuid().is_root() {
        let [uid, gid] = owners.runs_as;
        let (owner, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
        fchown(output, Some(owner), Some(group)).map_err(io::Error::from)?;
        command.uid(uid).gid(gid);
    }
    command.spawn().map_err(|error| {
        let reason = format!("prlimit (package util-linux) cannot be started: {error}");
        Fault::Host(io::Error::new(error.kind(), reason))
    })
}

/// Checks what the program made, takes it back and makes it durable.
fn finish(output: &File, owners: Owners) -> Result<u64, Fault> {
    let broken = |what: &str| Fault::Host(io::Error::other(format!("sqfstar made {what}")));
    let mut superblock = [0; SUPERBLOCK_BYTES];
    output
        .read_exact_at(&mut superblock, 0)
        .map_err(|_| broken("no file system"))?;
    let length = output.metadata()?.len();
    if superblock[..4] != MAGIC || number(&superblock[BYTES_USED_AT..][..8]) > length {
        return Err(broken("a broken file system"));
    }
    give_root(output, &superblock, owners)?;
    date_root(output, &superblock, owners.root_time)?;
    if geteuid().is_root() {
        fchown(output, Some(Uid::ROOT), Some(Gid::ROOT)).map_err(io::Error::from)?;
    }
    output.set_permissions(Permissions::from_mode(0o444))?;
    output.sync_all()?;
    Ok(length)
}

/// Replaces the ids that the program ran as, which only the root directory has, in the table of ids.
fn give_root(output: &File, superblock: &[u8], owners: Owners) -> io::Result<()> {
    let count = usize::try_from(number(&superblock[ID_COUNT_AT..][..2])).unwrap_or_default();
    let table = number(&superblock[ID_TABLE_AT..][..8]);
    for block in 0..count.div_ceil(IDS_PER_BLOCK) {
        let mut pointer = [0; 8];
        output.read_exact_at(&mut pointer, table + 8 * block as u64)?;
        let at = number(&pointer);
        let mut head = [0; 2];
        output.read_exact_at(&mut head, at)?;
        if u16::from_le_bytes(head) & NOT_COMPRESSED == 0 {
            return Err(io::Error::other("sqfstar compressed the table of ids"));
        }
        let mut ids = vec![0; 4 * (count - block * IDS_PER_BLOCK).min(IDS_PER_BLOCK)];
        output.read_exact_at(&mut ids, at + 2)?;
        for id in ids.chunks_exact_mut(4) {
            let position = owners.runs_as.iter().position(|it| it.to_le_bytes() == *id);
            if let Some(position) = position {
                id.copy_from_slice(&owners.root[position].to_le_bytes());
            }
        }
        output.write_all_at(&ids, at + 2)?;
    }
    Ok(())
}

/// Replaces the time of the root directory. Its inode may lie in two metadata blocks, so each byte is
/// looked for by itself.
fn date_root(output: &File, superblock: &[u8], time: u32) -> io::Result<()> {
    let table = number(&superblock[INODE_TABLE_AT..][..8]);
    let root = number(&superblock[ROOT_INODE_AT..][..8]);
    let (block, offset) = (table + (root >> 16), root & 0xffff);
    let place = |at: u64| {
        let at = offset + at;
        // Uncompressed blocks are full, but for the last.
        block + 2 + at + 2 * (at / METADATA_BYTES)
    };
    let mut kind = [0; 2];
    for (at, byte) in (0..).zip(&mut kind) {
        output.read_exact_at(std::slice::from_mut(byte), place(at))?;
    }
    if !DIRECTORIES.contains(&number(&kind)) {
        return Err(io::Error::other("sqfstar made a root that is no directory"));
    }
    for (at, byte) in (MTIME_AT..).zip(time.to_le_bytes()) {
        output.write_all_at(&[byte], place(at))?;
    }
    Ok(())
}

/// A little-endian number of up to eight bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}
