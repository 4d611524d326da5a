//! What the program can do: one attempt after the other, each with what came of it.

use std::{
    ffi::CString,
    fs::{self, OpenOptions},
    io::{self, Write},
    net::{Ipv4Addr, TcpListener},
    os::{
        fd::AsRawFd,
        unix::fs::{PermissionsExt, chown},
    },
    path::Path,
};

use crate::calls::{apart, call, old_call};

type Attempt = (&'static str, fn() -> io::Result<()>);

/// In the order of the report.
const ATTEMPTS: &[Attempt] = &[
    // The file system and its namespaces.
    ("mount", || {
        path_call(libc::SYS_mount, &["none", "/tmp", "tmpfs"])
    }),
    ("unmount", || path_call(libc::SYS_umount2, &["/proc/sys"])),
    ("change the root", || {
        path_call(libc::SYS_pivot_root, &["/tmp", "/tmp"])
    }),
    ("copy a mount", || {
        path_call(libc::SYS_open_tree, &["", "/"])
    }),
    ("open a file system", || {
        path_call(libc::SYS_fsopen, &["proc"])
    }),
    ("change a mount", || just(libc::SYS_mount_setattr, &[])),
    ("new mount namespace", || {
        just(libc::SYS_unshare, &[flag(libc::CLONE_NEWNS)])
    }),
    ("new user namespace", || {
        just(libc::SYS_unshare, &[flag(libc::CLONE_NEWUSER)])
    }),
    ("process in a user namespace", || clone(libc::CLONE_NEWUSER)),
    ("process in a network namespace", || {
        clone(libc::CLONE_NEWNET)
    }),
    ("clone3", || just(libc::SYS_clone3, &[0, 0])),
    ("enter a namespace", || {
        let namespace = fs::File::open("/proc/self/ns/net")?;
        just(libc::SYS_setns, &[descriptor(&namespace), 0])
    }),
    ("open by handle", || {
        just(libc::SYS_open_by_handle_at, &[0, 0, 0])
    }),
    ("out of a root by another", leave_root),
    ("quota", || just(libc::SYS_quotactl, &[0, 0, 0, 0])),
    ("swap", || path_call(libc::SYS_swapon, &["/tmp/swap"])),
    ("process accounting", || {
        path_call(libc::SYS_acct, &["/tmp/acct"])
    }),
    ("watch all files", || just(libc::SYS_fanotify_init, &[0, 0])),
    // The kernel.
    ("load a module", || {
        let image = [0_u8; 64];
        just(
            libc::SYS_init_module,
            &[image.as_ptr().addr(), image.len(), c"".as_ptr().addr()],
        )
    }),
    ("load a module from a file", || {
        let file = fs::File::open("/proc/self/exe")?;
        just(
            libc::SYS_finit_module,
            &[descriptor(&file), c"".as_ptr().addr(), 0],
        )
    }),
    ("unload a module", || {
        path_call(libc::SYS_delete_module, &["virtio_net"])
    }),
    ("load another kernel", || {
        just(libc::SYS_kexec_load, &[0, 0, 0, 0])
    }),
    ("load another kernel from a file", || {
        just(libc::SYS_kexec_file_load, &[0, 0, 0, 0, 0])
    }),
    ("bpf", || just(libc::SYS_bpf, &[0, 0, 0])),
    ("performance events", || {
        just(libc::SYS_perf_event_open, &[0, 0, 0, 0, 0])
    }),
    ("page faults of one's own", || {
        just(libc::SYS_userfaultfd, &[1])
    }),
    ("io_uring", || just(libc::SYS_io_uring_setup, &[1, 0])),
    ("key rings", || just(libc::SYS_keyctl, &[0, 0, 0])),
    ("add a key", || {
        path_call(libc::SYS_add_key, &["user", "a", "b"])
    }),
    ("kernel log", || just(libc::SYS_syslog, &[10, 0, 0])),
    ("power", || {
        // Only "Ctrl-Alt-Del does no more than a signal".
        just(libc::SYS_reboot, &[0xfee1_dead, 672_274_793, 0])
    }),
    ("host name", || path_call(libc::SYS_sethostname, &["mine"])),
    ("clock", || {
        let now = [1_900_000_000_usize, 0];
        just(libc::SYS_clock_settime, &[0, now.as_ptr().addr()])
    }),
    ("clock, the old way", || {
        just(libc::SYS_settimeofday, &[0, 0])
    }),
    ("ports of the processor", || just(libc::SYS_iopl, &[3])),
    ("descriptor tables", || {
        just(libc::SYS_modify_ldt, &[0, 0, 0])
    }),
    ("memory policy", || {
        just(libc::SYS_get_mempolicy, &[0, 0, 0, 0, 0])
    }),
    ("no random addresses", || {
        just(libc::SYS_personality, &[0x4_0000])
    }),
    ("compare kernel objects", || {
        just(libc::SYS_kcmp, &[1, 1, 1, 0, 0])
    }),
    ("take a descriptor of another", || {
        just(libc::SYS_pidfd_getfd, &[0, 0, 0])
    }),
    ("a call from the future", || just(700, &[])),
    ("a call of x32", || just(0x4000_0027, &[])),
    ("a call of 32 bits", || apart(old_call)),
    // Devices and files of the kernel.
    ("device node of a disk", || {
        node(libc::S_IFBLK, "/tmp/disk", 254, 0)
    }),
    ("device node of memory", || {
        node(libc::S_IFCHR, "/tmp/memory", 1, 1)
    }),
    ("/dev/mem", || open("/dev/mem")),
    ("/dev/kmsg", || open("/dev/kmsg")),
    ("/dev/vda", || open("/dev/vda")),
    ("/dev/vport0p1", || open("/dev/vport0p1")),
    ("sysrq", || write("/proc/sysrq-trigger", "h")),
    ("core pattern", || {
        write("/proc/sys/kernel/core_pattern", "|/x")
    }),
    ("modprobe path", || write("/proc/sys/kernel/modprobe", "/x")),
    ("network setting", || {
        write("/proc/sys/net/ipv4/ip_forward", "1")
    }),
    ("uevent helper", || write("/sys/kernel/uevent_helper", "/x")),
    ("its own memory limit", || {
        write("/sys/fs/cgroup/memory.max", "max")
    }),
    ("its own process limit", || {
        write("/sys/fs/cgroup/pids.max", "max")
    }),
    ("never to be killed for memory", || {
        write("/proc/self/oom_score_adj", "-1000")
    }),
    ("what it is told of the lease", || {
        write("/dev/codius/lease.json", "{}")
    }),
    ("more open files", || {
        let limit = [1_usize << 20, 1 << 20];
        just(libc::SYS_prlimit64, &[0, 7, limit.as_ptr().addr(), 0])
    }),
    ("real-time scheduling", || {
        let priority = [1_i32];
        just(
            libc::SYS_sched_setscheduler,
            &[0, 1, priority.as_ptr().addr()],
        )
    }),
    ("higher priority", || {
        just(libc::SYS_setpriority, &[0, 0, usize::MAX - 9])
    }),
    // The network.
    ("raw socket", || socket(libc::AF_INET, libc::SOCK_RAW, 1)),
    ("packet socket", || {
        socket(libc::AF_PACKET, libc::SOCK_RAW, 0x300)
    }),
    ("crypto socket", || {
        socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0)
    }),
    ("vsock", || socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0)),
    ("audit", || socket(libc::AF_NETLINK, libc::SOCK_RAW, 9)),
    ("interface down", interface_down),
    // What programs need, and therefore have.
    ("ping socket", || socket(libc::AF_INET, libc::SOCK_DGRAM, 1)),
    ("port 80", port_80),
    ("give a file away", || {
        fs::write("/tmp/given", "")?;
        chown("/tmp/given", Some(33), Some(33))
    }),
    ("file of another", || fs::write("/other-owner", "mine")),
    ("become another user", || {
        apart(|| just(libc::SYS_setresuid, &[33, 33, 33]))
    }),
    ("a root of its own", || {
        apart(|| path_call(libc::SYS_chroot, &["/tmp"]))
    }),
    ("set-user-ID bit", || {
        fs::write("/tmp/suid", "")?;
        fs::set_permissions("/tmp/suid", PermissionsExt::from_mode(0o4755))
    }),
    ("trace a child", trace_child),
    ("semaphores", || just(libc::SYS_semget, &[0, 1, 0o1600])),
    ("memory without a name", || {
        path_call(libc::SYS_memfd_create, &["a"])
    }),
];

pub(crate) fn tell() {
    for (name, attempt) in ATTEMPTS {
        let outcome = match attempt() {
            Ok(()) => "could".to_owned(),
            Err(error) => match error.raw_os_error() {
                Some(code) => refusal(code),
                None => error.to_string(),
            },
        };
        println!("{name}: {outcome}");
    }
}

fn refusal(code: i32) -> String {
    let name = match code {
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::EBADF => "EBADF",
        libc::EACCES => "EACCES",
        libc::EFAULT => "EFAULT",
        libc::EINVAL => "EINVAL",
        libc::EROFS => "EROFS",
        libc::ENOSYS => "ENOSYS",
        libc::EAFNOSUPPORT => "EAFNOSUPPORT",
        libc::EPROTONOSUPPORT => "EPROTONOSUPPORT",
        code => return format!("error {code}"),
    };
    name.to_owned()
}

fn just(number: libc::c_long, arguments: &[usize]) -> io::Result<()> {
    call(number, arguments).map(drop)
}

fn flag(flag: libc::c_int) -> usize {
    usize::try_from(flag.unsigned_abs()).unwrap_or(0)
}

fn descriptor(file: &fs::File) -> usize {
    flag(file.as_raw_fd())
}

/// A call whose arguments are texts.
fn path_call(number: libc::c_long, texts: &[&str]) -> io::Result<()> {
    let texts: Vec<CString> = texts
        .iter()
        .map(|text| CString::new(*text))
        .collect::<Result<_, _>>()?;
    let pointers: Vec<usize> = texts.iter().map(|text| text.as_ptr().addr()).collect();
    just(number, &pointers)
}

fn clone(namespace: libc::c_int) -> io::Result<()> {
    // As `fork`, and the child ends at once.
    let flags = flag(namespace | libc::SIGCHLD);
    if call(libc::SYS_clone, &[flags, 0, 0, 0, 0])? == 0 {
        std::process::exit(0);
    }
    Ok(())
}

/// The old way out of `chroot`: a directory kept open, a root below it, and up from there. It leads to the root of
/// the mount namespace, so the question is what that is.
fn leave_root() -> io::Result<()> {
    apart(|| {
        let outside = fs::File::open("/")?;
        fs::create_dir_all("/tmp/inner")?;
        path_call(libc::SYS_chroot, &["/tmp/inner"])?;
        just(libc::SYS_fchdir, &[descriptor(&outside)])?;
        for _ in 0..64 {
            std::env::set_current_dir("..")?;
        }
        path_call(libc::SYS_chroot, &["."])?;
        let agents = ["/run/images", "/run/scratch", "/modules", "/init"];
        if agents.iter().any(|path| Path::new(path).exists()) {
            return Ok(());
        }
        Err(io::Error::from_raw_os_error(libc::ENOENT))
    })
}

fn node(kind: libc::mode_t, path: &str, major: u32, minor: u32) -> io::Result<()> {
    let path = CString::new(path)?;
    let device = usize::try_from(libc::makedev(major, minor)).map_err(io::Error::other)?;
    let mode = usize::try_from(kind | 0o600).map_err(io::Error::other)?;
    just(libc::SYS_mknod, &[path.as_ptr().addr(), mode, device])
}

fn open(path: &str) -> io::Result<()> {
    fs::File::open(path).map(drop)
}

fn write(path: &str, text: &str) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(text.as_bytes())
}

fn socket(family: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> io::Result<()> {
    just(
        libc::SYS_socket,
        &[flag(family), flag(kind), flag(protocol)],
    )
}

/// At an address of each user's own: the containers of a pod share their network, and may try at the same time.
fn port_80() -> io::Result<()> {
    let user = call(libc::SYS_getuid, &[])?;
    let last = if user == 0 { 1 } else { 2 };
    TcpListener::bind((Ipv4Addr::new(127, 0, 0, last), 80)).map(drop)
}

fn interface_down() -> io::Result<()> {
    let socket = call(
        libc::SYS_socket,
        &[flag(libc::AF_INET), flag(libc::SOCK_DGRAM), 0],
    )?;
    let mut request = [0_u8; 40];
    request[..4].copy_from_slice(b"eth0");
    let socket = usize::try_from(socket).map_err(io::Error::other)?;
    // SIOCSIFFLAGS with no flag at all.
    just(libc::SYS_ioctl, &[socket, 0x8914, request.as_ptr().addr()])
}

fn trace_child() -> io::Result<()> {
    // PTRACE_TRACEME.
    apart(|| just(libc::SYS_ptrace, &[0, 0, 0, 0]))
}
