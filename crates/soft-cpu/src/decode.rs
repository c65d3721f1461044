//! From instruction bytes to a [`Block`].

use iced_x86::{Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, MemorySize, Mnemonic, OpKind, Register, RflagsBits};
use queztl_guest_memory::line_mask;

use crate::block::{Block, MAX_INSTRUCTIONS, PageStamp, SecondPage, key};
use crate::cpu::{CodeSize, Cpu, slot};
use crate::fault::{Exception, Outcome, vector};
use crate::mmu::{PAGE, PAGE_MASK};
use crate::op::{Flow, Op, check, offset};
use crate::ops::{alu, branch, divide, fused, moves, shift, stack, string};
use crate::system;
use crate::system::operand::Touch;

/// Longest instruction (SDM vol. 2A §2.3.11).
const MAX_LENGTH: usize = 15;

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
enum Kind {
    Reg,
    Mem,
    Imm,
    Other,
}

fn kind(insn: &Instruction, index: u32) -> Kind {
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

fn shape(insn: &Instruction) -> Shape {
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

fn operand_size(insn: &Instruction, index: u32) -> usize {
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
fn memory_segment(insn: &Instruction, code: CodeSize) -> Register {
    let segment = insn.memory_segment();
    if code != CodeSize::Bits64 || matches!(segment, Register::FS | Register::GS) {
        return segment;
    }
    match insn.memory_base() {
        Register::RSP | Register::RBP | Register::ESP | Register::EBP => Register::SS,
        _ => Register::DS,
    }
}

fn segment_slot(register: Register) -> u8 {
    match register {
        Register::None => offset(slot::ZERO),
        _ => offset(slot::SEGMENT_BASES + system::operand::segment_index(register)),
    }
}

/// Computes an address that is not the common kind (address size below 64 bits, or segments that count) into
/// [`slot::ADDRESS`]. `imm` points to the instruction, `dst` holds the access, `disp` its size.
extern "C" fn address(cpu: &mut Cpu, op: &Op) -> Flow {
    // SAFETY: the block that owns this operation owns the instruction.
    let insn = unsafe { &*(op.imm as *const Instruction) };
    // Addresses relative to the instruction pointer are relative to the next instruction.
    cpu.next_rip = op.ip(cpu).wrapping_add(insn.len() as u64);
    let touch = if op.dst == 0 { Touch::Read } else { Touch::Write };
    // For operands relative to the instruction pointer.
    cpu.next_rip = op.ip(cpu).wrapping_add(insn.len() as u64);
    cpu.regs[slot::ADDRESS] = check!(cpu.memory_address(insn, op.disp, touch));
    Flow::Next
}

/// Runs an instruction that has no operation of its own.
extern "C" fn slow(cpu: &mut Cpu, op: &Op) -> Flow {
    // SAFETY: the block that owns this operation owns the instruction.
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

/// The code bytes of a block: the rest of a page and, where an instruction needs it, the start of the next.
struct Bytes {
    buffer: [u8; PAGE as usize + MAX_LENGTH],
    len: usize,
}

/// A block under construction.
struct Builder<'a> {
    cpu: &'a mut Cpu,
    rip: u64,
    code: CodeSize,
    ops: Vec<Op>,
    instructions: Box<[Instruction]>,
}

impl Cpu {
    /// The block that starts at `rip`, decoding it if need be; with `single`, of one instruction only.
    pub(crate) fn find_block(&mut self, single: bool) -> Outcome<*mut Block> {
        let rip = self.rip;
        let linear = self.code_address(rip);
        let gpa = self.fetch_address(linear)?;
        let key = key(gpa, self.code_size, single);
        if let Some(block) = self.blocks.get(key)
            && self.second_page_holds(block, linear)?
        {
            return Ok(block);
        }
        self.build(rip, linear, gpa, single)
    }

    /// The linear address of instruction address `rip`.
    pub(crate) fn code_address(&self, rip: u64) -> u64 {
        match self.code_size {
            CodeSize::Bits64 => rip,
            _ => self.segments[crate::state::seg::CS].base.wrapping_add(rip) & 0xffff_ffff,
        }
    }

    fn second_page_holds(&mut self, block: *mut Block, linear: u64) -> Outcome<bool> {
        // SAFETY: the cache returned a live block.
        let Some(second) = (unsafe { (*block).second }) else { return Ok(true) };
        let gpa = self.fetch_address((linear & PAGE_MASK).wrapping_add(PAGE))?;
        Ok(gpa == second.gpa && second.stamp_holds())
    }

    #[cold]
    fn build(&mut self, rip: u64, linear: u64, gpa: u64, single: bool) -> Outcome<*mut Block> {
        let limit = if single { 1 } else { MAX_INSTRUCTIONS };
        let mut bytes = Bytes { buffer: [0; PAGE as usize + MAX_LENGTH], len: 0 };
        let stamp = self.watch_code(gpa, single, &mut bytes)?;
        let mut instructions = decode(&bytes, rip, self.code_size, limit);
        let mut second = None;
        if instructions.is_empty() {
            // The first instruction runs into the next page: a block of its own.
            second = Some(self.second_page(linear, &mut bytes)?);
            instructions = decode(&bytes, rip, self.code_size, 1);
        }
        let code = self.code_size;
        let mut builder = Builder { cpu: self, rip, code, ops: Vec::with_capacity(instructions.len() + 2), instructions: instructions.into() };
        builder.lower();
        let (ops, instructions) = (builder.ops.into_boxed_slice(), builder.instructions);
        let count = instructions.len().max(1) as u32;
        let links = [std::ptr::null_mut(); 2];
        let key = key(gpa, code, single);
        Ok(self.blocks.insert(Block { ops, instructions, key, stamp, second, links, count }))
    }

    /// Copies the code bytes from `gpa` to the end of its page, after making sure that every later write to them will
    /// be noticed.
    fn watch_code(&mut self, gpa: u64, single: bool, bytes: &mut Bytes) -> Outcome<PageStamp> {
        let Some(page) = self.guest_ram().host_page(gpa) else {
            // Code outside RAM: the machine has none, and what a bus returns there is no instruction.
            return self.fail(Exception::new(vector::UD));
        };
        let inside = gpa % PAGE;
        // As many bytes as a block can hold; a long page would mark lines that are never decoded.
        let most = if single { MAX_LENGTH as u64 } else { (MAX_INSTRUCTIONS * 6) as u64 };
        let len = (PAGE - inside).min(most);
        let generation = page.tracker.generation(page.index);
        let shared = self.shared.clone();
        let mark = || page.tracker.add_code(page.index, line_mask(inside, len));
        shared.watch(mark, || self.drop_writes_everywhere());
        // SAFETY: the bytes lie within the page.
        unsafe {
            std::ptr::copy_nonoverlapping(page.host.add(inside as usize), bytes.buffer.as_mut_ptr(), len as usize);
        }
        bytes.len = len as usize;
        Ok(PageStamp::new(page.tracker.generation_cell(page.index), generation))
    }

    /// Appends the start of the next page to the bytes.
    fn second_page(&mut self, linear: u64, bytes: &mut Bytes) -> Outcome<SecondPage> {
        let gpa = self.fetch_address((linear & PAGE_MASK).wrapping_add(PAGE))?;
        let mut next = Bytes { buffer: [0; PAGE as usize + MAX_LENGTH], len: 0 };
        let stamp = self.watch_code(gpa, true, &mut next)?;
        bytes.buffer[bytes.len..bytes.len + next.len].copy_from_slice(&next.buffer[..next.len]);
        bytes.len += next.len;
        Ok(SecondPage { gpa, stamp })
    }

    /// No CPU keeps a fast write path to a page that now holds decoded code.
    fn drop_writes_everywhere(&mut self) {
        self.tlbs.drop_writes();
        let shared = self.shared.clone();
        let id = self.id;
        shared.drop_writes_elsewhere(id, || {
            if self.control.attention() & crate::control::DROP_WRITES != 0 {
                self.answer_drop_writes();
            }
        });
    }
}

impl SecondPage {
    fn stamp_holds(&self) -> bool {
        self.stamp.holds()
    }
}

/// Decodes up to `limit` instructions, as far as the bytes go.
fn decode(bytes: &Bytes, rip: u64, code: CodeSize, limit: usize) -> Vec<Instruction> {
    let mut decoder = Decoder::with_ip(code.bitness(), &bytes.buffer[..bytes.len], rip, DecoderOptions::NONE);
    let mut instructions = Vec::with_capacity(limit.min(16));
    while instructions.len() < limit && decoder.can_decode() {
        let insn = decoder.decode();
        if decoder.last_error() == DecoderError::NoMoreBytes {
            break;
        }
        instructions.push(insn);
        if ends_block(&insn) {
            break;
        }
    }
    instructions
}

fn ends_block(insn: &Instruction) -> bool {
    insn.is_invalid() || insn.flow_control() != FlowControl::Next || system::ends_block(insn)
}

/// The flags an instruction reads or changes, as far as arithmetic goes.
const ARITHMETIC: u32 =
    RflagsBits::CF | RflagsBits::PF | RflagsBits::AF | RflagsBits::ZF | RflagsBits::SF | RflagsBits::OF;

impl Builder<'_> {
    fn lower(&mut self) {
        let mut closed = false;
        for (index, live) in self.live_flags().into_iter().enumerate() {
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
    }

    /// For each instruction, whether the flags it sets may be read before they are all set again. An instruction that
    /// can fault counts as reading them: the handler sees RFLAGS.
    fn live_flags(&self) -> Vec<bool> {
        let mut live = ARITHMETIC;
        let mut result = vec![true; self.instructions.len()];
        for (index, insn) in self.instructions.iter().enumerate().rev() {
            result[index] = insn.rflags_modified() & live != 0;
            // A conditional writer, such as a shift by CL, may leave them all.
            let certain = if is_variable_shift(insn) { 0 } else { insn.rflags_modified() };
            live &= !certain;
            live |= insn.rflags_read() & ARITHMETIC;
            if may_fault(insn) {
                live = ARITHMETIC;
            }
        }
        result
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
        op.imm = self.pointer(index);
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

    fn pointer(&self, index: usize) -> u64 {
        (&raw const self.instructions[index]) as u64
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
        if pushes_value || insn.mnemonic() == Mnemonic::Leave || insn.mnemonic() == Mnemonic::Pop && operands.shape != Shape::Mem {
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
        let index = self.instructions.iter().position(|other| other.ip() == insn.ip()).unwrap_or(0);
        let mut before = Op::new(address, op.start);
        before.imm = self.pointer(index);
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
        let mut op = Op::new(thunk.handler(), start);
        op.imm = std::ptr::from_ref(thunk) as u64;
        if has_memory(&insn) {
            self.memory(&insn, &mut op);
        }
        self.ops.push(op);
        true
    }
}

fn is_branch(insn: &Instruction) -> bool {
    insn.flow_control() != FlowControl::Next
}

fn has_memory(insn: &Instruction) -> bool {
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

/// Shifts and rotates by CL change no flag if the count is zero.
fn is_variable_shift(insn: &Instruction) -> bool {
    use Mnemonic::*;
    let by_cl = insn.op_count() >= 2 && insn.op_kind(insn.op_count() - 1) == OpKind::Register;
    let masked_to_zero = insn.op_count() >= 2 && kind(insn, insn.op_count() - 1) == Kind::Imm;
    matches!(insn.mnemonic(), Shl | Sal | Shr | Sar | Rol | Ror | Rcl | Rcr | Shld | Shrd) && (by_cl || masked_to_zero)
        || insn.has_rep_prefix()
        || insn.has_repne_prefix()
}

/// Whether an instruction can raise an exception or is carried out by code that looks at the flags.
fn may_fault(insn: &Instruction) -> bool {
    use Mnemonic::*;
    has_memory(insn) && insn.mnemonic() != Lea
        || !matches!(
            insn.mnemonic(),
            Mov | Movzx | Movsx | Movsxd | Lea | Add | Or | Adc | Sbb | And | Sub | Xor | Cmp | Test | Inc | Dec | Neg
                | Not | Imul | Shl | Sal | Shr | Sar | Rol | Ror | Bswap | Cbw | Cwde | Cdqe | Cwd | Cdq | Cqo | Nop
                | Xchg | Endbr64
        ) && !moves::is_setcc(insn)
            && !moves::is_cmovcc(insn)
}
