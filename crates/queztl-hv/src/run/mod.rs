//! `queztl-hv run`: one virtual machine in the foreground, its console on the terminal.
//!
//! ```text
//! stdin ──> input thread ──> escape filter ──┐
//! signals ──> signal thread ── stop, resize ─┴──> machine handle
//! main thread: machine.run() ──> stdout
//! ```
//! Whatever ends the run — the guest, a signal, a failure or a panic of ours — the terminal is as it was before.

mod console;
pub(crate) mod engine;
pub(crate) mod escape;
mod input;
pub(crate) mod signals;
pub(crate) mod terminal;
mod trim;

use std::path::Path;
use std::time::{Duration, Instant};

use queztl_vmm::config::{AccelChoice, ConsoleChoice, MachineConfig, NumaNode, Outcome};
use queztl_vmm::confine::{self, Report};
use queztl_vmm::snapshot::Snapshot;

use crate::cli::RunArgs;
use crate::kernel;
use crate::report::{Failure, chain};
use crate::status::Status;
use crate::topology;
use console::Consoles;
use terminal::RawMode;

/// RAM in bytes where neither the machine nor its NUMA nodes name any.
const DEFAULT_RAM_BYTES: u64 = 512 << 20;

/// What is said and done when a thread makes a system call that is not on its list.
pub(crate) const REPORT: Report =
    Report { program: "queztl-hv", status: Status::Confinement.code(), before: terminal::restore_from_handler };

/// Hot-plugged memory goes where it can be taken away again, as long as the kernel's own share is not too small.
const HOTPLUG_WORDS: &str = "memory_hotplug.online_policy=auto-movable ";

/// Runs the machine and gives the status that its end deserves. `started` is when this process began.
pub fn run(args: RunArgs, started: Instant) -> Result<Status, Failure> {
    let timeout = args.timeout;
    let seccomp = args.seccomp.into();
    let control = args.control.clone();
    let snapshot = args.restore.as_deref().map(open_snapshot).transpose()?;
    let config = match &snapshot {
        Some(snapshot) => restored_configuration(args, snapshot.config().clone())?,
        None => configuration(args)?,
    };
    config.check().map_err(Failure::usage)?;
    config.warnings().iter().for_each(|warning| eprintln!("queztl-hv: warning: {warning}"));
    terminal::restore_on_panic();
    let signals = signals::Signals::block();
    confine::start(seccomp, REPORT).map_err(Failure::host)?;
    signals.listen();
    let interactive = config.console != ConsoleChoice::None;
    let machine = match snapshot {
        Some(snapshot) => engine::Engine::restored(config, snapshot)?,
        None => engine::Engine::new(config, started)?,
    };
    signals.watch(machine.handle());
    let server = control.map(|path| machine.listen(&path)).transpose()?;
    let raw = if interactive { connect_terminal(&machine) } else { None };
    let outcome = machine.run(timeout);
    drop(raw);
    drop(server);
    let outcome = outcome?;
    explain(outcome, timeout);
    Ok(outcome.into())
}

fn connect_terminal(machine: &engine::Engine) -> Option<RawMode> {
    let raw = RawMode::enter();
    if raw.is_some() {
        let handle = machine.handle();
        if let Some((columns, rows)) = terminal::size() {
            handle.resize(columns, rows);
        }
        eprintln!("queztl-hv: the guest has the keyboard; Ctrl-A x stops it, Ctrl-A h helps");
    }
    if raw.is_some() || !terminal::stdin_is_terminal() {
        input::start(machine.handle(), raw.is_some());
    }
    raw
}

/// A line for every end that is not the guest's own wish.
fn explain(outcome: Outcome, timeout: Option<Duration>) {
    match outcome {
        Outcome::PowerOff | Outcome::DebugExit(_) => {}
        Outcome::Panic => eprintln!("queztl-hv: the guest panicked: the reason is in its console output"),
        Outcome::TripleFault => eprintln!(
            "queztl-hv: triple fault: the guest could not handle an exception; is the kernel meant for this machine?"
        ),
        Outcome::Timeout => {
            let seconds = timeout.unwrap_or_default().as_secs_f64();
            eprintln!("queztl-hv: stopped after {seconds} s: --timeout asked for it");
        }
        Outcome::Stopped => eprintln!("queztl-hv: stopped"),
        Outcome::Moved => eprintln!("queztl-hv: the machine goes on elsewhere"),
        Outcome::SourceLost => {
            eprintln!("queztl-hv: the rest of the machine's memory is lost with the host it came from")
        }
    }
}

fn configuration(args: RunArgs) -> Result<MachineConfig, Failure> {
    let own_kernel = args.kernel.is_none();
    let consoles = Consoles::choose(args.console.map(Into::into), args.serial, args.append.as_deref(), own_kernel);
    let consoles = consoles.map_err(Failure::usage)?;
    let nets = args.nets.into_iter().filter_map(|net| net.0).collect();
    let words = consoles.kernel_words();
    let (kernel, initrd, cmdline) = match args.kernel {
        Some(kernel) => (kernel, args.initrd, args.append.unwrap_or_else(|| words.to_owned())),
        None => {
            let (kernel, rootfs) = kernel::defaults()?;
            let initrd = if args.initrd.is_empty() { vec![rootfs] } else { args.initrd };
            // quiet comes first: an early console prints what there is as soon as it is named. What the user appends
            // comes last, and so wins.
            let hotplug = if args.memory_hotplug > 0 { HOTPLUG_WORDS } else { "" };
            let own = format!("quiet {words} {hotplug}{}", args.append.unwrap_or_default());
            (kernel, initrd, own.trim_end().to_owned())
        }
    };
    let numa = topology::in_order(args.numa).map_err(Failure::usage)?;
    let ram_bytes = args.ram.unwrap_or_else(|| default_ram(&numa));
    Ok(MachineConfig {
        kernel,
        initrd,
        cmdline,
        disks: args.disks,
        nets,
        rng_limit: args.rng.unwrap_or_default(),
        balloon_bytes: args.balloon,
        hotplug_bytes: args.memory_hotplug,
        hotplug_requested_bytes: 0,
        vsock: args.vsock,
        vcpus: args.vcpus,
        ram_bytes,
        pages: args.memory,
        numa,
        pins: topology::pins(args.pins, args.vcpus).map_err(Failure::usage)?,
        accel: args.accel,
        console: consoles.console,
        serial: consoles.serial,
        protocol: args.protocol.into(),
        debug_exit: args.debug_exit,
        boot_timer: args.boot_timer,
    })
}

fn open_snapshot(folder: &Path) -> Result<Snapshot, Failure> {
    Snapshot::open(folder).map_err(|error| Failure::usage(chain(&error)))
}

/// The machine of a snapshot, on what the arguments name of this host.
fn restored_configuration(args: RunArgs, saved: MachineConfig) -> Result<MachineConfig, Failure> {
    let mut config = saved;
    if !args.disks.is_empty() {
        config.disks = args.disks;
    }
    if !args.nets.is_empty() {
        config.nets = args.nets.into_iter().filter_map(|net| net.0).collect();
    }
    if !args.pins.is_empty() {
        config.pins = topology::pins(args.pins, config.vcpus).map_err(Failure::usage)?;
    }
    if args.accel != AccelChoice::Auto {
        config.accel = args.accel;
    }
    if args.balloon != 0 {
        config.balloon_bytes = args.balloon;
    }
    config.vsock = args.vsock.or(config.vsock);
    config.serial = args.serial.unwrap_or(config.serial);
    Ok(config)
}

/// The RAM of the nodes together, or what a machine without nodes gets.
fn default_ram(nodes: &[NumaNode]) -> u64 {
    match nodes {
        [] => DEFAULT_RAM_BYTES,
        _ => nodes.iter().fold(0, |sum, node| sum.saturating_add(node.ram_bytes)),
    }
}
