//! The KVM accelerator: guests run on the host's processor.
//!
//! Promises:
//! - the same machine as on the software CPU: same board, same interrupt controllers, same clock;
//! - every device access is completed before registers leave a vCPU, and every request of another thread reaches a
//!   vCPU that is just about to enter the guest;
//! - an instruction that this host's KVM cannot execute is finished by the software CPU, exception and all. Hosts that
//!   emulate ring 0 need that; how often it happened is counted.
//!
//! Interrupt controllers ([`Controllers`]): the PIC pair and the I/O APIC are those of [`crate::irqchip`]. On hardware
//! virtualization the local APICs are the kernel's: timers, inter-processor interrupts, HLT, INIT and start-up do not
//! leave it. Elsewhere, and wherever interrupts must cross nodes, they are those of [`crate::irqchip`] too: their
//! registers (memory or MSRs) and the TSC deadline come as exits then, and HLT parks the thread.
//!
//! ```text
//! mod.rs ── vm.rs: memory slots (memory.rs), MSR filter (msrs.rs), processor features (cpuid.rs)
//!              ├── apics.rs: messages to the kernel's local APICs
//!              └── vcpu.rs: the loop ── page.rs: exits ── kick.rs: other threads
//!                      ├── transfer.rs: State <-> KVM (registers.rs, fpu.rs, msrs.rs)
//!                      ├── interrupts.rs: what is under way, the local APIC (lapic.rs)
//!                      └── finish.rs: the software CPU
//! ```

mod apics;
mod cpuid;
mod finish;
mod fpu;
mod interrupts;
mod kick;
mod lapic;
mod memory;
mod msrs;
mod page;
mod registers;
#[cfg(test)]
mod tests;
mod transfer;
mod vcpu;
mod vm;

use std::sync::Arc;

use queztl_guest_memory::GuestRam;

use super::probe::KvmSupport;
use super::{Accelerator, Error, Vm};
use crate::board::Board;

pub use vm::KvmVm;

/// Who keeps the local APICs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controllers {
    /// The host's kernel.
    Kernel,
    /// [`crate::irqchip`].
    User,
}

/// Runs guests on the host's KVM.
pub struct Kvm {
    device: kvm_ioctls::Kvm,
    native: bool,
    controllers: Controllers,
}

impl Kvm {
    /// Opens the host's KVM, whose kind the probe has found.
    ///
    /// # Errors
    /// [`Error::KvmMissing`] where there is none, or this process may not use it.
    pub fn open(support: KvmSupport) -> Result<Kvm, Error> {
        let native = support.is_native();
        if let KvmSupport::Missing(missing) = support {
            return Err(Error::KvmMissing(missing));
        }
        let device =
            kvm_ioctls::Kvm::new().map_err(|error| Error::Kvm { step: "opening /dev/kvm", source: error.into() })?;
        // Kernels that emulate ring 0 have been seen to forget which interrupts are in service.
        let kernel = native && device.check_extension(kvm_ioctls::Cap::SplitIrqchip);
        let controllers = if kernel { Controllers::Kernel } else { Controllers::User };
        Ok(Kvm { device, native, controllers })
    }

    /// The same with other controllers than the default: the kernel's on hardware virtualization, else our own.
    pub fn with_controllers(self, controllers: Controllers) -> Kvm {
        Kvm { controllers, ..self }
    }

    /// Makes a machine; see [`Accelerator::create_vm`].
    pub fn create(&self, ram: Arc<GuestRam>, board: Arc<Board>, vcpus: u32) -> Result<KvmVm, Error> {
        KvmVm::new(self, ram, board, vcpus)
    }
}

impl Accelerator for Kvm {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn create_vm(&self, ram: Arc<GuestRam>, board: Arc<Board>, vcpus: u32) -> Result<Box<dyn Vm>, Error> {
        Ok(Box::new(self.create(ram, board, vcpus)?))
    }
}
