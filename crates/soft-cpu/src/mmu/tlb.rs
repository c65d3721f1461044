//! The cache of translations.
//!
//! One set for each thing a privilege level may do, so that changing privilege (or STAC and CLAC) is a change of
//! pointer and no entry has to know who may use it.

use super::{Access, PAGE, PAGE_MASK};
use crate::cpu::Cpu;
use crate::state::{bits, rflags};

/// Data entries of a set, a power of two.
pub(crate) const ENTRIES: usize = 2048;
/// Instruction entries of a set, a power of two.
pub(crate) const EXEC_ENTRIES: usize = 256;
/// A tag that no page has.
const NONE: u64 = u64::MAX;

/// A tag that no page of a data slot has, even if a lookup compares page numbers only, by exclusive or: the page it
/// belongs to lies in another slot. All but one are zero, so that a set takes memory only where it has been used.
const fn none(slot: usize) -> u64 {
    if slot == 0 { NONE } else { 0 }
}

/// Supervisor accesses; with SMAP, not to user pages.
pub(crate) const SUPERVISOR: usize = 0;
/// Supervisor accesses with RFLAGS.AC set: user pages too.
pub(crate) const SUPERVISOR_AC: usize = 1;
/// User accesses.
pub(crate) const USER: usize = 2;
/// User accesses under alignment checks: never filled, so that the slow path sees every access.
pub(crate) const CHECKED: usize = 3;
const SETS: usize = 4;

/// One cached data page. Generated code relies on this layout.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Entry {
    /// The page's linear address if reads may go straight to RAM, else [`NONE`].
    pub read: u64,
    /// The same for writes.
    pub write: u64,
    /// Host address minus linear address.
    pub addend: u64,
    /// Host address of the page.
    pub host: u64,
}

/// One cached code page.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct ExecEntry {
    pub tag: u64,
    /// Guest-physical address of the page.
    pub page: u64,
    pub kind: u64,
}

/// The tag of a set's jumps, and the epoch it was given for.
#[derive(Clone, Copy, Default)]
pub(crate) struct JumpTag {
    pub value: u64,
    pub epoch: Option<u32>,
}

/// Survives CR3 writes.
pub(crate) const GLOBAL: u64 = 1;
/// Part of a 2 MiB, 4 MiB or 1 GiB page.
pub(crate) const LARGE: u64 = 2;

const fn empty(slot: usize) -> Entry {
    Entry { read: none(slot), write: none(slot), addend: 0, host: 0 }
}

const EMPTY_EXEC: ExecEntry = ExecEntry { tag: NONE, page: 0, kind: 0 };

/// The translations usable at one privilege.
#[repr(C)]
pub(crate) struct TlbSet {
    pub entries: [Entry; ENTRIES],
    /// [`GLOBAL`] and [`LARGE`] of each data entry.
    kinds: [u8; ENTRIES],
    pub exec: [ExecEntry; EXEC_ENTRIES],
    /// Raised whenever an instruction translation may have gone: the validity of cached jump targets.
    pub exec_epoch: u32,
    /// What tells the jumps of this set and epoch from all others: see [`crate::translator`].
    pub jump_tag: JumpTag,
    /// Slots filled since the last flush, so that a flush costs what was used.
    filled: Used<{ ENTRIES / 64 }>,
    exec_filled: Used<{ EXEC_ENTRIES / 64 }>,
    /// First and last page since the last full flush that was part of a large one.
    large_range: (u64, u64),
    /// Pages that remembered jumps may lead through.
    exec_pages: PageFilter,
    /// First and last of them that was part of a large page.
    exec_large_range: (u64, u64),
    /// Whether one of them was not global.
    exec_local: bool,
}

/// A set of pages that may claim to have more than were put into it. All zeroes is the empty one.
///
/// Guests drop single pages of data all the time, next to code that they go on to run: a range of code would not tell them
/// apart.
struct PageFilter([u64; PageFilter::BITS / 64]);

impl PageFilter {
    /// 64 MiB of code in a row have a bit of their own for each page.
    const BITS: usize = 1 << 14;

    fn place(page: u64) -> (usize, u64) {
        let number = page / PAGE;
        let bit = (number ^ (number >> 14)) as usize % Self::BITS;
        (bit / 64, 1 << (bit % 64))
    }

    fn insert(&mut self, page: u64) {
        let (word, bit) = Self::place(page);
        self.0[word] |= bit;
    }

    fn may_contain(&self, page: u64) -> bool {
        let (word, bit) = Self::place(page);
        self.0[word] & bit != 0
    }

    fn clear(&mut self) {
        self.0.fill(0);
    }
}

/// The range of no page at all.
const NO_PAGES: (u64, u64) = (u64::MAX, 0);

fn widen(range: &mut (u64, u64), page: u64) {
    *range = (range.0.min(page), range.1.max(page));
}

/// Whether the page, or a large page that it is part of, may overlap the range. The size of a large page is not kept;
/// 1 GiB covers all sizes.
fn may_touch((first, last): (u64, u64), page: u64) -> bool {
    first >> 30 <= page >> 30 && page >> 30 <= last >> 30
}

/// A set of slots that can be walked in time proportional to its size.
struct Used<const WORDS: usize> {
    listed: [u64; WORDS],
    slots: Vec<u16>,
}

impl<const WORDS: usize> Used<WORDS> {
    fn new() -> Self {
        Used { listed: [0; WORDS], slots: Vec::with_capacity(WORDS * 64) }
    }

    fn insert(&mut self, slot: usize) {
        let bit = 1 << (slot % 64);
        if self.listed[slot / 64] & bit == 0 {
            self.listed[slot / 64] |= bit;
            self.slots.push(slot as u16);
        }
    }

    /// Keeps the slots for which `stays` holds.
    fn retain(&mut self, mut stays: impl FnMut(usize) -> bool) {
        let listed = &mut self.listed;
        self.slots.retain(|&slot| {
            let slot = usize::from(slot);
            let kept = stays(slot);
            if !kept {
                listed[slot / 64] &= !(1 << (slot % 64));
            }
            kept
        });
    }
}

impl TlbSet {
    /// Makes zeroes an empty set, part by part: a thread would keep the stack that a whole one takes.
    ///
    /// # Safety
    /// `place` is valid for writes, aligned, and zero.
    unsafe fn write_empty(place: *mut TlbSet) {
        // SAFETY: as the caller promises; each part is written once and none is read.
        unsafe {
            (&raw mut (*place).entries[0]).write(empty(0));
            for slot in 0..EXEC_ENTRIES {
                (&raw mut (*place).exec[slot]).write(EMPTY_EXEC);
            }
            (&raw mut (*place).exec_epoch).write(0);
            (&raw mut (*place).jump_tag).write(JumpTag::default());
            (&raw mut (*place).filled).write(Used::new());
            (&raw mut (*place).exec_filled).write(Used::new());
            (&raw mut (*place).large_range).write(NO_PAGES);
            // The filter of no pages is zeroes.
            (&raw mut (*place).exec_large_range).write(NO_PAGES);
            (&raw mut (*place).exec_local).write(false);
        }
    }

    /// Data entries.
    pub const ENTRIES: usize = ENTRIES;

    #[inline(always)]
    pub fn slot(address: u64) -> usize {
        (address / PAGE) as usize % ENTRIES
    }

    #[inline(always)]
    pub fn exec_slot(address: u64) -> usize {
        (address / PAGE) as usize % EXEC_ENTRIES
    }

    /// Caches a data page; `kind` is made of [`GLOBAL`] and [`LARGE`].
    pub fn fill(&mut self, address: u64, host: *mut u8, access: Access, kind: u64) {
        let page = address & PAGE_MASK;
        let slot = Self::slot(address);
        let entry = &mut self.entries[slot];
        self.filled.insert(slot);
        let addend = (host as u64).wrapping_sub(page);
        if entry.read != page && entry.write != page || entry.addend != addend {
            *entry = empty(slot);
        }
        entry.addend = addend;
        entry.host = host as u64;
        self.kinds[slot] = kind as u8;
        match access {
            Access::Write => entry.write = page,
            _ => entry.read = page,
        }
        self.note_large(page, kind);
    }

    /// Caches a code page.
    pub fn fill_exec(&mut self, address: u64, page: u64, kind: u64) {
        let slot = Self::exec_slot(address);
        self.exec_filled.insert(slot);
        let linear = address & PAGE_MASK;
        self.exec_pages.insert(linear);
        if kind & LARGE != 0 {
            widen(&mut self.exec_large_range, linear);
        }
        self.exec_local |= kind & GLOBAL == 0;
        self.exec[slot] = ExecEntry { tag: linear, page, kind };
        self.note_large(linear, kind);
    }

    fn note_large(&mut self, page: u64, kind: u64) {
        if kind & LARGE != 0 {
            widen(&mut self.large_range, page);
        }
    }

    /// Drops the entries for which `dies` holds of (linear page, kind).
    fn drop_where(&mut self, dies: impl Fn(u64, u64) -> bool) {
        let (entries, kinds) = (&mut self.entries, &self.kinds);
        self.filled.retain(|slot| {
            let entry = &mut entries[slot];
            let page = if entry.read == none(slot) { entry.write } else { entry.read };
            let stays = page != none(slot) && !dies(page, u64::from(kinds[slot]));
            if !stays {
                *entry = empty(slot);
            }
            stays
        });
        let exec = &mut self.exec;
        self.exec_filled.retain(|slot| {
            let entry = &mut exec[slot];
            let stays = entry.tag != NONE && !dies(entry.tag, entry.kind);
            if !stays {
                *entry = EMPTY_EXEC;
            }
            stays
        });
    }

    /// Cached jump targets vouch for translations; they are void from now on.
    fn forget_jumps(&mut self) {
        self.exec_epoch = self.exec_epoch.wrapping_add(1);
    }

    fn flush(&mut self, keep_global: bool) {
        self.drop_where(|_, kind| !keep_global || kind & GLOBAL == 0);
        if self.exec_local || !keep_global {
            self.forget_jumps();
            self.refill_exec_pages();
        }
        self.exec_local = false;
        if !keep_global {
            self.large_range = NO_PAGES;
            self.exec_large_range = NO_PAGES;
        }
    }

    /// Jumps that are remembered from now on lead through the pages that are left and those that come.
    fn refill_exec_pages(&mut self) {
        self.exec_pages.clear();
        for &slot in &self.exec_filled.slots {
            self.exec_pages.insert(self.exec[usize::from(slot)].tag);
        }
    }

    /// INVLPG: the entry of the page, and every part of a large page around it.
    fn flush_page(&mut self, address: u64) {
        let page = address & PAGE_MASK;
        if self.exec_pages.may_contain(page) || may_touch(self.exec_large_range, page) {
            self.forget_jumps();
        }
        if may_touch(self.large_range, page) {
            self.drop_where(|entry, kind| entry == page || (kind & LARGE != 0 && entry >> 30 == address >> 30));
            return;
        }
        let slot = Self::slot(address);
        let entry = &mut self.entries[slot];
        if entry.read == page || entry.write == page {
            *entry = empty(slot);
        }
        let exec = &mut self.exec[Self::exec_slot(address)];
        if exec.tag == page {
            *exec = EMPTY_EXEC;
        }
    }

    /// Gives the memory of an empty set's data entries back: they are zeroes, but for the first.
    fn release(&mut self) {
        let first = self.entries[1..].as_mut_ptr().cast::<u8>();
        let end = self.entries.as_mut_ptr_range().end.cast::<u8>();
        let start = first.wrapping_add(first.align_offset(PAGE as usize));
        let bytes = (end as usize - start as usize) / PAGE as usize * PAGE as usize;
        // SAFETY: the pages lie within the entries, all of which are zeroes, and are private memory of no file, which reads
        // as zeroes afterwards.
        unsafe { libc::madvise(start.cast(), bytes, libc::MADV_DONTNEED) };
    }

    fn drop_writes(&mut self) {
        for &slot in &self.filled.slots {
            self.entries[usize::from(slot)].write = none(usize::from(slot));
        }
    }
}

/// All translations of one CPU.
pub(crate) struct Tlb {
    sets: Box<[TlbSet]>,
}

impl Tlb {
    pub fn new() -> Box<Tlb> {
        let mut sets = Box::<[TlbSet]>::new_zeroed_slice(SETS);
        for set in &mut sets {
            // SAFETY: the place is that of a set.
            unsafe { TlbSet::write_empty(set.as_mut_ptr()) };
        }
        // SAFETY: all of them were written.
        Box::new(Tlb { sets: unsafe { sets.assume_init() } })
    }

    pub fn set(&mut self, index: usize) -> *mut TlbSet {
        &raw mut self.sets[index]
    }

    /// No set has a jump tag any more.
    pub fn forget_jump_tags(&mut self) {
        self.sets.iter_mut().for_each(|set| set.jump_tag = JumpTag::default());
    }

    /// Gives the memory of empty sets back.
    pub fn release(&mut self) {
        self.sets.iter_mut().for_each(TlbSet::release);
    }

    /// Drops every fast write path.
    pub fn drop_writes(&mut self) {
        self.sets.iter_mut().for_each(TlbSet::drop_writes);
    }
}

impl Cpu {
    /// Which set the present privilege uses.
    fn tlb_index(&self) -> usize {
        let ac = self.rflags_system & rflags::AC != 0;
        match (self.cpl, ac) {
            (3, true) if self.cr0 & bits::CR0_AM != 0 => CHECKED,
            (3, _) => USER,
            (_, true) => SUPERVISOR_AC,
            (_, false) => SUPERVISOR,
        }
    }

    /// Makes the set of the present privilege the current one.
    pub(crate) fn select_tlb(&mut self) {
        self.tlb = self.tlbs.set(self.tlb_index());
    }

    /// Does `work` with the rights of the supervisor, as accesses to descriptor tables and task state have them
    /// whatever the privilege level.
    pub(crate) fn as_supervisor<R>(&mut self, work: impl FnOnce(&mut Cpu) -> R) -> R {
        let before = (self.tlb, self.system_access);
        (self.tlb, self.system_access) = (self.tlbs.set(SUPERVISOR), true);
        let result = work(self);
        (self.tlb, self.system_access) = before;
        result
    }

    /// The rights with which an access is made now: those of the selected set.
    pub(crate) fn privilege(&mut self) -> super::Privilege {
        let set = self.tlb;
        let is = |cpu: &mut Cpu, index| std::ptr::eq(set, cpu.tlbs.set(index));
        if is(self, SUPERVISOR) {
            super::Privilege::Supervisor
        } else if is(self, SUPERVISOR_AC) {
            super::Privilege::SupervisorAc
        } else {
            super::Privilege::User
        }
    }

    /// Under alignment checks (CR0.AM, RFLAGS.AC, CPL 3).
    pub(crate) fn checks_alignment(&mut self) -> bool {
        std::ptr::eq(self.tlb, self.tlbs.set(CHECKED))
    }

    /// Drops all translations, global ones included.
    pub(crate) fn flush_tlb_all(&mut self) {
        self.tlbs.sets.iter_mut().for_each(|set| set.flush(false));
    }

    /// Drops the translations that a CR3 write drops.
    pub(crate) fn flush_tlb_non_global(&mut self) {
        let keep_global = self.cr4 & bits::CR4_PGE != 0;
        self.tlbs.sets.iter_mut().for_each(|set| set.flush(keep_global));
    }

    /// Drops the translation of one linear address (INVLPG).
    pub(crate) fn flush_tlb_page(&mut self, address: u64) {
        self.tlbs.sets.iter_mut().for_each(|set| set.flush_page(address));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_empty(set: &TlbSet) -> bool {
        let empty = |(slot, entry): (usize, &Entry)| {
            (entry.read, entry.write, entry.addend, entry.host) == (none(slot), none(slot), 0, 0)
        };
        set.entries.iter().enumerate().all(empty)
    }

    #[test]
    fn a_tag_of_no_page_is_missed_by_every_address_of_its_slot() {
        for slot in 0..ENTRIES as u64 {
            let tag = none(slot as usize);
            for page in [slot * PAGE, (slot + ENTRIES as u64) * PAGE, (slot * PAGE) | (!0 << 47)] {
                assert_eq!(TlbSet::slot(page), slot as usize);
                assert!([page, page + PAGE - 1].iter().all(|address| address ^ tag >= PAGE), "{page:#x}");
            }
        }
    }

    #[test]
    fn jumps_are_forgotten_when_a_page_goes_that_they_may_lead_through_and_not_when_others_go() {
        let mut tlb = Tlb::new();
        let set = &mut tlb.sets[0];
        let (code, large, data) = (0x40_0000, 0x7f00_0000_0000, 0x41_5000);
        set.fill_exec(code, 0x1000, 0);
        set.fill_exec(large, 0x20_0000, LARGE);
        let epoch = |set: &TlbSet| set.exec_epoch;
        let first = epoch(set);
        set.flush_page(data);
        assert_eq!(epoch(set), first, "data only");
        set.flush_page(large + 0x12_3000);
        assert_eq!(epoch(set), first + 1, "a part of the same large page");
        // Another page has taken the slot; jumps through the first are still remembered.
        set.fill_exec(code + (EXEC_ENTRIES as u64) * PAGE, 0x2000, 0);
        set.flush_page(code);
        assert_eq!(epoch(set), first + 2, "a page that has left its slot");
    }

    #[test]
    fn code_that_outlives_a_flush_is_still_known_to_be_code() {
        let mut tlb = Tlb::new();
        let set = &mut tlb.sets[0];
        set.fill_exec(0x40_0000, 0x1000, 0);
        set.fill_exec(0x50_0000, 0x2000, GLOBAL);
        set.flush(true);
        let first = set.exec_epoch;
        set.flush_page(0x40_0000);
        assert_eq!(set.exec_epoch, first);
        set.flush_page(0x50_0000);
        assert_eq!(set.exec_epoch, first + 1);
    }

    #[test]
    fn a_flush_that_keeps_all_jumps_keeps_what_is_known_of_their_pages() {
        let mut tlb = Tlb::new();
        let set = &mut tlb.sets[0];
        set.fill_exec(0x40_0000, 0x1000, GLOBAL);
        set.fill_exec(0x40_0000 + (EXEC_ENTRIES as u64) * PAGE, 0x2000, GLOBAL);
        set.flush(true);
        let first = set.exec_epoch;
        set.flush_page(0x40_0000);
        assert_eq!(set.exec_epoch, first + 1);
    }

    #[test]
    fn a_set_that_was_flushed_and_released_is_empty_and_fills_again() {
        let mut tlb = Tlb::new();
        let mut host = [0_u8; 1];
        for set in &mut tlb.sets {
            assert!(is_empty(set));
            (0..3 * ENTRIES as u64).step_by(7).for_each(|page| {
                set.fill(page * PAGE, host.as_mut_ptr(), Access::Write, GLOBAL);
                set.fill(page * PAGE, host.as_mut_ptr(), Access::Read, GLOBAL);
            });
            assert!(!is_empty(set));
            set.flush(false);
        }
        tlb.release();
        for set in &mut tlb.sets {
            assert!(is_empty(set));
            set.fill(5 * PAGE, host.as_mut_ptr(), Access::Write, 0);
            assert_eq!(set.entries[5].write, 5 * PAGE);
        }
    }
}
