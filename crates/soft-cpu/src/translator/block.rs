//! A block's translation from its entries to its ends.
//!
//! ```text
//! far:     RAX holds the address mixed with the jump tag       from remembered jumps
//!          page_ip = address less the block's offset
//! checked: attention? still the bytes that were decoded?       from backward jumps within the page
//! hot:     like checked, but the flags are in the host's       from backward jumps, if the block sets them before use
//! near:    units open, vectors loaded?                         from forward jumps within the page, and from Rust
//!          instructions
//!          flags to the CPU's state
//!          jump(s), each patched to its target once that is translated
//! ```

use iced_x86::{
    Encoder, FlowControl, Instruction, InstructionInfo, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
};

use super::asm::{Asm, Mem, Patch, cc, host};
use super::emit::{Context, Emitter, Link, Slow, Stub};
use super::flags::{FlagUse, Flags};
use super::frame::place;
use super::instruction::Facts;
use super::registers::{Home, home, number, state};
use super::thunks::exit;
use crate::block::{Block, key};
use crate::cpu::CodeSize;
use crate::decode::flags::flags_live;
use crate::decode::has_memory;
use crate::mmu::{PAGE, PAGE_MASK};
use crate::native::{InPlace, NativePool};
use crate::ops::moves;

/// Needs that have to do with vector registers.
const VECTOR_UNITS: u8 = crate::native::gate::SSE | crate::native::gate::AVX;

/// Offsets in the page that blocks are linked to: an instruction there lies wholly in the page.
const LINKED: std::ops::Range<i32> = 0..PAGE as i32 - 14;

/// A finished translation.
pub(super) struct Translated {
    pub code: Vec<u8>,
    pub far: usize,
    pub checked: usize,
    /// Like `checked`, for flags that are in the host's only.
    pub hot: Option<usize>,
    pub near: usize,
    /// Bits of [`crate::Cpu::closed`] under which the block must be interpreted.
    pub needs: u8,
}

/// Translates `block`; `None` if it is of a kind that stays interpreted.
pub(super) fn translate(block: *mut Block, pool: &NativePool, base: u64, context: Context) -> Option<Translated> {
    // SAFETY: the caller passes a live block; nothing changes its code.
    let instructions: Vec<Instruction> = unsafe { (*block).instructions().collect() };
    let first = instructions.first()?;
    // SAFETY: as above.
    let offset = (unsafe { (*block).gpa() } % PAGE) as i32;
    let mut emitter = Emitter {
        context,
        asm: Asm { bytes: Vec::with_capacity(64 * instructions.len() + 512) },
        base,
        block,
        decoded_at: first.ip(),
        offset,
        flags: Flags::IN_STATE,
        stubs: Vec::new(),
        encoder: Encoder::try_new(64).ok()?,
    };
    let (facts, live) = facts(&instructions, pool);
    let needs = facts.iter().filter_map(|f| f.in_place).fold(0, |needs, in_place| needs | in_place.needs);
    let [far, checked, hot, near] = emitter.entries(needs, live == 0);
    let last = instructions.len() - 1;
    let mut factory = InstructionInfoFactory::new();
    for (index, (insn, facts)) in instructions.iter().zip(&facts).enumerate() {
        if index == last && insn.flow_control() != FlowControl::Next {
            emitter.branch(insn, instructions.len() as u32)?;
        } else {
            emitter.instruction(insn, facts, &mut factory)?;
            if index == last {
                let next = emitter.page_offset(insn.next_ip())?;
                emitter.edge(next, 0, instructions.len() as u32);
            }
        }
    }
    let hot = (live == 0 && needs == 0).then_some(hot);
    Some(Translated { code: emitter.finish(), far, checked, hot, near, needs })
}

/// What is known of each instruction, and the flags that are read before the first sets them.
fn facts(instructions: &[Instruction], pool: &NativePool) -> (Vec<Facts>, u32) {
    let (live, before) = flags_live(instructions);
    let mut facts: Vec<Facts> = instructions
        .iter()
        .zip(live)
        .map(|(insn, live)| Facts { live, in_place: in_place(insn, pool), loads_vectors: false })
        .collect();
    let mut later = false;
    for facts in facts.iter_mut().rev() {
        facts.loads_vectors = later;
        later |= facts.in_place.is_some_and(|in_place| in_place.needs & VECTOR_UNITS != 0);
    }
    (facts, before)
}

/// What it takes to run an instruction in place; `None` for those that Rust runs.
fn in_place(insn: &Instruction, pool: &NativePool) -> Option<InPlace> {
    if insn.flow_control() != FlowControl::Next || insn.is_invalid() || insn.is_stack_instruction() {
        return None;
    }
    let memory = (0..insn.op_count()).find(|&operand| insn.op_kind(operand) == OpKind::Memory);
    if matches!(insn.mnemonic(), Mnemonic::Vzeroupper | Mnemonic::Vzeroall) {
        return Some(InPlace { memory: None, len: 0, align_mask: 0, needs: pool.compile(insn)?.needs() });
    }
    if !is_integer(insn) || insn.has_lock_prefix() {
        return pool.compile(insn)?.in_place();
    }
    let general = |operand: u32| match insn.op_kind(operand) {
        OpKind::Register => insn.op_register(operand).is_gpr(),
        _ => true,
    };
    if !(0..insn.op_count()).all(general) {
        return None;
    }
    let Some(operand) = memory else { return Some(InPlace { memory: None, len: 0, align_mask: 0, needs: 0 }) };
    let writes = operand == 0 && !matches!(insn.mnemonic(), Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Imul);
    let len = insn.memory_size().size() as u32;
    matches!(len, 1 | 2 | 4 | 8).then_some(InPlace { memory: Some(writes), len, align_mask: 0, needs: 0 })
}

/// Plain integer instructions, whose form alone says what they do with memory.
fn is_integer(insn: &Instruction) -> bool {
    use Mnemonic::*;
    let exchange = insn.mnemonic() == Xchg && !has_memory(insn);
    exchange
        || moves::is_setcc(insn)
        || moves::is_cmovcc(insn)
        || matches!(insn.mnemonic(), Mov | Movzx | Movsx | Movsxd | Add | Or | Adc | Sbb | And | Sub | Xor | Cmp | Test)
        || matches!(insn.mnemonic(), Inc | Dec | Neg | Not | Shl | Sal | Shr | Sar | Rol | Ror | Bswap)
        || matches!(insn.mnemonic(), Cbw | Cwde | Cdqe | Cwd | Cdq | Cqo)
        || insn.mnemonic() == Imul && insn.op_count() > 1
}

/// Integer code: a block of such instructions needs no unit to be open.
fn is_plain(insn: &Instruction) -> bool {
    insn.cpuid_features().iter().all(|feature| {
        use iced_x86::CpuidFeature::*;
        matches!(
            feature,
            INTEL8086 | INTEL186 | INTEL286 | INTEL386 | INTEL486 | X64 | CMOV | BMI1 | BMI2 | MULTIBYTENOP
        )
    })
}

fn is_nothing(insn: &Instruction) -> bool {
    matches!(insn.mnemonic(), Mnemonic::Nop | Mnemonic::Endbr64 | Mnemonic::Endbr32)
}

impl Emitter<'_> {
    /// Emits the entries; returns where they are. With `kills`, the block sets all flags before it reads them.
    fn entries(&mut self, needs: u8, kills: bool) -> [usize; 4] {
        let offset = self.offset;
        // SAFETY: the block is live.
        let (first, second) = unsafe { ((*self.block).stamp, (*self.block).second()) };
        let stamps: Vec<_> = [Some(first), second.map(|second| second.stamp)].into_iter().flatten().collect();
        let far = self.asm.here();
        self.asm.op_mem(true, &[super::asm::opcode::XOR], host::RAX, place::JUMP_TAG);
        self.asm.lea(host::RAX, Mem::Base(host::RAX, -offset));
        self.asm.store(place::PAGE_IP, host::RAX);
        let checked = self.asm.here();
        let patch = self.check_attention();
        self.stubs.push(Stub::Exit { patch, reason: exit::LOOK, offset, hot: false });
        for stamp in &stamps {
            let (cell, generation) = stamp.parts();
            self.asm.mov_imm(host::RCX, cell as u64);
            self.asm.cmp_mem_imm(Mem::Base(host::RCX, 0), generation);
            let patch = self.asm.jcc(cc::NE);
            self.stubs.push(Stub::Exit { patch, reason: exit::INTERPRET, offset, hot: false });
        }
        let mut hot = 0;
        if kills && needs == 0 {
            let over = self.asm.jmp();
            hot = self.asm.here();
            self.asm.load(host::RCX, place::ATTENTION);
            self.asm.op_mem(false, &[super::asm::opcode::MOV_LOAD], host::RCX, Mem::Base(host::RCX, 0));
            let patch = self.asm.jmp_unless_rcx_is_zero();
            self.stubs.push(Stub::Exit { patch, reason: exit::LOOK, offset, hot: true });
            for stamp in &stamps {
                let (cell, generation) = stamp.parts();
                self.asm.mov_imm(host::RCX, cell as u64);
                self.asm.op_mem(false, &[super::asm::opcode::MOV_LOAD], host::RCX, Mem::Base(host::RCX, 0));
                let minus = (generation as i32).wrapping_neg();
                self.asm.op_mem(false, &[super::asm::opcode::LEA], host::RCX, Mem::Base(host::RCX, minus));
                let patch = self.asm.jmp_unless_rcx_is_zero();
                self.stubs.push(Stub::Exit { patch, reason: exit::INTERPRET, offset, hot: true });
            }
            self.asm.bind_here(over);
        }
        let near = self.asm.here();
        if needs & VECTOR_UNITS != 0 {
            self.asm.test_mem_imm(place::VECTORS_MISSING, needs);
            let patch = self.asm.jcc(cc::NE);
            let back = self.asm.here();
            self.stubs.push(Stub::Vectors { patch, back, needs, offset });
        } else if needs != 0 {
            self.asm.test_mem_imm(place::CLOSED, needs);
            let patch = self.asm.jcc(cc::NE);
            self.stubs.push(Stub::Exit { patch, reason: exit::INTERPRET, offset, hot: false });
        }
        [far, checked, hot, near]
    }

    /// Whether the code at an offset of the page sets all flags before anything reads them.
    fn kills_flags(&mut self, offset: i32) -> bool {
        if self.context.counts || !LINKED.contains(&offset) {
            return false;
        }
        // SAFETY: the block is live.
        let page = unsafe { (*self.block).gpa() } & PAGE_MASK;
        let Some(target) = self.context.blocks.get(key(page | offset as u64, CodeSize::Bits64, false)) else {
            return false;
        };
        // SAFETY: the cache returned a live block.
        let target = unsafe { &*target };
        target.is_linkable() && target.live_flags == 0 && target.instructions().all(|insn| is_plain(&insn))
    }

    fn instruction(&mut self, insn: &Instruction, facts: &Facts, factory: &mut InstructionInfoFactory) -> Option<()> {
        if is_nothing(insn) || facts.in_place.is_some_and(|p| p.memory.is_none()) && has_memory(insn) {
            // A hint, or a prefetch.
            return Some(());
        }
        let info = factory.info(insn);
        let spoils = self.before_writing(insn, facts, info);
        let done = match insn.mnemonic() {
            Mnemonic::Lea => self.lea(insn),
            Mnemonic::Push => self.push(insn, facts),
            Mnemonic::Pop => self.pop(insn, facts),
            Mnemonic::Leave => self.leave(insn, facts),
            _ => self.in_place(insn, facts, info),
        };
        match done {
            Some(()) => {}
            None => self.call_site(insn, facts.loads_vectors)?,
        }
        if spoils {
            self.flags.recipe = None;
        }
        Some(())
    }

    /// Saves the flags if `insn` overwrites what they could be computed from; true if it does so and leaves no recipe of
    /// its own.
    fn before_writing(&mut self, insn: &Instruction, facts: &Facts, info: &InstructionInfo) -> bool {
        let Some(recipe) = self.flags.recipe else { return false };
        let written = info
            .used_registers()
            .iter()
            .filter(|used| used.register().is_gpr() && !matches!(used.access(), OpAccess::Read | OpAccess::CondRead))
            .filter_map(|used| match home(number(used.register())) {
                Home::Host(register) => Some(1_u16 << register),
                Home::State => None,
            })
            .fold(0, |all, one| all | one);
        if recipe.reads & written == 0 {
            return false;
        }
        let flags = FlagUse::of(insn, facts.live);
        let looks_up = has_memory(insn) && insn.mnemonic() != Mnemonic::Lea || insn.is_stack_instruction();
        if flags.passes && !self.flags.in_state && (looks_up || !self.flags.in_host) {
            self.sync_flags();
        }
        !flags.sets
    }

    /// A jump to an offset from the page's start, by the block's end `end`.
    fn edge(&mut self, offset: i32, end: u32, count: u32) {
        if !self.flags.in_state && self.kills_flags(offset) {
            self.need_flags();
            let patch = self.asm.jmp();
            self.link(patch, offset, end, true);
            return;
        }
        self.sync_flags();
        if self.context.counts {
            for patch in self.count(count) {
                self.stubs.push(Stub::Exit { patch, reason: exit::LOOK, offset, hot: false });
            }
        }
        // An instruction near the end of the page may run into the next one, which only a full lookup vouches for.
        if !LINKED.contains(&offset) {
            self.asm.load(host::RAX, place::PAGE_IP);
            self.asm.lea(host::RAX, Mem::Base(host::RAX, offset));
            self.jump_far();
            return;
        }
        let patch = self.asm.jmp();
        self.link(patch, offset, end, false);
    }

    /// Makes the jump of `patch` one that is led to its target once that is translated.
    fn link(&mut self, patch: Patch, offset: i32, end: u32, hot: bool) {
        let at = (self.base + patch.0 as u64) as *const u8;
        let link = self.context.links.len() as u32;
        self.context.links.push(Link { at, block: self.block, end, hot, backward: offset <= self.offset });
        self.stubs.push(Stub::Link { patch, link, offset, hot });
    }

    /// The branch that ends the block.
    fn branch(&mut self, insn: &Instruction, count: u32) -> Option<()> {
        if insn.is_jcc_short_or_near() {
            return self.conditional(insn, count);
        }
        if insn.is_jmp_short_or_near() {
            let target = self.page_offset(insn.near_branch_target())?;
            self.edge(target, 0, count);
            return Some(());
        }
        self.sync_flags();
        if insn.is_call_near() {
            return self.call(insn, count);
        }
        let flat = insn.op_count() == 0 || insn.op0_kind() != OpKind::Memory || has_wide_address(insn);
        match insn.mnemonic() {
            Mnemonic::Ret if insn.stack_pointer_increment() >= 8 && is_ret_64(insn) => self.ret(insn, count),
            Mnemonic::Jmp if insn.is_jmp_near_indirect() && flat => self.jump_indirect(insn, count),
            Mnemonic::Call if insn.is_call_near_indirect() && flat => self.call_indirect(insn, count),
            _ => {
                self.call_site(insn, false)?;
                // What Rust runs here may also fall through.
                let next = self.page_offset(insn.next_ip())?;
                self.edge(next, 0, count);
                Some(())
            }
        }
    }

    fn conditional(&mut self, insn: &Instruction, count: u32) -> Option<()> {
        let target = self.page_offset(insn.near_branch_target())?;
        let next = self.page_offset(insn.next_ip())?;
        self.need_flags();
        let hot = !self.flags.in_state && self.kills_flags(target);
        if !hot {
            self.sync_flags();
        }
        let taken = self.asm.jcc(moves::condition_code(insn));
        if LINKED.contains(&target) && !self.context.counts {
            self.link(taken, target, 1, hot);
            self.edge(next, 0, count);
        } else {
            self.edge(next, 0, count);
            self.asm.bind_here(taken);
            self.edge(target, 1, count);
        }
        Some(())
    }

    /// A site whose operation ends the block.
    fn slow_end(&mut self, insn: &Instruction, patches: Vec<Patch>) -> Option<()> {
        let site = self.site(insn)?;
        let slow = Slow { patches, site, recipe: None, done: None, loads_flags: false, loads_vectors: false };
        self.stubs.push(Stub::Slow(slow));
        Some(())
    }

    /// Pushes the address after `insn`; the patches are for [`Emitter::slow_end`].
    fn push_return(&mut self, insn: &Instruction) -> Option<Vec<Patch>> {
        let next = self.page_offset(insn.next_ip())?;
        let patches = self.stack_slot();
        self.asm.load(host::RCX, place::PAGE_IP);
        self.asm.lea(host::RCX, Mem::Base(host::RCX, next));
        self.asm.store(Mem::Base(host::RAX, 0), host::RCX);
        self.asm.lea(host::R15, Mem::Base(host::R15, -8));
        Some(patches)
    }

    fn call(&mut self, insn: &Instruction, count: u32) -> Option<()> {
        let target = self.page_offset(insn.near_branch_target())?;
        let patches = self.push_return(insn)?;
        self.slow_end(insn, patches)?;
        self.edge(target, 0, count);
        Some(())
    }

    /// After [`Emitter::look_up`] has succeeded and the branch has taken effect: on to the target.
    fn leave_by_slot(&mut self, count: u32) {
        if self.context.counts {
            self.asm.store(place::SPILL, host::RCX);
            for patch in self.count(count) {
                self.stubs.push(Stub::Mixed { patch, reason: exit::LOOK });
            }
            self.asm.load(host::RCX, place::SPILL);
        }
        self.jump_to_slot();
    }

    fn ret(&mut self, insn: &Instruction, count: u32) -> Option<()> {
        self.asm.mov(host::RAX, host::R15);
        let mut patches = self.translate(false, 8, 0);
        self.asm.load(host::RAX, Mem::Base(host::RAX, 0));
        patches.push(self.look_up());
        self.slow_end(insn, patches)?;
        self.asm.lea(host::R15, Mem::Base(host::R15, insn.stack_pointer_increment()));
        self.leave_by_slot(count);
        Some(())
    }

    /// The target of an indirect branch, into RAX.
    fn indirect_target(&mut self, insn: &Instruction) -> Option<Vec<Patch>> {
        if insn.op0_kind() == OpKind::Memory {
            self.address(insn)?;
            let patches = self.translate(false, 8, 0);
            self.asm.load(host::RAX, Mem::Base(host::RAX, 0));
            return Some(patches);
        }
        let guest = number(insn.op0_register());
        match home(guest) {
            Home::Host(register) => self.asm.mov(host::RAX, register),
            Home::State => self.asm.load(host::RAX, state(guest)),
        }
        Some(Vec::new())
    }

    fn jump_indirect(&mut self, insn: &Instruction, count: u32) -> Option<()> {
        let mut patches = self.indirect_target(insn)?;
        patches.push(self.look_up());
        self.slow_end(insn, patches)?;
        self.leave_by_slot(count);
        Some(())
    }

    fn call_indirect(&mut self, insn: &Instruction, count: u32) -> Option<()> {
        let mut patches = self.indirect_target(insn)?;
        patches.push(self.look_up());
        self.asm.store(place::SPILL, host::RCX);
        patches.extend(self.push_return(insn)?);
        self.slow_end(insn, patches)?;
        self.asm.load(host::RCX, place::SPILL);
        self.asm.load(host::RAX, Mem::Base(host::RCX, 0));
        self.leave_by_slot(count);
        Some(())
    }
}

fn is_ret_64(insn: &Instruction) -> bool {
    matches!(insn.code(), iced_x86::Code::Retnq | iced_x86::Code::Retnq_imm16)
}

fn has_wide_address(insn: &Instruction) -> bool {
    crate::decode::address_size(insn, crate::cpu::CodeSize::Bits64) == 8
}
