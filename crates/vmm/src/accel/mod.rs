//! What executes a guest's instructions: the one seam between the machine and its accelerators.
//!
//! ```text
//! Accelerator ── create_vm ──> Vm ── create_vcpu ──> Vcpu, one thread each
//!                                                     │  run() returns only for what needs the machine's owner;
//!                                                     │  device accesses go straight to the Board
//!                                                     └─ handle() ──> VcpuHandle, for every other thread
//! ```
//! Everything else — devices, boot, snapshots, dirty tracking, migration — is written against these traits and does not
//! know which accelerator runs. Registers cross the seam as [`State`], the software CPU's own: every accelerator
//! translates to and from it, so that an instruction one cannot execute can be finished by another.

mod counters;
mod dirty;
pub mod kvm;
pub mod probe;
pub mod soft;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use queztl_guest_memory::GuestRam;
pub use queztl_soft_cpu::State;
use queztl_soft_cpu::cpuid::CpuidResult;
pub use queztl_soft_cpu::prepare;
use queztl_soft_cpu::state::BadState;
use vmm_sys_util::eventfd::EventFd;

pub use self::counters::{Counted, ExitFigures, VcpuCounters};
pub use self::dirty::DirtyPages;
use crate::board::Board;
use crate::confine::Kind;
use crate::irqchip::{BadLapicState, LapicState, Msi};

/// What cannot be done by an accelerator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("memory for generated code cannot be had: {0}")]
    CodeMemory(std::io::Error),
    #[error("KVM cannot be used: {0}; see `queztl-hv doctor`, or use --accel soft (or auto)")]
    KvmMissing(probe::MissingKvm),
    #[error("KVM failed: {step}: {source}")]
    Kvm { step: &'static str, source: std::io::Error },
    #[error(transparent)]
    LocalApic(#[from] BadLapicState),
    #[error("an interrupt cannot be bound: all {0} routes are taken")]
    Routes(usize),
    #[error("KVM needs a host whose time-stamp counter runs at one rate: use --accel soft")]
    KvmCounter,
    #[error("KVM gave up on a vCPU (internal error {suberror}, {data:#x?}): look at the host kernel's messages")]
    KvmInternal { suberror: u32, data: [u64; 4] },
    #[error("the processor refused a vCPU's registers (reason {reason:#x}): please report it")]
    KvmEntry { reason: u64 },
    #[error("KVM stopped a vCPU for an unknown reason ({reason}): please report it")]
    KvmExit { reason: u32 },
}

/// A way to execute guests.
pub trait Accelerator: Send + Sync {
    /// Its name on the command line.
    fn name(&self) -> &'static str;

    /// Makes a virtual machine of `vcpus` processors with `ram`, whose devices are on `board`.
    fn create_vm(&self, ram: Arc<GuestRam>, board: Arc<Board>, vcpus: u32) -> Result<Box<dyn Vm>, Error>;
}

/// One virtual machine on an accelerator.
pub trait Vm: Send + Sync {
    /// Makes vCPU `id`, in its state after reset: the first one running, the others waiting to be started.
    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, Error>;

    /// What CPUID tells the guest by leaf and subleaf, in ascending order, less what differs from vCPU to vCPU.
    fn processor(&self) -> Vec<((u32, u32), CpuidResult)>;

    /// Whether a vCPU here can be in `state`, which may come from a stranger.
    fn check_state(&self, state: &State) -> Result<(), BadState>;

    /// Starts the dirty log, empty: every write to RAM that begins after this returns will be in it, whether a vCPU makes
    /// it or a device.
    fn start_dirty_log(&self) -> Result<(), Error>;

    /// Takes the pages that were written to since the log was started or last taken, one entry for each run of RAM,
    /// lowest first; vCPUs may run meanwhile. A write that has not been made when this returns is in the next result. A
    /// write made during the call is in this result or the next, and in RAM before this returns if in this one alone.
    /// Empty when there is no log. Not for vCPU threads.
    fn take_dirty_log(&self) -> Result<Vec<DirtyPages>, Error>;

    /// Ends the log, and what it costs.
    fn stop_dirty_log(&self) -> Result<(), Error>;

    /// Makes guest writes of the 4 bytes `value` to the device address `address` signal `event` and nothing else, while
    /// the vCPU goes on. False where the accelerator cannot: then these writes go to the board, as all others do.
    fn bind_notification(&self, address: u64, value: u32, event: &EventFd) -> Result<bool, Error> {
        let _ = (address, value, event);
        Ok(false)
    }

    /// Makes each signal of `event` the interrupt `msi`, without a thread that listens to it. `None` where the
    /// accelerator cannot: then somebody must listen, and send the message to the board's interrupt controllers.
    fn bind_message(&self, msi: Msi, event: &EventFd) -> Result<Option<MessageBinding>, Error> {
        let _ = (msi, event);
        Ok(None)
    }

    /// Replaces the interrupt of a binding, as a guest does that moves it to another vCPU or vector.
    fn change_message(&self, binding: MessageBinding, msi: Msi) -> Result<(), Error> {
        let _ = (binding, msi);
        Ok(())
    }

    /// Ends a binding; `event` is the one it was made with.
    fn unbind_message(&self, binding: MessageBinding, event: &EventFd) -> Result<(), Error> {
        let _ = (binding, event);
        Ok(())
    }
}

/// An eventfd that is an interrupt: see [`Vm::bind_message`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageBinding(u32);

/// One vCPU; belongs to the thread that runs it.
///
/// [`Vcpu::state`] and [`Vcpu::local_apic`] after a return of [`Vcpu::run`] are all there is of it: nothing is under way
/// in the accelerator then. Put into another vCPU of the same number, in this order, with RAM and board as they were, the
/// guest goes on as if nothing had been; on another accelerator too, if the processors are described alike.
pub trait Vcpu: Send {
    /// The registers.
    fn state(&self) -> State;

    /// Replaces the registers. The time-stamp counter becomes [`Clock::tsc`](crate::clock::Clock::tsc) plus
    /// `msrs.tsc_adjust`, where the accelerator can move it (KVM without hardware virtualization cannot).
    fn set_state(&mut self, state: &State);

    /// [`Vcpu::set_state`] that tells when the accelerator refuses the registers; then the vCPU is of no use.
    fn try_set_state(&mut self, state: &State) -> Result<(), Error> {
        self.set_state(state);
        Ok(())
    }

    /// The local APIC with what is on its way to the vCPU, whoever keeps it.
    fn local_apic(&self) -> Result<LapicState, Error>;

    /// Replaces the local APIC; its timers go on from now.
    fn set_local_apic(&mut self, state: &LapicState) -> Result<(), Error>;

    /// Runs the guest until something needs the owner. Device accesses happen inside, on this thread.
    fn run(&mut self) -> VcpuExit;

    /// The handle for other threads.
    fn handle(&self) -> Arc<dyn VcpuHandle>;

    /// The kind of the thread that runs it: which system calls it may make.
    fn thread(&self) -> Kind;

    /// Instructions executed since the machine was made, where the accelerator counts them.
    fn instructions(&self) -> Option<u64>;
}

/// Why a vCPU came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VcpuExit {
    /// [`VcpuHandle::stop`] was called; `run` goes on where it left.
    Stopped,
    /// Triple fault.
    Shutdown,
    /// The accelerator cannot go on; it has logged why.
    Failed,
}

/// One vCPU, as other threads reach it.
pub trait VcpuHandle: Send + Sync {
    /// Makes the vCPU look for pending events, waking it if it is halted.
    fn notify(&self);

    /// Makes `run` return soon, or at once when it is called next.
    fn stop(&self);

    /// How long the vCPU has slept because its guest had nothing to do, where that happens in this process.
    fn halted_ns(&self) -> u64 {
        0
    }
}
