//! Operands of the slow path: registers, immediates, memory in every addressing mode, and the stack.
//!
//! Everything a segment checks is checked here: present, type, limit (SDM vol. 3A §5.2–5.3). In 64-bit mode nothing of
//! that exists and only FS and GS have bases.

use iced_x86::{Instruction, OpKind, Register};

use crate::cpu::{CodeSize, Cpu, slot};
use crate::fault::{Exception, Outcome, vector};
use crate::mmu::Word;
use crate::state::{attribute, gpr, seg};

/// What an access through a segment wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Touch {
    Read,
    Write,
}

/// All ones in the low `bytes` (1, 2, 4 or 8) bytes.
#[inline]
pub(crate) fn size_mask(bytes: usize) -> u64 {
    if bytes >= 8 { u64::MAX } else { (1 << (bytes * 8)) - 1 }
}

/// The segment register number of an iced register that is one.
pub(crate) fn segment_index(register: Register) -> usize {
    (register as usize).wrapping_sub(Register::ES as usize) % 6
}

/// Bytes of the address size of an instruction's explicit memory operand.
fn address_size(insn: &Instruction) -> usize {
    let register = match (insn.memory_base(), insn.memory_index()) {
        (Register::None, index) => index,
        (base, _) => base,
    };
    match register {
        Register::None => match insn.memory_displ_size() {
            2 => 2,
            8 => 8,
            _ => 4,
        },
        other => other.size(),
    }
}

impl Cpu {
    /// In 64-bit mode proper, not compatibility mode.
    #[inline]
    pub(crate) fn flat(&self) -> bool {
        self.code_size == CodeSize::Bits64
    }

    /// The offset within its segment of an instruction's memory operand.
    pub(crate) fn memory_offset(&self, insn: &Instruction) -> u64 {
        let displacement = insn.memory_displacement64();
        let base = insn.memory_base();
        if matches!(base, Register::RIP | Register::EIP) {
            // The decoder has added the address it decoded at, which need not be the address we run at.
            let target = displacement.wrapping_sub(insn.next_ip()).wrapping_add(self.next_rip);
            return target & size_mask(base.size());
        }
        let mut offset = displacement;
        if base != Register::None {
            offset = offset.wrapping_add(self.regs[base.number() % 16]);
        }
        let index = insn.memory_index();
        if index != Register::None {
            let scaled = self.regs[index.number() % 16].wrapping_mul(u64::from(insn.memory_index_scale()));
            offset = offset.wrapping_add(scaled);
        }
        offset & size_mask(address_size(insn))
    }

    /// The linear address of an instruction's memory operand of `size` bytes, checked against its segment.
    pub(crate) fn memory_address(&mut self, insn: &Instruction, size: u64, touch: Touch) -> Outcome<u64> {
        let offset = self.memory_offset(insn);
        self.linear(segment_index(insn.memory_segment()), offset, size, touch)
    }

    /// The linear address of `size` bytes at `offset` in a segment, after the segment's checks.
    #[inline]
    pub(crate) fn linear(&mut self, segment: usize, offset: u64, size: u64, touch: Touch) -> Outcome<u64> {
        let address = self.regs[slot::SEGMENT_BASES + segment].wrapping_add(offset);
        if self.flat() {
            return Ok(address);
        }
        self.check_segment(segment, offset, size, touch)?;
        Ok(address & 0xffff_ffff)
    }

    fn check_segment(&mut self, segment: usize, offset: u64, size: u64, touch: Touch) -> Outcome<()> {
        if self.segment_allows(segment, offset, size, touch) {
            return Ok(());
        }
        let vector = if segment == seg::SS { vector::SS } else { vector::GP };
        self.fail(Exception::with_error(vector, 0))
    }

    /// Whether the segment's type and limit allow the access.
    pub(super) fn segment_allows(&self, index: usize, offset: u64, size: u64, touch: Touch) -> bool {
        let segment = self.segments[index];
        let last = offset + (size - 1);
        if !self.real_segments() {
            let code = segment.has(attribute::CODE);
            let readable = !code || segment.has(attribute::WRITABLE);
            let writable = !code && segment.has(attribute::WRITABLE);
            let permitted = if touch == Touch::Write { writable } else { readable };
            if !segment.has(attribute::PRESENT) || !permitted {
                return false;
            }
        }
        let expand_down = !segment.has(attribute::CODE) && segment.has(attribute::CONFORMING);
        if expand_down {
            let top = if segment.has(attribute::BIG) { 0xffff_ffff } else { 0xffff };
            return offset > u64::from(segment.limit) && last <= top;
        }
        last <= u64::from(segment.limit)
    }

    /// The value of a general register, zero-extended.
    pub(crate) fn register(&self, register: Register) -> u64 {
        let full = self.regs[register.full_register().number() % 16];
        if (Register::AH..=Register::BH).contains(&register) {
            return full >> 8 & 0xff;
        }
        full & size_mask(register.size())
    }

    /// Writes a general register; a 32-bit write clears the upper half.
    pub(crate) fn set_register(&mut self, register: Register, value: u64) {
        let slot = &mut self.regs[register.full_register().number() % 16];
        if (Register::AH..=Register::BH).contains(&register) {
            *slot = *slot & !0xff00 | (value & 0xff) << 8;
            return;
        }
        *slot = match register.size() {
            1 => *slot & !0xff | value & 0xff,
            2 => *slot & !0xffff | value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        };
    }

    /// Loads `size` (1, 2, 4 or 8) bytes at a linear address.
    pub(crate) fn load_sized(&mut self, address: u64, size: usize) -> Outcome<u64> {
        match size {
            1 => self.load::<u8>(address).map(u64::from),
            2 => self.load::<u16>(address).map(u64::from),
            4 => self.load::<u32>(address).map(u64::from),
            _ => self.load::<u64>(address),
        }
    }

    /// Stores the low `size` (1, 2, 4 or 8) bytes of `value` at a linear address.
    pub(crate) fn store_sized(&mut self, address: u64, size: usize, value: u64) -> Outcome<()> {
        match size {
            1 => self.store(address, value as u8),
            2 => self.store(address, value as u16),
            4 => self.store(address, value as u32),
            _ => self.store(address, value),
        }
    }

    /// Reads the memory operand as `size` bytes.
    pub(crate) fn load_memory(&mut self, insn: &Instruction, size: usize) -> Outcome<u64> {
        let address = self.memory_address(insn, size as u64, Touch::Read)?;
        self.load_sized(address, size)
    }

    /// Writes the memory operand as `size` bytes.
    pub(crate) fn store_memory(&mut self, insn: &Instruction, size: usize, value: u64) -> Outcome<()> {
        let address = self.memory_address(insn, size as u64, Touch::Write)?;
        self.store_sized(address, size, value)
    }

    /// Reads operand `index`: a register, or memory as `size` bytes, or an immediate (sign-extended as encoded).
    pub(crate) fn read_operand(&mut self, insn: &Instruction, index: u32, size: usize) -> Outcome<u64> {
        match insn.op_kind(index) {
            OpKind::Register => Ok(self.register(insn.op_register(index)) & size_mask(size)),
            OpKind::Memory => self.load_memory(insn, size),
            _ => Ok(insn.try_immediate(index).unwrap_or(0)),
        }
    }

    /// Writes operand `index`: a register at its own size, or memory as `size` bytes.
    pub(crate) fn write_operand(&mut self, insn: &Instruction, index: u32, size: usize, value: u64) -> Outcome<()> {
        match insn.op_kind(index) {
            OpKind::Register => {
                self.set_register(insn.op_register(index), value);
                Ok(())
            }
            _ => self.store_memory(insn, size, value),
        }
    }

    /// The stack pointer, as wide as the stack.
    #[inline]
    pub(crate) fn stack_pointer(&self) -> u64 {
        self.regs[gpr::RSP] & self.stack_mask
    }

    /// Sets the stack pointer, leaving what lies beyond the stack's width.
    #[inline]
    pub(crate) fn set_stack_pointer(&mut self, value: u64) {
        let mask = self.stack_mask;
        self.regs[gpr::RSP] =
            if mask == 0xffff { self.regs[gpr::RSP] & !0xffff | value & 0xffff } else { value & mask };
    }

    /// Turns a non-canonical stack address into #SS(0).
    fn stack_fault<T>(&mut self, outcome: Outcome<T>) -> Outcome<T> {
        if outcome.is_err()
            && let Some(exception) = &mut self.exception
            && exception.segment_dependent
        {
            *exception = Exception::with_error(vector::SS, 0);
        }
        outcome
    }

    /// Reads the stack at `pointer` (already as wide as the stack).
    pub(crate) fn load_stack(&mut self, pointer: u64, size: usize) -> Outcome<u64> {
        let address = self.linear(seg::SS, pointer & self.stack_mask, size as u64, Touch::Read)?;
        let loaded = self.load_sized(address, size);
        self.stack_fault(loaded)
    }

    /// Writes the stack at `pointer`.
    pub(crate) fn store_stack(&mut self, pointer: u64, size: usize, value: u64) -> Outcome<()> {
        let address = self.linear(seg::SS, pointer & self.stack_mask, size as u64, Touch::Write)?;
        let stored = self.store_sized(address, size, value);
        self.stack_fault(stored)
    }

    /// Pushes `size` bytes.
    pub(crate) fn push(&mut self, size: usize, value: u64) -> Outcome<()> {
        let pointer = self.stack_pointer().wrapping_sub(size as u64) & self.stack_mask;
        self.store_stack(pointer, size, value)?;
        self.set_stack_pointer(pointer);
        Ok(())
    }

    /// Pops `size` bytes.
    pub(crate) fn pop(&mut self, size: usize) -> Outcome<u64> {
        let pointer = self.stack_pointer();
        let value = self.load_stack(pointer, size)?;
        self.set_stack_pointer(pointer.wrapping_add(size as u64));
        Ok(value)
    }
}

/// Reads ahead on the stack without moving the stack pointer, so that an instruction that pops several values changes
/// nothing until all its checks have passed.
pub(crate) struct Popper {
    pub pointer: u64,
    pub size: usize,
}

impl Popper {
    pub fn new(cpu: &Cpu, size: usize) -> Popper {
        Popper { pointer: cpu.stack_pointer(), size }
    }

    /// The next value of the popper's size.
    pub fn pop(&mut self, cpu: &mut Cpu) -> Outcome<u64> {
        let value = cpu.load_stack(self.pointer, self.size)?;
        self.skip(self.size as u64);
        Ok(value)
    }

    /// Passes over `bytes`.
    pub fn skip(&mut self, bytes: u64) {
        self.pointer = self.pointer.wrapping_add(bytes);
    }
}

/// Writes downwards from a stack top that is not the current one yet.
pub(crate) struct Pusher {
    /// Base of the stack segment.
    pub base: u64,
    /// Offset within it.
    pub pointer: u64,
    pub mask: u64,
    pub size: usize,
    /// Linear addresses are this wide.
    pub linear_mask: u64,
}

impl Pusher {
    /// Pushes one value with the rights of the selected translations.
    pub fn push(&mut self, cpu: &mut Cpu, value: u64) -> Outcome<()> {
        let pointer = self.pointer.wrapping_sub(self.size as u64) & self.mask;
        let address = self.base.wrapping_add(pointer) & self.linear_mask;
        let stored = cpu.store_sized(address, self.size, value);
        cpu.stack_fault(stored)?;
        self.pointer = pointer;
        Ok(())
    }
}

/// Loads a value of a descriptor table or task state segment.
pub(crate) fn load_table<T: Word>(cpu: &mut Cpu, address: u64) -> Outcome<T> {
    let address = if cpu.long_mode() { address } else { address & 0xffff_ffff };
    cpu.load_system(address)
}
