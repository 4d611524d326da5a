//! One QEMU process: its command line, and how it is started without any privilege.
//!
//! QEMU gets every file as a descriptor and stays in no directory of ours: its user may not open, make
//! or change anything. The command line is that of the `microvm` machine, the same for KVM and emulation
//! but for the clock: an emulated guest cannot calibrate its time stamp counter (no timer it could use is
//! wired when ACPI is on) and hangs early unless told the rate.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::{fs::OpenOptionsExt, net::UnixListener, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use codius_guest_protocol::PORT_NAME;
use codius_pod::{Isolation, Machine};
use rustix::fs::{Mode, OFlags};

use crate::{
    limits::{KERNEL_MEMORY_MIB, QEMU_OOM_SCORE, QEMU_OPEN_FILES, TCG_CODE_CACHE_MIB},
    process::ProcessIdentity,
};

/// How guests are run on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accelerator {
    Kvm {
        /// The group that may open `/dev/kvm`.
        group: u32,
    },
    Tcg {
        /// The rate of the host's time stamp counter, which an emulated guest sees as its own.
        tsc_khz: u64,
    },
}

impl Accelerator {
    pub(crate) fn isolation(self) -> Isolation {
        match self {
            Self::Kvm { .. } => Isolation::Kvm,
            Self::Tcg { .. } => Isolation::Tcg,
        }
    }
}

/// Kernel and initramfs, the same for all pods.
#[derive(Debug, Clone)]
pub(crate) struct GuestFiles {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
}

/// A disk, found by the guest by its serial number: the order of virtio-mmio devices is not fixed.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) serial: String,
    /// Open for reading.
    pub(crate) file: File,
    /// Open for reading and writing, if the guest may write. QEMU wants both: it opens a disk for reading first.
    pub(crate) writable: Option<File>,
}

/// A virtual machine to start. All descriptors are QEMU's; ours are closed when this is dropped.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) qemu: &'a Path,
    /// Also how an orphan is found.
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) accelerator: Accelerator,
    pub(crate) machine: Machine,
    pub(crate) kernel: File,
    pub(crate) initramfs: File,
    pub(crate) console: File,
    pub(crate) agent: UnixListener,
    pub(crate) disks: Vec<Disk>,
    pub(crate) network: Option<LaunchNetwork>,
}

#[derive(Debug)]
pub(crate) struct LaunchNetwork {
    pub(crate) namespace: OwnedFd,
    pub(crate) tap: OwnedFd,
}

impl Launch<'_> {
    /// Everything after the program's name.
    fn arguments(&self) -> Vec<OsString> {
        let mut line = CommandLine::default();
        let memory_mib = self.machine.memory_mib + KERNEL_MEMORY_MIB;
        line.add("-name", &self.name);
        line.flag("-nodefaults");
        line.flag("-no-user-config");
        line.add("-display", "none");
        line.flag("-no-reboot");
        line.add(
            "-machine",
            "microvm,rtc=on,pit=off,pic=off,memory-backend=memory",
        );
        let mut kernel_options =
            "console=ttyS0 quiet panic=-1 reboot=t cryptomgr.notests=1 audit=0".to_owned();
        match self.accelerator {
            Accelerator::Kvm { .. } => {
                line.add("-accel", "kvm");
                line.add("-cpu", "host");
            }
            Accelerator::Tcg { tsc_khz } => {
                line.add("-accel", &format!("tcg,tb-size={TCG_CODE_CACHE_MIB}"));
                line.add("-cpu", "max");
                kernel_options.push_str(&format!(" tsc_early_khz={tsc_khz} tsc=reliable"));
            }
        }
        line.add("-smp", &self.machine.vcpus.to_string());
        line.add("-m", &memory_mib.to_string());
        line.add(
            "-object",
            &format!("memory-backend-memfd,id=memory,size={memory_mib}M,share=on"),
        );
        line.add(
            "-kernel",
            &format!("/proc/self/fd/{}", self.kernel.as_raw_fd()),
        );
        line.add(
            "-initrd",
            &format!("/proc/self/fd/{}", self.initramfs.as_raw_fd()),
        );
        line.add("-append", &kernel_options);

        let agent = self.agent.as_raw_fd();
        line.add(
            "-chardev",
            &format!("socket,id=agent,fd={agent},server=on,wait=off"),
        );
        line.add("-device", "virtio-serial-device");
        line.add(
            "-device",
            &format!("virtserialport,chardev=agent,name={PORT_NAME}"),
        );

        let console = line.pass(self.console.as_raw_fd());
        line.add(
            "-chardev",
            &format!("file,id=console,path={console},append=on"),
        );
        line.add("-serial", "chardev:console");

        for disk in &self.disks {
            let (serial, file) = (&disk.serial, line.pass(disk.file.as_raw_fd()));
            let options = match &disk.writable {
                None => "readonly=on",
                Some(writable) => {
                    line.pass_also(disk.file.as_raw_fd(), writable.as_raw_fd());
                    // Lost with the pod, so what the guest flushes need not be durable.
                    "cache=unsafe,discard=unmap,detect-zeroes=unmap"
                }
            };
            line.add(
                "-drive",
                &format!("id={serial},file={file},format=raw,if=none,{options}"),
            );
            line.add(
                "-device",
                &format!("virtio-blk-device,drive={serial},serial={serial}"),
            );
        }
        if let Some(network) = &self.network {
            line.add(
                "-netdev",
                &format!("tap,id=net,fd={}", network.tap.as_raw_fd()),
            );
            line.add(
                "-device",
                &format!(
                    "virtio-net-device,netdev=net,mac={}",
                    crate::network::GUEST_MAC
                ),
            );
        }
        line.add("-device", "virtio-balloon-device,free-page-reporting=on");
        line.add(
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        );
        line.0
    }

    fn descriptors(&self) -> Vec<RawFd> {
        let disks = self
            .disks
            .iter()
            .flat_map(|disk| [Some(&disk.file), disk.writable.as_ref()]);
        let disks = disks.flatten().map(AsRawFd::as_raw_fd);
        [&self.kernel, &self.initramfs, &self.console]
            .map(AsRawFd::as_raw_fd)
            .into_iter()
            .chain([self.agent.as_raw_fd()])
            .chain(disks)
            .chain(self.network.iter().map(|network| network.tap.as_raw_fd()))
            .collect()
    }

    /// Starts the process. Blocks until it has become QEMU (not until the guest runs). It outlives this
    /// process; ending it is up to the caller from here on.
    pub(crate) fn start(self) -> io::Result<ProcessIdentity> {
        // The guest's memory is a file, too.
        let largest_mib = self
            .machine
            .scratch_mib
            .max(self.machine.memory_mib + KERNEL_MEMORY_MIB);
        let jail = Jail {
            namespace: self
                .network
                .as_ref()
                .map(|network| network.namespace.as_raw_fd()),
            uid: self.uid,
            group: match self.accelerator {
                Accelerator::Kvm { group } => Some(group),
                Accelerator::Tcg { .. } => None,
            },
            keep: self.descriptors(),
            limits: [
                (libc::RLIMIT_CORE, 0),
                (libc::RLIMIT_NOFILE, QEMU_OPEN_FILES),
                (libc::RLIMIT_FSIZE, u64::from(largest_mib) * 1024 * 1024),
            ],
        };
        let mut command = Command::new(self.qemu);
        command
            .args(self.arguments())
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(self.console.try_clone()?)
            .stderr(self.console.try_clone()?);
        #[expect(
            unsafe_code,
            reason = "the child gives up its privileges before it becomes QEMU"
        )]
        // SAFETY: `Jail::enter` only makes system calls on values made before the fork: it does not
        // allocate, lock, or touch what other threads own.
        unsafe {
            command.pre_exec(move || jail.enter());
        }
        let child = command.spawn()?;
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        if let Err(error) = std::fs::write(format!("/proc/{pid}/oom_score_adj"), QEMU_OOM_SCORE) {
            tracing::debug!(%error, "the out-of-memory score of a virtual machine could not be set");
        }
        ProcessIdentity::of(pid)
    }
}

#[derive(Default)]
struct CommandLine(Vec<OsString>);

impl CommandLine {
    fn flag(&mut self, name: &str) {
        self.0.push(name.into());
    }

    fn add(&mut self, name: &str, value: &str) {
        self.flag(name);
        self.flag(value);
    }

    /// Gives QEMU a descriptor in place of a file; the result is the path of it.
    fn pass(&mut self, fd: RawFd) -> String {
        self.add("-add-fd", &format!("fd={fd},set={fd}"));
        format!("/dev/fdset/{fd}")
    }

    /// The same file, opened in another way.
    fn pass_also(&mut self, first: RawFd, other: RawFd) {
        self.add("-add-fd", &format!("fd={other},set={first}"));
    }
}

/// What happens to the child between fork and exec.
struct Jail {
    namespace: Option<RawFd>,
    uid: u32,
    group: Option<u32>,
    keep: Vec<RawFd>,
    limits: [(libc::__rlimit_resource_t, u64); 3],
}

impl Jail {
    /// Only system calls: see the SAFETY comment of the caller.
    fn enter(&self) -> io::Result<()> {
        fn check(result: libc::c_int) -> io::Result<()> {
            if result < 0 {
                Err(io::Error::last_os_error())
            } else {
                Ok(())
            }
        }
        #[expect(unsafe_code, reason = "the C library's calls, between fork and exec")]
        // SAFETY: plain system calls with integers and pointers to live stack values. The raw setters are
        // right here because the child has one thread; the C library's would be, too.
        unsafe {
            if let Some(namespace) = self.namespace {
                check(libc::setns(namespace, libc::CLONE_NEWNET))?;
            }
            // A session of its own: a signal to the daemon's terminal or group does not reach it.
            check(libc::setsid())?;
            let groups = [self.group.unwrap_or_default()];
            let count = usize::from(self.group.is_some());
            check(libc::setgroups(count, groups.as_ptr()))?;
            for (resource, limit) in self.limits {
                let limit = libc::rlimit {
                    rlim_cur: limit,
                    rlim_max: limit,
                };
                check(libc::setrlimit(resource, &raw const limit))?;
            }
            check(libc::setresgid(self.uid, self.uid, self.uid))?;
            check(libc::setresuid(self.uid, self.uid, self.uid))?;
            check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
            for &fd in &self.keep {
                check(libc::fcntl(fd, libc::F_SETFD, 0))?;
            }
        }
        Ok(())
    }
}

/// The socket of a pod's agent: made by us and given to QEMU, so that QEMU needs no writable directory, and
/// a connection can be made at once.
pub(crate) fn listen_for_agent(dir: &Path) -> io::Result<UnixListener> {
    let short = ShortDir::open(dir)?;
    UnixListener::bind(short.path("agent.sock"))
}

/// A directory by a short name: the path of a socket has at most 107 bytes.
#[derive(Debug)]
pub(crate) struct ShortDir(OwnedFd);

impl ShortDir {
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(dir, flags, Mode::empty())?))
    }

    /// Valid while this is alive.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.0.as_raw_fd()))
    }
}

/// Where the guest's kernel complains. Appended to, so that it can be emptied while QEMU writes.
pub(crate) fn create_console(dir: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(dir.join("console.log"))
}

/// The rate of the time stamp counter in kHz, measured. `/proc/cpuinfo` has the present clock of a core,
/// which is another thing on most machines.
pub(crate) fn measure_tsc_khz() -> u64 {
    const SAMPLE: Duration = Duration::from_millis(50);
    let (clock, counter) = (Instant::now(), time_stamp());
    std::thread::sleep(SAMPLE);
    let (elapsed, counted) = (clock.elapsed(), time_stamp().wrapping_sub(counter));
    let khz = u128::from(counted) * 1_000_000 / elapsed.as_nanos().max(1);
    u64::try_from(khz).unwrap_or(u64::MAX)
}

fn time_stamp() -> u64 {
    #[expect(unsafe_code, reason = "there is no safe way to the counter")]
    // SAFETY: every x86-64 processor has the instruction, and it only reads a counter.
    unsafe {
        std::arch::x86_64::_rdtsc()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(dir: &Path, accelerator: Accelerator) -> Launch<'static> {
        let file = || File::open("/dev/null").unwrap();
        Launch {
            qemu: Path::new("qemu-system-x86_64"),
            name: "cdab12-0".into(),
            uid: 20_000,
            accelerator,
            machine: Machine::SMALL,
            kernel: file(),
            initramfs: file(),
            console: create_console(dir).unwrap(),
            agent: listen_for_agent(dir).unwrap(),
            disks: vec![
                Disk {
                    serial: "img0".into(),
                    file: file(),
                    writable: None,
                },
                Disk {
                    serial: "scratch".into(),
                    file: file(),
                    writable: Some(file()),
                },
            ],
            network: Some(LaunchNetwork {
                namespace: file().into(),
                tap: file().into(),
            }),
        }
    }

    fn text(arguments: &[OsString]) -> String {
        arguments
            .join(std::ffi::OsStr::new(" "))
            .into_string()
            .unwrap()
    }

    #[test]
    fn the_command_line_holds_what_isolation_needs() {
        let dir = tempfile::tempdir().unwrap();
        let line = text(&launch(dir.path(), Accelerator::Tcg { tsc_khz: 2_300_000 }).arguments());
        assert!(line.contains(
            "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
        ));
        assert!(line.contains("-nodefaults"));
        assert!(line.contains("tsc_early_khz=2300000 tsc=reliable"));
        assert!(line.contains("-m 576 "));
        let image = line.split("-drive ").nth(1).unwrap();
        assert!(
            image.starts_with("id=img0,") && image.contains("readonly=on"),
            "{image}"
        );
    }

    #[test]
    fn kvm_keeps_its_own_clock() {
        let dir = tempfile::tempdir().unwrap();
        let line = text(&launch(dir.path(), Accelerator::Kvm { group: 7 }).arguments());
        assert!(line.contains("-accel kvm -cpu host"));
        assert!(!line.contains("tsc"));
    }

    #[test]
    fn a_socket_can_be_made_below_a_very_long_path() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("d".repeat(200));
        std::fs::create_dir(&dir).unwrap();
        listen_for_agent(&dir).unwrap();
        assert!(dir.join("agent.sock").exists());
    }

    #[test]
    fn the_counter_has_a_plausible_rate() {
        let khz = measure_tsc_khz();
        assert!((500_000..10_000_000).contains(&khz), "{khz}");
    }
}
