//! The queues of a raw disk: one that hands its requests to the kernel, and one that works in the caller's thread.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

use super::Inner;
use crate::ring::Ring;
use crate::{Completion, DiskQueue, Operation, Request};

/// A queue over io_uring.
pub(super) struct RingQueue {
    // Dropped before the disk, so that transfers are over before their file is closed.
    ring: Ring,
    disk: Arc<Inner>,
    /// Requests that ended without the kernel's help.
    done: VecDeque<Completion>,
}

impl RingQueue {
    pub(super) fn new(disk: Arc<Inner>, depth: u32) -> io::Result<RingQueue> {
        Ok(RingQueue { ring: Ring::new(depth)?, disk, done: VecDeque::new() })
    }

    /// Whether the request is over without the kernel's help, and how.
    fn trivial(&self, request: &Request) -> Option<io::Result<()>> {
        match (request.check(self.disk.topology, self.disk.read_only), request.span_bytes()) {
            (Err(error), _) => Some(Err(error)),
            (Ok(()), Some(0)) if request.operation != Operation::Flush => Some(Ok(())),
            _ => None,
        }
    }
}

impl DiskQueue for RingQueue {
    fn event(&self) -> BorrowedFd<'_> {
        self.ring.event()
    }

    fn room(&self) -> usize {
        self.ring.room()
    }

    unsafe fn submit(&mut self, mut request: Request) {
        request.buffers.retain(|buffer| !buffer.is_empty());
        let token = request.token;
        if let Some(result) = self.trivial(&request) {
            self.done.push_back(Completion { token, result });
            return;
        }
        let transfer = self.disk.transfer(request);
        // SAFETY: `self.disk` keeps the files open, and the caller keeps the buffers valid.
        if unsafe { self.ring.submit(token, transfer) }.is_err() {
            let result = Err(io::Error::from(io::ErrorKind::ResourceBusy));
            self.done.push_back(Completion { token, result });
        }
    }

    fn kick(&mut self) -> io::Result<()> {
        self.ring.kick()
    }

    fn has_completed(&mut self) -> bool {
        !self.done.is_empty() || self.ring.has_landed()
    }

    fn completed(&mut self) -> Option<Completion> {
        let landed = self.ring.reap().map(|landing| Completion { token: landing.tag, result: landing.result });
        landed.or_else(|| self.done.pop_front())
    }

    fn drain(&mut self) {
        while !self.ring.is_idle() {
            self.ring.wait();
            self.done.extend(
                std::iter::from_fn(|| self.ring.reap())
                    .map(|landing| Completion { token: landing.tag, result: landing.result }),
            );
        }
    }
}

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

    unsafe fn submit(&mut self, request: Request) {
        let token = request.token;
        let result = request.check(self.disk.topology, self.disk.read_only).and_then(|()| {
            // SAFETY: `self.disk` keeps the files open; the caller keeps the buffers valid until the completion is
            // fetched, which is later than this call.
            unsafe { self.disk.transfer(request).carry_out() }
        });
        self.done.push_back(Completion { token, result });
    }

    fn kick(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn has_completed(&mut self) -> bool {
        !self.done.is_empty()
    }

    fn completed(&mut self) -> Option<Completion> {
        self.done.pop_front()
    }

    fn drain(&mut self) {}
}
