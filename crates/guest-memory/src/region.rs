//! A region of guest RAM, as `vm-memory` knows regions.

use std::io;
use std::sync::Arc;

use vm_memory::bitmap::{BS, Bitmap};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Address, FileOffset, GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes, GuestRegionMmap,
    MemoryRegionAddress, VolatileSlice,
};

use crate::PAGE_SIZE;
use crate::backing::Backing;
use crate::plugged::{PLUG_UNIT, Plugged};
use crate::tracker::PageTracker;

/// One contiguous run of guest-physical addresses of one NUMA node.
///
/// Neighbours among guest-physical addresses are neighbours in this process, too.
#[derive(Debug)]
pub struct RamRegion {
    region: GuestRegionMmap<PageTracker>,
    /// Where the region is mapped, for as long as it is used.
    backing: Arc<Backing>,
    /// Of the region for hot-plug: what is RAM at the moment.
    plugged: Option<Arc<Plugged>>,
}

impl RamRegion {
    /// The region of `len` bytes at `start`, which has been mapped, from `file` if it is shared.
    pub(crate) fn new(
        backing: Arc<Backing>,
        start: u64,
        len: u64,
        file: Option<FileOffset>,
        tracker: PageTracker,
        plugged: Option<Arc<Plugged>>,
    ) -> RamRegion {
        let builder = MmapRegionBuilder::new_with_bitmap(len as usize, tracker)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(if file.is_some() { libc::MAP_SHARED } else { libc::MAP_PRIVATE });
        let builder = match file {
            Some(file) => builder.with_file_offset(file),
            None => builder,
        };
        // SAFETY: the caller has mapped these bytes, and they stay mapped as long as the backing, which the result
        // holds.
        let builder = unsafe { builder.with_raw_mmap_pointer(backing.reserved.at(start)) };
        let map = builder.build().expect("mappings start at a page");
        let region = GuestRegionMmap::new(map, GuestAddress(start)).expect("regions of the layout do not wrap");
        RamRegion { region, backing, plugged }
    }

    /// Gives the whole pages of `offset..offset + len` within the region back to the host, and reports them as written.
    /// The guest must have given up what was in them: they read as zeroes, or, once RAM was frozen, as at a freeze.
    ///
    /// # Errors
    /// When the host does not take them, or the range is not inside of the region. The pages may then be as they were.
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset.checked_add(len).filter(|end| *end <= self.len()).ok_or(io::ErrorKind::InvalidInput)?;
        let (first, end) = (offset.next_multiple_of(PAGE_SIZE), end / PAGE_SIZE * PAGE_SIZE);
        if first >= end {
            return Ok(());
        }
        let result = self.backing.discard(self.start_addr().raw_value() + first, end - first);
        self.bitmap().mark_dirty(first as usize, (end - first) as usize);
        result
    }
}

impl RamRegion {
    /// Plugs or unplugs blocks; see [`crate::plug`].
    pub(crate) fn set_plugged(&self, offset: u64, len: u64, plugged: bool) -> io::Result<()> {
        let whole = offset.is_multiple_of(PLUG_UNIT) && len.is_multiple_of(PLUG_UNIT);
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len());
        match &self.plugged {
            _ if !whole || !inside => Err(io::ErrorKind::InvalidInput.into()),
            Some(blocks) => blocks.set(offset, len, plugged),
            None => Ok(()),
        }
    }

    /// Whether all of `count` bytes at `offset` are RAM at the moment.
    #[inline]
    fn is_plugged(&self, offset: MemoryRegionAddress, count: usize) -> bool {
        self.plugged.as_ref().is_none_or(|plugged| plugged.has_all(offset.raw_value(), count as u64))
    }
}

impl GuestMemoryRegion for RamRegion {
    type B = PageTracker;

    #[inline]
    fn len(&self) -> u64 {
        self.region.len()
    }

    #[inline]
    fn start_addr(&self) -> GuestAddress {
        self.region.start_addr()
    }

    #[inline]
    fn bitmap(&self) -> BS<'_, PageTracker> {
        self.region.bitmap()
    }

    #[inline]
    fn get_host_address(&self, address: MemoryRegionAddress) -> Result<*mut u8, GuestMemoryError> {
        if !self.is_plugged(address, 1) {
            return Err(GuestMemoryError::HostAddressNotAvailable);
        }
        self.region.get_host_address(address)
    }

    /// Where others may map the region from: none once it was frozen, since its file is then for reading only.
    fn file_offset(&self) -> Option<&FileOffset> {
        self.region.file_offset().filter(|_| self.backing.is_shared())
    }

    #[inline]
    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, BS<'_, PageTracker>>, GuestMemoryError> {
        if !self.is_plugged(offset, count) {
            return Err(GuestMemoryError::InvalidBackendAddress);
        }
        GuestMemoryRegion::get_slice(&self.region, offset, count)
    }
}

impl GuestMemoryRegionBytes for RamRegion {}
