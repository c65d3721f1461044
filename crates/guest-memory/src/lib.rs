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

mod arriving;
mod backing;
mod build;
mod config;
mod figures;
mod freeze;
mod image;
mod layout;
mod mapping;
mod pagemap;
mod placement;
mod plugged;
mod region;
mod table;
#[cfg(test)]
mod tests;
mod tracker;
mod userfault;

use std::sync::Arc;

use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionCollection};

pub use arriving::Arriving;
use backing::Backing;
pub use config::{Error, HUGE_PAGE_SIZE, Pages, RamConfig, RamNode};
pub use figures::{MemoryFigures, Usage};
pub use freeze::{Frozen, Settling};
pub use image::{ImageError, LayerId, MemoryImage, MemoryTable, Piece, Shape, Written};
pub use layout::{HIGH_RAM_START, LOW_RAM_END, ranges_for};
use plugged::Plugged;
pub use plugged::{PLUG_UNIT, Plugging};
pub use region::RamRegion;
pub use table::{Table, Zeroed};
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

/// What the file of a snapshot's memory is called, so that [`MemoryFigures`] knows it when it is mapped.
pub const SNAPSHOT_FILE_NAME: &str = "memory";

/// One contiguous run of guest-physical addresses backed by RAM.
#[derive(Debug)]
struct Region {
    start: u64,
    len: u64,
    node: usize,
    host: *mut u8,
    tracker: PageTracker,
    /// Of the region for hot-plug: what is RAM at the moment.
    plugged: Option<Arc<Plugged>>,
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
    backing: Arc<Backing>,
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
    /// runs: [`GuestRam::hotplug`]. It starts at a multiple of [`HOTPLUG_ALIGNMENT`], in pages as the configuration says but
    /// for reserved ones, and nothing of it is plugged: see [`plug`].
    ///
    /// # Errors
    /// Those of [`GuestRam::with`].
    pub fn with_hotplug(config: &RamConfig, hotplug_bytes: u64) -> Result<GuestRam, Error> {
        build::empty(config, hotplug_bytes)
    }

    /// RAM that holds what `image` holds, laid out as the configuration says, which must be that of the machine the image
    /// was taken from. It is read from the image's files when it is touched, and written to copies: the image stays as it
    /// is, for others to use at the same time. With [`Pages::Huge2M`] all data is copied now.
    ///
    /// # Errors
    /// Those of [`GuestRam::with_hotplug`], and [`Error::Image`] when the image is of other RAM.
    pub fn from_image(config: &RamConfig, hotplug_bytes: u64, image: &MemoryImage) -> Result<GuestRam, Error> {
        build::from_image(config, hotplug_bytes, image)
    }

    /// Freezes all RAM as it is now: an image to make forks from ([`GuestRam::from_image`], here or, with
    /// [`MemoryImage::parts`], in another process) and to write to disk ([`MemoryImage::write`]).
    ///
    /// Nobody may write to RAM during the call: vCPUs and devices stand still. The second value is work that is left, to
    /// be run on a thread of its own **before** they go on. Addresses, trackers and contents stay as they are; the pages
    /// are mapped anew, so each is a page fault once. The next freeze waits until the work of the last one is done.
    ///
    /// # Errors
    /// When the host has no memory or addresses left, or does not tell which pages are private. RAM is then as before.
    pub fn freeze(&self) -> Result<(Frozen, Settling), ImageError> {
        self.backing.freeze()
    }

    /// Gives back what nobody needs any more of layers that nobody else has: pages of which this process has its own copy,
    /// and pages that a newer layer hides. May be called at any time, also while the guest runs. Returns the bytes given
    /// back; none while another image of this RAM is kept, or after its files were passed on ([`MemoryImage::parts`]).
    ///
    /// # Errors
    /// When the host does not tell which pages are private, or does not take pages back.
    pub fn reclaim(&self) -> std::io::Result<u64> {
        self.backing.reclaim()
    }

    /// The image that this RAM was made from or was last frozen to; its newest layer is the base for an incremental image.
    pub fn base(&self) -> Option<LayerId> {
        self.backing.state().image.top()
    }

    /// What has not come yet, of RAM that was made before it was whole: [`MemoryImage::arriving`].
    pub fn arriving(&self) -> Option<Arc<Arriving>> {
        self.backing.state().image.not_whole().cloned()
    }

    /// The view for devices and loaders.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// The view for boot loaders: the RAM that the guest starts with.
    pub fn boot_memory(&self) -> &Arc<GuestMemory> {
        &self.boot_memory
    }

    /// The region for hot-plug as (start, length in bytes), if there is one. Its plugged blocks are RAM like any other to
    /// whoever accesses them, the rest is none; it belongs to no node.
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

    /// Bytes of the host's memory and swap space that the RAM takes now: [`GuestRam::allocated`], both together.
    ///
    /// # Errors
    /// When the host does not tell.
    pub fn allocated_bytes(&self) -> std::io::Result<u64> {
        self.allocated().map(|allocated| allocated.shared + allocated.private)
    }

    /// What the RAM takes of the host's memory and swap space now.
    ///
    /// # Errors
    /// When the host does not tell.
    pub fn allocated(&self) -> std::io::Result<Allocated> {
        let (shared, private) = self.backing.allocated()?;
        Ok(Allocated { shared, private })
    }

    /// The page that holds guest-physical address `gpa`, or `None` where there is no RAM.
    #[inline]
    pub fn host_page(&self, gpa: u64) -> Option<HostPage<'_>> {
        let region = self.regions.iter().find(|r| gpa.wrapping_sub(r.start) < r.len)?;
        let offset = (gpa - region.start) & !(PAGE_SIZE - 1);
        if region.plugged.as_ref().is_some_and(|plugged| !plugged.has(offset)) {
            return None;
        }
        // SAFETY: `offset` is below the region's length, so the result stays inside its mapping.
        let host = unsafe { region.host.add(offset as usize) };
        Some(HostPage { host, tracker: &region.tracker, index: (offset / PAGE_SIZE) as usize })
    }

    /// Where guest-physical address `gpa` of RAM lies in this process, plugged or not.
    pub fn host_address(&self, gpa: u64) -> Option<*mut u8> {
        let region = self.regions.iter().find(|r| gpa.wrapping_sub(r.start) < r.len)?;
        // SAFETY: the offset is below the region's length, so the result stays inside its mapping.
        Some(unsafe { region.host.add((gpa - region.start) as usize) })
    }

    /// `watcher` is told of each change of what is plugged, by the thread that makes it ([`plug`], [`unplug`]): before
    /// blocks become RAM, which an error prevents, and after they have ceased to be. When it returns from the latter, the
    /// watcher must have dropped all its ways to the blocks. Nothing is plugged yet when a machine is made.
    pub fn watch_plugging(&self, watcher: impl Fn(Plugging) -> std::io::Result<()> + Send + Sync + 'static) {
        if let Some(plugged) = self.regions.iter().find_map(|region| region.plugged.as_ref()) {
            plugged.watch(Box::new(watcher));
        }
    }

    /// The trackers of all regions with the guest-physical address each starts at.
    pub fn trackers(&self) -> impl Iterator<Item = (u64, &PageTracker)> + '_ {
        self.regions.iter().map(|r| (r.start, &r.tracker))
    }
}

/// Makes the blocks at `start..start + bytes`, whole ones of [`PLUG_UNIT`] in one region, RAM. Memory that is not of a region
/// for hot-plug always is.
///
/// # Errors
/// An accelerator cannot follow, and the blocks are not plugged; or there are no such blocks.
pub fn plug(memory: &GuestMemory, start: GuestAddress, bytes: u64) -> std::io::Result<()> {
    set_plugged(memory, start, bytes, true)
}

/// Makes such blocks no RAM any more: when this returns, no vCPU has a way to them, and devices get no new one. What they
/// hold is still there, for [`discard`] to give back.
///
/// # Errors
/// An accelerator cannot follow; the blocks are unplugged all the same as far as others are concerned.
pub fn unplug(memory: &GuestMemory, start: GuestAddress, bytes: u64) -> std::io::Result<()> {
    set_plugged(memory, start, bytes, false)
}

fn set_plugged(memory: &GuestMemory, start: GuestAddress, bytes: u64, plugged: bool) -> std::io::Result<()> {
    let (region, offset) = memory.to_region_addr(start).ok_or(std::io::ErrorKind::InvalidInput)?;
    region.set_plugged(offset.raw_value(), bytes, plugged)
}

/// What guest RAM takes of the host, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Allocated {
    /// In files in memory: RAM that was never frozen, or the layers of images, which forks use as well. Files on disk count
    /// for nothing, since the host can read them again.
    pub shared: u64,
    /// Copies that this process alone has of pages of an image.
    pub private: u64,
}

/// Gives the whole pages inside of `start..start + bytes` back to the host, as far as they are RAM; see
/// [`RamRegion::discard`].
///
/// # Errors
/// The first one; the rest of the range is given back all the same.
pub fn discard(memory: &GuestMemory, start: GuestAddress, bytes: u64) -> std::io::Result<()> {
    let start = start.raw_value();
    let end = start.saturating_add(bytes);
    let mut result = Ok(());
    for region in memory.iter() {
        let first = region.start_addr().raw_value();
        let (from, to) = (start.max(first), end.min(first + region.len()));
        if from < to {
            result = result.and(region.discard(from - first, to - from));
        }
    }
    result
}
