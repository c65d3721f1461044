//! Two-operand arithmetic and logic, and INC, DEC, NEG, NOT.
//!
//! Every handler exists twice: one that leaves the flags, and one for flags that nobody reads before they are
//! overwritten, which is the bare operation.

use iced_x86::{Instruction, Mnemonic};

use super::native_flags::{Arithmetic, Multiply};
use crate::cpu::Cpu;
use crate::decode::{Operands, Shape};
use crate::op::{Flow, Handler, Op, check};

/// A two-operand operation.
pub(super) trait Binary {
    /// Whether the result goes to the first operand.
    const WRITES: bool = true;
    fn apply<T: Arithmetic>(a: T, b: T, flags: &mut u16) -> T;
    /// The result alone; `flags` gives the carry.
    fn bare(a: u64, b: u64, flags: u16) -> u64;
}

macro_rules! binary {
    ($($name:ident => $function:ident, $writes:literal, |$a:ident, $b:ident, $flags:ident| $bare:expr;)*) => {$(
        pub(super) struct $name;
        impl Binary for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            fn apply<T: Arithmetic>(a: T, b: T, flags: &mut u16) -> T { T::$function(a, b, flags) }
            #[inline(always)]
            fn bare($a: u64, $b: u64, $flags: u16) -> u64 { $bare }
        }
    )*};
}
binary! {
    Add => add, true, |a, b, _flags| a.wrapping_add(b);
    Or => or, true, |a, b, _flags| a | b;
    Adc => adc, true, |a, b, flags| a.wrapping_add(b).wrapping_add(carry(flags));
    Sbb => sbb, true, |a, b, flags| a.wrapping_sub(b).wrapping_sub(carry(flags));
    And => and, true, |a, b, _flags| a & b;
    Sub => sub, true, |a, b, _flags| a.wrapping_sub(b);
    Xor => xor, true, |a, b, _flags| a ^ b;
    Cmp => sub, false, |a, _b, _flags| a;
    Test => and, false, |a, _b, _flags| a;
}

fn carry(flags: u16) -> u64 {
    u64::from(flags & crate::flags::CF != 0)
}

/// Runs `O`; without `LIVE` the flags stay as they are.
#[inline(always)]
fn apply<O: Binary, T: Arithmetic, const LIVE: bool>(cpu: &mut Cpu, a: T, b: T) -> T {
    if LIVE { O::apply(a, b, &mut cpu.flags) } else { T::from_u64(O::bare(a.to_u64(), b.to_u64(), cpu.flags)) }
}

extern "C" fn reg_reg<O: Binary, T: Arithmetic, const LIVE: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let result = apply::<O, T, LIVE>(cpu, cpu.reg(op.dst), cpu.reg(op.src));
    if O::WRITES {
        cpu.set_reg(op.dst, result);
    }
    Flow::Next
}

extern "C" fn reg_imm<O: Binary, T: Arithmetic, const LIVE: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let result = apply::<O, T, LIVE>(cpu, cpu.reg(op.dst), T::from_u64(op.imm));
    if O::WRITES {
        cpu.set_reg(op.dst, result);
    }
    Flow::Next
}

extern "C" fn reg_mem<O: Binary, T: Arithmetic, const LIVE: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let b = check!(cpu.load::<T>(op.address(cpu)));
    let result = apply::<O, T, LIVE>(cpu, cpu.reg(op.dst), b);
    if O::WRITES {
        cpu.set_reg(op.dst, result);
    }
    Flow::Next
}

extern "C" fn mem_reg<O: Binary, T: Arithmetic, const LIVE: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let b = cpu.reg(op.src);
    mem_value::<O, T, LIVE>(cpu, op, b)
}

extern "C" fn mem_imm<O: Binary, T: Arithmetic, const LIVE: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    mem_value::<O, T, LIVE>(cpu, op, T::from_u64(op.imm))
}

#[inline(always)]
fn mem_value<O: Binary, T: Arithmetic, const LIVE: bool>(cpu: &mut Cpu, op: &Op, b: T) -> Flow {
    let address = op.address(cpu);
    if !O::WRITES {
        let a = check!(cpu.load::<T>(address));
        apply::<O, T, LIVE>(cpu, a, b);
        return Flow::Next;
    }
    modify::<T>(cpu, address, |cpu, a| apply::<O, T, LIVE>(cpu, a, b))
}

/// Replaces the value at `address` by `change` of it.
#[inline(always)]
pub(super) fn modify<T: Arithmetic>(cpu: &mut Cpu, address: u64, change: impl FnOnce(&mut Cpu, T) -> T) -> Flow {
    let span = check!(cpu.span_modify(address, T::SIZE));
    let pointer = span.pointer.cast::<T>();
    // SAFETY: the span reaches `T::SIZE` bytes.
    let old = unsafe { pointer.read_unaligned() };
    let new = change(cpu, old);
    // SAFETY: as above.
    unsafe { pointer.write_unaligned(new) };
    check!(cpu.commit(span));
    Flow::Next
}

/// A one-operand operation.
trait Unary {
    fn apply<T: Arithmetic>(a: T, flags: &mut u16) -> T;
    fn bare(a: u64) -> u64;
}

struct Inc;
struct Dec;
struct Neg;
struct Not;

impl Unary for Inc {
    #[inline(always)]
    fn apply<T: Arithmetic>(a: T, flags: &mut u16) -> T {
        T::inc(a, flags)
    }
    #[inline(always)]
    fn bare(a: u64) -> u64 {
        a.wrapping_add(1)
    }
}
impl Unary for Dec {
    #[inline(always)]
    fn apply<T: Arithmetic>(a: T, flags: &mut u16) -> T {
        T::dec(a, flags)
    }
    #[inline(always)]
    fn bare(a: u64) -> u64 {
        a.wrapping_sub(1)
    }
}
impl Unary for Neg {
    #[inline(always)]
    fn apply<T: Arithmetic>(a: T, flags: &mut u16) -> T {
        T::neg(a, flags)
    }
    #[inline(always)]
    fn bare(a: u64) -> u64 {
        a.wrapping_neg()
    }
}
impl Unary for Not {
    #[inline(always)]
    fn apply<T: Arithmetic>(a: T, _flags: &mut u16) -> T {
        T::from_u64(!a.to_u64())
    }
    #[inline(always)]
    fn bare(a: u64) -> u64 {
        !a
    }
}

#[inline(always)]
fn apply_unary<O: Unary, T: Arithmetic, const LIVE: bool>(cpu: &mut Cpu, a: T) -> T {
    if LIVE { O::apply(a, &mut cpu.flags) } else { T::from_u64(O::bare(a.to_u64())) }
}

extern "C" fn unary_reg<O: Unary, T: Arithmetic, const LIVE: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let result = apply_unary::<O, T, LIVE>(cpu, cpu.reg(op.dst));
    cpu.set_reg(op.dst, result);
    Flow::Next
}

extern "C" fn unary_mem<O: Unary, T: Arithmetic, const LIVE: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let address = op.address(cpu);
    modify::<T>(cpu, address, |cpu, a| apply_unary::<O, T, LIVE>(cpu, a))
}

/// IMUL r, r and IMUL r, r, imm (with `dst` and `src` as the product's operands).
extern "C" fn imul_reg_reg<T: Multiply>(cpu: &mut Cpu, op: &Op) -> Flow {
    let (a, b) = (cpu.reg(op.dst), cpu.reg(op.src));
    let result = T::imul(a, b, &mut cpu.flags);
    cpu.set_reg(op.dst, result);
    Flow::Next
}

extern "C" fn imul_reg_mem<T: Multiply>(cpu: &mut Cpu, op: &Op) -> Flow {
    let b = check!(cpu.load::<T>(op.address(cpu)));
    let a = cpu.reg(op.dst);
    let result = T::imul(a, b, &mut cpu.flags);
    cpu.set_reg(op.dst, result);
    Flow::Next
}

extern "C" fn imul_reg_imm<T: Multiply>(cpu: &mut Cpu, op: &Op) -> Flow {
    let a = cpu.reg(op.src);
    let result = T::imul(a, T::from_u64(op.imm), &mut cpu.flags);
    cpu.set_reg(op.dst, result);
    Flow::Next
}

extern "C" fn imul_mem_imm<T: Multiply>(cpu: &mut Cpu, op: &Op) -> Flow {
    let a = check!(cpu.load::<T>(op.address(cpu)));
    let result = T::imul(a, T::from_u64(op.imm), &mut cpu.flags);
    cpu.set_reg(op.dst, result);
    Flow::Next
}

macro_rules! sized {
    ($operands:expr, $live:expr, $handler:ident $(, $operation:ident)?) => {
        match ($operands.size, $live) {
            (1, true) => $handler::<$($operation,)? u8, true>,
            (2, true) => $handler::<$($operation,)? u16, true>,
            (4, true) => $handler::<$($operation,)? u32, true>,
            (_, true) => $handler::<$($operation,)? u64, true>,
            (1, false) => $handler::<$($operation,)? u8, false>,
            (2, false) => $handler::<$($operation,)? u16, false>,
            (4, false) => $handler::<$($operation,)? u32, false>,
            (_, false) => $handler::<$($operation,)? u64, false>,
        }
    };
}

fn binary_handler<O: Binary>(operands: &Operands, live: bool) -> Option<Handler> {
    Some(match operands.shape {
        Shape::RegReg => sized!(operands, live, reg_reg, O),
        Shape::RegImm => sized!(operands, live, reg_imm, O),
        Shape::RegMem => sized!(operands, live, reg_mem, O),
        Shape::MemReg => sized!(operands, live, mem_reg, O),
        Shape::MemImm => sized!(operands, live, mem_imm, O),
        _ => return None,
    })
}

fn unary_handler<O: Unary>(operands: &Operands, live: bool) -> Option<Handler> {
    Some(match operands.shape {
        Shape::Reg => sized!(operands, live, unary_reg, O),
        Shape::Mem => sized!(operands, live, unary_mem, O),
        _ => return None,
    })
}

macro_rules! wide {
    ($operands:expr, $handler:ident) => {
        match $operands.size {
            2 => $handler::<u16>,
            4 => $handler::<u32>,
            _ => $handler::<u64>,
        }
    };
}

fn imul_handler(operands: &Operands) -> Option<Handler> {
    Some(match operands.shape {
        Shape::RegReg => wide!(operands, imul_reg_reg),
        Shape::RegMem => wide!(operands, imul_reg_mem),
        Shape::RegRegImm => wide!(operands, imul_reg_imm),
        Shape::RegMemImm => wide!(operands, imul_mem_imm),
        _ => return None,
    })
}

/// The handler of an arithmetic instruction without LOCK; `live` says whether its flags are read later.
pub(crate) fn select(insn: &Instruction, operands: &Operands, live: bool) -> Option<Handler> {
    if insn.has_lock_prefix() {
        return None;
    }
    match insn.mnemonic() {
        Mnemonic::Add => binary_handler::<Add>(operands, live),
        Mnemonic::Or => binary_handler::<Or>(operands, live),
        Mnemonic::Adc => binary_handler::<Adc>(operands, live),
        Mnemonic::Sbb => binary_handler::<Sbb>(operands, live),
        Mnemonic::And => binary_handler::<And>(operands, live),
        Mnemonic::Sub => binary_handler::<Sub>(operands, live),
        Mnemonic::Xor => binary_handler::<Xor>(operands, live),
        Mnemonic::Cmp => binary_handler::<Cmp>(operands, live),
        Mnemonic::Test => binary_handler::<Test>(operands, live),
        Mnemonic::Inc => unary_handler::<Inc>(operands, live),
        Mnemonic::Dec => unary_handler::<Dec>(operands, live),
        Mnemonic::Neg => unary_handler::<Neg>(operands, live),
        Mnemonic::Not => unary_handler::<Not>(operands, false),
        Mnemonic::Imul => imul_handler(operands),
        _ => None,
    }
}
