//! Moves, extensions, exchanges, LEA, SETcc and CMOVcc.

use iced_x86::{ConditionCode, FlowControl, Instruction, Mnemonic};

use crate::cpu::Cpu;
use crate::decode::{Operands, Shape};
use crate::flags;
use crate::op::{Flow, Handler, Op, Register, check, offset};
use crate::state::gpr;

extern "C" fn reg_reg<T: Register>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = cpu.reg::<T>(op.src);
    cpu.set_reg(op.dst, value);
    Flow::Next
}

extern "C" fn reg_imm<T: Register>(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.set_reg(op.dst, T::from_u64(op.imm));
    Flow::Next
}

extern "C" fn reg_mem<T: Register>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = check!(cpu.load::<T>(op.address(cpu)));
    cpu.set_reg(op.dst, value);
    Flow::Next
}

extern "C" fn mem_reg<T: Register>(cpu: &mut Cpu, op: &Op) -> Flow {
    check!(cpu.store::<T>(op.address(cpu), cpu.reg(op.src)));
    Flow::Next
}

extern "C" fn mem_imm<T: Register>(cpu: &mut Cpu, op: &Op) -> Flow {
    check!(cpu.store::<T>(op.address(cpu), T::from_u64(op.imm)));
    Flow::Next
}

/// Extends `From` to the destination's size; sign or zero.
#[inline(always)]
fn extend<F: Register, const SIGNED: bool>(value: F) -> u64 {
    let unused = 64 - 8 * F::SIZE as u32;
    if SIGNED { (((value.to_u64() << unused) as i64) >> unused) as u64 } else { value.to_u64() }
}

extern "C" fn extend_reg<F: Register, T: Register, const SIGNED: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = extend::<F, SIGNED>(cpu.reg(op.src));
    cpu.set_reg(op.dst, T::from_u64(value));
    Flow::Next
}

extern "C" fn extend_mem<F: Register, T: Register, const SIGNED: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = extend::<F, SIGNED>(check!(cpu.load(op.address(cpu))));
    cpu.set_reg(op.dst, T::from_u64(value));
    Flow::Next
}

/// `imm` masks the address to the address size; segments do not count.
extern "C" fn lea<T: Register>(cpu: &mut Cpu, op: &Op) -> Flow {
    let address = op.address(cpu) & op.imm;
    cpu.set_reg(op.dst, T::from_u64(address));
    Flow::Next
}

extern "C" fn exchange<T: Register>(cpu: &mut Cpu, op: &Op) -> Flow {
    let (a, b) = (cpu.reg::<T>(op.dst), cpu.reg::<T>(op.src));
    cpu.set_reg(op.dst, b);
    cpu.set_reg(op.src, a);
    Flow::Next
}

extern "C" fn set_reg<const CODE: u8>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = u8::from(flags::condition(CODE, cpu.flags));
    cpu.set_reg(op.dst, value);
    Flow::Next
}

extern "C" fn set_mem<const CODE: u8>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = u8::from(flags::condition(CODE, cpu.flags));
    check!(cpu.store(op.address(cpu), value));
    Flow::Next
}

/// A 32-bit CMOV clears the upper half even if it does not move.
extern "C" fn cmov_reg<T: Register, const CODE: u8>(cpu: &mut Cpu, op: &Op) -> Flow {
    let from = if flags::condition(CODE, cpu.flags) { op.src } else { op.dst };
    let value = cpu.reg::<T>(from);
    cpu.set_reg(op.dst, value);
    Flow::Next
}

/// The operand is read, and may fault, even if it is not moved.
extern "C" fn cmov_mem<T: Register, const CODE: u8>(cpu: &mut Cpu, op: &Op) -> Flow {
    let loaded = check!(cpu.load::<T>(op.address(cpu)));
    let value = if flags::condition(CODE, cpu.flags) { loaded } else { cpu.reg(op.dst) };
    cpu.set_reg(op.dst, value);
    Flow::Next
}

/// CBW, CWDE, CDQE: the lower half of the accumulator, sign-extended.
extern "C" fn extend_accumulator<F: Register, T: Register>(cpu: &mut Cpu, _op: &Op) -> Flow {
    let value = extend::<F, true>(cpu.reg(offset(gpr::RAX)));
    cpu.set_reg(offset(gpr::RAX), T::from_u64(value));
    Flow::Next
}

/// CWD, CDQ, CQO: DX becomes the sign of AX.
extern "C" fn sign_to_dx<T: Register>(cpu: &mut Cpu, _op: &Op) -> Flow {
    let value = extend::<T, true>(cpu.reg(offset(gpr::RAX)));
    cpu.set_reg(offset(gpr::RDX), T::from_u64(((value as i64) >> 63) as u64));
    Flow::Next
}

extern "C" fn swap_bytes<T: Register>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = cpu.reg::<T>(op.dst).to_u64().swap_bytes() >> (64 - 8 * T::SIZE);
    cpu.set_reg(op.dst, T::from_u64(value));
    Flow::Next
}

/// NOP and its kin; the block builder drops most, this one keeps a block from being empty.
pub(crate) extern "C" fn nothing(_cpu: &mut Cpu, _op: &Op) -> Flow {
    Flow::Next
}

macro_rules! sized {
    ($operands:expr, $handler:ident) => {
        match $operands.size {
            1 => $handler::<u8>,
            2 => $handler::<u16>,
            4 => $handler::<u32>,
            _ => $handler::<u64>,
        }
    };
}

fn extension<const SIGNED: bool>(operands: &Operands) -> Option<Handler> {
    let handler: Handler = match (operands.shape, operands.source_size, operands.size) {
        (Shape::RegReg, 1, 2) => extend_reg::<u8, u16, SIGNED>,
        (Shape::RegReg, 1, 4) => extend_reg::<u8, u32, SIGNED>,
        (Shape::RegReg, 1, 8) => extend_reg::<u8, u64, SIGNED>,
        (Shape::RegReg, 2, 4) => extend_reg::<u16, u32, SIGNED>,
        (Shape::RegReg, 2, 8) => extend_reg::<u16, u64, SIGNED>,
        (Shape::RegReg, 4, 8) => extend_reg::<u32, u64, SIGNED>,
        (Shape::RegMem, 1, 2) => extend_mem::<u8, u16, SIGNED>,
        (Shape::RegMem, 1, 4) => extend_mem::<u8, u32, SIGNED>,
        (Shape::RegMem, 1, 8) => extend_mem::<u8, u64, SIGNED>,
        (Shape::RegMem, 2, 4) => extend_mem::<u16, u32, SIGNED>,
        (Shape::RegMem, 2, 8) => extend_mem::<u16, u64, SIGNED>,
        (Shape::RegMem, 4, 8) => extend_mem::<u32, u64, SIGNED>,
        _ => return None,
    };
    Some(handler)
}

fn mov(operands: &Operands) -> Option<Handler> {
    Some(match operands.shape {
        Shape::RegReg => sized!(operands, reg_reg),
        Shape::RegImm => sized!(operands, reg_imm),
        Shape::RegMem => sized!(operands, reg_mem),
        Shape::MemReg => sized!(operands, mem_reg),
        Shape::MemImm => sized!(operands, mem_imm),
        _ => return None,
    })
}

/// Picks by condition code: `$handler::<$type…, CODE>`.
macro_rules! by_condition {
    ($code:expr, $handler:ident $(, $type:ty)*) => {
        match $code {
            0 => $handler::<$($type,)* 0>,
            1 => $handler::<$($type,)* 1>,
            2 => $handler::<$($type,)* 2>,
            3 => $handler::<$($type,)* 3>,
            4 => $handler::<$($type,)* 4>,
            5 => $handler::<$($type,)* 5>,
            6 => $handler::<$($type,)* 6>,
            7 => $handler::<$($type,)* 7>,
            8 => $handler::<$($type,)* 8>,
            9 => $handler::<$($type,)* 9>,
            10 => $handler::<$($type,)* 10>,
            11 => $handler::<$($type,)* 11>,
            12 => $handler::<$($type,)* 12>,
            13 => $handler::<$($type,)* 13>,
            14 => $handler::<$($type,)* 14>,
            _ => $handler::<$($type,)* 15>,
        }
    };
}
pub(super) use by_condition;

fn conditional(insn: &Instruction, operands: &Operands, code: u8) -> Option<Handler> {
    Some(match (operands.shape, operands.size) {
        (Shape::Reg, _) if is_setcc(insn) => by_condition!(code, set_reg),
        (Shape::Mem, _) if is_setcc(insn) => by_condition!(code, set_mem),
        (Shape::RegReg, 2) => by_condition!(code, cmov_reg, u16),
        (Shape::RegReg, 4) => by_condition!(code, cmov_reg, u32),
        (Shape::RegReg, 8) => by_condition!(code, cmov_reg, u64),
        (Shape::RegMem, 2) => by_condition!(code, cmov_mem, u16),
        (Shape::RegMem, 4) => by_condition!(code, cmov_mem, u32),
        (Shape::RegMem, 8) => by_condition!(code, cmov_mem, u64),
        _ => return None,
    })
}

/// SETcc.
pub(crate) fn is_setcc(insn: &Instruction) -> bool {
    insn.condition_code() != ConditionCode::None && insn.flow_control() == FlowControl::Next && insn.op_count() == 1
}

/// CMOVcc.
pub(crate) fn is_cmovcc(insn: &Instruction) -> bool {
    insn.condition_code() != ConditionCode::None
        && insn.op_count() == 2
        && insn.op0_register().is_gpr()
        && insn.flow_control() == FlowControl::Next
}

/// The condition that an instruction tests, as the low four bits of its opcode.
pub(crate) fn condition_code(insn: &Instruction) -> u8 {
    use iced_x86::ConditionCode as C;
    match insn.condition_code() {
        C::o | C::None => 0,
        C::no => 1,
        C::b => 2,
        C::ae => 3,
        C::e => 4,
        C::ne => 5,
        C::be => 6,
        C::a => 7,
        C::s => 8,
        C::ns => 9,
        C::p => 10,
        C::np => 11,
        C::l => 12,
        C::ge => 13,
        C::le => 14,
        C::g => 15,
    }
}

/// The handler of a move.
pub(crate) fn select(insn: &Instruction, operands: &Operands) -> Option<Handler> {
    if is_setcc(insn) || is_cmovcc(insn) {
        return conditional(insn, operands, condition_code(insn));
    }
    match insn.mnemonic() {
        Mnemonic::Mov => mov(operands),
        Mnemonic::Movzx => extension::<false>(operands),
        Mnemonic::Movsx | Mnemonic::Movsxd => extension::<true>(operands),
        Mnemonic::Lea => Some(match operands.size {
            2 => lea::<u16>,
            4 => lea::<u32>,
            _ => lea::<u64>,
        }),
        Mnemonic::Xchg if operands.shape == Shape::RegReg => Some(sized!(operands, exchange)),
        Mnemonic::Bswap if operands.size == 4 => Some(swap_bytes::<u32>),
        Mnemonic::Bswap if operands.size == 8 => Some(swap_bytes::<u64>),
        Mnemonic::Cbw => Some(extend_accumulator::<u8, u16>),
        Mnemonic::Cwde => Some(extend_accumulator::<u16, u32>),
        Mnemonic::Cdqe => Some(extend_accumulator::<u32, u64>),
        Mnemonic::Cwd => Some(sign_to_dx::<u16>),
        Mnemonic::Cdq => Some(sign_to_dx::<u32>),
        Mnemonic::Cqo => Some(sign_to_dx::<u64>),
        Mnemonic::Nop | Mnemonic::Endbr64 | Mnemonic::Endbr32 => Some(nothing),
        _ => None,
    }
}
