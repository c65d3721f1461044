//! PUSH, POP and LEAVE. 64-bit code takes the short way; elsewhere the stack segment and its size count.

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::{CodeSize, Cpu};
use crate::decode::{Operands, Shape};
use crate::fault::{Outcome, Raised, vector};
use crate::mmu::Word;
use crate::op::{Flow, Handler, Op, Register, check, offset};
use crate::state::{gpr, seg};
use crate::system::operand::Touch;

pub(crate) const RSP: u8 = offset(gpr::RSP);
const RBP: u8 = offset(gpr::RBP);

/// The linear address of `size` bytes at stack offset `sp`, after the stack segment's checks.
fn stack_address(cpu: &mut Cpu, sp: u64, size: u64, touch: Touch) -> Outcome<u64> {
    cpu.linear(seg::SS, sp & cpu.stack_mask, size, touch)
}

/// Sets as much of RSP as the stack size covers.
fn set_sp(cpu: &mut Cpu, sp: u64) {
    match cpu.stack_mask {
        0xffff => cpu.set_reg(RSP, sp as u16),
        0xffff_ffff => cpu.set_reg(RSP, sp as u32),
        _ => cpu.set_reg(RSP, sp),
    }
}

/// Moves the stack pointer up by `bytes`.
pub(crate) fn add_to_sp(cpu: &mut Cpu, bytes: u64) {
    let sp: u64 = cpu.reg(RSP);
    set_sp(cpu, sp.wrapping_add(bytes));
}

/// Turns a non-canonical address into the stack fault that it is here, whatever segment the instruction's operand has.
#[cold]
fn stack_fault(cpu: &mut Cpu, raised: Raised) -> Raised {
    if let Some(exception) = &mut cpu.exception
        && std::mem::take(&mut exception.segment_dependent)
    {
        exception.vector = vector::SS;
    }
    raised
}

/// Pushes a value of any size on any stack.
pub(crate) fn push<T: Word>(cpu: &mut Cpu, value: T) -> Outcome<()> {
    let sp = cpu.reg::<u64>(RSP).wrapping_sub(T::SIZE);
    let address = stack_address(cpu, sp, T::SIZE, Touch::Write)?;
    cpu.store(address, value).map_err(|raised| stack_fault(cpu, raised))?;
    set_sp(cpu, sp);
    Ok(())
}

/// The value on top of any stack.
pub(crate) fn peek<T: Word>(cpu: &mut Cpu) -> Outcome<T> {
    let sp = cpu.reg::<u64>(RSP);
    let address = stack_address(cpu, sp, T::SIZE, Touch::Read)?;
    cpu.load(address)
}

/// Pushes on a 64-bit stack.
#[inline(always)]
pub(crate) fn push_64<T: Word>(cpu: &mut Cpu, value: T) -> Outcome<()> {
    let rsp = cpu.reg::<u64>(RSP).wrapping_sub(T::SIZE);
    cpu.store(rsp, value).map_err(|raised| stack_fault(cpu, raised))?;
    cpu.set_reg(RSP, rsp);
    Ok(())
}

extern "C" fn push_reg_64(cpu: &mut Cpu, op: &Op) -> Flow {
    check!(push_64::<u64>(cpu, cpu.reg(op.dst)));
    Flow::Next
}

extern "C" fn push_imm_64(cpu: &mut Cpu, op: &Op) -> Flow {
    check!(push_64::<u64>(cpu, op.imm));
    Flow::Next
}

extern "C" fn push_mem_64(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = check!(cpu.load::<u64>(op.address(cpu)));
    check!(push_64::<u64>(cpu, value));
    Flow::Next
}

extern "C" fn pop_reg_64(cpu: &mut Cpu, op: &Op) -> Flow {
    let rsp: u64 = cpu.reg(RSP);
    let value = check!(cpu.load::<u64>(rsp));
    // POP RSP gives the popped value, so the pointer moves first.
    cpu.set_reg(RSP, rsp.wrapping_add(8));
    cpu.set_reg(op.dst, value);
    Flow::Next
}

extern "C" fn push_reg<T: Register>(cpu: &mut Cpu, op: &Op) -> Flow {
    check!(push::<T>(cpu, cpu.reg(op.dst)));
    Flow::Next
}

extern "C" fn push_imm<T: Register>(cpu: &mut Cpu, op: &Op) -> Flow {
    check!(push::<T>(cpu, T::from_u64(op.imm)));
    Flow::Next
}

extern "C" fn push_mem<T: Register>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = check!(cpu.load::<T>(op.address(cpu)));
    check!(push::<T>(cpu, value));
    Flow::Next
}

extern "C" fn pop_reg<T: Register>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = check!(peek::<T>(cpu));
    add_to_sp(cpu, T::SIZE);
    cpu.set_reg(op.dst, value);
    Flow::Next
}

extern "C" fn leave_64(cpu: &mut Cpu, _op: &Op) -> Flow {
    let rbp: u64 = cpu.reg(RBP);
    let value = check!(cpu.load::<u64>(rbp));
    cpu.set_reg(RSP, rbp.wrapping_add(8));
    cpu.set_reg(RBP, value);
    Flow::Next
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

/// The handler of a stack instruction. Segment registers, flags and a POP to memory (whose address may depend on the
/// popped stack pointer) are not the hot kind.
pub(crate) fn select(insn: &Instruction, operands: &Operands, code: CodeSize) -> Option<Handler> {
    let size = insn.stack_pointer_increment().unsigned_abs();
    let long = code == CodeSize::Bits64 && size == 8;
    Some(match (insn.mnemonic(), operands.shape) {
        (Mnemonic::Push, Shape::Reg) if long => push_reg_64,
        (Mnemonic::Push, Shape::Imm) if long => push_imm_64,
        (Mnemonic::Push, Shape::Mem) if long => push_mem_64,
        (Mnemonic::Pop, Shape::Reg) if long => pop_reg_64,
        (Mnemonic::Push, Shape::Reg) => by_size!(size, push_reg),
        (Mnemonic::Push, Shape::Imm) => by_size!(size, push_imm),
        (Mnemonic::Push, Shape::Mem) => by_size!(size, push_mem),
        (Mnemonic::Pop, Shape::Reg) => by_size!(size, pop_reg),
        (Mnemonic::Leave, _) if long || insn.code() == iced_x86::Code::Leaveq => leave_64,
        _ => return None,
    })
}
