//! Every limit and deadline of the driver, in one place.

use std::{ffi::CStr, time::Duration};

use codius_pod::{Isolation, Machine};

use crate::jail::Bounds;

/// From the start of QEMU to the agent's first answer. Emulated machines of a busy host are slow: about ten
/// times what they take when a few of them and a compiler share two cores.
pub(crate) fn hello_deadline(isolation: Isolation) -> Duration {
    match isolation {
        Isolation::Kvm => Duration::from_secs(5),
        Isolation::Gvisor | Isolation::Tcg => Duration::from_secs(60),
    }
}

/// From the agent's answer until all containers were told to start.
pub(crate) fn containers_deadline(isolation: Isolation) -> Duration {
    match isolation {
        Isolation::Kvm => Duration::from_secs(10),
        Isolation::Gvisor | Isolation::Tcg => Duration::from_secs(60),
    }
}

/// Beyond the containers' grace, for the agent to sync and say so.
pub(crate) const STOP_MARGIN: Duration = Duration::from_secs(10);
/// `Attach` is said again this often until it is answered.
pub(crate) const ATTACH_INTERVAL: Duration = Duration::from_millis(500);
/// The running agent is asked this often whether it is there.
pub(crate) const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// So many unanswered heartbeats mean that the guest hangs.
pub(crate) const HEARTBEATS_MISSED: u32 = 3;
/// A real boot that shows whether KVM works.
pub(crate) const PROBE_DEADLINE: Duration = Duration::from_secs(5);
/// A program of the distribution (`ip`, `nft`, `mke2fs`) that takes longer hangs.
pub(crate) const PROGRAM_DEADLINE: Duration = Duration::from_secs(10);
/// A killed process that is still there after this is stuck in the kernel.
pub(crate) const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// A process that was told to stop and still goes on after this is stuck in the kernel.
pub(crate) const HOLD_DEADLINE: Duration = Duration::from_secs(5);
/// How often the threads of such a process are looked at: they stop within microseconds if they get a processor.
pub(crate) const HOLD_LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// How long `open` waits for a driver of this process that is just being dropped.
pub(crate) const LOCK_DEADLINE: Duration = Duration::from_secs(3);

/// From the start of QEMU to the agent's first answer in a clone; then the pod is booted instead.
pub(crate) fn clone_deadline(isolation: Isolation) -> Duration {
    match isolation {
        Isolation::Kvm => Duration::from_secs(2),
        Isolation::Gvisor | Isolation::Tcg => Duration::from_secs(20),
    }
}

/// From the start of a machine until it has been saved as a template.
pub(crate) const TEMPLATE_DEADLINE: Duration = Duration::from_secs(120);
/// How much a machine that becomes a template lets others go first (as `nice` has it).
pub(crate) const YIELDING_NICENESS: i32 = 10;
/// Templates at the same time: each holds about 90 MiB of memory.
pub(crate) const MAX_TEMPLATES: usize = 4;
/// Larger machines are booted: a kernel keeps 16 MiB of tables for each GiB, which a template would hold, too.
pub(crate) const MAX_TEMPLATE_MACHINE_MIB: u32 = 4096;
/// A template of which so many clones in a row have failed is given up until the next start of the daemon.
pub(crate) const MAX_CLONE_FAILURES: u32 = 3;
/// A note about a template is at most this long on disk.
pub(crate) const MAX_TEMPLATE_NOTE_BYTES: u64 = 64 * 1024;
/// Room on disk that a template leaves to everything else; with less it is kept in memory only.
pub(crate) const TEMPLATE_LEAVES_BYTES: u64 = 1 << 30;
/// The longest line of QEMU's control channel.
pub(crate) const MAX_QMP_LINE_BYTES: usize = 64 * 1024;
/// Lines that are read of QEMU's control channel at all.
pub(crate) const MAX_QMP_LINES: u32 = 1024;

/// What the guest's kernel and agent take of the machine's memory.
pub(crate) const KERNEL_MEMORY_MIB: u32 = 64;
/// The smallest machine that boots.
pub(crate) const MIN_MEMORY_MIB: u32 = 64;
/// The largest machine.
pub(crate) const MAX_MEMORY_MIB: u32 = 1024 * 1024;
/// The smallest scratch disk that an ext4 file system fits on with something left.
pub(crate) const MIN_SCRATCH_MIB: u32 = 16;
/// The largest scratch disk.
pub(crate) const MAX_SCRATCH_MIB: u32 = 16 * 1024 * 1024;
/// The most virtual processors.
pub(crate) const MAX_VCPUS: u8 = 64;
/// Processes and threads in one container.
pub(crate) const MAX_PROCESSES: u32 = 1024;
/// Descriptors QEMU may open (images, sockets, event descriptors).
pub(crate) const QEMU_OPEN_FILES: u64 = 256;
/// Translated code that QEMU keeps without KVM. With half of it a boot takes a third more processor time.
pub(crate) const TCG_CODE_CACHE_MIB: u32 = 32;
/// The same in a clone, which has no boot to translate: with twice as much it is no faster, and all of it gets used.
pub(crate) const TCG_CLONE_CODE_CACHE_MIB: u32 = 16;
/// QEMU goes first when the host is short of memory.
pub(crate) const QEMU_OOM_SCORE: &CStr = c"500";

/// What QEMU may keep beside the guest's memory without KVM. Translated code and what it notes of it, itself and its
/// libraries were at most 160 MiB; the rest is room, because the end of it is the end of a pod.
const QEMU_EMULATING_MIB: u64 = 384;
/// The same with KVM.
const QEMU_MIB: u64 = 192;
/// More of it for each processor: stacks, and what is noted of translated code.
const QEMU_MIB_OF_A_PROCESSOR: u64 = 8;
/// The guest's memory by which QEMU's page tables grow by one MiB, fourfold.
const MEMORY_MIB_OF_A_PAGE_TABLE_MIB: u64 = 128;
/// Processor time for QEMU's own work (disks, network), in hundredths of a processor, beside what is sold.
const QEMU_PROCESSOR_PERCENT: u64 = 25;
/// Threads of QEMU beside one for each processor: its main loop, and up to 64 that work on disks.
const QEMU_THREADS: u64 = 96;
/// What a machine that lets others go first gets when processors are short, in hundredths of a machine that is sold.
const YIELDING_WEIGHT_PERCENT: u64 = 10;
/// Bytes that a machine may read from, and write to, the disk that the scratch disks are on, in a second.
pub(crate) const DISK_BYTES_PER_SEC: u64 = 256 << 20;
/// Reads, and writes, of the same in a second.
pub(crate) const DISK_OPERATIONS_PER_SEC: u64 = 10_000;
/// A control group that is still in use so long after its process has ended is not only ours.
pub(crate) const CONTROL_GROUP_DEADLINE: Duration = Duration::from_secs(2);
/// How often it is tried meanwhile.
pub(crate) const CONTROL_GROUP_LOOK_INTERVAL: Duration = Duration::from_millis(2);
/// What the loader says of QEMU's libraries: about 4 KiB.
pub(crate) const MAX_LIBRARY_LIST_BYTES: u64 = 60 * 1024;

/// What the process of a machine may take of the host.
pub(crate) fn qemu_bounds(machine: Machine, emulated: bool, yields: bool) -> Bounds {
    let processors = u64::from(machine.vcpus);
    let guest_mib = u64::from(machine.memory_mib) + u64::from(KERNEL_MEMORY_MIB);
    let own_mib = if emulated {
        QEMU_EMULATING_MIB
    } else {
        QEMU_MIB
    };
    let memory_mib = guest_mib
        + guest_mib / MEMORY_MIB_OF_A_PAGE_TABLE_MIB
        + own_mib
        + processors * QEMU_MIB_OF_A_PROCESSOR;
    Bounds {
        memory_bytes: memory_mib << 20,
        processor_percent: processors * 100 + QEMU_PROCESSOR_PERCENT,
        weight_percent: if yields { YIELDING_WEIGHT_PERCENT } else { 100 },
        processes: processors + QEMU_THREADS,
    }
}

/// Connections of one pod to the Interledger port at the same time; more wait in the listener's queue.
pub(crate) const MAX_INTERLEDGER_CONNECTIONS: usize = 64;
/// Bytes read from a guest in a second, after a burst; a guest that writes more is read later.
pub(crate) const GUEST_BYTES_PER_SEC: u32 = 8 * 1024 * 1024;
/// Bytes read from a guest at once before the rate counts.
pub(crate) const GUEST_BURST_BYTES: u32 = 8 * 1024 * 1024;
/// What a line costs of that rate beside its bytes, so that tiny lines are bounded too.
pub(crate) const GUEST_LINE_COST: u32 = 256;
/// Lines that make no sense, after which the guest is given up.
pub(crate) const MAX_UNREADABLE_LINES: u32 = 8;
/// The longest wait for a container's next start that a guest is believed.
pub(crate) const MAX_RESTART_WAIT: Duration = Duration::from_secs(600);
/// What sessions of `exec` may have asked of a pod and its task has not heard yet.
pub(crate) const MAX_EXEC_WISHES: usize = 64;
/// Messages to a guest that does not read them.
pub(crate) const MAX_OUTBOX_BYTES: usize = codius_guest_protocol::MAX_LINE_BYTES + 64 * 1024;
/// Characters of a guest's own explanation that are passed on.
pub(crate) const MAX_REASON_CHARS: usize = 500;
/// Bytes at the end of the guest's console that are shown to the operator when a boot fails.
pub(crate) const CONSOLE_TAIL_BYTES: u64 = 2048;
/// The guest's console file is emptied when it is longer than this.
pub(crate) const MAX_CONSOLE_BYTES: u64 = 256 * 1024;
/// Bytes of a program's complaint that are kept.
pub(crate) const MAX_COMPLAINT_BYTES: u64 = 4096;
/// What the kernel says of the counters of one pod: about 2 KiB.
pub(crate) const MAX_COUNTERS_BYTES: usize = 64 * 1024;
/// A record of a pod is at most this long on disk.
pub(crate) const MAX_RECORD_BYTES: u64 = 1024 * 1024;
