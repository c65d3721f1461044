//! One virtual machine from its configuration to its end.
//!
//! ```text
//! Machine::new ──> Assembly (assembly.rs): RAM, board, devices, boot loader, vCPUs
//! Machine::run ──> one thread a vCPU (vcpus.rs) ──> wait for an end (events.rs)
//!                     ^                        │ reset: a new Assembly from the same configuration
//!                     └────────────────────────┘ anything else: stop the vCPUs, flush the console, Outcome
//! Machine::restore ──> the same Assembly, its parts as in a snapshot (restore.rs)
//! MachineHandle ──> from other threads: stop, input, and what the control socket asks (control.rs), snapshots (snapshot.rs)
//! ```
//! A restarted guest finds a machine as after power-up: RAM, devices and vCPUs are made anew, only what lies outside
//! (disks, networks, the console's other end) stays.

mod assembly;
mod control;
mod disks;
mod events;
mod late;
mod metrics;
mod migrate;
mod mirror;
mod protect;
mod restore;
mod snapshot;
#[cfg(test)]
mod tests;
mod vcpus;

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use crate::accel;
use crate::boot;
use crate::config::{ConfigError, MachineConfig, Outcome};
use crate::confine;
use crate::snapshot::{Identity, Snapshot};
use assembly::{Assembly, Live, Start};
pub use assembly::{Host, Networks, Terminal};
pub use disks::DiskCuts;
use events::{End, Events};
pub use migrate::MigrationOrder;
use restore::Restoration;
pub use snapshot::SnapshotOrder;
use snapshot::Writing;
use vcpus::Vcpus;

/// How long the console may take to pass on its last output.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// Why a machine cannot be made or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Boot(#[from] boot::Error),
    #[error(transparent)]
    Accelerator(#[from] accel::Error),
    #[error("a vCPU cannot go on: the log says why")]
    VcpuFailed,
    #[error(transparent)]
    Ram(#[from] queztl_guest_memory::Error),
    #[error("disk {path:?}: {source}")]
    Disk { path: std::path::PathBuf, source: queztl_storage::Error },
    #[error("the network device cannot be made: {0}")]
    Net(String),
    #[error("the socket device cannot be made: {0}")]
    Vsock(String),
    #[error("a device cannot be made: {0}")]
    Device(String),
    #[error("the serial line's file {path:?} cannot be created: {source}")]
    SerialFile { path: std::path::PathBuf, source: std::io::Error },
    #[error("the ACPI tables cannot be made: {0}")]
    Acpi(String),
    #[error("the debug exit port belongs to a device of the machine: choose another, 0xf4 for example")]
    DebugExitPort,
    #[error("a vCPU thread cannot be started: {0}")]
    Thread(std::io::Error),
    #[error(transparent)]
    Snapshot(#[from] crate::snapshot::Error),
}

/// A machine, ready to run.
pub struct Machine {
    host: Host,
    shared: Arc<Shared>,
    assembly: Option<Assembly>,
}

/// What the machine and its handles have in common.
struct Shared {
    /// What was wished, with what has been changed since: a restarted guest finds it so.
    config: Mutex<MachineConfig>,
    events: Arc<Events>,
    vcpus: Arc<Vcpus>,
    /// `None` between two runs. Whoever looks at a part holds the lock, so that the parts are taken down by the machine's
    /// own thread; it is taken after that of the configuration.
    live: RwLock<Option<Live>>,
    /// Columns and rows of the terminal, once known.
    size: Mutex<Option<(u16, u16)>>,
    /// Held while the machine is being stopped, or must stay as it is: pauses, snapshots and ends exclude each other.
    transition: Mutex<()>,
    /// The last migration, if there was one.
    migration: Mutex<Arc<migrate::Progress>>,
    /// The last protection, if there was one.
    protection: Mutex<Option<Arc<protect::Protecting>>>,
    /// The snapshot that is being written.
    writing: Writing,
    /// What the kernel tells of this process's memory (proc(5), `statm`).
    memory: Option<File>,
    started: Instant,
    restarts: AtomicU64,
}

impl Machine {
    /// Makes the machine and loads its kernel.
    pub fn new(config: MachineConfig) -> Result<Machine, Error> {
        config.check()?;
        let host = Host::open(&config, None)?;
        Machine::on(host, config)
    }

    /// The same on what was opened for this configuration before.
    pub fn on(host: Host, config: MachineConfig) -> Result<Machine, Error> {
        config.check()?;
        Machine::begin(host, config, Start::Boot { fresh: true })
    }

    /// Makes the machine as it was when the snapshot was taken. Disks, networks, the socket device's path and what the guest
    /// is asked to give up are those of `config`, which else must be of the same shape; a guest that restarts boots from
    /// it. `identity` is what a clone has of its own.
    ///
    /// # Errors
    /// The snapshot is of another machine or processor, or some part refuses its state; then there is no machine.
    pub fn restore(config: MachineConfig, snapshot: Snapshot, identity: Option<&Identity>) -> Result<Machine, Error> {
        config.check()?;
        snapshot.check_shape(&config)?;
        let host = Host::open(&config, Some(&snapshot))?;
        Machine::restore_on(host, config, snapshot, identity)
    }

    /// The same on what was opened for this configuration before.
    pub fn restore_on(
        host: Host,
        config: MachineConfig,
        snapshot: Snapshot,
        identity: Option<&Identity>,
    ) -> Result<Machine, Error> {
        config.check()?;
        let mut saved = Restoration::new(snapshot, &config, identity)?;
        Machine::begin(host, config, Start::Restore(&mut saved))
    }

    fn begin(host: Host, config: MachineConfig, start: Start<'_>) -> Result<Machine, Error> {
        let events = Arc::new(Events::default());
        let assembly = Assembly::new(&config, &host, events.clone(), start)?;
        let shared = Shared {
            config: Mutex::new(config),
            events,
            vcpus: Arc::default(),
            live: RwLock::new(Some(assembly.live())),
            size: Mutex::default(),
            transition: Mutex::default(),
            migration: Mutex::default(),
            protection: Mutex::default(),
            writing: Writing::default(),
            memory: File::open("/proc/self/statm").ok(),
            started: Instant::now(),
            restarts: AtomicU64::new(0),
        };
        Ok(Machine { host, shared: Arc::new(shared), assembly: Some(assembly) })
    }

    /// The handle for other threads.
    pub fn handle(&self) -> MachineHandle {
        MachineHandle { shared: self.shared.clone() }
    }

    /// `report` is called, on a vCPU's thread, when the guest's first user process starts.
    pub fn on_boot_mark(&self, report: impl FnOnce() + Send + 'static) {
        self.shared.events.on_boot_mark(Box::new(report));
    }

    /// Runs until the guest, the timeout or a handle ends it.
    pub fn run(mut self, timeout: Option<Duration>) -> Result<Outcome, Error> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let shared = self.shared.clone();
        // From here on this thread only waits, and does what a guest's restart takes.
        confine::enter(confine::Kind::Machine);
        loop {
            let assembly = match self.assembly.take() {
                Some(assembly) => assembly,
                None => shared.assemble_again(&self.host)?,
            };
            let end = run_once(assembly, &shared, deadline)?;
            if end == End::Failed {
                return Err(Error::VcpuFailed);
            }
            if let Some(outcome) = outcome(end) {
                return Ok(outcome);
            }
            tracing::info!("the guest restarts");
            shared.restarts.fetch_add(1, Ordering::Relaxed);
            shared.events.forget_reset();
        }
    }
}

impl Shared {
    /// The machine for the next run. Changes of the configuration wait until it is there to be changed itself.
    fn assemble_again(&self, host: &Host) -> Result<Assembly, Error> {
        let config = lock(&self.config);
        let assembly = Assembly::new(&config, host, self.events.clone(), Start::Boot { fresh: false })?;
        let mut connected = self.live.write().unwrap_or_else(PoisonError::into_inner);
        let live = assembly.live();
        if let Some((columns, rows)) = *lock(&self.size) {
            live.console.resize(columns, rows);
        }
        *connected = Some(live);
        Ok(assembly)
    }
}

fn outcome(end: End) -> Option<Outcome> {
    Some(match end {
        End::Reset | End::Failed => return None,
        End::PowerOff => Outcome::PowerOff,
        End::Panic => Outcome::Panic,
        End::TripleFault => Outcome::TripleFault,
        End::DebugExit(value) => Outcome::DebugExit(value),
        End::Stopped => Outcome::Stopped,
        End::Moved => Outcome::Moved,
        End::Timeout => Outcome::Timeout,
    })
}

/// Runs one assembly from its first instruction to an end.
fn run_once(mut assembly: Assembly, shared: &Shared, deadline: Option<Instant>) -> Result<End, Error> {
    let pins = lock(&shared.config).pins.clone();
    let started = Instant::now();
    let threads = shared.vcpus.begin(assembly.take_vcpus(), &pins, &shared.events)?;
    let end = shared.events.wait(deadline);
    // A snapshot that is being taken gets the machine as it is.
    let transition = lock(&shared.transition);
    *shared.live.write().unwrap_or_else(PoisonError::into_inner) = None;
    shared.vcpus.end();
    drop(transition);
    let counts = threads.into_iter().map(|thread| thread.join().ok().flatten());
    let instructions: u64 = counts.flatten().sum();
    let seconds = started.elapsed().as_secs_f64();
    let million_per_second = instructions as f64 / 1e6 / seconds;
    tracing::info!(instructions, seconds, million_per_second, "the vCPUs have stopped");
    assembly.close(FLUSH_LIMIT);
    Ok(end)
}

/// A machine, as other threads reach it.
#[derive(Clone)]
pub struct MachineHandle {
    shared: Arc<Shared>,
}

impl MachineHandle {
    /// Ends the run as [`Outcome::Stopped`].
    pub fn stop(&self) {
        self.shared.events.note(End::Stopped);
    }

    /// Gives input to the console that has the terminal and returns how many bytes it takes now.
    pub fn input(&self, bytes: &[u8]) -> usize {
        read(&self.shared.live).as_ref().map_or(0, |live| live.console.input(bytes))
    }

    /// Tells the guest the terminal's size.
    pub fn resize(&self, columns: u16, rows: u16) {
        *lock(&self.shared.size) = Some((columns, rows));
        if let Some(live) = read(&self.shared.live).as_ref() {
            live.console.resize(columns, rows);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}
