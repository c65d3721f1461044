//! Instructions that run natively: everything that neither the hot operations nor the system do.
//!
//! Host and guest have the same instruction set, so an instruction need not be described to be carried out: it is run.
//! Each form becomes a [`Thunk`], a few host instructions that load the guest registers the instruction uses, the
//! instruction itself with its memory operand behind a host pointer, and the stores of what it changed. Results, flags
//! (the undefined ones too) and rounding are the host's own.
//!
//! What is not left to the host:
//! - **memory**: rights, alignment and crossings are checked before the thunk runs, so it cannot fault;
//! - **exceptions**: the host runs with all x87 and SSE exceptions masked. A guest that unmasks one takes the slow path
//!   of [`trap`], which raises #MF and #XM where the guest expects them;
//! - **control words** (FLDCW, LDMXCSR, FNSTENV, …), masked moves and gathers: done in Rust ([`special`]).
//!
//! While a CPU runs, the host's x87 registers and MXCSR *are* the guest's ([`environment`]); vector registers live in
//! [`crate::state::Fpu`] and are loaded and stored by the thunks.

mod bcd;
mod compile;
mod direct;
mod emit;
mod environment;
mod features;
pub(crate) mod gate;
mod masked;
mod pool;
mod special;
#[cfg(test)]
mod tests;
mod thunk;
mod trap;
mod x87;

use std::arch::asm;
use std::sync::TryLockError;

use crate::control::DROP;
use crate::cpu::{CodeSize, Cpu};
use crate::fault::{Exception, Outcome};
use crate::mmu::PAGE;
use crate::op::{Flow, Op, check};
pub(crate) use environment::{
    Environment, enter_environment, leave_environment, resume_environment, suspend_environment, sync_x87_in,
    sync_x87_out,
};
pub(crate) use pool::NativePool;
use thunk::Memory;
pub(crate) use thunk::{InPlace, Thunk};

/// Carries out an instruction; `op.imm` holds the address of its [`Thunk`]. Most calls go to the thunk's direct entry
/// ([`direct`]) and come here only when that cannot go on.
pub(crate) extern "C" fn run(cpu: &mut Cpu, op: &Op) -> Flow {
    // SAFETY: the block builder put the address of a thunk of this machine's pool there, which outlives the block.
    let thunk = unsafe { &*(op.imm as *const Thunk) };
    if thunk.needs & cpu.closed != 0 {
        check!(trap::run(cpu, op, thunk));
        return Flow::Next;
    }
    match thunk.memory {
        Memory::None => call(cpu, thunk, std::ptr::null_mut()),
        Memory::Read => {
            let address = check!(operand_address(cpu, op, thunk));
            let span = check!(cpu.span_read(address, u64::from(thunk.len)));
            call(cpu, thunk, span.pointer);
        }
        Memory::Write => {
            let address = check!(operand_address(cpu, op, thunk));
            let span = check!(cpu.span_write(address, u64::from(thunk.len)));
            call(cpu, thunk, span.pointer);
            check!(cpu.commit(span));
        }
        Memory::Modify => {
            let address = check!(operand_address(cpu, op, thunk));
            if thunk.locked && crosses_page(address, thunk.len) {
                check!(split_locked(cpu, address, thunk));
                return Flow::Next;
            }
            let span = check!(cpu.span_modify(address, u64::from(thunk.len)));
            call(cpu, thunk, span.pointer);
            check!(cpu.commit(span));
        }
        Memory::Special => check!((thunk.special)(cpu, op, thunk)),
    }
    Flow::Next
}

/// The linear address of the memory operand, its alignment checked.
#[inline(always)]
fn operand_address(cpu: &mut Cpu, op: &Op, thunk: &Thunk) -> Outcome<u64> {
    let mut address = op.address(cpu);
    if thunk.bit_index.is_some() {
        address = indexed_address(cpu, op, address, thunk);
    }
    if address & u64::from(thunk.align_mask) != 0 {
        return cpu.fail(Exception::gp(0));
    }
    Ok(address)
}

/// The address of the word that a register bit index leads to: the index is signed and counts from the operand on
/// (SDM vol. 2A, BT).
#[cold]
fn indexed_address(cpu: &Cpu, op: &Op, address: u64, thunk: &Thunk) -> u64 {
    let Some(bit) = thunk.bit_index else { return address };
    let index = cpu.regs[bit.register as usize];
    let index = match bit.size {
        16 => i64::from(index as i16),
        32 => i64::from(index as i32),
        _ => index as i64,
    };
    let bytes = i64::from(bit.size / 8);
    let moved = address.wrapping_add_signed((index >> bit.size.ilog2()).wrapping_mul(bytes));
    if cpu.code_size != CodeSize::Bits64 {
        return moved & 0xffff_ffff;
    }
    if !bit.short {
        return moved;
    }
    // The effective address is 32 bits wide, the segment's base is not.
    let base: u64 = cpu.reg(op.src);
    base.wrapping_add(moved.wrapping_sub(base) & 0xffff_ffff)
}

#[inline(always)]
fn crosses_page(address: u64, len: u32) -> bool {
    address % PAGE + u64::from(len) > PAGE
}

/// A locked instruction on bytes that the host cannot lock as one: under the machine's split lock, read included.
#[cold]
fn split_locked(cpu: &mut Cpu, address: u64, thunk: &Thunk) -> Outcome<()> {
    let shared = cpu.shared.clone();
    let _guard = loop {
        match shared.split_lock.try_lock() {
            Ok(guard) => break guard,
            Err(TryLockError::Poisoned(poisoned)) => break poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                // The holder may be waiting for this CPU's answer.
                if cpu.control.attention() & DROP != 0 {
                    cpu.answer_drops();
                }
                std::thread::yield_now();
            }
        }
    };
    let span = cpu.span_modify(address, u64::from(thunk.len))?;
    call(cpu, thunk, span.pointer);
    cpu.commit(span)
}

/// Runs the thunk's code on the guest's state, its memory operand at `memory`.
#[inline(always)]
fn call(cpu: &mut Cpu, thunk: &Thunk, memory: *mut u8) {
    // SAFETY: the code was made by `compile`: it touches the CPU's registers, flags and vectors behind r11, the operand
    // behind rdi (which the caller made reachable for the thunk's whole length and kind), and host registers that the C
    // convention lets a callee change. x87 and MMX registers belong to the guest while a CPU runs.
    unsafe {
        asm!(
            "call rax",
            inout("rax") thunk.entry => _,
            inout("rdi") memory => _,
            inout("r11") std::ptr::from_mut(cpu) => _,
            clobber_abi("C"),
        );
    }
}
