//! One block's translation under construction: the code so far, where the flags are, and what is out of line.

use std::mem::offset_of;

use iced_x86::{Encoder, Instruction, OpKind, Register};
use queztl_guest_memory::Table;

use super::asm::{Asm, Mem, Patch, cc, group, host, opcode};
use super::flags::{Flags, Recipe};
use super::frame::{JUMP_FOLD, JUMP_SHIFT, Jump, NO_JUMP, NOT_LOADED, SLOTS, place};
use super::registers::{Home, home, number, state};
use super::thunks::{Thunks, exit};
use crate::arena::table;
use crate::block::BlockCache;
use crate::cpu::{Cpu, slot};
use crate::mmu::{Entry, PAGE, TlbSet};
use crate::system::operand::segment_index;

/// An operation of a block that Rust runs for translated code.
#[derive(Clone, Copy)]
pub(super) struct Site {
    pub block: *mut crate::block::Block,
    pub op: *const crate::op::Op,
}

/// A jump from one block to another in the same page, patched once the other is translated.
#[derive(Clone, Copy)]
pub(super) struct Link {
    /// Executable address of the displacement.
    pub at: *const u8,
    pub block: *mut crate::block::Block,
    /// Which of the block's ends: 0 or 1.
    pub end: u32,
    /// The flags are in the host's only, and the target does not read them.
    pub hot: bool,
    /// The jump may close a loop, so that pending work must be looked at behind it.
    pub backward: bool,
}

/// Code that is reached rarely, put after the block's own.
pub(super) enum Stub {
    /// The instruction's operations are run by Rust; then back to `done`.
    Slow(Slow),
    /// Out, to `rip` = page + offset; `hot` if the flags are in the host's only.
    Exit { patch: Patch, reason: u32, offset: i32, hot: bool },
    /// Out by a link.
    Link { patch: Patch, link: u32, offset: i32, hot: bool },
    /// Out, to the address in RAX, which is mixed with the jump tag.
    Mixed { patch: Patch, reason: u32 },
    /// The same, from a jump that remembers its target in a slot of its own.
    Slot { patch: Patch, slot: u32 },
    /// Loads the vector registers, and tests again that the units are open.
    Vectors { patch: Patch, back: usize, needs: u8, offset: i32 },
}

/// A call into Rust that happens rarely.
pub(super) struct Slow {
    pub patches: Vec<Patch>,
    pub site: u32,
    /// How to get the flags that Rust must see, if the CPU's state does not hold them.
    pub recipe: Option<Recipe>,
    /// Where to go on; `None` for operations that end the block.
    pub done: Option<usize>,
    pub loads_flags: bool,
    pub loads_vectors: bool,
}

/// Targets that jumps to other pages remember, one each.
pub(super) struct Slots {
    jumps: Table<Jump>,
    used: usize,
}

impl Default for Slots {
    fn default() -> Slots {
        Slots { jumps: table(SLOTS), used: 0 }
    }
}

impl Slots {
    /// A slot that is free until all are cleared, and its address.
    fn take(&mut self) -> Option<(u32, u64)> {
        let slot = self.used;
        let address = self.jumps.get(slot)? as *const Jump as u64;
        self.used += 1;
        Some((slot as u32, address))
    }

    /// Sets a slot, unless all have become free since.
    pub fn set(&mut self, slot: u32, jump: Jump) {
        if let Some(place) = self.jumps[..self.used].get_mut(slot as usize) {
            *place = jump;
        }
    }

    /// No slot remembers anything; with `free`, no slot is taken either.
    pub fn clear(&mut self, free: bool) {
        self.jumps[..self.used].fill(NO_JUMP);
        if free {
            self.used = 0;
        }
    }

    /// All slots are free, and their memory is the host's.
    pub fn release(&mut self) {
        self.jumps.release();
        self.used = 0;
    }
}

/// What stays the same for all blocks of a CPU.
pub(super) struct Context<'a> {
    pub blocks: &'a mut BlockCache,
    pub thunks: Thunks,
    pub sites: &'a mut Vec<Site>,
    pub links: &'a mut Vec<Link>,
    pub slots: &'a mut Slots,
    /// Instructions are counted exactly.
    pub counts: bool,
    pub bmi2: bool,
}

/// A block being translated.
pub(super) struct Emitter<'a> {
    pub context: Context<'a>,
    pub asm: Asm,
    /// Executable address of the code's first byte.
    pub base: u64,
    pub block: *mut crate::block::Block,
    /// The address at which the block was decoded.
    pub decoded_at: u64,
    /// Offset of the block in its page.
    pub offset: i32,
    pub flags: Flags,
    pub stubs: Vec<Stub>,
    pub encoder: Encoder,
}

const SLOT_MASK: i32 = ((TlbSet::ENTRIES - 1) * size_of::<Entry>()) as i32;
const SLOT_SHIFT: u8 = 12 - size_of::<Entry>().trailing_zeros() as u8;

impl Emitter<'_> {
    /// The displacement of instruction address `ip`, as decoded, from the start of the block's page.
    pub fn page_offset(&self, ip: u64) -> Option<i32> {
        i32::try_from(ip.wrapping_sub(self.decoded_at) as i64 + i64::from(self.offset)).ok()
    }

    /// Makes sure that the CPU's state holds the flags. May destroy RAX.
    pub fn sync_flags(&mut self) {
        if self.flags.in_state {
            return;
        }
        if let (false, Some(recipe)) = (self.flags.in_host, self.flags.recipe) {
            recipe.emit(&mut self.asm);
            self.flags.in_host = true;
        }
        if self.flags.in_host {
            self.asm.store_flags(place::FLAGS);
            self.flags.in_state = true;
        }
    }

    /// Makes sure that the flags survive a lookup of memory: in the CPU's state, or by the recipe returned, which the
    /// slow path must follow. May destroy RAX.
    pub fn guard_flags(&mut self) -> Option<Recipe> {
        if !self.flags.in_state && self.flags.recipe.is_some() {
            return self.flags.recipe;
        }
        self.sync_flags();
        None
    }

    /// Makes sure that the host's flags are the guest's. May destroy RAX.
    pub fn need_flags(&mut self) {
        if self.flags.in_host {
            return;
        }
        match self.flags.recipe {
            Some(recipe) if recipe.short || !self.flags.in_state => recipe.emit(&mut self.asm),
            _ => self.asm.load_flags(place::FLAGS),
        }
        self.flags.in_host = true;
    }

    /// Makes sure that the host's carry is the guest's; the other flags need not be.
    pub fn need_carry(&mut self) {
        if self.flags.in_host {
            return;
        }
        if self.flags.in_state && !self.flags.recipe.is_some_and(|recipe| recipe.short) {
            // bt word [flags], 8: as wide as the store, which is forwarded then.
            self.asm.raw(&[0x66]);
            self.asm.op_mem(false, &[0x0f, 0xba], 4, place::FLAGS);
            self.asm.raw(&[8]);
        } else {
            self.need_flags();
        }
    }

    /// The linear address of the memory operand into RAX; may destroy RCX. `None` for addresses that are not 64 bits
    /// wide. Keeps the flags.
    pub fn address(&mut self, insn: &Instruction) -> Option<()> {
        let mem = self.plain_address(insn)?;
        if mem != Mem::Base(host::RAX, 0) {
            self.asm.lea(host::RAX, mem);
        }
        let segment = insn.memory_segment();
        if matches!(segment, Register::FS | Register::GS) {
            self.asm.load(host::RCX, state(slot::SEGMENT_BASES + segment_index(segment)));
            self.asm.lea(host::RAX, Mem::Indexed(Some(host::RAX), host::RCX, 0, 0));
        }
        Some(())
    }

    /// The effective address, without its segment, as a host operand over RAX, RCX and guest registers.
    pub fn plain_address(&mut self, insn: &Instruction) -> Option<Mem> {
        let wide = |register: Register| register == Register::None || register.size() == 8;
        if !is_wide(insn) || !wide(insn.memory_base()) || !wide(insn.memory_index()) {
            return None;
        }
        if insn.memory_base() == Register::RIP {
            let disp = self.page_offset(insn.memory_displacement64())?;
            self.asm.load(host::RAX, place::PAGE_IP);
            return Some(Mem::Base(host::RAX, disp));
        }
        let disp = i32::try_from(insn.memory_displacement64() as i64).ok()?;
        let base = (insn.memory_base() != Register::None).then(|| self.bring(insn.memory_base(), host::RAX));
        if insn.memory_index() == Register::None {
            return Some(match base {
                Some(base) => Mem::Base(base, disp),
                None => {
                    // mov rax, imm32, sign-extended
                    self.asm.raw(&[0x48, 0xc7, 0xc0]);
                    self.asm.raw(&disp.to_le_bytes());
                    Mem::Base(host::RAX, 0)
                }
            });
        }
        let index = self.bring(insn.memory_index(), host::RCX);
        let scale = insn.memory_index_scale().trailing_zeros() as u8;
        Some(Mem::Indexed(base, index, scale, disp))
    }

    /// The host register that holds guest register `register`, loaded into `scratch` if it lives elsewhere.
    pub fn bring(&mut self, register: Register, scratch: u8) -> u8 {
        let guest = number(register);
        match home(guest) {
            Home::Host(register) => register,
            Home::State => {
                self.asm.load(scratch, state(guest));
                scratch
            }
        }
    }

    /// From the linear address in RAX to the host address there, for `len` bytes; destroys RCX and the flags. The
    /// patches lead to where Rust does the access.
    pub fn translate(&mut self, write: bool, len: u32, align_mask: u32) -> Vec<Patch> {
        self.flags.in_host = false;
        let asm = &mut self.asm;
        let mut patches = Vec::with_capacity(2);
        if align_mask != 0 {
            // test eax, align_mask
            asm.raw(&[0xa9]);
            asm.raw(&align_mask.to_le_bytes());
            patches.push(asm.jcc(cc::NE));
        }
        if self.context.bmi2 {
            // rorx ecx, eax, shift
            asm.raw(&[0xc4, 0xe3, 0x7b, 0xf0, 0xc8, SLOT_SHIFT]);
        } else {
            asm.mov_32(host::RCX, host::RAX);
            // shr ecx, shift
            asm.raw(&[0xc1, 0xe9, SLOT_SHIFT]);
        }
        asm.group_imm(false, group::AND, host::RCX, SLOT_MASK);
        asm.op_mem(true, &[opcode::ADD], host::RCX, place::TLB);
        let tag = if write { offset_of!(Entry, write) } else { offset_of!(Entry, read) };
        let field = |field: usize| Mem::Base(host::RCX, (offset_of!(TlbSet, entries) + field) as i32);
        // A hit leaves the offset in the page; it must leave room for the operand.
        asm.op_mem(true, &[opcode::XOR], host::RAX, field(tag));
        asm.raw(&[0x48, 0x3d]);
        asm.raw(&(PAGE as u32 - len).to_le_bytes());
        patches.push(asm.jcc(cc::A));
        asm.op_mem(true, &[opcode::ADD], host::RAX, field(offset_of!(Entry, host)));
        patches
    }

    /// The number of a new site for the operations of `insn`.
    pub fn site(&mut self, insn: &Instruction) -> Option<u32> {
        let start = insn.ip().wrapping_sub(self.decoded_at) as u16;
        // SAFETY: the block is live while it is translated, and its operations stay in place as long as it lives.
        let op = unsafe { &(*self.block).ops }.iter().find(|op| op.start == start)?;
        let site = u32::try_from(self.context.sites.len()).ok()?;
        self.context.sites.push(Site { block: self.block, op });
        Some(site)
    }

    /// Runs the operations of `insn` in Rust.
    pub fn call_site(&mut self, insn: &Instruction, loads_vectors: bool) -> Option<()> {
        let site = self.site(insn)?;
        self.sync_flags();
        self.asm.mov_imm(host::RCX, u64::from(site));
        let (base, thunks) = (self.base, self.context.thunks);
        self.asm.call_to(base, thunks.run_site);
        if loads_vectors {
            self.asm.call_to(base, thunks.load_vectors);
        }
        self.flags = Flags::IN_STATE;
        Some(())
    }

    /// Appends an encoded guest instruction.
    pub fn encode(&mut self, insn: &Instruction) -> Option<()> {
        self.encoder.encode(insn, 0).ok()?;
        let bytes = self.encoder.take_buffer();
        self.asm.raw(&bytes);
        self.encoder.set_buffer({
            let mut bytes = bytes;
            bytes.clear();
            bytes
        });
        Some(())
    }

    /// Finds the block remembered for the address in RAX: its slot into RCX, RAX mixed with the jump tag. The patch is
    /// taken if there is none.
    pub fn look_up(&mut self) -> Patch {
        let asm = &mut self.asm;
        asm.mov_32(host::RCX, host::RAX);
        // shr ecx, JUMP_FOLD; xor ecx, eax; shl ecx, JUMP_SHIFT
        asm.raw(&[0xc1, 0xe9, JUMP_FOLD, 0x31, 0xc1, 0xc1, 0xe1, JUMP_SHIFT]);
        asm.op_mem(false, &[opcode::AND], host::RCX, place::JUMP_MASK);
        asm.op_mem(true, &[opcode::ADD], host::RCX, place::JUMPS);
        asm.op_mem(true, &[opcode::XOR], host::RAX, place::JUMP_TAG);
        asm.op_mem(true, &[opcode::CMP], host::RAX, Mem::Base(host::RCX, offset_of!(Jump, key) as i32));
        asm.jcc(cc::NE)
    }

    /// To the block whose slot RCX holds; RAX is the mixed address.
    pub fn jump_to_slot(&mut self) {
        self.asm.jmp_mem(Mem::Base(host::RCX, offset_of!(Jump, code) as i32));
    }

    /// Goes to the address in RAX, which is known to be canonical and the same each time under one mapping.
    pub fn jump_far(&mut self) {
        let slots = &mut *self.context.slots;
        let Some((slot, address)) = slots.take() else {
            let patch = self.look_up();
            self.stubs.push(Stub::Mixed { patch, reason: exit::INDIRECT });
            self.jump_to_slot();
            return;
        };
        let asm = &mut self.asm;
        asm.op_mem(true, &[opcode::XOR], host::RAX, place::JUMP_TAG);
        asm.mov_imm(host::RCX, address);
        asm.op_mem(true, &[opcode::CMP], host::RAX, Mem::Base(host::RCX, offset_of!(Jump, key) as i32));
        let patch = asm.jcc(cc::NE);
        self.stubs.push(Stub::Slot { patch, slot });
        self.jump_to_slot();
    }

    /// Adds to the instruction count in RCX's place; the patches are taken if something wants attention.
    pub fn count(&mut self, instructions: u32) -> [Patch; 2] {
        let asm = &mut self.asm;
        asm.load(host::RCX, place::INSTRUCTIONS);
        asm.lea(host::RCX, Mem::Base(host::RCX, instructions as i32));
        asm.store(place::INSTRUCTIONS, host::RCX);
        asm.op_mem(true, &[opcode::CMP], host::RCX, place::LIMIT);
        let limit = asm.jcc(cc::AE);
        [limit, self.check_attention()]
    }

    /// The patch is taken if another thread wants attention. Destroys RCX.
    pub fn check_attention(&mut self) -> Patch {
        self.asm.load(host::RCX, place::ATTENTION);
        self.asm.cmp_mem_imm(Mem::Base(host::RCX, 0), 0);
        self.asm.jcc(cc::NE)
    }

    /// Emits what was put off, and returns the finished code.
    pub fn finish(mut self) -> Vec<u8> {
        for stub in std::mem::take(&mut self.stubs) {
            self.stub(stub);
        }
        self.asm.bytes
    }

    fn stub(&mut self, stub: Stub) {
        let (base, thunks) = (self.base, self.context.thunks);
        let asm = &mut self.asm;
        match stub {
            Stub::Slow(Slow { patches, site, recipe, done, loads_flags, loads_vectors }) => {
                patches.into_iter().for_each(|patch| asm.bind_here(patch));
                if let Some(recipe) = recipe {
                    recipe.emit(asm);
                    asm.store_flags(place::FLAGS);
                }
                asm.mov_imm(host::RCX, u64::from(site));
                asm.call_to(base, thunks.run_site);
                if loads_vectors {
                    asm.call_to(base, thunks.load_vectors);
                }
                if loads_flags {
                    asm.load_flags(place::FLAGS);
                }
                match done {
                    Some(done) => {
                        let back = asm.jmp();
                        asm.bind(back, done);
                    }
                    // ud2: an operation that ends the block does not come back.
                    None => asm.raw(&[0x0f, 0x0b]),
                }
            }
            Stub::Exit { patch, reason, offset, hot } => {
                asm.bind_here(patch);
                if hot {
                    asm.store_flags(place::FLAGS);
                }
                leave(asm, base, &thunks, reason, offset);
            }
            Stub::Link { patch, link, offset, hot } => {
                asm.bind_here(patch);
                if hot {
                    asm.store_flags(place::FLAGS);
                }
                asm.store_imm(place::EXIT, link);
                leave(asm, base, &thunks, exit::LINK, offset);
            }
            Stub::Mixed { patch, reason } => {
                asm.bind_here(patch);
                asm.op_mem(true, &[opcode::XOR], host::RAX, place::JUMP_TAG);
                asm.store(place::RIP, host::RAX);
                asm.mov_imm(host::RAX, u64::from(reason));
                asm.jmp_to(base, thunks.leave);
            }
            Stub::Slot { patch, slot } => {
                asm.bind_here(patch);
                asm.op_mem(true, &[opcode::XOR], host::RAX, place::JUMP_TAG);
                asm.store(place::RIP, host::RAX);
                asm.store_imm(place::EXIT, slot);
                asm.mov_imm(host::RAX, u64::from(exit::SLOT));
                asm.jmp_to(base, thunks.leave);
            }
            Stub::Vectors { patch, back, needs, offset } => {
                asm.bind_here(patch);
                // cmp byte [vectors_missing], NOT_LOADED: what is loaded already is newer than the CPU's state.
                asm.op_mem(false, &[0x80], 7, place::VECTORS_MISSING);
                asm.raw(&[NOT_LOADED]);
                let closed = asm.jcc(cc::NE);
                asm.call_to(base, thunks.load_vectors);
                asm.test_mem_imm(place::VECTORS_MISSING, needs);
                let open = asm.jcc(cc::E);
                asm.bind(open, back);
                asm.bind_here(closed);
                leave(asm, base, &thunks, exit::INTERPRET, offset);
            }
        }
    }
}

/// Leaves generated code, to go on at an offset from the page's start.
fn leave(asm: &mut Asm, base: u64, thunks: &Thunks, reason: u32, offset: i32) {
    asm.load(host::RAX, place::PAGE_IP);
    asm.lea(host::RAX, Mem::Base(host::RAX, offset));
    asm.store(place::RIP, host::RAX);
    asm.mov_imm(host::RAX, u64::from(reason));
    asm.jmp_to(base, thunks.leave);
}

/// Whether the memory operand's address is 64 bits wide.
fn is_wide(insn: &Instruction) -> bool {
    let memory = (0..insn.op_count()).any(|operand| insn.op_kind(operand) == OpKind::Memory);
    memory && crate::decode::address_size(insn, crate::cpu::CodeSize::Bits64) == 8
}

const _: () = assert!(offset_of!(Cpu, regs) == 0);
