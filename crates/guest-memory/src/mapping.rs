//! Runs of this process's addresses, foremost the one that shows guest RAM.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{NonNull, null_mut};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, MremapFlags, ProtFlags, mmap, mmap_anonymous, mremap_fixed, munmap};

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

/// A private mapping of no file, undone at the end.
#[derive(Debug)]
pub(crate) struct Map {
    pub start: NonNull<u8>,
    pub len: usize,
}

// SAFETY: a range of addresses belongs to the process, not to a thread.
unsafe impl Send for Map {}
// SAFETY: as above; whoever reads and writes there answers for it.
unsafe impl Sync for Map {}

impl Map {
    pub fn new(len: usize, protection: ProtFlags) -> io::Result<Map> {
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
    }
}
