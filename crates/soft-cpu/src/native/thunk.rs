//! One instruction, prepared to run on the host.

use iced_x86::Instruction;

use super::gate;
use crate::cpu::{Cpu, slot};
use crate::fault::Outcome;
use crate::op::{Handler, Op, offset};
use crate::state::seg;

/// What a thunk does with its memory operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    None,
    Read,
    Write,
    /// Read and written, or written under a condition only the instruction knows.
    Modify,
    /// Not host code at all: [`Thunk::special`] does the work.
    Special,
}

/// The unit whose availability decides whether the instruction may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    None,
    X87,
    Wait,
    Mmx,
    Sse,
    /// XMM and MMX registers in one instruction.
    SseMmx,
    Avx,
}

impl Unit {
    /// The [`gate`] bits that must be open.
    pub fn gate(self) -> u8 {
        match self {
            Unit::None => 0,
            Unit::X87 | Unit::Mmx => gate::X87,
            Unit::Wait => gate::WAIT,
            Unit::Sse => gate::SSE,
            Unit::SseMmx => gate::SSE | gate::X87,
            Unit::Avx => gate::AVX,
        }
    }
}

/// An instruction carried out in Rust.
pub(super) type Special = fn(&mut Cpu, &Op, &Thunk) -> Outcome<()>;

/// A register bit index that reaches beyond its memory operand (BT and relatives).
#[derive(Debug, Clone, Copy)]
pub(super) struct BitIndex {
    /// Number of the guest's index register.
    pub register: u8,
    /// Operand size in bits: 16, 32 or 64.
    pub size: u8,
    /// Addresses wrap at 32 bits.
    pub short: bool,
}

/// A thunk as an operation, for two kinds of addresses.
#[derive(Clone, Copy)]
pub(super) struct Direct {
    /// Base and displacement, or no memory operand at all.
    pub based: Handler,
    /// Any address.
    pub any: Handler,
}

/// A prepared instruction. Lives as long as the [`super::NativePool`] it came from.
pub(crate) struct Thunk {
    /// Host code; see [`super::call`] for its contract.
    pub(super) entry: *const u8,
    /// The host code as an operation of its own, see [`super::direct`]; `None` where Rust must see to more than that.
    pub(super) direct: Option<Direct>,
    /// Length of the memory operand, bytes.
    pub(super) len: u32,
    /// Required alignment of the memory operand less one; a misaligned one is #GP(0).
    pub(super) align_mask: u32,
    pub(super) memory: Memory,
    pub(super) unit: Unit,
    /// [`gate`] bits that must be open.
    pub(super) gate: u8,
    /// [`super::trap`] bits under which the instruction needs the slow path.
    pub(super) traps: u8,
    /// Bits of [`Cpu::closed`] under which the instruction needs the slow path.
    pub(super) needs: u8,
    /// Atomic towards other processors.
    pub(super) locked: bool,
    pub(super) bit_index: Option<BitIndex>,
    pub(super) special: Special,
    /// The instruction as the guest wrote it, less what differs between places: its address and, unless a special
    /// handler needs it, the address of its operand.
    pub(super) instruction: Instruction,
}

// SAFETY: `entry` leads to code that is never changed or unmapped while the pool lives.
unsafe impl Send for Thunk {}
// SAFETY: as above; nothing else in it changes after it was made.
unsafe impl Sync for Thunk {}

/// An instruction that the host runs in place, as the translator must know it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InPlace {
    /// Whether the memory operand is accessed, and then whether it is written.
    pub memory: Option<bool>,
    /// Length of the memory operand, bytes.
    pub len: u32,
    /// Required alignment of the memory operand less one; a misaligned one is #GP(0).
    pub align_mask: u32,
    /// Bits of [`Cpu::closed`] under which the instruction must not run so.
    pub needs: u8,
}

impl Thunk {
    /// Bits of [`Cpu::closed`] under which the instruction takes the slow path.
    pub(crate) fn needs(&self) -> u8 {
        self.needs
    }

    /// What running the instruction in place takes; `None` if Rust must see to it.
    pub(crate) fn in_place(&self) -> Option<InPlace> {
        let memory = match self.memory {
            Memory::None => None,
            Memory::Read => Some(false),
            Memory::Write | Memory::Modify => Some(true),
            Memory::Special => return None,
        };
        let in_place = InPlace { memory, len: self.len, align_mask: self.align_mask, needs: self.needs };
        self.bit_index.is_none().then_some(in_place)
    }

    /// What carries the instruction out with the address that `op` holds.
    pub(crate) fn handler(&self, op: &Op) -> Handler {
        // Only FS and GS have bases that count: elsewhere the address is a flat one, or computed already.
        let flat = op.segment < offset(slot::SEGMENT_BASES + seg::FS);
        match &self.direct {
            Some(direct) if op.index == offset(slot::ZERO) && flat => direct.based,
            Some(direct) => direct.any,
            None => super::run,
        }
    }
}
