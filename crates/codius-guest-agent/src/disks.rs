//! The pod's disks: one read-only image per distinct container image, and one scratch disk, which is
//! the containers' writable layer and their shared volume.
//!
//! Trap: the order of virtio-mmio devices is not that of the VM's command line, so disks are known only
//! by their serial numbers.

use std::{collections::BTreeMap, fs, io};

use crate::devices;
use codius_guest_protocol::SCRATCH_SERIAL;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::notice;

pub(crate) const IMAGES: &str = "/run/images";
pub(crate) const SCRATCH: &str = "/run/scratch";

/// Device names by serial number.
#[derive(Debug)]
pub(crate) struct Disks {
    by_serial: BTreeMap<String, String>,
}

impl Disks {
    /// Gives disks to their driver until those with these serial numbers are there: a machine may have more
    /// than its pod needs.
    pub(crate) fn find(serials: &[&str]) -> io::Result<Self> {
        let mut disks = Self::look()?;
        devices::bind(devices::Kind::Disk, || {
            disks = Self::look()?;
            Ok(disks.has(serials))
        })?;
        if !disks.has(serials) {
            disks = Self::look()?;
        }
        Ok(disks)
    }

    fn has(&self, serials: &[&str]) -> bool {
        let mut serials = serials.iter();
        serials.all(|serial| self.by_serial.contains_key(*serial))
    }

    fn look() -> io::Result<Self> {
        let mut by_serial = BTreeMap::new();
        for disk in fs::read_dir("/sys/block")? {
            let disk = disk?;
            let (Ok(serial), Ok(name)) = (
                fs::read_to_string(disk.path().join("serial")),
                disk.file_name().into_string(),
            ) else {
                continue;
            };
            by_serial.insert(serial.trim_end().to_owned(), name);
        }
        Ok(Self { by_serial })
    }

    fn device(&self, serial: &str) -> Result<String, String> {
        match self.by_serial.get(serial) {
            Some(name) => Ok(format!("/dev/{name}")),
            None => Err(format!("the pod has no disk {serial:?}")),
        }
    }

    /// Mounts the scratch disk and makes the volume on it.
    pub(crate) fn mount_scratch(&self) -> Result<(), String> {
        let device = self.device(SCRATCH_SERIAL)?;
        mount(
            &device,
            SCRATCH,
            "ext4",
            MountFlags::NODEV | MountFlags::NOATIME,
            None,
        )
        .map_err(|error| format!("the scratch disk cannot be mounted: {error}"))?;
        let volume = volume();
        fs::create_dir(&volume)
            .and_then(|()| {
                // Containers run as different users and all may write.
                fs::set_permissions(
                    &volume,
                    std::os::unix::fs::PermissionsExt::from_mode(0o1777),
                )
            })
            .map_err(|error| format!("the shared volume cannot be made: {error}"))?;
        notice::prepare()
    }

    /// Mounts the image with this serial and returns where, unless it is mounted already.
    pub(crate) fn mount_image(&self, serial: &str) -> Result<String, String> {
        let directory = image_directory(serial);
        match fs::create_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(directory),
            made => made.map_err(|error| format!("no place for the image: {error}"))?,
        }
        let flags = MountFlags::RDONLY | MountFlags::NODEV;
        self.device(serial)
            .and_then(|device| {
                mount(&device, &directory, "squashfs", flags, None)
                    .map_err(|error| error.to_string())
            })
            .map_err(|error| {
                // The next container with this image has to find the same error, not an empty root.
                let _ = fs::remove_dir(&directory);
                format!("the image cannot be mounted: {error}")
            })?;
        Ok(directory)
    }
}

/// Where the image with this serial is mounted. The serial is the host's word and no path.
fn image_directory(serial: &str) -> String {
    format!("{IMAGES}/{}", serial.replace('/', "_"))
}

/// The shared volume, as the agent sees it.
pub(crate) fn volume() -> String {
    format!("{SCRATCH}/volume")
}

/// Writes everything to the disks and lets go of the scratch disk.
pub(crate) fn flush() {
    rustix::fs::sync();
    // Something may still hold it open; it is synced either way.
    let _ = unmount(SCRATCH, UnmountFlags::DETACH);
    rustix::fs::sync();
}
