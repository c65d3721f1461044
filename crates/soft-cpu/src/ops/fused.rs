//! An arithmetic instruction and the conditional branch that follows it, as one operation.
//!
//! `dst`, `src` and `imm` are the arithmetic's; `disp` holds both ends of the branch: the target's displacement from the
//! block's start above bit 16, the next instruction's below.

use iced_x86::{Instruction, Mnemonic};

use super::alu::{Add, And, Binary, Cmp, Sub, Test};
use super::moves::{by_condition, condition_code};
use super::native_flags::Arithmetic;
use crate::cpu::{Cpu, slot};
use crate::decode::{Operands, Shape};
use crate::flags;
use crate::op::{Flow, Handler, Op};

#[inline(always)]
fn branch<const CODE: u8>(cpu: &mut Cpu, op: &Op) -> Flow {
    let start = cpu.regs[slot::BLOCK_IP];
    if flags::condition(CODE, cpu.flags) {
        cpu.rip = start.wrapping_add(((op.disp as i64) >> 16) as u64);
        Flow::Jump1
    } else {
        cpu.rip = start.wrapping_add(op.disp & 0xffff);
        Flow::Jump0
    }
}

extern "C" fn reg_reg<O: Binary, T: Arithmetic, const CODE: u8>(cpu: &mut Cpu, op: &Op) -> Flow {
    let result = O::apply(cpu.reg::<T>(op.dst), cpu.reg(op.src), &mut cpu.flags);
    if O::WRITES {
        cpu.set_reg(op.dst, result);
    }
    branch::<CODE>(cpu, op)
}

extern "C" fn reg_imm<O: Binary, T: Arithmetic, const CODE: u8>(cpu: &mut Cpu, op: &Op) -> Flow {
    let result = O::apply(cpu.reg::<T>(op.dst), T::from_u64(op.imm), &mut cpu.flags);
    if O::WRITES {
        cpu.set_reg(op.dst, result);
    }
    branch::<CODE>(cpu, op)
}

fn sized<O: Binary, T: Arithmetic>(shape: Shape, code: u8) -> Option<Handler> {
    Some(match shape {
        Shape::RegReg => by_condition!(code, reg_reg, O, T),
        Shape::RegImm => by_condition!(code, reg_imm, O, T),
        _ => return None,
    })
}

fn handler<O: Binary>(operands: &Operands, code: u8) -> Option<Handler> {
    match operands.size {
        1 => sized::<O, u8>(operands.shape, code),
        4 => sized::<O, u32>(operands.shape, code),
        8 => sized::<O, u64>(operands.shape, code),
        _ => None,
    }
}

/// The handler for `insn` followed by `jcc` in 64-bit code, if there is one. The caller sets the operands, and `disp`
/// with [`ends`].
pub(crate) fn select(insn: &Instruction, operands: &Operands, jcc: &Instruction) -> Option<Handler> {
    let code = condition_code(jcc);
    match insn.mnemonic() {
        Mnemonic::Cmp => handler::<Cmp>(operands, code),
        Mnemonic::Test => handler::<Test>(operands, code),
        Mnemonic::Sub => handler::<Sub>(operands, code),
        Mnemonic::Add => handler::<Add>(operands, code),
        Mnemonic::And => handler::<And>(operands, code),
        _ => None,
    }
}

/// Both ends of the branch in one word.
pub(crate) fn ends(target: u64, next: u64) -> u64 {
    target << 16 | next & 0xffff
}
