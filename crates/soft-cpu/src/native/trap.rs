//! Floating-point exceptions that the guest has unmasked, and closed units: the slow path of [`super::run`].
//!
//! **x87**: the instruction runs under the guest's own control word. An unmasked exception then leaves the registers
//! just as it would for the guest, and FNSTENV masks it again on the host before it can be signalled. The next waiting
//! instruction finds it pending and raises #MF.
//!
//! **SSE**: the instruction runs masked with clear flags, on a copy of its destination. If a flag rises that the guest
//! has unmasked, everything is put back and #XM raised (SDM vol. 1 §11.5.2). One case differs from hardware: a result
//! that is tiny but exact is not seen as an unmasked underflow.

use std::arch::asm;

use super::environment::{
    Image, MXCSR_STICKY, X87_MASKS, guest_mxcsr, mxcsr, restore, save, set_mxcsr, set_x87_control, x87_status,
};
use super::thunk::{Memory, Thunk, Unit};
use super::{call, gate, operand_address};
use crate::cpu::Cpu;
use crate::fault::{Exception, Outcome, vector};
use crate::op::Op;
use crate::state::bits;

/// Some x87 exception is unmasked.
pub(super) const X87: u8 = 1 << 0;
/// Some SSE exception is unmasked.
pub(super) const MXCSR: u8 = 1 << 1;

/// The MXCSR flags found before any result is computed: invalid, denormal, division by zero.
const BEFORE_COMPUTING: u32 = 0b111;

/// Carries out an instruction that [`super::run`] could not.
#[cold]
pub(super) fn run(cpu: &mut Cpu, op: &Op, thunk: &Thunk) -> Outcome<()> {
    if thunk.gate & !cpu.fpu_gate != 0 {
        let fault = gate::fault(cpu, thunk);
        return cpu.fail(fault);
    }
    if thunk.traps & cpu.native.traps & X87 != 0 {
        check_pending(cpu)?;
    }
    if thunk.memory == Memory::Special {
        return (thunk.special)(cpu, op, thunk);
    }
    let len = u64::from(thunk.len);
    match thunk.memory {
        Memory::None | Memory::Special => trapped_call(cpu, thunk, std::ptr::null_mut()),
        Memory::Read => {
            let address = operand_address(cpu, op, thunk)?;
            let span = cpu.span_read(address, len)?;
            trapped_call(cpu, thunk, span.pointer)
        }
        Memory::Write => {
            let address = operand_address(cpu, op, thunk)?;
            let span = cpu.span_write(address, len)?;
            let mut result = Image([0; 512]);
            // SAFETY: the span covers `len` bytes, at most 512.
            unsafe { std::ptr::copy(span.pointer, result.0.as_mut_ptr(), len as usize) };
            trapped_call(cpu, thunk, result.0.as_mut_ptr())?;
            // SAFETY: as above, and the span is writable.
            unsafe { std::ptr::copy(result.0.as_ptr(), span.pointer, len as usize) };
            cpu.commit(span)
        }
        Memory::Modify => {
            let address = operand_address(cpu, op, thunk)?;
            let span = cpu.span_modify(address, len)?;
            trapped_call(cpu, thunk, span.pointer)?;
            cpu.commit(span)
        }
    }
}

/// #MF if an unmasked x87 exception is pending.
pub(super) fn check_pending(cpu: &mut Cpu) -> Outcome<()> {
    if x87_status() & !cpu.native.control & X87_MASKS != 0 {
        return cpu.fail(Exception::new(vector::MF));
    }
    Ok(())
}

fn trapped_call(cpu: &mut Cpu, thunk: &Thunk, memory: *mut u8) -> Outcome<()> {
    match thunk.unit {
        Unit::X87 | Unit::Mmx => {
            call_unmasked(cpu, thunk, memory);
            Ok(())
        }
        _ if cpu.native.traps & MXCSR != 0 => call_watched(cpu, thunk, memory),
        _ => {
            call(cpu, thunk, memory);
            Ok(())
        }
    }
}

/// Runs an x87 instruction under the guest's control word; nothing is pending.
fn call_unmasked(cpu: &mut Cpu, thunk: &Thunk, memory: *mut u8) {
    let mut environment = [0_u8; 28];
    set_x87_control(cpu.native.control);
    call(cpu, thunk, memory);
    // SAFETY: FNSTENV writes 28 bytes, without waiting, and masks all exceptions.
    unsafe { asm!("fnstenv [{}]", in(reg) environment.as_mut_ptr(), options(nostack, preserves_flags)) };
}

/// Runs an SSE or AVX instruction and undoes it if it caused an exception that the guest has unmasked.
fn call_watched(cpu: &mut Cpu, thunk: &Thunk, memory: *mut u8) -> Outcome<()> {
    let before = mxcsr();
    let sticky = before & MXCSR_STICKY;
    let (regs, flags, vectors) = (cpu.regs, cpu.flags, cpu.fpu.vectors);
    let mut x87 = Image([0; 512]);
    if thunk.unit == Unit::SseMmx {
        save(&mut x87);
    }
    set_mxcsr(before & !MXCSR_STICKY);
    call(cpu, thunk, memory);
    let raised = mxcsr() & MXCSR_STICKY;
    let unmasked = raised & !(guest_mxcsr(cpu) >> 7);
    if unmasked == 0 {
        set_mxcsr(before | raised);
        return Ok(());
    }
    (cpu.regs, cpu.flags, cpu.fpu.vectors) = (regs, flags, vectors);
    if thunk.unit == Unit::SseMmx {
        restore(&x87);
    }
    // An unmasked exception among the early ones keeps the late ones from being looked for.
    let seen = if unmasked & BEFORE_COMPUTING != 0 { raised & BEFORE_COMPUTING } else { raised };
    set_mxcsr((before & !MXCSR_STICKY) | sticky | seen);
    let delivers = cpu.cr4 & bits::CR4_OSXMMEXCPT != 0;
    cpu.fail(Exception::new(if delivers { vector::XM } else { vector::UD }))
}
