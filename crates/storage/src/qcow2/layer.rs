//! One open file of a chain, as the library that understands the format reaches it.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;

use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;
use imago::{Storage, storage::PreallocateMode};

use crate::transfer::{Tail, Transfer};
use crate::{Buffer, Operation};

/// An open file of a backing chain. It opens nothing by itself: which files belong to a chain is decided before.
#[derive(Debug)]
pub(crate) struct Layer {
    path: PathBuf,
    file: File,
    /// It can become longer: it is no block device. Looked at here, since the threads that use it may not ask.
    can_grow: bool,
    helper: CommonStorageHelper,
}

impl Layer {
    pub fn new(path: PathBuf, file: File) -> Layer {
        let can_grow = file.metadata().is_ok_and(|metadata| metadata.is_file());
        Layer { path, file, can_grow, helper: CommonStorageHelper::default() }
    }

    pub fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn transfer(&self, operation: Operation, offset_bytes: u64, length_bytes: u64, buffers: Vec<Buffer>) -> Transfer {
        let (file, cached) = (self.descriptor(), self.descriptor());
        Transfer { file, cached, tail: Tail::Zeroes, operation, offset_bytes, length_bytes, buffers }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())
    }
}

impl Storage for Layer {
    fn size(&self) -> io::Result<u64> {
        use std::io::{Seek, SeekFrom};
        // A block device tells its size by its end only.
        (&self.file).seek(SeekFrom::End(0))
    }

    fn get_filename(&self) -> Option<PathBuf> {
        Some(self.path.clone())
    }

    unsafe fn pure_readv(&self, mut into: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        // SAFETY: the vector is used while `into`, which it names, is borrowed.
        let vectors = unsafe { into.as_iovec() };
        let buffers = vectors.iter().map(|v| Buffer::new(v.iov_base.cast(), v.iov_len)).collect();
        // SAFETY: the file is open, and the buffers are those of `into`, exclusively ours.
        let result = unsafe { self.transfer(Operation::Read, offset, 0, buffers).carry_out() };
        let _ = &mut into;
        result
    }

    unsafe fn pure_writev(&self, from: IoVector<'_>, offset: u64) -> io::Result<()> {
        // SAFETY: the vector is used while `from`, which it names, is borrowed.
        let vectors = unsafe { from.as_iovec() };
        let buffers = vectors.iter().map(|v| Buffer::new(v.iov_base.cast(), v.iov_len)).collect();
        let operation = Operation::Write { durable: false };
        // SAFETY: the file is open, and the buffers, which are only read, are those of `from`.
        unsafe { self.transfer(operation, offset, 0, buffers).carry_out() }
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.grow(offset, length)?;
        // SAFETY: no buffers; the file is open.
        unsafe { self.transfer(Operation::WriteZeroes { unmap: true }, offset, length, Vec::new()).carry_out() }
    }

    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.grow(offset, length)?;
        // SAFETY: no buffers; the file is open.
        unsafe { self.transfer(Operation::WriteZeroes { unmap: false }, offset, length, Vec::new()).carry_out() }
    }

    unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: no buffers; the file is open.
        unsafe { self.transfer(Operation::Discard, offset, length, Vec::new()).carry_out() }
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }

    fn resize(&self, new_size: u64, _prealloc_mode: PreallocateMode) -> io::Result<()> {
        self.file.set_len(new_size)
    }
}

impl Layer {
    /// Makes the file reach to the end of a range: zeroing keeps the size.
    fn grow(&self, offset: u64, length: u64) -> io::Result<()> {
        let end = offset.checked_add(length).ok_or(io::ErrorKind::InvalidInput)?;
        if self.can_grow && self.size()? < end {
            self.file.set_len(end)?;
        }
        Ok(())
    }
}
