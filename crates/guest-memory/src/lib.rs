//! Guest RAM: where it lies in this process, who wrote to it, and which of it is code.
//!
//! Promises:
//! - one [`GuestRam`] per virtual machine, one memfd per NUMA node, so that back ends in other processes can share it
//!   and forks can map it;
//! - RAM that is never touched costs nothing, neither itself nor the tables about it: a guest may have more RAM than the
//!   host;
//! - guest pages of 2 MiB lie in host pages of 2 MiB, where the host gives them;
//! - every write, by a vCPU or by a device, reaches the same [`PageTracker`], so that one dirty log serves snapshots,
//!   migration and replication, and so that code a device has overwritten is never executed from a stale cache.
//!
//! Devices write through `vm-memory`, which calls [`PageTracker`] after each write; software vCPUs write through the
//! host pointers of [`GuestRam::host_page`] and report to the tracker themselves.

mod config;
mod figures;
mod layout;
mod mapping;
mod placement;
mod region;
#[cfg(test)]
mod tests;
mod tracker;

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use vm_memory::{FileOffset, GuestRegionCollection};

pub use config::{Error, HUGE_PAGE_SIZE, Pages, RamConfig, RamNode};
pub use figures::{MemoryFigures, Usage};
use layout::Piece;
pub use layout::{HIGH_RAM_START, LOW_RAM_END, ranges_for};
use mapping::Reservation;
pub use region::RamRegion;
pub use tracker::{LINE_SIZE, PageTracker, line_mask};

/// Bytes in a guest page.
pub const PAGE_SIZE: u64 = 4096;

/// Guest RAM as devices see it: bounds-checked, every write tracked.
pub type GuestMemory = GuestRegionCollection<RamRegion>;

/// The region for hot-plug starts at a multiple of this many bytes, the largest memory block of Linux
/// (`arch/x86/mm/init_64.c`, MAX_BLOCK_SIZE), since parts of such a block cannot be used.
pub const HOTPLUG_ALIGNMENT: u64 = 2 << 30;

/// What the files of guest RAM are called; `/proc/PID/maps` shows the names.
const FILE_NAME: &str = "guest-ram";

/// One contiguous run of guest-physical addresses backed by RAM.
#[derive(Debug)]
struct Region {
    start: u64,
    len: u64,
    node: usize,
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
    /// The regions without that for hot-plug.
    boot_memory: Arc<GuestMemory>,
    hotplug: Option<(u64, u64)>,
    /// One for each node that has RAM, and that of the region for hot-plug.
    files: Vec<Arc<File>>,
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
    /// Reserves `bytes` of RAM in one node; see [`GuestRam::with`].
    pub fn new(bytes: u64) -> Result<GuestRam, Error> {
        GuestRam::with(&RamConfig::plain(bytes))
    }

    /// Reserves RAM laid out as a PC has it: up to [`LOW_RAM_END`] from zero, the rest from [`HIGH_RAM_START`], one node
    /// after the other. Pages are zero. They take host memory once they are touched, so there may be more RAM than the
    /// host has; only [`Pages::Huge2M`] are taken at once.
    ///
    /// # Errors
    /// When sizes are no whole pages, the process has no addresses left, the pool of huge pages is too small, or the
    /// host has no such NUMA node.
    pub fn with(config: &RamConfig) -> Result<GuestRam, Error> {
        GuestRam::with_hotplug(config, 0)
    }

    /// The same, and above it a region of `hotplug_bytes`, whole huge pages, for memory that comes and goes while the guest
    /// runs: [`GuestRam::hotplug`]. It starts at a multiple of [`HOTPLUG_ALIGNMENT`], in pages as the host gives them.
    ///
    /// # Errors
    /// Those of [`GuestRam::with`].
    pub fn with_hotplug(config: &RamConfig, hotplug_bytes: u64) -> Result<GuestRam, Error> {
        let bytes = config.check()?;
        if !hotplug_bytes.is_multiple_of(HUGE_PAGE_SIZE) {
            return Err(Error::Unaligned { bytes: hotplug_bytes, unit: HUGE_PAGE_SIZE });
        }
        config.nodes.iter().filter_map(|node| node.host_node).try_for_each(placement::check_host_node)?;
        let files = config.nodes.iter().enumerate().map(|(number, node)| file(number, node.bytes, config.pages));
        let mut files = files.collect::<Result<Vec<_>, _>>()?;
        let sizes: Vec<u64> = config.nodes.iter().map(|node| node.bytes).collect();
        let pieces = layout::place(&sizes);
        let end = pieces.last().map_or(0, |piece| piece.start + piece.len);
        let hotplug_start = end.max(HIGH_RAM_START).next_multiple_of(HOTPLUG_ALIGNMENT);
        let hotplug = (hotplug_bytes > 0).then_some((hotplug_start, hotplug_bytes));
        let end = hotplug.map_or(end, |(start, len)| start.saturating_add(len));
        let reserved = Reservation::new(end).map_err(|source| Error::AddressSpace { bytes, source })?;
        let reserved = Arc::new(reserved);
        let (mut maps, mut regions) = (Vec::new(), Vec::new());
        for piece in pieces {
            let Piece { start, len, node, offset } = piece;
            map(&reserved, &piece, &files[node], config, bytes)?;
            let tracker = PageTracker::new(len).map_err(Error::Tracker)?;
            let file = FileOffset::from_arc(files[node].clone(), offset);
            maps.push(Arc::new(RamRegion::new(reserved.clone(), start, len, file, tracker.clone())));
            regions.push(Region { start, len, node, host: reserved.at(start), tracker });
        }
        let boot_memory = GuestMemory::from_arc_regions(maps.clone()).map_err(Error::Regions)?;
        if let Some((start, len)) = hotplug {
            let file = file(files.len(), len, Pages::Host)?;
            let mapped = reserved.map(start, len, file.as_fd(), 0, false);
            mapped.map_err(|source| Error::Map { bytes: len, source })?;
            let tracker = PageTracker::new(len).map_err(Error::Tracker)?;
            let place = FileOffset::from_arc(file.clone(), 0);
            maps.push(Arc::new(RamRegion::new(reserved.clone(), start, len, place, tracker.clone())));
            regions.push(Region { start, len, node: usize::MAX, host: reserved.at(start), tracker });
            files.push(file);
        }
        let memory = GuestMemory::from_arc_regions(maps).map_err(Error::Regions)?;
        Ok(GuestRam { memory: Arc::new(memory), regions, boot_memory: Arc::new(boot_memory), hotplug, files })
    }

    /// The view for devices and loaders.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// The view for boot loaders: the RAM that the guest starts with.
    pub fn boot_memory(&self) -> &Arc<GuestMemory> {
        &self.boot_memory
    }

    /// The region for hot-plug as (start, length in bytes), if there is one. It is RAM like any other to whoever accesses
    /// it, and belongs to no node.
    pub fn hotplug(&self) -> Option<(u64, u64)> {
        self.hotplug
    }

    /// Total bytes of RAM, the region for hot-plug included.
    pub fn bytes(&self) -> u64 {
        self.regions.iter().map(|r| r.len).sum()
    }

    /// The runs of guest-physical addresses that are RAM, that for hot-plug included, as (start, length in bytes), lowest first.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.regions.iter().map(|r| (r.start, r.len))
    }

    /// The runs that belong to NUMA node `node`, likewise.
    pub fn ranges_of(&self, node: usize) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.regions.iter().filter(move |r| r.node == node).map(|r| (r.start, r.len))
    }

    /// Bytes of the host's memory and swap space that the RAM takes now.
    ///
    /// # Errors
    /// When the host does not tell.
    pub fn allocated_bytes(&self) -> std::io::Result<u64> {
        self.files.iter().map(|file| mapping::allocated(file)).sum()
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

/// The file of node `number`.
fn file(number: usize, bytes: u64, pages: Pages) -> Result<Arc<File>, Error> {
    let huge = pages == Pages::Huge2M;
    let name = format!("{FILE_NAME}-{number}");
    let file = mapping::memory_file(&name, bytes, huge).map_err(|source| match source.raw_os_error() {
        Some(libc::EINVAL | libc::ENODEV | libc::EOPNOTSUPP) if huge => Error::NoHugePages { source },
        _ => Error::Reserve { bytes, source },
    })?;
    Ok(Arc::new(file))
}

/// Maps a piece of a node's file where it belongs, in the pages and on the host's node that the configuration wants.
fn map(reserved: &Reservation, piece: &Piece, file: &File, config: &RamConfig, bytes: u64) -> Result<(), Error> {
    let huge = config.pages == Pages::Huge2M;
    let host = reserved.at(piece.start);
    reserved.map(piece.start, piece.len, file.as_fd(), piece.offset, huge).map_err(|source| {
        match source.raw_os_error() {
            Some(libc::ENOMEM) if huge => placement::pool_too_small(bytes),
            _ => Error::Map { bytes, source },
        }
    })?;
    if config.pages == Pages::Transparent {
        placement::want_huge_pages(host, piece.len).map_err(|source| Error::NoHugePages { source })?;
    }
    if let Some(node) = config.nodes[piece.node].host_node {
        placement::prefer_host_node(host, piece.len, node).map_err(|source| Error::Place { node, source })?;
    }
    Ok(())
}
