//! What a container's first process gives up before it becomes the program, for good: nothing that it runs
//! later gets any of it back.
//!
//! ```text
//! limits ─▶ bounding set ─▶ groups, group, user ─▶ the other sets ─▶ no new privileges ─▶ filter ─▶ program
//! ```
//!
//! The order is forced: a smaller bounding set needs a capability that goes with the user, and the filter
//! refuses to be loaded by a process without capabilities that could still gain some.
//!
//! Trap: a program that runs as root gets, at `execve`, every capability of the bounding set. So the bounding
//! set is the limit for root; for other users it is empty, as are all sets.

use std::io;

use rustix::{
    fs::{Gid, Uid, fchown},
    io::Errno,
    process::{Resource, Rlimit, setrlimit},
    thread::{
        CapabilitySet, CapabilitySets, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
    },
};

use crate::{accounts::Account, seccomp, sys};

const MAX_OPEN_FILES: u64 = 65_536;
/// Above the highest capability of any kernel.
const CAPABILITY_NUMBERS: u32 = 64;

/// What root in a container has. Servers start as root to bind a port, to own files, and to become another
/// user, perhaps within another root: that is all of it.
///
/// Of Docker's default set there is not:
/// * `NET_RAW`: containers of a pod share its network, and this would show one the traffic of all (`ping`
///   works without, see `settings`);
/// * `MKNOD`: a device node of a disk would show the files of the other containers;
/// * `SETFCAP`: capabilities of files have no effect here, so nobody needs to set them;
/// * `AUDIT_WRITE`: the kernel's audit is off in a pod, and the libraries that use it find that out.
pub(crate) const OF_ROOT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT);

/// Becomes the account, with what it may have. What still has to be done with more than that has to be done
/// before.
pub(crate) fn give_up(account: &Account) -> io::Result<()> {
    let kept = if account.uid == 0 {
        OF_ROOT
    } else {
        CapabilitySet::empty()
    };
    limit()?;
    // The program may open /dev/stdout and /dev/stderr by name only if they are its own.
    for stream in [rustix::stdio::stdout(), rustix::stdio::stderr()] {
        fchown(stream, Some(Uid::from_raw(account.uid)), None::<Gid>)?;
    }
    clear_ambient_capability_set()?;
    bound(kept)?;
    // As Docker: a program must not get around a file that is closed to its group.
    let mut groups = vec![account.gid];
    groups.extend(account.groups.iter().filter(|&&group| group != account.gid));
    sys::set_user(account.uid, account.gid, &groups)?;
    set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    set_no_new_privs(true)?;
    sys::reset_signals()
}

/// For a process of the agent's that works for the containers: another user, no capability, the containers'
/// filter.
pub(crate) fn renounce(user: u32) -> io::Result<()> {
    limit()?;
    clear_ambient_capability_set()?;
    bound(CapabilitySet::empty())?;
    sys::set_user(user, user, &[])?;
    let nothing = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, nothing)?;
    set_no_new_privs(true)?;
    filter_calls()
}

/// From here on only calls that the filter allows. Last, because it knows nothing of what we still need.
pub(crate) fn filter_calls() -> io::Result<()> {
    sys::install_filter(&seccomp::filter())
}

fn limit() -> io::Result<()> {
    let most = |most| Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    setrlimit(Resource::Nofile, most(MAX_OPEN_FILES))?;
    setrlimit(Resource::Core, most(0))?;
    // The control group limits processes; a limit per user would count all containers together.
    let endless = Rlimit {
        current: None,
        maximum: None,
    };
    Ok(setrlimit(Resource::Nproc, endless)?)
}

fn bound(kept: CapabilitySet) -> io::Result<()> {
    for number in 0..CAPABILITY_NUMBERS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The kernel has none of this number, and none above.
            Err(Errno::INVAL) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
