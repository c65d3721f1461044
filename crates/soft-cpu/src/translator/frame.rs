//! What generated code and Rust tell each other: a part of the [`Cpu`], at fixed offsets.

use std::mem::offset_of;
use std::sync::atomic::AtomicU32;

use super::asm::Mem;
use crate::cpu::Cpu;
use crate::mmu::PAGE;
use crate::op::{Flow, Op};

/// The vector registers are in the CPU's state, not in the host's.
pub(super) const NOT_LOADED: u8 = 0xff;

/// The CPU's part that only translated code uses.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Frame {
    /// Linear address of the page that the running block was entered in.
    pub page_ip: u64,
    /// Mixed into remembered jump targets, so that those of another privilege or address space do not match.
    pub jump_tag: u64,
    /// The table of remembered jump targets, and [`jump_mask`] for as much of it as is used.
    pub jumps: *const Jump,
    pub jump_mask: u32,
    /// [`crate::Control`]'s word.
    pub attention: *const AtomicU32,
    /// The CPU itself.
    pub this: *mut Cpu,
    /// The host's stack pointer at the entry to generated code.
    pub host_rsp: u64,
    /// Room for one value within one instruction.
    pub spill: u64,
    /// [`Cpu::closed`] while the guest's vector registers are in the host's, else [`NOT_LOADED`].
    pub vectors_missing: u8,
    /// Number of the site or link that generated code was left by.
    pub exit: u32,
    /// The operation that ended the block, and how.
    pub op: *const Op,
    pub flow: Flow,
}

impl Default for Frame {
    fn default() -> Frame {
        Frame {
            page_ip: 0,
            jump_tag: 0,
            jumps: std::ptr::null(),
            jump_mask: 0,
            attention: std::ptr::null(),
            this: std::ptr::null_mut(),
            host_rsp: 0,
            spill: 0,
            vectors_missing: NOT_LOADED,
            exit: 0,
            op: std::ptr::null(),
            flow: Flow::Next,
        }
    }
}

/// One remembered jump target.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Jump {
    /// The target's address, exclusive-or [`Frame::jump_tag`].
    pub key: u64,
    /// The far entry of its block.
    pub code: *const u8,
}

// SAFETY: all-zero bytes are `NO_JUMP`.
unsafe impl queztl_guest_memory::Zeroed for Jump {}

/// Remembered jump targets, a power of two.
pub(super) const JUMPS: usize = 1 << 14;
/// No address has this key under any tag, since tags are never zero.
pub(super) const NO_JUMP: Jump = Jump { key: 0, code: std::ptr::null() };
/// Jumps to other pages that remember their target themselves.
pub(super) const SLOTS: usize = 1 << 16;

/// How far an address is folded onto itself: no two instructions in as many bytes as there are slots collide.
pub(super) const JUMP_FOLD: u8 = JUMPS.trailing_zeros() as u8;

/// The slot of `rip` under a [`jump_mask`]; generated code computes the same.
pub(super) fn jump_slot(rip: u64, mask: u32) -> usize {
    (rip ^ (rip >> JUMP_FOLD)) as usize & (jump_slots(mask) - 1)
}

/// How many slots are used under a [`jump_mask`].
pub(super) fn jump_slots(mask: u32) -> usize {
    mask as usize / size_of::<Jump>() + 1
}

/// Byte offset mask of a slot where the first `slots` are used, a power of two.
pub(super) fn jump_mask(slots: usize) -> u32 {
    ((slots.min(JUMPS) - 1) * size_of::<Jump>()) as u32
}

pub(super) const JUMP_SHIFT: u8 = size_of::<Jump>().trailing_zeros() as u8;
const _: () = assert!(size_of::<Jump>().is_power_of_two() && PAGE == 4096);

macro_rules! field {
    ($($name:ident: $($path:tt).+;)*) => {$(
        pub(in crate::translator) const $name: Mem = Mem::State(offset_of!(Cpu, $($path).+) as u32);
    )*};
}

/// Places in the CPU's state that generated code uses.
pub(super) mod place {
    use super::*;
    field! {
        PAGE_IP: frame.page_ip;
        JUMP_TAG: frame.jump_tag;
        JUMPS: frame.jumps;
        JUMP_MASK: frame.jump_mask;
        ATTENTION: frame.attention;
        THIS: frame.this;
        HOST_RSP: frame.host_rsp;
        SPILL: frame.spill;
        VECTORS_MISSING: frame.vectors_missing;
        EXIT: frame.exit;
        RIP: rip;
        FLAGS: flags;
        TLB: tlb;
        CLOSED: closed;
        INSTRUCTIONS: instructions;
        LIMIT: instruction_limit;
    }
}
