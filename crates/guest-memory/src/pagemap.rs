//! Which pages of a private mapping this process has copies of its own of.
//!
//! Source: Linux `Documentation/admin-guide/mm/pagemap.rst`. `PAGEMAP_SCAN` (Linux 6.7) walks the page tables and returns
//! runs; older kernels give one word for each page.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use crate::PAGE_SIZE;

/// `_IOWR('f', 16, struct pm_scan_arg)`
const PAGEMAP_SCAN: libc::Ioctl = 0xc060_6610;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;

/// Bits of a page's word: "page is file-page or shared-anon", "page swapped", "page present".
const WORD_FILE: u64 = 1 << 61;
const WORD_SWAPPED: u64 = 1 << 62;
const WORD_PRESENT: u64 = 1 << 63;

/// Runs that one scan returns at most.
const BATCH: usize = 4096;
/// Pages whose words are read at once.
const WORDS: u64 = 16 << 10;

/// `struct pm_scan_arg`
#[repr(C)]
#[derive(Debug, Default)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// The page tables of this process.
#[derive(Debug)]
pub(crate) struct Pagemap(File);

impl Pagemap {
    pub fn open() -> io::Result<Pagemap> {
        File::open("/proc/self/pagemap").map(Pagemap)
    }

    /// Calls `f` with (address, length) of the runs of pages within `len` bytes from `start` that are this process's own:
    /// in memory or in swap space, and of no file. Lowest first.
    pub fn private(&self, start: u64, len: u64, mut f: impl FnMut(u64, u64)) -> io::Result<()> {
        match self.scan(start, start + len, &mut f) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
                self.read(start, start + len, &mut f)
            }
            result => result,
        }
    }

    fn scan(&self, start: u64, end: u64, f: &mut impl FnMut(u64, u64)) -> io::Result<()> {
        let mut regions = vec![PageRegion::default(); BATCH];
        let mut at = start;
        while at < end {
            let mut argument = ScanArgument {
                size: size_of::<ScanArgument>() as u64,
                start: at,
                end,
                vec: regions.as_mut_ptr() as u64,
                vec_len: regions.len() as u64,
                category_inverted: PAGE_IS_FILE,
                category_mask: PAGE_IS_FILE,
                category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                return_mask: PAGE_IS_FILE,
                ..ScanArgument::default()
            };
            // SAFETY: the kernel fills as many regions as it is told there are, and the argument's own fields.
            let count = unsafe { libc::ioctl(self.0.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
            if count < 0 {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(error);
            }
            regions[..count as usize].iter().for_each(|region| f(region.start, region.end - region.start));
            if argument.walk_end <= at {
                return Err(io::Error::other("the scan of page tables stands still"));
            }
            at = argument.walk_end;
        }
        Ok(())
    }

    /// The same by reading one word for each page.
    fn read(&self, start: u64, end: u64, f: &mut impl FnMut(u64, u64)) -> io::Result<()> {
        let mut bytes = vec![0; (WORDS * 8) as usize];
        let mut run: Option<(u64, u64)> = None;
        for at in (start..end).step_by((WORDS * PAGE_SIZE) as usize) {
            let count = WORDS.min((end - at) / PAGE_SIZE);
            let words = &mut bytes[..(count * 8) as usize];
            self.0.read_exact_at(words, at / PAGE_SIZE * 8)?;
            for (page, word) in (0..).zip(words.chunks_exact(8)) {
                let word = word.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
                if word & (WORD_PRESENT | WORD_SWAPPED) == 0 || word & WORD_FILE != 0 {
                    continue;
                }
                let address = at + page * PAGE_SIZE;
                match &mut run {
                    Some((from, len)) if *from + *len == address => *len += PAGE_SIZE,
                    _ => {
                        if let Some((from, len)) = run.replace((address, PAGE_SIZE)) {
                            f(from, len);
                        }
                    }
                }
            }
        }
        if let Some((from, len)) = run {
            f(from, len);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::{Reservation, Sharing, memory_file};
    use std::os::fd::AsFd;

    #[test]
    fn private_pages_are_told_from_those_of_the_file() {
        let reservation = Reservation::new(1 << 20).unwrap();
        let file = memory_file("pagemap-test", 1 << 20, false).unwrap();
        file.write_all_at(&[1; 0x2_0000], 0).unwrap();
        reservation.map(0, 1 << 20, file.as_fd(), 0, Sharing::Private).unwrap();
        for page in [3, 4, 9, 200] {
            // SAFETY: the page is mapped, and nobody else has it.
            unsafe { reservation.at(page * PAGE_SIZE).write_volatile(7) };
        }
        // SAFETY: as above.
        let read = unsafe { reservation.at(5 * PAGE_SIZE).read_volatile() };
        let start = reservation.at(0) as u64;
        let pagemap = Pagemap::open().unwrap();
        let (mut scanned, mut words) = (Vec::new(), Vec::new());
        let page = |address: u64, len: u64| ((address - start) / PAGE_SIZE, len / PAGE_SIZE);
        pagemap.private(start, 1 << 20, |address, len| scanned.push(page(address, len))).unwrap();
        pagemap.read(start, start + (1 << 20), &mut |address, len| words.push(page(address, len))).unwrap();
        assert_eq!((read, &scanned), (1, &vec![(3, 2), (9, 1), (200, 1)]));
        assert_eq!(scanned, words);
    }
}
