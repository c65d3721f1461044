//! Decimal arithmetic of 16- and 32-bit code, which the host cannot run in 64-bit mode (SDM vol. 2A, AAA to AAS; DAA,
//! DAS). Flags that the architecture leaves undefined keep what hardware is seen to give: the result's sign, zero and
//! parity.

use super::thunk::Thunk;
use crate::cpu::Cpu;
use crate::fault::{Exception, Outcome, vector};
use crate::flags;
use crate::op::Op;
use crate::state::gpr;

fn al(cpu: &Cpu) -> u8 {
    cpu.regs[gpr::RAX] as u8
}

fn ax(cpu: &Cpu) -> u16 {
    cpu.regs[gpr::RAX] as u16
}

fn set_ax(cpu: &mut Cpu, value: u16) {
    cpu.regs[gpr::RAX] = (cpu.regs[gpr::RAX] & !0xffff) | u64::from(value);
}

fn set_al(cpu: &mut Cpu, value: u8) {
    cpu.regs[gpr::RAX] = (cpu.regs[gpr::RAX] & !0xff) | u64::from(value);
}

/// SF, ZF and PF of a byte, with the given CF and AF.
fn set_flags(cpu: &mut Cpu, result: u8, carry: bool, adjust: bool) {
    let bit = |on: bool, flag: u16| if on { flag } else { 0 };
    cpu.flags = bit(result & 0x80 != 0, flags::SF)
        | bit(result == 0, flags::ZF)
        | bit(result.count_ones().is_multiple_of(2), flags::PF)
        | bit(carry, flags::CF)
        | bit(adjust, flags::AF);
}

fn adjusts(cpu: &Cpu) -> bool {
    al(cpu) & 0xf > 9 || cpu.flags & flags::AF != 0
}

/// AAA.
pub(super) fn aaa(cpu: &mut Cpu, _: &Op, _: &Thunk) -> Outcome<()> {
    let adjust = adjusts(cpu);
    let sum = if adjust { ax(cpu).wrapping_add(0x106) } else { ax(cpu) } & 0xff0f;
    set_ax(cpu, sum);
    set_flags(cpu, sum as u8, adjust, adjust);
    Ok(())
}

/// AAS.
pub(super) fn aas(cpu: &mut Cpu, _: &Op, _: &Thunk) -> Outcome<()> {
    let adjust = adjusts(cpu);
    let difference = if adjust { ax(cpu).wrapping_sub(0x106) } else { ax(cpu) } & 0xff0f;
    set_ax(cpu, difference);
    set_flags(cpu, difference as u8, adjust, adjust);
    Ok(())
}

/// DAA.
pub(super) fn daa(cpu: &mut Cpu, _: &Op, _: &Thunk) -> Outcome<()> {
    let (old, adjust) = (al(cpu), adjusts(cpu));
    let carry = old > 0x99 || cpu.flags & flags::CF != 0;
    let low = if adjust { old.wrapping_add(6) } else { old };
    let sum = if carry { low.wrapping_add(0x60) } else { low };
    set_al(cpu, sum);
    set_flags(cpu, sum, carry, adjust);
    Ok(())
}

/// DAS.
pub(super) fn das(cpu: &mut Cpu, _: &Op, _: &Thunk) -> Outcome<()> {
    let (old, adjust) = (al(cpu), adjusts(cpu));
    let before = cpu.flags & flags::CF != 0;
    let carry = old > 0x99 || before;
    let low = if adjust { old.wrapping_sub(6) } else { old };
    let difference = if carry { low.wrapping_sub(0x60) } else { low };
    set_al(cpu, difference);
    set_flags(cpu, difference, carry || (adjust && old < 6), adjust);
    Ok(())
}

/// AAM: #DE for base zero.
pub(super) fn aam(cpu: &mut Cpu, _: &Op, thunk: &Thunk) -> Outcome<()> {
    let base = thunk.instruction.immediate8();
    let (Some(high), Some(low)) = (al(cpu).checked_div(base), al(cpu).checked_rem(base)) else {
        return cpu.fail(Exception::new(vector::DE));
    };
    set_ax(cpu, u16::from_le_bytes([low, high]));
    set_flags(cpu, low, false, false);
    Ok(())
}

/// AAD.
pub(super) fn aad(cpu: &mut Cpu, _: &Op, thunk: &Thunk) -> Outcome<()> {
    let [low, high] = ax(cpu).to_le_bytes();
    let sum = low.wrapping_add(high.wrapping_mul(thunk.instruction.immediate8()));
    set_ax(cpu, u16::from(sum));
    set_flags(cpu, sum, false, false);
    Ok(())
}
