//! Decoded blocks and the cache that finds them.
//!
//! A block is a run of instructions that ends at a branch, at the end of its page or where something may change how code
//! is decoded. It is found by the guest-physical address of its first byte, so it survives changes of address space, and
//! it is valid as long as the generation of its page is the one it was decoded at ([`queztl_guest_memory::PageTracker`]).

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use iced_x86::{Decoder, DecoderOptions, Instruction};
use queztl_guest_memory::{Table, Zeroed};

use crate::arena::{Arena, Slice, table};
use crate::cpu::{CodeSize, Cpu};
use crate::op::{Flow, Op};
use crate::translator::Translation;

/// Most instructions in one block.
pub(crate) const MAX_INSTRUCTIONS: usize = 64;
/// Blocks kept before all are dropped, and bytes of what they are made of. A compiler runs through some 80,000 blocks of
/// 300 bytes, and to drop them is to decode and to translate them all again.
pub(crate) const MAX_BLOCKS: usize = 1 << 18;
const MAX_BYTES: usize = 128 << 20;
/// Chains that blocks are found by, and remembered branch targets, at most and at first.
const CHAINS: usize = 1 << 17;
const JUMPS: usize = 1 << 16;
const FIRST_SPREAD: usize = 1 << 9;

/// The generation of one page at the time its bytes were decoded.
#[derive(Clone, Copy)]
pub(crate) struct PageStamp {
    cell: *const AtomicU32,
    generation: u32,
}

impl PageStamp {
    pub fn new(cell: *const AtomicU32, generation: u32) -> PageStamp {
        PageStamp { cell, generation }
    }

    /// The cell and the generation it must hold.
    pub fn parts(&self) -> (*const AtomicU32, u32) {
        (self.cell, self.generation)
    }

    #[inline(always)]
    pub fn holds(&self) -> bool {
        // SAFETY: the cell belongs to a tracker of guest RAM, which outlives every block.
        unsafe { (*self.cell).load(Ordering::Acquire) == self.generation }
    }
}

/// The second page of a block whose last instruction runs into it.
pub(crate) struct SecondPage {
    /// Guest-physical address of the page.
    pub gpa: u64,
    pub stamp: PageStamp,
}

/// A decoded run of instructions. A guest's kernel makes tens of thousands of them, of a handful of instructions each.
pub(crate) struct Block {
    pub ops: Slice<Op>,
    /// The bytes it was decoded from; short of what `ops` do not have, translating decodes them again.
    pub code: Slice<u8>,
    pub key: u64,
    pub stamp: PageStamp,
    pub second: Option<NonNull<SecondPage>>,
    /// Where the block's two ends lead, if that is in the same page and has been met.
    pub links: [*mut Block; 2],
    /// Instructions in the block.
    pub count: u16,
    /// Flags that may be read before the block sets them, in the notation of [`iced_x86::RflagsBits`].
    pub live_flags: u16,
    pub translation: Translation,
    /// The next block of its chain.
    pub next: *mut Block,
}

const _: () = assert!(size_of::<Block>() == 96);

impl Block {
    /// What it was decoded from, as if it were at its guest-physical address.
    pub fn instructions(&self) -> impl Iterator<Item = Instruction> {
        let ip = self.gpa();
        let mut decoder = Decoder::with_ip(self.code_size().bitness(), &self.code, ip, DecoderOptions::NONE);
        std::iter::from_fn(move || decoder.can_decode().then(|| decoder.decode()))
    }

    fn code_size(&self) -> CodeSize {
        match self.key & 3 {
            0 => CodeSize::Bits16,
            1 => CodeSize::Bits32,
            _ => CodeSize::Bits64,
        }
    }

    pub fn second(&self) -> Option<&SecondPage> {
        // SAFETY: it lies in the cache's arena, as the block does.
        self.second.map(|second| unsafe { second.as_ref() })
    }

    /// Whether the decoded bytes are still what lies in memory. A block with a second page is looked up anew each time
    /// instead, since that page may be mapped elsewhere.
    #[inline(always)]
    pub fn is_valid(&self) -> bool {
        self.stamp.holds()
    }

    /// Whether `links` and the jump cache may lead to this block.
    pub fn is_linkable(&self) -> bool {
        self.second.is_none()
    }

    /// Guest-physical address of the first byte.
    pub fn gpa(&self) -> u64 {
        self.key >> 3
    }

    /// Decoded to be run alone.
    pub fn is_single(&self) -> bool {
        self.key & 4 != 0
    }

    /// Instructions that are complete when the one of `op` begins.
    pub fn completed_before(&self, op: &Op) -> u64 {
        let starts = self.ops.iter().map(|o| o.start).take_while(|start| *start < op.start);
        let mut count = 0;
        let mut last = None;
        for start in starts {
            count += u64::from(last != Some(start));
            last = Some(start);
        }
        count
    }

    /// Makes the operations after the running one leave the block: its bytes have changed.
    pub fn poison(&mut self) {
        for op in &mut *self.ops {
            op.run = leave;
        }
    }
}

/// Stands in for every operation of a block whose code was overwritten while it ran.
extern "C" fn leave(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.rip = op.ip(cpu);
    Flow::Again
}

/// The key of a block: its physical address and how it was decoded.
pub(crate) fn key(gpa: u64, code: CodeSize, single: bool) -> u64 {
    gpa << 3 | u64::from(single) << 2 | code as u64
}

/// One remembered branch target.
#[derive(Clone, Copy)]
struct Jump {
    rip: u64,
    /// The TLB set the translation came from, and the code size in the low bits.
    set: u64,
    epoch: u32,
    block: *mut Block,
}

/// All zeroes; found for no jump, since no set has the address 0.
const NO_JUMP: Jump = Jump { rip: 0, set: 0, epoch: 0, block: std::ptr::null_mut() };

// SAFETY: all-zero bytes are `NO_JUMP`.
unsafe impl Zeroed for Jump {}

/// All blocks of one CPU.
pub(crate) struct BlockCache {
    /// Where chains of blocks begin. Of this table and of `jumps`, the first `spread` entries are used, as many as there are
    /// blocks: hashes leave no page untouched, and a guest that only keeps time has few blocks.
    chains: Table<*mut Block>,
    jumps: Table<Jump>,
    /// A power of two.
    spread: usize,
    /// The last used slot of `jumps`.
    jump_mask: usize,
    blocks: Vec<*mut Block>,
    /// Where they lie, with what they are made of.
    arena: Arena,
    /// The block that is running, for code that overwrites itself.
    pub running: *mut Block,
    /// Blocks decoded since the start.
    pub decoded: u64,
    /// How often all blocks were dropped.
    pub cleared: u64,
    /// Some slot of `jumps` may be in use.
    jumps_remembered: bool,
}

impl Default for BlockCache {
    fn default() -> Self {
        BlockCache {
            chains: table(CHAINS),
            jumps: table(JUMPS),
            spread: FIRST_SPREAD,
            jump_mask: FIRST_SPREAD - 1,
            blocks: Vec::new(),
            arena: Arena::default(),
            running: std::ptr::null_mut(),
            decoded: 0,
            cleared: 0,
            jumps_remembered: false,
        }
    }
}

impl BlockCache {
    /// Drops all blocks; takes time in proportion to their number.
    pub fn forget(&mut self) {
        self.forget_jumps();
        for block in self.blocks.drain(..) {
            // SAFETY: the list holds live blocks; the chains' references to this one go here, others go with all blocks, and
            // those of the jumps went above.
            let chain = Self::chain_of(unsafe { (*block).key }) & (self.spread - 1);
            self.chains[chain] = std::ptr::null_mut();
        }
        self.running = std::ptr::null_mut();
        self.cleared += 1;
        self.arena.clear();
    }

    /// Drops all blocks and gives all memory back.
    pub fn release(&mut self) {
        self.forget();
        self.chains.release();
        self.jumps.release();
        self.arena.release();
        self.blocks.shrink_to_fit();
        (self.spread, self.jump_mask) = (FIRST_SPREAD, FIRST_SPREAD - 1);
    }

    /// Blocks in the cache.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// How many places of a table blocks are worth to be spread over, a power of two.
    pub fn spread(&self) -> usize {
        self.spread
    }

    fn forget_jumps(&mut self) {
        if std::mem::take(&mut self.jumps_remembered) {
            self.jumps[..=self.jump_mask].fill(NO_JUMP);
        }
    }

    /// No block has a translation any more.
    pub fn forget_translations(&mut self) {
        for &block in &self.blocks {
            // SAFETY: the list holds live blocks.
            unsafe { (*block).translation = Translation::Counting(0) };
        }
    }

    /// The chain of a key, before the table's size is taken into account.
    fn chain_of(key: u64) -> usize {
        (key ^ (key >> 15)) as usize
    }

    /// The valid block for `key`.
    #[inline]
    pub fn get(&mut self, key: u64) -> Option<*mut Block> {
        let mut block = self.chains[Self::chain_of(key) & (self.spread - 1)];
        // SAFETY: chains are of live blocks.
        while !block.is_null() && unsafe { (*block).key } != key {
            // SAFETY: as above.
            block = unsafe { (*block).next };
        }
        // SAFETY: as above.
        (!block.is_null() && unsafe { (*block).is_valid() }).then_some(block)
    }

    /// Sees to it that there is room for another block; all others may go for that.
    pub fn make_room(&mut self) {
        if self.blocks.len() >= MAX_BLOCKS || self.arena.bytes() > MAX_BYTES {
            self.forget();
        }
        if self.blocks.len() >= self.spread && self.spread < CHAINS {
            self.forget_jumps();
            self.spread *= 2;
            self.jump_mask = self.spread.min(JUMPS) - 1;
            self.chains[..self.spread].fill(std::ptr::null_mut());
            for index in 0..self.blocks.len() {
                self.chain(self.blocks[index]);
            }
        }
    }

    /// Puts a block into its chain, in place of any other with its key.
    fn chain(&mut self, block: *mut Block) {
        // SAFETY: the callers pass live blocks, of which chains are; the place is in the table or in one of them.
        unsafe {
            let key = (*block).key;
            let mut place: *mut *mut Block = &mut self.chains[Self::chain_of(key) & (self.spread - 1)];
            while !(*place).is_null() && (**place).key != key {
                place = &raw mut (**place).next;
            }
            (*block).next = if (*place).is_null() { std::ptr::null_mut() } else { (**place).next };
            *place = block;
        }
    }

    /// Keeps what a block is made of as long as the block.
    pub fn keep<T: Copy>(&mut self, parts: &[T]) -> Slice<T> {
        self.arena.keep(parts)
    }

    /// The same for one value.
    pub fn keep_one<T>(&mut self, part: T) -> NonNull<T> {
        self.arena.keep_one(part)
    }

    /// Takes in a block in place of any other with its key, after [`BlockCache::make_room`].
    pub fn insert(&mut self, block: Block) -> *mut Block {
        self.decoded += 1;
        let block = self.arena.keep_one(block).as_ptr();
        self.blocks.push(block);
        self.chain(block);
        block
    }

    #[inline(always)]
    fn jump_slot(&self, rip: u64) -> usize {
        (rip ^ (rip >> 14)) as usize & self.jump_mask
    }

    /// The block at `rip` if it was met before under the same translation.
    #[inline(always)]
    pub fn jump(&self, rip: u64, set: u64, epoch: u32) -> Option<*mut Block> {
        let jump = &self.jumps[self.jump_slot(rip)];
        // SAFETY: pointers in the table lead to live blocks.
        (jump.rip == rip && jump.set == set && jump.epoch == epoch && unsafe { (*jump.block).is_valid() })
            .then_some(jump.block)
    }

    pub fn remember_jump(&mut self, rip: u64, set: u64, epoch: u32, block: *mut Block) {
        self.jumps_remembered = true;
        let slot = self.jump_slot(rip);
        self.jumps[slot] = Jump { rip, set, epoch, block };
    }
}

impl Cpu {
    /// Decoded code was overwritten: if it belongs to the running block, the block ends after this instruction.
    #[cold]
    pub(crate) fn code_changed(&mut self) {
        let running = self.blocks.running;
        // SAFETY: `running` is null or the live block whose operation is executing; its handlers hold no reference to
        // the operations beyond their own, which stays in place.
        unsafe {
            if !running.is_null() && !(*running).is_valid() {
                (*running).poison();
            }
        }
    }
}
