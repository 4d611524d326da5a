//! How a process comes to be QEMU: between its first moment and `execve`, it locks itself in.
//!
//! ```text
//!  clone3: own processes, mounts, IPC, host name, (network)
//!    ▼
//!  control groups ─▶ network ─▶ new root, the old one let go ─▶ limits, session
//!    ─▶ bounding set, user, no capability ─▶ no new privileges, filter ─▶ descriptors ─▶ execve
//! ```
//!
//! Whatever fails is told to the parent by a pipe, which closes with `execve`; nothing runs half locked in.
//!
//! Traps:
//! * The child is a copy of one thread of many. Memory of the others' locks is as they left it: so it allocates
//!   nothing, takes no lock, and only makes system calls on what was prepared before.
//! * The C library's `setresuid` and its like tell all threads of a process, and it does not know that they are gone:
//!   the calls are made without it.
//! * It is the first process of its process namespace: signals that it does not handle do nothing to it, but SIGKILL and
//!   SIGSTOP from outside, and faults, do. When it ends, so does all that it might have started.

use std::{
    ffi::{CStr, CString},
    fs::File,
    io::{self, Read},
    os::fd::{AsRawFd, OwnedFd, RawFd},
    ptr,
};

use rustix::pipe::{PipeFlags, pipe_with};

use super::root::Plan;

/// Not in the C library's headers as a number that fits its type.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
/// `struct mount_attr` and its flags, of `linux/mount.h`.
const MOUNT_ATTR_RDONLY: u64 = 0x1;
const MOUNT_ATTR_NOSUID: u64 = 0x2;
const MOUNT_ATTR_NODEV: u64 = 0x4;
const MOUNT_ATTR_NOEXEC: u64 = 0x8;
/// `_LINUX_CAPABILITY_VERSION_3`: two words for each set.
const CAPABILITY_VERSION: u32 = 0x2008_0522;
/// Numbers of capabilities are below it, whatever the kernel.
const MAX_CAPABILITIES: libc::c_ulong = 64;
/// The name that the process finds its machine to have.
const HOST_NAME: &CStr = c"pod";

#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Everything that the child needs, made before it is.
pub(super) struct Birth<'a> {
    pub(super) program: CString,
    pub(super) arguments: Vec<CString>,
    /// An empty directory of the host, to make the root on: each child sees its own there.
    pub(super) stage: CString,
    pub(super) plan: &'a Plan,
    /// `cgroup.procs` of each control group to enter, opened for writing.
    pub(super) groups: Vec<File>,
    /// None: a new and empty one.
    pub(super) network: Option<RawFd>,
    pub(super) user: u32,
    pub(super) group: Option<u32>,
    pub(super) niceness: libc::c_int,
    pub(super) out_of_memory_score: &'a CStr,
    pub(super) limits: [(libc::__rlimit_resource_t, u64); 3],
    pub(super) filter: Option<&'a [libc::sock_filter]>,
    pub(super) input: RawFd,
    pub(super) output: RawFd,
    /// Descriptors that it keeps, beside these two.
    pub(super) keep: Vec<RawFd>,
}

/// What the child was doing when it failed. The number goes through the pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Step {
    Groups,
    Network,
    Stage,
    Files,
    Devices,
    Root,
    Limits,
    Privileges,
    Filter,
    Descriptors,
    Execute,
}

impl Step {
    const ALL: [(Self, &'static str); 11] = [
        (Self::Groups, "enter the control groups of the machine"),
        (Self::Network, "enter the network of the machine"),
        (Self::Stage, "make a root directory"),
        (Self::Files, "put QEMU's files into its root directory"),
        (Self::Devices, "put devices into QEMU's root directory"),
        (Self::Root, "enter QEMU's root directory"),
        (Self::Limits, "set the limits of QEMU's process"),
        (Self::Privileges, "give up all privileges"),
        (Self::Filter, "filter system calls"),
        (Self::Descriptors, "hand over descriptors"),
        (Self::Execute, "start QEMU in its root directory"),
    ];
}

type Failed = (Step, i32);

impl Birth<'_> {
    /// Makes the process and waits until it is QEMU. Returns its id: it is our child, and outlives us.
    pub(super) fn give(&self) -> io::Result<libc::pid_t> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        let mut arguments: Vec<*const libc::c_char> =
            self.arguments.iter().map(|text| text.as_ptr()).collect();
        arguments.push(ptr::null());
        let new_network = if self.network.is_none() {
            libc::CLONE_NEWNET
        } else {
            0
        };
        let namespaces = libc::CLONE_NEWPID
            | libc::CLONE_NEWNS
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS
            | new_network;
        let flags = u64::from(namespaces.unsigned_abs()) | CLONE_CLEAR_SIGHAND;
        #[expect(
            unsafe_code,
            reason = "there is no safe call that makes such a process"
        )]
        // SAFETY: clone_args is plain numbers, and zero means "not asked for" in all of them. Without CLONE_VM the
        // child has a copy of our memory and goes on here, as after fork(2). What it does then is `child`, which
        // never returns and keeps to the traps above; `arguments` and `self` live in its copy.
        let pid = unsafe {
            let mut request: libc::clone_args = std::mem::zeroed();
            request.flags = flags;
            request.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
            let size = size_of::<libc::clone_args>();
            let pid = libc::syscall(libc::SYS_clone3, &raw mut request, size);
            if pid == 0 {
                self.child(&arguments, &writer)
            }
            pid
        };
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
        drop(writer);
        let mut report = Vec::new();
        // Ends with execve, which closes the child's end, or with the child.
        File::from(reader).read_to_end(&mut report)?;
        let Some(failure) = read_report(&report) else {
            return Ok(pid);
        };
        #[expect(unsafe_code, reason = "it is no child of the standard library")]
        // SAFETY: waits for our own child, which is ending; no memory is written to.
        unsafe {
            libc::waitpid(pid, ptr::null_mut(), 0);
        }
        Err(failure)
    }

    /// The life of the child until it is QEMU.
    #[expect(unsafe_code, reason = "system calls, in the copy of a process")]
    // SAFETY: to be called in the child only. Every pointer is to memory that was made before the child was and that
    // nobody else has in this process.
    unsafe fn child(&self, arguments: &[*const libc::c_char], report: &OwnedFd) -> ! {
        // SAFETY: as above; `lock_in` and `_exit` only make system calls.
        unsafe {
            let (step, error) = match self.lock_in() {
                Ok(()) => {
                    let nothing: [*const libc::c_char; 1] = [ptr::null()];
                    libc::execve(self.program.as_ptr(), arguments.as_ptr(), nothing.as_ptr());
                    (Step::Execute, errno())
                }
                Err(failed) => failed,
            };
            let mut message = [0; 5];
            message[0] = step as u8;
            message[1..].copy_from_slice(&error.to_ne_bytes());
            libc::write(report.as_raw_fd(), message.as_ptr().cast(), message.len());
            libc::_exit(127)
        }
    }

    #[expect(unsafe_code, reason = "system calls, in the copy of a process")]
    // SAFETY: as `child`.
    unsafe fn lock_in(&self) -> Result<(), Failed> {
        // SAFETY: as `child`.
        unsafe {
            let step = Step::Groups;
            for group in &self.groups {
                // "0" is whoever writes it.
                check(
                    step,
                    libc::write(group.as_raw_fd(), c"0".as_ptr().cast(), 1),
                )?;
            }
            check(step, libc::unshare(libc::CLONE_NEWCGROUP))?;
            if let Some(network) = self.network {
                check(Step::Network, libc::setns(network, libc::CLONE_NEWNET))?;
            }
            // Written while the host's /proc is still there.
            let score = libc::open(
                c"/proc/self/oom_score_adj".as_ptr(),
                libc::O_WRONLY | libc::O_CLOEXEC,
            );
            check(Step::Limits, score)?;
            let text = self.out_of_memory_score;
            let length = text.count_bytes();
            check(
                Step::Limits,
                libc::write(score, text.as_ptr().cast(), length),
            )?;

            self.change_root()?;

            let step = Step::Limits;
            let (name, length) = (HOST_NAME.as_ptr(), HOST_NAME.count_bytes());
            check(step, libc::sethostname(name, length))?;
            check(step, libc::setdomainname(name, 0))?;
            // A session of its own: a signal to the daemon's terminal or group does not reach it.
            check(step, libc::setsid())?;
            if self.niceness != 0 {
                // -1 may be a result, too; and if it does not yield, it is only less kind.
                let _ = libc::nice(self.niceness);
            }
            for (resource, limit) in self.limits {
                let limit = libc::rlimit {
                    rlim_cur: limit,
                    rlim_max: limit,
                };
                check(step, libc::setrlimit(resource, &raw const limit))?;
            }
            self.give_up_privileges()?;

            let step = Step::Descriptors;
            check(step, libc::dup2(self.input, 0))?;
            check(step, libc::dup2(self.output, 1))?;
            check(step, libc::dup2(self.output, 2))?;
            // Nothing gets through by the mistake of who opened it.
            let rest = libc::syscall(
                libc::SYS_close_range,
                3,
                libc::c_uint::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            );
            check(step, rest)?;
            for &fd in &self.keep {
                check(step, libc::fcntl(fd, libc::F_SETFD, 0))?;
            }
            // The standard library ignores SIGPIPE, and execve would keep that.
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            check(
                step,
                libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()),
            )
        }
    }

    /// A root of its own; everything of the host goes out of sight.
    #[expect(unsafe_code, reason = "system calls, in the copy of a process")]
    // SAFETY: as `child`.
    unsafe fn change_root(&self) -> Result<(), Failed> {
        const NONE: *const libc::c_char = ptr::null();
        // SAFETY: as `child`.
        unsafe {
            let step = Step::Stage;
            // The mode of what is made here is meant as it is said.
            libc::umask(0);
            // Nothing that is mounted from here on is seen by the host.
            let private = libc::MS_REC | libc::MS_PRIVATE;
            check(
                step,
                libc::mount(NONE, c"/".as_ptr(), NONE, private, ptr::null()),
            )?;
            let options = c"mode=0755,size=64k,nr_inodes=1024".as_ptr();
            let kind = c"tmpfs".as_ptr();
            let flags = libc::MS_NOSUID | libc::MS_NODEV;
            let stage = self.stage.as_ptr();
            check(step, libc::mount(kind, stage, kind, flags, options.cast()))?;
            check(step, libc::chdir(stage))?;
            for directory in &self.plan.directories {
                check(step, libc::mkdir(directory.as_ptr(), 0o755))?;
            }
            for place in &self.plan.places {
                let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY | libc::O_CLOEXEC;
                let file = libc::open(place.as_ptr(), flags, 0o444);
                check(step, file)?;
                libc::close(file);
            }
            let bind = |step, mount: &super::root::Mount| {
                let (source, place) = (mount.source.as_ptr(), mount.place.as_ptr());
                check(
                    step,
                    libc::mount(source, place, NONE, libc::MS_BIND, ptr::null()),
                )
            };
            for file in &self.plan.files {
                bind(Step::Files, file)?;
            }
            let for_all = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
            let recursive = libc::AT_RECURSIVE;
            check(Step::Files, set_attributes(c".", for_all, 0, recursive))?;
            let alone = MOUNT_ATTR_NOEXEC;
            check(Step::Files, set_attributes(c".", alone, 0, 0))?;
            for device in &self.plan.devices {
                let step = Step::Devices;
                bind(step, device)?;
                let attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC;
                // Those of the host's own mount may forbid devices.
                check(
                    step,
                    set_attributes(&device.place, attributes, MOUNT_ATTR_NODEV, 0),
                )?;
            }
            // Only processes are in it, and of those only itself: no settings, nothing about the machine.
            let flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
            let (kind, options) = (c"proc".as_ptr(), c"subset=pid,hidepid=2".as_ptr());
            check(step, libc::mount(kind, kind, kind, flags, options.cast()))?;

            let step = Step::Root;
            // The old root is stacked on the new one, and taken off (pivot_root(2)).
            let here = c".".as_ptr();
            check(step, libc::syscall(libc::SYS_pivot_root, here, here))?;
            check(step, libc::umount2(here, libc::MNT_DETACH))?;
            check(step, libc::chdir(c"/".as_ptr()))?;
            libc::umask(0o077);
            Ok(())
        }
    }

    #[expect(unsafe_code, reason = "system calls, in the copy of a process")]
    // SAFETY: as `child`.
    unsafe fn give_up_privileges(&self) -> Result<(), Failed> {
        // SAFETY: as `child`. The raw calls change this thread, and it is the only one.
        unsafe {
            let step = Step::Privileges;
            for capability in 0..MAX_CAPABILITIES {
                if libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) < 0 {
                    // The kernel knows no more of them. Any other error shows below or in the security test.
                    if errno() == libc::EINVAL {
                        break;
                    }
                    return Err((step, errno()));
                }
            }
            let groups = [self.group.unwrap_or_default()];
            let count = usize::from(self.group.is_some());
            check(
                step,
                libc::syscall(libc::SYS_setgroups, count, groups.as_ptr()),
            )?;
            let id = self.user;
            check(step, libc::syscall(libc::SYS_setresgid, id, id, id))?;
            check(step, libc::syscall(libc::SYS_setresuid, id, id, id))?;
            let (raise_none, clear) = (libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL);
            check(step, libc::prctl(raise_none, clear, 0, 0, 0))?;
            let header = [CAPABILITY_VERSION, 0];
            let none = [0_u32; 6];
            check(
                step,
                libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()),
            )?;
            // The keys of the daemon's session are not for it. A kernel without keys has none to give.
            const JOIN_SESSION_KEYRING: libc::c_int = 1;
            let joined = libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, ptr::null::<u8>());
            if joined < 0 && errno() != libc::ENOSYS {
                return Err((step, errno()));
            }
            check(step, libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
            let Some(filter) = self.filter else {
                return Ok(());
            };
            let program = libc::sock_fprog {
                len: u16::try_from(filter.len()).unwrap_or(u16::MAX),
                // The kernel only reads it.
                filter: filter.as_ptr().cast_mut(),
            };
            let mode = libc::SECCOMP_MODE_FILTER;
            let set = libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program);
            check(Step::Filter, set)
        }
    }
}

fn errno() -> i32 {
    io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or_default()
}

fn check(step: Step, result: impl TryInto<i64>) -> Result<(), Failed> {
    if result.try_into().is_ok_and(|result| result < 0) {
        Err((step, errno()))
    } else {
        Ok(())
    }
}

#[expect(unsafe_code, reason = "the C library has no name for the call")]
fn set_attributes(path: &CStr, set: u64, clear: u64, flags: libc::c_int) -> libc::c_long {
    let attributes = MountAttributes {
        set,
        clear,
        propagation: 0,
        user_namespace: 0,
    };
    // SAFETY: the path ends with a zero, and the attributes are the kernel's structure in its first version, whose
    // size is said.
    unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    }
}

/// What the child said before it ended, if it did.
fn read_report(report: &[u8]) -> Option<io::Error> {
    let (&step, error) = report.split_first()?;
    let doing = Step::ALL
        .iter()
        .find(|(known, _)| *known as u8 == step)
        .map_or("start QEMU", |(_, doing)| doing);
    let error = error.try_into().map_or_else(
        |_| io::Error::from(io::ErrorKind::UnexpectedEof),
        |bytes| io::Error::from_raw_os_error(i32::from_ne_bytes(bytes)),
    );
    Some(io::Error::new(
        error.kind(),
        format!("could not {doing}: {error}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_failed_and_why() {
        assert!(read_report(&[]).is_none());
        let mut report = vec![Step::Network as u8];
        report.extend(libc::EPERM.to_ne_bytes());
        let error = read_report(&report).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        let text = error.to_string();
        assert!(
            text.starts_with("could not enter the network of the machine: "),
            "{text}"
        );
        assert!(read_report(&report[..3]).is_some());
    }
}
