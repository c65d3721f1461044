//! One virtual machine from its configuration to its end.
//!
//! ```text
//! Machine::new ──> Assembly (assembly.rs): RAM, board, devices, boot loader, vCPUs
//! Machine::run ──> one thread a vCPU ──> wait for an end (events.rs)
//!                     ^                        │ reset: a new Assembly from the same configuration
//!                     └────────────────────────┘ anything else: stop the vCPUs, flush the console, Outcome
//! ```
//! A restarted guest finds a machine as after power-up: RAM, devices and vCPUs are made anew, only what lies outside
//! (disks, networks, the console's other end) stays.

mod assembly;
mod events;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::accel::{self, Vcpu, VcpuExit, VcpuHandle};
use crate::affinity::{self, Pin};
use crate::boot;
use crate::config::{ConfigError, MachineConfig, Outcome};
use crate::confine;
use assembly::{Assembly, Console, Host};
use events::{End, Events};

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
}

/// A machine, ready to run.
pub struct Machine {
    config: MachineConfig,
    host: Host,
    events: Arc<Events>,
    console: Arc<Mutex<Option<Console>>>,
    size: Arc<Mutex<Option<(u16, u16)>>>,
    assembly: Option<Assembly>,
}

impl Machine {
    /// Makes the machine and loads its kernel.
    pub fn new(config: MachineConfig) -> Result<Machine, Error> {
        config.check()?;
        let events = Arc::new(Events::default());
        let host = Host::open(&config)?;
        let assembly = Assembly::new(&config, &host, events.clone(), true)?;
        let console = Arc::new(Mutex::new(Some(assembly.console())));
        Ok(Machine { config, host, events, console, size: Arc::default(), assembly: Some(assembly) })
    }

    /// The handle for other threads.
    pub fn handle(&self) -> MachineHandle {
        MachineHandle { events: self.events.clone(), console: self.console.clone(), size: self.size.clone() }
    }

    /// `report` is called, on a vCPU's thread, when the guest's first user process starts.
    pub fn on_boot_mark(&self, report: impl FnOnce() + Send + 'static) {
        self.events.on_boot_mark(Box::new(report));
    }

    /// Runs until the guest, the timeout or a handle ends it.
    pub fn run(mut self, timeout: Option<Duration>) -> Result<Outcome, Error> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        // From here on this thread only waits, and does what a guest's restart takes.
        confine::enter(confine::Kind::Machine);
        loop {
            let assembly = match self.assembly.take() {
                Some(assembly) => assembly,
                None => Assembly::new(&self.config, &self.host, self.events.clone(), false)?,
            };
            self.connect(assembly.console());
            let end = run_once(assembly, &self.config.pins, &self.events, deadline)?;
            *lock(&self.console) = None;
            if end == End::Failed {
                return Err(Error::VcpuFailed);
            }
            if let Some(outcome) = outcome(end) {
                return Ok(outcome);
            }
            tracing::info!("the guest restarts");
            self.events.forget_reset();
        }
    }

    /// Makes `console` the one that the handles reach. The console of a restarted machine learns the size as well.
    fn connect(&self, console: Console) {
        let mut connected = lock(&self.console);
        if let Some((columns, rows)) = *lock(&self.size) {
            console.resize(columns, rows);
        }
        *connected = Some(console);
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
        End::Timeout => Outcome::Timeout,
    })
}

/// Runs one assembly from its first instruction to an end.
fn run_once(
    mut assembly: Assembly,
    pins: &[Pin],
    events: &Arc<Events>,
    deadline: Option<Instant>,
) -> Result<End, Error> {
    let vcpus = assembly.take_vcpus();
    let handles: Vec<Arc<dyn VcpuHandle>> = vcpus.iter().map(|vcpu| vcpu.handle()).collect();
    let started = Instant::now();
    let mut threads = Vec::with_capacity(vcpus.len());
    for (id, vcpu) in vcpus.into_iter().enumerate() {
        match start(id, vcpu, pins.to_vec(), events.clone()) {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                stop_all(&handles, threads, started);
                return Err(error);
            }
        }
    }
    let end = events.wait(deadline);
    stop_all(&handles, threads, started);
    assembly.close(FLUSH_LIMIT);
    Ok(end)
}

fn start(
    id: usize,
    mut vcpu: Box<dyn Vcpu>,
    pins: Vec<Pin>,
    events: Arc<Events>,
) -> Result<JoinHandle<Option<u64>>, Error> {
    let body = move || {
        if let Err(error) = affinity::apply(&pins, id as u32) {
            tracing::error!(vcpu = id, %error, "the vCPU cannot be kept on its CPUs: choose others");
            events.note(End::Failed);
            return None;
        }
        confine::enter(vcpu.thread());
        match vcpu.run() {
            VcpuExit::Stopped => {}
            VcpuExit::Shutdown => {
                let state = vcpu.state();
                tracing::debug!(vcpu = id, "triple fault in {state:#x?}");
                events.note(End::TripleFault);
            }
            VcpuExit::Failed => events.note(End::Failed),
        }
        vcpu.instructions()
    };
    std::thread::Builder::new().name(format!("vcpu-{id}")).spawn(body).map_err(Error::Thread)
}

fn stop_all(handles: &[Arc<dyn VcpuHandle>], threads: Vec<JoinHandle<Option<u64>>>, started: Instant) {
    handles.iter().for_each(|handle| handle.stop());
    let counts = threads.into_iter().map(|thread| thread.join().ok().flatten());
    let instructions: u64 = counts.flatten().sum();
    let seconds = started.elapsed().as_secs_f64();
    let million_per_second = instructions as f64 / 1e6 / seconds;
    tracing::info!(instructions, seconds, million_per_second, "the vCPUs have stopped");
}

/// A machine, as other threads reach it.
#[derive(Clone)]
pub struct MachineHandle {
    events: Arc<Events>,
    console: Arc<Mutex<Option<Console>>>,
    /// Columns and rows of the terminal, once known.
    size: Arc<Mutex<Option<(u16, u16)>>>,
}

impl MachineHandle {
    /// Ends the run as [`Outcome::Stopped`].
    pub fn stop(&self) {
        self.events.note(End::Stopped);
    }

    /// Gives input to the console that has the terminal and returns how many bytes it takes now.
    pub fn input(&self, bytes: &[u8]) -> usize {
        lock(&self.console).as_ref().map_or(0, |console| console.input(bytes))
    }

    /// Tells the guest the terminal's size.
    pub fn resize(&self, columns: u16, rows: u16) {
        *lock(&self.size) = Some((columns, rows));
        if let Some(console) = lock(&self.console).as_ref() {
            console.resize(columns, rows);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
