//! Debug registers: breakpoints on instructions, data and I/O (SDM vol. 3B §18.2; APM vol. 2 §13.1).
//!
//! Promise: a program that sets no breakpoint pays nothing. While DR7 enables one, instructions run one at a time: before
//! each, [`Cpu::instruction_breakpoint`] compares its address; the accesses it is about to make are computed from its
//! operands ([`Cpu::watched_accesses`]) and count once it has completed.
//!
//! Not watched: what instructions do to descriptor tables and task state, and the single elements of gathers; a masked
//! store counts as a store of all its bytes.

use iced_x86::{CodeSize, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register, UsedMemory};

use crate::cpu::{Cpu, slot};
use crate::fault::{Exception, Outcome, vector};
use crate::state::{bits, gpr, rflags};
use crate::system::operand::{segment_index, size_mask};

/// DR6: the trap of RFLAGS.TF.
const SINGLE_STEP: u64 = 1 << 14;
/// DR7: the local and global enable bits of the four breakpoints.
const ENABLES: u64 = 0xff;

/// What a breakpoint waits for: DR7's R/W field.
mod condition {
    pub const EXECUTE: u64 = 0;
    pub const WRITE: u64 = 1;
    pub const IO: u64 = 2;
    pub const ACCESS: u64 = 3;
}

/// Traps that wait for the next instruction.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Debug {
    /// A load of SS has just completed: nothing of the debug machinery strikes before the next instruction is complete.
    pub shadow: bool,
    /// DR6 bits of the traps that the shadow holds back.
    held: u64,
}

/// One of the four breakpoints, enabled.
struct Breakpoint {
    /// Its bit in DR6.
    bit: u64,
    condition: u64,
    first: u64,
    bytes: u64,
}

impl Breakpoint {
    fn meets(&self, address: u64, bytes: u64) -> bool {
        // Distances instead of ends, which may lie beyond 2^64.
        self.first.wrapping_sub(address) < bytes || address.wrapping_sub(self.first) < self.bytes
    }
}

/// DR6 bits that are due when the instruction about to run has completed.
pub(crate) struct Watch(u64);

impl Cpu {
    /// Whether DR7 enables any breakpoint.
    #[inline(always)]
    pub(crate) fn has_breakpoints(&self) -> bool {
        self.dr[7] & ENABLES != 0
    }

    /// Whether a repeated instruction must stop after each iteration for a trap.
    #[inline(always)]
    pub(crate) fn traps_iterations(&self) -> bool {
        self.rflags_system & rflags::TF != 0 || self.has_breakpoints()
    }

    fn breakpoints(&self) -> impl Iterator<Item = Breakpoint> + '_ {
        (0..4).filter(|n| self.dr[7] >> (2 * n) & 3 != 0).map(|n| {
            let bytes = [1, 2, 8, 4][(self.dr[7] >> (18 + 4 * n) & 3) as usize];
            Breakpoint {
                bit: 1 << n,
                condition: self.dr[7] >> (16 + 4 * n) & 3,
                first: self.dr[n as usize] & !(bytes - 1),
                bytes,
            }
        })
    }

    /// Raises #DB if a breakpoint lies on the instruction that is about to run. RFLAGS.RF and the shadow of a load of SS
    /// hold for that one instruction.
    pub(crate) fn instruction_breakpoint(&mut self) -> Outcome<()> {
        if !self.has_breakpoints() || self.rflags_system & rflags::RF != 0 || self.debug.shadow {
            return Ok(());
        }
        let address = self.code_address(self.rip);
        let hits = self
            .breakpoints()
            .filter(|breakpoint| breakpoint.condition == condition::EXECUTE && breakpoint.first == address)
            .fold(0, |hits, breakpoint| hits | breakpoint.bit);
        if hits == 0 { Ok(()) } else { self.fail(debug_exception(hits)) }
    }

    /// Called before an instruction runs: what will be due after it. RFLAGS.RF ends here.
    pub(crate) fn watch(&mut self, insn: Option<&Instruction>) -> Watch {
        self.rflags_system &= !rflags::RF;
        let Debug { held, .. } = std::mem::take(&mut self.debug);
        let hits = match insn {
            Some(insn) if self.has_breakpoints() => self.watched_accesses(insn),
            _ => 0,
        };
        Watch(held | hits)
    }

    /// Called after an instruction, or an iteration of a repeated one, has completed: raises the traps that are due.
    pub(crate) fn debug_traps(&mut self, watch: Watch, iteration: bool) -> Outcome<()> {
        let stepped = std::mem::take(&mut self.trap_pending);
        if iteration && self.has_breakpoints() {
            // The rest of the repetition is the same instruction: its breakpoint has been met already.
            self.rflags_system |= rflags::RF;
        }
        if self.debug.shadow {
            self.debug.held = watch.0;
            return Ok(());
        }
        let due = watch.0 | if stepped { SINGLE_STEP } else { 0 };
        if due == 0 { Ok(()) } else { self.fail(debug_exception(due)) }
    }

    /// INT1 has delivered a #DB of its own: what else is due is told by DR6 and not delivered again, on top of the frame
    /// of the first.
    pub(crate) fn merge_debug_traps(&mut self, watch: &mut Watch) {
        self.dr[6] |= std::mem::take(&mut watch.0);
    }

    /// Casts the shadow of a load of SS over the debug machinery.
    pub(crate) fn shadow_debug_traps(&mut self) {
        self.debug.shadow = true;
        self.trap_pending = false;
    }

    /// DR6 bits of the data and I/O breakpoints that `insn`, at `rip`, meets.
    fn watched_accesses(&self, insn: &Instruction) -> u64 {
        if is_idle_repetition(self, insn) {
            return 0;
        }
        let mut hits = self.watched_ports(insn);
        let mut factory = InstructionInfoFactory::new();
        for memory in factory.info(insn).used_memory() {
            let writes = match memory.access() {
                OpAccess::Read | OpAccess::CondRead => false,
                OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite => true,
                _ => continue,
            };
            let address = self.used_address(insn, memory);
            let bytes = (memory.memory_size().size() as u64).max(1);
            hits |= self
                .breakpoints()
                .filter(|b| b.condition == condition::ACCESS || writes && b.condition == condition::WRITE)
                .filter(|b| b.meets(address, bytes))
                .fold(0, |hits, b| hits | b.bit);
        }
        hits
    }

    fn used_address(&self, insn: &Instruction, memory: &UsedMemory) -> u64 {
        let general = |register: Register| if register.is_gpr() { self.register(register) } else { 0 };
        let mut offset = memory
            .displacement()
            .wrapping_add(general(memory.base()))
            .wrapping_add(general(memory.index()).wrapping_mul(u64::from(memory.scale())));
        if insn.is_ip_rel_memory_operand() && memory.displacement() == insn.ip_rel_memory_address() {
            // Decoded at an address that need not be the one it runs at.
            offset = offset.wrapping_add(self.rip.wrapping_sub(insn.ip()));
        }
        offset &= match memory.address_size() {
            _ if memory.base().full_register() == Register::RSP => self.stack_mask,
            CodeSize::Code16 => 0xffff,
            CodeSize::Code32 => 0xffff_ffff,
            _ => u64::MAX,
        };
        let base = match memory.segment() {
            Register::None => 0,
            segment => self.regs[slot::SEGMENT_BASES + segment_index(segment)],
        };
        let linear = base.wrapping_add(offset);
        if self.flat() { linear } else { linear & 0xffff_ffff }
    }

    fn watched_ports(&self, insn: &Instruction) -> u64 {
        if self.cr4 & bits::CR4_DE == 0 {
            return 0;
        }
        let Some(bytes) = port_bytes(insn) else { return 0 };
        let immediate = (0..insn.op_count()).any(|index| insn.op_kind(index) == OpKind::Immediate8);
        let port = if immediate { u64::from(insn.immediate8()) } else { self.regs[gpr::RDX] & 0xffff };
        self.breakpoints()
            .filter(|breakpoint| breakpoint.condition == condition::IO && breakpoint.meets(port, bytes))
            .fold(0, |hits, breakpoint| hits | breakpoint.bit)
    }
}

/// #DB with what it adds to DR6.
fn debug_exception(cause: u64) -> Exception {
    Exception { address: cause, ..Exception::new(vector::DB) }
}

/// A repeated instruction whose count is zero: it accesses nothing.
fn is_idle_repetition(cpu: &Cpu, insn: &Instruction) -> bool {
    let repeated = insn.is_string_instruction() && (insn.has_rep_prefix() || insn.has_repne_prefix());
    let address_bytes = crate::decode::address_size(insn, cpu.code_size);
    repeated && cpu.regs[gpr::RCX] & size_mask(usize::from(address_bytes)) == 0
}

/// Bytes that an instruction moves through a port, if it does.
fn port_bytes(insn: &Instruction) -> Option<u64> {
    use Mnemonic::*;
    match insn.mnemonic() {
        Insb | Outsb => Some(1),
        Insw | Outsw => Some(2),
        Insd | Outsd => Some(4),
        In => Some(insn.op0_register().size() as u64),
        Out => Some(insn.op1_register().size() as u64),
        _ => None,
    }
}
