//! PID 1 of a pod: brings the virtual machine up, runs the containers, tells the host about them.
//!
//! ```text
//! boot       root on a tmpfs, early modules, control port       boot, modules, port
//! hello      answer Attach; load the other modules meanwhile    agent
//! warm       all that needs no pod: the machine is a template   pod
//! configure  network, disks, images, control groups             network, disks, cgroup
//! start      a child per container: namespaces, root, program   container → root → program, privileges
//! run        logs, exits, the pod's port, Interledger forward   outbox, watch, forward
//!            programs started again, sessions of `exec`         restart, exec
//! stop       SIGTERM, SIGKILL, sync, Stopped; the host kills us agent
//! ```
//!
//! The agent is one thread around one `epoll`: nothing that a container does can block it. It never
//! powers the machine off, because that hangs now and then; the host kills the VM when it has heard
//! `Stopped`. If the agent itself fails it dies, the kernel panics, and the host sees the VM end.

mod accounts;
mod agent;
mod boot;
mod cgroup;
mod container;
mod devices;
mod disks;
mod exec;
mod forward;
mod kernel_log;
mod modules;
mod network;
mod notice;
mod outbox;
mod pod;
mod port;
mod privileges;
mod program;
mod restart;
mod root;
mod seccomp;
mod settings;
mod sockets;
mod sys;
mod syscalls;
mod watch;

fn main() {
    if let Err(error) = boot::boot().and_then(|boot| agent::Agent::new(boot)?.run()) {
        kernel_log::write(&format!("cannot go on: {error}"));
        // Returning from PID 1 is a kernel panic, which ends the VM; the host reports it.
    }
}
