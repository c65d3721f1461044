//! Requests carried out by the kernel's io_uring: the device thread submits and goes on; an eventfd tells it of ends.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use io_uring::{IoUring, opcode, squeue, types};
use rustix::event::{EventfdFlags, eventfd};

use super::{Inner, sync};
use crate::{Buffer, Completion, DiskQueue, Operation, Request};

/// Requests that the kernel holds never outnumber the submission ring, so neither ring can overflow.
pub(super) struct UringQueue {
    disk: Arc<Inner>,
    ring: IoUring,
    event: OwnedFd,
    /// Requests the kernel holds; their place is the `user_data` of the entry. The vectors of buffers must not move
    /// while the kernel has them, and they do not: moving a `Vec` leaves its elements where they are.
    flying: Vec<Option<Request>>,
    free: Vec<usize>,
    done: VecDeque<Completion>,
}

impl UringQueue {
    pub(super) fn new(disk: Arc<Inner>, depth: u32) -> io::Result<UringQueue> {
        let depth = depth.clamp(1, 4096);
        let ring = IoUring::builder().dontfork().build(depth.next_power_of_two())?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        let flying = (0..depth).map(|_| None).collect();
        let free = (0..depth as usize).collect();
        Ok(UringQueue { disk, ring, event, flying, free, done: VecDeque::new() })
    }

    fn entry(&self, request: &Request) -> squeue::Entry {
        let file = types::Fd(self.disk.file.as_raw_fd());
        let vectors = Buffer::as_iovecs(&request.buffers);
        let count = request.buffers.len().min(libc::UIO_MAXIOV as usize) as u32;
        let data = types::Fd(self.disk.descriptor(&request.buffers, request.offset_bytes));
        match request.operation {
            Operation::Read => opcode::Readv::new(data, vectors, count).offset(request.offset_bytes).build(),
            Operation::Write { durable } => opcode::Writev::new(data, vectors, count)
                .offset(request.offset_bytes)
                .rw_flags(if durable { libc::RWF_DSYNC } else { 0 })
                .build(),
            Operation::Flush => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
            operation @ (Operation::Discard | Operation::WriteZeroes { .. }) => {
                opcode::Fallocate::new(file, request.length_bytes)
                    .offset(request.offset_bytes)
                    .mode(sync::fallocate_mode(operation).bits() as i32)
                    .build()
            }
        }
    }

    /// Whether the request is over without the kernel's help, and how.
    fn trivial(&self, request: &Request) -> Option<io::Result<()>> {
        match (self.disk.check(request), request.span_bytes()) {
            (Err(error), _) => Some(Err(error)),
            (Ok(()), Some(0)) if request.operation != Operation::Flush => Some(Ok(())),
            _ => None,
        }
    }

    /// Turns what the kernel has finished into completions.
    fn reap(&mut self) {
        let ended: Vec<(u64, i32)> = self.ring.completion().map(|entry| (entry.user_data(), entry.result())).collect();
        for (slot, code) in ended {
            let Some(mut request) = self.flying.get_mut(slot as usize).and_then(Option::take) else { continue };
            self.free.push(slot as usize);
            let result = self.finish(&mut request, code);
            self.done.push_back(Completion { token: request.token, result });
        }
    }

    /// Judges the kernel's answer; what it left undone is done here.
    fn finish(&self, request: &mut Request, code: i32) -> io::Result<()> {
        let count = match usize::try_from(code) {
            Ok(count) => count,
            Err(_) if retry(request.operation, -code) => 0,
            Err(_) => return Err(io::Error::from_raw_os_error(-code)),
        };
        match request.operation {
            Operation::Read | Operation::Write { .. } => {
                Buffer::advance(&mut request.buffers, count);
                request.offset_bytes += count as u64;
                if request.buffers.is_empty() {
                    return Ok(());
                }
            }
            _ if code >= 0 => return Ok(()),
            _ => {}
        }
        // SAFETY: the completion has not been handed out, so the submitter still keeps the buffers valid.
        unsafe { sync::carry_out(&self.disk, request) }
    }
}

/// Whether an error of the asynchronous path is worth an attempt in this thread.
fn retry(operation: Operation, errno: i32) -> bool {
    match errno {
        libc::EAGAIN | libc::EINTR => true,
        libc::EOPNOTSUPP | libc::EINVAL => matches!(operation, Operation::Discard | Operation::WriteZeroes { .. }),
        _ => false,
    }
}

impl DiskQueue for UringQueue {
    fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    fn room(&self) -> usize {
        self.free.len()
    }

    unsafe fn submit(&mut self, mut request: Request) {
        request.buffers.retain(|buffer| !buffer.is_empty());
        if let Some(result) = self.trivial(&request) {
            self.done.push_back(Completion { token: request.token, result });
            return;
        }
        let Some(slot) = self.free.pop() else {
            let result = Err(io::Error::from(io::ErrorKind::ResourceBusy));
            self.done.push_back(Completion { token: request.token, result });
            return;
        };
        let entry = self.entry(&request).user_data(slot as u64);
        self.flying[slot] = Some(request);
        // SAFETY: the entry's vector lies in `self.flying` and its memory is kept valid by the caller, both until the
        // completion; `drop` waits for completions.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            // Not reached while requests never outnumber the ring; an error is better than a panic all the same.
            self.free.push(slot);
            if let Some(request) = self.flying[slot].take() {
                let result = Err(io::Error::from(io::ErrorKind::ResourceBusy));
                self.done.push_back(Completion { token: request.token, result });
            }
        }
    }

    fn kick(&mut self) -> io::Result<()> {
        if self.ring.submission().is_empty() {
            return Ok(());
        }
        loop {
            match self.ring.submit() {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The kernel is short of memory for requests, or the completion ring wants to be emptied first.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => {
                    self.reap();
                    std::thread::yield_now();
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn completed(&mut self) -> Option<Completion> {
        if self.done.is_empty() {
            self.reap();
        }
        self.done.pop_front()
    }

    fn drain(&mut self) {
        while self.free.len() < self.flying.len() {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {}
                Err(error) => {
                    // Requests may still be flying: their memory must never be reused.
                    tracing::error!(disk = %self.disk.path.display(), %error, "io_uring stopped answering");
                    std::process::abort();
                }
            }
            self.reap();
        }
    }
}

impl Drop for UringQueue {
    fn drop(&mut self) {
        self.drain();
    }
}
