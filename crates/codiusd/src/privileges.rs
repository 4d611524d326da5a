//! What the host keeps of root. It starts as root because pods need networks, cells and users of their own; most of
//! what root may do is for none of that, and is given up before there is a second thread.
//!
//! Programs that the host starts (`ip`, `nft`, `mke2fs`, `sqfstar`) are held by the same: "no new privileges", and a
//! bounding set that is no larger. A machine's process gives up the rest (`codius-microvm/src/jail/birth.rs`).

use std::io;

use rustix::{
    io::Errno,
    process::geteuid,
    thread::{
        CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set,
        set_capabilities, set_no_new_privs,
    },
};

/// Each with its reason.
const KEPT: CapabilitySet = CapabilitySet::empty()
    // Namespaces, and the mounts in them.
    .union(CapabilitySet::SYS_ADMIN)
    // Interfaces, routes, firewall, tap devices.
    .union(CapabilitySet::NET_ADMIN)
    // Listeners below port 1024.
    .union(CapabilitySet::NET_BIND_SERVICE)
    // A user for each machine, and `nobody` for what unpacks images.
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    // The bounding sets of machines are empty.
    .union(CapabilitySet::SETPCAP)
    // Signals to machines, which are other users' processes.
    .union(CapabilitySet::KILL)
    // What a machine has read and written (`/proc/PID/io`).
    .union(CapabilitySet::SYS_PTRACE)
    // A data directory that is another user's; images, which are written by `nobody` and then root's.
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::CHOWN);
/// Numbers of capabilities are below it, whatever the kernel.
const MAX_CAPABILITIES: u32 = 64;

/// Gives up what no part of the host needs. For the only thread of this process: those that are started later are held
/// as it is. A host that is not root has nothing to give up, and is told so elsewhere.
pub(crate) fn give_up() -> io::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let present = capabilities(None)?;
    // In some containers the bounding set is not ours to change. What follows holds without.
    if present.effective.contains(CapabilitySet::SETPCAP) {
        for number in 0..MAX_CAPABILITIES {
            let capability = CapabilitySet::from_bits_retain(1 << number);
            if KEPT.contains(capability) {
                continue;
            }
            match remove_capability_from_bounding_set(capability) {
                Ok(()) => {}
                // The kernel knows no more of them.
                Err(Errno::INVAL) => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    set_capabilities(
        None,
        CapabilitySets {
            effective: present.effective & KEPT,
            permitted: present.permitted & KEPT,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    set_no_new_privs(true)?;
    Ok(())
}
