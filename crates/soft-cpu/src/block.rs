//! Decoded blocks and the cache that finds them.
//!
//! A block is a run of instructions that ends at a branch, at the end of its page or where something may change how code
//! is decoded. It is found by the guest-physical address of its first byte, so it survives changes of address space, and
//! it is valid as long as the generation of its page is the one it was decoded at ([`queztl_guest_memory::PageTracker`]).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};

use iced_x86::Instruction;
use queztl_guest_memory::{Table, Zeroed};

use crate::arena::{Arena, Slice, table};
use crate::cpu::{CodeSize, Cpu};
use crate::op::{Flow, Op};
use crate::translator::Translation;

/// Most instructions in one block.
pub(crate) const MAX_INSTRUCTIONS: usize = 64;
/// Blocks kept before all are dropped; with their operations about 100 MiB at the very most.
const MAX_BLOCKS: usize = 1 << 16;
const TABLE: usize = 1 << 15;
const JUMPS: usize = 1 << 14;

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
#[derive(Clone, Copy)]
pub(crate) struct SecondPage {
    /// Guest-physical address of the page.
    pub gpa: u64,
    pub stamp: PageStamp,
}

/// A decoded run of instructions.
pub(crate) struct Block {
    pub ops: Slice<Op>,
    /// The instructions, which slow operations point to.
    pub instructions: Slice<Instruction>,
    pub key: u64,
    pub stamp: PageStamp,
    pub second: Option<SecondPage>,
    /// Where the block's two ends lead, if that is in the same page and has been met.
    pub links: [*mut Block; 2],
    /// Instructions in the block.
    pub count: u32,
    /// Flags that may be read before the block sets them, in the notation of [`iced_x86::RflagsBits`].
    pub live_flags: u32,
    pub translation: Translation,
}

impl Block {
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
    /// Direct-mapped front of `index`.
    table: Table<*mut Block>,
    index: HashMap<u64, *mut Block, std::hash::BuildHasherDefault<KeyHasher>>,
    blocks: Vec<*mut Block>,
    /// Where they lie, with their operations and instructions.
    arena: Arena,
    jumps: Table<Jump>,
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
            table: table(TABLE),
            index: HashMap::default(),
            blocks: Vec::new(),
            arena: Arena::default(),
            jumps: table(JUMPS),
            running: std::ptr::null_mut(),
            decoded: 0,
            cleared: 0,
            jumps_remembered: false,
        }
    }
}

impl BlockCache {
    fn clear(&mut self) {
        self.table.fill(std::ptr::null_mut());
        self.jumps.fill(NO_JUMP);
        self.clear_lists();
    }

    /// Drops all blocks and gives all memory back.
    pub fn release(&mut self) {
        self.table.release();
        self.jumps.release();
        self.clear_lists();
        self.arena.release();
        self.index.shrink_to_fit();
        self.blocks.shrink_to_fit();
    }

    /// Blocks in the cache.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Drops all blocks, of which the tables know none any more.
    fn clear_lists(&mut self) {
        self.index.clear();
        self.jumps_remembered = false;
        self.running = std::ptr::null_mut();
        self.cleared += 1;
        self.blocks.clear();
        self.arena.clear();
    }

    /// Drops all blocks; takes time in proportion to their number where they are few.
    pub fn forget(&mut self) {
        const FEW: usize = 64;
        if self.blocks.len() > FEW {
            return self.clear();
        }
        self.index.clear();
        self.running = std::ptr::null_mut();
        self.cleared += 1;
        let linked = self.jumps_remembered;
        for block in self.blocks.drain(..) {
            // SAFETY: the list holds live blocks; the table's reference to this one goes here, other references went above
            // or, for the jumps, below.
            self.table[Self::slot(unsafe { (*block).key })] = std::ptr::null_mut();
        }
        self.arena.clear();
        if linked {
            self.jumps.fill(NO_JUMP);
            self.jumps_remembered = false;
        }
    }

    /// No block has a translation any more.
    pub fn forget_translations(&mut self) {
        for &block in &self.blocks {
            // SAFETY: the list holds live blocks.
            unsafe { (*block).translation = Translation::Counting(0) };
        }
    }

    fn slot(key: u64) -> usize {
        (key ^ (key >> 15)) as usize % TABLE
    }

    /// The valid block for `key`.
    #[inline]
    pub fn get(&mut self, key: u64) -> Option<*mut Block> {
        let slot = Self::slot(key);
        let mut block = self.table[slot];
        // SAFETY: pointers in the table lead to live blocks.
        if block.is_null() || unsafe { (*block).key } != key {
            block = *self.index.get(&key)?;
            self.table[slot] = block;
        }
        // SAFETY: as above.
        unsafe { (*block).is_valid() }.then_some(block)
    }

    /// Sees to it that there is room for another block; all others may go for that.
    pub fn make_room(&mut self) {
        if self.blocks.len() >= MAX_BLOCKS {
            self.clear();
        }
    }

    /// Keeps what a block is made of as long as the block.
    pub fn keep<T: Copy>(&mut self, parts: &[T]) -> Slice<T> {
        self.arena.keep(parts)
    }

    /// Takes in a block in place of any other with its key, after [`BlockCache::make_room`].
    pub fn insert(&mut self, block: Block) -> *mut Block {
        self.decoded += 1;
        let key = block.key;
        let block = self.arena.keep_one(block);
        self.blocks.push(block);
        self.index.insert(key, block);
        self.table[Self::slot(key)] = block;
        block
    }

    fn jump_slot(rip: u64) -> usize {
        (rip ^ (rip >> 14)) as usize % JUMPS
    }

    /// The block at `rip` if it was met before under the same translation.
    #[inline(always)]
    pub fn jump(&self, rip: u64, set: u64, epoch: u32) -> Option<*mut Block> {
        let jump = &self.jumps[Self::jump_slot(rip)];
        // SAFETY: pointers in the table lead to live blocks.
        (jump.rip == rip && jump.set == set && jump.epoch == epoch && unsafe { (*jump.block).is_valid() })
            .then_some(jump.block)
    }

    pub fn remember_jump(&mut self, rip: u64, set: u64, epoch: u32, block: *mut Block) {
        self.jumps_remembered = true;
        self.jumps[Self::jump_slot(rip)] = Jump { rip, set, epoch, block };
    }
}

/// Keys are well spread once multiplied.
#[derive(Default)]
pub(crate) struct KeyHasher(u64);

impl std::hash::Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
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
