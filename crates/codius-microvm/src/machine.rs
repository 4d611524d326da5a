//! One QEMU process: its command line, and what it is started with in its cell (`jail`).
//!
//! QEMU gets every file as a descriptor and sees no directory of ours: it may not open, make or change
//! anything else. The command line is that of the `microvm` machine, the same for KVM and emulation
//! but for the clock: an emulated guest cannot calibrate its time stamp counter (no timer it could use is
//! wired when ACPI is on) and hangs early unless told the rate.
//!
//! A machine comes from a kernel, or is the clone of a template: the template's memory is mapped
//! copy-on-write, and its state is read from a file. Traps of that:
//! * Template and clone must have the same machine, devices and order of devices; what is behind a device (a
//!   disk's file, a network) may differ as long as no driver of the guest has looked.
//! * QEMU opens the memory for writing even if it only maps it privately, so the memory is a sealed memfd:
//!   nobody can change it any more, whatever becomes of one clone.
//! * QEMU gives memory back by making a hole in the file first and then forgetting its private pages. The hole
//!   would be in the memory of every clone; the seal refuses it, and then nothing is given back. So the hole
//!   is said to be made and is not ([`without_holes`]), and for a disk of a clone QEMU is kept from making any.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::{fs::OpenOptionsExt, net::UnixListener},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use codius_guest_protocol::PORT_NAME;
use codius_pod::{Isolation, Machine};
use rustix::fs::{Mode, OFlags};

use crate::{
    jail::{Bounds, Cell, Jail},
    limits::{
        KERNEL_MEMORY_MIB, QEMU_OPEN_FILES, TCG_CLONE_CODE_CACHE_MIB, TCG_CODE_CACHE_MIB,
        YIELDING_NICENESS, qemu_bounds,
    },
    process::ProcessIdentity,
};

pub(crate) const AGENT_SOCKET: &str = "agent.sock";
pub(crate) const MONITOR_SOCKET: &str = "monitor.sock";
/// A disk with nothing on it has this size.
const EMPTY_DISK_BYTES: u32 = 1024 * 1024;

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
    /// Open for reading. None: an empty disk, in a template and where a clone has more disks than it needs.
    pub(crate) file: Option<File>,
    /// Open for reading and writing, if the guest may write. QEMU wants both: it opens a disk for reading first.
    pub(crate) writable: Option<File>,
}

impl Disk {
    pub(crate) fn empty(serial: String) -> Self {
        Self {
            serial,
            file: None,
            writable: None,
        }
    }
}

/// What a machine begins with.
#[derive(Debug)]
pub(crate) enum Origin {
    Boot {
        kernel: File,
        initramfs: File,
        /// Of a machine that becomes a template: a file of the memory's size.
        memory: Option<File>,
    },
    /// It waits to be told to read the state.
    Clone {
        /// A sealed memfd.
        memory: Arc<File>,
        state: File,
    },
}

impl Origin {
    fn files(&self) -> Vec<RawFd> {
        match self {
            Self::Boot {
                kernel,
                initramfs,
                memory,
            } => [Some(kernel), Some(initramfs), memory.as_ref()]
                .into_iter()
                .flatten()
                .map(AsRawFd::as_raw_fd)
                .collect(),
            Self::Clone { memory, state } => vec![memory.as_raw_fd(), state.as_raw_fd()],
        }
    }

    /// The descriptor that a clone reads its state from.
    pub(crate) fn state(&self) -> Option<RawFd> {
        match self {
            Self::Boot { .. } => None,
            Self::Clone { state, .. } => Some(state.as_raw_fd()),
        }
    }

    /// Whether template and clone have to agree on the machine.
    fn is_cloning(&self) -> bool {
        match self {
            Self::Boot { memory, .. } => memory.is_some(),
            Self::Clone { .. } => true,
        }
    }
}

/// A virtual machine to start. All descriptors are QEMU's; ours are closed when this is dropped.
#[derive(Debug)]
pub(crate) struct Launch {
    /// Also how an orphan is found.
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) accelerator: Accelerator,
    pub(crate) machine: Machine,
    pub(crate) origin: Origin,
    pub(crate) console: File,
    pub(crate) agent: UnixListener,
    /// For commands to QEMU itself.
    pub(crate) monitor: Option<UnixListener>,
    pub(crate) disks: Vec<Disk>,
    pub(crate) network: Option<LaunchNetwork>,
    /// Whether it lets others go first: what nobody waits for must not slow a pod that is paid.
    pub(crate) yields: bool,
}

#[derive(Debug)]
pub(crate) enum LaunchNetwork {
    Tap {
        namespace: OwnedFd,
        tap: OwnedFd,
    },
    /// A device that leads nowhere, in a template.
    Unconnected,
}

impl Launch {
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
        match self.accelerator {
            Accelerator::Kvm { .. } => {
                line.add("-accel", "kvm");
                line.add("-cpu", "host");
            }
            Accelerator::Tcg { .. } => {
                let cache_mib = match self.origin {
                    Origin::Boot { .. } => TCG_CODE_CACHE_MIB,
                    Origin::Clone { .. } => TCG_CLONE_CODE_CACHE_MIB,
                };
                line.add("-accel", &format!("tcg,tb-size={cache_mib}"));
                line.add("-cpu", "max");
            }
        }
        line.add("-smp", &self.machine.vcpus.to_string());
        line.add("-m", &memory_mib.to_string());
        let mut memory = match &self.origin {
            Origin::Boot { memory: None, .. } => "memory-backend-memfd,share=on".to_owned(),
            Origin::Boot {
                memory: Some(file), ..
            } => format!("memory-backend-file,share=on,mem-path={}", by_number(file)),
            Origin::Clone { memory, .. } => format!(
                "memory-backend-file,share=off,mem-path={}",
                by_number(memory.as_ref())
            ),
        };
        memory.push_str(&format!(",id=memory,size={memory_mib}M"));
        line.add("-object", &memory);
        match &self.origin {
            Origin::Boot {
                kernel, initramfs, ..
            } => {
                line.add("-kernel", &by_number(kernel));
                line.add("-initrd", &by_number(initramfs));
                line.add("-append", &kernel_options(self.accelerator));
            }
            // The kernel is in the memory.
            Origin::Clone { .. } => line.add("-incoming", "defer"),
        }

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

        if let Some(monitor) = &self.monitor {
            let monitor = monitor.as_raw_fd();
            line.add(
                "-chardev",
                &format!("socket,id=monitor,fd={monitor},server=on,wait=off"),
            );
            line.add("-mon", "chardev=monitor,mode=control");
        }

        let console = line.pass(self.console.as_raw_fd());
        line.add(
            "-chardev",
            &format!("file,id=console,path={console},append=on"),
        );
        line.add("-serial", "chardev:console");

        // See the traps above: no holes in a clone's disks.
        let (holes, device_options) = if self.origin.is_cloning() {
            ("", ",discard=off,write-zeroes=off")
        } else {
            (",discard=unmap,detect-zeroes=unmap", "")
        };
        for disk in &self.disks {
            let serial = &disk.serial;
            let drive = match (&disk.file, &disk.writable) {
                (None, _) => format!("driver=null-co,size={EMPTY_DISK_BYTES},readonly=on"),
                (Some(file), None) => {
                    let file = line.pass(file.as_raw_fd());
                    format!("file={file},format=raw,readonly=on")
                }
                (Some(file), Some(writable)) => {
                    let number = file.as_raw_fd();
                    let file = line.pass(number);
                    line.pass_also(number, writable.as_raw_fd());
                    // Lost with the pod, so what the guest flushes need not be durable.
                    format!("file={file},format=raw,cache=unsafe{holes}")
                }
            };
            line.add("-drive", &format!("id={serial},if=none,{drive}"));
            line.add(
                "-device",
                &format!("virtio-blk-device,drive={serial},serial={serial}{device_options}"),
            );
        }
        if let Some(network) = &self.network {
            let backend = match network {
                LaunchNetwork::Tap { tap, .. } => format!("tap,id=net,fd={}", tap.as_raw_fd()),
                LaunchNetwork::Unconnected => "hubport,id=net,hubid=0".to_owned(),
            };
            line.add("-netdev", &backend);
            line.add("-device", "virtio-net-device,netdev=net");
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
            .flat_map(|disk| [disk.file.as_ref(), disk.writable.as_ref()]);
        let disks = disks.flatten().map(AsRawFd::as_raw_fd);
        let tap = self.network.iter().filter_map(|network| match network {
            LaunchNetwork::Tap { tap, .. } => Some(tap.as_raw_fd()),
            LaunchNetwork::Unconnected => None,
        });
        self.origin
            .files()
            .into_iter()
            .chain([self.console.as_raw_fd(), self.agent.as_raw_fd()])
            .chain(self.monitor.iter().map(AsRawFd::as_raw_fd))
            .chain(disks)
            .chain(tap)
            .collect()
    }

    /// Starts the process. Blocks until it has become QEMU (not until the guest runs). It outlives this
    /// process; ending it is up to the caller from here on.
    pub(crate) fn start(self, jail: &Jail) -> io::Result<ProcessIdentity> {
        // The guest's memory is a file, too.
        let largest_mib = self
            .machine
            .scratch_mib
            .max(self.machine.memory_mib + KERNEL_MEMORY_MIB);
        let filter = matches!(self.origin, Origin::Clone { .. }).then(without_holes);
        jail.start(Cell {
            name: &self.name,
            arguments: self.arguments(),
            network: self.network.as_ref().and_then(|network| match network {
                LaunchNetwork::Tap { namespace, .. } => Some(namespace),
                LaunchNetwork::Unconnected => None,
            }),
            user: self.uid,
            kvm: match self.accelerator {
                Accelerator::Kvm { group } => Some(group),
                Accelerator::Tcg { .. } => None,
            },
            niceness: if self.yields { YIELDING_NICENESS } else { 0 },
            bounds: self.bounds(),
            limits: [
                (libc::RLIMIT_CORE, 0),
                (libc::RLIMIT_NOFILE, QEMU_OPEN_FILES),
                (libc::RLIMIT_FSIZE, u64::from(largest_mib) * 1024 * 1024),
            ],
            filter: filter.as_ref().map(|filter| filter.as_slice()),
            output: &self.console,
            keep: self.descriptors(),
        })
    }

    /// What the machine may take of the host: what is sold, and what QEMU needs to give it.
    fn bounds(&self) -> Bounds {
        let emulated = matches!(self.accelerator, Accelerator::Tcg { .. });
        qemu_bounds(self.machine, emulated, self.yields)
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

/// A system call filter under which making a hole in a file seems to succeed and changes nothing. QEMU adds its
/// own to it, and of two filters the stricter answer counts.
fn without_holes() -> [libc::sock_filter; 8] {
    const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const X86_64: u32 = 0xc000_003e; // AUDIT_ARCH_X86_64
    const FALLOCATE: u32 = 285;
    /// FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
    const HOLE: u32 = 3;
    // Offsets in struct seccomp_data: the call's number, the architecture, the second argument's lower half.
    const NUMBER: u32 = 0;
    const ARCHITECTURE: u32 = 4;
    const MODE: u32 = 24;
    let line = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    [
        line(LOAD, 0, 0, ARCHITECTURE),
        line(IF_EQUAL, 0, 5, X86_64),
        line(LOAD, 0, 0, NUMBER),
        line(IF_EQUAL, 0, 3, FALLOCATE),
        line(LOAD, 0, 0, MODE),
        line(IF_EQUAL, 0, 1, HOLE),
        // With error number 0 the call returns 0.
        line(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO),
        line(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

/// What the guest's kernel is told.
fn kernel_options(accelerator: Accelerator) -> String {
    let options = "console=ttyS0 quiet panic=-1 reboot=t cryptomgr.notests=1 audit=0";
    match accelerator {
        Accelerator::Kvm { .. } => options.to_owned(),
        Accelerator::Tcg { tsc_khz } => {
            format!("{options} tsc_early_khz={tsc_khz} tsc=reliable")
        }
    }
}

/// A path to a file that QEMU has inherited.
fn by_number(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// The socket of a pod's agent: made by us and given to QEMU, so that QEMU needs no writable directory, and
/// a connection can be made at once.
pub(crate) fn listen_for_agent(dir: &Path) -> io::Result<UnixListener> {
    listen(dir, AGENT_SOCKET)
}

/// The socket for commands to QEMU. Whoever may reach it owns the machine: the directory is root's alone.
pub(crate) fn listen_for_monitor(dir: &Path) -> io::Result<UnixListener> {
    listen(dir, MONITOR_SOCKET)
}

fn listen(dir: &Path, name: &str) -> io::Result<UnixListener> {
    let short = ShortDir::open(dir)?;
    let path = short.path(name);
    // Of a machine that has failed before.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(path)
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

    fn launch(dir: &Path, accelerator: Accelerator) -> Launch {
        let file = || File::open("/dev/null").unwrap();
        Launch {
            name: "cdab12-0".into(),
            uid: 20_000,
            accelerator,
            machine: Machine::SMALL,
            origin: Origin::Boot {
                kernel: file(),
                initramfs: file(),
                memory: None,
            },
            console: create_console(dir).unwrap(),
            agent: listen_for_agent(dir).unwrap(),
            monitor: None,
            disks: vec![
                Disk {
                    serial: "img0".into(),
                    file: Some(file()),
                    writable: None,
                },
                Disk {
                    serial: "scratch".into(),
                    file: Some(file()),
                    writable: Some(file()),
                },
            ],
            network: Some(LaunchNetwork::Tap {
                namespace: file().into(),
                tap: file().into(),
            }),
            yields: false,
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
    fn a_clone_has_the_devices_of_its_template_and_makes_no_holes() {
        let dir = tempfile::tempdir().unwrap();
        let devices = |launch: Launch| -> Vec<OsString> {
            let arguments = launch.arguments();
            let pairs = arguments.windows(2);
            pairs
                .filter(|pair| {
                    ["-device", "-machine", "-cpu", "-m", "-smp"]
                        .iter()
                        .any(|name| pair[0] == *name)
                })
                .map(|pair| pair[1].clone())
                .collect()
        };
        let file = || File::open("/dev/null").unwrap();
        let accelerator = Accelerator::Tcg { tsc_khz: 1 };
        let mut template = launch(dir.path(), accelerator);
        template.origin = Origin::Boot {
            kernel: file(),
            initramfs: file(),
            memory: Some(file()),
        };
        template.network = Some(LaunchNetwork::Unconnected);
        template.disks = ["img0", "scratch"]
            .map(|serial| Disk::empty(serial.into()))
            .into();
        let mut clone = launch(dir.path(), accelerator);
        clone.origin = Origin::Clone {
            memory: Arc::new(file()),
            state: file(),
        };
        let line = text(&clone.arguments());
        assert!(!line.contains("unmap") && !line.contains("-kernel") && line.contains("share=off"));
        assert_eq!(devices(template), devices(clone));
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
