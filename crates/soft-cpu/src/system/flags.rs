//! Instructions on RFLAGS that depend on privilege: PUSHF, POPF, CLI, STI, STAC, CLAC.

use iced_x86::{Code, Instruction};

use super::Next;
use crate::cpu::Cpu;
use crate::fault::{Exception, Outcome};
use crate::state::{bits, rflags};

/// The I/O privilege level.
#[inline]
pub(crate) fn iopl(cpu: &Cpu) -> u8 {
    (cpu.rflags_system >> 12) as u8 & 3
}

/// In virtual-8086 mode the interrupt-flag instructions need IOPL 3.
fn check_virtual_8086(cpu: &mut Cpu) -> Outcome<()> {
    if cpu.rflags_system & rflags::VM != 0 && iopl(cpu) != 3 {
        return cpu.fail(Exception::gp(0));
    }
    Ok(())
}

/// PUSHF, PUSHFD, PUSHFQ.
pub(crate) fn pushf(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    check_virtual_8086(cpu)?;
    let size = match insn.code() {
        Code::Pushfw => 2,
        Code::Pushfd => 4,
        _ => 8,
    };
    let value = cpu.rflags() & !(rflags::RF | rflags::VM);
    cpu.push(size, value)?;
    Ok(Next::Continue)
}

/// POPF, POPFD, POPFQ.
pub(crate) fn popf(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    check_virtual_8086(cpu)?;
    let (size, mask) = match insn.code() {
        Code::Popfw => (2, 0xffff),
        Code::Popfd => (4, u64::MAX),
        _ => (8, u64::MAX),
    };
    let value = cpu.pop(size)?;
    let mut changed = rflags::ARITHMETIC | rflags::TF | rflags::DF | rflags::NT | rflags::AC | rflags::ID;
    if cpu.cpl <= iopl(cpu) {
        changed |= rflags::IF;
    }
    if cpu.cpl == 0 {
        changed |= rflags::IOPL;
    }
    let old = cpu.rflags();
    changed &= mask;
    let new = old & !changed | value & changed;
    cpu.set_rflags(new);
    if (old ^ new) & rflags::AC != 0 {
        cpu.select_tlb();
    }
    if new & rflags::IF & !old != 0 {
        cpu.recheck_events();
    }
    let watched = rflags::IF | rflags::TF | rflags::AC;
    Ok(if (old ^ new) & watched == 0 { Next::Continue } else { Next::Sync })
}

fn check_iopl(cpu: &mut Cpu) -> Outcome<()> {
    if cpu.cpl > iopl(cpu) && cpu.cr0 & bits::CR0_PE != 0 {
        return cpu.fail(Exception::gp(0));
    }
    Ok(())
}

/// CLI.
pub(crate) fn cli(cpu: &mut Cpu) -> Outcome<Next> {
    check_iopl(cpu)?;
    cpu.rflags_system &= !rflags::IF;
    Ok(Next::Continue)
}

/// STI: interrupts are taken after the next instruction, if they were off.
pub(crate) fn sti(cpu: &mut Cpu) -> Outcome<Next> {
    check_iopl(cpu)?;
    if cpu.rflags_system & rflags::IF == 0 {
        cpu.rflags_system |= rflags::IF;
        cpu.interrupt_shadow = true;
        cpu.recheck_events();
    }
    Ok(Next::Sync)
}

fn set_alignment_check(cpu: &mut Cpu, on: bool) -> Outcome<Next> {
    if cpu.cpl != 0 || cpu.shared.cpuid.features().cr4 & bits::CR4_SMAP == 0 {
        return cpu.fail(Exception::ud());
    }
    cpu.rflags_system = cpu.rflags_system & !rflags::AC | if on { rflags::AC } else { 0 };
    cpu.select_tlb();
    Ok(Next::Continue)
}

/// STAC.
pub(crate) fn stac(cpu: &mut Cpu) -> Outcome<Next> {
    set_alignment_check(cpu, true)
}

/// CLAC.
pub(crate) fn clac(cpu: &mut Cpu) -> Outcome<Next> {
    set_alignment_check(cpu, false)
}
