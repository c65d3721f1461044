//! What happened to each page: written since the log was last read, and holding code that somebody has decoded.
//!
//! A software CPU decodes code once and runs the decoded form many times, so it must learn of every write to bytes it
//! has decoded. The protocol between the two sides:
//!
//! ```text
//! decoder                                   writer
//! g = generation(page)                      write the bytes
//! add_code(page, lines)                     wrote(page, lines): if any of the lines is code,
//! make other vCPUs drop fast write paths        clear the page's code lines and
//! decode; the block is valid while              raise its generation
//! generation(page) == g
//! ```
//! A write between any two steps of the decoder raises the generation and the block is dropped before it runs.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vm_memory::bitmap::{Bitmap, RefSlice, WithBitmapSlice};

use crate::PAGE_SIZE;
use crate::table::Table;

/// Code is tracked in lines of this many bytes: 64 lines make a page, and a page's lines make one machine word.
pub const LINE_SIZE: u64 = PAGE_SIZE / 64;

/// The lines touched by `len` bytes at `offset` within one page.
#[inline]
pub fn line_mask(offset: u64, len: u64) -> u64 {
    if len == 0 {
        return 0;
    }
    let first = (offset & (PAGE_SIZE - 1)) / LINE_SIZE;
    let last = ((offset & (PAGE_SIZE - 1)) + len - 1).min(PAGE_SIZE - 1) / LINE_SIZE;
    (u64::MAX << first) & (u64::MAX >> (63 - last))
}

/// The state of the pages of one RAM region; clones share it.
#[derive(Debug, Clone)]
pub struct PageTracker(Arc<Pages>);

#[derive(Debug)]
struct Pages {
    /// One bit a page.
    dirty: Table<AtomicU64>,
    /// One bit a line, one word a page.
    code_lines: Table<AtomicU64>,
    /// Raised whenever decoded bytes of the page have changed.
    generation: Table<AtomicU32>,
}

impl PageTracker {
    /// A tracker for `bytes` of RAM. What it takes grows with the RAM that is used, not with `bytes`.
    ///
    /// # Errors
    /// When the process has no addresses left for the tables.
    pub fn new(bytes: u64) -> io::Result<PageTracker> {
        let pages = bytes.div_ceil(PAGE_SIZE) as usize;
        Ok(PageTracker(Arc::new(Pages {
            dirty: Table::new(pages.div_ceil(64))?,
            code_lines: Table::new(pages)?,
            generation: Table::new(pages)?,
        })))
    }

    /// How often decoded code of the page has changed (wraps around).
    #[inline]
    pub fn generation(&self, page: usize) -> u32 {
        self.0.generation[page].load(Ordering::Acquire)
    }

    /// Where [`PageTracker::generation`] of a page lives, for decoded blocks that check it before every run. The
    /// pointer is valid as long as the tracker.
    pub fn generation_cell(&self, page: usize) -> *const AtomicU32 {
        &raw const self.0.generation[page]
    }

    /// Notes that `lines` of the page are about to be decoded; true if the page held no code before, so that fast write
    /// paths to it may exist.
    pub fn add_code(&self, page: usize, lines: u64) -> bool {
        self.0.code_lines[page].fetch_or(lines, Ordering::SeqCst) == 0
    }

    /// The lines of the page that hold decoded code.
    #[inline]
    pub fn code_lines(&self, page: usize) -> u64 {
        self.0.code_lines[page].load(Ordering::SeqCst)
    }

    /// Reports a finished write to `lines` of the page by a vCPU; true if it changed decoded code.
    #[inline]
    pub fn wrote(&self, page: usize, lines: u64) -> bool {
        self.set_dirty(page);
        if self.code_lines(page) & lines == 0 {
            return false;
        }
        self.0.code_lines[page].store(0, Ordering::SeqCst);
        self.0.generation[page].fetch_add(1, Ordering::SeqCst);
        true
    }

    /// Marks the page as written.
    #[inline]
    pub fn set_dirty(&self, page: usize) {
        let bit = 1 << (page % 64);
        let word = &self.0.dirty[page / 64];
        // Most writes hit pages that are dirty already; a plain load keeps the cache line shared.
        if word.load(Ordering::Relaxed) & bit == 0 {
            word.fetch_or(bit, Ordering::Release);
        }
    }

    /// Whether the page was written since the log was last taken.
    pub fn is_dirty(&self, page: usize) -> bool {
        self.0.dirty[page / 64].load(Ordering::Acquire) & (1 << (page % 64)) != 0
    }

    /// Takes the dirty log: one bit a page, cleared as it is read. vCPUs with fast write paths must be made to drop
    /// them after this returns and before the pages are copied.
    pub fn take_dirty(&self) -> Vec<u64> {
        let mut log = vec![0; self.0.dirty.len()];
        for (taken, word) in log.iter_mut().zip(self.0.dirty.iter()) {
            // Only words with bits in them are written to, so that the parts of both tables for untouched RAM stay
            // without memory of their own.
            if word.load(Ordering::Relaxed) != 0 {
                *taken = word.swap(0, Ordering::AcqRel);
            }
        }
        log
    }
}

impl<'a> WithBitmapSlice<'a> for PageTracker {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for PageTracker {
    fn mark_dirty(&self, offset: usize, len: usize) {
        let (mut offset, end) = (offset as u64, offset.saturating_add(len) as u64);
        while offset < end && ((offset / PAGE_SIZE) as usize) < self.0.code_lines.len() {
            let next = (offset / PAGE_SIZE + 1) * PAGE_SIZE;
            self.wrote((offset / PAGE_SIZE) as usize, line_mask(offset, next.min(end) - offset));
            offset = next;
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = offset / PAGE_SIZE as usize;
        page < self.0.code_lines.len() && self.is_dirty(page)
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_masks_cover_exactly_the_bytes() {
        assert_eq!(line_mask(0, 1), 1);
        assert_eq!(line_mask(63, 2), 3);
        assert_eq!(line_mask(0, 4096), u64::MAX);
        assert_eq!(line_mask(4095, 8), 1 << 63);
        assert_eq!(line_mask(5, 0), 0);
    }

    #[test]
    fn a_write_beside_code_leaves_the_code_valid() {
        let tracker = PageTracker::new(1 << 20).unwrap();
        tracker.add_code(3, line_mask(0x100, 16));
        assert!(!tracker.wrote(3, line_mask(0x200, 8)));
        assert_eq!(tracker.generation(3), 0);
    }

    #[test]
    fn a_device_write_to_code_raises_the_generation() {
        let tracker = PageTracker::new(1 << 20).unwrap();
        tracker.add_code(3, line_mask(0x100, 16));
        tracker.mark_dirty(0x2ff0, 0x200);
        assert_eq!(tracker.generation(3), 1);
        assert_eq!(tracker.code_lines(3), 0);
    }

    #[test]
    fn taking_the_log_clears_it() {
        let tracker = PageTracker::new(1 << 20).unwrap();
        tracker.set_dirty(70);
        assert_eq!(tracker.take_dirty()[1], 1 << 6);
        assert!(!tracker.is_dirty(70));
    }
}
