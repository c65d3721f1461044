//! Instructions that KVM cannot execute, finished by the software CPU over the same RAM and board.

use std::sync::Arc;

use queztl_guest_memory::GuestRam;
use queztl_soft_cpu::cpuid::{CpuidConfig, CpuidPolicy};
use queztl_soft_cpu::platform::Event;
use queztl_soft_cpu::{Cpu, Exception, Exit, Shared, State};

use crate::accel::Error;
use crate::accel::soft::BoardPlatform;
use crate::board::Board;

/// What the software CPUs of one machine share.
pub(super) fn shared(ram: Arc<GuestRam>, board: Arc<Board>, config: &CpuidConfig) -> Result<Arc<Shared>, Error> {
    // All it can do, whatever the guest was told: KVM has let the guest come this far.
    let cpuid = CpuidPolicy::new(config);
    let platform = Arc::new(BoardPlatform::new(board));
    Ok(Arc::new(Shared::new(ram, platform, cpuid, config.vcpus).map_err(Error::CodeMemory)?))
}

/// The software CPU beside one vCPU. Holds no state between calls.
pub(super) struct Finisher {
    cpu: Cpu,
}

/// The guest's processor has shut down.
pub(super) struct TripleFault;

impl Finisher {
    pub fn new(shared: Arc<Shared>, id: u32) -> Finisher {
        Finisher { cpu: Cpu::new(shared, id) }
    }

    /// Executes the instruction that `state` is at, and delivers the exception that it raises, if any.
    pub fn finish(&mut self, state: &State) -> Result<State, TripleFault> {
        self.cpu.set_state(state);
        let exit = self.cpu.finish_instruction();
        self.result(exit)
    }

    /// Takes an event in `state`.
    pub fn accept(&mut self, state: &State, event: Event) -> Result<State, TripleFault> {
        self.cpu.set_state(state);
        let exit = self.cpu.accept(event);
        self.result(exit)
    }

    /// Delivers an exception that came after the last instruction.
    pub fn take_exception(&mut self, state: &State, exception: Exception) -> Result<State, TripleFault> {
        self.cpu.set_state(state);
        let exit = self.cpu.take_exception(exception);
        self.result(exit)
    }

    fn result(&mut self, exit: Option<Exit>) -> Result<State, TripleFault> {
        match exit {
            Some(Exit::Shutdown) => Err(TripleFault),
            Some(Exit::Stopped) | None => Ok(self.cpu.state()),
        }
    }
}
