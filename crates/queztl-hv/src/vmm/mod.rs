//! `queztl-hv vmm DIR`: the process of one virtual machine, as the daemon starts it. It has no terminal, outlives whoever
//! started it, and leaves word of its end in the directory. See [`queztl_vmm::process`].
//!
//! ```text
//!  lock DIR ─> leave the terminal ─> networks ─> sandbox ─> threads, machine, sockets ─> run ─> exit.json
//! ```
//! Whatever needs rights that the sandbox takes away comes before it, and every thread but passt's listener after it,
//! since a thread keeps the rights it began with.

mod detach;
mod title;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use queztl_vmm::config::{MachineConfig, Outcome};
use queztl_vmm::confine;
use queztl_vmm::machine::{Host, Networks, Terminal};
use queztl_vmm::migration::{self, Arrival, OnLost, Pager};
use queztl_vmm::process::console::{self, Hub};
use queztl_vmm::process::sandbox::{self, Needs};
use queztl_vmm::process::{
    ExitReport, FileError, Folder, Lock, LockError, LogFile, MachineFile, ProcessId, Start, zygote,
};
use queztl_vmm::protection::{self, Promotion};
use queztl_vmm::snapshot::{Identity, Snapshot};
use tracing_subscriber::EnvFilter;

use crate::report::{Failure, chain};
use crate::run::REPORT;
use crate::run::engine::{self, Engine};
use crate::run::signals::Signals;
use crate::run::terminal;
use crate::status::Status;

/// How long a machine may take to begin to arrive.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(60);

/// Runs the machine of `directory` and gives the status that its end deserves.
pub fn run(directory: &Path, lock_fd: Option<RawFd>, verbose: u8, started: Instant) -> Result<Status, Failure> {
    std::env::set_current_dir(directory)
        .map_err(|error| Failure::usage(format!("the machine's directory {directory:?} cannot be used: {error}")))?;
    // Relative from here on: the names of sockets must be short.
    let folder = Folder::new("");
    let lock = lock(&folder, lock_fd).map_err(|error| match error {
        LockError::Running(_) => Failure::usage(format!("the machine in {directory:?} runs already: stop it first")),
        LockError::Io { source, .. } => {
            Failure::usage(format!("the machine's directory {directory:?} cannot be used: {source}"))
        }
    })?;
    let open = |error| Failure::host(format!("the log of {directory:?} cannot be written: {error}"));
    let log = Arc::new(LogFile::open(&folder.log()).map_err(open)?);
    let hub = Hub::new().map_err(|error| Failure::host(format!("no console can be made: {error}")))?;
    detach::leave_terminal(log.file()).map_err(|error| Failure::host(format!("cannot leave the terminal: {error}")))?;
    log_to(log.clone(), hub.clone(), verbose);
    remove_old_report(&folder)?;

    let process = lock.process();
    let result = launch(&folder, log, hub, started, process);

    let (outcome, status, message) = match &result {
        Ok(outcome) => (Some(*outcome), Status::from(*outcome), None),
        Err(failure) => (None, failure.status(), Some(failure.message().to_owned())),
    };
    let report = ExitReport::now(outcome, status.code(), message, lock.process());
    if let Err(error) = report.write(&folder.exit()) {
        tracing::error!(%error, "the report of the machine's end cannot be written");
    }
    result.map(Status::from)
}

/// Begins processes of machines until the daemon at standard input is gone. Returns in each of them, too, when its machine
/// has ended. See [`zygote`].
pub fn serve_as_zygote(verbose: u8) -> Result<Status, Failure> {
    let failed = |error| Failure::host(format!("no processes of machines can be begun here: {error}"));
    // What ends whoever has started this, such as Ctrl-C, is not meant for it.
    let _ = rustix::process::setsid();
    queztl_vmm::accel::prepare();
    match zygote::serve(rustix::stdio::stdin()).map_err(failed)? {
        None => Ok(Status::Success),
        Some(directory) => {
            let started = Instant::now();
            title::set(&directory);
            run(&directory, Some(zygote::LOCK_FD), verbose, started)
        }
    }
}

/// Takes the machine, or takes over what the daemon has taken for this process.
fn lock(folder: &Folder, inherited_fd: Option<RawFd>) -> Result<Lock, LockError> {
    let Some(number) = inherited_fd else { return folder.lock() };
    let source = || io::Error::from_raw_os_error(libc::EBADF);
    let file = open_descriptor(number).ok_or_else(|| LockError::Io { path: folder.path().into(), source: source() })?;
    folder.lock_inherited(file)
}

/// Makes the machine and runs it to its end.
fn launch(
    folder: &Folder,
    log: Arc<LogFile>,
    hub: Arc<Hub>,
    started: Instant,
    process: ProcessId,
) -> Result<Outcome, Failure> {
    let file = MachineFile::read(&folder.machine()).map_err(|error| match &error {
        FileError::Write { .. } => Failure::host(chain(&error)),
        _ => Failure::usage(chain(&error)),
    })?;
    let config = file.config;
    config.check().map_err(Failure::usage)?;
    let needs = Needs::of(Path::new("."), &config, &file.start, &file.sandbox);
    let (incoming, kept) = match &file.start {
        Start::Incoming { disks } => (Some(disks.clone()), None),
        Start::Backup { term } => (None, Some(*term)),
        _ => (None, None),
    };
    let snapshot = snapshot(file.start)?;
    config.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
    terminal::restore_on_panic();
    let signals = Signals::block();
    confine::declare(file.seccomp, REPORT).map_err(Failure::host)?;
    let networks = Networks::open(&config).map_err(engine::failure)?;
    let missing = sandbox::enter(file.sandbox.mode, &needs).map_err(|error| Failure::host(chain(&error)))?;
    missing.iter().for_each(|sentence| tracing::info!("{sentence}"));
    confine::start_launcher().map_err(Failure::host)?;
    signals.listen();

    let (snapshot, arrived) = match (incoming, kept) {
        (Some(disks), _) => {
            let Arrival { snapshot, arrived, pager } = arrival(folder, &config, &disks)?;
            let pager = pager.map(|pager| pager.serve(end_when_lost(folder, process)));
            let pager = pager.transpose().map_err(|error| Failure::host(chain(&error)))?;
            (Some((snapshot, None)), Some((arrived, pager)))
        }
        (_, Some(term)) => (Some((promotion(folder, &config, term)?, None)), None),
        _ => (snapshot, None),
    };
    let writers = hub.clone();
    let saved = snapshot.as_ref().map(|(snapshot, _)| snapshot);
    let host = Host::with_networks(networks, &config, saved).map_err(engine::failure)?;
    let host = host.with_terminal(Terminal::new(move || writers.writer()));
    let machine = Engine::on(host, config, snapshot, started)?;
    signals.watch(machine.handle());
    if kept.is_some() {
        machine.handle().announce();
    }
    let viewers = console::Server::start(folder, hub, Arc::new(machine.handle()), Some(log));
    let viewers = viewers.map_err(|error| Failure::host(chain(&error)))?;
    // Who answers on the control socket has the machine.
    let mut pager = None;
    if let Some((arrived, late)) = arrived {
        arrived.take_over().map_err(|error| Failure::host(chain(&error)))?;
        pager = late;
    }
    let control = machine.listen(&folder.control())?;
    tracing::info!("the machine starts");
    let outcome = machine.run(None);
    drop(control);
    drop(viewers);
    pager.iter().for_each(Pager::end);
    let outcome = outcome?;
    tracing::info!(?outcome, "the machine has ended");
    Ok(outcome)
}

/// The snapshot to go on from, if that is asked for, and who the guest is then.
fn snapshot(start: Start) -> Result<Option<(Snapshot, Option<Identity>)>, Failure> {
    match start {
        Start::Boot | Start::Incoming { .. } | Start::Backup { .. } => Ok(None),
        Start::Restore { snapshot, identity } => {
            let snapshot = Snapshot::open(&snapshot).map_err(|error| Failure::usage(chain(&error)))?;
            Ok(Some((snapshot, identity)))
        }
        Start::Fork { state, memory, identity } => {
            let snapshot = Snapshot::open_fork(&state, inherited(&memory)?);
            Ok(Some((snapshot.map_err(|error| Failure::usage(chain(&error)))?, identity)))
        }
    }
}

/// The machine that another process brings.
fn arrival(folder: &Folder, config: &MachineConfig, disks: &[usize]) -> Result<Arrival, Failure> {
    let ram_bytes = config.ram_bytes + config.hotplug_bytes;
    let home = |number: &usize| config.disks.get(*number).filter(|disk| !disk.read_only).map(|disk| disk.path.clone());
    let homes: Option<Vec<_>> = disks.iter().map(home).collect();
    let homes = homes.ok_or_else(|| Failure::usage("a disk that comes with the machine is none that it writes to"))?;
    let arrival = migration::receive(&folder.incoming(), ram_bytes, &homes, ARRIVAL_LIMIT);
    let arrival = arrival.map_err(|error| Failure::host(chain(&error)))?;
    // What is found to be wrong later ends this process, and the source sees that.
    match arrival.snapshot.check_shape(config) {
        Ok(()) => Ok(arrival),
        Err(error) => {
            arrival.arrived.refuse(&chain(&error));
            Err(Failure::usage(chain(&error)))
        }
    }
}

/// What ends this process when memory that is still to come is lost. vCPUs and devices wait for that memory inside of the
/// kernel and cannot be asked to stop; what the guest has flushed to its disks is there.
fn end_when_lost(folder: &Folder, process: ProcessId) -> OnLost {
    let path = folder.exit();
    Box::new(move |message, was_running| {
        let outcome = was_running.then_some(Outcome::SourceLost);
        let status = outcome.map_or(Status::Failure, Status::from);
        tracing::error!("{message}");
        if let Err(error) = ExitReport::now(outcome, status.code(), Some(message.to_owned()), process).write(&path) {
            tracing::error!(%error, "the report of the machine's end cannot be written");
        }
        // SAFETY: the call does not return, and runs nothing of this process first.
        unsafe { libc::_exit(status.code().into()) };
    })
}

/// The copy of a machine that was protected elsewhere, when it is to go on here.
fn promotion(folder: &Folder, config: &MachineConfig, term: u64) -> Result<Snapshot, Failure> {
    let promotion = protection::stand_by(folder, config, term).map_err(|error| Failure::host(chain(&error)))?;
    let Promotion { snapshot, version } = promotion;
    tracing::info!(term = version.term, epoch = version.epoch, "the machine goes on here");
    Ok(snapshot)
}

/// The files that this process was started with under these numbers.
fn inherited(numbers: &[RawFd]) -> Result<Vec<File>, Failure> {
    let mut files = Vec::with_capacity(numbers.len());
    for (index, number) in numbers.iter().copied().enumerate() {
        let file = if numbers[..index].contains(&number) { None } else { open_descriptor(number) };
        files.push(file.ok_or_else(|| {
            let message =
                format!("descriptor {number} holds no memory of the machine: pass the files that its state names");
            Failure::usage(message)
        })?);
    }
    Ok(files)
}

/// A file that this process was started with. To be asked once for each number.
fn open_descriptor(number: RawFd) -> Option<File> {
    // SAFETY: a number that is no descriptor gives an error. Programs that this one starts do not get it.
    let is_open = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } >= 0;
    // SAFETY: the descriptor is open, and whoever starts this process passes it for this purpose.
    (number > libc::STDERR_FILENO && is_open).then(|| File::from(unsafe { OwnedFd::from_raw_fd(number) }))
}

fn remove_old_report(folder: &Folder) -> Result<(), Failure> {
    match fs::remove_file(folder.exit()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Failure::host(format!("the report of an earlier end cannot be removed: {error}")))
        }
        _ => Ok(()),
    }
}

/// Log lines go to the machine's log, whose length the console's thread looks after.
fn log_to(log: Arc<LogFile>, hub: Arc<Hub>, verbose: u8) {
    /// One line's way to the file.
    struct Line(Arc<LogFile>, Arc<Hub>);

    impl Write for Line {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0.append(bytes)? {
                self.1.wake();
            }
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    // What happens to a machine that nobody watches is worth a line without asking.
    let level = ["info", "debug", "trace"][usize::from(verbose.min(2))];
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || Line(log.clone(), hub.clone()))
        .with_ansi(false)
        .with_target(false)
        .compact()
        .init();
}
