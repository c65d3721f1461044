//! Which blocks of the region for hot-plug the guest may use.
//!
//! Promises:
//! - a block that is not plugged is no RAM to whoever accesses it: software vCPUs find no page there, devices no memory, and
//!   accelerators with tables of their own are told of every change before it counts;
//! - when a block has been unplugged, every accelerator has dropped its ways to it, so that what is then given back to the
//!   host stays there.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::HUGE_PAGE_SIZE;

/// The unit of plugging, in bytes.
pub const PLUG_UNIT: u64 = HUGE_PAGE_SIZE;

/// A change of what is plugged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plugging {
    /// Where the blocks start: their guest-physical address.
    pub start: u64,
    /// How long they are, whole blocks of [`PLUG_UNIT`].
    pub bytes: u64,
    /// Whether they become RAM.
    pub plugged: bool,
}

/// Told of each change by the thread that makes it: before blocks become RAM, which an error prevents, and after they have
/// ceased to be, where an error is reported only.
type Watcher = Box<dyn Fn(Plugging) -> io::Result<()> + Send + Sync>;

/// The blocks of the region.
pub(crate) struct Plugged {
    start: u64,
    /// One bit a block.
    words: Box<[AtomicU64]>,
    watchers: Mutex<Vec<Watcher>>,
}

impl std::fmt::Debug for Plugged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugged").field("start", &self.start).finish_non_exhaustive()
    }
}

impl Plugged {
    /// The region of `bytes` at `start`, nothing of it plugged.
    pub fn new(start: u64, bytes: u64) -> Plugged {
        let words = (bytes / PLUG_UNIT).div_ceil(64);
        let words = (0..words).map(|_| AtomicU64::new(0)).collect();
        Plugged { start, words, watchers: Mutex::default() }
    }

    pub fn watch(&self, watcher: Watcher) {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner).push(watcher);
    }

    /// Whether the block with the byte at `offset` of the region is plugged.
    #[inline]
    pub fn has(&self, offset: u64) -> bool {
        let block = offset / PLUG_UNIT;
        let word = self.words.get((block / 64) as usize);
        word.is_some_and(|word| word.load(Ordering::SeqCst) >> (block % 64) & 1 != 0)
    }

    /// Whether all of `offset..offset + len` is plugged.
    pub fn has_all(&self, offset: u64, len: u64) -> bool {
        let last = offset.saturating_add(len.max(1) - 1);
        (offset / PLUG_UNIT..=last / PLUG_UNIT).all(|block| self.has(block * PLUG_UNIT))
    }

    /// Plugs or unplugs the blocks `offset..offset + len` of the region.
    ///
    /// # Errors
    /// An accelerator cannot follow. Blocks to be plugged are then not; blocks to be unplugged are, as far as devices and
    /// software vCPUs are concerned.
    pub fn set(&self, offset: u64, len: u64, plugged: bool) -> io::Result<()> {
        let watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        let change = Plugging { start: self.start + offset, bytes: len, plugged };
        if !plugged {
            self.mark(offset, len, false);
        }
        let mut result = Ok(());
        for watcher in &*watchers {
            result = result.and(watcher(change));
        }
        if plugged && result.is_ok() {
            self.mark(offset, len, true);
        } else if plugged {
            let undo = Plugging { plugged: false, ..change };
            watchers.iter().for_each(|watcher| drop(watcher(undo)));
        }
        result
    }

    fn mark(&self, offset: u64, len: u64, plugged: bool) {
        for block in offset / PLUG_UNIT..(offset + len) / PLUG_UNIT {
            let Some(word) = self.words.get((block / 64) as usize) else { return };
            let bit = 1 << (block % 64);
            match plugged {
                true => word.fetch_or(bit, Ordering::SeqCst),
                false => word.fetch_and(!bit, Ordering::SeqCst),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_plugged_and_unplugged_one_by_one() {
        let plugged = Plugged::new(8 << 30, 200 * PLUG_UNIT);
        plugged.set(63 * PLUG_UNIT, 3 * PLUG_UNIT, true).unwrap();
        let has: Vec<u64> = (0..200).filter(|block| plugged.has(block * PLUG_UNIT)).collect();
        assert_eq!(has, [63, 64, 65]);
        assert!(plugged.has_all(63 * PLUG_UNIT, 3 * PLUG_UNIT));
        assert!(!plugged.has_all(63 * PLUG_UNIT, 3 * PLUG_UNIT + 1));
        plugged.set(64 * PLUG_UNIT, PLUG_UNIT, false).unwrap();
        assert!(!plugged.has_all(63 * PLUG_UNIT, 3 * PLUG_UNIT) && plugged.has(65 * PLUG_UNIT));
        assert!(!plugged.has(u64::MAX));
    }

    #[test]
    fn what_an_accelerator_refuses_is_not_plugged() {
        let plugged = Plugged::new(0, 4 * PLUG_UNIT);
        plugged.watch(Box::new(|change| if change.plugged { Err(io::ErrorKind::OutOfMemory.into()) } else { Ok(()) }));
        assert!(plugged.set(0, PLUG_UNIT, true).is_err());
        assert!(!plugged.has(0));
    }
}
