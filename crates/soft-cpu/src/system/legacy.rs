//! Instructions of older days in plain form: PUSHA, POPA, ENTER, LEAVE, BOUND, SALC, and POP to memory.

use iced_x86::{Code, Instruction};

use super::Next;
use super::operand::{Popper, Touch, size_mask};
use crate::cpu::Cpu;
use crate::fault::{Exception, Outcome, vector};
use crate::flags;
use crate::state::{gpr, seg};

/// SALC: AL becomes all ones if CF is set, else zero.
pub(crate) fn salc(cpu: &mut Cpu) -> Outcome<Next> {
    let value = if cpu.flags & flags::CF != 0 { 0xff } else { 0 };
    cpu.regs[gpr::RAX] = cpu.regs[gpr::RAX] & !0xff | value;
    Ok(Next::Continue)
}

/// PUSHA and PUSHAD.
pub(crate) fn pusha(cpu: &mut Cpu, size: usize) -> Outcome<Next> {
    let top = cpu.stack_pointer();
    for register in 0..8 {
        let at = top.wrapping_sub((register as u64 + 1) * size as u64);
        cpu.store_stack(at, size, cpu.regs[register])?;
    }
    cpu.set_stack_pointer(top.wrapping_sub(8 * size as u64));
    Ok(Next::Continue)
}

/// POPA and POPAD.
pub(crate) fn popa(cpu: &mut Cpu, size: usize) -> Outcome<Next> {
    let mut stack = Popper::new(cpu, size);
    let mut values = [0; 8];
    for register in (0..8).rev() {
        values[register] = stack.pop(cpu)?;
    }
    for (register, value) in values.into_iter().enumerate().filter(|(register, _)| *register != gpr::RSP) {
        let kept = if size == 2 { cpu.regs[register] & !0xffff } else { 0 };
        cpu.regs[register] = kept | value;
    }
    cpu.set_stack_pointer(stack.pointer);
    Ok(Next::Continue)
}

/// ENTER.
pub(crate) fn enter(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    let size = match insn.code() {
        Code::Enterw_imm16_imm8 => 2,
        Code::Enterd_imm16_imm8 => 4,
        _ => 8,
    };
    let (room, levels) = (u64::from(insn.immediate16()), insn.immediate8_2nd() % 32);
    let step = size as u64;
    let frame_base = cpu.regs[gpr::RBP];
    let mut pointer = cpu.stack_pointer().wrapping_sub(step);
    cpu.store_stack(pointer, size, frame_base)?;
    let frame = pointer;
    for level in 1..levels {
        let link = cpu.load_stack(frame_base.wrapping_sub(u64::from(level) * step), size)?;
        pointer = pointer.wrapping_sub(step);
        cpu.store_stack(pointer, size, link)?;
    }
    if levels > 0 {
        pointer = pointer.wrapping_sub(step);
        cpu.store_stack(pointer, size, frame)?;
    }
    pointer = pointer.wrapping_sub(room);
    // The new top must be writable: the program's next push would fault otherwise, with RBP already changed.
    let probe = cpu.linear(seg::SS, pointer & cpu.stack_mask, step, Touch::Write)?;
    cpu.span_write(probe, step)?;
    set_frame_base(cpu, size, frame);
    cpu.set_stack_pointer(pointer);
    Ok(Next::Continue)
}

fn set_frame_base(cpu: &mut Cpu, size: usize, value: u64) {
    let mask = size_mask(size);
    let kept = if size == 2 { cpu.regs[gpr::RBP] & !mask } else { 0 };
    cpu.regs[gpr::RBP] = kept | value & mask;
}

/// LEAVE.
pub(crate) fn leave(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    let size = match insn.code() {
        Code::Leavew => 2,
        Code::Leaved => 4,
        _ => 8,
    };
    let pointer = cpu.regs[gpr::RBP] & cpu.stack_mask;
    let value = cpu.load_stack(pointer, size)?;
    cpu.set_stack_pointer(pointer.wrapping_add(size as u64));
    set_frame_base(cpu, size, value);
    Ok(Next::Continue)
}

/// BOUND.
pub(crate) fn bound(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    let size = insn.op0_register().size();
    let address = cpu.memory_address(insn, 2 * size as u64, Touch::Read)?;
    let signed = |value: u64| if size == 2 { i64::from(value as i16) } else { i64::from(value as i32) };
    let low = signed(cpu.load_sized(address, size)?);
    let high = signed(cpu.load_sized(address.wrapping_add(size as u64), size)?);
    let index = signed(cpu.register(insn.op0_register()));
    if index < low || index > high {
        return cpu.fail(Exception::new(vector::BR));
    }
    Ok(Next::Continue)
}

/// POP to memory (or to a register, for completeness): the address is computed with the stack pointer moved.
pub(crate) fn pop(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    let size = insn.stack_pointer_increment().unsigned_abs() as usize;
    let before = cpu.regs[gpr::RSP];
    let value = cpu.pop(size)?;
    if let Err(raised) = cpu.write_operand(insn, 0, size, value) {
        cpu.regs[gpr::RSP] = before;
        return Err(raised);
    }
    Ok(Next::Continue)
}
