//! Floating-point exceptions that the guest has unmasked, and closed units: the slow path of [`super::run`].
//!
//! **x87**: the instruction runs under the guest's own control word. An unmasked exception then leaves the registers
//! just as it would for the guest, and FNSTENV masks it again on the host before it can be signalled. The next waiting
//! instruction finds it pending and raises #MF.
//!
//! **SSE**: the instruction runs masked with clear flags, on a copy of its destination. If a flag rises that the guest
//! has unmasked, everything is put back and #XM raised (SDM vol. 1 §11.5.2). Where an
//! underflow is unmasked, the precision flag that comes with the fault may differ from the processor's.

use std::arch::asm;

use super::environment::{
    Image, MXCSR_MASKS, MXCSR_STICKY, X87_MASKS, guest_mxcsr, mxcsr, restore, save, set_mxcsr, set_x87_control,
    touch_mmx, x87_status,
};
use super::thunk::{Memory, Thunk, Unit};
use super::{call, gate, operand_address};
use crate::cpu::{Cpu, slot};
use crate::fault::{Exception, Outcome, vector};
use crate::op::Op;
use crate::state::{Vector, bits};

/// Some x87 exception is unmasked.
pub(super) const X87: u8 = 1 << 0;
/// Some SSE exception is unmasked.
pub(super) const MXCSR: u8 = 1 << 1;

/// The MXCSR flags found before any result is computed: invalid, denormal, division by zero.
const BEFORE_COMPUTING: u32 = 0b111;
/// The MXCSR flag of a tiny result.
const UNDERFLOW: u32 = 1 << 4;
/// MXCSR.FTZ, which only counts while underflow is masked.
const FLUSH_TO_ZERO: u32 = 1 << 15;

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
    let before = Snapshot::take(cpu, thunk);
    let guest = guest_mxcsr(cpu);
    let unmasked = !(guest >> 7) & MXCSR_STICKY;
    let control = guest & !MXCSR_STICKY | MXCSR_MASKS;
    let mut raised = 0;
    if unmasked & UNDERFLOW != 0 {
        // Unmasked, a tiny result is an underflow even if it is exact. Flushing to zero tells of every tiny result,
        // but not truly of inexact ones.
        raised = probe(cpu, thunk, memory, control | FLUSH_TO_ZERO) & UNDERFLOW;
        before.put_back(cpu, thunk);
    }
    let flush = if unmasked & UNDERFLOW != 0 { 0 } else { control & FLUSH_TO_ZERO };
    raised |= probe(cpu, thunk, memory, control & !FLUSH_TO_ZERO | flush);
    if raised & unmasked == 0 {
        set_mxcsr(guest | raised | MXCSR_MASKS);
        return Ok(());
    }
    before.put_back(cpu, thunk);
    // An unmasked exception among the early ones keeps the late ones from being looked for.
    let seen = if raised & unmasked & BEFORE_COMPUTING != 0 { raised & BEFORE_COMPUTING } else { raised };
    set_mxcsr(guest | seen | MXCSR_MASKS);
    let delivers = cpu.cr4 & bits::CR4_OSXMMEXCPT != 0;
    cpu.fail(Exception::new(if delivers { vector::XM } else { vector::UD }))
}

/// Runs the thunk under the given MXCSR, whose flags are clear, and returns the flags it raised.
fn probe(cpu: &mut Cpu, thunk: &Thunk, memory: *mut u8, control: u32) -> u32 {
    set_mxcsr(control);
    call(cpu, thunk, memory);
    mxcsr() & MXCSR_STICKY
}

/// What an SSE instruction may change, other than memory.
struct Snapshot {
    regs: [u64; slot::COUNT],
    flags: u16,
    vectors: [Vector; 32],
    x87: Image,
}

impl Snapshot {
    fn take(cpu: &Cpu, thunk: &Thunk) -> Snapshot {
        let mut x87 = Image([0; 512]);
        if thunk.unit == Unit::SseMmx {
            save(&mut x87);
        }
        Snapshot { regs: cpu.regs, flags: cpu.flags, vectors: cpu.fpu.vectors, x87 }
    }

    fn put_back(&self, cpu: &mut Cpu, thunk: &Thunk) {
        (cpu.regs, cpu.flags, cpu.fpu.vectors) = (self.regs, self.flags, self.vectors);
        if thunk.unit == Unit::SseMmx {
            restore(&self.x87);
            // Even a faulting instruction has turned the x87 registers into MMX registers.
            touch_mmx();
        }
    }
}
