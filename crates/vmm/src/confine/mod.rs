//! Confinement of the process that runs a virtual machine: each thread may make the system calls that its work needs,
//! and no others (seccomp).
//!
//! Promises:
//! - once [`start`] was called, every thread of the machine confines itself before it meets anything that a guest
//!   controls: [`enter`];
//! - a call that is not on a thread's list is not carried out: it ends the process, which says in one line which thread made
//!   which call, with an exit status of its own;
//! - a guest's restart, which builds the machine anew, works within the lists.
//!
//! ```text
//! main thread ── start(), builds the machine, enter(Machine) ──┬─> vCPU threads: enter(VcpuSoft | VcpuKvm)
//!                                                              └─> timers, output, …
//! launcher ──── starts devices for the vCPUs ───────────────────> device threads: enter(Block), enter(Net), …
//! ```
//! A thread inherits the filters of the one that starts it, and filters can only be added. Therefore a vCPU, whose list is
//! short, has the launcher start a device when the guest's driver asks for it ([`on_launcher`]).
//!
//! A filter belongs to the process, not to a machine: a program that runs one machine calls [`start`] once. Where nobody
//! calls it (tests, benchmarks), nothing is filtered. The lists are in `lists.rs`, one constant for each purpose; how to
//! change them is in `docs/security.md`.

mod launcher;
mod lists;
mod names;
mod report;
mod rules;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use seccompiler::{BackendError, BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};
use serde::{Deserialize, Serialize};

pub use launcher::on_launcher;
pub use report::Report;

/// What becomes of a call that is not on the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// It ends the process.
    #[default]
    On,
    /// The kernel notes it in its audit log and carries it out.
    Log,
    /// There are no lists.
    Off,
}

/// The kinds of threads, each with its list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Builds the machine, waits for its end, builds it again when the guest restarts.
    Machine,
    /// Starts and stops devices for the vCPUs.
    Launcher,
    /// A vCPU of the software CPU.
    VcpuSoft,
    /// A vCPU on KVM.
    VcpuKvm,
    Block,
    Net,
    Vsock,
    Balloon,
    /// The device of hot-plugged memory.
    Memory,
    Console,
    Rng,
    /// Any other device.
    Device,
    Timers,
    /// Writes what the guest's consoles say.
    Output,
    /// Reads standard input.
    Input,
    Signals,
    /// Listens to what passt has to say.
    PasstLog,
    /// Serves the control socket.
    Control,
    /// Serves the console's viewers and records what it says.
    ConsoleHub,
    /// Takes snapshots.
    Snapshot,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 20] = [
        Kind::Machine,
        Kind::Launcher,
        Kind::VcpuSoft,
        Kind::VcpuKvm,
        Kind::Block,
        Kind::Net,
        Kind::Vsock,
        Kind::Balloon,
        Kind::Memory,
        Kind::Console,
        Kind::Rng,
        Kind::Device,
        Kind::Timers,
        Kind::Output,
        Kind::Input,
        Kind::Signals,
        Kind::PasstLog,
        Kind::Control,
        Kind::ConsoleHub,
        Kind::Snapshot,
    ];

    /// What the thread is called in a sentence.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Machine => "main thread",
            Kind::Launcher => "launcher thread",
            Kind::VcpuSoft => "vCPU thread (soft)",
            Kind::VcpuKvm => "vCPU thread (KVM)",
            Kind::Block => "block device's thread",
            Kind::Net => "network device's thread",
            Kind::Vsock => "socket device's thread",
            Kind::Balloon => "balloon's thread",
            Kind::Memory => "memory device's thread",
            Kind::Console => "console device's thread",
            Kind::Rng => "entropy device's thread",
            Kind::Device => "device's thread",
            Kind::Timers => "timer thread",
            Kind::Output => "output thread",
            Kind::Input => "input thread",
            Kind::Signals => "signal thread",
            Kind::PasstLog => "thread that listens to passt",
            Kind::Control => "control socket's thread",
            Kind::ConsoleHub => "console hub's thread",
            Kind::Snapshot => "snapshots' thread",
        }
    }

    /// Whether this is a thread of a device, which the launcher starts.
    pub fn is_device(self) -> bool {
        use Kind::{Balloon, Block, Console, Device, Memory, Net, Rng, Vsock};
        matches!(self, Block | Net | Vsock | Balloon | Memory | Console | Rng | Device)
    }

    /// How many system calls the list names.
    pub fn calls(self) -> usize {
        lists::groups(self)
            .iter()
            .flat_map(|group| group.iter())
            .map(|allowed| allowed.number)
            .collect::<BTreeSet<_>>()
            .len()
    }
}

/// Why threads cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("this kernel has no seccomp filters ({0}): use a kernel with CONFIG_SECCOMP_FILTER, or --seccomp off")]
    Unsupported(std::io::Error),
    #[error("the threads of this process are confined already")]
    Started,
    #[error("the filter of a thread is no program: {0}; please report it")]
    Compile(#[from] BackendError),
    #[error("the kernel refuses a thread's filter: {0}; --seccomp off runs without")]
    Apply(#[from] seccompiler::Error),
    #[error("the launcher thread cannot be started: {0}")]
    Launcher(std::io::Error),
}

/// What [`start`] has decided for this process.
struct Policy {
    mode: Mode,
    report: Report,
}

static POLICY: OnceLock<Policy> = OnceLock::new();

thread_local! {
    /// What this thread is. Without a destructor, so that the signal handler may read it.
    static KIND: Cell<Option<Kind>> = const { Cell::new(None) };
}

/// From now on, threads that call [`enter`] are confined. Called by the program's first thread before it makes a machine.
///
/// # Errors
/// The kernel has no such filters, a thread cannot be started, or this is the second call.
pub fn start(mode: Mode, report: Report) -> Result<(), Error> {
    declare(mode, report)?;
    start_launcher()
}

/// The first half of [`start`], which starts no thread: for a program that takes rights from its own thread in between,
/// which threads that it started before would keep.
pub fn declare(mode: Mode, report: Report) -> Result<(), Error> {
    if mode == Mode::Off {
        return Ok(());
    }
    check_support()?;
    keep_one_arena();
    report::install_handler();
    POLICY.set(Policy { mode, report }).map_err(|_| Error::Started)
}

/// The second half of [`start`]. Does nothing where there are no lists.
pub fn start_launcher() -> Result<(), Error> {
    if POLICY.get().is_none() {
        return Ok(());
    }
    launcher::start().map_err(Error::Launcher)
}

/// Confines this thread, for good. Does nothing where [`start`] was not called. A thread that cannot be confined ends the
/// process: it must not go on without.
pub fn enter(kind: Kind) {
    KIND.set(Some(kind));
    let Some(policy) = POLICY.get() else { return };
    if let Err(error) = install(kind, policy.mode) {
        policy.report.end(&format!("the {} cannot be confined: {error}", kind.name()));
    }
}

/// Lets the C library's allocator have one arena. With more, it opens files in /sys and /proc now and then, in threads that
/// may not: to count the processors before the ninth arena, and to see whether memory is overcommitted before an arena
/// shrinks. Small allocations come from caches of each thread in any case.
fn keep_one_arena() {
    // SAFETY: the call only sets a parameter of the allocator.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

fn check_support() -> Result<(), Error> {
    let action: u32 = libc::SECCOMP_RET_TRAP;
    // SAFETY: the operation reads the four bytes that the pointer names.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
    if result == 0 { Ok(()) } else { Err(Error::Unsupported(std::io::Error::last_os_error())) }
}

fn install(kind: Kind, mode: Mode) -> Result<(), Error> {
    if lists::starts_threads(kind) {
        apply_filter(&without_clone3()?)?;
    }
    Ok(apply_filter(&program(kind, mode)?)?)
}

fn program(kind: Kind, mode: Mode) -> Result<BpfProgram, BackendError> {
    let otherwise = if mode == Mode::Log { SeccompAction::Log } else { SeccompAction::Trap };
    let calls = rules::gather(lists::groups(kind))?;
    SeccompFilter::new(calls, otherwise, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}

/// Answers `clone3` as kernels do that do not have it: the C library then takes `clone`, whose flags a filter can read.
fn without_clone3() -> Result<BpfProgram, BackendError> {
    let calls = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let missing = SeccompAction::Errno(libc::ENOSYS as u32);
    SeccompFilter::new(calls, SeccompAction::Allow, missing, TargetArch::x86_64)?.try_into()
}
