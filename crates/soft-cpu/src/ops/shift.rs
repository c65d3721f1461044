//! Shifts and rotates by an immediate or CL.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::alu::modify;
use super::native_flags::Arithmetic;
use crate::cpu::Cpu;
use crate::decode::{Operands, Shape};
use crate::op::{Flow, Handler, Op, offset};
use crate::state::gpr;

trait Shift {
    fn apply<T: Arithmetic>(a: T, count: u8, flags: &mut u16) -> T;
}

macro_rules! shift {
    ($($name:ident => $function:ident;)*) => {$(
        struct $name;
        impl Shift for $name {
            #[inline(always)]
            fn apply<T: Arithmetic>(a: T, count: u8, flags: &mut u16) -> T { T::$function(a, count, flags) }
        }
    )*};
}
shift! { Shl => shl; Shr => shr; Sar => sar; Rol => rol; Ror => ror; }

#[inline(always)]
fn apply<O: Shift, T: Arithmetic, const LIVE: bool>(cpu: &mut Cpu, a: T, count: u8) -> T {
    let mut flags = cpu.flags;
    let result = O::apply(a, count, &mut flags);
    if LIVE {
        cpu.flags = flags;
    }
    result
}

#[inline(always)]
fn count<const BY_CL: bool>(cpu: &Cpu, op: &Op) -> u8 {
    if BY_CL { cpu.reg(offset(gpr::RCX)) } else { op.imm as u8 }
}

extern "C" fn reg<O: Shift, T: Arithmetic, const BY_CL: bool, const LIVE: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let count = count::<BY_CL>(cpu, op);
    let result = apply::<O, T, LIVE>(cpu, cpu.reg(op.dst), count);
    cpu.set_reg(op.dst, result);
    Flow::Next
}

extern "C" fn mem<O: Shift, T: Arithmetic, const BY_CL: bool, const LIVE: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let count = count::<BY_CL>(cpu, op);
    let address = op.address(cpu);
    modify::<T>(cpu, address, |cpu, a| apply::<O, T, LIVE>(cpu, a, count))
}

fn sized<O: Shift, const BY_CL: bool, const LIVE: bool>(operands: &Operands) -> Option<Handler> {
    let in_register = match operands.shape {
        Shape::RegImm | Shape::RegReg => true,
        Shape::MemImm | Shape::MemReg => false,
        _ => return None,
    };
    Some(match (operands.size, in_register) {
        (1, true) => reg::<O, u8, BY_CL, LIVE>,
        (2, true) => reg::<O, u16, BY_CL, LIVE>,
        (4, true) => reg::<O, u32, BY_CL, LIVE>,
        (_, true) => reg::<O, u64, BY_CL, LIVE>,
        (1, false) => mem::<O, u8, BY_CL, LIVE>,
        (2, false) => mem::<O, u16, BY_CL, LIVE>,
        (4, false) => mem::<O, u32, BY_CL, LIVE>,
        (_, false) => mem::<O, u64, BY_CL, LIVE>,
    })
}

fn handler<O: Shift>(operands: &Operands, by_cl: bool, live: bool) -> Option<Handler> {
    match (by_cl, live) {
        (true, true) => sized::<O, true, true>(operands),
        (true, false) => sized::<O, true, false>(operands),
        (false, true) => sized::<O, false, true>(operands),
        (false, false) => sized::<O, false, false>(operands),
    }
}

/// The handler of a shift; `live` says whether its flags are read later.
pub(crate) fn select(insn: &Instruction, operands: &Operands, live: bool) -> Option<Handler> {
    let by_cl = insn.op1_kind() == OpKind::Register && insn.op1_register() == Register::CL;
    match insn.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => handler::<Shl>(operands, by_cl, live),
        Mnemonic::Shr => handler::<Shr>(operands, by_cl, live),
        Mnemonic::Sar => handler::<Sar>(operands, by_cl, live),
        Mnemonic::Rol => handler::<Rol>(operands, by_cl, live),
        Mnemonic::Ror => handler::<Ror>(operands, by_cl, live),
        _ => None,
    }
}
