//! Host instructions as bytes: the few forms that surround the guest's own.
//!
//! Registers are numbers, as instructions encode them. State of the [`crate::Cpu`] is at `gs:[offset]`.

/// Host registers by number.
pub(super) mod host {
    pub const RAX: u8 = 0;
    pub const RCX: u8 = 1;
    pub const RDX: u8 = 2;
    pub const RBX: u8 = 3;
    pub const RSP: u8 = 4;
    pub const RBP: u8 = 5;
    pub const RSI: u8 = 6;
    pub const RDI: u8 = 7;
    pub const R10: u8 = 10;
    pub const R11: u8 = 11;
    pub const R12: u8 = 12;
    pub const R13: u8 = 13;
    pub const R14: u8 = 14;
    pub const R15: u8 = 15;
}

/// A memory operand of a host instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mem {
    /// State of the CPU at this offset.
    State(u32),
    /// A register and a displacement.
    Base(u8, i32),
    /// Base, index, log2 of the index's scale, displacement.
    Indexed(Option<u8>, u8, u8, i32),
}

/// Condition codes, the low four bits of Jcc.
pub(super) mod cc {
    pub const AE: u8 = 3;
    pub const E: u8 = 4;
    pub const NE: u8 = 5;
    pub const A: u8 = 7;
}

/// A two-operand instruction `op reg, r/m` by its opcode.
pub(super) mod opcode {
    pub const ADD: u8 = 0x03;
    pub const AND: u8 = 0x23;
    pub const XOR: u8 = 0x33;
    pub const CMP: u8 = 0x3b;
    pub const MOV_LOAD: u8 = 0x8b;
    pub const MOV_STORE: u8 = 0x89;
    pub const LEA: u8 = 0x8d;
}

/// The group number of `op r/m, imm`.
pub(super) mod group {
    pub const AND: u8 = 4;
    pub const CMP: u8 = 7;
}

/// A 32-bit displacement to be filled in, by its place in the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) struct Patch(pub usize);

/// A growing piece of code.
#[derive(Default)]
pub(super) struct Asm {
    pub bytes: Vec<u8>,
}

impl Asm {
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub fn here(&self) -> usize {
        self.bytes.len()
    }

    /// Prefixes, opcode, ModRM and what follows it, for `reg` and a memory operand.
    pub fn op_mem(&mut self, wide: bool, opcode: &[u8], reg: u8, mem: Mem) {
        if matches!(mem, Mem::State(_)) {
            self.bytes.push(0x65);
        }
        let (base, index) = match mem {
            Mem::State(_) => (0, 0),
            Mem::Base(base, _) => (base, 0),
            Mem::Indexed(base, index, ..) => (base.unwrap_or(0), index),
        };
        self.rex(wide, reg, index, base);
        self.raw(opcode);
        self.modrm_mem(reg, mem);
    }

    fn rex(&mut self, wide: bool, reg: u8, index: u8, base: u8) {
        let rex = 0x40 | u8::from(wide) << 3 | (reg >> 3) << 2 | (index >> 3) << 1 | base >> 3;
        if rex != 0x40 {
            self.bytes.push(rex);
        }
    }

    /// ModRM, SIB and displacement.
    pub fn modrm_mem(&mut self, reg: u8, mem: Mem) {
        let reg = (reg & 7) << 3;
        match mem {
            Mem::State(offset) => {
                self.raw(&[0x04 | reg, 0x25]);
                self.raw(&offset.to_le_bytes());
            }
            Mem::Base(base, disp) => {
                let short = i8::try_from(disp).is_ok();
                self.bytes.push(if short { 0x40 } else { 0x80 } | reg | base & 7);
                if base & 7 == host::RSP {
                    self.bytes.push(0x24);
                }
                self.displacement(short, disp);
            }
            Mem::Indexed(base, index, scale, disp) => {
                debug_assert_ne!(index, host::RSP);
                let sib = scale << 6 | (index & 7) << 3;
                match base {
                    Some(base) => {
                        let short = i8::try_from(disp).is_ok();
                        self.raw(&[if short { 0x44 } else { 0x84 } | reg, sib | base & 7]);
                        self.displacement(short, disp);
                    }
                    None => {
                        self.raw(&[0x04 | reg, sib | 5]);
                        self.raw(&disp.to_le_bytes());
                    }
                }
            }
        }
    }

    fn displacement(&mut self, short: bool, disp: i32) {
        if short { self.bytes.push(disp as u8) } else { self.raw(&disp.to_le_bytes()) }
    }

    /// `op reg, other`, with `other` in the r/m field.
    pub fn op_reg(&mut self, wide: bool, opcode: &[u8], reg: u8, other: u8) {
        self.rex(wide, reg, 0, other);
        self.raw(opcode);
        self.bytes.push(0xc0 | (reg & 7) << 3 | other & 7);
    }

    /// `mov reg, [mem]`, 64 bits.
    pub fn load(&mut self, reg: u8, mem: Mem) {
        self.op_mem(true, &[opcode::MOV_LOAD], reg, mem);
    }

    /// `mov [mem], reg`, 64 bits.
    pub fn store(&mut self, mem: Mem, reg: u8) {
        self.op_mem(true, &[opcode::MOV_STORE], reg, mem);
    }

    /// `mov to, from`, 64 bits.
    pub fn mov(&mut self, to: u8, from: u8) {
        if to != from {
            self.op_reg(true, &[opcode::MOV_LOAD], to, from);
        }
    }

    /// `mov to, from`, 32 bits.
    pub fn mov_32(&mut self, to: u8, from: u8) {
        self.op_reg(false, &[opcode::MOV_LOAD], to, from);
    }

    /// `lea reg, [mem]`, 64 bits.
    pub fn lea(&mut self, reg: u8, mem: Mem) {
        self.op_mem(true, &[opcode::LEA], reg, mem);
    }

    /// `mov reg, value` in the shortest form.
    pub fn mov_imm(&mut self, reg: u8, value: u64) {
        if let Ok(value) = u32::try_from(value) {
            self.rex(false, 0, 0, reg);
            self.bytes.push(0xb8 | reg & 7);
            self.raw(&value.to_le_bytes());
        } else {
            self.rex(true, 0, 0, reg);
            self.bytes.push(0xb8 | reg & 7);
            self.raw(&value.to_le_bytes());
        }
    }

    /// `op reg, imm32`, of the group with opcode 0x81; 32 bits wide unless `wide`.
    pub fn group_imm(&mut self, wide: bool, group: u8, reg: u8, imm: i32) {
        self.rex(wide, 0, 0, reg);
        self.raw(&[0x81, 0xc0 | group << 3 | reg & 7]);
        self.raw(&imm.to_le_bytes());
    }

    /// `cmp dword [mem], imm32`.
    pub fn cmp_mem_imm(&mut self, mem: Mem, imm: u32) {
        self.op_mem(false, &[0x81], group::CMP, mem);
        self.raw(&imm.to_le_bytes());
    }

    /// `test byte [mem], imm8`.
    pub fn test_mem_imm(&mut self, mem: Mem, imm: u8) {
        self.op_mem(false, &[0xf6], 0, mem);
        self.bytes.push(imm);
    }

    /// `mov dword [mem], imm32`.
    pub fn store_imm(&mut self, mem: Mem, imm: u32) {
        self.op_mem(false, &[0xc7], 0, mem);
        self.raw(&imm.to_le_bytes());
    }

    /// Loads the arithmetic flags from their image in the CPU's state; destroys RAX.
    pub fn load_flags(&mut self, flags: Mem) {
        // movzx eax, word [flags]; add al, 0x7f; sahf
        self.op_mem(false, &[0x0f, 0xb7], host::RAX, flags);
        self.raw(&[0x04, 0x7f, 0x9e]);
    }

    /// Stores the image of the arithmetic flags, and keeps them; destroys RAX.
    pub fn store_flags(&mut self, flags: Mem) {
        // lahf; seto al; mov [flags], ax
        self.raw(&[0x9f, 0x0f, 0x90, 0xc0, 0x66]);
        self.op_mem(false, &[opcode::MOV_STORE], host::RAX, flags);
    }

    /// `jmp` to a place that is filled in later.
    pub fn jmp(&mut self) -> Patch {
        self.raw(&[0xe9, 0, 0, 0, 0]);
        Patch(self.here() - 4)
    }

    /// `jcc` to a place that is filled in later.
    pub fn jcc(&mut self, condition: u8) -> Patch {
        self.raw(&[0x0f, 0x80 | condition, 0, 0, 0, 0]);
        Patch(self.here() - 4)
    }

    /// Jumps to a place that is filled in later unless RCX is zero. Keeps the flags.
    pub fn jmp_unless_rcx_is_zero(&mut self) -> Patch {
        // jrcxz over the jump
        self.raw(&[0xe3, 5]);
        self.jmp()
    }

    /// `jmp [mem]`.
    pub fn jmp_mem(&mut self, mem: Mem) {
        self.op_mem(false, &[0xff], 4, mem);
    }

    /// Leads `patch` to `target`, both in this code.
    pub fn bind(&mut self, patch: Patch, target: usize) {
        let distance = (target as i64 - (patch.0 as i64 + 4)) as i32;
        self.bytes[patch.0..patch.0 + 4].copy_from_slice(&distance.to_le_bytes());
    }

    pub fn bind_here(&mut self, patch: Patch) {
        self.bind(patch, self.here());
    }

    /// `jmp` to a place that already has its address, when this code lies at `base`.
    pub fn jmp_to(&mut self, base: u64, target: u64) {
        let patch = self.jmp();
        self.bind_outside(patch, base, target);
    }

    /// `call` of a place that already has its address.
    pub fn call_to(&mut self, base: u64, target: u64) {
        self.raw(&[0xe8, 0, 0, 0, 0]);
        let patch = Patch(self.here() - 4);
        self.bind_outside(patch, base, target);
    }

    fn bind_outside(&mut self, patch: Patch, base: u64, target: u64) {
        // All generated code of a CPU lies in one mapping of far less than 2 GiB.
        let distance = target.wrapping_sub(base.wrapping_add(patch.0 as u64 + 4)) as i64 as i32;
        self.bytes[patch.0..patch.0 + 4].copy_from_slice(&distance.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, FastFormatter};

    fn text(build: impl Fn(&mut Asm)) -> String {
        let mut asm = Asm::default();
        build(&mut asm);
        let mut decoder = Decoder::with_ip(64, &asm.bytes, 0, DecoderOptions::NONE);
        let mut lines = Vec::new();
        while decoder.can_decode() {
            let mut line = String::new();
            FastFormatter::new().format(&decoder.decode(), &mut line);
            lines.push(line);
        }
        lines.join("; ")
    }

    #[test]
    fn memory_operands_are_encoded_as_written() {
        assert_eq!(text(|a| a.load(host::R15, Mem::State(0x88))), "mov r15,gs:[88h]");
        assert_eq!(text(|a| a.store(Mem::Base(host::R12, 0), host::RAX)), "mov [r12],rax");
        assert_eq!(text(|a| a.lea(host::RAX, Mem::Base(host::R13, 0))), "lea rax,[r13]");
        assert_eq!(
            text(|a| a.lea(host::RAX, Mem::Indexed(Some(host::R13), host::R12, 3, -8))),
            "lea rax,[r13+r12*8-8h]"
        );
        assert_eq!(text(|a| a.lea(host::RCX, Mem::Indexed(None, host::R10, 1, 0x1000))), "lea rcx,[r10*2+1000h]");
    }

    #[test]
    fn immediates_take_the_form_that_holds_them() {
        assert_eq!(text(|a| a.mov_imm(host::R11, 7)), "mov r11d,7h");
        assert_eq!(text(|a| a.mov_imm(host::RAX, 1 << 40)), "mov rax,10000000000h");
        assert_eq!(text(|a| a.group_imm(true, group::CMP, host::RAX, 4088)), "cmp rax,0FF8h");
        assert_eq!(text(|a| a.cmp_mem_imm(Mem::Base(host::RCX, 0), 5)), "cmp dword ptr [rcx],5h");
        assert_eq!(text(|a| a.test_mem_imm(Mem::State(16), 3)), "test byte ptr gs:[10h],3h");
    }
}
