//! The queue of a qcow2 disk.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use imago::Mapping;
use rustix::event::{EventfdFlags, eventfd};

use super::Inner;
use super::layer::Layer;
use crate::error::Error;
use crate::ring::Ring;
use crate::transfer::{Tail, Transfer};
use crate::{Buffer, Completion, DiskQueue, Operation, Request};

/// Most bytes that are copied at once where bytes cannot go straight between file and guest.
const MAX_COPY_BYTES: u64 = 1 << 20;

pub(super) struct Qcow2Queue {
    // Dropped before the image, so that transfers are over before their files are closed.
    /// Absent where the host has no io_uring, or where requests must complete in order.
    ring: Option<Ring>,
    /// Stands in for the ring's.
    event: OwnedFd,
    /// Requests whose pieces are under way; the place is the tag of each piece.
    works: Vec<Option<Work>>,
    free: Vec<usize>,
    done: VecDeque<Completion>,
    depth: usize,
    place: Place,
}

/// The one place for a queue of an image.
struct Place(Arc<Inner>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.queue_open.store(false, Ordering::Release);
    }
}

/// A request in pieces.
struct Work {
    token: u64,
    /// Pieces that have not ended, and one for as long as pieces are being made.
    left: u32,
    result: io::Result<()>,
    /// The end of the request means that everything is on the disk.
    durable: bool,
}

impl Qcow2Queue {
    pub(super) fn new(image: Arc<Inner>, depth: u32) -> Result<Qcow2Queue, Error> {
        let place = Place(image);
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(io::Error::from);
        let ring = if place.0.in_order { None } else { ring(&place.0, depth) };
        Ok(Qcow2Queue {
            ring,
            event: event.map_err(Error::Queue)?,
            works: Vec::new(),
            free: Vec::new(),
            done: VecDeque::new(),
            depth: depth as usize,
            place,
        })
    }

    fn image(&self) -> &Inner {
        &self.place.0
    }

    fn begin(&mut self, token: u64, durable: bool) -> usize {
        let work = Some(Work { token, left: 1, result: Ok(()), durable });
        match self.free.pop() {
            Some(tag) => {
                self.works[tag] = work;
                tag
            }
            None => {
                self.works.push(work);
                self.works.len() - 1
            }
        }
    }

    /// One piece of `tag` is over.
    fn end(&mut self, tag: usize, result: io::Result<()>) {
        let Some(place) = self.works.get_mut(tag) else { return };
        let Some(work) = place.as_mut() else { return };
        work.left -= 1;
        if work.result.is_ok() {
            work.result = result;
        }
        if work.left > 0 {
            return;
        }
        let Some(mut work) = place.take() else { return };
        self.free.push(tag);
        if work.durable && work.result.is_ok() {
            work.result = self.image().access.flush().and_then(|()| self.image().access.sync());
        }
        self.done.push_back(Completion { token: work.token, result: work.result });
    }

    /// Hands a piece to the kernel, or carries it out where there is no ring.
    fn start(&mut self, tag: usize, mut transfer: Transfer) {
        if let Some(work) = self.works.get_mut(tag).and_then(Option::as_mut) {
            work.left += 1;
        }
        loop {
            let Some(ring) = &mut self.ring else {
                // SAFETY: the image keeps its files open, and the submitter its buffers until the completion is fetched.
                let result = unsafe { transfer.carry_out() };
                return self.end(tag, result);
            };
            // SAFETY: as above.
            match unsafe { ring.submit(tag as u64, transfer) } {
                Ok(()) => return,
                Err(back) => transfer = back,
            }
            ring.wait();
            self.reap();
        }
    }

    /// Accounts for the pieces that the kernel has finished.
    fn reap(&mut self) {
        while let Some(landing) = self.ring.as_mut().and_then(Ring::reap) {
            self.end(landing.tag as usize, landing.result);
        }
    }

    /// Waits until no transfer is under way: what changes the tables must not meet one.
    fn settle(&mut self) {
        while self.ring.as_ref().is_some_and(|ring| !ring.is_idle()) {
            if let Some(ring) = &mut self.ring {
                ring.wait();
            }
            self.reap();
        }
    }

    fn carry_out(&mut self, tag: usize, request: Request) -> io::Result<()> {
        let Request { operation, offset_bytes, length_bytes, buffers, .. } = request;
        match operation {
            Operation::Read => self.read(tag, offset_bytes, buffers),
            Operation::Write { .. } => self.write(tag, offset_bytes, buffers),
            Operation::Flush => {
                self.image().access.flush()?;
                // What the guest has written lies in the image's own file.
                self.image().access.sync()
            }
            Operation::Discard => self.discard(offset_bytes, length_bytes),
            Operation::WriteZeroes { unmap } => self.write_zeroes(offset_bytes, length_bytes, unmap),
        }
    }

    fn read(&mut self, tag: usize, mut offset: u64, mut buffers: Vec<Buffer>) -> io::Result<()> {
        while !buffers.is_empty() {
            let left = Buffer::total_bytes(&buffers);
            let image = self.place.0.clone();
            let (mapping, length) = image.access.get_mapping(offset, left)?;
            let length = length.min(left);
            match mapping {
                Mapping::Raw { storage, offset: place, .. } if length > 0 => {
                    let piece = Buffer::split_front(&mut buffers, length as usize);
                    self.start(tag, transfer(storage, Operation::Read, place, piece));
                    offset += length;
                }
                Mapping::Zero { .. } if length > 0 => {
                    // SAFETY: the submitter keeps the buffers valid until the completion is fetched.
                    unsafe { Buffer::zero(&Buffer::split_front(&mut buffers, length as usize)) };
                    offset += length;
                }
                Mapping::Special { .. } if length > 0 => {
                    let length = length.min(MAX_COPY_BYTES);
                    let mut bytes = vec![0; length as usize];
                    image.access.read(&mut bytes[..], offset)?;
                    // SAFETY: as above.
                    unsafe { Buffer::fill(&Buffer::split_front(&mut buffers, bytes.len()), &bytes) };
                    offset += length;
                }
                _ => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the image ends within its disk")),
            }
        }
        Ok(())
    }

    fn write(&mut self, tag: usize, mut offset: u64, mut buffers: Vec<Buffer>) -> io::Result<()> {
        while !buffers.is_empty() {
            let left = Buffer::total_bytes(&buffers);
            let image = self.place.0.clone();
            let (mapping, length) = image.access.get_mapping(offset, left)?;
            let length = length.min(left);
            match mapping {
                Mapping::Raw { storage, offset: place, writable: true, .. } if length > 0 => {
                    let piece = Buffer::split_front(&mut buffers, length as usize);
                    self.start(tag, transfer(storage, Operation::Write { durable: false }, place, piece));
                    offset += length;
                }
                _ if length == 0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                // New clusters: the library finds a place, copies what the request does not cover, and enters them.
                _ => {
                    let piece = Buffer::split_front(&mut buffers, length.min(MAX_COPY_BYTES) as usize);
                    // SAFETY: the submitter keeps the buffers valid until the completion is fetched.
                    let bytes = unsafe { Buffer::gather(&piece) };
                    image.access.write(&bytes[..], offset)?;
                    offset += bytes.len() as u64;
                }
            }
        }
        Ok(())
    }

    /// Gives clusters back that the range covers wholly. Advice: what cannot be done is left.
    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        self.settle();
        let (mut offset, end) = (offset, offset + length);
        while offset < end {
            // SAFETY: no transfer is under way, there is no other queue, and mappings are looked up anew for each request.
            match unsafe { self.image().access.inner().discard_to_zero_unsafe(offset, end - offset) } {
                Ok((_, 0)) => break,
                Ok((start, bytes)) => offset = start + bytes,
                Err(error) if error.kind() == io::ErrorKind::Unsupported => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write_zeroes(&mut self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        self.settle();
        if unmap {
            self.discard(offset, length)?;
        }
        self.image().access.write_zeroes(offset, length)
    }
}

/// The ring, or none with a word about it.
fn ring(image: &Inner, depth: u32) -> Option<Ring> {
    let ring = Ring::new(depth);
    if let Err(error) = &ring {
        tracing::warn!(
            disk = %image.path.display(), %error,
            "io_uring is not available, so this disk works on one request at a time"
        );
    }
    ring.ok()
}

fn transfer(layer: &Layer, operation: Operation, offset_bytes: u64, buffers: Vec<Buffer>) -> Transfer {
    let file = layer.descriptor();
    // Behind the end of the file its last cluster is zero.
    let tail = Tail::Zeroes;
    Transfer { file, cached: file, tail, operation, offset_bytes, length_bytes: 0, buffers }
}

impl DiskQueue for Qcow2Queue {
    fn event(&self) -> BorrowedFd<'_> {
        match &self.ring {
            Some(ring) => ring.event(),
            None => self.event.as_fd(),
        }
    }

    fn room(&self) -> usize {
        let taken = self.works.len() - self.free.len() + self.done.len();
        self.depth.saturating_sub(taken)
    }

    unsafe fn submit(&mut self, mut request: Request) {
        request.buffers.retain(|buffer| !buffer.is_empty());
        let tag = self.begin(request.token, matches!(request.operation, Operation::Write { durable: true }));
        let checked = request.check(self.image().topology, self.image().read_only);
        let result = checked.and_then(|()| self.carry_out(tag, request));
        self.end(tag, result);
    }

    fn kick(&mut self) -> io::Result<()> {
        self.ring.as_mut().map_or(Ok(()), Ring::kick)
    }

    fn has_completed(&mut self) -> bool {
        !self.done.is_empty() || self.ring.as_mut().is_some_and(Ring::has_landed)
    }

    fn completed(&mut self) -> Option<Completion> {
        if self.done.is_empty() {
            self.reap();
        }
        self.done.pop_front()
    }

    fn drain(&mut self) {
        self.settle();
    }
}

impl Drop for Qcow2Queue {
    fn drop(&mut self) {
        self.settle();
        if let Err(error) = self.image().access.flush() {
            tracing::error!(disk = %self.image().path.display(), %error, "the tables of a disk could not be written");
        }
    }
}
