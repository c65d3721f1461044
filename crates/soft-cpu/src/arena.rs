//! Memory for what is dropped all at once: values lie one behind the other, and go together.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use queztl_guest_memory::{Table, Zeroed};

/// 8-byte words of a chunk: 64 KiB.
const CHUNK_WORDS: usize = 8 << 10;
const _: () = assert!(CHUNK_WORDS * size_of::<u64>() <= 1 << 16);

/// Values without destructors. What it gives is valid until [`Arena::clear`] or [`Arena::release`].
#[derive(Default)]
pub(crate) struct Arena {
    chunks: Vec<Table<u64>>,
    /// The chunk that is being filled, and how far.
    current: usize,
    used: usize,
}

/// Values in an [`Arena`]. Blocks have several, and there are many blocks: no padding.
#[repr(C, packed(2))]
pub(crate) struct Slice<T> {
    start: *mut T,
    len: u16,
    values: PhantomData<T>,
}

/// A table for the caches of a CPU. Without addresses for it there is no going on, as with any other allocation.
///
/// # Panics
/// The process has no addresses left.
pub(crate) fn table<T: Zeroed>(count: usize) -> Table<T> {
    Table::new(count).expect("addresses for a few megabytes")
}

impl Arena {
    /// Copies the values here.
    ///
    /// # Panics
    /// They do not fit into a chunk, which also bounds their number.
    pub fn keep<T: Copy>(&mut self, values: &[T]) -> Slice<T> {
        const { assert!(align_of::<T>() <= align_of::<u64>()) };
        let start = self.words(size_of_val(values).div_ceil(size_of::<u64>())).cast::<T>();
        // SAFETY: the words are aligned, as many as the values need, and nobody else's.
        unsafe { start.copy_from_nonoverlapping(values.as_ptr(), values.len()) };
        Slice { start, len: values.len() as u16, values: PhantomData }
    }

    /// Moves the value here. It is never dropped.
    pub fn keep_one<T>(&mut self, value: T) -> NonNull<T> {
        const { assert!(align_of::<T>() <= align_of::<u64>() && !std::mem::needs_drop::<T>()) };
        let place = self.words(size_of::<T>().div_ceil(size_of::<u64>())).cast::<T>();
        // SAFETY: as in `keep`.
        unsafe { place.write(value) };
        // SAFETY: it lies in a chunk.
        unsafe { NonNull::new_unchecked(place) }
    }

    fn words(&mut self, count: usize) -> *mut u64 {
        assert!(count <= CHUNK_WORDS, "more than a chunk at once");
        if self.used + count > CHUNK_WORDS {
            (self.current, self.used) = (self.current + 1, 0);
        }
        if self.current == self.chunks.len() {
            self.chunks.push(table(CHUNK_WORDS));
        }
        let start = self.used;
        self.used += count;
        self.chunks[self.current][start..].as_mut_ptr()
    }

    /// Bytes in use, in whole chunks.
    pub fn bytes(&self) -> usize {
        (self.current + 1) * CHUNK_WORDS * size_of::<u64>()
    }

    /// Everything in it is gone; its memory is used again.
    pub fn clear(&mut self) {
        (self.current, self.used) = (0, 0);
    }

    /// Everything in it is gone; its memory is the host's.
    pub fn release(&mut self) {
        *self = Arena::default();
    }
}

impl<T> Deref for Slice<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: the values are there until the arena is cleared, which whoever keeps the slice sees to.
        unsafe { std::slice::from_raw_parts(self.start, usize::from(self.len)) }
    }
}

impl<T> DerefMut for Slice<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and nobody else has them.
        unsafe { std::slice::from_raw_parts_mut(self.start, usize::from(self.len)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_as_they_are_across_chunks() {
        let mut arena = Arena::default();
        let kept: Vec<Slice<u32>> = (0..5000).map(|value| arena.keep(&[value; 33])).collect();
        assert!(arena.chunks.len() > 1);
        for (value, slice) in (0..).zip(&kept) {
            assert_eq!(**slice, [value; 33]);
        }
    }

    #[test]
    fn cleared_memory_is_used_again_and_released_memory_is_not_kept() {
        let mut arena = Arena::default();
        let first = arena.keep_one(1_u64);
        arena.clear();
        assert_eq!(arena.keep_one(2_u64), first);
        arena.release();
        assert!(arena.chunks.is_empty());
    }
}
