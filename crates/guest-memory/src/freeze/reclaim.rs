//! Gives frozen pages back to the host that nobody can see any more.
//!
//! A page that was written after a freeze exists twice: in the frozen file, and as this process's copy. As long as a fork
//! or a snapshot that is being written may read the file, both are needed; then only the copy is.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate};

use crate::backing::Backing;
use crate::image::{ImageFile, Segment};
use crate::mapping;

/// Byte ranges of one file, as (start, end).
type Ranges = Vec<(u64, u64)>;

impl Backing {
    /// See [`crate::GuestRam::reclaim`].
    pub(crate) fn reclaim(&self) -> io::Result<u64> {
        let state = self.state_mut();
        // An image that somebody keeps may be read at any time, and a layer that is being filled is not yet right.
        if self.is_shared() || !state.settled.is_open() || !state.image.is_alone() {
            return Ok(0);
        }
        let segments = state.image.segments();
        let mut needed: HashMap<*const ImageFile, (Arc<ImageFile>, Ranges, usize)> = HashMap::new();
        let copies = self.private_runs()?;
        for segment in segments {
            let entry = needed.entry(Arc::as_ptr(&segment.file));
            let (_, ranges, uses) = entry.or_insert_with(|| (segment.file.clone(), Vec::new(), 0));
            *uses += 1;
            ranges.extend(without(segment, &copies));
        }
        let mut freed = 0;
        for (file, mut ranges, uses) in needed.into_values() {
            // One more for the handle here. Others would be images from before, whose segments may lie elsewhere.
            if file.in_memory && !file.is_exported() && Arc::strong_count(&file) == uses + 1 {
                ranges.sort_unstable();
                freed += punch_all_but(&file, &ranges)?;
            }
        }
        Ok(freed)
    }
}

/// The ranges in the segment's file that RAM still shows, given the runs of RAM that are copied.
fn without(segment: &Segment, copies: &[(u64, u64)]) -> Ranges {
    let mut ranges = Vec::new();
    let mut at = segment.start;
    let in_file = |offset: u64| segment.offset + (offset - segment.start);
    let first = copies.partition_point(|(start, len)| start + len <= segment.start);
    for (start, len) in copies[first..].iter().take_while(|(start, _)| *start < segment.end()) {
        if at < *start {
            ranges.push((in_file(at), in_file(*start)));
        }
        at = at.max(start + len);
    }
    if at < segment.end() {
        ranges.push((in_file(at), in_file(segment.end())));
    }
    ranges
}

/// Makes holes of all of the file but `kept`, which is sorted. Returns the bytes freed.
fn punch_all_but(file: &ImageFile, kept: &[(u64, u64)]) -> io::Result<u64> {
    let before = mapping::allocated(&file.file)?;
    let end = file.file.metadata()?.len();
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let mut at = 0;
    for (from, to) in kept.iter().copied().chain([(end, end)]) {
        if at < from {
            rustix::io::retry_on_intr(|| fallocate(&file.file, hole, at, from - at))?;
        }
        at = at.max(to);
    }
    Ok(before.saturating_sub(mapping::allocated(&file.file)?))
}
