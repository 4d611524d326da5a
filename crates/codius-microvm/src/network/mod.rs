//! The network of one pod: a namespace that holds the tap device of its QEMU, and one link to the host.
//!
//! The namespace decides what the pod may reach (see [`firewall`]); the host's own table is the second
//! line, the same for all pods, so that nothing of the host has to change when a pod comes or goes, unless
//! it has a permit of its own ([`egress`]).

mod addresses;
mod counters;
mod egress;
mod firewall;
mod namespace;
#[cfg(test)]
mod tests;

use std::{fs, io, os::fd::OwnedFd, path::Path};

pub(crate) use addresses::{Block, TAP_PREFIX_LEN};
pub use addresses::{InvalidPool, Ipv4Pool};
pub(crate) use egress::EgressRules;
pub(crate) use firewall::Common;
pub(crate) use namespace::{bind_tcp, open_namespace};

use crate::{
    Instance,
    programs::{Programs, run},
};

/// The inner end of the link to the host.
const UPLINK: &str = "up0";
/// The device of the virtual machine.
const TAP: &str = "tap0";
/// The hardware address that QEMU gives every guest. Agents of before did not take one of their own
/// (`Block::hardware`), and their pods may run yet.
const QEMU_MAC: &str = "52:54:00:12:34:56";

/// What QEMU is started in and with.
#[derive(Debug)]
pub(crate) struct PodNetwork {
    pub(crate) namespace: OwnedFd,
    pub(crate) tap: OwnedFd,
}

impl PodNetwork {
    /// Makes the namespace and the tap device: all that QEMU needs to start. No packet passes yet.
    pub(crate) fn create(programs: &Programs, name: &str) -> io::Result<Self> {
        run(&programs.ip, &["netns", "add", name], "", None)?;
        let namespace = open_namespace(name)?;
        let tap = namespace::create_tap(&namespace, TAP)?;
        Ok(Self { namespace, tap })
    }
}

/// Connects a namespace, whose rules are set, to the host.
fn link(programs: &Programs, namespace: &OwnedFd, name: &str, block: Block) -> io::Result<()> {
    namespace::set_up_kernel(namespace)?;
    run(
        &programs.ip,
        &["-batch", "-"],
        &host_link(name, block),
        None,
    )?;
    run(
        &programs.ip,
        &["-batch", "-"],
        &pod_links(block),
        Some(namespace),
    )
}

fn host_link(name: &str, block: Block) -> String {
    let (host, pod) = (block.host(), block.uplink());
    let guest_network = block.guest_network();
    format!(
        "link add {name} type veth peer name {UPLINK} netns {name}\n\
         addr add {host}/31 dev {name}\n\
         link set {name} up\n\
         route add {guest_network}/{TAP_PREFIX_LEN} via {pod} dev {name}\n"
    )
}

fn pod_links(block: Block) -> String {
    let (host, pod, gateway) = (block.host(), block.uplink(), block.gateway());
    format!(
        "addr add {pod}/31 dev {UPLINK}\n\
         link set {UPLINK} up\n\
         route add default via {host}\n\
         addr add {gateway}/{TAP_PREFIX_LEN} dev {TAP}\n\
         link set {TAP} up\n"
    )
}

/// Removes a pod's interface and namespace, whichever there are.
pub(crate) fn remove(programs: &Programs, name: &str) -> io::Result<()> {
    let mut script = String::new();
    if interface_exists(name) {
        script.push_str(&format!("link del {name}\n"));
    }
    if namespace::namespace_path(name).exists() {
        script.push_str(&format!("netns del {name}\n"));
    }
    if script.is_empty() {
        return Ok(());
    }
    let removed = run(&programs.ip, &["-force", "-batch", "-"], &script, None);
    // The interface also goes by itself when its other end does: what counts is that nothing is left.
    if interface_exists(name) || namespace::namespace_path(name).exists() {
        removed.and(Err(io::Error::other(format!(
            "network of {name} could not be removed"
        ))))
    } else {
        Ok(())
    }
}

/// Slots of which an interface or a namespace exists.
pub(crate) fn slots_in_use(instance: &Instance) -> io::Result<Vec<u16>> {
    let prefix = instance.pod_prefix();
    let mut slots = Vec::new();
    for dir in [
        Path::new("/sys/class/net"),
        Path::new(namespace::NAMESPACE_DIR),
    ] {
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let name = entry?.file_name();
            let slot = name
                .to_str()
                .and_then(|name| name.strip_prefix(&prefix))
                .map(str::parse::<u16>);
            slots.extend(slot.and_then(Result::ok));
        }
    }
    slots.sort_unstable();
    slots.dedup();
    Ok(slots)
}

pub(crate) fn remove_host_rules(programs: &Programs, instance: &Instance) -> io::Result<()> {
    run(
        &programs.nft,
        &["-f", "-"],
        &firewall::no_host_rules(instance),
        None,
    )
}

/// Pods reach the internet through this host's routing.
pub(crate) fn enable_forwarding() -> io::Result<()> {
    const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
    if fs::read_to_string(IP_FORWARD)?.trim() != "1" {
        fs::write(IP_FORWARD, "1")?;
        tracing::info!(
            "switched on net.ipv4.ip_forward: pods reach the internet through this host"
        );
    }
    Ok(())
}

fn interface_exists(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}
