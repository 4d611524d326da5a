//! The pod's network: loopback and one interface with a fixed IPv4 address. All containers share it.
//! There is no IPv6 beyond loopback: the host has no rules for it.

use std::{fs, io, net::Ipv4Addr, path::Path};

use codius_guest_protocol::{NetworkConfig, hardware_address};

use crate::{devices, sys};

const INTERFACE: &str = "eth0";
/// Programs that are not root may use every port, as in Docker.
const FIRST_UNPRIVILEGED_PORT: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// Brings loopback up, and sets what is the same for every pod.
pub(crate) fn prepare() -> io::Result<()> {
    sys::interface_up("lo")?;
    fs::write(FIRST_UNPRIVILEGED_PORT, "0")
}

/// Brings up the interface if the pod has one.
pub(crate) fn configure(network: Option<&NetworkConfig>) -> io::Result<()> {
    let Some(network) = network else {
        return Ok(());
    };
    let found = || Ok(Path::new("/sys/class/net").join(INTERFACE).exists());
    devices::bind(devices::Kind::Network, found)?;
    fs::write(
        format!("/proc/sys/net/ipv6/conf/{INTERFACE}/disable_ipv6"),
        "1",
    )?;
    sys::set_hardware_address(INTERFACE, hardware_address(network.address))?;
    sys::set_address(INTERFACE, network.address, netmask(network.prefix_len))?;
    sys::interface_up(INTERFACE)?;
    sys::add_default_route(network.gateway)
}

fn netmask(prefix_len: u8) -> Ipv4Addr {
    let bits = u32::from(prefix_len.min(32));
    Ipv4Addr::from(u32::MAX.checked_shl(32 - bits).unwrap_or(0))
}

/// `/etc/hosts` of every container.
pub(crate) fn hosts(hostname: &str, address: Option<Ipv4Addr>) -> String {
    let own = address.unwrap_or(Ipv4Addr::new(127, 0, 1, 1));
    format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}\t{hostname}\n")
}

/// `/etc/resolv.conf` of every container.
pub(crate) fn resolv_conf(nameservers: &[Ipv4Addr]) -> String {
    nameservers
        .iter()
        .map(|server| format!("nameserver {server}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_of_every_length() {
        assert_eq!(netmask(0), Ipv4Addr::new(0, 0, 0, 0));
        assert_eq!(netmask(30), Ipv4Addr::new(255, 255, 255, 252));
        assert_eq!(netmask(32), Ipv4Addr::new(255, 255, 255, 255));
        assert_eq!(netmask(200), Ipv4Addr::new(255, 255, 255, 255));
    }

    #[test]
    fn files_of_the_resolver() {
        assert!(hosts("pod", Some(Ipv4Addr::new(10, 0, 0, 2))).contains("\n10.0.0.2\tpod\n"));
        let servers = [Ipv4Addr::new(1, 1, 1, 1), Ipv4Addr::new(8, 8, 8, 8)];
        assert_eq!(
            resolv_conf(&servers),
            "nameserver 1.1.1.1\nnameserver 8.8.8.8\n"
        );
    }
}
