//! Near branches.
//!
//! Direct targets are kept relative to the block's start, because one physical page may be mapped at several addresses.
//! `imm` holds the displacement of the target and `disp` that of the next instruction.

use iced_x86::{Instruction, Mnemonic};

use super::moves::{by_condition, condition_code};
use super::stack;
use crate::cpu::{CodeSize, Cpu, slot};
use crate::decode::{Operands, Shape};
use crate::fault::{Exception, Outcome};
use crate::flags;
use crate::mmu::canonical;
use crate::op::{Flow, Handler, Op, Register, check, offset};
use crate::state::gpr;

/// Continues at a displacement from the block's start. Only 64-bit code has addresses that need no mask.
#[inline(always)]
fn go<const MASK: u64>(cpu: &mut Cpu, displacement: u64, flow: Flow) -> Flow {
    cpu.rip = cpu.regs[slot::BLOCK_IP].wrapping_add(displacement) & MASK;
    flow
}

extern "C" fn jump<const MASK: u64>(cpu: &mut Cpu, op: &Op) -> Flow {
    go::<MASK>(cpu, op.imm, Flow::Jump0)
}

extern "C" fn jump_if<const CODE: u8>(cpu: &mut Cpu, op: &Op) -> Flow {
    if flags::condition(CODE, cpu.flags) {
        go::<{ u64::MAX }>(cpu, op.imm, Flow::Jump1)
    } else {
        go::<{ u64::MAX }>(cpu, op.disp, Flow::Jump0)
    }
}

/// Jcc, JrCXZ and LOOPcc outside 64-bit code: `src` holds the condition, `dst` the width of RIP.
extern "C" fn jump_if_narrow<const MASK: u64>(cpu: &mut Cpu, op: &Op) -> Flow {
    if flags::condition(op.src, cpu.flags) {
        go::<MASK>(cpu, op.imm, Flow::Jump1)
    } else {
        cpu.rip = cpu.regs[slot::BLOCK_IP].wrapping_add(op.disp) & narrow_ip(cpu);
        Flow::Jump0
    }
}

/// The mask of instruction addresses outside 64-bit code.
fn narrow_ip(cpu: &Cpu) -> u64 {
    if cpu.code_size == CodeSize::Bits16 { 0xffff } else { 0xffff_ffff }
}

/// The width of RCX that a counting branch uses is the address size, in `shift`.
fn counter(cpu: &Cpu, op: &Op) -> u64 {
    let count: u64 = cpu.reg(offset(gpr::RCX));
    match op.shift {
        2 => count & 0xffff,
        4 => count & 0xffff_ffff,
        _ => count,
    }
}

extern "C" fn jump_if_counter_zero<const MASK: u64>(cpu: &mut Cpu, op: &Op) -> Flow {
    if counter(cpu, op) == 0 {
        return go::<MASK>(cpu, op.imm, Flow::Jump1);
    }
    go::<MASK>(cpu, op.disp, Flow::Jump0)
}

/// LOOP (`src` 0), LOOPE (1), LOOPNE (2).
extern "C" fn count_down<const MASK: u64>(cpu: &mut Cpu, op: &Op) -> Flow {
    let left = counter(cpu, op).wrapping_sub(1);
    match op.shift {
        2 => cpu.set_reg(offset(gpr::RCX), left as u16),
        4 => cpu.set_reg(offset(gpr::RCX), left as u32),
        _ => cpu.set_reg(offset(gpr::RCX), left),
    }
    let zero = cpu.flags & flags::ZF != 0;
    let flag = match op.src {
        1 => zero,
        2 => !zero,
        _ => true,
    };
    if counter(cpu, op) != 0 && flag {
        return go::<MASK>(cpu, op.imm, Flow::Jump1);
    }
    go::<MASK>(cpu, op.disp, Flow::Jump0)
}

extern "C" fn call<const MASK: u64, T: Register>(cpu: &mut Cpu, op: &Op) -> Flow {
    let back = cpu.regs[slot::BLOCK_IP].wrapping_add(op.disp);
    check!(stack::push::<T>(cpu, T::from_u64(back)));
    go::<MASK>(cpu, op.imm, Flow::Jump0)
}

extern "C" fn call_64(cpu: &mut Cpu, op: &Op) -> Flow {
    let back = cpu.regs[slot::BLOCK_IP].wrapping_add(op.disp);
    check!(stack::push_64(cpu, back));
    go::<{ u64::MAX }>(cpu, op.imm, Flow::Jump0)
}

/// Fails unless `target` can be an instruction address: the branch faults, not the instruction at the target.
#[inline(always)]
fn check_target(cpu: &mut Cpu, target: u64) -> Outcome<()> {
    if canonical(target) {
        return Ok(());
    }
    cpu.fail(Exception::gp(0))
}

extern "C" fn jump_reg<T: Register>(cpu: &mut Cpu, op: &Op) -> Flow {
    let target = cpu.reg::<T>(op.dst).to_u64();
    check!(check_target(cpu, target));
    cpu.rip = target;
    Flow::Indirect
}

extern "C" fn jump_mem<T: Register>(cpu: &mut Cpu, op: &Op) -> Flow {
    let target = check!(cpu.load::<T>(op.address(cpu))).to_u64();
    check!(check_target(cpu, target));
    cpu.rip = target;
    Flow::Indirect
}

fn call_to<T: Register>(cpu: &mut Cpu, op: &Op, next: u64, target: u64) -> Flow {
    debug_assert!(next < 4096 || op.start > 0);
    check!(check_target(cpu, target));
    let back = cpu.regs[slot::BLOCK_IP].wrapping_add(next);
    check!(stack::push::<T>(cpu, T::from_u64(back)));
    cpu.rip = target;
    Flow::Indirect
}

/// `imm` is the displacement of the next instruction, since `disp` belongs to the memory operand.
extern "C" fn call_reg<T: Register>(cpu: &mut Cpu, op: &Op) -> Flow {
    let target = cpu.reg::<T>(op.dst).to_u64();
    call_to::<T>(cpu, op, op.imm, target)
}

extern "C" fn call_mem<T: Register>(cpu: &mut Cpu, op: &Op) -> Flow {
    let target = check!(cpu.load::<T>(op.address(cpu))).to_u64();
    call_to::<T>(cpu, op, op.imm, target)
}

/// RET and RET imm16: `imm` is what the stack pointer gains besides.
extern "C" fn ret_64(cpu: &mut Cpu, op: &Op) -> Flow {
    let rsp: u64 = cpu.reg(stack::RSP);
    let target = check!(cpu.load::<u64>(rsp));
    check!(check_target(cpu, target));
    cpu.set_reg(stack::RSP, rsp.wrapping_add(8).wrapping_add(op.imm));
    cpu.rip = target;
    Flow::Indirect
}

extern "C" fn ret<T: Register>(cpu: &mut Cpu, op: &Op) -> Flow {
    let target = check!(stack::peek::<T>(cpu)).to_u64();
    check!(check_target(cpu, target));
    stack::add_to_sp(cpu, T::SIZE.wrapping_add(op.imm));
    cpu.rip = target;
    Flow::Indirect
}

const MASK_16: u64 = 0xffff;
const MASK_32: u64 = 0xffff_ffff;
const MASK_64: u64 = u64::MAX;

/// Picks by the operand size of the branch: `$handler::<MASK>`.
macro_rules! by_mask {
    ($size:expr, $handler:ident) => {
        match $size {
            2 => $handler::<MASK_16>,
            4 => $handler::<MASK_32>,
            _ => $handler::<MASK_64>,
        }
    };
}

macro_rules! by_size {
    ($size:expr, $handler:ident) => {
        match $size {
            2 => $handler::<u16>,
            4 => $handler::<u32>,
            _ => $handler::<u64>,
        }
    };
}

/// What a branch needs beside its operands.
pub(crate) struct BranchInfo {
    /// Operand size of the branch in bytes: 2, 4 or 8.
    pub size: u32,
    /// Displacement of a direct target from the block's start.
    pub target: u64,
    /// Displacement of the next instruction.
    pub next: u64,
    /// Address size in bytes.
    pub address_size: u8,
}

/// The size of a near branch's target and return address.
pub(crate) fn branch_size(insn: &Instruction, code: CodeSize) -> u32 {
    if code == CodeSize::Bits64 {
        return 8;
    }
    use iced_x86::Code::*;
    match insn.code() {
        Jmp_rel8_16 | Jmp_rel16 | Call_rel16 | Retnw | Retnw_imm16 | Jmp_rm16 | Call_rm16 => 2,
        Jmp_rel8_32 | Jmp_rel32_32 | Call_rel32_32 | Retnd | Retnd_imm16 | Jmp_rm32 | Call_rm32 => 4,
        _ if insn.is_jcc_short_or_near() || insn.is_loop() || insn.is_loopcc() || insn.is_jcx_short() => {
            match insn.op0_kind() {
                iced_x86::OpKind::NearBranch16 => 2,
                _ => 4,
            }
        }
        _ => 4,
    }
}

/// The operation of a near branch.
pub(crate) fn select(insn: &Instruction, operands: &Operands, info: &BranchInfo, op: &mut Op) -> Option<()> {
    op.run = if insn.is_jcc_short_or_near() {
        (op.imm, op.disp, op.src) = (info.target, info.next, condition_code(insn));
        match info.size {
            2 => jump_if_narrow::<MASK_16>,
            4 => jump_if_narrow::<MASK_32>,
            _ => by_condition!(op.src, jump_if),
        }
    } else if insn.is_jcx_short() {
        (op.imm, op.disp, op.shift) = (info.target, info.next, info.address_size);
        by_mask!(info.size, jump_if_counter_zero)
    } else if insn.is_loop() || insn.is_loopcc() {
        (op.imm, op.disp, op.shift) = (info.target, info.next, info.address_size);
        op.src = match insn.mnemonic() {
            Mnemonic::Loope => 1,
            Mnemonic::Loopne => 2,
            _ => 0,
        };
        by_mask!(info.size, count_down)
    } else if insn.is_jmp_short_or_near() {
        op.imm = info.target;
        by_mask!(info.size, jump)
    } else if insn.is_call_near() {
        (op.imm, op.disp) = (info.target, info.next);
        match info.size {
            2 => call::<MASK_16, u16>,
            4 => call::<MASK_32, u32>,
            _ => call_64,
        }
    } else {
        indirect(insn, operands, info, op)?
    };
    Some(())
}

fn indirect(insn: &Instruction, operands: &Operands, info: &BranchInfo, op: &mut Op) -> Option<Handler> {
    let size = info.size;
    let handler: Handler = match (insn.mnemonic(), operands.shape) {
        (Mnemonic::Jmp, Shape::Reg) if insn.is_jmp_near_indirect() => by_size!(size, jump_reg),
        (Mnemonic::Jmp, Shape::Mem) if insn.is_jmp_near_indirect() => by_size!(size, jump_mem),
        (Mnemonic::Call, Shape::Reg) if insn.is_call_near_indirect() => by_size!(size, call_reg),
        (Mnemonic::Call, Shape::Mem) if insn.is_call_near_indirect() => by_size!(size, call_mem),
        (Mnemonic::Ret, _) if size == 8 => ret_64,
        (Mnemonic::Ret, _) => by_size!(size, ret),
        _ => return None,
    };
    if insn.mnemonic() == Mnemonic::Call {
        op.imm = info.next;
    } else if insn.mnemonic() == Mnemonic::Ret {
        op.imm = if insn.op_count() == 1 { u64::from(insn.immediate16()) } else { 0 };
    }
    Some(handler)
}

/// The end of a block that does not end in a branch: on to the next instruction, at displacement `imm`.
pub(crate) extern "C" fn fall_through(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.rip = cpu.regs[slot::BLOCK_IP].wrapping_add(op.imm);
    if cpu.code_size != CodeSize::Bits64 {
        cpu.rip &= narrow_ip(cpu);
    }
    Flow::Jump0
}
