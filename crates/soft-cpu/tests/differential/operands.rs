//! Register values under which an instruction's memory operands lie where they should.

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register, UsedMemory,
};

use crate::arena::{CODE, DATA, ENTRY, READ_ONLY, is_safe};
use crate::case::{FLAGS, Registers, X87};
use crate::forms::decode;
use crate::rng::Rng;

const RCX: usize = 1;
const RDX: usize = 2;
const RSP: usize = 4;
const RBP: usize = 5;

/// Random registers, nothing said about addresses.
pub fn registers(rng: &mut Rng) -> Registers {
    let mut before = Registers {
        gpr: std::array::from_fn(|_| rng.integer()),
        flags: rng.next() & FLAGS,
        rip: ENTRY,
        ymm: std::array::from_fn(|_| {
            let mut value = [0; 32];
            value[..16].copy_from_slice(&rng.lane());
            value[16..].copy_from_slice(&rng.lane());
            value
        }),
        mxcsr: mxcsr(rng),
        x87: x87(rng),
    };
    if rng.chance(70) {
        before.flags &= !0x400;
    }
    if rng.chance(15) {
        // Equal operands.
        let (from, to) = (rng.below(16) as usize, rng.below(16) as usize);
        before.gpr[to] = before.gpr[from];
        before.ymm[to] = before.ymm[from];
    }
    before
}

fn mxcsr(rng: &mut Rng) -> u32 {
    match rng.below(20) {
        0 => rng.next() as u32 & 0xffff,
        1..10 => 0x1f80 | rng.next() as u32 & 0xe07f,
        _ => 0x1f80,
    }
}

fn x87(rng: &mut Rng) -> X87 {
    let control = match rng.below(20) {
        0 => rng.next() as u16 & 0x1f7f | 0x40,
        1..10 => 0x7f | rng.next() as u16 & 0x1f00,
        _ => 0x37f,
    };
    let mut status = rng.next() as u16 & if rng.chance(50) { 0x7f7f } else { 0x7f40 };
    if status & !control & 0x3f != 0 {
        if rng.chance(70) {
            status &= !0x3f;
        } else {
            status |= 0x8080;
        }
    }
    let tags = match rng.below(4) {
        0 => 0xff,
        1 => 0,
        _ => rng.next() as u8,
    };
    X87 { control, status, tags, st: std::array::from_fn(|_| rng.extended()) }
}

/// An address to aim a memory operand of `len` bytes at.
fn target(rng: &mut Rng, len: u64) -> u64 {
    let end = READ_ONLY + 0x1000;
    let crossing = |rng: &mut Rng, boundary: u64| boundary - rng.below(len.max(1) + 2);
    match rng.below(40) {
        0 => rng.pick(&[0x0001_2345_6789_abc0, 0x7fff_8000_0000_0000, 0xf000_0000_0000_1000]) + rng.below(64),
        1 => DATA - 1 - rng.below(200),
        2 => crossing(rng, end),
        3 => end + rng.below(64),
        4 => READ_ONLY + 0x200 + rng.below(0x800),
        5 => crossing(rng, READ_ONLY),
        6 => 0x1000 + rng.below(0x1000),
        7..14 => crossing(rng, DATA + 0x1000),
        14..24 => (DATA + 0x400 + rng.below(0x1600)) & !31,
        _ => DATA + 0x400 + rng.below(0x1600),
    }
}

/// A place among the breakpoints, away from the instruction.
fn branch_target(rng: &mut Rng) -> u64 {
    let offset = rng.below(0x700);
    if rng.chance(50) { CODE + offset } else { CODE + 0x880 + offset }
}

/// Points the instruction's memory operands at the arena by choosing registers, and its displacement where there is no
/// register to choose. Returns the bytes to use, or `None` if no harmless operands were found.
pub fn aim(bytes: &[u8], before: &mut Registers, fs_base: u64, rng: &mut Rng) -> Option<Vec<u8>> {
    let mut bytes = bytes.to_vec();
    let instruction = decode(&bytes);
    // A call through the stack pointer would need it to lead to code and to data at once.
    if instruction.flow_control() == FlowControl::IndirectCall
        && instruction.op0_register().full_register() == Register::RSP
    {
        return None;
    }
    bound_counts(&instruction, before, rng);
    patch_branch(&instruction, &mut bytes, rng);
    let bit_index = bit_index(&instruction);
    for _ in 0..6 {
        let instruction = decode(&bytes);
        let segment =
            |instruction: &Instruction| if instruction.memory_segment() == Register::FS { fs_base } else { 0 };
        for operand in 0..instruction.op_count() {
            aim_operand(&instruction, operand, &mut bytes, before, segment(&instruction), rng);
        }
        let instruction = decode(&bytes);
        if instruction.is_stack_instruction() {
            let address = target(rng, 8);
            let pointer = if instruction.mnemonic() == Mnemonic::Leave { RBP } else { RSP };
            before.gpr[pointer] = address;
        }
        if let Some((register, size)) = bit_index
            && rng.chance(80)
        {
            // Bits within a few hundred bytes either way.
            let index = (rng.below(4000) as i64 - 2000) as u64;
            let keep = if size == 64 { 0 } else { !0 << size };
            before.gpr[register] = before.gpr[register] & keep | index & !keep;
        }
        if all_safe(&instruction, before, fs_base, bit_index) {
            return Some(bytes);
        }
    }
    None
}

fn is_string(instruction: &Instruction) -> bool {
    instruction.is_string_instruction()
}

fn bound_counts(instruction: &Instruction, before: &mut Registers, rng: &mut Rng) {
    if is_string(instruction) && (instruction.has_rep_prefix() || instruction.has_repne_prefix()) {
        before.gpr[RCX] = if rng.chance(20) { 0 } else { rng.below(40) };
    }
    if matches!(instruction.mnemonic(), Mnemonic::Div | Mnemonic::Idiv) && rng.chance(70) {
        before.gpr[RDX] = if rng.chance(50) { 0 } else { rng.below(16) };
    }
    if instruction.is_vsib() {
        let index = &mut before.ymm[instruction.memory_index().number()];
        let size = if instruction.is_vsib64() { 8 } else { 4 };
        for element in index.chunks_mut(size) {
            let value = rng.below(400) as i64 - 200;
            element.copy_from_slice(&value.to_le_bytes()[..size]);
        }
    }
}

/// Sends direct branches to the breakpoints around the instruction.
fn patch_branch(instruction: &Instruction, bytes: &mut [u8], rng: &mut Rng) {
    let near = matches!(instruction.op0_kind(), OpKind::NearBranch64 | OpKind::NearBranch32 | OpKind::NearBranch16);
    if instruction.op_count() == 0 || !near {
        return;
    }
    let decoder_offsets = offsets(bytes);
    let (at, size) = (decoder_offsets.immediate_offset(), decoder_offsets.immediate_size());
    if size == 1 {
        let distance = rng.pick(&[-100_i8, -40, 40, 100]) as u8;
        bytes[at] = distance;
    } else {
        let distance = branch_target(rng).wrapping_sub(instruction.next_ip());
        bytes[at..at + size].copy_from_slice(&distance.to_le_bytes()[..size]);
    }
}

fn offsets(bytes: &[u8]) -> iced_x86::ConstantOffsets {
    let mut decoder = Decoder::with_ip(64, bytes, ENTRY, DecoderOptions::NONE);
    let instruction = decoder.decode();
    decoder.get_constant_offsets(&instruction)
}

fn aim_operand(
    instruction: &Instruction,
    operand: u32,
    bytes: &mut [u8],
    before: &mut Registers,
    segment: u64,
    rng: &mut Rng,
) {
    let len = instruction.memory_size().size() as u64;
    let address = target(rng, len).wrapping_sub(segment);
    match instruction.op_kind(operand) {
        OpKind::Memory => aim_memory(instruction, address, bytes, before, rng),
        OpKind::MemorySegRSI | OpKind::MemorySegESI => before.gpr[6] = address,
        OpKind::MemorySegRDI | OpKind::MemorySegEDI | OpKind::MemoryESRDI | OpKind::MemoryESEDI => {
            before.gpr[7] = address
        }
        OpKind::Register if instruction.flow_control() == FlowControl::IndirectBranch => {
            before.gpr[instruction.op_register(operand).full_register().number()] = branch_target(rng);
        }
        OpKind::Register if instruction.flow_control() == FlowControl::IndirectCall => {
            before.gpr[instruction.op_register(operand).full_register().number()] = branch_target(rng);
        }
        _ => {}
    }
}

fn aim_memory(instruction: &Instruction, address: u64, bytes: &mut [u8], before: &mut Registers, rng: &mut Rng) {
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let displacement = instruction.memory_displacement64();
    let scale = u64::from(instruction.memory_index_scale());
    let has_base = base != Register::None && !matches!(base, Register::RIP | Register::EIP);
    let index = (index != Register::None && !index.is_vector_register()).then(|| index.full_register().number());
    let base_number = base.full_register().number();
    match (has_base, index) {
        (true, Some(index)) if index == base_number => {
            before.gpr[index] = address.wrapping_sub(displacement) / (1 + scale);
        }
        (true, index) => {
            let indexed = index.map_or(0, |index| {
                if rng.chance(50) {
                    before.gpr[index] = rng.below(64);
                }
                let value = before.gpr[index];
                let value = if base.size() == 4 { value & 0xffff_ffff } else { value };
                value.wrapping_mul(scale)
            });
            let value = address.wrapping_sub(displacement).wrapping_sub(indexed);
            // The upper half does not count in 32-bit addresses.
            before.gpr[base_number] = if base.size() == 4 { value & 0xffff_ffff | rng.next() << 32 } else { value };
        }
        (false, index) => {
            let indexed = index.map_or(0, |index| {
                before.gpr[index] = rng.below(64);
                before.gpr[index].wrapping_mul(scale)
            });
            let offsets = offsets(bytes);
            let (at, size) = (offsets.displacement_offset(), offsets.displacement_size());
            let origin = if base == Register::None { 0 } else { instruction.next_ip() };
            let value = address.wrapping_sub(indexed).wrapping_sub(origin);
            bytes[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
        }
    }
}

/// BT, BTS, BTR, BTC with a register index into memory: the register and the operand size in bits.
fn bit_index(instruction: &Instruction) -> Option<(usize, u32)> {
    let bit_test = matches!(instruction.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc);
    if !bit_test || instruction.op0_kind() != OpKind::Memory || instruction.op1_kind() != OpKind::Register {
        return None;
    }
    let register = instruction.op1_register();
    Some((register.full_register().number(), register.size() as u32 * 8))
}

/// Every linear address that the instruction will access first, with the length to check around it.
pub fn accesses(instruction: &Instruction, before: &Registers, fs_base: u64) -> Vec<(u64, u64)> {
    let mut factory = InstructionInfoFactory::new();
    let used: Vec<UsedMemory> = factory.info(instruction).used_memory().to_vec();
    let mut result = Vec::new();
    for memory in &used {
        let elements = if instruction.is_vsib() { elements(instruction) } else { 1 };
        for element in 0..elements {
            let address = memory.virtual_address(element, |register, element, size| {
                Some(value_of(register, element, size, before, fs_base))
            });
            if let Some(address) = address {
                result.push((address, memory.memory_size().size() as u64));
            }
        }
    }
    result
}

fn elements(instruction: &Instruction) -> usize {
    let size = if instruction.is_vsib64() { 8 } else { 4 };
    instruction.memory_index().size() / size
}

fn value_of(register: Register, element: usize, size: usize, before: &Registers, fs_base: u64) -> u64 {
    if register.is_vector_register() {
        let bytes = &before.ymm[register.number()][element * size..(element + 1) * size];
        let mut value = [0; 8];
        value[..size].copy_from_slice(bytes);
        return if size == 4 {
            i64::from(i32::from_le_bytes([value[0], value[1], value[2], value[3]])) as u64
        } else {
            u64::from_le_bytes(value)
        };
    }
    if register.is_segment_register() {
        return if register == Register::FS { fs_base } else { 0 };
    }
    let full = before.gpr[register.full_register().number()];
    match register.size() {
        1 => full & 0xff,
        2 => full & 0xffff,
        4 => full & 0xffff_ffff,
        _ => full,
    }
}

fn all_safe(instruction: &Instruction, before: &Registers, fs_base: u64, bit_index: Option<(usize, u32)>) -> bool {
    let repeats = if is_string(instruction) && (instruction.has_rep_prefix() || instruction.has_repne_prefix()) {
        before.gpr[RCX] & 0xffff_ffff
    } else {
        1
    };
    if repeats > 64 {
        return false;
    }
    accesses(instruction, before, fs_base).iter().all(|&(address, len)| {
        let address = match bit_index {
            Some((register, size)) => indexed(address, before.gpr[register], size),
            None => address,
        };
        // Elements go up or down from the first.
        let reach = (repeats.max(1) - 1) * len.max(1);
        let len = len.max(1);
        is_safe(address, len)
            && (reach == 0 || (is_safe(address.wrapping_sub(reach), len) && is_safe(address.wrapping_add(reach), len)))
    })
}

fn indexed(address: u64, index: u64, size: u32) -> u64 {
    let index = match size {
        16 => i64::from(index as i16),
        32 => i64::from(index as i32),
        _ => index as i64,
    };
    address.wrapping_add_signed((index >> size.ilog2()) * i64::from(size / 8))
}

/// Whether the instruction finds a branch target in memory.
pub fn branches_through_memory(instruction: &Instruction) -> bool {
    use FlowControl::*;
    match instruction.flow_control() {
        IndirectBranch | IndirectCall => instruction.op0_kind() == OpKind::Memory,
        Return => true,
        _ => false,
    }
}

/// Puts a branch target where the instruction will find it; false if that is no place to write to, and the access does
/// not fault either.
pub fn plant_branch(
    instruction: &Instruction,
    before: &Registers,
    fs_base: u64,
    data: &mut [u8],
    rng: &mut Rng,
) -> bool {
    let target = branch_target(rng).to_le_bytes();
    let accesses = accesses(instruction, before, fs_base);
    if let [(a, _), (b, _)] = accesses[..]
        && a.abs_diff(b) < 8
    {
        return false;
    }
    accesses.into_iter().all(|(address, len)| {
        let at = address.wrapping_sub(DATA) as usize;
        if len == 8 && at <= data.len() - 8 {
            data[at..at + 8].copy_from_slice(&target);
        }
        !(DATA - 8..READ_ONLY + 0x1000).contains(&address) || at <= data.len() - 8
    })
}
