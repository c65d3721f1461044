//! What takes vCPUs out of the guest, counted.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Counters of one vCPU, raised by its own thread and read by anybody. Each has cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct VcpuCounters([AtomicU64; 5]);

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    Port,
    Mmio,
    Msr,
    Halt,
    Interrupt,
}

/// The counters at one moment, since the guest was last started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitFigures {
    /// Accesses to I/O ports.
    pub port: u64,
    /// Accesses to memory-mapped devices.
    pub mmio: u64,
    /// Accesses to registers that the accelerator leaves to the machine.
    pub msr: u64,
    /// How often the vCPU had nothing to do, where the machine sees it.
    pub halt: u64,
    /// Interrupts that were given to it, where the machine does so.
    pub interrupt: u64,
}

impl VcpuCounters {
    pub fn count(&self, what: Counted) {
        self.0[what as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn figures(&self) -> ExitFigures {
        let [port, mmio, msr, halt, interrupt] = self.0.each_ref().map(|counter| counter.load(Ordering::Relaxed));
        ExitFigures { port, mmio, msr, halt, interrupt }
    }
}
