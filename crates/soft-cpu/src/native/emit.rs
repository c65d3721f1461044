//! The few host instructions that surround a guest instruction in a thunk, as bytes.
//!
//! R11 holds the address of the [`Cpu`]; all state is addressed by 32-bit offsets from it.

use std::mem::offset_of;

use crate::cpu::Cpu;
use crate::state::{Fpu, Vector};

/// A growing piece of code.
#[derive(Default)]
pub(super) struct Emitter {
    pub bytes: Vec<u8>,
}

const fn gpr_offset(guest: usize) -> u32 {
    (offset_of!(Cpu, regs) + guest * 8) as u32
}

const fn vector_offset(number: usize) -> u32 {
    (offset_of!(Cpu, fpu) + offset_of!(Fpu, vectors) + number * size_of::<Vector>()) as u32
}

const FLAGS: u32 = offset_of!(Cpu, flags) as u32;

impl Emitter {
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// ModRM for `register, [r11 + offset]`, and the offset.
    fn state_operand(&mut self, register: usize, offset: u32) {
        self.bytes.push(0x83 | (register as u8 & 7) << 3);
        self.raw(&offset.to_le_bytes());
    }

    /// `mov host, [guest register]`
    pub fn load_gpr(&mut self, host: usize, guest: usize) {
        self.raw(&[0x49 | (host as u8 >> 3) << 2, 0x8b]);
        self.state_operand(host, gpr_offset(guest));
    }

    /// `mov [guest register], host`
    pub fn store_gpr(&mut self, host: usize, guest: usize) {
        self.raw(&[0x49 | (host as u8 >> 3) << 2, 0x89]);
        self.state_operand(host, gpr_offset(guest));
    }

    /// `and host, mask`; 32 bits wide. Changes the flags.
    pub fn mask_gpr(&mut self, host: usize, mask: u8) {
        if host >= 8 {
            self.bytes.push(0x41);
        }
        self.raw(&[0x83, 0xe0 | (host as u8 & 7), mask]);
    }

    /// `movups xmm, [vector]` or the reverse: the low 16 bytes in the legacy encoding.
    pub fn move_xmm(&mut self, number: usize, store: bool) {
        self.raw(&[0x41 | (number as u8 >> 3) << 2, 0x0f, 0x10 | u8::from(store)]);
        self.state_operand(number, vector_offset(number));
    }

    /// `vmovups`: 16 or 32 bytes in the VEX encoding.
    pub fn move_vex(&mut self, number: usize, store: bool, wide: bool) {
        let not_r = if number < 8 { 0x80 } else { 0 };
        self.raw(&[0xc4, not_r | 0x41, 0x78 | u8::from(wide) << 2, 0x10 | u8::from(store)]);
        self.state_operand(number, vector_offset(number));
    }

    /// Loads the guest's arithmetic flags; destroys RAX. See [`crate::flags`].
    pub fn load_flags(&mut self) {
        // movzx eax, word [flags]; add al, 0x7f; sahf
        self.raw(&[0x41, 0x0f, 0xb7]);
        self.state_operand(0, FLAGS);
        self.raw(&[0x04, 0x7f, 0x9e]);
    }

    /// Stores the arithmetic flags; destroys RAX.
    pub fn store_flags(&mut self) {
        // lahf; seto al; mov [flags], ax
        self.raw(&[0x9f, 0x0f, 0x90, 0xc0, 0x66, 0x41, 0x89]);
        self.state_operand(0, FLAGS);
    }

    pub fn push_rbx(&mut self) {
        self.bytes.push(0x53);
    }

    pub fn pop_rbx(&mut self) {
        self.bytes.push(0x5b);
    }

    pub fn vzeroupper(&mut self) {
        self.raw(&[0xc5, 0xf8, 0x77]);
    }

    /// `xor eax, eax; ret`: [`crate::op::Flow::Next`].
    pub fn ret(&mut self) {
        self.raw(&[0x31, 0xc0, 0xc3]);
    }
}
