//! An instruction's operands in the terms of the hot operations.

use iced_x86::{Instruction, OpKind, Register};

use crate::cpu::{CodeSize, slot};
use crate::op::offset;
use crate::system;

/// What kinds of operands an instruction has, as far as the hot operations tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    None,
    Reg,
    Mem,
    Imm,
    RegReg,
    RegImm,
    RegMem,
    MemReg,
    MemImm,
    RegRegImm,
    RegMemImm,
    Other,
}

/// An instruction's operands in the terms of the hot operations.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operands {
    pub shape: Shape,
    /// Bytes of the first operand.
    pub size: usize,
    /// Bytes of the second operand.
    pub source_size: usize,
    /// Bytes of addresses: 2, 4 or 8.
    pub address_size: u8,
    /// Byte offset of the base of a string instruction's source segment.
    pub string_source: u8,
}

fn is_general(register: Register) -> bool {
    register.is_gpr()
}

/// The byte offset of a general register in [`Cpu::regs`].
pub(crate) fn register_offset(register: Register) -> u8 {
    let low = offset(register.full_register().number());
    match register {
        Register::AH | Register::CH | Register::DH | Register::BH => offset(register.number() & 3) + 1,
        _ => low,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Reg,
    Mem,
    Imm,
    Other,
}

pub(super) fn kind(insn: &Instruction, index: u32) -> Kind {
    match insn.op_kind(index) {
        OpKind::Register if is_general(insn.op_register(index)) => Kind::Reg,
        OpKind::Memory => Kind::Mem,
        OpKind::Immediate8
        | OpKind::Immediate8_2nd
        | OpKind::Immediate16
        | OpKind::Immediate32
        | OpKind::Immediate64
        | OpKind::Immediate8to16
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64
        | OpKind::Immediate32to64 => Kind::Imm,
        _ => Kind::Other,
    }
}

pub(super) fn shape(insn: &Instruction) -> Shape {
    let at = |index| kind(insn, index);
    match insn.op_count() {
        0 => Shape::None,
        1 => match at(0) {
            Kind::Reg => Shape::Reg,
            Kind::Mem => Shape::Mem,
            Kind::Imm => Shape::Imm,
            Kind::Other => Shape::Other,
        },
        2 => match (at(0), at(1)) {
            (Kind::Reg, Kind::Reg) => Shape::RegReg,
            (Kind::Reg, Kind::Imm) => Shape::RegImm,
            (Kind::Reg, Kind::Mem) => Shape::RegMem,
            (Kind::Mem, Kind::Reg) => Shape::MemReg,
            (Kind::Mem, Kind::Imm) => Shape::MemImm,
            _ => Shape::Other,
        },
        3 => match (at(0), at(1), at(2)) {
            (Kind::Reg, Kind::Reg, Kind::Imm) => Shape::RegRegImm,
            (Kind::Reg, Kind::Mem, Kind::Imm) => Shape::RegMemImm,
            _ => Shape::Other,
        },
        _ => Shape::Other,
    }
}

pub(super) fn operand_size(insn: &Instruction, index: u32) -> usize {
    if index >= insn.op_count() {
        return 0;
    }
    match insn.op_kind(index) {
        OpKind::Register => insn.op_register(index).size(),
        OpKind::Memory => insn.memory_size().size(),
        _ => 0,
    }
}

/// The address size of an instruction in bytes.
pub(crate) fn address_size(insn: &Instruction, code: CodeSize) -> u8 {
    let default = code.bitness() as u8 / 8;
    // String instructions name the registers they use; other memory operands their base or displacement size.
    for index in 0..insn.op_count() {
        match insn.op_kind(index) {
            OpKind::MemorySegSI | OpKind::MemoryESDI | OpKind::MemorySegDI => return 2,
            OpKind::MemorySegESI | OpKind::MemoryESEDI | OpKind::MemorySegEDI => return 4,
            OpKind::MemorySegRSI | OpKind::MemoryESRDI | OpKind::MemorySegRDI => return 8,
            OpKind::Memory => return memory_address_size(insn, default),
            _ => {}
        }
    }
    match insn.code() {
        iced_x86::Code::Jcxz_rel8_16 | iced_x86::Code::Jcxz_rel8_32 => 2,
        iced_x86::Code::Jecxz_rel8_16 | iced_x86::Code::Jecxz_rel8_32 | iced_x86::Code::Jecxz_rel8_64 => 4,
        iced_x86::Code::Jrcxz_rel8_16 | iced_x86::Code::Jrcxz_rel8_64 => 8,
        _ if insn.is_loop() || insn.is_loopcc() => loop_address_size(insn),
        _ => default,
    }
}

fn loop_address_size(insn: &Instruction) -> u8 {
    use iced_x86::Code::*;
    match insn.code() {
        Loop_rel8_16_CX | Loop_rel8_32_CX | Loope_rel8_16_CX | Loope_rel8_32_CX | Loopne_rel8_16_CX
        | Loopne_rel8_32_CX => 2,
        Loop_rel8_16_RCX | Loop_rel8_64_RCX | Loope_rel8_16_RCX | Loope_rel8_64_RCX | Loopne_rel8_16_RCX
        | Loopne_rel8_64_RCX => 8,
        _ => 4,
    }
}

fn memory_address_size(insn: &Instruction, default: u8) -> u8 {
    for register in [insn.memory_base(), insn.memory_index()] {
        if register != Register::None && register.is_gpr() {
            return register.size() as u8;
        }
        match register {
            Register::RIP => return 8,
            Register::EIP => return 4,
            _ => {}
        }
    }
    match insn.memory_displ_size() {
        2 => 2,
        4 => 4,
        8 => 8,
        _ => default,
    }
}

/// The segment of an instruction's memory operand. In 64-bit mode the prefixes of the four flat ones do not count, not
/// even for whether a fault is a stack fault.
pub(super) fn memory_segment(insn: &Instruction, code: CodeSize) -> Register {
    let segment = insn.memory_segment();
    if code != CodeSize::Bits64 || matches!(segment, Register::FS | Register::GS) {
        return segment;
    }
    match insn.memory_base() {
        Register::RSP | Register::RBP | Register::ESP | Register::EBP => Register::SS,
        _ => Register::DS,
    }
}

pub(super) fn segment_slot(register: Register) -> u8 {
    match register {
        Register::None => offset(slot::ZERO),
        _ => offset(slot::SEGMENT_BASES + system::operand::segment_index(register)),
    }
}
