//! Settings of the pod's kernel that hold for all containers. They are written once, before any container
//! starts; containers see them read-only.
//!
//! A kernel that lacks one of them is no reason to run no pod: each is the second lock of a door that
//! capabilities and the system call filter close already. What is lacking is said on the console.

use std::{fs, io::ErrorKind};

use crate::kernel_log;

const SETTINGS: &[(&str, &str)] = &[
    // Ports below 1024 and echo requests are for every user: there is nobody in a pod to keep them from,
    // and programs need not be root for them.
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
    // A user namespace would give its maker all capabilities over parts of the kernel.
    ("user/max_user_namespaces", "0"),
    ("kernel/unprivileged_bpf_disabled", "2"),
    ("net/core/bpf_jit_harden", "2"),
    ("kernel/perf_event_paranoid", "3"),
    ("vm/unprivileged_userfaultfd", "0"),
    ("kernel/kexec_load_disabled", "1"),
    ("kernel/sysrq", "0"),
    // Addresses of the kernel are of use only to who attacks it.
    ("kernel/kptr_restrict", "2"),
    ("kernel/dmesg_restrict", "1"),
    // Containers share a volume that all may write.
    ("fs/protected_symlinks", "1"),
    ("fs/protected_hardlinks", "1"),
    ("fs/suid_dumpable", "0"),
    // A kernel that has found itself broken ends, and the host sees that.
    ("kernel/panic_on_oops", "1"),
];

pub(crate) fn apply() {
    for (name, value) in SETTINGS {
        if let Err(error) = fs::write(format!("/proc/sys/{name}"), value)
            && error.kind() != ErrorKind::NotFound
        {
            kernel_log::write(&format!("setting {name}: {error}"));
        }
    }
}
