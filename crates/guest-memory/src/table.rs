//! Tables that begin as zeroes and cost nothing until they are used.

use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::mm::{Advice, ProtFlags, madvise};

use crate::mapping::Map;

/// Zeroed items; pages of them take memory once they are written to, so that a table for a large, mostly untouched guest
/// is cheap.
#[derive(Debug)]
pub struct Table<T> {
    start: NonNull<T>,
    count: usize,
    map: Option<Map>,
}

// SAFETY: the table owns its items.
unsafe impl<T: Zeroed + Send> Send for Table<T> {}
// SAFETY: as above.
unsafe impl<T: Zeroed + Sync> Sync for Table<T> {}

/// Types whose values may be all zero bytes.
///
/// # Safety
/// All-zero bytes must be a value of the type, it must need no drop, and be aligned to a page at most.
pub unsafe trait Zeroed {}
// SAFETY: a number in a cell.
unsafe impl Zeroed for AtomicU64 {}
// SAFETY: a number in a cell.
unsafe impl Zeroed for AtomicU32 {}
// SAFETY: a number.
unsafe impl Zeroed for u64 {}
// SAFETY: the null pointer.
unsafe impl<T> Zeroed for *mut T {}

impl<T: Zeroed> Table<T> {
    /// A table of `count` items.
    ///
    /// # Errors
    /// The process has no addresses left.
    pub fn new(count: usize) -> io::Result<Table<T>> {
        let bytes = count.checked_mul(size_of::<T>()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        let map = if bytes > 0 { Some(Map::new(bytes, ProtFlags::READ | ProtFlags::WRITE)?) } else { None };
        if let Some(map) = &map {
            // A huge page for every few entries would undo the thrift; hosts without huge pages refuse the wish.
            // SAFETY: the range is the mapping just made.
            let _ = unsafe { madvise(map.start.as_ptr().cast(), map.len, Advice::LinuxNoHugepage) };
        }
        let start = map.as_ref().map_or(NonNull::dangling(), |map| map.start.cast());
        Ok(Table { start, count, map })
    }

    /// Zeroes all items by giving their memory back: dear where much is in use and will be again soon.
    pub fn release(&mut self) {
        let Some(map) = &self.map else { return };
        // SAFETY: the mapping is this table's, and private memory of no file reads as zeroes afterwards, which are items.
        let released = unsafe { madvise(map.start.as_ptr().cast(), map.len, Advice::LinuxDontNeed) };
        if released.is_err() {
            // SAFETY: the same, byte by byte.
            unsafe { self.start.write_bytes(0, self.count) };
        }
    }
}

impl<T: Zeroed> Deref for Table<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: the mapping has room for `count` items, zero bytes are values of the type, and mappings are aligned to
        // pages.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

impl<T: Zeroed> DerefMut for Table<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and nobody else has a reference to them.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.count) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn tables_are_zero_and_keep_what_is_written() {
        let table = Table::<AtomicU32>::new(5000).unwrap();
        table[4999].store(7, Ordering::Relaxed);
        assert_eq!((table.len(), table[0].load(Ordering::Relaxed), table[4999].load(Ordering::Relaxed)), (5000, 0, 7));
        assert!(Table::<AtomicU32>::new(0).unwrap().is_empty());
        assert!(Table::<AtomicU64>::new(1 << 60).is_err());
    }

    /// Pages of the table that the host has given it.
    fn resident(table: &Table<u64>) -> usize {
        let map = table.map.as_ref().unwrap();
        let mut pages = vec![0_u8; map.len.div_ceil(4096)];
        // SAFETY: the range is the table's mapping, and the list has an entry for each of its pages.
        assert_eq!(unsafe { libc::mincore(map.start.as_ptr().cast(), map.len, pages.as_mut_ptr()) }, 0);
        pages.iter().filter(|page| **page & 1 != 0).count()
    }

    #[test]
    fn memory_comes_with_use_and_goes_with_release() {
        let mut table = Table::<u64>::new(1 << 16).unwrap();
        let before = resident(&table);
        table.iter_mut().step_by(512).for_each(|item| *item = 7);
        let used = resident(&table);
        table.release();
        assert_eq!((before, used, resident(&table)), (0, 128, 0));
        assert!(table.iter().all(|item| *item == 0));
    }
}
