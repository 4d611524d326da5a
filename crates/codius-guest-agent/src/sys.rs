//! System calls that `rustix` does not have or has only as unsafe functions. All `unsafe` code of the
//! agent is here.
#![expect(unsafe_code, reason = "system calls without a safe wrapper")]

use std::{
    ffi::{CStr, CString},
    io,
    net::Ipv4Addr,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

/// `_IOW('R', 3, int[2])`: adds entropy and counts it.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
/// `_IO('R', 7)`: makes the generator use it at once.
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// A process that was started: the parent sees its number, the child nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forked {
    Parent(i32),
    Child,
}

/// Forks into new namespaces (`CLONE_NEW…` flags; none for a plain fork).
pub(crate) fn fork(namespaces: libc::c_int) -> io::Result<Forked> {
    let flags = libc::c_long::from(namespaces | libc::SIGCHLD);
    // SAFETY: without CLONE_VM this is a fork; the agent has one thread, so that the child's copy of
    // every lock is free and it may go on using the standard library.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match i32::try_from(pid) {
        Ok(0) => Ok(Forked::Child),
        Ok(pid) if pid > 0 => Ok(Forked::Parent(pid)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Forks a child of this process into the process namespace of another process. The inner error is that of a
/// process that is gone, or of a lack of room; with the outer one this process is no longer where it was.
pub(crate) fn fork_into(process: &impl AsFd) -> io::Result<io::Result<Forked>> {
    let home = std::fs::File::open("/proc/self/ns/pid")?;
    // Only what is forked from now on goes there.
    if let Err(error) = enter_namespaces(process, libc::CLONE_NEWPID) {
        return Ok(Err(error));
    }
    let forked = fork(0);
    if !matches!(forked, Ok(Forked::Child)) {
        enter_namespaces(&home, libc::CLONE_NEWPID)?;
    }
    Ok(forked)
}

/// Enters these namespaces of a process, by its descriptor, or one by its own descriptor.
pub(crate) fn enter_namespaces(of: &impl AsFd, namespaces: libc::c_int) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::setns(of.as_fd().as_raw_fd(), namespaces) })
}

/// Unlocks a new pseudoterminal, and opens its other end without going by a name.
pub(crate) fn peer_of_terminal(terminal: &impl AsFd) -> io::Result<OwnedFd> {
    let unlocked: libc::c_int = 0;
    let terminal = terminal.as_fd().as_raw_fd();
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the first call reads one int; the second takes a number, and its result, if it is not negative,
    // is a descriptor that nobody else owns.
    unsafe {
        check(libc::ioctl(terminal, libc::TIOCSPTLCK, &raw const unlocked))?;
        let peer = libc::ioctl(terminal, libc::TIOCGPTPEER, flags);
        check(peer)?;
        Ok(OwnedFd::from_raw_fd(peer))
    }
}

pub(crate) fn unshare(namespaces: libc::c_int) -> io::Result<()> {
    // SAFETY: takes no pointers.
    check(unsafe { libc::unshare(namespaces) })
}

/// Ends the process at once, without running anything of the parent's.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: does not return and touches no memory.
    unsafe { libc::_exit(code) }
}

/// Blocks these signals and gives a descriptor that tells of them.
pub(crate) fn signal_descriptor(signals: &[libc::c_int]) -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before it is used, and outlives the calls.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        check(libc::sigemptyset(&raw mut set))?;
        for &signal in signals {
            check(libc::sigaddset(&raw mut set, signal))?;
        }
        check(libc::sigprocmask(
            libc::SIG_BLOCK,
            &raw const set,
            std::ptr::null_mut(),
        ))?;
        let descriptor = libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC);
        check(descriptor)?;
        Ok(OwnedFd::from_raw_fd(descriptor))
    }
}

/// Gives a child the signal state that programs expect: nothing blocked, nothing ignored.
pub(crate) fn reset_signals() -> io::Result<()> {
    // SAFETY: the set is initialised before use; default actions involve no code of ours.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        check(libc::sigemptyset(&raw mut set))?;
        for signal in 1..libc::SIGRTMAX() {
            // SIGKILL, SIGSTOP and those of the C library refuse, which is all right.
            libc::signal(signal, libc::SIG_DFL);
        }
        check(libc::sigprocmask(
            libc::SIG_SETMASK,
            &raw const set,
            std::ptr::null_mut(),
        ))
    }
}

/// Closes all descriptors but the first three.
pub(crate) fn close_descriptors() {
    // SAFETY: only for a child that uses none of the parent's descriptors any more.
    let _ = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
}

/// Closes all descriptors but the first three and this one.
pub(crate) fn close_descriptors_but(kept: &impl AsFd) -> io::Result<()> {
    let kept = kept.as_fd().as_raw_fd().unsigned_abs();
    for (first, last) in [
        (3, kept.saturating_sub(1)),
        (kept.saturating_add(1).max(3), libc::c_uint::MAX),
    ] {
        if first > last {
            continue;
        }
        // SAFETY: only for a child that uses none of the parent's other descriptors any more.
        if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Adds the bytes to the kernel's entropy as fully random and reseeds its generator.
pub(crate) fn add_entropy(bytes: &[u8; 32]) -> io::Result<()> {
    /// `struct rand_pool_info` with a buffer.
    #[repr(C)]
    struct Pool {
        entropy_bits: libc::c_int,
        size: libc::c_int,
        bytes: [u8; 32],
    }
    let random = std::fs::File::open("/dev/urandom")?;
    let pool = Pool {
        entropy_bits: 256,
        size: 32,
        bytes: *bytes,
    };
    // SAFETY: `pool` has the layout that the call reads, `size` bytes after two ints; the second takes
    // no argument.
    unsafe {
        check(libc::ioctl(
            random.as_raw_fd(),
            RNDADDENTROPY,
            &raw const pool,
        ))?;
        check(libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG))
    }
}

pub(crate) fn set_clock(unix_ms: u64) -> io::Result<()> {
    let out_of_range = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let time = libc::timespec {
        tv_sec: i64::try_from(unix_ms / 1000).map_err(out_of_range)?,
        tv_nsec: i64::try_from(unix_ms % 1000 * 1_000_000).map_err(out_of_range)?,
    };
    // SAFETY: `time` is a valid timespec for the length of the call.
    check(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const time) })
}

/// Becomes another user for good.
pub(crate) fn set_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of one slice; the others take numbers.
    unsafe {
        check(libc::setgroups(groups.len(), groups.as_ptr()))?;
        check(libc::setresgid(gid, gid, gid))?;
        check(libc::setresuid(uid, uid, uid))
    }
}

/// Loads a system call filter for this process and all that it starts. Needs "no new privileges".
pub(crate) fn install_filter(filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: libc::c_ushort::try_from(filter.len())
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies `len` instructions from `filter`, which outlives the call; it checks them
    // and writes nothing.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const program,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Replaces the process by a program; only returns if that fails.
pub(crate) fn execute(program: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
        strings
            .iter()
            .map(|string| string.as_ptr())
            .chain([std::ptr::null()])
            .collect()
    }
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both lists end with a null pointer, and the strings outlive the call.
    unsafe { libc::execve(program.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

fn inet_socket() -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only; a non-negative result is a descriptor that nobody else owns.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        check(socket)?;
        Ok(OwnedFd::from_raw_fd(socket))
    }
}

/// A request about an interface, all zero but for the name.
fn interface_request(name: &str) -> libc::ifreq {
    // SAFETY: `ifreq` is plain data, for which all zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request
        .ifr_name
        .iter_mut()
        .take(libc::IFNAMSIZ - 1)
        .zip(name.bytes())
    {
        *to = from.cast_signed();
    }
    request
}

fn interface_call(
    socket: &impl AsFd,
    call: libc::c_ulong,
    request: &mut libc::ifreq,
) -> io::Result<()> {
    // SAFETY: every call given here reads or writes one `ifreq`.
    check(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), call, &raw mut *request) })
}

pub(crate) fn interface_up(name: &str) -> io::Result<()> {
    let socket = inet_socket()?;
    let mut request = interface_request(name);
    interface_call(&socket, libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: SIOCGIFFLAGS has filled this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let up = libc::c_short::try_from(libc::IFF_UP).unwrap_or(1);
    request.ifr_ifru.ifru_flags = flags | up;
    interface_call(&socket, libc::SIOCSIFFLAGS, &mut request)
}

/// Before the interface is up.
pub(crate) fn set_hardware_address(interface: &str, address: [u8; 6]) -> io::Result<()> {
    let socket = inet_socket()?;
    let mut request = interface_request(interface);
    let mut data = [0; 14];
    for (to, from) in data.iter_mut().zip(address) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_hwaddr = libc::sockaddr {
        sa_family: libc::ARPHRD_ETHER,
        sa_data: data,
    };
    interface_call(&socket, libc::SIOCSIFHWADDR, &mut request)
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let [a, b, c, d] = address.octets();
    let mut data = [0; 14];
    // Two bytes of port, then the address.
    for (to, from) in data[2..6].iter_mut().zip([a, b, c, d]) {
        *to = from.cast_signed();
    }
    libc::sockaddr {
        sa_family: libc::sa_family_t::try_from(libc::AF_INET).unwrap_or(2),
        sa_data: data,
    }
}

pub(crate) fn set_address(interface: &str, address: Ipv4Addr, netmask: Ipv4Addr) -> io::Result<()> {
    let socket = inet_socket()?;
    let mut request = interface_request(interface);
    request.ifr_ifru.ifru_addr = socket_address(address);
    interface_call(&socket, libc::SIOCSIFADDR, &mut request)?;
    request.ifr_ifru.ifru_netmask = socket_address(netmask);
    interface_call(&socket, libc::SIOCSIFNETMASK, &mut request)
}

pub(crate) fn add_default_route(gateway: Ipv4Addr) -> io::Result<()> {
    let socket = inet_socket()?;
    // SAFETY: `rtentry` is plain data, for which all zeroes are valid (the device name is null).
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = socket_address(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: the call reads one `rtentry`.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT, &raw const route) })
}
