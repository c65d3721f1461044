//! The dirty log: which pages of RAM were written to, whoever wrote them.
//!
//! Two sources, one answer. vCPUs on KVM write behind this process's back, so the kernel keeps their log; devices and
//! software CPUs report to the [tracker](queztl_guest_memory::PageTracker) of the RAM. [`Vm::take_dirty_log`] gives the
//! union.
//!
//! Bits are taken before pages are copied, never after: a write between the two is in the copy and, unless its page is in
//! the result already, in the next result.
//!
//! [`Vm::take_dirty_log`]: super::Vm::take_dirty_log

use queztl_guest_memory::{GuestRam, PAGE_SIZE};

/// The pages of one run of RAM that were written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirtyPages {
    /// Guest-physical address of the first page.
    pub start: u64,
    /// One bit for each page of 4 KiB, lowest first.
    pub bitmap: Vec<u64>,
}

impl DirtyPages {
    /// Guest-physical addresses of the pages, lowest first.
    pub fn pages(&self) -> impl Iterator<Item = u64> + '_ {
        (0..).zip(&self.bitmap).flat_map(move |(word, bits)| {
            let set = (0..64).filter(move |bit| bits >> bit & 1 != 0);
            set.map(move |bit| self.start + (word * 64 + bit) * PAGE_SIZE)
        })
    }

    /// Number of pages.
    pub fn count(&self) -> u64 {
        self.bitmap.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Adds the pages of `other`, a log of the same run.
    fn merge(&mut self, other: &DirtyPages) {
        debug_assert_eq!(self.start, other.start);
        if self.bitmap.len() < other.bitmap.len() {
            self.bitmap.resize(other.bitmap.len(), 0);
        }
        for (own, more) in self.bitmap.iter_mut().zip(&other.bitmap) {
            *own |= more;
        }
    }
}

/// Takes what the trackers of `ram` hold, one entry for each run, lowest first.
pub(super) fn take_tracked(ram: &GuestRam) -> Vec<DirtyPages> {
    ram.trackers().map(|(start, tracker)| DirtyPages { start, bitmap: tracker.take_dirty() }).collect()
}

/// The union of two logs of the same RAM.
pub(super) fn union(mut log: Vec<DirtyPages>, more: &[DirtyPages]) -> Vec<DirtyPages> {
    for entry in more {
        match log.iter_mut().find(|own| own.start == entry.start) {
            Some(own) => own.merge(entry),
            None => log.push(entry.clone()),
        }
    }
    log
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_named_by_their_addresses() {
        let log = DirtyPages { start: 1 << 32, bitmap: vec![0b101, 1 << 63] };
        let high = (1 << 32) + 127 * PAGE_SIZE;
        assert_eq!(log.pages().collect::<Vec<_>>(), [1 << 32, (1 << 32) + 2 * PAGE_SIZE, high]);
        assert_eq!(log.count(), 3);
    }

    #[test]
    fn a_union_loses_nothing_of_either_side() {
        let log = |start, bitmap: &[u64]| DirtyPages { start, bitmap: bitmap.to_vec() };
        let both = union(vec![log(0, &[1])], &[log(0, &[2, 4]), log(1 << 32, &[8])]);
        assert_eq!(both, [log(0, &[3, 4]), log(1 << 32, &[8])]);
    }
}
