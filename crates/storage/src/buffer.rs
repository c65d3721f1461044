//! Memory that a disk reads into or writes from.

use std::ffi::c_void;

/// A run of memory owned by somebody else, in the layout of `struct iovec`.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub struct Buffer(libc::iovec);

// SAFETY: a Buffer is an address and a length; whoever submits it promises that the memory stays valid
// (`DiskQueue::submit`), from whichever thread it is used.
unsafe impl Send for Buffer {}

impl Buffer {
    /// Names `len` bytes at `base`. Nothing is accessed until the buffer is submitted.
    pub fn new(base: *mut u8, len: usize) -> Buffer {
        Buffer(libc::iovec { iov_base: base.cast::<c_void>(), iov_len: len })
    }

    /// First byte.
    pub fn base(&self) -> *mut u8 {
        self.0.iov_base.cast()
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.iov_len
    }

    pub fn is_empty(&self) -> bool {
        self.0.iov_len == 0
    }

    /// The buffers as the kernel's vector of runs of memory.
    pub(crate) fn as_iovecs(buffers: &[Buffer]) -> *const libc::iovec {
        buffers.as_ptr().cast()
    }

    /// Bytes of all buffers together.
    pub(crate) fn total_bytes(buffers: &[Buffer]) -> u64 {
        buffers.iter().map(|buffer| buffer.len() as u64).sum()
    }

    /// Takes the first `count` bytes off the vector.
    pub(crate) fn split_front(buffers: &mut Vec<Buffer>, count: usize) -> Vec<Buffer> {
        let mut front = Vec::new();
        let mut left = count;
        for buffer in buffers.iter() {
            if left == 0 {
                break;
            }
            let bytes = buffer.len().min(left);
            front.push(Buffer::new(buffer.base(), bytes));
            left -= bytes;
        }
        Buffer::advance(buffers, count);
        front
    }

    /// Fills the buffers with zeroes.
    ///
    /// # Safety
    /// They are valid memory.
    pub(crate) unsafe fn zero(buffers: &[Buffer]) {
        for buffer in buffers {
            // SAFETY: the caller's promise.
            unsafe { buffer.base().write_bytes(0, buffer.len()) };
        }
    }

    /// Copies `bytes` into the buffers, as many as both have.
    ///
    /// # Safety
    /// The buffers are valid memory.
    pub(crate) unsafe fn fill(buffers: &[Buffer], mut bytes: &[u8]) {
        for buffer in buffers {
            let count = buffer.len().min(bytes.len());
            // SAFETY: the caller's promise; `bytes` is memory of this process's own.
            unsafe { bytes.as_ptr().copy_to_nonoverlapping(buffer.base(), count) };
            bytes = &bytes[count..];
        }
    }

    /// A copy of the buffers' bytes.
    ///
    /// # Safety
    /// The buffers are valid memory.
    pub(crate) unsafe fn gather(buffers: &[Buffer]) -> Vec<u8> {
        let mut bytes = vec![0; Buffer::total_bytes(buffers) as usize];
        let mut at = 0;
        for buffer in buffers {
            // SAFETY: the caller's promise; the vector has room for all buffers.
            unsafe { buffer.base().copy_to_nonoverlapping(bytes.as_mut_ptr().add(at), buffer.len()) };
            at += buffer.len();
        }
        bytes
    }

    /// Drops the first `count` bytes of the whole vector.
    pub(crate) fn advance(buffers: &mut Vec<Buffer>, mut count: usize) {
        let mut whole = 0;
        for buffer in buffers.iter_mut() {
            if count < buffer.len() {
                // Stays inside the run: `count` is below its length.
                *buffer = Buffer::new(buffer.base().wrapping_add(count), buffer.len() - count);
                break;
            }
            count -= buffer.len();
            whole += 1;
        }
        buffers.drain(..whole);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advancing_drops_whole_and_partial_runs() {
        let mut memory = [0u8; 16];
        let base = memory.as_mut_ptr();
        let mut buffers = vec![Buffer::new(base, 4), Buffer::new(base.wrapping_add(4), 8)];
        Buffer::advance(&mut buffers, 6);
        assert_eq!((buffers.len(), buffers[0].len()), (1, 6));
        assert_eq!(buffers[0].base(), base.wrapping_add(6));
        Buffer::advance(&mut buffers, 6);
        assert!(buffers.is_empty());
    }
}
