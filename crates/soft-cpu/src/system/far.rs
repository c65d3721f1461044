//! Far transfers: JMP, CALL, RET and IRET between segments (SDM vol. 2; APM vol. 2 §4.9).
//!
//! Task gates, task state segments as targets, and virtual-8086 mode are not offered: they raise #GP.

use iced_x86::{Code, Instruction, OpKind};

use super::descriptor::{
    self, Descriptor, check_code, check_stack_segment, check_target, drop_inner_segments, is_null, kind, protected,
    rpl, selector_error,
};
use super::operand::{Popper, Pusher, Touch, load_table, size_mask};
use super::{Next, deliver};
use crate::cpu::Cpu;
use crate::fault::{Exception, Outcome, vector};
use crate::state::{Segment, attribute, gpr, rflags, seg};

/// Where a far JMP or CALL goes, and how wide its operand is.
struct Target {
    selector: u16,
    offset: u64,
    /// Operand size in bytes.
    size: usize,
}

fn target(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Target> {
    match insn.op0_kind() {
        OpKind::FarBranch16 => {
            Ok(Target { selector: insn.far_branch_selector(), offset: u64::from(insn.far_branch16()), size: 2 })
        }
        OpKind::FarBranch32 => {
            Ok(Target { selector: insn.far_branch_selector(), offset: u64::from(insn.far_branch32()), size: 4 })
        }
        _ => {
            let size = match insn.code() {
                Code::Jmp_m1616 | Code::Call_m1616 => 2,
                Code::Jmp_m1664 | Code::Call_m1664 => 8,
                _ => 4,
            };
            let address = cpu.memory_address(insn, size as u64 + 2, Touch::Read)?;
            let offset = cpu.load_sized(address, size)?;
            let selector = cpu.load::<u16>(address.wrapping_add(size as u64))?;
            Ok(Target { selector, offset, size })
        }
    }
}

/// Sets CS and RIP.
fn enter(cpu: &mut Cpu, code: Segment, rip: u64) -> Next {
    cpu.set_segment(seg::CS, code);
    cpu.rip = rip;
    cpu.refresh();
    Next::Jump
}

fn real_code(cpu: &Cpu, selector: u16) -> Segment {
    Segment { base: u64::from(selector) << 4, selector, ..cpu.segments[seg::CS] }
}

/// Far JMP.
pub(crate) fn jump(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    let to = target(cpu, insn)?;
    if !protected(cpu) {
        let code = real_code(cpu, to.selector);
        check_target(cpu, &code, to.offset)?;
        return Ok(enter(cpu, code, to.offset));
    }
    let found = descriptor::fetch(cpu, to.selector, vector::GP, 0)?;
    if found.system_kind().is_some() {
        let gate = read_call_gate(cpu, found, to.selector)?;
        let inner = descriptor::fetch(cpu, gate.selector, vector::GP, 0)?;
        if !inner.is_conforming_code() && inner.dpl() != cpu.cpl || inner.dpl() > cpu.cpl {
            return cpu.fail(Exception::gp(selector_error(gate.selector)));
        }
        return enter_same_ring(cpu, inner, gate.selector, gate.offset);
    }
    check_direct(cpu, found, to.selector)?;
    enter_same_ring(cpu, found, to.selector, to.offset)
}

/// The privilege checks of a transfer without a gate.
fn check_direct(cpu: &mut Cpu, descriptor: Descriptor, selector: u16) -> Outcome<()> {
    let allowed = if descriptor.is_conforming_code() {
        descriptor.dpl() <= cpu.cpl
    } else {
        rpl(selector) <= cpu.cpl && descriptor.dpl() == cpu.cpl
    };
    if allowed { Ok(()) } else { cpu.fail(Exception::gp(selector_error(selector))) }
}

fn enter_same_ring(cpu: &mut Cpu, descriptor: Descriptor, selector: u16, rip: u64) -> Outcome<Next> {
    let code = same_ring_code(cpu, descriptor, selector, rip)?;
    Ok(enter(cpu, code, rip))
}

fn same_ring_code(cpu: &mut Cpu, descriptor: Descriptor, selector: u16, rip: u64) -> Outcome<Segment> {
    check_code(cpu, descriptor, selector, 0)?;
    let code = descriptor.segment(selector & !3 | u16::from(cpu.cpl));
    check_target(cpu, &code, rip)?;
    descriptor::mark_accessed(cpu, descriptor)?;
    Ok(code)
}

/// A call gate: where it leads and how it pushes.
struct CallGate {
    selector: u16,
    offset: u64,
    size: usize,
    /// Parameters that a 16- or 32-bit gate copies to the inner stack.
    parameters: u8,
}

fn read_call_gate(cpu: &mut Cpu, gate: Descriptor, selector: u16) -> Outcome<CallGate> {
    let long = cpu.long_mode();
    let size = match gate.system_kind() {
        Some(kind::CALL_GATE) if long => 8,
        Some(kind::CALL_GATE) => 4,
        Some(kind::CALL_GATE16) if !long => 2,
        _ => return cpu.fail(Exception::gp(selector_error(selector))),
    };
    if gate.dpl() < cpu.cpl || gate.dpl() < rpl(selector) {
        return cpu.fail(Exception::gp(selector_error(selector)));
    }
    if !gate.present() {
        return cpu.fail(Exception::with_error(vector::NP, selector_error(selector)));
    }
    let mut offset = gate.raw & 0xffff | gate.raw >> 32 & 0xffff_0000;
    if size == 2 {
        offset &= 0xffff;
    }
    if long {
        let high: u64 = load_table(cpu, gate.address.wrapping_add(8))?;
        if high >> 40 & 0x1f != 0 {
            return cpu.fail(Exception::gp(selector_error(selector)));
        }
        offset |= high << 32;
    }
    let parameters = if long { 0 } else { (gate.raw >> 32) as u8 & 0x1f };
    Ok(CallGate { selector: (gate.raw >> 16) as u16, offset, size, parameters })
}

/// Far CALL.
pub(crate) fn call(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    let to = target(cpu, insn)?;
    if !protected(cpu) {
        let code = real_code(cpu, to.selector);
        check_target(cpu, &code, to.offset)?;
        push_return(cpu, to.size)?;
        return Ok(enter(cpu, code, to.offset));
    }
    let found = descriptor::fetch(cpu, to.selector, vector::GP, 0)?;
    if found.system_kind().is_some() {
        let gate = read_call_gate(cpu, found, to.selector)?;
        return call_gate(cpu, gate);
    }
    check_direct(cpu, found, to.selector)?;
    let code = same_ring_code(cpu, found, to.selector, to.offset)?;
    push_return(cpu, to.size)?;
    Ok(enter(cpu, code, to.offset))
}

/// Pushes CS and the return address, both or neither.
fn push_return(cpu: &mut Cpu, size: usize) -> Outcome<()> {
    let pointer = cpu.stack_pointer();
    let (selector, rip) = (u64::from(cpu.segments[seg::CS].selector), cpu.next_rip);
    cpu.store_stack(pointer.wrapping_sub(size as u64), size, selector)?;
    cpu.store_stack(pointer.wrapping_sub(2 * size as u64), size, rip)?;
    cpu.set_stack_pointer(pointer.wrapping_sub(2 * size as u64));
    Ok(())
}

fn call_gate(cpu: &mut Cpu, gate: CallGate) -> Outcome<Next> {
    let inner = descriptor::fetch(cpu, gate.selector, vector::GP, 0)?;
    if inner.dpl() > cpu.cpl || (cpu.long_mode() && !inner.has(attribute::LONG)) {
        return cpu.fail(Exception::gp(selector_error(gate.selector)));
    }
    check_code(cpu, inner, gate.selector, 0)?;
    if inner.is_conforming_code() || inner.dpl() == cpu.cpl {
        let code = same_ring_code(cpu, inner, gate.selector, gate.offset)?;
        push_return(cpu, gate.size)?;
        return Ok(enter(cpu, code, gate.offset));
    }
    call_inner_ring(cpu, inner, gate)
}

fn call_inner_ring(cpu: &mut Cpu, inner: Descriptor, gate: CallGate) -> Outcome<Next> {
    let cpl = inner.dpl();
    let code = inner.segment(gate.selector & !3 | u16::from(cpl));
    check_target(cpu, &code, gate.offset)?;
    let (stack, top) = if cpu.long_mode() {
        let address = cpu.tr.base.wrapping_add(4 + u64::from(cpl) * 8);
        (Segment { selector: u16::from(cpl), ..Segment::default() }, load_table::<u64>(cpu, address)?)
    } else {
        deliver::task_stack(cpu, cpl, 0)?
    };
    let old = (cpu.stack_pointer(), cpu.regs[gpr::RSP]);
    let mut frame = vec![u64::from(cpu.segments[seg::SS].selector), old.1];
    for parameter in (0..u64::from(gate.parameters)).rev() {
        frame.push(cpu.load_stack(old.0.wrapping_add(parameter * gate.size as u64), gate.size)?);
    }
    frame.extend([u64::from(cpu.segments[seg::CS].selector), cpu.next_rip]);
    let long = cpu.long_mode();
    let mask = if long {
        u64::MAX
    } else if stack.has(attribute::BIG) {
        0xffff_ffff
    } else {
        0xffff
    };
    let linear_mask = if long { u64::MAX } else { 0xffff_ffff };
    let mut pusher = Pusher { base: stack.base, pointer: top, mask, size: gate.size, linear_mask };
    cpu.as_supervisor(|cpu| frame.iter().try_for_each(|value| pusher.push(cpu, *value)))?;
    cpu.set_segment(seg::SS, stack);
    let next = enter(cpu, code, gate.offset);
    cpu.set_stack_pointer(pusher.pointer);
    Ok(next)
}

/// Operand size in bytes and the bytes to release of a far RET.
fn return_form(insn: &Instruction) -> (usize, u64) {
    let size = match insn.code() {
        Code::Retfw | Code::Retfw_imm16 => 2,
        Code::Retfq | Code::Retfq_imm16 => 8,
        _ => 4,
    };
    let release = if insn.op_count() > 0 { u64::from(insn.immediate16()) } else { 0 };
    (size, release)
}

/// Far RET.
pub(crate) fn ret(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    let (size, release) = return_form(insn);
    let mut frame = Popper::new(cpu, size);
    let rip = frame.pop(cpu)?;
    let selector = frame.pop(cpu)? as u16;
    frame.skip(release);
    if !protected(cpu) {
        let code = real_code(cpu, selector);
        check_target(cpu, &code, rip)?;
        cpu.set_stack_pointer(frame.pointer);
        return Ok(enter(cpu, code, rip));
    }
    let code = return_code(cpu, selector, rip)?;
    if rpl(selector) == cpu.cpl {
        cpu.set_stack_pointer(frame.pointer);
        return Ok(enter(cpu, code, rip));
    }
    let pointer = frame.pop(cpu)?;
    let stack_selector = frame.pop(cpu)? as u16;
    let stack = return_stack(cpu, stack_selector, selector, &code)?;
    leave_ring(cpu, code, rip, stack, pointer);
    cpu.set_stack_pointer(cpu.stack_pointer().wrapping_add(release));
    Ok(Next::Jump)
}

/// The code segment that RET or IRET goes back to, checked.
fn return_code(cpu: &mut Cpu, selector: u16, rip: u64) -> Outcome<Segment> {
    let descriptor = descriptor::fetch(cpu, selector, vector::GP, 0)?;
    let ring = rpl(selector);
    let matches = if descriptor.is_conforming_code() { descriptor.dpl() <= ring } else { descriptor.dpl() == ring };
    if ring < cpu.cpl || !matches {
        return cpu.fail(Exception::gp(selector_error(selector)));
    }
    check_code(cpu, descriptor, selector, 0)?;
    let code = descriptor.segment(selector);
    check_target(cpu, &code, rip)?;
    descriptor::mark_accessed(cpu, descriptor)?;
    Ok(code)
}

/// The stack segment that goes with `code`: it may be null for 64-bit code of an inner ring.
fn return_stack(cpu: &mut Cpu, selector: u16, code_selector: u16, code: &Segment) -> Outcome<Segment> {
    let ring = rpl(code_selector);
    let wide = cpu.long_mode() && code.has(attribute::LONG);
    if is_null(selector) && !(wide && ring != 3 && rpl(selector) == ring) {
        return cpu.fail(Exception::gp(0));
    }
    if is_null(selector) {
        return Ok(Segment { selector, ..Segment::default() });
    }
    check_stack_segment(cpu, selector, ring, vector::GP, 0)
}

/// Switches to another ring's code and stack.
fn leave_ring(cpu: &mut Cpu, code: Segment, rip: u64, stack: Segment, pointer: u64) {
    let outer = rpl(code.selector) != cpu.cpl;
    cpu.segments[seg::SS] = stack;
    cpu.segments[seg::CS] = code;
    for (index, segment) in [(seg::SS, stack), (seg::CS, code)] {
        cpu.set_segment(index, segment);
    }
    cpu.rip = rip;
    if cpu.long_mode() && code.has(attribute::LONG) {
        super::syscall::enter64(cpu, rpl(code.selector));
    } else {
        cpu.refresh();
    }
    // A 16-bit stack keeps the upper part too: the kernel's own upper bits must not leak to the program.
    cpu.regs[gpr::RSP] = pointer;
    if outer {
        drop_inner_segments(cpu);
    }
}

/// IRET in all sizes.
pub(crate) fn iret(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    let size = match insn.code() {
        Code::Iretw => 2,
        Code::Iretd => 4,
        _ => 8,
    };
    let next = if !protected(cpu) { iret_real(cpu, size)? } else { iret_protected(cpu, size)? };
    cpu.nmi_masked = false;
    cpu.recheck_events();
    Ok(next)
}

fn iret_real(cpu: &mut Cpu, size: usize) -> Outcome<Next> {
    if cpu.rflags_system & rflags::VM != 0 {
        return cpu.fail(Exception::gp(0));
    }
    let mut frame = Popper::new(cpu, size);
    let rip = frame.pop(cpu)?;
    let selector = frame.pop(cpu)? as u16;
    let flags = frame.pop(cpu)?;
    let code = real_code(cpu, selector);
    check_target(cpu, &code, rip)?;
    cpu.set_stack_pointer(frame.pointer);
    let changed = size_mask(size) & !(rflags::VM | rflags::VIF | rflags::VIP | rflags::RF);
    let old = cpu.rflags();
    cpu.set_rflags(old & !changed | flags & changed);
    Ok(enter(cpu, code, rip))
}

fn iret_protected(cpu: &mut Cpu, size: usize) -> Outcome<Next> {
    // A nested task would return through its task state segment, which is not offered.
    if cpu.rflags_system & rflags::NT != 0 {
        return cpu.fail(Exception::gp(0));
    }
    let mut frame = Popper::new(cpu, size);
    let rip = frame.pop(cpu)?;
    let selector = frame.pop(cpu)? as u16;
    let flags = frame.pop(cpu)?;
    let to_virtual_8086 = size == 4 && flags & rflags::VM != 0 && cpu.cpl == 0 && !cpu.long_mode();
    if to_virtual_8086 {
        return cpu.fail(Exception::gp(0));
    }
    let code = return_code(cpu, selector, rip)?;
    // 64-bit mode pops SS:RSP whether the ring changes or not.
    if cpu.flat() || rpl(selector) != cpu.cpl {
        let pointer = frame.pop(cpu)?;
        let stack_selector = frame.pop(cpu)? as u16;
        let stack = return_stack(cpu, stack_selector, selector, &code)?;
        restore_flags(cpu, flags, size);
        leave_ring(cpu, code, rip, stack, pointer);
        return Ok(Next::Jump);
    }
    restore_flags(cpu, flags, size);
    cpu.set_stack_pointer(frame.pointer);
    Ok(enter(cpu, code, rip))
}

/// Takes from an IRET frame the flags that the present privilege level may change. RF lasts for one instruction and
/// concerns instruction breakpoints alone: it is dropped where there are none.
fn restore_flags(cpu: &mut Cpu, flags: u64, size: usize) {
    let mut changed = rflags::ARITHMETIC | rflags::TF | rflags::DF | rflags::NT | rflags::AC | rflags::ID;
    if cpu.cpl <= super::flags::iopl(cpu) {
        changed |= rflags::IF;
    }
    if cpu.cpl == 0 {
        changed |= rflags::IOPL | rflags::VIF | rflags::VIP;
    }
    if cpu.has_breakpoints() {
        changed |= rflags::RF;
    }
    changed &= size_mask(size);
    let old = cpu.rflags();
    cpu.set_rflags(old & !changed | flags & changed);
}
