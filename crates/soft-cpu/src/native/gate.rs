//! Which register files the guest's operating system has switched on.
//!
//! The control registers are folded into one byte whenever they change, so that an instruction finds out with a single
//! test whether it may run (SDM vol. 3A §2.5, table 13-1; vol. 1 §14.3).

use super::thunk::{Thunk, Unit};
use crate::cpu::Cpu;
use crate::fault::{Exception, vector};
use crate::state::bits;

/// x87 and MMX instructions run.
pub(crate) const X87: u8 = 1 << 0;
/// Instructions on XMM registers in the legacy encoding run.
pub(crate) const SSE: u8 = 1 << 1;
/// Instructions on XMM and YMM registers in the VEX encoding run.
pub(crate) const AVX: u8 = 1 << 2;
/// WAIT runs.
pub(crate) const WAIT: u8 = 1 << 3;

/// XCR0 bits without which VEX instructions do not exist: SSE and AVX state.
const XCR0_AVX: u64 = 0b110;

/// The units that the control registers enable.
pub(crate) fn derive(cr0: u64, cr4: u64, xcr0: u64) -> u8 {
    let mut open = 0;
    if cr0 & (bits::CR0_EM | bits::CR0_TS) == 0 {
        open |= X87;
        if cr4 & bits::CR4_OSFXSR != 0 {
            open |= SSE;
        }
    }
    let vex = cr0 & bits::CR0_PE != 0 && cr4 & bits::CR4_OSXSAVE != 0 && xcr0 & XCR0_AVX == XCR0_AVX;
    if vex && cr0 & bits::CR0_TS == 0 {
        open |= AVX;
    }
    if cr0 & bits::CR0_MP == 0 || cr0 & bits::CR0_TS == 0 {
        open |= WAIT;
    }
    open
}

/// What must be clear in [`Cpu::closed`] for an instruction of a unit with these gate and [`super::trap`] bits to run
/// without further looks.
pub(crate) fn needs(gate: u8, traps: u8) -> u8 {
    gate | traps << 4
}

/// [`Cpu::closed`]: closed gates below, exceptions that the guest has unmasked above.
pub(crate) fn closed(open: u8, traps: u8) -> u8 {
    needs(!open & (X87 | SSE | AVX | WAIT), traps)
}

/// What an instruction raises whose unit is closed.
#[cold]
pub(super) fn fault(cpu: &Cpu, thunk: &Thunk) -> Exception {
    let emulated = cpu.cr0 & bits::CR0_EM != 0;
    let missing = match thunk.unit {
        Unit::None | Unit::X87 | Unit::Wait => false,
        Unit::Mmx => emulated,
        Unit::Sse | Unit::SseMmx => emulated || cpu.cr4 & bits::CR4_OSFXSR == 0,
        Unit::Avx => cpu.cr0 & bits::CR0_PE == 0 || cpu.cr4 & bits::CR4_OSXSAVE == 0 || cpu.xcr0 & XCR0_AVX != XCR0_AVX,
    };
    Exception::new(if missing { vector::UD } else { vector::NM })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PE: u64 = bits::CR0_PE;

    #[test]
    fn task_switched_closes_everything_but_wait_without_mp() {
        assert_eq!(derive(PE | bits::CR0_TS, bits::CR4_OSFXSR | bits::CR4_OSXSAVE, 7), WAIT);
        assert_eq!(derive(PE | bits::CR0_TS | bits::CR0_MP, bits::CR4_OSFXSR, 1), 0);
    }

    #[test]
    fn avx_needs_osxsave_and_both_state_components() {
        assert_eq!(derive(PE, bits::CR4_OSFXSR | bits::CR4_OSXSAVE, 3), X87 | SSE | WAIT);
        assert_eq!(derive(PE, bits::CR4_OSFXSR | bits::CR4_OSXSAVE, 7), X87 | SSE | AVX | WAIT);
        assert_eq!(derive(PE, bits::CR4_OSFXSR, 7), X87 | SSE | WAIT);
    }
}
