//! RAM whose pages come while the guest runs (post-copy).
//!
//! Promises:
//! - whoever touches a page that has not come waits until it has, vCPUs, devices and the kernel on their behalf alike; nobody
//!   ever sees zeroes in its place;
//! - a page is put where it belongs once, as a whole. What comes again is dropped: what the guest has written meanwhile stays,
//!   since it writes to copies of its own and the file behind them has the page already;
//! - whoever brings pages can bring nothing but pages that are missing.
//!
//! ```text
//!   guest RAM, private, registered ──fault──> take_faults() ──> whoever has the page
//!        │ reads                                                     │
//!   file in memory <── window, shared, registered <── put() ─────────┘ then the waiters are woken
//! ```
//! Source: Linux `Documentation/admin-guide/mm/userfaultfd.rst`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};

use rustix::fs::{FallocateFlags, fallocate};

use crate::PAGE_SIZE;
use crate::image::{ImageError, Shape};
use crate::mapping::{Reservation, Sharing};
use crate::userfault::Userfault;

/// Zeroes are put in pieces of this length.
static ZEROES: [u8; 16 * PAGE_SIZE as usize] = [0; 16 * PAGE_SIZE as usize];

/// What is missing of a guest's RAM.
#[derive(Debug)]
pub struct Arriving {
    userfault: Userfault,
    shape: Shape,
    /// RAM's file, shared and registered; offsets in RAM are addresses. `None` once all is there.
    window: RwLock<Option<Reservation>>,
    /// A bit for each page that has not come.
    missing: Box<[AtomicU64]>,
    missing_pages: AtomicU64,
    /// Where guest-physical address 0 is, once RAM is mapped.
    base: AtomicUsize,
    whole: AtomicBool,
}

impl Arriving {
    pub(crate) fn new(file: &File, shape: Shape, missing: &[(u64, u64)]) -> Result<Arriving, ImageError> {
        let bytes = shape.bytes();
        let words = (bytes / PAGE_SIZE).div_ceil(64) as usize;
        let userfault = Userfault::open().map_err(ImageError::io(
            "this process may not handle page faults, so memory cannot come while the machine runs \
             (sysctl vm.unprivileged_userfaultfd=1 or access to /dev/userfaultfd mends it)",
        ))?;
        let failed = "memory that comes later cannot be mapped";
        let window = Reservation::new(bytes).map_err(ImageError::io(failed))?;
        window.map(0, bytes, file.as_fd(), 0, Sharing::Shared).map_err(ImageError::io(failed))?;
        userfault.register(window.at(0), bytes).map_err(ImageError::io(failed))?;
        let arriving = Arriving {
            userfault,
            shape,
            window: RwLock::new(Some(window)),
            missing: (0..words).map(|_| AtomicU64::new(0)).collect(),
            missing_pages: AtomicU64::new(0),
            base: AtomicUsize::new(0),
            whole: AtomicBool::new(false),
        };
        for (offset, len) in missing.iter().copied() {
            arriving
                .check(offset, len)
                .map_err(|_| ImageError::Damaged("a run of missing RAM is not where one can be"))?;
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let punched = rustix::io::retry_on_intr(|| fallocate(file, hole, offset, len));
            punched.map_err(ImageError::io("memory that comes later cannot be cleared"))?;
            for page in offset / PAGE_SIZE..(offset + len) / PAGE_SIZE {
                let before = arriving.word(page).fetch_or(bit(page), Ordering::Relaxed);
                arriving.missing_pages.fetch_add(u64::from(before & bit(page) == 0), Ordering::Relaxed);
            }
        }
        Ok(arriving)
    }

    /// From now on, faults in RAM, which is mapped there, wait for pages that are not there.
    pub(crate) fn watch(&self, ram: &Reservation) -> io::Result<()> {
        self.base.store(ram.at(0) as usize, Ordering::Release);
        self.shape.placed().try_for_each(|(start, _, len)| self.userfault.register(ram.at(start), len))
    }

    /// Readable when [`Arriving::take_faults`] has something.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.userfault.descriptor()
    }

    /// Calls `f` with the offset in RAM of each missing page that somebody has begun to wait for.
    ///
    /// # Errors
    /// The host does not tell.
    pub fn take_faults(&self, mut f: impl FnMut(u64)) -> io::Result<()> {
        let base = self.base.load(Ordering::Acquire) as u64;
        self.userfault.take_faults(|fault| {
            let page = fault / PAGE_SIZE * PAGE_SIZE;
            match self.shape.offset_of(page.wrapping_sub(base)) {
                Some(offset) if self.is_missing(offset) => f(offset),
                Some(offset) => {
                    // A page that has just come, or one of zeroes, which nobody brings.
                    let _ = self.copy(offset, &ZEROES[..PAGE_SIZE as usize]);
                    let _ = self.userfault.wake(page, PAGE_SIZE);
                }
                None => drop(self.userfault.wake(page, PAGE_SIZE)),
            }
        })
    }

    /// Puts pages where they belong, those of them that are missing, and wakes whoever waits for them. Gives the bytes that
    /// were missing.
    ///
    /// # Errors
    /// They are not whole pages of this RAM, or the host has no memory for them.
    pub fn put(&self, offset: u64, data: &[u8]) -> io::Result<u64> {
        self.put_parts(offset, data.len() as u64, |from, len| {
            self.copy(from, &data[(from - offset) as usize..][..len as usize])
        })
    }

    /// The same with pages of zeroes.
    ///
    /// # Errors
    /// As [`Arriving::put`].
    pub fn put_zeroes(&self, offset: u64, bytes: u64) -> io::Result<u64> {
        self.put_parts(offset, bytes, |from, len| {
            let mut steps = (0..len).step_by(ZEROES.len());
            steps.try_for_each(|at| self.copy(from + at, &ZEROES[..ZEROES.len().min((len - at) as usize)]))
        })
    }

    fn put_parts(&self, offset: u64, len: u64, copy: impl Fn(u64, u64) -> io::Result<()>) -> io::Result<u64> {
        self.check(offset, len)?;
        let mut new = 0;
        let (mut page, end) = (offset / PAGE_SIZE, (offset + len) / PAGE_SIZE);
        while page < end {
            let count = (page..end).take_while(|page| self.is_missing(page * PAGE_SIZE)).count() as u64;
            if count > 0 {
                copy(page * PAGE_SIZE, count * PAGE_SIZE)?;
                new += (page..page + count).map(|page| self.note(page)).sum::<u64>();
                self.wake(page * PAGE_SIZE, count * PAGE_SIZE);
            }
            page += count.max(1);
        }
        Ok(new * PAGE_SIZE)
    }

    /// A page is there; 1 if it was missing until now.
    fn note(&self, page: u64) -> u64 {
        let before = self.word(page).fetch_and(!bit(page), Ordering::AcqRel);
        let new = u64::from(before & bit(page) != 0);
        self.missing_pages.fetch_sub(new, Ordering::AcqRel);
        new
    }

    /// Gives the file pages that it does not have.
    fn copy(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match &*self.window.read().unwrap_or_else(PoisonError::into_inner) {
            Some(window) => self.userfault.copy(window.at(offset), data.as_ptr(), data.len() as u64),
            None => Ok(()),
        }
    }

    fn wake(&self, offset: u64, len: u64) {
        let base = self.base.load(Ordering::Acquire) as u64;
        if base == 0 {
            return;
        }
        for (address, _, len) in self.shape.parts(offset, len) {
            // RAM that is gone has nobody who waits.
            let _ = self.userfault.wake(base + address, len);
        }
    }

    /// Bytes that have not come.
    pub fn missing_bytes(&self) -> u64 {
        self.missing_pages.load(Ordering::Acquire) * PAGE_SIZE
    }

    /// The runs that have not come, as (offset, length), lowest first.
    pub fn missing_runs(&self) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for (number, word) in (0..).zip(&self.missing) {
            let word = word.load(Ordering::Acquire);
            for page in (0..64).filter(|page| word & 1 << page != 0).map(|page| number * 64 + page) {
                match runs.last_mut() {
                    Some((start, len)) if *start + *len == page * PAGE_SIZE => *len += PAGE_SIZE,
                    _ => runs.push((page * PAGE_SIZE, PAGE_SIZE)),
                }
            }
        }
        runs
    }

    /// Whether the page at this offset has not come.
    pub fn is_missing(&self, offset: u64) -> bool {
        let page = offset / PAGE_SIZE;
        self.missing.get((page / 64) as usize).is_some_and(|word| word.load(Ordering::Acquire) & bit(page) != 0)
    }

    /// All has come: page faults go their ordinary way from now on. Does nothing while pages are missing.
    ///
    /// # Errors
    /// The host does not take page faults back: faults must be served on.
    pub fn finish(&self) -> io::Result<()> {
        if self.missing_bytes() > 0 || self.is_whole() {
            return Ok(());
        }
        let base = self.base.load(Ordering::Acquire);
        for (start, _, len) in self.shape.placed().filter(|_| base != 0) {
            match self.userfault.unregister((base as u64 + start) as *const u8, len) {
                // RAM that is gone, as after a restart of the guest.
                Err(error) if !matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT | libc::ENOMEM)) => {
                    return Err(error);
                }
                _ => {}
            }
        }
        self.whole.store(true, Ordering::Release);
        self.window.write().unwrap_or_else(PoisonError::into_inner).take();
        Ok(())
    }

    /// Whether all has come, and page faults go their ordinary way.
    pub fn is_whole(&self) -> bool {
        self.whole.load(Ordering::Acquire)
    }

    fn word(&self, page: u64) -> &AtomicU64 {
        &self.missing[(page / 64) as usize]
    }

    fn check(&self, offset: u64, len: u64) -> io::Result<()> {
        let aligned = offset.is_multiple_of(PAGE_SIZE) && len.is_multiple_of(PAGE_SIZE);
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.shape.bytes());
        if aligned && inside { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }
}

fn bit(page: u64) -> u64 {
    1 << (page % 64)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{GuestRam, MemoryImage, RamConfig};

    const BYTES: u64 = 1024 * PAGE_SIZE;

    /// RAM whose first 32 pages are missing; all others are zero.
    fn some() -> Option<(GuestRam, Arc<Arriving>)> {
        let file = crate::mapping::memory_file("test", BYTES, false).unwrap();
        let shape = Shape::from_runs(vec![(0, BYTES)]).unwrap();
        match MemoryImage::arriving(file, shape, &[(0, 32 * PAGE_SIZE)]) {
            Ok((image, arriving)) => {
                Some((GuestRam::from_image(&RamConfig::plain(BYTES), 0, &image).unwrap(), arriving))
            }
            Err(error) => {
                println!("skipped: {error}");
                None
            }
        }
    }

    fn byte(ram: &GuestRam, offset: u64) -> u8 {
        // SAFETY: the page is RAM as long as `ram` lives.
        unsafe { ram.host_page(offset).unwrap().host.read_volatile() }
    }

    fn wait_for_fault(arriving: &Arriving) -> u64 {
        let mut seen = None;
        while seen.is_none() {
            arriving.take_faults(|offset| seen = Some(offset)).unwrap();
        }
        seen.unwrap()
    }

    #[test]
    fn whoever_touches_a_missing_page_waits_until_it_has_come() {
        let Some((ram, arriving)) = some() else { return };

        std::thread::scope(|scope| {
            let reader = scope.spawn(|| byte(&ram, 5 * PAGE_SIZE));
            assert_eq!(wait_for_fault(&arriving), 5 * PAGE_SIZE);
            assert!(!reader.is_finished());
            assert_eq!(arriving.put(5 * PAGE_SIZE, &[7; PAGE_SIZE as usize]).unwrap(), PAGE_SIZE);
            assert_eq!(reader.join().unwrap(), 7);
        });
        assert_eq!(arriving.missing_runs(), [(0, 5 * PAGE_SIZE), (6 * PAGE_SIZE, 26 * PAGE_SIZE)]);
    }

    #[test]
    fn what_the_guest_has_written_is_never_replaced() {
        let Some((ram, arriving)) = some() else { return };
        arriving.put(0, &[1; PAGE_SIZE as usize]).unwrap();
        // SAFETY: the page is RAM as long as `ram` lives.
        unsafe { ram.host_page(0).unwrap().host.write_volatile(9) };

        assert_eq!(arriving.put(0, &[1; PAGE_SIZE as usize]).unwrap(), 0);

        assert_eq!(byte(&ram, 0), 9);
    }

    #[test]
    fn pages_of_zeroes_need_nobody_to_bring_them() {
        let Some((ram, arriving)) = some() else { return };
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| byte(&ram, 40 * PAGE_SIZE));
            while !reader.is_finished() {
                arriving.take_faults(|offset| panic!("{offset} is not missing")).unwrap();
            }
            assert_eq!(reader.join().unwrap(), 0);
        });
    }

    #[test]
    fn ram_can_be_frozen_once_it_is_whole() {
        let Some((ram, arriving)) = some() else { return };
        assert!(matches!(ram.freeze(), Err(ImageError::Arriving)));
        arriving.put(0, &[3; 8 * PAGE_SIZE as usize]).unwrap();
        arriving.put_zeroes(8 * PAGE_SIZE, 24 * PAGE_SIZE).unwrap();

        arriving.finish().unwrap();

        assert_eq!((arriving.missing_bytes(), ram.arriving().is_none()), (0, true));
        assert_eq!((byte(&ram, 7 * PAGE_SIZE), byte(&ram, 8 * PAGE_SIZE), byte(&ram, 63 * PAGE_SIZE)), (3, 0, 0));
        drop(ram.freeze().unwrap());
    }

    #[test]
    fn what_is_no_page_of_this_ram_is_refused() {
        let Some((_ram, arriving)) = some() else { return };
        assert!(arriving.put(1, &[0; PAGE_SIZE as usize]).is_err());
        assert!(arriving.put(0, &[0; 100]).is_err());
        assert!(arriving.put_zeroes(BYTES, PAGE_SIZE).is_err());
        assert!(arriving.put_zeroes(u64::MAX - PAGE_SIZE + 1, PAGE_SIZE).is_err());
    }
}
