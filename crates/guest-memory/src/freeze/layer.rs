//! A later freeze: the pages that were written since the last one become a layer.
//!
//! They are this process's own copies, so they cannot be shared as they are: they are copied to a new file in memory,
//! which is mapped privately in their place, for this process as for forks. This is done while the guest runs:
//!
//! ```text
//! RAM     │ own copies ──(1) moved, page tables only──> aside        (1) to (3) while the writers stand still
//!         │ (2) layer's file mapped privately,             │
//!         │     (3) faults on missing pages wait           │ (4) copied page by page, those that are
//!         │            ^                                   v     waited for first
//!         └────────────┴──────────────────────────── layer's file
//! ```
//! A page appears in the file as a whole (`UFFDIO_COPY`), so nobody sees half of one, nor a zero that is not meant.
//! Where the host does not let this process handle page faults, the copy is made while the writers stand still.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use super::coarsen::coarsen;
use super::{Settling, Work};
use crate::backing::{Backing, State};
use crate::image::{ImageError, ImageFile, LayerId, MemoryImage, Segment, is_zero};
use crate::mapping::{self, Reservation, Sharing};
use crate::userfault::Userfault;
use crate::{FILE_NAME, PAGE_SIZE};

/// Bytes that are copied between two looks at who waits.
const STEP_BYTES: u64 = 64 << 10;
/// From so many runs within one mapping on, all of it is moved. Its clean pages are page faults once, 16 at a time.
const MANY_RUNS: usize = 16;
/// How long to wait for memory when the host has none.
const RETRY: Duration = Duration::from_millis(20);

const NO_MAPPING: &str = "a layer of guest RAM cannot be mapped";

/// The copy of a layer that is under way.
#[derive(Debug)]
pub(super) struct LayerCopy {
    backing: Arc<Backing>,
    /// Where RAM's old pages are, at the same guest-physical addresses.
    aside: Reservation,
    /// The layer's file, shared and registered; offsets in RAM are addresses.
    window: Reservation,
    segments: Vec<Segment>,
    /// Offset in RAM before which all is copied.
    copied_to: u64,
}

impl Backing {
    /// Adds a layer of what was written since the last freeze. Returns the image, the work that is left, and the bytes
    /// copied.
    pub(super) fn add_layer(
        self: &Arc<Self>,
        state: &State,
        id: LayerId,
    ) -> Result<(MemoryImage, Settling, u64), ImageError> {
        let written = self.private_runs().map_err(ImageError::Pagemap)?;
        let runs = coarsen(&written, &state.image);
        let file = mapping::memory_file(FILE_NAME, self.shape.bytes(), false)
            .map_err(ImageError::io("no memory for a layer of guest RAM"))?;
        let file = Arc::new(ImageFile::own(file));
        let segment = |(start, len): &(u64, u64)| {
            let file = file.clone();
            Segment { start: *start, len: *len, offset: *start, layer: 0, file }
        };
        let segments: Vec<Segment> = runs.iter().map(segment).collect();
        let image = state.image.with_layer(id, segments.clone());
        let copy = match self.userfault().filter(|_| !segments.is_empty()) {
            Some(userfault) => self.copy_later(userfault, state.image.segments(), &file, &segments)?,
            None => None,
        };
        let (work, copied) = match copy {
            Some(copy) => (Work::Copy(Box::new(copy)), 0),
            None => (Work::Nothing, self.copy_now(&segments)?),
        };
        self.repeat_wishes();
        Ok((image, Settling::new(work), copied))
    }

    /// Puts RAM's pages aside, to be copied while the guest runs. `None` if the host cannot do it; RAM is then as before.
    fn copy_later(
        self: &Arc<Self>,
        userfault: &Userfault,
        lower: &[Segment],
        file: &ImageFile,
        segments: &[Segment],
    ) -> Result<Option<LayerCopy>, ImageError> {
        let bytes = self.shape.bytes();
        let (Ok(aside), Ok(window)) = (Reservation::new(self.reserved.bytes()), Reservation::new(bytes)) else {
            return Ok(None);
        };
        window
            .map(0, bytes, std::os::fd::AsFd::as_fd(&file.file), 0, Sharing::Shared)
            .map_err(ImageError::io(NO_MAPPING))?;
        if userfault.register(window.at(0), bytes).is_err() {
            return Ok(None);
        }
        let pieces = self.pieces(lower, segments);
        if self.put_aside(userfault, segments, &pieces, &aside).is_err() {
            for (address, len) in pieces {
                // What was not moved is not there to be moved back: an error, and RAM still has it.
                let _ = aside.move_pages(address, len, &self.reserved);
            }
            return Ok(None);
        }
        let (backing, segments) = (self.clone(), segments.to_vec());
        Ok(Some(LayerCopy { backing, aside, window, segments, copied_to: 0 }))
    }

    /// Moves `pieces` of RAM aside, maps the runs of the layer's file, and has page faults there wait.
    fn put_aside(
        &self,
        userfault: &Userfault,
        segments: &[Segment],
        pieces: &[(u64, u64)],
        aside: &Reservation,
    ) -> std::io::Result<()> {
        pieces.iter().try_for_each(|(address, len)| self.reserved.move_pages(*address, *len, aside))?;
        self.map_private(segments)?;
        let mut parts = segments.iter().flat_map(|segment| self.shape.parts(segment.start, segment.len));
        parts.try_for_each(|(address, _, len)| userfault.register(self.reserved.at(address), len))
    }

    /// What is to be moved aside for the pages of `runs`, as (guest-physical address, length), each of one mapping. A
    /// mapping with many runs is moved as a whole: outside of the runs it has no pages but those of its file.
    fn pieces(&self, lower: &[Segment], runs: &[Segment]) -> Vec<(u64, u64)> {
        let mut pieces = Vec::new();
        for segment in lower {
            let first = runs.partition_point(|run| run.end() <= segment.start);
            let count = runs[first..].partition_point(|run| run.start < segment.end());
            let mut add = |part: &Segment| {
                pieces.extend(self.shape.parts(part.start, part.len).map(|(address, _, len)| (address, len)));
            };
            if count > MANY_RUNS {
                add(segment);
            } else {
                runs[first..first + count]
                    .iter()
                    .filter_map(|run| segment.part(run.start, run.end()))
                    .for_each(|p| add(&p));
            }
        }
        pieces
    }

    /// Copies the runs and maps the layer's file in their place. Returns the bytes copied.
    fn copy_now(&self, segments: &[Segment]) -> Result<u64, ImageError> {
        let copied = segments.iter().map(|segment| self.copy_segment(segment)).sum::<Result<u64, _>>()?;
        // What is mapped anew holds the same as before, so that an error on the way harms nothing.
        self.map_private(segments).map_err(ImageError::io(NO_MAPPING))?;
        Ok(copied)
    }

    /// Copies what RAM holds now to the file of `segment`, without pages of zeroes, which are holes there.
    fn copy_segment(&self, segment: &Segment) -> Result<u64, ImageError> {
        let mut copied = 0;
        for (address, offset, len) in self.shape.parts(segment.start, segment.len) {
            // SAFETY: the range is RAM, mapped, and nobody writes to it during a freeze.
            let bytes = unsafe { std::slice::from_raw_parts(self.reserved.at(address), len as usize) };
            for (at, page) in (offset..).step_by(PAGE_SIZE as usize).zip(bytes.chunks(PAGE_SIZE as usize)) {
                if !is_zero(page) {
                    let done = segment.file.file.write_all_at(page, at);
                    done.map_err(ImageError::io("a layer of guest RAM cannot be written"))?;
                    copied += PAGE_SIZE;
                }
            }
        }
        Ok(copied)
    }
}

impl LayerCopy {
    /// Copies all, then lets page faults go their ordinary way.
    pub fn run(mut self) {
        let backing = self.backing.clone();
        let Some(userfault) = backing.userfault() else { return };
        for (start, len) in self.segments.iter().map(|s| (s.start, s.len)).collect::<Vec<_>>() {
            for (address, offset, len) in backing.shape.parts(start, len) {
                for done in (0..len).step_by(STEP_BYTES as usize) {
                    self.serve(userfault);
                    let step = STEP_BYTES.min(len - done);
                    self.copy_step(userfault, address + done, offset + done, step);
                    self.copied_to = offset + done + step;
                }
            }
        }
        for (address, _, len) in self.segments.iter().flat_map(|s| backing.shape.parts(s.start, s.len)) {
            if let Err(error) = userfault.unregister(backing.reserved.at(address), len) {
                // Without this, whoever meets a page of zeroes would wait for ever.
                panic!("page faults of guest RAM cannot be given back to the kernel: {error}");
            }
        }
    }

    /// Copies the pages that somebody waits for.
    fn serve(&self, userfault: &Userfault) {
        let base = self.backing.reserved.at(0) as u64;
        let served = userfault.take_faults(|fault| {
            let page = fault / PAGE_SIZE * PAGE_SIZE;
            let address = page.wrapping_sub(base);
            // A fault in the window is nobody's: it is only copied to.
            if let Some(offset) = self.backing.shape.offset_of(address)
                && (offset >= self.copied_to || self.is_zero(address))
            {
                self.copy_pages(userfault, address, offset, PAGE_SIZE);
            }
            let _ = userfault.wake(page, PAGE_SIZE);
        });
        debug_assert!(served.is_ok(), "{served:?}");
    }

    /// Copies the pages of a step that are not zero; those are holes of the file.
    fn copy_step(&self, userfault: &Userfault, address: u64, offset: u64, len: u64) {
        let mut at = 0;
        while at < len {
            let data =
                (at..len).step_by(PAGE_SIZE as usize).take_while(|at| !self.is_zero(address + at)).count() as u64;
            if data > 0 {
                self.copy_pages(userfault, address + at, offset + at, data * PAGE_SIZE);
            }
            at += (data + 1) * PAGE_SIZE;
        }
    }

    /// Gives the layer's file pages, whatever it takes: the guest cannot go on without.
    fn copy_pages(&self, userfault: &Userfault, address: u64, offset: u64, len: u64) {
        while userfault.copy(self.window.at(offset), self.aside.at(address), len).is_err() {
            std::thread::sleep(RETRY);
        }
    }

    /// Whether an old page has no bit set.
    fn is_zero(&self, address: u64) -> bool {
        // SAFETY: the page was put aside and is mapped there; nobody writes to it any more.
        is_zero(unsafe { std::slice::from_raw_parts(self.aside.at(address), PAGE_SIZE as usize) })
    }
}
