//! The system call filter of every container: a program of classic BPF that the kernel runs before each
//! call, and that nobody in the container can take off again.
//!
//! ```text
//! not the 64-bit ABI of this processor ───────────────▶ the process is killed (SIGSYS)
//! numbered as x32 calls are ──────────────────────────▶ ENOSYS
//! clone with a new namespace, an odd personality ─────▶ EPERM
//! a socket that is not UNIX, IPv4, IPv6 or netlink ───▶ EAFNOSUPPORT
//! in `syscalls::ALLOWED` ─────────────────────────────▶ allowed
//! in `syscalls::ABSENT`, or newer than our list ──────▶ ENOSYS
//! anything else ──────────────────────────────────────▶ EPERM
//! ```
//!
//! The errors are chosen for programs: ENOSYS makes them take an older way, EPERM says no. 32-bit programs
//! are killed, because an error would let them run on with their calls unchecked by anybody's expectation.
//!
//! Written here rather than taken from a crate: `seccompiler` gives one answer to all that does not match,
//! and we need three; and the agent is PID 1 of every pod, so each of its dependencies is everybody's.

use libc::{c_int, c_long, sock_filter};

use crate::syscalls::{ABSENT, ALLOWED, HIGHEST_KNOWN};

/// `AUDIT_ARCH_X86_64` of `linux/audit.h`.
const THIS_PROCESSOR: u32 = 0xc000_003e;
/// Calls of the x32 ABI have this bit in their number.
const X32_BIT: u32 = 0x4000_0000;
/// Where the kernel shows the call to the filter: `struct seccomp_data`.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
/// The low half of the first argument; all arguments looked at are 32-bit numbers to the kernel as well.
const FIRST_ARGUMENT_AT: u32 = 16;
/// `CLONE_NEW…`: time is no flag of `clone`.
const NEW_NAMESPACES: c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;
/// Linux as it is, with the old `uname` or without 64-bit addresses, and the question which it is.
const PERSONALITIES: &[u32] = &[0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// Others lead into seldom used parts of the kernel, or (packet sockets) to the neighbours' traffic.
const SOCKET_FAMILIES: &[c_int] = &[
    libc::AF_UNIX,
    libc::AF_INET,
    libc::AF_INET6,
    libc::AF_NETLINK,
];

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Allow,
    Refuse(c_int),
    Kill,
}

impl Verdict {
    fn code(self) -> u32 {
        match self {
            Self::Allow => libc::SECCOMP_RET_ALLOW,
            Self::Refuse(errno) => libc::SECCOMP_RET_ERRNO | errno.unsigned_abs(),
            Self::Kill => libc::SECCOMP_RET_KILL_PROCESS,
        }
    }
}

const REFUSED: Verdict = Verdict::Refuse(libc::EPERM);
const UNKNOWN: Verdict = Verdict::Refuse(libc::ENOSYS);

/// The whole filter.
pub(crate) fn filter() -> Vec<sock_filter> {
    let mut program = Program::default();
    program.load(ARCHITECTURE_AT);
    program.unless_equal(THIS_PROCESSOR, Verdict::Kill);
    program.load(NUMBER_AT);
    program.from(X32_BIT, UNKNOWN);
    program.on_argument(
        libc::SYS_clone,
        &Test::AnyBit(NEW_NAMESPACES.unsigned_abs()),
        REFUSED,
        Verdict::Allow,
    );
    program.on_argument(
        libc::SYS_personality,
        &Test::OneOf(PERSONALITIES.to_vec()),
        Verdict::Allow,
        REFUSED,
    );
    let families = SOCKET_FAMILIES.iter().map(|family| family.unsigned_abs());
    let known_family = Test::OneOf(families.collect());
    for call in [libc::SYS_socket, libc::SYS_socketpair] {
        program.on_argument(
            call,
            &known_family,
            Verdict::Allow,
            Verdict::Refuse(libc::EAFNOSUPPORT),
        );
    }
    for (first, last) in ranges(ALLOWED.concat()) {
        program.between(first, last, Verdict::Allow);
    }
    for &call in ABSENT {
        program.on(number(call), UNKNOWN);
    }
    program.from(number(HIGHEST_KNOWN) + 1, UNKNOWN);
    program.end(REFUSED);
    program.0
}

fn number(call: c_long) -> u32 {
    u32::try_from(call).expect("system calls have small numbers")
}

/// The calls as ranges in order, without gaps in any.
fn ranges(mut calls: Vec<c_long>) -> Vec<(u32, u32)> {
    calls.sort_unstable();
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for call in calls.into_iter().map(number) {
        match ranges.last_mut() {
            Some((_, last)) if call <= *last + 1 => *last = call,
            _ => ranges.push((call, call)),
        }
    }
    ranges
}

/// A question about the first argument.
enum Test {
    AnyBit(u32),
    OneOf(Vec<u32>),
}

// Classic BPF, as far as it is needed: `linux/bpf_common.h`.
const LOAD: u16 = 0x20;
const IF_EQUAL: u16 = 0x15;
const IF_GREATER: u16 = 0x25;
const IF_AT_LEAST: u16 = 0x35;
const IF_BITS: u16 = 0x45;
const RETURN: u16 = 0x06;

/// Instructions one after the other. A jump skips at most the one or two that belong to it, so that its
/// short distance is never too short.
#[derive(Default)]
struct Program(Vec<sock_filter>);

impl Program {
    fn push(&mut self, code: u16, operand: u32, then_skip: u8, else_skip: u8) {
        self.0.push(sock_filter {
            code,
            jt: then_skip,
            jf: else_skip,
            k: operand,
        });
    }

    fn load(&mut self, at: u32) {
        self.push(LOAD, at, 0, 0);
    }

    fn end(&mut self, verdict: Verdict) {
        self.push(RETURN, verdict.code(), 0, 0);
    }

    fn on(&mut self, value: u32, verdict: Verdict) {
        self.push(IF_EQUAL, value, 0, 1);
        self.end(verdict);
    }

    fn unless_equal(&mut self, value: u32, verdict: Verdict) {
        self.push(IF_EQUAL, value, 1, 0);
        self.end(verdict);
    }

    fn from(&mut self, value: u32, verdict: Verdict) {
        self.push(IF_AT_LEAST, value, 0, 1);
        self.end(verdict);
    }

    fn between(&mut self, first: u32, last: u32, verdict: Verdict) {
        if first == last {
            return self.on(first, verdict);
        }
        self.push(IF_AT_LEAST, first, 0, 2);
        self.push(IF_GREATER, last, 1, 0);
        self.end(verdict);
    }

    /// Decides about a call by its first argument, whatever that is.
    fn on_argument(&mut self, call: c_long, test: &Test, yes: Verdict, no: Verdict) {
        let mut body = Self::default();
        body.load(FIRST_ARGUMENT_AT);
        match test {
            Test::AnyBit(bits) => {
                body.push(IF_BITS, *bits, 0, 1);
                body.end(yes);
            }
            Test::OneOf(values) => values.iter().for_each(|&value| body.on(value, yes)),
        }
        body.end(no);
        let length = u8::try_from(body.0.len()).expect("few values are asked for");
        self.push(IF_EQUAL, number(call), 0, length);
        self.0.append(&mut body.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel does with the filter, for the instructions that we use.
    fn judge(filter: &[sock_filter], architecture: u32, call: u32, argument: u64) -> u32 {
        let low = u32::try_from(argument & 0xffff_ffff).unwrap();
        let mut accumulator = 0;
        let mut at = 0;
        loop {
            let instruction = &filter[at];
            at += 1;
            let holds = match instruction.code {
                LOAD => {
                    accumulator = match instruction.k {
                        NUMBER_AT => call,
                        ARCHITECTURE_AT => architecture,
                        FIRST_ARGUMENT_AT => low,
                        other => panic!("loads from {other}"),
                    };
                    continue;
                }
                RETURN => return instruction.k,
                IF_EQUAL => accumulator == instruction.k,
                IF_GREATER => accumulator > instruction.k,
                IF_AT_LEAST => accumulator >= instruction.k,
                IF_BITS => accumulator & instruction.k != 0,
                other => panic!("does {other:#x}"),
            };
            at += usize::from(if holds {
                instruction.jt
            } else {
                instruction.jf
            });
        }
    }

    fn verdict(call: c_long, argument: u64) -> u32 {
        judge(&filter(), THIS_PROCESSOR, number(call), argument)
    }

    /// Every number that a program can call gets exactly the answer that the lists give.
    #[test]
    fn the_filter_says_what_the_lists_say() {
        let filter = filter();
        assert!(filter.len() < 4096, "{} instructions", filter.len());
        let allowed = ALLOWED.concat();
        for call in 0..=HIGHEST_KNOWN + 600 {
            let expected = match call {
                libc::SYS_clone | libc::SYS_personality => Verdict::Allow,
                libc::SYS_socket | libc::SYS_socketpair => Verdict::Refuse(libc::EAFNOSUPPORT),
                call if allowed.contains(&call) => Verdict::Allow,
                call if ABSENT.contains(&call) || call > HIGHEST_KNOWN => UNKNOWN,
                _ => REFUSED,
            };
            // An argument of zero: no namespace, plain Linux, a family that does not exist.
            let said = judge(&filter, THIS_PROCESSOR, number(call), 0);
            assert_eq!(said, expected.code(), "call {call}");
        }
    }

    /// A change of this list is a change of what strangers may do: think twice.
    #[test]
    fn exactly_these_calls_of_a_known_name_are_refused() {
        let mut refused: Vec<c_long> = vec![
            libc::SYS_uselib,
            libc::SYS_ustat,
            libc::SYS_sysfs,
            libc::SYS_syslog,
            libc::SYS_vhangup,
            libc::SYS_modify_ldt,
            libc::SYS_pivot_root,
            libc::SYS__sysctl,
            libc::SYS_acct,
            libc::SYS_settimeofday,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_swapon,
            libc::SYS_swapoff,
            libc::SYS_reboot,
            libc::SYS_sethostname,
            libc::SYS_setdomainname,
            libc::SYS_iopl,
            libc::SYS_ioperm,
            libc::SYS_init_module,
            libc::SYS_delete_module,
            libc::SYS_quotactl,
            libc::SYS_nfsservctl,
            libc::SYS_getpmsg,
            libc::SYS_putpmsg,
            libc::SYS_afs_syscall,
            libc::SYS_tuxcall,
            libc::SYS_security,
            libc::SYS_set_thread_area,
            libc::SYS_get_thread_area,
            libc::SYS_lookup_dcookie,
            libc::SYS_epoll_ctl_old,
            libc::SYS_epoll_wait_old,
            libc::SYS_clock_settime,
            libc::SYS_vserver,
            libc::SYS_mbind,
            libc::SYS_set_mempolicy,
            libc::SYS_get_mempolicy,
            libc::SYS_kexec_load,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_keyctl,
            libc::SYS_migrate_pages,
            libc::SYS_unshare,
            libc::SYS_move_pages,
            libc::SYS_perf_event_open,
            libc::SYS_fanotify_init,
            libc::SYS_fanotify_mark,
            libc::SYS_open_by_handle_at,
            libc::SYS_setns,
            libc::SYS_kcmp,
            libc::SYS_finit_module,
            libc::SYS_kexec_file_load,
            libc::SYS_bpf,
            libc::SYS_userfaultfd,
            libc::SYS_open_tree,
            libc::SYS_move_mount,
            libc::SYS_fsopen,
            libc::SYS_fsconfig,
            libc::SYS_fsmount,
            libc::SYS_fspick,
            libc::SYS_pidfd_getfd,
            libc::SYS_mount_setattr,
            libc::SYS_quotactl_fd,
            libc::SYS_set_mempolicy_home_node,
        ];
        // `create_module`, `get_kernel_syms`, `query_module`, and
        refused.extend([174, 177, 178]);
        // `statmount` to `lsm_list_modules`, which `libc` has no names for.
        refused.extend(457..=461);
        // Numbers that nobody has, between the old calls and the new ones.
        refused.extend(335..=423);
        refused.sort_unstable();
        let filter = filter();
        let found: Vec<c_long> = (0..=HIGHEST_KNOWN)
            .filter(|&call| judge(&filter, THIS_PROCESSOR, number(call), 0) == REFUSED.code())
            .collect();
        assert_eq!(found, refused);
    }

    #[test]
    fn other_processors_and_x32_get_nothing() {
        let filter = filter();
        /// `AUDIT_ARCH_I386`.
        const I386: u32 = 0x4000_0003;
        for call in 0..600 {
            assert_eq!(judge(&filter, I386, call, 0), Verdict::Kill.code());
            let x32 = judge(&filter, THIS_PROCESSOR, X32_BIT | call, 0);
            assert_eq!(x32, UNKNOWN.code());
        }
        assert_eq!(
            judge(&filter, THIS_PROCESSOR, u32::MAX, 0),
            UNKNOWN.code(),
            "a negative number"
        );
    }

    #[test]
    fn arguments_are_looked_at() {
        let thread = libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND | libc::CLONE_FILES;
        let clone = |flags: c_int| verdict(libc::SYS_clone, u64::from(flags.unsigned_abs()));
        assert_eq!(clone(thread), Verdict::Allow.code());
        assert_eq!(clone(libc::SIGCHLD), Verdict::Allow.code());
        for namespace in [libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWNET] {
            assert_eq!(clone(namespace | libc::SIGCHLD), REFUSED.code());
        }
        // The kernel ignores the upper half, so the filter does.
        let high = 1 << 40 | u64::from(libc::CLONE_NEWUSER.unsigned_abs());
        assert_eq!(verdict(libc::SYS_clone, high), REFUSED.code());

        assert_eq!(
            verdict(libc::SYS_personality, 0xffff_ffff),
            Verdict::Allow.code()
        );
        // ADDR_NO_RANDOMIZE.
        assert_eq!(verdict(libc::SYS_personality, 0x4_0000), REFUSED.code());

        for family in 0..64 {
            let known = SOCKET_FAMILIES.contains(&family);
            let expected = if known {
                Verdict::Allow
            } else {
                Verdict::Refuse(libc::EAFNOSUPPORT)
            };
            let said = verdict(libc::SYS_socket, u64::from(family.unsigned_abs()));
            assert_eq!(said, expected.code(), "family {family}");
        }
    }

    #[test]
    fn ranges_have_no_gaps() {
        assert_eq!(ranges(vec![5, 1, 2, 3, 7]), [(1, 3), (5, 5), (7, 7)]);
        assert_eq!(ranges(vec![4, 4]), [(4, 4)]);
    }
}
