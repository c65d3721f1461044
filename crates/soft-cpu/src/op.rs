//! Operations: what a decoded instruction becomes.

use crate::cpu::{Cpu, slot};

/// What happens after an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Flow {
    /// On to the next operation of the block.
    Next = 0,
    /// The block is done; `rip` is set, to a place that is always the same for this end of the block.
    Jump0,
    /// The same for the block's other end.
    Jump1,
    /// The block is done; `rip` is set, to a place that may differ next time.
    Indirect,
    /// The block is done; `rip` is set; modes or pending work may have changed.
    Sync,
    /// The block ends before this operation's instruction is complete; `rip` is set to where to go on.
    Again,
    /// An exception was raised; nothing of this instruction has happened.
    Fault,
    /// HLT is complete.
    Halt,
}

/// How an operation is carried out. The `Op` is the one whose `run` this is, inside its block. The C convention, so
/// that generated code can be an operation.
pub(crate) type Handler = extern "C" fn(&mut Cpu, &Op) -> Flow;

/// One decoded operation. Registers are byte offsets into [`Cpu::regs`].
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Op {
    pub run: Handler,
    /// An immediate, a branch displacement from the block's start, or a pointer that the block owns.
    pub imm: u64,
    /// The constant part of the address.
    pub disp: u64,
    pub dst: u8,
    pub src: u8,
    pub base: u8,
    pub index: u8,
    /// Log2 of the index's scale.
    pub shift: u8,
    pub segment: u8,
    /// Offset of the instruction from the block's start, bytes.
    pub start: u16,
}

const _: () = assert!(size_of::<Op>() == 32);

/// The byte offset of a slot of [`Cpu::regs`].
pub(crate) const fn offset(slot: usize) -> u8 {
    (slot * 8) as u8
}

/// [`Op::segment`] of the stack segment.
pub(crate) const SEGMENT_SS: u8 = offset(slot::SEGMENT_BASES + crate::state::seg::SS);

impl Op {
    /// An operation without operands.
    pub fn new(run: Handler, start: u16) -> Op {
        let zero = offset(slot::ZERO);
        Op { run, imm: 0, disp: 0, dst: zero, src: zero, base: zero, index: zero, shift: 0, segment: zero, start }
    }

    /// The linear address of the memory operand.
    #[inline(always)]
    pub fn address(&self, cpu: &Cpu) -> u64 {
        cpu.reg::<u64>(self.base)
            .wrapping_add(cpu.reg::<u64>(self.index) << self.shift)
            .wrapping_add(self.disp)
            .wrapping_add(cpu.reg::<u64>(self.segment))
    }

    /// The address of this operation's instruction.
    #[inline(always)]
    pub fn ip(&self, cpu: &Cpu) -> u64 {
        cpu.regs[slot::BLOCK_IP].wrapping_add(u64::from(self.start))
    }
}

/// Values that live in registers.
pub(crate) trait Register: crate::mmu::Word {
    /// # Safety
    /// `pointer` is valid and, for 32 bits, is the start of a 64-bit register.
    unsafe fn write_register(pointer: *mut u8, value: Self);
}

macro_rules! register {
    ($($type:ty => $stored:ty),*) => {$(
        impl Register for $type {
            #[inline(always)]
            unsafe fn write_register(pointer: *mut u8, value: Self) {
                // SAFETY: as the caller promises.
                unsafe { pointer.cast::<$stored>().write_unaligned(<$stored>::from(value)) }
            }
        }
    )*};
}
// A 32-bit result clears the upper half of its register; 8- and 16-bit results leave the rest alone.
register!(u8 => u8, u16 => u16, u32 => u64, u64 => u64);

impl Cpu {
    /// The register at byte offset `at`.
    #[inline(always)]
    pub(crate) fn reg<T: crate::mmu::Word>(&self, at: u8) -> T {
        debug_assert!((at as usize) < slot::COUNT * 8);
        // SAFETY: offsets are made by the block builder and lie within `regs`.
        unsafe { self.regs.as_ptr().cast::<u8>().add(at as usize).cast::<T>().read_unaligned() }
    }

    /// Sets the register at byte offset `at`.
    #[inline(always)]
    pub(crate) fn set_reg<T: Register>(&mut self, at: u8, value: T) {
        debug_assert!((at as usize) < 16 * 8 || at == offset(slot::ADDRESS));
        // SAFETY: as in `reg`.
        unsafe { T::write_register(self.regs.as_mut_ptr().cast::<u8>().add(at as usize), value) }
    }
}

/// The value of an `Outcome`, or the end of the operation.
macro_rules! check {
    ($outcome:expr) => {
        match $outcome {
            Ok(value) => value,
            Err($crate::fault::Raised) => return $crate::op::Flow::Fault,
        }
    };
}
pub(crate) use check;
