//! The block image: a read-only squashfs made by `sqfstar` (Debian package squashfs-tools).
//!
//! The program reads our own clean tar from a pipe, never a layer's bytes. If we are root it runs as
//! `nobody` all the same: it gets the new file as its standard output and opens it once more as
//! `/proc/self/fd/1`, so it needs no access to the store's directory.
//!
//! Nothing is compressed. Under emulation the guest's CPU is the scarce thing, and with hardware
//! virtualisation the host's page cache is shared by all pods of an image either way; compression
//! would also more than double the time to make the file.

use std::{
    env,
    fs::{File, Permissions},
    io,
    os::{
        fd::AsFd,
        unix::fs::{FileExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::{
    fs::{Gid, Uid, fchown},
    process::geteuid,
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
/// Memory for the program's own buffers.
const MEMORY: &str = "128M";
/// Bytes of the program's messages that are kept.
const MESSAGE_BYTES: u64 = 4096;
/// Debian's `nobody` and `nogroup`.
const NOBODY: u32 = 65534;
/// Asked for; the kernel's default maximum for everybody is 1 MiB.
const PIPE_BYTES: usize = 1 << 20;
/// What squashfs adds to the contents at the very most, besides `OVERHEAD` for each file.
const BASE_BYTES: u64 = 16 << 20;
const OVERHEAD: u64 = 1024;
/// First four bytes of a squashfs superblock.
const MAGIC: [u8; 4] = *b"hsqs";

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
    let most = contents_bytes
        .saturating_add(BASE_BYTES)
        .saturating_add((tree.nodes() as u64).saturating_mul(OVERHEAD));
    let mut child = spawn(&program, &tree, &output, most)?;
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
        return Err(Fault::Host(io::Error::other(format!(
            "sqfstar ended with {status}: {}",
            messages.trim()
        ))));
    }
    spawn_blocking(move || finish(&output))
        .await
        .map_err(|_| io::Error::other("checking the block image panicked"))?
}

fn spawn(program: &Path, tree: &Tree, output: &File, most: u64) -> Result<Child, Fault> {
    let root = &tree.root().meta;
    // The limits are set by the program's own process before it becomes sqfstar: setting them from
    // here would need a capability that root in a container often lacks.
    let mut command = Command::new(LIMITER);
    command
        .args([&format!("--fsize={most}"), "--core=0", "--"])
        .arg(program)
        .args(["-force", "-quiet", "-no-progress", "-reproducible", "-mkfs-time", "0"])
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
        .args(["-root-uid", &root.uid.to_string()])
        .args(["-root-gid", &root.gid.to_string()])
        .args(["-root-time", &root.mtime.to_string()])
        .arg("/proc/self/fd/1")
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(output.try_clone()?)
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    if geteuid().is_root() {
        fchown(
            output,
            Some(Uid::from_raw(NOBODY)),
            Some(Gid::from_raw(NOBODY)),
        )
        .map_err(io::Error::from)?;
        command.uid(NOBODY).gid(NOBODY);
    }
    command.spawn().map_err(|error| {
        Fault::Host(io::Error::new(
            error.kind(),
            format!("prlimit (package util-linux) cannot be started: {error}"),
        ))
    })
}

/// Checks what the program made, takes it back and makes it durable.
fn finish(output: &File) -> Result<u64, Fault> {
    let broken = |what: &str| Fault::Host(io::Error::other(format!("sqfstar made {what}")));
    let mut superblock = [0; 96];
    output
        .read_exact_at(&mut superblock, 0)
        .map_err(|_| broken("no file system"))?;
    let length = output.metadata()?.len();
    let mut used = [0; 8];
    used.copy_from_slice(&superblock[40..48]);
    if superblock[..4] != MAGIC || u64::from_le_bytes(used) > length {
        return Err(broken("a broken file system"));
    }
    if geteuid().is_root() {
        fchown(output.as_fd(), Some(Uid::ROOT), Some(Gid::ROOT)).map_err(io::Error::from)?;
    }
    output.set_permissions(Permissions::from_mode(0o444))?;
    output.sync_all()?;
    Ok(length)
}
