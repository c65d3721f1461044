//! Where the guest's general registers live while translated code runs.
//!
//! Thirteen live in host registers, ten of them in their own; three that compilers use least stay in the CPU's state.
//! The host's RAX and RCX carry values within the translation of one instruction: RAX because flags pass through it
//! (`lahf`, `sahf`), RCX because shifts count by it. The host's RSP is the host's stack.

use std::mem::offset_of;

use iced_x86::Register;

use super::asm::{Mem, host};
use crate::cpu::Cpu;

/// Where one guest register lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Home {
    /// In this host register.
    Host(u8),
    /// In [`Cpu::regs`].
    State,
}

/// Host register numbers by guest register number; 0 stands for the CPU's state.
const HOMES: [u8; 16] = [
    host::R10, // RAX
    host::R11, // RCX
    host::RDX,
    host::RBX,
    host::R15, // RSP
    host::RBP,
    host::RSI,
    host::RDI,
    8,
    9,
    0,
    0,
    host::R12,
    host::R13,
    host::R14,
    0,
];

/// Where guest register `guest` lives.
pub(super) fn home(guest: usize) -> Home {
    match HOMES[guest] {
        0 => Home::State,
        register => Home::Host(register),
    }
}

/// Guest registers that live in host registers, with these.
pub(super) fn resident() -> impl Iterator<Item = (usize, u8)> {
    HOMES.iter().copied().enumerate().filter(|(_, register)| *register != 0)
}

/// The place of a guest register in the CPU's state.
pub(super) fn state(guest: usize) -> Mem {
    Mem::State((offset_of!(Cpu, regs) + guest * 8) as u32)
}

/// Host register `number` at `size` bytes, with the numbers that instructions encode; never a high byte.
pub(super) fn sized(number: u8, size: usize) -> Register {
    let number = u32::from(number);
    match size {
        1 if number < 4 => Register::AL + number,
        1 => Register::SPL + (number - 4),
        2 => Register::AX + number,
        4 => Register::EAX + number,
        _ => Register::RAX + number,
    }
}

/// The number of a general register.
pub(super) fn number(register: Register) -> usize {
    match register {
        Register::AH | Register::CH | Register::DH | Register::BH => register.number() & 3,
        _ => register.full_register().number(),
    }
}

/// AH, CH, DH or BH.
pub(super) fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}
