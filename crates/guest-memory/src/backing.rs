//! What lies behind guest RAM: files of its own, or an image that it reads and does not write to.
//!
//! ```text
//!   shared                                       private
//!   mappings MAP_SHARED of own files   freeze    mappings MAP_PRIVATE of an image's files
//!   writes go to the files            ───────>   a first write to a page makes a copy of it for this process
//!                                                    │  freeze: the copies become the image's newest layer
//!   from_image starts here ────────────────────────> └──┘
//! ```
//! Addresses stay: pointers to guest RAM are the same before and after a freeze.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rustix::fs::{FallocateFlags, fallocate};

use crate::config::Pages;
use crate::freeze::Latch;
use crate::image::{ImageError, ImageFile, MemoryImage, Segment, Shape, within};
use crate::mapping::{self, Reservation, Sharing};
use crate::pagemap::Pagemap;
use crate::placement;
use crate::userfault::Userfault;

/// What is wanted of the host for one run of RAM.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish {
    pub pages: Pages,
    pub host_node: Option<u32>,
}

/// Where a guest's RAM is mapped, and what is behind the mappings.
#[derive(Debug)]
pub(crate) struct Backing {
    pub reserved: Reservation,
    pub shape: Shape,
    /// One for each run of the shape.
    pub wishes: Vec<Wish>,
    pagemap: OnceLock<Pagemap>,
    userfault: Option<Userfault>,
    without_userfault: AtomicBool,
    is_private: AtomicBool,
    state: RwLock<State>,
}

/// What changes with a freeze.
#[derive(Debug)]
pub(crate) struct State {
    /// What is mapped. While RAM is shared, this is no image yet, since it changes.
    pub image: MemoryImage,
    /// Open while the last freeze has work left.
    pub settled: Arc<Latch>,
}

impl Backing {
    pub fn new(reserved: Reservation, wishes: Vec<Wish>, image: MemoryImage, is_private: bool) -> Backing {
        let shape = image.shape().clone();
        let pagemap = OnceLock::new();
        // Later the process may not be permitted to open files.
        if let Ok(opened) = Pagemap::open() {
            let _ = pagemap.set(opened);
        }
        let state = RwLock::new(State { image, settled: Arc::new(Latch::opened()) });
        let is_private = AtomicBool::new(is_private);
        let userfault = Userfault::open().ok();
        let without_userfault = AtomicBool::new(false);
        Backing { reserved, shape, wishes, pagemap, userfault, without_userfault, is_private, state }
    }

    /// Where page faults are handled by this process, if the host permits it.
    pub fn userfault(&self) -> Option<&Userfault> {
        self.userfault.as_ref().filter(|_| !self.without_userfault.load(Ordering::Relaxed))
    }

    /// Does from now on as on a host where this process may not handle page faults.
    #[cfg(test)]
    pub fn do_without_userfault(&self) {
        self.without_userfault.store(true, Ordering::Relaxed);
    }

    /// Whether RAM lies in files of its own, which others may map.
    pub fn is_shared(&self) -> bool {
        !self.is_private.load(Ordering::Acquire)
    }

    pub fn set_private(&self) {
        self.is_private.store(true, Ordering::Release);
    }

    pub fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn pagemap(&self) -> io::Result<&Pagemap> {
        if let Some(pagemap) = self.pagemap.get() {
            return Ok(pagemap);
        }
        let opened = Pagemap::open()?;
        Ok(self.pagemap.get_or_init(|| opened))
    }

    /// Whether RAM is of the host's reserved huge pages, which cannot be frozen in place.
    pub fn is_huge(&self) -> bool {
        self.wishes.iter().any(|wish| wish.pages == Pages::Huge2M)
    }

    /// Maps `segments` privately where they belong.
    pub fn map_private(&self, segments: &[Segment]) -> io::Result<()> {
        for segment in segments {
            self.map_segment(segment, Sharing::Private)?;
        }
        Ok(())
    }

    /// Maps one segment where it belongs.
    pub fn map_segment(&self, segment: &Segment, sharing: Sharing) -> io::Result<()> {
        segment.map(&self.reserved, &self.shape, sharing)
    }

    /// Writes what `image` holds, of the same shape, to RAM that is empty.
    pub fn fill(&self, image: &MemoryImage) -> Result<(), ImageError> {
        image.for_each_data(|offset, data| {
            for (address, at, len) in self.shape.parts(offset, data.len() as u64) {
                let from = &data[(at - offset) as usize..][..len as usize];
                // SAFETY: the range is RAM, mapped, and nobody has it yet.
                unsafe { self.reserved.at(address).copy_from_nonoverlapping(from.as_ptr(), from.len()) };
            }
            Ok(())
        })
    }

    /// Asks the host for what is wanted of it, as far as it can give it; for mappings that were made anew.
    pub fn repeat_wishes(&self) {
        for ((address, _, len), wish) in self.shape.placed().zip(&self.wishes) {
            let host = self.reserved.at(address);
            if wish.pages == Pages::Transparent {
                let _ = placement::want_huge_pages(host, len);
            }
            if let Some(node) = wish.host_node {
                let _ = placement::prefer_host_node(host, len, node);
            }
        }
    }

    /// Gives the pages of `address..address + len`, which is all RAM, back to the host. Shared RAM reads as zeroes from
    /// then on; private RAM as it was at the last freeze, which is this guest's own, or as zeroes.
    pub fn discard(&self, address: u64, len: u64) -> io::Result<()> {
        let state = self.state();
        if !self.is_shared() {
            // SAFETY: the caller says that the range is RAM, whose contents the guest gives up.
            unsafe {
                rustix::mm::madvise(self.reserved.at(address).cast(), len as usize, rustix::mm::Advice::LinuxDontNeed)
            }?;
            return Ok(());
        }
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        for (start, offset, run) in self.shape.placed() {
            let (from, to) = (address.max(start), (address + len).min(start + run));
            if from >= to {
                continue;
            }
            for part in within(state.image.segments(), offset + (from - start), offset + (to - start)) {
                rustix::io::retry_on_intr(|| fallocate(&part.file.file, hole, part.offset, part.len))?;
            }
        }
        Ok(())
    }

    /// Bytes of the host's memory and swap space in files in memory, and those that are this process's own copies.
    pub fn allocated(&self) -> io::Result<(u64, u64)> {
        let state = self.state();
        let mut files: Vec<&Arc<ImageFile>> = state.image.segments().iter().map(|segment| &segment.file).collect();
        files.sort_unstable_by_key(|file| Arc::as_ptr(file));
        files.dedup_by_key(|file| Arc::as_ptr(file));
        let in_memory = files.iter().filter(|file| file.in_memory);
        let in_files = in_memory.map(|file| mapping::allocated(&file.file)).sum::<io::Result<u64>>()?;
        if self.is_shared() {
            return Ok((in_files, 0));
        }
        let copies = self.private_runs()?.iter().map(|(_, len)| len).sum();
        Ok((in_files, copies))
    }

    /// The runs of RAM, as (offset, length), that this process has copies of its own of.
    pub fn private_runs(&self) -> io::Result<Vec<(u64, u64)>> {
        let mut runs = Vec::new();
        for (address, offset, len) in self.shape.placed() {
            let host = self.reserved.at(address) as u64;
            self.pagemap()?.private(host, len, |from, len| runs.push((offset + (from - host), len)))?;
        }
        Ok(runs)
    }
}
