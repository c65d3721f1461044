//! The translator: x86-64 to x86-64, from the blocks that run often to host code.
//!
//! Promise: a translated block leaves exactly what its operations leave: registers, flags (the undefined ones too),
//! memory, exceptions with their addresses, and where instructions are counted, the count. Whatever cannot be translated
//! runs as the operation it was decoded to, from inside the translated block, so the translator is complete at any size.
//!
//! ```text
//! interpreter ── a block has run often ──> translate ──> code of this CPU
//!      ^                                                   │ enter: guest registers into the host's
//!      │ exits: jump to where no code is, event,           v
//!      └──────── operation that ends the block ─── block ─> block ─> block ...   linked within a page,
//!                                                    │                           by remembered targets elsewhere
//!                                                    └─ Rust runs an operation, registers out and in
//! ```
//! - **Registers**: [`registers`]. Instructions on registers are the guest's own, renamed ([`instruction`]).
//! - **Memory**: an inline lookup in the TLB, then the guest's instruction with a host pointer ([`emit`]). A miss runs the
//!   whole instruction as its operation, so faults, devices and writes to code are the interpreter's business.
//! - **Flags** stay in the host's as long as nothing disturbs them; their image is in the CPU's state wherever Rust can
//!   look: at every call and at the end of every block.
//! - **Vector registers** move to the host's own when a block that uses them is entered, and back when Rust is; x87
//!   registers are the host's anyway ([`thunks`]).
//! - **Validity**: code belongs to a block, and a block to the generation of its page. The generation is looked at wherever
//!   a block is entered from another page or by a backward jump; a CPU's own write to code ends the block that made it.
//! - **Events** are looked at in the same places, so that no chain of jumps runs past them for long.
//! - **Counting**: where an instruction count limits the run, every block counts, and looks for events, exactly where the
//!   interpreter does. Otherwise nothing is counted.
//!
//! Code is dropped as a whole when its space is used up.

mod asm;
mod block;
mod emit;
mod few;
mod flags;
mod frame;
mod instruction;
mod registers;
mod thunks;

use std::time::{Duration, Instant};

use queztl_guest_memory::Table;

use crate::arena::table;
use crate::block::Block;
use crate::code_space::CodeSpace;
use crate::cpu::{CodeSize, Cpu, slot};
use crate::mmu::{PAGE, PAGE_MASK};
use crate::op::{Flow, Op};
use block::Translated;
use emit::{Context, Link, Site, Slots};
pub(crate) use frame::Frame;
use frame::{JUMPS, Jump, NO_JUMP, NOT_LOADED, jump_mask, jump_slot, jump_slots};
use thunks::{Enter, Thunks, exit};

/// Executions after which translating a block pays, for [`Cpu::set_translator`].
pub const TRANSLATION_THRESHOLD: u32 = 100;
/// Space for a CPU's code, bytes.
const CAPACITY: usize = 128 << 20;
/// Blocks start at multiples of this.
const ALIGN: usize = 16;
/// Tags have 15 bits: with the sign of the address in the highest bit, no two tags make the same key.
const TAGS: u64 = 1 << 15;

/// Makes an encoder, for which the library builds its tables.
pub(crate) fn prepare() {
    let _ = iced_x86::Encoder::try_new(64);
}

/// Where the translation of a block may be entered: the last of its entries, and how many bytes the others lie before it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entries {
    near: *const u8,
    far_before: u16,
    checked_before: u16,
    hot_before: u16,
    /// Whether it may be entered with flags that are in the host's only: it does not read them.
    is_hot: bool,
    needs: u8,
}

impl Entries {
    /// `None` if they lie further apart than entries do.
    fn new(base: *const u8, translated: &Translated) -> Option<Entries> {
        let before = |entry: usize| u16::try_from(translated.near.checked_sub(entry)?).ok();
        Some(Entries {
            // SAFETY: the offset lies within the code at `base`, as the caller has placed it.
            near: unsafe { base.add(translated.near) },
            far_before: before(translated.far)?,
            checked_before: before(translated.checked)?,
            hot_before: translated.hot.map_or(Some(0), before)?,
            is_hot: translated.hot.is_some(),
            needs: translated.needs,
        })
    }

    fn before_near(&self, bytes: u16) -> *const u8 {
        // SAFETY: the distances are those of entries of one piece of code.
        unsafe { self.near.sub(usize::from(bytes)) }
    }

    fn far(&self) -> *const u8 {
        self.before_near(self.far_before)
    }

    fn checked(&self) -> *const u8 {
        self.before_near(self.checked_before)
    }

    /// For flags that are in the host's only.
    fn hot(&self) -> Option<*const u8> {
        self.is_hot.then(|| self.before_near(self.hot_before))
    }
}

// There is one in each block.
const _: () = assert!(size_of::<Translation>() == 16);

/// Whether a block has been translated.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Translation {
    /// Not yet; how often the block has run.
    Counting(u32),
    Done(Entries),
    /// It stays interpreted.
    Never,
}

/// What translation has cost so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TranslatorStatistics {
    /// Blocks translated.
    pub blocks: u64,
    /// Instructions in them.
    pub instructions: u64,
    /// Code they became, bytes.
    pub code_bytes: u64,
    /// Time it took.
    pub time: Duration,
    /// How often all code was dropped because its space was used up.
    pub evictions: u64,
}

/// The translator of one CPU.
pub(crate) struct Translator {
    /// Executions before a block is translated; `None` switches the translator off.
    threshold: Option<u32>,
    machine: Option<Machine>,
    sites: Vec<Site>,
    links: Vec<Link>,
    jumps: Table<Jump>,
    /// How many of `jumps` may be in use: the first ones.
    jumps_used: usize,
    slots: Slots,
    last_tag: u64,
    /// [`crate::block::BlockCache::cleared`] when the present code was begun.
    cleared: u64,
    /// How often all code was dropped, for whatever reason.
    dropped: u64,
    statistics: TranslatorStatistics,
}

/// The code space and what lies at its start.
struct Machine {
    space: CodeSpace,
    thunks: Thunks,
    /// Bytes of shared code.
    shared: usize,
    bmi2: bool,
}

impl Machine {
    fn new() -> Option<Machine> {
        let mut space = CodeSpace::new(c"queztl-translations", CAPACITY)
            .inspect_err(|error| tracing::warn!("no memory for translated code, interpreting instead: {error}"))
            .ok()?;
        let thunks = Thunks::new(&mut space, run_site)?;
        let shared = space.used();
        Some(Machine { space, thunks, shared, bmi2: is_x86_feature_detected!("bmi2") })
    }
}

impl Default for Translator {
    fn default() -> Translator {
        Translator {
            threshold: None,
            machine: None,
            sites: Vec::new(),
            links: Vec::new(),
            jumps: table(JUMPS),
            jumps_used: 0,
            slots: Slots::default(),
            last_tag: 0,
            cleared: 0,
            dropped: 0,
            statistics: TranslatorStatistics::default(),
        }
    }
}

impl Translator {
    /// Empties `jumps`, without touching memory that is empty.
    fn forget_jumps(&mut self) {
        let used = std::mem::take(&mut self.jumps_used);
        self.jumps[..used].fill(NO_JUMP);
    }
}

/// How translated code was left.
pub(crate) enum Left {
    /// By an operation, as if the interpreter had run it.
    Operation(*mut Block, Flow, *const Op),
    /// At the end of a block, to a target in the same page. The number is for [`Cpu::patch_link`].
    Link(*mut Block, Flow, u32),
    /// At the end of a block, to another page; by a jump that remembers its target in this slot.
    Indirect(Option<u32>),
    /// Something may want attention.
    Look,
    /// The block at `rip` must be looked up anew and interpreted this time.
    Interpret,
}

impl Cpu {
    /// Translates blocks that have run `threshold` times; `None` switches the translator off. Only while `run` is not
    /// running.
    pub fn set_translator(&mut self, threshold: Option<u32>) {
        self.translator.threshold = threshold;
        if threshold.is_some() && self.translator.machine.is_none() {
            self.translator.machine = Machine::new();
        }
        if self.translator.machine.is_none() {
            self.translator.threshold = None;
        }
        self.blocks.forget();
    }

    /// What translation has cost so far.
    pub fn translator_statistics(&self) -> TranslatorStatistics {
        self.translator.statistics
    }

    /// Prepares the thread for translated code: GS leads to the CPU.
    pub(crate) fn enter_translator(&mut self) {
        if self.translator.threshold.is_none() {
            return;
        }
        set_gs_base(std::ptr::from_mut(self) as u64);
        self.frame.jumps = self.translator.jumps.as_ptr();
        self.frame.attention = self.control.attention_word();
        self.frame.vectors_missing = NOT_LOADED;
    }

    /// Undoes [`Cpu::enter_translator`].
    pub(crate) fn leave_translator(&mut self) {
        if self.translator.threshold.is_some() {
            set_gs_base(0);
        }
    }

    /// The code of `block`, which is about to run, if it is worth having.
    #[inline]
    pub(crate) fn translation(&mut self, block: *mut Block) -> Option<Entries> {
        let threshold = self.translator.threshold?;
        if self.translator.cleared != self.blocks.cleared {
            self.drop_translations();
        }
        // SAFETY: the caller has just found the block.
        match unsafe { &mut (*block).translation } {
            Translation::Done(entries) => Some(*entries),
            Translation::Counting(runs) => {
                *runs += 1;
                if *runs < threshold {
                    return None;
                }
                self.translate_block(block, threshold)
            }
            Translation::Never => None,
        }
    }

    #[cold]
    fn translate_block(&mut self, block: *mut Block, threshold: u32) -> Option<Entries> {
        // SAFETY: the caller has just found the block.
        let (block_ref, runs) = unsafe {
            let Translation::Counting(runs) = (*block).translation else { return None };
            (&mut *block, runs)
        };
        // Bytes that keep changing are not worth translating each time.
        let changes = block_ref.stamp.parts().1;
        if runs < threshold.saturating_add(changes.saturating_mul(threshold)).min(1 << 16) {
            return None;
        }
        if self.code_size != CodeSize::Bits64 || block_ref.is_single() {
            block_ref.translation = Translation::Never;
            return None;
        }
        let started = Instant::now();
        let entries = self.make_code(block).or_else(|| {
            let full = self.translator.machine.as_ref().is_some_and(|m| m.space.used() > CAPACITY - (1 << 20));
            if full {
                self.translator.statistics.evictions += 1;
                self.drop_translations();
            }
            self.make_code(block)
        });
        self.translator.statistics.time += started.elapsed();
        // SAFETY: as above; translating drops no blocks.
        unsafe { (*block).translation = entries.map_or(Translation::Never, Translation::Done) };
        entries
    }

    fn make_code(&mut self, block: *mut Block) -> Option<Entries> {
        let shared = self.shared.clone();
        let counts = self.instruction_limit != u64::MAX;
        let translator = &mut self.translator;
        let machine = translator.machine.as_mut()?;
        let base = machine.space.next();
        let context = Context {
            blocks: &mut self.blocks,
            thunks: machine.thunks,
            sites: &mut translator.sites,
            links: &mut translator.links,
            slots: &mut translator.slots,
            counts,
            bmi2: machine.bmi2,
        };
        let translated = block::translate(block, &shared.native, base as u64, context)?;
        machine.space.place(&translated.code, ALIGN)?;
        let statistics = &mut translator.statistics;
        statistics.blocks += 1;
        // SAFETY: the caller passes a live block.
        statistics.instructions += u64::from(unsafe { (*block).count });
        statistics.code_bytes += translated.code.len() as u64;
        Entries::new(base, &translated)
    }

    /// How often all code was dropped: links are numbered anew each time.
    pub(crate) fn translations_dropped(&self) -> u64 {
        self.translator.dropped
    }

    /// Drops all code. None of it is running.
    fn drop_translations(&mut self) {
        self.blocks.forget_translations();
        let translator = &mut self.translator;
        translator.cleared = self.blocks.cleared;
        translator.dropped += 1;
        translator.sites.clear();
        translator.links.clear();
        translator.forget_jumps();
        translator.slots.clear(true);
        if let Some(machine) = &mut translator.machine {
            machine.space.truncate(machine.shared);
        }
    }

    /// Drops all code and gives all memory back. None of it is running.
    pub(crate) fn release_translations(&mut self) {
        self.drop_translations();
        let translator = &mut self.translator;
        translator.sites.shrink_to_fit();
        translator.links.shrink_to_fit();
        translator.jumps.release();
        translator.slots.release();
        if let Some(machine) = &mut translator.machine {
            machine.space.release_unused();
        }
    }

    /// Runs translated code from `entries` on, which belongs to the block at `rip`.
    pub(crate) fn run_translated(&mut self, entries: Entries) -> Left {
        let Some(machine) = &self.translator.machine else { return Left::Interpret };
        // SAFETY: the shared code starts with a function of this type, and lives as long as the space.
        let enter = unsafe { std::mem::transmute::<usize, Enter>(machine.thunks.enter as usize) };
        self.frame.page_ip = self.rip & PAGE_MASK;
        self.frame.jump_tag = self.jump_tag();
        let this = std::ptr::from_mut(self);
        self.frame.this = this;
        // SAFETY: GS leads to this CPU, the code is that of a live block, and everything it touches besides belongs to
        // the CPU or is reached through its TLB. The CPU is passed so that its fields count as changed.
        let reason = unsafe { enter(entries.near, this) };
        let number = self.frame.exit;
        match reason {
            exit::OPERATION => {
                let block = self.translator.sites[number as usize].block;
                Left::Operation(block, self.frame.flow, self.frame.op)
            }
            exit::LINK => {
                let link = self.translator.links[number as usize];
                self.regs[slot::BLOCK_IP] = self.frame.page_ip;
                Left::Link(link.block, if link.end == 0 { Flow::Jump0 } else { Flow::Jump1 }, number)
            }
            exit::INDIRECT => Left::Indirect(None),
            exit::SLOT => Left::Indirect(Some(number)),
            exit::LOOK => Left::Look,
            _ => Left::Interpret,
        }
    }

    /// Leads the jump of link `number` straight to `target`, to which it has just led by way of Rust.
    pub(crate) fn patch_link(&mut self, number: u32, target: *mut Block, entries: Entries) {
        let Some(link) = self.translator.links.get(number as usize).copied() else { return };
        // SAFETY: both blocks are live: code and links go when blocks do.
        let same_page = unsafe { (*link.block).gpa() / PAGE == (*target).gpa() / PAGE && (*link.block).is_valid() };
        let entry = match (link.backward, link.hot) {
            (true, true) => entries.hot(),
            (false, true) => entries.is_hot.then_some(entries.near),
            (true, false) => Some(entries.checked()),
            (false, false) => Some(entries.near),
        };
        if let (true, Some(machine), Some(entry)) = (same_page, &mut self.translator.machine, entry) {
            machine.space.set_displacement(link.at, entry);
        }
    }

    /// Remembers the code for the present `rip`, in `slot` or in the table.
    pub(crate) fn remember_target(&mut self, entries: Entries, slot: Option<u32>) {
        let jump = Jump { key: self.rip ^ self.jump_tag(), code: entries.far() };
        match slot {
            Some(slot) => self.translator.slots.set(slot, jump),
            None => {
                self.spread_jumps();
                let translator = &mut self.translator;
                translator.jumps_used = jump_slots(self.frame.jump_mask);
                translator.jumps[jump_slot(self.rip, self.frame.jump_mask)] = jump;
            }
        }
    }

    /// Uses as much of the table of remembered jumps as there are blocks to jump to.
    fn spread_jumps(&mut self) {
        let mask = jump_mask(self.blocks.spread());
        if self.frame.jump_mask != mask {
            self.translator.forget_jumps();
            self.frame.jump_mask = mask;
        }
    }

    /// What keys of remembered jumps are mixed with under the present privilege and address space.
    fn jump_tag(&mut self) -> u64 {
        // SAFETY: `tlb` points to one of the CPU's own sets.
        let set = unsafe { &mut *self.tlb };
        if set.jump_tag.epoch != Some(set.exec_epoch) {
            self.translator.last_tag += 1;
            if self.translator.last_tag == TAGS {
                self.translator.last_tag = 1;
                self.translator.forget_jumps();
                self.translator.slots.clear(false);
                self.tlbs.forget_jump_tags();
            }
            set.jump_tag = crate::mmu::JumpTag { value: self.translator.last_tag << 48, epoch: Some(set.exec_epoch) };
        }
        set.jump_tag.value
    }
}

/// Runs the operations of one instruction for translated code, whose registers are in the CPU's state. Zero if the block
/// goes on after it.
///
/// # Safety
/// `cpu` is the CPU that runs, and `site` one of its sites.
unsafe extern "C" fn run_site(cpu: *mut Cpu, site: u32) -> u32 {
    // SAFETY: as the caller promises; generated code waits meanwhile.
    let cpu = unsafe { &mut *cpu };
    let Site { block, op: first } = cpu.translator.sites[site as usize];
    cpu.blocks.running = block;
    // SAFETY: sites go when blocks do, so the block and its operations are live. The last one of a block never returns
    // `Next`, so there is one behind every one that does.
    unsafe {
        cpu.regs[slot::BLOCK_IP] = cpu.frame.page_ip + (*block).gpa() % PAGE;
        let mut op = first;
        let mut flow;
        loop {
            flow = ((*op).run)(cpu, &*op);
            if flow != Flow::Next {
                break;
            }
            op = op.add(1);
            if (*op).start == (*first).start {
                continue;
            }
            let Translation::Done(entries) = (*block).translation else { break };
            if (*block).is_valid() && cpu.closed & entries.needs == 0 {
                return 0;
            }
            // The code has changed, or the block must not go on as translated: the rest is another block's.
            cpu.rip = (*op).ip(cpu);
            flow = Flow::Again;
            break;
        }
        cpu.frame.exit = site;
        cpu.frame.flow = flow;
        cpu.frame.op = op;
    }
    1
}

/// Points GS at `address`, for this thread. Nothing else in a 64-bit process uses GS.
fn set_gs_base(address: u64) {
    /// Bit of AT_HWCAP2 by which Linux says that programs may use WRGSBASE.
    const HWCAP2_FSGSBASE: u64 = 1 << 1;
    const ARCH_SET_GS: i32 = 0x1001;
    // SAFETY: asks for a constant.
    if unsafe { libc::getauxval(libc::AT_HWCAP2) } & HWCAP2_FSGSBASE != 0 {
        // SAFETY: the instruction exists, and GS belongs to this module.
        unsafe { std::arch::asm!("wrgsbase {}", in(reg) address, options(nomem, nostack, preserves_flags)) };
    } else {
        // SAFETY: sets the base only.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, address) };
    }
}

// SAFETY: the pointers inside lead to blocks and code of the CPU that owns the translator.
unsafe impl Send for Translator {}
