//! Descriptor-table registers and selectors: LGDT, SGDT, LLDT, LTR, LAR, LSL, VERR, VERW, ARPL and segment moves.

use iced_x86::{Code, Instruction, OpKind, Register};

use super::descriptor::{self, Descriptor, is_null, kind, load_segment, protected, rpl};
use super::operand::{Popper, Touch, segment_index, size_mask};
use super::{Next, require_cpl0};
use crate::cpu::Cpu;
use crate::fault::{Exception, Outcome};
use crate::flags;
use crate::mmu::canonical;
use crate::state::{Table, bits, seg};

/// UMIP keeps programs from learning where the kernel's tables lie.
pub(crate) fn check_umip(cpu: &mut Cpu) -> Outcome<()> {
    if cpu.cpl != 0 && cpu.cr4 & bits::CR4_UMIP != 0 {
        return cpu.fail(Exception::gp(0));
    }
    Ok(())
}

/// LGDT and LIDT.
pub(crate) fn load_table_register(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    require_cpl0(cpu)?;
    let (size, mask) = match insn.code() {
        Code::Lgdt_m1664 | Code::Lidt_m1664 => (8, u64::MAX),
        // With a 16-bit operand the base has 24 bits.
        Code::Lgdt_m1632_16 | Code::Lidt_m1632_16 => (4, 0x00ff_ffff),
        _ => (4, u64::MAX),
    };
    let address = cpu.memory_address(insn, 2 + size as u64, Touch::Read)?;
    let limit = cpu.load::<u16>(address)?;
    let base = cpu.load_sized(address.wrapping_add(2), size)? & mask;
    if size == 8 && !canonical(base) {
        return cpu.fail(Exception::gp(0));
    }
    let table = Table { base, limit };
    if matches!(insn.code(), Code::Lgdt_m1664 | Code::Lgdt_m1632 | Code::Lgdt_m1632_16) {
        cpu.gdtr = table;
    } else {
        cpu.idtr = table;
    }
    Ok(Next::Continue)
}

/// SGDT and SIDT.
pub(crate) fn store_table_register(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    check_umip(cpu)?;
    let is_gdt = matches!(insn.code(), Code::Sgdt_m1664 | Code::Sgdt_m1632 | Code::Sgdt_m1632_16);
    let table = if is_gdt { cpu.gdtr } else { cpu.idtr };
    let size = if matches!(insn.code(), Code::Sgdt_m1664 | Code::Sidt_m1664) { 8 } else { 4 };
    let address = cpu.memory_address(insn, 2 + size as u64, Touch::Write)?;
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    cpu.write_bytes(address, &bytes[..2 + size])?;
    Ok(Next::Continue)
}

fn require_protected(cpu: &mut Cpu) -> Outcome<()> {
    if protected(cpu) { Ok(()) } else { cpu.fail(Exception::ud()) }
}

/// LLDT.
pub(crate) fn lldt(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    require_protected(cpu)?;
    require_cpl0(cpu)?;
    let selector = cpu.read_operand(insn, 0, 2)? as u16;
    descriptor::load_ldtr(cpu, selector)?;
    Ok(Next::Continue)
}

/// LTR.
pub(crate) fn ltr(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    require_protected(cpu)?;
    require_cpl0(cpu)?;
    let selector = cpu.read_operand(insn, 0, 2)? as u16;
    descriptor::load_tr(cpu, selector)?;
    Ok(Next::Continue)
}

/// SLDT and STR.
pub(crate) fn store_selector(cpu: &mut Cpu, insn: &Instruction, selector: u16) -> Outcome<Next> {
    require_protected(cpu)?;
    check_umip(cpu)?;
    write_selector(cpu, insn, selector)
}

/// A selector into a register of any size, or two bytes of memory.
fn write_selector(cpu: &mut Cpu, insn: &Instruction, selector: u16) -> Outcome<Next> {
    let size = if insn.op0_kind() == OpKind::Register { insn.op0_register().size() } else { 2 };
    cpu.write_operand(insn, 0, size, u64::from(selector) & size_mask(size))?;
    Ok(Next::Continue)
}

/// MOV from a segment register.
pub(crate) fn move_from_segment(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    let selector = cpu.segments[segment_index(insn.op1_register())].selector;
    write_selector(cpu, insn, selector)
}

/// Segment loads end the block: bases, limits and the stack's width may be other ones after.
fn after_load(cpu: &mut Cpu, index: usize, shadow: bool) -> Next {
    if index == seg::SS && shadow {
        cpu.interrupt_shadow = true;
        cpu.shadow_debug_traps();
    }
    Next::Sync
}

/// MOV to a segment register.
pub(crate) fn move_to_segment(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    let index = segment_index(insn.op0_register());
    if index == seg::CS {
        return cpu.fail(Exception::ud());
    }
    let selector = cpu.read_operand(insn, 1, 2)? as u16;
    load_segment(cpu, index, selector)?;
    Ok(after_load(cpu, index, true))
}

/// Bytes that PUSH and POP of a segment register move.
fn push_size(insn: &Instruction) -> usize {
    match insn.code() {
        Code::Pushw_ES | Code::Pushw_CS | Code::Pushw_SS | Code::Pushw_DS | Code::Pushw_FS | Code::Pushw_GS => 2,
        Code::Popw_ES | Code::Popw_CS | Code::Popw_SS | Code::Popw_DS | Code::Popw_FS | Code::Popw_GS => 2,
        Code::Pushq_FS | Code::Pushq_GS | Code::Popq_FS | Code::Popq_GS => 8,
        _ => 4,
    }
}

/// PUSH of a segment register.
pub(crate) fn push_segment(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    let selector = cpu.segments[segment_index(insn.op0_register())].selector;
    cpu.push(push_size(insn), u64::from(selector))?;
    Ok(Next::Continue)
}

/// POP of a segment register.
pub(crate) fn pop_segment(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    let index = segment_index(insn.op0_register());
    let mut stack = Popper::new(cpu, push_size(insn));
    let selector = stack.pop(cpu)? as u16;
    let mask = cpu.stack_mask;
    load_segment(cpu, index, selector)?;
    // The pointer moves with the width that the stack had before.
    let after = std::mem::replace(&mut cpu.stack_mask, mask);
    cpu.set_stack_pointer(stack.pointer);
    cpu.stack_mask = after;
    Ok(after_load(cpu, index, true))
}

/// LDS, LES, LSS, LFS and LGS.
pub(crate) fn load_far_pointer(cpu: &mut Cpu, insn: &Instruction, index: usize) -> Outcome<Next> {
    let register = insn.op0_register();
    let size = register.size();
    let address = cpu.memory_address(insn, size as u64 + 2, Touch::Read)?;
    let offset = cpu.load_sized(address, size)?;
    let selector = cpu.load::<u16>(address.wrapping_add(size as u64))?;
    load_segment(cpu, index, selector)?;
    cpu.set_register(register, offset);
    Ok(after_load(cpu, index, false))
}

fn set_zero_flag(cpu: &mut Cpu, on: bool) -> Next {
    cpu.flags = cpu.flags & !flags::ZF | if on { flags::ZF } else { 0 };
    Next::Continue
}

/// The descriptor that a selector names, if the program may see it at all.
fn visible(cpu: &mut Cpu, selector: u16) -> Outcome<Option<Descriptor>> {
    if is_null(selector) {
        return Ok(None);
    }
    let Some(descriptor) = descriptor::find(cpu, selector)? else { return Ok(None) };
    let reachable = descriptor.dpl() >= cpu.cpl && descriptor.dpl() >= rpl(selector);
    Ok((descriptor.is_conforming_code() || reachable).then_some(descriptor))
}

/// LAR.
pub(crate) fn lar(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    require_protected(cpu)?;
    let selector = cpu.read_operand(insn, 1, 2)? as u16;
    let long = cpu.long_mode();
    let known = |kind: u8| match kind {
        kind::LDT | kind::TSS | kind::TSS_BUSY | kind::CALL_GATE => true,
        kind::TSS16 | kind::TSS16_BUSY | kind::CALL_GATE16 | kind::TASK_GATE => !long,
        _ => false,
    };
    match visible(cpu, selector)? {
        Some(found) if found.system_kind().is_none_or(known) => {
            cpu.set_register(insn.op0_register(), found.raw >> 32 & 0x00ff_ff00);
            Ok(set_zero_flag(cpu, true))
        }
        _ => Ok(set_zero_flag(cpu, false)),
    }
}

/// LSL.
pub(crate) fn lsl(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    require_protected(cpu)?;
    let selector = cpu.read_operand(insn, 1, 2)? as u16;
    let long = cpu.long_mode();
    let known = |kind: u8| match kind {
        kind::LDT | kind::TSS | kind::TSS_BUSY => true,
        kind::TSS16 | kind::TSS16_BUSY => !long,
        _ => false,
    };
    match visible(cpu, selector)? {
        Some(found) if found.system_kind().is_none_or(known) => {
            cpu.set_register(insn.op0_register(), u64::from(found.limit()));
            Ok(set_zero_flag(cpu, true))
        }
        _ => Ok(set_zero_flag(cpu, false)),
    }
}

/// VERR and VERW.
pub(crate) fn verify(cpu: &mut Cpu, insn: &Instruction, write: bool) -> Outcome<Next> {
    require_protected(cpu)?;
    let selector = cpu.read_operand(insn, 0, 2)? as u16;
    let usable = visible(cpu, selector)?.is_some_and(|d| if write { d.is_writable_data() } else { d.is_readable() });
    Ok(set_zero_flag(cpu, usable))
}

/// ARPL.
pub(crate) fn arpl(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    require_protected(cpu)?;
    let destination = cpu.read_operand(insn, 0, 2)?;
    let source = cpu.register(insn.op1_register());
    let raised = destination & 3 < source & 3;
    if raised {
        cpu.write_operand(insn, 0, 2, destination & !3 | source & 3)?;
    }
    Ok(set_zero_flag(cpu, raised))
}

/// Whether a register is a segment register.
pub(crate) fn is_segment(register: Register) -> bool {
    (Register::ES..=Register::GS).contains(&register)
}

/// Whether a MOV involves a control or debug register.
pub(crate) fn is_special(register: Register) -> bool {
    (Register::CR0..=Register::DR15).contains(&register)
}
