//! The lists: which system calls each kind of thread may make.
//!
//! A list is made of groups. [`BASE`] is what the Rust and C libraries need in any thread: memory, locks, clocks, log
//! lines, its own end. The other groups are named after what they are for. `docs/security.md` shows which list has which.

use super::Kind;
use super::rules::Condition::{Bits, Is, OwnProcess};
use super::rules::{Allowed, call, call_if};

const EXEC: u32 = libc::PROT_EXEC as u32;
const WRITE: u32 = libc::PROT_WRITE as u32;
const UNIX: u32 = libc::AF_UNIX as u32;
/// SIGRTMIN of the GNU C library, which keeps two signals for itself; it interrupts `KVM_RUN`.
const KICK_SIGNAL: u32 = 34;

/// Requests of KVM by their numbers, whatever the size of their argument (linux/kvm.h; KVMIO is 0xae).
macro_rules! kvm {
    ($($number:literal),* $(,)?) => { &[$(call_if(libc::SYS_ioctl, &[Bits(1, 0xffff, 0xae00 | $number)])),*] };
}

/// A group's calls.
type Group = &'static [Allowed];

/// The calls of `kind`, group by group.
pub(super) fn groups(kind: Kind) -> &'static [Group] {
    match kind {
        // Starts every other thread, and so must have what they have.
        Kind::Machine => &[
            BASE,
            KVM_VCPU,
            INTERRUPTS,
            THREADS,
            POLL,
            BLOCK,
            MEMORY_RETURN,
            NET,
            VSOCK,
            SIGNALS,
            CODE,
            KICK,
            RATES,
            CONTROL,
            RECORD,
            FOLDER,
            SNAPSHOT,
            DEVICE_START,
            KVM_EVENTS,
            KVM_MEMORY,
            BUILD,
            KVM_BUILD,
        ],
        Kind::Launcher => &[
            BASE,
            INTERRUPTS,
            THREADS,
            POLL,
            BLOCK,
            MEMORY_RETURN,
            NET,
            VSOCK,
            RATES,
            DEVICE_START,
            KVM_EVENTS,
            KVM_MEMORY,
        ],
        Kind::VcpuSoft => &[BASE, CODE],
        Kind::VcpuKvm => &[BASE, KVM_VCPU, INTERRUPTS, CODE, KICK],
        Kind::Block => &[BASE, INTERRUPTS, POLL, BLOCK, RATES],
        Kind::Net => &[BASE, INTERRUPTS, POLL, NET, RATES],
        Kind::Vsock => &[BASE, INTERRUPTS, POLL, VSOCK],
        Kind::Balloon => &[BASE, INTERRUPTS, POLL, MEMORY_RETURN],
        Kind::Memory => &[BASE, INTERRUPTS, POLL, MEMORY_RETURN, KVM_MEMORY],
        Kind::Rng => &[BASE, INTERRUPTS, POLL, RATES],
        Kind::Console | Kind::Device => &[BASE, INTERRUPTS, POLL],
        Kind::Control => &[BASE, INTERRUPTS, POLL, RATES, CONTROL],
        Kind::ConsoleHub => &[BASE, INTERRUPTS, POLL, CONTROL, VIEWERS, RECORD],
        // What a machine that moves has to say goes through Unix sockets; disks that are copied are read.
        Kind::Snapshot => &[BASE, INTERRUPTS, THREADS, SNAPSHOT, POLL, VSOCK, BLOCK],
        Kind::Timers | Kind::Input | Kind::Output => &[BASE, INTERRUPTS],
        Kind::PasstLog => &[BASE],
        Kind::Signals => &[BASE, INTERRUPTS, SIGNALS],
    }
}

/// Whether threads of this kind start threads.
pub(super) fn starts_threads(kind: Kind) -> bool {
    matches!(kind, Kind::Machine | Kind::Launcher | Kind::Snapshot)
}

/// What any thread needs.
const BASE: Group = &[
    // Descriptors that are open already; log lines; eventfds.
    call(libc::SYS_read),
    call(libc::SYS_write),
    call(libc::SYS_readv),
    call(libc::SYS_writev),
    call(libc::SYS_close),
    // Rust's library, built for debugging, looks whether a descriptor that it closes is open.
    call_if(libc::SYS_fcntl, &[Is(1, libc::F_GETFD as u32)]),
    // The allocator. Never executable.
    call_if(libc::SYS_mmap, &[Bits(2, EXEC, 0)]),
    call_if(libc::SYS_mprotect, &[Bits(2, EXEC, 0)]),
    call(libc::SYS_munmap),
    call(libc::SYS_mremap),
    call(libc::SYS_madvise),
    call(libc::SYS_brk),
    // Locks, clocks, sleep.
    call(libc::SYS_futex),
    call(libc::SYS_sched_yield),
    call(libc::SYS_clock_gettime),
    call(libc::SYS_clock_nanosleep),
    call(libc::SYS_nanosleep),
    call(libc::SYS_restart_syscall),
    // Seeds of hash tables, and the entropy device.
    call(libc::SYS_getrandom),
    // Signals within this process: a vCPU's kick, abort().
    call(libc::SYS_getpid),
    call(libc::SYS_gettid),
    call_if(libc::SYS_tgkill, &[OwnProcess(0)]),
    call(libc::SYS_rt_sigprocmask),
    call(libc::SYS_rt_sigreturn),
    call(libc::SYS_sigaltstack),
    // Whoever ends the process gives the terminal its modes back.
    call_if(libc::SYS_ioctl, &[Is(1, libc::TCSETS as u32)]),
    call_if(libc::SYS_ioctl, &[Is(1, libc::TCSETS2 as u32)]),
    call(libc::SYS_exit),
    call(libc::SYS_exit_group),
];

/// Giving an interrupt to KVM. (To our own controllers it is memory, locks and a kick.)
const INTERRUPTS: Group = kvm![
    0x61, // KVM_IRQ_LINE
    0x6a, // KVM_SET_GSI_ROUTING
    0xa5, // KVM_SIGNAL_MSI
];

/// Starting a thread, up to the point where it has its own list.
const THREADS: Group = &[
    call_if(libc::SYS_clone, &[Bits(0, libc::CLONE_THREAD as u32, libc::CLONE_THREAD as u32)]),
    // Its flags lie in memory, where no filter can see them; answered with ENOSYS by a filter of its own.
    call(libc::SYS_clone3),
    call(libc::SYS_set_robust_list),
    call(libc::SYS_rseq),
    call(libc::SYS_sched_getaffinity),
    call(libc::SYS_sched_setaffinity),
    call_if(libc::SYS_prctl, &[Is(0, libc::PR_SET_NAME as u32)]),
    call_if(libc::SYS_prctl, &[Is(0, libc::PR_SET_TIMERSLACK as u32)]),
    call_if(libc::SYS_prctl, &[Is(0, libc::PR_SET_NO_NEW_PRIVS as u32)]),
    // A further filter can only take away.
    call_if(libc::SYS_seccomp, &[Is(0, libc::SECCOMP_SET_MODE_FILTER)]),
];

/// Waiting for descriptors.
const POLL: Group = &[
    call(libc::SYS_epoll_wait),
    call(libc::SYS_epoll_pwait),
    call(libc::SYS_epoll_pwait2),
    call(libc::SYS_epoll_ctl),
    call(libc::SYS_poll),
    call(libc::SYS_ppoll),
];

/// Disk requests: through a ring that exists already, or directly. The rings are restricted to reads, writes,
/// flushes and holes, since what goes through a ring meets no filter.
const BLOCK: Group = &[
    call(libc::SYS_io_uring_enter),
    call(libc::SYS_pread64),
    call(libc::SYS_pwrite64),
    call(libc::SYS_preadv),
    call(libc::SYS_pwritev),
    call(libc::SYS_preadv2),
    call(libc::SYS_pwritev2),
    call(libc::SYS_fdatasync),
    call(libc::SYS_fsync),
    call(libc::SYS_fallocate),
    call(libc::SYS_ftruncate),
    call(libc::SYS_lseek),
];

/// Guest memory back to the host.
const MEMORY_RETURN: Group = &[call(libc::SYS_fallocate)];

/// The timer by which a rate limit wakes its device.
const RATES: Group = &[call(libc::SYS_timerfd_settime)];

/// Which pages are this process's own: linux/fs.h.
const PAGEMAP_SCAN: u32 = 0xc060_6610;

/// Clients of the control socket, and what guest memory takes of the host.
const CONTROL: Group = &[
    // What the kernel tells of threads and memory, in files that are open.
    call(libc::SYS_pread64),
    call_if(libc::SYS_ioctl, &[Is(1, PAGEMAP_SCAN)]),
    call(libc::SYS_accept4),
    call(libc::SYS_recvfrom),
    call(libc::SYS_sendmsg),
    // A migration that is cancelled.
    call(libc::SYS_shutdown),
    call_if(libc::SYS_ioctl, &[Is(1, libc::FIONBIO as u32)]),
    call(libc::SYS_fstat),
    call_if(libc::SYS_newfstatat, &[Bits(3, libc::AT_EMPTY_PATH as u32, libc::AT_EMPTY_PATH as u32)]),
];

/// Viewers of the console.
const VIEWERS: Group = &[call(libc::SYS_sendto)];

/// The files of a console's output and of the log, which are open: they are cut, and change names.
const RECORD: Group = &[
    call(libc::SYS_renameat2),
    call(libc::SYS_ftruncate),
    call(libc::SYS_pread64),
    call(libc::SYS_lseek),
    call_if(libc::SYS_statx, &[Bits(2, libc::AT_EMPTY_PATH as u32, libc::AT_EMPTY_PATH as u32)]),
];

/// The report of the machine's end, in the place of an older one.
const FOLDER: Group = &[call(libc::SYS_rename), call(libc::SYS_fsync)];

/// A snapshot's directory and its files, and freezing guest memory.
const SNAPSHOT: Group = &[
    call(libc::SYS_open),
    call(libc::SYS_openat),
    call(libc::SYS_mkdir),
    call(libc::SYS_mkdirat),
    call(libc::SYS_rename),
    call(libc::SYS_renameat),
    call(libc::SYS_unlink),
    call(libc::SYS_unlinkat),
    call(libc::SYS_rmdir),
    call(libc::SYS_fstat),
    call(libc::SYS_newfstatat),
    call(libc::SYS_statx),
    call(libc::SYS_lseek),
    call(libc::SYS_ftruncate),
    call(libc::SYS_pread64),
    call(libc::SYS_pwrite64),
    call(libc::SYS_fsync),
    call(libc::SYS_fdatasync),
    call(libc::SYS_memfd_create),
    call(libc::SYS_fallocate),
    // Images that disks go on with.
    call(libc::SYS_flock),
    call(libc::SYS_readlink),
    call(libc::SYS_readlinkat),
    call_if(libc::SYS_ioctl, &[Is(1, BLKSSZGET)]),
    call_if(libc::SYS_ioctl, &[Is(1, BLKPBSZGET)]),
    call(libc::SYS_preadv),
    call(libc::SYS_pwritev),
    call(libc::SYS_preadv2),
    call(libc::SYS_pwritev2),
    // Sealing files; duplicates of descriptors for clones.
    call(libc::SYS_fcntl),
    call_if(libc::SYS_ioctl, &[Is(1, PAGEMAP_SCAN)]),
    // Filling a layer while the guest runs, linux/userfaultfd.h.
    call(libc::SYS_userfaultfd),
    call_if(libc::SYS_ioctl, &[Is(1, 0xaa00)]),      // USERFAULTFD_IOC_NEW
    call_if(libc::SYS_ioctl, &[Is(1, 0xc018_aa3f)]), // UFFDIO_API
    call_if(libc::SYS_ioctl, &[Is(1, 0xc020_aa00)]), // UFFDIO_REGISTER
    call_if(libc::SYS_ioctl, &[Is(1, 0x8010_aa01)]), // UFFDIO_UNREGISTER
    call_if(libc::SYS_ioctl, &[Is(1, 0x8010_aa02)]), // UFFDIO_WAKE
    call_if(libc::SYS_ioctl, &[Is(1, 0xc028_aa03)]), // UFFDIO_COPY
];

/// Frames through a descriptor that exists already.
const NET: Group =
    &[call(libc::SYS_recvfrom), call(libc::SYS_sendto), call(libc::SYS_recvmsg), call(libc::SYS_sendmsg)];

/// Unix sockets of the host.
const VSOCK: Group = &[
    call_if(libc::SYS_socket, &[Is(0, UNIX)]),
    call(libc::SYS_connect),
    call(libc::SYS_accept4),
    call(libc::SYS_recvfrom),
    call(libc::SYS_sendto),
    call(libc::SYS_recvmsg),
    call(libc::SYS_sendmsg),
    call(libc::SYS_shutdown),
    call(libc::SYS_getsockopt),
    call_if(libc::SYS_ioctl, &[Is(1, libc::FIONBIO as u32)]),
];

/// Signals of the process, and what they ask about the terminal.
const SIGNALS: Group = &[
    call(libc::SYS_rt_sigtimedwait),
    // The length of a file that is open: whether a debugger is attached.
    call_if(libc::SYS_statx, &[Bits(2, libc::AT_EMPTY_PATH as u32, libc::AT_EMPTY_PATH as u32)]),
    call(libc::SYS_lseek),
    call_if(libc::SYS_ioctl, &[Is(1, libc::TIOCGWINSZ as u32)]),
    call_if(libc::SYS_ioctl, &[Is(1, libc::TCGETS as u32)]),
    call_if(libc::SYS_ioctl, &[Is(1, libc::TCGETS2 as u32)]),
];

/// The memory of generated code, as the software CPU makes it: a file mapped twice, once for writing, once for executing.
/// No mapping is ever both.
const CODE: Group = &[
    call(libc::SYS_memfd_create),
    call(libc::SYS_ftruncate),
    // ARCH_SET_GS, where programs may not use WRGSBASE: generated code finds its tables by GS.
    call_if(libc::SYS_arch_prctl, &[Is(0, 0x1001)]),
    call_if(
        libc::SYS_mmap,
        &[
            Bits(2, EXEC | WRITE, EXEC),
            Bits(3, (libc::MAP_SHARED | libc::MAP_ANONYMOUS) as u32, libc::MAP_SHARED as u32),
        ],
    ),
];

/// Running a vCPU on KVM.
const KVM_VCPU: Group = kvm![
    // The common ones first: the kernel walks the rules in this order.
    0x80, // KVM_RUN
    0x86, // KVM_INTERRUPT
    0x81, // KVM_GET_REGS
    0x82, // KVM_SET_REGS
    0x83, // KVM_GET_SREGS
    0x84, // KVM_SET_SREGS
    0x88, // KVM_GET_MSRS
    0x89, // KVM_SET_MSRS
    0x8c, // KVM_GET_FPU
    0x8d, // KVM_SET_FPU
    0x8e, // KVM_GET_LAPIC
    0x8f, // KVM_SET_LAPIC
    0x90, // KVM_SET_CPUID2
    0x98, // KVM_GET_MP_STATE
    0x99, // KVM_SET_MP_STATE
    0x9a, // KVM_NMI
    0x9b, // KVM_SET_GUEST_DEBUG
    0x9f, // KVM_GET_VCPU_EVENTS
    0xa0, // KVM_SET_VCPU_EVENTS
    0xa1, // KVM_GET_DEBUGREGS
    0xa2, // KVM_SET_DEBUGREGS, KVM_SET_TSC_KHZ
    0xa3, // KVM_GET_TSC_KHZ, KVM_ENABLE_CAP
    0xa4, // KVM_GET_XSAVE
    0xa5, // KVM_SET_XSAVE
    0xa6, // KVM_GET_XCRS
    0xa7, // KVM_SET_XCRS
    0xad, // KVM_KVMCLOCK_CTRL
    0xcc, // KVM_GET_SREGS2
    0xcd, // KVM_SET_SREGS2
    0xcf, // KVM_GET_XSAVE2
    0xe1, // KVM_SET_DEVICE_ATTR
    0xe2, // KVM_GET_DEVICE_ATTR
];

/// The signal by which a vCPU in KVM is called back.
const KICK: Group = &[call_if(libc::SYS_rt_sigaction, &[Is(0, KICK_SIGNAL)])];

/// Making a device ready when its driver starts it: its thread's descriptors, a disk's ring, a network's offloads,
/// notifications that KVM delivers itself.
const DEVICE_START: Group = &[
    call(libc::SYS_epoll_create1),
    call(libc::SYS_eventfd2),
    call(libc::SYS_timerfd_create),
    call(libc::SYS_io_uring_setup),
    call(libc::SYS_io_uring_register),
    call(libc::SYS_fcntl),
    // TUNSETOFFLOAD
    call_if(libc::SYS_ioctl, &[Is(1, 0x4004_54d0)]),
];

/// The same, where KVM takes part.
const KVM_EVENTS: Group = kvm![
    0x76, // KVM_IRQFD
    0x79, // KVM_IOEVENTFD
];

/// Memory that is plugged and unplugged, where KVM takes part.
const KVM_MEMORY: Group = kvm![
    0x46, // KVM_SET_USER_MEMORY_REGION
];

/// Building a machine, at the start and at every restart of the guest, and taking it apart.
const BUILD: Group = &[
    // The configuration's files, and /dev/kvm.
    call(libc::SYS_open),
    call(libc::SYS_openat),
    call(libc::SYS_fstat),
    call(libc::SYS_newfstatat),
    call(libc::SYS_statx),
    call(libc::SYS_getdents64),
    call(libc::SYS_readlink),
    call(libc::SYS_readlinkat),
    call(libc::SYS_flock),
    call(libc::SYS_fadvise64),
    call_if(libc::SYS_ioctl, &[Is(1, BLKSSZGET)]),
    call_if(libc::SYS_ioctl, &[Is(1, BLKPBSZGET)]),
    call(libc::SYS_unlink),
    call(libc::SYS_unlinkat),
    // The listening end of the socket device.
    call(libc::SYS_bind),
    call(libc::SYS_listen),
    // Guest memory: where it lies, and what of it is there.
    call(libc::SYS_mbind),
    call(libc::SYS_set_mempolicy),
    call(libc::SYS_get_mempolicy),
    call(libc::SYS_mincore),
    call(libc::SYS_sysinfo),
    // The end of passt.
    call(libc::SYS_kill),
    call(libc::SYS_wait4),
    call(libc::SYS_waitid),
    // What the libraries ask now and then.
    call(libc::SYS_uname),
    call(libc::SYS_getcwd),
    call(libc::SYS_prlimit64),
];

/// BLKSSZGET and BLKPBSZGET, linux/fs.h.
const BLKSSZGET: u32 = 0x1268;
const BLKPBSZGET: u32 = 0x127b;

/// Making a virtual machine of KVM.
const KVM_BUILD: Group = kvm![
    0x00, // KVM_GET_API_VERSION
    0x01, // KVM_CREATE_VM
    0x02, // KVM_GET_MSR_INDEX_LIST
    0x03, // KVM_CHECK_EXTENSION
    0x04, // KVM_GET_VCPU_MMAP_SIZE
    0x05, // KVM_GET_SUPPORTED_CPUID
    0x0a, // KVM_GET_MSR_FEATURE_INDEX_LIST
    0x41, // KVM_CREATE_VCPU
    0x42, // KVM_GET_DIRTY_LOG
    0x46, // KVM_SET_USER_MEMORY_REGION
    0x47, // KVM_SET_TSS_ADDR
    0x48, // KVM_SET_IDENTITY_MAP_ADDR
    0x49, // KVM_SET_USER_MEMORY_REGION2
    0x60, // KVM_CREATE_IRQCHIP
    0x77, // KVM_CREATE_PIT2
    0x7b, // KVM_SET_CLOCK
    0x7c, // KVM_GET_CLOCK
    0xc0, // KVM_CLEAR_DIRTY_LOG
    0xc6, // KVM_X86_SET_MSR_FILTER
    0xc7, // KVM_RESET_DIRTY_RINGS
    0xe3, // KVM_HAS_DEVICE_ATTR
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::rules::gather;
    use super::*;

    fn numbers(kind: Kind) -> BTreeSet<i64> {
        groups(kind).iter().flat_map(|group| group.iter()).map(|allowed| allowed.number).collect()
    }

    #[test]
    fn a_list_is_part_of_those_of_the_threads_that_start_it() {
        // A thread keeps the filters of the one that started it, so what these lack its own list could not give.
        let machine = numbers(Kind::Machine);
        for kind in Kind::ALL {
            let list = numbers(kind);
            assert!(list.is_subset(&machine) || kind == Kind::Launcher, "{kind:?}: {:?}", list.difference(&machine));
            if kind.is_device() {
                assert!(list.is_subset(&numbers(Kind::Launcher)), "{kind:?}");
                // Also in what is allowed of a call.
                let rules = |kind| -> BTreeSet<String> {
                    groups(kind).iter().flat_map(|group| group.iter()).map(|allowed| format!("{allowed:?}")).collect()
                };
                assert!(rules(kind).is_subset(&rules(Kind::Launcher)), "{kind:?}");
            }
        }
        assert!(numbers(Kind::Launcher).is_subset(&machine));
    }

    /// The number of calls that `docs/security.md` gives for the row that begins with `thread`.
    fn told(thread: &str) -> usize {
        const PAGE: &str = include_str!("../../../../docs/security.md");
        let row = PAGE.lines().find(|line| line.starts_with(&format!("| {thread} |"))).expect("a row");
        row.split('|').nth(2).and_then(|number| number.trim().parse().ok()).expect("a number")
    }

    #[test]
    fn the_page_on_security_tells_the_numbers_of_these_lists() {
        let rows = [
            ("vCPU, soft", Kind::VcpuSoft),
            ("vCPU, KVM", Kind::VcpuKvm),
            ("timers, input, output", Kind::Timers),
            ("passt's messages", Kind::PasstLog),
            ("signals", Kind::Signals),
            ("entropy, console, other devices", Kind::Device),
            ("balloon", Kind::Balloon),
            ("hot-plugged memory", Kind::Memory),
            ("control socket", Kind::Control),
            ("console hub", Kind::ConsoleHub),
            ("snapshots", Kind::Snapshot),
            ("network", Kind::Net),
            ("socket device", Kind::Vsock),
            ("block", Kind::Block),
            ("launcher", Kind::Launcher),
            ("main", Kind::Machine),
        ];
        let wrong: Vec<_> = rows.iter().filter(|(row, kind)| told(row) != kind.calls()).collect();
        let right: Vec<_> = rows.iter().map(|(row, kind)| (row, kind.calls())).collect();
        assert!(wrong.is_empty(), "wrong in docs/security.md: {wrong:?}; right is {right:?}");
    }

    #[test]
    fn every_list_compiles() {
        for kind in Kind::ALL {
            assert!(gather(groups(kind)).is_ok(), "{kind:?}");
        }
    }

    #[test]
    fn no_list_has_what_would_undo_it() {
        let never = [libc::SYS_execve, libc::SYS_execveat, libc::SYS_fork, libc::SYS_vfork, libc::SYS_ptrace];
        let never = [&never[..], &[libc::SYS_process_vm_writev, libc::SYS_mount, libc::SYS_bpf, libc::SYS_unshare]];
        for kind in Kind::ALL {
            assert!(never.iter().all(|calls| calls.iter().all(|call| !numbers(kind).contains(call))), "{kind:?}");
        }
    }
}
