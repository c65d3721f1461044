//! Large tables whose memory comes into being as it is used, and can be given back to the host.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

/// A table of fixed length that begins as zeroes, in a mapping of its own.
pub(crate) struct Table<T> {
    start: *mut T,
    len: usize,
    entries: PhantomData<T>,
}

// SAFETY: the mapping belongs to the value alone.
unsafe impl<T: Send> Send for Table<T> {}

impl<T: Copy> Table<T> {
    /// `len` entries of zeroes. Ends the process where the host has no address space left, as any allocation does.
    ///
    /// # Safety
    /// All-zero bytes are a `T`, whose alignment is at most that of a page.
    pub unsafe fn zeroed(len: usize) -> Table<T> {
        let layout = std::alloc::Layout::array::<T>(len).expect("a table of a few megabytes");
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), layout.size(), access, kind | libc::MAP_NORESERVE, -1, 0) };
        if start == libc::MAP_FAILED {
            std::alloc::handle_alloc_error(layout);
        }
        Table { start: start.cast(), len, entries: PhantomData }
    }

    fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// Zeroes all entries by giving their memory back: dear where much is in use and will be again soon.
    pub fn release(&mut self) {
        // SAFETY: the mapping is this table's, and private anonymous memory reads as zeroes afterwards, which are entries
        // as `zeroed` was promised.
        let failed = unsafe { libc::madvise(self.start.cast(), self.bytes(), libc::MADV_DONTNEED) } != 0;
        if failed {
            // SAFETY: as above, byte by byte.
            unsafe { self.start.write_bytes(0, self.len) };
        }
    }
}

impl<T> Deref for Table<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: the mapping has `len` entries, which are valid from the start.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl<T> DerefMut for Table<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and the mapping is this value's alone.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl<T> Drop for Table<T> {
    fn drop(&mut self) {
        // SAFETY: mapped by `zeroed` with this length; entries are `Copy` and need no drop.
        unsafe { libc::munmap(self.start.cast(), self.len * size_of::<T>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages of the table that the host has given it.
    fn resident(table: &Table<u64>) -> usize {
        let mut pages = vec![0_u8; table.bytes().div_ceil(4096)];
        // SAFETY: the range is the table's mapping, and the list has an entry for each of its pages.
        assert_eq!(unsafe { libc::mincore(table.start.cast(), table.bytes(), pages.as_mut_ptr()) }, 0);
        pages.iter().filter(|page| **page & 1 != 0).count()
    }

    #[test]
    fn memory_comes_with_use_and_goes_with_release() {
        // SAFETY: zeroes are numbers.
        let mut table = unsafe { Table::<u64>::zeroed(1 << 16) };
        let before = resident(&table);
        table.iter_mut().step_by(512).for_each(|entry| *entry = 7);
        let used = resident(&table);
        table.release();
        assert_eq!((before, used, resident(&table)), (0, 128, 0));
        assert!(table.iter().all(|entry| *entry == 0));
    }
}
