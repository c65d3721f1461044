//! Integer arithmetic by the host's own instructions, with the flags they leave.

use std::arch::asm;

use crate::op::Register;

/// Arithmetic on one operand size. Flags are images as in [`crate::flags`].
pub(crate) trait Arithmetic: Register + Eq {
    fn add(a: Self, b: Self, flags: &mut u16) -> Self;
    fn or(a: Self, b: Self, flags: &mut u16) -> Self;
    /// Adds with the carry of `flags`.
    fn adc(a: Self, b: Self, flags: &mut u16) -> Self;
    fn sbb(a: Self, b: Self, flags: &mut u16) -> Self;
    fn and(a: Self, b: Self, flags: &mut u16) -> Self;
    fn sub(a: Self, b: Self, flags: &mut u16) -> Self;
    fn xor(a: Self, b: Self, flags: &mut u16) -> Self;
    /// Keeps the carry.
    fn inc(a: Self, flags: &mut u16) -> Self;
    fn dec(a: Self, flags: &mut u16) -> Self;
    fn neg(a: Self, flags: &mut u16) -> Self;
    fn shl(a: Self, count: u8, flags: &mut u16) -> Self;
    fn shr(a: Self, count: u8, flags: &mut u16) -> Self;
    fn sar(a: Self, count: u8, flags: &mut u16) -> Self;
    fn rol(a: Self, count: u8, flags: &mut u16) -> Self;
    fn ror(a: Self, count: u8, flags: &mut u16) -> Self;
}

/// The two-operand signed product, which bytes do not have.
pub(crate) trait Multiply: Arithmetic {
    /// Low half of the product.
    fn imul(a: Self, b: Self, flags: &mut u16) -> Self;
}

macro_rules! binary {
    ($name:ident, $instruction:literal, $class:ident, $modifier:literal) => {
        #[inline(always)]
        fn $name(a: Self, b: Self, flags: &mut u16) -> Self {
            let mut result = a;
            let image: u16;
            // SAFETY: register arithmetic only.
            unsafe {
                asm!(
                    concat!($instruction, " {a", $modifier, "}, {b", $modifier, "}"),
                    "lahf",
                    "seto al",
                    a = inout($class) result,
                    b = in($class) b,
                    out("ax") image,
                    options(pure, nomem, nostack),
                );
            }
            *flags = image;
            result
        }
    };
}

/// The instruction reads the carry that `flags` holds in bit 8.
macro_rules! with_carry {
    ($name:ident, $instruction:literal, $class:ident, $modifier:literal) => {
        #[inline(always)]
        fn $name(a: Self, b: Self, flags: &mut u16) -> Self {
            let mut result = a;
            // SAFETY: register arithmetic only.
            unsafe {
                asm!(
                    "bt eax, 8",
                    concat!($instruction, " {a", $modifier, "}, {b", $modifier, "}"),
                    "lahf",
                    "seto al",
                    a = inout($class) result,
                    b = in($class) b,
                    inout("ax") *flags,
                    options(pure, nomem, nostack),
                );
            }
            result
        }
    };
}

macro_rules! unary_keeping_carry {
    ($name:ident, $instruction:literal, $class:ident, $modifier:literal) => {
        #[inline(always)]
        fn $name(a: Self, flags: &mut u16) -> Self {
            let mut result = a;
            // SAFETY: register arithmetic only.
            unsafe {
                asm!(
                    "bt eax, 8",
                    concat!($instruction, " {a", $modifier, "}"),
                    "lahf",
                    "seto al",
                    a = inout($class) result,
                    inout("ax") *flags,
                    options(pure, nomem, nostack),
                );
            }
            result
        }
    };
}

/// A shift or rotate by CL: a count of zero leaves every flag, rotates leave most.
macro_rules! by_count {
    ($name:ident, $instruction:literal, $class:ident, $modifier:literal) => {
        #[inline(always)]
        fn $name(a: Self, count: u8, flags: &mut u16) -> Self {
            let mut result = a;
            // SAFETY: register arithmetic only.
            unsafe {
                asm!(
                    "add al, 0x7f",
                    "sahf",
                    concat!($instruction, " {a", $modifier, "}, cl"),
                    "lahf",
                    "seto al",
                    a = inout($class) result,
                    in("cl") count,
                    inout("ax") *flags,
                    options(pure, nomem, nostack),
                );
            }
            result
        }
    };
}

macro_rules! arithmetic {
    ($type:ty, $class:ident, $modifier:literal) => {
        impl Arithmetic for $type {
            binary!(add, "add", $class, $modifier);
            binary!(or, "or", $class, $modifier);
            binary!(and, "and", $class, $modifier);
            binary!(sub, "sub", $class, $modifier);
            binary!(xor, "xor", $class, $modifier);
            with_carry!(adc, "adc", $class, $modifier);
            with_carry!(sbb, "sbb", $class, $modifier);
            unary_keeping_carry!(inc, "inc", $class, $modifier);
            unary_keeping_carry!(dec, "dec", $class, $modifier);
            unary_keeping_carry!(neg, "neg", $class, $modifier);
            by_count!(shl, "shl", $class, $modifier);
            by_count!(shr, "shr", $class, $modifier);
            by_count!(sar, "sar", $class, $modifier);
            by_count!(rol, "rol", $class, $modifier);
            by_count!(ror, "ror", $class, $modifier);
        }
    };
}

/// Only carry and overflow are defined; the host decides the others from what they were.
macro_rules! multiply {
    ($type:ty, $modifier:literal) => {
        impl Multiply for $type {
            #[inline(always)]
            fn imul(a: Self, b: Self, flags: &mut u16) -> Self {
                let mut result = a;
                // SAFETY: register arithmetic only.
                unsafe {
                    asm!(
                        "add al, 0x7f",
                        "sahf",
                        concat!("imul {a", $modifier, "}, {b", $modifier, "}"),
                        "lahf",
                        "seto al",
                        a = inout(reg) result,
                        b = in(reg) b,
                        inout("ax") *flags,
                        options(pure, nomem, nostack),
                    );
                }
                result
            }
        }
    };
}

arithmetic!(u8, reg_byte, "");
arithmetic!(u16, reg, ":x");
arithmetic!(u32, reg, ":e");
arithmetic!(u64, reg, ":r");
multiply!(u16, ":x");
multiply!(u32, ":e");
multiply!(u64, ":r");
