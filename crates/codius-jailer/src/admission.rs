//! What a host may ask. Decided before anything is done, of numbers and of open descriptors.

use std::os::fd::{AsFd, OwnedFd};

use rustix::{
    fs::{FileType, OFlags, SealFlags, fcntl_get_seals, fcntl_getfl, fstat},
    net::{SocketType, sockopt},
};
use thiserror::Error;

use crate::request::{DiskKind, LaunchRequest, OriginKind, Request, Signal};

/// The operator's bounds, from the configuration that only root can write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// Slots below it are the pods'; a machine that is tried or made a template of has one of the two last numbers.
    pub slots: u16,
    pub vcpus: u8,
    pub memory_mib: u32,
    pub scratch_mib: u32,
    pub disks: usize,
}

/// The slots that no pool reaches.
const SLOTS_OF_NO_POD: [u16; 2] = [u16::MAX, u16::MAX - 1];

/// Why something is not done. Nothing has happened.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    #[error("slot {0} is not one of this host's")]
    Slot(u16),
    #[error("a machine has {least} to {most} {what}, not {asked}")]
    Size {
        what: &'static str,
        asked: u64,
        least: u64,
        most: u64,
    },
    #[error("{came} descriptors came and {wanted} are wanted")]
    Count { came: usize, wanted: usize },
    #[error("the descriptor of the {of} is {fault}")]
    Descriptor {
        of: &'static str,
        fault: &'static str,
    },
}

/// A request that may be carried out.
#[derive(Debug)]
pub enum Admitted {
    OpenNetwork {
        slot: u16,
    },
    ConnectNetwork {
        slot: u16,
    },
    Launch {
        request: Box<LaunchRequest>,
        console: OwnedFd,
        agent: OwnedFd,
        monitor: OwnedFd,
        origin: Vec<OwnedFd>,
        disks: Vec<AdmittedDisk>,
    },
    Signal {
        slot: u16,
        signal: Signal,
    },
    Remove {
        slot: u16,
    },
    List,
}

#[derive(Debug)]
pub enum AdmittedDisk {
    Empty,
    Image(OwnedFd),
    Scratch { reading: OwnedFd, writing: OwnedFd },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Reading,
    Both,
    Appending,
}

impl Allowance {
    /// Takes the descriptors: those of a refused request are closed.
    pub fn admit(&self, request: Request, descriptors: Vec<OwnedFd>) -> Result<Admitted, Refusal> {
        let wanted = match &request {
            Request::Launch(launch) => {
                // Before they are counted: the list is the host's.
                self.check_machine(launch)?;
                launch.descriptors()
            }
            Request::OpenNetwork { .. }
            | Request::ConnectNetwork { .. }
            | Request::Signal { .. }
            | Request::Remove { .. }
            | Request::List {} => 0,
        };
        if descriptors.len() != wanted {
            let came = descriptors.len();
            return Err(Refusal::Count { came, wanted });
        }
        match request {
            Request::OpenNetwork { slot } => {
                self.check_pod_slot(slot)?;
                Ok(Admitted::OpenNetwork { slot })
            }
            Request::ConnectNetwork { slot } => {
                self.check_pod_slot(slot)?;
                Ok(Admitted::ConnectNetwork { slot })
            }
            Request::Launch(launch) => admit_launch(launch, descriptors),
            Request::Signal { slot, signal } => {
                self.check_slot(slot)?;
                Ok(Admitted::Signal { slot, signal })
            }
            Request::Remove { slot } => {
                self.check_slot(slot)?;
                Ok(Admitted::Remove { slot })
            }
            Request::List {} => Ok(Admitted::List),
        }
    }

    fn check_pod_slot(&self, slot: u16) -> Result<(), Refusal> {
        if slot < self.slots {
            Ok(())
        } else {
            Err(Refusal::Slot(slot))
        }
    }

    fn check_slot(&self, slot: u16) -> Result<(), Refusal> {
        if SLOTS_OF_NO_POD.contains(&slot) {
            return Ok(());
        }
        self.check_pod_slot(slot)
    }

    fn check_machine(&self, launch: &LaunchRequest) -> Result<(), Refusal> {
        match launch.origin {
            // Only these have no network.
            OriginKind::Template => self.check_slot(launch.slot)?,
            OriginKind::Boot | OriginKind::Clone => self.check_pod_slot(launch.slot)?,
        }
        let sizes = [
            ("processors", launch.vcpus.into(), 1, self.vcpus.into()),
            (
                "MiB of memory",
                launch.memory_mib.into(),
                1,
                self.memory_mib.into(),
            ),
            (
                "MiB of disk",
                launch.scratch_mib.into(),
                0,
                self.scratch_mib.into(),
            ),
            ("disks", launch.disks.len() as u64, 0, self.disks as u64),
        ];
        for (what, asked, least, most) in sizes {
            if !(least..=most).contains(&asked) {
                return Err(Refusal::Size {
                    what,
                    asked,
                    least,
                    most,
                });
            }
        }
        Ok(())
    }
}

fn admit_launch(
    request: Box<LaunchRequest>,
    descriptors: Vec<OwnedFd>,
) -> Result<Admitted, Refusal> {
    let (came, wanted) = (descriptors.len(), request.descriptors());
    let mut descriptors = descriptors.into_iter();
    // They have been counted.
    let mut next = || descriptors.next().ok_or(Refusal::Count { came, wanted });
    let console = file("console", next()?, Access::Appending)?;
    let agent = listener("agent", next()?)?;
    let monitor = listener("monitor", next()?)?;
    let origin = match request.origin {
        OriginKind::Boot => vec![
            file("kernel", next()?, Access::Reading)?,
            file("initramfs", next()?, Access::Reading)?,
        ],
        OriginKind::Template => vec![
            file("kernel", next()?, Access::Reading)?,
            file("initramfs", next()?, Access::Reading)?,
            file("memory", next()?, Access::Both)?,
        ],
        OriginKind::Clone => {
            let memory = file("memory", next()?, Access::Both)?;
            let seals = fcntl_get_seals(&memory).unwrap_or(SealFlags::empty());
            let needed = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
            if !seals.contains(needed) {
                return Err(Refusal::Descriptor {
                    of: "memory",
                    fault: "of a file that can be changed",
                });
            }
            vec![memory, file("state", next()?, Access::Reading)?]
        }
    };
    let mut disks = Vec::new();
    for kind in &request.disks {
        disks.push(match kind {
            DiskKind::Empty => AdmittedDisk::Empty,
            DiskKind::Image => AdmittedDisk::Image(file("image", next()?, Access::Reading)?),
            DiskKind::Scratch => {
                let reading = file("scratch disk", next()?, Access::Reading)?;
                let writing = file("scratch disk", next()?, Access::Both)?;
                if identity(&reading) != identity(&writing) {
                    return Err(Refusal::Descriptor {
                        of: "scratch disk",
                        fault: "of another file than the one before it",
                    });
                }
                AdmittedDisk::Scratch { reading, writing }
            }
        });
    }
    Ok(Admitted::Launch {
        request,
        console,
        agent,
        monitor,
        origin,
        disks,
    })
}

fn identity(file: &OwnedFd) -> Option<(u64, u64)> {
    fstat(file).ok().map(|stat| (stat.st_dev, stat.st_ino))
}

/// A plain file that is open in just this way.
fn file(of: &'static str, file: OwnedFd, access: Access) -> Result<OwnedFd, Refusal> {
    let fault = |fault| Refusal::Descriptor { of, fault };
    let stat = fstat(&file).map_err(|_| fault("not open"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(fault("not of a plain file"));
    }
    let flags = fcntl_getfl(&file).map_err(|_| fault("not open"))?;
    let appends = flags.contains(OFlags::APPEND);
    let found = match flags & OFlags::ACCMODE {
        // Also what O_PATH looks like, with which nothing can be read.
        mode if mode == OFlags::RDONLY && !flags.contains(OFlags::PATH) => Access::Reading,
        mode if mode == OFlags::RDWR && !appends => Access::Both,
        mode if mode == OFlags::WRONLY && appends => Access::Appending,
        _ => return Err(fault("open in another way")),
    };
    if found == access {
        Ok(file)
    } else {
        Err(fault("open in another way"))
    }
}

/// A UNIX socket that accepts connections.
fn listener(of: &'static str, socket: OwnedFd) -> Result<OwnedFd, Refusal> {
    let fault = |fault| Refusal::Descriptor { of, fault };
    let fd = socket.as_fd();
    let not_one = |_| fault("not of a socket");
    let stream = sockopt::socket_type(fd).map_err(not_one)? == SocketType::STREAM;
    let unix = sockopt::socket_domain(fd).map_err(not_one)? == rustix::net::AddressFamily::UNIX;
    let listens = sockopt::socket_acceptconn(fd).map_err(not_one)?;
    if stream && unix && listens {
        Ok(socket)
    } else {
        Err(fault("not of a listener at a file"))
    }
}

#[cfg(test)]
mod tests;
