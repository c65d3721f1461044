//! Guest RAM: where it lies in this process, who wrote to it, and which of it is code.
//!
//! Promises:
//! - one [`GuestRam`] per virtual machine, one memfd per NUMA node, so that back ends in other processes can share it
//!   and forks can map it;
//! - every write, by a vCPU or by a device, reaches the same [`PageTracker`], so that one dirty log serves snapshots,
//!   migration and replication, and so that code a device has overwritten is never executed from a stale cache.
//!
//! Devices write through `vm-memory`, which calls [`PageTracker`] after each write; software vCPUs write through the
//! host pointers of [`GuestRam::host_page`] and report to the tracker themselves.

mod layout;
mod tracker;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

pub use layout::{HIGH_RAM_START, LOW_RAM_END, ranges_for};
pub use tracker::{LINE_SIZE, PageTracker, line_mask};

/// Bytes in a guest page.
pub const PAGE_SIZE: u64 = 4096;

/// Guest RAM as devices see it: bounds-checked, every write tracked.
pub type GuestMemory = GuestMemoryMmap<PageTracker>;

/// Why guest RAM could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("a guest needs at least 1 MiB of RAM, not {0} bytes")]
    TooSmall(u64),
    #[error("guest RAM must be a multiple of 4096 bytes, not {0} bytes")]
    Unaligned(u64),
    #[error("guest RAM of {bytes} bytes cannot be reserved on this host: {source}")]
    Reserve { bytes: u64, source: std::io::Error },
    #[error("guest RAM of {bytes} bytes cannot be mapped on this host: {source}")]
    Map { bytes: u64, source: vm_memory::mmap::MmapRegionError },
    #[error("guest RAM regions cannot be put together: {0}")]
    Regions(vm_memory::GuestRegionCollectionError),
}

/// One contiguous run of guest-physical addresses backed by RAM.
#[derive(Debug)]
struct Region {
    start: u64,
    len: u64,
    host: *mut u8,
    tracker: PageTracker,
}

/// All RAM of one guest.
///
/// The mapping lives as long as the value; host pointers handed out by [`GuestRam::host_page`] are valid until then.
#[derive(Debug)]
pub struct GuestRam {
    memory: Arc<GuestMemory>,
    regions: Vec<Region>,
}

// SAFETY: `host` points into mappings owned by `memory`, which may be used from any thread; concurrent access to guest
// RAM is what a machine with several processors does, and everybody goes through volatile or atomic accesses.
unsafe impl Send for GuestRam {}
// SAFETY: as above.
unsafe impl Sync for GuestRam {}

/// One page of guest RAM, as software vCPUs reach it.
#[derive(Debug, Clone, Copy)]
pub struct HostPage<'a> {
    /// First byte of the page in this process.
    pub host: *mut u8,
    /// The tracker of the region the page lies in.
    pub tracker: &'a PageTracker,
    /// The page's number within that tracker.
    pub index: usize,
}

impl GuestRam {
    /// Reserves `bytes` of RAM laid out as a PC has it: up to [`LOW_RAM_END`] from zero, the rest from
    /// [`HIGH_RAM_START`]. Pages are zero and take host memory only once they are touched.
    pub fn new(bytes: u64) -> Result<GuestRam, Error> {
        if bytes < 1 << 20 {
            return Err(Error::TooSmall(bytes));
        }
        if !bytes.is_multiple_of(PAGE_SIZE) {
            return Err(Error::Unaligned(bytes));
        }
        let file = Arc::new(memfd(bytes)?);
        let mut offset = 0;
        let mut maps = Vec::new();
        let mut regions = Vec::new();
        for (start, len) in ranges_for(bytes) {
            let tracker = PageTracker::new(len);
            let map = MmapRegionBuilder::new_with_bitmap(len as usize, tracker.clone())
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
                .with_file_offset(FileOffset::from_arc(file.clone(), offset))
                .build()
                .map_err(|source| Error::Map { bytes, source })?;
            regions.push(Region { start, len, host: map.as_ptr(), tracker });
            maps.push(GuestRegionMmap::new(map, GuestAddress(start)).expect("regions of the layout do not wrap"));
            offset += len;
        }
        let memory = Arc::new(GuestMemory::from_regions(maps).map_err(Error::Regions)?);
        Ok(GuestRam { memory, regions })
    }

    /// The view for devices and loaders.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Total bytes of RAM.
    pub fn bytes(&self) -> u64 {
        self.regions.iter().map(|r| r.len).sum()
    }

    /// The runs of guest-physical addresses that are RAM, as (start, length in bytes), lowest first.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.regions.iter().map(|r| (r.start, r.len))
    }

    /// The page that holds guest-physical address `gpa`, or `None` where there is no RAM.
    #[inline]
    pub fn host_page(&self, gpa: u64) -> Option<HostPage<'_>> {
        let region = self.regions.iter().find(|r| gpa.wrapping_sub(r.start) < r.len)?;
        let offset = (gpa - region.start) & !(PAGE_SIZE - 1);
        // SAFETY: `offset` is below the region's length, so the result stays inside its mapping.
        let host = unsafe { region.host.add(offset as usize) };
        Some(HostPage { host, tracker: &region.tracker, index: (offset / PAGE_SIZE) as usize })
    }

    /// The trackers of all regions with the guest-physical address each starts at.
    pub fn trackers(&self) -> impl Iterator<Item = (u64, &PageTracker)> + '_ {
        self.regions.iter().map(|r| (r.start, &r.tracker))
    }
}

fn memfd(bytes: u64) -> Result<File, Error> {
    let reserve = |source| Error::Reserve { bytes, source };
    let fd = rustix::fs::memfd_create("guest-ram", rustix::fs::MemfdFlags::CLOEXEC).map_err(|e| reserve(e.into()))?;
    let file = File::from(fd);
    file.set_len(bytes).map_err(reserve)?;
    debug_assert!(file.as_raw_fd() >= 0);
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn device_writes_reach_the_tracker_of_the_page() {
        let ram = GuestRam::new(16 << 20).unwrap();
        ram.memory().write_slice(&[1; 8], GuestAddress(0x2ffc)).unwrap();
        let page = ram.host_page(0x3000).unwrap();
        assert!(page.tracker.is_dirty(2) && page.tracker.is_dirty(3) && !page.tracker.is_dirty(4));
    }

    #[test]
    fn there_is_no_ram_in_the_hole_below_4_gib() {
        let ram = GuestRam::new(8 << 30).unwrap();
        assert!(ram.host_page(LOW_RAM_END).is_none());
        assert!(ram.host_page(HIGH_RAM_START).is_some());
        assert_eq!(ram.ranges().map(|(_, len)| len).sum::<u64>(), 8 << 30);
    }

    #[test]
    fn sizes_that_cannot_be_ram_are_refused() {
        assert!(matches!(GuestRam::new(0), Err(Error::TooSmall(0))));
        assert!(matches!(GuestRam::new((1 << 20) + 1), Err(Error::Unaligned(_))));
    }
}
