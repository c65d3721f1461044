//! Keeps the number of pieces of an image bounded, by making a new layer of more than was written.
//!
//! Each segment is a mapping, and each file a descriptor, of which a process may have only so many. When an image would be
//! scattered too much, the runs of the new layer are joined across the gaps between them, shortest first; when it would
//! consist of too many files, what is still seen of the least useful ones becomes part of the new layer, too.

use std::collections::HashMap;
use std::sync::Arc;

use crate::image::{MemoryImage, Segment, overlay};

/// Runs of a new layer at most: each costs about 7 µs while the guest stands still, and as much again where it is moved
/// alone.
const MAX_RUNS: usize = 384;
/// Segments of an image at most.
const MAX_SEGMENTS: usize = 8192;
/// Files of an image at most, and how many are left when there were more.
const MAX_FILES: usize = 64;
const KEPT_FILES: usize = 32;

/// The runs, as (offset in RAM, length), that a new layer on `image` should have for `written` to be in it.
pub(super) fn coarsen(written: &[(u64, u64)], image: &MemoryImage) -> Vec<(u64, u64)> {
    let mut runs = written.to_vec();
    runs.extend(least_useful(image.segments()));
    // What was written is told in the order of host addresses, where later mappings may come first.
    runs.sort_unstable();
    runs = join(&runs, 0, image);
    if runs.len() > MAX_RUNS {
        runs = join(&runs, gap_for(&runs, MAX_RUNS), image);
    }
    while segments_with(&runs, image) > MAX_SEGMENTS {
        let fewer = if runs.len() > 1 { join(&runs, gap_for(&runs, runs.len() / 2), image) } else { Vec::new() };
        // What is left lies in different runs of RAM, or is one: then the pieces are elsewhere.
        if fewer.is_empty() || fewer.len() == runs.len() {
            return image.shape().placed().map(|(_, offset, len)| (offset, len)).collect();
        }
        runs = fewer;
    }
    runs
}

/// The gap that runs must be joined across for `most` of them to be left, more than none and less than there are.
fn gap_for(runs: &[(u64, u64)], most: usize) -> u64 {
    let gap = |pair: &[(u64, u64)]| pair[1].0 - (pair[0].0 + pair[0].1);
    let mut gaps: Vec<u64> = runs.windows(2).map(gap).collect();
    let place = gaps.len() - most;
    *gaps.select_nth_unstable(place).1
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
    fn an_image_in_many_pieces_gets_a_layer_that_covers_them() {
        let below = image(vec![(0, 1 << 30)]);
        let file = Arc::new(ImageFile::own(tempfile::tempfile().unwrap()));
        let piece = |n| Segment { start: n * 0x4000, len: 0x3000, offset: 0, layer: 1, file: file.clone() };
        let pieces: Vec<_> = (0..MAX_SEGMENTS as u64 / 2).map(piece).collect();
        let image = MemoryImage::new(below.shape().clone(), Vec::new(), overlay(below.segments(), &pieces));
        let runs: Vec<_> = (0..300).map(|n| (n * 0x1_0000 + 0x1000, 0x1000)).collect();
        let runs = coarsen(&runs, &image);
        assert!(runs.len() < 300 && segments_with(&runs, &image) <= MAX_SEGMENTS, "{runs:?}");
    }

    #[test]
    fn runs_of_ram_are_not_joined() {
        let many: Vec<_> = (0..2000).map(|n| (n << 32, 0x4000)).collect();
        let image = image(many);
        assert_eq!(join(&[(0x3000, 0x1000), (0x4000, 0x1000)], u64::MAX >> 1, &image).len(), 2);
    }
}
