//! Port input and output: IN, OUT, INS, OUTS, with the permission bitmap (SDM vol. 1 chapter 19).

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::operand::{Touch, load_table, segment_index, size_mask};
use super::{Next, flags};
use crate::cpu::{Cpu, slot};
use crate::fault::{Exception, Outcome};
use crate::mmu::PAGE;
use crate::state::{bits, gpr, rflags, seg};

/// Where the 32- and 64-bit task state segment say the I/O permission bitmap begins.
const BITMAP_BASE: u64 = 102;
/// Bytes that one step of REP INS or REP OUTS moves at most: within one page, and short enough for interrupts.
const BATCH: usize = 512;

/// Whether the program may use `size` ports from `port` on.
fn check_permission(cpu: &mut Cpu, port: u16, size: usize) -> Outcome<()> {
    let trusted = cpu.cpl <= flags::iopl(cpu) && cpu.rflags_system & rflags::VM == 0;
    if cpu.cr0 & bits::CR0_PE == 0 || trusted || bitmap_allows(cpu, port, size)? {
        return Ok(());
    }
    cpu.fail(Exception::gp(0))
}

fn bitmap_allows(cpu: &mut Cpu, port: u16, size: usize) -> Outcome<bool> {
    let limit = u64::from(cpu.tr.limit);
    let wide = cpu.tr.attributes & 0x8 != 0;
    if !wide || BITMAP_BASE + 1 > limit {
        return Ok(false);
    }
    let bitmap = u64::from(load_table::<u16>(cpu, cpu.tr.base.wrapping_add(BITMAP_BASE))?);
    let offset = bitmap + u64::from(port / 8);
    if offset + 1 > limit {
        return Ok(false);
    }
    let byte = |cpu: &mut Cpu, at: u64| load_table::<u8>(cpu, cpu.tr.base.wrapping_add(at)).map(u16::from);
    let map = byte(cpu, offset)? | byte(cpu, offset + 1)? << 8;
    let wanted = ((1_u16 << size) - 1) << (port % 8);
    Ok(map & wanted == 0)
}

/// Bytes that IN and OUT move.
fn width(insn: &Instruction) -> usize {
    match insn.code() {
        Code::In_AL_imm8 | Code::In_AL_DX | Code::Out_imm8_AL | Code::Out_DX_AL => 1,
        Code::In_AX_imm8 | Code::In_AX_DX | Code::Out_imm8_AX | Code::Out_DX_AX => 2,
        _ => 4,
    }
}

/// IN.
pub(crate) fn input(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    let size = width(insn);
    let port = port_operand(cpu, insn, 1);
    check_permission(cpu, port, size)?;
    let mut data = [0; 4];
    cpu.outside(|platform, id| platform.port_read(id, port, &mut data[..size]));
    cpu.set_register(insn.op0_register(), u64::from(u32::from_le_bytes(data)));
    Ok(Next::Sync)
}

/// OUT.
pub(crate) fn output(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    let size = width(insn);
    let port = port_operand(cpu, insn, 0);
    check_permission(cpu, port, size)?;
    let data = (cpu.regs[gpr::RAX] as u32).to_le_bytes();
    cpu.outside(|platform, id| platform.port_write(id, port, &data[..size]));
    Ok(Next::Sync)
}

fn port_operand(cpu: &Cpu, insn: &Instruction, index: u32) -> u16 {
    match insn.op_kind(index) {
        OpKind::Register => cpu.regs[gpr::RDX] as u16,
        _ => u16::from(insn.immediate8()),
    }
}

/// One INS or OUTS: what moves, from or to where, how often.
struct Transfer {
    port: u16,
    /// Bytes of an element.
    size: usize,
    /// Segment of the memory side, and the index register.
    segment: usize,
    pointer: usize,
    address_mask: u64,
    backward: bool,
}

impl Transfer {
    fn new(cpu: &Cpu, insn: &Instruction, input: bool) -> Transfer {
        let size = match insn.mnemonic() {
            Mnemonic::Insb | Mnemonic::Outsb => 1,
            Mnemonic::Insw | Mnemonic::Outsw => 2,
            _ => 4,
        };
        let kind = insn.op_kind(if input { 0 } else { 1 });
        let address_bytes = match kind {
            OpKind::MemorySegSI | OpKind::MemoryESDI => 2,
            OpKind::MemorySegESI | OpKind::MemoryESEDI => 4,
            _ => 8,
        };
        Transfer {
            port: cpu.regs[gpr::RDX] as u16,
            size,
            segment: if input { seg::ES } else { segment_index(insn.memory_segment()) },
            pointer: if input { gpr::RDI } else { gpr::RSI },
            address_mask: size_mask(address_bytes),
            backward: cpu.rflags_system & rflags::DF != 0,
        }
    }

    /// Elements to move now, given that `left` are due: several if they lie upwards within one page and the segment.
    fn batch(&self, cpu: &Cpu, offset: u64, left: u64, touch: Touch) -> u64 {
        if self.backward || left < 2 || cpu.traps_iterations() {
            return left.min(1);
        }
        let address = cpu.regs[slot::SEGMENT_BASES + self.segment].wrapping_add(offset);
        let room = (PAGE - address % PAGE).min(self.address_mask - offset).min(BATCH as u64);
        let count = (room / self.size as u64).clamp(1, left);
        let fits = cpu.flat() || cpu.segment_allows(self.segment, offset, count * self.size as u64, touch);
        if fits { count } else { 1 }
    }

    /// Moves the index register past `count` elements.
    fn advance(&self, cpu: &mut Cpu, count: u64) {
        let bytes = count * self.size as u64;
        let step = if self.backward { bytes.wrapping_neg() } else { bytes };
        self.set(cpu, self.pointer, cpu.regs[self.pointer].wrapping_add(step));
    }

    fn set(&self, cpu: &mut Cpu, register: usize, value: u64) {
        let mask = self.address_mask;
        cpu.regs[register] = if mask == 0xffff { cpu.regs[register] & !mask | value & mask } else { value & mask };
    }
}

/// INS and OUTS, with or without REP. A repetition goes on after a look at pending interrupts.
pub(crate) fn string(cpu: &mut Cpu, insn: &Instruction, input: bool) -> Outcome<Next> {
    let transfer = Transfer::new(cpu, insn, input);
    let repeated = insn.has_rep_prefix() || insn.has_repne_prefix();
    let left = if repeated { cpu.regs[gpr::RCX] & transfer.address_mask } else { 1 };
    check_permission(cpu, transfer.port, transfer.size)?;
    if left == 0 {
        return Ok(Next::Sync);
    }
    let offset = cpu.regs[transfer.pointer] & transfer.address_mask;
    let touch = if input { Touch::Write } else { Touch::Read };
    let count = transfer.batch(cpu, offset, left, touch);
    let bytes = count as usize * transfer.size;
    let address = cpu.linear(transfer.segment, offset, bytes as u64, touch)?;
    if input {
        take(cpu, &transfer, address, bytes)?
    } else {
        give(cpu, &transfer, address, bytes)?
    }
    transfer.advance(cpu, count);
    if !repeated {
        return Ok(Next::Sync);
    }
    transfer.set(cpu, gpr::RCX, left - count);
    Ok(if left == count { Next::Sync } else { Next::Again })
}

fn take(cpu: &mut Cpu, transfer: &Transfer, address: u64, bytes: usize) -> Outcome<()> {
    // The memory is checked before the device gives anything away.
    cpu.span_write(address, bytes as u64)?;
    let mut buffer = [0; BATCH];
    cpu.outside(|platform, id| {
        for element in buffer[..bytes].chunks_mut(transfer.size) {
            platform.port_read(id, transfer.port, element);
        }
    });
    cpu.write_bytes(address, &buffer[..bytes])
}

fn give(cpu: &mut Cpu, transfer: &Transfer, address: u64, bytes: usize) -> Outcome<()> {
    let mut buffer = [0; BATCH];
    cpu.read_bytes(address, &mut buffer[..bytes])?;
    cpu.outside(|platform, id| {
        for element in buffer[..bytes].chunks(transfer.size) {
            platform.port_write(id, transfer.port, element);
        }
    });
    Ok(())
}
