//! The runs of guest-physical addresses that an image is of, and offsets among them.

use super::ImageError;
use super::bytes::{Reader, Writer};
use crate::PAGE_SIZE;

/// Runs of RAM at most: one for each NUMA node, two for that around the device hole, and one for hot-plug.
const MAX_RUNS: usize = 4096;
/// Guest-physical addresses of x86 end here.
const ADDRESS_END: u64 = 1 << 52;

/// The runs of RAM, lowest first, as (guest-physical address, length in bytes). An offset in RAM counts them as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape(Vec<(u64, u64)>);

impl Shape {
    pub(crate) fn new(runs: Vec<(u64, u64)>) -> Shape {
        Shape(runs)
    }

    /// RAM in these runs, as (guest-physical address, length in bytes).
    ///
    /// # Errors
    /// When there is none, or some of it is where RAM cannot be.
    pub fn from_runs(runs: Vec<(u64, u64)>) -> Result<Shape, ImageError> {
        if runs.len() > MAX_RUNS {
            return Err(ImageError::Damaged("more runs of RAM than there can be"));
        }
        let mut end = 0;
        for (start, len) in runs.iter().copied() {
            let aligned = start.is_multiple_of(PAGE_SIZE) && len.is_multiple_of(PAGE_SIZE);
            let next = start.checked_add(len).filter(|end| *end <= ADDRESS_END);
            match next {
                Some(next) if aligned && len > 0 && start >= end => end = next,
                _ => return Err(ImageError::Damaged("a run of RAM is not where one can be")),
            }
        }
        match runs.is_empty() {
            true => Err(ImageError::Damaged("no RAM")),
            false => Ok(Shape(runs)),
        }
    }

    /// The runs as (guest-physical address, length in bytes).
    pub fn runs(&self) -> &[(u64, u64)] {
        &self.0
    }

    /// All bytes.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|(_, len)| len).sum()
    }

    /// The runs as (guest-physical address, offset in RAM, length).
    pub(crate) fn placed(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        self.0.iter().scan(0, |next, (start, len)| {
            let offset = *next;
            *next += len;
            Some((*start, offset, *len))
        })
    }

    /// The parts of `offset..offset + len` in RAM, each within one run, as (guest-physical address, offset, length).
    pub(crate) fn parts(&self, offset: u64, len: u64) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        self.placed().filter_map(move |(start, run, run_len)| {
            let from = offset.max(run);
            let to = (offset + len).min(run + run_len);
            (from < to).then(|| (start + (from - run), from, to - from))
        })
    }

    /// The offset in RAM of a guest-physical address, if there is RAM.
    pub(crate) fn offset_of(&self, address: u64) -> Option<u64> {
        let run = self.placed().find(|(start, _, len)| address.wrapping_sub(*start) < *len);
        run.map(|(start, offset, _)| offset + (address - start))
    }

    pub(super) fn encode(&self, writer: &mut Writer) {
        writer.u32(self.0.len() as u32);
        self.0.iter().for_each(|(start, len)| {
            writer.u64(*start);
            writer.u64(*len);
        });
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Shape, ImageError> {
        let count = reader.count(MAX_RUNS, 16)?;
        let runs = (0..count).map(|_| Ok((reader.u64()?, reader.u64()?)));
        Shape::from_runs(runs.collect::<Result<_, ImageError>>()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_cross_runs() {
        let shape = Shape::new(vec![(0, 0x4000), (0x10_0000, 0x2000)]);
        assert_eq!(shape.bytes(), 0x6000);
        assert_eq!(
            shape.parts(0x3000, 0x2000).collect::<Vec<_>>(),
            [(0x3000, 0x3000, 0x1000), (0x10_0000, 0x4000, 0x1000)]
        );
        assert_eq!(shape.parts(0x6000, 0x1000).count(), 0);
        assert_eq!([0x3fff, 0x4000, 0x10_0001].map(|at| shape.offset_of(at)), [Some(0x3fff), None, Some(0x4001)]);
    }
}
