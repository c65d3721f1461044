//! FXSAVE, FXRSTOR and the XSAVE family (SDM vol. 1 §10.5, chapter 13; APM vol. 2 §11.5).
//!
//! Three components exist: x87, SSE and AVX. The standard layout has AVX at offset 576; the compacted one of XSAVEC has
//! it at the same place, because it is the first extended component. x87 and SSE always count as in use, AVX when an
//! upper half is not zero.
//!
//! An area crosses at most one page boundary. A fault in its second part may leave its first part written, which the
//! architecture allows: the instruction is restarted from its beginning.

use iced_x86::{Code, Instruction};

use super::operand::{Touch, segment_index};
use super::registers::check_xsave_enabled;
use super::{Next, edx_eax};
use crate::cpu::Cpu;
use crate::fault::{Exception, Outcome, vector};
use crate::mmu::Span;
use crate::native;
use crate::state::{Vector, bits};

/// XCR0 bits.
pub(crate) mod component {
    pub const X87: u64 = 1 << 0;
    pub const SSE: u64 = 1 << 1;
    pub const AVX: u64 = 1 << 2;
}
use component::{AVX, SSE, X87};

/// Bits of MXCSR that exist.
pub(crate) const MXCSR_MASK: u32 = 0xffff;

const LEGACY_BYTES: usize = 512;
/// Start of the XSAVE header, and of what follows it.
const EXTENDED: u64 = 576;
/// Bytes of the area with AVX.
pub(crate) const AREA_BYTES: u32 = 832;
/// XCOMP_BV: the area is compacted.
const COMPACTED: u64 = 1 << 63;

const MXCSR_OFFSET: usize = 24;
const REGISTERS_OFFSET: usize = 32;
const XMM_OFFSET: usize = 160;

/// Vector registers that the mode reaches.
fn vector_count(cpu: &Cpu) -> usize {
    if cpu.flat() { 16 } else { 8 }
}

fn upper_halves_used(cpu: &Cpu) -> bool {
    cpu.fpu.vectors[..16].iter().any(|vector| vector.0[16..32] != [0; 16])
}

/// XINUSE: the components that are not in their initial state.
pub(crate) fn in_use(cpu: &Cpu) -> u64 {
    X87 | SSE | if upper_halves_used(cpu) { AVX } else { 0 }
}

/// The address of the area, aligned as the instruction demands.
fn area(cpu: &mut Cpu, insn: &Instruction, bytes: u64, alignment: u64, touch: Touch) -> Outcome<u64> {
    let offset = cpu.memory_offset(insn);
    let address = cpu.linear(segment_index(insn.memory_segment()), offset, bytes, touch)?;
    if !address.is_multiple_of(alignment) {
        return cpu.fail(Exception::gp(0));
    }
    Ok(address)
}

/// The bytes of a span.
///
/// # Safety
/// The span is fresh (no platform call since it was made) and at least `N` bytes long.
unsafe fn bytes_of<'a, const N: usize>(span: Span) -> &'a mut [u8; N] {
    // SAFETY: the span leads to that many bytes of guest RAM or of the bounce buffer; nobody else holds a Rust
    // reference to either, and other CPUs' racing accesses to guest RAM are the guest's own affair.
    unsafe { &mut *span.pointer.cast::<[u8; N]>() }
}

fn check_fxsr(cpu: &mut Cpu) -> Outcome<()> {
    if cpu.cr0 & (bits::CR0_EM | bits::CR0_TS) != 0 {
        return cpu.fail(Exception::new(vector::NM));
    }
    Ok(())
}

// --- the legacy region ---------------------------------------------------------------------------------------------

/// Writes the x87 part. `wide` is the 64-bit form, in which the pointers have no selectors.
fn put_x87(cpu: &mut Cpu, area: &mut [u8; LEGACY_BYTES], wide: bool) {
    let image = &cpu.fpu.legacy;
    area[..MXCSR_OFFSET].copy_from_slice(&image[..MXCSR_OFFSET]);
    area[REGISTERS_OFFSET..XMM_OFFSET].copy_from_slice(&image[REGISTERS_OFFSET..XMM_OFFSET]);
    if !wide {
        area[12..16].fill(0);
        area[20..24].fill(0);
    }
}

fn get_x87(cpu: &mut Cpu, area: &[u8; LEGACY_BYTES], wide: bool) {
    let image = &mut cpu.fpu.legacy;
    image[..MXCSR_OFFSET].copy_from_slice(&area[..MXCSR_OFFSET]);
    image[REGISTERS_OFFSET..XMM_OFFSET].copy_from_slice(&area[REGISTERS_OFFSET..XMM_OFFSET]);
    if !wide {
        image[12..16].fill(0);
        image[20..24].fill(0);
    }
}

fn reset_x87(cpu: &mut Cpu) {
    cpu.fpu.legacy = crate::state::Fpu::default().legacy;
}

fn put_mxcsr(cpu: &Cpu, area: &mut [u8; LEGACY_BYTES]) {
    area[MXCSR_OFFSET..MXCSR_OFFSET + 4].copy_from_slice(&cpu.fpu.mxcsr.to_le_bytes());
    area[MXCSR_OFFSET + 4..MXCSR_OFFSET + 8].copy_from_slice(&MXCSR_MASK.to_le_bytes());
}

/// MXCSR as the area holds it; #GP if it has bits that do not exist.
fn get_mxcsr(cpu: &mut Cpu, area: &[u8; LEGACY_BYTES]) -> Outcome<u32> {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&area[MXCSR_OFFSET..MXCSR_OFFSET + 4]);
    let value = u32::from_le_bytes(bytes);
    if value & !MXCSR_MASK != 0 {
        return cpu.fail(Exception::gp(0));
    }
    Ok(value)
}

fn put_xmm(vectors: &[Vector], area: &mut [u8; LEGACY_BYTES]) {
    for (slot, vector) in area[XMM_OFFSET..].chunks_exact_mut(16).zip(vectors) {
        slot.copy_from_slice(&vector.0[..16]);
    }
}

fn get_xmm(vectors: &mut [Vector], area: &[u8; LEGACY_BYTES]) {
    for (slot, vector) in area[XMM_OFFSET..].chunks_exact(16).zip(vectors) {
        vector.0[..16].copy_from_slice(slot);
    }
}

fn clear_half(vectors: &mut [Vector], half: usize) {
    for vector in vectors {
        vector.0[half * 16..half * 16 + 16].fill(0);
    }
}

/// FXSAVE and FXSAVE64.
pub(crate) fn fxsave(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    check_fxsr(cpu)?;
    let address = area(cpu, insn, 512, 16, Touch::Write)?;
    native::sync_x87_out(cpu);
    let span = cpu.span_modify(address, 512)?;
    // SAFETY: the span was made just now with this length.
    let bytes = unsafe { bytes_of::<LEGACY_BYTES>(span) };
    put_x87(cpu, bytes, insn.code() == Code::Fxsave64_m512byte);
    put_mxcsr(cpu, bytes);
    let count = vector_count(cpu);
    put_xmm(&cpu.fpu.vectors[..count], bytes);
    cpu.commit(span)?;
    Ok(Next::Continue)
}

/// FXRSTOR and FXRSTOR64.
pub(crate) fn fxrstor(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    check_fxsr(cpu)?;
    let address = area(cpu, insn, 512, 16, Touch::Read)?;
    let span = cpu.span_read(address, 512)?;
    // SAFETY: the span was made just now with this length. A copy, so that the checks hold for what is used.
    let bytes = unsafe { *bytes_of::<LEGACY_BYTES>(span) };
    let mxcsr = get_mxcsr(cpu, &bytes)?;
    get_x87(cpu, &bytes, insn.code() == Code::Fxrstor64_m512byte);
    cpu.fpu.mxcsr = mxcsr;
    let count = vector_count(cpu);
    get_xmm(&mut cpu.fpu.vectors[..count], &bytes);
    native::sync_x87_in(cpu);
    Ok(Next::Continue)
}

// --- XSAVE ---------------------------------------------------------------------------------------------------------

/// The members of the family that store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Save {
    /// XSAVE.
    Plain,
    /// XSAVEOPT: components in their initial state are left out.
    Optimised,
    /// XSAVEC: so too, and the area is compacted.
    Compacted,
}

/// The first checks and the requested components.
fn request(cpu: &mut Cpu) -> Outcome<u64> {
    check_xsave_enabled(cpu)?;
    if cpu.cr0 & bits::CR0_TS != 0 {
        return cpu.fail(Exception::new(vector::NM));
    }
    Ok(edx_eax(cpu) & cpu.xcr0)
}

fn is_wide(code: Code) -> bool {
    matches!(code, Code::Xsave64_mem | Code::Xsaveopt64_mem | Code::Xsavec64_mem | Code::Xrstor64_mem)
}

/// XSAVE, XSAVEOPT and XSAVEC.
pub(crate) fn xsave(cpu: &mut Cpu, insn: &Instruction, form: Save) -> Outcome<Next> {
    let requested = request(cpu)?;
    if !offered(cpu, form) {
        return cpu.fail(Exception::ud());
    }
    let bytes = if requested & AVX != 0 { u64::from(AREA_BYTES) } else { EXTENDED };
    let address = area(cpu, insn, bytes, 64, Touch::Write)?;
    let used = in_use(cpu);
    let stored = if form == Save::Plain { requested } else { requested & used };
    let count = vector_count(cpu);
    save_header(cpu, address, requested, used, form)?;
    if stored & AVX != 0 {
        save_upper_halves(cpu, address + EXTENDED, count)?;
    }
    save_legacy(cpu, address, stored, requested, is_wide(insn.code()), form)?;
    Ok(Next::Continue)
}

fn offered(cpu: &Cpu, form: Save) -> bool {
    let features = cpu.shared.cpuid.features();
    match form {
        Save::Plain => true,
        Save::Optimised => features.xsaveopt,
        Save::Compacted => features.xsavec,
    }
}

fn save_legacy(cpu: &mut Cpu, address: u64, stored: u64, requested: u64, wide: bool, form: Save) -> Outcome<()> {
    native::sync_x87_out(cpu);
    // Compacted areas hold MXCSR with SSE only, standard ones with AVX as well.
    let with_mxcsr = if form == Save::Compacted { stored & SSE } else { requested & (SSE | AVX) };
    if stored & (X87 | SSE) == 0 && with_mxcsr == 0 {
        return Ok(());
    }
    let span = cpu.span_modify(address, 512)?;
    // SAFETY: the span was made just now with this length.
    let bytes = unsafe { bytes_of::<LEGACY_BYTES>(span) };
    if stored & X87 != 0 {
        put_x87(cpu, bytes, wide);
    }
    if with_mxcsr != 0 {
        put_mxcsr(cpu, bytes);
    }
    if stored & SSE != 0 {
        let count = vector_count(cpu);
        put_xmm(&cpu.fpu.vectors[..count], bytes);
    }
    cpu.commit(span)
}

/// Writes XSTATE_BV and, for the compacted form, XCOMP_BV and the zeroes after it.
fn save_header(cpu: &mut Cpu, address: u64, requested: u64, used: u64, form: Save) -> Outcome<()> {
    let span = cpu.span_modify(address + LEGACY_BYTES as u64, 64)?;
    // SAFETY: the span was made just now with this length.
    let header = unsafe { bytes_of::<64>(span) };
    if form == Save::Compacted {
        header.fill(0);
        header[..8].copy_from_slice(&(requested & used).to_le_bytes());
        header[8..16].copy_from_slice(&(requested | COMPACTED).to_le_bytes());
    } else {
        let old = word(header, 0);
        header[..8].copy_from_slice(&(old & !requested | used & requested).to_le_bytes());
    }
    cpu.commit(span)
}

fn save_upper_halves(cpu: &mut Cpu, address: u64, count: usize) -> Outcome<()> {
    let span = cpu.span_modify(address, 256)?;
    // SAFETY: the span was made just now with this length.
    let bytes = unsafe { bytes_of::<256>(span) };
    for (slot, vector) in bytes.chunks_exact_mut(16).zip(&cpu.fpu.vectors[..count]) {
        slot.copy_from_slice(&vector.0[16..32]);
    }
    cpu.commit(span)
}

fn word(header: &[u8; 64], index: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&header[index * 8..index * 8 + 8]);
    u64::from_le_bytes(bytes)
}

/// What the header of an area to be restored says, checked.
struct Header {
    present: u64,
    compacted: bool,
}

fn read_header(cpu: &mut Cpu, address: u64) -> Outcome<Header> {
    let mut bytes = [0; 64];
    cpu.read_bytes(address + LEGACY_BYTES as u64, &mut bytes)?;
    let (present, layout) = (word(&bytes, 0), word(&bytes, 1));
    let compacted = layout & COMPACTED != 0;
    let room = layout & !COMPACTED;
    let valid = if compacted {
        let reserved_zero = bytes[16..].iter().all(|byte| *byte == 0);
        cpu.shared.cpuid.features().xsavec && room & !cpu.xcr0 == 0 && present & !room == 0 && reserved_zero
    } else {
        present & !cpu.xcr0 == 0 && bytes[8..24].iter().all(|byte| *byte == 0)
    };
    if valid { Ok(Header { present, compacted }) } else { cpu.fail(Exception::gp(0)) }
}

/// XRSTOR.
pub(crate) fn xrstor(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    let requested = request(cpu)?;
    let bytes = if requested & AVX != 0 { u64::from(AREA_BYTES) } else { EXTENDED };
    let address = area(cpu, insn, bytes, 64, Touch::Read)?;
    let header = read_header(cpu, address)?;
    let loaded = requested & header.present;
    let mut upper = [0; 256];
    if loaded & AVX != 0 {
        cpu.read_bytes(address + EXTENDED, &mut upper)?;
    }
    let mut legacy = [0; LEGACY_BYTES];
    let needs_mxcsr = if header.compacted { loaded & SSE != 0 } else { requested & (SSE | AVX) != 0 };
    if loaded & (X87 | SSE) != 0 || needs_mxcsr {
        cpu.read_bytes(address, &mut legacy)?;
    }
    let mxcsr = if needs_mxcsr {
        Some(get_mxcsr(cpu, &legacy)?)
    } else {
        (header.compacted && requested & SSE != 0).then(|| crate::state::Fpu::default().mxcsr)
    };
    // What is not restored must survive the reload of the host's registers.
    native::sync_x87_out(cpu);
    cpu.fpu.mxcsr = mxcsr.unwrap_or(cpu.fpu.mxcsr);
    restore(cpu, requested, loaded, &legacy, &upper, is_wide(insn.code()));
    native::sync_x87_in(cpu);
    Ok(Next::Continue)
}

/// Loads what is present and initialises what was requested and is not.
fn restore(cpu: &mut Cpu, requested: u64, loaded: u64, legacy: &[u8; 512], upper: &[u8; 256], wide: bool) {
    let count = vector_count(cpu);
    if requested & X87 != 0 {
        if loaded & X87 != 0 { get_x87(cpu, legacy, wide) } else { reset_x87(cpu) }
    }
    let vectors = &mut cpu.fpu.vectors[..count];
    if loaded & SSE != 0 {
        get_xmm(vectors, legacy);
    } else if requested & SSE != 0 {
        clear_half(vectors, 0);
    }
    if loaded & AVX != 0 {
        for (slot, vector) in upper.chunks_exact(16).zip(vectors.iter_mut()) {
            vector.0[16..32].copy_from_slice(slot);
        }
    } else if requested & AVX != 0 {
        clear_half(vectors, 1);
    }
}
