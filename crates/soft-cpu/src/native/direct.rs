//! The entry by which a thunk is an operation itself.
//!
//! Before the thunk's own code it does what [`super::run`] does in the common case: test that the instruction may run,
//! work out the operand's address, and find it in the translation cache. Anything else goes to [`super::run`], with
//! nothing changed.
//!
//! ```text
//! op.run ──> test closed bits ──> address ──> alignment ──> translation ──> thunk, returns Flow::Next
//!                   └───────────────────────────┴──────────────┴─────────> super::run
//! ```
//! There are two such entries where there is a memory operand: one for addresses of a base and a displacement, which
//! most are, and one for all.
//!
//! In: RDI the [`Cpu`], RSI the [`Op`]. The thunk's own code wants the CPU in R11 and the operand in RDI.

use std::mem::offset_of;

use super::emit::Emitter;
use super::thunk::Memory;
use crate::cpu::Cpu;
use crate::mmu::{Entry, TlbSet};
use crate::op::Op;

/// What the entry must know of the instruction.
pub(super) struct Entrance {
    /// Bits of [`Cpu::closed`] under which the instruction takes the slow path.
    pub needs: u8,
    pub memory: Memory,
    /// Length of the memory operand, bytes.
    pub len: u32,
    pub align_mask: u32,
}

/// What an address consists of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Address {
    None,
    /// Base and displacement.
    Based,
    Any,
}

/// A jump to the slow path, by the place of its displacement.
type Patch = usize;

impl Entrance {
    /// Emits both entries; the thunk's own code follows. Returns where the entry for any address starts, and the patches
    /// that [`slow_path`] closes.
    pub fn emit(&self, out: &mut Emitter) -> (usize, Vec<Patch>) {
        let mut patches = Vec::new();
        if self.memory == Memory::None {
            self.enter(out, &mut patches, Address::None);
            return (0, patches);
        }
        self.enter(out, &mut patches, Address::Based);
        // jmp to the thunk's own code
        out.raw(&[0xe9, 0, 0, 0, 0]);
        let any = out.bytes.len();
        self.enter(out, &mut patches, Address::Any);
        let distance = (out.bytes.len() - any) as u32;
        out.bytes[any - 4..any].copy_from_slice(&distance.to_le_bytes());
        (any, patches)
    }

    fn enter(&self, out: &mut Emitter, patches: &mut Vec<Patch>, kind: Address) {
        if self.needs != 0 {
            // test byte [rdi + closed], needs
            out.raw(&[0xf6, 0x87]);
            out.raw(&(offset_of!(Cpu, closed) as u32).to_le_bytes());
            out.raw(&[self.needs]);
            patches.push(jump_if_not_zero(out));
        }
        if kind != Address::None {
            address(out, kind);
            self.translate(out, patches);
        }
        // mov r11, rdi
        out.raw(&[0x49, 0x89, 0xfb]);
        if kind != Address::None {
            // mov rdi, rdx
            out.raw(&[0x48, 0x89, 0xd7]);
        }
    }

    /// From the linear address in RDX to the host address there.
    fn translate(&self, out: &mut Emitter, patches: &mut Vec<Patch>) {
        if self.align_mask != 0 {
            // test edx, align_mask
            out.raw(&[0xf7, 0xc2]);
            out.raw(&self.align_mask.to_le_bytes());
            patches.push(jump_if_not_zero(out));
        }
        let tag = match self.memory {
            Memory::Read => offset_of!(Entry, read),
            _ => offset_of!(Entry, write),
        };
        // mov r8, [rdi + tlb]
        out.raw(&[0x4c, 0x8b, 0x87]);
        out.raw(&(offset_of!(Cpu, tlb) as u32).to_le_bytes());
        // mov eax, edx; shr eax, 7; and eax, slots * 32
        out.raw(&[0x89, 0xd0, 0xc1, 0xe8, SLOT_SHIFT, 0x25]);
        out.raw(&SLOT_MASK.to_le_bytes());
        // lea rcx, [rdx + len - 1]; and rcx, -4096
        out.raw(&[0x48, 0x8d, 0x8a]);
        out.raw(&(self.len - 1).to_le_bytes());
        out.raw(&[0x48, 0x81, 0xe1, 0x00, 0xf0, 0xff, 0xff]);
        // cmp rcx, [r8 + rax + tag]
        out.raw(&[0x49, 0x3b, 0x8c, 0x00]);
        out.raw(&((offset_of!(TlbSet, entries) + tag) as u32).to_le_bytes());
        patches.push(jump_if_not_zero(out));
        // add rdx, [r8 + rax + addend]
        out.raw(&[0x49, 0x03, 0x94, 0x00]);
        out.raw(&((offset_of!(TlbSet, entries) + offset_of!(Entry, addend)) as u32).to_le_bytes());
    }
}

const ENTRY_BYTES: u32 = size_of::<Entry>() as u32;
/// From an address to the byte offset of its entry: page number times the entry's size.
const SLOT_SHIFT: u8 = 12 - ENTRY_BYTES.trailing_zeros() as u8;
const SLOT_MASK: u32 = (TlbSet::ENTRIES as u32 - 1) * ENTRY_BYTES;
const _: () = assert!(ENTRY_BYTES.is_power_of_two() && offset_of!(Cpu, regs) == 0);

/// The linear address of the operand into RDX, as [`Op::address`] has it.
fn address(out: &mut Emitter, kind: Address) {
    let field = |offset: usize| offset as u8;
    // movzx eax, byte [rsi + base]; mov rdx, [rdi + rax]; add rdx, [rsi + disp]
    out.raw(&[0x0f, 0xb6, 0x46, field(offset_of!(Op, base)), 0x48, 0x8b, 0x14, 0x07]);
    out.raw(&[0x48, 0x03, 0x56, field(offset_of!(Op, disp))]);
    if kind == Address::Based {
        return;
    }
    // movzx eax, byte [rsi + index]; mov rax, [rdi + rax]
    out.raw(&[0x0f, 0xb6, 0x46, field(offset_of!(Op, index)), 0x48, 0x8b, 0x04, 0x07]);
    // movzx ecx, byte [rsi + shift]; shl rax, cl; add rdx, rax
    out.raw(&[0x0f, 0xb6, 0x4e, field(offset_of!(Op, shift)), 0x48, 0xd3, 0xe0, 0x48, 0x01, 0xc2]);
    // movzx eax, byte [rsi + segment]; add rdx, [rdi + rax]
    out.raw(&[0x0f, 0xb6, 0x46, field(offset_of!(Op, segment)), 0x48, 0x03, 0x14, 0x07]);
}

/// `jnz` to a place not known yet.
fn jump_if_not_zero(out: &mut Emitter) -> Patch {
    out.raw(&[0x0f, 0x85, 0, 0, 0, 0]);
    out.bytes.len() - 4
}

/// Emits the way to [`super::run`] and leads `patches` there.
pub(super) fn slow_path(out: &mut Emitter, patches: &[Patch]) {
    let target = out.bytes.len();
    for &patch in patches {
        let distance = (target - (patch + 4)) as u32;
        out.bytes[patch..patch + 4].copy_from_slice(&distance.to_le_bytes());
    }
    // mov rax, run; jmp rax
    out.raw(&[0x48, 0xb8]);
    out.raw(&(super::run as *const () as u64).to_le_bytes());
    out.raw(&[0xff, 0xe0]);
}
