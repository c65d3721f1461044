//! Delivery of exceptions and interrupts (SDM vol. 3A chapter 6; APM vol. 2 chapter 8).
//!
//! A fault during delivery leaves the registers as they were, so that the next attempt starts from the same state. Task
//! gates are not offered: they raise #GP with the gate's error code, as a gate of unknown type does.

use super::descriptor::{self, Descriptor, check_stack_segment, kind, rpl, selector_error};
use super::operand::{Pusher, load_table};
use super::{Delivery, TripleFault};
use crate::cpu::Cpu;
use crate::fault::{Exception, Outcome, vector};
use crate::state::{Activity, Segment, attribute, bits, gpr, rflags, seg};

/// Error-code bit: the event came from outside the program.
const EXTERNAL: u32 = 1;
/// Error-code bit: the index is a vector.
const IDT: u32 = 2;

/// DR7: general detect.
pub(crate) const DR7_GENERAL_DETECT: u64 = 1 << 13;

/// One event, ready to be pushed.
#[derive(Debug, Clone, Copy)]
struct Event {
    vector: u8,
    error: Option<u32>,
    /// Where the handler returns to.
    rip: u64,
    /// INT n, INT3 or INTO: the gate's privilege counts.
    software: bool,
    /// A fault: the pushed RFLAGS have RF set.
    fault: bool,
}

impl Event {
    /// The EXT bit of error codes that delivery itself raises.
    fn external(&self) -> u32 {
        if self.software { 0 } else { EXTERNAL }
    }

    /// The error code that names this event's gate.
    fn gate_error(&self) -> u32 {
        (u32::from(self.vector) * 8) | IDT | self.external()
    }
}

/// How an exception combines with one that its delivery raises (SDM vol. 3A table 6-5).
#[derive(PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

fn class(number: u8) -> Class {
    match number {
        vector::DE | vector::TS | vector::NP | vector::SS | vector::GP => Class::Contributory,
        vector::PF => Class::PageFault,
        vector::DF => Class::DoubleFault,
        _ => Class::Benign,
    }
}

/// What is to be delivered after `second` happened while `first` was being delivered.
fn combine(first: Class, second: Exception) -> Result<Exception, TripleFault> {
    match (first, class(second.vector)) {
        (Class::DoubleFault, Class::Contributory | Class::PageFault) => Err(TripleFault),
        (Class::Contributory, Class::Contributory) | (Class::PageFault, Class::Contributory | Class::PageFault) => {
            Ok(Exception::with_error(vector::DF, 0))
        }
        _ => Ok(second),
    }
}

/// Delivers `event` and whatever its delivery raises. `cpu.rip` is the instruction that the handler returns to.
///
/// # Errors
/// [`TripleFault`] if a double fault could not be delivered: the machine shuts down.
pub(crate) fn deliver(cpu: &mut Cpu, event: Delivery) -> Result<(), TripleFault> {
    let interrupt = match event {
        Delivery::Exception(exception) => return deliver_exception(cpu, exception),
        Delivery::External(number) => plain(number, cpu.rip, false),
        Delivery::Nmi => plain(vector::NMI, cpu.rip, false),
    };
    if deliver_once(cpu, interrupt).is_ok() {
        cpu.nmi_masked |= event == Delivery::Nmi;
        return Ok(());
    }
    // Interrupts are benign: what their delivery raises is delivered in their place.
    match cpu.exception.take() {
        Some(raised) => deliver_exception(cpu, raised),
        None => Err(TripleFault),
    }
}

fn plain(vector: u8, rip: u64, software: bool) -> Event {
    Event { vector, error: None, rip, software, fault: false }
}

fn deliver_exception(cpu: &mut Cpu, exception: Exception) -> Result<(), TripleFault> {
    let mut present = exception;
    note(cpu, &present);
    // Each round climbs from benign to #DF at the latest; a round that repeats a benign one ends as a triple fault.
    for _ in 0..8 {
        let event = Event {
            vector: present.vector,
            error: present.error,
            rip: cpu.rip,
            software: false,
            fault: !matches!(present.vector, vector::DB | vector::BP | vector::OF | vector::DF),
        };
        if let Ok(()) = deliver_once(cpu, event) {
            cpu.exception = None;
            return Ok(());
        }
        let Some(raised) = cpu.exception.take() else { return Err(TripleFault) };
        note(cpu, &raised);
        present = combine(class(present.vector), raised)?;
    }
    Err(TripleFault)
}

/// The registers in which an exception leaves its cause.
fn note(cpu: &mut Cpu, exception: &Exception) {
    match exception.vector {
        vector::PF => cpu.cr2 = exception.address,
        vector::DB => {
            // The cause travels in the address field.
            cpu.dr[6] |= exception.address;
            cpu.dr[7] &= !DR7_GENERAL_DETECT;
        }
        _ => {}
    }
}

/// INT n, INT3, INTO and INT1. A fault leaves everything as it was.
pub(crate) fn software_interrupt(cpu: &mut Cpu, number: u8, checked: bool) -> Outcome<()> {
    deliver_once(cpu, plain(number, cpu.next_rip, checked))
}

fn deliver_once(cpu: &mut Cpu, event: Event) -> Outcome<()> {
    if cpu.cr0 & bits::CR0_PE == 0 {
        deliver_real(cpu, event)?;
    } else if cpu.long_mode() {
        deliver_long(cpu, event)?;
    } else {
        deliver_protected(cpu, event)?;
    }
    cpu.interrupt_shadow = false;
    cpu.debug.shadow = false;
    cpu.trap_pending = false;
    cpu.activity = Activity::Running;
    Ok(())
}

/// RFLAGS as the handler's frame holds them.
fn pushed_flags(cpu: &Cpu, event: &Event) -> u64 {
    let resume = if event.fault { rflags::RF } else { 0 };
    cpu.rflags() | resume
}

fn clear_flags(cpu: &mut Cpu, keeps_interrupts: bool) {
    let cleared = rflags::TF | rflags::NT | rflags::RF | rflags::VM;
    cpu.rflags_system &= !(cleared | if keeps_interrupts { 0 } else { rflags::IF });
}

// --- real mode -----------------------------------------------------------------------------------------------------

fn deliver_real(cpu: &mut Cpu, event: Event) -> Outcome<()> {
    let offset = u32::from(event.vector) * 4;
    if offset + 3 > u32::from(cpu.idtr.limit) {
        return cpu.fail(Exception::gp(event.gate_error()));
    }
    let entry: u32 = load_table(cpu, cpu.idtr.base.wrapping_add(u64::from(offset)))?;
    let pointer = cpu.stack_pointer();
    let frame = [cpu.rflags(), u64::from(cpu.segments[seg::CS].selector), event.rip];
    let mut next = pointer;
    for value in frame {
        next = next.wrapping_sub(2) & cpu.stack_mask;
        cpu.store_stack(next, 2, value)?;
    }
    cpu.set_stack_pointer(next);
    clear_flags(cpu, false);
    cpu.rflags_system &= !rflags::AC;
    let selector = (entry >> 16) as u16;
    let code = Segment { base: u64::from(selector) << 4, selector, ..cpu.segments[seg::CS] };
    cpu.set_segment(seg::CS, code);
    cpu.rip = u64::from(entry & 0xffff);
    cpu.refresh();
    Ok(())
}

// --- gates ---------------------------------------------------------------------------------------------------------

/// The parts of a gate that all sizes have.
struct Gate {
    selector: u16,
    offset: u64,
    kind: u8,
    /// Interrupt-stack-table index, long mode only.
    ist: u8,
}

impl Gate {
    fn keeps_interrupts(&self) -> bool {
        matches!(self.kind, kind::TRAP_GATE | kind::TRAP_GATE16)
    }
}

/// Reads the event's gate and makes the checks that do not depend on its size.
fn read_gate(cpu: &mut Cpu, event: &Event) -> Outcome<Gate> {
    let size: u64 = if cpu.long_mode() { 16 } else { 8 };
    let offset = u64::from(event.vector) * size;
    let error = event.gate_error();
    if offset + size - 1 > u64::from(cpu.idtr.limit) {
        return cpu.fail(Exception::gp(error));
    }
    let address = cpu.idtr.base.wrapping_add(offset);
    let low: u64 = load_table(cpu, address)?;
    let gate = Descriptor { address, raw: low };
    let Some(kind) = gate.system_kind().filter(|kind| known_gate(cpu, *kind)) else {
        return cpu.fail(Exception::gp(error));
    };
    if event.software && gate.dpl() < cpu.cpl {
        return cpu.fail(Exception::gp(error));
    }
    if !gate.present() {
        return cpu.fail(Exception::with_error(vector::NP, error));
    }
    let mut target = low & 0xffff | low >> 32 & 0xffff_0000;
    if matches!(kind, kind::INTERRUPT_GATE16 | kind::TRAP_GATE16) {
        target &= 0xffff;
    }
    if size == 16 {
        let high: u32 = load_table(cpu, address.wrapping_add(8))?;
        target |= u64::from(high) << 32;
    }
    Ok(Gate { selector: (low >> 16) as u16, offset: target, kind, ist: (low >> 32) as u8 & 7 })
}

fn known_gate(cpu: &Cpu, kind: u8) -> bool {
    match kind {
        kind::INTERRUPT_GATE | kind::TRAP_GATE => true,
        kind::INTERRUPT_GATE16 | kind::TRAP_GATE16 => !cpu.long_mode(),
        _ => false,
    }
}

/// The handler's code segment, checked; its privilege level is the second part.
fn handler_code(cpu: &mut Cpu, selector: u16, event: &Event) -> Outcome<(Segment, u8)> {
    let external = event.external();
    let descriptor = descriptor::fetch(cpu, selector, vector::GP, external)?;
    let error = selector_error(selector) | external;
    let wrong_mode = cpu.long_mode() && (!descriptor.has(attribute::LONG) || descriptor.has(attribute::BIG));
    if !descriptor.is_code() || descriptor.dpl() > cpu.cpl || wrong_mode {
        return cpu.fail(Exception::gp(error));
    }
    if !descriptor.present() {
        return cpu.fail(Exception::with_error(vector::NP, error));
    }
    descriptor::mark_accessed(cpu, descriptor)?;
    let cpl = if descriptor.is_conforming_code() { cpu.cpl } else { descriptor.dpl() };
    Ok((descriptor.segment(selector & !3 | u16::from(cpl)), cpl))
}

/// Pushes with the handler's rights.
fn push_frame(cpu: &mut Cpu, pusher: &mut Pusher, cpl: u8, frame: &[u64]) -> Outcome<()> {
    let mut push_all = |cpu: &mut Cpu| frame.iter().try_for_each(|value| pusher.push(cpu, *value));
    if cpl == 3 { push_all(cpu) } else { cpu.as_supervisor(push_all) }
}

// --- long mode -----------------------------------------------------------------------------------------------------

fn deliver_long(cpu: &mut Cpu, event: Event) -> Outcome<()> {
    let gate = read_gate(cpu, &event)?;
    let (code, cpl) = handler_code(cpu, gate.selector, &event)?;
    let outer = cpl != cpu.cpl;
    let top = if gate.ist != 0 {
        task_stack64(cpu, 36 + u64::from(gate.ist - 1) * 8, &event)?
    } else if outer {
        task_stack64(cpu, 4 + u64::from(cpl) * 8, &event)?
    } else {
        cpu.regs[gpr::RSP]
    };
    if !crate::mmu::canonical(gate.offset) {
        return cpu.fail(Exception::gp(event.external()));
    }
    let frame = [
        u64::from(cpu.segments[seg::SS].selector),
        cpu.regs[gpr::RSP],
        pushed_flags(cpu, &event),
        u64::from(cpu.segments[seg::CS].selector),
        event.rip,
        u64::from(event.error.unwrap_or(0)),
    ];
    let pushed = if event.error.is_some() { 6 } else { 5 };
    let mut pusher = Pusher { base: 0, pointer: top & !15, mask: u64::MAX, size: 8, linear_mask: u64::MAX };
    push_frame(cpu, &mut pusher, cpl, &frame[..pushed])?;
    cpu.regs[gpr::RSP] = pusher.pointer;
    if outer {
        // The stack segment of an inner ring in 64-bit mode is null with the ring as its RPL.
        cpu.segments[seg::SS] = Segment { selector: u16::from(cpl), ..Segment::default() };
    }
    clear_flags(cpu, gate.keeps_interrupts());
    cpu.segments[seg::CS] = code;
    cpu.rip = gate.offset;
    super::syscall::enter64(cpu, cpl);
    Ok(())
}

/// A stack pointer of the 64-bit task state segment.
fn task_stack64(cpu: &mut Cpu, offset: u64, event: &Event) -> Outcome<u64> {
    if offset + 7 > u64::from(cpu.tr.limit) {
        let error = selector_error(cpu.tr.selector) | event.external();
        return cpu.fail(Exception::with_error(vector::TS, error));
    }
    let stack: u64 = load_table(cpu, cpu.tr.base.wrapping_add(offset))?;
    if !crate::mmu::canonical(stack) {
        return cpu.fail(Exception::with_error(vector::SS, event.external()));
    }
    Ok(stack)
}

// --- protected mode ------------------------------------------------------------------------------------------------

fn deliver_protected(cpu: &mut Cpu, event: Event) -> Outcome<()> {
    let gate = read_gate(cpu, &event)?;
    let (code, cpl) = handler_code(cpu, gate.selector, &event)?;
    let size = if matches!(gate.kind, kind::INTERRUPT_GATE16 | kind::TRAP_GATE16) { 2 } else { 4 };
    let outer = cpl != cpu.cpl;
    let old_stack = (cpu.segments[seg::SS], cpu.regs[gpr::RSP]);
    let (stack, pointer) =
        if outer { task_stack(cpu, cpl, event.external())? } else { (old_stack.0, cpu.stack_pointer()) };
    descriptor::check_target(cpu, &code, gate.offset)?;
    let mut frame = [0; 6];
    let mut count = 0;
    let mut add = |value: u64| {
        frame[count] = value;
        count += 1;
    };
    if outer {
        add(u64::from(old_stack.0.selector));
        add(old_stack.1);
    }
    add(pushed_flags(cpu, &event));
    add(u64::from(cpu.segments[seg::CS].selector));
    add(event.rip);
    if let Some(error) = event.error {
        add(u64::from(error));
    }
    let mask = if stack.has(attribute::BIG) { 0xffff_ffff } else { 0xffff };
    let mut pusher = Pusher { base: stack.base, pointer, mask, size, linear_mask: 0xffff_ffff };
    check_room(cpu, &stack, &pusher, count, &event, outer)?;
    push_frame(cpu, &mut pusher, cpl, &frame[..count])?;
    cpu.set_segment(seg::SS, stack);
    cpu.set_segment(seg::CS, code);
    clear_flags(cpu, gate.keeps_interrupts());
    cpu.rip = gate.offset;
    cpu.refresh();
    cpu.set_stack_pointer(pusher.pointer);
    Ok(())
}

/// Whether `count` values fit on the handler's stack; a new stack that is too small is reported by its selector.
fn check_room(
    cpu: &mut Cpu,
    stack: &Segment,
    pusher: &Pusher,
    count: usize,
    event: &Event,
    outer: bool,
) -> Outcome<()> {
    let bytes = (count * pusher.size) as u64;
    let lowest = pusher.pointer.wrapping_sub(bytes) & pusher.mask;
    let highest = pusher.pointer.wrapping_sub(1) & pusher.mask;
    let limit = u64::from(stack.limit);
    let expand_down = stack.has(attribute::CONFORMING);
    let fits = if expand_down { lowest > limit } else { highest <= limit && lowest <= highest };
    if fits {
        return Ok(());
    }
    let error = if outer { selector_error(stack.selector) } else { 0 };
    cpu.fail(Exception::with_error(vector::SS, error | event.external()))
}

/// The stack of ring `cpl` from the 16- or 32-bit task state segment.
pub(crate) fn task_stack(cpu: &mut Cpu, cpl: u8, external: u32) -> Outcome<(Segment, u64)> {
    let wide = cpu.tr.attributes & 0x8 != 0;
    let offset = if wide { 4 + u64::from(cpl) * 8 } else { 2 + u64::from(cpl) * 4 };
    let size = if wide { 8 } else { 4 };
    if offset + size - 1 > u64::from(cpu.tr.limit) {
        let error = selector_error(cpu.tr.selector) | external;
        return cpu.fail(Exception::with_error(vector::TS, error));
    }
    let address = cpu.tr.base.wrapping_add(offset);
    let (pointer, selector) = if wide {
        (u64::from(load_table::<u32>(cpu, address)?), load_table::<u16>(cpu, address.wrapping_add(4))?)
    } else {
        (u64::from(load_table::<u16>(cpu, address)?), load_table::<u16>(cpu, address.wrapping_add(2))?)
    };
    if rpl(selector) != cpl {
        return cpu.fail(Exception::with_error(vector::TS, selector_error(selector) | external));
    }
    let stack = check_stack_segment(cpu, selector, cpl, vector::TS, external)?;
    Ok((stack, pointer))
}
