//! Masked moves and gathers, element by element.
//!
//! The host would touch elements on pages that the guest has not mapped as well as those it has; here every element is
//! an access of its own, made or not as its mask says (SDM vol. 2, VMASKMOV, VPMASKMOV, VPGATHER, MASKMOVDQU).

use std::arch::asm;

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::special::{implicit_size, linear};
use super::thunk::Thunk;
use crate::cpu::Cpu;
use crate::fault::Outcome;
use crate::op::Op;
use crate::state::{Vector, gpr};

/// Whether the operands are a combination that exists: a gather's destination, index and mask must differ.
pub(super) fn is_valid(instruction: &Instruction) -> bool {
    if !instruction.is_vsib() {
        return true;
    }
    let numbers =
        [instruction.op0_register(), instruction.memory_index(), instruction.op2_register()].map(|r| r.number());
    numbers[0] != numbers[1] && numbers[1] != numbers[2] && numbers[0] != numbers[2]
}

fn element(vector: &Vector, index: usize, size: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes[..size].copy_from_slice(&vector.0[index * size..(index + 1) * size]);
    u64::from_le_bytes(bytes)
}

fn set_element(vector: &mut Vector, index: usize, size: usize, value: u64) {
    vector.0[index * size..(index + 1) * size].copy_from_slice(&value.to_le_bytes()[..size]);
}

fn sign(value: u64, size: usize) -> bool {
    value >> (8 * size - 1) & 1 != 0
}

fn load(cpu: &mut Cpu, address: u64, size: usize) -> Outcome<u64> {
    match size {
        1 => cpu.load::<u8>(address).map(u64::from),
        4 => cpu.load::<u32>(address).map(u64::from),
        _ => cpu.load::<u64>(address),
    }
}

fn store(cpu: &mut Cpu, address: u64, size: usize, value: u64) -> Outcome<()> {
    match size {
        1 => cpu.store::<u8>(address, value as u8),
        4 => cpu.store::<u32>(address, value as u32),
        _ => cpu.store::<u64>(address, value),
    }
}

/// VMASKMOVPS, VMASKMOVPD, VPMASKMOVD, VPMASKMOVQ: loads and stores.
pub(super) fn masked_move(cpu: &mut Cpu, op: &Op, thunk: &Thunk) -> Outcome<()> {
    let instruction = &thunk.instruction;
    let size = if matches!(instruction.mnemonic(), Mnemonic::Vmaskmovps | Mnemonic::Vpmaskmovd) { 4 } else { 8 };
    let mask = cpu.fpu.vectors[instruction.op1_register().number()];
    let active = |index: &usize| sign(element(&mask, *index, size), size);
    let address = op.address(cpu);
    let count = thunk.len as usize / size;
    let at = |index: usize| address.wrapping_add((index * size) as u64);
    if instruction.op0_kind() == OpKind::Memory {
        let source = cpu.fpu.vectors[instruction.op2_register().number()];
        return store_elements(cpu, (0..count).filter(active).map(|i| (at(i), element(&source, i, size))), size);
    }
    let mut result = Vector::default();
    for index in (0..count).filter(active) {
        let value = load(cpu, at(index), size)?;
        set_element(&mut result, index, size, value);
    }
    cpu.fpu.vectors[instruction.op0_register().number()] = result;
    Ok(())
}

/// Stores all (address, value) pairs or, on a fault, none.
fn store_elements(cpu: &mut Cpu, elements: impl Iterator<Item = (u64, u64)> + Clone, size: usize) -> Outcome<()> {
    for (address, _) in elements.clone() {
        cpu.span_write(address, size as u64)?;
    }
    for (address, value) in elements {
        store(cpu, address, size, value)?;
    }
    Ok(())
}

/// MASKMOVDQU and VMASKMOVDQU: the bytes of the first operand that the second selects, to [RDI].
pub(super) fn maskmovdqu(cpu: &mut Cpu, _: &Op, thunk: &Thunk) -> Outcome<()> {
    let instruction = &thunk.instruction;
    let source = cpu.fpu.vectors[instruction.op1_register().number()];
    let mask = cpu.fpu.vectors[instruction.op2_register().number()];
    store_masked_bytes(cpu, instruction, &source.0[..16], &mask.0[..16])
}

/// MASKMOVQ: the same with MMX registers.
pub(super) fn maskmovq(cpu: &mut Cpu, _: &Op, thunk: &Thunk) -> Outcome<()> {
    let registers = mmx_registers();
    let instruction = &thunk.instruction;
    let source = registers[instruction.op1_register().number()];
    let mask = registers[instruction.op2_register().number()];
    store_masked_bytes(cpu, instruction, &source, &mask)
}

fn store_masked_bytes(cpu: &mut Cpu, instruction: &Instruction, source: &[u8], mask: &[u8]) -> Outcome<()> {
    let address = linear(cpu, instruction, cpu.regs[gpr::RDI], implicit_size(instruction));
    let active = source.iter().zip(mask).enumerate().filter(|(_, (_, mask))| **mask & 0x80 != 0);
    let elements = active.map(|(index, (byte, _))| (address.wrapping_add(index as u64), u64::from(*byte)));
    store_elements(cpu, elements, 1)
}

/// MM0–MM7. Like every MMX instruction, marks all x87 registers as in use.
fn mmx_registers() -> [[u8; 8]; 8] {
    let mut registers = [[0; 8]; 8];
    // SAFETY: writes the 64 bytes of `registers`.
    unsafe {
        asm!(
            "movq [{0}], mm0", "movq [{0} + 8], mm1", "movq [{0} + 16], mm2", "movq [{0} + 24], mm3",
            "movq [{0} + 32], mm4", "movq [{0} + 40], mm5", "movq [{0} + 48], mm6", "movq [{0} + 56], mm7",
            in(reg) registers.as_mut_ptr(),
            options(nostack, preserves_flags)
        );
    }
    registers
}

/// The AVX2 gathers. Elements complete from the lowest up; a fault leaves those before it done and their masks clear.
pub(super) fn gather(cpu: &mut Cpu, _: &Op, thunk: &Thunk) -> Outcome<()> {
    let instruction = &thunk.instruction;
    let (index_size, size) = match instruction.mnemonic() {
        Mnemonic::Vpgatherdd | Mnemonic::Vgatherdps => (4, 4),
        Mnemonic::Vpgatherdq | Mnemonic::Vgatherdpd => (4, 8),
        Mnemonic::Vpgatherqd | Mnemonic::Vgatherqps => (8, 4),
        _ => (8, 8),
    };
    let to = instruction.op0_register().number();
    let mask = instruction.op2_register().number();
    let indices = cpu.fpu.vectors[instruction.memory_index().number()];
    // As many elements as the narrower of index and destination has room for.
    let count = (instruction.memory_index().size() / index_size).min(instruction.op0_register().size() / size);
    for index in 0..count {
        if sign(element(&cpu.fpu.vectors[mask], index, size), size) {
            let address = element_address(cpu, instruction, element(&indices, index, index_size), index_size);
            let value = load(cpu, address, size)?;
            set_element(&mut cpu.fpu.vectors[to], index, size, value);
        }
        set_element(&mut cpu.fpu.vectors[mask], index, size, 0);
    }
    cpu.fpu.vectors[to].0[count * size..].fill(0);
    cpu.fpu.vectors[mask].0.fill(0);
    Ok(())
}

fn element_address(cpu: &Cpu, instruction: &Instruction, index: u64, index_size: usize) -> u64 {
    let index = if index_size == 4 { i64::from(index as i32) } else { index as i64 } as u64;
    let base = instruction.memory_base();
    let start = if base == iced_x86::Register::None { 0 } else { cpu.regs[base.full_register().number()] };
    let scaled = index.wrapping_mul(u64::from(instruction.memory_index_scale()));
    let effective = start.wrapping_add(scaled).wrapping_add(instruction.memory_displacement64());
    let size = match (base.size(), instruction.memory_displ_size()) {
        (0, 4) => 4,
        (0, _) => 8,
        (size, _) => size,
    };
    linear(cpu, instruction, effective, size)
}
