//! Disk back ends of virtual machines.
//!
//! Promises:
//! - a [`Disk`] moves bytes straight between its file and the caller's buffers (guest RAM), many requests at a time,
//!   without a copy in this process and without blocking the caller;
//! - a disk that can be written has one writer: opening takes a lock that a second writer is refused by;
//! - a file that shrinks, fills up or breaks under a running guest gives that guest I/O errors, never a signal.
//!
//! ```text
//! Disk (shared by all queues)  --open_queue-->  DiskQueue (one device thread)
//!                                                submit* kick … event readable … completed*
//! ```
//! [`RawFile`] and [`Qcow2Image`] are the formats; [`open_disk`] picks the one that a file has.

mod buffer;
mod error;
mod format;
pub mod image;
mod lock;
mod open;
pub mod qcow2;
mod raw;
mod ring;
#[cfg(test)]
mod testing;
mod transfer;

use std::io;
use std::os::fd::BorrowedFd;

pub use buffer::Buffer;
pub use error::Error;
pub use format::{Backing, Format, ImageConfig, open_disk, open_overlay, settle as settle_format};
pub use qcow2::{Qcow2Config, Qcow2Image};
pub use raw::{RawConfig, RawFile};

/// The unit in which virtio counts disk sizes and offsets (Virtio 1.2 §5.2.4), in bytes.
pub const SECTOR_SIZE: u64 = 512;

/// How large a disk is and in which units it likes to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// Size in bytes, a multiple of the logical block.
    pub size_bytes: u64,
    /// Smallest addressable unit in bytes, a power of two of at least 512.
    pub logical_block_bytes: u32,
    /// Smallest unit written without reading first, in bytes; at least the logical block.
    pub physical_block_bytes: u32,
}

/// A run of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// It reads as zeroes and takes no space.
    pub zeroes: bool,
    /// How far it goes; 0 only at the end of the disk.
    pub length_bytes: u64,
}

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Fills the buffers from the disk.
    Read,
    /// Writes the buffers to the disk; `durable` makes completion mean that the bytes survive a power cut.
    Write { durable: bool },
    /// Makes all writes that have completed durable.
    Flush,
    /// Says that the bytes are no longer needed. Advice: where the file system cannot do it, it succeeds all the same.
    Discard,
    /// Makes the bytes read as zeroes; `unmap` allows their space to be given back.
    WriteZeroes { unmap: bool },
}

/// One request. Reads and writes cover the sum of their buffers, discard and write-zeroes `length_bytes`.
#[derive(Debug)]
pub struct Request {
    /// Comes back in the [`Completion`].
    pub token: u64,
    pub operation: Operation,
    /// Byte offset on the disk.
    pub offset_bytes: u64,
    /// Length of a discard or write-zeroes; ignored by the others.
    pub length_bytes: u64,
    /// Memory to fill or to write.
    pub buffers: Vec<Buffer>,
}

impl Request {
    /// How many bytes of the disk the request covers; `None` if that overflows.
    pub fn span_bytes(&self) -> Option<u64> {
        match self.operation {
            Operation::Read | Operation::Write { .. } => {
                self.buffers.iter().try_fold(0u64, |sum, buffer| sum.checked_add(buffer.len() as u64))
            }
            Operation::Flush => Some(0),
            Operation::Discard | Operation::WriteZeroes { .. } => Some(self.length_bytes),
        }
    }

    /// Refuses what must not reach a disk of this size.
    pub(crate) fn check(&self, topology: Topology, read_only: bool) -> io::Result<()> {
        if read_only && !matches!(self.operation, Operation::Read | Operation::Flush) {
            return Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem));
        }
        let end = self.span_bytes().and_then(|span| self.offset_bytes.checked_add(span));
        match end {
            Some(end) if end <= topology.size_bytes => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "beyond the end of the disk")),
        }
    }
}

/// A request that is over.
#[derive(Debug)]
pub struct Completion {
    pub token: u64,
    pub result: io::Result<()>,
}

/// A virtual disk.
pub trait Disk: Send + Sync + std::fmt::Debug {
    fn topology(&self) -> Topology;

    /// Whether writes are refused.
    fn read_only(&self) -> bool;

    /// Most queues that can be open at a time.
    fn max_queues(&self) -> u16 {
        u16::MAX
    }

    /// What the disk holds from `offset_bytes` on, as far as that can be told without reading it.
    fn extent(&self, offset_bytes: u64) -> io::Result<Extent>;

    /// Makes all that was written durable and lets others read the disk: its file is to be what another image builds on. No
    /// queue may have requests in flight, and none may write afterwards.
    fn freeze(&self) -> Result<(), Error>;

    /// Makes all that was written durable and lets others use the disk as they like. No queue may have requests in flight, and
    /// none may be given any before the disk was had back by [`Disk::thaw`].
    fn release(&self) -> Result<(), Error>;

    /// Takes [`Disk::freeze`] or [`Disk::release`] back: nobody else may use the disk any more. Fails if somebody does.
    fn thaw(&self) -> Result<(), Error>;

    /// Opens a queue on which up to `depth` requests may be in flight, for the use of one thread.
    fn open_queue(&self, depth: u32) -> Result<Box<dyn DiskQueue>, Error>;
}

/// A stream of requests to a [`Disk`]. Requests complete in any order. Dropping the queue waits for those in flight.
pub trait DiskQueue: Send {
    /// Becomes readable when requests may have completed; the owner polls it. From [`DiskQueue::kick`] until
    /// [`DiskQueue::completed`] has nothing more to give it may stay silent: an owner that starts requests looks for
    /// completed ones before it waits.
    fn event(&self) -> BorrowedFd<'_>;

    /// How many more requests can be submitted now.
    fn room(&self) -> usize;

    /// Accepts a request. It starts at [`DiskQueue::kick`] at the latest. A request that cannot be carried out (out of
    /// bounds, write to a read-only disk, no room) completes with an error.
    ///
    /// # Safety
    /// The memory of `request.buffers` must stay valid until the request's completion was fetched or the queue dropped.
    unsafe fn submit(&mut self, request: Request);

    /// Starts everything that was submitted.
    fn kick(&mut self) -> io::Result<()>;

    /// Whether [`DiskQueue::completed`] may have something to give; cheap enough to be asked again and again.
    fn has_completed(&mut self) -> bool;

    /// Takes the next finished request, without waiting.
    fn completed(&mut self) -> Option<Completion>;

    /// Waits until nothing is in flight; completions can be fetched afterwards.
    fn drain(&mut self);
}
