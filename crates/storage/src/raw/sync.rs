//! Requests carried out in the calling thread: the whole of the fall-back queue, and the rare ends of the io_uring one
//! (short transfers, operations that the file system lacks).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::Inner;
use crate::{Buffer, Completion, DiskQueue, Operation, Request};

/// A queue that is done with a request when `submit` returns.
pub(super) struct SyncQueue {
    disk: Arc<Inner>,
    event: OwnedFd,
    done: VecDeque<Completion>,
    depth: usize,
}

impl SyncQueue {
    pub(super) fn new(disk: Arc<Inner>, depth: u32) -> io::Result<SyncQueue> {
        // Never signalled: there is never anything to wait for.
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(SyncQueue { disk, event, done: VecDeque::new(), depth: depth as usize })
    }
}

impl DiskQueue for SyncQueue {
    fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    fn room(&self) -> usize {
        self.depth.saturating_sub(self.done.len())
    }

    unsafe fn submit(&mut self, mut request: Request) {
        // SAFETY: the caller keeps the buffers valid until the completion is fetched, which is later than this call.
        let result = self.disk.check(&request).and_then(|()| unsafe { carry_out(&self.disk, &mut request) });
        self.done.push_back(Completion { token: request.token, result });
    }

    fn kick(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn completed(&mut self) -> Option<Completion> {
        self.done.pop_front()
    }

    fn drain(&mut self) {}
}

/// Carries out a request that [`Inner::check`] has let pass.
///
/// # Safety
/// The request's buffers must be valid memory.
pub(super) unsafe fn carry_out(disk: &Inner, request: &mut Request) -> io::Result<()> {
    match request.operation {
        // SAFETY: the caller's promise.
        Operation::Read | Operation::Write { .. } => unsafe { transfer(disk, request) },
        Operation::Flush => Ok(rustix::fs::fdatasync(&disk.file)?),
        Operation::Discard => discard(disk, request),
        Operation::WriteZeroes { unmap } => write_zeroes(disk, request, unmap),
    }
}

/// Reads or writes until the buffers are used up. The end of the file before that is an error: the file shrank.
///
/// # Safety
/// The request's buffers must be valid memory.
unsafe fn transfer(disk: &Inner, request: &mut Request) -> io::Result<()> {
    request.buffers.retain(|buffer| !buffer.is_empty());
    while !request.buffers.is_empty() {
        // SAFETY: the caller's promise.
        let count = match unsafe { transfer_once(disk, request) } {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the disk image has become shorter"));
        }
        Buffer::advance(&mut request.buffers, count);
        request.offset_bytes += count as u64;
    }
    Ok(())
}

/// # Safety
/// The request's buffers must be valid memory.
unsafe fn transfer_once(disk: &Inner, request: &Request) -> io::Result<usize> {
    let fd = disk.descriptor(&request.buffers, request.offset_bytes);
    let vectors = Buffer::as_iovecs(&request.buffers);
    let count = request.buffers.len().min(libc::UIO_MAXIOV as usize) as libc::c_int;
    let offset = libc::off_t::try_from(request.offset_bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    let done = match request.operation {
        Operation::Write { durable } => {
            let flags = if durable { libc::RWF_DSYNC } else { 0 };
            // SAFETY: `count` vectors, each naming memory that the caller keeps valid.
            unsafe { libc::pwritev2(fd, vectors, count, offset, flags) }
        }
        // SAFETY: as above.
        _ => unsafe { libc::preadv(fd, vectors, count, offset) },
    };
    usize::try_from(done).map_err(|_| io::Error::last_os_error())
}

const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);

/// The `fallocate` mode that does the operation best.
pub(super) fn fallocate_mode(operation: Operation) -> FallocateFlags {
    match operation {
        Operation::WriteZeroes { unmap: false } => ZERO,
        _ => PUNCH,
    }
}

fn discard(disk: &Inner, request: &Request) -> io::Result<()> {
    match allocate(disk, request, PUNCH) {
        // Advice that cannot be taken is not a failure.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        other => Ok(other?),
    }
}

fn write_zeroes(disk: &Inner, request: &Request, unmap: bool) -> io::Result<()> {
    let modes: &[FallocateFlags] = if unmap { &[PUNCH, ZERO] } else { &[ZERO] };
    for mode in modes {
        match allocate(disk, request, *mode) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            other => return Ok(other?),
        }
    }
    write_zero_bytes(disk, request)
}

fn allocate(disk: &Inner, request: &Request, mode: FallocateFlags) -> rustix::io::Result<()> {
    if request.length_bytes == 0 {
        return Ok(());
    }
    rustix::io::retry_on_intr(|| fallocate(&disk.file, mode, request.offset_bytes, request.length_bytes))
}

fn write_zero_bytes(disk: &Inner, request: &Request) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
    let mut offset = request.offset_bytes;
    let mut left = request.length_bytes;
    while left > 0 {
        let count = left.min(ZEROES.len() as u64);
        disk.file.write_all_at(&ZEROES[..count as usize], offset)?;
        offset += count;
        left -= count;
    }
    Ok(())
}
