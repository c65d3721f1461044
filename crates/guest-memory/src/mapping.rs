//! Runs of this process's addresses: the one that shows guest RAM, and tables that cost nothing until they are used.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags, madvise, mmap, mmap_anonymous, mremap_fixed, munmap};

use crate::config::HUGE_PAGE_SIZE;

/// Addresses for a guest's whole physical address space, RAM and holes alike: guest-physical address `a` is at
/// [`Reservation::at`]`(a)`. The start is a multiple of 2 MiB, so that guest and host pages of that size coincide. What
/// has not been mapped cannot be accessed, a page before the start and 2 MiB after the end included.
#[derive(Debug)]
pub(crate) struct Reservation {
    map: Map,
    base: usize,
}

impl Reservation {
    /// Reserves room for guest-physical addresses up to `bytes`.
    pub fn new(bytes: u64) -> io::Result<Reservation> {
        let too_many = || io::Error::from_raw_os_error(libc::ENOMEM);
        let slack = 2 * HUGE_PAGE_SIZE as usize;
        let len = usize::try_from(bytes).ok().and_then(|bytes| bytes.checked_add(slack)).ok_or_else(too_many)?;
        let map = Map::new(len, ProtFlags::empty())?;
        let base = (map.start.as_ptr() as usize + 1).next_multiple_of(HUGE_PAGE_SIZE as usize);
        let base = base - map.start.as_ptr() as usize;
        Ok(Reservation { map, base })
    }

    /// Bytes that there is room for.
    pub fn bytes(&self) -> u64 {
        (self.map.len - 2 * HUGE_PAGE_SIZE as usize) as u64
    }

    /// Where guest-physical address `address` is, which must be one of those reserved.
    pub fn at(&self, address: u64) -> *mut u8 {
        debug_assert!(self.base as u64 + address <= self.map.len as u64);
        self.map.start.as_ptr().wrapping_add(self.base + address as usize)
    }

    /// Shows `len` bytes of `file` from `offset` on at `address`, in place of what is there.
    pub fn map(&self, address: u64, len: u64, file: BorrowedFd<'_>, offset: u64, sharing: Sharing) -> io::Result<()> {
        self.check(address, len);
        let kind = match sharing {
            Sharing::Shared => MapFlags::SHARED | MapFlags::NORESERVE,
            Sharing::Reserved => MapFlags::SHARED,
            Sharing::Private => MapFlags::PRIVATE | MapFlags::NORESERVE,
        };
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the range lies inside of the reservation, which is ours; whoever has pointers into it knows that it is
        // guest RAM, of which any byte may change at any time.
        unsafe { mmap(self.at(address).cast(), len as usize, protection, MapFlags::FIXED | kind, file, offset) }?;
        Ok(())
    }

    /// Moves the page tables of `len` bytes at `address`, which are of one mapping, to the same place of `other`; here the
    /// mapping stays, without them. Costs one step for 2 MiB, not for each page.
    pub fn move_pages(&self, address: u64, len: u64, other: &Reservation) -> io::Result<()> {
        self.check(address, len);
        other.check(address, len);
        let flags = MremapFlags::MAYMOVE | MremapFlags::DONTUNMAP;
        let (from, to) = (self.at(address).cast(), other.at(address).cast());
        // SAFETY: both ranges lie inside of their reservations, and the one here stays mapped.
        unsafe { mremap_fixed(from, len as usize, len as usize, flags, to) }?;
        Ok(())
    }

    fn check(&self, address: u64, len: u64) {
        let end = address.checked_add(len).and_then(|end| end.checked_add(self.base as u64));
        assert!(end.is_some_and(|end| end <= self.map.len as u64), "RAM lies inside of the reservation");
    }
}

/// Who sees what is written to a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// Whoever maps the file.
    Shared,
    /// The same, and the pages are taken from the file's pool now.
    Reserved,
    /// Only this process: a first write to a page makes a copy of it.
    Private,
}

/// Zeroed numbers; pages of them take memory once they are written to, so that a table for a large, mostly untouched
/// guest is cheap.
#[derive(Debug)]
pub(crate) struct Table<T> {
    start: NonNull<T>,
    count: usize,
    _map: Option<Map>,
}

// SAFETY: the table owns its items, which may be shared and sent.
unsafe impl<T: Zeroed> Send for Table<T> {}
// SAFETY: as above.
unsafe impl<T: Zeroed> Sync for Table<T> {}

/// Types whose values may be all zero bytes and which can be shared between threads.
///
/// # Safety
/// All-zero bytes must be a value of the type, and it must need no drop.
pub(crate) unsafe trait Zeroed: Sync + Send {}
// SAFETY: a number in a cell.
unsafe impl Zeroed for AtomicU64 {}
// SAFETY: a number in a cell.
unsafe impl Zeroed for AtomicU32 {}

impl<T: Zeroed> Table<T> {
    pub fn new(count: usize) -> io::Result<Table<T>> {
        let bytes = count.checked_mul(size_of::<T>()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        let map = if bytes > 0 { Some(Map::new(bytes, ProtFlags::READ | ProtFlags::WRITE)?) } else { None };
        if let Some(map) = &map {
            // A huge page for every few entries would undo the thrift; hosts without huge pages refuse the wish.
            // SAFETY: the range is the mapping just made.
            let _ = unsafe { madvise(map.start.as_ptr().cast(), map.len, Advice::LinuxNoHugepage) };
        }
        let start = map.as_ref().map_or(NonNull::dangling(), |map| map.start.cast());
        Ok(Table { start, count, _map: map })
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

/// A private mapping of no file, undone at the end.
#[derive(Debug)]
struct Map {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a range of addresses belongs to the process, not to a thread.
unsafe impl Send for Map {}
// SAFETY: as above; whoever reads and writes there answers for it.
unsafe impl Sync for Map {}

impl Map {
    fn new(len: usize, protection: ProtFlags) -> io::Result<Map> {
        // SAFETY: the kernel chooses the place, so nothing is replaced.
        let start = unsafe { mmap_anonymous(null_mut(), len, protection, MapFlags::PRIVATE | MapFlags::NORESERVE) }?;
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Map { start, len })
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the range is ours, and all references into it borrow what owns it.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// A file in memory of `bytes` bytes, from the pool of 2 MiB pages if `huge`. Its size is for good, where the host can see
/// to that: a file that is cut off would end those who map it.
pub(crate) fn memory_file(name: &str, bytes: u64, huge: bool) -> io::Result<File> {
    let kind = if huge { MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB } else { MemfdFlags::empty() };
    let file = File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | kind)?);
    file.set_len(bytes)?;
    let _ = rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW);
    Ok(file)
}

/// Bytes of a file in memory that take memory or swap space of the host.
pub(crate) fn allocated(file: &File) -> io::Result<u64> {
    /// The unit of `st_blocks`, whatever the file system.
    const BLOCK_BYTES: u64 = 512;
    Ok(rustix::fs::fstat(file.as_fd())?.st_blocks as u64 * BLOCK_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn reservations_start_at_huge_pages_with_guards_around() {
        let reservation = Reservation::new(3 << 20).unwrap();
        assert!((reservation.at(0) as usize).is_multiple_of(HUGE_PAGE_SIZE as usize));
        assert!(reservation.base >= 4096);
        assert!(reservation.map.len - reservation.base - (3 << 20) >= HUGE_PAGE_SIZE as usize);
    }

    #[test]
    fn more_than_there_are_addresses_is_an_error() {
        assert!(Reservation::new(1 << 50).is_err());
        assert!(Reservation::new(u64::MAX).is_err());
        assert!(Table::<AtomicU64>::new(1 << 60).is_err());
    }

    #[test]
    fn tables_are_zero_and_keep_what_is_written() {
        let table = Table::<AtomicU32>::new(5000).unwrap();
        table[4999].store(7, Ordering::Relaxed);
        assert_eq!((table.len(), table[0].load(Ordering::Relaxed), table[4999].load(Ordering::Relaxed)), (5000, 0, 7));
        assert!(Table::<AtomicU32>::new(0).unwrap().is_empty());
    }
}
