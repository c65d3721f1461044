//! Lists of segments: runs of RAM with the file that holds them. Sorted by offset in RAM, without overlap.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::SealFlags;

use super::Shape;
use crate::mapping::{Reservation, Sharing};

/// A file that holds layers of images.
#[derive(Debug)]
pub(crate) struct ImageFile {
    pub file: File,
    /// A file in memory: what it takes, it takes of the host's memory.
    pub in_memory: bool,
    /// Others have been given the file, and it must stay as it is even where this machine no longer looks at it.
    exported: AtomicBool,
}

impl ImageFile {
    /// One of this machine's own making.
    pub fn own(file: File) -> ImageFile {
        ImageFile { file, in_memory: true, exported: AtomicBool::new(false) }
    }

    /// One that others have, too.
    pub fn foreign(file: File) -> ImageFile {
        // Only files in memory have seals; snapshots in a file system in memory have names.
        let is_unnamed = rustix::fs::fstat(&file).is_ok_and(|stat| stat.st_nlink == 0);
        let in_memory = is_unnamed && rustix::fs::fcntl_get_seals(&file).is_ok();
        ImageFile { file, in_memory, exported: AtomicBool::new(true) }
    }

    /// Notes that others get the file, and has the kernel see to it that nobody ever writes to it.
    pub fn export(&self) {
        self.exported.store(true, Ordering::Release);
        if self.in_memory {
            // A wish: hosts may lack seals for this kind of file, or still hold its pages for a transfer.
            let _ = rustix::fs::fcntl_add_seals(self.file.as_fd(), SealFlags::WRITE | SealFlags::SEAL);
        }
    }

    pub fn is_exported(&self) -> bool {
        self.exported.load(Ordering::Acquire)
    }
}

/// A run of RAM and the file that holds it.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    /// Offset in RAM.
    pub start: u64,
    pub len: u64,
    /// Offset in the file.
    pub offset: u64,
    pub layer: u32,
    pub file: Arc<ImageFile>,
}

impl Segment {
    pub fn end(&self) -> u64 {
        self.start + self.len
    }

    /// What lies in `from..to`, if anything.
    pub fn part(&self, from: u64, to: u64) -> Option<Segment> {
        let (from, to) = (from.max(self.start), to.min(self.end()));
        (from < to).then(|| Segment {
            start: from,
            len: to - from,
            offset: self.offset + (from - self.start),
            ..self.clone()
        })
    }

    /// Maps the segment where it belongs.
    pub fn map(&self, reserved: &Reservation, shape: &Shape, sharing: Sharing) -> io::Result<()> {
        for (address, offset, len) in shape.parts(self.start, self.len) {
            let in_file = self.offset + (offset - self.start);
            reserved.map(address, len, self.file.file.as_fd(), in_file, sharing)?;
        }
        Ok(())
    }

    fn continues(&self, before: &Segment) -> bool {
        Arc::ptr_eq(&self.file, &before.file)
            && self.layer == before.layer
            && self.start == before.end()
            && self.offset == before.offset + before.len
    }
}

/// What is seen of `lower` and `upper` when `upper` lies on top.
pub(crate) fn overlay(lower: &[Segment], upper: &[Segment]) -> Vec<Segment> {
    let mut seen = Vec::with_capacity(lower.len() + 2 * upper.len());
    let mut above = upper.iter().peekable();
    for segment in lower {
        let mut from = segment.start;
        while let Some(cover) = above.peek().filter(|cover| cover.start < segment.end()) {
            seen.extend(segment.part(from, cover.start));
            from = from.max(cover.end());
            // A cover that reaches into the next segment below is put in place once it has ended.
            if cover.end() > segment.end() {
                break;
            }
            seen.push((*cover).clone());
            above.next();
        }
        seen.extend(segment.part(from, segment.end()));
    }
    seen.extend(above.cloned());
    seen.sort_unstable_by_key(|segment| segment.start);
    join(seen)
}

/// Makes one of neighbours that are neighbours in their file, too.
fn join(segments: Vec<Segment>) -> Vec<Segment> {
    let mut joined: Vec<Segment> = Vec::with_capacity(segments.len());
    for segment in segments {
        match joined.last_mut() {
            Some(last) if segment.continues(last) => last.len += segment.len,
            _ => joined.push(segment),
        }
    }
    joined
}

/// The parts of `segments` within `from..to`.
pub(crate) fn within(segments: &[Segment], from: u64, to: u64) -> impl Iterator<Item = Segment> + '_ {
    let first = segments.partition_point(|segment| segment.end() <= from);
    segments[first..].iter().take_while(move |segment| segment.start < to).filter_map(move |s| s.part(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Arc<ImageFile> {
        Arc::new(ImageFile::foreign(tempfile::tempfile().unwrap()))
    }

    fn segment(file: &Arc<ImageFile>, layer: u32, start: u64, end: u64) -> Segment {
        Segment { start, len: end - start, offset: start, layer, file: file.clone() }
    }

    fn told(segments: &[Segment]) -> Vec<(u64, u64, u32)> {
        segments.iter().map(|s| (s.start, s.end(), s.layer)).collect()
    }

    #[test]
    fn upper_segments_cover_lower_ones() {
        let (below, above) = (file(), file());
        let lower = [segment(&below, 0, 0, 10), segment(&below, 1, 10, 20), segment(&below, 0, 30, 40)];
        let upper = [segment(&above, 2, 2, 4), segment(&above, 2, 8, 12), segment(&above, 2, 18, 32)];
        let seen = overlay(&lower, &upper);
        let expected = [(0, 2, 0), (2, 4, 2), (4, 8, 0), (8, 12, 2), (12, 18, 1), (18, 32, 2), (32, 40, 0)];
        assert_eq!(told(&seen), expected);
        assert!(seen.iter().all(|s| s.offset == s.start));
    }

    #[test]
    fn neighbours_in_the_same_file_become_one() {
        let below = file();
        let seen = overlay(&[segment(&below, 0, 0, 10)], &[segment(&below, 0, 10, 20)]);
        assert_eq!(told(&seen), [(0, 20, 0)]);
    }

    #[test]
    fn parts_are_cut_at_both_ends() {
        let below = file();
        let list = [segment(&below, 0, 0, 10), segment(&below, 1, 10, 20), segment(&below, 2, 30, 40)];
        assert_eq!(told(&within(&list, 5, 35).collect::<Vec<_>>()), [(5, 10, 0), (10, 20, 1), (30, 35, 2)]);
        assert_eq!(within(&list, 20, 30).count(), 0);
    }
}
