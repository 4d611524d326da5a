//! Work inside of a pod's network namespace, done by threads that enter it and end there.
//!
//! A socket, a tap device and an open `/proc/sys/net` file stay what they are when they leave the
//! thread; only their making depends on where the thread was.

use std::{
    fs::{self, File, OpenOptions},
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    thread,
};

use crate::programs::enter_network_namespace;

/// Where `ip netns` keeps its names.
pub(super) const NAMESPACE_DIR: &str = "/run/netns";

pub(super) fn namespace_path(name: &str) -> PathBuf {
    Path::new(NAMESPACE_DIR).join(name)
}

pub(crate) fn open_namespace(name: &str) -> io::Result<OwnedFd> {
    Ok(File::open(namespace_path(name))?.into())
}

/// Runs `work` on a thread that has entered the namespace. The thread ends with it: a pooled thread would
/// take its next work into the pod's network.
pub(super) fn inside<T: Send>(
    namespace: &OwnedFd,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("pod-netns".into())
            .spawn_scoped(scope, || {
                enter_network_namespace(namespace)?;
                work()
            })?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
    })
}

/// Makes a tap device that lives as long as the returned descriptor.
pub(super) fn create_tap(namespace: &OwnedFd, name: &'static str) -> io::Result<OwnedFd> {
    inside(namespace, || {
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/net/tun")?;
        // struct ifreq of netdevice(7): a name of 16 bytes, then a union of 24 that starts with the flags.
        #[repr(C)]
        struct InterfaceRequest {
            name: [u8; libc::IFNAMSIZ],
            flags: u16,
            rest: [u8; 22],
        }
        let flags = u16::try_from(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR)
            .map_err(io::Error::other)?;
        let mut request = InterfaceRequest {
            name: [0; libc::IFNAMSIZ],
            flags,
            rest: [0; 22],
        };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        #[expect(unsafe_code, reason = "there is no safe call for TUNSETIFF")]
        // SAFETY: the request is a whole ifreq (40 bytes), lives through the call and is the kernel's to
        // change; the name is shorter than its field, so it ends with a zero.
        let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(device.into())
    })
}

/// Forwards between uplink and guest; no IPv6 at all.
pub(super) fn set_up_kernel(namespace: &OwnedFd) -> io::Result<()> {
    inside(namespace, || {
        fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        for scope in ["all", "default"] {
            match fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1") {
                // A kernel without IPv6.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                written => written?,
            }
        }
        Ok(())
    })
}

/// A listener that lives in the namespace, for the host to accept from.
pub(crate) fn bind_tcp(namespace: &OwnedFd, address: SocketAddr) -> io::Result<TcpListener> {
    inside(namespace, || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    })
}
