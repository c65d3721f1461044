//! Instructions that are carried out in Rust: which, and the small ones among them.

use iced_x86::{Code, CpuidFeature, Instruction, Mnemonic, OpKind, Register};

use super::environment::{MXCSR_WRITABLE, guest_mxcsr, set_guest_mxcsr};
use super::thunk::{Memory, Special, Thunk, Unit};
use super::{bcd, features, gate, masked, x87};
use crate::cpu::{CodeSize, Cpu, slot};
use crate::fault::{Exception, Outcome};
use crate::op::Op;
use crate::state::gpr;

/// Whether `instruction` has a handler here.
pub(super) fn is_special(instruction: &Instruction) -> bool {
    select(instruction).is_some()
}

/// Whether the handler works out the operand's address itself, so that the address is part of the form.
pub(super) fn keeps_address(instruction: &Instruction) -> bool {
    use Mnemonic::*;
    instruction.is_vsib() || matches!(instruction.mnemonic(), Maskmovq | Maskmovdqu | Vmaskmovdqu | Xlatb)
}

/// The handler and the unit of an instruction.
fn select(instruction: &Instruction) -> Option<(Special, Unit)> {
    use Mnemonic::*;
    let x87 = |special: Special| Some((special, Unit::X87));
    match instruction.mnemonic() {
        Wait => Some((x87::wait, Unit::Wait)),
        Fninit => x87(x87::initialise),
        Fnclex => x87(x87::clear_exceptions),
        Fnstcw => x87(x87::store_control),
        Fldcw => x87(x87::load_control),
        Fnstsw if instruction.code() == Code::Fnstsw_AX => x87(x87::status_to_ax),
        Fnstsw => x87(x87::store_status),
        Fnstenv | Fnsave => x87(x87::store_environment),
        Fldenv | Frstor => x87(x87::load_environment),
        Ldmxcsr => Some((load_mxcsr, Unit::Sse)),
        Vldmxcsr => Some((load_mxcsr, Unit::Avx)),
        Stmxcsr => Some((store_mxcsr, Unit::Sse)),
        Vstmxcsr => Some((store_mxcsr, Unit::Avx)),
        Vzeroupper => Some((zero_upper, Unit::Avx)),
        Vzeroall => Some((zero_all, Unit::Avx)),
        Maskmovq => Some((masked::maskmovq, Unit::Mmx)),
        Maskmovdqu => Some((masked::maskmovdqu, Unit::Sse)),
        Vmaskmovdqu => Some((masked::maskmovdqu, Unit::Avx)),
        Vmaskmovps | Vmaskmovpd | Vpmaskmovd | Vpmaskmovq => Some((masked::masked_move, Unit::Avx)),
        Vpgatherdd | Vpgatherdq | Vpgatherqd | Vpgatherqq | Vgatherdps | Vgatherdpd | Vgatherqps | Vgatherqpd => {
            Some((masked::gather, Unit::Avx))
        }
        Xlatb => Some((translate_byte, Unit::None)),
        Aaa => Some((bcd::aaa, Unit::None)),
        Aas => Some((bcd::aas, Unit::None)),
        Daa => Some((bcd::daa, Unit::None)),
        Das => Some((bcd::das, Unit::None)),
        Aam => Some((bcd::aam, Unit::None)),
        Aad => Some((bcd::aad, Unit::None)),
        // Hints of features that the guest is not promised, encoded where older processors do nothing; some processors
        // refuse some of the reserved ones, so they are not left to the host.
        Rdsspd | Rdsspq | Cldemote | Prefetchit0 | Prefetchit1 | Bndcl | Bndcu | Bndcn | Bndmk | Bndmov | Bndldx
        | Bndstx | Reservednop => Some((nothing, Unit::None)),
        _ => None,
    }
}

/// The thunk of a special instruction.
pub(super) fn thunk(instruction: &Instruction) -> Option<Thunk> {
    let (special, unit) = select(instruction)?;
    let vector = matches!(unit, Unit::Avx);
    if vector && !(features::available(instruction) && masked::is_valid(instruction)) {
        return None;
    }
    if unit == Unit::Avx && instruction.cpuid_features().contains(&CpuidFeature::AVX512F) {
        return None;
    }
    let traps = if special as usize == masked::maskmovq as *const () as usize { super::trap::X87 } else { 0 };
    Some(Thunk {
        entry: std::ptr::null(),
        direct: None,
        len: instruction.memory_size().size() as u32,
        align_mask: 0,
        memory: Memory::Special,
        unit,
        gate: unit.gate(),
        traps,
        needs: gate::needs(unit.gate(), traps),
        locked: false,
        bit_index: None,
        special,
        instruction: *instruction,
    })
}

/// In place of a handler where there is none.
pub(super) fn none(cpu: &mut Cpu, _: &Op, _: &Thunk) -> Outcome<()> {
    cpu.fail(Exception::ud())
}

/// An instruction without effect.
fn nothing(_: &mut Cpu, _: &Op, _: &Thunk) -> Outcome<()> {
    Ok(())
}

/// LDMXCSR: #GP for reserved bits.
fn load_mxcsr(cpu: &mut Cpu, op: &Op, _: &Thunk) -> Outcome<()> {
    let value = cpu.load::<u32>(op.address(cpu))?;
    if value & !MXCSR_WRITABLE != 0 {
        return cpu.fail(Exception::gp(0));
    }
    set_guest_mxcsr(cpu, value);
    Ok(())
}

/// STMXCSR.
fn store_mxcsr(cpu: &mut Cpu, op: &Op, _: &Thunk) -> Outcome<()> {
    let (address, value) = (op.address(cpu), guest_mxcsr(cpu));
    cpu.store::<u32>(address, value)
}

/// The vector registers that exist: sixteen in 64-bit mode, else eight.
fn vector_count(cpu: &Cpu) -> usize {
    if cpu.code_size == CodeSize::Bits64 { 16 } else { 8 }
}

fn zero_upper(cpu: &mut Cpu, _: &Op, _: &Thunk) -> Outcome<()> {
    let count = vector_count(cpu);
    cpu.fpu.vectors[..count].iter_mut().for_each(|v| v.0[16..].fill(0));
    Ok(())
}

fn zero_all(cpu: &mut Cpu, _: &Op, _: &Thunk) -> Outcome<()> {
    let count = vector_count(cpu);
    cpu.fpu.vectors[..count].iter_mut().for_each(|v| v.0.fill(0));
    Ok(())
}

/// XLATB: AL becomes the byte at [RBX + AL].
fn translate_byte(cpu: &mut Cpu, _: &Op, thunk: &Thunk) -> Outcome<()> {
    let table = cpu.regs[gpr::RBX].wrapping_add(cpu.regs[gpr::RAX] & 0xff);
    let address = linear(cpu, &thunk.instruction, table, thunk.instruction.memory_base().size());
    let value = cpu.load::<u8>(address)?;
    cpu.regs[gpr::RAX] = (cpu.regs[gpr::RAX] & !0xff) | u64::from(value);
    Ok(())
}

/// The linear address of an effective address of `size` bytes, in the segment of the instruction's memory operand.
pub(super) fn linear(cpu: &Cpu, instruction: &Instruction, effective: u64, size: usize) -> u64 {
    let effective = match size {
        2 => effective & 0xffff,
        4 => effective & 0xffff_ffff,
        _ => effective,
    };
    let base = match instruction.memory_segment() {
        Register::None => 0,
        segment => cpu.regs[slot::SEGMENT_BASES + segment.number()],
    };
    let address = base.wrapping_add(effective);
    if cpu.code_size == CodeSize::Bits64 { address } else { address & 0xffff_ffff }
}

/// The address size, in bytes, of an implicit operand at [RDI].
pub(super) fn implicit_size(instruction: &Instruction) -> usize {
    match instruction.op0_kind() {
        OpKind::MemorySegDI => 2,
        OpKind::MemorySegEDI => 4,
        _ => 8,
    }
}
