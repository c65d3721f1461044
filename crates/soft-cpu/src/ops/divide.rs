//! DIV and IDIV. The host divides, after it is certain that it will not fault.

use std::arch::asm;

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::Cpu;
use crate::decode::{Operands, Shape};
use crate::fault::{Exception, Outcome, vector};
use crate::op::{Flow, Handler, Op, Register, check, offset};
use crate::state::gpr;

const RAX: u8 = offset(gpr::RAX);
const RDX: u8 = offset(gpr::RDX);

/// An operand size one can divide by.
trait Divisor: Register {
    const BITS: u32 = Self::SIZE as u32 * 8;
    fn signed(self) -> i128;
    /// Quotient and remainder of `high:low` by `divisor`, and the flags the host leaves. The quotient must fit.
    fn divide_unsigned(high: Self, low: Self, divisor: Self, flags: &mut u16) -> (Self, Self);
    fn divide_signed(high: Self, low: Self, divisor: Self, flags: &mut u16) -> (Self, Self);
}

/// One division of `$dx:$ax`; AX holds the image of the flags before and after.
macro_rules! division {
    ($name:ident, $instruction:literal, $ax:literal, $dx:tt, $modifier:literal) => {
        #[inline(always)]
        fn $name(high: Self, low: Self, divisor: Self, flags: &mut u16) -> (Self, Self) {
            let (mut low, mut high) = (low, high);
            // SAFETY: the caller has checked that the quotient fits, so the division does not fault.
            unsafe {
                asm!(
                    "add al, 0x7f",
                    "sahf",
                    concat!("mov ", $ax, ", {low", $modifier, "}"),
                    concat!($instruction, " {divisor", $modifier, "}"),
                    concat!("mov {low", $modifier, "}, ", $ax),
                    "lahf",
                    "seto al",
                    low = inout(reg) low,
                    divisor = in(reg) divisor,
                    inout($dx) high,
                    inout("ax") *flags,
                    options(pure, nomem, nostack),
                );
            }
            (low, high)
        }
    };
}

macro_rules! divisor {
    ($type:ty, $signed:ty, $ax:literal, $dx:tt, $modifier:literal) => {
        impl Divisor for $type {
            fn signed(self) -> i128 {
                i128::from(self as $signed)
            }

            division!(divide_unsigned, "div", $ax, $dx, $modifier);
            division!(divide_signed, "idiv", $ax, $dx, $modifier);
        }
    };
}
divisor!(u16, i16, "ax", "dx", ":x");
divisor!(u32, i32, "eax", "edx", ":e");
divisor!(u64, i64, "rax", "rdx", ":r");

/// Whether the quotient of `dividend` fits `bits`; a zero divisor never fits.
fn fits(dividend: u128, divisor_unsigned: u64, divisor_signed: i128, bits: u32, is_signed: bool) -> bool {
    if divisor_unsigned == 0 {
        return false;
    }
    if !is_signed {
        return dividend >> bits < u128::from(divisor_unsigned);
    }
    // The dividend is twice as wide as the divisor; move its sign to the top of 128 bits.
    let unused = 128 - 2 * bits;
    let dividend = ((dividend << unused) as i128) >> unused;
    let limit = 1_i128 << (bits - 1);
    dividend.checked_div(divisor_signed).is_some_and(|quotient| (-limit..limit).contains(&quotient))
}

fn divide<T: Divisor, const SIGNED: bool>(cpu: &mut Cpu, divisor: T) -> Outcome<()> {
    let (low, high): (T, T) = (cpu.reg(RAX), cpu.reg(RDX));
    let dividend = u128::from(high.to_u64()) << T::BITS | u128::from(low.to_u64());
    if !fits(dividend, divisor.to_u64(), divisor.signed(), T::BITS, SIGNED) {
        return cpu.fail(Exception::new(vector::DE));
    }
    let divide = if SIGNED { T::divide_signed } else { T::divide_unsigned };
    let (quotient, remainder) = divide(high, low, divisor, &mut cpu.flags);
    cpu.set_reg(RAX, quotient);
    cpu.set_reg(RDX, remainder);
    Ok(())
}

/// Defines the division of AX by a byte, with quotient and remainder as AX has them afterwards.
macro_rules! byte_division {
    ($name:ident, $instruction:literal) => {
        fn $name(dividend: u16, divisor: u8, flags: &mut u16) -> u16 {
            let mut result = dividend;
            // SAFETY: the caller has checked that the quotient fits, so the division does not fault.
            unsafe {
                asm!(
                    "add al, 0x7f",
                    "sahf",
                    "mov ax, {result:x}",
                    concat!($instruction, " {divisor}"),
                    "mov {result:x}, ax",
                    "lahf",
                    "seto al",
                    result = inout(reg) result,
                    divisor = in(reg_byte) divisor,
                    inout("ax") *flags,
                    options(pure, nomem, nostack),
                );
            }
            result
        }
    };
}
byte_division!(div_byte, "div");
byte_division!(idiv_byte, "idiv");

/// AX by a byte: quotient to AL, remainder to AH.
fn divide_byte<const SIGNED: bool>(cpu: &mut Cpu, divisor: u8) -> Outcome<()> {
    let dividend: u16 = cpu.reg(RAX);
    if !fits(u128::from(dividend), u64::from(divisor), i128::from(divisor as i8), 8, SIGNED) {
        return cpu.fail(Exception::new(vector::DE));
    }
    let result = if SIGNED { idiv_byte } else { div_byte }(dividend, divisor, &mut cpu.flags);
    cpu.set_reg(RAX, result);
    Ok(())
}

extern "C" fn by_reg<T: Divisor, const SIGNED: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let divisor = cpu.reg(op.dst);
    check!(divide::<T, SIGNED>(cpu, divisor));
    Flow::Next
}

extern "C" fn by_mem<T: Divisor, const SIGNED: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let divisor = check!(cpu.load(op.address(cpu)));
    check!(divide::<T, SIGNED>(cpu, divisor));
    Flow::Next
}

extern "C" fn by_reg_byte<const SIGNED: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let divisor = cpu.reg(op.dst);
    check!(divide_byte::<SIGNED>(cpu, divisor));
    Flow::Next
}

extern "C" fn by_mem_byte<const SIGNED: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let divisor = check!(cpu.load(op.address(cpu)));
    check!(divide_byte::<SIGNED>(cpu, divisor));
    Flow::Next
}

fn handler<const SIGNED: bool>(operands: &Operands) -> Option<Handler> {
    Some(match (operands.shape, operands.size) {
        (Shape::Reg, 1) => by_reg_byte::<SIGNED>,
        (Shape::Reg, 2) => by_reg::<u16, SIGNED>,
        (Shape::Reg, 4) => by_reg::<u32, SIGNED>,
        (Shape::Reg, 8) => by_reg::<u64, SIGNED>,
        (Shape::Mem, 1) => by_mem_byte::<SIGNED>,
        (Shape::Mem, 2) => by_mem::<u16, SIGNED>,
        (Shape::Mem, 4) => by_mem::<u32, SIGNED>,
        (Shape::Mem, 8) => by_mem::<u64, SIGNED>,
        _ => return None,
    })
}

/// The handler of a division.
pub(crate) fn select(insn: &Instruction, operands: &Operands) -> Option<Handler> {
    match insn.mnemonic() {
        Mnemonic::Div => handler::<false>(operands),
        Mnemonic::Idiv => handler::<true>(operands),
        _ => None,
    }
}
