//! The machine behind the console: the one place where this program meets the VMM's run-time interface.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use queztl_vmm::config::{MachineConfig, Outcome};
use queztl_vmm::control::{Server, ServerError};
use queztl_vmm::machine::{Error, Host, Machine, MachineHandle};
use queztl_vmm::snapshot::{Identity, Snapshot};

use crate::report::{Failure, chain};

/// What other threads can do to a running machine.
pub type Handle = MachineHandle;

/// A machine ready to run.
pub struct Engine(Machine);

impl Engine {
    /// Makes the machine; `started` is the origin of the boot timer.
    pub fn new(config: MachineConfig, started: Instant) -> Result<Engine, Failure> {
        Engine::timed(config.boot_timer, started, Machine::new(config).map_err(failure)?)
    }

    /// The same on what was opened before, from a snapshot if one is given.
    pub fn on(
        host: Host,
        config: MachineConfig,
        snapshot: Option<(Snapshot, Option<Identity>)>,
        started: Instant,
    ) -> Result<Engine, Failure> {
        let boot_timer = config.boot_timer;
        let machine = match snapshot {
            None => Machine::on(host, config),
            Some((snapshot, identity)) => Machine::restore_on(host, config, snapshot, identity.as_ref()),
        };
        Engine::timed(boot_timer, started, machine.map_err(failure)?)
    }

    fn timed(boot_timer: bool, started: Instant, machine: Machine) -> Result<Engine, Failure> {
        if boot_timer {
            machine.on_boot_mark(move || {
                let milliseconds = started.elapsed().as_secs_f64() * 1e3;
                eprintln!("queztl-hv: the first user process runs after {milliseconds:.1} ms\r");
            });
        }
        Ok(Engine(machine))
    }

    pub fn handle(&self) -> Handle {
        self.0.handle()
    }

    /// Makes the machine as it was when the snapshot was taken.
    pub fn restored(config: MachineConfig, snapshot: Snapshot) -> Result<Engine, Failure> {
        Machine::restore(config, snapshot, None).map(Engine).map_err(failure)
    }

    /// Makes the control socket, which serves until it is dropped.
    pub fn listen(&self, path: &Path) -> Result<Server, Failure> {
        Server::start(path, Arc::new(self.handle())).map_err(|error| match error {
            ServerError::Thread(_) => Failure::host(chain(&error)),
            _ => Failure::usage(chain(&error)),
        })
    }

    /// Runs until the guest, the timeout or a handle ends it.
    pub fn run(self, timeout: Option<Duration>) -> Result<Outcome, Failure> {
        self.0.run(timeout).map_err(failure)
    }
}

/// What the user can mend by other arguments or files is a usage failure; the rest is the host's.
pub fn failure(error: Error) -> Failure {
    let text = chain(&error);
    match error {
        Error::Config(_)
        | Error::Boot(_)
        | Error::Accelerator(queztl_vmm::accel::Error::KvmMissing(_))
        | Error::Disk { .. }
        | Error::Vsock(_)
        | Error::SerialFile { .. }
        | Error::Snapshot(_)
        | Error::DebugExitPort => Failure::usage(text),
        _ => Failure::host(text),
    }
}
