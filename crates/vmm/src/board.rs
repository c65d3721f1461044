//! Everything around the vCPUs and RAM: buses, interrupt controllers, clocks.
//!
//! An accelerator hands every access that is not RAM to the board, on the vCPU's own thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use queztl_soft_cpu::cpuid::CpuidConfig;

use crate::accel::VcpuCounters;
use crate::bus::Bus;
use crate::clock::Clock;
use crate::devices::legacy::MachineEvents;
use crate::irqchip::IrqChip;
use crate::kvmclock::KvmClock;
use crate::timers::Timers;

/// The parts of a board, put together by [`crate::machine`].
pub struct BoardParts {
    pub ports: Bus,
    pub mmio: Bus,
    pub irqchip: Arc<IrqChip>,
    pub clock: Arc<Clock>,
    pub timers: Arc<Timers>,
    pub kvmclock: KvmClock,
    pub events: Arc<dyn MachineEvents>,
    /// vCPUs that a socket takes: all of them, or a power of two.
    pub socket_vcpus: u32,
}

/// A machine without its vCPUs.
pub struct Board {
    parts: BoardParts,
    counters: Box<[VcpuCounters]>,
    in_user_mode: AtomicBool,
}

impl Board {
    pub fn new(parts: BoardParts) -> Board {
        let counters = (0..parts.irqchip.vcpus()).map(|_| VcpuCounters::default()).collect();
        Board { parts, counters, in_user_mode: AtomicBool::new(false) }
    }

    /// What vCPU `cpu` has been taken out of the guest for.
    ///
    /// # Panics
    /// When the machine has no such vCPU.
    pub fn counters(&self, cpu: u32) -> &VcpuCounters {
        &self.counters[cpu as usize]
    }

    pub fn irqchip(&self) -> &IrqChip {
        &self.parts.irqchip
    }

    pub fn clock(&self) -> &Clock {
        &self.parts.clock
    }

    pub fn timers(&self) -> &Timers {
        &self.parts.timers
    }

    pub fn kvmclock(&self) -> &KvmClock {
        &self.parts.kvmclock
    }

    /// What CPUID tells of a machine of `vcpus` processors on this board.
    pub fn cpuid_config(&self, vcpus: u32) -> CpuidConfig {
        CpuidConfig { vcpus, socket_vcpus: self.parts.socket_vcpus, tsc_hz: self.parts.clock.tsc_hz() }
    }

    /// The counter that vCPU `cpu` reads is [`Clock::tsc`] plus `adjust`, and deadlines and the paravirtual clock must
    /// follow.
    pub fn set_tsc_adjust(&self, cpu: u32, adjust: u64) {
        self.parts.irqchip.set_tsc_adjust(cpu, adjust);
        self.parts.kvmclock.set_tsc_adjust(cpu, adjust);
    }

    /// Reads memory-mapped I/O as vCPU `cpu` sees it: its own local APIC, else the bus.
    pub fn mmio_read(&self, cpu: u32, address: u64, data: &mut [u8]) {
        if !self.parts.irqchip.mmio_read(cpu, address, data) {
            self.parts.mmio.read(address, data);
        }
    }

    /// Writes memory-mapped I/O as vCPU `cpu` sees it.
    pub fn mmio_write(&self, cpu: u32, address: u64, data: &[u8]) {
        if !self.parts.irqchip.mmio_write(cpu, address, data) {
            self.parts.mmio.write(address, data);
        }
    }

    /// Reads an I/O port.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        self.parts.ports.read(u64::from(port), data);
    }

    /// Writes an I/O port.
    pub fn port_write(&self, port: u16, data: &[u8]) {
        self.parts.ports.write(u64::from(port), data);
    }

    /// Reads a model-specific register of the board: local APIC or paravirtual clock. `None` if there is none.
    pub fn msr_read(&self, cpu: u32, msr: u32) -> Option<u64> {
        if IrqChip::owns_msr(msr) {
            return self.parts.irqchip.msr_read(cpu, msr);
        }
        self.parts.kvmclock.msr_read(cpu, msr)
    }

    /// Writes such a register; false if there is none or it refuses the value.
    pub fn msr_write(&self, cpu: u32, msr: u32, value: u64) -> bool {
        if IrqChip::owns_msr(msr) {
            return self.parts.irqchip.msr_write(cpu, msr, value);
        }
        self.parts.kvmclock.msr_write(cpu, msr, value)
    }

    /// A vCPU has entered user mode for the first time: the guest's first user process runs.
    pub fn user_mode_entered(&self) {
        if !self.in_user_mode.swap(true, Ordering::Relaxed) {
            self.parts.events.boot_mark();
        }
    }
}
