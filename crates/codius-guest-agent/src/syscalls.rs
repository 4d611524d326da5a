//! Which system calls a container may make: those that hosted programs need, as Docker's default profile
//! chooses them, and fewer where a virtual machine with a shared network asks for it.
//!
//! Not here, and therefore refused: whatever needs a capability that no container has (mounts, modules,
//! namespaces, the clock, power, accounting, swap, raw I/O), whatever reaches deep into the kernel for a few
//! programs (`bpf`, `perf_event_open`, `userfaultfd`, key rings, `fanotify`, memory policies, local
//! descriptor tables), whatever crosses a border by a handle instead of a name (`open_by_handle_at`,
//! `pidfd_getfd`, `kcmp`).

use libc::c_long;

/// Names as numbers of this processor.
macro_rules! numbers {
    ($($name:ident)*) => { &[$(libc::$name),*] };
}

/// Always allowed. `clone`, `personality`, `socket` and `socketpair` are looked at more closely; see
/// `seccomp`.
pub(crate) const ALLOWED: &[&[c_long]] = &[
    // Open files.
    numbers! {
        SYS_read SYS_write SYS_open SYS_close SYS_lseek SYS_pread64 SYS_pwrite64 SYS_readv SYS_writev
        SYS_preadv SYS_pwritev SYS_preadv2 SYS_pwritev2 SYS_openat SYS_openat2 SYS_creat SYS_close_range
        SYS_dup SYS_dup2 SYS_dup3 SYS_fcntl SYS_flock SYS_ioctl SYS_fsync SYS_fdatasync SYS_sync SYS_syncfs
        SYS_sync_file_range SYS_truncate SYS_ftruncate SYS_fallocate SYS_fadvise64 SYS_readahead
        SYS_sendfile SYS_copy_file_range SYS_splice SYS_tee SYS_vmsplice SYS_pipe SYS_pipe2
        SYS_memfd_create SYS_memfd_secret
    },
    // Names of files, and what is known of them.
    numbers! {
        SYS_stat SYS_fstat SYS_lstat SYS_newfstatat SYS_statx SYS_statfs SYS_fstatfs SYS_access
        SYS_faccessat SYS_faccessat2 SYS_getdents SYS_getdents64 SYS_getcwd SYS_chdir SYS_fchdir SYS_chroot
        SYS_rename SYS_renameat SYS_renameat2 SYS_mkdir SYS_mkdirat SYS_rmdir SYS_link SYS_linkat
        SYS_unlink SYS_unlinkat SYS_symlink SYS_symlinkat SYS_readlink SYS_readlinkat SYS_chmod SYS_fchmod
        SYS_fchmodat SYS_fchmodat2 SYS_chown SYS_fchown SYS_lchown SYS_fchownat SYS_umask SYS_utime
        SYS_utimes SYS_futimesat SYS_utimensat SYS_mknod SYS_mknodat SYS_name_to_handle_at
        SYS_setxattr SYS_lsetxattr SYS_fsetxattr SYS_getxattr SYS_lgetxattr SYS_fgetxattr SYS_listxattr
        SYS_llistxattr SYS_flistxattr SYS_removexattr SYS_lremovexattr SYS_fremovexattr
        SYS_inotify_init SYS_inotify_init1 SYS_inotify_add_watch SYS_inotify_rm_watch
    },
    // Memory.
    numbers! {
        SYS_brk SYS_mmap SYS_munmap SYS_mremap SYS_mprotect SYS_madvise SYS_mincore SYS_msync SYS_mlock
        SYS_mlock2 SYS_munlock SYS_mlockall SYS_munlockall SYS_remap_file_pages SYS_pkey_alloc
        SYS_pkey_free SYS_pkey_mprotect SYS_membarrier SYS_process_madvise SYS_process_mrelease SYS_mseal
    },
    // Processes and threads, of the same container: no other has a number there.
    numbers! {
        SYS_fork SYS_vfork SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_wait4 SYS_waitid
        SYS_getpid SYS_getppid SYS_gettid SYS_getpgid SYS_getpgrp SYS_getsid SYS_setpgid SYS_setsid
        SYS_set_tid_address SYS_set_robust_list SYS_get_robust_list SYS_rseq SYS_arch_prctl SYS_prctl
        SYS_futex SYS_futex_waitv SYS_pidfd_open SYS_pidfd_send_signal SYS_ptrace SYS_process_vm_readv
        SYS_process_vm_writev SYS_seccomp SYS_landlock_create_ruleset SYS_landlock_add_rule
        SYS_landlock_restrict_self
    },
    // Who a process is, within what it may be.
    numbers! {
        SYS_getuid SYS_geteuid SYS_getgid SYS_getegid SYS_getresuid SYS_getresgid SYS_getgroups
        SYS_setuid SYS_setgid SYS_setreuid SYS_setregid SYS_setresuid SYS_setresgid SYS_setgroups
        SYS_setfsuid SYS_setfsgid SYS_capget SYS_capset
    },
    // Signals.
    numbers! {
        SYS_kill SYS_tkill SYS_tgkill SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigpending
        SYS_rt_sigtimedwait SYS_rt_sigqueueinfo SYS_rt_tgsigqueueinfo SYS_rt_sigsuspend SYS_rt_sigreturn
        SYS_sigaltstack SYS_restart_syscall SYS_pause SYS_signalfd SYS_signalfd4
    },
    // Time, the processor, limits.
    numbers! {
        SYS_time SYS_gettimeofday SYS_clock_gettime SYS_clock_getres SYS_clock_nanosleep SYS_nanosleep
        SYS_alarm SYS_getitimer SYS_setitimer SYS_timer_create SYS_timer_settime SYS_timer_gettime
        SYS_timer_getoverrun SYS_timer_delete SYS_timerfd_create SYS_timerfd_settime SYS_timerfd_gettime
        SYS_adjtimex SYS_clock_adjtime SYS_times SYS_getcpu SYS_sched_yield SYS_sched_getaffinity
        SYS_sched_setaffinity SYS_sched_getparam SYS_sched_setparam SYS_sched_getscheduler
        SYS_sched_setscheduler SYS_sched_getattr SYS_sched_setattr SYS_sched_get_priority_min
        SYS_sched_get_priority_max SYS_sched_rr_get_interval SYS_getpriority SYS_setpriority
        SYS_ioprio_get SYS_ioprio_set SYS_getrlimit SYS_setrlimit SYS_prlimit64 SYS_getrusage SYS_sysinfo
        SYS_uname SYS_getrandom
    },
    // Waiting for many things.
    numbers! {
        SYS_poll SYS_ppoll SYS_select SYS_pselect6 SYS_epoll_create SYS_epoll_create1 SYS_epoll_ctl
        SYS_epoll_wait SYS_epoll_pwait SYS_epoll_pwait2 SYS_eventfd SYS_eventfd2 SYS_io_setup
        SYS_io_submit SYS_io_cancel SYS_io_getevents SYS_io_destroy
    },
    // Sockets, once there is one.
    numbers! {
        SYS_bind SYS_connect SYS_listen SYS_accept SYS_accept4 SYS_getsockname SYS_getpeername
        SYS_getsockopt SYS_setsockopt SYS_sendto SYS_recvfrom SYS_sendmsg SYS_recvmsg SYS_sendmmsg
        SYS_recvmmsg SYS_shutdown
    },
    // Queues, semaphores and memory of System V and POSIX: a namespace of its own for each container.
    numbers! {
        SYS_msgget SYS_msgsnd SYS_msgrcv SYS_msgctl SYS_semget SYS_semop SYS_semtimedop SYS_semctl
        SYS_shmget SYS_shmat SYS_shmdt SYS_shmctl SYS_mq_open SYS_mq_unlink SYS_mq_timedsend
        SYS_mq_timedreceive SYS_mq_notify SYS_mq_getsetattr
    },
    NAMELESS,
];

/// `io_pgetevents`, `cachestat`, `map_shadow_stack`, `futex_wake`, `futex_wait`, `futex_requeue`, which `libc` has no names
/// for; kernels that do not know them say so.
const NAMELESS: &[c_long] = &[333, 451, 453, 454, 455, 456];

/// Answered as by a kernel without them, since programs then take another way: `clone3`, whose arguments no
/// filter can read, and `io_uring`, whose requests no filter sees.
pub(crate) const ABSENT: &[c_long] = numbers! {
    SYS_clone3 SYS_io_uring_setup SYS_io_uring_enter SYS_io_uring_register
};

/// The highest number that this list was made with (`mseal`). What a later kernel has beyond it is answered
/// as by a kernel without it.
pub(crate) const HIGHEST_KNOWN: c_long = libc::SYS_mseal;
