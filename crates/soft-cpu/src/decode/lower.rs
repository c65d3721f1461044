//! From instructions to operations.

use iced_x86::{FlowControl, Instruction, MemorySize, Mnemonic, OpKind, Register};

use super::MAX_LENGTH;
use super::flags;
use super::operands::*;
use crate::cpu::{CodeSize, Cpu, slot};
use crate::fault::Exception;
use crate::op::{Flow, Op, check, offset};
use crate::ops::{alu, branch, divide, fused, moves, shift, stack, string};
use crate::system;
use crate::system::operand::Touch;

/// Computes an address that is not the common kind (address size below 64 bits, or segments that count) into
/// [`slot::ADDRESS`]. `imm` points to the instruction, `dst` holds the access, `disp` its size.
extern "C" fn address(cpu: &mut Cpu, op: &Op) -> Flow {
    // SAFETY: it lies in the arena of the blocks, as the operation does.
    let insn = unsafe { &*(op.imm as *const Instruction) };
    // Addresses relative to the instruction pointer are relative to the next instruction.
    cpu.next_rip = op.ip(cpu).wrapping_add(insn.len() as u64);
    let touch = if op.dst == 0 { Touch::Read } else { Touch::Write };
    cpu.regs[slot::ADDRESS] = check!(cpu.memory_address(insn, op.disp, touch));
    Flow::Next
}

/// Runs an instruction that has no operation of its own.
extern "C" fn slow(cpu: &mut Cpu, op: &Op) -> Flow {
    // SAFETY: it lies in the arena of the blocks, as the operation does.
    let insn = unsafe { &*(op.imm as *const Instruction) };
    cpu.rip = op.ip(cpu);
    cpu.next_rip = cpu.rip.wrapping_add(insn.len() as u64);
    if cpu.code_size != CodeSize::Bits64 {
        cpu.next_rip &= if cpu.code_size == CodeSize::Bits16 { 0xffff } else { 0xffff_ffff };
    }
    match check!(system::execute(cpu, insn)) {
        system::Next::Continue => Flow::Next,
        system::Next::Jump => Flow::Sync,
        system::Next::Sync => {
            cpu.rip = cpu.next_rip;
            Flow::Sync
        }
        system::Next::Halt => {
            cpu.rip = cpu.next_rip;
            Flow::Halt
        }
        system::Next::Again => Flow::Again,
    }
}

/// Bytes that are no instruction.
extern "C" fn invalid(cpu: &mut Cpu, _op: &Op) -> Flow {
    check!(cpu.fail(Exception::ud()))
}

/// An instruction of more than 15 bytes.
extern "C" fn too_long(cpu: &mut Cpu, _op: &Op) -> Flow {
    check!(cpu.fail(Exception::gp(0)))
}

/// A block under construction.
pub(super) struct Builder<'a> {
    pub cpu: &'a mut Cpu,
    pub rip: u64,
    pub code: CodeSize,
    pub ops: Vec<Op>,
    pub instructions: Vec<Instruction>,
}

impl Builder<'_> {
    /// Makes the operations; returns the flags that may be read before the block sets them.
    pub fn lower(&mut self) -> u32 {
        let mut closed = false;
        let (live, before) = flags::live_flags(&self.instructions);
        for (index, live) in live.into_iter().enumerate() {
            if self.fused(index) {
                closed = true;
                break;
            }
            closed = self.instruction(index, live);
        }
        if self.instructions.is_empty() {
            // No instruction could be decoded at all: more than 15 bytes of prefixes.
            self.ops.push(Op::new(too_long, 0));
            closed = true;
        }
        if !closed {
            let end = self.instructions.last().map_or(0, |insn| insn.next_ip().wrapping_sub(self.rip) & 0xffff);
            let mut op = Op::new(branch::fall_through, end as u16);
            op.imm = end;
            self.ops.push(op);
        }
        before
    }

    /// Appends the operations of one instruction; true if they end the block.
    fn instruction(&mut self, index: usize, live: bool) -> bool {
        let insn = self.instructions[index];
        let start = insn.ip().wrapping_sub(self.rip) as u16;
        if insn.is_invalid() {
            self.ops.push(Op::new(if insn.len() >= MAX_LENGTH { too_long } else { invalid }, start));
            return true;
        }
        let operands = self.operands(&insn);
        if is_branch(&insn) && self.branch(&insn, &operands, start) {
            return true;
        }
        if self.hot(&insn, &operands, live, start) || self.native(index, start) {
            return false;
        }
        let mut op = Op::new(slow, start);
        op.imm = self.keep(&insn);
        // Only for what a fault is called: the address is not computed from the operation.
        let segment = if has_memory(&insn) { memory_segment(&insn, self.code) } else { Register::None };
        op.segment = segment_slot(segment);
        self.ops.push(op);
        false
    }

    /// Appends the last two instructions as one operation, if they are arithmetic and a branch on it.
    fn fused(&mut self, index: usize) -> bool {
        if index + 2 != self.instructions.len() || self.code != CodeSize::Bits64 {
            return false;
        }
        let (insn, jcc) = (self.instructions[index], self.instructions[index + 1]);
        if !jcc.is_jcc_short_or_near() || insn.is_invalid() {
            return false;
        }
        let operands = self.operands(&insn);
        let Some(handler) = fused::select(&insn, &operands, &jcc) else { return false };
        let mut op = Op::new(handler, insn.ip().wrapping_sub(self.rip) as u16);
        self.fill(&insn, &operands, &mut op);
        let next = jcc.next_ip().wrapping_sub(self.rip);
        op.disp = fused::ends(jcc.near_branch_target().wrapping_sub(self.rip), next);
        self.ops.push(op);
        true
    }

    /// Keeps an instruction for an operation that needs all of it: few do, and it is larger than they are.
    fn keep(&mut self, insn: &Instruction) -> u64 {
        self.cpu.blocks.keep_one(*insn).as_ptr() as u64
    }

    fn operands(&self, insn: &Instruction) -> Operands {
        let string_segment = match insn.segment_prefix() {
            Register::None => Register::DS,
            Register::ES | Register::CS | Register::SS if self.code == CodeSize::Bits64 => Register::DS,
            segment => segment,
        };
        Operands {
            shape: shape(insn),
            size: operand_size(insn, 0),
            source_size: operand_size(insn, 1),
            address_size: address_size(insn, self.code),
            string_source: segment_slot(string_segment),
        }
    }

    fn branch(&mut self, insn: &Instruction, operands: &Operands, start: u16) -> bool {
        let size = branch::branch_size(insn, self.code);
        let info = branch::BranchInfo {
            size,
            target: insn.near_branch_target().wrapping_sub(self.rip),
            next: insn.next_ip().wrapping_sub(self.rip),
            address_size: operands.address_size,
        };
        let mut op = Op::new(moves::nothing, start);
        let before = self.ops.len();
        if operands.shape == Shape::Mem {
            self.memory(insn, &mut op);
        } else if operands.shape == Shape::Reg {
            op.dst = register_offset(insn.op0_register());
        }
        if operands.shape != Shape::Mem && matches!(insn.mnemonic(), Mnemonic::Call | Mnemonic::Ret) {
            op.segment = crate::op::SEGMENT_SS;
        }
        if branch::select(insn, operands, &info, &mut op).is_none() {
            self.ops.truncate(before);
            return false;
        }
        self.ops.push(op);
        true
    }

    /// Appends a hot operation if there is one for the instruction.
    fn hot(&mut self, insn: &Instruction, operands: &Operands, live: bool, start: u16) -> bool {
        let mut op = Op::new(moves::nothing, start);
        if string::select(insn, operands, &mut op).is_some() {
            self.ops.push(op);
            return true;
        }
        if operands.shape == Shape::Other {
            return false;
        }
        let handler = moves::select(insn, operands)
            .or_else(|| alu::select(insn, operands, live))
            .or_else(|| shift::select(insn, operands, live))
            .or_else(|| stack::select(insn, operands, self.code))
            .or_else(|| divide::select(insn, operands));
        let Some(handler) = handler else { return false };
        op.run = handler;
        self.fill(insn, operands, &mut op);
        self.ops.push(op);
        true
    }

    /// Sets the operands of a hot operation.
    fn fill(&mut self, insn: &Instruction, operands: &Operands, op: &mut Op) {
        for index in 0..insn.op_count() {
            match kind(insn, index) {
                Kind::Reg if index == 0 => op.dst = register_offset(insn.op_register(index)),
                Kind::Reg => op.src = register_offset(insn.op_register(index)),
                Kind::Imm => op.imm = insn.immediate(index),
                _ => {}
            }
        }
        if insn.mnemonic() == Mnemonic::Lea {
            self.lea(insn, operands, op);
        } else if has_memory(insn) {
            self.memory(insn, op);
        }
        let pushes_value = insn.mnemonic() == Mnemonic::Push && operands.shape != Shape::Mem;
        if pushes_value
            || insn.mnemonic() == Mnemonic::Leave
            || insn.mnemonic() == Mnemonic::Pop && operands.shape != Shape::Mem
        {
            op.segment = crate::op::SEGMENT_SS;
        }
    }

    fn lea(&mut self, insn: &Instruction, operands: &Operands, op: &mut Op) {
        self.plain_address(insn, op);
        op.segment = offset(slot::ZERO);
        op.imm = match operands.address_size {
            2 => 0xffff,
            4 => 0xffff_ffff,
            _ => u64::MAX,
        };
    }

    /// Base, index, scale and displacement as they stand.
    fn plain_address(&self, insn: &Instruction, op: &mut Op) {
        let base = insn.memory_base();
        op.disp = insn.memory_displacement64();
        if matches!(base, Register::RIP | Register::EIP) {
            op.base = offset(slot::BLOCK_IP);
            op.disp = op.disp.wrapping_sub(self.rip);
        } else if base != Register::None {
            op.base = register_offset(base.full_register());
        }
        if insn.memory_index() != Register::None {
            op.index = register_offset(insn.memory_index().full_register());
            op.shift = insn.memory_index_scale().trailing_zeros() as u8;
        }
        op.segment = segment_slot(memory_segment(insn, self.code));
    }

    /// Sets the memory operand of `op`, with an address operation before it where the address is not the common kind.
    fn memory(&mut self, insn: &Instruction, op: &mut Op) {
        if self.code == CodeSize::Bits64 && address_size(insn, self.code) == 8 {
            self.plain_address(insn, op);
            return;
        }
        let mut before = Op::new(address, op.start);
        before.imm = self.keep(insn);
        before.disp = access_size(insn);
        before.dst = u8::from(writes_memory(insn));
        before.segment = segment_slot(memory_segment(insn, self.code));
        self.ops.push(before);
        op.base = offset(slot::ADDRESS);
    }

    /// Appends a native operation if the instruction can run as itself.
    fn native(&mut self, index: usize, start: u16) -> bool {
        let insn = self.instructions[index];
        let shared = self.cpu.shared.clone();
        let Some(thunk) = shared.native.compile(&insn) else { return false };
        let mut op = Op::new(moves::nothing, start);
        op.imm = std::ptr::from_ref(thunk) as u64;
        if has_memory(&insn) {
            self.memory(&insn, &mut op);
            // For bit indices, which move the address within its segment.
            op.src = segment_slot(memory_segment(&insn, self.code));
        }
        op.run = thunk.handler(&op);
        self.ops.push(op);
        true
    }
}

fn is_branch(insn: &Instruction) -> bool {
    insn.flow_control() != FlowControl::Next
}

pub(crate) fn has_memory(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|index| insn.op_kind(index) == OpKind::Memory)
}

fn access_size(insn: &Instruction) -> u64 {
    match insn.memory_size() {
        MemorySize::Unknown => 1,
        size => (size.size() as u64).max(1),
    }
}

fn writes_memory(insn: &Instruction) -> bool {
    let mut factory = iced_x86::InstructionInfoFactory::new();
    use iced_x86::OpAccess::*;
    factory
        .info(insn)
        .used_memory()
        .iter()
        .any(|memory| matches!(memory.access(), Write | CondWrite | ReadWrite | ReadCondWrite))
}
