//! A later freeze: the pages that were written since the last one become a layer.
//!
//! They are this process's own copies, so they cannot be shared as they are: they are copied to a new file in memory,
//! which is then mapped privately in their place, for this process as for forks.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::coarsen::coarsen;
use super::{Settling, Work};
use crate::backing::{Backing, State};
use crate::image::{ImageError, ImageFile, LayerId, MemoryImage, Segment, is_zero};
use crate::{PAGE_SIZE, mapping};

impl Backing {
    /// Adds a layer of what was written since the last freeze. Returns the image and the bytes copied.
    pub(super) fn add_layer(&self, state: &State, id: LayerId) -> Result<(MemoryImage, Settling, u64), ImageError> {
        let written = self.private_runs().map_err(ImageError::Pagemap)?;
        let runs = coarsen(&written, &state.image);
        let file = mapping::memory_file(crate::FILE_NAME, self.shape.bytes(), false)
            .map_err(ImageError::io("no memory for a layer of guest RAM"))?;
        let file = Arc::new(ImageFile::own(file));
        let segment = |(start, len): &(u64, u64)| Segment {
            start: *start,
            len: *len,
            offset: *start,
            layer: 0,
            file: file.clone(),
        };
        let segments: Vec<Segment> = runs.iter().map(segment).collect();
        let mut copied = 0;
        for segment in &segments {
            copied += self.copy_segment(segment)?;
        }
        // From here on nothing can be undone: what is mapped anew is the same as before.
        self.map_private(&segments).map_err(ImageError::io("a layer of guest RAM cannot be mapped"))?;
        self.repeat_wishes();
        Ok((state.image.with_layer(id, segments), Settling::new(Work::Nothing), copied))
    }

    /// Copies what RAM holds now to the file of `segment`, without pages of zeroes, which are holes there.
    fn copy_segment(&self, segment: &Segment) -> Result<u64, ImageError> {
        let mut copied = 0;
        for (address, offset, len) in self.shape.parts(segment.start, segment.len) {
            // SAFETY: the range is RAM, mapped, and nobody writes to it during a freeze.
            let bytes = unsafe { std::slice::from_raw_parts(self.reserved.at(address), len as usize) };
            let mut at = offset;
            for page in bytes.chunks(PAGE_SIZE as usize) {
                if !is_zero(page) {
                    let done = segment.file.file.write_all_at(page, at);
                    done.map_err(ImageError::io("a layer of guest RAM cannot be written"))?;
                    copied += PAGE_SIZE;
                }
                at += PAGE_SIZE;
            }
        }
        Ok(copied)
    }
}
