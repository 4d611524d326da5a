//! The jail: what every machine's process is locked into, so that who takes over QEMU holds nothing.
//!
//! ```text
//!  Jail (one for a host) ─ start(Cell) ─▶ groups made ─▶ birth ─▶ QEMU, alone in its cell
//!                        ─ forget(name) ◀─ it has ended
//! ```
//!
//! A cell has a user of its own without any capability, namespaces of its own for all that has one (mounts,
//! processes, network, IPC, host name, control groups), a root directory with QEMU in it and nothing else
//! ([`root`]), control groups ([`control_groups`]), resource limits, and QEMU's own system call filter. How a process
//! gets into it is in [`birth`]. `tests/jail.rs` looks at all of it from outside.

mod birth;
mod control_groups;
mod hierarchy;
mod root;

use std::{
    ffi::{CString, OsString},
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::ffi::OsStringExt,
    },
    path::{Path, PathBuf},
};

pub(crate) use self::control_groups::Bounds;
use self::{birth::Birth, control_groups::ControlGroups, root::Root};
use crate::{Instance, limits::QEMU_OOM_SCORE, process::ProcessIdentity};

/// An empty directory over which each cell's root is made. Nothing is ever in it for anybody else.
const STAGE: &str = "/run/codius/jail";

/// What all cells of a host have in common.
#[derive(Debug)]
pub(crate) struct Jail {
    qemu: PathBuf,
    root: Root,
    groups: ControlGroups,
}

/// One machine's cell and what is started in it.
#[derive(Debug)]
pub(crate) struct Cell<'a> {
    /// Names its control groups.
    pub(crate) name: &'a str,
    /// QEMU's, without its own name.
    pub(crate) arguments: Vec<OsString>,
    /// An own and empty one if there is none.
    pub(crate) network: Option<&'a OwnedFd>,
    pub(crate) user: u32,
    /// The group that may open `/dev/kvm`, of a machine that needs the device.
    pub(crate) kvm: Option<u32>,
    /// Added to the daemon's own.
    pub(crate) niceness: i32,
    pub(crate) bounds: Bounds,
    pub(crate) limits: [(libc::__rlimit_resource_t, u64); 3],
    pub(crate) filter: Option<&'a [libc::sock_filter]>,
    /// Where it complains.
    pub(crate) output: &'a File,
    /// Descriptors that QEMU finds under the numbers they have here.
    pub(crate) keep: Vec<RawFd>,
}

impl Jail {
    /// Finds out what QEMU consists of, and what can be limited. `state_dir` is where the pods' disks are. Blocks.
    pub(crate) fn open(qemu: &Path, instance: &Instance, state_dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(STAGE)?;
        Ok(Self {
            qemu: qemu.to_owned(),
            root: Root::of(qemu)?,
            groups: ControlGroups::open(instance, state_dir),
        })
    }

    /// Starts QEMU in its cell. Blocks until it is QEMU (not until the guest runs). It is our child and outlives us.
    pub(crate) fn start(&self, cell: Cell<'_>) -> io::Result<ProcessIdentity> {
        let groups = self.groups.make(cell.name, &cell.bounds)?;
        let name = cell.name;
        match self.start_in(groups, cell) {
            Ok(pid) => ProcessIdentity::of(pid),
            Err(error) => {
                self.groups.remove(name)?;
                Err(error)
            }
        }
    }

    fn start_in(&self, groups: Vec<File>, cell: Cell<'_>) -> io::Result<libc::pid_t> {
        let program = c_text(self.root.program().into())?;
        // The name by which strays are found.
        let mut arguments = vec![c_text(self.qemu.clone().into())?];
        for argument in cell.arguments {
            arguments.push(c_text(argument)?);
        }
        let nothing = File::open("/dev/null")?;
        let stage = c_text(STAGE.into())?;
        self.root.plan(cell.kvm.is_some(), |plan| {
            let birth = Birth {
                program,
                arguments,
                stage,
                plan,
                groups,
                network: cell.network.map(AsRawFd::as_raw_fd),
                user: cell.user,
                group: cell.kvm,
                niceness: cell.niceness,
                out_of_memory_score: QEMU_OOM_SCORE,
                limits: cell.limits,
                filter: cell.filter,
                input: nothing.as_raw_fd(),
                output: cell.output.as_raw_fd(),
                keep: cell.keep,
            };
            birth.give()
        })?
    }

    /// Removes what is left of a cell whose process has ended, or never was. Blocks.
    pub(crate) fn forget(&self, name: &str) -> io::Result<()> {
        self.groups.remove(name)
    }

    /// The control groups of a running process, which may have been made by a daemon that lived elsewhere.
    pub(crate) fn groups_of(&self, pid: i32, name: &str) -> Vec<PathBuf> {
        self.groups.of_process(pid, name)
    }

    /// Removes such groups, once the process has ended. Blocks.
    pub(crate) fn remove_groups(&self, dirs: &[PathBuf]) -> io::Result<()> {
        self.groups.remove_dirs(dirs)
    }

    /// The names of all cells there are traces of.
    pub(crate) fn names(&self) -> Vec<String> {
        self.groups.names()
    }

    /// What control groups hold: a sentence for the operator.
    pub(crate) fn report(&self) -> String {
        self.groups.report()
    }

    /// Says it aloud, once.
    pub(crate) fn announce(&self) {
        let report = self.groups.report();
        if self.groups.is_whole() {
            tracing::info!("{report}");
        } else {
            tracing::warn!("{report}; see docs/operator.md, Control groups");
        }
    }
}

fn c_text(text: OsString) -> io::Result<CString> {
    Ok(CString::new(text.into_vec())?)
}
