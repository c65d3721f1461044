//! Freezing guest RAM: an image of all of it, without copying it while the guest stands still.
//!
//! **The first freeze** copies nothing. The files of RAM become the image; in their place this process maps them
//! privately, at the same addresses, so that whoever writes from then on, here or in a fork, writes to a copy of its own.
//! The page tables of the old mappings are moved aside as a whole and taken apart after the guest has gone on.
//!
//! **A later freeze** adds a layer: the pages of which this process has a copy of its own, which are those written since
//! the last freeze. See [`layer`].
//!
//! ```text
//!   guest runs │ writers stopped │ guest runs …
//!              │ freeze()        │ Settling::run(), on a thread of its own:
//!              │  └> Frozen      │ page tables taken apart, layer filled ──> Frozen::image() returns
//! ```
//! Reserved huge pages cannot be mapped privately without a second set of them. There, all data is copied while the guest
//! stands still.

mod coarsen;
mod layer;
mod reclaim;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::backing::{Backing, State};
use crate::image::{ImageError, ImageFile, LayerId, MemoryImage, Segment};
use crate::mapping::{self, Reservation, Sharing};

/// A frozen image of a machine's RAM.
#[derive(Debug)]
pub struct Frozen {
    image: MemoryImage,
    settled: Arc<Latch>,
    copied_bytes: u64,
}

impl Frozen {
    /// The image, once it is complete: waits for [`Settling::run`].
    pub fn image(&self) -> &MemoryImage {
        self.settled.wait();
        &self.image
    }

    /// The name of the image's newest layer, known at once.
    pub fn top(&self) -> Option<LayerId> {
        self.image.top()
    }

    /// Bytes that were copied while the writers stood still.
    pub fn copied_bytes(&self) -> u64 {
        self.copied_bytes
    }
}

/// What is left to do after a freeze, while the guest runs.
///
/// To be run on a thread of its own that is started **before** the writers go on: they may wait for it. The thread must
/// not touch guest RAM. Dropping the value runs it.
#[derive(Debug)]
#[must_use = "writers to guest RAM may wait for this work"]
pub struct Settling {
    work: Work,
    settled: Arc<Latch>,
}

#[derive(Debug)]
enum Work {
    Nothing,
    /// Page tables to be taken apart.
    Unmap(Reservation),
    /// A layer to be filled.
    Copy(Box<layer::LayerCopy>),
}

impl Settling {
    fn new(work: Work) -> Settling {
        Settling { work, settled: Arc::default() }
    }

    /// Does the work, then lets [`Frozen::image`] return.
    pub fn run(self) {
        // All of it is in `drop`.
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.work, Work::Nothing) {
            Work::Nothing => {}
            Work::Unmap(reservation) => drop(reservation),
            Work::Copy(copy) => copy.run(),
        }
        self.settled.open();
    }
}

/// Something that happens once, and can be waited for.
#[derive(Debug, Default)]
pub(crate) struct Latch {
    is_open: Mutex<bool>,
    changed: Condvar,
}

impl Latch {
    pub fn opened() -> Latch {
        Latch { is_open: Mutex::new(true), changed: Condvar::new() }
    }

    fn open(&self) {
        *self.is_open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    pub fn wait(&self) {
        let mut is_open = self.is_open.lock().unwrap_or_else(PoisonError::into_inner);
        while !*is_open {
            is_open = self.changed.wait(is_open).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub fn is_open(&self) -> bool {
        *self.is_open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backing {
    /// See [`crate::GuestRam::freeze`].
    pub(crate) fn freeze(self: &Arc<Self>) -> Result<(Frozen, Settling), ImageError> {
        let mut state = self.state_mut();
        if state.image.not_whole().is_some() {
            return Err(ImageError::Arriving);
        }
        state.settled.wait();
        let id = LayerId::random()?;
        let (image, settling, copied_bytes) = if self.is_huge() {
            let (image, copied) = self.copy_all(&state, id)?;
            (image, Settling::new(Work::Nothing), copied)
        } else if self.is_shared() {
            let (image, old) = self.freeze_files(&state, id)?;
            (image, Settling::new(old.map_or(Work::Nothing, Work::Unmap)), 0)
        } else {
            self.add_layer(&state, id)?
        };
        if !self.is_huge() {
            state.image = image.clone();
        }
        state.settled = settling.settled.clone();
        let frozen = Frozen { image, settled: settling.settled.clone(), copied_bytes };
        Ok((frozen, settling))
    }

    /// Makes an image of the files behind shared RAM, and maps them privately. Also returns the old page tables.
    fn freeze_files(&self, state: &State, id: LayerId) -> Result<(MemoryImage, Option<Reservation>), ImageError> {
        let segments = state.image.segments();
        // Without room for the old page tables they are taken apart at once.
        let aside = Reservation::new(self.reserved.bytes()).ok();
        for (number, segment) in segments.iter().enumerate() {
            if let Err(source) = self.make_private(segment, aside.as_ref()) {
                for changed in &segments[..=number] {
                    // All data is in the files, so nothing is lost, and the kernel has just had these mappings.
                    let _ = self.map_segment(changed, Sharing::Shared);
                }
                self.repeat_wishes();
                return Err(ImageError::Io { doing: "guest RAM cannot be mapped privately", source });
            }
        }
        self.repeat_wishes();
        self.set_private();
        let image = MemoryImage::new(self.shape.clone(), vec![id], segments.to_vec());
        Ok((image, aside))
    }

    fn make_private(&self, segment: &Segment, aside: Option<&Reservation>) -> std::io::Result<()> {
        if let Some(aside) = aside {
            for (address, _, len) in self.shape.parts(segment.start, segment.len) {
                // Refused by kernels that cannot leave a mapping in place; then the next step takes it apart.
                let _ = self.reserved.move_pages(address, len, aside);
            }
        }
        self.map_segment(segment, Sharing::Private)
    }

    /// Copies all data to a file of its own.
    fn copy_all(&self, state: &State, id: LayerId) -> Result<(MemoryImage, u64), ImageError> {
        let bytes = self.shape.bytes();
        let file = mapping::memory_file(crate::FILE_NAME, bytes, false)
            .map_err(ImageError::io("no memory for a copy of guest RAM"))?;
        let image = MemoryImage::new(self.shape.clone(), vec![id], state.image.segments().to_vec());
        let copied = image.copy_to(&file)?;
        let file = Arc::new(ImageFile::own(file));
        let segments = vec![Segment { start: 0, len: bytes, offset: 0, layer: 0, file }];
        Ok((MemoryImage::new(self.shape.clone(), vec![id], segments), copied))
    }
}
