//! One piece of work on an open file, and how to do it in the calling thread: the whole of the fall-back queue, and the
//! rare ends of the asynchronous one (short transfers, operations that the file system lacks).

use std::io;
use std::os::fd::{BorrowedFd, RawFd};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::{Buffer, Operation};

/// What lies behind the end of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tail {
    /// Nothing: the file has become shorter than the disk it is, and reading fails.
    Missing,
    /// Zeroes, as the file's format says.
    Zeroes,
}

/// Work on a file. Reads and writes cover the sum of their buffers, discard and write-zeroes `length_bytes`.
#[derive(Debug)]
pub(crate) struct Transfer {
    /// The file; it stays open until the transfer is over.
    pub file: RawFd,
    /// Where what is left of a read or write goes on that `file` has cut short: the same file through the page cache.
    pub cached: RawFd,
    pub tail: Tail,
    pub operation: Operation,
    pub offset_bytes: u64,
    pub length_bytes: u64,
    pub buffers: Vec<Buffer>,
}

const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);

/// The `fallocate` mode that does the operation best.
pub(crate) fn fallocate_mode(operation: Operation) -> FallocateFlags {
    match operation {
        Operation::WriteZeroes { unmap: false } => ZERO,
        _ => PUNCH,
    }
}

impl Transfer {
    /// Takes `count` bytes as done; true if that was all.
    pub fn advance(&mut self, count: usize) -> bool {
        Buffer::advance(&mut self.buffers, count);
        self.offset_bytes += count as u64;
        self.file = self.cached;
        self.buffers.is_empty()
    }

    /// Carries out what is left, in this thread.
    ///
    /// # Safety
    /// The files are open, and the buffers are valid memory.
    pub unsafe fn carry_out(&mut self) -> io::Result<()> {
        match self.operation {
            // SAFETY: the caller's promise.
            Operation::Read | Operation::Write { .. } => unsafe { self.move_bytes() },
            Operation::Flush => Ok(rustix::fs::fdatasync(self.cached_file())?),
            Operation::Discard => self.discard(),
            Operation::WriteZeroes { unmap } => self.write_zeroes(unmap),
        }
    }

    fn cached_file(&self) -> BorrowedFd<'_> {
        // SAFETY: whoever makes a transfer keeps its files open until it is over.
        unsafe { BorrowedFd::borrow_raw(self.cached) }
    }

    /// Reads or writes until the buffers are used up.
    ///
    /// # Safety
    /// The buffers are valid memory.
    unsafe fn move_bytes(&mut self) -> io::Result<()> {
        self.buffers.retain(|buffer| !buffer.is_empty());
        while !self.buffers.is_empty() {
            // SAFETY: the caller's promise.
            let count = match unsafe { self.move_once() } {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if count == 0 && self.tail == Tail::Zeroes && self.operation == Operation::Read {
                // SAFETY: the caller's promise.
                unsafe { Buffer::zero(&self.buffers) };
                return Ok(());
            }
            if count == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the disk image has become shorter"));
            }
            self.advance(count);
        }
        Ok(())
    }

    /// # Safety
    /// The buffers are valid memory.
    unsafe fn move_once(&self) -> io::Result<usize> {
        let vectors = Buffer::as_iovecs(&self.buffers);
        let count = self.buffers.len().min(libc::UIO_MAXIOV as usize) as libc::c_int;
        let offset = libc::off_t::try_from(self.offset_bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        let done = match self.operation {
            Operation::Write { durable } => {
                let flags = if durable { libc::RWF_DSYNC } else { 0 };
                // SAFETY: `count` vectors, each naming memory that the caller keeps valid.
                unsafe { libc::pwritev2(self.file, vectors, count, offset, flags) }
            }
            // SAFETY: as above.
            _ => unsafe { libc::preadv(self.file, vectors, count, offset) },
        };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    fn discard(&self) -> io::Result<()> {
        match self.allocate(PUNCH) {
            // Advice that cannot be taken is not a failure.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            other => Ok(other?),
        }
    }

    fn write_zeroes(&self, unmap: bool) -> io::Result<()> {
        let modes: &[FallocateFlags] = if unmap { &[PUNCH, ZERO] } else { &[ZERO] };
        for mode in modes {
            match self.allocate(*mode) {
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
                other => return Ok(other?),
            }
        }
        self.write_zero_bytes()
    }

    fn allocate(&self, mode: FallocateFlags) -> rustix::io::Result<()> {
        if self.length_bytes == 0 {
            return Ok(());
        }
        rustix::io::retry_on_intr(|| fallocate(self.cached_file(), mode, self.offset_bytes, self.length_bytes))
    }

    fn write_zero_bytes(&self) -> io::Result<()> {
        static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
        let mut offset = self.offset_bytes;
        let mut left = self.length_bytes;
        while left > 0 {
            let count = left.min(ZEROES.len() as u64) as usize;
            let written =
                rustix::io::retry_on_intr(|| rustix::io::pwrite(self.cached_file(), &ZEROES[..count], offset))?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            offset += written as u64;
            left -= written as u64;
        }
        Ok(())
    }
}
