//! The floating-point environment: whose x87 registers and MXCSR the host processor holds.
//!
//! ```text
//!            enter                      suspend
//!   host  ──────────>  guest (running) ─────────>  guest's x87, host's MXCSR (in the platform)
//!         <──────────                  <─────────
//!            leave                      resume
//! ```
//! While the guest's environment is in force, all exceptions are masked in the host's control words. The guest's own
//! masks are kept beside them: the x87 control word in [`Environment::control`], the MXCSR's upper bits in
//! [`crate::state::Fpu::mxcsr`], its sticky flags in the host register.

use std::arch::asm;

use super::{gate, trap};
use crate::cpu::Cpu;

/// The exception masks of the x87 control word.
pub(super) const X87_MASKS: u16 = 0x3f;
/// The exception masks of MXCSR.
pub(super) const MXCSR_MASKS: u32 = 0x1f80;
/// The sticky exception flags of MXCSR.
pub(super) const MXCSR_STICKY: u32 = 0x3f;
/// The bits of MXCSR that the guest has.
pub(super) const MXCSR_WRITABLE: u32 = 0xffff;
/// ES and B of the x87 status word: an unmasked exception is pending.
pub(super) const STATUS_PENDING: u16 = 0x8080;

/// Where the FXSAVE image keeps what.
const IMAGE_CONTROL: usize = 0;
const IMAGE_STATUS: usize = 2;
const IMAGE_POINTERS: std::ops::Range<usize> = 6..24;
const IMAGE_MXCSR: std::ops::Range<usize> = 24..28;
/// End of the x87 part: ten bytes of each ST register, in slots of sixteen.
const IMAGE_X87_END: usize = 160;

/// An area for FXSAVE and FXRSTOR.
#[derive(Clone)]
#[repr(C, align(64))]
pub(super) struct Image(pub [u8; 512]);

/// What a CPU knows about the floating-point environment beyond [`crate::state::Fpu`].
#[derive(Debug, Default)]
pub(crate) struct Environment {
    entered: bool,
    /// [`trap`] bits: exceptions that the guest has unmasked.
    pub(crate) traps: u8,
    /// The guest's x87 control word; valid while the environment is entered.
    pub(super) control: u16,
    host_control: u16,
    host_mxcsr: u32,
}

/// Puts the guest's x87 state and MXCSR in force. Every way out of the run loop calls [`leave_environment`].
pub(crate) fn enter_environment(cpu: &mut Cpu) {
    if cpu.native.entered {
        return;
    }
    cpu.native.host_control = x87_control();
    cpu.native.host_mxcsr = mxcsr();
    cpu.native.entered = true;
    sync_x87_in(cpu);
}

/// Saves the guest's x87 state and MXCSR into [`crate::state::Fpu`] and puts the host's back.
pub(crate) fn leave_environment(cpu: &mut Cpu) {
    if !cpu.native.entered {
        return;
    }
    sync_x87_out(cpu);
    cpu.native.entered = false;
    reset_x87();
    set_x87_control(cpu.native.host_control);
    set_mxcsr(cpu.native.host_mxcsr);
}

/// Puts the host's MXCSR in force for a call into the platform; x87 registers stay the guest's, since Rust code uses
/// none. Returns whether the environment was entered, and [`resume_environment`] must follow.
pub(crate) fn suspend_environment(cpu: &mut Cpu) -> bool {
    if cpu.native.entered {
        cpu.fpu.mxcsr = guest_mxcsr(cpu);
        set_mxcsr(cpu.native.host_mxcsr);
    }
    cpu.native.entered
}

/// Undoes [`suspend_environment`].
pub(crate) fn resume_environment(cpu: &mut Cpu) {
    set_mxcsr(cpu.fpu.mxcsr | MXCSR_MASKS);
}

/// Copies the live x87 state and MXCSR into [`crate::state::Fpu`]. Instruction and data pointers are zero: the host's
/// own would be meaningless to the guest.
pub(crate) fn sync_x87_out(cpu: &mut Cpu) {
    if !cpu.native.entered {
        return;
    }
    let mut image = Image([0; 512]);
    save(&mut image);
    put_u16(&mut image.0, IMAGE_CONTROL, cpu.native.control);
    let status = guest_status(cpu, get_u16(&image.0, IMAGE_STATUS));
    put_u16(&mut image.0, IMAGE_STATUS, status);
    image.0[IMAGE_POINTERS].fill(0);
    cpu.fpu.legacy[..IMAGE_MXCSR.start].copy_from_slice(&image.0[..IMAGE_MXCSR.start]);
    cpu.fpu.legacy[IMAGE_MXCSR.end + 4..IMAGE_X87_END].copy_from_slice(&image.0[IMAGE_MXCSR.end + 4..IMAGE_X87_END]);
    cpu.fpu.mxcsr = guest_mxcsr(cpu);
}

/// Loads x87 state and MXCSR from [`crate::state::Fpu`] into the host, if the guest's environment is in force.
pub(crate) fn sync_x87_in(cpu: &mut Cpu) {
    if !cpu.native.entered {
        return;
    }
    cpu.fpu.mxcsr &= MXCSR_WRITABLE;
    let mut image = Image([0; 512]);
    image.0[..IMAGE_X87_END].copy_from_slice(&cpu.fpu.legacy[..IMAGE_X87_END]);
    let control = get_u16(&image.0, IMAGE_CONTROL);
    put_u16(&mut image.0, IMAGE_CONTROL, control | X87_MASKS);
    image.0[IMAGE_POINTERS].fill(0);
    image.0[IMAGE_MXCSR].copy_from_slice(&(cpu.fpu.mxcsr | MXCSR_MASKS).to_le_bytes());
    image.0[IMAGE_MXCSR.end..IMAGE_MXCSR.end + 4].fill(0);
    restore(&image);
    note_x87_control(cpu, control);
    note_mxcsr(cpu);
}

/// Takes `control` as the guest's wish for the control word whose other bits the host has just loaded.
pub(super) fn note_x87_control(cpu: &mut Cpu, control: u16) {
    cpu.native.control = (x87_control() & !X87_MASKS) | (control & X87_MASKS);
    set_trap(cpu, trap::X87, control & X87_MASKS != X87_MASKS);
}

/// Decides whether SSE exceptions need the slow path, after [`crate::state::Fpu::mxcsr`] has changed.
pub(super) fn note_mxcsr(cpu: &mut Cpu) {
    let unmasked = cpu.fpu.mxcsr & MXCSR_MASKS != MXCSR_MASKS;
    set_trap(cpu, trap::MXCSR, unmasked);
}

fn set_trap(cpu: &mut Cpu, bit: u8, on: bool) {
    if on {
        cpu.native.traps |= bit
    } else {
        cpu.native.traps &= !bit
    }
    cpu.closed = gate::closed(cpu.fpu_gate, cpu.native.traps);
}

/// MXCSR as the guest sees it; only while its environment is in force.
pub(super) fn guest_mxcsr(cpu: &Cpu) -> u32 {
    (cpu.fpu.mxcsr & !MXCSR_STICKY) | (mxcsr() & MXCSR_STICKY)
}

/// Gives the guest a new MXCSR, which has no reserved bits.
pub(super) fn set_guest_mxcsr(cpu: &mut Cpu, value: u32) {
    cpu.fpu.mxcsr = value;
    set_mxcsr(value | MXCSR_MASKS);
    note_mxcsr(cpu);
}

/// The status word as the guest sees it: the host's lacks the summary bits, since nothing is unmasked there.
pub(super) fn guest_status(cpu: &Cpu, status: u16) -> u16 {
    if status & !cpu.native.control & X87_MASKS != 0 { status | STATUS_PENDING } else { status & !STATUS_PENDING }
}

pub(super) fn get_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(super) fn mxcsr() -> u32 {
    let mut value = 0_u32;
    // SAFETY: stores four bytes into `value`.
    unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut value, options(nostack, preserves_flags)) };
    value
}

/// `value` has no reserved bits.
pub(super) fn set_mxcsr(value: u32) {
    let value = value & (MXCSR_WRITABLE | 0x2_0000);
    // SAFETY: loads four bytes; the value has no bit that the host refuses: bit 17 only comes from the host itself.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const value, options(nostack, preserves_flags)) };
}

pub(super) fn x87_control() -> u16 {
    let mut value = 0_u16;
    // SAFETY: stores two bytes into `value`.
    unsafe { asm!("fnstcw [{}]", in(reg) &raw mut value, options(nostack, preserves_flags)) };
    value
}

/// No exception may be pending.
pub(super) fn set_x87_control(value: u16) {
    // SAFETY: loads two bytes; whatever they are, the host accepts them.
    unsafe { asm!("fldcw [{}]", in(reg) &raw const value, options(nostack, preserves_flags)) };
}

pub(super) fn x87_status() -> u16 {
    let value: u16;
    // SAFETY: only writes AX.
    unsafe { asm!("fnstsw ax", out("ax") value, options(nomem, nostack, preserves_flags)) };
    value
}

pub(super) fn reset_x87() {
    // SAFETY: the x87 registers are the guest's or nobody's; Rust code keeps nothing there.
    unsafe { asm!("fninit", options(nomem, nostack, preserves_flags)) };
}

/// The transition that every MMX instruction makes: all registers in use, top of stack 0.
pub(super) fn touch_mmx() {
    // SAFETY: the x87 registers are the guest's; only a scratch register is written.
    unsafe { asm!("movq {}, mm0", out(reg) _, options(nomem, nostack, preserves_flags)) };
}

pub(super) fn save(image: &mut Image) {
    // SAFETY: writes the 512 aligned bytes of `image`.
    unsafe { asm!("fxsave64 [{}]", in(reg) image.0.as_mut_ptr(), options(nostack, preserves_flags)) };
}

/// The image's control word masks every exception, and its MXCSR has no reserved bits.
pub(super) fn restore(image: &Image) {
    // SAFETY: reads the 512 aligned bytes of `image`; x87 registers belong to the guest, vector registers are declared
    // as changed.
    unsafe { asm!("fxrstor64 [{}]", in(reg) image.0.as_ptr(), clobber_abi("C")) };
}
