//! Which guest-physical addresses are RAM, and which of them the loader has given away.

use std::ops::Range;

use queztl_guest_memory::GuestMemory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::error::{Error, KernelError};
use super::low;

/// Kind of a memory map entry, by its number in all three boot protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum MemoryKind {
    Usable = 1,
    Reserved = 2,
}

/// An entry of the memory map that the kernel gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryRange {
    pub start: u64,
    pub len: u64,
    pub kind: MemoryKind,
}

/// Keeps the loader's pieces apart and inside RAM.
pub struct Placement<'a> {
    pub memory: &'a GuestMemory,
    ram: Vec<Range<u64>>,
    taken: Vec<(Range<u64>, &'static str)>,
}

impl<'a> Placement<'a> {
    /// Nothing is given away yet but the loaders' own structures and the BIOS area.
    pub fn new(memory: &'a GuestMemory) -> Placement<'a> {
        let ram = contiguous(memory.iter().map(|r| r.start_addr().0..r.start_addr().0 + r.len()));
        let taken = vec![
            (0..low::END, "the boot structures below 192 KiB"),
            (low::BIOS_START..low::BIOS_END, "the BIOS area below 1 MiB"),
        ];
        Placement { memory, ram, taken }
    }

    /// Total RAM in bytes.
    pub fn ram_bytes(&self) -> u64 {
        self.ram.iter().map(|r| r.end - r.start).sum()
    }

    /// End of the RAM that starts at address zero.
    pub fn low_ram_end(&self) -> u64 {
        self.ram.iter().find(|r| r.start == 0).map_or(0, |r| r.end)
    }

    /// End of the highest piece given away below 4 GiB: where the kernel ends, once it is placed.
    pub fn highest_taken(&self) -> u64 {
        self.taken.iter().map(|(r, _)| r.end).filter(|end| *end <= 1 << 32).max().unwrap_or(0)
    }

    /// Gives away `len` bytes at `start`, which must be free RAM.
    pub fn claim(&mut self, start: u64, len: u64, what: &'static str) -> Result<(), KernelError> {
        let end = start.checked_add(len).ok_or(KernelError::OutsideRam { start, end: u64::MAX })?;
        if !self.ram.iter().any(|r| r.start <= start && end <= r.end) {
            return Err(KernelError::OutsideRam { start, end });
        }
        if let Some((_, with)) = self.taken.iter().find(|(r, _)| r.start < end && start < r.end) {
            return Err(KernelError::Overlap { start, end, with });
        }
        self.taken.push((start..end, what));
        Ok(())
    }

    /// The highest page-aligned address of `len` free bytes of low RAM that end at or below `limit`.
    pub fn highest_free(&self, len: u64, limit: u64) -> Option<u64> {
        let mut end = limit.min(self.low_ram_end());
        loop {
            let start = end.checked_sub(len)? & !0xfff;
            let blocker = self.taken.iter().filter(|(r, _)| r.start < start + len && start < r.end);
            match blocker.map(|(r, _)| r.start).min() {
                None => return Some(start),
                Some(lower) => end = lower,
            }
        }
    }

    /// The memory map for the kernel, in ascending order: the hole is simply absent.
    pub fn memory_map(&self) -> Vec<MemoryRange> {
        let usable = |r: Range<u64>| MemoryRange { start: r.start, len: r.end - r.start, kind: MemoryKind::Usable };
        let mut map = Vec::new();
        for ram in &self.ram {
            if ram.start == 0 && ram.end > low::BIOS_END {
                map.push(usable(0..low::BIOS_START));
                let len = low::BIOS_END - low::BIOS_START;
                map.push(MemoryRange { start: low::BIOS_START, len, kind: MemoryKind::Reserved });
                map.push(usable(low::BIOS_END..ram.end));
            } else {
                map.push(usable(ram.clone()));
            }
        }
        map
    }

    /// Writes one of the loaders' own structures.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), Error> {
        self.memory.write_slice(data, GuestAddress(address)).map_err(|source| Error::Memory { address, source })
    }
}

/// Ranges in ascending order, with neighbours put together: a kernel may lie in the RAM of two NUMA nodes.
fn contiguous(ranges: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut whole: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match whole.last_mut().filter(|last| last.end == range.start) {
            Some(last) => last.end = range.end,
            None => whole.push(range),
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use queztl_guest_memory::{GuestRam, Pages, RamConfig, RamNode};

    #[test]
    fn the_highest_free_place_lies_below_what_is_taken() {
        let ram = GuestRam::new(16 << 20).unwrap();
        let mut placement = Placement::new(ram.memory());
        placement.claim(15 << 20, 1 << 20, "a").unwrap();
        placement.claim(13 << 20, 1 << 20, "b").unwrap();
        assert_eq!(placement.highest_free(1 << 20, u64::MAX), Some(14 << 20));
        assert_eq!(placement.highest_free(2 << 20, u64::MAX), Some(11 << 20));
        assert_eq!(placement.highest_free(12 << 20, u64::MAX), Some(1 << 20));
        assert_eq!(placement.highest_free(16 << 20, u64::MAX), None);
    }

    #[test]
    fn claims_outside_ram_or_over_each_other_are_refused() {
        let ram = GuestRam::new(16 << 20).unwrap();
        let mut placement = Placement::new(ram.memory());
        placement.claim(0x10_0000, 0x1000, "a segment").unwrap();
        assert!(matches!(placement.claim(0x10_0fff, 1, "b"), Err(KernelError::Overlap { with: "a segment", .. })));
        assert!(matches!(placement.claim(0x1000, 1, "b"), Err(KernelError::Overlap { .. })));
        assert!(matches!(placement.claim((16 << 20) - 1, 2, "b"), Err(KernelError::OutsideRam { .. })));
        assert!(matches!(placement.claim(u64::MAX, 2, "b"), Err(KernelError::OutsideRam { .. })));
        placement.claim(0x10_1000, 1, "b").unwrap();
    }

    #[test]
    fn the_memory_map_leaves_out_the_device_hole() {
        let ram = GuestRam::new(4 << 30).unwrap();
        let map = Placement::new(ram.memory()).memory_map();
        let usable: Vec<_> = map.iter().filter(|r| r.kind == MemoryKind::Usable).map(|r| (r.start, r.len)).collect();
        assert_eq!(usable, [(0, 0x9_fc00), (0x10_0000, 0xbff0_0000), (1 << 32, 1 << 30)]);
    }

    #[test]
    fn a_piece_may_lie_in_two_numa_nodes() {
        let node = |bytes| RamNode { bytes, host_node: None };
        let nodes = vec![node(4 << 20), node(12 << 20)];
        let ram = GuestRam::with(&RamConfig { nodes, pages: Pages::Host }).unwrap();
        let mut placement = Placement::new(ram.memory());
        placement.claim(3 << 20, 2 << 20, "a kernel").unwrap();
        assert_eq!(placement.low_ram_end(), 16 << 20);
        assert_eq!(placement.memory_map().last().unwrap().len, 15 << 20);
    }
}
