//! A small file system of the host's own, in a file: it can be filled and broken without harm to anyone
//! else.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

/// How long the last process may take to let go of it.
const UNMOUNT_TIMEOUT: Duration = Duration::from_secs(20);
const MIB: usize = 1024 * 1024;

/// An ext4 that is mounted.
#[derive(Debug)]
pub(crate) struct Disk {
    device: String,
    mount: PathBuf,
}

impl Disk {
    /// Makes a file system of so many MiB below `place`.
    pub(crate) fn make(place: &Path, size_mib: u64) -> Result<Self> {
        let image = place.join("disk.img");
        let mount = place.join("disk");
        fs::create_dir(&mount)?;
        File::create(&image)?.set_len(size_mib * 1024 * 1024)?;
        // Nothing is kept back for root: a full disk is full.
        run(Command::new("mkfs.ext4")
            .args(["-q", "-m", "0", "-E", "lazy_itable_init=0"])
            .arg(&image))?;
        let device = run(Command::new("losetup")
            .args(["--find", "--show"])
            .arg(&image))?;
        let disk = Self {
            device: device.trim().to_owned(),
            mount,
        };
        disk.attach()?;
        Ok(disk)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.mount
    }

    fn attach(&self) -> Result<()> {
        run(Command::new("mount")
            .args(["-t", "ext4", "-o", "errors=remount-ro"])
            .arg(&self.device)
            .arg(&self.mount))?;
        Ok(())
    }

    /// Takes all the room that there is.
    pub(crate) fn fill(&self) -> Result<()> {
        let mut file = File::create(self.filling())?;
        for piece in [MIB, 4096, 1] {
            let bytes = vec![0x55; piece];
            loop {
                match file.write_all(&bytes) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                    Err(error) => return Err(error).context("fill the disk"),
                }
            }
        }
        match file.sync_all() {
            Err(error) if error.kind() != io::ErrorKind::StorageFull => {
                Err(error).context("fill the disk")
            }
            _ => Ok(()),
        }
    }

    /// Gives it back.
    pub(crate) fn free(&self) -> Result<()> {
        fs::remove_file(self.filling()).context("free the disk")
    }

    fn filling(&self) -> PathBuf {
        self.mount.join("filling")
    }

    /// The file system finds an error, and nothing can be written any more, also by those who have
    /// files open.
    pub(crate) fn break_down(&self) -> Result<()> {
        let name = self.device.rsplit('/').next().unwrap_or_default();
        let trigger = format!("/sys/fs/ext4/{name}/trigger_fs_error");
        fs::write(&trigger, "1").with_context(|| format!("cannot write to {trigger}"))?;
        let probe = File::create(self.mount.join("probe"));
        ensure!(probe.is_err(), "the file system can still be written to");
        Ok(())
    }

    /// Checks the file system and mounts it again. Nobody may hold anything of it.
    pub(crate) fn repair(&self) -> Result<()> {
        self.detach()?;
        let deadline = Instant::now() + UNMOUNT_TIMEOUT;
        loop {
            let checked = Command::new("e2fsck")
                .args(["-p", &self.device])
                .output()
                .context("e2fsck cannot be run; install the Debian package e2fsprogs")?;
            let told = String::from_utf8_lossy(&checked.stdout);
            // 1: errors were there and are not any more.
            if matches!(checked.status.code(), Some(0 | 1)) {
                break;
            }
            // The machine of some other host that is being born has copies of all mounts for a moment.
            ensure!(
                told.contains("is in use") && Instant::now() < deadline,
                "e2fsck: {told}"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        self.attach()
    }

    fn detach(&self) -> Result<()> {
        let deadline = Instant::now() + UNMOUNT_TIMEOUT;
        loop {
            match run(Command::new("umount").arg(&self.mount)) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let detached = self.detach();
        let freed = run(Command::new("losetup").args(["--detach", &self.device]));
        if let Err(error) = detached.and(freed.map(drop)) {
            eprintln!("the file system of the run stays: {error:#}");
        }
    }
}

/// Runs a program and gives what it has printed.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("{name} cannot be run"))?;
    if !output.status.success() {
        bail!(
            "{name} failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
