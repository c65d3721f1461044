//! Keeps the number of pieces of an image bounded, by making a new layer of more than was written.
//!
//! Each segment is a mapping, and each file a descriptor, of which a process may have only so many. When an image would be
//! scattered too much, the runs of the new layer are joined across the gaps between them, shortest first; when it would
//! consist of too many files, what is still seen of the least useful ones becomes part of the new layer, too.

use std::collections::HashMap;
use std::sync::Arc;

use crate::PAGE_SIZE;
use crate::image::{MemoryImage, Segment, overlay};

/// Runs of a new layer at most: each costs some µs while the guest stands still.
const MAX_RUNS: usize = 1024;
/// Segments of an image at most.
const MAX_SEGMENTS: usize = 8192;
/// Files of an image at most, and how many are left when there were more.
const MAX_FILES: usize = 64;
const KEPT_FILES: usize = 32;

/// The runs, as (offset in RAM, length), that a new layer on `image` should have for `written` to be in it.
pub(super) fn coarsen(written: &[(u64, u64)], image: &MemoryImage) -> Vec<(u64, u64)> {
    let mut runs = written.to_vec();
    runs.extend(least_useful(image.segments()));
    runs.sort_unstable();
    let mut gap = 0;
    loop {
        runs = join(&runs, gap, image);
        let is_joined = gap > image.shape().bytes();
        if is_joined || runs.len() <= MAX_RUNS && segments_with(&runs, image) <= MAX_SEGMENTS {
            return runs;
        }
        gap = (gap * 2).max(PAGE_SIZE);
    }
}

/// Joins runs that are `gap` bytes or less apart, or as far as it takes without leaving a run of RAM.
fn join(runs: &[(u64, u64)], gap: u64, image: &MemoryImage) -> Vec<(u64, u64)> {
    let borders: Vec<u64> = image.shape().placed().map(|(_, offset, _)| offset).collect();
    let region = |offset: u64| borders.partition_point(|border| *border <= offset);
    let mut joined: Vec<(u64, u64)> = Vec::with_capacity(runs.len());
    for (start, len) in runs.iter().copied() {
        match joined.last_mut() {
            Some((from, so_far)) if start <= *from + *so_far + gap && region(*from) == region(start) => {
                *so_far = (*so_far).max(start + len - *from);
            }
            _ => joined.push((start, len)),
        }
    }
    joined
}

/// How many segments the image would have with a layer of these runs.
fn segments_with(runs: &[(u64, u64)], image: &MemoryImage) -> usize {
    let most = image.segments().len() + 2 * runs.len();
    let Some(any) = image.segments().first().filter(|_| most > MAX_SEGMENTS) else { return most };
    let segment = |(start, len): &(u64, u64)| Segment { start: *start, len: *len, layer: u32::MAX, ..any.clone() };
    overlay(image.segments(), &runs.iter().map(segment).collect::<Vec<_>>()).len()
}

/// The segments of those files of which the least is seen, where there are too many files.
fn least_useful(segments: &[Segment]) -> Vec<(u64, u64)> {
    let mut seen: HashMap<_, u64> = HashMap::new();
    for segment in segments {
        *seen.entry(Arc::as_ptr(&segment.file)).or_default() += segment.len;
    }
    if seen.len() < MAX_FILES {
        return Vec::new();
    }
    let mut by_use: Vec<_> = seen.into_iter().collect();
    by_use.sort_unstable_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let dropped: std::collections::HashSet<_> = by_use[KEPT_FILES..].iter().map(|(file, _)| *file).collect();
    segments.iter().filter(|s| dropped.contains(&Arc::as_ptr(&s.file))).map(|s| (s.start, s.len)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{ImageFile, Shape};

    fn image(runs: Vec<(u64, u64)>) -> MemoryImage {
        let file = Arc::new(ImageFile::own(tempfile::tempfile().unwrap()));
        let shape = Shape::new(runs);
        let all = Segment { start: 0, len: shape.bytes(), offset: 0, layer: 0, file };
        MemoryImage::new(shape, Vec::new(), vec![all])
    }

    #[test]
    fn few_runs_stay_as_they_are() {
        let image = image(vec![(0, 1 << 30)]);
        let runs = [(0x1000, 0x1000), (0x3000, 0x2000), (0x5000, 0x1000)];
        assert_eq!(coarsen(&runs, &image), [(0x1000, 0x1000), (0x3000, 0x3000)]);
    }

    #[test]
    fn many_runs_are_joined_across_the_shortest_gaps() {
        let image = image(vec![(0, 1 << 30)]);
        let near = (0..2000).map(|n| (n * 0x2000, 0x1000));
        let far = [(1 << 29, 0x1000), ((1 << 29) + 0x10_0000, 0x1000)];
        let runs: Vec<_> = near.chain(far).collect();
        assert_eq!(coarsen(&runs, &image), [(0, 1999 * 0x2000 + 0x1000), far[0], far[1]]);
    }

    #[test]
    fn runs_of_ram_are_not_joined() {
        let many: Vec<_> = (0..2000).map(|n| (n << 32, 0x4000)).collect();
        let image = image(many);
        assert_eq!(join(&[(0x3000, 0x1000), (0x4000, 0x1000)], u64::MAX >> 1, &image).len(), 2);
    }
}
