//! A region of guest RAM, as `vm-memory` knows regions.

use std::sync::Arc;

use vm_memory::bitmap::BS;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes, GuestRegionMmap,
    MemoryRegionAddress, VolatileSlice,
};

use crate::mapping::Reservation;
use crate::tracker::PageTracker;

/// One contiguous run of guest-physical addresses of one NUMA node.
///
/// Neighbours among guest-physical addresses are neighbours in this process, too.
#[derive(Debug)]
pub struct RamRegion {
    region: GuestRegionMmap<PageTracker>,
    /// Where the region is mapped, for as long as it is used.
    _reservation: Arc<Reservation>,
}

impl RamRegion {
    /// The region of `len` bytes at `start`, which has been mapped from `file`.
    pub(crate) fn new(
        reservation: Arc<Reservation>,
        start: u64,
        len: u64,
        file: FileOffset,
        tracker: PageTracker,
    ) -> RamRegion {
        let builder = MmapRegionBuilder::new_with_bitmap(len as usize, tracker)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED)
            .with_file_offset(file);
        // SAFETY: the caller has mapped these bytes, and they stay mapped as long as the reservation, which the result
        // holds.
        let builder = unsafe { builder.with_raw_mmap_pointer(reservation.at(start)) };
        let map = builder.build().expect("mappings start at a page");
        let region = GuestRegionMmap::new(map, GuestAddress(start)).expect("regions of the layout do not wrap");
        RamRegion { region, _reservation: reservation }
    }
}

impl GuestMemoryRegion for RamRegion {
    type B = PageTracker;

    fn len(&self) -> u64 {
        self.region.len()
    }

    fn start_addr(&self) -> GuestAddress {
        self.region.start_addr()
    }

    fn bitmap(&self) -> BS<'_, PageTracker> {
        self.region.bitmap()
    }

    fn get_host_address(&self, address: MemoryRegionAddress) -> Result<*mut u8, GuestMemoryError> {
        self.region.get_host_address(address)
    }

    fn file_offset(&self) -> Option<&FileOffset> {
        self.region.file_offset()
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, BS<'_, PageTracker>>, GuestMemoryError> {
        GuestMemoryRegion::get_slice(&self.region, offset, count)
    }
}

impl GuestMemoryRegionBytes for RamRegion {}
