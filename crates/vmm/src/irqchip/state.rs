//! The state of a local APIC as plain data: what a snapshot holds, the same whoever keeps the local APIC.

use super::IrqChip;
use serde::{Deserialize, Serialize};

use super::lapic::{BASE_ADDRESS, BASE_BSP, BASE_ENABLED, BASE_X2APIC, LVT_COUNT};

/// Everything a local APIC is but its identifier, which is the vCPU's number (SDM vol. 3A chapter 11).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LapicState {
    /// IA32_APIC_BASE.
    pub base: u64,
    /// Task priority.
    pub tpr: u8,
    /// Logical destination and destination format; no meaning in x2APIC mode.
    pub ldr: u32,
    pub dfr: u32,
    /// Spurious-interrupt vector register.
    pub svr: u32,
    /// Error status, and errors since it was last written.
    pub esr: u32,
    pub errors: u32,
    /// Interrupt command register, both halves.
    pub icr: u64,
    /// Timer, thermal sensor, performance counters, LINT0, LINT1, error.
    pub lvt: [u32; LVT_COUNT],
    /// Interrupts requested, in service, and level-triggered: bit `v % 32` of word `v / 32` is vector `v`.
    pub irr: [u32; 8],
    pub isr: [u32; 8],
    pub tmr: [u32; 8],
    pub timer_initial: u32,
    pub timer_divide: u32,
    /// What is left of the count, in ticks of [`super::APIC_TIMER_HZ`] after division; 0 if the timer does not run.
    pub timer_current: u32,
    /// IA32_TSC_DEADLINE, in the guest's counter; 0 when disarmed.
    pub tsc_deadline: u64,
    /// Events on their way to the processor.
    pub nmi: bool,
    pub init: bool,
    pub startup: Option<u8>,
}

/// A local APIC cannot be so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a local APIC cannot have IA32_APIC_BASE {0:#x}: the state is damaged, take another snapshot")]
pub struct BadLapicState(u64);

impl LapicState {
    /// Refuses what no guest could have brought about.
    pub fn check(&self) -> Result<(), BadLapicState> {
        let known = self.base & !(BASE_ADDRESS | BASE_ENABLED | BASE_X2APIC | BASE_BSP) == 0;
        let x2apic_is_enabled = self.base & (BASE_X2APIC | BASE_ENABLED) != BASE_X2APIC;
        if known && x2apic_is_enabled { Ok(()) } else { Err(BadLapicState(self.base)) }
    }
}

impl IrqChip {
    /// The local APIC of `cpu`; `None` if there is no such vCPU. Meaningless while others keep the local APICs.
    pub fn lapic_state(&self, cpu: u32) -> Option<LapicState> {
        Some(self.lapic(cpu)?.with(|lapic| lapic.state(&self.clock)))
    }

    /// Replaces the local APIC of `cpu`; its timers go on from now. The vCPU's counter must have its adjustment already
    /// ([`IrqChip::set_tsc_adjust`]).
    pub fn set_lapic_state(&self, cpu: u32, state: &LapicState) -> Result<(), BadLapicState> {
        state.check()?;
        if let Some(lapic) = self.lapic(cpu) {
            lapic.with(|lapic| lapic.set_state(state, &self.clock));
            lapic.wake();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use queztl_soft_cpu::platform::{Accepts, Event};

    use super::*;
    use crate::clock::Clock;
    use crate::timers::Timers;

    const ALL: Accepts = Accepts { interrupts: true, nmi: true };

    fn chip() -> (Arc<IrqChip>, Arc<Timers>, Arc<Clock>) {
        let clock = Arc::new(Clock::instruction_counted(1));
        let timers = Timers::new(clock.clone());
        (IrqChip::new(1, clock.clone(), &timers), timers, clock)
    }

    fn write(chip: &IrqChip, register: u64, value: u32) {
        assert!(chip.mmio_write(0, crate::layout::LAPIC_BASE + register, &value.to_le_bytes()));
    }

    #[test]
    fn a_moved_local_apic_goes_on_where_it_was() {
        let (from, ..) = chip();
        write(&from, 0xf0, 0x1ff);
        // A periodic timer of 1,000 ns, vector 0x51; one interrupt in service, another below it requested.
        write(&from, 0x3e0, 0xb);
        write(&from, 0x320, 0x2_0051);
        write(&from, 0x380, 100_000);
        from.send_msi(0xfee0_0000, 0x61);
        assert_eq!(from.take_event(0, ALL), Some(Event::Interrupt(0x61)));
        from.send_msi(0xfee0_0000, 0x41);
        let state = from.lapic_state(0).unwrap();

        let (to, timers, clock) = chip();
        clock.set_instructions(500_000);
        to.set_lapic_state(0, &state).unwrap();
        assert_eq!(to.lapic_state(0).unwrap(), state);
        assert_eq!(to.take_event(0, ALL), None, "0x61 is in service still");
        write(&to, 0xb0, 0);
        assert_eq!(to.take_event(0, ALL), Some(Event::Interrupt(0x41)));
        write(&to, 0xb0, 0);
        clock.set_instructions(600_000);
        timers.run_expired(clock.now_ns());
        assert_eq!(to.take_event(0, ALL), Some(Event::Interrupt(0x51)));
    }

    #[test]
    fn what_cannot_be_is_refused_or_cut_to_what_can() {
        let (chip, ..) = chip();
        let state = chip.lapic_state(0).unwrap();
        for base in [1 << 10, u64::MAX] {
            let bad = LapicState { base, ..state.clone() };
            assert_eq!(chip.set_lapic_state(0, &bad), Err(BadLapicState(base)));
        }
        let wild = LapicState { lvt: [u32::MAX; LVT_COUNT], icr: u64::MAX, svr: u32::MAX, ..state };
        chip.set_lapic_state(0, &wild).unwrap();
        let cut = chip.lapic_state(0).unwrap();
        assert!(cut.svr < 0x400 && cut.lvt.iter().all(|entry| *entry < 0x8_0000));
    }
}
