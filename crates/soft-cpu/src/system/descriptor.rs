//! Descriptors and the loading of segment registers (SDM vol. 3A §3.4, §5; APM vol. 2 §4).

use super::operand::load_table;
use crate::cpu::Cpu;
use crate::fault::{Exception, Outcome, vector};
use crate::state::{Segment, attribute, bits, seg};

/// Types of system descriptors (SDM vol. 3A table 3-2).
pub(crate) mod kind {
    pub const TSS16: u8 = 0x1;
    pub const LDT: u8 = 0x2;
    pub const TSS16_BUSY: u8 = 0x3;
    pub const CALL_GATE16: u8 = 0x4;
    pub const TASK_GATE: u8 = 0x5;
    pub const INTERRUPT_GATE16: u8 = 0x6;
    pub const TRAP_GATE16: u8 = 0x7;
    pub const TSS: u8 = 0x9;
    pub const TSS_BUSY: u8 = 0xb;
    pub const CALL_GATE: u8 = 0xc;
    pub const INTERRUPT_GATE: u8 = 0xe;
    pub const TRAP_GATE: u8 = 0xf;
}

/// The RPL of a selector.
pub(crate) fn rpl(selector: u16) -> u8 {
    selector as u8 & 3
}

/// Selects nothing.
pub(crate) fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

/// A selector as exceptions report it.
pub(crate) fn selector_error(selector: u16) -> u32 {
    u32::from(selector & !3)
}

/// One 8-byte descriptor and where it lies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Descriptor {
    /// Linear address.
    pub address: u64,
    pub raw: u64,
}

impl Descriptor {
    /// The attributes in the layout of [`Segment::attributes`].
    pub fn attributes(self) -> u16 {
        (self.raw >> 40) as u16 & 0xf0ff
    }

    pub fn has(self, attribute: u16) -> bool {
        self.attributes() & attribute != 0
    }

    pub fn base(self) -> u64 {
        (self.raw >> 16 & 0xff_ffff) | (self.raw >> 56) << 24
    }

    /// Limit in bytes, granularity applied.
    pub fn limit(self) -> u32 {
        let limit = (self.raw & 0xffff) as u32 | (self.raw >> 32) as u32 & 0xf_0000;
        if self.has(attribute::GRANULARITY) { limit << 12 | 0xfff } else { limit }
    }

    pub fn dpl(self) -> u8 {
        (self.attributes() >> attribute::DPL_SHIFT) as u8 & 3
    }

    pub fn present(self) -> bool {
        self.has(attribute::PRESENT)
    }

    /// The type field if this is a system descriptor.
    pub fn system_kind(self) -> Option<u8> {
        (!self.has(attribute::NON_SYSTEM)).then_some(self.attributes() as u8 & 0xf)
    }

    pub fn is_code(self) -> bool {
        self.has(attribute::NON_SYSTEM) && self.has(attribute::CODE)
    }

    pub fn is_conforming_code(self) -> bool {
        self.is_code() && self.has(attribute::CONFORMING)
    }

    pub fn is_writable_data(self) -> bool {
        self.has(attribute::NON_SYSTEM) && !self.has(attribute::CODE) && self.has(attribute::WRITABLE)
    }

    /// Data, or code that may be read.
    pub fn is_readable(self) -> bool {
        self.has(attribute::NON_SYSTEM) && (!self.has(attribute::CODE) || self.has(attribute::WRITABLE))
    }

    /// The segment register contents that loading `selector` with this descriptor gives.
    pub fn segment(self, selector: u16) -> Segment {
        Segment {
            base: self.base(),
            limit: self.limit(),
            selector,
            attributes: self.attributes() | attribute::ACCESSED,
        }
    }
}

/// Finds the descriptor of a selector that is not null; `None` if it lies beyond its table.
pub(crate) fn find(cpu: &mut Cpu, selector: u16) -> Outcome<Option<Descriptor>> {
    let (base, limit) = if selector & 4 == 0 {
        (cpu.gdtr.base, u32::from(cpu.gdtr.limit))
    } else if cpu.ldtr.has(attribute::PRESENT) {
        (cpu.ldtr.base, cpu.ldtr.limit)
    } else {
        return Ok(None);
    };
    let offset = u32::from(selector & !7);
    if offset + 7 > limit {
        return Ok(None);
    }
    let address = base.wrapping_add(u64::from(offset));
    let raw = load_table::<u64>(cpu, address)?;
    Ok(Some(Descriptor { address, raw }))
}

/// Finds the descriptor of a selector; #`vector`(selector) if it is null (error code 0) or beyond its table.
pub(crate) fn fetch(cpu: &mut Cpu, selector: u16, vector: u8, external: u32) -> Outcome<Descriptor> {
    if is_null(selector) {
        return cpu.fail(Exception::with_error(vector, external));
    }
    match find(cpu, selector)? {
        Some(descriptor) => Ok(descriptor),
        None => cpu.fail(Exception::with_error(vector, selector_error(selector) | external)),
    }
}

/// Sets the accessed bit in the descriptor's table.
pub(crate) fn mark_accessed(cpu: &mut Cpu, descriptor: Descriptor) -> Outcome<()> {
    if descriptor.has(attribute::ACCESSED) {
        return Ok(());
    }
    let kind = (descriptor.raw >> 40) as u8 | attribute::ACCESSED as u8;
    cpu.store_system(descriptor.address.wrapping_add(5), kind)
}

/// Loads ES, SS, DS, FS or GS as MOV, POP and LxS do; `refresh` is done where needed.
pub(crate) fn load_segment(cpu: &mut Cpu, index: usize, selector: u16) -> Outcome<()> {
    if cpu.real_segments() {
        let mut segment = Segment { base: u64::from(selector) << 4, selector, ..cpu.segments[index] };
        if !segment.has(attribute::PRESENT) {
            segment = Segment::real(selector);
        }
        cpu.set_segment(index, segment);
        return Ok(());
    }
    if index == seg::SS { load_stack_segment(cpu, selector) } else { load_data_segment(cpu, index, selector) }
}

fn load_data_segment(cpu: &mut Cpu, index: usize, selector: u16) -> Outcome<()> {
    if is_null(selector) {
        set_data_segment(cpu, index, Segment { selector, ..Segment::default() });
        return Ok(());
    }
    let error = selector_error(selector);
    let descriptor = fetch(cpu, selector, vector::GP, 0)?;
    let reachable =
        descriptor.is_conforming_code() || (descriptor.dpl() >= cpu.cpl && descriptor.dpl() >= rpl(selector));
    if !descriptor.is_readable() || !reachable {
        return cpu.fail(Exception::gp(error));
    }
    if !descriptor.present() {
        return cpu.fail(Exception::with_error(vector::NP, error));
    }
    mark_accessed(cpu, descriptor)?;
    set_data_segment(cpu, index, descriptor.segment(selector));
    Ok(())
}

/// Sets a segment register other than CS and SS; in 64-bit mode the bases of ES and DS go on counting as zero.
pub(crate) fn set_data_segment(cpu: &mut Cpu, index: usize, segment: Segment) {
    cpu.set_segment(index, segment);
    if cpu.flat() && index < seg::FS {
        cpu.regs[crate::cpu::slot::SEGMENT_BASES + index] = 0;
    }
}

fn load_stack_segment(cpu: &mut Cpu, selector: u16) -> Outcome<()> {
    let segment = check_stack_segment(cpu, selector, cpu.cpl, vector::GP, 0)?;
    cpu.set_segment(seg::SS, segment);
    cpu.refresh();
    Ok(())
}

/// Whether 64-bit code at `cpl` may hold this selector in SS although it is null.
pub(crate) fn null_stack_allowed(cpu: &Cpu, selector: u16, cpl: u8) -> bool {
    cpu.flat() && cpl != 3 && rpl(selector) == cpl
}

/// What SS becomes when `selector` is loaded for privilege level `cpl`. Failures other than "not present", which is #SS,
/// are #`vector`(selector).
pub(crate) fn check_stack_segment(
    cpu: &mut Cpu,
    selector: u16,
    cpl: u8,
    vector: u8,
    external: u32,
) -> Outcome<Segment> {
    if is_null(selector) && null_stack_allowed(cpu, selector, cpl) {
        return Ok(Segment { selector, ..Segment::default() });
    }
    let descriptor = fetch(cpu, selector, vector, external)?;
    let error = selector_error(selector) | external;
    if rpl(selector) != cpl || !descriptor.is_writable_data() || descriptor.dpl() != cpl {
        return cpu.fail(Exception::with_error(vector, error));
    }
    if !descriptor.present() {
        return cpu.fail(Exception::with_error(crate::fault::vector::SS, error));
    }
    mark_accessed(cpu, descriptor)?;
    Ok(descriptor.segment(selector))
}

/// The checks common to every transfer to a code segment: neither L with D, nor absent.
pub(crate) fn check_code(cpu: &mut Cpu, descriptor: Descriptor, selector: u16, external: u32) -> Outcome<()> {
    let error = selector_error(selector) | external;
    let both = descriptor.has(attribute::LONG) && descriptor.has(attribute::BIG);
    if !descriptor.is_code() || (cpu.long_mode() && both) {
        return cpu.fail(Exception::gp(error));
    }
    if !descriptor.present() {
        return cpu.fail(Exception::with_error(vector::NP, error));
    }
    Ok(())
}

/// Whether `rip` can be the next instruction in a code segment: canonical in 64-bit code, else within the limit.
pub(crate) fn check_target(cpu: &mut Cpu, code: &Segment, rip: u64) -> Outcome<()> {
    let fits = if cpu.long_mode() && code.has(attribute::LONG) {
        crate::mmu::canonical(rip)
    } else {
        rip <= u64::from(code.limit)
    };
    if fits { Ok(()) } else { cpu.fail(Exception::gp(0)) }
}

/// LLDT.
pub(crate) fn load_ldtr(cpu: &mut Cpu, selector: u16) -> Outcome<()> {
    if is_null(selector) {
        cpu.ldtr = Segment { selector, ..Segment::default() };
        return Ok(());
    }
    let (descriptor, base) = fetch_system(cpu, selector)?;
    if descriptor.system_kind() != Some(kind::LDT) {
        return cpu.fail(Exception::gp(selector_error(selector)));
    }
    if !descriptor.present() {
        return cpu.fail(Exception::with_error(vector::NP, selector_error(selector)));
    }
    cpu.ldtr = system_segment(descriptor, base, selector, descriptor.attributes());
    Ok(())
}

/// LTR: marks the task state segment busy.
pub(crate) fn load_tr(cpu: &mut Cpu, selector: u16) -> Outcome<()> {
    let (descriptor, base) = fetch_system(cpu, selector)?;
    let available = match descriptor.system_kind() {
        Some(kind::TSS) => true,
        Some(kind::TSS16) => !cpu.long_mode(),
        _ => false,
    };
    if !available {
        return cpu.fail(Exception::gp(selector_error(selector)));
    }
    if !descriptor.present() {
        return cpu.fail(Exception::with_error(vector::NP, selector_error(selector)));
    }
    const BUSY: u16 = 2;
    cpu.store_system(descriptor.address.wrapping_add(5), (descriptor.raw >> 40) as u8 | BUSY as u8)?;
    cpu.tr = system_segment(descriptor, base, selector, descriptor.attributes() | BUSY);
    Ok(())
}

/// A system descriptor of the GDT with its full base, which takes 16 bytes in long mode.
fn fetch_system(cpu: &mut Cpu, selector: u16) -> Outcome<(Descriptor, u64)> {
    if selector & 4 != 0 {
        return cpu.fail(Exception::gp(selector_error(selector)));
    }
    let descriptor = fetch(cpu, selector, vector::GP, 0)?;
    if !cpu.long_mode() {
        return Ok((descriptor, descriptor.base()));
    }
    if u32::from(selector & !7) + 15 > u32::from(cpu.gdtr.limit) {
        return cpu.fail(Exception::gp(selector_error(selector)));
    }
    let high: u64 = load_table(cpu, descriptor.address.wrapping_add(8))?;
    let base = descriptor.base() | high << 32;
    // The type field of the upper half must be zero (SDM vol. 3A §8.2.3).
    if high >> 40 & 0x1f != 0 || !crate::mmu::canonical(base) {
        return cpu.fail(Exception::gp(selector_error(selector)));
    }
    Ok((descriptor, base))
}

fn system_segment(descriptor: Descriptor, base: u64, selector: u16, attributes: u16) -> Segment {
    Segment { base, limit: descriptor.limit(), selector, attributes }
}

/// After a return to an outer ring: a data segment that the ring may not use becomes null (SDM vol. 2A, RET). FS and GS
/// keep their bases when their selectors are null already.
pub(crate) fn drop_inner_segments(cpu: &mut Cpu) {
    for index in [seg::ES, seg::DS, seg::FS, seg::GS] {
        let segment = cpu.segments[index];
        let data = !segment.has(attribute::CODE) || !segment.has(attribute::CONFORMING);
        if !is_null(segment.selector) && data && segment.dpl() < cpu.cpl {
            set_data_segment(cpu, index, Segment::default());
        }
    }
}

/// Whether the CPU runs 64-bit, compatibility or protected mode, where selectors name descriptors.
pub(crate) fn protected(cpu: &Cpu) -> bool {
    cpu.cr0 & bits::CR0_PE != 0 && !cpu.real_segments()
}
