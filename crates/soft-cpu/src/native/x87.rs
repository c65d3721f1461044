//! The x87 instructions that touch the control word, the status word or the environment.
//!
//! The host's control word masks every exception, and its instruction and data pointers mean nothing to the guest, so
//! these instructions show and take the guest's own (SDM vol. 1 §8.1.10, §8.7).

use std::arch::asm;

use iced_x86::Code;

use super::environment::{
    STATUS_PENDING, X87_MASKS, get_u16, guest_status, note_x87_control, put_u16, reset_x87, set_x87_control, x87_status,
};
use super::thunk::Thunk;
use super::trap::check_pending;
use crate::cpu::Cpu;
use crate::fault::Outcome;
use crate::op::Op;
use crate::state::gpr;

/// The control word after FNINIT.
const INITIAL_CONTROL: u16 = 0x037f;

/// WAIT.
pub(super) fn wait(cpu: &mut Cpu, _: &Op, _: &Thunk) -> Outcome<()> {
    check_pending(cpu)
}

/// FNINIT.
pub(super) fn initialise(cpu: &mut Cpu, _: &Op, _: &Thunk) -> Outcome<()> {
    reset(cpu);
    Ok(())
}

fn reset(cpu: &mut Cpu) {
    reset_x87();
    note_x87_control(cpu, INITIAL_CONTROL);
}

/// FNCLEX.
pub(super) fn clear_exceptions(_: &mut Cpu, _: &Op, _: &Thunk) -> Outcome<()> {
    // SAFETY: changes the status word only.
    unsafe { asm!("fnclex", options(nomem, nostack, preserves_flags)) };
    Ok(())
}

/// FNSTCW.
pub(super) fn store_control(cpu: &mut Cpu, op: &Op, _: &Thunk) -> Outcome<()> {
    let (address, control) = (op.address(cpu), cpu.native.control);
    cpu.store::<u16>(address, control)
}

/// FLDCW.
pub(super) fn load_control(cpu: &mut Cpu, op: &Op, _: &Thunk) -> Outcome<()> {
    check_pending(cpu)?;
    let control = cpu.load::<u16>(op.address(cpu))?;
    set_x87_control(control | X87_MASKS);
    note_x87_control(cpu, control);
    Ok(())
}

/// FNSTSW to memory.
pub(super) fn store_status(cpu: &mut Cpu, op: &Op, _: &Thunk) -> Outcome<()> {
    let (address, status) = (op.address(cpu), guest_status(cpu, x87_status()));
    cpu.store::<u16>(address, status)
}

/// FNSTSW AX.
pub(super) fn status_to_ax(cpu: &mut Cpu, _: &Op, _: &Thunk) -> Outcome<()> {
    let status = guest_status(cpu, x87_status());
    cpu.regs[gpr::RAX] = (cpu.regs[gpr::RAX] & !0xffff) | u64::from(status);
    Ok(())
}

/// FNSTENV and FNSAVE.
pub(super) fn store_environment(cpu: &mut Cpu, op: &Op, thunk: &Thunk) -> Outcome<()> {
    let address = op.address(cpu);
    let len = thunk.len as usize;
    let span = cpu.span_write(address, len as u64)?;
    let mut image = [0_u8; 108];
    let layout = Layout::of(thunk.instruction.code());
    // SAFETY: each writes at most 108 bytes, without waiting.
    unsafe {
        match layout {
            Layout::Environment16 => asm!("data16 fnstenv [{}]", in(reg) image.as_mut_ptr(), options(nostack)),
            Layout::Environment32 => asm!("fnstenv [{}]", in(reg) image.as_mut_ptr(), options(nostack)),
            Layout::Save16 => asm!("data16 fnsave [{}]", in(reg) image.as_mut_ptr(), options(nostack)),
            Layout::Save32 => asm!("fnsave [{}]", in(reg) image.as_mut_ptr(), options(nostack)),
        }
    }
    let word = layout.word();
    let status = guest_status(cpu, get_u16(&image, word));
    put_u16(&mut image, 0, cpu.native.control);
    put_u16(&mut image, word, status);
    image[3 * word..7 * word].fill(0);
    // SAFETY: the span is writable for `len` bytes, which is 14, 28, 94 or 108.
    unsafe { std::ptr::copy(image.as_ptr(), span.pointer, len) };
    cpu.commit(span)?;
    if layout.saves_registers() {
        reset(cpu);
    } else {
        let masked = cpu.native.control | X87_MASKS;
        note_x87_control(cpu, masked);
    }
    Ok(())
}

/// FLDENV and FRSTOR.
pub(super) fn load_environment(cpu: &mut Cpu, op: &Op, thunk: &Thunk) -> Outcome<()> {
    check_pending(cpu)?;
    let len = thunk.len as usize;
    let mut image = [0_u8; 108];
    let address = op.address(cpu);
    cpu.read_bytes(address, &mut image[..len])?;
    let layout = Layout::of(thunk.instruction.code());
    let word = layout.word();
    let control = get_u16(&image, 0);
    put_u16(&mut image, 0, control | X87_MASKS);
    let status = get_u16(&image, word) & !STATUS_PENDING;
    put_u16(&mut image, word, status);
    image[3 * word..7 * word].fill(0);
    // SAFETY: each reads at most 108 bytes; the x87 registers are the guest's, and nothing is left pending.
    unsafe {
        match layout {
            Layout::Environment16 => asm!("data16 fldenv [{}]", in(reg) image.as_ptr(), options(nostack)),
            Layout::Environment32 => asm!("fldenv [{}]", in(reg) image.as_ptr(), options(nostack)),
            Layout::Save16 => asm!("data16 frstor [{}]", in(reg) image.as_ptr(), options(nostack)),
            Layout::Save32 => asm!("frstor [{}]", in(reg) image.as_ptr(), options(nostack)),
        }
    }
    note_x87_control(cpu, control);
    Ok(())
}

/// The four forms of an environment in memory.
#[derive(Clone, Copy)]
enum Layout {
    Environment16,
    Environment32,
    Save16,
    Save32,
}

impl Layout {
    fn of(code: Code) -> Layout {
        match code {
            Code::Fnstenv_m14byte | Code::Fldenv_m14byte => Layout::Environment16,
            Code::Fnsave_m94byte | Code::Frstor_m94byte => Layout::Save16,
            Code::Fnsave_m108byte | Code::Frstor_m108byte => Layout::Save32,
            _ => Layout::Environment32,
        }
    }

    /// Distance between control, status and tag word, and size of the fields of the pointers after them.
    fn word(self) -> usize {
        match self {
            Layout::Environment16 | Layout::Save16 => 2,
            Layout::Environment32 | Layout::Save32 => 4,
        }
    }

    fn saves_registers(self) -> bool {
        matches!(self, Layout::Save16 | Layout::Save32)
    }
}
